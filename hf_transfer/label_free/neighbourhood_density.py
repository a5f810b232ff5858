"""How densely predictions on the target lie among their like: higher is better, and highest when a run has collapsed.

Soft neighbourhood density, Saito et al. 2021 (arXiv:2108.10860): the mean entropy of the similarities of one text's
normalised predictions to all others'. A run that is sure of nothing has a high one too: its
predictions are all alike.
"""

import numpy as np

from hf_transfer.label_free import Candidate, Score

HIGHER = True
PERCENT = False
TEMPERATURE = 0.05


def measure(candidate: Candidate, seed: int) -> Score:
    """Return it in nats: 0 to log(pool - 1)."""
    from scipy.special import softmax
    from scipy.stats import entropy

    features = candidate.probabilities / np.linalg.norm(candidate.probabilities, axis=1, keepdims=True)
    similarities = features @ features.T / TEMPERATURE
    np.fill_diagonal(similarities, -np.inf)
    return Score(float(entropy(softmax(similarities, axis=1), axis=1).mean()))
