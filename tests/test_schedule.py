"""What is trained next in the time that is left, with made-up speeds: no clock runs here."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from hf_transfer.schedule import (
    FIRST,
    LEFT_OUT,
    LONGER,
    MARGIN,
    SEED,
    SHARES,
    Entry,
    Plan,
    correction,
    make_plan,
    next_training,
)


def entries_of(asked, controls=""):
    """Arms and controls by name; self-training learns from full and frozen, dapt begins with one pretraining."""
    out = []
    for name in f"{asked} {controls}".split():
        after = ("full", "frozen") if name.startswith("self_train") else ()
        shared = "pretrained/default" if name.startswith("dapt") else ""
        out.append(Entry(name, name in asked.split(), not name.endswith("frozen"), after, shared))
    return out


def simulate(entries, seconds, left, *, real=lambda _: 1.0, seeds=1, plan=None, done=None):
    """Train by made-up speeds until nothing fits.

    Args:
        entries: arms and controls.
        seconds: name -> expected of all epochs.
        left: seconds.
        real: name -> times what was expected.
        seeds: runs of each.
        plan: of an earlier call.
        done: runs of an earlier call.

    Returns:
        Every training with the seconds it took and whether it was finished, what is done, and the seconds left.
    """
    started, took, log, done = {}, {}, [], {} if done is None else done
    by_name, pretrained = {entry.name: entry for entry in entries}, set()

    def alone(name, share):
        return 0.0 if name in pretrained else seconds[name] * (share if by_name.get(name, entries[0]).by_epochs else 1)

    def expected(name, share):
        return alone(name, share) * correction(started, took, name)

    if plan is None:
        to_come = [entry for entry in entries if (entry.name, 0) not in done]
        asked_done = any(by_name[name].asked for name, _ in done)
        plan = make_plan(to_come, expected, left, asked_done=asked_done)
    while one := next_training(entries, plan, seeds, done, set(), expected, left):
        assert 0 < one.limit <= left
        assert len(log) < 100
        entry, needed = by_name[one.name], alone(one.name, one.share) * real(one.name)
        limit = one.limit
        if entry.pretraining not in pretrained | {""}:
            limit -= seconds[entry.pretraining]
            left -= seconds[entry.pretraining]
            pretrained.add(entry.pretraining)
        finished, spent = needed <= limit, min(needed, limit)
        run = f"{one.why}/{one.name}-{one.seed}"
        started[run], took[run] = {"arm": one.name, "calibration": alone(one.name, one.share)}, spent
        if finished:
            done[one.name, one.seed] = one.share
        else:
            took[run] *= 1.5
        left -= spent
        log.append((one, spent, finished))
    return log, done, left


def names(log, why=FIRST):
    return [one.name for one, _, finished in log if finished and one.why == why]


def test_what_was_asked_for_comes_first_and_the_cheap_before_the_dear():
    entries = entries_of("coral+full bitfit lora", "full random+full")
    seconds = {"coral+full": 90, "bitfit": 20, "lora": 30, "full": 40, "random+full": 41}
    log, _, _ = simulate(entries, seconds, 1000)
    assert names(log) == ["bitfit", "lora", "coral+full", "full", "random+full"]


def test_a_dear_arm_that_takes_far_longer_than_planned_leaves_the_cheap_ones_their_time():
    """As it was: 60 s were planned, 3:30 min went by, and arms of 27 and 36 s were left out."""
    entries = entries_of("frozen lora self_train+frozen coral+full", "full")
    seconds = {"frozen": 27, "lora": 36, "self_train+frozen": 36, "coral+full": 60, "full": 40}
    _, done, left = simulate(entries, seconds, 250, real=lambda name: 3.5 if name == "coral+full" else 1.0)
    assert {"frozen", "lora", "self_train+frozen", "full"} <= {name for name, _ in done}
    assert left >= 0


def test_a_dear_one_asked_for_does_not_eat_the_time_of_a_cheap_control():
    entries = entries_of("coral+full frozen", "full")
    log, _, _ = simulate(entries, {"frozen": 10, "coral+full": 60, "full": 40}, 140,
                         real=lambda name: 9.0 if name == "coral+full" else 1.0)  # fmt: skip
    assert [(one.name, finished) for one, _, finished in log[:3]] == [("frozen", True), ("coral+full", False),
                                                                     ("full", True)]  # fmt: skip
    assert log[1][0].limit == 140 - 10 - 40


def test_five_arms_and_time_for_four():
    entries = entries_of("frozen bitfit lora full coral+full")
    seconds = {"frozen": 10, "bitfit": 60, "lora": 70, "full": 80, "coral+full": 4000}
    budget = 300
    log, done, left = simulate(entries, seconds, budget, seeds=3)
    assert names(log) == ["frozen", "bitfit", "lora", "full"], "cut short for all, it would not have fit either"
    assert ("coral+full", 0) not in done
    assert 0 <= left <= 0.25 * budget
    assert all(one.share == 1 for one, _, _ in log), "the dear one is no reason to cut the others"


@pytest.mark.parametrize("seed", range(200))
def test_whatever_the_speeds_and_the_errors(seed):
    """Never more than there is, none left out that is cheaper than one that is there, and no time that would do."""
    draw = random.Random(seed)
    everything = ["frozen", "lora", "bitfit", "full", "coral+full", "self_train+frozen", "dapt+full", "dapt+lora"]
    asked = draw.sample(everything, draw.randint(1, 6))
    controls = [name for name in ("full", "random+full") if name not in asked]
    entries = entries_of(" ".join(asked), " ".join(controls))
    seconds = {entry.name: draw.lognormvariate(3, 1) for entry in entries} | {"pretrained/default": 30.0}
    budget, exact = draw.lognormvariate(5.5, 1), draw.random() < 0.5
    factors = {name: 1.0 if exact else draw.lognormvariate(0, 0.6) for name in seconds}
    seeds = draw.randint(1, 3)
    log, done, left = simulate(entries, seconds, budget, real=factors.__getitem__, seeds=seeds)
    assert left >= -1e-6
    if not exact:
        return
    assert all(finished for _, _, finished in log)
    entry_of = {entry.name: entry for entry in entries}
    least = {name: MARGIN * seconds[name] * (SHARES[-1] if entry.by_epochs else 1)
             for name, entry in entry_of.items() if not entry.pretraining}  # fmt: skip
    assert not [name for name, cost in least.items() if (name, 0) not in done and cost <= left]
    further = {name: MARGIN * seconds[name] * (done[name, 0] if entry_of[name].by_epochs else 1)
               for name, number in done if number == 0}  # fmt: skip
    assert not [name for name, cost in further.items() if cost <= left
                and not all((name, number) in done for number in range(seeds))]  # fmt: skip


def test_a_dear_teacher_comes_before_its_pupil_but_not_before_what_is_cheap():
    entries = entries_of("self_train+lora lora bitfit", "full frozen random+full")
    seconds = {"self_train+lora": 36, "lora": 30, "bitfit": 35, "full": 200, "frozen": 5, "random+full": 190}
    log, _, _ = simulate(entries, seconds, 995, done={("frozen", 0): 1.0})
    assert names(log) == ["lora", "bitfit", "full", "self_train+lora", "random+full"]
    limit = next(one.limit for one, _, _ in log if one.name == "full")
    assert limit == 995 - 30 - 35 - 36 - 190, "the rest is kept for what is cheaper"


def test_a_teacher_that_has_no_time_is_not_waited_for():
    entries = entries_of("self_train+frozen lora", "full frozen")
    seconds = {"self_train+frozen": 36, "lora": 30, "full": 4000, "frozen": 5}
    log, _, _ = simulate(entries, seconds, 150, done={("frozen", 0): 1.0})
    assert names(log) == ["lora", "self_train+frozen"]


def test_the_cheapest_asked_for_is_there_whatever_the_controls_cost():
    entries = entries_of("lora coral+lora", "full random+full")
    seconds = {"lora": 40, "coral+lora": 80, "full": 20, "random+full": 20}
    plan = make_plan(entries, lambda name, share: seconds[name], 50)
    assert plan.arms == ["lora"]
    assert plan.left_out == ["coral+lora", "full", "random+full"]
    plan = make_plan(entries, lambda name, share: seconds[name], 50, asked_done=True)
    assert plan.arms == ["full", "random+full"]


def test_all_are_cut_alike_before_any_is_left_out():
    entries = entries_of("lora full", "random+full")
    seconds = {"lora": 100, "full": 100, "random+full": 100}

    def expected(name, share):
        return seconds[name] * share

    plans = [make_plan(entries, expected, left) for left in (400, 300, 200, 100, 80, 10)]
    assert [plan.share for plan in plans] == [1.0, 0.9, 0.6, 0.3, 0.35, 1.0]
    assert [len(plan.left_out) for plan in plans] == [0, 0, 0, 0, 1, 3]
    assert [plan.seconds for plan in plans] == pytest.approx([300, 270, 180, 90, 70, 0])


def test_more_epochs_for_all_or_for_none():
    entries = entries_of("frozen lora full")
    seconds = {"frozen": 10, "lora": 100, "full": 100}
    done = {("frozen", 0): 1.0, ("lora", 0): 0.5, ("full", 0): 0.5}
    plan = Plan(0.5, ["frozen", "lora", "full"], [], 110)

    def next_of(left, done=done, seeds=1):
        return next_training(entries, plan, seeds, done, set(), lambda name, share: seconds[name] * share, left)

    assert (next_of(221).why, next_of(221).name, next_of(221).share) == (LONGER, "lora", 1.0)
    assert next_of(219).share == 0.75
    assert next_of(150) is None, "for one of them there is time"
    assert next_of(150, seeds=2).why == SEED
    half = done | {("lora", 0): 1.0}
    assert (next_of(111, half).name, next_of(111, half).share) == ("full", 1.0)
    most = {("frozen", 0): 1.0, ("lora", 0): 0.7, ("full", 0): 0.7}
    assert next_of(219, most) is None, "so little more is not worth it"


def test_further_seeds_one_by_one_with_the_epochs_of_the_first():
    entries = entries_of("frozen lora full")
    seconds = {"frozen": 10, "lora": 100, "full": 110}
    done = {("frozen", 0): 1.0, ("lora", 0): 1.0, ("full", 0): 1.0}
    log, _, left = simulate(entries, seconds, 400, seeds=3, plan=Plan(1.0, list(seconds), [], 220), done=done)
    order = [(one.name, one.seed) for one, _, _ in log]
    assert order == [("frozen", 1), ("lora", 1), ("full", 1), ("frozen", 2), ("lora", 2)]
    assert left == 70, "not enough for the last one"


def test_what_was_left_out_is_trained_when_the_rest_went_faster_or_there_is_more_time():
    entries = entries_of("frozen lora coral+full")
    seconds = {"frozen": 10, "lora": 100, "coral+full": 2000}
    faster, done, _ = simulate(entries, seconds, 300, real=lambda _: 0.3)
    assert names(faster, LEFT_OUT) == ["coral+full"]
    assert done["coral+full", 0] == 0.25
    _, done, left = simulate(entries, seconds, 300)
    assert ("coral+full", 0) not in done
    plan = Plan(SHARES[-1], ["frozen", "lora"], ["coral+full"], 110)
    more, done, _ = simulate(entries, seconds, left + 2400, plan=plan, done=done)
    assert names(more, LEFT_OUT) == ["coral+full"]
    assert done["coral+full", 0] == 1.0


def test_a_pretraining_is_paid_once_and_by_the_cheapest():
    entries = entries_of("dapt+full dapt+lora lora")
    seconds = {"dapt+full": 50, "dapt+lora": 40, "lora": 45, "pretrained/default": 300}
    plan = make_plan(entries, lambda name, share: seconds[name], 1000)
    assert plan.seconds == 50 + 40 + 45 + 300
    assert plan.arms == ["lora", "dapt+lora", "dapt+full"]
    assert make_plan(entries, lambda name, share: seconds[name], 400).arms == ["lora"]


def test_what_failed_is_not_tried_again():
    entries = entries_of("frozen lora")
    plan = Plan(1.0, ["frozen", "lora"], [], 20)
    done = {("frozen", 0): 1.0}
    assert next_training(entries, plan, 1, done, set(), lambda *_: 10, 100).name == "lora"
    assert next_training(entries, plan, 1, done, {("lora", 0)}, lambda *_: 10, 100) is None


def test_expected_seconds_follow_the_real_ones():
    started = {"a": {"arm": "lora", "calibration": 10}, "b": {"arm": "full", "calibration": 10},
               "c": {"arm": "full", "calibration": 10}, "d": {"arm": "frozen", "calibration": 0}}  # fmt: skip
    assert correction(started, {}, "lora") == 1.0
    assert correction(started, {"a": 20, "d": 5}, "coral") == 2.0
    assert correction(started, {"a": 20, "b": 30, "c": 50}, "full") == 4.0
    assert correction(started, {"a": 20, "b": 30, "c": 50}, "coral") == 3.0


# screening


def screened(*names):
    """Entries of which those that learn by epochs and are no controls may be screened."""
    return [replace(entry, screens=entry.name not in ("full", "frozen", "random+full"))
            for entry in entries_of(" ".join(names), "full random+full")]  # fmt: skip


def test_arms_are_screened_before_epochs_are_given_up_for_all():
    entries = screened("a", "b", "c", "d")
    seconds = {"a": 100, "b": 110, "c": 120, "d": 130, "full": 50, "random+full": 50}

    def expected(name, share):
        return seconds[name] * share

    everything = 1.1 * sum(seconds.values())
    enough = make_plan(entries, expected, everything + 1)
    assert (enough.share, enough.screened) == (1.0, [])
    plan = make_plan(entries, expected, 1.1 * (100 + 460 / 4 + 250) + 1)
    assert plan.share == 1.0
    assert plan.screened == ["a", "b", "c", "d"]
    assert plan.keep == 2
    assert plan.seconds == pytest.approx(100 + 115 + 250)
    assert sorted(plan.arms) == sorted(seconds)
    assert [plan.first_share(name) for name in ("a", "full")] == [0.25, 1.0]
    less = make_plan(entries, expected, 1.1 * (100 + 460 / 4 + 250) - 1)
    assert less.screened == [], "the better ones could not be trained to the end"
    assert less.share < 1.0
    alone = make_plan(screened("a"), expected, 1.1 * 150)
    assert alone.screened == [], "one alone is not screened"


def test_who_is_put_aside_waits_for_all_others():
    entries = screened("a", "b")
    seconds = {"a": 100, "b": 100, "full": 50, "random+full": 50}
    plan = Plan(1.0, ["a", "b", "full", "random+full"], [], 1.0, ["a", "b"], 1)

    def following(done, left, resting, seeds=2):
        return next_training(
            entries, plan, seeds, done, set(), lambda name, share: seconds[name] * share, left, resting
        )

    one = following({}, 1000.0, ())
    assert (one.share, one.why) == (0.25, FIRST)
    rung = {("a", 0): 0.25, ("b", 0): 0.25, ("full", 0): 1.0, ("random+full", 0): 1.0}
    assert following(rung, 1000.0, {"b"}).name == "a"
    assert following(rung, 1000.0, {"b"}).why == LONGER
    done = rung | {("a", 0): 1.0}
    one = following(done, 1000.0, {"b"})
    assert (one.why, one.seed) == (SEED, 1)
    whole = done | {(name, 1): 1.0 for name in ("a", "full", "random+full")}
    one = following(whole, 1000.0, {"b"})
    assert (one.name, one.why, one.share) == ("b", LONGER, 1.0), "what all others leave over"
    assert following(whole, 20.0, {"b"}) is None
