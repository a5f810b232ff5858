"""Which adaptation is best for these data, within a time, and did transfer help at all (`hf-transfer compare`).

What is there is never done again: the same command goes on after a stop, and after the last run it writes the same
verdict.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hf_transfer.arguments import expand, is_hub_flag
from hf_transfer.arms import (
    FROZEN,
    RANDOM,
    SELF_TRAIN,
    SOURCE_ONLY,
    TARGET_ONLY,
    Arm,
    command,
    read_arm,
    write_random,
)
from hf_transfer.budget import (
    SCREENING,
    Plan,
    Speeds,
    duration,
    epochs_of,
    make_plan,
    pretraining_seconds,
    run_seconds,
    step_seconds,
)
from hf_transfer.candidates import ROWS
from hf_transfer.comparison import Comparison, open_comparison
from hf_transfer.errors import UserError
from hf_transfer.models import load_model
from hf_transfer.processes import run_command
from hf_transfer.report import training_seconds
from hf_transfer.results import load_run
from hf_transfer.what_next import TEXTS

SPARE = 0.92  # of the budget is planned: the verdict takes time too, and estimates err
END = 10.0  # seconds that judging, drawing and writing take, and what ran before the clock did
START = 1.0  # seconds that a process takes to begin; several that work together are timed
GAP_ROWS = 300  # of a domain: the report must not eat the budget
# flags of this command, or of how a run is made, which is not the user's to say here
OWN = (
    "budget", "arms", "seeds", "tune", "slice_columns", "num_processes", "backtest", "output_dir", "seed", "split_seed",
    "quiet", "profile", "resume", "target_unlabeled", "target_only", "num_train_epochs", "model", "report_to",
)  # fmt: skip


def compare(argv: list[str] | None = None) -> Path:
    """Look at the data, plan, train what the budget allows, and write the verdict; returns its folder.

    Raises:
        UserError: anything that is wrong with the data, the arms, the folder or the budget.
    """
    from hf_transfer.findings import find
    from hf_transfer.verdict_pages import said, write_pages

    job = open_comparison(expand(sys.argv[1:] if argv is None else list(argv)), __doc__)
    with _progress(job) as bar:
        _gap(job)
        if _train(job, read_arm(FROZEN), job.arguments.train.seed, 0.0, bar) is None:
            (reason,) = job.state["failed"].values()
            raise UserError(f"the first control, a head on the frozen encoder, was not finished ({reason}); give more "
                            "--budget, or correct what it names.")  # fmt: skip
        if "plan" not in job.state:
            speeds = _calibrate(job)
            plan = _plan(job, speeds)
            after, done = _afterwards(job, speeds), run_seconds(read_arm(FROZEN), 0.0, job.rows, speeds)
            job.state |= {"speeds": asdict(speeds), "plan": asdict(plan), "afterwards": after,
                          "ends": job.spent + plan.seconds - done + after}  # fmt: skip
            job.save()
        plan, speeds = Plan(**job.state["plan"]), Speeds(**job.state["speeds"])
        job.console.say(_shown(job, plan, speeds))
        _train_all(job, plan, speeds, bar)
    facts = find(job)
    write_pages(facts, job.folder)
    job.console.say(said(facts, job.folder))
    return job.folder


@contextlib.contextmanager
def _progress(job: Comparison) -> Iterator[Any]:
    """Yield a bar that counts seconds, on a terminal."""
    from tqdm import tqdm

    hidden = job.console.quiet or not sys.stderr.isatty()
    form = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} s"
    with tqdm(desc="compare", total=job.budget, disable=hidden, leave=False, bar_format=form) as bar:
        yield bar


def _gap(job: Comparison) -> None:
    """Write how far the domains are apart, once."""
    from hf_transfer.gap import domain_gap

    data = job.arguments.data
    target = data.target_unlabeled or data.target
    if target is None:
        return
    if data.domain_column:
        job.console.say("no gap report: the domains are in one table; split it to have one.")
        return
    for number, source in enumerate(data.source):
        where = job.folder / "gap" / (str(number) if len(data.source) > 1 else "")
        if (where / "gap.json").is_file():
            continue
        try:
            domain_gap(source, target, model=job.arguments.model.model, text_column=data.text_column,
                       label_column=data.label_column, output_dir=str(where), seed=job.arguments.train.seed,
                       most=GAP_ROWS, quiet=True)  # fmt: skip
        except UserError as error:  # too few rows for it are no reason not to compare
            job.console.say(f"no gap report: {error}")
            continue
        job.console.say(json.loads((where / "gap.json").read_text(encoding="utf-8"))["verdict"])


def _calibrate(job: Comparison) -> Speeds:
    """Measure, on the finished frozen run and a few training steps, how fast this machine is."""
    frozen = job.path(read_arm(FROZEN), job.arguments.train.seed)
    run = load_run(frozen)
    seconds, tested = run.seconds, sum(job.domains.facts["rows"].values()) - job.rows.train
    forward = seconds["predict"] / tested
    learnt = (job.rows.train + job.rows.validation) * forward  # by what it took, or had taken when it was cached
    wanted = {arm.method for arm in (*job.controls, *job.arms) if arm.learns_by_epochs}
    steps = {}
    for method in sorted(wanted):
        loaded = load_model(job.arguments.model, job.task, job.domains.label_names, job.setup.seed)
        steps[method] = step_seconds(replace(job.setup, loaded=loaded), method)
    heads, start = training_seconds(run) - learnt, START
    if job.how.num_processes > 1:
        start = max(START, job.state["seconds"].get(frozen.name, 0.0) - seconds["total"])
    return Speeds(start + seconds["total"] - seconds["prepare"], max(0.0, heads), forward, steps)


def _plan(job: Comparison, speeds: Speeds) -> Plan:
    """Return the plan that fits.

    Raises:
        UserError: none does.
    """
    names = {arm.name for arm in job.controls}
    others = [arm for arm in job.arms if arm.name not in names]
    room = SPARE * job.budget - job.spent - _afterwards(job, speeds)
    plan = make_plan(job.controls, others, job.how.seeds, _given_epochs(job), job.rows, speeds, room, job.trials)
    if plan.seconds > room:
        raise UserError(f"--budget {job.how.budget} is too short: the least comparison of these arms takes about "
                        f"{duration((plan.seconds + job.spent) / SPARE)} here; give that much, fewer --arms, or fewer "
                        f"rows (--max_rows). What is done stays in {job.folder}.")  # fmt: skip
    return plan


def _afterwards(job: Comparison, speeds: Speeds) -> float:
    """Return the seconds that what comes after the last training is expected to take, mostly reading texts."""
    texts = 2 * min(job.rows.pool, TEXTS) + (min(job.rows.train, TEXTS) if job.rows.shots else 0)
    if job.arguments.data.target is None and job.rows.pool:
        runs = len(set(job.controls) | set(job.arms))
        texts += runs * (1 + len(job.how.backtest)) * min(job.rows.pool, ROWS)
    return END + texts * speeds.forward


def _given_epochs(job: Comparison) -> float | None:
    """Return the user's own number of epochs, or None."""
    given = any(word.split("=")[0].replace("-", "_") == "__num_train_epochs" for word in job.arguments.argv)
    return job.arguments.train.num_train_epochs if given else None


def _shown(job: Comparison, plan: Plan, speeds: Speeds) -> str:
    """Return the plan in words and a table."""
    given = _given_epochs(job)
    lines = [
        f"plan: {plan.seeds} seed{'s' if plan.seeds > 1 else ''}, "
        + (f"the better {plan.keep} of {len(plan.screened)} arms after {SCREENING:.0%} of their epochs, " if plan.keep
           else "no screening, ")
        + f"about {duration(plan.seconds)} of the {duration(job.budget)} ({duration(job.spent)} spent)",
        f"{'':22} {'epochs':>7} {'seconds a run':>14}",
    ]  # fmt: skip
    for arm in dict.fromkeys([*job.controls, *job.arms]):
        epochs = epochs_of(arm, plan.share, given, job.rows)
        role = "" if arm in job.arms else "  control"
        expected = run_seconds(arm, epochs, job.rows, speeds, job.trials)
        lines.append(f"{arm.name:22} {f'{epochs:g}' if epochs else '':>7} {expected:>14.0f}{role}")
    return "\n".join(lines)


def _train_all(job: Comparison, plan: Plan, speeds: Speeds, bar: Any) -> None:
    """Train controls, screen arms, train those that are left; seed by seed, so that an early end leaves whole ones."""
    seed, given = job.arguments.train.seed, _given_epochs(job)

    def train(arm: Arm, number: int, share: float, screening: bool = False) -> Path | None:
        epochs = epochs_of(arm, share, given, job.rows)
        if arm.pretraining is not None and _pretrained(job, arm, speeds, bar) is None:
            job.state["failed"][job.path(arm, number, screening).name] = "its pretraining was not finished"
            return None
        expected = run_seconds(arm, epochs, job.rows, speeds, 0 if screening else job.trials)
        return _train(job, arm, number, epochs, bar, screening, expected)

    for control in job.controls:
        train(control, seed, plan.share)
    left = [arm for arm in job.arms if arm not in job.controls]
    if plan.screened:
        scores = {}
        for arm in left:
            if arm.name in plan.screened and (done := train(arm, seed, plan.share * SCREENING, screening=True)):
                scores[arm.name] = _held_out(done)
        ordered = sorted(scores, key=lambda name: scores[name], reverse=True)
        job.state["screening"] = {name: {"accuracy": scores[name][0], "kept": i < plan.keep}
                                  for i, name in enumerate(ordered)}  # fmt: skip
        job.save()
        left = [arm for arm in left if arm.name not in plan.screened or arm.name in ordered[: plan.keep]]
    for number in range(seed, seed + plan.seeds):
        for arm in [*job.controls, *left]:
            train(arm, number, plan.share)


def _held_out(folder: Path) -> tuple[float, float]:
    """Return how good a run is on validation rows: accuracy, and of equal ones the lower loss."""
    scores = load_run(folder).metrics.get("validation") or {"accuracy": 0.0, "loss": 0.0}
    return scores["accuracy"], -scores["loss"]


def _pretrained(job: Comparison, arm: Arm, speeds: Speeds, bar: Any) -> Path | None:
    """Return the encoder that `arm` starts from, trained on the pool once for all that want it; None if it failed."""
    folder = job.folder / "pretrained" / (arm.pretraining or "default")
    data = job.arguments.data
    objective = ["--objective", arm.pretraining] if arm.pretraining else []
    base = ["--model", job.arguments.model.model] if job.arguments.model.model else []
    flags = [*base, "--model_revision", job.arguments.model.model_revision, "--target_unlabeled",
             str(job.pool), "--max_length", str(data.max_length), "--precision", job.arguments.precision,
             *objective]  # fmt: skip
    return _run(job, ["pretrain_domain", *flags], folder, job.arguments.train.seed, "pretraining.json", bar,
                f"pretraining {folder.name}", pretraining_seconds(job.rows, speeds))  # fmt: skip


def _train(
    job: Comparison, arm: Arm, seed: int, epochs: float, bar: Any, screening: bool = False, expected: float = 0.0
) -> Path | None:
    """Train an arm unless that is done; returns its folder, or None if it failed or there is no time."""
    folder = job.path(arm, seed, screening)
    base = job.arguments.model.model
    if arm.pretraining is not None:
        base = str(job.folder / "pretrained" / (arm.pretraining or "default"))
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
        own_flags += ["--num_train_epochs", f"{epochs:g}"]
    tunes = job.trials and arm.tunes and not screening
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
    what = f"{arm.name}, {'screening' if screening else f'seed {seed}'}"
    return _run(job, [recipe, *_forwarded(job.arguments.argv), *own_flags], folder, seed, "run.json", bar, what,
                expected)  # fmt: skip


def _run(
    job: Comparison, words: list[str], folder: Path, seed: int, done: str, bar: Any, what: str, expected: float
) -> Path | None:
    """Run a recipe into `folder` unless `done` is there; None if it failed, or there is no time for it."""
    name = str(folder.relative_to(job.folder / "runs") if folder.is_relative_to(job.folder / "runs")
               else folder.relative_to(job.folder))  # fmt: skip
    if (folder / done).is_file():
        return folder
    if name in job.state["failed"]:
        return None
    left = SPARE * job.budget - job.spent - job.state.get("afterwards", END)
    if expected > left:
        job.state["failed"][name] = f"no time: about {duration(expected)} needed, {duration(left)} left"
        job.save()
        return None
    partial = folder.with_name(folder.name + ".partial")
    resume = ["--resume"] if (partial / "arguments.json").is_file() else []  # killed: its checkpoints and trials count
    if not resume:
        shutil.rmtree(partial, ignore_errors=True)
    (job.folder / "logs").mkdir(exist_ok=True)
    log = job.folder / "logs" / f"{name.replace('/', '-')}.log"
    folder.parent.mkdir(parents=True, exist_ok=True)
    before = job.spent

    def tick(seconds: float) -> None:
        bar.n = before + seconds
        bar.total = job.state.get("ends", job.budget)
        left = f", about {duration(max(0.0, bar.total - bar.n))} left" if "ends" in job.state else ""
        bar.set_description(what + left, refresh=False)
        bar.refresh()

    argv = ["run", "--num_processes", str(job.how.num_processes), *words, "--seed", str(seed), "--output_dir",
            str(folder), "--quiet", *resume]  # fmt: skip
    ended = run_command(argv, log, seconds=left, tick=tick)
    if ended.code == 0 and (folder / done).is_file():
        found = json.loads((folder / done).read_text(encoding="utf-8"))["seconds"] if resume else {}
        known = found.get("total", sum(found.values()))  # also of the seconds before a kill
        job.state["seconds"][name] = round(max(known, ended.seconds), 3)
        if expected:
            job.state.setdefault("expected", {})[name] = round(expected, 3)
        planned = f" (expected {duration(expected)})" if expected else ""
        job.console.say(f"{what}: {duration(ended.seconds)}{planned}")
        job.began += ended.seconds
        job.save()
        return folder
    shutil.rmtree(partial, ignore_errors=True)
    reason = "stopped: the budget was spent" if ended.code is None else ended.error or f"it ended with {ended.code}"
    if ended.code is not None and ended.code < 0:
        reason = f"ended by signal {-ended.code}" + (" (out of memory?)" if ended.code == -9 else "")
    job.state["failed"][name] = reason
    job.console.say(f"{what}: {reason}")
    job.save()
    return None


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
