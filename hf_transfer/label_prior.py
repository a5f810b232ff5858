"""The target's mix of labels, from what a classifier says of its unlabelled rows, and outputs that fit that mix.

All of it assumes label shift: texts of one label look alike in source and target, only the labels' shares differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.errors import UserError, listed
from hf_transfer.held_out import HeldOut

if TYPE_CHECKING:
    from hf_transfer.results import Run

ESTIMATORS = ("em", "bbse")
FEWEST = 50  # unlabelled rows that a mix can be estimated from
LITTLE = 0.02  # total variation between two mixes that would change next to nothing
RESAMPLES = 200
SHOWN = 6  # labels in a line
SAMPLE = 5000  # rows that are resampled: of more than these the interval is a little too wide
TEMPERATURES = (0.1, 10.0)
TOLERANCE = 1e-7  # of a share, between two steps of EM
SINGULAR = 0.1  # least singular value of the rates, below which BBSE divides by noise


@dataclass(frozen=True)
class Mix:
    """An estimated mix of labels.

    Attributes:
        estimator: one of ESTIMATORS.
        rows: unlabelled rows that it was estimated from.
        shares, low, high: (classes,) the mean over resamples, which is 0 for no label by mere chance, and the bounds of
            95 % intervals.
        training: (classes,) what the run learned from, as its class weights weighed it.
        temperature: the run's logits were divided by it; None without held-out rows to find it by.
        held_out: how many there are.
    """

    estimator: str
    rows: int
    shares: np.ndarray
    low: np.ndarray
    high: np.ndarray
    training: np.ndarray
    temperature: float | None
    held_out: int

    @property
    def differs(self) -> bool:
        """Whether it differs from the training mix by more than chance, and enough to matter."""
        apart = (self.training < self.low) | (self.training > self.high)
        return bool(apart.any() and np.abs(self.shares - self.training).sum() / 2 > LITTLE)

    def apply(self, probabilities: np.ndarray) -> np.ndarray:
        """Return probabilities (rows, classes) as they are under this mix; the same ones where it does not differ."""
        if not self.differs:
            return probabilities
        return corrected(tempered(probabilities, self.temperature or 1.0), self.training, self.shares)

    def facts(self, label_names: list[str]) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        columns = zip(label_names, self.shares, self.low, self.high, self.training, strict=True)
        return {
            "estimator": self.estimator,
            "rows": self.rows,
            "labels": {
                name: {"share": float(share), "low": float(low), "high": float(high), "training": float(before)}
                for name, share, low, high, before in columns
            },
            "temperature": self.temperature,
            "held_out_rows": self.held_out,
            "corrected": self.differs,
        }

    def summary(self, label_names: list[str]) -> str:
        """Return one line: the mix with its intervals, that of the training, and what was done."""
        columns = list(zip(label_names, self.shares, self.low, self.high, self.training, strict=True))
        found = ", ".join(f"{name} {share:.1%} [{100 * low:.1f}, {100 * high:.1f}] (in training {before:.1%})"
                          for name, share, low, high, before in columns[:SHOWN])  # fmt: skip
        found += f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else ""
        done = "predictions are corrected" if self.differs else "no clear difference, so nothing is corrected"
        if self.temperature is None:
            return f"label mix by {self.estimator}: {found}; {done}; not calibrated, the run held out no source rows"
        how = f"temperature {self.temperature:.2f} from {self.held_out} held-out source rows"
        return f"label mix by {self.estimator}: {found}; {done}; {how}"


def em(probabilities: np.ndarray, prior: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """Return the mix (classes,) of largest likelihood (Saerens, Latinne and Decaestecker 2002, Neural Computation 14).

    Args:
        probabilities: (rows, classes), calibrated, of unlabelled target rows.
        prior: (classes,) the training mix, under which they hold.
        start: (classes,) where to begin; the prior by default.
    """
    ratios = probabilities / prior
    mix = prior if start is None else start
    while True:
        joint = ratios * mix
        new = (joint / joint.sum(axis=1, keepdims=True)).mean(axis=0)
        if not np.abs(new - mix).max() >= TOLERANCE:  # also of what is no number
            return new
        mix = new


def bbse(probabilities: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Return the mix (classes,) that explains how often each label is predicted (Lipton et al. 2018, arXiv:1802.03916).

    It solves `rates @ mix = shares of the predictions`, by least squares without negative shares.

    Args:
        probabilities: (rows, classes) of unlabelled target rows; only the largest of a row counts.
        rates: (classes, classes), how often [i, j] label i is predicted where j is true; columns sum to 1.
    """
    from scipy.optimize import nnls

    classes = probabilities.shape[1]
    mix, _ = nnls(rates, np.bincount(probabilities.argmax(axis=1), minlength=classes) / len(probabilities))
    return mix / mix.sum()


def class_rates(known: HeldOut) -> np.ndarray:
    """Return how often [i, j] label i is predicted where j is true, (classes, classes); nan where no row has j."""
    counts = np.zeros((known.probabilities.shape[1],) * 2)
    np.add.at(counts, (known.probabilities.argmax(axis=1), known.labels), 1)
    with np.errstate(invalid="ignore"):
        return counts / counts.sum(axis=0)


def corrected(probabilities: np.ndarray, prior: np.ndarray, mix: np.ndarray) -> np.ndarray:
    """Return probabilities (rows, classes) that hold under `prior` as they are under `mix` (both (classes,))."""
    joint = probabilities * (mix / prior)
    return joint / joint.sum(axis=1, keepdims=True)


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probabilities (rows, classes) that logits divided by `temperature` give."""
    from scipy.special import softmax

    return softmax(_logs(probabilities) / temperature, axis=1)


def fit_temperature(known: HeldOut, prior: np.ndarray) -> float:
    """Return the temperature of least cross-entropy on labelled rows (Guo et al. 2017, arXiv:1706.04599).

    Args:
        known: the rows; labels are weighed as if they came in the shares of `prior`.
        prior: (classes,) the training mix.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    logs, labels = _logs(known.probabilities), known.labels
    weights = (prior / np.maximum(np.bincount(labels, minlength=len(prior)), 1))[labels]

    def loss(power: float) -> float:
        return -float(weights @ log_softmax(logs / np.exp(power), axis=1)[np.arange(len(labels)), labels])

    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))


def training_mix(run: Run) -> np.ndarray:
    """Return the shares (classes,) of the labels that `run` learned from, as it weighed its rows and classes."""
    own = run.choices.get("label_shares") or [run.data["labels"]["train"][name] for name in run.label_names]
    return weighed_mix(own, run.choices.get("class_weights"))


def weighed_mix(counts: list[float], class_weights: list[float] | None) -> np.ndarray:
    """Return shares (classes,) of labels that are weighed by class."""
    weighed = np.array(counts, dtype=np.float64) * np.array(class_weights or 1.0)
    return weighed / weighed.sum()


def check_estimator(estimator: str, run: Run, known: HeldOut) -> None:
    """Check that `run` knows enough of itself.

    Raises:
        UserError: no such estimator, or BBSE for a run that has no held-out rows of a label or can't tell labels apart.
    """
    if estimator not in ESTIMATORS:
        raise UserError(f"--label_prior is '{estimator}'; use {' or '.join(ESTIMATORS)}.")
    if estimator != "bbse":
        return
    rates = class_rates(known)
    if missing := [name for name, column in zip(run.label_names, rates.T, strict=True) if np.isnan(column).any()]:
        raise UserError(f"--label_prior bbse: {run.folder} has no held-out source rows labelled {listed(missing)}; use "
                        "em, or train with a --test_fraction.")  # fmt: skip
    if np.linalg.svd(rates, compute_uv=False).min() < SINGULAR:
        raise UserError(f"--label_prior bbse: {run.folder} hardly tells its labels apart on held-out source rows, so "
                        "its predictions say nothing of their shares; use another run.")  # fmt: skip


def estimate(
    estimator: str,
    probabilities: np.ndarray,
    training: np.ndarray,
    known: HeldOut,
    *,
    seed: int = 0,
    quiet: bool = True,
) -> Mix:
    """Estimate the mix of unlabelled rows, with an interval from resampling them and the held-out rows.

    Args:
        estimator: one of ESTIMATORS, see `check_estimator`.
        probabilities: (rows, classes), as the run gives them.
        training: (classes,) see `training_mix`.
        known: held-out source rows to calibrate by; possibly none for EM.
        seed: of the resampling.
        quiet: no progress bar.

    Raises:
        UserError: too few rows.
    """
    from tqdm import trange

    if len(probabilities) < FEWEST:
        raise UserError(f"--label_prior: {len(probabilities)} rows with text are too few to estimate a mix from, "
                        f"{FEWEST} are needed; leave it out.")  # fmt: skip

    def once(rows: np.ndarray, known: HeldOut, start: np.ndarray) -> np.ndarray:
        if estimator == "bbse":
            return bbse(rows, class_rates(known))
        return em(tempered(rows, fit_temperature(known, training)) if len(known.labels) else rows, training, start)

    whole = once(probabilities, known, training)
    rng = np.random.default_rng(seed)
    sample = probabilities[rng.permutation(len(probabilities))[:SAMPLE]]
    by_label = [np.flatnonzero(known.labels == label) for label in range(len(training))]
    resampled = []
    for _ in trange(RESAMPLES, desc="label mix", delay=2, leave=False, disable=quiet):
        drawn = np.concatenate([rows[rng.integers(max(1, len(rows)), size=len(rows))] for rows in by_label])
        again = HeldOut(known.probabilities[drawn], known.labels[drawn])
        resampled.append(once(sample[rng.integers(len(sample), size=len(sample))], again, whole))
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    temperature = fit_temperature(known, training) if len(known.labels) else None
    shares = np.mean(resampled, axis=0)
    return Mix(estimator, len(probabilities), shares, low, high, training, temperature, len(known.labels))


def _logs(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, 1e-30, dtype=np.float64))
