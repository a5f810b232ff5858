"""Self-training: label the target's own texts with the model, learn from the surest of them, and again.

    accelerate launch recipes/self_train.py --method full --source books.csv --target kitchen.csv \
        --target_unlabeled kitchen_raw.jsonl --output_dir runs/self
    hf-transfer run self_train --rounds 2 --source books.csv --target kitchen.csv --target_unlabeled kitchen_raw.jsonl

Every round starts from the pretrained weights. It ends early when a round changes hardly any label, and a round that is
worse on held-out source rows is dropped. The target's labels, where it has any, are for testing alone.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field, replace

import numpy as np
import scipy.special
from datasets import concatenate_datasets
from transformers import set_seed

from hf_transfer import tasks
from hf_transfer.arguments import parse
from hf_transfer.console import Console
from hf_transfer.controls import run_controls
from hf_transfer.data import load_data, summary
from hf_transfer.errors import UserError, reporting_errors
from hf_transfer.finish import finish
from hf_transfer.inference import predict_logits
from hf_transfer.methods import Setup
from hf_transfer.models import load_model, ordered_labels, public_name
from hf_transfer.pseudo import labelled, most_confident
from hf_transfer.publish import check_push, push_run
from hf_transfer.resources import Meter
from hf_transfer.results import Run
from hf_transfer.training import check_folder, class_weights, encode_all, encode_rows, fit, open_folder

SAME = 0.99  # share of equal labels after which another round would bring nothing
WORSE = 0.02  # of accuracy on held-out source rows, for which a round is dropped


@dataclass
class SelfTraining:
    """How often, and of how many texts."""

    rounds: int = field(default=1, metadata={"help": "Times that the model is trained anew on its own labels."})
    fraction: float = field(default=0.7, metadata={"help": "Share of the target's texts whose labels are trusted."})


def main(argv: list[str] | None = None) -> Run:
    """Read, train, label, train again, test and save; returns the run."""
    arguments = parse(argv, description=__doc__, more=(SelfTraining,))
    (how,) = arguments.more
    if not arguments.data.target_unlabeled:
        raise UserError("--target_unlabeled is missing: name a table of target texts, which need no labels.")
    if how.rounds < 1 or not 0 < how.fraction <= 1:
        raise UserError(f"--rounds is {how.rounds} and --fraction {how.fraction}; use 1 or more, and a share up to 1.")
    console = Console(quiet=arguments.train.quiet or arguments.train.process_index > 0)
    partial = open_folder(arguments)
    check_push(arguments)
    task = tasks.load(arguments.model.task)
    seed = arguments.train.seed
    with Meter() as meter:
        with meter.stage("read"):
            domains = load_data(arguments.data, seed, quiet=console.quiet)
            domains = domains.relabelled(ordered_labels(arguments.model, domains.label_names))
            weights = class_weights(arguments, domains)
        controls = run_controls(domains, weights, seed, meter)
        with meter.stage("load model"):
            loaded = load_model(arguments.model, task, domains.label_names, seed)
        with meter.stage("tokenise"):
            encoded, cut = encode_all(arguments, domains, loaded, task)
            pool, _ = encode_rows(domains.unlabeled, ["text"], loaded, task, arguments.data.max_length)
        console.say(summary(domains, cut))
        console.say(f"model: {public_name(loaded.name)}; method: {arguments.model.method}; {arguments.training_line()}")
        check_folder(partial, domains, loaded)
        counts = np.bincount(encoded["train"]["labels"][:], minlength=len(domains.label_names))
        before, kept, log = None, None, []
        for number in range(how.rounds + 1):
            # a fresh model for every round: what a round got wrong, the next one need not keep
            loaded = loaded if number == 0 else load_model(arguments.model, task, domains.label_names, seed)
            train = encoded["train"] if before is None else concatenate_datasets(
                [encoded["train"], labelled(pool, before)])  # fmt: skip
            setup = Setup(loaded, train, encoded["validation"], task.collator(loaded.tokenizer), arguments.precision,
                          weights, seed, domains.facts["fingerprint"], console.quiet)  # fmt: skip
            set_seed(seed)
            with meter.stage("prepare"):
                prepared = arguments.method_module.prepare(setup, arguments.method)
            with meter.stage("train"):
                history = fit(prepared, setup, task, arguments, partial, meter)
            if prepared.inputs is not None:  # its lower layers were left out while training
                prepared.merge(prepared.model, loaded.tokenizer)
            with meter.stage("label the target"):
                logits = {name: predict_logits(prepared.model, rows, setup.collator, precision=setup.precision)
                          for name, rows in (("pool", pool), ("validation", encoded["validation"]))}  # fmt: skip
            labels = np.array(encoded["validation"]["labels"][:] if len(encoded["validation"]) else [], dtype=int)
            right = float((logits["validation"].argmax(1) == labels).mean()) if len(labels) else float("nan")
            now = most_confident(scipy.special.softmax(logits["pool"], axis=1), counts / counts.sum(), how.fraction)
            same = float((now.everything == before.everything).mean()) if before is not None else 0.0
            log.append({"round": number, "rows": len(train), "source_validation": right, "labels_kept": same})
            console.say(f"round {number}: {len(train)} rows, {right:.1%} of held-out source rows right"
                        + (f", {same:.1%} of the target's labels as before" if number else ""))  # fmt: skip
            if kept is not None and right < kept[0] - WORSE:
                console.say(f"round {number} is worse on the source and dropped.")
                break
            kept, before = (right, prepared, setup, history), now
            if same > SAME:
                break
            shutil.rmtree(partial / "checkpoints", ignore_errors=True)
        _, prepared, setup, history = kept
        prepared = replace(prepared, choices={**prepared.choices, "rounds": log})
        run = finish(
            prepared, setup, task, arguments, domains, encoded, meter, partial,
            recipe="self_train", controls=controls, history=history, before={},
        )  # fmt: skip
    console.finished(run)
    if pushed := push_run(arguments, run):
        console.say(pushed)
    return run


if __name__ == "__main__":
    with reporting_errors():
        main(sys.argv[1:])
