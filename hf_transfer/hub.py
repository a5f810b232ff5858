"""Talk with the Hub: who asks, what is there, and one commit that is checked afterwards."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from hf_transfer.errors import UserError, causes, hub_refusal, listed
from hf_transfer.results import FILE

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
BORN_WITH = (".gitattributes", CARD)  # what a repository made on the Hub's site holds from the start
OURS = {"model": (FILE, {"format", "method", "label_names"}), "space": ("space.json", {"models"})}  # what only we write
BRANCH = re.compile(r"(?!refs/)(?!.*(?:\.\.|//|/\.|\.lock(?:/|$)))\w[\w./+-]*(?<![./])")


@dataclass(frozen=True)
class Place:
    """A repository before a push: whether only members see it, the commit to build on, its files, and the branch."""

    private: bool
    start: str
    files: dict[str, Any]
    new_branch: bool


@dataclass(frozen=True)
class Pushed:
    """A repository after a push: where it is, the commit, whether that is new, and what to know of its card."""

    url: str
    commit: str
    changed: bool
    note: str = ""


def check_repo_id(repo_id: str | None, flag: str = "REPO") -> str:
    """Return `repo_id` if it can name a repository.

    Raises:
        UserError: it can't.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id or "")
        if not repo_id or "/" not in repo_id:
            raise HFValidationError("it has no owner")
    except HFValidationError as error:
        reason = str(error).split(":")[0]
        raise UserError(
            f"{flag} is '{repo_id or ''}' ({reason[:100]}); it must be owner/name, such as me/kitchen-sentiment."
        ) from error
    return repo_id


def check_revision(revision: str | None, flag: str = "--revision") -> None:
    """Check that `revision` can name a branch.

    Raises:
        UserError: it can't.
    """
    if revision is not None and not BRANCH.fullmatch(revision):
        raise UserError(f"{flag} is '{revision[:100]}'; it must name a branch, such as v2: letters, digits, '-', '_', "
                        "'.' and '/'.")  # fmt: skip


def check_account(repo_id: str, *, create_pr: bool = False) -> HfApi:
    """Return a client of whoever is logged in, who may write to `repo_id`.

    Raises:
        UserError: no token, a refused or read-only one, another's namespace, or no Hub.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import logging

    check_repo_id(repo_id)
    if not get_token():
        raise UserError("there is no Hub token; log in with `hf auth login`, or set HF_TOKEN to one that may write.")
    logging.set_verbosity_error()  # what it says, we say shorter
    api = HfApi(library_name="hf_transfer")
    with hub_errors("the Hub can't tell who you are"):
        account = api.whoami()
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise UserError("your Hub token may only read; make one that may write, and log in with `hf auth login`.")
    own = [account["name"], *(member["name"] for member in account.get("orgs", []))]
    if repo_id.split("/")[0] not in own and not create_pr:
        raise UserError(f"{repo_id}: your token is of {account['name']}, who can't write there; publish to "
                        f"{listed(own)}, or propose it with --create_pr.")  # fmt: skip
    return api


def check_place(
    api: HfApi,
    repo_id: str,
    *,
    repo_type: Literal["model", "space"],
    private: bool,
    revision: str | None = None,
    create_pr: bool = False,
) -> Place | None:
    """Return what a push to a repository would find there, None if there is no such repository yet.

    Args:
        api: a client that may write.
        repo_id: owner/name.
        repo_type: model or space.
        private: nobody else is to see it.
        revision: branch to push to; None is the main one.
        create_pr: a commit is proposed.

    Raises:
        UserError: it is somebody else's work or has another visibility, or the Hub can't be asked.
    """
    from huggingface_hub.errors import RepositoryNotFoundError

    where, same = _named(repo_id, repo_type)
    try:
        with hub_errors(where, RepositoryNotFoundError):
            info = api.repo_info(**same)
    except RepositoryNotFoundError as error:
        if create_pr:
            raise UserError(f"{where} doesn't exist, nothing can be proposed there; leave --create_pr out.") from error
        return None
    if private and not info.private:
        raise UserError(f"{where} is public but should be private; make it private in its settings, or choose another "
                        "name.")  # fmt: skip
    with hub_errors(where):
        branches = [branch.name for branch in api.list_repo_refs(**same).branches]
        new_branch = revision is not None and revision not in branches
        start = api.repo_info(**same, revision=None if new_branch else revision)
        files = _files(api, same, start.sha)
        foreign = sorted(set(files) - set(BORN_WITH))
        ours = create_pr or not foreign or _is_ours(api, same, start.sha, files)
    if not ours:
        raise UserError(f"{where} holds other work already ({listed(foreign, 3)}); choose another name, or propose "
                        "yours with --create_pr.")  # fmt: skip
    return Place(info.private, start.sha, files, new_branch)


def _named(repo_id: str, repo_type: str) -> tuple[str, dict[str, Any]]:
    return repo_id if repo_type == "model" else f"Space {repo_id}", {"repo_id": repo_id, "repo_type": repo_type}


def _is_ours(api: HfApi, same: dict[str, Any], commit: str, files: dict[str, Any]) -> bool:
    name, keys = OURS[same["repo_type"]]
    if name not in files:
        return False
    try:
        content = json.loads(_read(api, same, commit, name))
    except ValueError:
        return False
    return isinstance(content, dict) and keys <= set(content)


def _read(api: HfApi, same: dict[str, Any], commit: str, name: str) -> str:
    return Path(api.hf_hub_download(**same, filename=name, revision=commit)).read_text("utf-8", "replace")


def seal(card: str) -> str:
    """Return a card with its SHA-256 below it, by which a later push tells whether somebody edited it."""
    card = card.rstrip()
    return f"{card}\n\n<!-- by hf_transfer, SHA-256 of the above: {hashlib.sha256(card.encode()).hexdigest()} -->\n"


def check_card(folder: Path, repo_id: str, *, repo_type: Literal["model", "space"]) -> None:
    """Let the Hub check the front matter of the README.md in `folder`.

    Raises:
        UserError: it is refused (an unknown licence, say), or the Hub can't be asked.
    """
    from huggingface_hub import RepoCard

    with hub_errors(f"{_named(repo_id, repo_type)[0]}: {CARD}"):
        RepoCard((folder / CARD).read_text(encoding="utf-8")).validate(repo_type)


def push(
    api: HfApi,
    folder: Path,
    repo_id: str,
    *,
    repo_type: Literal["model", "space"],
    private: bool,
    revision: str | None,
    create_pr: bool,
    message: str,
    own: tuple[str, ...],
) -> Pushed:
    """Bring a repository to hold the files of `folder`, by one commit, or by none if it does already.

    Files that others put there stay; those of an earlier push that this one lacks go. A card that somebody edited stays
    if all else is there already; with another run it is replaced, and the note says so.

    Args:
        api: a client that may write.
        folder: what to upload.
        repo_id: owner/name; made if there is none.
        repo_type: model or space.
        private: nobody else sees it.
        revision: branch; made if there is none. None is the main one.
        create_pr: propose the commit instead.
        message: of the commit.
        own: patterns of the files that an earlier push may have left there.

    Raises:
        UserError: the repository is somebody else's work or has another visibility, or the Hub refuses or fails.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.errors import HfHubHTTPError

    where, same = _named(repo_id, repo_type)
    asked: Any = {"repo_type": repo_type, "private": private, "revision": revision, "create_pr": create_pr}
    place = check_place(api, repo_id, **asked)
    if place is None:
        sdk = "gradio" if repo_type == "space" else None
        with hub_errors(where):
            api.create_repo(**same, private=private, space_sdk=sdk, exist_ok=True)
        place = check_place(api, repo_id, **asked)
    if place is None:
        raise UserError(f"{where} was made but can't be seen yet; run the same command again.")
    there, new_branch, url, note = place.files, place.new_branch, _url(api, same, revision), ""
    ours = {path: _oid(path, folder / path, there) for path in _paths(folder)}
    stale = sorted(path for path in there if path not in ours and any(_fits(path, kind) for kind in own))
    differ = _differ(there, ours)
    if not stale and not new_branch and not differ:
        return Pushed(url, place.start, changed=False)
    if create_pr and (proposed := _proposal(api, same, ours, where)):
        return Pushed(*proposed, changed=False)
    if CARD in differ and CARD in there and not new_branch and not create_pr:
        with hub_errors(where):
            card = _read(api, same, place.start, CARD)
        if card != seal(card.rpartition("\n\n<!--")[0]):
            if not stale and differ == {CARD}:
                return Pushed(url, place.start, changed=False, note=f"its {CARD} was edited there and stays as it is; "
                              "to get this run's card, delete it there and publish again")  # fmt: skip
            note = f"its {CARD} was edited there and is replaced; the edited one is in commit {place.start[:8]}"
    added = [CommitOperationAdd(path, folder / path) for path in ours]
    made = False
    try:
        with hub_errors(where):
            at = None if new_branch else revision
            api.preupload_lfs_files(repo_id, added, repo_type=repo_type, revision=at, create_pr=create_pr)
            if new_branch:
                try:
                    made = True  # even if the answer is lost
                    api.create_branch(**same, branch=revision, revision=place.start)
                except HfHubHTTPError as error:
                    made = error.response.status_code != 409  # else somebody else made it
                    raise
            if new_branch and not stale and not differ:
                return Pushed(url, place.start, changed=True)
            commit = api.create_commit(
                **same,
                operations=[*added, *(CommitOperationDelete(path) for path in stale)],
                commit_message=message,
                revision=revision,
                create_pr=create_pr,
                parent_commit=None if create_pr else place.start,
            )
            now = _files(api, same, commit.oid)
        if _differ(now, {path: _oid(path, folder / path, now) for path in ours}):
            raise UserError(f"{where}: commit {commit.oid[:8]} holds other bytes than were sent, don't use it; run the "
                            "same command again.")  # fmt: skip
    except BaseException:
        if made:  # it would look like the new version while it holds the old one
            with hub_errors(f"{where}: branch {revision} may be left there, half-made; remove it"):
                try:
                    api.delete_branch(**same, branch=revision)
                except HfHubHTTPError as error:
                    if error.response.status_code != 404:  # then it was never made
                        raise
        raise
    return Pushed(commit.pr_url or url, commit.oid, changed=True, note=note)


def _url(api: HfApi, same: dict[str, Any], revision: str | None) -> str:
    kind = "spaces/" if same["repo_type"] == "space" else ""
    return f"{api.endpoint}/{kind}{same['repo_id']}{f'/tree/{revision}' if revision else ''}"


def _fits(path: str, kind: str) -> bool:
    return path.count("/") == kind.count("/") and PurePosixPath(path).match(kind)


def _paths(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def _files(api: HfApi, same: dict[str, Any], revision: str | None) -> dict[str, Any]:
    """Return path -> file of a revision: its git blob id, and its SHA-256 if it is a large file."""
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(**same, recursive=True, revision=revision)
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _oid(path: str, file: Path, there: dict[str, Any]) -> str:
    """Return the hash by which the Hub would know `file`: it decides itself which files are large."""
    from huggingface_hub.utils.sha import git_hash, sha_fileobj

    if path not in there:
        return ""
    if there[path].lfs:
        with file.open("rb") as stream:
            return sha_fileobj(stream).hex()
    return git_hash(file.read_bytes())


def _differ(there: dict[str, Any], ours: dict[str, str]) -> set[str]:
    """Return which of our files are not there, or not as they are here."""
    known = {path: file.lfs.sha256 if file.lfs else file.blob_id for path, file in there.items()}
    return {path for path, oid in ours.items() if known.get(path) != oid}


def _proposal(api: HfApi, same: dict[str, Any], ours: dict[str, str], where: str) -> tuple[str, str] | None:
    """Return address and commit of the pull request, among the last five, that proposes the same files."""
    with hub_errors(where):
        pulls = api.list_repo_refs(**same, include_pull_requests=True).pull_requests or []
        for pull in sorted(pulls, key=lambda ref: int(ref.ref.split("/")[-1]))[-5:]:
            if not _differ(_files(api, same, pull.ref), ours):
                number = pull.ref.split("/")[-1]
                return f"{_url(api, same, None)}/discussions/{number}", pull.target_commit
    return None


@contextmanager
def hub_errors(what: str, *let_through: type[Exception]) -> Iterator[None]:
    """Turn what goes wrong with the Hub into one line that says what to do; `let_through` stays as it is.

    Raises:
        UserError: the Hub refused, failed or could not be reached.
    """
    from huggingface_hub.utils import httpx

    try:
        yield
    except let_through:
        raise
    except (OSError, httpx.HTTPError, RuntimeError, ValueError) as error:
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            raise  # of this machine: a full disk, a file that can't be read
        raise UserError(f"{what}: {_why(error)}") from error


def _why(error: BaseException) -> str:
    names, status = causes(error)
    if "OfflineModeIsEnabled" in names:
        return "HF_HUB_OFFLINE is set, so the Hub is not asked; unset it."
    if status == 403:
        return "your token may not do this; use one that may write to this repository (`hf auth login`)."
    if refusal := hub_refusal(error):
        return refusal
    if status in (409, 412):
        return "somebody else changed it at the same moment; run the same command again."
    if status == 429:
        return "the Hub takes no more requests from you for now; wait some minutes and run the same command again."
    if status >= 500 or names & {"TransportError", "ConnectionError", "TimeoutException"}:
        got = f"answers with error {status}" if status else "can't be reached"
        return f"the Hub {got}; check the connection and run the same command again, it goes on safely."
    text = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
    return f"the Hub refused ({text}{f', error {status}' if status else ''}); mend that and run the same command again."
