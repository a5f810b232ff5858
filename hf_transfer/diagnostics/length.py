"""Length: how many words texts have, and whether one domain's are longer."""

from __future__ import annotations

import numpy as np

from hf_transfer.diagnostics import Finding, Side, told

LARGE = 0.15  # Kolmogorov-Smirnov distance from which lengths count as different, if it is significant too


def measure(source: Side, target: Side, seed: int) -> Finding:
    """Compare the distributions of lengths by the two-sample Kolmogorov-Smirnov test, over all rows."""
    from scipy.stats import ks_2samp

    lengths = [side.facts["words"].to_numpy() for side in (source, target)]
    test = ks_2samp(*lengths)
    quantiles = [[int(q) for q in np.quantile(one, [0.1, 0.5, 0.9])] for one in lengths]
    apart, untold = told(*map(len, lengths), apart=bool(test.pvalue < 0.01 and test.statistic > LARGE))
    longer = quantiles[1][1] > quantiles[0][1]
    advice = ""
    if apart:
        remedy = "raise" if longer else "lower"
        advice = (f"Target texts are {'longer' if longer else 'shorter'}: compare accuracy by length in the report, "
                  f"and {remedy} --max_length to what they need.")  # fmt: skip
    return Finding(
        summary=f"median {quantiles[1][1]} words (source {quantiles[0][1]}); Kolmogorov-Smirnov {test.statistic:.2f}, "
        f"p {test.pvalue:.2g}",
        advice=advice,
        apart=apart,
        numbers={
            "kolmogorov_smirnov": float(test.statistic),
            "p": float(test.pvalue),
            "words_10_50_90": {"source": quantiles[0], "target": quantiles[1]},
        },
        untold=untold,
    )
