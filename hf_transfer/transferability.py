"""Scores of how well frozen features fit labels, before anything is trained on them."""

from __future__ import annotations

import numpy as np

FOLDS = 5
NEIGHBOURS = 5


def logme(features: np.ndarray, labels: np.ndarray) -> float:
    """Return the log of maximum evidence a row, averaged over classes (You et al. 2021, arXiv:2102.11005).

    Args:
        features: (rows, hidden).
        labels: (rows,) class indices.
    """
    features = features.astype(np.float64)
    rows = len(features)
    u, s, _ = np.linalg.svd(features, full_matrices=False)
    power = s**2
    evidences = []
    for label in np.unique(labels):
        y = (labels == label).astype(np.float64)
        projected = (u.T @ y) ** 2
        outside = max(0.0, float(y @ y - projected.sum()))
        alpha, beta = 1.0, 1.0
        for _ in range(100):
            shrunk = alpha + beta * power
            effective = float((beta * power / shrunk).sum())
            weights = float((beta**2 * power * projected / shrunk**2).sum())
            residual = float((alpha**2 * projected / shrunk**2).sum()) + outside
            before = alpha / beta
            alpha, beta = effective / max(weights, 1e-12), (rows - effective) / max(residual, 1e-12)
            if abs(alpha / beta / before - 1) < 1e-6:
                break
        shrunk = alpha + beta * power
        weights = float((beta**2 * power * projected / shrunk**2).sum())
        residual = float((alpha**2 * projected / shrunk**2).sum()) + outside
        evidences.append(
            0.5 * len(s) * np.log(alpha)  # directions without features add and take away the same
            + 0.5 * rows * np.log(beta / (2 * np.pi))
            - 0.5 * (beta * residual + alpha * weights)
            - 0.5 * float(np.log(shrunk).sum())
        )
    return float(np.mean(evidences)) / rows


def h_score(features: np.ndarray, labels: np.ndarray) -> float:
    """Return the trace of the features' inverse covariance times that of the class means (Bao et al. 2019).

    The covariance is shrunk (Ledoit and Wolf), without which the score only counts dimensions on few rows
    (Ibrahim et al. 2021, arXiv:2110.06893).

    Args:
        features: (rows, hidden).
        labels: (rows,) class indices.
    """
    from sklearn.covariance import LedoitWolf

    features = features.astype(np.float64)
    features = features - features.mean(0)
    means = np.empty_like(features)
    for label in np.unique(labels):
        means[labels == label] = features[labels == label].mean(0)
    fitted = LedoitWolf().fit(features)
    between = means.T @ means / len(means)
    return float((1 - fitted.shrinkage_) * np.trace(np.linalg.solve(fitted.covariance_, between)))


def neighbours(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> float:
    """Return the cross-validated accuracy of the NEIGHBOURS nearest rows by cosine.

    Args:
        features: (rows, hidden).
        labels: (rows,) class indices.
        seed: of the folds.
    """
    from sklearn.neighbors import KNeighborsClassifier

    return _cross_validated(KNeighborsClassifier(NEIGHBOURS, metric="cosine"), features, labels, seed)


def probe(features: np.ndarray, labels: np.ndarray, seed: int = 0) -> float:
    """Return the cross-validated accuracy of logistic regression on standardised features.

    Args:
        features: (rows, hidden).
        labels: (rows,) class indices.
        seed: of the folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    return _cross_validated(model, features, labels, seed)


def _cross_validated(model: object, features: np.ndarray, labels: np.ndarray, seed: int) -> float:
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    folds = StratifiedKFold(min(FOLDS, int(np.bincount(labels).min())), shuffle=True, random_state=seed)
    return float(cross_val_score(model, features, labels, cv=folds).mean())
