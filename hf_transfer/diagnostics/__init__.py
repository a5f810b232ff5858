"""What separates two domains: one file is one measurement, found by its name.

A diagnostic module has a docstring (its line in `hf-transfer list`) and `measure(source, target, seed) -> Finding`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.errors import listed
from hf_transfer.plugins import load_plugin, plugin_names

if TYPE_CHECKING:
    import pandas as pd

# Rows beside a domain of very many from which "no" is said; of two samples n m / (n + m) count. With so many, labels or
# lengths of which a third lies otherwise are found four times in five (chi-squared, Kolmogorov-Smirnov; p < 0.01).
FEWEST = 30


@dataclass(frozen=True)
class Side:
    """One domain, as diagnostics see it: a sample of its rows.

    Attributes:
        name: of the domain.
        texts: (rows,) of the sample.
        labels: (rows,) label names, or None where it has none.
        facts: of *all* rows of the domain, see `text_facts`; with `label` where there are labels.
        pieces: (rows,) tokens that the model's tokenizer makes of each text, uncut.
        states: (rows, layers + 1, hidden) mean token states, embeddings first.
    """

    name: str
    texts: list[str]
    labels: np.ndarray | None
    facts: pd.DataFrame
    pieces: np.ndarray
    states: np.ndarray


@dataclass(frozen=True)
class Finding:
    """What a diagnostic measured, and what it means.

    Attributes:
        summary: one line for the table.
        advice: one sentence; empty where there is nothing to do.
        apart: whether the domains differ in this, beyond what two samples of one domain would; None where that was not
            measured, can't be told, or is not the question.
        numbers: everything measured, ready for JSON.
        untold: what would be needed to tell; empty where it was told or not measured at all.
        first: sentences that stand before everything else that was found; mostly empty.
        same_meaning: whether the advice harms where the labels mean something else in the target.
    """

    summary: str
    advice: str
    apart: bool | None
    numbers: dict[str, Any] = field(default_factory=dict)
    untold: str = ""
    first: str = ""
    same_meaning: bool = False

    @property
    def answer(self) -> str:
        """The word for the table."""
        if self.apart is None:
            return "can't tell" if self.untold else "-"
        return "yes" if self.apart else "no"


def told(source_rows: int, target_rows: int, *, apart: bool) -> tuple[bool | None, str]:
    """Return `apart` and what would be needed to tell: a difference that so few rows may well hide is not denied."""
    fewer, more = sorted((source_rows, target_rows))
    if apart or fewer * more >= FEWEST * (fewer + more):
        return apart, ""
    if more < 2 * FEWEST:
        return None, f"{2 * FEWEST} rows of each domain ({source_rows} of the source, {target_rows} of the target)"
    side = "source" if source_rows < target_rows else "target"
    return None, f"{math.ceil(FEWEST * more / (more - FEWEST))} rows of the {side} (it has {fewer})"


def labels_unlike(source: Side, target: Side) -> str:
    """Say why both sides' labels can't be compared; empty where they can."""
    if source.labels is None or target.labels is None:
        missing = " and ".join(n for n, s in (("source", source), ("target", target)) if s.labels is None)
        return f"not measured: the {missing} has no labels"
    known = [sorted(map(str, set(labels))) for labels in (source.labels, target.labels)]
    if not set(known[0]) & set(known[1]):
        both = f"{listed(known[0])} / {listed(known[1])}"
        return f"not measured: no label in common ({both}); name them alike in both tables"
    return ""


def names() -> list[str]:
    """Return the names of all diagnostics."""
    return plugin_names(__path__)


def load(name: str) -> ModuleType:
    """Import a diagnostic by its name."""
    return load_plugin("diagnostic", __name__, __path__, name)
