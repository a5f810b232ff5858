"""Nothing private leaves this machine: paths, user names, tokens and e-mail addresses in what is to be shared."""

from __future__ import annotations

import getpass
import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_transfer.errors import UserError
from hf_transfer.results import Run

# not behind a letter or `<`, where it is a tag or a share, nor an address's `://`; at least two names deep
PATH = re.compile(r"(?<![\w./<\\])(?<!:(?=//))(?:~|[A-Za-z]:|file:)?(?:[/\\]+\.?\w(?:[\w.@+'() -]*\w)?){2,}[/\\]?")
ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")  # in Markdown
EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b")
TOKEN = re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|api_org_\w{16,}|gh[pousr]_\w{20,}|sk-[\w-]{20,}|AKIA[A-Z0-9]{16})\b")
SECRET = re.compile(r"(?:TOKEN|SECRET|PASSWORD|_KEY)$")
# user names that say nothing of a person, and names that cards and configs are full of anyway
EVERYONE = ("admin", "home", "root", "runner", "test", "ubuntu", "user", "users", "work", "albert", "bert", "data",
            "ernie", "label", "long", "luke", "may", "model", "python", "roberta", "run", "seed", "short", "source",
            "target", "text", "torch", "train", "training", "value")  # fmt: skip
VOCABULARY = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "spiece.model",
              "sentencepiece.bpe.model")  # fmt: skip


def public_run(run: Run) -> Run:
    """Return the run as it may be shown: of every absolute path only its last name.

    Raises:
        UserError: a label or domain looks like a path; shown by another name it would be another one.
    """
    for name in (*run.label_names, *run.data["domains"]):
        if _public(name) != name:
            raise UserError(f"the label or domain '{name[:100]}' looks like a path of this machine, which is never "
                            "shared; rename it and make the run again.")  # fmt: skip
    content = {key: _public(value) for key, value in asdict(run).items() if key != "folder"}
    command = shlex.join(_public(word) for word in shlex.split(run.command))
    return Run(folder=run.folder, **content | {"command": command})


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {_public(key): _public(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    if isinstance(value, str):
        value = value.replace(f"{Path(__file__).parent.parent}/", "")  # the embedded corpus keeps its place in here
        return _last_name(value) if PATH.match(value) else PATH.sub(lambda path: _last_name(path[0]), value)
    return value


def _last_name(path: str) -> str:
    return re.split(r"[/\\]+", path.rstrip("/\\"))[-1]


def check_private(folder: Path, *repo_ids: str) -> None:
    """Look into every file under `folder`.

    Of weights and pictures the metadata is looked at. In vocabularies and programs, whose words are nobody's secret,
    only tokens and this machine's own folders count.

    Args:
        folder: what is to be shared.
        repo_ids: of the repository and of the base model, whose owners' names are public.

    Raises:
        UserError: something private is in one of them.
    """
    owners = {repo_id.split("/")[0] for repo_id in repo_ids if "/" in repo_id}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = file.relative_to(folder).as_posix()
        try:
            text = _text(file)
        except (OSError, ValueError) as error:
            reason = str(error).replace(f"{folder}/", "")[:80]
            raise UserError(f"{name} is damaged ({reason}); make the run again.") from error
        own_words = file.name in VOCABULARY or file.suffix not in (".md", ".json", ".safetensors", ".png")
        if found := _private(text, owners, own_words=own_words):
            change = "remove it from the names of files, domains and labels, and make the run again."
            if name == "space.json":  # the texts that the Space shows
                change = "add --no_examples."
            raise UserError(f"{name} would hold {found}; {change}")


def _text(file: Path) -> str:
    if file.suffix == ".safetensors":
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = stream.read(min(length, file.stat().st_size))  # a damaged one may claim any length
        return "\n".join(_strings([_parsed(value) for value in json.loads(header).get("__metadata__", {}).values()]))
    if file.suffix == ".png":
        from PIL import Image

        with Image.open(file) as picture:
            return "\n".join(_strings(picture.info))
    if file.suffix == ".json" and file.name not in VOCABULARY:
        return "\n".join(_strings(json.loads(file.read_text(encoding="utf-8"))))
    text = file.read_text(encoding="utf-8", errors="replace")
    return ESCAPED.sub(r"\1", text) if file.suffix == ".md" else text


def _parsed(value: str) -> Any:
    """Return what `value` holds as JSON, whose escapes would look like paths, or itself."""
    try:
        return json.loads(value)
    except ValueError:
        return value


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, str):
        yield value


def _private(text: str, owners: set[str], *, own_words: bool) -> str | None:
    """Return what `text` holds that is private, in words that don't repeat secrets."""
    from huggingface_hub import get_token

    secrets = [value for name, value in os.environ.items() if SECRET.search(name) and len(value) >= 8]
    if TOKEN.search(text) or any(secret in text for secret in [*secrets, get_token() or text + "."]):
        return "an access token"
    if own_words:
        folders = (str(folder) for folder in (_home(), Path.cwd()) if len(folder.parts) > 2)
        return next((f"the path {name}" for name in folders if name in text), None)
    if found := PATH.search(text):
        return f"the path {found[0]}"
    if found := EMAIL.search(text):
        return f"the e-mail address {found[0]}"
    for name in _user_names() - owners:
        if re.search(rf"\b{re.escape(name)}\b", text):
            return f"the user name {name}"
    return None


def _user_names() -> set[str]:
    """Return by which names this machine knows its user, where they say something of a person."""
    try:
        names = {getpass.getuser(), _home().name}
    except (OSError, KeyError):  # a container's user may have none
        names = {_home().name}
    return {name for name in names if name.lower() not in EVERYONE and len(name) > 2}


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")
