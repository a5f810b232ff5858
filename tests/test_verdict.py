"""The verdict's numbers against scipy, slow formulas and simulation; its words at their edges."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import asdict

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from conftest import REPOSITORY
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV

from hf_transfer.calibration import calibration, temperature
from hf_transfer.statistics import metric
from hf_transfer.statistics.effects import HELP, Difference, effects
from hf_transfer.statistics.references import references
from hf_transfer.verdict import GAP, MEMORY, Candidate, forgetting, gaps, judge


def two(rows, gained, lost, both=0.5):
    """Predictions of 1 where right, for labels of 1: `gained` rows only the first has right, `lost` the other."""
    one, other = np.zeros((1, rows), dtype=int), np.zeros((1, rows), dtype=int)
    one[0, :gained] = 1
    other[0, gained : gained + lost] = 1
    agree = slice(gained + lost, gained + lost + int(both * (rows - gained - lost)))
    one[0, agree] = other[0, agree] = 1
    return one, other, np.ones(rows, dtype=int)


def versus(one, other, labels):
    """The one comparison of an arm with a control."""
    found = judge([Candidate("arm", one, 2.0, 1.0), Candidate("control", other, 1.0, 1.0, control=True)], labels)
    assert len(found.comparisons) == 1
    return found.comparisons[0]


def noisy(rows, seeds, seed=0, accuracy=0.8, classes=3):
    """Predictions of several seeds that are right on much the same rows, and labels of uneven frequency."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, rows, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    right = np.where(rng.random((seeds, rows)) < 0.3, rng.random((seeds, rows)), rng.random(rows)) < accuracy
    return np.where(right, labels, (labels + rng.integers(1, classes, (seeds, rows))) % classes), labels


# one seed


@pytest.mark.parametrize(
    ("rows", "gained", "lost"),
    [(2000, 120, 80), (2000, 60, 35), (1000, 25, 24), (500, 15, 40), (300, 8, 1), (100, 6, 0), (50, 5, 0), (40, 1, 0)],
)
def test_p_is_about_that_of_the_exact_mcnemar_test(rows, gained, lost):
    found = versus(*two(rows, gained, lost)).effect
    exact = scipy.stats.binomtest(gained, gained + lost).pvalue
    middle = exact - scipy.stats.binom.pmf(gained, gained + lost, 0.5)  # half of what is observed, on both sides
    assert 0.8 * middle < found.p < 1.15 * exact
    assert (found.p < 0.05) == (exact < 0.05)
    assert found.value == pytest.approx((gained - lost) / rows)
    assert found.corrected_p == found.p


@pytest.mark.parametrize(("rows", "gained", "lost"), [(400, 40, 30), (1000, 90, 30), (2000, 25, 70)])
def test_interval_is_that_of_the_paired_bootstrap(rows, gained, lost):
    one, other, labels = two(rows, gained, lost)
    found = versus(one, other, labels).effect
    drawn = scipy.stats.bootstrap(((one[0] == labels).astype(float) - (other[0] == labels),), np.mean, n_resamples=4000,
                                  method="percentile", rng=np.random.default_rng(0))  # fmt: skip
    width = drawn.confidence_interval.high - drawn.confidence_interval.low
    assert (found.low, found.high) == pytest.approx(tuple(drawn.confidence_interval), abs=0.05 * width)


def test_macro_f1_has_the_error_of_the_paired_bootstrap():
    (one,), labels = noisy(300, 1)
    other = np.where(np.random.default_rng(5).random(300) < 0.15, (one + 1) % 3, one)

    def difference(rows):
        rows = rows.astype(int)
        return np.subtract(*(sklearn.metrics.f1_score(labels[rows], p[rows], average="macro") for p in (one, other)))

    drawn = scipy.stats.bootstrap((np.arange(300),), difference, n_resamples=300, vectorized=False,
                                  method="percentile", rng=np.random.default_rng(0))  # fmt: skip
    found = versus(one[None], other[None], labels).macro_f1
    assert found["value"] == pytest.approx(difference(np.arange(300)))
    assert found["value"] > 0.05
    assert (found["high"] - found["low"]) / (2 * 1.96) == pytest.approx(drawn.standard_error, rel=0.12)
    assert found["low"] < found["value"] < found["high"]


@pytest.mark.parametrize("classes", [2, 5, 40])
def test_rows_shares_in_macro_f1_add_up_to_it(classes):
    """Also where classes are never predicted, do not occur, or both."""
    predictions, labels = noisy(120, 3, classes=classes)
    predictions[0][predictions[0] == 1] = 0
    predictions[1][:3] = classes + 2
    by = metric.load("macro_f1", [str(i) for i in range(classes + 3)])
    for predicted in predictions:
        share = by.shares(by.statistics(predicted, labels))
        expected = sklearn.metrics.f1_score(labels, predicted, average="macro", zero_division=0.0)
        assert share.mean() == pytest.approx(expected)


def test_disagreement_is_counted():
    assert versus(*two(200, 14, 6)).disagreement == pytest.approx(0.1)
    one, other, labels = two(200, 14, 6)
    both = np.concatenate([one, other])
    assert versus(both, other, labels).disagreement == pytest.approx(0.05)
    assert versus(both, both[::-1], labels).disagreement == pytest.approx(0.05)  # of any seed with any other


def test_detectable_differences_are_found_in_four_of_five_tests():
    """Also at a corrected level. 300 tests: 4 sigma are 9 %."""
    rng = np.random.default_rng(0)
    rows, disagreement = 1500, 0.1
    expected = versus(*two(rows, 75, 75)).effect.detectable
    assert expected == pytest.approx((1.96 + 0.8416) * math.sqrt(disagreement / rows), rel=0.02)
    share = (disagreement + expected) / 2, (disagreement - expected) / 2
    found = 0
    for gained, lost, _ in rng.multinomial(rows, (*share, 1 - disagreement), size=300):
        found += versus(*two(rows, gained, lost)).effect.word == "helps"
    assert 240 - 27 <= found <= 240 + 27


# several seeds


def slow_parts(shares):
    """Two-way analysis of variance, cell by cell: what seeds add to the variance of one seed's score."""
    seeds, rows = shares.shape
    grand = sum(shares[s, r] for s in range(seeds) for r in range(rows)) / (seeds * rows)
    of_seed = [sum(shares[s]) / rows for s in range(seeds)]
    of_row = [sum(shares[:, r]) / seeds for r in range(rows)]
    rest = sum((shares[s, r] - of_seed[s] - of_row[r] + grand) ** 2 for s in range(seeds) for r in range(rows))
    between = sum((mean - grand) ** 2 for mean in of_seed) / (seeds - 1)
    return between - rest / ((seeds - 1) * (rows - 1)) / rows


def slow_freedom(rows, labels):
    """Welch and Satterthwaite's, of the variance of `rows`, whose last two are counted with the commonest label's."""
    *labels, most = [*labels, np.bincount(labels).argmax()]
    parts = {}
    for row, label in zip(rows, [*labels, most, most], strict=True):
        parts.setdefault(label, []).append((row - np.mean(rows)) ** 2)
    return sum(map(sum, parts.values())) ** 2 / sum(sum(part) ** 2 / (len(part) - 1) for part in parts.values())


def test_interval_over_seeds_agrees_with_the_slow_formula():
    """Three candidates: one that seeds move far, one that they hardly move, one without seeds."""
    far, labels = noisy(150, 3, seed=1)
    far[0][:30], far[2][30:75] = labels[:30], (labels[30:75] + 1) % 3
    near = np.stack([far[1]] * 4)
    near[0][60:62] = near[3][90] = 0
    once = np.where(np.arange(150) % 9 == 0, 0, far[1])[None]
    found = judge([Candidate("far", far, 1, 1), Candidate("near", near, 1, 1),
                   Candidate("once", once, 1, 1, control=True)], labels).comparisons  # fmt: skip
    right = [(predictions == labels).astype(float) for predictions in (far, near, once)]
    spread = [slow_parts(one) for one in right[:2]]
    common = sum(spread) / 2
    assert spread[0] > common > max(spread[1], 0)
    for comparison, of_arm, seeds, one in zip(found, (spread[0], common), (3, 4), right, strict=False):
        rows = [*(one.mean(axis=0) - right[2][0]), 1.0, -1.0]
        t_rows, t_seeds = scipy.stats.t.isf(0.025, slow_freedom(rows, labels)), scipy.stats.t.isf(0.025, 2 + 3)
        half = math.sqrt(t_rows**2 * np.var(rows, ddof=1) / 152 + t_seeds**2 * of_arm / seeds)
        assert comparison.effect.low == pytest.approx(np.mean(rows) - half, abs=1e-9)
        assert comparison.effect.high == pytest.approx(np.mean(rows) + half, abs=1e-9)


def test_equal_seeds_are_one_seed():
    (one,), labels = noisy(200, 1, seed=1)
    (other,), _ = noisy(200, 1, seed=1, accuracy=0.7)
    once = versus(one[None], other[None], labels)
    again = versus(np.stack([one] * 3), np.stack([other] * 3), labels)
    assert asdict(again.effect) == pytest.approx(asdict(once.effect))
    assert again.macro_f1 == pytest.approx(once.macro_f1)
    moved = np.stack([one, other, one])
    assert versus(moved, other[None], labels).effect.detectable > once.effect.detectable


def test_one_lucky_seed_shows_nothing():
    """By its rows alone the gain would be beyond doubt; two of three seeds are no better than the control."""
    one, other, labels = two(2000, 300, 20)
    assert versus(one, other, labels).effect.word == "helps"
    found = versus(np.concatenate([one, other, other]), other, labels).effect
    assert found.value > 0.04
    assert found.word == "no difference shown"


# families


def slow_holm(p):
    """Each p times the number of those that are not smaller, and never below that of a smaller one."""
    return [max(min(1.0, sum(other >= q for other in p) * q) for q in p if q <= mine) for mine in p]


def made_up(p, error=0.01, freedom=1000):
    """A difference of which p is known."""
    centre = float(scipy.stats.t.isf(p / 2, freedom)) * error
    return Difference(centre, centre, ((error**2, freedom),))


def test_words_and_intervals_follow_holm():
    """In the last families a test would pass its own step, but the procedure has stopped before it."""
    rng = np.random.default_rng(0)
    families = [list(rng.uniform(0, 1, size) ** 4) for size in (1, 2, 5, 30) for _ in range(5)]
    families += [[0.001, 0.02, 0.024, 0.049], [0.03, 0.04], [0.01, 0.011, 0.012, 0.9]]
    rejected = 0
    for family in families:
        found = effects([made_up(p) for p in family], HELP)
        assert [one.p for one in found] == pytest.approx(family, rel=1e-5, abs=1e-9)
        assert [one.corrected_p for one in found] == pytest.approx(slow_holm(family), rel=1e-5, abs=1e-7)
        for one in found:
            assert (one.corrected_p < 0.05) == (one.corrected_low > 0) == (one.word == "helps")
            assert one.corrected_low <= one.low <= one.value <= one.high <= one.corrected_high
            rejected += one.word == "helps"
    assert 20 < rejected < 120
    stopped = effects([made_up(p) for p in (0.001, 0.02, 0.024, 0.049)], HELP)
    assert [one.word for one in stopped] == ["helps", *["no difference shown"] * 3]
    level = scipy.stats.t.isf(0.05 / 3 / 2, 1000) * 0.01  # where it stopped, also for the last one
    assert [one.corrected_high - one.value for one in stopped[1:]] == pytest.approx([level] * 3)


@pytest.mark.parametrize("words", [HELP, MEMORY, GAP])
def test_words_at_the_edge(words):
    """An interval that ends at 0 contains it."""
    parts = ((0.0001, 50), (0.0002, 4))
    reach = Difference(0.0, 0.0, parts).reach(0.05)
    for centre, word in ((reach, words[1]), (-reach, words[1]), (reach + 1e-9, words[2]), (-reach - 1e-9, words[0])):
        (found,) = effects([Difference(centre, centre, parts)], words)
        assert found.word == word
        assert found.p == pytest.approx(0.05, rel=1e-5)


def test_a_gain_can_drown_among_many_comparisons():
    one, other, labels = two(1000, 60, 37)
    assert versus(one, other, labels).effect.word == "helps"
    others = [Candidate(f"arm {i}", other, 1, 1) for i in range(4)]
    found = judge([Candidate("arm", one, 1, 1), *others, Candidate("c", other, 1, 1, control=True)], labels)
    assert [c.effect.word for c in found.comparisons] == ["no difference shown"] * 5
    first = found.comparisons[0].effect
    assert first.low > 0 > first.corrected_low
    assert first.corrected_p == pytest.approx(5 * first.p)
    assert not found.adapt


# what to do


def known(accuracies, rows=4000):
    """Candidates of which the better ones are right on all rows of the worse ones; controls are named so."""
    labels = np.ones(rows, dtype=int)
    return [
        Candidate(name, (np.arange(rows) < accuracy * rows).astype(int)[None], *cost, control=name.startswith("c"))
        for name, (accuracy, cost) in accuracies.items()
    ], labels


def recommended(accuracies):
    found = judge(*known(accuracies))
    assert found.adapt == bool(found.helping) == (not found.recommended.startswith("c"))
    return found.recommended


CONTROLS = {"c majority": (0.5, (0, 0)), "c linear": (0.8, (1, 1)), "c tuned": (0.8005, (9, 9))}


def test_the_cheapest_arm_that_is_not_shown_worse_wins():
    arms = {"best": (0.9, (50, 1)), "equal": (0.8995, (20, 1)), "worse": (0.85, (5, 1)), "none": (0.8, (2, 1))}
    assert recommended(CONTROLS | arms) == "equal"
    assert judge(*known(CONTROLS | arms)).helping == ["best", "equal", "worse"]
    assert recommended(CONTROLS | arms | {"equal": (0.8995, (60, 1))}) == "best"


def test_costs_tie_by_size_then_by_accuracy():
    assert recommended(CONTROLS | {"a": (0.9, (5, 30)), "b": (0.8995, (5, 20))}) == "b"
    assert recommended(CONTROLS | {"a": (0.8995, (5, 20)), "b": (0.9, (5, 20))}) == "b"


def test_nothing_is_recommended_where_nothing_is_shown_to_help():
    """The cheapest control that is as good as any, not the cheapest of all; an arm has to beat every control."""
    for arms in ({"a": (0.8006, (0, 0))}, {"a": (0.7, (3, 1))}, {"a": (0.8002, (5, 1)), "b": (0.6, (5, 1))}):
        assert recommended(CONTROLS | arms) == "c linear"
    hurt = judge(*known(CONTROLS | {"a": (0.7, (3, 1))}))
    assert [c.effect.word for c in hurt.comparisons] == ["helps", "hurts", "hurts"]
    assert recommended(CONTROLS | {"a": (0.85, (3, 1)), "c best": (0.9, (99, 99))}) == "c best"


@pytest.mark.parametrize("missing", ["arms", "controls"])
def test_a_verdict_needs_both_sides(missing):
    candidates, labels = known(CONTROLS | {"a": (0.9, (1, 1))})
    with pytest.raises(ValueError, match="needs arms and controls, got"):
        judge([one for one in candidates if one.control == (missing == "arms")], labels)


# little or nothing to see


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("rows", [1, 2, 500])
@pytest.mark.parametrize("which", ["equal", "all right", "all wrong", "constant"])
def test_degenerate_cases(rows, seeds, which):
    labels = np.arange(rows) % 2
    once = {"equal": np.arange(rows) // 2 % 2, "all right": labels, "all wrong": 1 - labels, "constant": 0 * labels}
    predictions = np.stack([once[which]] * seeds)
    with np.errstate(all="raise"):
        found = versus(predictions, predictions, labels)
    effect = found.effect
    assert (effect.value, effect.p, effect.word) == (0.0, 1.0, "no difference shown")
    assert effect.low == -effect.high
    assert 2 / rows < effect.high <= 3 / rows or effect.high == 1.0  # as wide as one row either way allows
    assert found.disagreement == pytest.approx(0, abs=1e-12) or seeds > 1
    json.dumps(asdict(found), allow_nan=False)


@pytest.mark.parametrize("seeds", [1, 3])
def test_one_row_shows_nothing(seeds):
    right, wrong = np.ones((seeds, 1), dtype=int), np.zeros((seeds, 1), dtype=int)
    found = versus(right, wrong, np.ones(1, dtype=int)).effect
    assert (found.value, found.low, found.high, found.word) == (1.0, -1.0, 1.0, "no difference shown")
    if seeds > 1:
        wrong[0] = 1
        found = versus(right, wrong, np.ones(1, dtype=int)).effect
        assert found.word == "no difference shown"


def test_a_difference_beyond_doubt_has_the_least_p():
    found = versus(*two(3000, 2500, 0)).effect
    assert (found.p, found.word) == (1e-9, "helps")
    assert 0 < found.corrected_low < found.value <= found.high <= 1


def test_verdicts_are_ready_for_json():
    again = json.loads(json.dumps(asdict(judge(*known(CONTROLS | {"a": (0.9, (1, 1))}))), allow_nan=False))
    assert set(again) == {"comparisons", "references", "helping", "adapt", "recommended", "conflicts"}
    assert len(again["comparisons"]) == 3
    assert again["comparisons"][1]["effect"]["word"] == "helps"


# what a constant knows, and metrics that disagree


def three_labels(rows=400, seed=0):
    """The target has one label in 65 % of its rows, the source in none more than another: labels of the former."""
    return np.random.default_rng(seed).choice(3, rows, p=(0.1, 0.25, 0.65))


def answering(labels, recalls, seed=1):
    """Predictions that find such shares of each label's rows, and give the others any other label."""
    rng = np.random.default_rng(seed)
    right = rng.random(len(labels)) < np.array(recalls)[labels]
    return np.where(right, labels, (labels + rng.integers(1, len(recalls), len(labels))) % len(recalls))[None]


def judged(labels, name, *candidates, settled=False):
    by = metric.load(name, ["a", "b", "c"])
    return judge(list(candidates), labels, metric=by, references=references(labels, ["a", "b", "c"], by),
                 settled=settled)  # fmt: skip


def test_what_is_below_a_constant_of_the_target_never_helps():
    """It beats a control that gives every row the source's commonest label by 40 points."""
    labels = three_labels()
    arm = Candidate("frozen", answering(labels, (0.6, 0.6, 0.5)), 2, 1)
    control = Candidate("majority", np.zeros((1, 400), dtype=int), 1, 1, control=True)
    found = judged(labels, "accuracy", arm, control, settled=True)
    assert found.comparisons[0].effect.word == "helps"
    assert found.comparisons[0].effect.value > 0.3
    (most, mix) = [one for one in found.references if one.arm == "frozen"]
    assert (most.control, mix.control) == ("commonest", "mix")
    assert most.effect.high < 0
    assert most.effect.value == pytest.approx((arm.predictions[0] == labels).mean() - (labels == 2).mean())
    assert found.helping == []
    assert not found.adapt
    assert found.recommended is None, "the control is below it, too"
    by_f1 = judged(labels, "macro_f1", arm, control, settled=True)
    assert by_f1.helping == ["frozen"]
    assert by_f1.recommended == "frozen"


def test_what_is_not_shown_above_a_constant_does_not_help_either():
    labels = three_labels(100)
    arm = Candidate("frozen", answering(labels, (0.6, 0.7, 0.8)), 2, 1)
    control = Candidate("majority", np.zeros((1, 100), dtype=int), 1, 1, control=True)
    found = judged(labels, "accuracy", arm, control)
    (most,) = [one for one in found.references if (one.arm, one.control) == ("frozen", "commonest")]
    assert most.effect.low <= 0 < most.effect.value
    assert found.helping == []
    good = Candidate("tfidf", answering(labels, (0.9, 0.9, 0.97)), 1, 1, control=True)
    assert judged(labels, "accuracy", arm, control, good).recommended == "tfidf", "a control that is above it"


def test_where_metrics_disagree_nothing_is_recommended_unless_one_was_asked_for():
    """A control gives every row the common label: better by accuracy, worse by macro-F1."""
    labels = np.random.default_rng(0).choice(3, 800, p=(0.85, 0.14, 0.01))
    arm = Candidate("frozen", answering(labels, (0.75, 0.95, 0.9)), 2, 1)
    control = Candidate("random+full", np.zeros((1, 800), dtype=int), 1, 1, control=True)
    found = judged(labels, "macro_f1", arm, control)
    assert {one.control for one in found.conflicts} == {"random+full", "commonest"}
    assert all(one.accuracy["high"] < 0 < one.macro_f1["low"] for one in found.conflicts)
    assert found.helping == ["frozen"]
    assert found.recommended is None
    again = judged(labels, "macro_f1", arm, control, settled=True)
    assert again.recommended == "frozen"
    assert len(again.conflicts) == len(found.conflicts)
    assert judged(labels, "accuracy", arm, control, settled=True).recommended is None


def test_the_metric_in_force_decides():
    labels = np.random.default_rng(2).choice(3, 600, p=(0.4, 0.4, 0.2))
    one = Candidate("one", answering(labels, (0.98, 0.97, 0.5)), 2, 1)
    other = Candidate("other", answering(labels, (0.8, 0.8, 0.8), seed=3), 1, 1, control=True)
    values = {name: judged(labels, name, one, other).comparisons[0].effect.value
              for name in (*metric.NAMES, "f1:c")}  # fmt: skip
    assert values["accuracy"] > values["macro_f1"] > 0 > values["f1:c"]
    for name, value in values.items():
        by = metric.load(name, ["a", "b", "c"])
        assert value == pytest.approx(by.score(one.predictions[0], labels) - by.score(other.predictions[0], labels))


# the promise


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("false_alarms", REPOSITORY / "benchmarks" / "false_alarms.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("seeds", "spread"), [(1, 0.0), (3, 0.0), (3, 0.01)])
def test_equal_arms_are_called_equal(benchmark, seeds, spread):
    """120 comparisons of 3 arms with 2 controls: at most 5 % with a false word and 4 sigma, 93 to 97 % and 3 %."""
    rng = np.random.default_rng(7)
    setting = benchmark.Setting(seeds, 600, 3, 2, spread)
    alarms, held, agreement = 0, [], []
    for _ in range(120):
        found = judge(*benchmark.simulate(setting, 0.0, rng)).comparisons
        assert len(found) == 6
        alarms += any(one.effect.word != "no difference shown" for one in found)
        held += [one.effect.low <= 0 <= one.effect.high for one in found]
        agreement += [1 - one.disagreement for one in found]
    assert alarms <= 6 + 4 * math.sqrt(120 * 0.05 * 0.95)
    assert 0.91 <= np.mean(held) <= 0.99
    assert not all(held)
    assert np.mean(agreement) == pytest.approx(0.9, abs=0.012)


def test_a_gain_of_three_points_is_found(benchmark):
    """Of one arm, by 2000 rows and 90 % agreement, among six comparisons: 80 % wanted, and 60 trials."""
    rng = np.random.default_rng(8)
    setting = benchmark.Setting(1, 2000, 3, 2)
    found = [one for _ in range(60) for one in judge(*benchmark.simulate(setting, 0.03, rng)).comparisons]
    words = [one.effect.word for one in found if one.arm == "arm 0"]
    assert len(words) == 120
    assert words.count("helps") >= 96
    assert np.mean([one.effect.value for one in found if one.arm == "arm 0"]) == pytest.approx(0.03, abs=0.004)


@pytest.mark.parametrize("found", [0.7, None])
def test_skewed_labels_and_a_collapsed_control_raise_no_false_alarm(benchmark, found):
    """120 comparisons by macro-F1, 90 % of the rows with one label."""
    rng = np.random.default_rng(5)
    setting = benchmark.Skewed(1, 500, found)
    own = benchmark.answering(found)
    gain = benchmark.true_macro_f1(own) - benchmark.true_macro_f1(benchmark.ALWAYS)
    assert gain == pytest.approx(0.366 if found else 0.0, abs=1e-3)
    by, alarms, held = metric.load("macro_f1", benchmark.NAMES), 0, []
    for _ in range(120):
        candidates, labels = benchmark.simulate_skewed(setting, own, rng)
        verdict = judge(candidates, labels, metric=by, references=references(labels, benchmark.NAMES, by))
        truths = [gain if one.control == "collapsed" else 0.0 for one in verdict.comparisons]
        alarms += any(one.effect.corrected_low > truth + 1e-9 or one.effect.corrected_high < truth - 1e-9
                      for one, truth in zip(verdict.comparisons, truths, strict=True))  # fmt: skip
        held += [one.effect.low <= truth <= one.effect.high
                 for one, truth in zip(verdict.comparisons, truths, strict=True)]  # fmt: skip
        assert verdict.recommended is None or not verdict.recommended.startswith("arm")
    assert alarms <= 6 + 4 * math.sqrt(120 * 0.05 * 0.95)
    assert 0.92 <= np.mean(held) <= 0.98


# forgetting, slices, calibration


def test_forgetting_is_paired_and_by_label():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 900)
    before = np.where(rng.random(900) < 0.9, labels, (labels + 1) % 3)[None]
    after = before.copy()
    lost = np.flatnonzero((labels == 2) & (before[0] == 2))[:60]
    after[0, lost] = 0
    found = forgetting(before, after, labels, ["a", "b", "c", "never"])
    assert [part.name for part in found] == ["", "a", "b", "c"]
    assert [part.rows for part in found] == [900, *np.bincount(labels)]
    assert [part.difference.word for part in found] == ["forgotten", *["no loss shown"] * 2, "forgotten"]
    whole, last = found[0], found[3]
    assert whole.accuracy == pytest.approx((after[0] == labels).mean())
    assert whole.other == pytest.approx((before[0] == labels).mean())
    assert whole.difference.value == pytest.approx(-60 / 900)
    recall = sklearn.metrics.recall_score(labels, after[0], average=None)
    assert [part.accuracy for part in found[1:]] == pytest.approx(recall)
    assert last.difference.value == pytest.approx(-60 / last.rows)
    assert last.difference.corrected_p == pytest.approx(3 * last.difference.p)  # a family of three labels
    assert whole.difference.corrected_p == whole.difference.p
    # the same as the comparison of two models on these rows
    assert whole.difference.low == pytest.approx(versus(after, before, labels).effect.low)
    of_last = labels == 2
    own = versus(after[:, of_last], before[:, of_last], labels[of_last]).effect
    assert last.difference.low == pytest.approx(own.low)
    better = forgetting(after, before, labels, ["a", "b", "c"])
    assert [part.difference.word for part in better] == ["better than before", *["no loss shown"] * 2,
                                                         "better than before"]  # fmt: skip
    json.dumps([asdict(part) for part in found], allow_nan=False)


def test_forgetting_over_seeds():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 800)
    before = labels[None]
    forgot = np.where(rng.random((3, 800)) < np.array([[0.1], [0.12], [0.11]]), 1 - labels, labels)
    found = forgetting(before, forgot, labels, ["a", "b"])
    assert [part.difference.word for part in found] == ["forgotten"] * 3
    unsteady = np.stack([labels, labels, forgot[0]])
    assert forgetting(before, unsteady, labels, ["a", "b"])[0].difference.word == "no loss shown"


def test_gaps_name_the_worst_slice():
    """Against Agresti and Caffo's interval, written out."""
    rows = np.arange(1000)
    right = rows % 10 != 0  # 90 %
    right[(rows < 200) & (rows % 4 == 0)] = False
    slices = {
        "fine": rows >= 600,
        "bad": rows < 200,
        "tiny": np.isin(rows, (0, 1, 4)),
        "all": rows >= 0,
        "no": rows < 0,
    }
    found = gaps(right, slices)
    assert [part.name for part in found] == ["bad", "tiny", "fine"]
    assert [part.rows for part in found] == [200, 3, 400]
    assert [part.difference.word for part in found] == ["worse than the rest", "no gap shown", "better than the rest"]
    assert found[1].difference.value < found[0].difference.value  # of three rows little can be said
    inside, outside = right[:200], right[200:]
    assert (found[0].accuracy, found[0].other) == pytest.approx((inside.mean(), outside.mean()))
    shares = [(side.sum() + 1) / (len(side) + 2) for side in (inside, outside)]
    error = math.sqrt(sum(p * (1 - p) / (n + 2) for p, n in zip(shares, (200, 800), strict=True)))
    assert found[0].difference.value == pytest.approx(inside.mean() - outside.mean())
    assert found[0].difference.low == pytest.approx(shares[0] - shares[1] - 1.96 * error, abs=0.02 * error)
    assert found[0].difference.high == pytest.approx(shares[0] - shares[1] + 1.96 * error, abs=0.02 * error)
    assert found[0].difference.corrected_p == pytest.approx(3 * found[0].difference.p)
    json.dumps([asdict(part) for part in found], allow_nan=False)
    assert gaps(right, {"all": rows >= 0}) == []


def test_looking_at_many_slices_finds_no_gap_by_chance():
    """100 models without a bias, 12 slices each: uncorrected, half of them would have one."""
    rng = np.random.default_rng(0)
    shown = uncorrected = 0
    for _ in range(100):
        right, part = rng.random(1200) < 0.85, rng.integers(0, 12, 1200)
        found = gaps(right, {str(index): part == index for index in range(12)})
        assert len(found) == 12
        shown += any(one.difference.word != "no gap shown" for one in found)
        uncorrected += any(one.difference.p < 0.05 for one in found)
    assert shown <= 5 + 4 * math.sqrt(100 * 0.05 * 0.95)
    assert uncorrected > 25


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose features are its decisions."""

    def fit(self, features, labels):
        self.classes_ = np.unique(labels)
        return self

    def decision_function(self, features):
        return features

    def predict(self, features):
        return features.argmax(axis=1)


def logits_at(true_temperature, rows, seed):
    """Logits of which a softmax at the temperature gives the chances of the labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, 3)) * 2
    labels = np.array([rng.choice(3, p=p) for p in scipy.special.softmax(logits, axis=1)])
    return logits * true_temperature, labels


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_temperature_is_found(true):
    logits, labels = logits_at(true, 3000, 0)
    found = temperature(logits, labels)
    assert found == pytest.approx(true, rel=0.1)
    reference = CalibratedClassifierCV(Given(), method="temperature", ensemble=False).fit(logits, labels)
    expected = reference.predict_proba(logits[:20])
    assert scipy.special.softmax(logits[:20] / found, axis=1) == pytest.approx(expected, abs=2e-3)


def test_calibration_before_and_after():
    found = calibration(*logits_at(3.0, 2000, 1), *logits_at(3.0, 2000, 2))
    assert found["temperature"] == pytest.approx(3.0, rel=0.1)
    assert found["before"]["calibration_error"] > 0.1 > 0.04 > found["after"]["calibration_error"]
    assert found["before"]["loss"] > found["after"]["loss"] + 0.1
    logits, labels = logits_at(3.0, 2000, 2)
    assert found["before"]["loss"] == pytest.approx(
        sklearn.metrics.log_loss(labels, scipy.special.softmax(logits, axis=1))
    )
    json.dumps(found, allow_nan=False)


def test_temperature_has_bounds():
    """Validation rows that are all right, or labelled at random, ask for none or for all."""
    labels = np.arange(50) % 3
    assert temperature(np.eye(3)[labels], labels) == pytest.approx(0.05, rel=0.01)
    assert temperature(np.eye(3)[(labels + 1) % 3], labels) == pytest.approx(20.0, rel=0.01)
