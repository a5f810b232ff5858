"""What fits into a time: how long arms take, so how many seeds and epochs, and whether arms are screened.

Screening is successive halving (Jamieson and Talwalkar 2016, https://arxiv.org/abs/1502.07943): the arms train for a
part of their epochs, and the better half goes on. Controls are never screened.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer import methods
from hf_transfer.arms import MIXTURE, SELF_TRAIN, SOURCE_WEIGHTS, TARGET_ONLY, UDALM, Arm
from hf_transfer.errors import UserError

if TYPE_CHECKING:
    from hf_transfer.methods import Setup

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}
SCREENING = 0.25  # of the epochs that the last rung has
SHARES = (0.75, 0.5, 0.25)  # of what a method trains for, where all of it does not fit
TEACHERS, PAIRED = 2, 2.0  # models that label the pool; a source and a target batch in each step
PRETRAINING_EPOCHS, VOCABULARY = 4, 1.5  # the latter: a step with a head over all words, against one without
BATCH, STEPS = 16, 3  # of what is timed


@dataclass(frozen=True)
class Speeds:
    """What a short calibration measured here.

    Attributes:
        run: seconds of a run beside its training: starting, reading, testing, writing.
        heads: seconds to train the heads of a frozen encoder.
        forward: seconds of a row through the encoder.
        step: method -> seconds of a row in a training step.
    """

    run: float
    heads: float
    forward: float
    step: dict[str, float]


@dataclass(frozen=True)
class Rows:
    """How many rows there are.

    Attributes:
        train, validation: labelled ones, to learn from.
        shots: of the target among those to train on.
        pool: unlabelled.
        own_validation: of the target among those held out; few shots leave none.
    """

    train: int
    validation: int
    shots: int
    pool: int
    own_validation: int = 0


@dataclass(frozen=True)
class Plan:
    """How thoroughly to compare.

    Attributes:
        seeds: runs of each arm and control in the last rung.
        share: of a method's epochs that it trains for there.
        screened: arms that are screened before; `keep` of them go on.
        keep: how many.
        seconds: expected of everything together.
    """

    seeds: int
    share: float
    screened: list[str]
    keep: int
    seconds: float


def read_duration(text: str) -> float:
    """Return the seconds that `90`, `90s`, `10m` or `1.5h` stand for.

    Raises:
        UserError: something else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not found or not float(found[1]):
        raise UserError(f"--budget is '{text}'; give a time like 90s, 10m or 2h.")
    return float(found[1]) * UNITS[found[2]]


def duration(seconds: float) -> str:
    """Say seconds in a few characters: 45 s, 3:20 min, 1:05 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    whole, unit = (round(seconds), "min") if seconds < 3600 else (round(seconds / 60), "h")
    return f"{whole // 60}:{whole % 60:02d} {unit}"


def step_seconds(setup: Setup, method: str) -> float:
    """Measure a row's seconds in a training step of `method`, over batches as long as the training rows are.

    Args:
        setup: with a freshly loaded model, which is changed.
        method: one that the Trainer trains.
    """
    from dataclasses import replace

    import torch

    module = methods.load(method)
    order = np.argsort(setup.train["length"][:])
    spread = order[np.linspace(0, len(order) - 1, min(len(order), BATCH * STEPS)).round().astype(int)]
    few = setup.train.select(spread)
    prepared = module.prepare(replace(setup, train=few, validation=few), module.Arguments())
    used = prepared.inputs or replace(setup, train=few)
    model: Any = prepared.model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu").train()
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    batches = [used.collator([used.train[i] for i in range(begin, min(begin + BATCH, len(few)))])
               for begin in range(0, len(few), BATCH)]  # fmt: skip

    def over(batches: list[Any]) -> float:
        begin = time.perf_counter()
        for batch in batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=setup.precision == "bf16"):
                loss = model(**{name: value.to(device) for name, value in batch.items()}).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - begin

    over(batches[-1:])  # the first step also allocates
    return over(batches) / len(few)


def epochs_of(arm: Arm, share: float, given: float | None, rows: Rows) -> float:
    """Return for how many epochs `arm` trains; 0 if it does not learn by epochs.

    Args:
        arm: which.
        share: of its method's own number.
        given: the user's number in its place, or None.
        rows: there are; few ones are seen as often as it takes for as many steps as the others have.
    """
    if not arm.learns_by_epochs:
        return 0.0
    whole = share * float(given or methods.load(arm.method).DEFAULTS["num_train_epochs"])
    if arm.name == TARGET_ONLY:
        return float(max(1, round(whole * max(1.0, rows.train / max(rows.shots, 1)))))
    return whole * (0.5 if arm.adaptation == SELF_TRAIN else 1.0)  # which has several times the rows


def run_seconds(arm: Arm, epochs: float, rows: Rows, speeds: Speeds, trials: int = 0) -> float:
    """Return what one run of `arm` is expected to take, without pretraining that it shares with others.

    Args:
        arm: which.
        epochs: it trains for.
        rows: there are.
        speeds: measured.
        trials: that choose its settings before, each as long as a training.
    """
    alone = arm.name == TARGET_ONLY
    if arm.tunes and not (alone and not rows.own_validation):
        epochs *= 1 + trials
    pool = rows.pool * speeds.forward if arm.uses_target else 0.0
    labelling = TEACHERS * pool if arm.adaptation == SELF_TRAIN else 0.0
    if not arm.learns_by_epochs:
        heads = speeds.heads * (2 if arm.adaptation == MIXTURE else 1)
        return speeds.run + (rows.train + rows.validation) * speeds.forward + heads + pool + labelling
    step, train = speeds.step[arm.method], rows.shots if alone else rows.train
    epoch = train * step + (rows.own_validation if alone else rows.validation) * speeds.forward
    if arm.adaptation == SELF_TRAIN:
        return speeds.run + labelling + epochs * (epoch + rows.pool * step)
    if arm.adaptation in SOURCE_WEIGHTS:
        return speeds.run + pool + rows.train * speeds.forward + epochs * epoch
    aligned = arm.uses_target and (arm.pretraining is None or arm.adaptation == UDALM)
    return speeds.run + epochs * epoch * (PAIRED if aligned else 1.0)


def pretraining_seconds(rows: Rows, speeds: Speeds) -> float:
    """Return what continued pretraining on the pool is expected to take."""
    return speeds.run + PRETRAINING_EPOCHS * rows.pool * VOCABULARY * max(speeds.step.values())


def make_plan(
    controls: list[Arm],
    arms: list[Arm],
    seeds: int,
    given: float | None,
    rows: Rows,
    speeds: Speeds,
    room: float,
    trials: int = 0,
) -> Plan:
    """Return the most thorough plan that fits into `room` seconds; if none does the least one, which takes longer.

    More seeds come first, then all epochs; arms are screened before either is given up.

    Args:
        controls: trained ones, never screened.
        arms: the others.
        seeds: at most.
        given: epochs that the user asked for, or None.
        rows: there are.
        speeds: measured.
        room: seconds.
        trials: before every run but those that screen.
    """
    screened = [arm for arm in arms if arm.learns_by_epochs]
    pretrained = len({arm.pretraining for arm in arms if arm.pretraining is not None})
    shared = pretrained * pretraining_seconds(rows, speeds) if pretrained else 0.0

    def cost(some: list[Arm], share: float, trials: int = trials) -> list[float]:
        return [run_seconds(arm, epochs_of(arm, share, given, rows), rows, speeds, trials) for arm in some]

    plans = []
    for count, share in [(count, 1.0) for count in range(seeds, 0, -1)] + [(1, share) for share in SHARES]:
        always = sum(cost([*controls, *(arm for arm in arms if arm not in screened)], share))
        last = sorted(cost(screened, share), reverse=True)
        plans.append(Plan(count, share, [], 0, shared + count * (always + sum(last))))
        if len(screened) > 1 and rows.validation:
            keep = math.ceil(len(screened) / 2)
            before = sum(cost(screened, share * SCREENING, 0))
            plans.append(Plan(count, share, [arm.name for arm in screened], keep,
                              shared + before + count * (always + sum(last[:keep]))))  # fmt: skip
    return next((plan for plan in plans if plan.seconds <= room), min(plans, key=lambda plan: plan.seconds))
