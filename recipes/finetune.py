"""Adapt a pretrained model from a source domain to a target domain.

    accelerate launch recipes/finetune.py --method lora --source books.csv --target kitchen.csv --output_dir runs/lora
    hf-transfer run finetune --config recipes/configs/amazon_lora.yaml --learning_rate 2e-4

`--method` chooses which weights move; each method has its own few flags and its own default learning rate. `--tune N`
chooses learning rate and epochs by N trials on the validation rows first.
"""

from __future__ import annotations

import sys
from typing import Any

from accelerate.utils import set_seed

from hf_transfer.arguments import parse
from hf_transfer.begin import begin
from hf_transfer.errors import reporting_errors
from hf_transfer.finish import finish, score
from hf_transfer.methods import Prepared, Setup
from hf_transfer.results import Run
from hf_transfer.training import fit
from hf_transfer.tuning import TuneArguments, check_tuning, tune


def main(argv: list[str] | None = None) -> Run:
    """Read, prepare, train, test and save; returns the run."""
    arguments = parse(argv, description=__doc__, more=(TuneArguments,))
    check_tuning(arguments)

    def prepare(setup: Setup) -> Prepared:
        return arguments.method_module.prepare(setup, arguments.method)

    with begin(arguments) as job:
        # a head that came with the model can be tested before it is trained: that shows what training forgets
        before: dict[str, Any] = {}
        model = job.setup.loaded.model
        if not job.setup.loaded.new_parameters:
            before, _ = score(
                model, job.encoded, job.domains, job.setup, job.task, arguments, ("source_test",), job.meter
            )
        job, tuned = tune(job, job.setup, prepare)
        set_seed(arguments.train.seed)
        with job.meter.stage("prepare"):
            prepared = prepare(job.setup)
            prepared.choices.update(tuned)
        with job.meter.stage("train"):
            history = fit(prepared, job.setup, job.task, job.arguments, job.partial, job.meter)
        return finish(job, prepared, recipe="finetune", history=history, before=before.get("source_test"))


if __name__ == "__main__":
    with reporting_errors():
        main(sys.argv[1:])
