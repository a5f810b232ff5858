"""Adapt a pretrained model to a target domain without labels: train on the source, aligned to the target's own text.

    accelerate launch recipes/adapt_domain.py --alignment coral --method lora --source books.csv --target kitchen.csv \
        --target_unlabeled kitchen_raw.jsonl --output_dir runs/coral
    hf-transfer run adapt_domain --alignment dann --source books.csv --target kitchen.csv --target_unlabeled raw.jsonl

`--alignment` chooses what ties the domains together. The target's labels, where it has any, are for testing alone.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from transformers import set_seed

from hf_transfer import alignment, tasks
from hf_transfer.aligned import AlignmentArguments, align, with_target
from hf_transfer.arguments import expand, flag, parse
from hf_transfer.console import Console
from hf_transfer.controls import run_controls
from hf_transfer.data import load_data, summary
from hf_transfer.errors import UserError, reporting_errors
from hf_transfer.finish import finish
from hf_transfer.methods import Setup
from hf_transfer.models import load_model, ordered_labels, public_name
from hf_transfer.profile import profile_table
from hf_transfer.publish import check_push, push_run
from hf_transfer.resources import Meter
from hf_transfer.results import Run
from hf_transfer.training import check_folder, class_weights, encode_all, encode_rows, fit, open_folder


@dataclass
class Choice:
    """Which alignment."""

    alignment: str = field(default="coral", metadata={"help": "What ties the domains together (hf-transfer list)."})


def main(argv: list[str] | None = None) -> Run:
    """Read, prepare, align, train, test and save; returns the run."""
    argv = expand(sys.argv[1:] if argv is None else list(argv))
    chosen = alignment.load(flag(argv, "--alignment", "coral"))
    arguments = parse(argv, description=__doc__, more=(Choice, AlignmentArguments, chosen.Arguments))
    _, how, own = arguments.more
    if not arguments.data.target_unlabeled:
        raise UserError("--target_unlabeled is missing: name a table of target texts, which need no labels.")
    if not arguments.method_module.DEFAULTS:
        raise UserError(f"--method {arguments.model.method} trains without a Trainer and can't be aligned meanwhile; "
                        "choose another.")  # fmt: skip
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
        setup = Setup(
            loaded=loaded,
            train=encoded["train"],
            validation=encoded["validation"],
            collator=task.collator(loaded.tokenizer),
            precision=arguments.precision,
            class_weights=weights,
            seed=seed,
            fingerprint=domains.facts["fingerprint"],
            quiet=console.quiet,
        )
        set_seed(seed)
        with meter.stage("prepare"):
            both = with_target(setup, pool)
            prepared = arguments.method_module.prepare(both, arguments.method)
            together = align(prepared, both, chosen, own, how.alignment_weight)
        with meter.stage("train"):
            history = fit(together, setup, task, arguments, partial, meter)
        run = finish(
            prepared, setup, task, arguments, domains, encoded, meter, partial,
            recipe="adapt_domain", controls=controls, history=history, before={},
        )  # fmt: skip
    if arguments.train.profile:
        console.say(profile_table(run.seconds))
    console.finished(run)
    if pushed := push_run(arguments, run):
        console.say(pushed)
    return run


if __name__ == "__main__":
    with reporting_errors():
        main(sys.argv[1:])
