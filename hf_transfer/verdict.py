"""What test rows show: does an arm help against its controls, what did it forget, which rows does it fail on.

Every statement is about a difference of two means, with an interval. Over rows, the standard error is that of the
paired bootstrap, which for means needs no resampling; macro-F1 is linearised first (the infinitesimal jackknife, Efron
1982). Over seeds nothing is resampled, three are too few: where seeds move accuracy by 1 or 2 points, percentiles of a
bootstrap over seeds and rows hold the truth in 91 or 83 instead of 95 % of cases (benchmarks/false_alarms.py). The
spread over seeds comes with Student's quantiles instead.

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
MEMORY = ("forgotten", "no loss shown", "better than before")
GAP = ("worse than the rest", "no gap shown", "better than the rest")


@dataclass(frozen=True)
class Candidate:
    """An arm or a control, tested on the same rows as all others.

    Attributes:
        name: of the arm, no other's.
        predictions: (seeds, rows) class indices; one seed where training has none, or was done once: then words are
            about that one model, not about all that another seed might have given.
        seconds: what it cost.
        megabytes: its size, which decides between equal seconds.
        seeded: whether another seed might have given another one; with one seed alone beside others that have several,
            it is taken to vary as they do.
        control: whether arms have to beat it to be called a help, and it may be recommended where none does.
    """

    name: str
    predictions: np.ndarray
    seconds: float
    megabytes: float
    control: bool = False
    seeded: bool = False


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
class Comparison:
    """An arm against a control.

    Attributes:
        arm, control: their names.
        accuracy: what the words are about.
        macro_f1: `value`, `low` and `high` (95 %) of the difference in macro-F1.
        disagreement: share of rows that one of them has right and the other wrong.
    """

    arm: str
    control: str
    accuracy: Effect
    macro_f1: dict[str, float]
    disagreement: float


@dataclass(frozen=True)
class Verdict:
    """What to do.

    Attributes:
        comparisons: every arm with every control, one family.
        helping: arms shown to help against every control that they are compared with.
        adapt: whether there are any; if not: do nothing.
        recommended: the cheapest of them that is not shown worse than the best of them; without any, the cheapest
            control that is not shown worse than the best control.
    """

    comparisons: list[Comparison]
    helping: list[str]
    adapt: bool
    recommended: str


@dataclass(frozen=True)
class Part:
    """Accuracy on part of the rows, beside another one.

    Attributes:
        name: of the part; empty for all rows.
        rows: how many.
        accuracy: on them.
        other: accuracy before training, or on all other rows.
        difference: accuracy minus other.
    """

    name: str
    rows: int
    accuracy: float
    other: float
    difference: Effect


def judge(candidates: list[Candidate], labels: np.ndarray, against: dict[str, list[str]] | None = None) -> Verdict:
    """Compare every arm with every control and recommend one.

    Args:
        candidates: at least one arm and one control.
        labels: (rows,) class indices.
        against: arm -> whom it is compared with; all controls by default. Arms may be among them: what an adaptation
            is measured by is itself measured by the controls.

    Raises:
        ValueError: arms or controls are missing.
    """
    by_name = {one.name: one for one in candidates}
    controls = [one for one in candidates if one.control]
    if against is None:
        against = {one.name: [other.name for other in controls] for one in candidates if not one.control}
    pairs = [(arm, control) for arm, wanted in against.items() for control in wanted]
    if not pairs:
        raise ValueError(f"a verdict needs arms and controls, got {len(against)} and {len(controls)}")
    once = {one.name for one in candidates if one.seeded and len(one.predictions) == 1}
    right = _scores({one.name: (one.predictions == labels).astype(float) for one in candidates}, once)
    f1 = _scores({one.name: _f1_shares(one.predictions, labels) for one in candidates}, once)
    comparisons = []
    for (arm, control), effect in zip(pairs, _effects([right.minus(*pair) for pair in pairs], HELP), strict=True):
        f1_difference = f1.minus(arm, control)
        low, high = f1_difference.bounds(ERROR)
        one, other = right.by_row[arm], right.by_row[control]
        comparisons.append(Comparison(
            arm, control, effect, {"value": f1_difference.value, "low": low, "high": high},
            float((one * (1 - other) + other * (1 - one)).mean()),
        ))  # fmt: skip
    in_doubt = {one.arm for one in comparisons
                if by_name[one.control].control and one.accuracy.corrected_low <= 0}  # fmt: skip
    helping = [by_name[arm] for arm in against if arm not in in_doubt]
    return Verdict(comparisons, [arm.name for arm in helping], bool(helping), _cheapest(helping or controls, right))


def scores(candidates: list[Candidate], labels: np.ndarray) -> dict[str, tuple[float, float, float]]:
    """Return each candidate's accuracy with its 95 % interval, over rows and over seeds where there are several."""
    once = {one.name for one in candidates if one.seeded and len(one.predictions) == 1}
    right = _scores({one.name: (one.predictions == labels).astype(float) for one in candidates}, once)
    found = {one.name: right.alone(one.name) for one in candidates}
    return {name: (one.value, max(0.0, one.bounds(ERROR)[0]), one.bounds(ERROR)[1]) for name, one in found.items()}


def forgetting(before: np.ndarray, after: np.ndarray, labels: np.ndarray, label_names: list[str]) -> list[Part]:
    """Compare accuracy on the source's test rows before and after: on all rows, then on those of each label.

    The labels are one family.

    Args:
        before: (seeds, rows) predictions; one seed where there was none.
        after: likewise.
        labels: (rows,) class indices.
        label_names: one a class; those without rows are left out.
    """
    groups = {"": np.ones(len(labels), dtype=bool)} | {name: labels == index for index, name in enumerate(label_names)}
    groups = {name: inside for name, inside in groups.items() if inside.any()}
    scores = {name: [(side == labels)[:, inside].astype(float) for side in (before, after)]
              for name, inside in groups.items()}  # fmt: skip
    changes = [_scores(dict(zip(("before", "after"), pair, strict=True))).minus("after", "before")
               for pair in scores.values()]  # fmt: skip
    effects = _effects(changes[:1], MEMORY) + _effects(changes[1:], MEMORY)
    return [Part(name, int(inside.sum()), float(scores[name][1].mean()), float(scores[name][0].mean()), effect)
            for (name, inside), effect in zip(groups.items(), effects, strict=True)]  # fmt: skip


def gaps(right: np.ndarray, slices: dict[str, np.ndarray]) -> list[Part]:
    """Compare accuracy on each slice with that on all other rows: those shown to be worse first, then by difference.

    Args:
        right: (rows,) whether one model labelled each correctly.
        slices: name -> (rows,) True inside; slices without rows, or without other rows, are left out.
    """
    sides = {name: (right[inside].astype(float), right[~inside].astype(float)) for name, inside in slices.items()
             if inside.any() and not inside.all()}  # fmt: skip
    differences = []
    for pair in sides.values():
        filled = [np.append(side, (0.0, 1.0)) for side in pair]
        differences.append(_Difference(
            value=float(pair[0].mean() - pair[1].mean()),
            centre=float(filled[0].mean() - filled[1].mean()),
            parts=tuple((float(side.var() / len(side)), len(side) - 1) for side in filled),
        ))  # fmt: skip
    effects = _effects(differences, GAP)
    found = [Part(name, len(inside), float(inside.mean()), float(rest.mean()), effect)
             for (name, (inside, rest)), effect in zip(sides.items(), effects, strict=True)]  # fmt: skip
    return sorted(found, key=lambda part: (part.difference.corrected_high >= 0, part.difference.value))


@dataclass(frozen=True)
class _Difference:
    """A difference of means, and where its error comes from.

    Attributes:
        value: as observed.
        centre: of its intervals, with the added rows.
        parts: variance and degrees of freedom of each independent source of error.
    """

    value: float
    centre: float
    parts: tuple[tuple[float, int], ...]

    def reach(self, level: float) -> float:
        """Half the width of the interval that leaves out `level`: the parts' widths, squared and added (Howe 1974)."""
        return math.sqrt(sum(v * float(scipy.special.stdtrit(freedom, level / 2)) ** 2 for v, freedom in self.parts))

    def bounds(self, level: float) -> tuple[float, float]:
        return max(self.centre - self.reach(level), -1.0), min(self.centre + self.reach(level), 1.0)

    @property
    def p(self) -> float:
        """The level whose interval ends at 0."""
        if abs(self.centre) >= self.reach(LEAST_P):
            return LEAST_P
        return float(scipy.optimize.brentq(lambda level: self.reach(level) - abs(self.centre), LEAST_P, 1.0))


@dataclass(frozen=True)
class _Scores:
    """A score of several candidates.

    Attributes:
        by_row: candidate -> (rows,) each row's share in the score, which is their mean; averaged over seeds.
        seeds: candidate -> variance of the score that comes from its seeds; without those that have none.
        freedom: degrees of freedom of these variances.
    """

    by_row: dict[str, np.ndarray]
    seeds: dict[str, float]
    freedom: int

    def alone(self, one: str) -> _Difference:
        """Return the score of `one` itself: its difference to 0, with one row that it has right and one that not."""
        rows = np.append(self.by_row[one], (0.0, 1.0))
        parts = [(float(rows.var(ddof=1) / len(rows)), len(rows) - 1)]
        if seeds := self.seeds.get(one, 0.0):
            parts.append((seeds, self.freedom))
        return _Difference(float(self.by_row[one].mean()), float(rows.mean()), tuple(parts))

    def minus(self, one: str, other: str) -> _Difference:
        """Return `one` minus `other`."""
        difference = self.by_row[one] - self.by_row[other]
        rows = np.append(difference, (1.0, -1.0))
        parts = [(float(rows.var(ddof=1) / len(rows)), len(rows) - 1)]
        if seeds := self.seeds.get(one, 0.0) + self.seeds.get(other, 0.0):
            parts.append((seeds, self.freedom))
        return _Difference(float(difference.mean()), float(rows.mean()), tuple(parts))


def _scores(shares: dict[str, np.ndarray], once: Collection[str] = ()) -> _Scores:
    """Return the scores of candidates, given each one's (seeds, rows) shares in it.

    A few seeds tell little about how far seeds move a candidate. They count as moving it at least as far as the average
    candidate: a spread that is small by chance would otherwise make effects of nothing. So do those trained `once`.
    """
    several = {name: values for name, values in shares.items() if np.ptp(values, axis=0).any()}
    spread = {name: _seed_variance(values) for name, values in several.items()}
    common = max(0.0, float(np.mean(list(spread.values())))) if spread else 0.0
    return _Scores(
        by_row={name: values.mean(axis=0) for name, values in shares.items()},
        seeds={name: max(spread.get(name, 0.0), common) / len(shares[name]) for name in {*several, *once} if several},
        freedom=sum(len(values) - 1 for values in several.values()),
    )


def _seed_variance(values: np.ndarray) -> float:
    """Return the variance over seeds of the score on ever more rows: that on these rows without their share in it."""
    seeds, rows = values.shape
    by_seed = values.mean(axis=1, keepdims=True)
    rest = values - values.mean(axis=0) - by_seed + values.mean()
    noise = (rest**2).sum() / ((seeds - 1) * max(rows - 1, 1) * rows)
    return float(by_seed.var(ddof=1) - noise)


def _f1_shares(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return each row's share (seeds, rows) in macro-F1: their mean is macro-F1, and varies over samples as it does."""
    out = np.empty(predictions.shape)
    classes = 1 + int(max(predictions.max(), labels.max()))
    for seed, predicted in enumerate(predictions):
        right = predicted == labels
        total = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
        f1 = 2 * np.bincount(labels[right], minlength=classes) / np.maximum(total, 1)
        weight = len(labels) / np.maximum(total, 1)
        pull = 2 * right * weight[labels] - (f1 * weight)[labels] - (f1 * weight)[predicted]
        out[seed] = (f1.sum() + pull) / (total > 0).sum()
    return out


def _effects(differences: list[_Difference], words: tuple[str, str, str]) -> list[Effect]:
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


def _cheapest(candidates: list[Candidate], right: _Scores) -> str:
    """Return the cheapest candidate that is not shown worse than the best one."""
    best = max(candidates, key=lambda one: right.by_row[one.name].mean())
    others = [one for one in candidates if one is not best]
    effects = _effects([right.minus(one.name, best.name) for one in others], HELP)
    unbeaten = [one for one, effect in zip(others, effects, strict=True) if effect.corrected_high >= 0]
    return min([best, *unbeaten], key=lambda one: (one.seconds, one.megabytes)).name
