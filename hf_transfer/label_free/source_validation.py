"""Accuracy on held-out source rows, as the run recorded it: higher is better, and blind to the target.

Musgrave, Belongie and Lim 2022 (arXiv:2208.07360) find it hard to beat over many ways to adapt.
"""

from hf_transfer.label_free import Candidate, Score

HIGHER = True
PERCENT = True


def measure(candidate: Candidate, seed: int) -> Score:
    """Return the share of right rows."""
    right = candidate.held_out.right
    return Score(float(right.mean()) if len(right) else None)
