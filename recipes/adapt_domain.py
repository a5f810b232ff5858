"""Adapt a pretrained model to a target domain without labels: train on the source, aligned to the target's own text.

    accelerate launch recipes/adapt_domain.py --alignment coral --method lora --source books.csv --target kitchen.csv \
        --target_unlabeled kitchen_raw.jsonl --output_dir runs/coral
    hf-transfer run adapt_domain --alignment none --source_weights importance --source books.csv dvd.csv \
        --target kitchen.csv --target_unlabeled kitchen_raw.jsonl --output_dir runs/weighted
    hf-transfer run adapt_domain --method frozen --feature_map moments --source books.csv --target kitchen.csv \
        --target_unlabeled kitchen_raw.jsonl --output_dir runs/moments

`--alignment` chooses what ties the domains together while the encoder learns (`udalm` needs a --model from
pretrain_domain), `--source_weights` which source rows count, and how much. A frozen encoder does not learn: there
`--feature_map` brings the source's activations to the target's, in seconds, and `--mixture_of_sources` weighs a head of
each source. The target's labels, where it has any, are for testing alone.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace

from accelerate.utils import set_seed

from hf_transfer import alignment, methods
from hf_transfer.aligned import AlignmentArguments, align, with_target
from hf_transfer.arguments import Arguments, expand, flag, parse
from hf_transfer.begin import begin
from hf_transfer.errors import UserError, reporting_errors
from hf_transfer.finish import finish
from hf_transfer.importance import SourceArguments, weigh
from hf_transfer.methods import Prepared, Setup
from hf_transfer.results import Run
from hf_transfer.training import fit
from hf_transfer.tuning import TuneArguments, check_tuning, tune

FEW_ROWS = 8  # of a batch, for what compares them


@dataclass
class Choice:
    """Which alignment."""

    alignment: str = field(
        default="coral", metadata={"help": "What ties the domains together (hf-transfer list); none for nothing."}
    )


def main(argv: list[str] | None = None) -> Run:
    """Read, weigh, prepare, align, train, test and save; returns the run."""
    argv = expand(sys.argv[1:] if argv is None else list(argv))
    by_trainer = bool(methods.load(flag(argv, "--method", "full")).DEFAULTS)
    argv = ["--alignment", "coral" if by_trainer else "none", *argv]
    name = flag(argv, "--alignment", "")
    chosen = None if name == "none" else alignment.load(name)
    own = (AlignmentArguments, chosen.Arguments) if chosen else ()
    arguments = parse(argv, description=__doc__, more=(Choice, SourceArguments, TuneArguments, *own))
    _, source, _, *how = arguments.more
    used = _check(arguments, source, by_trainer, name)
    check_tuning(arguments)

    def prepare(setup: Setup) -> Prepared:
        return arguments.method_module.prepare(setup, arguments.method)

    def together(prepared: Prepared, setup: Setup) -> Prepared:
        if chosen is None:
            return prepared
        return align(prepared, setup, chosen, how[1], how[0].alignment_weight)

    with begin(arguments) as job:
        set_seed(arguments.train.seed)
        assert job.pool is not None
        if getattr(chosen, "BY_BATCH", False) and (size := arguments.train.per_device_train_batch_size) < FEW_ROWS:
            job.console.say(f"note: {name} compares the rows of a batch, and there are {size}; {FEW_ROWS} or more "
                            "(--per_device_train_batch_size) tell more, and accumulated ones do not count")  # fmt: skip
        with job.meter.stage("prepare"):
            setup, noted = weigh(job, source)
            if chosen:
                setup = with_target(setup, job.pool)
            elif not by_trainer:
                setup = replace(
                    setup,
                    unlabeled=job.pool,
                    train_domains=job.domains.train["domain"][:],
                    validation_domains=job.domains.validation["domain"][:],
                )
        job, tuned = tune(job, setup, lambda own: together(prepare(own), own))
        set_seed(arguments.train.seed)
        with job.meter.stage("prepare"):
            prepared = prepare(setup)
            prepared.choices.update(noted | tuned)
            trained = together(prepared, setup)
        with job.meter.stage("train"):
            history = fit(trained, setup, job.task, job.arguments, job.partial, job.meter)
        return finish(job, prepared, recipe="adapt_domain", history=history, adaptation="+".join(used))


def _check(arguments: Arguments, source: SourceArguments, by_trainer: bool, aligned: str) -> list[str]:
    """Return the names of what adapts, in run.json and reports.

    Raises:
        UserError: what does not fit together, or nothing that adapts.
    """
    data, method, options = arguments.data, arguments.model.method, vars(arguments.method)
    frozen = {"--feature_map": options.get("feature_map") or "none",
              "--mixture_of_sources": "mixture" if options.get("mixture_of_sources") else "none"}  # fmt: skip
    used = [part for part in (aligned, source.source_weights, *frozen.values()) if part != "none"]
    if not data.target_unlabeled:
        raise UserError("--target_unlabeled is missing: name a table of target texts, which need no labels.")
    if not by_trainer and aligned != "none":
        raise UserError(f"--method {method} trains without a Trainer and can't be aligned meanwhile; give it "
                        "--feature_map, --source_weights or --mixture_of_sources, or choose another.")  # fmt: skip
    if not used:
        raise UserError("nothing adapts the model to the target; give --alignment, --source_weights, or with --method "
                        "frozen --feature_map or --mixture_of_sources.")  # fmt: skip
    given = [flag for flag, value in frozen.items() if value != "none"]
    if given and source.source_weights != "none":
        raise UserError(f"{given[0]} and --source_weights both change what the head learns from; leave one out.")
    if given and data.target_shots != "0":
        raise UserError(f"{given[0]} takes every labelled training row for the source's; leave --target_shots out.")
    return used


if __name__ == "__main__":
    with reporting_errors():
        main(sys.argv[1:])
