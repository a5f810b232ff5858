"""What knows the test rows' labels and nothing of their texts: no model may be called a help that is not above it.

The commonest label of the training rows is a control; that of the test rows, which no training could see, may be
another one, and scores more. A reference is no arm: what is said against it is outside any correction for many
comparisons.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_transfer.statistics.metric import OF_LABEL, Metric

COMMONEST, MIX, ALWAYS = "commonest", "mix", "always"


@dataclass(frozen=True)
class Reference:
    """Labels given by chance alone.

    Attributes:
        name: in files.
        words: in tables.
        shares: (classes,) with which each label is given to any row.
        labels: (rows,) the true class indices.
    """

    name: str
    words: str
    shares: np.ndarray
    labels: np.ndarray

    def score(self, metric: Metric) -> float:
        """Return its exact expected score."""
        return metric.guessed(self.shares, np.bincount(self.labels, minlength=len(self.shares)))

    def row_shares(self, metric: Metric) -> np.ndarray:
        """Return each row's share (rows,) in the score, see `Metric.shares`."""
        given = np.flatnonzero(self.shares)
        expected = sum(
            self.shares[label] * metric.statistics(np.full(len(self.labels), label), self.labels) for label in given
        )
        return metric.shares(np.asarray(expected)) - metric.value(np.asarray(expected).sum(axis=0)) + self.score(metric)


def references(labels: np.ndarray, label_names: list[str], metric: Metric, of: str = "target") -> list[Reference]:
    """Return the references of test rows; where one label's F1 counts, giving all rows that label is one more.

    Args:
        labels: (rows,) true class indices.
        label_names: of the classes.
        metric: the one in force.
        of: whose rows they are.
    """
    counts = np.bincount(labels, minlength=len(label_names))
    constants, most = np.eye(len(label_names)), int(counts.argmax())
    out = [
        Reference(COMMONEST, f"commonest label of the {of} ({label_names[most]})", constants[most], labels),
        Reference(MIX, f"labels by the {of}'s own mix", counts / counts.sum(), labels),
    ]
    if metric.name.startswith(OF_LABEL):
        label = metric.name.removeprefix(OF_LABEL)
        out.append(Reference(ALWAYS, f"{label} for every text", constants[label_names.index(label)], labels))
    return out
