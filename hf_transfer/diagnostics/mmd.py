"""Maximum mean discrepancy: a kernel distance of the features, by layer, with a permutation p-value."""

from __future__ import annotations

import numpy as np

from hf_transfer.diagnostics import Finding, Side, told

PERMUTATIONS = 999
ROWS = 500  # a domain: the kernel matrix has (2 ROWS)^2 entries


def measure(source: Side, target: Side, seed: int) -> Finding:
    """Test whether both samples come from one distribution (Gretton et al. 2012, JMLR 13:723), on all layers at once.

    The p-value is that of the largest of the layers' values, each in its own standard deviations under permutation: one
    test, however deep the model is (Westfall and Young 1993).
    """
    rng = np.random.default_rng(seed)
    picks = [rng.permutation(len(side.states))[:ROWS] for side in (source, target)]
    values = np.stack([
        permuted(source.states[picks[0], layer], target.states[picks[1], layer], seed)
        for layer in range(source.states.shape[1])
    ])  # fmt: skip
    spread = values.std(axis=1, keepdims=True)
    sizes = np.divide(values - values.mean(axis=1, keepdims=True), spread, out=np.zeros_like(values), where=spread > 0)
    best, p = int(sizes[:, 0].argmax()), share_as_large(sizes.max(axis=0))
    apart, untold = told(*map(len, picks), apart=p < 0.01)
    return Finding(
        summary=f"MMD^2 {values[best, 0]:.4f} on layer {best}, p {p:.3g} ({len(values)} layers tested as one)",
        advice="",  # what to do depends on what it goes with: `parts`
        apart=apart,
        numbers={
            "p": round(p, 6),
            "by_layer": [round(float(layer[0]), 6) for layer in values],
            "p_by_layer": [round(share_as_large(layer), 6) for layer in values],
        },
        untold=untold,
    )


def squared(similar: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the unbiased MMD^2 for each of several ways to divide the rows in two.

    Args:
        similar: kernel (rows, rows).
        first: (ways, rows) whether a row is in the first sample.
    """
    off = similar - np.diag(np.diag(similar))
    one = first.astype(similar.dtype)
    m, n = one.sum(1), (1 - one).sum(1)
    with_one = one @ off
    total = off.sum()
    inside = (with_one * one).sum(1)
    across = with_one.sum(1) - inside
    return inside / (m * (m - 1)) + (total - inside - 2 * across) / (n * (n - 1)) - 2 * across / (m * n)


def permuted(a: np.ndarray, b: np.ndarray, seed: int) -> np.ndarray:
    """Return MMD^2 of two samples (rows, hidden), then of permutations of both.

    One seed permutes rows of the same numbers in the same ways.
    """
    rng = np.random.default_rng(seed)
    real = np.arange(len(a) + len(b)) < len(a)
    return squared(kernel(a, b), np.stack([real, *(rng.permutation(real) for _ in range(PERMUTATIONS))]))


def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the Gaussian kernel of median width (rows, rows) between all rows of both samples (rows, hidden)."""
    from scipy.spatial.distance import pdist, squareform

    distances = squareform(pdist(np.concatenate([a, b]).astype(np.float64), "sqeuclidean"))
    return np.exp(-distances / (np.median(distances[distances > 0]) if (distances > 0).any() else 1.0))


def share_as_large(values: np.ndarray) -> float:
    """Return the p-value of the first of `values`, the others those of permutations."""
    return float((values >= values[0] - 1e-12).mean())
