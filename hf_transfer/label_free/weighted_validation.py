"""Accuracy on held-out source rows, each weighed by how much its text is like the target's: higher is better.

Importance-weighted validation (Sugiyama, Krauledat and Mueller 2007, JMLR 8), normalised by the sum of the weights.
Texts of two domains hardly overlap, so the weights are flattened by a power until enough rows count. The control
variate of deep embedded validation (You et al. 2019, ICML) is not used: with so uneven weights it ordered runs worse.
"""

from functools import lru_cache

import numpy as np

from hf_transfer.label_free import Candidate, Score

HIGHER = True
PERCENT = True
DIMENSIONS = 100
FOLDS = 5
WORTH = 0.1  # of the rows, that their weights must be worth


def measure(candidate: Candidate, seed: int) -> Score:
    """Return the estimated share of right target rows; says how far the weights were flattened."""
    known = candidate.held_out
    if not known.texts:
        return Score(None)
    weights = _density_ratio(known.texts, candidate.texts, seed)
    flat, power = flattened(weights)
    note = ""
    if power < 1:
        note = (f"{len(weights)} held-out source rows are as good as {worth(weights):.0f} by their likeness to the "
                f"target, so their weights were flattened (to the power of {power:.1f})")  # fmt: skip
    return Score(float(np.average(known.right, weights=flat)), note)


def flattened(weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Return weights (rows,) to the largest power, in tenths, with which they are worth WORTH of the rows; and it."""
    for power in np.linspace(1, 0, 11):
        flat = weights**power
        if worth(flat) >= WORTH * len(flat):
            break
    return flat, float(power)


def worth(weights: np.ndarray) -> float:
    """Return how many equally weighted rows would be as good as these (Kish's effective sample size)."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def density_ratio(source_texts: tuple[str, ...], target_texts: tuple[str, ...], seed: int) -> np.ndarray:
    """Return how much likelier each source text is in the target, (source,), by a calibrated domain classifier.

    It is logistic regression on the leading dimensions of TF-IDF, calibrated, and never sees a text that it judges.

    Args:
        source_texts: of the rows to weigh.
        target_texts: of the domain to weigh them for.
        seed: of the folds.
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b").fit_transform(source_texts + target_texts)
    features = TruncatedSVD(min(DIMENSIONS, min(words.shape) - 1), random_state=seed).fit_transform(words)
    domain = np.repeat([0, 1], [len(source_texts), len(target_texts)])
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    model = CalibratedClassifierCV(LogisticRegression(C=10.0, max_iter=300), cv=folds)
    found = cross_val_predict(model, features, domain, cv=folds, method="predict_proba")[: len(source_texts)]
    return found[:, 1] / found[:, 0] * len(source_texts) / len(target_texts)


_density_ratio = lru_cache(maxsize=8)(density_ratio)  # runs on the same data share it
