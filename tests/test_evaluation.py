"""Scores against scikit-learn and slow formulas; intervals against theory."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from conftest import REPOSITORY

from hf_transfer.evaluation import classification_scores, intervals, length_parts, paired_difference
from hf_transfer.metrics.accuracy import Accuracy
from hf_transfer.metrics.calibration_error import CalibrationError
from hf_transfer.metrics.macro_f1 import MacroF1
from hf_transfer.metrics.per_class import PerClass
from hf_transfer.statistics import metric

METRICS = {
    "accuracy": Accuracy,
    "calibration_error": CalibrationError,
    "macro_f1": MacroF1,
    "per_class": PerClass,
}
FOLDER = REPOSITORY / "hf_transfer" / "metrics"


def simulate(rows=300, classes=4, seed=0):
    """Logits that are right more often than not, and labels of uneven frequency."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, rows, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    logits = rng.normal(size=(rows, classes)).astype(np.float32)
    logits[np.arange(rows), labels] += 1.0
    return logits, labels


def softmax(logits):
    """By the definition, row by row."""
    return [[math.exp(v) / sum(math.exp(w) for w in row) for v in row] for row in logits.astype(np.float64).tolist()]


def slow_calibration_error(probabilities, labels, bins=15):
    """Guo et al. 2017, equation 3: the bin (lower, upper] of each row's confidence, one bin at a time."""
    total = 0.0
    for b in range(bins):
        inside = [
            (max(p), p.index(max(p)) == y)
            for p, y in zip(probabilities, labels, strict=True)
            if b / bins < max(p) <= (b + 1) / bins
        ]
        if inside:
            confidence = sum(c for c, _ in inside) / len(inside)
            accuracy = sum(right for _, right in inside) / len(inside)
            total += len(inside) / len(labels) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("classes", [2, 4, 9])
def test_scores_agree_with_scikit_learn(classes):
    logits, labels = simulate(classes=classes, seed=classes)
    predictions = logits.argmax(axis=1)
    names = [f"c{i}" for i in range(classes)]
    scores = classification_scores(logits, labels, names)
    assert set(scores) == {"accuracy", "macro_f1", "balanced_accuracy", "calibration_error", "loss", "n", "per_class"}
    assert scores["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(labels, predictions))
    assert 0.3 < scores["accuracy"] < 0.9
    assert scores["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(labels, predictions, average="macro"))
    assert scores["balanced_accuracy"] == pytest.approx(sklearn.metrics.balanced_accuracy_score(labels, predictions))
    report = sklearn.metrics.classification_report(
        labels, predictions, labels=range(classes), target_names=names, output_dict=True, zero_division=0.0
    )
    assert list(scores["per_class"]) == names
    for name in names:
        expected = {key.replace("-score", ""): value for key, value in report[name].items()}
        assert scores["per_class"][name] == pytest.approx(expected)
    assert scores["loss"] == pytest.approx(sklearn.metrics.log_loss(labels, softmax(logits)), abs=1e-6)
    assert scores["n"] == 300


def test_calibration_error_agrees_with_the_slow_formula():
    for seed, scale in enumerate((0.3, 1.0, 4.0)):
        logits, labels = simulate(rows=500, classes=3, seed=seed)
        probabilities = softmax(scale * logits)
        expected = slow_calibration_error(probabilities, labels.tolist())
        found = classification_scores(scale * logits, labels, ["a", "b", "c"])["calibration_error"]
        assert found == pytest.approx(expected, abs=1e-6)
        assert found > 0.02
        other = CalibrationError().compute(predictions=probabilities, references=labels, bins=7)
        assert other["calibration_error"] == pytest.approx(slow_calibration_error(probabilities, labels, 7), abs=1e-6)


def test_calibration_error_of_low_confidences():
    """Of 40 classes, the most likely may have a probability in the lowest bins."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.03, 0.4, 400)
    probabilities = np.repeat(((1 - confidence) / 39)[:, None], 40, axis=1)
    probabilities[:, 0] = confidence
    labels = (rng.random(400) > np.where(confidence < 1 / 15, 1.0, 0.1)).astype(int)
    found = CalibrationError().compute(predictions=probabilities, references=labels)["calibration_error"]
    assert (confidence < 1 / 15).sum() > 20
    assert found == pytest.approx(slow_calibration_error(probabilities.tolist(), labels.tolist()), abs=1e-6)


def test_calibration_error_by_hand():
    """Two rows of confidence 0.9, one right; two of 0.6, both right: (|1 - 1.8| + |2 - 1.2|) / 4."""
    metric = CalibrationError()
    found = metric.compute(
        predictions=[[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]], references=[0, 1, 1, 1]
    )  # fmt: skip
    assert found == {"calibration_error": pytest.approx(0.4, abs=1e-6)}
    assert metric.compute(predictions=[[1.0, 0.0]] * 3, references=[0] * 3)["calibration_error"] == 0.0


def test_a_class_that_never_occurs_does_not_lower_macro_f1():
    logits = np.eye(3)[[0, 0, 1, 1]] * 5
    scores = classification_scores(logits, np.array([0, 0, 1, 1]), ["a", "b", "never"])
    assert scores["macro_f1"] == 1.0
    assert scores["per_class"]["never"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0.0}


def test_huge_logits_stay_finite():
    logits = np.array([[1000.0, -1000.0], [-1000.0, 1000.0]], dtype=np.float32)
    scores = classification_scores(logits, np.array([0, 0]), ["a", "b"])
    assert scores["loss"] == pytest.approx(1000.0)
    assert scores["calibration_error"] == pytest.approx(0.5)


# intervals


def test_accuracy_intervals_cover():
    """Of 200 samples of 150 rows, about 95 % of the intervals hold the true accuracy; 178 is 4 sigma below."""
    rng = np.random.default_rng(1)
    truth, covered = 0.8, 0
    for seed in range(200):
        labels = rng.integers(0, 2, 150)
        predictions = np.where(rng.random(150) < truth, labels, 1 - labels)
        low, high = intervals(predictions, labels, seed)["accuracy"]
        covered += low <= truth <= high
    assert 178 <= covered <= 198


def test_accuracy_interval_is_about_the_normal_one():
    for n, truth in ((2000, 0.9), (1000, 0.6)):
        right = np.arange(n) < truth * n
        labels = np.zeros(n, dtype=int)
        low, high = intervals(np.where(right, 0, 1), labels)["accuracy"]
        error = 1.959964 * math.sqrt(truth * (1 - truth) / n)
        assert low == pytest.approx(truth - error, abs=0.1 * error)
        assert high == pytest.approx(truth + error, abs=0.1 * error)
        exact = scipy.stats.binomtest(int(right.sum()), n).proportion_ci(0.95, "wilson")
        assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.15 * error)


def test_macro_f1_interval_agrees_with_a_slow_bootstrap():
    """Also with a class so rare that many resamples lack it: there it does not count, as in the metric itself."""
    for rare in (0, 2):
        logits, labels = simulate(rows=200, classes=3, seed=3)
        predictions = logits.argmax(axis=1)
        labels[:rare] = predictions[:rare] = 3
        rng = np.random.default_rng(9)
        scores = []
        for _ in range(600):
            rows = rng.integers(0, len(labels), len(labels))
            scores.append(sklearn.metrics.f1_score(labels[rows], predictions[rows], average="macro", zero_division=0.0))
        low, high = np.percentile(scores, [2.5, 97.5])
        found = intervals(predictions, labels)["macro_f1"]
        assert found == pytest.approx((low, high), abs=0.015)
        assert found[0] < sklearn.metrics.f1_score(labels, predictions, average="macro") < found[1]


def test_intervals_are_repeatable_and_stay_in_range():
    logits, labels = simulate(rows=80)
    predictions = logits.argmax(axis=1)
    assert intervals(predictions, labels) == intervals(predictions, labels)
    assert intervals(predictions, labels, 1) != intervals(predictions, labels, 2)
    perfect = {name: [1.0, 1.0] for name in metric.NAMES}
    assert intervals(labels, labels) == perfect
    assert intervals(labels[:1], labels[:1]) == perfect
    assert all(isinstance(bound, float) for pair in intervals(predictions, labels).values() for bound in pair)


def test_many_classes_survive_the_small_integers():
    labels = np.arange(700) % 350
    assert intervals(labels, labels)["macro_f1"] == [1.0, 1.0]
    assert intervals((labels + 256) % 350, labels)["accuracy"] == [0.0, 0.0]


def discordant(n, gained, lost, both=0.5):
    """Right and wrong rows: `gained` only the first model has right, `lost` only the other."""
    right, other = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    right[:gained] = True
    other[gained : gained + lost] = True
    agree = slice(gained + lost, gained + lost + int(both * (n - gained - lost)))
    right[agree] = other[agree] = True
    return right, other


def difference(right, other):
    """Of two models that have these rows right, in accuracy."""
    labels = np.ones(len(right), dtype=int)
    return paired_difference(right.astype(int), other.astype(int), labels, metric.load("accuracy", ["no", "yes"]))


@pytest.mark.parametrize(("n", "gained", "lost"), [(400, 40, 40), (1000, 90, 30), (2000, 25, 70)])
def test_paired_difference_has_the_mcnemar_error(n, gained, lost):
    found = difference(*discordant(n, gained, lost))
    assert found["value"] == pytest.approx((gained - lost) / n, abs=1e-7)
    error = math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    assert (found["high"] - found["low"]) / (2 * 1.959964) == pytest.approx(error, rel=0.08)
    assert (found["high"] + found["low"]) / 2 == pytest.approx(found["value"], abs=0.25 * error)


def test_parts_by_length_know_where_texts_were_cut():
    rng = np.random.default_rng(0)
    whole = rng.integers(5, 100, 300)
    thirds = length_parts(whole)
    assert [name.split("(")[0] for name in thirds] == ["length: short ", "length: medium ", "length: long "]
    assert np.sum(list(thirds.values()), axis=0).tolist() == [1] * 300
    assert min(part.sum() for part in thirds.values()) > 80
    cut = length_parts(np.minimum(whole, 64))
    assert list(cut) == ["length: under 64 tokens", "length: 64 tokens, or cut there"]
    assert cut["length: 64 tokens, or cut there"].tolist() == (whole >= 64).tolist()


def test_paired_difference_knows_gain_from_noise():
    gain = difference(*discordant(500, 60, 15))
    assert 0 < gain["low"] < gain["value"] < gain["high"]
    loss = difference(*discordant(500, 15, 60))
    assert loss["low"] < loss["value"] < loss["high"] < 0
    noise = difference(*discordant(500, 33, 30))
    assert noise["low"] < 0 < noise["high"]
    right = discordant(500, 60, 15)[0]
    same = difference(right, right)
    assert same["value"] == 0.0
    assert -2 / 500 > same["low"] == -same["high"] > -4 / 500, "as wide as one row either way allows"
    # pairing matters: the same two accuracies on unrelated rows would leave the gain in doubt
    n, few = 500, discordant(500, 12, 0)
    assert difference(*few)["low"] > 0
    unpaired = math.sqrt(sum(r.mean() * (1 - r.mean()) / n for r in few))
    assert few[0].mean() - few[1].mean() < 1.96 * unpaired


# metric files


def cases():
    logits, labels = simulate(rows=60, classes=3)
    predictions = logits.argmax(axis=1).tolist()
    indices = {"predictions": predictions, "references": labels.tolist()}
    return {
        "accuracy": indices,
        "macro_f1": indices,
        "per_class": indices | {"num_classes": 3},
        "calibration_error": {"predictions": softmax(logits), "references": labels.tolist()},
    }


def test_every_metric_file_is_tested():
    files = {file.stem for file in FOLDER.glob("*.py")} - {"__init__"}
    assert len(files) == 4
    assert files == set(METRICS) == set(cases())


@pytest.mark.parametrize("name", sorted(METRICS))
def test_metric_files_load_with_evaluate(name):
    """As a local script and as a class: equal values, and a text that says what it is."""
    script = evaluate.load(str(FOLDER / f"{name}.py"))
    imported = METRICS[name]()
    found = script.compute(**cases()[name])
    assert found == imported.compute(**cases()[name])
    assert list(found) == [name]
    assert len(script.description) > 20
    assert script.inputs_description


def test_metric_files_load_by_batches():
    data = cases()["accuracy"]
    metric = evaluate.load(str(FOLDER / "accuracy.py"))
    for begin in range(0, 60, 20):
        metric.add_batch(**{key: values[begin : begin + 20] for key, values in data.items()})
    right = np.equal(data["predictions"], data["references"]).mean()
    assert metric.compute() == {"accuracy": pytest.approx(right)}


def test_metric_files_need_nothing_of_this_package(tmp_path):
    """A copy of a file works in a process that can't import hf_transfer."""
    lines = ["import sys", "sys.modules['hf_transfer'] = None", "import evaluate", "names = sys.argv[1:]"]
    lines.append("print([evaluate.load(name).name for name in names])")
    files = []
    for name in METRICS:
        files.append(tmp_path / f"{name}.py")
        files[-1].write_text((FOLDER / f"{name}.py").read_text(encoding="utf-8"), encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", "\n".join(lines), *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([Path(file).stem for file in files])
