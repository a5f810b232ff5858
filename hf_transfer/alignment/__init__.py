"""What ties source to target while training: one file is one alignment, found by its name.

An alignment module has a docstring (its line in `hf-transfer list`), a dataclass `Arguments` (its few flags) and
`build(hidden, classes, args, setup) -> nn.Module`, whose `forward(source: Batch, target: Batch, progress)` is a loss:
least where both are distributed alike, or what the target's own text teaches. Where it is far smaller than a task's,
`WEIGHT` is the default of --alignment_weight; `BY_BATCH` says that it needs batches of many rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from hf_transfer.plugins import load_plugin, plugin_names

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Batch:
    """What an alignment sees of one domain's part of a batch.

    Attributes:
        features: (rows, hidden) what the head's last linear layer reads, with gradients.
        logits: (rows, classes).
        labels: (rows,) class indices; None for the target, whose labels are never seen.
        states: (rows, tokens, hidden) of the target's trunk, with gradients.
        words: (rows, tokens) what was masked in the target's texts, -100 elsewhere; None where nothing was.
    """

    features: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor | None
    states: torch.Tensor | None = None
    words: torch.Tensor | None = None


def names() -> list[str]:
    """Return the names of all alignments."""
    return plugin_names(__path__)


def load(name: str) -> ModuleType:
    """Return the module of alignment `name`.

    Raises:
        UserError: there is no such alignment.
    """
    return load_plugin("alignment", __name__, __path__, name)
