"""Scores with intervals: what a model gets right, how sure that is, and whether one model beats another."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import scipy.special

RESAMPLES = 2000


@cache
def _metrics() -> dict[str, Any]:
    from hf_transfer.metrics.accuracy import Accuracy
    from hf_transfer.metrics.calibration_error import CalibrationError
    from hf_transfer.metrics.macro_f1 import MacroF1
    from hf_transfer.metrics.per_class import PerClass

    kinds = (Accuracy, MacroF1, PerClass, CalibrationError)
    return {kind.__name__: kind(keep_in_memory=True) for kind in kinds}


def classification_scores(logits: np.ndarray, labels: np.ndarray, label_names: list[str]) -> dict[str, Any]:
    """Return accuracy, macro_f1, calibration_error, loss (mean cross-entropy), n and per_class scores.

    Args:
        logits: (rows, classes).
        labels: (rows,) class indices.
        label_names: one name a class.
    """
    # `compute` of the library writes and hashes an Arrow table first: ten times the work of all four metrics
    metrics = {name: metric._compute for name, metric in _metrics().items()}
    predictions = logits.argmax(axis=1)
    both = {"predictions": predictions, "references": labels}
    per_class = metrics["PerClass"](**both, num_classes=len(label_names))["per_class"]
    log_probabilities = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
    probabilities = np.exp(log_probabilities)
    return {
        **metrics["Accuracy"](**both),
        **metrics["MacroF1"](**both),
        **metrics["CalibrationError"](predictions=probabilities.astype(np.float32), references=labels),
        "loss": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        "n": len(labels),
        "per_class": dict(zip(label_names, per_class, strict=True)),
    }


def intervals(predictions: np.ndarray, labels: np.ndarray, seed: int = 0) -> dict[str, list[float]]:
    """Return 95 % percentile-bootstrap intervals over rows for accuracy and macro_f1.

    Args:
        predictions: (rows,) class indices.
        labels: likewise, the true ones.
        seed: of the resampling.
    """
    pairs, counts = np.unique(np.stack([predictions, labels]), axis=1, return_counts=True)
    resampled = _resampled(counts, seed)
    hit = pairs[0] == pairs[1]
    classes = np.unique(pairs)
    predicted, true = ((part[:, None] == classes).astype(np.float64) for part in pairs)
    total = resampled @ (predicted + true)
    scores = np.where(total > 0, 2 * (resampled[:, hit] @ true[hit]) / np.maximum(total, 1), np.nan)
    return {
        "accuracy": _bounds(resampled[:, hit].sum(1) / counts.sum()),
        "macro_f1": _bounds(np.nanmean(scores, axis=1)),  # as in the metric: a class that is not there does not count
    }


def paired_difference(right: np.ndarray, right_other: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Return the accuracy difference on the same rows with its 95 % paired-bootstrap interval.

    Args:
        right: (rows,) True where this model is right.
        right_other: likewise, for the model it is compared with.
        seed: of the resampling.

    Returns:
        `value`, `low`, `high`, in accuracy (not per cent).
    """
    low, high, value = _mean(right.astype(int) - right_other.astype(int), seed)
    return {"value": value, "low": low, "high": high}


def slices(right: np.ndarray, lengths: np.ndarray, domains: list[str], seed: int = 0) -> list[dict[str, Any]]:
    """Return accuracy with its 95 % interval on parts of the rows: by length, and domains if there are several.

    Args:
        right: (rows,) whether each was labelled correctly.
        lengths: (rows,) tokens.
        domains: the domain of each row.
        seed: of the resampling.

    Returns:
        Dicts of `slice` (its name in words), `n`, `accuracy`, `low` and `high`.
    """
    parts = length_parts(lengths)
    names = np.array(domains)
    if len(distinct := sorted(set(domains))) > 1:
        parts |= {f"domain: {name}": names == name for name in distinct}
    out = []
    for name, inside in parts.items():
        if not inside.any():
            continue
        low_bound, high_bound, accuracy = _mean(right[inside].astype(int), seed)
        out.append({"slice": name, "n": int(inside.sum()), "accuracy": accuracy, "low": low_bound,
                    "high": high_bound})  # fmt: skip
    return out


def length_parts(lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Return which rows are in which third by length, by its name; where a third or more are as long as any, halves.

    Args:
        lengths: (rows,) tokens, where longer texts were cut.
    """
    low, high = (int(bound) for bound in np.quantile(lengths, [1 / 3, 2 / 3]))
    if high == (most := int(lengths.max())):  # most likely cut: how long they were is not known
        return {f"length: under {most} tokens": lengths < most, f"length: {most} tokens, or cut there": lengths == most}
    return {
        f"length: short (up to {low} tokens)": lengths <= low,
        f"length: medium ({low + 1} to {high} tokens)": (lengths > low) & (lengths <= high),
        f"length: long (over {high} tokens)": lengths > high,
    }


def _mean(values: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Return the bounds of the mean of a few distinct values, and the mean itself."""
    distinct, counts = np.unique(values, return_counts=True)
    low, high = _bounds(_resampled(counts, seed) @ distinct / len(values))
    return low, high, float(values.mean())


def _resampled(counts: np.ndarray, seed: int) -> np.ndarray:
    """Return how often each kind of row is drawn, (RESAMPLES, kinds), when as many rows are drawn with replacement.

    Rows of one kind are alike, so drawing their numbers is the bootstrap over rows, at a cost that rows don't raise.
    """
    return np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)


def _bounds(values: np.ndarray) -> list[float]:
    return [float(bound) for bound in np.percentile(values, [2.5, 97.5])]
