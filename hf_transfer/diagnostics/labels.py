"""Labels: whether the shares of the labels differ, where both domains have labels."""

from __future__ import annotations

import numpy as np

from hf_transfer.diagnostics import Finding, Side, labels_unlike, told

LARGE = 0.05  # total variation from which shares count as different, if the test says so too
EXPECTED = 5  # rows expected of every label on each side, below which the test is by drawing (Cochran 1954)
DRAWS = 9999


def measure(source: Side, target: Side, seed: int) -> Finding:
    """Compare label shares by a chi-squared test over all rows; the size is the total variation distance."""
    import pandas as pd

    sides = {"source": source, "target": target}
    if unlike := labels_unlike(source, target):
        return Finding(unlike, "", apart=None)
    counts = pd.DataFrame({name: side.facts["label"].value_counts() for name, side in sides.items()}).fillna(0)
    shares = counts / counts.sum()
    distance = float((shares["source"] - shares["target"]).abs().sum() / 2)
    p = _p(counts.to_numpy(int), seed) if len(counts) > 1 else 1.0
    apart, untold = told(*map(int, counts.sum()), apart=p < 0.01 and distance > LARGE)
    mix = {name: {str(k): round(float(v), 4) for k, v in shares[name].items()} for name in sides}
    shown = ", ".join(f"{label} {shares['target'][label]:.0%} (source {shares['source'][label]:.0%})"
                      for label in shares.index)  # fmt: skip
    return Finding(
        summary=f"{shown}; total variation {distance:.2f}, p {p:.2g}",
        advice="The target mixes the labels otherwise: read macro-F1, and correct the label prior when predicting "
        "(--label_prior), but only if the texts of a label are alike in both domains: where words differ too, it harms."
        if apart
        else "",
        apart=apart,
        numbers={"total_variation": distance, "p": p, "shares": mix},
        untold=untold,
        same_meaning=True,
    )


def _p(counts: np.ndarray, seed: int) -> float:
    """Return the p-value of one mix of labels in both columns of `counts` (labels, 2)."""
    from scipy.stats import chi2_contingency
    from scipy.stats.contingency import expected_freq

    expected = expected_freq(counts)
    if expected.min() >= EXPECTED:
        return float(chi2_contingency(counts).pvalue)
    drawn = np.random.default_rng(seed).multivariate_hypergeometric(counts.sum(1), int(counts[:, 1].sum()), DRAWS)
    columns = np.stack([counts.sum(1) - drawn, drawn], axis=2)
    sizes = ((columns - expected) ** 2 / expected).sum((1, 2))
    return float((1 + (sizes >= ((counts - expected) ** 2 / expected).sum() - 1e-9).sum()) / (1 + DRAWS))
