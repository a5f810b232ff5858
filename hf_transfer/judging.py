"""Judge runs on a target without its labels: all scores, one rule, and how both would have done where labels are known.

The rule: runs that put nearly all texts into one class are out, and so are runs that on held-out source rows are not
clearly better than one label for all. Of the others the one with the best mean rank over the RULE scores is
recommended; of equal ones the more accurate on the source.

RULE has the scores that are tied to something known: to held-out source labels, or to what other runs say. Entropy and
neighbourhood density are tied to nothing, they reward a run for being sure; they are shown, and have no vote.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from hf_transfer import label_free
from hf_transfer.candidates import Finished, Target
from hf_transfer.held_out import HeldOut
from hf_transfer.label_free import Candidate, Score, collapsed
from hf_transfer.statistics.metric import Metric

RULE = ("source_validation", "weighted_validation", "reverse_validation", "thresholded_confidence", "agreement")


@dataclass(frozen=True)
class Judged:
    """What the scores say of all runs on one target.

    Attributes:
        scores: by name, one a run.
        seconds: by name, for all runs.
        out: (runs,) why the rule leaves a run out; empty where it does not.
        ranks: (runs,) mean rank over the rule's scores, 1 is best; None where the run is out, or none can be measured.
        chosen: the run that is recommended, or None.
        accuracy: (runs,) true share of right rows where the target has labels, else None.
        metric: (runs,) likewise the true score in the metric that the runs report.
    """

    scores: dict[str, list[Score]]
    seconds: dict[str, float]
    out: list[str]
    ranks: list[float | None]
    chosen: int | None
    accuracy: list[float] | None
    metric: list[float] | None


def judge(
    target: Target,
    finished: list[Finished],
    outputs: list[np.ndarray],
    by: Metric,
    *,
    seed: int,
    quiet: bool,
) -> Judged:
    """Measure every score of every run on `target`, and apply the rule.

    Args:
        target: its labels are for `accuracy` and `metric` alone.
        finished: the runs.
        outputs: of each run, (texts, classes).
        by: the metric that the runs report, with the names of those classes.
        seed: of folds.
        quiet: no progress bar.
    """
    from tqdm import tqdm

    given = [output.argmax(axis=1) for output in outputs]
    collapses = [collapsed(output, one.held_out) for output, one in zip(outputs, finished, strict=True)]
    everybody = range(len(finished))
    candidates = [
        Candidate(
            outputs[i],
            tuple(target.texts),
            finished[i].held_out,
            np.array([given[j] for j in everybody if j != i and collapses[j] is None]),
        )
        for i in everybody
    ]
    scores: dict[str, list[Score]] = {}
    seconds: dict[str, float] = {}
    for name in tqdm(label_free.names(), desc=f"judge on {target.name}", delay=2, leave=False, disable=quiet):
        begin = time.perf_counter()
        scores[name] = [label_free.load(name).measure(candidate, seed) for candidate in candidates]
        seconds[name] = time.perf_counter() - begin
    out = []
    for i, one in enumerate(finished):
        collapse, reason = collapses[i], ""
        if collapse is not None:
            share = float((given[i] == collapse).mean())
            reason = f"it has collapsed: {share:.1%} of {target.name} get the label '{by.label_names[collapse]}'"
        elif unlearned := no_better_than_chance(one.held_out):
            reason = unlearned
        out.append(reason)
    ranks = mean_ranks(scores, [not reason for reason in out])
    accuracy = metric = None
    if target.labels is not None:
        truth = np.array([by.label_names.index(label) for label in target.labels])
        accuracy = [float((labels == truth).mean()) for labels in given]
        metric = [by.score(labels, truth) for labels in given]
    return Judged(scores, seconds, out, ranks, best_rank(ranks, scores["source_validation"]), accuracy, metric)


def no_better_than_chance(known: HeldOut) -> str:
    """Return in words that the mean recall of held-out source rows is no clear gain on one label for all, or nothing.

    Clear are two standard errors. Recall, since with a rare label accuracy is high for nothing.
    """
    classes = np.unique(known.labels)
    if not len(classes):
        return ""
    recalls = [known.right[known.labels == label] for label in classes]
    mean, chance = float(np.mean([recall.mean() for recall in recalls])), 1 / len(classes)
    error = float(np.sqrt(sum(recall.var() / len(recall) for recall in recalls)) / len(classes))
    if mean - chance > 2 * error:
        return ""
    return f"it shows no learning: mean recall of held-out source rows {mean:.1%}, of one label for all {chance:.1%}"


def mean_ranks(scores: dict[str, list[Score]], inside: list[bool]) -> list[float | None]:
    """Return the mean rank over those RULE scores that every run `inside` has; 1 is best, equal ones share it.

    In all of RULE higher is better.
    """
    from scipy.stats import rankdata

    places = np.flatnonzero(inside)
    votes = [rankdata([-(scores[name][i].value or 0.0) for i in places]) for name in voting(scores, places)]
    means = dict(zip(places.tolist(), np.mean(votes, axis=0).tolist() if votes else [], strict=False))
    return [means.get(i) for i in range(len(inside))]


def voting(scores: dict[str, list[Score]], inside: Iterable[int]) -> list[str]:
    """Return the RULE scores that every run of `inside` has."""
    return [name for name in RULE if all(scores[name][i].value is not None for i in inside)]


def best_rank(ranks: list[float | None], source: list[Score]) -> int | None:
    """Return the run of the best mean rank, of equal ones the more accurate on the source; None if that is no one."""
    order = sorted((rank, -(source[i].value or 0.0), i) for i, rank in enumerate(ranks) if rank is not None)
    if not order or (len(order) > 1 and order[0][:2] == order[1][:2]):
        return None
    return order[0][2]


def choice(name: str, scores: list[Score]) -> int | None:
    """Return the run that score `name` alone would choose, the first of equal ones; None if no run has it."""
    sign = 1 if label_free.load(name).HIGHER else -1
    values = [-np.inf if score.value is None else sign * score.value for score in scores]
    return None if np.isneginf(values).all() else int(np.argmax(values))


def tested(judged: Judged) -> dict[str, Any]:
    """Return, for every score, how its order of the runs and its choice compare with the true scores in the metric.

    `off` is how far those that are in percent were from the true accuracy, which is what they estimate, on average over
    the runs that the rule has not put out.
    """
    from scipy.stats import kendalltau, spearmanr

    assert judged.accuracy is not None
    assert judged.metric is not None
    accuracy, metric = np.array(judged.accuracy), np.array(judged.metric)
    out: dict[str, Any] = {}
    for name, scores in judged.scores.items():
        sign = 1 if label_free.load(name).HIGHER else -1
        has = [i for i, score in enumerate(scores) if score.value is not None]
        values = [sign * (scores[i].value or 0.0) for i in has]
        inside = [k for k, i in enumerate(has) if not judged.out[i]] if label_free.load(name).PERCENT else []
        differences = np.abs(np.array(values) - accuracy[has])
        orders = len(set(values)) > 1 and len(set(metric[has])) > 1
        chosen = choice(name, scores)
        out[name] = {
            "spearman": float(spearmanr(values, metric[has]).statistic) if orders else None,
            "kendall": float(kendalltau(values, metric[has]).statistic) if orders else None,
            "regret": None if chosen is None else float(metric.max() - metric[chosen]),
            "off": float(differences[inside].mean()) if inside else None,
        }
    regret = None if judged.chosen is None else float(metric.max() - metric[judged.chosen])
    return out | {"recommendation": {"spearman": None, "kendall": None, "regret": regret, "off": None}}


def errors(backtests: list[dict[str, Any]]) -> dict[str, float]:
    """Return how far each score in percent was off in back-tests (see `tested`), the most of several."""
    found: dict[str, float] = {}
    for test in backtests:
        for name, one in test.items():
            if one["off"] is not None:
                found[name] = max(one["off"], found.get(name, 0.0))
    return found


def undecided(judged: Judged, off: dict[str, float]) -> int | None:
    """Return the runner-up, where nothing that votes tells it from the chosen run by more than it was off elsewhere.

    None where something does, where nobody is second, and where nothing is known of how far any was off.

    Args:
        judged: on the target.
        off: see `errors`.
    """
    inside = [i for i, rank in enumerate(judged.ranks) if rank is not None]
    names = voting(judged.scores, inside)
    if judged.chosen is None or len(inside) < 2 or not any(name in off for name in names):
        return None
    first = judged.chosen
    source = judged.scores["source_validation"]
    second = min((i for i in inside if i != first), key=lambda i: (judged.ranks[i], -(source[i].value or 0.0)))
    for name in names:
        one, other = (judged.scores[name][i].value or 0.0 for i in (first, second))
        if abs(one - other) > off.get(name, 0.0):
            return None
    return second


def disagreement(values: dict[str, float | None], off: dict[str, float]) -> tuple[str, str] | None:
    """Return the two estimates of one run's accuracy that differ most beyond the sum of their errors; None if none do.

    Args:
        values: score in percent -> value.
        off: see `errors`; a score without one is not looked at.
    """
    known = [(name, value) for name, value in values.items() if value is not None and name in off]
    apart = {
        (one, other): abs(value - another) - off[one] - off[other]
        for (one, value), (other, another) in combinations(known, 2)
    }
    most = max(apart, key=lambda pair: apart[pair], default=None)
    return most if most is not None and apart[most] > 0 else None
