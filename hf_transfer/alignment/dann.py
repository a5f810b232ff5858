"""DANN: features that a discriminator can't tell apart by domain (Ganin et al. 2016, JMLR 17:59)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hf_transfer.alignment import Batch
from hf_transfer.alignment._adversary import Discriminator
from hf_transfer.methods import Setup


@dataclass
class Arguments:
    """No flags of its own."""


class Dann(nn.Module):
    """The discriminator's loss on features, whose gradient is reversed on its way to the encoder."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.discriminator = Discriminator(hidden)

    def forward(self, source: Batch, target: Batch, progress: float) -> torch.Tensor:
        """Return the loss (scalar)."""
        return self.discriminator(source.features, target.features, progress)


def build(hidden: int, classes: int, args: Arguments, setup: Setup) -> nn.Module:
    """Return a discriminator of features."""
    return Dann(hidden)
