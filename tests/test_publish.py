"""Runs are pushed to a Hub over HTTP and pulled from it by their ids; whatever goes wrong leaves nothing half-done.

One process takes most commands, since each start of torch costs seconds. Faults that come after the verification are
tried on `push` itself, which is all that talks from there on; two of them on the whole command too.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import yaml
from loopback_hub import LoopbackHub, outcome
from warm import LIBRARIES, READERS, template

WRITE = LoopbackHub.token_write
WORKED = ("adapter", "bitfit", "frozen", "full", "ia3", "lora", "partial", "prompt", "qlora")
WITH_ADAPTER = ("ia3", "lora", "prompt")
BRANCH = {"lora": "v2"}  # on main otherwise
THREE = ["good", "so/so", "very bad"]


def attempt(words: list, token: str | None = None, variables: dict | None = None, fresh: bool = False) -> dict:
    """Run one command in this process: exit code, and what it printed.

    What verifies a run is a process of its own that has nothing of ours. It starts as a copy of one that imported
    transformers and PEFT before, or with `fresh` as users have it.
    """
    import huggingface_hub.utils._http as client

    client.time = SimpleNamespace(sleep=lambda seconds: None)  # it would wait 23 s before it gives up a call
    environment = ({"HF_TOKEN": token} if token else {}) | (variables or {})
    warm = nullcontext() if fresh else mock.patch("hf_transfer.verify.subprocess", SimpleNamespace(run=copied))
    with mock.patch.dict(os.environ, environment), warm:
        code, out, errors = outcome(lambda: command(words))
    return {"code": code, "errors": errors, "out": out}


def copied(command: list[str], env: dict[str, str], input: str, **same: bool) -> subprocess.CompletedProcess:
    """`subprocess.run` for a Python program, by a copy of a process with its libraries."""
    assert (command[0], same) == (sys.executable, {"capture_output": True, "text": True})
    return template(*LIBRARIES, *READERS).run(*command[1:], environment=env, input=input)


def command(words: list) -> None:
    """`hf-transfer WORDS`, or one of the functions behind it."""
    from hf_transfer.base import find_base
    from hf_transfer.cli import main
    from hf_transfer.errors import reporting_errors
    from hf_transfer.hub import check_account, push
    from hf_transfer.publish import SENT
    from hf_transfer.results import load_run

    with reporting_errors():
        if words[0] == "push":
            options = {"repo_type": "model", "private": False, "revision": None, "create_pr": False, "own": SENT}
            options |= {"message": "A run"} | words[3]
            api = check_account(words[2], create_pr=options["create_pr"])
            print(push(api, Path(words[1]), words[2], **options))
        elif words[0] == "find_base":
            print(find_base(load_run(words[1])))
        elif words[0] == "again":  # to publish what was verified before: each verification costs seconds
            with mock.patch("hf_transfer.publish.verify", return_value=[]):
                main(["publish", *words[1:]])
        else:
            main(words)


@pytest.fixture(scope="module")
def hub(tiny):
    with LoopbackHub() as hub:
        files = {file.name: file.read_bytes() for file in tiny.iterdir()}
        hub.base = hub.add("model", "ns/tiny", files | {"README.md": b"---\nlicense: mit\n---\n# Tiny\n"})
        yield hub
        assert hub.unknown == []


@pytest.fixture(scope="module")
def folder(tables, tmp_path_factory):
    """Where the commands run: tables of two and of three labels."""
    folder = tmp_path_factory.mktemp("work")
    for name, file in tables.items():
        shutil.copyfile(file, folder / f"{name}.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for i, row in enumerate(rows):
            row["label"] = THREE[1] if i % 3 == 0 else {"positive": THREE[0], "negative": THREE[2]}[row["label"]]
        (folder / f"{name}3.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def do(hub, folder):
    with hub.serving(attempt, folder) as do:
        yield do


@pytest.fixture(autouse=True)
def healed(hub):
    yield
    hub.heal()


def training(folder: Path, method: str, name: str, *flags: str) -> list[str]:
    """The command that trains; data by absolute paths, which are nobody's business."""
    three = "3" if method == "lora" else ""
    data = ["--source", str(folder / f"source{three}.jsonl"), "--target", str(folder / f"target{three}.jsonl")]
    # 12 tokens before the text: a test text of 55 then exceeds the model's 64, though not --max_length
    length = ["60", "--prompt_tokens", "12"] if method == "prompt" else ["32"]
    # as many rows held out as it takes to write domain.safetensors
    short = ["--test_fraction", "0.3", "--max_length", *length, "--num_train_epochs", "1", "--quiet", "true"]
    return ["run", "finetune", "--method", method, *data, *short, "--output_dir", f"runs/{name}", *flags]


@pytest.fixture(scope="module")
def runs(hub, do, folder, tiny):
    """A finished run by each method, `ia3-local` whose base is a folder, and what two said that pushed themselves."""
    pushing = ["--push-to-hub", "true", "--hub-model-id"]  # dashes are taken as well
    said = {}
    for method in WORKED:
        flags = {"bitfit": [*pushing, "tester/bitfit"], "full": [*pushing, "tester/full", "--hub_private_repo", "true"]}
        if method == "full":
            hub.fail("PUT", "/lfs/", drop=True, times=99)
        said[method] = do(
            training(folder, method, method, "--model", "ns/tiny", *flags.get(method, [])),
            WRITE if method in flags else None,
            None,
            method in flags,
        )
        hub.heal()
    said["ia3-local"] = do(training(folder, "ia3", "ia3-local", "--model", str(tiny)))
    assert [name for name, outcome in said.items() if outcome["code"]] == ["full"], said
    return said


@pytest.fixture(scope="module")
def published(hub, do, folder, runs, tmp_path_factory):
    """All methods pushed, after the base model got other weights; what was said."""
    from conftest import make_model

    small = make_model(tmp_path_factory.mktemp("small"), layers=1)
    hub.add("model", "ns/tiny", {file.name: file.read_bytes() for file in small.iterdir()})
    said = {"bitfit": runs["bitfit"]}
    line = next(line for line in runs["full"]["errors"] if "publish it with" in line)
    words = shlex.split(line.split("with: hf-transfer ")[1])
    assert words[0] == "publish"
    said["full"] = do(["again", *words[1:]], WRITE)
    for method in WORKED:
        if method not in said:
            flags = ["--revision", BRANCH[method]] if method in BRANCH else []
            words = ["publish", f"runs/{method}", f"tester/{method}", *flags]
            said[method] = do(words, WRITE, None, method == "lora")
    said["adapter only"] = do(["publish", "runs/ia3", "tester/ia3-adapter", "--adapter_only", "--quiet"], WRITE)
    return said


def sent(hub: LoopbackHub, method: str) -> dict[str, bytes]:
    """The files that were published, by path."""
    return hub.files("model", f"tester/{method}", BRANCH.get(method, "main"))


def read_run(folder: Path, name: str) -> dict:
    return json.loads((folder / "runs" / name / "run.json").read_text())


# What comes back


def pull(repos: dict[str, list]) -> dict:
    """Do as each repository's card says, without hf_transfer: by code block, label names and logits of the rows."""
    sys.modules["hf_transfer"] = None
    from huggingface_hub import hf_hub_download
    from transformers import pipeline

    seen: dict = {"without a token": None}
    try:
        pipeline("text-classification", model="tester/full", token=False)
    except OSError as error:
        seen["without a token"] = str(error)
    for repo_id, (rows, revision) in repos.items():
        texts = [json.loads(line)["text"] for line in Path(rows).read_text().splitlines()]
        card = Path(hf_hub_download(repo_id, "README.md", revision=revision)).read_text()
        seen[repo_id] = []
        for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
            space: dict = {}
            exec(block, space)
            names = [name for _, name in sorted(space["classify"].model.config.id2label.items())]
            scores = space["classify"](texts, top_k=None, function_to_apply="none")
            logits = [[next(s["score"] for s in row if s["label"] == name) for name in names] for row in scores]
            seen[repo_id].append({"labels": names, "logits": logits})
    return seen


@pytest.fixture(scope="module")
def pulled(hub, folder, published):
    where = {method: f"tester/{method}" for method in WORKED} | {"ia3-adapter": "tester/ia3-adapter"}
    rows = {
        repo: [str(folder / "runs" / name.split("-")[0] / "recorded.jsonl"), BRANCH.get(name)]
        for name, repo in where.items()
    }
    return hub.call(pull, rows, token=LoopbackHub.token_read)


def test_all_methods_are_here(published):
    from hf_transfer import methods

    assert tuple(methods.names()) == WORKED
    assert len(WORKED) == 9


@pytest.mark.recipe
@pytest.mark.parametrize("name", [*WORKED, "ia3-adapter"])
def test_a_stranger_gets_the_recorded_logits_by_id(published, pulled, folder, name):
    outcome = published["adapter only" if name == "ia3-adapter" else name]
    assert (outcome["code"], outcome["errors"]) == (0, [])
    rows = (folder / "runs" / name.split("-")[0] / "recorded.jsonl").read_text().splitlines()
    recorded = [json.loads(row)["logits"] for row in rows]
    ways = pulled[f"tester/{name}"]
    assert len(ways) == (2 if name in WITH_ADAPTER else 1)
    assert len(rows) >= 30
    for way in ways:
        assert way["labels"] == (THREE if name == "lora" else ["negative", "positive"])
        for logits, wanted in zip(way["logits"], recorded, strict=True):
            assert logits == pytest.approx(wanted, abs=1e-4)


@pytest.mark.recipe
def test_a_private_model_needs_a_token(hub, pulled):
    assert hub.repos["model", "tester/full"].private
    assert "tester/full" in pulled
    assert "tester/full is not a local folder and is not a valid model identifier" in pulled["without a token"]


@pytest.mark.recipe
def test_what_is_there(hub, published, folder):
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    always = {"README.md", "run.json", "report.png"}
    merged = always | {"config.json", "model.safetensors"} | tokenizer
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    for method in WORKED:
        known = {"domain.safetensors"} if (folder / "runs" / method / "domain.safetensors").is_file() else set()
        beside = {f"adapter/{name}" for name in adapter} if method in WITH_ADAPTER else set()
        assert set(sent(hub, method)) == merged | known | beside
        assert known, "else its sending is not tested"
    assert set(sent(hub, "ia3-adapter")) == always | adapter | known
    for name in (*WORKED, "ia3-adapter"):
        titles = hub.commits("model", f"tester/{name}", BRANCH.get(name, "main"))
        assert len(titles) == 2, titles
        assert titles[0].startswith(f"{name.split('-')[0]} run of 2")


@pytest.mark.recipe
def test_the_base_model_is_the_commit_that_was_trained(hub, published, folder):
    assert read_run(folder, "lora")["model_revision"] == hub.base != hub.repos["model", "ns/tiny"].at("main").id
    for path in ("lora/adapter/adapter_config.json", "prompt/adapter/adapter_config.json"):
        method, _, file = path.partition("/")
        config = json.loads(sent(hub, method)[file])
        assert (config["base_model_name_or_path"], config["revision"]) == ("ns/tiny", hub.base)
    card = hub.files("model", "tester/full")["README.md"].decode()
    assert hub.base in card
    assert "Base model: mit" in card


@pytest.mark.recipe
@pytest.mark.parametrize("name", [*WORKED, "ia3-adapter"])
def test_the_card_says_what_the_run_says(hub, published, folder, name):
    card = sent(hub, name)["README.md"].decode()
    checked = [request.json["content"] for request in hub.log if request.path == "/api/validate-yaml"]
    assert card in checked
    data = yaml.safe_load(card.split("---\n")[1])
    (entry,) = data["model-index"]
    assert entry["name"] == name
    scores = {
        (result["dataset"]["split"], metric["type"]): metric["value"]
        for result in entry["results"]
        for metric in result["metrics"]
    }
    run = read_run(folder, name.split("-")[0])
    assert scores["target_test", "accuracy"] == round(run["metrics"]["target_test"]["accuracy"], 4)
    assert data["base_model"] == "ns/tiny"
    assert data["library_name"] == ("peft" if name == "ia3-adapter" else "transformers")


@pytest.mark.recipe
def test_nothing_of_this_machine_is_there(hub, published, folder, runs):
    assert str(folder) in (folder / "runs" / "lora" / "run.json").read_text(), "else there is nothing to hide"
    own = [str(folder), str(folder.parent), os.getcwd(), tempfile.gettempdir(), str(Path.home())]  # noqa: PTH109
    texts = 0
    for repo_type, repo_id in hub.repos:
        if repo_id == "ns/tiny":
            continue
        for path, content in hub.files(repo_type, repo_id).items():
            texts += path.endswith((".json", ".md"))
            for place in own:
                assert not re.search(re.escape(place.encode()) + rb"\b", content), (repo_id, path, place)
            assert b"recorded" not in path.encode()
            assert b"predictions" not in path.encode()
    assert texts >= 9 * 4


# Pushing at the end of training


@pytest.mark.recipe
def test_training_pushes_the_verified_run(hub, runs, folder):
    assert runs["bitfit"]["out"] == "", "it was told to be quiet"
    assert len(hub.commits("model", "tester/bitfit")) == 2
    assert read_run(folder, "bitfit")["command"] == shlex.join(
        ["hf-transfer", *training(folder, "bitfit", "bitfit", "--model", "ns/tiny")]
    )
    assert not any("checkpoint" in path or "training_args" in path for path in hub.files("model", "tester/bitfit"))


@pytest.mark.recipe
def test_a_run_that_can_t_be_pushed_is_kept(runs, folder, hub, published):
    refused(runs["full"], "tester/full: the Hub can't be reached", "the run is finished; publish it with: "
            "hf-transfer publish runs/full tester/full --private")  # fmt: skip
    assert {"model.safetensors", "run.json", "recorded.jsonl"} <= {
        file.name for file in (folder / "runs/full").iterdir()
    }
    assert not list((folder / "runs").glob("*.partial"))
    assert hub.repos["model", "tester/full"].private


BEFORE_TRAINING = {
    "no token": (["tester/x"], None, ["there is no Hub token", "HF_TOKEN"]),
    "read-only token": (["tester/x"], LoopbackHub.token_read, ["may only read"]),
    "no id": ([], WRITE, ["--hub_model_id is ''", "owner/name"]),
    "bad id": (["tester/a b"], WRITE, ["--hub_model_id is 'tester/a b'", "owner/name"]),
    "stranger's id": (["stranger/x"], WRITE, ["tester", "can't write there"]),
    "--hub_token": (["tester/x", "--hub_token", "hf_abcdefghijklmnop"], WRITE, ["--hub_token", "other users"]),
    "branch": (["tester/x", "--hub_revision", "a b"], WRITE, ["--hub_revision is 'a b'", "such as v2"]),
    "other work": (["tester/taken"], WRITE, ["tester/taken holds other work already (theirs.bin)"]),
    "public": (["ns/tiny", "--hub_private_repo", "true"], WRITE, ["ns/tiny is public but should be private"]),
    "--hub_strategy": (["tester/x", "--hub_strategy", "checkpoint"], WRITE, ["--hub_strategy", "checkpoints"]),
}


@pytest.mark.parametrize("name", BEFORE_TRAINING)
def test_before_training_it_is_known_whether_it_can_be_pushed(hub, do, folder, name):
    words, token, fragments = BEFORE_TRAINING[name]
    hub.add("model", "tester/taken", {"theirs.bin": b"x"})
    flags = ["--push_to_hub", "true", *(["--hub_model_id"] if words else []), *words]
    outcome = do(training(folder, "full", "never", "--model", "ns/tiny", *flags), token)
    refused(outcome, *fragments)
    assert "hf_abcdef" not in str(outcome)
    assert not list((folder / "runs").glob("never*"))


def test_a_token_as_a_flag_is_refused_without_pushing_too(do, folder):
    outcome = do(training(folder, "full", "never", "--model", "ns/tiny", "--hub-token", "supersecretvalue"))
    refused(outcome, "--hub_token would be seen by other users", "HF_TOKEN")
    assert "supersecret" not in str(outcome)


# Dry run


@pytest.mark.recipe
def test_dry_run_shows_all_and_pushes_nothing(hub, do, runs, tiny):
    before = len(hub.log)
    outcome = do(["publish", "runs/ia3-local", "tester/dry", "--dry_run", "--license", "apache-2.0"])
    assert (outcome["code"], outcome["errors"]) == (0, [])
    assert {request.method for request in hub.log[before:]} <= {"GET", "HEAD"}
    assert ("model", "tester/dry") not in hub.repos
    out = outcome["out"]
    listing = dict(re.findall(r"^ *[\d,]+ {2}(\S+)()$", out, re.MULTILINE))
    assert {"README.md", "run.json", "config.json", "model.safetensors", "tokenizer.json"} <= set(listing)
    assert "this machine): the merged model is sent, its adapter is left out" in out
    assert not any(path.startswith("adapter") for path in listing)
    assert "license: apache-2.0" in out
    assert "## Evidence" in out
    assert str(tiny.parent) not in out
    assert out.rstrip().endswith("dry run: nothing was pushed")


# What is refused


def refused(outcome: dict, *fragments: str) -> None:
    """Exit code 2 and `error:` lines that say all that is wanted, without a traceback and without the token."""
    assert outcome["code"] == 2, outcome
    assert outcome["errors"]
    assert all(line.startswith("error: ") for line in outcome["errors"]), outcome["errors"]
    assert max(map(len, outcome["errors"])) <= 450
    text = "\n".join(outcome["errors"])
    assert not re.search(r"hf_(?!transfer)\w", text + outcome["out"]), "a token was printed"
    for fragment in fragments:
        assert fragment in text, f"{fragment!r} is not in: {text}"


REFUSED = {
    "no token": ([], None, "", ["there is no Hub token", "hf auth login"]),
    "wrong token": ([], "hf_wrong", "", ["the Hub refuses your token", "HF_TOKEN"]),
    "read-only token": ([], LoopbackHub.token_read, "", ["may only read", "may write"]),
    "stranger": ([], LoopbackHub.token_stranger, "", ["stranger", "can't write there", "--create_pr"]),
    "no owner": ([], WRITE, "x", ["REPO is 'x'", "owner/name"]),
    "bad repo id": ([], WRITE, "tester/ä b", ["REPO is 'tester/ä b'", "owner/name"]),
    "two slashes": ([], WRITE, "tester/a/b", ["REPO is 'tester/a/b'", "owner/name"]),
    "proposed Space": (["--create_pr", "--space"], WRITE, "", ["--create_pr", "leave --space"]),
    "adapter of a Space": (["--adapter_only", "--space"], WRITE, "", ["--space needs the merged model"]),
    "blank in the branch": (["--revision", "my branch"], WRITE, "", ["--revision is 'my branch'", "such as v2"]),
    "empty branch": (["--revision", ""], WRITE, "", ["--revision is ''"]),
    "dots in the branch": (["--revision", "a..b"], WRITE, "", ["--revision is 'a..b'"]),
    "pull request as a branch": (["--revision", "refs/pr/1"], WRITE, "", ["--revision is 'refs/pr/1'"]),
    "licence that is no name": (["--license", "my own"], WRITE, "", ["--license is 'my own'", "apache-2.0"]),
    "licence that the Hub doesn't know": (
        ["--license", "mit-2"],
        WRITE,
        "",
        ["tester/new: README.md: the Hub refused", '"license" must be one of'],
    ),
    "no adapter": (["--adapter_only"], WRITE, "", ["trained with 'frozen'", "no adapter", "leave it out"]),
}


@pytest.mark.recipe
@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_sent(hub, do, runs, name):
    flags, token, repo_id, fragments = REFUSED[name]
    before = set(hub.repos)
    refused(do(["publish", "runs/frozen", repo_id or "tester/new", *flags], token), *fragments)
    assert set(hub.repos) == before


@pytest.mark.recipe
def test_adapter_only_needs_a_base_that_others_have(hub, do, runs):
    refused(do(["publish", "runs/ia3-local", "tester/new", "--adapter_only"], WRITE),
            "--adapter_only", "folder of this machine", "leave it out")  # fmt: skip
    assert ("model", "tester/new") not in hub.repos


@pytest.mark.recipe
@pytest.mark.parametrize(
    ("status", "fragment"),
    [(429, "takes no more requests"), (500, "answers with error 500"), (None, "can't be reached")],
)
def test_hub_in_trouble(hub, do, runs, status, fragment):
    hub.fail("GET", "/api/whoami-v2", status=status, cut=status is None, times=99)
    refused(do(["publish", "runs/frozen", "tester/new"], WRITE), fragment, "run the same command again")
    hub.heal()
    assert ("model", "tester/new") not in hub.repos


@pytest.mark.recipe
def test_no_hub(hub, folder, runs):
    with LoopbackHub() as other:
        pass
    words = ["-m", "hf_transfer.cli", "publish", "runs/frozen", "tester/new"]
    for change, fragment in (
        ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        ({"HF_ENDPOINT": other.url}, "the Hub can't be reached; check the connection"),
    ):
        environment = hub.environment(WRITE) | change
        process = template(*LIBRARIES).run(*words, cwd=folder, environment=environment)
        refused({"code": process.returncode, "errors": process.stderr.splitlines(), "out": process.stdout}, fragment)


# Runs that were changed, or hold what is nobody's business


def edit(file: Path, change) -> None:
    """Rewrite a JSON file."""
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def swap_labels(config: dict) -> dict:
    names = config["id2label"]
    return config | {"id2label": {"0": names["1"], "1": names["0"]}, "label2id": {names["1"]: 0, names["0"]: 1}}


def spoil_weights(run: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(run / "model.safetensors")
    weights["classifier.bias"] += 0.01
    save_file(weights, run / "model.safetensors", {"format": "pt"})


def with_domain(name: str, run: Path) -> None:
    edit(run / "run.json", lambda content: json.loads(json.dumps(content).replace("source", "SOURCE").replace(
        '"SOURCE": 60', f'{json.dumps(name)}: 60').replace("SOURCE", "source")))  # fmt: skip
    assert name in read_run(run.parent.parent, run.name)["data"]["domains"]


def pickle_weights(run: Path) -> None:
    (run / "model.safetensors").rename(run / "pytorch_model.bin")


def leave_unfinished(run: Path) -> None:
    run.rename(run.with_name(run.name + ".partial"))


SPOILED = {
    "weights changed": (spoil_weights, ["pipeline() gives other logits", "1.0e-02", "make the run again"]),
    "label order swapped": (lambda run: edit(run / "config.json", swap_labels),
        ["labels are ['positive', 'negative']", "['negative', 'positive'] were trained"]),
    "no tokenizer": (lambda run: [file.unlink() for file in run.glob("tokenizer*")],
        ["tokenizer_config.json can't be read", "make the run again"]),
    "damaged tokenizer": (lambda run: (run / "tokenizer_config.json").write_text("{"),
        ["tokenizer_config.json can't be read", "make the run again"]),
    "tokenizer without a length": (lambda run: (run / "tokenizer_config.json").write_text("{}"),
        ["names no model_max_length"]),
    "weights that git keeps elsewhere": (lambda run: (run / "model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 90\n"), ["model.safetensors is damaged"]),
    "weights of noise": (lambda run: (run / "model.safetensors").write_bytes(b"\xff" * 100),
        ["model.safetensors is damaged"]),
    "damaged plot": (lambda run: (run / "report.png").write_bytes(b"x"), ["report.png is damaged"]),
    "run of an earlier version": (lambda run: edit(run / "run.json", lambda content: content | {"format": 1}),
        ["made by another version (format 1, this one reads 4)", "make the run again"]),
    "damaged config": (lambda run: (run / "config.json").write_text('{"a": '), ["config.json is damaged"]),
    "damaged weights": (lambda run: (run / "model.safetensors").write_bytes(b""), ["model.safetensors is damaged"]),
    "weights of another kind": (pickle_weights, ["no model.safetensors", "never shared"]),
    "own code": (lambda run: edit(run / "config.json", lambda config: config | {"auto_map": {"AutoModel": "mine.M"}}),
        ["auto_map", "never shared"]),
    "own code of the tokenizer": (lambda run: edit(run / "tokenizer_config.json",
        lambda config: config | {"auto_map": {"AutoTokenizer": ["mine.T", None]}}), ["auto_map", "never shared"]),
    "no recorded rows": (lambda run: (run / "recorded.jsonl").unlink(), ["recorded.jsonl can't be read", "run again"]),
    "empty recorded rows": (lambda run: (run / "recorded.jsonl").write_text(""), ["recorded.jsonl can't be read"]),
    "damaged recorded rows": (lambda run: (run / "recorded.jsonl").write_text('{"text": "a", "logits": [1]}\n'),
        ["recorded.jsonl can't be read", "one logit a label"]),
    "damaged run.json": (lambda run: (run / "run.json").write_text('{"task":'), ["run.json can't be read as a run"]),
    "another run.json": (lambda run: (run / "run.json").write_text('{"task": 1}'), ["can't be read as a run"]),
    "unfinished": (leave_unfinished, ["holds no finished run (unfinished"]),
    "half an adapter": (lambda run: (run / "adapter").mkdir(), ["can't be read as an adapter", "make the run again"]),
    "user name": (functools.partial(with_domain, "alice"), ["the user name alice", "names of files"]),
    "e-mail address": (functools.partial(with_domain, "al.ice@mail.example.com"), ["the e-mail address al.ice@mail"]),
    "absolute path": (lambda run: edit(run / "config.json", lambda config: config | {"note": "from /data/alices/x"}),
        ["config.json would hold the path /data/alices/x"]),
    "token": (functools.partial(with_domain, "x hf_" + 20 * "Ab"), ["an access token"]),
    "own token": (functools.partial(with_domain, WRITE), ["an access token"]),
    "password": (functools.partial(with_domain, "open sesame"), ["an access token"]),
}  # fmt: skip


@pytest.mark.recipe
@pytest.mark.parametrize("name", SPOILED)
def test_a_run_that_must_not_be_shared(hub, do, folder, runs, name):
    spoil, fragments = SPOILED[name]
    run = folder / "runs" / "spoiled"
    shutil.copytree(folder / "runs" / "frozen", run)
    spoil(run)
    variables = {"LOGNAME": "alice", "DATABASE_PASSWORD": "open sesame"}
    outcome = do(["publish", "runs/spoiled", "tester/new"], WRITE, variables)
    for left in folder.glob("runs/spoiled*"):
        shutil.rmtree(left)
    refused(outcome, *fragments)
    assert "hf-transfer-" not in str(outcome["errors"]), "a temporary folder says nothing to the user"
    assert ("model", "tester/new") not in hub.repos


@pytest.mark.recipe
def test_a_base_model_with_other_weights_is_no_base(hub, do, folder, runs, tiny):
    run = folder / "runs" / "default"
    shutil.copytree(folder / "runs" / "frozen", run)
    name = "sentence-transformers/all-MiniLM-L6-v2"
    commit = hub.add("model", name, {file.name: file.read_bytes() for file in tiny.iterdir()})
    right = hashlib.sha256((tiny / "model.safetensors").read_bytes()).hexdigest()
    for sha, fragment in ((right, f"revision='{commit}'"), ("0" * 64, "the Hub holds other weights of that name")):
        facts = {"model": name, "model_revision": "main", "weights_sha256": {"model.safetensors": sha}}
        edit(run / "run.json", lambda content, facts=facts: content | facts)
        assert fragment in do(["find_base", "runs/default"])["out"]
    edit(run / "run.json", lambda content: content | {"model": "ns/none"})
    assert "the Hub has no ns/none at main" in do(["find_base", "runs/default"])["out"]
    edit(run / "run.json", lambda content: content | {"model": "ns/tiny", "weights_sha256": {}})
    assert "revision=None" in (said := do(["find_base", "runs/default"])["out"]), "it is whatever main is now"
    assert "its commit was not known when it was trained" in said
    shutil.rmtree(run)


# Pushing: one commit, whatever is there and whatever goes wrong

CARD = b"---\nlicense: mit\n---\n# A run\n"
OURS = b'{"format": 3, "method": "full", "label_names": ["a", "b"]}\n'
FIRST = {"README.md": CARD, "run.json": OURS, "config.json": b'{"a": 1}\n', "model.safetensors": bytes(5000),
         "adapter/adapter_config.json": b"{}\n", "adapter/adapter_model.safetensors": bytes(300),
         "domain.safetensors": bytes(200), "special_tokens_map.json": b"{}\n"}  # fmt: skip
SECOND = {"README.md": CARD + b"More.\n", "run.json": OURS + b"\n", "config.json": b'{"a": 1}\n',
          "model.safetensors": bytes(4000) + b"other"}  # fmt: skip
USERS = {"LICENSE": b"MIT", "notes.md": b"# Notes", "eval.yaml": b"a: 1", "handler.py": b"# mine",
         "adapter-notes.md": b"x", "onnx/model.safetensors": bytes(100)}  # fmt: skip


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    out = {}
    for name, files in (("first", FIRST), ("second", SECOND)):
        out[name] = tmp_path_factory.mktemp(name)
        for path, content in files.items():
            (out[name] / path).parent.mkdir(exist_ok=True)
            (out[name] / path).write_bytes(content)
    return out


@pytest.fixture
def push(do, versions):
    def push(version: str, repo_id: str, token: str = WRITE, **options) -> dict:
        return do(["push", str(versions[version]), repo_id, options], token)

    return push


def test_second_version_replaces_what_was_ours(hub, push):
    repo = "tester/versions"
    assert push("first", repo)["code"] == 0
    assert hub.files("model", repo) == FIRST
    hub.add("model", repo, USERS)
    assert "changed=True" in push("second", repo)["out"]
    assert hub.files("model", repo) == SECOND | USERS
    assert hub.commits("model", repo) == ["A run", "Add files", "A run", "initial commit"]
    assert "changed=False" in push("second", repo)["out"]
    assert len(hub.commits("model", repo)) == 4


def test_branch(hub, push):
    repo = "tester/branch"
    push("first", repo)
    assert f"url='{hub.url}/{repo}/tree/v2'" in push("second", repo, revision="v2")["out"]
    assert (hub.files("model", repo), hub.files("model", repo, "v2")) == (FIRST, SECOND)
    assert "changed=False" in push("second", repo, revision="v2")["out"]
    assert hub.commits("model", repo, "v2") == ["A run", "A run", "initial commit"]
    push("second", repo)
    assert "changed=True" in push("first", repo, revision="v2")["out"]
    assert "changed=True" in push("second", repo, revision="v2")["out"], "as main already is: the client could skip it"
    assert hub.files("model", repo, "v2") == SECOND
    assert "changed=True" in push("second", repo, revision="v3")["out"], "a branch that is just a name"
    assert hub.files("model", repo, "v3") == SECOND


def test_proposal(hub, push):
    repo = "tester/proposal"
    push("first", repo)
    hub.add("model", repo, USERS)
    stranger = LoopbackHub.token_stranger
    outcome = push("second", repo, stranger, create_pr=True)
    assert f"{hub.url}/{repo}/discussions/1" in outcome["out"], outcome
    assert hub.files("model", repo) == FIRST | USERS
    assert hub.files("model", repo, "refs/pr/1") == SECOND | USERS
    assert "changed=False" in push("second", repo, stranger, create_pr=True)["out"]
    assert "refs/pr/2" not in hub.repos["model", repo].refs


def test_repository_with_other_work(hub, push):
    repo = "tester/other"
    hub.add("model", repo, {"README.md": b"# Mine", "pytorch_model.bin": b"x"})
    refused(push("first", repo), "tester/other holds other work", "pytorch_model.bin", "--create_pr")
    assert hub.commits("model", repo) == ["Add files", "initial commit"]
    theirs = {"run.json": b'{"wandb": 1}', "config.json": b"{}", "vocab.txt": b"theirs"}
    hub.add("model", "tester/foreign", theirs)
    refused(push("first", "tester/foreign"), "tester/foreign holds other work", "vocab.txt")
    assert hub.files("model", "tester/foreign") == theirs
    hub.add("model", "tester/born", {"README.md": b"# Made on the site"})
    assert push("first", "tester/born")["code"] == 0


def test_visibility(hub, push):
    push("first", "tester/public")
    refused(push("second", "tester/public", private=True), "is public but should be private", "settings")
    assert hub.files("model", "tester/public") == FIRST
    push("first", "tester/hidden", private=True)
    assert hub.repos["model", "tester/hidden"].private
    assert push("second", "tester/hidden")["code"] == 0
    assert hub.repos["model", "tester/hidden"].private


def test_proposal_to_nobody(hub, push):
    refused(push("first", "ns/none", create_pr=True), "ns/none doesn't exist", "leave --create_pr out")
    assert ("model", "ns/none") not in hub.repos


def test_fine_grained_token_writes_where_it_may(hub, push):
    fine = LoopbackHub.token_fine
    refused(push("first", "tester/fine", fine), "tester/fine: your token may not do this", "may write")
    assert ("model", "tester/fine") not in hub.repos
    assert push("first", "ns/fine", fine)["code"] == 0


AGAIN = "run the same command again"
FAULTS = {
    "429 when asked for the repository": ("GET", "/api/models/{}$", {"status": 429}, ["takes no more requests", AGAIN]),
    "500 when created": ("POST", "/api/repos/create", {"status": 500}, ["answers with error 500", AGAIN]),
    "403 when created": ("POST", "/api/repos/create", {"status": 403}, ["your token may not do this"]),
    "503 when files are announced": ("POST", "/api/models/{}/preupload/", {"status": 503}, ["error 503", AGAIN]),
    "batch refused": ("POST", "/{}.git/info/lfs/objects/batch", {"status": 403}, ["your token may not do this"]),
    "storage is full": ("PUT", "/lfs/", {"status": 413}, ["the Hub refused", "413"]),
    "storage fails": ("PUT", "/lfs/", {"status": 500}, ["error 500", AGAIN]),
    "upload cut": ("PUT", "/lfs/", {"drop": True}, ["can't be reached", AGAIN]),
    "upload cut at the second file": ("PUT", "/lfs/", {"drop": True, "skip": 1}, ["can't be reached", AGAIN]),
    "answer of the branch lost": ("POST", "/branch/", {"cut": True}, [AGAIN]),
    "not there after the upload": ("POST", "/lfs/verify", {"status": 404}, ["the Hub"]),
    "card refused": ("POST", "/api/validate-yaml", {"status": 400}, ["the Hub refused", "README.md"]),
    "race": ("POST", "/api/models/{}/commit/", {"status": 412}, ["somebody else changed it", AGAIN]),
    "500 at the commit": ("POST", "/api/models/{}/commit/", {"status": 500}, ["error 500", AGAIN]),
    "commit cut": ("POST", "/api/models/{}/commit/", {"drop": True}, ["can't be reached", AGAIN]),
    "answer of the commit lost": ("POST", "/api/models/{}/commit/", {"cut": True}, [AGAIN]),
    "listing fails after the commit": ("GET", "/api/models/{}/tree/", {"status": 500, "skip": 1}, ["error 500", AGAIN]),
}  # fmt: skip
DONE = ("answer of the commit lost", "listing fails after the commit")


@pytest.mark.parametrize("name", [name for name in FAULTS if "branch" not in name])
def test_failed_push_of_a_new_repository(hub, push, name):
    method, path, fault, fragments = FAULTS[name]
    repo = "tester/new-" + name.replace(" ", "-")
    hub.large.clear()
    hub.fail(method, path.format(repo), **{"times": 99} | fault)
    refused(push("first", repo), *fragments)
    hub.heal()
    there = hub.files("model", repo) if ("model", repo) in hub.repos else {}
    assert there == (FIRST if name in DONE else {})
    again = push("first", repo)
    assert f"changed={name not in DONE}" in again["out"], again
    assert hub.files("model", repo) == FIRST
    assert hub.commits("model", repo) == ["A run", "initial commit"]


@pytest.mark.parametrize("name", [name for name in FAULTS if "create" not in name and "branch" not in name])
def test_failed_push_of_a_next_version(hub, push, name):
    method, path, fault, fragments = FAULTS[name]
    repo = "tester/next-" + name.replace(" ", "-")
    assert push("first", repo)["code"] == 0
    hub.large.clear()
    many = {"skip": 0} if name == "upload cut at the second file" else {}  # this version has one
    hub.fail(method, path.format(repo), **{"times": 99} | fault | many)
    refused(push("second", repo), *fragments)
    hub.heal()
    assert hub.files("model", repo) == (SECOND if name in DONE else FIRST)
    assert push("second", repo)["code"] == 0
    assert hub.files("model", repo) == SECOND
    assert hub.commits("model", repo) == ["A run", "A run", "initial commit"]


@pytest.mark.parametrize("name", [name for name in FAULTS if "create" not in name])
def test_failed_push_of_a_branch_leaves_no_branch(hub, push, name):
    method, path, fault, fragments = FAULTS[name]
    repo = "tester/branch-" + name.replace(" ", "-")
    assert push("first", repo)["code"] == 0
    hub.large.clear()
    many = {"skip": 0} if name == "upload cut at the second file" else {}
    hub.fail(method, path.format(repo), **{"times": 99} | fault | many)
    refused(push("second", repo, revision="v2"), *fragments)
    hub.heal()
    assert "refs/heads/v2" not in hub.repos["model", repo].refs
    assert push("second", repo, revision="v2")["code"] == 0
    assert hub.files("model", repo, "v2") == SECOND
    assert hub.files("model", repo) == FIRST


def test_a_branch_of_somebody_else_is_not_removed(hub, push):
    repo = "tester/branch-of-others"
    push("first", repo)
    hub.fail("POST", "/branch/", status=409)
    seen = len(hub.log)
    refused(push("second", repo, revision="v2"), "somebody else changed it", AGAIN)
    assert "DELETE" not in {request.method for request in hub.log[seen:]}


def test_branch_that_can_t_be_removed_is_named(hub, push):
    repo = "tester/stuck"
    push("first", repo)
    hub.fail("POST", f"{repo}/commit/", status=412, times=99)
    hub.fail("DELETE", f"{repo}/branch/", status=403, times=99)
    refused(push("second", repo, revision="v2"), "branch v2 may be left there, half-made; remove it")
    hub.heal()
    assert push("second", repo, revision="v2")["code"] == 0
    assert hub.files("model", repo, "v2") == SECOND


@pytest.mark.parametrize("revision", [None, "v2"])
def test_other_bytes_than_were_sent(hub, push, revision):
    repo = f"tester/damaged-{revision}"
    push("first", repo)
    sha = hashlib.sha256(SECOND["model.safetensors"]).hexdigest()
    hub.large[sha] = bytes(4005)  # the Hub believes that it has them already
    refused(push("second", repo, revision=revision), "holds other bytes than were sent", "don't use it", AGAIN)
    assert revision is None or "refs/heads/v2" not in hub.repos["model", repo].refs
    del hub.large[sha]
    assert push("second", repo, revision=revision)["code"] == 0
    assert hub.files("model", repo, revision or "main") == SECOND


def test_somebody_else_commits_meanwhile(hub, push, do, versions, tmp_path):
    repo = "tester/race"
    push("first", repo)
    hub.fail("POST", f"{repo}/preupload/", status=503)  # one try more, in which time passes
    seen = len(hub.log)
    original = hub.fault

    def fault(request):
        if request.path.endswith("/preupload/main") and not request.status:
            hub.fault = original
            hub.add("model", repo, {"notes.md": b"meanwhile"})
        return original(request)

    hub.fault = fault
    refused(push("second", repo), "somebody else changed it", AGAIN)
    assert len(hub.log) > seen
    assert hub.files("model", repo) == FIRST | {"notes.md": b"meanwhile"}
    assert push("second", repo)["code"] == 0
    assert hub.files("model", repo) == SECOND | {"notes.md": b"meanwhile"}


def test_space_of_other_work(hub, push):
    hub.add("space", "tester/app", {"README.md": b"# Mine"}, private=True)
    hub.add("space", "tester/app", {"app.py": b"x"})
    space = {"repo_type": "space", "own": ["model/*"]}
    refused(push("first", "tester/app", **space), "Space tester/app holds other work already (app.py)")
    hub.add("space", "tester/app", {"space.json": b'{"models": []}', "model/old.safetensors": b"x"})
    assert push("first", "tester/app", **space)["code"] == 0
    assert hub.files("space", "tester/app") == FIRST | {"app.py": b"x", "space.json": b'{"models": []}'}


def test_an_edited_card_is_not_lost_in_silence(hub, push, versions):
    from hf_transfer.hub import seal

    repo, card, original = "tester/edited", versions["first"] / "README.md", CARD.decode()
    assert seal(seal(original)) != seal(original)
    card.write_text(seal(original))
    push("first", repo)
    card.write_text(seal(original + "More numbers.\n"))
    outcome = push("first", repo)
    assert "changed=True, note=''" in outcome["out"], "nobody edited it: a new card of the same run replaces it"
    edited = card.read_bytes().replace(b"numbers", b"words")
    before = hub.add("model", repo, {"README.md": edited})
    outcome = push("first", repo)
    assert "changed=False" in outcome["out"], outcome
    assert "its README.md was edited there and stays as it is" in outcome["out"]
    assert hub.files("model", repo)["README.md"] == edited
    outcome = push("second", repo)
    assert f"the edited one is in commit {before[:8]}" in outcome["out"], outcome
    assert hub.files("model", repo) == SECOND
    card.write_bytes(CARD)


# Spaces


@pytest.mark.recipe
def test_public_space_shows_the_commit_that_was_pushed(hub, do, published):
    words = ["again", "runs/frozen", "tester/frozen", "--space"]
    commit = hub.repos["model", "tester/frozen"].at("main").id
    hub.fail("POST", "/api/repos/create", status=403, times=99)
    refused(do(words, WRITE), f"the model is published ({hub.url}/tester/frozen), its Space is not", "may not do this")
    assert ("space", "tester/frozen") not in hub.repos
    hub.heal()
    outcome = do(words, WRITE)
    assert (outcome["code"], outcome["errors"]) == (0, [])
    assert f"model: {hub.url}/tester/frozen (unchanged, nothing to commit)" in outcome["out"]
    assert f"Space: {hub.url}/spaces/tester/frozen (published as commit" in outcome["out"]
    assert "--no_examples leaves them out" in outcome["out"]
    files = hub.files("space", "tester/frozen")
    (shown,) = json.loads(files["space.json"])["models"]
    assert (shown["repo"], shown["revision"]) == ("tester/frozen", commit)
    assert {"app.py", "requirements.txt", "README.md"} <= set(files)
    assert not any(path.startswith("model/") for path in files)
    assert not hub.repos["space", "tester/frozen"].private
    again = do(words, WRITE)
    assert again["out"].count("(unchanged, nothing to commit)") == 2, again
    for repo_type in ("model", "space"):
        assert len(hub.commits(repo_type, "tester/frozen")) == 2


@pytest.mark.recipe
def test_private_space_brings_its_model(hub, do, published):
    outcome = do(["again", "runs/bitfit", "tester/secret", "--private", "--space", "--no_examples"], WRITE)
    assert (outcome["code"], outcome["errors"]) == (0, [])
    assert "note:" not in outcome["out"]
    model, space = hub.files("model", "tester/secret"), hub.files("space", "tester/secret")
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "run.json"):
        assert space[f"model/{name}"] == model[name]
    (shown,) = json.loads(space["space.json"])["models"]
    assert shown["folder"] == "model"
    assert json.loads(space["space.json"])["examples"] == []
    again = do(["again", "runs/bitfit", "tester/secret", "--space", "--no_examples"], WRITE)
    assert again["out"].count("(unchanged, nothing to commit)") == 2, "it stays private and brings its model"
    assert all(hub.repos[repo_type, "tester/secret"].private for repo_type in ("model", "space"))


@pytest.mark.recipe
def test_no_model_is_sent_where_its_space_can_t_be(hub, do, published):
    hub.add("space", "tester/taken-app", {"app.py": b"theirs"})
    refused(do(["again", "runs/frozen", "tester/taken-app", "--space"], WRITE),
            "Space tester/taken-app holds other work already (app.py)")  # fmt: skip
    hub.add("space", "tester/bitfit-app", {"README.md": b"# Mine"})
    refused(do(["again", "runs/frozen", "tester/bitfit-app", "--space", "--private"], WRITE),
            "Space tester/bitfit-app is public but should be private")  # fmt: skip
    assert not {("model", "tester/taken-app"), ("model", "tester/bitfit-app")} & set(hub.repos)


# Privacy

PRIVATE = [
    "/home/alice/x.csv", "see /home/alice/x now", "~/data/alice.csv", r"C:\Users\alice\x.csv", "C:/Users/alice/x",
    "'/home/a b/x.csv'", "--source=/data/alice/x.csv", '["/home/alice/x"]', "(/tmp/x/y)", r"\\server\share\x",
    "a, /mnt/x/y", "file:///home/alice/x", "`/home/alice`", "**/home/alice/x**", "/srv/.cache/x", "/.cache/x/y",
    "/home/ålice/é", "alice@example.com", "al.ice+x@mail.example.co.uk", "path:/home/alice/secret/x",
    "a=/x:/home/alice/secret/x", "/home/alice/kitchen", "hf_" + 17 * "a", "ghp_" + 20 * "a",
]  # fmt: skip
HARMLESS = [
    "w/o", "and/or", "kitchen / books / dvd", "https://a.org/b/c", "1/2/3", "2026/01/02",
    "</div></p>", "</a>/b", "<br/>", "n/a", "km/h", "s/he", "50 % / 60 %", "TCP/IP/UDP", "./a/b", "../a/b/c", "ns/name",
    "hf_transfer/corpus/hotels.labeled.jsonl", "a\nb\nc", ":/ but/so", "/b/", "5 @ 10", "me@home", "hf_transfer",
]  # fmt: skip


@pytest.mark.parametrize("suffix", [".md", ".json"])
@pytest.mark.parametrize(("texts", "found"), [(PRIVATE, True), (HARMLESS, False)])
def test_what_is_private(tmp_path, texts, found, suffix):
    from hf_transfer.card import escaped
    from hf_transfer.errors import UserError
    from hf_transfer.privacy import check_private

    for text in texts:
        file = tmp_path / f"file{suffix}"
        content = json.dumps({"key": [text]}) if suffix == ".json" else f"| {escaped(text)} | {text} |\n"
        file.write_text(content)
        try:
            check_private(tmp_path, "alice/kitchen", "ns/tiny")
            refusal = ""
        except UserError as error:
            refusal = str(error)
        assert bool(refusal) == found, content + refusal


@pytest.mark.parametrize(
    "name", ["_x_y", "été", "été_là_où", "été\\nous", "a*b*c [d](e)", "C:_x_y", "日本/語", "<b>/</b>"]
)
def test_names_with_odd_characters_are_not_private(tmp_path, name):
    from safetensors.numpy import save

    from hf_transfer.card import escaped
    from hf_transfer.privacy import check_private

    (tmp_path / "README.md").write_text(f"- {escaped(name)}, **{escaped(name)}**\n| {escaped(name)} |\n")
    (tmp_path / "run.json").write_text(json.dumps({"domains": {name: 1}, "label": [name]}))
    (tmp_path / "domain.safetensors").write_bytes(save({}, {"source": json.dumps([name, name]), "target": name}))
    check_private(tmp_path, "tester/x")


@pytest.mark.parametrize("file", ["domain.safetensors", "report.png", "tokenizer.json", "app.py", "a/b/config.json"])
def test_metadata_and_programs_are_looked_into(tmp_path, file, monkeypatch):
    import matplotlib.image
    import numpy as np
    from safetensors.numpy import save

    from hf_transfer.errors import UserError
    from hf_transfer.privacy import check_private

    monkeypatch.chdir(tmp_path)
    path, own = tmp_path / "up" / file, str(tmp_path / "reviews")
    path.parent.mkdir(parents=True)
    if file.endswith(".safetensors"):
        path.write_bytes(save({"a": np.zeros(2)}, {"source": json.dumps([own])}))
    elif file.endswith(".png"):
        matplotlib.image.imsave(path, np.zeros((2, 2)), metadata={"Title": own})
    else:
        path.write_text(json.dumps({"a": own}))
    with pytest.raises(UserError, match=rf"{file} would hold the path {tmp_path}"):
        check_private(tmp_path / "up", "tester/x")


@pytest.mark.parametrize(("name", "found"), [("alice", True), ("may", False), ("root", False), ("al", False)])
def test_user_name(tmp_path, monkeypatch, name, found):
    from hf_transfer.errors import UserError
    from hf_transfer.privacy import check_private

    monkeypatch.setenv("LOGNAME", name)
    (tmp_path / "README.md").write_text(f"The model of {name} is good, malice is not.\n")
    if found:
        for base in (name, "ns/tiny"):  # a folder that bears the name is no public owner
            with pytest.raises(UserError, match=f"the user name {name}"):
                check_private(tmp_path, "tester/x", base)
        check_private(tmp_path, f"{name}/x", "ns/tiny")
        check_private(tmp_path, "tester/x", f"{name}/bert")
    else:
        check_private(tmp_path, "tester/x")


def test_a_user_without_a_name(tmp_path, monkeypatch):
    from hf_transfer.privacy import check_private

    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    (tmp_path / "README.md").write_text("# A model\n")
    (tmp_path / "app.py").write_text("import os\n")
    check_private(tmp_path, "tester/x")


def test_of_paths_only_the_last_name_is_shown(tmp_path):
    from hf_transfer.errors import UserError
    from hf_transfer.privacy import _public, public_run

    words = ["run", "--source", "/home/a/x.csv", "/home/b c/y.csv", "--target=/home/a/z.csv:c@r", "--model", "ns/tiny",
             "/home/bob's files/x.csv", "--x=/home/bob's files/x.csv", "it's", "/home/a [1]/b, c.csv"]  # fmt: skip
    shown = ["run", "--source", "x.csv", "y.csv", "--target=z.csv:c@r", "--model", "ns/tiny", "x.csv", "--x=x.csv",
             "it's", "b, c.csv"]  # fmt: skip
    assert [_public(word) for word in words] == shown
    assert _public({"a": ["/home/a/x.csv", 1, None], "/x/y": "and/or"}) == {"a": ["x.csv", 1, None], "y": "and/or"}
    run = plain_run(["/pol/", "/", "/politics"], "a/b", shlex.join(words))
    public = public_run(run)
    assert shlex.split(public.command) == shown
    assert (public.label_names, public.data) == (run.label_names, run.data)
    for labels, domain in ((["a", "/home/bob/x"], "b"), (["a"], "/home/bob/x")):
        with pytest.raises(UserError, match=r"'/home/bob/x' looks like a path of this machine.*; rename it"):
            public_run(plain_run(labels, domain, ""))


def plain_run(labels: list[str], domain: str, command: str):
    """A run of which little is known."""
    from hf_transfer.results import Run

    known = {"label_names": labels, "data": {"domains": {domain: 1}}, "command": command, "folder": Path("none")}
    fields = dict.fromkeys(Run.__dataclass_fields__)
    return Run(**fields | known)


def test_a_secret_key_of_the_environment_is_found(tmp_path, monkeypatch):
    from hf_transfer.errors import UserError
    from hf_transfer.privacy import check_private

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    (tmp_path / "config.json").write_text('{"a": "wJalrXUtnFEMI"}')
    with pytest.raises(UserError, match="an access token"):
        check_private(tmp_path, "tester/x")


def test_what_verifies_has_the_packages_of_the_user(tmp_path, monkeypatch):
    from hf_transfer.verify import _reload

    (tmp_path / "sitecustomize.py").write_text(f"open({str(tmp_path / 'seen')!r}, 'w').close()\n")
    (tmp_path / "hf_transfer.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert _reload({"folder": None, "adapter": None}, plain_run(["a"], "b", "")) == {}
    assert (tmp_path / "seen").exists()
