"""What brings a source's token states to a target's, for a frozen encoder: one file is one map, found by its name.

A feature-map module has a docstring (its line in `hf-transfer list`) and `fit(source, target) -> FeatureMap`, from the
mean token states of both domains' rows. Maps are affine, so that a head that pools tokens takes them in exactly.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from types import ModuleType

import numpy as np
import torch

from hf_transfer.features import TokenStates, cache_folder
from hf_transfer.plugins import load_plugin, plugin_names

PIECE = 1 << 14  # tokens at a time


@dataclass(frozen=True)
class Affine:
    """x -> x @ matrix + shift.

    Attributes:
        matrix: (hidden, hidden).
        shift: (hidden,).
    """

    matrix: np.ndarray
    shift: np.ndarray


@dataclass(frozen=True)
class FeatureMap:
    """Where the states of both domains go, before a head sees them.

    Attributes:
        source: of the labelled rows, which the head is trained on.
        target: of the rows that it is for, which goes into the exported head; None leaves them as they are.
    """

    source: Affine
    target: Affine | None = None


def names() -> list[str]:
    """Return the names of all feature maps."""
    return plugin_names(__path__)


def load(name: str) -> ModuleType:
    """Return the module of feature map `name`.

    Raises:
        UserError: there is no such feature map.
    """
    return load_plugin("feature map", __name__, __path__, name)


def row_means(states: TokenStates) -> np.ndarray:
    """Return each row's mean token state, (rows, hidden) float32, in the order of `states`."""
    return torch.stack([row.float().mean(0) for row in states.values.split(states.lengths.tolist())]).numpy()


def mapped(states: TokenStates, change: Affine) -> TokenStates:
    """Return `states` under an affine map, in a file of the cache that is gone when they are."""
    matrix, shift = (torch.from_numpy(part).float() for part in (change.matrix, change.shift))
    old = states.values
    with tempfile.NamedTemporaryFile(dir=cache_folder(), prefix="mapped-", suffix=".part") as file:
        new = torch.from_file(file.name, shared=True, size=old.numel(), dtype=old.dtype).view(old.shape)
    for there, here in zip(new.split(PIECE), old.split(PIECE), strict=True):
        there.copy_(here.float() @ matrix + shift)
    return replace(states, values=new)
