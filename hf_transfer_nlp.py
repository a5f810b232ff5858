"""The way in of the `hf-transfer` command: PyPI's unrelated `hf_transfer` may hide this package, so look first."""

from __future__ import annotations

import sys


def main() -> None:
    """Start the command, or say which package is in its way."""
    try:
        from hf_transfer.cli import main as start
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("hf_transfer"):
            raise
        print(
            "error: the unrelated package hf_transfer is installed and hides this one; run `pip uninstall hf_transfer` "
            "and then reinstall hf-transfer-nlp.",
            file=sys.stderr,
        )
        sys.exit(2)
    start()
