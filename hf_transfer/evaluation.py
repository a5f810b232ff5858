"""Scores with intervals: what a model gets right, how sure that is, and whether one model beats another."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import scipy.special
import scipy.stats

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
    metrics = _metrics()
    predictions = logits.argmax(axis=1)
    both = {"predictions": predictions, "references": labels}
    per_class = metrics["PerClass"].compute(**both, num_classes=len(label_names))["per_class"]
    log_probabilities = scipy.special.log_softmax(logits.astype(np.float64), axis=1)
    probabilities = np.exp(log_probabilities)
    return {
        **metrics["Accuracy"].compute(**both),
        **metrics["MacroF1"].compute(**both),
        **metrics["CalibrationError"].compute(predictions=probabilities, references=labels),
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
    classes = np.unique(np.concatenate([predictions, labels]))

    def macro_f1(predicted: np.ndarray, true: np.ndarray, axis: int = -1) -> np.ndarray:
        scores = []
        for label in classes:
            hit = ((predicted == label) & (true == label)).sum(axis=axis)
            total = (predicted == label).sum(axis=axis) + (true == label).sum(axis=axis)
            scores.append(np.where(total > 0, 2 * hit / np.maximum(total, 1), np.nan))
        return np.nanmean(scores, axis=0)  # as in the metric: a class that the resample lacks does not count

    def accuracy(predicted: np.ndarray, true: np.ndarray, axis: int = -1) -> np.ndarray:
        return (predicted == true).mean(axis=axis)

    out = {}
    small = np.min_scalar_type(int(classes.max()) if len(classes) else 0)
    data = (predictions.astype(small), labels.astype(small))
    for name, statistic in (("accuracy", accuracy), ("macro_f1", macro_f1)):
        out[name] = list(_bootstrap(data, statistic, seed))
    return out


def paired_difference(right: np.ndarray, right_other: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Return the accuracy difference on the same rows with its 95 % paired-bootstrap interval.

    Args:
        right: (rows,) True where this model is right.
        right_other: likewise, for the model it is compared with.
        seed: of the resampling.

    Returns:
        `value`, `low`, `high`, in accuracy (not per cent).
    """
    difference = right.astype(np.float32) - right_other.astype(np.float32)
    low, high = _bootstrap((difference,), lambda d, axis=-1: d.mean(axis=axis), seed)
    return {"value": float(difference.mean()), "low": low, "high": high}


def slices(right: np.ndarray, lengths: np.ndarray, domains: list[str], seed: int = 0) -> list[dict[str, Any]]:
    """Return accuracy with its 95 % interval on parts of the rows: thirds by length, and domains if there are several.

    Args:
        right: (rows,) whether each was labelled correctly.
        lengths: (rows,) tokens.
        domains: the domain of each row.
        seed: of the resampling.

    Returns:
        Dicts of `slice` (its name in words), `n`, `accuracy`, `low` and `high`.
    """
    low, high = (int(bound) for bound in np.quantile(lengths, [1 / 3, 2 / 3]))
    parts = {
        f"length: short (up to {low} tokens)": lengths <= low,
        f"length: medium ({low + 1} to {high} tokens)": (lengths > low) & (lengths <= high),
        f"length: long (over {high} tokens)": lengths > high,
    }
    names = np.array(domains)
    if len(distinct := sorted(set(domains))) > 1:
        parts |= {f"domain: {name}": names == name for name in distinct}
    out = []
    for name, inside in parts.items():
        if not inside.any():
            continue
        values = right[inside].astype(np.float32)
        bounds = _bootstrap((values,), lambda v, axis=-1: v.mean(axis=axis), seed)
        out.append({"slice": name, "n": len(values), "accuracy": float(values.mean()), "low": bounds[0],
                    "high": bounds[1]})  # fmt: skip
    return out


def _bootstrap(data: tuple[np.ndarray, ...], statistic: Any, seed: int) -> tuple[float, float]:
    if len(data[0]) == 1:  # nothing to resample, and scipy refuses
        return (float(statistic(*data)),) * 2
    result = scipy.stats.bootstrap(
        data,
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // max(1, len(data[0]))),
        vectorized=True,
        paired=len(data) > 1,
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
