"""Concept: whether the same text would get another label, where both domains have labels."""

from __future__ import annotations

import numpy as np

from hf_transfer.diagnostics import Finding, Side, labels_unlike

FOLDS = 5
FEWEST = 30  # rows alike, below which nothing is said of them
ALIKE = 0.3  # probability of the source from which a target row counts as like it


def measure(source: Side, target: Side, seed: int) -> Finding:
    """Compare linear probes on the target's rows: one trained on the source, one on other target rows.

    Where the domains look alike, what the source's probe loses against the target's own is no matter of the texts: the
    labels mean something else. So it is where the source's probe has a mean recall worse than guessing's; its accuracy
    may be that for another reason, where it misses much of a frequent label.
    """
    if unlike := labels_unlike(source, target):
        return Finding(unlike, "", apart=False)
    assert source.labels is not None
    assert target.labels is not None
    layer = source.states.shape[1] * 2 // 3
    common = np.intersect1d(source.labels, target.labels)
    a, of_a = _frequent(source.states[:, layer], source.labels, common)
    b, of_b = _frequent(target.states[:, layer], target.labels, common)
    if min(len(np.unique(of_a)), len(np.unique(of_b))) < 2:
        return Finding(f"not measured: a side has a single label with {FOLDS} rows or more", "", apart=False)
    own = _held_out(b, of_b, seed)
    theirs = _probe().fit(a, of_a).predict(b)
    right_own, right = own == of_b, theirs == of_b
    within = float((_held_out(a, of_a, seed) == of_a).mean())
    recalls = [right[of_b == name] for name in np.unique(of_b)]
    error = float(np.sqrt(sum(0.25 / len(recall) for recall in recalls))) / len(recalls)
    classes = len(np.unique(np.concatenate([of_a, of_b])))
    # below what guessing would give: the source's labels point the wrong way
    turned = float(np.mean([recall.mean() for recall in recalls])) < 1 / classes - 2 * error
    overlap = _where_alike(a, b, seed)
    enough = bool(overlap.sum() >= FEWEST)
    alike = float(right_own[overlap].mean() - right[overlap].mean()) if enough else None
    apart = turned or (alike is not None and alike > max(0.1, 2 * float(np.sqrt(0.5 / overlap.sum()))))
    advice = ""
    if apart:
        advice = ("Texts that look alike are labelled otherwise in the target: no alignment mends that; label some "
                  "target rows (--target_shots) or leave the source out.")  # fmt: skip
    return Finding(
        summary=f"a linear probe of the source is right on {right.mean():.1%} of the target, one of the target on "
        f"{right_own.mean():.1%} (of the source within itself {within:.1%})",
        advice=advice,
        apart=apart,
        numbers={
            "layer": layer,
            "source_probe_on_source": within,
            "source_probe_on_target": float(right.mean()),
            "target_probe_on_target": float(right_own.mean()),
            "loss_where_alike": alike,
            "rows_alike": int(overlap.sum()),
        },
    )


def _frequent(states: np.ndarray, labels: np.ndarray, common: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of those of the `common` labels that every fold has."""
    names, counts = np.unique(labels, return_counts=True)
    rows = np.isin(labels, np.intersect1d(names[counts >= FOLDS], common))
    return states[rows], labels[rows]


def _probe():  # noqa: ANN202
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))


def _held_out(features: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    return cross_val_predict(_probe(), features, labels, cv=StratifiedKFold(FOLDS, shuffle=True, random_state=seed))


def _where_alike(a: np.ndarray, b: np.ndarray, seed: int) -> np.ndarray:
    """Return which rows of `b` a domain classifier, trained without them, might take for rows of `a`."""
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    features, domain = np.concatenate([a, b]), np.repeat([0, 1], [len(a), len(b)])
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    return cross_val_predict(_probe(), features, domain, cv=folds, method="predict_proba")[len(a) :, 0] >= ALIKE
