"""What adversarial alignments share: gradient reversal and a domain discriminator (Ganin et al. 2016, JMLR 17:59)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional

WIDTH = 128


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -ctx.factor * gradient, None


def strength(progress: float) -> float:
    """Return the factor of the reversed gradient after a share of the training: from 0 towards 1."""
    return 2 / (1 + math.exp(-10 * progress)) - 1


class Discriminator(nn.Module):
    """Tell source from target by inputs whose gradient is reversed.

    Args:
        size: of the inputs.

    Attributes:
        shown, right: rows, and how many of them it told right, since somebody set both to 0.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(size, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1))
        self.shown = self.right = 0

    def forward(self, source: torch.Tensor, target: torch.Tensor, progress: float) -> torch.Tensor:
        """Return the mean of both domains' cross-entropies (scalar)."""
        scores = [self.layers(_Reverse.apply(one.float(), strength(progress))).squeeze(-1) for one in (source, target)]
        self.shown += len(scores[0]) + len(scores[1])
        self.right += int((scores[0] > 0).sum() + (scores[1] <= 0).sum())
        losses = [functional.binary_cross_entropy_with_logits(one, torch.full_like(one, 1.0 - i))
                  for i, one in enumerate(scores)]  # fmt: skip
        return (losses[0] + losses[1]) / 2
