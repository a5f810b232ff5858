"""Temperature scaling: how far confidence is from accuracy, before and after one number has been fitted."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.optimize
import scipy.special

from hf_transfer.evaluation import classification_scores

RANGE = (0.05, 20.0)  # of temperatures; where a model has every row right, none is low enough


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the number to divide logits by for the least cross-entropy (Guo et al. 2017).

    Args:
        logits: (rows, classes), of rows that were neither trained nor tested on.
        labels: (rows,) class indices.
    """
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return -scipy.special.log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean()

    return float(np.exp(scipy.optimize.minimize_scalar(loss, bounds=np.log(RANGE), method="bounded").x))


def calibration(
    validation_logits: np.ndarray, validation_labels: np.ndarray, logits: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """Return `temperature`, fitted on validation rows, and the test rows' scores `before` and `after` it.

    Args:
        validation_logits: (validation rows, classes).
        validation_labels: (validation rows,) class indices.
        logits: (test rows, classes).
        labels: (test rows,) class indices.

    Returns:
        `before` and `after` hold `calibration_error` and `loss` (mean cross-entropy).
    """
    fitted = temperature(validation_logits.astype(np.float64), validation_labels)
    names = [str(index) for index in range(logits.shape[1])]
    out: dict[str, Any] = {"temperature": fitted}
    for name, divisor in (("before", 1.0), ("after", fitted)):
        scores = classification_scores(logits / divisor, labels, names)
        out[name] = {key: scores[key] for key in ("calibration_error", "loss")}
    return out
