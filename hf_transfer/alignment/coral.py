"""CORAL: the covariances of source and target features are brought together (Sun and Saenko 2016, arXiv:1607.01719)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hf_transfer.alignment import Batch
from hf_transfer.methods import Setup

BY_BATCH = True  # it compares the rows of a batch
WEIGHT = 100.0  # with hundreds of features between -1 and 1 the loss is about 1e-3, a task's about 0.3


@dataclass
class Arguments:
    """No flags of its own."""


class Coral(nn.Module):
    """Squared Frobenius distance of the covariances, over 4 hidden^2."""

    def forward(self, source: Batch, target: Batch, progress: float) -> torch.Tensor:
        """Return the distance (scalar)."""
        difference = covariance(source.features) - covariance(target.features)
        return difference.square().sum() / (4 * difference.shape[0] ** 2)


def covariance(features: torch.Tensor) -> torch.Tensor:
    """Return the covariance (hidden, hidden) of features (rows, hidden)."""
    centred = features.float() - features.float().mean(0)
    return centred.T @ centred / max(1, len(features) - 1)


def build(hidden: int, classes: int, args: Arguments, setup: Setup) -> nn.Module:
    """Return the loss; it has no weights."""
    return Coral()
