"""Share of the target as sure as right source rows are, an estimate of its accuracy: higher is better.

Average thresholded confidence, Garg et al. 2022 (arXiv:2201.04234): below the threshold on negative entropy lie as many
held-out source rows as are wrong.
"""

import numpy as np

from hf_transfer.label_free import Candidate, Score

HIGHER = True
PERCENT = True


def measure(candidate: Candidate, seed: int) -> Score:
    """Return the estimated share of right target rows."""
    right = candidate.held_out.right
    if not len(right):
        return Score(None)
    sure = np.sort(_negative_entropy(candidate.held_out.probabilities))
    errors = int((~right).sum())
    threshold = sure[errors] if errors < len(sure) else np.inf
    return Score(float((_negative_entropy(candidate.probabilities) >= threshold).mean()))


def _negative_entropy(probabilities: np.ndarray) -> np.ndarray:
    from scipy.stats import entropy

    return -entropy(probabilities, axis=1)
