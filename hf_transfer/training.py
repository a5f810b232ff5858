"""Train a prepared model with the stock Trainer."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_transfer.arguments import as_dict
from hf_transfer.errors import UserError
from hf_transfer.inference import release
from hf_transfer.methods import Prepared, Setup
from hf_transfer.profile import StepTimes
from hf_transfer.resources import Meter
from hf_transfer.results import STOPPED, write_atomically
from hf_transfer.statistics import metric

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_transfer.arguments import Arguments
    from hf_transfer.tasks import Task


class Spent(TrainerCallback, ExportableState):
    """Know of a resumed training how long it had taken to its checkpoint.

    Args:
        before: seconds.
    """

    def __init__(self, before: float = 0.0) -> None:
        self.before, self.begin = before, time.perf_counter()

    def state(self) -> dict[str, dict[str, float]]:
        """Return what the Trainer keeps in a checkpoint."""
        return {"args": {"before": self.before + time.perf_counter() - self.begin}, "attributes": {}}


def fit(
    prepared: Prepared, setup: Setup, task: Task, arguments: Arguments, partial: Path, meter: Meter | None = None
) -> list[dict[str, Any]]:
    """Train `prepared.model` with the stock Trainer and return the log; a method that has trained it already logs {}.

    The loss is a sum over rows divided by the rows of the whole step, so gradient accumulation, several processes and
    one big batch agree. `meter` gets the seconds of `train` that a resumed run spent before it was killed, and with
    --profile those of the parts of a step.
    """
    import torch

    setup = prepared.inputs or setup
    trainable = {name: p for name, p in prepared.model.named_parameters() if p.requires_grad}
    if trainable and arguments.train.eval_strategy != "no" and not len(setup.validation):
        raise UserError("there are no validation rows to choose a checkpoint by; raise --validation_fraction, or set "
                        "it to 0 to keep the last checkpoint.")  # fmt: skip
    note_start(partial, setup, arguments)
    if not trainable:
        return []
    trainer = make_trainer(prepared, setup, task, arguments, partial / "checkpoints", meter)
    set_learning_rates(trainer, prepared)
    before = {name: torch.hash_tensor(p.detach().cpu()) for name, p in trainable.items()}
    checkpoint = last_whole_checkpoint(partial / "checkpoints") if arguments.train.resume else None
    hooks = pass_weights_on(prepared.model) if setup.sample_weights is not None else []
    result = trainer.train(resume_from_checkpoint=checkpoint)
    for hook in hooks:
        hook.remove()
    if meter:
        spent = next(one for one in trainer.callback_handler.callbacks if isinstance(one, Spent))
        meter.seconds["train"] = meter.seconds.get("train", 0.0) + spent.before
    losses = [
        result.training_loss,
        *(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry),
    ]
    spoiled = not np.isfinite(losses).all()
    if spoiled and not (STOPPED in prepared.choices and all(p.isfinite().all() for p in trainable.values())):
        shutil.rmtree(partial, ignore_errors=True)  # resuming would bring no better
        raise UserError("the training or validation loss became infinite or nan; lower --learning_rate "
                        f"(it was {arguments.train.learning_rate}) or use --precision fp32.")  # fmt: skip
    unmoved = [name for name, p in trainable.items() if torch.hash_tensor(p.detach().cpu()) == before[name]]
    if unmoved and trainer.state.global_step > 2 and checkpoint is None:
        print(f"warning: {len(unmoved)} trainable tensors did not move, among them {unmoved[0]}")
    release(trainer)
    return [
        {key: value if np.isfinite(value) else None for key, value in entry.items() if "per_second" not in key}
        for entry in trainer.state.log_history
    ]  # JSON knows no NaN


def note_start(partial: Path, setup: Setup, arguments: Arguments) -> None:
    """Make the run's folder and note what was asked for, by which --resume knows the run; a note there is kept."""
    partial.mkdir(parents=True, exist_ok=True)  # not before here: what the user got wrong leaves nothing behind
    if not (partial / "arguments.json").is_file():
        started = {**as_dict(arguments), "fingerprint": setup.fingerprint}
        write_atomically(partial / "arguments.json", json.dumps(started, default=str))


def make_trainer(
    prepared: Prepared,
    setup: Setup,
    task: Task,
    arguments: Arguments,
    folder: Path,
    meter: Meter | None = None,
    *,
    trial: bool = False,
) -> Any:
    """Return a stock Trainer of `prepared.model`, its checkpoints under `folder`.

    Args:
        prepared: by the method.
        setup: what it is trained on.
        task: what the data means.
        arguments: of the run.
        folder: for checkpoints.
        meter: gets the seconds of the parts of a step, with --profile.
        trial: only the scores are wanted: the Trainer takes its model from `model_init`, as a search asks for, and
            writes nothing; it trains as it otherwise would, and ends when it otherwise would.
    """
    from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, Trainer

    train = setup.train
    if setup.sample_weights is not None:
        train = train.add_column("sample_weight", setup.sample_weights)
    label_names = list(setup.loaded.model.config.id2label.values())
    given: Any = arguments.train
    evaluates = given.eval_strategy != "no"
    by_ours = bool(setup.chosen_by) and not given.metric_for_best_model
    train_args = replace(
        given,
        output_dir=str(folder),
        remove_unused_columns=False,  # the sampler needs `length`, which the collator leaves out
        metric_for_best_model=(prepared.headline or given.metric_for_best_model or setup.chosen_by or task.headline)
        if evaluates
        else None,
        # by its name, not by that of another metric; a label's name may end like a loss
        **({"greater_is_better": None} if prepared.headline else {"greater_is_better": True} if by_ours else {}),
        restore_callback_states_from_checkpoint=True,  # a resumed run stops early when the whole one would have
        resume=False,
        push_to_hub=False,  # only the finished run is pushed, when it is verified
        logging_nan_inf_filter=False,  # it would hide a loss that is no number
        log_level_replica="error",  # one process speaks; the others would say which weights a checkpoint left out
        **({"save_strategy": "no", "load_best_model_at_end": False, "report_to": "none"} if trial else {}),
    )
    callbacks = [Spent(), *prepared.callbacks]
    if evaluates and given.load_best_model_at_end and given.early_stopping_patience > 0:
        callbacks.append(EarlyStoppingCallback(given.early_stopping_patience))
    if given.profile and meter:
        callbacks.append(StepTimes(meter.seconds))

    def compute_metrics(output: Any) -> dict[str, float]:
        logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        scores = task.compute_metrics(logits, output.label_ids, label_names)
        if setup.chosen_by:
            scores[setup.chosen_by] = metric.of(scores, setup.chosen_by)
        # what is no number gives the first label, by chance often right; of no error 0 would be the best
        if not np.isfinite(logits).all():
            scores = {name: float("nan") if name == "calibration_error" else 0.0 for name in scores}
        return {name: value for name, value in scores.items() if isinstance(value, float) and name != "loss"}

    # transformers 5 would otherwise take the model's plain mean for a loss already scaled to the whole step
    prepared.model.accepts_loss_kwargs = False
    setup.loaded.model.accepts_loss_kwargs = False
    trainer = Trainer(
        model=None if trial else prepared.model,
        model_init=(lambda: prepared.model) if trial else None,
        args=train_args,
        data_collator=setup.collator,
        train_dataset=_fill_up(train, arguments),
        eval_dataset=setup.validation if evaluates else None,
        compute_loss_func=_with_penalty(task.loss(setup.class_weights, given.label_smoothing_factor)),
        compute_metrics=compute_metrics,
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)
    if given.quiet:
        trainer.remove_callback(ProgressCallback)
    return trainer


def pass_weights_on(model: Any) -> list[Any]:
    """Take `sample_weight`, which no model knows, off a batch and put it beside the outputs, where the loss looks."""

    def take(module: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        module.sample_weight = inputs.pop("sample_weight", None)
        return args, inputs

    def give(module: Any, args: Any, outputs: Any) -> Any:
        weights = vars(module).pop("sample_weight")
        return outputs if weights is None else {**outputs, "sample_weight": weights}

    return [model.register_forward_pre_hook(take, with_kwargs=True), model.register_forward_hook(give)]


def _with_penalty(task_loss: Any) -> Any:
    """Return the task's loss plus the `penalty` of a model's outputs, by its share of the step's rows."""

    def compute(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        loss = task_loss(outputs, labels, num_items_in_batch)
        if "penalty" not in outputs:
            return loss
        share = 1.0 if num_items_in_batch is None else (labels >= 0).sum() / num_items_in_batch
        return loss + share * outputs["penalty"]

    return compute


def last_whole_checkpoint(folder: Path) -> str | None:
    """Return the newest checkpoint that was written to its end; the Trainer writes `trainer_state.json` last."""
    whole = [file.parent for file in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.split("-")[1]))) if whole else None


def _fill_up(train: Dataset, arguments: Arguments) -> Dataset:
    """Fill the last step with blank rows (label -100, which no loss counts); accelerate would repeat real ones.

    Rows that get their labels from the collator, token by token, are left to accelerate.
    """
    from datasets import concatenate_datasets

    world = arguments.train.world_size
    missing = -len(train) % (world * arguments.train.per_device_train_batch_size)
    if world == 1 or not missing or "labels" not in train.column_names:
        return train
    shortest = train.select([int(np.argmin(train["length"][:]))] * missing)
    return concatenate_datasets([train, shortest.map(lambda row: {"labels": -100})])


def set_learning_rates(trainer: Any, prepared: Prepared) -> None:
    """Split the Trainer's own parameter groups by learning rate, where `prepared` asks for several."""
    if not (prepared.lr_scale or prepared.lr_least):
        return
    optimizer = trainer.create_optimizer()
    name_of = {id(p): name for name, p in trainer.model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        by_rate: dict[float, list[Any]] = {}
        for parameter in group["params"]:
            name = name_of[id(parameter)]
            rate = max(group["lr"] * prepared.lr_scale.get(name, 1.0), prepared.lr_least.get(name, 0.0))
            by_rate.setdefault(rate, []).append(parameter)
        groups += [{**group, "params": some, "lr": rate} for rate, some in by_rate.items()]
    optimizer.param_groups[:] = groups
