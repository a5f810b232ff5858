"""What makes the app start in half the time. Import it before anything else that is heavy.

At every import gradio checks type stubs, which only editors read, against the source of each of its components. It
passes over classes without a source file, so for that moment its components have none.
"""

from __future__ import annotations

import gc
import inspect
import os
from typing import Any
from unittest import mock

os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # no process is forked here, which it would warn of
gc.set_threshold(100_000, 50, 100)  # what is loaded stays: looking through it again and again takes a second
_getfile = inspect.getfile


def _no_components(thing: Any) -> str:
    if str(getattr(thing, "__module__", "")).startswith("gradio."):
        raise OSError("not needed now")
    return _getfile(thing)


with mock.patch("inspect.getfile", _no_components):
    import gradio as gr

__all__ = ["gr"]
