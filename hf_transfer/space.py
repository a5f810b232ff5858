"""A complete Space folder for a run: the demo app, its pinned requirements, its settings and its front page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_transfer.demo import demo_folder, demo_part
from hf_transfer.results import Run, write_atomically

if TYPE_CHECKING:
    from huggingface_hub import SpaceCardData

MODEL_FOLDER = "model"  # of a bundled model, inside the Space
DESCRIPTION = 60  # characters, at most


def build_space(
    run: Run,
    folder: Path,
    *,
    repo_id: str,
    revision: str | None,
    bundle: bool,
    license: str | None,
    examples: bool = True,
) -> None:
    """Write all that a Space needs into `folder`, which is made; with `bundle` all but the model's own files.

    Args:
        run: what is shown.
        folder: to write into.
        repo_id: of the model, on the Hub.
        revision: the model's commit that the Space shows; not used with `bundle`.
        bundle: the model lies in the Space itself, in `model/`, where the caller puts it: a Space can't read a private
            model without a token.
        license: a Hub licence id; left out where it is not known.
        examples: show a few of the run's recorded test texts, which makes them as public as the Space is.
    """
    demo = demo_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for file in (*sorted(demo.glob("*.py")), demo / "requirements.txt"):
        shutil.copyfile(file, folder / file.name)
    name = repo_id.split("/")[-1]
    model = {"name": name, "folder": MODEL_FOLDER} if bundle else {"name": name, "repo": repo_id, "revision": revision}
    choose = demo_part("examples")["choose"]
    texts = choose(run.folder / "recorded.jsonl") if examples else []
    space = {"title": name, "models": [model], "examples": texts}
    write_atomically(folder / "space.json", json.dumps(space, indent=2, ensure_ascii=False) + "\n")
    card = _metadata(run, repo_id, license, (folder / "requirements.txt").read_text(encoding="utf-8"))
    write_atomically(folder / "README.md", f"---\n{card}\n---\n\n{_text(run, name, repo_id)}")


def _metadata(run: Run, repo_id: str, license: str | None, requirements: str) -> SpaceCardData:
    from huggingface_hub import SpaceCardData

    version = re.search(r"^gradio==(\S+)$", requirements, re.MULTILINE)
    assert version, "requirements.txt pins gradio"
    known: dict[str, Any] = {"license": license} if license else {}
    return SpaceCardData(
        title=repo_id.split("/")[-1],
        emoji="🧭",
        colorFrom="yellow",
        colorTo="red",
        sdk="gradio",
        sdk_version=version[1],
        python_version="3.11",
        app_file="app.py",
        models=[repo_id],
        pinned=False,
        short_description=_description(run),
        tags=["text-classification", "domain-adaptation", "hf-transfer-nlp"],
        **known,
    )


def _description(run: Run) -> str:
    labels = run.label_names
    text = f"Labels a text as {', '.join(labels[:-1])} or {labels[-1]}, with evidence"
    return text if len(text) <= DESCRIPTION else f"Labels a text as one of {len(labels)} classes, with evidence"


def _text(run: Run, name: str, repo_id: str) -> str:
    plain = demo_part("evidence")["plain"]
    source = ", ".join(plain(domain) for domain in run.data["domains"] if domain != run.data["target"])
    path = f"adapted from {source} to {plain(run.data['target'])}" if run.data["target"] else f"trained on {source}"
    return f"""# {name}

Try [{repo_id}](https://huggingface.co/{repo_id}), a text classifier {path}.

It shows labels with their probabilities, the words that speak for them, how far a text lies from the training texts,
whole tables at a time, and the evidence for all of it.

The app starts on any machine with `pip install -r requirements.txt` and `python app.py`. To let visitors correct
labels, set the variable `CORRECTIONS` to `dataset:name/of-a-private-dataset` and the secret `HF_TOKEN` to a token that
may write there. To offer the endpoints as tools for language models, add `gradio[mcp]` to requirements.txt and set
`GRADIO_MCP_SERVER` to `true`.
"""
