"""The runs of a comparison: recipes in processes of their own, within a time, that go on where they were killed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_transfer.arguments import is_hub_flag
from hf_transfer.arms import FROZEN, RANDOM, SELF_TRAIN, SOURCE_ONLY, TARGET_ONLY, Arm, command, read_arm, write_random
from hf_transfer.budget import Speeds, duration, epochs_of, pretraining_seconds
from hf_transfer.comparison import Comparison
from hf_transfer.happened import EPOCHS, what_happened
from hf_transfer.processes import run_command
from hf_transfer.report import run_report, verdict
from hf_transfer.results import load_run, write_atomically
from hf_transfer.schedule import FIRST, LONGER, Training

# flags of this command, or of how a run is made, which is not the user's to say here
OWN = (
    "budget", "arms", "seeds", "tune", "slice_columns", "num_processes", "backtest", "output_dir", "seed", "split_seed",
    "quiet", "profile", "resume", "target_unlabeled", "target_only", "num_train_epochs", "model", "report_to",
)  # fmt: skip


def pretraining_of(arm: Arm) -> str:
    """Return the name of the pretraining that an arm begins with, empty for none."""
    return "" if arm.pretraining is None else f"pretrained/{arm.pretraining or 'default'}"


def given_epochs(job: Comparison) -> float | None:
    """Return the user's own number of epochs, or None."""
    given = any(word.split("=")[0].replace("-", "_") == "__num_train_epochs" for word in job.arguments.argv)
    return job.arguments.train.num_train_epochs if given else None


def settle(job: Comparison, arm: Arm, seed: int) -> None:
    """Put a run of more epochs in the place of the shorter one, and note in a run that its epochs were cut.

    Whatever a kill has left undone of it, the next call does.
    """
    folder, longer, state = job.path(arm, seed), job.path(arm, seed, longer=True), job.state
    name, other = folder.name, f"longer/{folder.name}"
    if (longer / "run.json").is_file():
        if other in state["started"]:
            took = state["seconds"].pop(other, None) or load_run(longer).seconds["total"]
            state["other"] += state["seconds"].get(name, 0.0)  # which stay spent
            state["seconds"][name], state["started"][name] = took, state["started"].pop(other)
            job.save()
        shutil.rmtree(folder, ignore_errors=True)
        longer.rename(folder)
    if not (folder / "run.json").is_file():
        return
    run, given, share = load_run(folder), given_epochs(job), state["started"].get(name, {}).get("share", 1.0)
    epochs, whole = (epochs_of(arm, part, given, job.rows) for part in (share, 1.0))
    choices = run.choices | ({EPOCHS: [epochs, whole]} if epochs < whole else {})
    noted = replace(run, choices=choices, happened=[words for words, _ in what_happened(choices)],
                    command=run.command.replace(str(longer), str(folder)))  # fmt: skip
    noted = replace(noted, verdict=verdict(noted))
    if noted != run:
        write_atomically(folder / "report.md", run_report(noted))
        noted.save(folder)


def pretrained(job: Comparison, arm: Arm, limit: float, expected: float, speeds: Speeds, bar: Any) -> Path | None:
    """Return the encoder that `arm` starts from, trained on the pool once for all that want it; None if it failed."""
    name = pretraining_of(arm)
    data, folder = job.arguments.data, job.folder / name
    objective = ["--objective", arm.pretraining] if arm.pretraining else []
    base = ["--model", job.arguments.model.model] if job.arguments.model.model else []
    flags = [*base, "--model_revision", job.arguments.model.model_revision, "--target_unlabeled",
             str(job.pool), "--max_length", str(data.max_length), "--precision", job.arguments.precision,
             *objective]  # fmt: skip
    begun = {"arm": name, "share": 1.0, "calibration": pretraining_seconds(job.rows, speeds), "expected": expected}
    return _run(job, ["pretrain_domain", *flags], folder, job.arguments.train.seed, "pretraining.json", bar,
                f"pretraining {folder.name}", limit, begun)  # fmt: skip


def train(
    job: Comparison, arm: Arm, one: Training, bar: Any, expected: float = 0.0, calibrated: float = 0.0
) -> Path | None:
    """Train an arm unless that is done; returns its folder, or None if it failed or there is no time."""
    seed = job.arguments.train.seed + one.seed
    folder = job.path(arm, seed, longer=one.why == LONGER)
    base = job.arguments.model.model
    if arm.pretraining is not None:
        base = str(job.folder / pretraining_of(arm))
    if arm.name == RANDOM:
        base = str(job.folder / "random" / f"seed{seed}")
        if not (Path(base) / "tokenizer_config.json").is_file():
            write_random(job.arguments.model.model, job.arguments.model.model_revision, Path(base), seed)
    teachers = []
    if arm.adaptation == SELF_TRAIN:
        own = [job.path(read_arm(name), seed) for name in dict.fromkeys((SOURCE_ONLY, FROZEN))]
        first = [job.path(read_arm(name), job.arguments.train.seed) for name in (SOURCE_ONLY, FROZEN)]
        teachers = [str(one if one.is_dir() else other) for one, other in zip(own, first, strict=True)]
        teachers = [folder for folder in teachers if Path(folder).is_dir()]
    recipe, *own_flags = command(arm, base=base, pool=str(job.pool), teachers=teachers)
    if arm.learns_by_epochs:
        own_flags += ["--num_train_epochs", f"{epochs_of(arm, one.share, given_epochs(job), job.rows):g}"]
    tunes = job.trials and arm.tunes
    if arm.name == TARGET_ONLY and not job.rows.own_validation:
        # all that is held out is the source's, and a checkpoint an epoch would be one every few steps
        own_flags += ["--validation_fraction", "0", "--save_strategy", "no"]
        tunes = False
    if tunes:
        own_flags += ["--tune", str(job.trials)]
    if job.trials and arm.adaptation == SELF_TRAIN and arm.learns_by_epochs:
        source_only = job.path(read_arm(arm.method), seed)
        if (source_only / "run.json").is_file():
            own_flags += ["--learning_rate", str(load_run(source_only).arguments["learning_rate"])]
    split = job.arguments.data.split_seed
    own_flags += ["--split_seed", str(job.arguments.train.seed if split is None else split)]
    what = f"{arm.name}, seed {seed}" + (f", {one.share:.0%} of the epochs" if one.share < 1 else "")
    begun = {"arm": arm.name, "share": one.share, "calibration": calibrated, "expected": expected}
    if one.why != FIRST:
        again = {"run": job.path(arm, seed).name, "why": one.why, "share": one.share}
        job.state["again"] += [] if again in job.state["again"] else [again]
    return _run(job, [recipe, *_forwarded(job.arguments.argv), *own_flags], folder, seed, "run.json", bar, what,
                one.limit, begun)  # fmt: skip


def _run(
    job: Comparison, words: list[str], folder: Path, seed: int, done: str, bar: Any, what: str, limit: float,
    begun: dict[str, Any],
) -> Path | None:  # fmt: skip
    """Run a recipe into `folder` unless `done` is there; None if it failed, or takes longer than `limit` seconds."""
    name = str(folder.relative_to(job.folder / "runs") if folder.is_relative_to(job.folder / "runs")
               else folder.relative_to(job.folder))  # fmt: skip
    if (folder / done).is_file():
        if name not in job.state["seconds"]:  # killed before it was written down
            job.state["seconds"][name] = _total(folder / done)
        return folder
    if name in job.state["failed"]:
        return None
    partial, expected = folder.with_name(folder.name + ".partial"), begun["expected"]
    before = job.state["started"].get(name, {}).get("share")
    goes_on = before == begun["share"] and (partial / "arguments.json").is_file()  # its checkpoints and trials count
    if not goes_on:
        shutil.rmtree(partial, ignore_errors=True)
    (job.folder / "logs").mkdir(exist_ok=True)
    log = job.folder / "logs" / f"{name.replace('/', '-')}.log"
    folder.parent.mkdir(parents=True, exist_ok=True)
    job.state["started"][name] = begun
    job.state["stopped"].pop(name, None)
    job.save()

    def tick(_: float) -> None:
        bar.n = job.spent
        bar.set_description(f"{what}, {duration(job.left)} left for training", refresh=False)
        bar.refresh()

    limit = max(limit, 1.0)
    argv = ["run", "--num_processes", str(job.how.num_processes), *words, "--seed", str(seed), "--output_dir",
            str(folder), "--quiet", *(["--resume"] if goes_on else [])]  # fmt: skip
    ended = run_command(argv, log, seconds=limit, tick=tick)
    planned = f" (expected {duration(expected)})" if expected else ""
    if ended.code == 0 and (folder / done).is_file():
        # also the seconds before a kill
        job.state["seconds"][name] = round(max(ended.seconds, _total(folder / done) if goes_on else 0.0), 3)
        job.console.say(f"{what}: {duration(ended.seconds)}{planned}")
        job.began += ended.seconds
        job.save()
        return folder
    shutil.rmtree(partial, ignore_errors=True)
    if ended.code is None:  # which is no failure: with more time, or fewer epochs, it may be tried again
        job.state["stopped"][name] = round(ended.seconds, 3)
        job.console.say(f"{what}: stopped after {duration(ended.seconds)}{planned}, its time was up")
    else:
        reason = ended.error or f"it ended with {ended.code}"
        if ended.code < 0:
            reason = f"ended by signal {-ended.code}" + (" (out of memory?)" if ended.code == -9 else "")
        job.state["failed"][name] = reason
        job.console.say(f"{what}: {reason}")
    job.save()
    return None


def _total(file: Path) -> float:
    """Return the seconds that a finished run or pretraining has taken by its own account."""
    seconds = json.loads(file.read_text(encoding="utf-8"))["seconds"]
    return float(seconds.get("total", sum(seconds.values())))


def _forwarded(argv: list[str]) -> list[str]:
    """Return the flags that go on to every recipe, with their values."""
    words, goes_on = [], False
    for word in argv:
        if word.startswith("--"):
            name = word[2:].split("=")[0].replace("-", "_")
            goes_on = name not in OWN and not is_hub_flag(name) and not name.endswith("_token")
        if goes_on:
            words.append(word)
    return words
