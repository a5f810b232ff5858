"""A score of many rows: statistics of each row, and a function of their sums.

Accuracy is (right, 1) and their ratio; F1 of a label (true positives, predicted + true) and twice their ratio. Then the
score, its bootstrap, a paired difference and a score on part of the rows are one code for all metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_transfer.errors import UserError, listed, nearest

NAMES = ("accuracy", "macro_f1", "balanced_accuracy")
OF_LABEL = "f1:"  # before a label's name: F1 of that label alone
COMMONEST = 0.6  # share of the commonest label above which accuracy says little
STEP = 1e-5  # of a sum, by which the slope of a score is taken


@dataclass(frozen=True)
class Metric:
    """A score, higher is better, from 0 to 1.

    Attributes:
        name: in flags and files.
        title: in tables.
        label_names: of the classes.
        statistics: class indices answered (rows,), true ones (rows,) -> (rows, k), none below 0.
        value: sums of statistics (..., k) -> scores (...).
        guessed: shares of labels (classes,), rows of each label (classes,) -> the exact expected score where each row
            is given a label drawn by the shares.
    """

    name: str
    title: str
    label_names: list[str]
    statistics: Callable[[np.ndarray, np.ndarray], np.ndarray]
    value: Callable[[np.ndarray], np.ndarray]
    guessed: Callable[[np.ndarray, np.ndarray], float]

    def score(self, answers: np.ndarray, references: np.ndarray) -> float:
        """Return the score of class indices (rows,)."""
        return float(self.value(self.statistics(answers, references).sum(axis=0)))

    def shares(self, statistics: np.ndarray) -> np.ndarray:
        """Return each row's share in the score: their mean is the score, and varies over samples as the score does.

        The infinitesimal jackknife (Efron 1982): the score, plus the rows' pull on it.

        Args:
            statistics: (rows, k).
        """
        sums, rows = statistics.sum(axis=0), len(statistics)
        moved = np.flatnonzero(sums > 0)  # without any rows there is none to pull
        steps = np.zeros((len(moved), len(sums)))
        steps[np.arange(len(moved)), moved] = STEP * sums[moved]
        slope = (self.value(sums + steps) - self.value(sums - steps)) / (2 * STEP * sums[moved])
        pull = statistics[:, moved] @ slope
        return float(self.value(sums)) + rows * (pull - pull.mean())


def load(name: str, label_names: list[str]) -> Metric:
    """Return a metric by its name, for class indices into `label_names`.

    Raises:
        UserError: there is no such metric, or no such label.
    """
    check_name(name)
    classes = len(label_names)
    if name.startswith(OF_LABEL):
        label = name.removeprefix(OF_LABEL)
        if label not in label_names:
            raise UserError(f"--metric {name}: there is no label '{label}'{nearest(label, label_names)}; the labels "
                            f"are {listed(label_names)}.")  # fmt: skip
        return _f1(name, label_names, [label_names.index(label)])
    if name == "macro_f1":
        return _f1(name, label_names, list(range(classes)))
    if name == "balanced_accuracy":
        return Metric(
            name, title(name), label_names,
            lambda answers, true: np.concatenate([_found(answers, true, range(classes)), _is(true, range(classes))], 1),
            lambda sums: _mean_of_present(*np.split(sums, 2, axis=-1)),
            lambda shares, counts: float(shares[counts > 0].mean()),
        )  # fmt: skip
    return Metric(
        name, title(name), label_names,
        lambda answers, true: np.stack([answers == true, np.ones(len(true))], axis=1).astype(float),
        lambda sums: sums[..., 0] / np.maximum(sums[..., 1], 1e-12),
        lambda shares, counts: float(shares @ counts / counts.sum()),
    )  # fmt: skip


def check_name(name: str) -> None:
    """Check a metric's name, as far as that can be done without labels.

    Raises:
        UserError: there is none of that name.
    """
    if name not in NAMES and not (name.startswith(OF_LABEL) and len(name) > len(OF_LABEL)):
        raise UserError(f"--metric is '{name}'{nearest(name, NAMES)}; use {', '.join(NAMES)}, or f1:LABEL with the "
                        "name of a label.")  # fmt: skip


def fitting(labels: Mapping[str, int], whose: str) -> tuple[str, str]:
    """Return the metric that fits a mix of labels, and why: accuracy, unless one label has most of the rows.

    Args:
        labels: name -> rows.
        whose: rows they are, in words.
    """
    most = max(labels, key=lambda name: labels[name])
    share = labels[most] / max(1, sum(labels.values()))
    return ("accuracy" if share <= COMMONEST else "macro_f1"), f"{share:.0%} of the {whose} rows are '{most}'"


def title(name: str) -> str:
    """Return a metric's name as tables have it."""
    if name.startswith(OF_LABEL):
        return f"F1 of {name.removeprefix(OF_LABEL)}"
    return "macro-F1" if name == "macro_f1" else name.replace("_", " ")


def of(scores: Mapping[str, Any], name: str) -> float:
    """Return the metric called `name` of scores as run.json has them."""
    if name.startswith(OF_LABEL):
        return float(scores["per_class"][name.removeprefix(OF_LABEL)]["f1"])
    return float(scores[name])


def _is(classes: np.ndarray, which: Any) -> np.ndarray:
    return (classes[:, None] == np.array(list(which))).astype(float)


def _found(answers: np.ndarray, true: np.ndarray, which: Any) -> np.ndarray:
    return _is(answers, which) * _is(true, which)


def _mean_of_present(found: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Return the mean of found / present over what is present; 0 where nothing is."""
    ratio = np.divide(found, present, out=np.zeros(np.broadcast(found, present).shape), where=present > 0)
    return ratio.sum(axis=-1) / np.maximum((present > 0).sum(axis=-1), 1)


def _f1(name: str, label_names: list[str], which: list[int]) -> Metric:
    """Return the mean F1 of the labels `which`; one that neither occurs nor is predicted does not count."""

    def guessed(shares: np.ndarray, counts: np.ndarray) -> float:
        there = [label for label in which if counts[label] or shares[label]]
        rows = int(counts.sum())
        return float(np.mean([_guessed_f1(shares[label], int(counts[label]), rows) for label in there] or [0.0]))

    return Metric(
        name, title(name), label_names,
        lambda answers, true: np.concatenate([_found(answers, true, which), _is(answers, which) + _is(true, which)], 1),
        lambda sums: _mean_of_present(2 * sums[..., : len(which)], sums[..., len(which) :]),
        guessed,
    )  # fmt: skip


def _guessed_f1(share: float, true: int, rows: int) -> float:
    """Return the expected F1 of a label that each row is given with a chance of `share`.

    Of so many rows given it, a `true / rows` part has it, on average; how many are given it is binomial.
    """
    from scipy.stats import binom

    low, high = binom.interval(1 - 1e-12, rows, share)
    given = np.arange(int(low), int(high) + 1)
    f1 = 2 * given * (true / rows) / np.maximum(given + true, 1)
    return float(binom.pmf(given, rows, share) @ f1)
