"""Processes that start in a blink: copies of one that has imported the libraries already.

An import of torch and transformers takes seconds, and so does every `python ...` that a test starts. A template process
imports them once and is copied (forked) for each; the copy does what `python ARGV` would: its own arguments,
environment, folder, streams and exit status, and whatever of ours is not preloaded it imports itself. What is to be
shown of starting itself (launchers, installed commands, what an import needs) takes a real process.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import logging
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "torch._dynamo", "torch.distributed.tensor", "torch.distributed.checkpoint", "torch.export",
             "numpy", "pandas", "scipy.stats", "scipy.optimize", "sklearn.linear_model", "sklearn.model_selection",
             "sklearn.feature_extraction.text", "pyarrow.parquet", "sympy", "psutil", "matplotlib.pyplot",
             "yaml")  # fmt: skip
# what reads HF_ENDPOINT, HF_HOME and the like when it is imported
READERS = ("transformers.pipelines", "transformers.trainer", "transformers.models.bert.modeling_bert", "peft",
           "datasets", "evaluate", "accelerate")  # fmt: skip
OURS = ("hf_transfer.begin", "hf_transfer.finish", "hf_transfer.training", "hf_transfer.publish")
RECIPES = Path(__file__).resolve().parent.parent / "recipes"


class Template:
    """A process that imported `modules` in the environment of its first use, to be copied."""

    def __init__(self, *modules: str) -> None:
        self._modules = modules
        self._process: subprocess.Popen | None = None

    def start(self, *argv: Any, cwd: Path | None = None, environment: dict[str, str] | None = None,
              input: str = "") -> Copy:  # fmt: skip
        """Start what `python ARGV` would start."""
        environment = dict(environment or os.environ)
        if self._process is None:
            command = [sys.executable, "-P", __file__, *self._modules]
            self._process = subprocess.Popen(command, env=environment, text=True, stdin=subprocess.PIPE,
                                             stdout=subprocess.PIPE)  # fmt: skip
        folder = tempfile.mkdtemp(prefix="warm-")
        Path(folder, "0").write_text(input)
        order = {"argv": list(map(str, argv)), "cwd": str(cwd or Path.cwd()), "environment": environment}
        return Copy(self, self.ask({**order, "streams": folder}), Path(folder), order["argv"])

    def run(self, *argv: Any, timeout: float = 300, **more: Any) -> subprocess.CompletedProcess:
        """Do as `subprocess.run([sys.executable, *argv], capture_output=True, text=True)`."""
        return self.start(*argv, **more).wait(timeout)

    def close(self) -> None:
        """End the template; there is a new one at the next use."""
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def ask(self, order: dict[str, Any]) -> Any:
        """Have the template do something."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        if answer := self._process.stdout.readline():
            return json.loads(answer)
        raise AssertionError("the template process ended; see its stderr")


class Copy:
    """A process that was started."""

    def __init__(self, template: Template, pid: int, streams: Path, argv: list[str]) -> None:
        self.pid, self._template, self._streams, self._argv = pid, template, streams, argv
        self._status: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, -N if signal N ended it, None if it runs."""
        if self._status is None:
            self._status = self._template.ask({"pid": self.pid})
        return self._status

    def kill(self) -> None:
        """End it as `kill -9` does; whoever wants to know waits."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess:
        """Return how it ended, and what it printed."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise subprocess.TimeoutExpired(self._argv, timeout)
            time.sleep(0.02)
        out, errors = ((self._streams / name).read_text(errors="replace") for name in "12")
        shutil.rmtree(self._streams)
        return subprocess.CompletedProcess(self._argv, self._status, out, errors)


_templates: dict[tuple[str, ...], Template] = {}


def template(*modules: str) -> Template:
    """Return this session's template of these modules, all that recipes need if none are named."""
    modules = modules or (*LIBRARIES, *READERS, *OURS)
    return _templates.setdefault(modules, Template(*modules))


def close() -> None:
    """End all templates."""
    for one in _templates.values():
        one.close()


def launch(count: int, script: Path | str, *argv: Any) -> None:
    """Run a script in `count` processes that know of each other, as torchrun does; `script` may be a recipe's name.

    Raises:
        AssertionError: one failed; with what it said.
    """
    from torch.distributed import TCPStore

    script = script if Path(script).is_file() else RECIPES / f"{script}.py"
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun's agent keeps it
    common = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": 0,
              "OMP_NUM_THREADS": 1}  # fmt: skip
    ranks = []
    for rank in range(count):
        own = {name: str(value) for name, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()}
        ranks.append(template().start(script, *argv, environment=os.environ | own))
    try:
        while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
            time.sleep(0.02)
    finally:
        failed = [number for number, rank in enumerate(ranks) if rank.poll()]
        for rank in ranks if failed else ():
            rank.kill()
    ended = [rank.wait() for rank in ranks]
    assert not failed, "\n".join(f"rank {number}: {ended[number].stderr}" for number in failed)


# Inside the template


def main() -> None:
    """Import what was asked for, then copy this process as often as is asked."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # as ours does; else a test's stderr holds its warning
    for name in sys.argv[1:]:
        importlib.import_module(name)
    alone = threading.active_count() == 1
    gc.collect()
    gc.freeze()  # it stays: no copy need look at it again
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    while line := sys.stdin.readline():
        order = json.loads(line)
        if "pid" in order:
            pid, status = os.waitpid(order["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            assert alone, "a process of several threads can't be copied"
            answer = os.fork()
            if not answer:
                answers.close()
                become(**order)
        print(json.dumps(answer), file=answers, flush=True)


def become(argv: list[str], cwd: str, environment: dict[str, str], streams: str) -> None:
    """Be `python ARGV`, and end as it would but for taking every module apart."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        descriptor = os.open(f"{streams}/{number}", os.O_RDONLY if mode == "r" else os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(descriptor, number)
        os.close(descriptor)
        setattr(sys, name, open(number, mode, closefd=False, buffering=1))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path[:] = [*environment.get("PYTHONPATH", "").split(":"), *sys.path]
    sys.path[:] = [place for place in dict.fromkeys(sys.path) if place]
    try:
        run(argv[1:] if argv[0] == "-P" else argv, safe=argv[0] == "-P")
        code: Any = 0
    except SystemExit as error:
        code = 0 if error.code is None else error.code
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code & 255)


def run(argv: list[str], *, safe: bool) -> None:
    """Run a file, `-m MODULE` or `-c CODE` as `__main__`; a `safe` path (-P) holds no folder of theirs."""
    if argv[0] in ("-c", "-m"):
        kind, what, *rest = argv
        sys.argv = ["-c" if kind == "-c" else what, *rest]
        sys.path[:0] = [] if safe else [""]
        if kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = argv
        sys.path[:0] = [] if safe else [str(Path(argv[0]).parent)]
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
