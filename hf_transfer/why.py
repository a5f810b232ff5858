"""One text traced through a run: tokens, logits, loss, the words that decided, the nearest training rows, the time."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.demo import demo_part
from hf_transfer.errors import UserError
from hf_transfer.resources import Meter
from hf_transfer.results import Run, check_writable, load_run, write_atomically
from hf_transfer.samples import out_folder

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

    from hf_transfer.tasks import Task

STAGES = ("start", "read", "load model", "tokenise", "forward", "attribute", "neighbours")
ROWS = 2000  # training rows among which the nearest are looked for
NEAREST = 5
WORDS = 8  # shown for the label, and against it
WIDTH, INDENT = 110, 12  # characters: of a line, and of its margin
SHORT, SHORTEST = 300, 20  # characters that are shown of what is longer
MANY = 6  # rows listed in an error


def why_row(
    folder: str | Path,
    row: str | None = None,
    *,
    text: str | None = None,
    output_dir: str | None = None,
    quiet: bool = False,
) -> str:
    """Trace a tested row, or any text, through a run; returns the report, also written with JSON if asked for.

    The model computes in float32, whatever the run was tested in.

    Args:
        folder: a finished run.
        row: its place in predictions.parquet: `17`, `target_test:17`, `kitchen:17` or `target_test:kitchen:17`, as
            much as it takes to name one row.
        text: in place of `row`.
        output_dir: where why.txt and why.json go.
        quiet: no progress bars.

    Raises:
        UserError: no such run or row, several such rows, or data that changed or are gone; a text needs none, it is
            then only not compared with training rows.
    """
    from hf_transfer.console import Console

    run = load_run(folder)
    if (row is None) == (text is None):
        raise UserError("give either ROW, the place of a tested row, or a text with --text.")
    if text is not None and not text.strip():
        raise UserError("--text is empty; give some words.")
    if output_dir is not None:
        check_writable(Path(output_dir), "--output_dir")
    Console(quiet=quiet)
    facts = _trace(run, row, text, quiet=quiet)
    said = report(facts)
    if (out := out_folder(output_dir)) is not None:
        write_atomically(out / "why.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        write_atomically(out / "why.txt", said + "\n")
        said += f"\n\nwritten: {out}/why.txt, why.json"
    return said


def _trace(run: Run, address: str | None, text: str | None, *, quiet: bool) -> dict[str, Any]:
    """Return all that is found, ready for JSON; exactly one of `address` and `text` is given."""
    from tqdm import tqdm

    tested, place = (None, 0) if address is None else find_row(run, address)
    recorded = None if tested is None else tested.to_dict("records")[place]
    meter = Meter()
    with tqdm(total=len(STAGES), unit="stage", leave=False, disable=quiet) as bar:

        @contextmanager
        def stage(name: str) -> Iterator[None]:
            bar.set_description(name)
            with meter.stage(name):
                yield
            bar.update()

        with stage("start"):  # libraries, whose loading would be counted where each is first used
            import scipy.special

            from hf_transfer import tasks
            from hf_transfer.arguments import best_precision

            task = tasks.load(run.task)
            precision = "fp32" if run.precision == "fp32" else best_precision()
        with stage("read"):
            text, train, unread = _read(run, tested, place, text, quiet=quiet)
        with stage("load model"):
            model = _load(run)
        with stage("tokenise"):
            tokens, inputs = _tokenise(model, text)
        with stage("forward"):
            logits = _logits(model, inputs)
        with stage("attribute"):
            explanation = demo_part("attribution")["explain"](model, text)
        with stage("neighbours"):
            nearest = None
            if train is not None:
                nearest = nearest_rows(run, task, model, train, text, precision=precision, quiet=quiet)
    labels = run.label_names
    logs = scipy.special.log_softmax(logits.astype(np.float64))
    label = recorded["label"] if recorded else None
    return {
        "run": str(run.folder),
        "arm": run.arm,
        "row": {name: recorded[name] for name in ("set", "domain", "row")} if recorded else None,
        "text": text,
        "tokens": tokens,
        "logits": dict(zip(labels, logits.tolist(), strict=True)),
        "probabilities": dict(zip(labels, np.exp(logs).tolist(), strict=True)),
        "recorded": {name: recorded[f"p_{name}"] for name in labels} if recorded else None,
        "recorded_in": run.precision,
        "prediction": labels[int(logits.argmax())],
        "label": label,
        "loss": None if label is None else float(-logs[labels.index(label)]),
        "attributions": vars(explanation),
        "neighbours": nearest,
        "no_neighbours": unread,
        "seconds": {**meter.seconds, "total": round(sum(meter.seconds.values()), 3)},
    }


def find_row(run: Run, address: str) -> tuple[pd.DataFrame, int]:
    """Return the tested rows of a set as predictions.parquet has them, and which of them `address` names.

    Raises:
        UserError: the file can't be read, or there is no such row, or more than one.
    """
    import pandas as pd
    import pyarrow as pa

    file = run.folder / "predictions.parquet"
    try:
        frame = pd.read_parquet(file)
        sets, names = frame["set"], frame["set"] + ":" + frame["domain"]
        before, _, number = address.rpartition(":")
        here = (sets == before) | (frame["domain"] == before) | (names == before) | (before == "")
        found = frame[here & (frame["row"].astype(str) == number)]
    except (OSError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(f"{file} can't be read ({str(error)[:80]}); make the run again.") from error
    if not len(found):
        there = [
            f"{name}:{rows.min()} to {rows.max()} ({len(rows)} rows)" for name, rows in frame["row"].groupby(names)
        ]
        raise UserError(f"{run.folder} tested no row '{_line(address, SHORT)}'; it tested {_some(there)}. Name one of "
                        "them, or give any text with --text.")  # fmt: skip
    if len(found) > 1:
        there = [f"{names[i]}:{number}" for i in found.index]
        raise UserError(f"'{_line(address, SHORT)}' fits {len(found)} rows that {run.folder} tested: {_some(there)}; "
                        "name one of them in full, or give its text with --text.")  # fmt: skip
    own = frame[sets == found["set"].iloc[0]]
    return own.reset_index(drop=True), own.index.get_loc(found.index[0])


def _read(
    run: Run, tested: pd.DataFrame | None, place: int, text: str | None, *, quiet: bool
) -> tuple[str, Dataset | None, str]:
    """Return the text, which is that of row `place` of `tested` if it is not given, and the training rows.

    For a given text the latter are None where they can't be read, and the last of the three says why.

    Raises:
        UserError: a tested row's text can't be read again.
    """
    from hf_transfer.data import load_again

    try:
        domains = load_again(run, quiet=quiet)
        if tested is None:
            assert text is not None
            return text, domains.train, ""
        rows = getattr(domains, tested["set"].iloc[0])
        here = rows.select_columns(["domain", "row", "label"]).to_pandas()
        here["label"] = [run.label_names[i] for i in here["label"]]
        if not np.array_equal(here.to_numpy(dtype=object), tested[list(here)].to_numpy(dtype=object)):
            raise UserError(f"the data of {run.folder} are in another order than when it was trained")
        return rows[place]["text"], domains.train, ""
    except UserError as error:
        if text is not None:
            return text, None, str(error)
        raise UserError(f"{error}; restore the data, or give the text itself with --text.") from error


def _load(run: Run) -> Any:
    """Return the demo's model of the run, warmed up: a first pass takes several times as long as any other."""
    parts = demo_part("models")
    try:
        model = parts["Model"](run.folder.name, run.folder)
    except parts["Unusable"] as error:
        raise UserError(str(error)) from error
    model.predict("warm up")
    return model


def _tokenise(model: Any, text: str) -> tuple[dict[str, Any], dict[str, list[list[int]]]]:
    """Return which tokens of `text` the model reads and which it does not, and its inputs."""
    tokenizer = model.tokenizer
    encoding, _ = model.encode(text)
    whole = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, offsets = whole["input_ids"], whole["offset_mapping"]
    lost = len(ids) - encoding["special_tokens_mask"].count(0)
    # where the text that is read begins and ends, among the tokens
    begin, end = (lost, len(ids)) if tokenizer.truncation_side == "left" else (0, len(ids) - lost)
    cut = slice(0, begin) if begin else slice(end, len(ids))
    tokens = {
        "longest": tokenizer.model_max_length,
        "read": tokenizer.convert_ids_to_tokens(encoding["input_ids"]),
        "cut": tokenizer.convert_ids_to_tokens(ids[cut]),
        "text_read": text[offsets[begin][0] if begin else 0 : offsets[end][0] if end < len(ids) else len(text)],
        "text_cut": text[: offsets[begin][0]] if begin else text[offsets[end][0] :] if lost else "",
        "unknown": encoding["input_ids"].count(tokenizer.unk_token_id),
    }
    return tokens, {name: [encoding[name]] for name in tokenizer.model_input_names if name in encoding}


def _logits(model: Any, inputs: dict[str, list[list[int]]]) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return model.net(**model.tensors(inputs)).logits[0].float().cpu().numpy()


def nearest_rows(
    run: Run, task: Task, model: Any, train: Dataset, text: str, *, precision: str, quiet: bool
) -> dict[str, Any]:
    """Return the training rows that the run's own encoder finds most similar to `text`.

    Similarity is the cosine of mean token states two thirds up the layers, less the mean of all rows: without that
    every two texts are alike (Mu and Viswanath 2018, arXiv 1702.01417). The states of the training rows are cached.

    Args:
        run: whose training it was.
        task: encodes the rows.
        model: the demo's.
        train: its labelled training rows; of more than ROWS as many are drawn with the run's seed.
        text: to compare with.
        precision: of the forward passes.
        quiet: no progress bar.
    """
    import torch
    from datasets import Dataset
    from tqdm import tqdm

    from hf_transfer.features import pooled_states
    from hf_transfer.record import lower_part, mean_states, telling_layer

    tokenizer, layer = model.tokenizer, telling_layer(model.net)
    rows = train.select(np.sort(np.random.default_rng(run.seed).permutation(len(train))[:ROWS]))
    trunk = lower_part(model.net, layer, precision)
    collator = task.collator(tokenizer)

    def encode(texts: Dataset) -> Dataset:
        return task.encode(tokenizer, texts.select_columns("text"), tokenizer.model_max_length)[0]

    with tqdm(desc="encode training rows", total=len(rows), unit="text", leave=False, disable=quiet) as bar:
        known = torch.from_numpy(pooled_states(trunk, encode(rows), collator, bar)[:, layer])
    own = torch.from_numpy(mean_states(trunk, encode(Dataset.from_dict({"text": [text]})), collator, layer))
    centre = known.mean(dim=0)
    similarity = torch.cosine_similarity(known - centre, own - centre).numpy()
    best = np.argsort(-similarity, kind="stable")[:NEAREST]
    return {
        "rows": len(rows),
        "of": len(train),
        "layer": layer,
        "nearest": [
            {"similarity": float(similarity[i]), **rows[int(i)], "label": run.label_names[rows[int(i)]["label"]]}
            for i in best
        ],
    }


def report(facts: dict[str, Any]) -> str:
    """Return what was found as plain text."""
    row, tokens, label = facts["row"], facts["tokens"], facts["label"]
    place = f"{row['set']}:{row['domain']}:{row['row']}" if row else "a text"
    lines = [f"{_line(place)}, by {facts['run']} ({facts['arm']})", ""]
    lines += _entry("text", _line(tokens["text_read"]))
    read, cut, unknown = tokens["read"], tokens["cut"], tokens["unknown"]
    if cut:
        share = f"{len(cut)} tokens, beyond the {tokens['longest']} that the run reads: "
        lines += _entry("cut off", share + _line(tokens["text_cut"], SHORT))
    strange = f", {unknown} unknown to the tokenizer" if unknown else ""
    lines += _entry("tokens", f"{len(read)} read{strange}: {_line(' '.join(read))}")
    lines += _entry("scores", *_scores(facts))
    if label is not None:
        lines += _entry("loss", f"{facts['loss']:.4f} = -log p({_line(label)})")
    lines += _entry("words", *_words(facts["attributions"]))
    lines += _entry("neighbours", *_neighbours(facts))
    seconds = ", ".join(f"{name} {value:.3f}" for name, value in facts["seconds"].items())
    return "\n".join(lines + _entry("seconds", seconds))


def _scores(facts: dict[str, Any]) -> list[str]:
    logits, tested = facts["logits"], facts["recorded"]
    width = max(5, *(len(_line(name, 30)) for name in logits))
    lines = [
        f"{'label':<{width}}     logit  probability" + (f"  when tested ({facts['recorded_in']})" if tested else "")
    ]
    for name in sorted(logits, key=lambda name: -logits[name]):
        line = f"{_line(name, 30):<{width}}  {logits[name]:+8.3f}  {facts['probabilities'][name]:11.5f}"
        line += f"  {tested[name]:11.5f}" if tested else ""
        line += "  <- predicted" if name == facts["prediction"] else ""
        lines.append(line + ("  <- right" if name == facts["label"] else ""))
    return lines


def _words(found: dict[str, Any]) -> list[str]:
    ranked = sorted(((weight, word) for word, weight in found["pieces"] if weight), reverse=True)
    lines = []
    for title, chosen in ((f"for {_line(found['label'])}", ranked), ("against it", ranked[::-1])):
        own = [f"{_line(word, 30)} {weight:+.2f}" for weight, word in chosen if (weight > 0) == (chosen is ranked)]
        lines.append(f"{title}: {', '.join(own[:WORDS]) or 'none'}")
    total = found["difference"] - found["missing"]
    return [*lines, f"together {total:+.2f} of the {found['difference']:+.2f} between the log-odds of this text and of "
            "one of blanks"]  # fmt: skip


def _neighbours(facts: dict[str, Any]) -> list[str]:
    found = facts["neighbours"]
    if found is None:
        return [f"none: {facts['no_neighbours']}"]
    among = f"all {found['of']:,}" if found["rows"] == found["of"] else f"{found['rows']:,} drawn of {found['of']:,}"
    lines = [f"the most similar of {among} labelled training rows (cosine at layer {found['layer']}):"]
    for near in found["nearest"]:
        line = f"{near['similarity']:+.3f}  {_line(near['label'], 30)}  {_line(near['domain'])}:{near['row']}  "
        lines.append(line + _line(near["text"], max(SHORTEST, WIDTH - INDENT - len(line))))
    return lines


def _entry(title: str, *paragraphs: str) -> list[str]:
    lines: list[str] = []
    for paragraph in paragraphs:
        lines += textwrap.wrap(paragraph, WIDTH, initial_indent=" " * INDENT if lines else f"{title:<{INDENT}}",
                               subsequent_indent=" " * INDENT, break_on_hyphens=False)  # fmt: skip
    return lines


def _line(text: str, most: int | None = None) -> str:
    """Return `text` as a part of one line, without what terminals would obey, cut to `most` characters."""
    whole = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return whole if most is None or len(whole) <= most else f"{whole[: most - 3]}..."


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MANY} more" if len(names) > MANY else ""
    return ", ".join(_line(name) for name in names[:MANY]) + more
