"""Self-training: label the target's own texts with a model, learn from the surest of them, and again.

    accelerate launch recipes/self_train.py --method full --source books.csv --target kitchen.csv \
        --target_unlabeled kitchen_raw.jsonl --output_dir runs/self
    hf-transfer run self_train --teachers runs/full runs/frozen --source books.csv --target kitchen.csv \
        --target_unlabeled kitchen_raw.jsonl --output_dir runs/self

The first teacher is a model trained on the source here, or the mean of finished runs (--teachers). Every round starts
from the pretrained weights; --method frozen encodes source and target once, then a round is a head, and the result is
the mean of the first head and the last (without --teachers, and if the model's last layer has room for both); there a
classifier on the words of the texts has its say on the labels, too (co-training). It ends early when a round changes
hardly any label, and a round that is worse on held-out source rows is dropped. The target's labels, where it has any,
are for testing alone.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.special
from accelerate.utils import set_seed
from torch import nn

from hf_transfer import methods, pooling
from hf_transfer.arguments import expand, flag, parse
from hf_transfer.begin import Job, begin, class_weights
from hf_transfer.co_training import with_words
from hf_transfer.errors import UserError, reporting_errors
from hf_transfer.features import from_first_process
from hf_transfer.finish import finish
from hf_transfer.happened import DROPPED
from hf_transfer.held_out import HeldOut
from hf_transfer.label_prior import tempered, weighed_mix
from hf_transfer.leaks import seen_before
from hf_transfer.methods import NO_LABEL, Prepared
from hf_transfer.models import load_model
from hf_transfer.pseudo import (
    Pseudo,
    expected_shares,
    logits_of,
    most_confident,
    sampled,
    taught,
    temperature,
    training_rows,
)
from hf_transfer.results import Run, load_run, write_atomically
from hf_transfer.statistics import metric
from hf_transfer.training import fit

SAME = 0.99  # share of equal labels after which another round would bring nothing
WORSE = 0.02  # of the score on held-out source rows, for which a round is dropped
ENCODED = "cached_encoding_seconds"  # of earlier runs
FROZEN = ("--fraction", "1.0", "--pool_rows", "2000")  # sure labels teach a frozen encoder least; more texts add little


@dataclass
class SelfTraining:
    """How often, and of how many texts."""

    rounds: int = field(default=1, metadata={"help": "Times that a model is trained on the labels of the one before."})
    fraction: float = field(
        default=0.7,
        metadata={"help": "Share of the target's texts whose labels are trusted; with --method frozen 1.0 by default."},
    )
    pool_rows: int | None = field(
        default=None,
        metadata={"help": "Use a random sample of so many target texts; by default all, with --method frozen 2000."},
    )
    teachers: list[str] = field(
        default_factory=list, metadata={"help": "Finished runs that give the first labels, instead of a round of ours."}
    )

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.rounds < 1:
            raise UserError(f"--rounds is {self.rounds}; use 1 or more.")
        if not 0 < self.fraction <= 1:
            raise UserError(f"--fraction is {self.fraction}; use a share above 0 and up to 1.")
        if self.pool_rows is not None and self.pool_rows < 1:
            raise UserError(f"--pool_rows is {self.pool_rows}; use 1 or more.")


def main(argv: list[str] | None = None) -> Run:
    """Read, train, label, train again, test and save; returns the run."""
    argv = expand(sys.argv[1:] if argv is None else list(argv))
    by_trainer = bool(methods.load(flag(argv, "--method", "full")).DEFAULTS)
    arguments = parse([*(() if by_trainer else FROZEN), *argv], description=__doc__, more=(SelfTraining,))
    (how,) = arguments.more
    if not arguments.data.target_unlabeled:
        raise UserError("--target_unlabeled is missing: name a table of target texts, which need no labels.")
    with begin(arguments) as job:
        job = sampled(job, how.pool_rows)
        by = metric.load(job.setup.chosen_by, job.domains.label_names)
        source = np.array(job.encoded["train"]["labels"][:])
        truth = np.array(job.encoded["validation"]["labels"][:] if len(job.encoded["validation"]) else [], dtype=int)
        shares = np.bincount(source, minlength=len(job.domains.label_names)) / len(source)
        before, labels, kept, first, first_mix, log, best = None, None, None, None, shares, [], 0.0
        dropped = None
        if how.teachers:
            for teacher in how.teachers:
                run = load_run(teacher)
                known = run.data.get("pretrained_on_test_texts", 0)  # of those that it was tested on itself
                if seen := max(known, *(seen_before(name, job.domains.test) for name in (teacher, run.model))):
                    worst = max(seen, job.domains.facts.get("pretrained_on_test_texts", 0))
                    job.domains.facts["pretrained_on_test_texts"] = worst
                    job.console.say(f"LEAK: --teachers {teacher} began with a model that was pretrained on {seen} of "
                                    "the texts that are tested")  # fmt: skip
            with job.meter.stage("label the target"):
                probabilities, prior = taught(how.teachers, job.domains, quiet=job.console.quiet)
                before = _chosen(job, probabilities, prior, shares, how.fraction)
            labels = probabilities.argmax(1)
        for number in range(1 if how.teachers else 0, how.rounds + 1):
            _keep_own_checkpoints(job, later=kept is not None)
            now, prepared, history = _round(job, before, kept[1] if kept else None)
            with job.meter.stage("label the target"):
                of_pool, of_source = logits_of(now, prepared)
            probabilities, of_source = (scipy.special.softmax(logits, axis=1) for logits in (of_pool, of_source))
            mix = weighed_mix(prepared.choices["label_shares"], now.setup.class_weights)
            power = temperature(HeldOut(of_source, truth), mix)
            right = by.score(of_source.argmax(1), truth) if len(truth) else None
            same = float((probabilities.argmax(1) == labels).mean()) if number else 0.0
            rows = len(source) + (len(before.rows) if before is not None else 0)
            log.append({"round": number, "rows": rows, "source_validation": right, "labels_kept": same})
            job.console.say(f"round {number}: {rows} rows"
                            + (f", {by.title} {right:.1%} on held-out source rows" if right is not None else "")
                            + (f", {same:.1%} of the target's labels as before" if number else ""))  # fmt: skip
            if (right or 0.0) < best - WORSE:
                job.console.say(f"round {number} is worse on the source and dropped.")
                dropped = {"round": number, "kept": number - 1, "before": best, "after": right or 0.0}
                break
            best, kept, labels = max(best, right or 0.0), (now, prepared, history), probabilities.argmax(1)
            first, first_mix = (prepared.head, mix) if number == 0 else (first, first_mix)
            if same > SAME or number == how.rounds:
                break
            with job.meter.stage("label the target"):
                calibrated = tempered(probabilities, power or 1.0)
                before = _chosen(job, calibrated, mix if power else None, shares, how.fraction)
        assert kept is not None
        now, prepared, history = kept
        if _averaged(prepared, first):
            prepared.choices["mean_with_first_head"] = True  # a mean of logits: the mixes' geometric mean is behind it
            last_mix = weighed_mix(prepared.choices["label_shares"], now.setup.class_weights)
            both = np.sqrt(first_mix * last_mix) / np.array(now.setup.class_weights or 1.0)
            prepared.choices["label_shares"] = (both / both.sum()).round(6).tolist()
        prepared.choices.update({"rounds": log, "pool_rows": len(job.pool or ())})
        if dropped:
            prepared.choices[DROPPED] = dropped
        # the first round of all has seen no text of the target
        adaptation = "" if dropped and not dropped["kept"] else "self_train"
        return finish(now, prepared, recipe="self_train", history=history, adaptation=adaptation)


def _chosen(
    job: Job, probabilities: np.ndarray, prior: np.ndarray | None, source: np.ndarray, fraction: float
) -> Pseudo:
    """Return the labels that are trusted: the model's, for a frozen encoder those of the texts' words with them.

    It says so where the target's mix of labels is not the source's.

    Args:
        job: what is trained.
        probabilities: (pool, classes) of the target's texts.
        prior: (classes,) the mix under which they hold, or None where they are not calibrated.
        source: (classes,) shares of the labels in the source.
        fraction: of the texts that is trusted.
    """
    shares = source if prior is None else expected_shares(probabilities, prior, source)
    if shares is not source:
        mix = ", ".join(f"{name} {share:.0%}" for name, share in zip(job.domains.label_names, shares, strict=True))
        job.console.say(f"the target seems to have another mix of labels than the source: {mix}")
    if job.arguments.method_module.DEFAULTS:  # what trains through its layers gains nothing by the words' say
        return most_confident(probabilities, shares, fraction)
    assert job.domains.unlabeled is not None
    both = None
    if job.arguments.train.process_index == 0:
        known = job.domains.train
        both = with_words(probabilities, job.domains.unlabeled["text"][:], known["text"][:],
                          np.array(known["label"][:]), job.setup.seed, quiet=job.console.quiet)  # fmt: skip
    return most_confident(from_first_process(both), shares, fraction)


def _round(job: Job, pseudo: Pseudo | None, last: Prepared | None) -> tuple[Job, Prepared, list[dict[str, float]]]:
    """Train from the pretrained weights: what a round got wrong, the next one need not keep."""
    arguments, seed = job.arguments, job.setup.seed
    settled, chosen = (last.settled, last.choices) if last else ({}, {})
    loaded = load_model(arguments.model, job.task, job.domains.label_names, seed)
    train, classes = training_rows(job, pseudo), len(job.domains.label_names)
    learned = np.array(train["labels"][:])
    learned = learned[learned != NO_LABEL]
    weights = class_weights(arguments, learned, classes)
    job = replace(job, setup=replace(job.setup, loaded=loaded, train=train, class_weights=weights))
    set_seed(seed)
    with job.meter.stage("prepare"):
        prepared = arguments.method_module.prepare(job.setup, replace(arguments.method, **settled))
    shares = np.bincount(learned, minlength=classes) / len(learned)
    own = prepared.choices | {"label_shares": shares.round(6).tolist()}
    if last and not arguments.method_module.DEFAULTS:
        own.pop(ENCODED, None)  # the first round has encoded it, and this run has paid for that
    elif last and ENCODED in own:
        own[ENCODED] += chosen.get(ENCODED, 0.0)
    prepared = replace(prepared, choices={**chosen, **own})
    with job.meter.stage("train"):
        history = fit(prepared, job.setup, job.task, arguments, job.partial, job.meter)
    if prepared.inputs is not None:  # its lower layers were left out while training
        prepared.merge(prepared.model, loaded.tokenizer)
    return job, prepared, history


def _keep_own_checkpoints(job: Job, *, later: bool) -> None:
    """Remove the checkpoints of other rounds; a first one that was killed goes on from its own with --resume."""
    folder = job.partial / "checkpoints"
    note = folder / "of_later_round"  # what those were trained on is gone after a kill: the rounds begin again
    if from_first_process(later or note.is_file()) and job.arguments.train.process_index == 0:
        shutil.rmtree(folder, ignore_errors=True)
        if later:
            folder.mkdir(parents=True)
            write_atomically(note, "")
    from_first_process(None)  # the others look for checkpoints when it is done


def _averaged(prepared: Prepared, first: nn.Module | None) -> bool:
    """Write the mean of its own head and the `first` into the model, if there are two and it has room for both."""
    if first is None or prepared.head is None or first is prepared.head:
        return False
    head = pooling.mixture([first, prepared.head], np.array([0.5, 0.5]))
    config = prepared.model.config
    if len(head.weight) > pooling.room_for(config, config.num_labels):
        return False
    pooling.write_into(prepared.model, head)
    return True


if __name__ == "__main__":
    with reporting_errors():
        main(sys.argv[1:])
