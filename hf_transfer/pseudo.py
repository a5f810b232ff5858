"""Pseudo-labels: which target texts a model may be trusted to label, class by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Pseudo:
    """Target rows with the labels that a model gave them.

    Attributes:
        rows: (chosen,) positions in the pool, in order.
        labels: (chosen,) class indices.
        everything: (pool,) the labels of all rows, for comparing rounds.
    """

    rows: np.ndarray
    labels: np.ndarray
    everything: np.ndarray


def most_confident(probabilities: np.ndarray, shares: np.ndarray, fraction: float) -> Pseudo:
    """Choose the most confident rows of each class, as many as its share of `fraction` of the pool.

    Balanced by class, because confidence is not: one class's texts may all be surer than another's (Zou et al. 2018,
    arXiv:1810.07911). Ranks within a class don't change when probabilities are calibrated by one temperature.

    Args:
        probabilities: (pool, classes).
        shares: (classes,) expected of each class, as in the source.
        fraction: of the pool that is chosen.
    """
    labels = probabilities.argmax(1)
    chosen = []
    for label, share in enumerate(shares):
        mine = np.flatnonzero(labels == label)
        count = min(len(mine), round(fraction * share * len(labels)))
        chosen.append(mine[np.argsort(-probabilities[mine, label], kind="stable")[:count]])
    rows = np.sort(np.concatenate(chosen))
    return Pseudo(rows, labels[rows], labels)


def labelled(pool: Dataset, pseudo: Pseudo) -> Dataset:
    """Return the chosen rows of the encoded pool with their pseudo-labels."""
    return pool.select(pseudo.rows).add_column("labels", pseudo.labels.astype(np.int64))
