"""Self-training: label the target's own texts with a model, learn from the surest of them, and again.

    accelerate launch recipes/self_train.py --method full --source books.csv --target kitchen.csv \
        --target_unlabeled kitchen_raw.jsonl --output_dir runs/self
    hf-transfer run self_train --teachers runs/full runs/frozen --source books.csv --target kitchen.csv \
        --target_unlabeled kitchen_raw.jsonl --output_dir runs/self

The first teacher is a model trained on the source here, or the mean of finished runs (--teachers). Every round starts
from the pretrained weights. It ends early when a round changes hardly any label, and a round that is worse on held-out
source rows is dropped. The target's labels, where it has any, are for testing alone.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.special
from datasets import Dataset, concatenate_datasets
from transformers import set_seed

from hf_transfer.arguments import parse
from hf_transfer.begin import Job, begin
from hf_transfer.errors import UserError, reporting_errors
from hf_transfer.finish import finish
from hf_transfer.inference import predict_logits
from hf_transfer.methods import Prepared
from hf_transfer.models import load_model
from hf_transfer.pseudo import labelled, most_confident, taught
from hf_transfer.results import Run
from hf_transfer.training import fit

SAME = 0.99  # share of equal labels after which another round would bring nothing
WORSE = 0.02  # of accuracy on held-out source rows, for which a round is dropped


@dataclass
class SelfTraining:
    """How often, and of how many texts."""

    rounds: int = field(default=1, metadata={"help": "Times that a model is trained on the labels of the one before."})
    fraction: float = field(default=0.7, metadata={"help": "Share of the target's texts whose labels are trusted."})
    teachers: list[str] = field(
        default_factory=list, metadata={"help": "Finished runs that give the first labels, instead of a round of ours."}
    )


def main(argv: list[str] | None = None) -> Run:
    """Read, train, label, train again, test and save; returns the run."""
    arguments = parse(argv, description=__doc__, more=(SelfTraining,))
    (how,) = arguments.more
    if not arguments.data.target_unlabeled:
        raise UserError("--target_unlabeled is missing: name a table of target texts, which need no labels.")
    if how.rounds < 1 or not 0 < how.fraction <= 1:
        raise UserError(f"--rounds is {how.rounds} and --fraction {how.fraction}; use 1 or more, and a share up to 1.")
    with begin(arguments) as job:
        assert job.pool is not None
        assert job.domains.unlabeled is not None
        counts = np.bincount(job.encoded["train"]["labels"][:], minlength=len(job.domains.label_names))
        held_out = job.encoded["validation"]
        before, kept, log = None, None, []
        if how.teachers:
            with job.meter.stage("label the target"):
                probabilities = taught(how.teachers, job.domains, quiet=job.console.quiet)
            before = most_confident(probabilities, counts / counts.sum(), how.fraction)
        for number in range(1 if how.teachers else 0, how.rounds + 1):
            own = job.encoded["train"]
            rows = own if before is None else concatenate_datasets([own, labelled(job.pool, before)])
            now, prepared, history = _round(job, rows)
            logits = {}
            with job.meter.stage("label the target"):
                for name, part in (("pool", job.pool), ("validation", held_out)):
                    logits[name] = predict_logits(prepared.model, part, now.setup.collator,
                                                  precision=now.setup.precision, quiet=now.setup.quiet)  # fmt: skip
            truth = np.array(
                job.encoded["validation"]["labels"][:] if len(job.encoded["validation"]) else [], dtype=int
            )
            right = float((logits["validation"].argmax(1) == truth).mean()) if len(truth) else float("nan")
            chosen = most_confident(scipy.special.softmax(logits["pool"], axis=1), counts / counts.sum(), how.fraction)
            same = float((chosen.everything == before.everything).mean()) if before is not None else 0.0
            log.append({"round": number, "rows": len(rows), "source_validation": right, "labels_kept": same})
            job.console.say(f"round {number}: {len(rows)} rows, {right:.1%} of held-out source rows right"
                            + (f", {same:.1%} of the target's labels as before" if number else ""))  # fmt: skip
            if kept is not None and right < kept[0] - WORSE:
                job.console.say(f"round {number} is worse on the source and dropped.")
                break
            kept, before = (right, now, prepared, history), chosen
            if same > SAME:
                break
        assert kept is not None
        _, now, prepared, history = kept
        prepared = replace(prepared, choices={**prepared.choices, "rounds": log})
        return finish(now, prepared, recipe="self_train", history=history, adaptation="self_train")


def _round(job: Job, rows: Dataset) -> tuple[Job, Prepared, list[dict[str, float]]]:
    """Train on `rows` from the pretrained weights: what a round got wrong, the next one need not keep."""
    arguments, seed = job.arguments, job.setup.seed
    loaded = load_model(arguments.model, job.task, job.domains.label_names, seed)
    job = replace(job, setup=replace(job.setup, loaded=loaded, train=rows))
    shutil.rmtree(job.partial / "checkpoints", ignore_errors=True)
    set_seed(seed)
    with job.meter.stage("prepare"):
        prepared = arguments.method_module.prepare(job.setup, arguments.method)
    with job.meter.stage("train"):
        history = fit(prepared, job.setup, job.task, arguments, job.partial, job.meter)
    if prepared.inputs is not None:  # its lower layers were left out while training
        prepared.merge(prepared.model, loaded.tokenizer)
    return job, prepared, history


if __name__ == "__main__":
    with reporting_errors():
        main(sys.argv[1:])
