"""Concept: whether the same text would get another label, where both domains have labels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hf_transfer.diagnostics import FEWEST, Finding, Side, labels_unlike

FOLDS = 5
ALIKE = 0.3  # probability of the source from which a target row counts as like it, were there as many rows of either
LARGE = 0.1  # of accuracy that the source's probe loses, from which labels may mean something else
ERRORS = 2.33  # standard errors that are beyond chance: p 0.01, one-sided


def measure(source: Side, target: Side, seed: int) -> Finding:
    """Compare linear probes on the target's rows: one trained on the source, one on other target rows.

    Where the domains look alike, what the source's probe loses against the target's own is no matter of the texts: the
    labels mean something else. So it is where the source's probe has a mean recall worse than guessing's; its accuracy
    may be that for another reason, where it misses much of a frequent label or learned another mix of labels. That it
    is worse than always saying the commonest label stands first all the same: as it is, the source is worse than none.
    """
    if unlike := labels_unlike(source, target):
        return Finding(unlike, "", apart=None)
    assert source.labels is not None
    assert target.labels is not None
    layer = source.states.shape[1] * 2 // 3
    names, counts = np.unique(source.labels[np.isin(source.labels, target.labels)], return_counts=True)
    known = names[counts >= FOLDS]
    if len(known) < 2:
        needed = f"two labels that both domains have, each with {FOLDS} rows or more of the source"
        return Finding("too few labels that both have for a probe of the source", "", apart=None, untold=needed)
    ours, theirs = np.isin(source.labels, known), np.isin(target.labels, known)
    a, of_a = source.states[ours, layer], source.labels[ours]
    b, of_b = target.states[theirs, layer], target.labels[theirs]
    right = _probe().fit(a, of_a).predict(b) == of_b
    recall, error = _mean_recall(right, of_b)
    names, counts = np.unique(of_b, return_counts=True)
    common = names[counts.argmax()]
    numbers: dict[str, Any] = {
        "layer": layer,
        "rows": len(b),
        "source_probe_on_source": float((_held_out(a, of_a, seed) == of_a).mean()),
        "source_probe_on_target": float(right.mean()),
        "source_probe_mean_recall": recall,
        "guessing_mean_recall": 1 / len(known),
        "source_probe_below_guessing": recall < 1 / len(known) - ERRORS * error,
        "commonest_label": str(common),
        "commonest_label_share": float((of_b == common).mean()),
        "source_probe_below_commonest_label": _worse(right, of_b == common),
        "target_probe_on_target": None,
        "loss_where_alike": None,
        "rows_alike": None,
    }
    frequent = np.isin(of_b, names[counts >= FOLDS])
    if len(np.unique(of_b[frequent])) < 2:
        second = np.sort(counts)[-2]
        untold = (f"{max(FEWEST, math.ceil(FOLDS * len(b) / second))} labelled rows of the target or so (there are "
                  f"{len(b)}), {FOLDS} of each of two labels at least")  # fmt: skip
    else:
        b, of_b = b[frequent], of_b[frequent]
        numbers["target_probe_on_target"] = float((_held_out(b, of_b, seed) == of_b).mean())
        untold = _losses(numbers, (a, of_a), (b, of_b), seed)
    otherwise = numbers["loss_where_alike"] is not None and numbers["loss_where_alike"] > _chance(numbers["rows_alike"])
    apart = True if numbers["source_probe_below_guessing"] or otherwise else None if untold else False
    return Finding(
        summary=f"a linear probe of the source is right on {right.mean():.1%} of the target (mean recall {recall:.0%}, "
        f"of guessing {1 / len(known):.0%}), {_own(numbers)} (of the source within itself "
        f"{numbers['source_probe_on_source']:.1%})",
        advice=_advice(numbers, otherwise=otherwise),
        apart=apart,
        numbers=numbers,
        untold="" if apart else untold,
        first=_first(numbers, apart=apart),
    )


def _losses(
    numbers: dict[str, Any], a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray], seed: int
) -> str:
    """Measure what the source's probe loses where domains look alike; returns what is needed to say that it's nothing.

    Labels weigh alike in both probes and both learn from as many rows: neither another mix of labels nor a small source
    is another meaning.
    """
    own = _held_out(b[0], b[1], seed, balanced=True, most=len(a[0])) == b[1]
    right = _probe(balanced=True).fit(*a).predict(b[0]) == b[1]
    alike = _where_alike(a[0], b[0], seed)
    rows, count = len(right), int(alike.sum())
    loss = float(own[alike].mean() - right[alike].mean()) if count >= FEWEST else None
    numbers |= {"loss_where_alike": loss, "rows_alike": count}
    if rows < FEWEST:
        return f"{FEWEST} labelled rows of the target (there are {rows})"
    if own.mean() - right.mean() <= LARGE or (loss is not None and loss <= LARGE):
        recall, error = _mean_recall(right, b[1])
        guessing = numbers["guessing_mean_recall"]
        return (
            ""
            if recall > guessing + ERRORS * error
            else "a source probe better than guessing: more rows, or another --model"
        )
    needed = FEWEST if loss is None else math.ceil(2 / loss**2)
    total = f": some {math.ceil(needed * rows / count):,} labelled ones in all" if count else ""
    return f"{needed} target rows that look like the source's ({count or 'none'} of {rows} do){total}"


def _first(numbers: dict[str, Any], *, apart: bool | None) -> str:
    """Return what must be known before all else of a source whose probe is worse than none; else nothing.

    It claims another meaning only where the probe is worse than guessing: another mix of labels makes it worse than the
    commonest label, too.
    """
    share = f"{numbers['commonest_label_share']:.0%}"
    right, recall = (
        f"right on {numbers['source_probe_on_target']:.1%} of the target",
        numbers["source_probe_mean_recall"],
    )
    recalls = f"mean recall {recall:.0%}, of guessing {numbers['guessing_mean_recall']:.0%}"
    if numbers["source_probe_below_guessing"]:
        return (f"What the labels mean differs between the domains, or they are turned round: a probe of the source is "
                f"{right} ({recalls}), its commonest label has {share}, {_own(numbers)}.")  # fmt: skip
    if not numbers["source_probe_below_commonest_label"]:
        return ""
    untold = " Whether the labels mean something else can't be told." if apart is None else ""
    return (f"A probe of the source does worse, by accuracy, than the target's commonest label: it is {right} "
            f"({recalls}), that label has {share}, {_own(numbers)}.{untold}")  # fmt: skip


def _own(numbers: dict[str, Any]) -> str:
    reached = numbers["target_probe_on_target"]
    return (
        "the target has too few rows for its own"
        if reached is None
        else f"a probe of the target itself reaches {reached:.1%}"
    )


def _advice(numbers: dict[str, Any], *, otherwise: bool) -> str:
    if numbers["source_probe_below_guessing"]:
        return ("Read some rows of each label in both domains: if the names are turned round, put them right. If not, "
                "label some target rows (--target_shots) and leave the source out.")  # fmt: skip
    if otherwise:
        return ("Texts that look alike are labelled otherwise in the target, which nothing mends without labels of the "
                "target: label some of its rows (--target_shots) or leave the source out.")  # fmt: skip
    if numbers["source_probe_below_commonest_label"]:
        return ("As it is, the source makes a worse classifier for the target than none: label some target rows "
                "(--target_shots), and see whether the source helps beside them.")  # fmt: skip
    return ""


def _chance(rows: int) -> float:
    """Return the loss of accuracy on so many rows that is neither small nor chance."""
    return max(LARGE, 2 * float(np.sqrt(0.5 / rows)))


def _mean_recall(right: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the mean recall of the labels and its largest standard error."""
    recalls = [right[labels == name] for name in np.unique(labels)]
    error = float(np.sqrt(sum(0.25 / len(recall) for recall in recalls))) / len(recalls)
    return float(np.mean([recall.mean() for recall in recalls])), error


def _worse(right: np.ndarray, of_other: np.ndarray) -> bool:
    """Return whether fewer rows are right than of another classifier, by McNemar's exact test (p 0.01, one-sided)."""
    from scipy.stats import binomtest

    wins, losses = int((right & ~of_other).sum()), int((~right & of_other).sum())
    return bool(losses) and bool(binomtest(wins, wins + losses, alternative="less").pvalue < 0.01)


def _probe(*, balanced: bool = False):  # noqa: ANN202
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    weights = "balanced" if balanced else None
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300, class_weight=weights))


def _held_out(
    features: np.ndarray, labels: np.ndarray, seed: int, *, balanced: bool = False, most: int | None = None
) -> np.ndarray:
    """Return what probes say of rows that they did not learn from; of each label they learn its share of `most`."""
    from sklearn.model_selection import StratifiedKFold

    said = np.empty_like(labels)
    rng = np.random.default_rng(seed)
    for learned, asked in StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(features, labels):
        share = 1.0 if most is None else min(1.0, most / len(learned))
        by_label = [rng.permutation(learned[labels[learned] == name]) for name in np.unique(labels)]
        rows = np.concatenate([some[: math.ceil(share * len(some))] for some in by_label])
        said[asked] = _probe(balanced=balanced).fit(features[rows], labels[rows]).predict(features[asked])
    return said


def _where_alike(a: np.ndarray, b: np.ndarray, seed: int) -> np.ndarray:
    """Return which rows of `b` a domain classifier, trained without them, might take for rows of `a`."""
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    features, domain = np.concatenate([a, b]), np.repeat([0, 1], [len(a), len(b)])
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    probe = _probe(balanced=True)
    return cross_val_predict(probe, features, domain, cv=folds, method="predict_proba")[len(a) :, 0] >= ALIKE
