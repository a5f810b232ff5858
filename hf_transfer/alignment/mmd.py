"""MMD: the mean embeddings of source and target in several Gaussian kernels (Long et al. 2015, arXiv:1502.02791)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from hf_transfer.alignment import Batch
from hf_transfer.methods import Setup

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)  # times the mean squared distance

BY_BATCH = True  # it compares the rows of a batch
WEIGHT = 0.1  # as for dann


@dataclass
class Arguments:
    """No flags of its own."""


class MaximumMeanDiscrepancy(nn.Module):
    """Biased squared MMD, so that it is never below 0, under the sum of five kernels."""

    def forward(self, source: Batch, target: Batch, progress: float) -> torch.Tensor:
        """Return the discrepancy (scalar)."""
        m, both = len(source.features), torch.cat([source.features, target.features]).float()
        distances = (both[:, None] - both[None]).square().sum(-1)
        width = distances.detach().sum() / max(1, len(both) ** 2 - len(both))
        kernel = sum(torch.exp(-distances / (factor * width).clamp_min(1e-12)) for factor in WIDTHS)
        assert isinstance(kernel, torch.Tensor)
        return kernel[:m, :m].mean() + kernel[m:, m:].mean() - 2 * kernel[:m, m:].mean()


def build(hidden: int, classes: int, args: Arguments, setup: Setup) -> nn.Module:
    """Return the loss; it has no weights."""
    return MaximumMeanDiscrepancy()
