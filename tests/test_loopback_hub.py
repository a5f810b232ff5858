"""The loopback Hub serves the real clients; each group of calls runs in one process, since they read settings once."""

from __future__ import annotations

from pathlib import Path

import pytest
from loopback_hub import LoopbackHub


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub
        assert hub.unknown == []


def refused(call, *args, **options) -> str:
    """The name of the error that a call ends in, and its status."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        call(*args, **options)
    except HfHubHTTPError as error:
        return f"{type(error).__name__} {error.response.status_code}"
    except ValueError as error:  # a card that is refused
        return str(error).splitlines()[-1]
    return "no error"


def contents(folder: str | Path) -> dict[str, bytes]:
    """The files below a folder, by path; not the client's own notes."""
    files = {path.relative_to(folder).as_posix(): path for path in Path(folder).rglob("*") if path.is_file()}
    return {
        name: path.read_bytes() for name, path in files.items() if not name.startswith((".cache", ".gitattributes"))
    }


def round_trip(folder: str, copy: str) -> dict:
    """What runs in a client's process: repos of all types, a folder up and down."""
    from huggingface_hub import HfApi, snapshot_download

    api, seen = HfApi(), {}
    seen["whoami"] = [api.whoami()["name"], [org["name"] for org in api.whoami()["orgs"]]]
    seen["url"] = str(api.create_repo("mine"))
    seen["again"] = refused(api.create_repo, "tester/mine")
    api.create_repo("tester/mine", exist_ok=True)
    api.create_repo("ns/app", repo_type="space", space_sdk="gradio")
    seen["sdk"] = api.space_info("ns/app").sdk
    seen["foreign"] = refused(api.create_repo, "stranger/x")
    api.create_repo("ns/data", repo_type="dataset")

    first = api.upload_folder(repo_id="ns/data", folder_path=folder, repo_type="dataset", commit_message="One")
    second = api.upload_folder(repo_id="ns/data", folder_path=folder, repo_type="dataset", commit_message="Two")
    seen["same commit"] = first.oid == second.oid
    snapshot_download("ns/data", repo_type="dataset", local_dir=copy)
    seen["files"] = sorted(api.list_repo_files("ns/data", repo_type="dataset"))
    seen["folder"] = sorted(entry.path for entry in api.list_repo_tree("ns/data", "sub", repo_type="dataset"))
    seen["paths"] = sorted(
        [entry.path, type(entry).__name__]
        for entry in api.get_paths_info("ns/data", ["sub", "big.bin", "no"], repo_type="dataset")
    )
    seen["large"] = [f.rfilename for f in api.dataset_info("ns/data", files_metadata=True).siblings if f.lfs]

    api.delete_folder("sub", "ns/data", repo_type="dataset")
    api.delete_file("big.bin", "ns/data", repo_type="dataset")
    seen["left"] = sorted(api.list_repo_files("ns/data", repo_type="dataset"))
    seen["bad card"] = refused(
        api.upload_file, path_or_fileobj=b"---\nlicense\n---\n", path_in_repo="README.md", repo_id="tester/mine"
    )
    api.delete_repo("ns/app", repo_type="space")
    seen["deleted"] = api.repo_exists("ns/app", repo_type="space")
    return seen


def test_a_folder_goes_up_and_comes_down_unchanged(hub, tmp_path):
    folder, copy = tmp_path / "folder", tmp_path / "copy"
    (folder / "sub" / "déjà vu").mkdir(parents=True)
    (folder / "sub" / "déjà vu" / "a b#1.txt").write_text("small\n")
    (folder / "sub" / "c.txt").write_text("")
    (folder / "big.bin").write_bytes(bytes(range(256)) * 4000)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Data\n")
    hub.page_size = 2  # listings come in pages
    seen = hub.call(round_trip, folder, copy, token=hub.token_write)
    assert contents(copy) == contents(folder)
    assert seen.pop("url") == f"{hub.url}/tester/mine"
    assert seen == {
        "whoami": ["tester", ["ns"]],
        "again": "HfHubHTTPError 409",
        "sdk": "gradio",
        "foreign": "HfHubHTTPError 403",
        "same commit": True,
        "files": [".gitattributes", "README.md", "big.bin", "sub/c.txt", "sub/déjà vu/a b#1.txt"],
        "folder": ["sub/c.txt", "sub/déjà vu"],
        "paths": [["big.bin", "RepoFile"], ["sub", "RepoFolder"]],
        "large": ["big.bin"],
        "left": [".gitattributes", "README.md"],
        "bad card": "- not a line of YAML metadata: license",
        "deleted": False,
    }
    assert hub.commits("dataset", "ns/data")[-2:] == ["One", "initial commit"]
    assert "Two" not in hub.commits("dataset", "ns/data")
    assert hub.files("dataset", "ns/data") == {"README.md": (folder / "README.md").read_bytes()}


def access(url: str, tokens: dict[str, str | bool]) -> dict:
    """What each token may read, see and write in a private repo."""
    from huggingface_hub import HfApi

    seen = {}
    for name, token in tokens.items():
        api = HfApi(url, token=token)
        seen[name] = [
            refused(api.hf_hub_download, "ns/secret", "a.txt", repo_type="dataset", local_dir="."),
            refused(api.dataset_info, "ns/secret"),
            refused(api.create_branch, "ns/secret", branch=name, repo_type="dataset"),
            refused(api.upload_file, path_or_fileobj=b"1", path_in_repo=name, repo_id="ns/secret", repo_type="dataset"),
        ]
    return seen


def test_a_private_repo_is_seen_by_its_members_only(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hub.add("dataset", "ns/secret", {"a.txt": b"a"}, private=True)
    tokens = {"nobody": False, "wrong": "hf_wrong", "stranger": hub.token_stranger, "read": hub.token_read,
              "write": hub.token_write}  # fmt: skip
    missing = "RepositoryNotFoundError 401"
    assert hub.call(access, hub.url, tokens) == {
        "nobody": [missing] * 4,
        "wrong": ["HfHubHTTPError 401"] * 4,
        "stranger": ["RepositoryNotFoundError 404"] * 4,
        "read": ["no error", "no error", "HfHubHTTPError 403", "HfHubHTTPError 403"],
        "write": ["no error"] * 4,
    }
    assert hub.files("dataset", "ns/secret") == {"a.txt": b"a", "write": b"1"}


def versions() -> dict:
    """Branches, tags, pull requests, and a commit that comes too late."""
    from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download

    api, repo, seen = HfApi(), "ns/model", {}

    def put(content: str, revision: str | None = None, **options):
        add = [CommitOperationAdd("f.txt", content.encode())]
        return api.create_commit(repo, add, commit_message=content, revision=revision, **options)

    def read(revision: str) -> str:
        return Path(hf_hub_download(repo, "f.txt", revision=revision)).read_text()

    api.create_repo(repo)
    one = put("one")
    api.create_tag(repo, tag="v1/a")
    api.create_branch(repo, branch="next")
    put("two", "next")
    pull = put("three", create_pr=True)
    put("four", pull.pr_revision)
    seen["pull"] = pull.pr_url.removeprefix(api.endpoint)
    seen["contents"] = {rev: read(rev) for rev in ("main", "v1/a", "next", "refs/pr/1")}
    seen["by commit id"] = read(one.oid)
    put("five")
    seen["late"] = refused(put, "six", parent_commit=one.oid)
    seen["to a tag"] = refused(put, "seven", "v1/a")
    seen["twice"] = [refused(api.create_tag, repo, tag="v1/a"), refused(api.create_branch, repo, branch="next")]
    seen["no such"] = [refused(api.model_info, repo, revision="no"), refused(hf_hub_download, repo, "no.txt")]
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    seen["refs"] = [[ref.ref for ref in group] for group in (refs.branches, refs.tags, refs.pull_requests)]
    api.delete_branch(repo, branch="next")
    api.delete_tag(repo, tag="v1/a")
    refs = api.list_repo_refs(repo)
    seen["left"] = [[ref.name for ref in group] for group in (refs.branches, refs.tags)]
    return seen


def test_branches_tags_and_pull_requests(hub):
    assert hub.call(versions, token=hub.token_write) == {
        "pull": "/ns/model/discussions/1",
        "contents": {"main": "one", "v1/a": "one", "next": "two", "refs/pr/1": "four"},
        "by commit id": "one",
        "late": "HfHubHTTPError 412",
        "to a tag": "BadRequestError 400",
        "twice": ["HfHubHTTPError 409", "HfHubHTTPError 409"],
        "no such": ["RevisionNotFoundError 404", "RemoteEntryNotFoundError 404"],
        "refs": [["refs/heads/main", "refs/heads/next"], ["refs/tags/v1/a"], ["refs/pr/1"]],
        "left": [["main"], []],
    }
    assert hub.commits("model", "ns/model") == ["five", "one", "initial commit"]
    assert hub.commits("model", "ns/model", "refs/pr/1") == ["four", "three", "one", "initial commit"]


def fetch() -> list:
    """Sizes of two downloaded files."""
    from huggingface_hub import hf_hub_download

    return [len(Path(hf_hub_download("ns/model", name)).read_bytes()) for name in ("a.bin", "b.txt")]


def test_faults_are_answered_and_clients_get_over_them(hub):
    hub.add("model", "ns/model", {"a.bin": bytes(30_000_000), "b.txt": b"b"})
    hub.fail("GET", r"/resolve/main/a\.bin", cut=True)
    hub.fail("HEAD", r"/resolve/main/b\.txt", status=503)
    assert hub.call(fetch) == [30_000_000, 1]
    asked = [(request.method, request.path[-5:], request.status, request.headers.get("range")) for request in hub.log]
    assert asked == [
        ("HEAD", "a.bin", 200, None),
        ("GET", "a.bin", 200, None),
        ("GET", "a.bin", 206, "bytes=10485760-"),  # what came before the cut is not asked for again
        ("HEAD", "b.txt", 503, None),
        ("HEAD", "b.txt", 200, None),
        ("GET", "b.txt", 200, None),
    ]


def push_model(folder: str) -> list:
    """A transformers model goes up, and comes back by its id and a revision."""
    import torch
    from huggingface_hub import create_tag
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    names = {0: "bad", 1: "good"}
    model = AutoModelForSequenceClassification.from_pretrained(folder, id2label=names).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.push_to_hub("ns/tiny", private=True)
    tokenizer.push_to_hub("ns/tiny")
    create_tag("ns/tiny", tag="v1")
    with torch.no_grad():
        model.classifier.bias += 1
    model.push_to_hub("ns/tiny")

    def logits(model, tokenizer) -> list:
        with torch.no_grad():
            return model(
                **tokenizer(["the room was clean", "broken"], padding=True, return_tensors="pt")
            ).logits.tolist()

    at = {
        rev: AutoModelForSequenceClassification.from_pretrained("ns/tiny", revision=rev).eval()
        for rev in ("v1", "main")
    }
    again = AutoTokenizer.from_pretrained("ns/tiny", revision="v1")
    return [at["v1"].config.id2label[1], logits(model, tokenizer), logits(at["main"], again), logits(at["v1"], again)]


def test_transformers_push_and_pull(hub, tiny):
    name, here, main, v1 = hub.call(push_model, tiny, token=hub.token_write)
    assert name == "good"
    assert main == here
    assert [[x + 1 for x in row] for row in v1] == [pytest.approx(row, abs=1e-5) for row in here]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= set(hub.files("model", "ns/tiny"))


def push_dataset() -> list:
    """A dataset goes up in two configurations, and comes back."""
    from datasets import Dataset, load_dataset

    parts = {name: {"text": [f"{name} {i}" for i in range(count)], "label": list(range(count))}
             for name, count in (("short", 3), ("long", 7))}  # fmt: skip
    for name, rows in parts.items():
        Dataset.from_dict(rows).push_to_hub("ns/reviews", name, split="train")
    return [load_dataset("ns/reviews", name)["train"].to_dict() == rows for name, rows in parts.items()]


def test_datasets_push_and_pull(hub):
    assert hub.call(push_dataset, token=hub.token_write) == [True, True]
    assert "config_name: short" in hub.files("dataset", "ns/reviews")["README.md"].decode()
