"""An in-memory Hugging Face Hub on 127.0.0.1, for tests: what the real clients need to create, push and pull repos.

    with LoopbackHub() as hub:
        hub.add("dataset", "ns/reviews", {"train.jsonl": b"..."}, tag="v1")
        rows = hub.call(count_rows, "ns/reviews")  # a function of the test file, run in a process that uses this Hub
        with hub.serving(count_rows) as count:  # the same, many calls to one process
            rows = count("ns/reviews")
        hub.files("dataset", "ns/reviews", "v1")

Large files travel by plain Git LFS; Xet, which the real Hub uses, is not here. Nor are discussions, Space builds,
listings and multi-part uploads. A request that it can't answer gets status 400 and is noted in `hub.unknown`.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import inspect
import io
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from warm import LIBRARIES, template

LICENSES = ("apache-2.0", "mit", "cc-by-4.0", "cc0-1.0", "other")  # some of those that the Hub knows
LARGE = (".bin", ".safetensors", ".parquet", ".arrow", ".gz", ".pt", ".png")
PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}
FOREIGN = ("HF_", "HUGGING", "TRANSFORMERS_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")  # fmt: skip  # noqa: E501


# What is stored


def outcome(job: Callable[[], Any]) -> tuple[object, str, list[str]]:
    """Run `job` in this process: its exit code (1 for an exception), what it printed, and its lines on stderr.

    Both are taken at their descriptors: libraries keep a sys.stderr of their own.
    """
    code: object = 0
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors:
        usual = {number: os.dup(number) for number in (1, 2)}
        os.dup2(printed.fileno(), 1)
        os.dup2(errors.fileno(), 2)
        try:
            with contextlib.redirect_stdout(io.StringIO()) as said:
                job()
        except SystemExit as stop:
            code = stop.code
        except Exception:
            traceback.print_exc()
            code = 1
        sys.stderr.flush()
        for number, descriptor in usual.items():
            os.dup2(descriptor, number)
            os.close(descriptor)
        printed.seek(0)
        errors.seek(0)
        return code, said.getvalue() + printed.read(), errors.read().splitlines()


@dataclass(frozen=True)
class File:
    """Content of a file; `lfs` where the Hub keeps it outside of git."""

    content: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        size = len(self.content)
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {size}\n".encode()

    @cached_property
    def oid(self) -> str:
        """Git's own name of the blob: of an LFS file, that of its pointer."""
        blob = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()


@dataclass(frozen=True)
class Commit:
    """One state of a repo, all files included."""

    id: str
    parent: str | None
    title: str
    files: dict[str, File]
    date: str


@dataclass
class Repo:
    """A repo's commits, and `refs` by their full names: refs/heads/main, refs/tags/v1, refs/pr/1."""

    type: str
    id: str
    private: bool
    created: dict[str, Any]
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def ref(self, revision: str) -> str | None:
        """The full name of a branch, tag or pull request."""
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.refs), None)

    def at(self, revision: str) -> Commit:
        """The commit that a branch, tag, pull request or commit id names."""
        ref = self.ref(revision)
        commit = self.commits.get(self.refs[ref] if ref else revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def add_commit(self, ref: str, parent: Commit | None, files: dict[str, File], title: str) -> Commit:
        """Put a commit on `ref`."""
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        state = [len(self.commits), self.type, self.id, title, sorted((path, file.oid) for path, file in files.items())]
        name = hashlib.sha1(json.dumps(state).encode()).hexdigest()
        commit = Commit(name, parent.id if parent else None, title, files, now)
        self.commits[name] = commit
        self.refs[ref] = name
        return commit


# How a request is answered


@dataclass
class Request:
    """One request as it came, and the status it got."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    status: int = 0

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"{}")


@dataclass
class Answer:
    """What goes back: bytes as they are, anything else as JSON."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        self.headers.setdefault("Content-Type", "application/json")
        return json.dumps(self.body).encode()


class Refusal(Exception):
    """An error status, with the headers by which the client tells errors apart."""

    def __init__(self, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer = Answer({"error": message}, status, headers)


@dataclass
class Fault:
    """What goes wrong with `times` requests, after `skip` that go well."""

    method: str
    path: re.Pattern[str]
    status: int | None
    code: str | None
    times: int
    skip: int
    cut: bool
    drop: bool


@dataclass(frozen=True)
class Account:
    """Who a token stands for, which namespaces are theirs, and in which of them this token writes."""

    name: str
    role: str
    namespaces: tuple[str, ...]
    writes: tuple[str, ...]


ROUTES: list[tuple[str, re.Pattern[str], bool, Callable[..., Answer]]] = []
ID = r"(?P<repo_id>[^/]+(?:/[^/]+)?)"
API = rf"/api/(?P<kind>models|datasets|spaces)/{ID}"
SITE = rf"/(?P<kind>datasets/|spaces/|){ID}"


def route(method: str, path: str, write: bool = False) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Let the decorated function answer `method` on `path`.

    The path's groups become arguments, percent-decoded; its kind and repo_id become `repo`, which whoever asks may see,
    or with `write` change.
    """

    def register(function: Callable[..., Answer]) -> Callable[..., Answer]:
        ROUTES.append((method, re.compile(path), write, function))
        return function

    return register


class LoopbackHub:
    """A Hub with the accounts `tester` (a member of `ns`) and a stranger.

    The tester has the tokens `token_write`, `token_read` and the fine-grained `token_fine`, which writes to `ns` alone.

    Attributes:
        url: where it listens.
        log: all requests, in order.
        unknown: requests that no endpoint here answers, and those that broke it; assert that there are none.
        page_size: files on a page of a listing.
    """

    token_write, token_read, token_fine, token_stranger = "hf_write", "hf_read", "hf_fine", "hf_stranger"

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}
        self.log: list[Request] = []
        self.unknown: list[str] = []
        self.page_size = 1000
        self._faults: list[Fault] = []
        self._lock = threading.RLock()
        self._accounts = {
            self.token_write: Account("tester", "write", ("tester", "ns"), ("tester", "ns")),
            self.token_read: Account("tester", "read", ("tester", "ns"), ()),
            self.token_fine: Account("tester", "fineGrained", ("tester", "ns"), ("ns",)),
            self.token_stranger: Account("stranger", "write", ("stranger",), ("stranger",)),
        }

    def __enter__(self) -> LoopbackHub:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._home = tempfile.TemporaryDirectory(prefix="loopback-hub-")
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._home.cleanup()

    # For tests: to fill it, to look into it, to break it, to run a client against it

    def add(
        self, repo_type: str, repo_id: str, files: dict[str, bytes], *, private: bool = False, tag: str | None = None
    ) -> str:
        """Commit `files` onto a repo's main branch, which is made where it is missing; returns the commit id."""
        repo = self.repos.get((repo_type, repo_id)) or self._create(repo_type, repo_id, private, {})
        parent = repo.at("main")
        new = {path: File(content, _is_large(path, content)) for path, content in files.items()}
        commit = repo.add_commit("refs/heads/main", parent, parent.files | new, "Add files")
        if tag:
            repo.refs[f"refs/tags/{tag}"] = commit.id
        return commit.id

    def files(self, repo_type: str, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a repo, by path."""
        files = self.repos[repo_type, repo_id].at(revision).files
        return {path: file.content for path, file in files.items() if path != ".gitattributes"}

    def commits(self, repo_type: str, repo_id: str, revision: str = "main") -> list[str]:
        """The titles of a revision's commits, newest first."""
        repo = self.repos[repo_type, repo_id]
        return [commit.title for commit in _history(repo, repo.at(revision))]

    def fail(self, method: str, path: str, *, status: int | None = None, code: str | None = None, times: int = 1,
             skip: int = 0, cut: bool = False, drop: bool = False) -> None:  # fmt: skip
        """Let `times` requests that match `path` (a regex) fail, after `skip` that go well.

        They are answered with `status`; or with `cut` they are done but their answer breaks off; or with `drop` the
        connection breaks while the client still sends.
        """
        self._faults.append(Fault(method, re.compile(path), status, code, times, skip, cut, drop))

    def heal(self) -> None:
        """Let everything go well again."""
        self._faults.clear()

    def environment(self, token: str | None = None, home: Path | None = None) -> dict[str, str]:
        """A process's variables for clients that use this Hub, and nothing of the user's."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        home = home or Path(tempfile.mkdtemp(dir=self._home.name))
        return kept | ({"HF_TOKEN": token} if token else {}) | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TRANSFER_CACHE": str(home / "features"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "GRADIO_ANALYTICS_ENABLED": "False",
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }  # fmt: skip

    def call(self, function: Callable[..., Any], *args: Any, token: str | None = None, home: Path | None = None) -> Any:
        """Run a module-level function in a fresh process with `environment`; what goes in and out must be JSON.

        The clients read their settings when they are imported, so the module must import them in its functions.
        """
        file = Path(inspect.getfile(function))
        code = (
            "import json, sys\n"
            f"import {file.stem} as module\n"
            f"result = module.{function.__name__}(*json.loads(sys.argv[1]))\n"
            "print('\\n' + json.dumps(result))"
        )
        environment = self.environment(token, home) | {"PYTHONPATH": str(file.parent)}
        libraries = template(*LIBRARIES)  # none of them is a client
        process = libraries.run("-c", code, json.dumps(args, default=str), environment=environment)
        if process.returncode:
            raise AssertionError(f"{function.__name__} failed:\n{process.stdout}\n{process.stderr}")
        return json.loads(process.stdout.splitlines()[-1])

    @contextmanager
    def serving(self, function: Callable[..., Any], folder: Path | None = None) -> Iterator[Callable[..., Any]]:
        """Like `call`, but yields a function that can be called often: one process, started in `folder`, answers."""
        file = Path(inspect.getfile(function))
        code = (
            "import json, os, sys\n"
            "answers = os.fdopen(os.dup(1), 'w')\n"
            "os.dup2(2, 1)\n"
            f"import {file.stem} as module\n"
            "for line in sys.stdin:\n"
            f"    print(json.dumps(module.{function.__name__}(*json.loads(line))), file=answers, flush=True)\n"
        )
        environment = self.environment() | {"PYTHONPATH": str(file.parent)}
        with subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=folder, text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            questions, answers = process.stdin, process.stdout

            def ask(*args: Any) -> Any:
                print(json.dumps(args, default=str), file=questions, flush=True)
                if answer := answers.readline():
                    return json.loads(answer)
                raise AssertionError(f"{function.__name__} ended the process; see its stderr")

            yield ask

    # Inside

    def answer(self, request: Request) -> Answer:
        """Find the endpoint and let it answer."""
        problem = "no such endpoint"
        with self._lock:
            for method, path, write, function in ROUTES:
                if method == request.method and (match := path.fullmatch(request.path)):
                    found = {name: unquote(text) for name, text in match.groupdict().items() if text}
                    try:
                        if repo_id := found.pop("repo_id", None):
                            found["repo"] = self.repo(request, found.pop("kind", ""), repo_id, write)
                        return function(self, request, **found)
                    except Refusal as refusal:
                        return refusal.answer
                    except Exception as error:
                        problem = repr(error)
                        break
            self.unknown.append(f"{request.method} {request.path}: {problem}")
        return Refusal(400, None, f"the loopback Hub failed: {problem}").answer

    def fault(self, request: Request) -> Fault | None:
        """Return the fault that was ordered for this request."""
        with self._lock:
            for fault in self._faults:
                if fault.times and fault.method == request.method and fault.path.search(unquote(request.path)):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    def account(self, request: Request) -> Account | None:
        """Return who asks, None for nobody in particular."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self._accounts:
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        return self._accounts.get(token)

    def repo(self, request: Request, kind: str, repo_id: str, write: bool) -> Repo:
        """Return a repo if whoever asks may see, or with `write` change, it; anybody may propose a change."""
        account, repo = self.account(request), self.repos.get((_type(kind), repo_id))
        namespace = repo_id.split("/")[0]
        own = account is not None and namespace in account.namespaces
        proposes = bool(request.query.get("create_pr")) or request.path.endswith("/lfs/objects/batch")
        if repo is None or (repo.private and not own):
            raise Refusal(404 if account else 401, "RepoNotFound", "Repository not found")
        if write and account is None:
            raise Refusal(401, None, "Invalid username or password.")
        if write and namespace not in account.writes and not (proposes and account.writes):
            raise Refusal(403, None, "you don't have the rights: a write token of a member is needed")
        return repo

    def _create(self, repo_type: str, repo_id: str, private: bool, created: dict[str, Any]) -> Repo:
        repo = self.repos[repo_type, repo_id] = Repo(repo_type, repo_id, private, created)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE)
        repo.add_commit("refs/heads/main", None, {".gitattributes": File(attributes.encode())}, "initial commit")
        return repo


class _Handler(BaseHTTPRequestHandler):
    """Turns HTTP into Request and Answer, and does the damage that was ordered."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for its second packet

    def respond(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, url.path, query, headers, b"")
        self.hub.log.append(request)
        fault = self.hub.fault(request)
        length = int(headers.get("content-length", 0))
        request.body = self.rfile.read(length // 2 if fault and fault.drop else length)
        if fault and fault.drop:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        ordered = Refusal(fault.status, fault.code, "ordered by the test").answer if fault and fault.status else None
        answer = ordered or self.hub.answer(request)
        content, request.status = answer.encoded(), answer.status
        self.send_response(answer.status)
        for name, value in ({"Content-Length": str(len(content)), "X-Request-Id": "loopback"} | answer.headers).items():
            self.send_header(name, value)
        self.end_headers()
        cut = fault is not None and fault.cut
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond

    def log_message(self, *_: object) -> None:
        pass


def _type(kind: str) -> str:
    """The client's word for a part of an address: `model` for `models` or nothing, `dataset` for `datasets/`."""
    return kind.rstrip("/").removesuffix("s") or "model"


def _is_large(path: str, content: bytes) -> bool:
    return path.endswith(LARGE) or b"\0" in content[:512]


def _history(repo: Repo, commit: Commit | None) -> list[Commit]:
    commits = []
    while commit is not None:
        commits.append(commit)
        commit = repo.commits[commit.parent] if commit.parent else None
    return commits


# Endpoints: accounts and repos


@route("GET", "/api/whoami-v2")
def whoami(hub: LoopbackHub, request: Request) -> Answer:
    account = hub.account(request)
    if account is None:
        raise Refusal(401, None, "Invalid username or password.")
    token = {"displayName": "test", "role": account.role}
    organisations = [{"type": "org", "name": name} for name in account.namespaces[1:]]
    return Answer({"type": "user", "name": account.name, "fullname": account.name, "orgs": organisations,
                   "auth": {"type": "access_token", "accessToken": token}})  # fmt: skip


@route("POST", "/api/repos/create")
def create_repo(hub: LoopbackHub, request: Request) -> Answer:
    account, wanted = hub.account(request), request.json
    if account is None:
        raise Refusal(401, None, "Invalid username or password.")
    namespace = wanted.get("organization") or account.name
    if namespace not in account.writes:
        raise Refusal(403, None, f"you don't have the rights to create a repo under the namespace {namespace!r}")
    repo_type, repo_id = wanted.get("type") or "model", f"{namespace}/{wanted['name']}"
    if repo_type == "space" and not wanted.get("sdk"):
        raise Refusal(400, None, "a Space needs an sdk")
    url = {"url": f"{hub.url}/{PREFIX[repo_type]}{repo_id}"}
    if (repo_type, repo_id) in hub.repos:
        return Answer(url | {"error": "You already created this repo"}, 409)
    hub._create(repo_type, repo_id, wanted.get("visibility") == "private", wanted)
    return Answer(url)


@route("DELETE", "/api/repos/delete")
def delete_repo(hub: LoopbackHub, request: Request) -> Answer:
    account, wanted = hub.account(request), request.json
    repo_id = f"{wanted.get('organization') or (account.name if account else '')}/{wanted['name']}"
    repo = hub.repo(request, wanted.get("type") or "model", repo_id, True)
    del hub.repos[repo.type, repo.id]
    return Answer()


@route("GET", rf"{API}/refs")
def list_refs(hub: LoopbackHub, request: Request, repo: Repo) -> Answer:
    def under(prefix: str) -> list[dict[str, str]]:
        found = [(ref, commit) for ref, commit in repo.refs.items() if ref.startswith(prefix)]
        return [{"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": commit} for ref, commit in found]

    pulls = {"pullRequests": under("refs/pr/")} if request.query.get("include_prs") else {}
    return Answer({"branches": under("refs/heads/"), "tags": under("refs/tags/"), "converts": [], **pulls})


@route("POST", rf"{API}/branch/(?P<name>[^/]+)", write=True)
def create_branch(hub: LoopbackHub, request: Request, repo: Repo, name: str) -> Answer:
    return _add_ref(repo, f"refs/heads/{name}", request.json.get("startingPoint") or "main")


@route("POST", rf"{API}/tag/(?P<revision>[^/]+)", write=True)
def create_tag(hub: LoopbackHub, request: Request, repo: Repo, revision: str) -> Answer:
    return _add_ref(repo, f"refs/tags/{request.json['tag']}", revision)


def _add_ref(repo: Repo, ref: str, revision: str) -> Answer:
    if ref in repo.refs:
        raise Refusal(409, None, f"Reference already exists: {ref}")
    repo.refs[ref] = repo.at(revision).id
    return Answer()


@route("DELETE", rf"{API}/(?P<what>branch|tag)/(?P<name>[^/]+)", write=True)
def delete_ref(hub: LoopbackHub, request: Request, repo: Repo, what: str, name: str) -> Answer:
    if repo.refs.pop(f"refs/{'heads' if what == 'branch' else 'tags'}/{name}", None) is None:
        raise Refusal(404, "RevisionNotFound", f"there is no {what} {name}")
    return Answer()


# Endpoints: reading


def _entry(path: str, file: File, commit: Commit | None = None) -> dict[str, Any]:
    size = len(file.content)
    large = {"lfs": {"oid": file.sha256, "size": size, "pointerSize": len(file.pointer)}} if file.lfs else {}
    last = {"lastCommit": {"id": commit.id, "title": commit.title, "date": commit.date}} if commit else {}
    return {"type": "file", "path": path, "size": size, "oid": file.oid, **large, **last}


def _folders(commit: Commit) -> dict[str, dict[str, Any]]:
    """All folders of a commit, as listings show them."""
    paths = {str(parent) for path in commit.files for parent in Path(path).parents} - {"."}
    return {path: {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
            for path in sorted(paths)}  # fmt: skip


@route("GET", rf"{API}/tree/(?P<revision>[^/]+)(?P<folder>/.+)?")
def list_tree(hub: LoopbackHub, request: Request, repo: Repo, revision: str, folder: str = "") -> Answer:
    commit = repo.at(revision)
    folders, inside = _folders(commit), folder.strip("/")
    if inside and inside not in folders:
        raise Refusal(404, "EntryNotFound", f"{inside} does not exist on {revision}")
    expand = commit if request.query.get("expand", "").lower() == "true" else None
    entries = folders | {path: _entry(path, file, expand) for path, file in sorted(commit.files.items())}
    recursive = request.query.get("recursive", "").lower() in ("true", "1")
    start = f"{inside}/" if inside else ""
    found = [entry for path, entry in entries.items()
             if path.startswith(start) and (recursive or "/" not in path.removeprefix(start))]  # fmt: skip
    first = int(request.query.get("cursor", 0))
    last = first + hub.page_size
    query = f"recursive={recursive}&expand={bool(expand)}&cursor={last}"
    link = {"Link": f'<{hub.url}{request.path}?{query}>; rel="next"'} if last < len(found) else {}
    return Answer(found[first:last], headers=link)


@route("POST", rf"{API}/paths-info/(?P<revision>[^/]+)")
def paths_info(hub: LoopbackHub, request: Request, repo: Repo, revision: str) -> Answer:
    commit = repo.at(revision)
    form = parse_qs(request.body.decode())
    expand = commit if form.get("expand", [""])[0].lower() == "true" else None
    entries = _folders(commit) | {path: _entry(path, file, expand) for path, file in commit.files.items()}
    return Answer([entries[path] for path in form.get("paths", []) if path in entries])


@route("GET", SITE + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def download(hub: LoopbackHub, request: Request, repo: Repo, revision: str, path: str) -> Answer:
    commit = repo.at(revision)
    headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    if path not in commit.files:
        refusal = Refusal(404, "EntryNotFound", "Entry not found")
        refusal.answer.headers["X-Repo-Commit"] = commit.id
        raise refusal
    file = commit.files[path]
    headers["ETag"] = f'"{file.sha256 if file.lfs else file.oid}"'
    if file.lfs:
        headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(file.content))}
    return _part(file.content, request.headers.get("range"), headers)


ROUTES.append(("HEAD", *ROUTES[-1][1:]))


def _part(content: bytes, wanted: str | None, headers: dict[str, str]) -> Answer:
    """The bytes that a Range header asks for, or all."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted or "")
    if not match or match.groups() == ("", ""):
        return Answer(content, 200, headers)
    size = len(content)
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= size or end <= start:
        return Answer(b"", 416, headers | {"Content-Range": f"bytes */{size}"})
    return Answer(content[start:end], 206, headers | {"Content-Range": f"bytes {start}-{end - 1}/{size}"})


# Endpoints: writing


@route("POST", "/api/validate-yaml")
def validate_card(hub: LoopbackHub, request: Request) -> Answer:
    """Far fewer checks than the Hub's: front matter that is closed, with a `key:` on each line and a known licence."""
    content, errors, warnings = request.json["content"], [], []
    match = re.match(r"---\r?\n(.*?)^---\s*$", content, re.DOTALL | re.MULTILINE)
    if match:
        bad = [line for line in match[1].splitlines() if not re.match(r"\s*(#.*|- .*|[\w-]+:.*)?$", line)]
        errors = [f"not a line of YAML metadata: {line}" for line in bad]
        license = re.search(r"^license: *(.*)$", match[1], re.MULTILINE)
        if license and license[1] not in LICENSES:
            errors.append(f'"license" must be one of [{", ".join(LICENSES)}]')
    elif content.startswith("---"):
        errors = ["the YAML metadata is not closed"]
    else:
        warnings = ["empty or missing yaml metadata in repo card"]
    status = 400 if errors else 200
    if "text/plain" in request.headers.get("accept", ""):
        return Answer("\n".join(errors or ["Valid"]).encode(), status, {"Content-Type": "text/plain"})
    return Answer({"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}, status)


@route("POST", rf"{API}/preupload/(?P<revision>[^/]+)", write=True)
def preupload(hub: LoopbackHub, request: Request, repo: Repo, revision: str) -> Answer:
    """Say how each file is to be sent, and what is there already."""
    there = repo.at(revision).files
    files = []
    for wanted in request.json["files"]:
        path, file = wanted["path"], there.get(wanted["path"])
        large = _is_large(path, base64.b64decode(wanted["sample"]))
        same = {"oid": file.sha256 if file.lfs else file.oid} if file else {}
        files.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **same})
    return Answer({"files": files})


@route("POST", SITE + r"\.git/info/lfs/objects/batch", write=True)
def offer_large(hub: LoopbackHub, request: Request, repo: Repo) -> Answer:
    objects = [{"oid": thing["oid"], "size": thing["size"]} for thing in request.json["objects"]]
    for thing in objects:
        if thing["oid"] not in hub.large:
            thing["actions"] = {"upload": {"href": f"{hub.url}/lfs/{thing['oid']}"},
                                "verify": {"href": f"{hub.url}/lfs/verify"}}  # fmt: skip
    return Answer({"transfer": "basic", "objects": objects})


@route("PUT", "/lfs/(?P<oid>[0-9a-f]{64})")
def put_large(hub: LoopbackHub, request: Request, oid: str) -> Answer:
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refusal(400, None, "the bytes do not match their SHA-256")
    hub.large[oid] = request.body
    return Answer()


@route("POST", "/lfs/verify")
def verify_large(hub: LoopbackHub, request: Request) -> Answer:
    hub.account(request)
    if len(hub.large.get(request.json["oid"], b"")) != request.json["size"]:
        raise Refusal(404, None, "no such object of this size")
    return Answer()


@route("POST", rf"{API}/commit/(?P<revision>[^/]+)", write=True)
def commit_files(hub: LoopbackHub, request: Request, repo: Repo, revision: str) -> Answer:
    """Make a commit on a branch or pull request, or with `create_pr` a new pull request."""
    parent, ref = repo.at(revision), repo.ref(revision)
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    if header.get("parentCommit") not in (None, parent.id):
        raise Refusal(412, None, "A commit has happened since. Please refresh and try again.")
    files = _changed(hub, dict(parent.files), lines)
    pull = sum(name.startswith("refs/pr/") for name in repo.refs) + 1
    if request.query.get("create_pr"):
        ref = f"refs/pr/{pull}"
    elif ref is None or ref.startswith("refs/tags/"):
        raise Refusal(400, None, f"{revision} is no branch")
    commit = repo.add_commit(ref, parent, files, header["summary"])
    address = f"{hub.url}/{PREFIX[repo.type]}{repo.id}"
    new = {"pullRequestUrl": f"{address}/discussions/{pull}"} if request.query.get("create_pr") else {}
    return Answer({"success": True, "commitOid": commit.id, "commitUrl": f"{address}/commit/{commit.id}", **new})


def _changed(hub: LoopbackHub, files: dict[str, File], lines: list[dict[str, Any]]) -> dict[str, File]:
    """The files of a commit after the operations of `lines`."""
    for line in lines:
        key, value = line["key"], line["value"]
        if key == "file":
            files[value["path"]] = File(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            known = {file.sha256: file.content for file in files.values() if file.lfs} | hub.large
            if value["oid"] not in known:
                raise Refusal(400, None, f"{value['path']}: its LFS object was never uploaded")
            files[value["path"]] = File(known[value["oid"]], lfs=True)
        elif key == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise Refusal(404, "EntryNotFound", f"{value['path']} does not exist")
        elif key == "deletedFolder":
            for path in [path for path in files if path.startswith(f"{value['path'].rstrip('/')}/")]:
                del files[path]
    return files


# Last, because a repo of this shape could have any name


@route("GET", rf"{API}(?:/revision/(?P<revision>[^/]+))?")
def repo_info(hub: LoopbackHub, request: Request, repo: Repo, revision: str = "main") -> Answer:
    commit = repo.at(revision)
    sizes = request.query.get("blobs", "").lower() == "true"
    siblings = []
    for path, file in sorted(commit.files.items()):
        entry = _entry(path, file)
        details = {"size": entry["size"], "blobId": entry["oid"]}
        details |= {"lfs": {"sha256": file.sha256, **entry["lfs"]}} if file.lfs else {}
        siblings.append({"rfilename": path, **(details if sizes else {})})
    first = _history(repo, commit)[-1]
    info = {"id": repo.id, "author": repo.id.split("/")[0], "sha": commit.id, "private": repo.private, "gated": False,
            "disabled": False, "lastModified": commit.date, "createdAt": first.date, "tags": [], "downloads": 0,
            "likes": 0, "siblings": siblings}  # fmt: skip
    if metadata := _front_matter(commit):
        info["cardData"] = metadata
    if repo.type == "space":
        info["sdk"] = metadata.get("sdk") or repo.created.get("sdk")
    return Answer(info)


def _front_matter(commit: Commit) -> dict[str, Any]:
    """What the YAML at the top of a commit's README.md says."""
    match = re.match(rb"---\n(.*?)^---$", commit.files.get("README.md", File(b"")).content, re.DOTALL | re.MULTILINE)
    return yaml.safe_load(match[1]) if match else {}
