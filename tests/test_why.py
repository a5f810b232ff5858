"""`why` traces what the run did: its probabilities, its tokens, its training rows; and says what it can't find."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from pathlib import Path

import conftest
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity
from test_cli import failure
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_transfer import why
from hf_transfer.cli import main
from hf_transfer.data import load_again
from hf_transfer.features import cache_folder
from hf_transfer.why import STAGES, find_row, why_row

LENGTH = 48
LONG, COPIED = 3, 5  # rows of the target: longer than LENGTH, and nearly the same as the last row of the source
METHODS = ("full", "lora", "frozen")


@pytest.fixture(scope="module")
def texts(tables):
    """The texts of both tables, by row."""
    source, target = ([json.loads(line) for line in tables[name].read_text().splitlines()] for name in tables)
    target[LONG]["text"] = " ".join(row["text"] for row in target[10:14])
    beginning, _ = target[COPIED]["text"].rsplit(" ", 1)
    source.append({**target[COPIED], "text": f"{beginning} indeed."})
    for i, row in enumerate(source):
        row["split"] = ["train", "train", "train", "validation", "test"][i % 5]
    assert source[-1]["split"] == "train"
    return {"source": source, "target": target}


@pytest.fixture(scope="module")
def runs(texts, tiny, recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("why")
    files = {name: str(conftest.write_table(folder / f"{name}.jsonl", rows)) for name, rows in texts.items()}
    return {method: recipe(["--method", method, "--model", str(tiny), "--source", files["source"], "--target",
                            files["target"], "--max_length", str(LENGTH), "--precision", "fp32", "--quiet",
                            "--output_dir", str(folder / method),
                            *([] if method == "frozen" else ["--num_train_epochs", "2"])])
            for method in METHODS}  # fmt: skip


@pytest.fixture
def own(runs, tmp_path):
    """A run whose files a test may change."""
    folder = shutil.copytree(runs["full"].folder, tmp_path / "own")
    content = json.loads((folder / "run.json").read_text())
    for name, flag in (("source", "source"), ("target", "target")):
        shutil.copy(runs["full"].folder.parent / f"{name}.jsonl", tmp_path)
        file = str(tmp_path / f"{name}.jsonl")
        content["arguments"][flag] = [file] if flag == "source" else file
    (folder / "run.json").write_text(json.dumps(content))
    return folder


def traced(folder, row=None, **options):
    """What why.json holds, and what is printed."""
    out = Path(folder).parent / "out"
    said = why_row(folder, row, output_dir=str(out), quiet=True, **options)
    facts = json.loads((out / "why.json").read_text())
    assert said == (out / "why.txt").read_text() + f"\nwritten: {out}/why.txt, why.json"
    return facts, said


# what the model did


@pytest.mark.parametrize("method", METHODS)
def test_the_trace_is_what_the_run_predicted(method, runs, texts):
    run = runs[method]
    tested = pd.read_parquet(run.folder / "predictions.parquet")
    model = AutoModelForSequenceClassification.from_pretrained(run.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.folder)
    seen = set()
    for row in tested.groupby("set").sample(1, random_state=0).to_dict("records"):
        facts, said = traced(run.folder, f"{row['set']}:{row['row']}")
        seen.add(row["set"])
        assert facts["row"] == {name: row[name] for name in ("set", "domain", "row")}
        assert facts["text"] == texts[row["domain"]][row["row"]]["text"]
        assert facts["label"] == texts[row["domain"]][row["row"]]["label"]
        assert facts["prediction"] == row["prediction"]
        with torch.inference_mode():
            (logits,) = model(**tokenizer(facts["text"], truncation=True, return_tensors="pt")).logits.tolist()
        assert list(facts["logits"].values()) == pytest.approx(logits, abs=1e-4)
        for label in ("negative", "positive"):
            assert facts["probabilities"][label] == pytest.approx(row[f"p_{label}"], abs=1e-4)
            assert facts["recorded"][label] == row[f"p_{label}"]
        assert facts["loss"] == pytest.approx(-math.log(row[f"p_{facts['label']}"]), abs=1e-3)
        assert f"loss        {facts['loss']:.4f} = -log p({facts['label']})" in said
        assert re.search(rf"^ *{row['prediction']} .*<- predicted", said, re.MULTILINE)
        assert re.search(rf"^ *{facts['label']} .*<- right", said, re.MULTILINE)
        assert set(facts["seconds"]) == {*STAGES, "total"}
    assert seen == {"validation", "source_test", "target_test"}
    assert tested["p_positive"].std() > 1e-3, "rows could not be told apart"


def words(text):
    return re.findall(r"\w+|[^\w\s]+", text.lower())


def test_tokens_beyond_the_longest_text_are_cut(runs, texts):
    known = AutoTokenizer.from_pretrained(runs["full"].folder).get_vocab()
    expected = [word if word in known else "[UNK]" for word in words(texts["target"][LONG]["text"])]
    assert len(expected) > 2 * LENGTH
    facts, said = traced(runs["full"].folder, f"target:{LONG}")
    tokens = facts["tokens"]
    assert tokens["read"] == ["[CLS]", *expected[: LENGTH - 2], "[SEP]"]
    assert tokens["cut"] == expected[LENGTH - 2 :]
    assert tokens["unknown"] == expected[: LENGTH - 2].count("[UNK]") > 0
    assert tokens["text_read"] + tokens["text_cut"] == facts["text"]
    assert words(tokens["text_cut"]) == words(facts["text"])[LENGTH - 2 :]
    assert f"cut off     {len(expected) - LENGTH + 2} tokens, beyond the {LENGTH} that the run reads" in said
    weights = [weight for _, weight in facts["attributions"]["pieces"]]
    assert sum(weight is not None for weight in weights) == LENGTH - 2, "only what is read can decide"

    short = "The lid fits."
    facts, said = traced(runs["full"].folder, text=short)
    assert facts["tokens"]["cut"] == []
    assert facts["tokens"]["text_read"] == short
    assert facts["tokens"]["text_cut"] == ""
    assert "cut off" not in said
    assert facts["label"] is facts["loss"] is facts["row"] is None


def test_texts_may_be_cut_on_the_left(own, texts):
    file = own / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "truncation_side": "left"}))
    text = texts["target"][LONG]["text"]
    facts, _ = traced(own, text=text)
    assert words(facts["tokens"]["text_read"]) == words(text)[-(LENGTH - 2) :]
    assert len(facts["tokens"]["cut"]) == len(words(text)) - LENGTH + 2
    assert facts["tokens"]["text_cut"] + facts["tokens"]["text_read"] == text


def test_words_are_weighed_as_in_the_demo(runs, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(conftest.REPOSITORY / "spaces" / "demo")])
    from attribution import explain
    from models import Model

    facts, said = traced(runs["full"].folder, "target:0")
    explained = explain(Model("full", runs["full"].folder), facts["text"])
    found = facts["attributions"]
    assert found["label"] == facts["prediction"] == explained.label
    assert [tuple(piece) for piece in found["pieces"]] == explained.pieces
    assert found["difference"] == pytest.approx(sum(w for _, w in found["pieces"] if w) + found["missing"], abs=1e-4)
    most = max((weight, word) for word, weight in found["pieces"] if weight)
    assert f"words       for {facts['prediction']}: {most[1]} {most[0]:+.2f}" in said


# the nearest training rows


def test_a_near_copy_in_the_training_rows_is_found_first(runs, texts):
    for run in runs.values():
        facts, said = traced(run.folder, f"target:{COPIED}")
        found = facts["neighbours"]
        first, *others = found["nearest"]
        assert first["text"] == texts["source"][-1]["text"] != facts["text"]
        assert (first["domain"], first["row"]) == ("source", 60)
        assert first["label"] == texts["source"][-1]["label"]
        assert first["similarity"] > others[0]["similarity"] + 0.05
        assert len(others) == 4
        training = {row["text"] for row in texts["source"] if row["split"] == "train"}
        assert {near["text"] for near in found["nearest"]} <= training
        assert found["rows"] == found["of"] == len(training) == 37
        assert f"the most similar of all 37 labelled training rows (cosine at layer {found['layer']}):" in said
        assert f"{first['similarity']:+.3f}  {first['label']}  source:60  {first['text'][:20]}" in said


def test_similarity_is_that_of_the_runs_own_states(runs, texts):
    run = runs["full"]
    facts, _ = traced(run.folder, "target:0")
    model = AutoModelForSequenceClassification.from_pretrained(run.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.folder)
    training = [row["text"] for row in texts["source"] if row["split"] == "train"]
    states = []
    for text in [facts["text"], *training]:
        inputs = tokenizer(text, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            states.append(model(**inputs, output_hidden_states=True).hidden_states[2][0].mean(dim=0).numpy())
    centred = np.array(states) - np.mean(states[1:], axis=0)
    expected = cosine_similarity(centred[:1], centred[1:])[0]
    found = facts["neighbours"]["nearest"]
    assert [near["similarity"] for near in found] == pytest.approx(np.sort(expected)[::-1][:5].tolist(), abs=1e-4)
    assert [near["text"] for near in found] == [training[i] for i in np.argsort(-expected)[:5]]


def test_of_many_training_rows_some_are_drawn_and_encoded_once(runs, monkeypatch):
    monkeypatch.setattr(why, "ROWS", 12)
    before = len(list(cache_folder().glob("pooled-*.npy")))
    drawn = [traced(runs["lora"].folder, f"target:{i}") for i in range(2)]
    assert len(list(cache_folder().glob("pooled-*.npy"))) == before + 1
    train = load_again(runs["lora"]).train["text"][:]
    rows = np.random.default_rng(runs["lora"].seed).permutation(len(train))[:12]
    for facts, said in drawn:
        assert {near["text"] for near in facts["neighbours"]["nearest"]} <= {train[i] for i in rows}
        assert "the most similar of 12 drawn of 37 labelled training rows" in said


# which row


def test_a_row_is_named_by_as_much_as_it_takes(runs):
    run = runs["full"]
    for address in ("target_test:target:7", "target_test:7", "target:7"):
        tested, place = find_row(run, address)
        assert set(tested["set"]) == {"target_test"}
        assert (tested["domain"][place], tested["row"][place]) == ("target", 7)
    tested, place = find_row(run, "59")
    assert (tested["set"][place], tested["domain"][place], tested["row"][place]) == ("source_test", "source", 59)


def test_the_command(runs, tmp_path, capsys):
    main(["why", str(runs["frozen"].folder), "target:2", "--output_dir", str(tmp_path / "a" / "b"), "--quiet"])
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith("target_test:target:2, by ")
    titles = re.findall(r"^(\w+(?: off)?)  ", said.out, re.MULTILINE)
    assert titles == ["text", "tokens", "scores", "loss", "words", "neighbours", "seconds"]
    assert json.loads((tmp_path / "a" / "b" / "why.json").read_text())["row"]["row"] == 2
    main(["why", str(runs["frozen"].folder), "--text", "The lid \x1b[31m\nfits", "--quiet"])
    assert "text        The lid [31m fits\n" in capsys.readouterr().out


BAD = {
    "no such row": (["target_test:4000"], r"tested no row 'target_test:4000'; it tested source_test:source:4 to 59 "
                    r"\(12 rows\), target_test:target:0 to 39 \(40 rows\), validation:source:3 to 58 \(12 rows\)"),
    "a training row": (["source:50"], "tested no row 'source:50'"),
    "no such set": (["tested:7"], "tested no row 'tested:7'"),
    "no number": (["target"], "tested no row 'target'"),
    "a huge number": (["9" * 30], "tested no row '9+'"),
    "ambiguous": (["3"], "'3' fits 2 rows .*: validation:source:3, target_test:target:3; name one of them in full"),
    "both": (["target:1", "--text", "a lid"], "give either ROW"),
    "neither": ([], "give either ROW"),
    "an empty text": (["--text", " "], "--text is empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_rows_that_can_not_be_traced(case, runs, capsys):
    words, message = BAD[case]
    assert re.search(message, failure(["why", str(runs["full"].folder), *words], capsys))


def swap(lines):
    labels = [json.loads(line)["label"] for line in lines]
    other = next(i for i, label in enumerate(labels) if label != labels[0])
    lines[0], lines[other] = lines[other], lines[0]


def alter(lines):
    lines[0] = lines[0].replace("a", "b", 1)


CHANGES = {"gone": (None, "can't be read again (there is no file"), "changed": (alter, "changed since"),
           "swapped": (swap, "another order")}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_data_that_changed_are_not_traced(change, own, tmp_path, capsys):
    act, message = CHANGES[change]
    file = tmp_path / "target.jsonl"
    if act is None:
        file.unlink()
    else:
        lines = file.read_text().splitlines()
        act(lines)
        file.write_text("\n".join(lines) + "\n")
    line = failure(["why", str(own), "target:0", "--output_dir", str(tmp_path / "new"), "--quiet"], capsys)
    assert message in line
    assert line.endswith("; restore the data, or give the text itself with --text.")
    assert not (tmp_path / "new").exists()
    facts, said = traced(own, text="The lid fits.")
    if change == "swapped":  # the training rows are the same
        assert len(facts["neighbours"]["nearest"]) == 5
    else:
        assert facts["neighbours"] is None
        assert message in " ".join(re.search(r"^neighbours  none: (.*)^seconds", said, re.M | re.S)[1].split())
    assert sum(facts["probabilities"].values()) == pytest.approx(1)


def test_folders_that_are_no_whole_run(own, tmp_path, capsys):
    assert "holds no finished run" in failure(["why", str(tmp_path), "7"], capsys)
    (own / "predictions.parquet").write_bytes(b"no table")
    assert "predictions.parquet can't be read" in failure(["why", str(own), "target:7"], capsys)
    (own / "model.safetensors").write_bytes(b"no weights")
    assert "its model can't be loaded" in failure(["why", str(own), "--text", "a lid", "--quiet"], capsys)
