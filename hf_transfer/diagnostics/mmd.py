"""Maximum mean discrepancy: a kernel distance of the features, by layer, with a permutation p-value."""

from __future__ import annotations

import numpy as np

from hf_transfer.diagnostics import Finding, Side

PERMUTATIONS = 999
ROWS = 500  # a domain: the kernel matrix has (2 ROWS)^2 entries


def measure(source: Side, target: Side, seed: int) -> Finding:
    """Test for every layer whether both samples come from one distribution (Gretton et al. 2012, JMLR 13:723)."""
    rng = np.random.default_rng(seed)
    picks = [rng.permutation(len(side.states))[:ROWS] for side in (source, target)]
    found = [
        two_sample_test(source.states[picks[0], layer], target.states[picks[1], layer], seed)
        for layer in range(source.states.shape[1])
    ]
    best = int(np.argmin([(p, -value) for value, p in found], axis=0)[0])
    value, p = found[best]
    # every layer is a test of its own: Holm's first step
    apart = min(1.0, p * len(found)) < 0.01
    return Finding(
        summary=f"MMD^2 {value:.4f} on layer {best}, p {p:.3g} ({len(found)} layers tested)",
        advice="",
        apart=apart,
        numbers={"by_layer": [round(v, 6) for v, _ in found], "p_by_layer": [round(p, 6) for _, p in found]},
    )


def squared(kernel: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return the unbiased MMD^2 for each of several ways to divide the rows in two.

    Args:
        kernel: (rows, rows).
        first: (ways, rows) whether a row is in the first sample.
    """
    off = kernel - np.diag(np.diag(kernel))
    one = first.astype(kernel.dtype)
    m, n = one.sum(1), (1 - one).sum(1)
    with_one = one @ off
    total = off.sum()
    inside = (with_one * one).sum(1)
    across = with_one.sum(1) - inside
    return inside / (m * (m - 1)) + (total - inside - 2 * across) / (n * (n - 1)) - 2 * across / (m * n)


def two_sample_test(a: np.ndarray, b: np.ndarray, seed: int) -> tuple[float, float]:
    """Return MMD^2 of two samples (rows, hidden) with a Gaussian kernel of median width, and its p-value."""
    from scipy.spatial.distance import pdist, squareform

    distances = squareform(pdist(np.concatenate([a, b]).astype(np.float64), "sqeuclidean"))
    width = np.median(distances[distances > 0]) if (distances > 0).any() else 1.0
    kernel = np.exp(-distances / width)
    rng = np.random.default_rng(seed)
    real = np.arange(len(kernel)) < len(a)
    ways = np.stack([real, *(rng.permutation(real) for _ in range(PERMUTATIONS))])
    values = squared(kernel, ways)
    return float(values[0]), float((values >= values[0] - 1e-12).mean())
