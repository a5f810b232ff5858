"""The Space folder: complete, and it starts with what its requirements.txt names and nothing else."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import conftest
import pytest
from demo_app import DEMO, serving

pytestmark = pytest.mark.skipif(
    not os.environ.get("CI") and importlib.util.find_spec("gradio") is None,
    reason="needs the demo's packages: pip install 'hf-transfer-nlp[demo]'",
)
TEXT = "A lovely room, but the kettle was broken."


@pytest.fixture(scope="module")
def run(tiny, recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "kitchen"
    recipe(["--model", str(tiny), "--source", str(conftest.CORPUS / "hotels.labeled.jsonl"), "--target",
            str(conftest.CORPUS / "gadgets.labeled.jsonl"), "--method", "frozen", "--output_dir", str(folder),
            "--max_length", "48", "--precision", "fp32", "--quiet"])  # fmt: skip
    return folder


def build(run, folder, **arguments):
    from hf_transfer.results import load_run
    from hf_transfer.space import build_space

    settings = {"repo_id": "me/kitchen", "revision": "a" * 40, "bundle": False, "license": "apache-2.0"}
    build_space(load_run(run) if isinstance(run, Path) else run, folder, **settings | arguments)
    return folder


@pytest.fixture(scope="module")
def space(run, tmp_path_factory):
    """A Space folder with its model inside, as it is pushed for a private model."""
    folder = build(run, tmp_path_factory.mktemp("space") / "app", bundle=True)
    shutil.copytree(run, folder / "model")
    return folder


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A folder of links to what an installation of requirements.txt alone would bring, of this environment."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    folder = tmp_path_factory.mktemp("clean")
    wanted = {(Requirement(line).name, "") for line in (DEMO / "requirements.txt").read_text().splitlines()}
    done: set[tuple[str, str]] = set()
    while wanted:
        name, extra = wanted.pop()
        done.add((name, extra))
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files or []:
            top = file.parts[0]
            if top != ".." and not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
        for requirement in map(Requirement, distribution.requires or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                found = {(canonicalize_name(requirement.name), more) for more in ("", *requirement.extras)}
                wanted |= found - done
    return folder


def test_every_requirement_is_pinned_to_what_is_tested_here():
    lines = (DEMO / "requirements.txt").read_text().splitlines()
    pins = dict(re.fullmatch(r"([\w-]+)==([\d.]+)", line).groups() for line in lines)
    for name, version in pins.items():
        assert importlib.metadata.version(name).partition("+")[0] == version, name


def test_front_matter_is_complete_and_valid(space):
    import yaml

    _, front, text = (space / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(front)
    assert text.startswith("\n# kitchen\n")
    assert {name: card[name] for name in ("title", "sdk", "app_file", "models", "license", "pinned")} == {
        "title": "kitchen", "sdk": "gradio", "app_file": "app.py", "models": ["me/kitchen"], "license": "apache-2.0",
        "pinned": False}  # fmt: skip
    assert (space / card["app_file"]).is_file()
    assert card["sdk_version"] == importlib.metadata.version("gradio")
    assert re.fullmatch(r"3\.\d+", card["python_version"])
    assert {card["colorFrom"], card["colorTo"]} <= {
        "red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}  # fmt: skip
    assert card["emoji"]
    assert len(card["short_description"]) <= 60
    assert "license: null" not in build(space / "model", space.with_name("bare"), license=None).joinpath(
        "README.md").read_text(encoding="utf-8")  # fmt: skip


def test_names_of_domains_are_text_on_the_front_page(run, tmp_path):
    from hf_transfer.results import load_run

    named = load_run(run)
    named.data["domains"] = {"*a*<b>": 1, "[t](u)": 1}
    named.data["target"] = "[t](u)"
    text = build(named, tmp_path / "space").joinpath("README.md").read_text(encoding="utf-8")
    assert r"adapted from \*a\*&lt;b&gt; to \[t\](u)." in text


def test_a_bundled_model_is_not_looked_for_on_the_hub(run, space, tmp_path):
    (bundled,) = json.loads((space / "space.json").read_text(encoding="utf-8"))["models"]
    assert bundled == {"name": "kitchen", "folder": "model"}
    public = json.loads((build(run, tmp_path / "public") / "space.json").read_text(encoding="utf-8"))
    assert public["models"] == [{"name": "kitchen", "repo": "me/kitchen", "revision": "a" * 40}]
    assert len(public["examples"]) == 4
    bare = build(run, tmp_path / "bare", examples=False) / "space.json"
    assert json.loads(bare.read_text(encoding="utf-8"))["examples"] == []


def test_it_starts_and_labels_with_its_requirements_alone(space, clean, tmp_path):
    from gradio_client import Client
    from transformers import pipeline

    environment = {**os.environ, "PYTHONPATH": str(clean)}
    others = "import importlib.util as u; print([n for n in ('hf_transfer', 'datasets', 'peft') if u.find_spec(n)])"
    found = subprocess.run([sys.executable, "-S", "-c", others], env=environment, cwd=space, capture_output=True,
                           text=True)  # fmt: skip
    assert found.stdout.strip() == "[]", found.stderr
    with serving("-S", "app.py", cwd=space, environment=environment) as url:
        client = Client(url, verbose=False, download_files=str(tmp_path))
        answer, usual = client.predict(TEXT, api_name="/predict")
        pieces, _ = client.predict(TEXT, api_name="/explain")
    (expected,) = pipeline("text-classification", str(space / "model"))([TEXT])
    assert answer["label"] == expected["label"]
    assert answer["confidences"][0]["confidence"] == pytest.approx(expected["score"], abs=1e-5)
    assert "held-out ones" in usual
    assert "".join(piece["token"] for piece in pieces) == TEXT


def test_of_a_model_on_the_hub_only_what_is_shown_is_fetched():
    from loopback_hub import LoopbackHub

    fetch = "import sys; sys.path.insert(0, sys.argv[1]); from models import fetch; print(fetch('me/kitchen', None))"
    wanted = {name: b"{}" for name in ("config.json", "model.safetensors", "run.json", "report.png")}
    with LoopbackHub() as hub:
        others = {"adapter/adapter_config.json": b"{}", "old/model.safetensors": b"x", "pytorch_model.bin": b"x"}
        hub.add("model", "me/kitchen", wanted | others)
        done = subprocess.run([sys.executable, "-c", fetch, str(DEMO)], text=True, capture_output=True, check=True,
                              env=hub.environment(None))  # fmt: skip
        folder = Path(done.stdout.strip())
        assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == set(wanted)
