"""Accuracy on held-out source rows of a classifier that learned the run's labels of the target: higher is better.

Reverse validation (Zhong et al. 2010; Ganin et al. 2016, arXiv:1505.07818, section 5.1.2), with logistic regression on
TF-IDF: labels that make sense of the target's words make sense of the source's.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from hf_transfer.label_free import Candidate, Score

HIGHER = True
PERCENT = True


def measure(candidate: Candidate, seed: int) -> Score:
    """Return the share of right source rows."""
    from sklearn.linear_model import LogisticRegression

    known, given = candidate.held_out, candidate.probabilities.argmax(axis=1)
    if not known.texts:
        return Score(None)
    if len(np.unique(given)) == 1:
        return Score(float((known.labels == given[0]).mean()))
    pool, rows = _words(candidate.texts, known.texts)
    model = LogisticRegression(C=10.0, max_iter=300, random_state=seed).fit(pool, given)
    return Score(float((model.predict(rows) == known.labels).mean()))


@lru_cache(maxsize=8)  # runs on the same data share it
def _words(pool: tuple[str, ...], rows: tuple[str, ...]) -> tuple[Any, Any]:
    from hf_transfer.controls import word_features

    vectorizer = word_features()
    return vectorizer.fit_transform(pool), vectorizer.transform(rows)
