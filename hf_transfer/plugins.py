"""A file's name is its registration: find the modules of a package by name."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from hf_transfer.errors import UserError, nearest


def plugin_names(paths: Iterable[str]) -> list[str]:
    """Return the public module names under `paths`, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(list(paths)) if not module.name.startswith("_"))


def load_plugin(kind: str, package: str, paths: Iterable[str], name: str) -> ModuleType:
    """Import module `name` of `package`.

    Raises:
        UserError: there is none of that name; names the nearest.
    """
    known = plugin_names(paths)
    if name not in known:
        raise UserError(f"there is no {kind} '{name}'{nearest(name, known)}; there are: {', '.join(known)}.")
    return importlib.import_module(f"{package}.{name}")


def first_line(file: Path) -> str:
    """Return the first line of a Python file's docstring without importing it."""
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return doc.splitlines()[0] if doc else ""
