"""Choose learning rate and epochs by a few trials on the validation rows, before the real training (`--tune N`).

A trial is the training that the run would do with other settings, from the same weights and the same seed, so that the
winner's score is the one that the run then reaches. What is chosen by is what the run chooses its checkpoint by; labels
that training may not see play no part.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_transfer.arguments import Arguments
from hf_transfer.errors import UserError
from hf_transfer.features import from_first_process
from hf_transfer.methods import Prepared, Setup
from hf_transfer.results import STOPPED
from hf_transfer.training import make_trainer, note_start, pass_weights_on, set_learning_rates

if TYPE_CHECKING:
    from hf_transfer.begin import Job

FILE = "trials.log"  # beside the checkpoints, and like these no part of the finished run
REACH = 4.0  # how far the learning rate may be from the one in force and from the method's own
STARTUP = 5  # trials before the sampler learns from them: its own 10 are more than most searches have


@dataclass
class TuneArguments:
    """How many trials."""

    tune: int = field(
        default=0,
        metadata={
            "help": "Trials that choose the learning rate and the epochs on the validation rows, before the training; "
            "each costs about a training. 0 for none."
        },
    )


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        learning_rate: least and largest, between which it is drawn on a logarithmic scale.
        num_train_epochs: to choose from; none where --max_steps says how long training lasts.
        first: settings to try before any are drawn; the first of them are those in force.
    """

    learning_rate: tuple[float, float]
    num_train_epochs: tuple[float, ...]
    first: tuple[dict[str, float], ...]


def check_tuning(arguments: Arguments) -> None:
    """Check that the trials asked for can be made.

    Raises:
        UserError: there are fewer than 0, or what they need is missing.
    """
    trials = _wanted(arguments)
    check_trials(trials)
    method, train = arguments.model.method, arguments.train
    if not trials:
        return
    if not arguments.method_module.DEFAULTS:
        raise UserError(f"--tune chooses a learning rate, and --method {method} has none: it tunes its own strength; "
                        "leave --tune out or choose another method.")  # fmt: skip
    if not arguments.data.validation_fraction:
        raise UserError("--tune chooses by validation rows, and --validation_fraction 0 leaves none; raise it, or "
                        "leave --tune out.")  # fmt: skip
    if train.eval_strategy == "no":
        raise UserError("--tune scores its trials on the validation rows, and --eval_strategy is no; use epoch, or "
                        "leave --tune out.")  # fmt: skip
    sharded = any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED"))
    if sharded or train.fsdp or train.deepspeed:
        raise UserError("--tune works in one process or with DDP, not with FSDP or DeepSpeed; leave these out, or tune "
                        "in a run of its own and give its --learning_rate and --num_train_epochs.")  # fmt: skip


def check_trials(trials: int) -> None:
    """Check the number alone, and that trials can be made at all.

    Raises:
        UserError: it is below 0, or optuna is missing.
    """
    if trials < 0:
        raise UserError(f"--tune is {trials}; give the number of trials, 1 or more, or 0 for none.")
    if trials and importlib.util.find_spec("optuna") is None:
        raise UserError("--tune needs optuna; run: pip install 'hf-transfer-nlp[tune]'.")


def search_space(arguments: Arguments) -> Space:
    """Return what is searched.

    The learning rate matters most (and its best value depends on the data), then how long training lasts: the schedule
    ends with it, which early stopping can't make up for. Warm-up, weight decay and the rest move scores by less than
    the few hundred validation rows of most runs could tell, and every further setting needs more trials.
    """
    train = arguments.train
    rates = {float(train.learning_rate): None, float(arguments.method_module.DEFAULTS["learning_rate"]): None}
    epochs: tuple[float, ...] = ()
    lasting: dict[str, float] = {}
    if train.max_steps <= 0:
        given = float(train.num_train_epochs)
        half = (float(max(1, round(given / 2))),) if given > 1 else ()  # whole ones: each ends with an evaluation
        epochs = tuple(sorted({*half, given, 2 * given}))
        lasting = {"num_train_epochs": given}
    return Space(
        learning_rate=(min(rates) / REACH, max(rates) * REACH),
        num_train_epochs=epochs,
        first=tuple({"learning_rate": rate, **lasting} for rate in rates),
    )


def tune(job: Job, setup: Setup, prepare: Callable[[Setup], Prepared]) -> tuple[Job, dict[str, Any]]:
    """Return `job` with the best settings of the trials as if they had been given, and what run.json should know.

    Without --tune both are as they were. A search that was killed goes on with the trial that it was at, whose values
    are the same again.

    Args:
        job: as begun.
        setup: what the method is given; its model stays untouched.
        prepare: makes of it what is trained.

    Raises:
        UserError: there are no validation rows, or what `prepare` raises.
    """
    trials = _wanted(job.arguments)
    if not trials:
        return job, {}
    if not len(setup.validation):
        raise UserError("--tune chooses by validation rows, and there are none; raise --validation_fraction, or leave "
                        "--tune out.")  # fmt: skip
    file, space = job.partial / "checkpoints" / FILE, search_space(job.arguments)
    first = job.arguments.train.process_index == 0  # which alone asks optuna, and tells the others
    with job.meter.stage("tune"):
        record = from_first_process(_record(file) if first and file.is_file() else {"trials": []})
        spent = sum(trial["seconds"] for trial in record["trials"])  # before it was killed
        while (number := len(record["trials"])) < trials:
            _try(job, setup, prepare, space, file, number)
            record = from_first_process(_record(file) if first else None)
            last = record["trials"][-1]
            job.console.say(f"trial {number + 1} of {trials}: {_said(last)}: {_scored(last, record['by'])}")
    job.meter.seconds["tune"] += spent
    best = _best(record)
    chosen = {name: record["trials"][best][name] for name in space.first[0]}
    job.console.say(f"tuned: {_said(chosen)}, of trial {best + 1}")
    arguments = replace(job.arguments, train=replace(job.arguments.train, **chosen))
    return replace(job, arguments=arguments), {"tuned": {**record, "chosen": best}}


def _wanted(arguments: Arguments) -> int:
    return next(part.tune for part in arguments.more if isinstance(part, TuneArguments))


def _said(values: dict[str, Any]) -> str:
    epochs = values.get("num_train_epochs")
    return f"learning rate {values['learning_rate']:.3g}" + (f", {epochs:g} epochs" if epochs else "")


def _scored(trial: dict[str, Any], by: str) -> str:
    return "a loss that is no number" if trial["score"] is None else f"validation {by} {trial['score']:.4f}"


def _best(record: dict[str, Any]) -> int:
    """Return the position of the best trial, of equals the first: what was in force is left for something better."""
    sign = -1 if record["greater_is_better"] else 1
    scores = [math.inf if trial["score"] is None else sign * trial["score"] for trial in record["trials"]]
    return scores.index(min(scores))


def _try(job: Job, setup: Setup, prepare: Callable[[Setup], Prepared], space: Space, file: Path, number: int) -> None:
    """Train once with the settings of trial `number`, and write them and their score to `file`."""
    from transformers import set_seed

    seed = job.arguments.train.seed
    set_seed(seed)
    own = replace(setup, loaded=replace(setup.loaded, model=copy.deepcopy(setup.loaded.model)))
    prepared = prepare(own)
    own = prepared.inputs or own
    note_start(job.partial, own, job.arguments)
    trainer = make_trainer(prepared, own, job.task, job.arguments, file.parent, trial=True)
    by, greater = trainer.args.metric_for_best_model, bool(trainer.args.greater_is_better)
    worst = -math.inf if greater else math.inf
    scores: list[float] = []

    def objective(metrics: dict[str, float]) -> float:
        """Score the checkpoint that the run would keep so far.

        A loss that is no number would end the run, unless an alignment was stopped that has a checkpoint to go back to.
        """
        score, kept = metrics[f"eval_{by.removeprefix('eval_')}"], job.arguments.train.load_best_model_at_end
        scores.append(score if math.isfinite(score) and math.isfinite(metrics["eval_loss"]) else math.nan)
        whole = [one for one in scores if math.isfinite(one)]
        if len(whole) < len(scores) and not (whole and kept and STOPPED in prepared.choices):
            return worst
        if not kept:
            return score
        return max(whole) if greater else min(whole)

    def draw(trial: Any) -> dict[str, float]:
        values = {"learning_rate": trial.suggest_float("learning_rate", *space.learning_rate, log=True)}
        if space.num_train_epochs:
            values["num_train_epochs"] = trial.suggest_categorical("num_train_epochs", space.num_train_epochs)
        trainer.args.learning_rate = values["learning_rate"]
        set_learning_rates(trainer, prepared)  # here: the optimiser can't be made before
        return values

    if own.sample_weights is not None:
        pass_weights_on(prepared.model)
    first = job.arguments.train.process_index == 0
    trainer.hyperparameter_search(
        hp_space=draw,
        compute_objective=objective,
        n_trials=1,  # each trial has a Trainer of its own: callbacks and collators belong to one prepared model
        direction="maximize" if greater else "minimize",
        backend="optuna",
        **(_study_options(file, space, number, seed, by, greater=greater) if first else {}),
    )


def _study_options(file: Path, space: Space, number: int, seed: int, by: str, *, greater: bool) -> dict[str, Any]:
    """Return what makes optuna's study go on with trial `number`, and enqueue that where its settings are not drawn.

    Optuna itself counts a trial that was killed, and would pass over its number and draw other values.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    file.parent.mkdir(exist_ok=True)
    options = {
        "storage": _storage(file),
        "study_name": "tune",
        "load_if_exists": True,
        "sampler": optuna.samplers.TPESampler(seed=(seed + number) % 2**32, n_startup_trials=STARTUP),
        # a schedule that is shorter looks better at any step, and the first process alone could not stop a trial
        "pruner": optuna.pruners.NopPruner(),
    }
    study = optuna.create_study(direction="maximize" if greater else "minimize", **options)
    study.set_user_attr("by", by)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    if number < len(space.first) and not study.get_trials(states=(optuna.trial.TrialState.WAITING,)):
        study.enqueue_trial(space.first[number])
    return options


def _storage(file: Path) -> Any:
    """Return the storage in `file`, without half a line that a full disk may have left at its end."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if file.is_file() and not (content := file.read_bytes()).endswith(b"\n"):
        file.write_bytes(content[: content.rfind(b"\n") + 1])
    return JournalStorage(JournalFileBackend(str(file)))


def _record(file: Path) -> dict[str, Any]:
    """Return the finished trials in `file`, in order, and what they were judged by; a score of None is a failure's."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name="tune", storage=_storage(file))
    return {
        "by": study.user_attrs["by"],
        "greater_is_better": study.direction == optuna.study.StudyDirection.MAXIMIZE,
        "trials": [
            {
                **trial.params,
                "score": trial.value if math.isfinite(trial.value) else None,
                "seconds": round(trial.duration.total_seconds(), 3),
            }
            for trial in study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
        ],
    }
