"""How much each of several sources is like the target, without its labels."""

from __future__ import annotations

import numpy as np


def source_shares(sources: list[np.ndarray], target: np.ndarray) -> np.ndarray:
    """Return a share for each source, in all 1: the mean probability with which a classifier takes target rows for it.

    The classifier tells the sources apart by their features; what it makes of the target says what the target is a
    mixture of (the weights of Mansour et al. 2009's mixture, by a domain classifier as in Guo et al. 2018,
    arXiv:1809.02256, without its training of the encoder).

    Args:
        sources: (rows, hidden) each.
        target: (rows, hidden).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    which = np.repeat(np.arange(len(sources)), [len(rows) for rows in sources])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=500))
    return model.fit(np.concatenate(sources), which).predict_proba(target).mean(0)
