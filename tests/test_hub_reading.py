"""Recipes read tables and models from a Hub by their ids, and where they can't say why in one line."""

from __future__ import annotations

import io
import json
import os
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub, outcome

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "finetune.py"
CARD = b"""---
configs:
- config_name: hotels
  data_files: hotels.jsonl
- config_name: gadgets
  data_files: gadgets.jsonl
---
# Reviews
"""
DATA = {"--source": "ns/reviews:hotels@v1"}
MODEL = {"--model": "ns/tiny", "--model_revision": "v1"}


def attempts(cases: list) -> list:
    """Run the recipe with each case's flags and token, in this process; what it exits with, prints and writes."""
    os.chdir(tempfile.mkdtemp(dir=os.environ["HF_HOME"]))
    return [attempt(flags, token) for flags, token in cases]


def attempt(flags: dict[str, str], token: str | None) -> dict:
    os.environ.pop("HF_TOKEN", None)
    os.environ.update({"HF_TOKEN": token} if token else {})
    common = {"--max_length": "64", "--num_train_epochs": "1", "--output_dir": "out", "--quiet": "true"}
    sys.argv = [str(RECIPE), *(word for pair in (flags | common).items() for word in pair)]
    code, _, lines = outcome(lambda: runpy.run_path(str(RECIPE), run_name="__main__"))
    read = {name: json.loads(Path("out", name).read_text()) for name in ("run.json", "config.json") if not code}
    written = sorted(os.listdir())  # noqa: PTH208
    shutil.rmtree("out", ignore_errors=True)
    return {"code": code, "errors": lines, "written": written} | read


@pytest.fixture(scope="module")
def hub(tiny, tables, tmp_path_factory):
    """A Hub with data of two configurations, models, private ones, and some that can't be used."""
    from conftest import make_model

    hotels, gadgets = (tables[name].read_bytes() for name in ("source", "target"))
    model = {file.name: file.read_bytes() for file in tiny.iterdir()}
    small = make_model(tmp_path_factory.mktemp("small"), layers=1)
    with LoopbackHub() as hub:
        hub.add(
            "dataset", "ns/reviews", {"README.md": CARD, "hotels.jsonl": hotels, "gadgets.jsonl": gadgets}, tag="v1"
        )
        hub.add("dataset", "ns/reviews", {"hotels.jsonl": b"not the rows of v1"})
        hub.add("dataset", "ns/private", {"train.jsonl": hotels}, private=True)
        hub.add("dataset", "ns/public", {"train.jsonl": hotels})
        hub.add("dataset", "ns/gated", {"train.jsonl": hotels})
        hub.add("dataset", "ns/empty", {"README.md": b"---\nlicense: mit\n---\n"})
        hub.first = hub.add("model", "ns/tiny", model, tag="v1")
        hub.add("model", "ns/tiny", {file.name: file.read_bytes() for file in small.iterdir()})
        hub.add("model", "ns/private", model, private=True)
        hub.add("model", "ns/gated", model)
        hub.add("model", "ns/pickled", without(model, "model.safetensors") | {"pytorch_model.bin": pickled(model)})
        hub.add("model", "ns/code", with_code(model, model_type="mine"))
        hub.add("model", "ns/known", with_code(model))
        hub.add("model", "ns/wordless", without(model, "tokenizer.json", "tokenizer_config.json"))
        for method in ("HEAD", "GET"):
            hub.fail(method, "ns/gated", status=403, code="GatedRepo", times=99)
        yield hub
        assert hub.unknown == []


def without(files: dict[str, bytes], *names: str) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name not in names}


def pickled(files: dict[str, bytes]) -> bytes:
    import torch
    from safetensors.torch import load

    buffer = io.BytesIO()
    torch.save(load(files["model.safetensors"]), buffer)
    return buffer.getvalue()


def with_code(files: dict[str, bytes], **changes: object) -> dict[str, bytes]:
    """A model that brings code for its parts, which ends the process if it is run."""
    parts = {name: f"mine.{name}" for name in ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")}
    config = json.loads(files["config.json"]) | {"auto_map": parts} | changes
    code = b"raise SystemExit('the code of the Hub ran')\n"
    return files | {"config.json": json.dumps(config).encode(), "mine.py": code}


READ = {
    "by revision": (DATA | MODEL | {"--target": "ns/reviews:gadgets@v1"}, None),
    "private": ({"--source": "ns/private", "--model": "ns/private"}, LoopbackHub.token_read),
    "code not needed": (DATA | {"--model": "ns/known"}, None),
}


@pytest.fixture(scope="module")
def runs(hub):
    return dict(zip(READ, hub.call(attempts, list(READ.values())), strict=True))


@pytest.mark.recipe
def test_data_and_model_are_read_at_their_revisions(hub, runs):
    outcome = runs["by revision"]
    assert outcome["errors"] == []
    run = outcome["run.json"]
    assert (run["model"], run["model_revision"]) == ("ns/tiny", hub.first)
    assert run["arguments"]["source"] == ["ns/reviews:hotels@v1"]
    assert run["arguments"]["target"] == "ns/reviews:gadgets@v1"
    assert all(word in run["command"] for word in ("ns/reviews:hotels@v1", "ns/tiny", "--model_revision v1"))
    assert run["data"]["domains"] == {"reviews": 60, "reviews (target)": 40}
    assert outcome["config.json"]["num_hidden_layers"] == 3, "the model of main has 1"


@pytest.mark.recipe
def test_private_data_and_models_are_read_with_a_token(runs):
    outcome = runs["private"]
    assert outcome["errors"] == []
    assert outcome["run.json"]["model"] == "ns/private"
    assert LoopbackHub.token_read not in json.dumps(outcome["run.json"])


@pytest.mark.recipe
def test_code_that_a_known_model_brings_is_not_run(runs):
    outcome = runs["code not needed"]
    assert outcome["errors"] == []
    assert outcome["run.json"]["model"] == "ns/known"
    assert "auto_map" not in outcome["config.json"], "else whoever loads the run is asked to trust that code"


CHECK_ID = ("the Hub shows no such id", "check it", "if it is private", "`hf auth login`")
TOKEN = ("the Hub refuses your token", "`hf auth login`", "HF_TOKEN")
FAILURES = {
    "unknown dataset": (MODEL | {"--source": "ns/none"}, None, ("'ns/none' is no file or folder here", *CHECK_ID)),
    "unknown dataset without a namespace": (MODEL | {"--source": "none"}, None, ("'none'", *CHECK_ID)),
    "unknown configuration": (MODEL | {"--source": "ns/reviews:hotel@v1"}, None,
        ("'hotel' not found", "'hotels', 'gadgets'", "`name:config@revision`")),
    "no configuration named": (MODEL | {"--source": "ns/reviews@v1"}, None,
        ("Config name is missing", "'hotels', 'gadgets'", "`name:config@revision`")),
    "unknown dataset revision": (MODEL | {"--source": "ns/reviews:hotels@v9"}, None,
        ("'ns/reviews:hotels@v9'", "the Hub has no such revision", "name a branch, tag or commit")),
    "dataset without data": (MODEL | {"--source": "ns/empty"}, None, ("ns/empty", "doesn't contain any data files")),
    "private dataset, no token": (MODEL | {"--source": "ns/private"}, None, ("'ns/private'", *CHECK_ID)),
    "private dataset, stranger's token": (MODEL | {"--source": "ns/private"}, LoopbackHub.token_stranger,
        ("'ns/private'", *CHECK_ID)),
    "dataset, wrong token": (MODEL | {"--source": "ns/public"}, "hf_wrong", ("'ns/public'", *TOKEN)),
    "gated dataset": (MODEL | {"--source": "ns/gated"}, None, ("'ns/gated'", "consent", "`hf auth login`")),
    "unknown model": (DATA | {"--model": "ns/none"}, None, ("model 'ns/none' is no folder here", *CHECK_ID)),
    "a dataset as model": (DATA | {"--model": "ns/reviews"}, None, ("model 'ns/reviews'", *CHECK_ID)),
    "unknown model revision": (DATA | MODEL | {"--model_revision": "v9"}, None,
        ("model 'ns/tiny'", "the Hub has no such revision", "name a branch, tag or commit")),
    "private model, no token": (DATA | {"--model": "ns/private"}, None, ("model 'ns/private'", *CHECK_ID)),
    "private model, wrong token": (DATA | {"--model": "ns/private"}, "hf_wrong", ("model 'ns/private'", *TOKEN)),
    "gated model": (DATA | {"--model": "ns/gated"}, None, ("model 'ns/gated'", "consent", "`hf auth login`")),
    "model without safetensors": (DATA | {"--model": "ns/pickled"}, None,
        ("model 'ns/pickled' has no model.safetensors", "can run code", "choose another")),
    "model that needs code": (DATA | {"--model": "ns/code"}, None,
        ("model 'ns/code' needs code", "never executed here", "choose another")),
    "model without a tokenizer": (DATA | {"--model": "ns/wordless"}, None,
        ("model 'ns/wordless' can't be loaded", "no tokenizer", "Choose one with")),
}  # fmt: skip


@pytest.fixture(scope="module")
def failures(hub):
    outcomes = hub.call(attempts, [[flags, token] for flags, token, _ in FAILURES.values()])
    return dict(zip(FAILURES, outcomes, strict=True))


@pytest.mark.parametrize("name", FAILURES)
def test_what_the_hub_refuses_is_one_line(failures, name):
    check(failures[name], *FAILURES[name][2])
    assert len(failures[name]["errors"]) == 1, failures[name]["errors"]


def check(outcome: dict, *fragments: str) -> None:
    """Exit code 2, one `error:` line that says all that is wanted, and nothing left on disk."""
    assert outcome["code"] == 2, outcome["errors"]
    assert outcome["written"] == []
    (line,) = [line for line in outcome["errors"] if line.startswith("error: ")]
    assert len(line) <= 400
    for fragment in fragments:
        assert fragment in line, f"{fragment!r} is not in: {line}"


def attempts_at_a_dead_hub(cases: list) -> list:
    """The client waits 23 s a call before it gives up; here it only notes for how long it would."""
    from types import SimpleNamespace

    import huggingface_hub.utils._http as client

    waited: list[float] = []
    client.time = SimpleNamespace(sleep=waited.append)
    return [*attempts(cases), sum(waited)]


def test_hub_that_is_down(tiny, tables, tmp_path):
    with LoopbackHub() as hub:
        pass
    cases = [
        ({"--source": "ns/reviews", "--model": str(tiny)}, None),
        ({"--source": str(tables["source"])} | MODEL, None),
    ]
    data, model, waited = hub.call(attempts_at_a_dead_hub, cases, home=tmp_path)
    check(data, "'ns/reviews'", "Couldn't reach", "Check the path or the id", "connection")
    check(model, "model 'ns/tiny'", "We couldn't connect", "connection", "leave it out for the embedded default")
    assert waited == 2 * 23
