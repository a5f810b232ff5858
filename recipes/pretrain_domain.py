"""Continue pretraining on unlabelled text of the target; what comes out is a --model for any other recipe.

    accelerate launch recipes/pretrain_domain.py --target_unlabeled kitchen_raw.jsonl --output_dir runs/dapt
    hf-transfer run pretrain_domain --objective tsdae --target_unlabeled kitchen_raw.jsonl --output_dir runs/tsdae

Then `--model runs/dapt`. `--objective` chooses what is learnt: masked words by default, the next word for decoders.
Leave out texts that are to be tested later. The folder holds model, tokenizer and pretraining.json, a record of what
was done.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from accelerate.utils import set_seed

from hf_transfer import objectives
from hf_transfer.arguments import PretrainedArguments, parse
from hf_transfer.begin import check_folder, cut_at, encode_rows, open_folder, progress
from hf_transfer.console import Console
from hf_transfer.errors import UserError, reporting_errors
from hf_transfer.methods import Setup
from hf_transfer.models import load_pretrained, longest_input, public_name
from hf_transfer.pretraining import (
    ObjectiveArguments,
    PoolArguments,
    choose_objective,
    hidden_once,
    language_task,
    pretrain,
    read_pool,
    save,
)
from hf_transfer.profile import advice, profile_table, total
from hf_transfer.resources import Meter


def main(argv: list[str] | None = None) -> Path:
    """Read, train and save; returns the folder."""
    arguments = parse(argv, __doc__, (ObjectiveArguments,), PoolArguments, PretrainedArguments)
    train, data, pretrained, (how,) = arguments.train, arguments.data, arguments.model, arguments.more
    console = Console(quiet=train.quiet or train.process_index > 0)
    if train.push_to_hub:
        raise UserError("--push_to_hub: what is pushed is a finished run; fine-tune this model first.")
    how.objective = choose_objective(how.objective, pretrained)
    objective = objectives.load(how.objective)
    train.prediction_loss_only, train.eval_on_start = True, train.eval_strategy != "no"
    partial = open_folder(arguments)
    with Meter() as meter:
        with meter.stage("read"):
            pool = read_pool(data, train.seed, quiet=console.quiet)
        with meter.stage("load model"):
            loaded = load_pretrained(
                pretrained.model, pretrained.model_revision, objective.AUTO_MODEL, train.seed, **objective.OPTIONS
            )
            task = language_task(objective)
            collator = task.collator(loaded.tokenizer)
        count = len(pool.train) + len(pool.held_out)
        with (
            meter.stage("tokenise"),
            train.main_process_first(desc="tokenise"),
            progress(count, quiet=console.quiet),
        ):
            rows, lost = encode_rows(pool.train, ["text"], loaded, task, data.max_length)
            lengths = {"train": np.array(rows["length"][:]) + lost}
            held_out = pool.held_out
            if len(held_out):
                held_out, lost = encode_rows(held_out, ["text"], loaded, task, data.max_length)
                lengths["held_out"] = np.array(held_out["length"][:]) + lost
                held_out = hidden_once(held_out, objective.hide(loaded.tokenizer), train.seed)
        cut, notes = cut_at(data.max_length, lengths, longest_input(loaded))
        pool.facts["tokens_cut"] = cut
        console.say("\n".join([f"{len(rows)} texts to learn from and {len(held_out)} held out, {cut['train']:.1%} of "
                               "tokens cut", *(f"note: {note}" for note in [*pool.notes, *notes])]))  # fmt: skip
        lacks = "lacks weights for this objective: they are learnt first, alone"
        console.say(
            f"model: {public_name(loaded.name)}; objective: {how.objective}; {arguments.training_line()}\n"
            f"the checkpoint {lacks if loaded.new_parameters else 'has every weight for this objective'}"
        )
        check_folder(partial, pool.facts["fingerprint"], loaded)
        setup = Setup(loaded, rows, held_out, collator, arguments.precision, None, train.seed,
                      pool.facts["fingerprint"], console.quiet)  # fmt: skip
        set_seed(train.seed)
        model, losses = pretrain(objective, setup, arguments, partial, meter)
        with meter.stage("save"):
            folder = save(model, loaded, pool, losses, arguments, partial, meter)
    if train.profile:
        console.say(profile_table({**meter.seconds, "total": total(meter.seconds)}, advice(arguments)))
    steps = [f"{loss:.3f} {name.replace('_', ' ')}" for name, loss in losses.items() if loss is not None]
    console.say(f"loss on held-out texts: {', '.join(steps) or 'not measured'}\npretrained model: {folder}\n"
                f"next: hf-transfer run finetune --model {folder} --source ... --target ..., and the same without "
                "--model: only that tells whether it helps.")  # fmt: skip
    if pretrained.model is None:
        console.say("With the default encoder neither did where it was measured: mlm on four Amazon pairs and SMS to "
                    "YouTube spam, tsdae on the latter; mlm harmed less.")  # fmt: skip
    return folder


if __name__ == "__main__":
    with reporting_errors():
        main(sys.argv[1:])
