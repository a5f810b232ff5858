"""Pseudo-labels: which target texts a model may be trusted to label, class by class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from hf_transfer.candidates import FEWEST_HELD_OUT
from hf_transfer.data import FEW_UNLABELED
from hf_transfer.errors import UserError, listed
from hf_transfer.features import from_first_process
from hf_transfer.held_out import HeldOut, held_out
from hf_transfer.inference import predict_logits
from hf_transfer.label_prior import em, fit_temperature, tempered, training_mix
from hf_transfer.leaks import tested_rows
from hf_transfer.methods import NO_LABEL

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_transfer.begin import Job
    from hf_transfer.data import Domains
    from hf_transfer.methods import Prepared

PIECE = 256  # texts between two moves of the bar
MOVED = 0.1  # total variation of two mixes of labels; a guess: less may be EM's error where texts differ, not labels


@dataclass(frozen=True)
class Pseudo:
    """Target rows with the labels that a model gave them.

    Attributes:
        rows: (chosen,) positions in the pool, in order.
        labels: (chosen,) class indices.
    """

    rows: np.ndarray
    labels: np.ndarray


def most_confident(probabilities: np.ndarray, shares: np.ndarray, fraction: float) -> Pseudo:
    """Choose the most confident rows of each class, as many as its share of `fraction` of the pool.

    Balanced by class, because confidence is not: one class's texts may all be surer than another's (Zou et al. 2018,
    arXiv:1810.07911).

    Args:
        probabilities: (pool, classes), calibrated: with three classes or more that changes which rows are the surest.
        shares: (classes,) expected of each class.
        fraction: of the pool that is chosen.
    """
    labels = probabilities.argmax(1)
    chosen = []
    for label, share in enumerate(shares):
        mine = np.flatnonzero(labels == label)
        count = min(len(mine), round(fraction * share * len(labels)))
        chosen.append(mine[np.argsort(-probabilities[mine, label], kind="stable")[:count]])
    rows = np.sort(np.concatenate(chosen))
    return Pseudo(rows, labels[rows])


def expected_shares(probabilities: np.ndarray, prior: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Return the shares (classes,) of labels to expect in the target: the source's, unless EM finds clearly others.

    These are met half-way: EM takes all that differs for a matter of the mix, where texts differ too it goes too far.
    Of few texts it may find others by chance.

    Args:
        probabilities: (pool, classes), calibrated.
        prior: (classes,) the mix of labels under which they hold.
        source: (classes,) shares.
    """
    found = em(probabilities, prior) if len(probabilities) >= FEW_UNLABELED else source
    return (found + source) / 2 if np.abs(found - source).sum() / 2 > MOVED else source


def sampled(job: Job, most: int | None) -> Job:
    """Return `job` with at most so many of the target's unlabelled texts, chosen at random by its seed."""
    assert job.pool is not None
    assert job.domains.unlabeled is not None
    if most is None or len(job.pool) <= most:
        return job
    job.console.say(f"target: a random {most:,} of its {len(job.pool):,} unlabelled texts (--pool_rows)")
    rows = np.sort(np.random.default_rng(job.setup.seed).permutation(len(job.pool))[:most])
    domains = replace(job.domains, unlabeled=job.domains.unlabeled.select(rows))
    return replace(job, domains=domains, pool=job.pool.select(rows))


def training_rows(job: Job, pseudo: Pseudo | None) -> Dataset:
    """Return the source's training rows, then the target's texts with the labels they are trusted with.

    A method that trains by itself is given the others too, labelled NO_LABEL: it has their logits then, at no cost.
    """
    from datasets import concatenate_datasets

    assert job.pool is not None
    labels = np.full(len(job.pool), NO_LABEL)
    if pseudo is not None:
        labels[pseudo.rows] = pseudo.labels
    pool = job.pool.add_column("labels", labels)
    if job.arguments.method_module.DEFAULTS:
        pool = pool.select(np.flatnonzero(labels != NO_LABEL))
    return concatenate_datasets([job.encoded["train"], pool])


def logits_of(job: Job, prepared: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits of the target's texts and of the held-out source rows, from a method that has them or anew.

    Args:
        job: what was trained on.
        prepared: the trained model.
    """
    assert job.pool is not None
    if prepared.logits is not None:
        of_training, of_validation = prepared.logits()
        return of_training[-len(job.pool) :], of_validation
    anew = partial(predict_logits, prepared.model, collator=job.setup.collator, precision=job.setup.precision,
                   quiet=job.setup.quiet)  # fmt: skip
    return anew(job.pool), anew(job.setup.validation)


def taught(folders: list[str], domains: Domains, *, quiet: bool) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the mean probabilities (pool, classes) of the unlabelled texts by finished runs, and their mean prior.

    The latter, the mix of labels that they learned from, only where all could be calibrated.

    Each run's are calibrated first by the source rows that it held out, if any.

    Args:
        folders: of the runs.
        domains: whose unlabelled texts are labelled.
        quiet: no progress bar.

    Raises:
        UserError: no finished run, other labels, or a run that learned from labels of rows that are tested here, or
            may have.
    """
    from torch import distributed
    from tqdm import tqdm

    from hf_transfer.predict import scorer
    from hf_transfer.results import load_run

    runs = [load_run(folder) for folder in folders]
    for run in runs:
        if sorted(run.label_names) != sorted(domains.label_names):
            raise UserError(f"--teachers {run.folder} knows the labels {listed(run.label_names)}; these data have "
                            f"{listed(domains.label_names)}. Name runs with the same labels.")  # fmt: skip
        if run.data["fingerprint"] != domains.facts["fingerprint"] and str(run.arguments["target_shots"]) != "0":
            raise UserError(f"--teachers {run.folder} learned from target labels, and from another split than this: it "
                            "may have seen rows that are tested here. Name a run without --target_shots.")  # fmt: skip
        if seen := tested_rows(run, domains, quiet=quiet):
            raise UserError(f"LEAK: --teachers {run.folder} learned from the labels of {seen} rows that are tested "
                            "here, or may have; name a run that was trained without them.")  # fmt: skip
    if distributed.is_available() and distributed.is_initialized() and distributed.get_rank() > 0:
        return from_first_process(None)
    assert domains.unlabeled is not None
    texts = domains.unlabeled["text"]
    total, priors, powers = np.zeros((len(texts), len(domains.label_names))), [], []
    with tqdm(desc="label", total=len(runs) * len(texts), unit="text", disable=quiet, leave=False) as bar:
        for run in runs:
            score, columns = scorer(run.folder), [run.label_names.index(name) for name in domains.label_names]
            priors.append(training_mix(run)[columns])
            powers.append(temperature(held_out(run, domains.label_names), priors[-1]))
            for begin in range(0, len(texts), PIECE):
                part = texts[begin : begin + PIECE]
                total[begin : begin + PIECE] += tempered(score(part)[:, columns], powers[-1] or 1.0)
                bar.update(len(part))
    return from_first_process((total / len(runs), None if None in powers else np.mean(priors, axis=0)))


def temperature(known: HeldOut, prior: np.ndarray) -> float | None:
    """Return the temperature that calibrates a model by labelled rows; None where there are too few.

    Args:
        known: the rows.
        prior: (classes,) the mix of labels that it learned from.
    """
    return fit_temperature(known, prior) if len(known.labels) >= FEWEST_HELD_OUT else None
