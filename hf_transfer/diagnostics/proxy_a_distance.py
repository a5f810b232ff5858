"""Proxy A-distance: how well a linear classifier tells the domains apart, by layer, beside its null."""

from __future__ import annotations

import numpy as np

from hf_transfer.diagnostics import Finding, Side, told

FOLDS = 5
LARGE = 0.3  # above its null from which a distance counts, if it is beyond chance too


def measure(source: Side, target: Side, seed: int) -> Finding:
    """Return 2 (1 - 2 error) of a cross-validated linear domain classifier (Ben-David et al. 2007) for every layer.

    The null is the same for two halves of one domain, the larger of both; text saturates the distance, so it says
    that domains differ and never how much accuracy that costs.
    """
    from scipy.stats import norm

    rng = np.random.default_rng(seed)
    rows = min(len(source.states), len(target.states))
    picks = [rng.permutation(len(side.states))[:rows] for side in (source, target)]
    between, null = [], []
    for layer in range(source.states.shape[1]):
        a, b = (side.states[pick, layer] for side, pick in zip((source, target), picks, strict=True))
        between.append(distance(a, b, seed))
        null.append(max(distance(one[: rows // 2], one[rows // 2 :], seed) for one in (a, b)))
    best = int(np.argmax(between))
    # a distance moves four times as far as an accuracy; p 0.01 for the largest of all layers
    chance = 4 * float(norm.isf(0.01 / len(between))) * (0.25 / (2 * rows)) ** 0.5
    differ = bool(between[best] > null[best] + max(LARGE, chance))
    apart, untold = told(len(source.states), len(target.states), apart=differ)
    return Finding(
        summary=f"{between[best]:.2f} of at most 2 on layer {best} (within a domain {null[best]:.2f})",
        advice="A classifier tells the domains apart: aligning features (CORAL, MMD) has something to align. That does "
        "not predict accuracy, and aligning rarely helped where it was measured (README)."
        if apart
        else "",
        apart=apart,
        numbers={"by_layer": [round(x, 4) for x in between], "within_domain_by_layer": [round(x, 4) for x in null]},
        untold=untold,
        same_meaning=True,
    )


def distance(a: np.ndarray, b: np.ndarray, seed: int) -> float:
    """Return the proxy A-distance between two samples of features (rows, hidden); 0 is chance, 2 is perfect."""
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, domain = np.concatenate([a, b]), np.repeat([0, 1], [len(a), len(b)])
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=float(a.shape[1])))
    error = 1 - float(cross_val_score(model, features, domain, cv=folds).mean())
    return max(0.0, 2 * (1 - 2 * error))
