"""Self-training: which rows are trusted, and rounds that stop where they bring nothing."""

from __future__ import annotations

from pathlib import Path

import conftest
import numpy as np
import pytest

from hf_transfer.errors import UserError
from hf_transfer.predict import scorer
from hf_transfer.pseudo import most_confident


def test_the_most_confident_of_each_class():
    p = np.array([0.9, 0.8, 0.7, 0.6, 0.55, 0.2, 0.3, 0.45])
    probabilities = np.stack([p, 1 - p], axis=1)
    found = most_confident(probabilities, np.array([0.5, 0.5]), 0.5)
    assert found.rows.tolist() == [0, 1, 5, 6]
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.everything.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    skewed = most_confident(probabilities, np.array([0.75, 0.25]), 0.5)
    assert skewed.labels.tolist() == [0, 0, 0, 1]
    every = most_confident(probabilities, np.array([0.25, 0.75]), 1.0)
    assert every.rows.tolist() == [0, 1, 5, 6, 7], "no more than the model gives that label"


@pytest.mark.recipe
@pytest.mark.parametrize("method", ["full", "lora", "partial", "frozen"])
def test_rounds(method, tiny, tables, tmp_path):
    pool = conftest.write_table(tmp_path / "pool.jsonl", [{"text": t} for t in conftest.corpus_texts("films")[:60]])
    argv = ["--model", str(tiny), "--source", str(tables["source"]), "--target", str(tables["target"]), "--method",
            method, "--target_unlabeled", str(pool), "--max_length", "40", "--validation_fraction", "0.2", "--quiet",
            "--rounds", "1", "--fraction", "0.5", "--output_dir", str(tmp_path / "run")]  # fmt: skip
    run = conftest.load_recipe("self_train")([*argv, *([] if method == "frozen" else ["--num_train_epochs", "1"])])
    rounds = run.choices["rounds"]
    assert len(rounds) == 2
    assert rounds[0]["rows"] == run.data["rows"]["train"]
    assert rounds[0]["rows"] < rounds[1]["rows"] <= rounds[0]["rows"] + 30
    assert run.metrics["target_test"]["n"] == 40
    assert run.arm == f"self_train+{method}"


@pytest.mark.parametrize("change", [["--rounds", "0"], ["--fraction", "0"], ["--fraction", "1.5"]])
def test_refused(change, tables, tmp_path):
    with pytest.raises(UserError, match="use 1 or more, and a share up to 1"):
        conftest.load_recipe("self_train")(["--source", str(tables["source"]), "--target_unlabeled", "x.csv",
                                            "--output_dir", str(tmp_path / "run"), *change])  # fmt: skip


def test_teachers(tiny, tables, tmp_path):
    """Finished runs give the first labels: their mean, in this run's order of labels."""
    pool = conftest.write_table(tmp_path / "pool.jsonl", [{"text": t} for t in conftest.corpus_texts("films")[:60]])
    common = ["--model", str(tiny), "--source", str(tables["source"]), "--target", str(tables["target"]), "--quiet",
              "--max_length", "40", "--validation_fraction", "0.2"]  # fmt: skip
    folders = []
    for method in ("full", "frozen"):
        folders.append(str(tmp_path / method))
        more = ["--num_train_epochs", "1"] if method == "full" else []
        conftest.load_recipe("finetune")([*common, "--method", method, "--output_dir", folders[-1], *more])
    argv = [*common, "--method", "frozen", "--target_unlabeled", str(pool), "--fraction", "0.5"]
    run = conftest.load_recipe("self_train")([*argv, "--teachers", *folders, "--output_dir", str(tmp_path / "run")])
    (only,) = run.choices["rounds"]
    assert only["round"] == 1
    texts = conftest.corpus_texts("films")[:60]
    given = np.mean([scorer(Path(folder))(texts) for folder in folders], axis=0)
    expected = most_confident(given, np.array([0.5, 0.5]), 0.5)
    assert only["rows"] == run.data["rows"]["train"] + len(expected.rows)


def test_teachers_that_must_not_teach(tiny, tables, tmp_path):
    rows = [{"text": f"a text {i}", "label": ("bad", "good")[i % 2]} for i in range(60)]
    other = conftest.write_table(tmp_path / "other.jsonl", rows)
    pool = conftest.write_table(tmp_path / "pool.jsonl", rows)
    common = ["--model", str(tiny), "--quiet", "--max_length", "40", "--method", "frozen"]
    ours = ["--source", str(tables["source"]), "--target", str(tables["target"])]
    finetune, self_train = conftest.load_recipe("finetune"), conftest.load_recipe("self_train")
    finetune([*common, *ours, "--target_shots", "4", "--output_dir", str(tmp_path / "few")])
    finetune([*common, "--source", str(other), "--output_dir", str(tmp_path / "others")])
    argv = [*common, *ours, "--target_unlabeled", str(pool), "--output_dir", str(tmp_path / "no"), "--teachers"]
    for teacher, said in (("few", "learned from target labels, and from another split"),
                          ("others", "knows the labels bad, good; these data have negative, positive")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            self_train([*argv, str(tmp_path / teacher)])
    assert not (tmp_path / "no").exists()
