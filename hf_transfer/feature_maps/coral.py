"""CORAL: source states are whitened, then recoloured as the target's are (Sun et al. 2016, arXiv:1511.05547)."""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh
from sklearn.covariance import LedoitWolf

from hf_transfer.feature_maps import Affine, FeatureMap


def fit(source: np.ndarray, target: np.ndarray) -> FeatureMap:
    """Return the map that gives the source rows the target's mean and covariance; the target stays as it is.

    Args:
        source: (rows, hidden).
        target: (rows, hidden).
    """
    (own, whitened), (other, coloured) = ((rows.mean(0), _powers(rows)) for rows in (source, target))
    matrix = whitened[1] @ coloured[0]
    return FeatureMap(Affine(matrix, other - own @ matrix))


def _powers(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the covariance of `rows` to the powers 1/2 and -1/2, shrunk (Ledoit and Wolf 2004) to be invertible."""
    values, vectors = eigh(LedoitWolf().fit(rows).covariance_)
    return vectors * values**0.5 @ vectors.T, vectors * values**-0.5 @ vectors.T
