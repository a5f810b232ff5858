"""What may be said of a difference between two scores on the same rows: its interval, its p, and one word.

Over rows, the standard error is that of the paired bootstrap, which for means needs no resampling; other scores than
means are linearised first (`Metric.shares`). Over seeds nothing is resampled, three are too few: where seeds move
accuracy by 1 or 2 points, percentiles of a bootstrap over seeds and rows hold the truth in 91 or 83 instead of 95 % of
cases (benchmarks/false_alarms.py). The spread over seeds comes with Student's quantiles instead.

One made-up row won by each side is added to every comparison (Bonett and Price 2012; for unpaired ones Agresti and
Caffo 2000): otherwise two arms that agree on five rows would be equal without any doubt.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.special

ERROR = 0.05  # chance that any word of a family says more than it should
POWER = 0.8
LEAST_P = 1e-9  # smaller ones are not told apart
HELP = ("hurts", "no difference shown", "helps")


@dataclass(frozen=True)
class Effect:
    """A difference and what may be said of it; scores are shares, not per cent.

    Attributes:
        value: the difference observed.
        low, high: its 95 % interval.
        corrected_low, corrected_high: its interval at the level at which Holm's procedure tested it among its family
            (where the procedure stopped: at the level of that step).
        p: two-sided; below a level just where the interval of that level leaves 0 out.
        corrected_p: Holm's.
        word: for a corrected interval below 0, around it, above it.
        detectable: the least true difference that would have been shown in 80 % of such tests.
    """

    value: float
    low: float
    high: float
    corrected_low: float
    corrected_high: float
    p: float
    corrected_p: float
    word: str
    detectable: float


@dataclass(frozen=True)
class Difference:
    """A difference of means, and where its error comes from.

    Attributes:
        value: as observed.
        centre: of its intervals, with the added rows.
        parts: variance and degrees of freedom of each independent source of error.
    """

    value: float
    centre: float
    parts: tuple[tuple[float, float], ...]

    def reach(self, level: float) -> float:
        """Half the width of the interval that leaves out `level`: the parts' widths, squared and added (Howe 1974)."""
        return math.sqrt(sum(v * float(scipy.special.stdtrit(freedom, level / 2)) ** 2 for v, freedom in self.parts))

    def bounds(self, level: float = ERROR) -> tuple[float, float]:
        """Return the interval that leaves out `level`."""
        return max(self.centre - self.reach(level), -1.0), min(self.centre + self.reach(level), 1.0)

    @property
    def p(self) -> float:
        """The level whose interval ends at 0."""
        if abs(self.centre) >= self.reach(LEAST_P):
            return LEAST_P
        return float(scipy.optimize.brentq(lambda level: self.reach(level) - abs(self.centre), LEAST_P, 1.0))


@dataclass(frozen=True)
class Scores:
    """A score of several candidates on the same rows.

    Attributes:
        by_row: candidate -> (rows,) each row's share in the score, which is their mean; averaged over seeds.
        seeds: candidate -> variance of the score that comes from its seeds; without those that have none.
        freedom: degrees of freedom of these variances.
        strata: (rows,) label of each row. One label's rows may move a score more than all others together, and then
            its variance is known from them alone.
    """

    by_row: dict[str, np.ndarray]
    seeds: dict[str, float]
    freedom: int
    strata: np.ndarray

    def alone(self, one: str) -> Difference:
        """Return the score of `one` itself: its difference to 0, with one row that it has right and one that not."""
        return self._difference(self.by_row[one], (0.0, 1.0), self.seeds.get(one, 0.0))

    def minus(self, one: str, other: str) -> Difference:
        """Return `one` minus `other`."""
        difference = self.by_row[one] - self.by_row[other]
        return self._difference(difference, (1.0, -1.0), self.seeds.get(one, 0.0) + self.seeds.get(other, 0.0))

    def _difference(self, values: np.ndarray, added: tuple[float, float], seeds: float) -> Difference:
        rows = np.append(values, added)
        parts = [(float(rows.var(ddof=1) / len(rows)), _freedom(rows, self.strata))]
        return Difference(
            float(values.mean()), float(rows.mean()), (*parts, *([(seeds, self.freedom)] if seeds else []))
        )


def _freedom(rows: np.ndarray, strata: np.ndarray) -> float:
    """Return the degrees of freedom of the variance of `rows`: Welch and Satterthwaite's (1947), by label.

    Args:
        rows: (rows + 2,) values, the made-up rows last; they count with the commonest label's.
        strata: (rows,) labels.
    """
    where = np.append(strata, np.full(2, np.bincount(strata).argmax()))
    squares = np.bincount(where, weights=(rows - rows.mean()) ** 2)
    freedom = np.maximum(np.bincount(where) - 1, 1)
    return float(squares.sum() ** 2 / (squares**2 / freedom).sum()) if squares.any() else len(rows) - 1.0


def scores_of(shares: dict[str, np.ndarray], strata: np.ndarray, once: Collection[str] = ()) -> Scores:
    """Return the scores of candidates, given each one's shares in it.

    A few seeds tell little about how far seeds move a candidate. They count as moving it at least as far as the average
    candidate: a spread that is small by chance would otherwise make effects of nothing. So do those trained `once`.

    Args:
        shares: candidate -> (seeds, rows).
        strata: (rows,) class indices.
        once: candidates that another seed would have moved, too.
    """
    several = {name: values for name, values in shares.items() if np.ptp(values, axis=0).any()}
    spread = {name: _seed_variance(values) for name, values in several.items()}
    common = max(0.0, float(np.mean(list(spread.values())))) if spread else 0.0
    return Scores(
        by_row={name: values.mean(axis=0) for name, values in shares.items()},
        seeds={name: max(spread.get(name, 0.0), common) / len(shares[name]) for name in {*several, *once} if several},
        freedom=sum(len(values) - 1 for values in several.values()),
        strata=strata,
    )


def _seed_variance(values: np.ndarray) -> float:
    """Return the variance over seeds of the score on ever more rows: that on these rows without their share in it."""
    seeds, rows = values.shape
    by_seed = values.mean(axis=1, keepdims=True)
    rest = values - values.mean(axis=0) - by_seed + values.mean()
    noise = (rest**2).sum() / ((seeds - 1) * max(rows - 1, 1) * rows)
    return float(by_seed.var(ddof=1) - noise)


def effects(differences: list[Difference], words: tuple[str, str, str] = HELP) -> list[Effect]:
    """Return what may be said of a family of differences: Holm's (1979) procedure, step by step with intervals."""
    p = [difference.p for difference in differences]
    out: dict[int, Effect] = {}
    corrected_p, level, going = 0.0, ERROR, True
    for step, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        left = len(p) - step
        level = ERROR / left if going else level
        low, high = differences[i].bounds(level)
        going = going and not low <= 0 <= high
        corrected_p = max(corrected_p, min(1.0, left * p[i]))
        out[i] = Effect(
            differences[i].value, *differences[i].bounds(ERROR), low, high, p[i], corrected_p,
            words[1 + (low > 0) - (high < 0)], differences[i].reach(level) + differences[i].reach(2 * (1 - POWER)),
        )  # fmt: skip
    return [out[i] for i in range(len(p))]


def paired(one: np.ndarray, other: np.ndarray, labels: np.ndarray) -> Effect:
    """Return what may be said of the difference of two scores by itself.

    Args:
        one: (rows,) shares in the first score.
        other: likewise in the second, of the same rows.
        labels: (rows,) true class indices.
    """
    scores = scores_of({"one": one[None], "other": other[None]}, labels)
    return effects([scores.minus("one", "other")])[0]


def conflict(accuracy: dict[str, float], macro_f1: dict[str, float]) -> bool:
    """Whether both intervals (`low`, `high`) leave 0 out, on opposite sides."""
    signs = [(one["low"] > 0) - (one["high"] < 0) for one in (accuracy, macro_f1)]
    return signs[0] * signs[1] < 0
