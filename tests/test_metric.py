"""Metrics as statistics of rows, and references that know the labels: against scikit-learn, enumeration, simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import sklearn.metrics

from hf_transfer.errors import UserError
from hf_transfer.evaluation import choose_metrics, collapse, paired_difference, reference_difference, small_test
from hf_transfer.statistics import metric
from hf_transfer.statistics.effects import conflict
from hf_transfer.statistics.references import references

BY_HAND = {
    "accuracy": sklearn.metrics.accuracy_score,
    "macro_f1": lambda y, p: sklearn.metrics.f1_score(y, p, average="macro", zero_division=0.0),
    "balanced_accuracy": lambda y, p: sklearn.metrics.recall_score(y, p, average="macro", labels=np.unique(y)),
    "f1:c1": lambda y, p: sklearn.metrics.f1_score(y, p, labels=[1], average="macro", zero_division=0.0),
}


def rows(classes=3, count=240, seed=0):
    """Answers that are right more often than not, and labels of which the first is rare."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, count, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    return np.where(rng.random(count) < 0.7, labels, rng.integers(0, classes, count)), labels


def names(classes):
    return [f"c{i}" for i in range(classes)]


def test_every_metric_is_tested():
    assert set(BY_HAND) == {*metric.NAMES, "f1:c1"}


@pytest.mark.parametrize("classes", [2, 3, 30])
@pytest.mark.parametrize("name", BY_HAND)
def test_scores_are_scikit_learns(name, classes):
    """Also where a label is never given, does not occur, or both."""
    answers, labels = rows(classes)
    by = metric.load(name, names(classes + 2))
    for given in (answers, np.zeros_like(answers), np.where(answers == 1, classes + 1, answers)):
        assert by.score(given, labels) == pytest.approx(BY_HAND[name](labels, given))
    halves = [by.statistics(answers[part], labels[part]).sum(axis=0) for part in (slice(0, 100), slice(100, None))]
    assert float(by.value(sum(halves))) == pytest.approx(by.score(answers, labels)), "a score of sums"
    stacked = by.value(np.stack([sum(halves)] * 4).reshape(2, 2, -1))
    assert stacked.shape == (2, 2)
    shares = by.shares(by.statistics(answers, labels))
    assert shares.mean() == pytest.approx(by.score(answers, labels))


@pytest.mark.parametrize("name", BY_HAND)
def test_shares_vary_as_the_score_does(name):
    """The spread of their mean is the bootstrap's of the score."""
    answers, labels = rows(count=400, seed=1)
    by = metric.load(name, names(3))
    shares = by.shares(by.statistics(answers, labels))
    rng = np.random.default_rng(0)
    drawn = [by.score(answers[pick], labels[pick]) for pick in rng.integers(0, 400, (800, 400))]
    assert shares.std(ddof=1) / np.sqrt(400) == pytest.approx(np.std(drawn), rel=0.08)


@pytest.mark.parametrize("name", BY_HAND)
def test_a_guess_has_its_exact_expected_score(name):
    """Every way to label five rows by chance, weighed by its probability."""
    labels, shares = np.array([0, 1, 1, 2, 1]), np.array([0.2, 0.6, 0.2])
    by = metric.load(name, names(3))
    expected = sum(
        np.prod(shares[list(given)]) * by.score(np.array(given), labels)
        for given in itertools.product(range(3), repeat=5)
    )
    counts = np.bincount(labels, minlength=3)
    if name == "macro_f1":  # which labels count may depend on the guess: with these all occur
        assert (counts > 0).all()
    assert by.guessed(shares, counts) == pytest.approx(expected)


def test_references_are_the_test_rows_own_labels():
    _, labels = rows(count=300)
    counts = np.bincount(labels, minlength=4)
    by = metric.load("accuracy", names(4))
    most, mix = references(labels, names(4), by)
    assert (most.words, mix.words) == ("commonest label of the target (c2)", "labels by the target's own mix")
    assert most.score(by) == counts.max() / 300
    assert mix.score(by) == pytest.approx(((counts / 300) ** 2).sum())
    for name in metric.NAMES:
        each = metric.load(name, names(4))
        for one in (most, mix):
            assert one.row_shares(each).mean() == pytest.approx(one.score(each))
    always = np.full(300, counts.argmax())
    assert most.score(metric.load("macro_f1", names(4))) == pytest.approx(
        sklearn.metrics.f1_score(labels, always, average="macro")
    )
    *_, fixed = references(labels, names(4), metric.load("f1:c1", names(4)), "source")
    assert fixed.words == "c1 for every text", "where one label's F1 counts, the commonest label may score nothing"
    assert fixed.score(metric.load("f1:c1", names(4))) == pytest.approx(
        sklearn.metrics.f1_score(labels, np.ones(300, dtype=int), labels=[1], average="macro")
    )


def test_a_model_is_measured_against_a_constant_row_by_row():
    answers, labels = rows(count=300)
    by = metric.load("accuracy", names(3))
    most, mix = references(labels, names(3), by)
    found = reference_difference(answers, most, by)
    same = paired_difference(answers, np.full(300, 2), labels, by)
    assert [found[key] for key in ("value", "low", "high", "p", "detectable")] == pytest.approx(
        [same[key] for key in ("value", "low", "high", "p", "detectable")]
    )
    assert found["macro_f1"] == pytest.approx(same["macro_f1"])
    by_chance = reference_difference(answers, mix, by)
    assert by_chance["value"] == pytest.approx(by.score(answers, labels) - mix.score(by))
    assert by_chance["low"] < by_chance["value"] < by_chance["high"]


# which metric


def facts(test, train=None, validation=None):
    source = train or {"a": 50, "b": 50}
    return {"labels": {"train": source, "validation": validation or {}, "source_test": {"a": 10, "b": 10},
                       "target_test": test}}  # fmt: skip


def test_the_metric_follows_the_mix_of_labels():
    assert choose_metrics(None, facts({"a": 60, "b": 40}))[:2] == ("accuracy", "accuracy"), "at most 60 %"
    reported, chosen_by, line = choose_metrics(None, facts({"a": 61, "b": 39}))
    assert (reported, chosen_by) == ("macro_f1", "accuracy")
    assert line == ("metric: macro-F1 (61% of the test rows are 'a'; --metric for another one); checkpoints by "
                    "accuracy (50% of the training rows are 'a')")  # fmt: skip
    skewed = {"a": 80, "b": 20}
    assert choose_metrics(None, facts({"a": 50, "b": 50}, skewed))[:2] == ("accuracy", "macro_f1")
    assert choose_metrics(None, facts({}, skewed))[:2] == ("macro_f1", "macro_f1"), "without target labels the source's"
    assert choose_metrics(None, facts({}, {"a": 50, "b": 30}, {"b": 20}))[:2] == ("accuracy", "accuracy")


def test_a_given_metric_counts_everywhere():
    assert choose_metrics("f1:b", facts({"a": 90, "b": 10}))[:2] == ("f1:b", "f1:b")
    assert choose_metrics("accuracy", facts({"a": 90, "b": 10}))[:2] == ("accuracy", "accuracy")
    with pytest.raises(UserError, match=r"--metric f1:spam: there is no label 'spam'; the labels are a, b"):
        choose_metrics("f1:spam", facts({"a": 90, "b": 10}))
    with pytest.raises(UserError, match=r"--metric is 'macro_f2' \(did you mean 'macro_f1'\?\); use accuracy"):
        metric.check_name("macro_f2")
    with pytest.raises(UserError, match=r"--metric is 'f1:'"):
        metric.check_name("f1:")


def test_a_metric_is_found_among_recorded_scores():
    scores = {"accuracy": 0.9, "macro_f1": 0.8, "per_class": {"spam: yes": {"f1": 0.4}}}
    assert metric.of(scores, "accuracy") == 0.9
    assert metric.of(scores, "f1:spam: yes") == 0.4
    assert [metric.title(name) for name in (*metric.NAMES, "f1:ham")] == [
        "accuracy", "macro-F1", "balanced accuracy", "F1 of ham"]  # fmt: skip


# what makes a test mislead


@pytest.mark.parametrize(
    ("given", "true", "words"),
    [
        ((985, 15), (900, 100), "gives 98.5% of the rows the label 'c0'"),
        ((980, 20), (900, 100), ""),
        ((1000, 0), (949, 51), "gives 100.0% of the rows the label 'c0'"),
        ((990, 10), (960, 40), ""),
        ((1000, 0), (991, 9), ""),
        ((1000, 0), (990, 10), "finds none of the rows labelled 'c1' (10)"),
        ((0, 1000), (960, 40), "gives 100.0% of the rows the label 'c1'"),
    ],
)
def test_collapse(given, true, words):
    labels = np.repeat([0, 1], true)
    answers = np.repeat([0, 1], given)
    assert collapse(answers, labels, names(2)) == words


def test_a_label_that_is_always_missed_is_a_collapse():
    labels = np.repeat([0, 1, 2], [50, 50, 12])
    answers = np.where(labels == 2, 0, labels)
    assert collapse(answers, labels, names(3)) == "finds none of the rows labelled 'c2' (12)"
    answers[-1] = 2
    assert collapse(answers, labels, names(3)) == ""


def test_small_tests_speak_small():
    assert small_test({"a": 50, "b": 50}, 0.1) == ""
    assert small_test({"a": 181, "b": 20, "never": 0}, 0.1) == ""
    said = "the fewest of them labelled 'b' (19); a true difference of less than about 12 points would often be missed"
    assert small_test({"a": 80, "b": 19}, 0.123) == f"A small test: 99 rows, {said} (80 % power)."
    assert small_test({"a": 500, "b": 19}, 0.04).startswith(
        "A small test: 519 rows, the fewest of them labelled 'b' (19)"
    )
    assert "about 100 points" in small_test({"a": 2, "b": 2}, 1.7)


@pytest.mark.parametrize(
    ("accuracy", "macro_f1", "torn"),
    [((-0.3, -0.1), (0.05, 0.2), True), ((0.05, 0.2), (-0.3, -0.1), True), ((-0.3, 0.0), (0.05, 0.2), False),
     ((0.1, 0.3), (0.05, 0.2), False), ((-0.3, -0.1), (-0.05, 0.2), False)],
)  # fmt: skip
def test_conflict(accuracy, macro_f1, torn):
    sides = [dict(zip(("low", "high"), bounds, strict=True)) for bounds in (accuracy, macro_f1)]
    assert conflict(*sides) is torn
