"""Self-training: which rows are trusted, and rounds that stop where they bring nothing."""

from __future__ import annotations

import conftest
import numpy as np
import pytest

from hf_transfer.errors import UserError
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


@pytest.mark.parametrize("change", [["--rounds", "0"], ["--fraction", "0"], ["--fraction", "1.5"]])
def test_refused(change, tables, tmp_path):
    with pytest.raises(UserError, match="use 1 or more, and a share up to 1"):
        conftest.load_recipe("self_train")(["--source", str(tables["source"]), "--target_unlabeled", "x.csv",
                                            "--output_dir", str(tmp_path / "run"), *change])  # fmt: skip
