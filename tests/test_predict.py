"""`predict` labels what `pipeline` would, keeps rows and order, leaves no half file, and goes on after a kill."""

from __future__ import annotations

import json
import os

import conftest
import numpy as np
import pandas as pd
import pytest

from hf_transfer import predict
from hf_transfer.predict import predict_rows


@pytest.fixture(scope="module")
def run(tiny, tables, recipe, tmp_path_factory):
    return recipe(["--model", str(tiny), "--source", str(tables["source"]), "--target", str(tables["target"]),
                   "--output_dir", str(tmp_path_factory.mktemp("predict") / "run"), "--max_length", "48",
                   "--precision", "fp32", "--learning_rate", "1e-3", "--num_train_epochs", "2", "--quiet"])  # fmt: skip


@pytest.fixture
def fresh(tmp_path):
    """Rows of very different lengths, two of them without text, and a column that is empty at first."""
    texts = conftest.corpus_texts("films")[:30]
    texts = [text if i % 3 else " ".join(text.split()[:2]) for i, text in enumerate(texts)]
    texts[4], texts[11] = "", "   "
    rows = [{"id": i, "review": text, "note": None if i < 20 else "late", "key": None if i == 2 else 2**53 + i}
            for i, text in enumerate(texts)]  # fmt: skip
    return conftest.write_table(tmp_path / "fresh.jsonl", rows)


KEYS = {"key": "Int64"}
READ = {".csv": lambda file: pd.read_csv(file, dtype=KEYS),
        ".tsv": lambda file: pd.read_csv(file, sep="\t", dtype=KEYS),
        ".parquet": lambda file: pd.read_parquet(file, dtype_backend="pyarrow"),
        ".jsonl": lambda file: pd.DataFrame(map(json.loads, file.read_text().splitlines()), dtype=object)}  # fmt: skip


def test_who_may_read_the_run_may_read_its_weights(run):
    assert len({file.stat().st_mode for file in run.folder.iterdir() if file.is_file()}) == 1


@pytest.mark.parametrize("suffix", sorted(READ))
def test_every_row_in_order_and_as_pipeline_says(suffix, run, fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "CHUNK", 8)  # several chunks, the last one short
    monkeypatch.setattr("hf_transfer.arguments.best_precision", lambda: "fp32")
    output = tmp_path / "out" / f"scored{suffix}"
    said = predict_rows(str(run.folder), str(fresh), str(output), quiet=True)
    assert "30 rows (2 without text left unlabelled)" in said
    scored = READ[suffix](output)
    rows = [json.loads(line) for line in fresh.read_text().splitlines()]
    assert list(scored["id"]) == [row["id"] for row in rows] == list(range(30))
    assert list(scored.columns[:4]) == ["id", "review", "note", "key"]
    assert [row["key"] for row in rows if row["key"]] == scored["key"].dropna().astype(int).tolist(), "ids keep digits"
    assert list(np.flatnonzero(scored["prediction"].isna())) == [4, 11]
    assert not [file for file in output.parent.iterdir() if file != output]

    from transformers import pipeline

    pipe = pipeline("text-classification", str(run.folder), top_k=None)
    full = [i for i in range(30) if i not in (4, 11)]
    found = pipe([rows[i]["review"] for i in full], truncation=True)
    for i, scores in zip(full, found, strict=True):
        expected = {score["label"]: score["score"] for score in scores}
        assert scored["p_positive"][i] == pytest.approx(expected["positive"], abs=1e-5)
        assert scored["prediction"][i] == max(expected, key=lambda label: expected[label])
        assert scored["confidence"][i] == pytest.approx(max(expected.values()), abs=1e-5)


def test_bfloat16_weights_change_frozen_probabilities_little(tiny, tables, recipe, tmp_path, monkeypatch):
    """What predicts in bfloat16 has its weights in it too; frozen's head holds constants of 30,000."""
    made = recipe(["--model", str(tiny), "--method", "frozen", "--source", str(tables["source"]),
                   "--target", str(tables["target"]), "--output_dir", str(tmp_path / "run"), "--max_length", "48",
                   "--precision", "bf16", "--quiet"])  # fmt: skip
    texts = conftest.corpus_texts("films")[:60]
    found = {}
    for precision in ("fp32", "bf16"):
        monkeypatch.setattr("hf_transfer.arguments.best_precision", lambda precision=precision: precision)
        found[precision] = predict.scorer(made.folder)(texts)
    assert 0 < np.abs(found["bf16"] - found["fp32"]).max() < 0.02
    assert found["fp32"].std() > 0.02


@pytest.mark.parametrize("recorded", [True, False])
def test_labels_are_those_of_float32(recorded, tiny, tables, recipe, tmp_path, monkeypatch):
    """Also of a folder as it is published, without the recorded rows that tell how far bfloat16 can be trusted."""
    from transformers import pipeline

    model = conftest.with_close_labels(tiny, tmp_path / "model")
    made = recipe(["--model", str(model), "--source", str(tables["source"]), "--target", str(tables["target"]),
                   "--output_dir", str(tmp_path / "run"), "--max_length", "48", "--precision", "bf16", "--max_steps",
                   "2", "--learning_rate", "1e-5", "--quiet"])  # fmt: skip
    texts = [row["text"] for row in conftest.random_texts(400)]
    wanted = [entry["label"] for entry in pipeline("text-classification", str(made.folder))(texts, batch_size=64)]
    if not recorded:
        (made.folder / "recorded.jsonl").unlink()
    monkeypatch.setattr("hf_transfer.arguments.best_precision", lambda: "bf16")
    found = predict.scorer(made.folder)(texts)
    assert [made.label_names[i] for i in found.argmax(axis=1)] == wanted
    if recorded:
        monkeypatch.setattr("hf_transfer.inference.CLOSE", -np.inf)
        rounded = predict.scorer(made.folder)(texts)
        assert (rounded.argmax(axis=1) != found.argmax(axis=1)).any(), "else there was nothing to mend"


def interrupted(run, fresh, output, monkeypatch):
    """Stop in the third chunk of eight rows; what was scored until then."""
    monkeypatch.setattr(predict, "CHUNK", 8)
    original, seen = predict.scorer, []

    def stopping(*args):
        score = original(*args)

        def stop(texts):
            seen.append(texts)
            if len(seen) == 3:
                raise KeyboardInterrupt
            return score(texts)

        return stop

    with monkeypatch.context() as patch:
        patch.setattr(predict, "scorer", stopping)
        with pytest.raises(KeyboardInterrupt):
            predict_rows(str(run.folder), str(fresh), str(output), quiet=True)
    assert len(seen) == 3
    return seen


def test_the_same_command_goes_on_after_a_kill(run, fresh, tmp_path, monkeypatch):
    whole, output = tmp_path / "whole.csv", tmp_path / "scored.csv"
    interrupted(run, fresh, output, monkeypatch)
    assert not output.exists()
    (left,) = tmp_path.glob(".scored.csv.*.scores")
    with left.open("ab") as stream:
        stream.write(b"half a row")
    original, scored = predict.scorer, []
    monkeypatch.setattr(predict, "scorer", lambda *args: lambda texts: scored.extend(texts) or original(*args)(texts))
    said = predict_rows(str(run.folder), str(fresh), str(output), quiet=True)
    assert "16 rows were scored before" in said
    assert scored == [json.loads(line)["review"] for line in fresh.read_text().splitlines()][16:]
    predict_rows(str(run.folder), str(fresh), str(whole), quiet=True)
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fresh.jsonl", "scored.csv", "whole.csv"]


def test_scores_of_other_weights_are_not_gone_on_with(run, fresh, tmp_path, monkeypatch):
    output = tmp_path / "scored.csv"
    interrupted(run, fresh, output, monkeypatch)
    weights = run.folder / "model.safetensors"
    os.utime(weights, ns=(0, weights.stat().st_mtime_ns + 1))
    assert "scored before" not in predict_rows(str(run.folder), str(fresh), str(output), quiet=True)


def test_scores_of_other_texts_are_not_gone_on_with(run, fresh, tmp_path, monkeypatch):
    output = tmp_path / "scored.csv"
    first = interrupted(run, fresh, output, monkeypatch)[0][0]
    fresh.write_text(fresh.read_text().replace(json.dumps(first)[1:-1], "another text", 1))
    assert "scored before" not in predict_rows(str(run.folder), str(fresh), str(output), quiet=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fresh.jsonl", "scored.csv"]


def test_a_failure_while_writing_leaves_no_half_file(run, fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "CHUNK", 8)
    original, calls = predict._Writer.write, []

    def fail_later(self, table, added):
        calls.append(len(table))
        if len(calls) == 3:
            raise KeyboardInterrupt
        original(self, table, added)

    monkeypatch.setattr(predict._Writer, "write", fail_later)
    with pytest.raises(KeyboardInterrupt):
        predict_rows(str(run.folder), str(fresh), str(tmp_path / "scored.csv"), quiet=True)
    assert calls == [8, 8, 8]
    assert [file.suffix for file in tmp_path.iterdir() if file != fresh] == [".scores"], "what was scored is kept"
