"""Scores with intervals: what a model gets right, how sure that is, and whether one model beats another."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from typing import Any

import numpy as np
import scipy.special

from hf_transfer.errors import listed
from hf_transfer.statistics import metric
from hf_transfer.statistics.effects import paired
from hf_transfer.statistics.metric import Metric
from hf_transfer.statistics.references import Reference

RESAMPLES = 2000
NEARLY_ALL, MOSTLY = 0.98, 0.95  # shares of the rows that get one label, and that have it
ENOUGH = 10  # rows of a label that a model must find one of
FEW, FEW_OF_LABEL = 100, 20  # test rows, below which a test says how little it can show


@cache
def _metrics() -> dict[str, Any]:
    from hf_transfer.metrics.accuracy import Accuracy
    from hf_transfer.metrics.calibration_error import CalibrationError
    from hf_transfer.metrics.macro_f1 import MacroF1
    from hf_transfer.metrics.per_class import PerClass

    kinds = (Accuracy, MacroF1, PerClass, CalibrationError)
    return {kind.__name__: kind(keep_in_memory=True) for kind in kinds}


def classification_scores(logits: np.ndarray, labels: np.ndarray, label_names: list[str]) -> dict[str, Any]:
    """Return accuracy, macro_f1, balanced_accuracy, calibration_error, loss, n and per_class scores.

    The loss is the mean cross-entropy.

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
        "balanced_accuracy": float(np.mean([part["recall"] for part in per_class if part["support"]])),
        **metrics["CalibrationError"](predictions=probabilities.astype(np.float32), references=labels),
        "loss": float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        "n": len(labels),
        "per_class": dict(zip(label_names, per_class, strict=True)),
    }


def choose_metrics(given: str | None, facts: dict[str, Any]) -> tuple[str, str, str]:
    """Return the metric that is reported, that which training chooses by, and one line that says why.

    Test rows decide on the first one by their mix of labels alone, before anything is trained; labelled training and
    validation rows decide on the second. Without target labels to test on, the source's decide on both.

    Args:
        given: the user's own, or None.
        facts: of the data: `labels` by set.

    Raises:
        UserError: there is no such metric or label.
    """
    labels = facts["labels"]
    known = {name: labels["train"].get(name, 0) + labels["validation"].get(name, 0)
             for name in {**labels["train"], **labels["validation"]}}  # fmt: skip
    names = list(dict.fromkeys([*known, *labels["source_test"], *labels["target_test"]]))
    if given is not None:
        name = metric.load(given, names).name
        return name, name, f"metric: {metric.title(name)} (--metric)"
    by_training, of_training = metric.fitting(known, "training")
    if not labels["target_test"]:
        return by_training, by_training, f"metric: {metric.title(by_training)} ({of_training})"
    reported, of_test = metric.fitting(labels["target_test"], "test")
    line = f"metric: {metric.title(reported)} ({of_test}; --metric for another one)"
    if by_training != reported:
        line += f"; checkpoints by {metric.title(by_training)} ({of_training})"
    return reported, by_training, line


def collapse(answers: np.ndarray, labels: np.ndarray, label_names: list[str]) -> str:
    """Return in words that a model tells hardly any labels apart; empty where it does.

    It gives one label to nearly all rows, of which not nearly all have it, or never finds a label that is not rare.

    Args:
        answers: (rows,) class indices.
        labels: likewise, the true ones.
        label_names: of the classes.
    """
    given, true = (np.bincount(side, minlength=len(label_names)) for side in (answers, labels))
    most = int(given.argmax())
    if given[most] > NEARLY_ALL * len(labels) and true[most] < MOSTLY * len(labels):
        return f"gives {given[most] / len(labels):.1%} of the rows the label '{label_names[most]}'"
    found = np.bincount(labels[answers == labels], minlength=len(label_names))
    missed = [i for i in np.flatnonzero(true >= ENOUGH) if not found[i]]
    if not missed:
        return ""
    return "finds none of the rows labelled " + listed([f"'{label_names[i]}' ({true[i]})" for i in missed], 3)


def small_test(counts: dict[str, int], detectable: float) -> str:
    """Say which difference so few test rows could show; empty where there are enough.

    Args:
        counts: test rows by label.
        detectable: the difference that is shown in 80 % of such tests, not per cent.
    """
    rows, there = sum(counts.values()), {name: count for name, count in counts.items() if count}
    rarest = min(there, key=lambda name: there[name])
    if rows >= FEW and there[rarest] >= FEW_OF_LABEL:
        return ""
    points = 100 * min(1.0, detectable)
    return (f"A small test: {rows} rows, the fewest of them labelled '{rarest}' ({there[rarest]}); a true difference "
            f"of less than about {points:.0f} points would often be missed (80 % power).")  # fmt: skip


def intervals(
    predictions: np.ndarray, labels: np.ndarray, seed: int = 0, more: Collection[Metric] = ()
) -> dict[str, list[float]]:
    """Return 95 % percentile-bootstrap intervals over rows for accuracy, macro_f1, balanced_accuracy and `more`.

    Args:
        predictions: (rows,) class indices.
        labels: likewise, the true ones.
        seed: of the resampling.
        more: further metrics.
    """
    pairs, counts = np.unique(np.stack([predictions, labels]), axis=1, return_counts=True)
    resampled = _resampled(counts, seed)
    names = [str(i) for i in range(int(pairs.max()) + 1)]
    every = [*(metric.load(name, names) for name in metric.NAMES), *more]
    return {one.name: _bounds(one.value(resampled @ one.statistics(*pairs))) for one in every}


def paired_difference(one: np.ndarray, other: np.ndarray, labels: np.ndarray, by: Metric) -> dict[str, Any]:
    """Return the difference of two models' scores on the same rows, with its 95 % interval.

    Args:
        one: (rows,) class indices.
        other: likewise, of the model it is compared with.
        labels: the true ones.
        by: the metric in force.

    Returns:
        `value`, `low`, `high` and `detectable` (the difference that would be shown in 80 % of such tests) in that
        metric (not per cent), and `value`, `low`, `high` in each of `accuracy` and `macro_f1`.
    """
    return _difference(lambda m: (m.shares(m.statistics(one, labels)), m.shares(m.statistics(other, labels))),
                       labels, by)  # fmt: skip


def reference_difference(one: np.ndarray, reference: Reference, by: Metric) -> dict[str, Any]:
    """Return the same against a reference."""
    labels = reference.labels
    return _difference(lambda m: (m.shares(m.statistics(one, labels)), reference.row_shares(m)), labels, by)


def _difference(
    shares: Callable[[Metric], tuple[np.ndarray, np.ndarray]], labels: np.ndarray, by: Metric
) -> dict[str, Any]:
    names = by.label_names
    every = {each.name: each for each in (metric.load("accuracy", names), metric.load("macro_f1", names), by)}
    found = {name: paired(*shares(each), labels) for name, each in every.items()}
    sides = {name: {"value": found[name].value, "low": found[name].low, "high": found[name].high}
             for name in ("accuracy", "macro_f1")}  # fmt: skip
    effect = found[by.name]
    return {"value": effect.value, "low": effect.low, "high": effect.high, "p": effect.p,
            "detectable": effect.detectable, **sides}  # fmt: skip


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
