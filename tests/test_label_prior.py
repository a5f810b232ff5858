"""Label shift: the true mix is found, by formulas that agree with others; and `predict` writes what fits it."""

from __future__ import annotations

import json
from dataclasses import replace

import conftest
import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats

from hf_transfer.cli import main
from hf_transfer.errors import UserError
from hf_transfer.held_out import HeldOut, held_out
from hf_transfer.label_prior import (
    Mix,
    bbse,
    check_estimator,
    class_rates,
    corrected,
    em,
    estimate,
    fit_temperature,
    tempered,
    training_mix,
)
from hf_transfer.predict import predict_rows, scorer

CENTRES = np.array([[0.0, 0.0], [2.4, 0.0], [0.8, 2.2]])
TRAINING, TARGET = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.25, 0.65])


def gaussians(mix, count, seed):
    """Rows of unit Gaussians around CENTRES: labels, and what the best classifier under TRAINING says."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, count, p=mix)
    x = CENTRES[labels] + rng.normal(size=(count, 2))
    joint = TRAINING * np.stack([scipy.stats.multivariate_normal.pdf(x, centre) for centre in CENTRES], axis=1)
    return labels, joint / joint.sum(1, keepdims=True)


def known(count=2000, seed=1):
    labels, probabilities = gaussians(TRAINING, count, seed)
    return HeldOut(probabilities, labels)


@pytest.mark.parametrize("estimator", ["em", "bbse"])
def test_the_true_mix_is_found_and_correcting_by_it_helps(estimator):
    labels, raw = gaussians(TARGET, 3000, 2)
    mix = estimate(estimator, raw, TRAINING, known())
    assert mix.shares == pytest.approx(TARGET, abs=0.04)
    assert (mix.low < TARGET).all()
    assert (mix.high > TARGET).all()
    assert (mix.high - mix.low).max() < 0.15
    assert mix.differs
    before, after = (float((p.argmax(1) == labels).mean()) for p in (raw, mix.apply(raw)))
    _, best = gaussians(TARGET, 3000, 2)
    assert after > before + 0.05
    assert after == pytest.approx((corrected(best, TRAINING, TARGET).argmax(1) == labels).mean(), abs=0.01)


@pytest.mark.parametrize("estimator", ["em", "bbse"])
def test_an_equal_mix_changes_nothing(estimator):
    _, raw = gaussians(TRAINING, 3000, 3)
    mix = estimate(estimator, raw, TRAINING, known())
    assert mix.shares == pytest.approx(TRAINING, abs=0.04)
    assert not mix.differs
    assert mix.apply(raw) is raw
    assert "nothing is corrected" in mix.summary(["a", "b", "c"])


def test_temperature_makes_overconfident_outputs_fit_for_em():
    _, raw = gaussians(TARGET, 3000, 2)
    right = known()
    sharp = HeldOut(tempered(right.probabilities, 1 / 3), right.labels)
    assert fit_temperature(right, TRAINING) == pytest.approx(1, abs=0.1)
    assert fit_temperature(sharp, TRAINING) == pytest.approx(3, abs=0.3)
    others, shifted = gaussians(TARGET, 2000, 6)
    assert fit_temperature(HeldOut(shifted, others), TRAINING) == pytest.approx(1, abs=0.1), (
        "whatever the rows' own mix"
    )
    assert tempered(sharp.probabilities, 3) == pytest.approx(right.probabilities, abs=1e-9)
    mix = estimate("em", tempered(raw, 1 / 3), TRAINING, sharp)
    assert mix.shares == pytest.approx(TARGET, abs=0.04)
    assert np.abs(em(tempered(raw, 1 / 3), TRAINING) - TARGET).max() > np.abs(mix.shares - TARGET).max()


def test_em_is_the_largest_likelihood():
    _, raw = gaussians(TARGET, 400, 4)

    def negative(free):
        mix = np.append(free, 1 - free.sum())
        return -np.log((raw / TRAINING) @ mix).sum() if (mix > 0).all() else np.inf

    found = scipy.optimize.minimize(negative, TRAINING[:2], method="Nelder-Mead", options={"xatol": 1e-7}).x
    assert em(raw, TRAINING) == pytest.approx(np.append(found, 1 - found.sum()), abs=1e-4)


def test_bbse_solves_its_equations():
    right = known(500)
    rates = class_rates(right)
    by_hand = [[np.mean(right.probabilities[right.labels == j].argmax(1) == i) for j in range(3)] for i in range(3)]
    assert rates == pytest.approx(np.array(by_hand))
    _, raw = gaussians(TARGET, 500, 5)
    shares = np.array([np.mean(raw.argmax(1) == i) for i in range(3)])
    assert bbse(raw, rates) == pytest.approx(np.linalg.inv(rates) @ shares)
    never = bbse(np.eye(3)[np.zeros(100, dtype=int)], rates)  # the equations alone would give negative shares
    assert (never >= 0).all()
    assert never.sum() == pytest.approx(1)


def test_no_label_of_the_target_is_held_out_for_choosing(run, tmp_path):
    sets = ["validation", "validation", "source_test", "target_test"]
    domains = ["rooms", "kitchen", "rooms", "kitchen"]
    frame = pd.DataFrame(
        {"set": sets, "domain": domains, "row": range(4), "label": ["negative"] * 2 + ["positive"] * 2}
    )
    frame["p_negative"], frame["p_positive"] = [0.9, 0.8, 0.7, 0.6], [0.1, 0.2, 0.3, 0.4]
    frame.to_parquet(tmp_path / "predictions.parquet")
    found = held_out(replace(run, folder=tmp_path, data={"target": "kitchen"}), ["positive", "negative"])
    assert found.probabilities.tolist() == [[0.1, 0.9], [0.3, 0.7]]
    assert found.labels.tolist() == [1, 0]
    assert found.right.tolist() == [True, False]


def test_class_weights_count_as_part_of_the_training_mix(run):
    counts = run.data["labels"]["train"]
    assert training_mix(run)[1] == pytest.approx(counts["positive"] / sum(counts.values()))
    weighed = replace(run, choices={"class_weights": [0.5, 1.5]})
    odds = training_mix(weighed)[1] / training_mix(weighed)[0]
    assert odds == pytest.approx(3 * counts["positive"] / counts["negative"])
    others = replace(run, choices={"label_shares": [0.8, 0.2], "class_weights": [0.5, 2.0]})
    assert training_mix(others) == pytest.approx([0.5, 0.5]), "rows had weights, or labels of the target were added"


# predict


@pytest.fixture(scope="module")
def run(tiny, recipe, tmp_path_factory):
    """A run that tells good from bad words most of the time."""
    folder = tmp_path_factory.mktemp("prior")
    source = conftest.write_table(folder / "source.jsonl", reviews(300, 0.5, 1))
    return recipe(["--model", str(tiny), "--method", "frozen", "--frozen_layer", "2", "--source", str(source),
                   "--output_dir", str(folder / "run"), "--max_length", "32", "--precision", "fp32",
                   "--quiet"])  # fmt: skip


def reviews(count, positive, seed, things=("room", "bed", "the")):
    """Texts in which words of the label are a little more frequent than those of the other."""
    rng = np.random.default_rng(seed)
    kinds = {"positive": ["clean", "friendly", "quiet", "lovely"], "negative": ["dirty", "rude", "loud", "broken"]}
    out = []
    for i in range(count):
        label, other = ("positive", "negative") if rng.random() < positive else ("negative", "positive")
        words = [*rng.choice(kinds[label], 5), *rng.choice(kinds[other], 3), *rng.choice(things, 4)]
        rng.shuffle(words)
        out.append({"text": " ".join(words) + f" {seed}-{i}", "label": label})
    return out


@pytest.mark.recipe
@pytest.mark.parametrize("estimator", ["em", "bbse"])
def test_predict_writes_corrected_rows(estimator, run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_transfer.predict.CHUNK", 64)
    monkeypatch.setattr("hf_transfer.arguments.best_precision", lambda: "fp32")
    rows = reviews(300, 0.9, 2)
    rows.insert(3, {"text": "", "label": "positive"})
    data = conftest.write_table(tmp_path / "rows.jsonl", rows)
    outputs = [tmp_path / "raw.csv", tmp_path / "fit.csv"]
    main(["predict", str(run.folder), str(data), "--output", str(outputs[0])])
    main(["predict", str(run.folder), str(data), "--output", str(outputs[1]), "--label_prior", estimator])
    said = capsys.readouterr().out.splitlines()[-1]
    facts = json.loads((tmp_path / "fit.csv.label_prior.json").read_text())
    assert facts["rows"] == 300
    assert facts["held_out_rows"] == len(held_out(run, run.label_names).labels) > 50
    share = facts["labels"]["positive"]["share"]
    assert f"label mix by {estimator}: negative {1 - share:.1%} [" in said
    before = training_mix(run)[1]
    assert f"(in training {before:.1%}); predictions are corrected; temperature" in said
    assert facts["corrected"]
    assert 0.75 < share <= 1
    assert sum(label["share"] for label in facts["labels"].values()) == pytest.approx(1)
    raw, fit = (pd.read_csv(output) for output in outputs)
    assert list(np.flatnonzero(fit["prediction"].isna())) == [3]
    assert ((fit["prediction"] == fit["label"]).mean()) > ((raw["prediction"] == raw["label"]).mean())
    columns = ["p_negative", "p_positive"]
    probabilities = scorer(run.folder)([row["text"] for row in rows if row["text"]])
    mix = estimate(estimator, probabilities, training_mix(run), held_out(run, run.label_names))
    assert fit[columns].dropna().to_numpy() == pytest.approx(mix.apply(probabilities), abs=1e-5)
    assert (fit["confidence"].dropna() == fit[columns].max(axis=1).dropna()).all()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fit.csv", "fit.csv.label_prior.json", "raw.csv",
                                                                "rows.jsonl"]  # fmt: skip


@pytest.mark.recipe
def test_predict_leaves_rows_of_the_training_mix_alone(run, tmp_path):
    data = conftest.write_table(tmp_path / "rows.jsonl", reviews(300, 0.5, 3))
    said = {}
    for name in ("none", "em"):
        more = {} if name == "none" else {"label_prior": name}
        said[name] = predict_rows(str(run.folder), str(data), str(tmp_path / f"{name}.csv"), quiet=True, **more)
    assert (tmp_path / "none.csv").read_bytes() == (tmp_path / "em.csv").read_bytes()
    assert "nothing is corrected" in said["em"]
    assert len(said["em"].splitlines()) == 2


@pytest.mark.recipe
def test_predict_refuses_in_one_line_and_leaves_nothing(run, tmp_path, capsys):
    data = conftest.write_table(tmp_path / "rows.jsonl", reviews(49, 0.5, 3))
    with pytest.raises(SystemExit) as stopped:
        main(["predict", str(run.folder), str(data), "--output", str(tmp_path / "o.csv"), "--label_prior", "em",
              "--quiet"])  # fmt: skip
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "49 rows with text are too few" in line
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_bbse_needs_held_out_rows_that_tell_labels_apart(run):
    labels = np.repeat([0, 1], 20)
    same = HeldOut(np.tile([0.9, 0.1], (40, 1)), labels)
    for bad, said in ((HeldOut(np.empty((0, 2)), labels[:0]), "no held-out source rows labelled negative, positive"),
                      (HeldOut(same.probabilities[:20], labels[:20]), "no held-out source rows labelled positive"),
                      (same, "hardly tells its labels apart")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            check_estimator("bbse", run, bad)
        check_estimator("em", run, bad)
    with pytest.raises(UserError, match="use em or bbse"):
        check_estimator("guess", run, same)


def test_em_without_held_out_rows_says_that_it_is_not_calibrated():
    _, raw = gaussians(TARGET, 500, 2)
    mix = estimate("em", raw, TRAINING, HeldOut(np.empty((0, 3)), np.empty(0, dtype=int)))
    assert mix.temperature is None
    assert mix.shares == pytest.approx(em(raw, TRAINING), abs=0.01)
    assert "not calibrated" in mix.summary(["a", "b", "c"])


def test_no_label_is_ruled_out_by_chance():
    """The equations would give the first label no row at all, though it may have some."""
    labels = np.repeat([0, 1], 50)
    given = np.where(np.arange(100) % 10 < 8, labels, 1 - labels)
    rows = np.eye(2)[np.repeat([0, 1], [19, 81])]
    mix = estimate("bbse", rows, np.array([0.5, 0.5]), HeldOut(np.eye(2)[given], labels))
    assert bbse(rows, class_rates(HeldOut(np.eye(2)[given], labels)))[0] == 0
    assert 0 < mix.shares[0] < mix.high[0]
    assert mix.differs
    assert (mix.apply(0.8 * rows + 0.1) > 0).all()


def test_the_line_stays_one_line_with_many_labels():
    count = 30
    even = np.full(count, 1 / count)
    line = Mix("em", 99, even, even, even, even, 1.0, 50).summary([f"label{i}" for i in range(count)])
    assert "label5 3.3% [3.3, 3.3] (in training 3.3%) and 24 more; no clear difference" in line
    assert "label6" not in line
