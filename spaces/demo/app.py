"""The demo of one or more fine-tuned text classifiers: the same app on your machine and as a Space.

It shows run folders (`python app.py runs/books-kitchen`), or what space.json beside this file names (`python app.py`).
"""

from __future__ import annotations

import argparse
import html
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import batch
import evidence
from corrections import Corrections
from distance import domain_of
from examples import choose
from models import Model, Unusable, fetch, whole
from start import gr

HERE = Path(__file__).resolve().parent
CHARACTERS = 10_000  # a text, at most
WAITING = 32  # requests in the queue
CLEANING = (600, 3600)  # seconds: how often uploads and results are deleted, and at what age
CSS = """
.gradio-container { width: 100% !important; max-width: 60rem !important; margin: 0 auto !important; }
.report { max-width: 100%; height: auto; border-radius: 0.5rem; }
.prose table { display: block; overflow-x: auto; border: 0 !important; width: 100%; }
.prose th, .prose td { white-space: nowrap; padding: 0.35rem 0.6rem !important; }
footer .divider { display: none !important; }
"""


def main(argv: list[str] | None = None) -> None:
    """Load the models and serve the app; what can't be shown ends in one line and exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders (default: what space.json names)")
    parser.add_argument("--port", type=int, help="port to serve on (default: the first free one from 7860)")
    parser.add_argument("--mcp", action="store_true", help="serve the endpoints as tools for language models too")
    parser.add_argument("--corrections", default=os.environ.get("CORRECTIONS"), metavar="FILE",
                        help="let users correct labels; a file to append to, or dataset:me/corrections")  # fmt: skip
    arguments = parser.parse_args(argv)
    mcp = arguments.mcp or os.environ.get("GRADIO_MCP_SERVER", "").lower() == "true"
    try:
        if arguments.port is not None and not 0 < arguments.port < 1 << 16:
            raise Unusable(f"--port {arguments.port} is no port; give one from 1 to 65535, or none.")
        title, models, examples = of_runs(arguments.runs) if arguments.runs else of_space(HERE / "space.json")
        corrections = Corrections(arguments.corrections) if arguments.corrections else None
        for model in models:
            model.predict("warm up")
        serve(Demo(title, models, examples, corrections).blocks(), arguments.port, mcp=mcp)
    except Unusable as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def of_runs(folders: list[str]) -> tuple[str, list[Model], list[str]]:
    """Return title, models and examples for run folders; the first run's examples."""
    paths = [Path(os.path.normpath(folder)) for folder in folders]
    names = [path.absolute().name for path in paths]
    if len(set(names)) < len(names):  # then tell them apart by the folder above
        names = ["/".join(path.absolute().parts[-2:]) for path in paths]
    if len(set(names)) < len(names):
        raise Unusable("the same run is given twice; give each once.")
    models = [Model(name, path) for name, path in zip(names, paths, strict=True)]
    recorded = paths[0] / "recorded.jsonl"
    with whole(recorded):
        examples = choose(recorded)
    return ", ".join(names), models, examples


def of_space(file: Path) -> tuple[str, list[Model], list[str]]:
    """Return title, models and examples as space.json names them; models on the Hub are downloaded."""
    if not file.is_file():
        raise Unusable("no run folder is given, and there is no space.json; run: python app.py RUN.")
    with whole(file):
        space = json.loads(file.read_text(encoding="utf-8"))
        title, entries, examples = space["title"], space["models"], space.get("examples", [])
        places = [(entry["name"], entry.get("folder"), entry.get("repo"), entry.get("revision")) for entry in entries]
    if not places:
        raise Unusable(f"{file} names no model; make it again.")
    models = [Model(name, file.parent / folder if folder else fetch(repo, revision))
              for name, folder, repo, revision in places]  # fmt: skip
    return title, models, examples


def serve(blocks: gr.Blocks, port: int | None, *, mcp: bool) -> None:
    """Serve until interrupted: on a Space for everyone, else for this machine only."""
    try:
        blocks.launch(
            server_name="0.0.0.0" if os.environ.get("SPACE_ID") else "127.0.0.1",
            server_port=port,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=CSS,
            footer_links=["api"],  # the others lead outside or hold nothing here
            run_history=False,
            max_file_size=f"{batch.MEGABYTES}mb",
            mcp_server=mcp,
            ssr_mode=False,
            pwa=False,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        if "empty port" not in str(error):
            raise Unusable(f"the app can't be served ({error}).") from error
        where = f"port {port} is taken, or not allowed" if port else "no port from 7860 on is free"
        raise Unusable(f"{where}; give another with --port.") from error
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that what is scheduled for the exit is still done
    try:
        if mcp and blocks.mcp_server_obj is None:  # gradio would serve without it and say nothing
            raise Unusable("the MCP server needs the package mcp 1.x; run: pip install 'gradio[mcp]'.")
        print(f"running on {blocks.local_url} (Ctrl-C ends)", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        blocks.close(verbose=False)


class Demo:
    """What the tabs show and the endpoints do.

    Args:
        title: of the page.
        models: at least one.
        examples: texts to click on.
        corrections: where users' corrections go; None leaves them out.
    """

    def __init__(self, title: str, models: list[Model], examples: list[str], corrections: Corrections | None) -> None:
        self.title, self.examples, self.corrections = title, examples, corrections
        self.models = {model.name: model for model in models}
        self.domains = {model.name: domain_of(model.folder) for model in models}

    # What the endpoints do. Their docstrings are read by language models through MCP.

    def predict(self, text: str, model: str) -> tuple[dict[str, float], str]:
        """Label a text.

        Args:
            text: the text to label.
            model: name of the model to use.

        Returns:
            The probability of each label, and how usual the text is compared with the training texts.
        """
        domain = self.domains[model]
        found = self.models[model].predict(checked(text), domain.layer if domain else None)
        notes = [domain.words(domain.distance(found.state))] if domain else []
        if found.cut:
            end = "first" if self.models[model].tokenizer.truncation_side == "right" else "last"
            notes.append(f"The text was cut: only its {end} {found.tokens} tokens were read.")
        return found.probabilities, "  \n".join(notes)

    def explain(self, text: str, model: str) -> tuple[list[tuple[str, float | None]], str]:
        """Show which words of a text speak for and against the label it gets.

        Args:
            text: the text to label.
            model: name of the model to use.

        Returns:
            The text in pieces with a weight from -1 (against the label) to 1 (for it), and a summary in words.
        """
        from attribution import explain

        explanation = explain(self.models[model], checked(text))
        return explanation.shown(), explanation.words()

    def batch(self, file: str, text_column: str, model: str, progress: gr.Progress = gr.Progress()) -> Iterator[Any]:  # noqa: B008
        """Label every row of a CSV file.

        Args:
            file: a .csv or .tsv file in UTF-8 with column names in its first line.
            text_column: name of the column with the text; empty to guess it.
            model: name of the model to use.
            progress: shows how far it is.

        Returns:
            The file with the columns prediction and confidence added, and a summary.
        """
        if not file:
            raise complaint("Choose a CSV file first.")
        path = Path(file)
        progress(0, desc="Checking the file")
        try:
            table = batch.check(path, text_column)
        except batch.Unreadable as error:
            raise complaint(str(error)) from error
        progress((0, table.rows), desc="Labelling", unit="rows")
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / f"{path.stem}-labelled{path.suffix.lower()}"
            for done in batch.score(table, self.models[model], output):
                progress((done, table.rows), desc="Labelling", unit="rows")
            column = evidence.plain(table.header[table.text])
            yield str(output), f"{table.rows:,} rows labelled by the column '{column}'."

    def compare(self, text: str) -> list[dict[str, float]]:
        """Label a text with every model.

        Args:
            text: the text to label.

        Returns:
            The probability of each label, one answer a model.
        """
        text = checked(text)
        return [model.predict(text).probabilities for model in self.models.values()]

    def correct(self, text: str, label: str, model: str) -> str:
        """Note the right label of a text that the model labels wrongly.

        Args:
            text: the text.
            label: its right label.
            model: name of the model that is corrected.

        Returns:
            What was noted.
        """
        if not label:
            raise complaint("Choose the right label first.")
        if label not in (labels := self.models[model].labels):
            raise complaint(f"The model {model} has no label '{label}'; choose one of: {', '.join(labels)}.")
        assert self.corrections
        predicted = self.models[model].predict(checked(text)).label
        self.corrections.add(text=text, label=label, predicted=predicted, model=model)
        return f"Saved, thank you: **{evidence.plain(label)}** (the model says {evidence.plain(predicted)})."

    # The page

    def blocks(self) -> gr.Blocks:
        """Return the app."""
        with gr.Blocks(title=self.title, analytics_enabled=False, delete_cache=CLEANING) as blocks:
            gr.Markdown(f"# {evidence.plain(self.title)}\n\n" + "\n\n".join(map(self._about, self.models.values())))
            with gr.Tabs():
                with gr.Tab("Try"):
                    tried = self._try()
                with gr.Tab("Batch"):
                    self._batch()
                with gr.Tab("Evidence"):
                    self._evidence()
                if len(self.models) > 1:
                    with gr.Tab("Compare"):
                        self._compare()
                if self.corrections:
                    with gr.Tab("Correct it") as tab:
                        self._correct(tab, tried)
        return blocks.queue(max_size=WAITING, default_concurrency_limit=1)

    def _about(self, model: Model) -> str:
        name = f"**{evidence.plain(model.name)}:** " if len(self.models) > 1 else ""
        with whole(model.folder / "run.json"):
            return name + evidence.about(model.run)

    def _text(self) -> gr.Textbox:
        return gr.Textbox(label="Text", lines=4, max_lines=12, placeholder="Type or paste a text; Shift+Enter sends it")

    def _model(self) -> gr.Radio:
        names = list(self.models)
        return gr.Radio(names, value=names[0], label="Model", visible=len(names) > 1)

    def _try(self) -> list[gr.Component]:
        model = self._model()
        text = self._text()
        button = gr.Button("Label it", variant="primary")
        examples = gr.Examples(self.examples, text, api_visibility="private") if self.examples else None
        label = gr.Label(label="Label")
        usual = gr.Markdown(elem_id="usual", label="How usual it is")
        weights = gr.HighlightedText(label="Words for this label, and against it (below 0)", show_legend=True)
        summary = gr.Markdown(elem_id="summary", label="In words")
        outputs = [label, usual, weights, summary]
        starts = [(gr.on, "public", {"triggers": [button.click, text.submit]})]
        if examples:
            starts.append((examples.load_input_event.success, "private", {}))
        inputs = [text, model]
        for start, visibility, arguments in starts:
            # what was said of an earlier text goes at once; then the label, then the weights, which take longer
            cleared = start(fn=None, js="() => [{}, '', [], '']", outputs=outputs,
                            api_visibility="private", **arguments)  # fmt: skip
            labelled = cleared.then(self.predict, inputs, [label, usual], api_name="predict", api_visibility=visibility,
                                    concurrency_id="model")  # fmt: skip
            labelled.success(self.explain, inputs, [weights, summary], api_name="explain", api_visibility=visibility,
                             concurrency_id="explain")  # fmt: skip
        return inputs

    def _batch(self) -> None:
        gr.Markdown(f"Labels every row of a table: CSV or TSV in UTF-8, at most {batch.ROWS:,} rows and "
                    f"{batch.MEGABYTES} MB. "
                    "Rows and columns stay as they are; `prediction` and `confidence` are added. "
                    "A cell that a spreadsheet would run as a formula gets a ' in front; open the table with the "
                    "separator that it came with.")  # fmt: skip
        model = self._model()
        file = gr.File(label="Table", file_types=[".csv", ".tsv"], height=140)
        column = gr.Textbox("", label="Name of the text column", placeholder="empty: found by its name", max_lines=1)
        button = gr.Button("Label all rows", variant="primary")
        output = gr.File(label="Labelled table", interactive=False, height=100)
        summary = gr.Markdown(label="Summary")
        gr.on([button.click, column.submit], self.batch, [file, column, model], [output, summary], api_name="batch",
              concurrency_id="batch", show_progress_on=output)  # fmt: skip

    def _evidence(self) -> None:
        for model in self.models.values():
            run = model.run
            if len(self.models) > 1:
                gr.Markdown(f"## {evidence.plain(model.name)}")
            with whole(model.folder / "run.json"):
                scores = evidence.scores([(model.name, run)])
                gr.Markdown(f"**{evidence.verdict(run)}**\n\n{scores}\n\n{evidence.SCALE}")
                gr.Markdown(f"### By label\n\n{evidence.per_class(run)}")
                if parts := evidence.slices(run):
                    gr.Markdown(f"### By part\n\n{parts}")
                if picture := evidence.picture(model.folder, run):
                    gr.HTML(picture)
                gr.Markdown(f"### How it was made\n\n{evidence.circumstances(run)}")

    def _compare(self) -> None:
        text = self._text()
        button = gr.Button("Label it with each model", variant="primary")
        with gr.Row():
            labels = [gr.Label(label=name) for name in self.models]
        gr.on([button.click, text.submit], self.compare, text, labels, api_name="compare", concurrency_id="model")
        table = evidence.scores([(name, model.run) for name, model in self.models.items()])
        gr.Markdown(f"### Evidence\n\n{table}\n\n{evidence.SCALE}")

    def _correct(self, tab: gr.Tab, tried: list[gr.Component]) -> None:
        gr.Markdown("Is a label wrong? Say what is right. The text and both labels are kept for a later training.")
        model = self._model()
        text = self._text()
        names = dict.fromkeys(label for model in self.models.values() for label in model.labels)
        label = gr.Radio(list(names), label="Right label")
        button = gr.Button("Save the correction", variant="primary")
        saved = gr.Markdown(elem_id="saved", label="Saved")
        # what stays of an earlier text would be saved with the next one, or read as said of it
        tab.select(None, tried, [text, model, label, saved], js="(text, model) => [text, model, null, '']",
                   api_visibility="private")  # fmt: skip
        text.input(None, None, saved, js="() => ''", api_visibility="private")
        noted = button.click(self.correct, [text, label, model], saved, api_name="correct", concurrency_id="model")
        noted.success(None, None, [text, label], js="() => ['', null]", api_visibility="private")


def checked(text: str) -> str:
    """Return `text` if it can be labelled.

    Raises:
        gr.Error: it is empty or too long.
    """
    if not (text or "").strip():
        raise complaint("There is no text; type or paste one first.")
    if len(text) > CHARACTERS:
        raise complaint(f"The text has {len(text):,} characters; at most {CHARACTERS:,} are taken.")
    return text


def complaint(message: str) -> gr.Error:
    """Return what tells the user, and only the user, that an input can't be taken."""
    text = html.escape(message[:500], quote=False)  # the page takes it as HTML, and names from users' files are in it
    return gr.Error(text, title="That can't be taken", print_exception=False)


if __name__ == "__main__":
    main()
