"""hf_transfer: adapt a pretrained language model to a new domain or task, and know whether it helped.

Public names load on first use, so ``import hf_transfer`` is cheap.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

__version__ = "0.1.0"

# where it is installed, it says on some processors at every start that a kernel is missing which nothing here needs
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_PUBLIC = {
    "Run": "results",
    "load_data": "data",
    "load_model": "models",
    "load_run": "results",
    "parse": "arguments",
    "predict_logits": "inference",
    "predict_rows": "predict",
    "write_report": "report",
    "UserError": "errors",
}
__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'hf_transfer' has no attribute '{name}'")
    return getattr(importlib.import_module(f"hf_transfer.{_PUBLIC[name]}"), name)
