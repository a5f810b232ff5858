"""Labels: whether the shares of the labels differ, where both domains have labels."""

from __future__ import annotations

from hf_transfer.diagnostics import Finding, Side, labels_unlike

LARGE = 0.05  # total variation from which shares count as different, if the test says so too


def measure(source: Side, target: Side, seed: int) -> Finding:
    """Compare label shares by a chi-squared test over all rows; the size is the total variation distance."""
    import pandas as pd
    from scipy.stats import chi2_contingency

    sides = {"source": source, "target": target}
    if unlike := labels_unlike(source, target):
        return Finding(unlike, "", apart=False)
    counts = pd.DataFrame({name: side.facts["label"].value_counts() for name, side in sides.items()}).fillna(0)
    shares = counts / counts.sum()
    distance = float((shares["source"] - shares["target"]).abs().sum() / 2)
    p = float(chi2_contingency(counts.to_numpy()).pvalue) if len(counts) > 1 else 1.0
    apart = p < 0.01 and distance > LARGE
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
    )
