"""Share of the target that a run labels as the other runs do, an estimate of its accuracy: higher is better.

Two trainings disagree about as often as either is wrong (Jiang et al. 2022, arXiv:2106.13799). Collapsed runs have no
say: they would agree with each other.
"""

import numpy as np

from hf_transfer.label_free import Candidate, Score

HIGHER = True
PERCENT = True


def measure(candidate: Candidate, seed: int) -> Score:
    """Return the mean over the other runs; None where there are none."""
    if not len(candidate.others):
        return Score(None)
    return Score(float(np.mean(candidate.others == candidate.probabilities.argmax(axis=1))))
