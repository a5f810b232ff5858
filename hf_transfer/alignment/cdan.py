"""CDAN: like DANN, on features and predicted classes together (Long et al. 2018, arXiv:1705.10667)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hf_transfer.alignment import Batch
from hf_transfer.alignment._adversary import Discriminator
from hf_transfer.methods import Setup

WIDEST = 4096  # outer products beyond this are projected at random, as in the paper


@dataclass
class Arguments:
    """No flags of its own."""


class Cdan(nn.Module):
    """The discriminator's loss on outer products of features and class probabilities."""

    def __init__(self, hidden: int, classes: int) -> None:
        super().__init__()
        size = min(hidden * classes, WIDEST)
        self.discriminator = Discriminator(size)
        self.random = hidden * classes > WIDEST
        if self.random:
            self.register_buffer("of_features", torch.randn(hidden, size))
            self.register_buffer("of_classes", torch.randn(classes, size))

    def joint(self, batch: Batch) -> torch.Tensor:
        """Return features and probabilities as one vector a row."""
        features, shares = batch.features.float(), batch.logits.float().softmax(-1).detach()
        if self.random:
            return (features @ self.of_features) * (shares @ self.of_classes) / self.of_features.shape[1] ** 0.5
        return (features[:, :, None] * shares[:, None]).flatten(1)

    def forward(self, source: Batch, target: Batch, progress: float) -> torch.Tensor:
        """Return the loss (scalar)."""
        return self.discriminator(self.joint(source), self.joint(target), progress)


def build(hidden: int, classes: int, args: Arguments, setup: Setup) -> nn.Module:
    """Return a discriminator of features and classes."""
    return Cdan(hidden, classes)
