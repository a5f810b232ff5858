"""Adapt a pretrained model to a target domain without labels: train on the source, tied to the target's own text.

    accelerate launch recipes/adapt_domain.py --alignment coral --method lora --source books.csv --target kitchen.csv \
        --target_unlabeled kitchen_raw.jsonl --output_dir runs/coral
    hf-transfer run adapt_domain --alignment none --source_weights importance --source books.csv dvd.csv \
        --target kitchen.csv --target_unlabeled kitchen_raw.jsonl --output_dir runs/weighted

`--alignment` chooses what ties the domains together while training (`udalm` needs a --model from pretrain_domain),
`--source_weights` which source rows count, and how much. The target's labels, where it has any, are for testing alone.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from transformers import set_seed

from hf_transfer import alignment
from hf_transfer.aligned import AlignmentArguments, align, with_target
from hf_transfer.arguments import expand, flag, parse
from hf_transfer.begin import begin
from hf_transfer.errors import UserError, reporting_errors
from hf_transfer.finish import finish
from hf_transfer.importance import SourceArguments, weigh
from hf_transfer.results import Run
from hf_transfer.training import fit


@dataclass
class Choice:
    """Which alignment."""

    alignment: str = field(
        default="coral", metadata={"help": "What ties the domains together (hf-transfer list), or none."}
    )


def main(argv: list[str] | None = None) -> Run:
    """Read, weigh, prepare, align, train, test and save; returns the run."""
    argv = expand(sys.argv[1:] if argv is None else list(argv))
    name = flag(argv, "--alignment", "coral")
    chosen = None if name == "none" else alignment.load(name)
    of_alignment = (AlignmentArguments, chosen.Arguments) if chosen else ()
    arguments = parse(argv, description=__doc__, more=(Choice, SourceArguments, *of_alignment))
    _, source, *how = arguments.more
    if not arguments.data.target_unlabeled:
        raise UserError("--target_unlabeled is missing: name a table of target texts, which need no labels.")
    if chosen and not arguments.method_module.DEFAULTS:
        raise UserError(f"--method {arguments.model.method} trains without a Trainer and can't be aligned meanwhile; "
                        "choose another, or --alignment none.")  # fmt: skip
    with begin(arguments) as job:
        set_seed(arguments.train.seed)
        assert job.pool is not None
        with job.meter.stage("prepare"):
            setup, noted = weigh(job, source)
            given = with_target(setup, job.pool) if chosen else setup
            prepared = arguments.method_module.prepare(given, arguments.method)
            prepared.choices.update(noted)
            together = align(prepared, given, chosen, how[1], how[0].alignment_weight) if chosen else prepared
        with job.meter.stage("train"):
            history = fit(together, setup, job.task, arguments, job.partial, job.meter)
        used = [part for part in (name, source.source_weights) if part != "none"]
        return finish(job, prepared, recipe="adapt_domain", history=history, adaptation="+".join(used))


if __name__ == "__main__":
    with reporting_errors():
        main(sys.argv[1:])
