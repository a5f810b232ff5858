"""Try, check and compare runs in a browser: the app that a Space shows, on this machine."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path
from typing import Any

from hf_transfer.errors import UserError
from hf_transfer.results import load_run


def demo_folder() -> Path:
    """Return where the app is: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "spaces" / "demo"
    return inside if inside.is_dir() else package.parent / "spaces" / "demo"


def demo_part(name: str) -> dict[str, Any]:
    """Return what file `name` of the app defines, which can't import this package, nor be imported from it."""
    folder = demo_folder()
    sys.path.insert(0, str(folder))  # its files import each other by their bare names
    try:
        return runpy.run_path(str(folder / f"{name}.py"))
    finally:
        sys.path.remove(str(folder))


def run_demo(folders: list[str], *, port: int | None = None, mcp: bool = False, corrections: str | None = None) -> None:
    """Serve the demo of the runs in `folders` on 127.0.0.1 until interrupted.

    Args:
        folders: one run, or several to compare.
        port: to serve on; the first free one from 7860 by default.
        mcp: serve the endpoints as tools for language models, too.
        corrections: a file that users' corrections are appended to, or `dataset:name/of-it`; off by default.

    Raises:
        UserError: a folder holds no finished run, or a package is missing.
    """
    if not folders:
        raise UserError("no run is given; give the --output_dir of one or more runs.")
    for folder in folders:
        load_run(folder)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the demo needs gradio; run: pip install 'hf-transfer-nlp[demo]'.")
    app = demo_folder() / "app.py"
    flags = [] if port is None else ["--port", str(port)]
    flags += ["--mcp"] if mcp else []
    flags += ["--corrections", corrections] if corrections else []
    sys.argv = [str(app), *flags, "--", *folders]
    sys.path.insert(0, str(app.parent))
    try:
        runpy.run_path(str(app), run_name="__main__")
    except KeyboardInterrupt:  # while it was starting; later it ends by itself
        sys.exit(130)
