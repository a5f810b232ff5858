"""Adapt a pretrained model to a target domain without labels: train on the source, aligned to the target's own text.

    accelerate launch recipes/adapt_domain.py --alignment coral --method lora --source books.csv --target kitchen.csv \
        --target_unlabeled kitchen_raw.jsonl --output_dir runs/coral
    hf-transfer run adapt_domain --alignment dann --source books.csv --target kitchen.csv --target_unlabeled raw.jsonl

`--alignment` chooses what ties the domains together; `udalm` needs a --model from pretrain_domain. The target's labels,
where it has any, are for testing alone.
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
from hf_transfer.results import Run
from hf_transfer.training import fit


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
    with begin(arguments) as job:
        set_seed(arguments.train.seed)
        assert job.pool is not None
        with job.meter.stage("prepare"):
            both = with_target(job.setup, job.pool)
            prepared = arguments.method_module.prepare(both, arguments.method)
            together = align(prepared, both, chosen, own, how.alignment_weight)
        with job.meter.stage("train"):
            history = fit(together, job.setup, job.task, arguments, job.partial, job.meter)
        return finish(job, prepared, recipe="adapt_domain", history=history)


if __name__ == "__main__":
    with reporting_errors():
        main(sys.argv[1:])
