"""What can go wrong in a user's hands: every such error is one clear line and exit code 2."""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata

PATH_TROUBLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR)

# by the names of the clients' exceptions, the most telling first
HUB_REFUSALS = {
    "RevisionNotFoundError": "the Hub has no such revision of it; name a branch, tag or commit that it has.",
    "GatedRepoError": "its owner asks for consent; give it on its Hub page, then log in with `hf auth login`.",
    "RepositoryNotFoundError": "the Hub shows no such id; check it, and if it is private log in with `hf auth login`.",
    "DatasetNotFoundError": "the Hub shows no such id; check it, and if it is private log in with `hf auth login`.",
}


class UserError(Exception):
    """An input we can't take: says what we got, what we need and what to change."""

    exit_code = 2


class DataError(UserError):
    """All problems found in a run's data, listed at once (one a line).

    Args:
        problems: the messages, in the order they were found.
    """

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


def listed(names: Iterable[object], most: int = 10) -> str:
    """Return `names` with commas, fit for one line: long ones cut, and of very many only the first."""
    words = [" ".join(str(name).split()) for name in names]
    shown = ", ".join(word if len(word) <= 30 else f"{word[:27]}..." for word in words[:most])
    return shown + (f" and {len(words) - most} more" if len(words) > most else "")


def causes(error: BaseException) -> tuple[set[str], int]:
    """Return the class names of `error` and of all that led to it, and the HTTP status among them (0 if none)."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    codes = (getattr(getattr(one, "response", None), "status_code", None) for one in chain)
    return {kind.__name__ for one in chain for kind in type(one).__mro__}, next((code for code in codes if code), 0)


def hub_refusal(error: BaseException) -> str | None:
    """Return why the Hub refused what ended in `error`, and what to do; None if that was not the reason."""
    names, status = causes(error)
    if "a gated dataset" in str(error):  # `datasets` drops this cause
        names.add("GatedRepoError")
    if known := next((why for name, why in HUB_REFUSALS.items() if name in names), None):
        return known
    if status == 401:
        return "the Hub refuses your token; log in again with `hf auth login`, or correct HF_TOKEN."
    return None


@contextmanager
def reporting_errors() -> Iterator[None]:
    """Turn a UserError into its lines on stderr and exit code 2, without a traceback."""
    try:
        refuse_namesake()
        yield
    except UserError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            _fail(f"the disk is full ({error.filename or 'while writing'}); free some space and run again.", 2)
        if error.errno in PATH_TROUBLE:
            path = str(error.filename)
            path = path if len(path) <= 200 else f"{path[:200]}..."
            _fail(f"{path}: {error.strerror}; check its permissions or name another.", 2)
        raise
    except KeyboardInterrupt:
        _fail("interrupted; if training had begun, --resume goes on from its last checkpoint.", 130)


def refuse_namesake() -> None:
    """Stop if PyPI's `hf_transfer`, an unrelated old downloader that installs the same folder, is here too.

    Raises:
        UserError: it is.
    """
    try:
        version = metadata.version("hf_transfer")
    except metadata.PackageNotFoundError:
        return
    raise UserError(
        f"the unrelated package hf_transfer {version} is installed and shares this package's folder; run "
        "`pip uninstall hf_transfer` and then reinstall hf-transfer-nlp."
    )


def _fail(message: str, code: int) -> None:
    if os.environ.get("RANK", "0") == "0":
        for line in message.splitlines():
            print(f"error: {line}", file=sys.stderr)
    sys.exit(code)
