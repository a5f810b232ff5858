"""A whole comparison on a tiny model: what is planned, trained once, judged, said, and never seen."""

from __future__ import annotations

import html.parser
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import conftest
import numpy as np
import pandas as pd
import psutil
import pytest
from datasets import Dataset
from safetensors.numpy import load_file

from hf_transfer import alignment, feature_maps, methods, objectives
from hf_transfer.arguments import DataArguments
from hf_transfer.arms import RANDOM, TARGET_ONLY, adaptations, command, read_arm
from hf_transfer.budget import Rows, Speeds, duration, epochs_of, read_duration, run_seconds
from hf_transfer.cli import main
from hf_transfer.compare import compare
from hf_transfer.data import load_data
from hf_transfer.errors import UserError
from hf_transfer.results import load_run
from hf_transfer.schedule import Plan, next_training
from hf_transfer.texts import text_facts
from hf_transfer.verdict_pages import _candidates

GOOD, BAD = ("clean", "friendly", "comfortable", "great"), ("dirty", "rude", "broken", "noisy")
FILLER = ("room", "hotel", "staff", "night", "bed", "breakfast", "we", "the", "was", "and")
MARKER = "phone"
ARMS = "frozen,full,coral+full,self_train+frozen"


def texts_of(count: int, seed: int, more: str = "") -> list[dict]:
    """Texts of a few words, labelled by one of them."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        words = [draw.choice(FILLER) for _ in range(8)]
        words[draw.randrange(8)] = draw.choice((BAD, GOOD)[i % 2])
        rows.append(
            {"text": " ".join([*words, str(i), more]), "label": ("bad", "good")[i % 2], "shop": "ab"[i % 3 > 0]}
        )
    return rows


def flags(folder: Path, **change: str | None) -> list[str]:
    """The command line of a comparison in `folder`."""
    given = {"model": str(folder / "model"), "source": str(folder / "source.jsonl"), "max_length": "24",
             "target": str(folder / "target.jsonl"), "target_unlabeled": str(folder / "pool.jsonl"), "budget": "20m",
             "seeds": "1", "arms": ARMS, "output_dir": str(folder / "verdict"), "seed": "3"} | change  # fmt: skip
    return [word for name, value in given.items() if value is not None for word in (f"--{name}", value)] + ["--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tables and a model; the target's rows carry a word that occurs nowhere else."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TRANSFER_CACHE", str(folder / "cache"))  # so that nobody else's texts are in it
        yield filled(folder)


def filled(folder: Path) -> Path:
    """Write them."""
    conftest.make_model(folder / "model")
    conftest.write_table(folder / "source.jsonl", texts_of(160, 0))
    conftest.write_table(folder / "target.jsonl", texts_of(120, 1, MARKER))
    pool = [{"text": row["text"]} for row in texts_of(220, 2)]
    conftest.write_table(folder / "pool.jsonl", pool)
    return folder


@pytest.fixture(scope="module")
def done(folder):
    """A finished comparison, and the texts that TF-IDF was fitted on."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    fitted: list[list[str]] = []
    original = TfidfVectorizer.fit_transform

    def spy(self, texts, *rest):
        fitted.append(list(texts))
        return original(self, texts, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TfidfVectorizer, "fit_transform", spy)
        where = compare([*flags(folder), "--slice_columns", "shop"])
    return where, json.loads((where / "verdict.json").read_text()), fitted


def test_every_arm_and_control_is_judged(done):
    where, facts, _ = done
    assert {one["name"] for one in facts["candidates"]} == {"majority", "tfidf", RANDOM, *ARMS.split(",")}
    plain = {"majority", "tfidf", RANDOM}
    against = {arm: {one["control"] for one in facts["comparisons"] if one["arm"] == arm} for arm in ARMS.split(",")}
    assert against == {
        "frozen": plain, "full": plain | {"frozen"}, "coral+full": plain | {"frozen", "full"},
        "self_train+frozen": plain | {"frozen", "full"},
    }  # fmt: skip
    assert facts["test_rows"] == 120
    assert facts["left_out"] == {}
    assert json.loads((where / "gap" / "gap.json").read_text())["target"]["name"] == "pool"
    assert set(facts["time"]["runs"]) == {f"{arm}-seed3" for arm in (*ARMS.split(",")[1:], RANDOM)}


def test_scores_are_those_of_the_runs(done):
    where, facts, _ = done
    for one in facts["candidates"]:
        if one["folders"]:
            run = load_run(one["folders"][0])
            assert run.metrics["target_test"]["accuracy"] == pytest.approx(one["accuracy"])
            assert run.metrics["source_test"]["accuracy"] == pytest.approx(one["source_accuracy"])
            assert one["calibration"]["before"]["loss"] == pytest.approx(run.metrics["target_test"]["loss"], abs=1e-3)
            assert Path(one["folders"][0]).parent == where / "runs"
    own = {one["name"]: one["accuracy"] for one in facts["candidates"]}
    for one in facts["comparisons"]:
        assert one["accuracy"]["value"] == pytest.approx(own[one["arm"]] - own[one["control"]])
    assert facts["forgetting"].keys() == {"coral+full", "self_train+frozen"}, "the others were adapted to nothing"
    assert facts["forgetting"]["coral+full"]["before"] == "full"
    assert facts["forgetting"]["self_train+frozen"]["before"] == "frozen"


def test_slices_by_length_label_and_column(done):
    _, facts, _ = done
    parts = {part["name"]: part["rows"] for part in facts["slices"]["parts"]}
    assert {name: rows for name, rows in parts.items() if name.startswith("shop")} == {"shop: a": 40, "shop: b": 80}
    assert {name for name in parts if name.startswith("label")} == {"label: bad", "label: good"}


def test_pages_hold_everything_and_ask_for_nothing(done):
    where, facts, _ = done

    class Page(html.parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.outside, self.words = [], []

        def handle_starttag(self, tag, attrs):
            self.outside += [
                value for name, value in attrs if name in ("src", "href") and not value.startswith("data:")
            ]

        def handle_data(self, data):
            self.words.append(data.strip())

    page = Page()
    page.feed((where / "verdict.html").read_text())
    assert not page.outside
    markdown = (where / "verdict.md").read_text()
    assert "The budget left room" not in markdown
    for one in facts["candidates"]:
        assert any(word.startswith(one["name"]) for word in page.words)
        assert f"| {one['name']}" in markdown
    for word in {one["effect"]["word"] for one in facts["comparisons"]}:
        assert word in page.words
        assert word in markdown
    assert (where / "pareto.png").stat().st_size > 10_000
    assert (where / "differences.png").stat().st_size > 10_000


def test_nothing_but_scoring_sees_the_tested_texts(done, folder):
    """Every target row carries a word: no cached training set, pool or control's vocabulary has it."""
    from transformers import AutoTokenizer

    where, _, fitted = done
    marker = AutoTokenizer.from_pretrained(folder / "model").convert_tokens_to_ids(MARKER)
    assert marker != AutoTokenizer.from_pretrained(folder / "model").unk_token_id
    files = sorted(Path(os.environ["HF_TRANSFER_CACHE"]).glob("tokens-*.arrow"))
    seen = [[marker in row for row in Dataset.from_file(str(file))["input_ids"]] for file in files]
    assert sum(all(rows) for rows in seen) == 1, "the tested texts, tokenised for scoring"
    assert sum(not any(rows) for rows in seen) >= 4, "training, validation, source test, pool"
    assert not [rows for rows in seen if any(rows) and not all(rows)]
    assert MARKER not in (where / "pool.jsonl").read_text()
    assert len(fitted) >= 1
    assert not [text for texts in fitted for text in texts if MARKER in text]


def test_no_weight_has_learned_from_the_tested_texts(done, folder):
    """The embedding of a word that they alone have shrinks by weight decay, as that of a word that nobody has."""
    from transformers import AutoTokenizer

    where, _, _ = done
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    rows = [json.loads(line) for name in ("source", "pool") for line in (folder / f"{name}.jsonl").open()]
    used = {word for row in rows for word in tokenizer(row["text"])["input_ids"]}
    marker = tokenizer.convert_tokens_to_ids(MARKER)
    idle = [word for word in range(len(tokenizer)) if word not in {*used, *tokenizer.all_special_ids, marker}]
    assert marker not in used
    assert len(idle) > 10
    for name in ("full", "coral+full", RANDOM):
        before = load_file((where / "random" / "seed3" if name == RANDOM else folder / "model") / "model.safetensors")
        after = load_file(where / "runs" / f"{name}-seed3" / "model.safetensors")
        change = after["bert.embeddings.word_embeddings.weight"] / before["embeddings.word_embeddings.weight"]
        np.testing.assert_allclose(change[[marker, *idle]], change[idle].mean(), rtol=1e-4)
        assert all(abs(change[word] - change[marker]).max() > 1e-3 for word in used - set(tokenizer.all_special_ids))


def test_which_rows_to_label_next(done, folder):
    where, facts, _ = done
    table = pd.read_csv(where / "label_next.csv")
    pool = [json.loads(line)["text"] for line in (folder / "pool.jsonl").read_text().splitlines()]
    assert len(table) == len(set(table["row"])) == 50
    assert [pool[row] for row in table["row"]] == table["text"].tolist()
    assert table["confidence"].between(0.5, 1.0).all()
    assert facts["next"]["expected"] == [], "no target label to learn a curve from"
    assert "What to label next" in (where / "verdict.md").read_text()


def test_again_trains_nothing_and_says_the_same(done, folder):
    where, facts, _ = done
    before = {file: file.stat().st_mtime_ns for file in where.glob("runs/*/run.json")}
    assert len(before) == 5
    compare([*flags(folder, budget="30m"), "--slice_columns", "shop"])  # there may be more time than at first
    assert {file: file.stat().st_mtime_ns for file in where.glob("runs/*/run.json")} == before
    again = json.loads((where / "verdict.json").read_text())
    for key in ("verdict", "comparisons", "forgetting", "slices", "candidates"):
        assert again[key] == facts[key], key


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arms": "frozen,lorra"}, r"no method 'lorra' \(did you mean 'lora'\?\)"),
        ({"arms": "corall+lora"}, r"'corall' can't stand before lora \(did you mean 'coral'"),
        ({"arms": "dann+frozen"}, "'dann' can't stand before frozen"),
        ({"target_unlabeled": None}, "learn from the target's unlabelled texts; give --target_unlabeled"),
        ({"budget": "soon"}, "--budget is 'soon': give a time with its unit, for example 8m"),
        ({"budget": "2"}, r"--budget is '2': add a unit, for example 8m \(also 90s, 2h\)\.$"),
        ({"budget": "nan"}, "--budget is 'nan': give a time with its unit"),
        ({"budget": "0m"}, "--budget is '0m': give at least 10s and at most 720h"),
        ({"budget": "0.0001s"}, "--budget is '0.0001s': give at least 10s"),
        ({"budget": "99999999999h"}, "--budget is '99999999999h': give at least 10s and at most 720h"),
        ({"seeds": "0"}, "--seeds is 0"),
        ({"tune": "-1"}, "--tune is -1"),
        ({"slice_columns": "shops"}, "has no column 'shops'; it has text, label, shop"),
        ({"slice_columns": "text"}, "'text' has 120 different values"),
        ({"slice_columns": "shops", "model": "/no/model"}, "has no column 'shops'"),  # before anything is trained
        ({"method": "lora"}, "unknown flag --method"),
        ({"target_only": "true", "target_shots": "4"}, "--target_only: that is one of the controls"),
        ({"backtest": "x.csv"}, "--backtest is about estimates without target labels"),
        ({"push_to_hub": "true"}, "look at the verdict first"),
    ],
)
def test_refused(change, words, done, folder, tmp_path):
    with pytest.raises(UserError, match=words):
        compare(flags(folder, **{"output_dir": str(tmp_path / "new"), **change}))
    assert not list(tmp_path.iterdir()) or change == {"budget": "1s"}


def test_a_slice_that_is_not_there_leaves_a_comparison_as_it_is(done, folder):
    where, _, _ = done
    before = {file: file.stat().st_mtime_ns for file in where.rglob("*")}
    with pytest.raises(UserError, match="has no column 'shops'"):
        compare(flags(folder, slice_columns="shops"))
    assert {file: file.stat().st_mtime_ns for file in where.rglob("*")} == before


def speeds(run=1.0, **step):
    """What a calibration might have found: seconds of a run beside its training, and of a row in a training step."""
    return lambda job: Speeds(run=run, heads=1.0, forward=0.0, step=step)


def test_a_budget_in_which_nothing_asked_for_fits(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_transfer.compare._calibrate", speeds(run=3600.0, full=1.0))
    words = flags(folder, arms="full", num_train_epochs="1", output_dir=str(tmp_path / "new"))
    with pytest.raises(UserError, match=r"--budget 20m is too short: the first control and the cheapest arm \(full\) "
                                        r"take about 1:\d\d h here; give that much"):  # fmt: skip
        compare(words)
    with pytest.raises(UserError, match="--budget 10s is too short: the first control, a head on the frozen encoder, "
                       r"was not finished; with the verdict it takes more than \d+ s here"):  # fmt: skip
        compare([*words, "--budget", "10s", "--output_dir", str(tmp_path / "newer")])
    monkeypatch.setattr("hf_transfer.compare._calibrate", None)  # which is not needed again
    facts = json.loads((compare([*words, "--budget", "20h"]) / "verdict.json").read_text())
    assert facts["left_out"] == {}
    assert (facts["time"]["share"], facts["time"]["again"]) == (1.0, [])


def written(where):
    """When the finished runs were written, by name."""
    return {file.parent.name: file.stat().st_mtime_ns for file in where.glob("runs/*/run.json")}


def test_a_larger_budget_goes_on_with_what_was_left_out_and_with_more_epochs(folder, tmp_path, monkeypatch):
    """20 minutes are said to be enough for a part of the cheap arms' epochs, two hours for everything."""
    where, pages = tmp_path / "out", lambda: (tmp_path / "out" / "verdict.md").read_text()
    row = 1 / (4 * load_rows(folder))
    monkeypatch.setattr("hf_transfer.compare._calibrate", speeds(full=900 * row, lora=5000 * row))
    monkeypatch.setattr("hf_transfer.compare.correction", lambda *_: 1.0)  # they are far quicker than that
    words = flags(folder, arms="frozen,full,lora", num_train_epochs="4", output_dir=str(where))
    compare(words)
    first = written(where)
    facts = json.loads((where / "verdict.json").read_text())
    assert first.keys() == {"frozen-seed3", "full-seed3", f"{RANDOM}-seed3"}
    assert facts["left_out"].keys() == {"lora-seed3"}
    assert facts["left_out"]["lora-seed3"].startswith("no time: it may take ")
    assert facts["left_out"]["lora-seed3"].endswith(" left before the verdict is written")
    share = facts["time"]["share"]
    assert 0.5 <= share < 0.7
    cut = f"{4 * share:g} of 4 epochs, by the budget"
    happened = {one["name"]: one["happened"] for one in facts["candidates"] if one["happened"]}
    assert happened == {"full": [cut], RANDOM: [cut]}
    run = load_run(where / "runs" / "full-seed3")
    assert run.arm == f"full ({cut})"
    assert run.history[-1]["epoch"] == pytest.approx(4 * share, abs=0.2)
    assert f"# full ({cut}): " in (run.folder / "report.md").read_text()
    assert "## What happened" in (run.folder / "report.md").read_text()
    assert f"full: {cut}." in pages()

    def killed(folder, **more):
        if folder == run.folder:
            (folder / "run.json").unlink()
            raise KeyboardInterrupt
        rmtree(folder, **more)

    with monkeypatch.context() as patch:
        rmtree = shutil.rmtree
        patch.setattr("hf_transfer.arm_runs.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            compare([*words, "--budget", "2h"])
    assert (where / "longer" / "full-seed3" / "run.json").is_file()
    with monkeypatch.context() as patch:  # killed while it notes something in a run: the next call does
        patch.setattr("hf_transfer.results.Run.save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            compare([*words, "--budget", "2h"])
    compare([*words, "--budget", "2h"])
    facts, second = json.loads((where / "verdict.json").read_text()), written(where)
    assert second.keys() == {*first, "lora-seed3"}
    assert second["frozen-seed3"] == first["frozen-seed3"]
    assert facts["left_out"] == {}
    assert facts["time"]["share"] == 1.0
    assert not [one["name"] for one in facts["candidates"] if one["happened"]]
    assert {(one["run"], one["why"]) for one in facts["time"]["again"]} == {
        ("lora-seed3", "left out at first"), ("full-seed3", "more epochs"), (f"{RANDOM}-seed3", "more epochs"),
    }  # fmt: skip
    assert "Planned with the time left over, more epochs: full-seed3" in pages()
    for name in ("full", RANDOM):
        run = load_run(where / "runs" / f"{name}-seed3")
        assert run.arm == name.replace("random+", "")
        assert run.history[-1]["epoch"] == 4.0
        assert f"--output_dir {run.folder}" in run.command
        assert "longer" not in (run.folder / "report.md").read_text()
    assert not list((where / "longer").iterdir())
    compare([*words, "--budget", "2h"])
    assert written(where) == second
    again = json.loads((where / "verdict.json").read_text())
    assert again["candidates"] == facts["candidates"]


def load_rows(folder):
    """The number of rows that training sees."""
    data = DataArguments(source=[str(folder / "source.jsonl")], target=str(folder / "target.jsonl"))
    return len(load_data(data, 3).train)


def test_other_questions_and_other_files_are_refused(done, folder, tmp_path):
    with pytest.raises(UserError, match="comparison with other values of max_length; give the same"):
        compare(flags(folder, max_length="20"))
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        compare(flags(folder, output_dir=str(tmp_path)))
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "compare.json").write_text('{"question": {}, "seconds": {}, "other": 0.0, "failed": {}}')
    with pytest.raises(UserError, match="a comparison that was made by another version; name a new --output_dir"):
        compare(flags(folder, output_dir=str(tmp_path / "old")))
    leaking = conftest.write_table(tmp_path / "leak.jsonl", texts_of(160, 0) + texts_of(120, 1, MARKER)[:5])
    with pytest.raises(UserError, match="LEAK: 5 labelled rows to train on are also target test rows"):
        compare(flags(folder, source=str(leaking), output_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    before = (folder / "pool.jsonl").read_text()
    (folder / "pool.jsonl").write_text(before.replace("bed", "night"))
    with pytest.raises(UserError, match="the unlabelled texts changed since"):
        compare(flags(folder))
    (folder / "pool.jsonl").write_text(before)
    learned = shutil.copytree(folder / "model", tmp_path / "model")
    keys = text_facts(Dataset.from_list(texts_of(120, 1, MARKER)))[["key"]]
    keys.to_parquet(learned / "pretraining_keys.parquet")
    with pytest.raises(UserError, match="LEAK: --model was pretrained on 120 of the texts that are tested"):
        compare(flags(folder, model=str(learned), output_dir=str(tmp_path / "out")))


def test_an_arm_that_fails_is_left_out_and_so_is_what_there_is_no_time_for(done, folder):
    """The same command trains the missing ones; here one can't be trained, and then there is no time for it."""
    where, facts, _ = done
    away = folder / "away"
    shutil.move(where / "runs" / "coral+full-seed3", away)
    pool, state = (where / "pool.jsonl").read_text(), (where / "compare.json").read_text()
    try:
        spent = json.loads(state)
        spent["seconds"]["full-seed3"] = 20 * 60.0
        (where / "compare.json").write_text(json.dumps(spent))
        compare(flags(folder))
        without = json.loads((where / "verdict.json").read_text())
        assert without["left_out"]["coral+full-seed3"].startswith("no time: it may take")
        assert {one["arm"] for one in without["comparisons"]} == set(ARMS.split(",")) - {"coral+full"}
        assert "coral+full-seed3 | no time" in (where / "verdict.md").read_text()
        own = {one["name"]: one["accuracy"] for one in facts["candidates"]}
        assert {one["name"]: one["accuracy"] for one in without["candidates"]}.items() <= own.items()
    finally:
        shutil.move(away, where / "runs" / "coral+full-seed3")
        (where / "pool.jsonl").write_text(pool)
        (where / "compare.json").write_text(state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target_unlabeled": "source.jsonl"}, "--target_unlabeled: 100% of its texts are labelled source rows"),
        ({"backtest": "source.jsonl"}, "80% of its texts are in --source too"),
        ({"backtest": "pool.jsonl"}, "100% of its texts are in --target_unlabeled too"),
    ],
)
def test_what_would_spoil_the_estimates_is_refused_before_anything_is_trained(change, words, folder, tmp_path):
    rows = [{**json.loads(line), "label": "good"} for line in (folder / "pool.jsonl").read_text().splitlines()]
    labelled = conftest.write_table(tmp_path / "pool.jsonl", rows)
    change = {name: str(labelled if file == "pool.jsonl" else folder / file) for name, file in change.items()}
    with pytest.raises(UserError, match=words):
        compare(flags(folder, **{"target": None, "output_dir": str(tmp_path / "new"), **change}))
    assert not (tmp_path / "new").exists()


def test_an_arm_that_was_stopped_is_said_to_be(done):
    _, facts, _ = done
    assert not [row for row in _candidates(facts) if "stopped" in row[0]]
    stopped = {"happened": ["alignment stopped after 3 steps: a loss"]}
    candidates = [one | (stopped if one["name"] == "coral+full" else {}) for one in facts["candidates"]]
    names = [row[0] for row in _candidates(facts | {"candidates": candidates})]
    assert any(name.startswith("coral+full (alignment stopped after 3 steps: a loss") for name in names)


@pytest.mark.parametrize("kind", ["flipped", "another task"])
def test_planted_negative_transfer(kind, folder, tmp_path):
    """40 % of the source's labels are wrong, or are of another task: a few target labels alone are better."""
    rows = texts_of(400, 5)
    draw = random.Random(0)
    for row in rows:
        if kind == "another task":
            row["label"] = "good" if "hotel" in row["text"] else "bad"
        elif draw.random() < 0.4:
            row["label"] = {"good": "bad", "bad": "good"}[row["label"]]
    source = conftest.write_table(tmp_path / "source.jsonl", rows)
    target = conftest.write_table(tmp_path / "target.jsonl", texts_of(700, 6))
    trials = str(int(kind == "another task"))
    where = compare(flags(folder, source=str(source), target=str(target), target_unlabeled=None, arms="frozen,full",
                          output_dir=str(tmp_path / "out"), target_shots="100", num_train_epochs="3",
                          tune=trials))  # fmt: skip
    facts = json.loads((where / "verdict.json").read_text())
    words = {(one["arm"], one["control"]): one["effect"]["word"] for one in facts["comparisons"]}
    assert words["full", "tfidf on the target"] == "hurts"
    assert words["frozen", "tfidf on the target"] == "hurts"
    assert ("full", TARGET_ONLY) in words
    assert not facts["verdict"]["adapt"]
    assert facts["verdict"]["recommended"] == "tfidf on the target"
    markdown = (where / "verdict.md").read_text()
    assert "frozen: negative transfer, worse than" in markdown
    assert ("full: negative" in markdown) != ("Collapsed: full" in markdown), "who learned nothing is no evidence"
    assert "Don't transfer: train TF-IDF on your 200 target labels alone" in markdown
    assert facts["next"] == {"texts": [], "expected": [], "bound": None}, "no arm helps: nothing is promised"
    assert "What further labels would likely buy" not in (where / "verdict.md").read_text()
    only = load_run(where / "runs" / f"{TARGET_ONLY}-seed3")
    for name in ("full", RANDOM):
        tuned = load_run(where / "runs" / f"{name}-seed3").choices.get("tuned", {"trials": []})
        assert len(tuned["trials"]) == int(trials), "a control is tuned as an arm is"
    assert "tuned" not in only.choices, "few shots leave no validation rows to choose by"
    assert only.data["rows"]["train"] == 200
    assert only.data["rows"]["target_test"] == facts["test_rows"] == 500


def test_screened_arms_that_are_worse_on_held_out_rows_are_in_no_comparison(folder, tmp_path, monkeypatch):
    """Two arms train for a quarter of their epochs; one goes on, and there is no time left for the other."""
    plan = Plan(1.0, ["lora", "bitfit", "full", RANDOM], [], 60.0, ["lora", "bitfit"], 1)
    monkeypatch.setattr("hf_transfer.compare.make_plan", lambda *_, **__: plan)

    def no_time_for_the_others(*given):
        one = next_training(*given)
        return None if one and one.name in given[-1] else one

    monkeypatch.setattr("hf_transfer.compare.next_training", no_time_for_the_others)
    where = compare(flags(folder, arms="lora,bitfit", num_train_epochs="4", target_unlabeled=None,
                          output_dir=str(tmp_path / "out")))  # fmt: skip
    facts = json.loads((where / "verdict.json").read_text())
    scores = {name: one["score"] for name, one in facts["screening"].items()}
    (kept,) = [name for name, one in facts["screening"].items() if one["kept"]]
    (other,) = {"lora", "bitfit"} - {kept}
    assert scores[kept] == max(scores.values())
    held_out = load_run(where / "runs" / f"{other}-seed3").metrics["validation"]["accuracy"]
    assert scores[other] == held_out, "validation rows, by the metric that chooses checkpoints"
    assert load_run(where / "runs" / f"{kept}-seed3").history[-1]["epoch"] == 4.0
    assert load_run(where / "runs" / f"{other}-seed3").history[-1]["epoch"] == 1.0
    assert load_run(where / "runs" / f"{other}-seed3").arm == f"{other} (1 of 4 epochs, by the budget)"
    assert {one["name"] for one in facts["candidates"]} == {"majority", "tfidf", "frozen", "full", RANDOM, kept}
    assert f"| {other} | {100 * scores[other]:.1f} | no |".replace(" ", "") in (
        (where / "verdict.md").read_text().replace(" ", "")
    )


def test_without_target_labels_and_with_two_seeds(folder, tmp_path):
    """Estimates are called so; with time for it every arm and control is trained twice."""
    backtest = conftest.write_table(tmp_path / "other.jsonl", texts_of(80, 9))
    words = flags(folder, target=None, arms="lora", seeds="2", num_train_epochs="1", output_dir=str(tmp_path / "out"))
    where = compare([*words, "--backtest", str(backtest)])
    facts = json.loads((where / "verdict.json").read_text())
    assert not facts["target_labels"]
    assert {run["name"] for run in facts["estimates"]["runs"]} == {"frozen", "full", RANDOM, "lora"}
    trained = {folder.name for folder in (where / "runs").iterdir()}
    assert trained == {f"{name}-seed{seed}" for name in ("frozen", "full", RANDOM, "lora") for seed in (3, 4)}
    assert {one["seeds"] for one in facts["candidates"] if one["folders"]} == {2}
    assert {(one["run"], one["why"]) for one in facts["time"]["again"]} == {
        (f"{name}-seed4", "further seed") for name in ("frozen", "full", RANDOM, "lora")
    }
    assert [test["domain"] for test in facts["estimates"]["backtests"]] == ["other"]
    markdown = (where / "verdict.md").read_text()
    assert "There are no target labels to test on" in markdown
    assert "Back-test on other: the recommended arm was" in markdown
    (backtest,) = facts["estimates"]["backtests"]
    known = [one["off"] for one in backtest["scores"].values() if one["off"] is not None]
    assert ("Estimates were off by" in markdown) == bool(known), "of arms that the rule puts out none is"


def test_how_far_estimates_were_off_is_said_where_it_is_known():
    from hf_transfer.verdict_pages import _estimates

    scores = {name: {"regret": 0.02, "off": off} for name, off in (("agreement", 0.051), ("entropy", None))}
    scores["recommendation"] = {"regret": 0.02, "off": None}
    found = {
        "scores": ["agreement"],
        "runs": [],
        "target": {"texts": 100},
        "metric": {"title": "macro-F1"},
        "recommended": None,
        "undecided": {"runs": ["lora", "full"], "off": {"agreement": 0.051}},
        "disagreements": [{"run": "full", "scores": {"agreement": {"value": 0.9, "off": 0.051}}}],
        "backtests": [{"domain": "dvd", "scores": scores}],
    }
    (_, first, apart, line) = _estimates(found)["lines"]
    assert first == ("No run is recommended: the estimates of lora and full differ by less than they were off in "
                     "back-tests (5.1 points).")  # fmt: skip
    assert apart.startswith("full: two estimates of its accuracy disagree by more than they were off")
    assert line == ("Back-test on dvd: the recommended arm was 2.0 points of macro-F1 under the best one there. "
                    "Estimates were off by (points of accuracy, mean over the arms): agreement 5.1.")  # fmt: skip
    scores["agreement"]["off"] = None
    assert _estimates(found)["lines"][-1].endswith("points of macro-F1 under the best one there.")
    scores["recommendation"]["regret"] = None
    assert _estimates(found)["lines"][-1] == "Back-test on dvd: no arm was recommended there."


KILLED = """
import sys
from hf_transfer.compare import compare
if __name__ == "__main__":
    compare(sys.argv[1:])
"""


def kill_and_go_on(folder: Path, out: Path, kills: int, seed: int) -> tuple[dict, dict[Path, int]]:
    """Kill a comparison at random moments and let the same command end it: the verdict, and when runs were written."""
    script = out.parent / "killed.py"
    script.write_text(KILLED)
    draw, written = random.Random(seed), {}
    words = [sys.executable, str(script), *flags(folder, output_dir=str(out))]
    for _ in range(kills):
        process = psutil.Popen(words, stderr=subprocess.PIPE)
        begin, wait = time.monotonic(), None
        while process.poll() is None:  # the moment is drawn from the time after reading: else nothing would be hit
            if wait is None and (out / "compare.json").is_file():
                begin, wait = time.monotonic(), draw.uniform(0, 15)
            if wait is not None and time.monotonic() - begin > wait:
                children = process.children(recursive=True)
                process.send_signal(signal.SIGKILL)
                _, alive = psutil.wait_procs(children, timeout=60)
                assert not alive, "an arm outlives its comparison"
            time.sleep(0.05)
        process.wait()
        for file in out.glob("runs/*/run.json"):
            assert written.setdefault(file, file.stat().st_mtime_ns) == file.stat().st_mtime_ns, "an arm was redone"
    compare(flags(folder, output_dir=str(out)))
    for file, when in written.items():
        assert file.stat().st_mtime_ns == when, "an arm was redone"
    return json.loads((out / "verdict.json").read_text()), written


def test_killed_comparisons_go_on_to_the_same_verdict(done, folder, tmp_path):
    _, undisturbed, _ = done
    facts, _ = kill_and_go_on(folder, tmp_path / "out", int(os.environ.get("KILLS", "1")), seed=1)
    assert facts["comparisons"] == undisturbed["comparisons"]
    assert facts["forgetting"] == undisturbed["forgetting"]
    assert facts["verdict"]["helping"] == undisturbed["verdict"]["helping"]
    assert facts["verdict"]["adapt"] == undisturbed["verdict"]["adapt"]
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_an_arm_s_name_is_a_recipe_call():
    count = 0
    for method in methods.names():
        for adaptation in ("", *adaptations(method)):
            arm = read_arm(f"{adaptation}+{method}" if adaptation else method)
            recipe, *words = command(arm, base="base", pool="pool.jsonl", teachers=["one"])
            assert words[:4] == ["--method", method, "--model", "base"]
            assert ("--target_unlabeled" in words) == (recipe != "finetune")
            assert (recipe == "finetune") == (adaptation in ("", "dapt", *objectives.names()))
            count += 1
    by_trainer = len(alignment.names()) + 3 + 1 + len(objectives.names()) + 1 + 1
    frozen = len(feature_maps.names()) + 1 + 3 + 1 + len(objectives.names()) + 1 + 1
    assert count == (len(methods.names()) - 1) * by_trainer + frozen
    assert command(read_arm(TARGET_ONLY), base=None, pool="", teachers=[])[-1] == "--target_only"


SPEEDS = Speeds(run=10, heads=5, forward=0.01, step={"full": 0.05, "lora": 0.04})
ROWS = Rows(train=1600, validation=200, shots=0, pool=2000)


def test_seconds_expected_of_a_run():
    def seconds(name, epochs=4.0):
        return run_seconds(read_arm(name), epochs, ROWS, SPEEDS)

    assert seconds("full") == 10 + 4 * (1600 * 0.05 + 200 * 0.01)
    assert seconds("coral+full") == 10 + 2 * 4 * (1600 * 0.05 + 200 * 0.01)
    assert seconds("dapt+full") == seconds("full")
    assert seconds("frozen") == 10 + 5 + 1800 * 0.01
    few = Rows(train=1600, validation=200, shots=32, pool=0)
    assert epochs_of(read_arm(TARGET_ONLY), 1.0, None, few) == 4 * 1600 / 32, "as many steps as the others"
    assert epochs_of(read_arm(TARGET_ONLY), 0.25, 1.0, Rows(100, 0, 100, 0)) == 1
    only = read_arm(TARGET_ONLY)
    assert run_seconds(only, 200, few, SPEEDS, 3) == 10 + 200 * 32 * 0.05, "no validation rows of its own, no trials"
    own = Rows(train=1600, validation=200, shots=160, pool=0, own_validation=20)
    assert run_seconds(only, 40, own, SPEEDS, 1) == 10 + 2 * 40 * (160 * 0.05 + 20 * 0.01)
    assert run_seconds(read_arm("full"), 4.0, ROWS, SPEEDS, 3) == 10 + 4 * 4 * (1600 * 0.05 + 200 * 0.01)
    assert run_seconds(read_arm("frozen"), 0.0, ROWS, SPEEDS, 3) == seconds("frozen")
    assert seconds("self_train+full", 2.0) == 10 + 2 * 20 + 2 * (3600 * 0.05 + 2)


@pytest.mark.parametrize(("text", "seconds"), [("10s", 10), ("90s", 90), ("10m", 600), ("1.5h", 5400), (" 2 m ", 120)])
def test_durations(text, seconds):
    assert read_duration(text) == seconds


def test_durations_in_words():
    assert [duration(seconds) for seconds in (4.4, 59, 80, 3599, 3900)] == [
        "4 s",
        "59 s",
        "1:20 min",
        "59:59 min",
        "1:05 h",
    ]


def test_help_and_errors_come_through_the_command(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--help"])
    assert stop.value.code == 0
    assert "--budget" in capsys.readouterr().out
    for words in (["compare"], ["run", "finetune"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        assert "--source" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--source", "/no/such.csv", "--output_dir", "/tmp/no"])
    assert stop.value.code == 2
    assert "there is no file or folder '/no/such.csv'" in capsys.readouterr().err
