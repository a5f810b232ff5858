"""Prove in a fresh process, without this package, that a folder loads and computes what was recorded at training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from hf_transfer.errors import UserError
from hf_transfer.record import read_recorded
from hf_transfer.results import Run, longest_text

TOLERANCE = 1e-4  # largest difference of a logit
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")


def verify(run: Run, *, merged: Path | None, adapter: Path | None, base: str | None) -> list[str]:
    """Reload what is to be shared, and return what was found good, one line each.

    Args:
        run: whose recorded rows are compared with.
        merged: folder of the complete model, if it is shared.
        adapter: folder of the adapter, if it is shared.
        base: folder or id of the base model that the adapter belongs on.

    Raises:
        UserError: it doesn't load, or logits or label names differ.
    """
    recorded = read_recorded(run)
    job = {
        "texts": [row["text"] for row in recorded],
        "folder": merged and str(merged),
        "adapter": adapter and str(adapter),
        "base": base,
        "label_names": run.label_names,
        "max_length": longest_text(run),
    }
    answer = _reload(job, run)
    wanted = np.array([row["logits"] for row in recorded])
    passed = []
    if merged:
        names = answer["merged"]["label_names"]
        if names != run.label_names:
            raise UserError(f"{run.folder}: its labels are {names} when reloaded, but {run.label_names} were trained; "
                            "make the run again.")  # fmt: skip
        off = _largest_difference(answer["merged"]["logits"], wanted, run, "pipeline()")
        passed.append(f"pipeline() gives the recorded logits of {len(recorded)} rows (largest difference {off:.0e}) "
                      f"and the labels {', '.join(names)}")  # fmt: skip
    if adapter:
        off = _largest_difference(answer["adapter"]["logits"], wanted, run, "the adapter on its base model")
        passed.append(f"the adapter on its base model gives the same logits (largest difference {off:.0e})")
    return passed


def _largest_difference(logits: list[list[float]], wanted: np.ndarray, run: Run, what: str) -> float:
    off = np.abs(np.array(logits) - wanted)
    if not off.max() <= TOLERANCE:  # nan is no pass
        raise UserError(
            f"{run.folder}: {what} gives other logits than were recorded at training (they differ by up to "
            f"{off.max():.1e}, {TOLERANCE:.0e} is allowed); the folder was changed, make the run again."
        )
    return float(off.max())


def _reload(job: dict[str, Any], run: Run) -> dict[str, Any]:
    """Run `reload.py` on `job`, offline and apart from any launcher."""
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCHED and "TORCHELASTIC" not in name}
    environment = kept | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    script = Path(__file__).with_name("reload.py")
    process = subprocess.run(  # -P, not -I: transformers may be in the user's own packages or on PYTHONPATH
        [sys.executable, "-P", str(script)], input=json.dumps(job), env=environment, capture_output=True, text=True
    )
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise UserError(f"{run.folder} can't be loaded by plain transformers ({reason[:160]}); make the run again.")
    return json.loads(process.stdout.splitlines()[-1])
