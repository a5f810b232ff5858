"""JDOT: optimal transport of source features and labels to the target (Damodaran et al. 2018, arXiv:1803.10081)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from hf_transfer.alignment import Batch
from hf_transfer.errors import UserError
from hf_transfer.methods import Setup

BY_BATCH = True  # it compares the rows of a batch


@dataclass
class Arguments:
    """What moving a label costs."""

    jdot_label_weight: float = field(default=1.0, metadata={"help": "Weight of the labels beside the features."})


class JointDistributionTransport(nn.Module):
    """Cost of the cheapest plan that moves a batch's source rows onto its target rows.

    Moving one costs the mean squared difference of the features, plus `label_weight` times the cross-entropy of the
    source row's label under the target row's prediction.
    """

    def __init__(self, label_weight: float) -> None:
        super().__init__()
        self.label_weight = label_weight

    def forward(self, source: Batch, target: Batch, progress: float) -> torch.Tensor:
        """Return the mean cost a row (scalar); both sides have the same number of rows."""
        assert source.labels is not None
        distances = (source.features.float()[:, None] - target.features.float()[None]).square().mean(-1)
        classes = torch.arange(target.logits.shape[1], device=target.logits.device)
        one_hot = (source.labels[:, None] == classes).float()  # blank rows, labelled -100, cost no label
        cost = distances - self.label_weight * one_hot @ target.logits.float().log_softmax(-1).T
        # between equally many rows of equal weight the optimal plan is a permutation, so that scipy's assignment finds
        # exactly what POT's network simplex would; a cost that is no number is reported by whoever sees the loss
        rows, columns = linear_sum_assignment(cost.detach().nan_to_num().cpu().numpy())
        return cost[rows, columns].mean()


def build(hidden: int, classes: int, args: Arguments, setup: Setup) -> nn.Module:
    """Return the loss; it has no weights.

    Raises:
        UserError: a weight of the labels below 0.
    """
    if not 0 <= args.jdot_label_weight < float("inf"):
        raise UserError(f"--jdot_label_weight is {args.jdot_label_weight}; it must be 0 or more.")
    return JointDistributionTransport(args.jdot_label_weight)
