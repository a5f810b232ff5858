"""Moments: source states get the target's mean and standard deviation (AdaBN's, Li et al. 2016, arXiv:1603.04779)."""

from __future__ import annotations

import numpy as np

from hf_transfer.feature_maps import Affine, FeatureMap

LEAST = 1e-6  # of a standard deviation


def fit(source: np.ndarray, target: np.ndarray) -> FeatureMap:
    """Return the map that gives each dimension of the source rows the target's first two moments.

    Args:
        source: (rows, hidden).
        target: (rows, hidden).
    """
    ratio = target.std(0) / np.maximum(source.std(0), LEAST)
    return FeatureMap(Affine(np.diag(ratio), target.mean(0) - source.mean(0) * ratio))
