"""`choose`: its scores against independent formulas, and runs of planned quality told apart without target labels."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_table
from test_label_prior import reviews

from hf_transfer import judging, label_free
from hf_transfer.candidates import Finished, Target
from hf_transfer.choose import by_labels, choose_run, facts_of, report, sentence
from hf_transfer.cli import main
from hf_transfer.errors import UserError
from hf_transfer.held_out import HeldOut
from hf_transfer.label_free import Candidate, Score, collapsed, weighted_validation
from hf_transfer.predict import predict_rows
from hf_transfer.report import with_interval
from hf_transfer.results import load_run
from hf_transfer.statistics import metric

NAMES = ["agreement", "entropy", "neighbourhood_density", "reverse_validation", "source_validation",
         "thresholded_confidence", "weighted_validation"]  # fmt: skip
NO_ROWS = HeldOut(np.empty((0, 2)), np.empty(0, dtype=int))


def test_all_scores_are_found():
    assert label_free.names() == NAMES
    modules = [label_free.load(name) for name in NAMES]
    assert [module.HIGHER for module in modules] == [name != "entropy" for name in NAMES]
    assert [module.PERCENT for module in modules] == [
        name not in ("entropy", "neighbourhood_density") for name in NAMES
    ]
    assert all(label_free.load(name).HIGHER for name in judging.RULE)
    assert set(judging.RULE) == {name for name in NAMES if label_free.load(name).PERCENT}
    with pytest.raises(UserError, match="did you mean 'entropy'"):
        label_free.load("entropi")


# the scores


def outputs(labels, sureness, rng):
    """Calibrated probabilities of two classes: a row is right as often as it is sure."""
    sure = 0.5 + 0.5 * rng.beta(10 * sureness, 10 * (1 - sureness), len(labels))
    given = np.where(rng.random(len(labels)) < sure, labels, 1 - labels)
    return np.where(np.arange(2) == given[:, None], sure[:, None], 1 - sure[:, None])


def domain(count, seed, things):
    rows = reviews(count, 0.5, seed, things)
    return tuple(row["text"] for row in rows), np.array([row["label"] == "positive" for row in rows]).astype(int)


@pytest.fixture(scope="module")
def candidates():
    """Three runs, ever worse."""
    texts, truth = domain(500, 1, ("screen", "cable"))
    known, labels = domain(400, 2, ("room", "bed", "screen", "cable"))
    rng = np.random.default_rng(0)
    found = [(outputs(truth, sureness, rng), outputs(labels, sureness, rng)) for sureness in (0.9, 0.5, 0.1)]
    given = [pool.argmax(1) for pool, _ in found]
    return [Candidate(pool, texts, HeldOut(own, labels, known), np.array([g for j, g in enumerate(given) if j != i]))
            for i, (pool, own) in enumerate(found)]  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NAMES if name != "neighbourhood_density"])
def test_scores_order_runs_by_their_quality(name, candidates):
    module = label_free.load(name)
    values = [module.measure(candidate, 0).value for candidate in candidates]
    assert values == sorted(values, reverse=module.HIGHER)
    assert len(set(values)) == 3
    assert judging.choice(name, [Score(value) for value in values[::-1]]) == 2
    if name in ("source_validation", "weighted_validation", "thresholded_confidence"):
        truth = [0.95, 0.75, 0.55]  # the mean of `sure`
        assert values == pytest.approx(truth, abs=0.1)
    missing = Candidate(candidates[0].probabilities, candidates[0].texts, NO_ROWS, np.empty((0, 500)))
    expected = values[0] if name == "entropy" else None
    assert module.measure(missing, 0).value == expected


def test_entropy_and_density_are_their_formulas():
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), 7)
    candidate = Candidate(p, ("",) * 7, NO_ROWS, np.empty((0, 7)))
    entropy = lambda x: -sum(v * np.log(v) for v in x)  # noqa: E731
    assert label_free.load("entropy").measure(candidate, 0).value == pytest.approx(np.mean([entropy(x) for x in p]))
    total = 0.0
    for i in range(7):
        cosines = [p[i] @ p[j] / np.sqrt((p[i] @ p[i]) * (p[j] @ p[j])) for j in range(7) if j != i]
        weights = [np.exp(cosine / 0.05) for cosine in cosines]
        total += entropy([w / sum(weights) for w in weights]) / 7
    assert label_free.load("neighbourhood_density").measure(candidate, 0).value == pytest.approx(total)


def test_density_is_higher_for_two_tight_clusters_than_for_rows_spread_out():
    rng = np.random.default_rng(0)
    measure = label_free.load("neighbourhood_density").measure
    found = []
    for p in (rng.choice([0.02, 0.98], 300), rng.random(300), np.full(300, 0.5)):
        candidate = Candidate(np.stack([p, 1 - p], axis=1), ("",) * 300, NO_ROWS, np.empty((0, 300)))
        found.append(measure(candidate, 0).value)
    assert found[1] < found[0] < found[2], "and highest for a run that is sure of nothing: its known blind spot"


def test_a_collapsed_run_has_the_best_entropy_and_density():
    sure = np.tile([0.999, 0.001], (50, 1))
    candidate = Candidate(sure, ("",) * 50, NO_ROWS, np.empty((0, 50)))
    assert label_free.load("entropy").measure(candidate, 0).value < 0.01
    assert label_free.load("neighbourhood_density").measure(candidate, 0).value == pytest.approx(np.log(49))
    even, rare = (HeldOut(np.empty((100, 2)), np.repeat([0, 1], [100 - n, n])) for n in (50, 4))
    assert collapsed(sure, NO_ROWS) == collapsed(sure, even) == collapsed(sure, rare) == 0
    sure[0] = [0.2, 0.8]
    assert collapsed(sure, NO_ROWS) == collapsed(sure, even) == 0
    assert collapsed(sure, rare) is None, "2 % of a label that is 4 % of the source"
    sure[1] = [0.2, 0.8]
    assert collapsed(sure, even) is None


def test_thresholded_confidence_is_its_definition():
    rng = np.random.default_rng(0)
    known, pool = rng.dirichlet(np.ones(4), 60), rng.dirichlet(np.ones(4), 80)
    labels = rng.integers(0, 4, 60)
    score = lambda p: np.sum(p * np.log(p), axis=1)  # noqa: E731
    error = np.mean(known.argmax(1) != labels)
    (threshold,) = [t for t in score(known) if np.isclose(np.mean(score(known) < t), error)]
    candidate = Candidate(pool, ("",) * 80, HeldOut(known, labels), np.empty((0, 80)))
    measure = label_free.load("thresholded_confidence").measure
    assert measure(candidate, 0).value == np.mean(score(pool) >= threshold)
    same = Candidate(known, ("",) * 60, HeldOut(known, labels), np.empty((0, 60)))
    assert measure(same, 0).value == pytest.approx(1 - error), "of the source it is the accuracy itself"
    for labels, expected in ((known.argmax(1), np.mean(score(pool) >= score(known).min())), (known.argmin(1), 0.0)):
        candidate = Candidate(pool, ("",) * 80, HeldOut(known, labels), np.empty((0, 80)))
        assert measure(candidate, 0).value == expected


def test_density_ratio_finds_the_rows_that_are_like_the_target():
    rng = np.random.default_rng(0)
    kinds = [["room", "bed", "lobby"], ["screen", "cable", "charger"]]

    def texts(count, second, tag):
        return tuple(" ".join([*rng.choice(kinds[int(rng.random() < second)], 5), f"{tag}{i}"]) for i in range(count))

    source, target = texts(400, 0.25, "a"), texts(800, 0.75, "b")
    weights = weighted_validation.density_ratio(source, target, 0)
    other = np.array([any(word in text for word in kinds[1]) for text in source])
    assert weights.shape == (400,)
    assert np.median(weights[other]) == pytest.approx(3, rel=0.25)
    assert np.median(weights[~other]) == pytest.approx(1 / 3, rel=0.25)
    assert weights.mean() == pytest.approx(1, abs=0.1)
    assert weights == pytest.approx(weighted_validation.density_ratio(source, target, 0))


def test_weighted_validation_counts_rows_by_their_weights(candidates):
    one = candidates[1]
    weights = weighted_validation.density_ratio(one.held_out.texts, one.texts, 0)
    expected = sum(w for w, right in zip(weights, one.held_out.right, strict=True) if right) / sum(weights)
    score = weighted_validation.measure(one, 0)
    assert score.value == pytest.approx(expected)
    assert score.note == ""
    assert abs(expected - one.held_out.right.mean()) > 0.001


def test_weights_of_a_few_rows_are_flattened(candidates, monkeypatch):
    assert weighted_validation.worth(np.array([1.0, 1, 1, 0])) == pytest.approx(3)
    weights = np.append(np.full(99, 0.001), 100.0)
    flat, power = weighted_validation.flattened(weights)
    assert flat == pytest.approx(weights**power)
    assert weighted_validation.worth(flat) >= 10 > weighted_validation.worth(weights ** (power + 0.1))
    assert weighted_validation.flattened(np.ones(5)) == (pytest.approx(np.ones(5)), 1.0)
    one = candidates[1]
    skewed = np.append(np.full(399, 1e-9), 100.0)
    monkeypatch.setattr(weighted_validation, "_density_ratio", lambda *_: skewed)
    score = weighted_validation.measure(one, 0)
    assert 0.6 < score.value < 0.9, "not the one row's"
    assert score.note.startswith("400 held-out source rows are as good as 1 by their likeness")


def test_reverse_validation_of_one_label_for_all_is_that_labels_share(candidates):
    known = candidates[0].held_out
    constant = Candidate(np.tile([0.1, 0.9], (500, 1)), candidates[0].texts, known, np.empty((0, 500)))
    assert label_free.load("reverse_validation").measure(constant, 0).value == np.mean(known.labels == 1)


# the rule


def table(**values):
    return {name: [Score(value) for value in values.get(name, (None, None, None))] for name in NAMES}


def test_mean_ranks():
    scores = table(source_validation=(0.9, 0.8, 0.7), agreement=(0.6, 0.6, 0.5), entropy=(0.3, 0.2, 0.1),
                   reverse_validation=(0.5, None, 0.6))  # fmt: skip
    ranks = judging.mean_ranks(scores, [True, True, True])
    assert ranks == [pytest.approx(1.25), pytest.approx(1.75), pytest.approx(3)], "only what all have, and may vote"
    assert judging.best_rank(ranks, scores["source_validation"]) == 0
    ranks = judging.mean_ranks(scores, [False, True, True])
    assert ranks == [None, 1.0, 2.0]
    assert judging.mean_ranks(scores, [True, False, True])[2] == pytest.approx((2 + 2 + 1) / 3)
    assert judging.mean_ranks(table(), [True, True, True]) == [None, None, None]


def test_ties_go_to_the_source_or_to_nobody():
    source = [Score(0.8), Score(0.9), Score(0.9)]
    assert judging.best_rank([1.5, 1.5, None], source) == 1
    assert judging.best_rank([2.0, 1.5, 1.5], source) is None
    assert judging.best_rank([None, None, None], source) is None


def test_who_learned_nothing():
    labels = np.repeat([0, 1], [180, 20])
    same = HeldOut(np.tile([0.9, 0.1], (200, 1)), labels)
    assert "mean recall of held-out source rows 50.0%, of one label for all 50.0%" in judging.no_better_than_chance(
        same
    )
    given = np.where(np.arange(200) % 10 < 8, labels, 1 - labels)  # right on 80 % of each, less than always saying 0
    assert judging.no_better_than_chance(HeldOut(np.eye(2)[given], labels)) == ""
    assert judging.no_better_than_chance(NO_ROWS) == ""


# runs


@pytest.fixture(scope="module")
def made(tiny, recipe, tmp_path_factory):
    """Three runs: on clean labels, on labels of which 45 % are flipped, on nearly one label; and two other tables."""
    folder = tmp_path_factory.mktemp("choose")
    clean = reviews(300, 0.5, 1)
    rng = np.random.default_rng(0)
    other = {"positive": "negative", "negative": "positive"}
    flipped = [row | {"label": other[row["label"]]} if rng.random() < 0.45 else row for row in reviews(300, 0.5, 2)]
    constant = [
        row | {"label": "negative" if i % 25 == 0 else "positive"} for i, row in enumerate(reviews(300, 0.5, 3))
    ]
    folders = []
    for name, rows in (("constant", constant), ("flipped", flipped), ("clean", clean)):
        source = write_table(folder / f"{name}.jsonl", rows)
        run = recipe(["--model", str(tiny), "--method", "frozen", "--frozen_layer", "2", "--source", str(source),
                      "--output_dir", str(folder / "runs" / name), "--max_length", "32", "--class_weights", "none",
                      "--quiet"])  # fmt: skip
        folders.append(str(run.folder))
    tables = {name: str(write_table(folder / f"{name}.jsonl", reviews(300, 0.5, seed, ("screen", "cable"))))
              for name, seed in (("kitchen", 4), ("dvd", 5))}  # fmt: skip
    return folders, tables


@pytest.mark.recipe
def test_bad_runs_are_never_recommended(made, tmp_path, capsys):
    folders, tables = made
    before = sorted(file.name for folder in folders for file in Path(folder).iterdir())
    (tmp_path / "dapt").mkdir()  # as `runs/*` has them, and files of `report`
    others = [str(tmp_path / "dapt"), tables["kitchen"]]
    main(["choose", *others, *folders, "--target_unlabeled", tables["kitchen"], "--backtest", tables["dvd"],
          "--output_dir", str(tmp_path / "out"), "--quiet"])  # fmt: skip
    said = capsys.readouterr().out
    facts = json.loads((tmp_path / "out" / "choose.json").read_text())
    assert (tmp_path / "out" / "choose.md").read_text().strip() in said
    assert sorted(file.name for folder in folders for file in Path(folder).iterdir()) == before
    assert facts["recommended"] == "clean"
    assert "Recommended: clean, mean rank 1.0" in said
    assert "Out: constant, it has collapsed: 100.0% of kitchen get the label 'positive'." in said
    runs = {run["name"]: run for run in facts["runs"]}
    assert list(runs) == ["constant", "flipped", "clean"]
    assert runs["constant"]["mean_rank"] is None
    assert sorted(runs["clean"]["scores"]) == NAMES == sorted(facts["scores"])
    assert all(value is not None for run in runs.values() for value in run["scores"].values())
    # what fooled single scores
    assert facts["scores"]["source_validation"]["chooses"] == "constant"
    assert facts["scores"]["entropy"]["chooses"] == "constant"
    assert runs["clean"]["scores"]["reverse_validation"] > runs["flipped"]["scores"]["reverse_validation"]

    (test,) = facts["backtests"]
    assert test["domain"] == "dvd"
    for folder, name in zip(folders, runs, strict=True):
        scored = tmp_path / f"{name}.csv"
        predict_rows(folder, tables["dvd"], str(scored), quiet=True)
        frame = pd.read_csv(scored)
        assert test["accuracy"][name] == pytest.approx((frame["prediction"] == frame["label"]).mean())
        assert f"{name} {test['accuracy'][name]:.1%}" in said
    assert test["accuracy"]["clean"] == max(test["accuracy"].values()) > 0.8
    best = max(test["metric"].values())
    assert test["recommended"] == "clean"
    assert test["scores"]["recommendation"]["regret"] == 0
    assert test["scores"]["source_validation"]["regret"] == pytest.approx(best - test["metric"]["constant"])
    assert "back-test on dvd: Spearman" in said
    assert 0 < test["scores"]["agreement"]["off"] < 0.5
    assert "off by, points" in said
    assert "the runs report different metrics (macro-F1, accuracy)" in said, "the collapsed one's labels are skewed"


@pytest.mark.recipe
def test_a_back_test_counts_pairs_as_kendall_does():
    scores = table(source_validation=(0.9, 0.8, 0.7), entropy=(0.1, 0.3, 0.2), agreement=(0.5, 0.5, 0.5))
    accuracy = [0.6, 0.9, 0.7]
    on = judging.Judged(scores, {}, ["", "", "gone"], [1.0, 2.0, None], 1, accuracy, accuracy)
    found = judging.tested(on)
    assert found["source_validation"]["spearman"] == pytest.approx(-0.5)  # ranks 3 2 1 against 1 3 2
    assert found["source_validation"]["kendall"] == pytest.approx(-1 / 3)  # one pair of three in order
    assert found["source_validation"]["regret"] == pytest.approx(0.3)
    assert found["entropy"]["spearman"] == pytest.approx(-1)  # lower is better, and the best has most
    assert found["agreement"] == {
        "spearman": None, "kendall": None, "regret": pytest.approx(0.3), "off": pytest.approx((0.1 + 0.4) / 2)
    }  # fmt: skip
    assert found["source_validation"]["off"] == pytest.approx((0.3 + 0.1) / 2), "of the runs that are not out"
    assert found["entropy"]["off"] is None, "it is no estimate of accuracy"
    assert found["reverse_validation"] == {"spearman": None, "kendall": None, "regret": None, "off": None}
    assert found["recommendation"]["regret"] == 0
    # order and regret go by the metric that the runs report, `off` by accuracy, which is what is estimated
    other = judging.tested(replace(on, metric=[0.5, 0.2, 0.3]))
    assert other["source_validation"]["spearman"] == pytest.approx(0.5)
    assert other["source_validation"]["kendall"] == pytest.approx(1 / 3)
    assert other["source_validation"]["regret"] == 0
    assert other["recommendation"]["regret"] == pytest.approx(0.3)
    assert [one["off"] for one in other.values()] == [one["off"] for one in found.values()]


# what back-tests say of the estimates


def planned(ranks, **scores):
    """What is found of three runs; the third is out."""
    chosen = judging.best_rank(ranks, table(**scores)["source_validation"])
    return judging.Judged(table(**scores), dict.fromkeys(NAMES, 0.0), ["", "", "it shows no learning"], ranks, chosen,
                          None, None)  # fmt: skip


def back_test(**off):
    """A labelled domain on which the scores of the first two runs were off by so much."""
    estimates = {name: (0.8 + value, 0.8 - value, 0.5) for name, value in off.items()}
    return replace(planned([1.0, 2.0, None], **estimates), accuracy=[0.8, 0.8, 0.5], metric=[0.8, 0.7, 0.3])


def said_of(made, here, *backtests):
    folders, _ = made
    runs = [load_run(folder) for folder in (folders[2], folders[1], folders[0])]
    finished = [Finished(run.folder.name, run, NO_ROWS, None) for run in runs]
    targets = [Target(name, ["a text"], np.empty(0), None, []) for name in ("kitchen", "dvd", "toys")]
    by = metric.load("accuracy", runs[0].label_names)
    facts = facts_of(finished, targets[: 1 + len(backtests)], [here, *backtests], by, [0.0] * 3, [])
    json.dumps(facts)
    assert sentence(facts) in report(facts)
    return facts, sentence(facts).splitlines()


VOTES = {"source_validation": (0.90, 0.88, 0.5), "agreement": (0.85, 0.82, 0.5), "entropy": (0.1, 0.3, 0.0)}
RANKS = [1.0, 2.0, None]


@pytest.mark.recipe
def test_runs_whose_estimates_are_closer_than_they_were_off_are_not_told_apart(made):
    here = planned(RANKS, **VOTES)
    facts, (first, *_) = said_of(made, here, back_test(source_validation=0.025, agreement=0.04))
    assert facts["recommended"] is None
    assert facts["undecided"]["runs"] == ["clean", "flipped"]
    assert first == ("No run is recommended: the estimates of clean and flipped differ by less than they were off in "
                     "back-tests (2.5 to 4.0 points).")  # fmt: skip
    # the most of several back-tests counts
    more = [back_test(source_validation=0.001, agreement=0.001), back_test(source_validation=0.03, agreement=0.03)]
    assert said_of(made, here, *more)[1][0].endswith("off in back-tests (3.0 points).")
    # one score that tells them apart is enough, and one of which nothing is known does
    for off in ({"source_validation": 0.01, "agreement": 0.04}, {"agreement": 0.04}):
        facts, (first, *_) = said_of(made, here, back_test(**off))
        assert facts["recommended"] == "clean"
        assert facts["undecided"] is None
        assert first == "Recommended: clean, mean rank 1.0 over the scores that vote (flipped 2.0)."
    # what has no vote tells nothing
    close = planned(RANKS, **VOTES | {"agreement": (0.85, 0.82, None), "reverse_validation": (0.9, None, None)})
    assert said_of(made, close, back_test(source_validation=0.025, agreement=0.04))[0]["undecided"]


@pytest.mark.recipe
def test_without_back_tests_it_says_that_nothing_is_known_of_how_far_the_estimates_are_off(made):
    facts, (first, *_) = said_of(made, planned(RANKS, **VOTES))
    assert facts["recommended"] == "clean"
    assert first.endswith("(flipped 2.0); how far the estimates are off is not known (--backtest tells).")
    # a back-test where no run was fit tells as little
    unfit = replace(back_test(source_validation=0.5, agreement=0.5), out=["a", "b", "c"])
    facts, (first, *_) = said_of(made, planned(RANKS, **VOTES), unfit)
    assert facts["recommended"] == "clean"
    assert first.endswith("how far the estimates are off is not known (all runs were out in the back-tests).")


@pytest.mark.recipe
def test_estimates_of_one_run_that_disagree_are_said(made):
    apart = planned(RANKS, source_validation=(0.9, 0.7, 0.9), agreement=(0.6, 0.65, 0.1),
                    weighted_validation=(0.75, 0.7, 0.9), neighbourhood_density=(9.0, 2.0, 0.0))  # fmt: skip
    off = {"source_validation": 0.1, "agreement": 0.05, "weighted_validation": 0.01}
    facts, lines = said_of(made, apart, back_test(**off))
    assert facts["disagreements"] == [
        {"run": "clean", "scores": {"agreement": {"value": 0.6, "off": pytest.approx(0.05)},
                                    "source_validation": {"value": 0.9, "off": pytest.approx(0.1)}}}
    ]  # fmt: skip
    assert lines[-1] == (
        "clean: two estimates of its accuracy disagree by more than they were off in back-tests: "
        "agreement 60.0% (off by 5.0 points) against source validation 90.0% (off by 10.0 points)."
    )
    # nearer than both errors together, or by errors that nobody knows
    assert said_of(made, apart, back_test(source_validation=0.26, agreement=0.2, weighted_validation=0.1))[1][1:] == [
        "Out: constant, it shows no learning."
    ]
    assert said_of(made, apart)[0]["disagreements"] == []


# labelled target rows


@pytest.fixture(scope="module")
def aimed(made, tiny, recipe, tmp_path_factory):
    """Two runs tested on labelled rows whose labels are turned round: the run that is worse elsewhere is better."""
    folders, _ = made
    folder = tmp_path_factory.mktemp("aimed")
    turned = {"positive": "negative", "negative": "positive"}
    target = [row | {"label": turned[row["label"]]} for row in reviews(600, 0.5, 6, ("screen", "cable"))]
    target = str(write_table(folder / "turned.jsonl", target))
    out = []
    for name in ("clean", "flipped"):
        source = str(Path(folders[0]).parent.parent / f"{name}.jsonl")
        run = recipe(["--model", str(tiny), "--method", "frozen", "--frozen_layer", "2", "--source", source,
                      "--target", target, "--output_dir", str(folder / name), "--max_length", "32", "--quiet",
                      "--class_weights", "none", *(["--metric", "macro_f1"] if name == "flipped" else [])])  # fmt: skip
        out.append(str(run.folder))
    return out


def chosen(folders, target, folder, **options):
    said = choose_run(folders, target, output_dir=str(folder), quiet=True, **options)
    return said, json.loads((folder / "choose.json").read_text())


@pytest.mark.recipe
def test_labelled_target_scores_are_shown_and_not_used(made, aimed, tmp_path):
    _, tables = made
    said, facts = chosen(aimed, tables["kitchen"], tmp_path / "one")
    assert facts["recommended"] == "clean"
    scores = {}
    for folder, one in zip(aimed, facts["runs"], strict=True):
        found = json.loads((Path(folder) / "run.json").read_text())["metrics"]["target_test"]
        own = one["labelled"]
        assert own["target"] == "turned"
        assert own["metric"] == {"clean": "accuracy", "flipped": "macro_f1"}[one["name"]]
        assert (own["score"], own["interval"]) == (found[own["metric"]], found["intervals"][own["metric"]])
        assert own["rows"] == 600
        scores[one["name"]] = with_interval(found["macro_f1"], found["intervals"]["macro_f1"])
        assert with_interval(own["score"], own["interval"]) in said
    lines = said.splitlines()
    (place,) = [i for i, line in enumerate(lines) if line.startswith("Recommended: clean")]
    assert lines[place + 1] == (
        f"By labelled rows of turned, which were not used, flipped is better than clean: "
        f"{scores['flipped']} % macro-F1 against {scores['clean']}; the intervals are apart."
    )
    header = next(line for line in lines if line.startswith("| run "))
    assert "labelled turned, accuracy % (not used)" in header
    assert "labelled turned, macro-F1 % (not used)" in header
    assert "the runs report different metrics (accuracy, macro-F1)" in said
    assert "The labelled rows of turned were tested when the runs were made, and are not chosen by" in said
    # the same choice, whatever the labels say
    for folder, value in ((tmp_path / "a", 0.99), (tmp_path / "b", 0.01)):
        copies = [shutil.copytree(run, folder / Path(run).name) for run in aimed]
        file = folder / "clean" / "run.json"
        content = json.loads(file.read_text())
        content["metrics"]["target_test"]["macro_f1"] = value
        file.write_text(json.dumps(content))
        again, changed = chosen([str(copy) for copy in copies], tables["kitchen"], folder / "out")
        assert [(run["scores"], run["mean_rank"]) for run in changed["runs"]] == [
            (run["scores"], run["mean_rank"]) for run in facts["runs"]
        ]
        assert changed["recommended"] == "clean"
        assert ("By labelled rows of turned" in again) == (value == 0.01)


@pytest.mark.recipe
def test_runs_without_labelled_target_rows_have_no_such_column(made):
    folders, tables = made
    said = choose_run(folders[1:], tables["kitchen"], quiet=True)
    assert "labelled" not in next(line for line in said.splitlines() if line.startswith("| run "))
    assert "By labelled rows" not in said
    assert "how far the estimates are off is not known (--backtest tells)" in said


def test_which_run_labels_prefer():
    def of(score, low, high):
        return {"target": "kitchen", "compared": {"score": score, "interval": [low, high]}}

    runs = [{"name": "a", "labelled": of(0.8, 0.78, 0.82)}, {"name": "b", "labelled": of(0.83, 0.81, 0.85)},
            {"name": "c", "labelled": None}]  # fmt: skip
    facts = {"metric": {"title": "accuracy"}, "recommended": "a", "runs": runs}
    begin = "By labelled rows of kitchen, which were not used, b is "
    assert by_labels(facts) == [f"{begin}better than a: 83.0 [81.0, 85.0] % accuracy against 80.0 [78.0, 82.0]; "
                                "higher, but the intervals overlap."]  # fmt: skip
    runs[1]["labelled"] = of(0.9, 0.88, 0.92)
    assert by_labels(facts)[0].endswith("the intervals are apart.")
    assert by_labels(facts | {"recommended": "b"}) == []
    assert by_labels(facts | {"recommended": "c"}) == [], "it has none to hold against"
    assert by_labels(facts | {"recommended": None}) == [f"{begin}the best: 90.0 [88.0, 92.0] % accuracy."]
    runs[0]["labelled"] = of(0.9, 0.88, 0.92)
    (tied,) = by_labels(facts | {"recommended": None})
    assert tied.endswith(" not used, a, b are the best: 90.0 [88.0, 92.0] % accuracy.")


@pytest.mark.recipe
def test_back_tests_go_by_the_metric_of_the_runs(made, aimed, tmp_path):
    from sklearn.metrics import f1_score

    _, tables = made
    rare = reviews(300, 0.15, 8, ("screen", "cable"))
    rare = str(write_table(tmp_path / "rare.jsonl", rare))
    said, facts = chosen(aimed, tables["kitchen"], tmp_path / "out", backtest=[rare])
    assert facts["metric"] == {"name": "macro_f1", "title": "macro-F1"}
    (test,) = facts["backtests"]
    for folder in aimed:
        name, scored = Path(folder).name, tmp_path / "scored.csv"
        predict_rows(folder, rare, str(scored), quiet=True)
        frame = pd.read_csv(scored)
        assert test["accuracy"][name] == pytest.approx((frame["prediction"] == frame["label"]).mean())
        true = f1_score(frame["label"], frame["prediction"], average="macro")
        assert test["metric"][name] == pytest.approx(true)
        assert f"{name} {true:.1%}" in said
        scored.unlink()
    assert "macro-F1 is " in said
    assert "regret, points of macro-F1" in said
    assert "off by, points of accuracy" in said
    assert "Order (Spearman, Kendall) and regret go by macro-F1" in said
    best = max(test["metric"].values())
    assert test["scores"]["recommendation"]["regret"] == pytest.approx(best - test["metric"][test["recommended"]])


@pytest.mark.recipe
def test_labels_of_the_target_are_not_read(made, tmp_path):
    folders, tables = made
    rows = [json.loads(line) for line in Path(tables["kitchen"]).read_text().splitlines()]
    plain = write_table(tmp_path / "kitchen.jsonl", [{"text": row["text"]} for row in rows])
    found = []
    for i, file in enumerate((str(plain), tables["kitchen"])):
        choose_run(folders, file, output_dir=str(tmp_path / f"{i}"), quiet=True)
        facts = json.loads((tmp_path / f"{i}" / "choose.json").read_text())
        found.append([(run["scores"], run["mean_rank"]) for run in facts["runs"]])
    assert found[0] == found[1]


@pytest.mark.recipe
def test_where_the_data_is_gone_the_rest_is_scored(made, tmp_path):
    folders, tables = made
    moved = tmp_path / "moved"
    shutil.copytree(folders[2], moved)
    facts = json.loads((moved / "run.json").read_text())
    facts["arguments"]["source"] = [str(tmp_path / "gone.jsonl")]
    (moved / "run.json").write_text(json.dumps(facts))
    said = choose_run([str(moved), folders[1]], tables["kitchen"], backtest=[tables["dvd"]], quiet=True)
    assert "moved: its data can't be read again (there is no file or folder" in said
    assert "moved: whether it was trained on dvd is told by the domain's name only" in said
    (line,) = [line for line in said.splitlines() if line.startswith("| moved")]
    cells = dict(zip(NAMES, (cell.strip(" *") for cell in line.split("|")[2:]), strict=False))
    assert [name for name, cell in cells.items() if cell == "-"] == ["reverse_validation", "weighted_validation"]
    assert "Recommended: moved" in said
    named = write_table(tmp_path / "clean.jsonl", reviews(100, 0.5, 9))
    with pytest.raises(UserError, match="--backtest clean: moved was trained on a domain of that name"):
        choose_run([str(moved)], tables["kitchen"], backtest=[str(named)], quiet=True)


@pytest.mark.recipe
def test_what_can_not_be_chosen_by_is_refused_in_one_line(made, tiny, recipe, tmp_path, capsys):
    folders, tables = made
    few = str(write_table(tmp_path / "few.jsonl", reviews(49, 0.5, 6)))
    odd = str(write_table(tmp_path / "odd.jsonl", [row | {"label": "so so"} for row in reviews(60, 0.5, 7)]))
    source = str(Path(folders[0]).parent.parent / "clean.jsonl")
    pool, test = ["--target_unlabeled", tables["kitchen"]], ["--backtest", tables["dvd"]]
    half = [{"text": row["text"], "label": row["label"]} for row in reviews(40, 0.5, 4, ("screen", "cable"))]
    mixed = str(write_table(tmp_path / "mixed.jsonl", half + reviews(60, 0.5, 8)))
    for argv, said in (
        ([folders[0], "--target_unlabeled", few], "49 different texts; at least 50 are needed"),
        ([str(tmp_path), *pool], "holds no finished run"),
        ([folders[2], "--target_unlabeled", source], "--target_unlabeled clean: clean was trained on 80% of its texts"),
        ([folders[2], *pool, "--backtest", source], "--backtest clean: clean was trained on 80% of its texts"),
        ([folders[2], *pool, "--backtest", tables["kitchen"]], "the target itself must not choose"),
        ([folders[2], *pool, "--backtest", mixed], "the target itself must not choose"),
        ([folders[2], *pool, "--backtest", odd], "labels that the runs don't know: so so"),
        ([folders[2], *pool, *test, "--text_column", "words"], "has no column 'words'"),
        ([folders[2], *pool, "--backtest", odd, "--output_dir", str(tmp_path / "new")], "so so"),
        ([*folders, *pool, "--output_dir", few], "--output_dir"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["choose", *argv, "--quiet"])
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line, line
    assert sorted(file.name for file in tmp_path.iterdir()) == ["few.jsonl", "mixed.jsonl", "odd.jsonl"]


@pytest.mark.recipe
def test_runs_with_other_labels_are_refused(made, tmp_path):
    folders, tables = made
    other = tmp_path / "other"
    other.mkdir()
    facts = json.loads((Path(folders[0]) / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(facts | {"label_names": ["good", "bad"]}))
    with pytest.raises(UserError, match="other knows the labels good, bad"):
        choose_run([folders[0], str(other)], tables["kitchen"], quiet=True)
    (other / "run.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"predictions.parquet can't be read"):
        choose_run([str(other)], tables["kitchen"], quiet=True)


@pytest.mark.recipe
def test_one_run_is_scored_and_a_collapsed_one_is_not_recommended(made):
    folders, tables = made
    assert "Recommended: clean, mean rank 1.0" in choose_run([folders[2]], tables["kitchen"], quiet=True)
    said = choose_run([folders[0]], tables["kitchen"], quiet=True)
    assert "No run is recommended: none is fit for it." in said
    assert "Out: constant, it has collapsed" in said
