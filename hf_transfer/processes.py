"""Run a command of ours in a process of its own: its memory is its own, and it ends when this one does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOOK = 0.2  # seconds between two looks at the clock
PATIENCE = 5  # seconds that a process has to end by itself
# what every recipe imports: loaded once, a process begins as a copy; ours first, which hushes a line of bitsandbytes
PRELOAD = ["hf_transfer", "datasets", "peft", "sklearn.linear_model", "transformers.trainer", "hf_transfer.finish"]


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit status, 0 if all was well; None if its time was up.
        seconds: it took.
        error: its last words if it failed.
    """

    code: int | None
    seconds: float
    error: str


def run_command(
    argv: list[str], log: Path, *, seconds: float | None = None, tick: Callable[[float], None] = lambda _: None
) -> Ended:
    """Run `hf-transfer ARGV` in a process of its own and wait for it.

    Args:
        argv: words of the command.
        log: file that gets all that it prints.
        seconds: after which it is stopped.
        tick: called with the seconds so far, now and then.
    """
    process: Any = _context().Process(target=_inside, args=(argv, str(log), dict(os.environ)))
    begin = time.perf_counter()
    process.start()
    try:
        while process.is_alive():
            process.join(LOOK)
            spent = time.perf_counter() - begin
            tick(spent)
            if seconds is not None and spent > seconds and process.is_alive():
                return Ended(None, spent, "")
    finally:
        _stop(process)
    return Ended(process.exitcode, time.perf_counter() - begin, last_words(log) if process.exitcode else "")


def warm_up() -> None:
    """Begin to load what every process needs, so that the first one need not wait as long."""
    context = _context()
    if context.get_start_method() == "forkserver":
        from multiprocessing import forkserver

        forkserver.ensure_running()


def last_words(log: Path) -> str:
    """Return the error that a log ends with: ours if there is one, else its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    ours = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return " ".join(ours or lines[-1:])


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _inside(argv: list[str], log: str, environment: dict[str, str]) -> None:
    """Be that process."""
    os.environ.update(environment)  # a copy has that of the time when the first one was asked for
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C goes to the parent alone, and what is started here can be stopped together
    threading.Thread(target=_end_with_parent, daemon=True).start()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    from hf_transfer.cli import main

    main(argv)
    sys.stdout.flush()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    if hasattr(os, "killpg"):
        os.killpg(os.getpid(), signal.SIGTERM)
    os._exit(1)


def _stop(process: Any) -> None:
    """End a process and all that it started, if they run."""
    if process.is_alive():
        try:
            os.killpg(process.pid, signal.SIGTERM)  # which torchrun passes on to what it started
        except (AttributeError, ProcessLookupError):  # no such call on this system, or no such group yet
            process.terminate()
        process.join(PATIENCE)
        process.kill()
    process.join()
