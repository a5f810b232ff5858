"""Proxy A-distance: how well a linear classifier tells the domains apart, by layer, beside its null."""

from __future__ import annotations

import numpy as np

from hf_transfer.diagnostics import Finding, Side, told
from hf_transfer.diagnostics.mmd import PERMUTATIONS, share_as_large

FOLDS = 5
LARGE = 0.3  # above its null from which a distance counts, if it is beyond chance too


def measure(source: Side, target: Side, seed: int) -> Finding:
    """Return 2 (1 - 2 error) of a cross-validated linear domain classifier (Ben-David et al. 2007) for every layer.

    The null is the same for two halves of one domain, the larger of both; text saturates the distance, so it says
    that domains differ and never how much accuracy that costs. That of few rows is large by chance: the p-value is that
    of the largest of all layers under permutation of the domains.
    """
    rng = np.random.default_rng(seed)
    rows = min(len(source.states), len(target.states))
    picks = [rng.permutation(len(side.states))[:rows] for side in (source, target)]
    values, null = [], []
    for layer in range(source.states.shape[1]):
        a, b = (side.states[pick, layer] for side, pick in zip((source, target), picks, strict=True))
        values.append(permuted(a, b, seed))
        null.append(max(distance(one[: rows // 2], one[rows // 2 :], seed) for one in (a, b)))
    between = [float(layer[0]) for layer in values]
    best, p = int(np.argmax(between)), share_as_large(np.max(values, axis=0))
    differ = p < 0.01 and between[best] > null[best] + LARGE
    apart, untold = told(len(source.states), len(target.states), apart=differ)
    return Finding(
        summary=f"{between[best]:.2f} of at most 2 on layer {best} (within a domain {null[best]:.2f}), p {p:.3g}",
        advice="A classifier tells the domains apart: aligning features (CORAL, MMD) has something to align. That does "
        "not predict accuracy, and aligning rarely helped where it was measured (README)."
        if apart
        else "",
        apart=apart,
        numbers={
            "by_layer": [round(x, 4) for x in between],
            "within_domain_by_layer": [round(x, 4) for x in null],
            "p": round(p, 6),
        },
        untold=untold,
        same_meaning=True,
    )


def distance(a: np.ndarray, b: np.ndarray, seed: int) -> float:
    """Return the proxy A-distance between two samples of features (rows, hidden); 0 is chance, 2 is perfect."""
    return float(permuted(a, b, seed, 0)[0])


def permuted(a: np.ndarray, b: np.ndarray, seed: int, permutations: int = PERMUTATIONS) -> np.ndarray:
    """Return the distance of two samples of features (rows, hidden), then of permutations of both.

    Rows are permuted within a fold, so that the folds keep their shares of both samples. One seed permutes rows of the
    same numbers in the same ways.
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(seed)
    features = np.concatenate([a, b])
    real = np.repeat([-1.0, 1.0], [len(a), len(b)])
    folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(features, real))
    ways = np.repeat(real[:, None], 1 + permutations, axis=1)
    for _, asked in folds:
        ways[asked, 1:] = rng.permuted(ways[asked, 1:], axis=0)
    right = np.zeros(1 + permutations)
    for learned, asked in folds:  # a ridge classifier for every way at once
        model = make_pipeline(StandardScaler(), Ridge(alpha=float(a.shape[1]))).fit(features[learned], ways[learned])
        said = model.predict(features[asked]).reshape(len(asked), -1)
        right += ((said > 0) == (ways[asked] > 0)).mean(axis=0)
    return np.maximum(0.0, 2 * (2 * right / len(folds) - 1))
