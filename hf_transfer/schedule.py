"""What to train next in the time that is left: a pure function of what is there, expected seconds and the clock.

The first run of every arm and control comes first. Where there is no time for all of their epochs, arms are screened
before epochs are given up for all: by successive halving (Jamieson and Talwalkar 2016,
https://arxiv.org/abs/1502.07943) they train for a part of them, and those that are better on held-out rows go on. Time
that is left over goes to arms that were left out, then to more epochs for all that were cut short, then to further
seeds. No test row has a part in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

SHARES = (1.0, 0.75, 0.5, 0.25)  # of a method's epochs
FIRST_SHARES = tuple(percent / 100 for percent in range(100, 20, -5))  # finer ones leave less time over
SCREENING = 0.25  # of the epochs, for arms that are screened
GAIN = 0.2  # of the epochs, for less of which nothing is trained once more, unless it gets all of them
MARGIN = 1.1  # of what is expected: a run that is cut short by the clock was for nothing
FIRST, LEFT_OUT, LONGER, SEED = "first run", "left out at first", "more epochs", "further seed"

# name of an arm or a pretraining, share of its epochs -> expected seconds; 0 for a pretraining that is there
Seconds = Callable[[str, float], float]


@dataclass(frozen=True)
class Entry:
    """An arm or a control.

    Attributes:
        name: of the arm.
        asked: whether the user named it.
        by_epochs: whether it can be trained for a share of its epochs.
        after: names of arms that it learns from, which come before it if they have time at all.
        pretraining: name of the pretraining that it begins with and may share with others; empty for none.
        screens: whether it may be screened.
    """

    name: str
    asked: bool
    by_epochs: bool
    after: tuple[str, ...] = ()
    pretraining: str = ""
    screens: bool = False


@dataclass(frozen=True)
class Plan:
    """The first runs.

    Attributes:
        share: part of a method's epochs that they are trained for.
        arms: names in the order of training.
        left_out: names of the dearest, for which there is no time even at the least share.
        seconds: expected total.
        screened: names of those that are trained for SCREENING of their epochs first; `keep` of them go on.
        keep: how many.
    """

    share: float
    arms: list[str]
    left_out: list[str]
    seconds: float
    screened: list[str] = field(default_factory=list)
    keep: int = 0

    def first_share(self, name: str) -> float:
        """Return the share of its epochs that an arm's first run is trained for."""
        return SCREENING if name in self.screened else self.share


@dataclass(frozen=True)
class Training:
    """One run to make.

    Attributes:
        name: of the arm.
        seed: number of the run, from 0.
        share: part of the method's epochs.
        limit: seconds after which it would take the time of others.
        why: FIRST, LEFT_OUT, LONGER or SEED.
    """

    name: str
    seed: int
    share: float
    limit: float
    why: str


@dataclass(frozen=True)
class _Priced:
    entry: Entry
    seed: int
    share: float
    whole: float  # seconds for all epochs, with the pretraining: how dear it is
    alone: float  # seconds for the share
    pretraining: float  # seconds, 0 where it is there
    seconds: float = 0.0  # for the share, with a pretraining that no other one of those that fit pays for


def make_plan(entries: list[Entry], seconds: Seconds, left: float, *, asked_done: bool = False) -> Plan:
    """Return the largest share of epochs at which the first runs of all `entries` fit into `left` seconds.

    If none does, the dearest are left out, and it is the largest share for all others.

    Args:
        entries: not trained yet.
        seconds: expected of a run.
        left: seconds for all of them.
        asked_done: whether an arm that the user asked for is trained already.
    """
    share, first_runs = _largest(entries, FIRST_SHARES, seconds, left, asked_first=not asked_done)
    if (
        share < 1
        and len(first_runs) == len(entries)
        and (plan := _screening(entries, seconds, left, asked_first=not asked_done))
    ):
        return plan
    names = _order(first_runs)
    out = [entry.name for entry in entries if entry.name not in names]
    return Plan(share, names, out, sum(one.seconds for one in first_runs))


def _screening(entries: list[Entry], seconds: Seconds, left: float, *, asked_first: bool) -> Plan | None:
    """Return the plan by which the better half of the arms trains for all epochs, as all else does, if it fits."""
    screened = [entry for entry in entries if entry.screens]
    keep = math.ceil(len(screened) / 2)
    if len(screened) < 2:
        return None
    others, last = (_priced([(entry, 0, 1.0) for entry in entries if entry.screens == screens], seconds)
                    for screens in (False, True))  # fmt: skip
    rung = _priced([(entry, 0, SCREENING) for entry in screened], seconds)
    everything = [*others, *rung, *last[-keep:]]
    fitting = _fitting(everything, left)
    if len(fitting) < len(everything):
        return None
    first = [(entry, 0, SCREENING if entry.screens else 1.0) for entry in entries]
    order = _order(_fitting(_priced(first, seconds, asked_first=asked_first), left))
    return Plan(1.0, order, [], sum(one.seconds for one in fitting), [entry.name for entry in screened], keep)


def _order(queue: list[_Priced]) -> list[str]:
    """Return names in the order of training."""
    taken, order = [*queue], []
    while taken:
        order.append(_first(taken))
        taken.remove(order[-1])
    return [one.entry.name for one in order]


def next_training(
    entries: list[Entry],
    plan: Plan,
    seeds: int,
    done: dict[tuple[str, int], float],
    failed: set[tuple[str, int]],
    seconds: Seconds,
    left: float,
    resting: Collection[str] = (),
) -> Training | None:
    """Return the next run that is worth training and fits into `left` seconds, or None.

    Args:
        entries: arms and controls.
        plan: of their first runs.
        seeds: runs of each, at most.
        done: (arm, seed from 0) -> share of the epochs that it was trained for.
        failed: (arm, seed) whose training failed or was stopped, and is not tried again.
        seconds: expected of a run.
        left: seconds for training.
        resting: arms that screening has put aside; only what all others leave over is theirs.
    """
    hungry = not any(entry.asked and (entry.name, 0) in done for entry in entries)
    missing = [entry for entry in entries if (entry.name, 0) not in done and (entry.name, 0) not in failed]

    first = [(entry, 0, plan.first_share(entry.name)) for entry in missing if entry.name in plan.arms]
    if found := _next(_fitting(_priced(first, seconds, asked_first=hungry), left), left, FIRST):
        return found
    _, fitting = _largest(missing, SHARES, seconds, left, asked_first=hungry)
    if found := _next(fitting, left, LEFT_OUT):
        return found
    by_name = {entry.name: entry for entry in entries}

    def longer(names: Collection[str]) -> Training | None:
        for share in SHARES[:-1]:
            shorter = [(by_name[name], seed, share) for (name, seed), had in done.items()
                       if name in names and had < share and (had <= share - GAIN or share == 1)
                       and by_name[name].by_epochs and (name, seed) not in failed]  # fmt: skip
            fitting = _fitting(_priced(shorter, seconds), left)
            if fitting and len(fitting) == len(shorter):
                return _next(fitting, left, LONGER)
        return None

    if found := longer({*by_name} - {*resting}):
        return found
    for seed in range(1, seeds):
        wanted = [(entry, seed, done[entry.name, 0]) for entry in entries
                  if entry.name not in resting and (entry.name, 0) in done and (entry.name, seed) not in done
                  and (entry.name, seed) not in failed]  # fmt: skip
        if found := _next(_fitting(_priced(wanted, seconds), left), left, SEED):
            return found
    return longer(resting)


def correction(started: dict[str, dict[str, Any]], took: dict[str, float], arm: str) -> float:
    """Return by how much to multiply what the calibration expects of `arm`.

    It is the mean of real against expected seconds over the arm's own runs; where it has none, the median over those of
    all others; 1 before any run.

    Args:
        started: run -> its `arm`, and the seconds by the `calibration`.
        took: run -> real seconds; for one that was stopped those until then.
        arm: name.
    """
    ratios = [(one["arm"], took[name] / one["calibration"])
              for name, one in started.items() if name in took and one["calibration"]]  # fmt: skip
    if own := [ratio for name, ratio in ratios if name == arm]:
        return float(np.mean(own))
    return float(np.median([ratio for _, ratio in ratios])) if ratios else 1.0


def _largest(
    entries: list[Entry], shares: tuple[float, ...], seconds: Seconds, left: float, *, asked_first: bool
) -> tuple[float, list[_Priced]]:
    """Return the first runs of as many as fit at the least of `shares`, at the largest at which all of these do."""

    def fitting(some: list[Entry], share: float) -> list[_Priced]:
        return _fitting(_priced([(entry, 0, share) for entry in some], seconds, asked_first=asked_first), left)

    least = [one.entry for one in fitting(entries, shares[-1])]
    share = next(share for share in shares if len(fitting(least, share)) == len(least))
    return share, fitting(least, share)


def _priced(wanted: list[tuple[Entry, int, float]], seconds: Seconds, *, asked_first: bool = False) -> list[_Priced]:
    """Return the runs with their prices, the cheapest first.

    Args:
        wanted: entry, seed and share of epochs.
        seconds: expected of a run.
        asked_first: put the cheapest that the user asked for before cheaper controls.
    """
    out = []
    for entry, seed, share in wanted:
        shared = seconds(entry.pretraining, 1.0) if entry.pretraining else 0.0
        whole, alone = (seconds(entry.name, part) for part in (1.0, share))
        out.append(_Priced(entry, seed, share if entry.by_epochs else 1.0, whole + shared, alone, shared))
    out.sort(key=lambda one: one.whole)
    asked = next((one for one in out if one.entry.asked), None)
    if asked_first and asked:
        out.remove(asked)
        out.insert(0, asked)
    return out


def _fitting(queue: list[_Priced], left: float) -> list[_Priced]:
    """Return those of `queue` that fit together, as many of the cheapest as possible; the first pays a pretraining."""
    total, out = 0.0, []
    paid: set[str] = set()
    for one in queue:
        price = one.alone + (0.0 if one.entry.pretraining in paid else one.pretraining)
        if total + MARGIN * price <= left:
            total += MARGIN * price
            paid.add(one.entry.pretraining)
            out.append(replace(one, seconds=price))
    return out


def _first(fitting: list[_Priced]) -> _Priced:
    """Return which one to train first: what was asked for and cheap, but nothing before those it learns from."""
    names = {one.entry.name for one in fitting}
    teachers = {name for one in fitting if one.entry.asked for name in one.entry.after}
    ready = [one for one in fitting if not names & set(one.entry.after) - {one.entry.name}]
    return next((one for one in ready if one.entry.asked or one.entry.name in teachers), ready[0])


def _next(fitting: list[_Priced], left: float, why: str) -> Training | None:
    """Return the first of those that fit, and how long it may take without the time of cheaper ones still to come."""
    if not fitting:
        return None
    one = _first(fitting)
    own = fitting.index(one)
    cheaper = sum(other.seconds for i, other in enumerate(fitting) if (other.whole, i) < (one.whole, own))
    return Training(one.entry.name, one.seed, one.share, left - cheaper, why)
