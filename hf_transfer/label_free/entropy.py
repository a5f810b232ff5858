"""Mean entropy of the predictions on the target: lower is better, and lowest when a run has collapsed.

Morerio, Cavazza and Murino 2018 (arXiv:1711.10288) choose by it. A run that is sure and wrong has a low one too.
"""

import numpy as np

from hf_transfer.label_free import Candidate, Score

HIGHER = False
PERCENT = False


def measure(candidate: Candidate, seed: int) -> Score:
    """Return it in nats: 0 to log(classes)."""
    from scipy.stats import entropy

    return Score(float(np.mean(entropy(candidate.probabilities, axis=1))))
