"""The demo app as a process of its own, for tests."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from conftest import REPOSITORY

DEMO = REPOSITORY / "spaces" / "demo"
START = "running on "


@contextlib.contextmanager
def serving(*command: str, cwd: Path | None = None, environment: dict[str, str] | None = None) -> Iterator[str]:
    """Start a Python command that serves the app, give its address, and end it."""
    with tempfile.TemporaryDirectory() as scratch:
        variables = {**(environment or os.environ), "GRADIO_TEMP_DIR": scratch, "OMP_NUM_THREADS": "1"}
        with (
            (Path(scratch) / "stderr").open("w+") as errors,
            subprocess.Popen([sys.executable, *command], cwd=cwd, env=variables, text=True, stdout=subprocess.PIPE,
                             stderr=errors) as process,
        ):  # fmt: skip
            try:
                assert process.stdout
                line = process.stdout.readline()
                errors.seek(0)
                assert line.startswith(START), f"{line}{errors.read()}"
                yield line.removeprefix(START).split()[0]
                errors.seek(0)
                said = errors.read()
                assert "Traceback" not in said, said
            finally:
                process.terminate()
                process.wait(30)
