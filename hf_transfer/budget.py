"""Times: how they are read and written, and how long a run is expected to take on this machine."""

from __future__ import annotations

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

UNITS = {"s": 1, "m": 60, "h": 3600}
LEAST, MOST = 10.0, 30 * 24 * 3600.0  # seconds of a budget
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


def read_duration(text: str) -> float:
    """Return the seconds that `90s`, `8m` or `1.5h` stand for.

    Raises:
        UserError: something else, less than LEAST, or more than MOST.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not found:
        raise UserError(f"--budget is '{text}': give a time with its unit, for example 8m (also 90s, 2h).")
    if not found[2]:
        raise UserError(f"--budget is '{text}': add a unit, for example 8m (also 90s, 2h).")
    seconds = float(found[1]) * UNITS[found[2]]
    if not LEAST <= seconds <= MOST:
        raise UserError(f"--budget is '{text}': give at least {LEAST:.0f}s and at most {MOST / 3600:.0f}h, for example "
                        "8m.")  # fmt: skip
    return seconds


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
