"""What is said before training of texts that are longer than `--max_length`."""

from __future__ import annotations

import json

import conftest
import numpy as np
import pytest
from conftest import write_table

from hf_transfer.begin import cut_at
from hf_transfer.comparison import open_comparison


def test_the_proposed_length_is_the_least_that_will_do():
    draw = np.random.default_rng(0)
    lengths = {"train": draw.integers(5, 90, 400), "target_test": draw.integers(5, 250, 60)}
    cut, (warning,) = cut_at(64, lengths, 512)
    lost = {name: np.maximum(own - 64, 0).sum() / own.sum() for name, own in lengths.items()}
    assert cut == {name: pytest.approx(share, abs=1e-4) for name, share in lost.items()}
    assert cut["train"] > 0.05
    enough = next(n for n in range(16, 512, 16) if np.maximum(lengths["target_test"] - n, 0).sum()
                  < 0.01 * lengths["target_test"].sum())  # fmt: skip
    assert enough > 192
    assert warning == (
        f"{100 * lost['train']:.1f} % of the tokens of train, {100 * lost['target_test']:.1f} % of "
        f"target_test are cut at --max_length 64; {enough} would cut under 1 %"
    )


def test_a_small_set_is_not_outvoted_by_a_large_one():
    lengths = {"train": np.full(10_000, 20), "target_test": np.full(20, 100)}
    _, (warning,) = cut_at(64, lengths, 512)
    assert warning == "36.0 % of the tokens of target_test are cut at --max_length 64; 112 would cut under 1 %"


@pytest.mark.parametrize(
    ("room", "end"),
    [
        (64, "64; the model reads no more"),
        (100, "64; 100 would cut under 1 %"),
        (90, "64; 90, all that the model reads, would still cut 10.0 %"),
        (10**30, "64; 112 would cut under 1 %"),  # of a model that names no limit
    ],
)
def test_no_more_is_proposed_than_the_model_reads(room, end):
    _, (warning,) = cut_at(64, {"train": np.full(10, 100)}, room)
    assert warning == f"36.0 % of the tokens of train are cut at --max_length {end}"


def test_little_is_not_worth_a_word():
    assert cut_at(95, {"train": np.full(10, 100), "validation": np.full(3, 9)}, 512) == (
        {"train": 0.05, "validation": 0.0},
        [],
    )


@pytest.fixture
def long_texts(tables, tmp_path):
    """A source of short texts, and a target of which half of the tokens stand behind the first 24."""
    rows = {name: [json.loads(line) for line in file.read_text().splitlines()] for name, file in tables.items()}
    source = [row | {"text": " ".join(row["text"].split()[:10])} for row in rows["source"]]
    target = [row | {"text": f"{i} {'room ' * 45}"} for i, row in enumerate(rows["target"])]
    return ["--source", str(write_table(tmp_path / "source.jsonl", source)),
            "--target", str(write_table(tmp_path / "target.jsonl", target)),
            "--output_dir", str(tmp_path / "run"), "--max_length", "24"]  # fmt: skip


WARNING = "note: 50.0 % of the tokens of target_test are cut at --max_length 24; 48 would cut under 1 %"


def warnings(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if "are cut at" in line]


@pytest.mark.recipe
def test_a_run_says_and_records_what_is_cut(recipe, tiny, long_texts, capsys):
    run = recipe(["--model", str(tiny), *long_texts, "--method", "frozen"])
    assert warnings(capsys) == [WARNING]
    assert run.data["tokens_cut"].keys() == {"train", "validation", "source_test", "target_test"}
    assert run.data["tokens_cut"]["target_test"] == 0.5
    assert json.loads((run.folder / "run.json").read_text())["data"]["tokens_cut"]["train"] < 0.05


def test_a_comparison_says_what_is_cut(tiny, long_texts, tmp_path, capsys):
    open_comparison(["--model", str(tiny), *long_texts], None)
    assert warnings(capsys) == [WARNING]
    open_comparison(
        ["--model", str(tiny), *long_texts, "--max_length", "48", "--output_dir", str(tmp_path / "48")], None
    )
    assert warnings(capsys) == []


@pytest.mark.recipe
def test_pretraining_says_and_records_what_is_cut(tmp_path, tiny, capsys):
    raw = write_table(tmp_path / "raw.jsonl", [{"text": f"{i} {'room ' * 45}"} for i in range(30)])
    folder = conftest.load_recipe("pretrain_domain")([
        "--model", str(conftest.make_model(tmp_path / "model", "gpt2")), "--target_unlabeled", str(raw), "--max_length",
        "23", "--max_steps", "1", "--output_dir", str(tmp_path / "run"),
    ])  # fmt: skip
    (warning,) = warnings(capsys)
    assert warning == ("note: 50.0 % of the tokens of train, 50.0 % of held_out are cut at --max_length "
                       "23; 48 would cut under 1 %")  # fmt: skip
    record = json.loads((folder / "pretraining.json").read_text())
    assert record["data"]["tokens_cut"] == {"train": 0.5, "held_out": 0.5}
