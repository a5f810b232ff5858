"""Adapt a pretrained model from a source domain to a target domain.

    accelerate launch recipes/finetune.py --method lora --source books.csv --target kitchen.csv --output_dir runs/lora
    hf-transfer run finetune --config recipes/configs/amazon_lora.yaml --learning_rate 2e-4

`--method` chooses which weights move; each method has its own few flags and its own default learning rate.
"""

from __future__ import annotations

import sys
from typing import Any

from transformers import set_seed

from hf_transfer import tasks
from hf_transfer.arguments import parse
from hf_transfer.console import Console
from hf_transfer.controls import run_controls
from hf_transfer.data import load_data, summary
from hf_transfer.errors import reporting_errors
from hf_transfer.finish import finish, score
from hf_transfer.methods import Setup
from hf_transfer.models import load_model, ordered_labels, public_name
from hf_transfer.profile import profile_table
from hf_transfer.publish import check_push, push_run
from hf_transfer.resources import Meter
from hf_transfer.results import Run
from hf_transfer.training import check_folder, class_weights, encode_all, fit, open_folder


def main(argv: list[str] | None = None) -> Run:
    """Read, prepare, train, test and save; returns the run."""
    arguments = parse(argv, description=__doc__)
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
        # a head that came with the model can be tested before it is trained: that shows what training forgets
        before: dict[str, Any] = {}
        if not loaded.new_parameters:
            before, _ = score(loaded.model, encoded, domains, setup, task, arguments, ("source_test",))
        set_seed(seed)
        with meter.stage("prepare"):
            prepared = arguments.method_module.prepare(setup, arguments.method)
        with meter.stage("train"):
            history = fit(prepared, setup, task, arguments, partial, meter)
        run = finish(
            prepared, setup, task, arguments, domains, encoded, meter, partial,
            recipe="finetune", controls=controls, history=history, before=before.get("source_test", {}),
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
