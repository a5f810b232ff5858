"""Which source rows count: each by its likeness to the target, or those alone that are most like it.

A classifier tells the source's texts from the target's. Where its probabilities are calibrated, p(target) / p(source)
is the ratio of the densities, and the mean of the source's losses weighted by it is the target's, as long as a text's
label does not depend on the domain (Bickel et al. 2009, JMLR 10:2137; Sugiyama et al. 2007, JMLR 8:985).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.errors import UserError
from hf_transfer.features import from_first_process
from hf_transfer.texts import normalise

if TYPE_CHECKING:
    from hf_transfer.begin import Job
    from hf_transfer.methods import Setup

KINDS = ("none", "importance", "domains", "nearest")
FOLDS, CALIBRATION_FOLDS = 5, 3
FEWEST = 20  # distinct texts of either side
MOST = 10_000  # rows of either side that one classifier learns from: more hardly change it
CLIP = 10.0  # times the mean: a few rows must not outweigh all others
FLOOR = 0.25  # of the rows, that the weights must be worth
TOLD = 0.55  # area under the ROC curve, under which a classifier has told nothing apart


@dataclass
class SourceArguments:
    """How much the rows of the source count."""

    source_weights: str = field(
        default="none",
        metadata={
            "help": "importance (each row by its likeness to the target), domains (each source by that of its rows), "
            "nearest (the rows most like the target alone), or none."
        },
    )
    nearest_fraction: float = field(default=0.5, metadata={"help": "Share of each label's rows that `nearest` keeps."})

    def __post_init__(self) -> None:
        """Check both."""
        if self.source_weights not in KINDS:
            raise UserError(f"--source_weights is '{self.source_weights}'; use {', '.join(KINDS)}.")
        if not 0 < self.nearest_fraction <= 1:
            raise UserError(f"--nearest_fraction is {self.nearest_fraction}; use a share above 0 and up to 1.")


def weigh(job: Job, args: SourceArguments) -> tuple[Setup, dict[str, Any]]:
    """Return `job.setup` with weights for its training rows, or fewer of them, and what run.json should know.

    Raises:
        UserError: too few texts to learn from, or `domains` for a single source.
    """
    kind, setup = args.source_weights, job.setup
    if kind == "none":
        return setup, {}
    assert job.domains.unlabeled is not None
    train, names = job.domains.train, np.array(job.domains.train["domain"][:])
    sources = sorted({*map(str, names)} - {job.domains.facts["target"]})  # few labelled target rows are no source
    if kind == "domains" and len(sources) < 2:
        there = f"one ({sources[0]})" if sources else "none"
        raise UserError(f"--source_weights domains needs several sources, there is {there}; name more tables with "
                        "--source, or use importance.")  # fmt: skip
    texts = train["text"][:], job.domains.unlabeled["text"][:]
    for side, own in zip(("source training", "unlabelled target"), texts, strict=True):
        if (count := len({normalise(text) for text in own})) < FEWEST:
            raise UserError(f"--source_weights {kind}: there are {count} distinct {side} texts; at least {FEWEST} are "
                            "needed, add more or leave the flag out.")  # fmt: skip
    odds, told = from_first_process(
        target_odds(*texts, setup.seed, quiet=job.console.quiet) if job.arguments.train.process_index == 0 else None
    )
    noted: dict[str, Any] = {"source_weights": kind, "domains_told_apart": round(told, 4)}
    if kind == "nearest":
        rows = nearest(odds, np.array(train["label"][:]), args.nearest_fraction)
        setup, noted = replace(setup, train=setup.train.select(rows)), {**noted, "nearest_rows": len(rows)}
        line = f"the {len(rows):,} of {len(odds):,} training rows that are most like the target are kept"
    else:
        weights, power = importance(odds)
        if kind == "domains":
            means = {str(name): float(weights[names == name].mean()) for name in dict.fromkeys(names)}
            weights = np.array([means[name] for name in names])
            noted["domain_weights"] = {name: round(mean, 4) for name, mean in means.items()}
            line = ", ".join(f"{name} {mean:.2f}" for name, mean in means.items())
        else:
            line = f"{weights.min():.2f} to {weights.max():.2f} a row"
        noted["power"] = round(power, 2)
        shares = np.bincount(np.array(train["label"][:]), weights) / weights.sum()
        noted["label_shares"] = shares.round(6).tolist()
        noted["effective_rows"] = round(effective_rows(weights), 1)
        setup = replace(setup, sample_weights=weights)
        line += f", worth {noted['effective_rows']:,.0f} of {len(weights):,} rows"
        if power < 1:
            line += f" (the odds to the power of {power:.2f}: by themselves they would leave a few)"
    job.console.say(f"source weights: {line}; area under the ROC curve of source against target {told:.2f}")
    if told < TOLD:
        job.console.say("note: source and target can't be told apart by their words, so that the weights mean little.")
    return setup, noted


def target_odds(source: list[str], target: list[str], seed: int, *, quiet: bool = True) -> tuple[np.ndarray, float]:
    """Return p(target) / p(source) of each source text, and the area under the ROC curve of telling them apart.

    No text is scored by a classifier that has learned from it or from an equal one.

    Args:
        source: texts.
        target: texts.
        seed: of the folds.
        quiet: no progress bar.
    """
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold
    from tqdm import tqdm

    texts, is_target = [*source, *target], np.repeat([0, 1], [len(source), len(target)])
    features = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b").fit_transform(texts)
    _, equal = np.unique([normalise(text) for text in texts], return_inverse=True)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(features, is_target, equal)
    rng = np.random.default_rng(seed)
    probabilities = np.empty(len(texts))
    for others, held_out in tqdm(folds, desc="weigh", total=FOLDS, unit="fold", disable=quiet, leave=False):
        sides = [others[is_target[others] == side] for side in (0, 1)]
        fitted = np.sort(np.concatenate([rng.permutation(side)[:MOST] for side in sides]))
        classifier = CalibratedClassifierCV(LogisticRegression(max_iter=300), cv=CALIBRATION_FOLDS, ensemble=False)
        classifier.fit(features[fitted], is_target[fitted])
        probabilities[held_out] = classifier.predict_proba(features[held_out])[:, 1]
    own = np.clip(probabilities[: len(source)], 1e-6, 1 - 1e-6)
    return own / (1 - own), float(roc_auc_score(is_target, probabilities))


def importance(odds: np.ndarray) -> tuple[np.ndarray, float]:
    """Return weights of mean 1 in the ratio of `odds`, cut at CLIP times their mean, and the power that they took.

    Texts give themselves away: their odds span so many orders of magnitude that a few rows would get all the weight.
    The odds are then raised to a power below 1, the largest whose weights are worth FLOOR of the rows (Shimodaira 2000,
    J. Stat. Plan. Inference 90:227, trades bias for variance in this way).
    """
    for power in np.linspace(1.0, 0.0, 101):
        flat = odds**power
        weights = np.minimum(flat / flat.mean(), CLIP)
        weights /= weights.mean()
        if effective_rows(weights) >= FLOOR * len(weights):
            break
    return weights, float(power)


def effective_rows(weights: np.ndarray) -> float:
    """Return how many rows of equal weight would give as steady a mean: the effective sample size (Kong 1992)."""
    return float(weights.sum() ** 2 / np.square(weights).sum())


def nearest(odds: np.ndarray, labels: np.ndarray, fraction: float) -> np.ndarray:
    """Return the positions, in order, of the share of each label's rows with the highest odds.

    After Moore and Lewis 2010 (ACL, P10-2041), who choose by the difference of two language models.
    """
    chosen = []
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        chosen.append(mine[np.argsort(-odds[mine], kind="stable")[: max(1, round(fraction * len(mine)))]])
    return np.sort(np.concatenate(chosen))
