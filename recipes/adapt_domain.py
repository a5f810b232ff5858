"""Adapt a pretrained model to a target domain without labels: train on the source, aligned to the target's own text.

    accelerate launch recipes/adapt_domain.py --alignment coral --method lora --source books.csv --target kitchen.csv \
        --target_unlabeled kitchen_raw.jsonl --output_dir runs/coral
    hf-transfer run adapt_domain --alignment dann --source books.csv --target kitchen.csv --target_unlabeled raw.jsonl
    hf-transfer run adapt_domain --method frozen --feature_map coral --source books.csv --target kitchen.csv \
        --target_unlabeled kitchen_raw.jsonl --output_dir runs/frozen-coral

`--alignment` chooses what ties the domains together while the encoder learns. A frozen encoder does not learn: there
`--feature_map` brings the source's activations to the target's, in seconds, and `--mixture_of_sources` weighs a head of
each source. The target's labels, where it has any, are for testing alone.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace

from transformers import set_seed

from hf_transfer import alignment, methods
from hf_transfer.aligned import AlignmentArguments, align, with_target
from hf_transfer.arguments import Arguments, expand, flag, parse
from hf_transfer.begin import begin
from hf_transfer.errors import UserError, reporting_errors
from hf_transfer.finish import finish
from hf_transfer.results import Run
from hf_transfer.training import fit


@dataclass
class Choice:
    """Which alignment."""

    alignment: str = field(
        default="coral", metadata={"help": "What ties the domains together (hf-transfer list); none for nothing."}
    )


def main(argv: list[str] | None = None) -> Run:
    """Read, prepare, align, train, test and save; returns the run."""
    argv = expand(sys.argv[1:] if argv is None else list(argv))
    by_trainer = bool(methods.load(flag(argv, "--method", "full")).DEFAULTS)
    argv = ["--alignment", "coral" if by_trainer else "none", *argv]
    name = flag(argv, "--alignment", "")
    chosen = None if name == "none" else alignment.load(name)
    own = () if chosen is None else (AlignmentArguments, chosen.Arguments)
    arguments = parse(argv, description=__doc__, more=(Choice, *own))
    _check(arguments, by_trainer, aligned=chosen is not None)
    with begin(arguments) as job:
        set_seed(arguments.train.seed)
        assert job.pool is not None
        with job.meter.stage("prepare"):
            if chosen is None:
                setup = replace(
                    job.setup,
                    unlabeled=job.pool,
                    train_domains=job.domains.train["domain"][:],
                    validation_domains=job.domains.validation["domain"][:],
                )
                together = prepared = arguments.method_module.prepare(setup, arguments.method)
            else:
                _, how, own = arguments.more
                both = with_target(job.setup, job.pool)
                prepared = arguments.method_module.prepare(both, arguments.method)
                together = align(prepared, both, chosen, own, how.alignment_weight)
        with job.meter.stage("train"):
            history = fit(together, job.setup, job.task, arguments, job.partial, job.meter)
        return finish(job, prepared, recipe="adapt_domain", history=history)


def _check(arguments: Arguments, by_trainer: bool, aligned: bool) -> None:
    data, method, options = arguments.data, arguments.model.method, vars(arguments.method)
    unaligned = [f"--{name}" for name in ("feature_map", "mixture_of_sources") if options.get(name)]
    if not data.target_unlabeled:
        raise UserError("--target_unlabeled is missing: name a table of target texts, which need no labels.")
    if not by_trainer and (aligned or not unaligned):
        raise UserError(f"--method {method} trains without a Trainer and can't be aligned meanwhile; give it "
                        "--feature_map or --mixture_of_sources, or choose another.")  # fmt: skip
    if unaligned and data.target_shots != "0":
        raise UserError(f"{unaligned[0]} takes every labelled training row for the source's; leave --target_shots out.")


if __name__ == "__main__":
    with reporting_errors():
        main(sys.argv[1:])
