"""What says which of several runs fits a target best, without its labels: one file is one score, found by its name.

A score's module has a docstring (its line in `hf-transfer list`), `HIGHER` (whether higher is better), `PERCENT`
(whether it is a share of right rows) and `measure(candidate, seed) -> Score`.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from hf_transfer.held_out import HeldOut
from hf_transfer.plugins import load_plugin, plugin_names

NEARLY_ALL = 0.98  # of the pool in one class: a collapse, unless the others are nearly as rare in the source:
RARER = 4.0  # times rarer than there is a collapse again


@dataclass(frozen=True)
class Candidate:
    """One run on one target, as scores see it.

    Attributes:
        probabilities: (pool, classes) of the target's unlabelled texts.
        texts: (pool,) those texts.
        held_out: source rows; without `texts` where the run's data can't be read again, or no rows.
        others: (runs, pool) what the other runs that have not collapsed predict, as class indices.
    """

    probabilities: np.ndarray
    texts: tuple[str, ...]
    held_out: HeldOut
    others: np.ndarray


@dataclass(frozen=True)
class Score:
    """A measured score.

    Attributes:
        value: None where the run lacks what it takes.
        note: what the user should know of it; mostly empty.
    """

    value: float | None
    note: str = ""


def names() -> list[str]:
    """Return the names of all scores."""
    return plugin_names(__path__)


def load(name: str) -> ModuleType:
    """Import a score by its name."""
    return load_plugin("label-free score", __name__, __path__, name)


def collapsed(probabilities: np.ndarray, known: HeldOut) -> int | None:
    """Return the class that nearly all rows get, if there is one.

    Args:
        probabilities: (pool, classes) of the target.
        known: the source rows that the run held out.
    """
    shares = np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1]) / len(probabilities)
    label = int(shares.argmax())
    rare = float((known.labels != label).mean()) / RARER if len(known.labels) else 1.0
    return label if 1 - shares[label] <= min(1 - NEARLY_ALL, rare) else None
