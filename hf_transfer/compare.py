"""Which adaptation is best for these data, within a time, and did transfer help at all (`hf-transfer compare`).

What is there is never done again: the same command goes on after a stop, and after the last run it writes the same
verdict.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hf_transfer.arguments import expand
from hf_transfer.arm_runs import given_epochs, pretrained, pretraining_of, settle, train
from hf_transfer.arms import FROZEN, SELF_TRAIN, SOURCE_ONLY, Arm, read_arm
from hf_transfer.budget import Speeds, duration, epochs_of, pretraining_seconds, run_seconds, step_seconds
from hf_transfer.candidates import ROWS
from hf_transfer.comparison import END_SHARE, Comparison, open_comparison, resting
from hf_transfer.errors import UserError
from hf_transfer.models import load_model
from hf_transfer.report import training_seconds
from hf_transfer.results import load_run
from hf_transfer.schedule import (
    FIRST,
    MARGIN,
    SCREENING,
    SHARES,
    Entry,
    Plan,
    Seconds,
    Training,
    correction,
    make_plan,
    next_training,
)
from hf_transfer.statistics import metric
from hf_transfer.what_next import TEXTS

START = 1.0  # seconds that a process takes to begin; several that work together are timed
UNFINISHED = 1.5  # times what a run that was stopped had taken until then is what it is expected to take
AGAIN = 1.1  # the next call reads the data, too
GAP_ROWS = 300  # of a domain: the report must not eat the budget


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
        _train_first(job, bar)
        if "speeds" not in job.state:
            speeds = _calibrate(job)
            job.state |= {"speeds": asdict(speeds), "reading": _reading(job, speeds)}
            job.save()
        speeds = Speeds(**job.state["speeds"])
        if not {name for name, _ in _done(job)} & {*job.state.get("plan", {"arms": []})["arms"]}:
            job.state["plan"] = asdict(_plan(job, speeds))  # also once more, where a budget left no time for any run
            job.save()
        plan = Plan(**job.state["plan"])
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
    """Return the plan of the first runs.

    Raises:
        UserError: nothing that the user asked for fits.
    """
    done = _done(job)
    to_come = [entry for entry in _entries(job) if (entry.name, 0) not in done]
    expected, asked_done = _expected(job, speeds), any((arm.name, 0) in done for arm in job.arms)
    plan = make_plan(to_come, expected, job.left, asked_done=asked_done)
    if not asked_done and not {arm.name for arm in job.arms} & {*plan.arms}:
        price, name = min((_least(arm, expected), arm.name) for arm in job.arms)
        needed = AGAIN * (job.spent + job.kept - END_SHARE * job.budget + price) / (1 - END_SHARE)
        raise UserError(f"--budget {job.how.budget} is too short: the first control and the cheapest arm ({name}) take "
                        f"about {duration(needed)} here; give that much, cheaper --arms, or fewer rows (--max_rows). "
                        f"What is done stays in {job.folder}.")  # fmt: skip
    return plan


def _entries(job: Comparison) -> list[Entry]:
    """Return arms and controls as the schedule knows them."""
    out = []
    for arm in dict.fromkeys([*job.arms, *job.controls]):
        teachers = [SOURCE_ONLY, FROZEN, *([arm.method] if job.trials else [])] if arm.adaptation == SELF_TRAIN else []
        screens = arm.learns_by_epochs and arm not in job.controls and bool(job.rows.validation)
        out.append(Entry(arm.name, arm in job.arms, arm.learns_by_epochs, tuple(teachers), pretraining_of(arm),
                         screens))  # fmt: skip
    return out


def _expected(job: Comparison, speeds: Speeds) -> Seconds:
    """Return what tells how long a run is expected to take, by the calibration and the runs so far."""

    def seconds(name: str, share: float) -> float:
        if (job.folder / name / "pretraining.json").is_file():
            return 0.0
        took = {run: UNFINISHED * took for run, took in job.state["stopped"].items()} | job.state["seconds"]
        return _calibrated(job, name, share, speeds) * correction(job.state["started"], took, name)

    return seconds


def _least(arm: Arm, expected: Seconds) -> float:
    """Return the seconds without which an arm is not begun."""
    pretraining = pretraining_of(arm)
    return MARGIN * (expected(arm.name, SHARES[-1]) + (expected(pretraining, 1.0) if pretraining else 0.0))


def _calibrated(job: Comparison, name: str, share: float, speeds: Speeds) -> float:
    """Return how long a run or a pretraining takes by the calibration alone."""
    if name.startswith("pretrained/"):
        return pretraining_seconds(job.rows, speeds)
    arm = read_arm(name)
    return run_seconds(arm, epochs_of(arm, share, given_epochs(job), job.rows), job.rows, speeds, job.trials)


def _done(job: Comparison) -> dict[tuple[str, int], float]:
    """Return the finished runs, as arm and seed from 0, and the share of epochs that each was trained for."""
    out, seed = {}, job.arguments.train.seed
    for arm in dict.fromkeys([*job.arms, *job.controls]):
        for number in range(job.how.seeds):
            folder = job.path(arm, seed + number)
            if (folder / "run.json").is_file():
                out[arm.name, number] = job.state["started"].get(folder.name, {}).get("share", 1.0)
    return out


def _failed(job: Comparison) -> set[tuple[str, int]]:
    """Return the runs, as arm and seed from 0, that failed in this call."""
    seed, names = job.arguments.train.seed, {name.removeprefix("longer/") for name in job.state["failed"]}
    return {(arm.name, number) for arm in (*job.arms, *job.controls) for number in range(job.how.seeds)
            if job.path(arm, seed + number).name in names}  # fmt: skip


def _reading(job: Comparison, speeds: Speeds) -> float:
    """Return the seconds that reading texts after the last training is expected to take."""
    texts = 2 * min(job.rows.pool, TEXTS) + (min(job.rows.train, TEXTS) if job.rows.shots else 0)
    if job.arguments.data.target is None and job.rows.pool:
        runs = len(set(job.controls) | set(job.arms))
        texts += runs * (1 + len(job.how.backtest)) * min(job.rows.pool, ROWS)
    return texts * speeds.forward


def _shown(job: Comparison, plan: Plan, speeds: Speeds) -> str:
    """Return the plan in words and a table."""
    given, by_name = given_epochs(job), {arm.name: arm for arm in (*job.controls, *job.arms)}
    share = "" if plan.share == 1 else f", {plan.share:.0%} of the epochs"
    runs = f"a run of each{share}, about {duration(plan.seconds)}" if plan.arms else "no time for a further run"
    lines = [f"plan: {runs}; {job.clock}",
             f"{'':22} {'epochs':>7} {'seconds a run':>14}"]  # fmt: skip
    if plan.screened:
        lines.insert(
            1, f"of {', '.join(plan.screened)} the better {plan.keep} go on after {SCREENING:.0%} of the epochs"
        )
    for name in (FROZEN, *plan.arms, *plan.left_out):
        share_of = plan.first_share(name)
        epochs = epochs_of(by_name[name], share_of, given, job.rows)
        role = "" if by_name[name] in job.arms else "  control"
        if name in plan.left_out:
            role += "  left out, unless time is left over"
        lines.append(f"{name:22} {f'{epochs:g}' if epochs else '':>7} "
                     f"{_calibrated(job, name, share_of, speeds):>14.0f}{role}")  # fmt: skip
    return "\n".join(lines)


def _train_first(job: Comparison, bar: Any) -> None:
    """Train the control that shows how fast this machine is.

    Raises:
        UserError: it was not finished.
    """
    arm, seed = read_arm(FROZEN), job.arguments.train.seed
    if train(job, arm, Training(FROZEN, 0, 1.0, job.left, FIRST), bar):
        return
    if (name := job.path(arm, seed).name) in job.state["stopped"]:
        raise UserError(f"--budget {job.how.budget} is too short: the first control, a head on the frozen encoder, was "
                        f"not finished; with the verdict it takes more than {duration(job.spent + job.kept)} here. "
                        "Give several times as much, or fewer rows (--max_rows).")  # fmt: skip
    raise UserError(f"the first control, a head on the frozen encoder, was not finished ({job.state['failed'][name]}); "
                    "correct what it names.")  # fmt: skip


def _train_all(job: Comparison, plan: Plan, speeds: Speeds, bar: Any) -> None:
    """Train whatever is worth it and fits, one run after the other; then say of what is missing why."""
    entries, expected, seed = _entries(job), _expected(job, speeds), job.arguments.train.seed
    arms = {entry.name: read_arm(entry.name) for entry in entries}
    for arm in arms.values():
        for number in range(seed, seed + job.how.seeds):
            settle(job, arm, number)
    why = FIRST
    while one := next_training(entries, plan, job.how.seeds, _done(job), _failed(job), expected, job.left,
                               _screened_out(job, plan)):  # fmt: skip
        if one.why != why:
            why = one.why
            job.console.say(f"{job.clock}; next: {why}")
        deadline, arm = job.spent + one.limit, arms[one.name]
        calibrated = _calibrated(job, one.name, one.share, speeds)
        if arm.pretraining is not None:
            limit = one.limit - expected(one.name, one.share)
            if pretrained(job, arm, limit, expected(pretraining_of(arm), 1.0), speeds, bar) is None:
                job.state["failed"][job.path(arm, seed + one.seed).name] = "its pretraining was not finished"
                job.save()
                continue
        one = replace(one, limit=deadline - job.spent)
        train(job, arm, one, bar, expected(one.name, one.share), calibrated)
        settle(job, arm, seed + one.seed)
    left, done = job.left, _done(job)
    for name, arm in arms.items():
        run = job.path(arm, seed).name
        if (name, 0) not in done:
            reason = (f"no time: it may take {duration(_least(arm, expected))}, with {duration(left)} left before the "
                      "verdict is written")  # fmt: skip
            if (seconds := job.state["stopped"].get(run)) is not None:
                reason = f"stopped after {duration(seconds)}, when its time was up; {reason}"
            job.state["failed"].setdefault(run, reason)
    job.save()


def _screened_out(job: Comparison, plan: Plan) -> set[str]:
    """Return the arms that are not as good as others on held-out rows, once all that are screened were trained a while.

    These rows are the labelled ones that choose checkpoints, by the metric that chooses them.
    """
    done, failed, seed = _done(job), _failed(job), job.arguments.train.seed
    there = [name for name in plan.screened if (name, 0) in done]
    if (
        "screening" not in job.state
        and plan.screened
        and all(name in there or (name, 0) in failed for name in plan.screened)
    ):
        scores = {name: _held_out(job.path(read_arm(name), seed)) for name in there}
        ordered = sorted(there, key=lambda name: scores[name], reverse=True)
        job.state["screening"] = {name: {"score": scores[name][0], "kept": i < plan.keep}
                                  for i, name in enumerate(ordered)}  # fmt: skip
        job.save()
    return resting(job)


def _held_out(folder: Path) -> tuple[float, float]:
    """Return how good a run is on validation rows by what chooses its checkpoints, and of equal ones by the loss."""
    run = load_run(folder)
    scores = run.metrics["validation"]
    return metric.of(scores, run.chosen_by), -scores["loss"]
