"""Seconds and peak memory of a run, and what it ran on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

INTERVAL = 0.05


class Meter:
    """Measure stages by name and sample this process's resident memory in the background while in use.

    Attributes:
        seconds: stage -> wall-clock seconds.
        peak_memory: bytes, the largest resident size seen.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_memory = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a `with` block to stage `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)

    def _watch(self) -> None:
        import psutil

        process = psutil.Process()
        while True:
            self.peak_memory = max(self.peak_memory, process.memory_info().rss)
            if self._stop.wait(INTERVAL):
                return


def hardware() -> str:
    """Return what computes, in words: the accelerator or the processor, and the number of cores in use."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    name = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} CPU cores ({name})"


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    packages = ("hf-transfer-nlp", "torch", "transformers", "peft", "accelerate", "datasets", "scikit-learn")
    found = {name: importlib.metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **found}
