"""What test rows show: does an arm help against its controls, what did it forget, which rows does it fail on.

Every statement is about a difference of two scores on the same rows, with an interval (`statistics.effects`). Help is
judged by one metric; where accuracy and macro-F1 disagree, or a constant does as well, that is part of the verdict.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hf_transfer.statistics import metric as metrics
from hf_transfer.statistics.effects import ERROR, Difference, Effect, Scores, conflict, effects, scores_of
from hf_transfer.statistics.metric import Metric
from hf_transfer.statistics.references import Reference

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
class Comparison:
    """An arm against a control, or against a reference.

    Attributes:
        arm, control: their names.
        effect: in the metric in force; what the words are about.
        accuracy, macro_f1: `value`, `low` and `high` (95 %) of the difference in these.
        disagreement: share of rows that one of them has right and the other wrong; None where that is not one number.
    """

    arm: str
    control: str
    effect: Effect
    accuracy: dict[str, float]
    macro_f1: dict[str, float]
    disagreement: float | None

    @property
    def conflict(self) -> bool:
        """Whether accuracy and macro-F1 both show a difference, in opposite directions."""
        return conflict(self.accuracy, self.macro_f1)


@dataclass(frozen=True)
class Verdict:
    """What to do.

    Attributes:
        comparisons: every arm with every control, one family.
        references: every arm and control with every reference, each by itself.
        helping: arms shown to help against every control that they are compared with, and above every reference.
        adapt: whether there are any; if not: don't transfer.
        recommended: the cheapest of them that is not shown worse than the best of them; without any, the cheapest
            control that is above every reference and not shown worse than the best of these; None if there is none, or
            where metrics conflict and nobody has said which one counts.
        conflicts: the comparisons in which accuracy and macro-F1 show opposite things.
    """

    comparisons: list[Comparison]
    references: list[Comparison]
    helping: list[str]
    adapt: bool
    recommended: str | None
    conflicts: list[Comparison] = field(default_factory=list)


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


def judge(
    candidates: list[Candidate],
    labels: np.ndarray,
    against: dict[str, list[str]] | None = None,
    *,
    metric: Metric | None = None,
    references: Sequence[Reference] = (),
    settled: bool = False,
) -> Verdict:
    """Compare every arm with every control and recommend one.

    Args:
        candidates: at least one arm and one control.
        labels: (rows,) class indices.
        against: arm -> whom it is compared with; all controls by default. Arms may be among them: what an adaptation
            is measured by is itself measured by the controls.
        metric: what help is judged by; accuracy by default.
        references: what nothing may be recommended that is not shown above it.
        settled: the user chose the metric, so that it counts whatever another one shows.

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
    names = [str(label) for label in range(1 + max(int(labels.max()), *(int(c.predictions.max()) for c in candidates)))]
    accuracy, macro_f1 = metrics.load("accuracy", names), metrics.load("macro_f1", names)
    metric = metric or accuracy
    every = {one.name: one for one in (metric, accuracy, macro_f1)}
    tables = {name: _scored(candidates, labels, one, references) for name, one in every.items()}
    score = tables[metric.name]
    right = {one.name: (one.predictions == labels).mean(axis=0) for one in candidates}

    def compared(arm: str, other: str, effect: Effect) -> Comparison:
        sides = {}
        for name in ("accuracy", "macro_f1"):
            difference = tables[name].minus(arm, other)
            low, high = difference.bounds()
            sides[name] = {"value": difference.value, "low": low, "high": high}
        share = None
        if other in by_name:
            share = float((right[arm] * (1 - right[other]) + right[other] * (1 - right[arm])).mean())
        return Comparison(arm, other, effect, **sides, disagreement=share)

    family = effects([score.minus(*pair) for pair in pairs])
    comparisons = [compared(*pair, effect) for pair, effect in zip(pairs, family, strict=True)]
    beside = [compared(one.name, other.name, effects([score.minus(one.name, other.name)])[0])
              for one in candidates for other in references]  # fmt: skip
    no_better = {one.arm for one in beside if one.effect.low <= 0}
    in_doubt = {one.arm for one in comparisons if by_name[one.control].control and one.effect.corrected_low <= 0}
    helping = [by_name[arm] for arm in against if arm not in in_doubt | no_better]
    left = helping or [one for one in controls if one.name not in no_better]
    conflicts = [one for one in (*comparisons, *beside) if one.arm in against and one.conflict]
    return Verdict(
        comparisons, beside, [arm.name for arm in helping], bool(helping),
        _cheapest(left, score) if left and (settled or not conflicts) else None, conflicts,
    )  # fmt: skip


def scores(candidates: list[Candidate], labels: np.ndarray, metric: Metric) -> dict[str, tuple[float, float, float]]:
    """Return each candidate's score with its 95 % interval, over rows and over seeds where there are several."""
    table = _scored(candidates, labels, metric)
    found = {one.name: table.alone(one.name) for one in candidates}
    return {name: (one.value, max(0.0, one.bounds(ERROR)[0]), one.bounds(ERROR)[1]) for name, one in found.items()}


def differences(
    candidates: list[Candidate], labels: np.ndarray, metric: Metric, other: str
) -> dict[str, tuple[float, float, float]]:
    """Return how far each candidate's score is from that of `other`, with its 95 % interval, by itself."""
    table = _scored(candidates, labels, metric)
    found = {one.name: table.minus(one.name, other) for one in candidates if one.name != other}
    return {name: (one.value, *one.bounds()) for name, one in found.items()}


def _scored(
    candidates: list[Candidate], labels: np.ndarray, metric: Metric, references: Sequence[Reference] = ()
) -> Scores:
    once = {one.name for one in candidates if one.seeded and len(one.predictions) == 1}
    shares = {one.name: np.stack([metric.shares(metric.statistics(predicted, labels)) for predicted in one.predictions])
              for one in candidates}  # fmt: skip
    return scores_of(shares | {one.name: one.row_shares(metric)[None] for one in references}, labels, once)


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
    changes = [scores_of({"before": before, "after": after}, labels[groups[name]]).minus("after", "before")
               for name, (before, after) in scores.items()]  # fmt: skip
    found = effects(changes[:1], MEMORY) + effects(changes[1:], MEMORY)
    return [Part(name, int(inside.sum()), float(scores[name][1].mean()), float(scores[name][0].mean()), effect)
            for (name, inside), effect in zip(groups.items(), found, strict=True)]  # fmt: skip


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
        differences.append(Difference(
            value=float(pair[0].mean() - pair[1].mean()),
            centre=float(filled[0].mean() - filled[1].mean()),
            parts=tuple((float(side.var() / len(side)), len(side) - 1.0) for side in filled),
        ))  # fmt: skip
    differing = effects(differences, GAP)
    found = [Part(name, len(inside), float(inside.mean()), float(rest.mean()), effect)
             for (name, (inside, rest)), effect in zip(sides.items(), differing, strict=True)]  # fmt: skip
    return sorted(found, key=lambda part: (part.difference.corrected_high >= 0, part.difference.value))


def _cheapest(candidates: list[Candidate], score: Scores) -> str:
    """Return the cheapest candidate that is not shown worse than the best one."""
    best = max(candidates, key=lambda one: score.by_row[one.name].mean())
    others = [one for one in candidates if one is not best]
    differing = effects([score.minus(one.name, best.name) for one in others])
    unbeaten = [one for one, effect in zip(others, differing, strict=True) if effect.corrected_high >= 0]
    return min([best, *unbeaten], key=lambda one: (one.seconds, one.megabytes)).name
