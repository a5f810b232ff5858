"""The model card: every number and sentence follows from the run, its code runs, and no name breaks it."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import conftest
import numpy as np
import pandas as pd
import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from hf_transfer.base import Base
from hf_transfer.card import evidence_rows, limits, one_line, render_card
from hf_transfer.errors import UserError
from hf_transfer.report import verdict
from hf_transfer.results import longest_text

COMMIT = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
LOCAL = Base("tiny-base", None, None)
HUB = Base("sentence-transformers/all-MiniLM-L6-v2", COMMIT, "apache-2.0")
THREE = ['bad "news"', "good | <b>", "so-so"]
MISSING = "Training on the source alone was not measured."


@pytest.fixture(scope="module")
def train(recipe, tables, tmp_path_factory):
    """Train a run of a few seconds."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name, model, *more, source=tables["source"], target=tables["target"]):
        return recipe(["--model", str(model), "--source", str(source), "--target", str(target), "--max_length", "40",
                       "--precision", "fp32", "--num_train_epochs", "1", "--quiet", "--output_dir",
                       str(folder / name), *more])  # fmt: skip

    return run


@pytest.fixture(scope="module")
def source_only(train, tiny):
    return train("source-only", tiny, "--method", "full")


@pytest.fixture(scope="module")
def few_shot(train, source_only):
    """With target labels, from a model that already has a head for these labels."""
    return train("few-shot", source_only.folder, "--method", "full", "--target_shots", "4")


@pytest.fixture(scope="module")
def adapters(train, tiny, tmp_path_factory):
    """Runs of PEFT methods and the folders of their base models; the last has 3 labels, its base a head for 2."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("three")
    AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=2).save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder / "base")
    tables = {}
    for name, domain in (("source", "hotels"), ("target", "gadgets")):
        texts = conftest.corpus_texts(domain)[:60]
        rows = [{"text": text, "label": THREE[i % 3]} for i, text in enumerate(texts)]
        tables[name] = conftest.write_table(folder / f"{name}.jsonl", rows)
    return {
        "lora": (train("lora", tiny, "--method", "lora"), tiny),
        "prompt": (train("prompt", tiny, "--method", "prompt", "--max_length", "60", "--prompt_tokens", "8"), tiny),
        "three": (train("three", folder / "base", "--method", "lora", **tables), folder / "base"),
    }


def card(run, base=LOCAL, **more):
    return render_card(run, **({"repo_id": "me/x", "base": base, "has_adapter": False, "license": None} | more))


def markdown(text):
    """The tokens of a card's body, as the Hub would read it."""
    body = text.split("\n---\n", 1)[1]
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body)


def shown(token):
    """What a reader sees of an inline token."""
    return "".join(child.content if child.type in ("text", "code_inline") else " " * (child.type == "softbreak")
                   for child in token.children)  # fmt: skip


def tables_of(text):
    """Every table of the card as rows of cells, as a reader sees them."""
    out = []
    for token, after in zip(tokens := markdown(text), [*tokens[1:], None], strict=True):
        if token.type == "table_open":
            out.append([])
        elif token.type == "tr_open":
            out[-1].append([])
        elif token.type in ("th_open", "td_open"):
            out[-1][-1].append(shown(after))
    return out


def text_of(text):
    return "\n".join(shown(token) for token in markdown(text) if token.type == "inline")


def bullets(text, heading):
    return re.findall("^- (.*)$", text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0], flags=re.M)


def code_blocks(text, language="python"):
    return [token.content for token in markdown(text) if token.type == "fence" and token.info == language]


def percents(*values):
    return [f"{100 * value:.1f}" for value in values]


def with_interval(value, interval, sign=""):
    low, high = interval
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def difference(value, low, high):
    """As run.json has it: of accuracy, and of macro-F1 the same."""
    one = {"value": value, "low": low, "high": high}
    return {**one, "p": 0.01, "detectable": 0.06, "accuracy": one, "macro_f1": one}


def changed(run, **parts):
    """A copy of `run` with other values at some places, for example `metrics__target_test__n`."""
    new = copy.deepcopy(run)
    for path, value in parts.items():
        *way, last = path.split("__")
        place = vars(new)
        for key in way:
            place = place[key]
        place[last] = value
    return new


# what it says


def test_the_numbers_are_those_of_the_run(source_only):
    text = card(source_only, HUB, license="mit")
    metrics = source_only.metrics
    evidence, by_label, by_slice, rows = tables_of(text)
    expected = [["", "accuracy", "macro-F1", "source accuracy", "this model minus it, points of accuracy", "rows"]]
    for name, known in metrics["references"]["target_test"].items():
        gain = metrics["differences"]["target_test"][name]
        expected.append([known["name"], *percents(known["accuracy"], known["macro_f1"]), "",
                         with_interval(gain["value"], (gain["low"], gain["high"]), "+"), "40"])  # fmt: skip
    assert [row[0] for row in expected[1:]] == [
        "commonest label of the target (negative)",
        "labels by the target's own mix",
    ]
    for label, scores, name in (
        ("commonest training label", metrics["controls"]["majority"], "majority"),
        ("TF-IDF + logistic regression", metrics["controls"]["tfidf"], "tfidf"),
        ("this model (source-only: no target labels were used)", metrics, None),
    ):
        on_target = scores["target_test"]
        gain = metrics["differences"]["target_test"].get(name)
        expected.append([
            label + " (collapsed)" * bool(on_target.get("collapsed")),
            with_interval(on_target["accuracy"], on_target["intervals"]["accuracy"]),
            with_interval(on_target["macro_f1"], on_target["intervals"]["macro_f1"]),
            *percents(scores["source_test"]["accuracy"]),
            with_interval(gain["value"], (gain["low"], gain["high"]), "+") if gain else "",
            "40",
        ])  # fmt: skip
    assert evidence == expected
    assert by_label[1:] == [
        [label, *percents(part["precision"], part["recall"], part["f1"]), "20"]
        for label, part in metrics["target_test"]["per_class"].items()
    ]
    slices = metrics["target_test"]["slices"]
    assert len(slices) >= 2
    assert by_slice[1:] == [
        [part["slice"], with_interval(part["accuracy"], (part["low"], part["high"])), str(part["n"])] for part in slices
    ]
    worst = min(slices, key=lambda part: part["accuracy"])
    assert f"Worst: {worst['slice']}, {percents(worst['accuracy'])[0]} % of {worst['n']} rows right." in text_of(text)
    assert rows[1:] == [
        [name.replace("_", " "), str(count), ", ".join(f"{k} {n}" for k, n in source_only.data["labels"][name].items())]
        for name, count in source_only.data["rows"].items()
    ]


def test_the_opening_and_the_circumstances(source_only, few_shot):
    text = text_of(card(source_only, HUB))
    assert "This model gives a text one of 2 labels: negative, positive." in text
    assert (f"It was made from {HUB.name} with the method full, trained on labelled texts of source and tested on "
            "target, of which training saw no labels.") in text  # fmt: skip
    assert f"\n{verdict(source_only)}\n" in text
    assert "of which training saw 4 target labels a class." in text_of(card(few_shot, HUB))
    one = changed(few_shot, arguments__target_shots="1")
    assert "of which training saw 1 target label a class." in text_of(card(one, HUB))
    every = changed(few_shot, arguments__target_shots="all")
    assert "of which training saw all target labels outside the test rows." in text_of(card(every, HUB))
    assert code_blocks(card(source_only, HUB), "bash") == [source_only.command + "\n"]
    facts = bullets(card(source_only, HUB), "How to make it again")
    for fact in (
        "Domains: source 60, target 40",
        f"Data fingerprint (SHA-256 of every row's split, domain, label and text): `{source_only.data['fingerprint']}`",
        "Duplicate texts: 0 in the source, 0 in the target; test texts removed from training: 0",
        f"Base model: {HUB.name}, revision `{COMMIT}`, model.safetensors SHA-256 "
        f"`{source_only.weights_sha256['model.safetensors']}`",
        f"Trained: {source_only.parameters:,} of {source_only.parameters:,} parameters",
        f"Seed 42, fp32, 1 process on {source_only.hardware}, {source_only.created[:10]}".replace("_", "\\_"),
        "Versions: " + ", ".join(f"{name} {version}" for name, version in source_only.versions.items()),
        "Seconds: " + ", ".join(f"{stage} {n:.1f}" for stage, n in source_only.seconds.items()),
    ):
        assert fact in facts
    unknown = "Base model: tiny-base, no commit on the Hub was confirmed to hold these weights, model"
    assert any(fact.startswith(unknown) for fact in bullets(card(source_only), "How to make it again"))


def test_without_a_target(source_only):
    run = copy.deepcopy(source_only)
    run.data["target"] = run.arguments["target"] = None
    del run.data["domains"]["target"]
    for part in (run.metrics, run.metrics["differences"], run.metrics["references"], *run.metrics["controls"].values()):
        del part["target_test"]
    text = card(run, HUB)
    assert "labelled texts of source and tested on held-out texts of the same." in text_of(text)
    assert tables_of(text)[0][0] == ["", "accuracy", "macro-F1", "this model minus it, points of accuracy", "rows"]
    assert tables_of(text)[0][5][0].startswith("this model (source-only: no target labels were used)")
    assert {len(row) for row in tables_of(text)[0]} == {5}
    assert "It was tested on source, and on no other domain." in bullets(text, "Limits")
    assert len(ModelCard(text).data.eval_results) == 3
    assert "domain-adaptation" not in ModelCard(text).data.tags


@pytest.mark.parametrize(
    ("gain", "words", "limit"),
    [
        ((0.05, 0.01, 0.09), "full helps against", None),
        ((-0.05, -0.09, -0.01), "full hurts against",
         "TF-IDF + logistic regression is better on these rows, by accuracy."),
        ((0.02, 0.0, 0.05), "full shows no difference against", "No gain over TF-IDF + logistic regression is shown on "
         "40 rows: the interval of the difference holds 0."),
        ((-0.02, -0.05, 0.0), "full shows no difference against", "No gain over TF-IDF + logistic regression is shown "
         "on 40 rows: the interval of the difference holds 0."),
    ],
)  # fmt: skip
def test_the_verdict_and_its_limit(source_only, gain, words, limit):
    run = changed(source_only, metrics__differences__target_test__tfidf=difference(*gain))
    for name in ("commonest", "mix"):
        run.metrics["differences"]["target_test"][name] = difference(0.1, 0.05, 0.15)
    text = card(run, HUB)
    interval = with_interval(gain[0], gain[1:], "+")
    assert f"{words} TF-IDF + logistic regression: {interval} points of accuracy on 40 rows." in text
    assert [line for line in bullets(text, "Limits") if "TF-IDF" in line] == ([limit] if limit else [])
    assert tables_of(text)[0][4][4] == interval


# source-only training and other runs


def test_source_only_training_is_a_row_or_said_to_be_missing(source_only, few_shot):
    def names(run, *others):
        return [row["name"] for row in evidence_rows(run, others)][4:]

    this = "this model (source-only: no target labels were used)"
    no_labels = "source-only: full on source, no target labels"
    assert names(source_only) == [this]
    assert MISSING not in card(source_only)
    assert names(few_shot) == ["this model"]
    assert MISSING in text_of(card(few_shot))
    assert names(few_shot, source_only) == [no_labels, "this model"]
    assert MISSING not in card(few_shot, others=[source_only])
    shots = "another run: full on source, with 4 target labels a class"
    assert names(few_shot, few_shot) == [shots, "this model"]
    assert MISSING in text_of(card(few_shot, others=[few_shot]))
    assert names(source_only, few_shot) == [shots, this]
    assert tables_of(card(few_shot, others=[source_only]))[0][5][0].startswith(no_labels)


def test_others_are_compared_on_the_common_rows(source_only, few_shot, tmp_path):
    theirs = pd.read_parquet(source_only.folder / "predictions.parquet").sample(frac=1, random_state=0)
    theirs.loc[theirs["row"] % 3 == 0, "prediction"] = "positive"  # so that it differs from this run
    theirs.to_parquet(tmp_path / "predictions.parquet")
    other = replace(source_only, folder=tmp_path)
    row = evidence_rows(few_shot, [other])[4]
    ours = pd.read_parquet(few_shot.folder / "predictions.parquet").query("set == 'target_test'").set_index("row")
    same = theirs.query("set == 'target_test'").set_index("row").loc[ours.index]
    right, right_other = ours["prediction"] == ours["label"], same["prediction"] == same["label"]
    assert row["n"] == len(ours) == 32
    assert row["accuracy"] == pytest.approx(right_other.mean())
    assert row["difference"]["value"] == pytest.approx(right.mean() - right_other.mean())
    assert row["difference"]["value"] != 0
    assert row["difference"]["low"] <= row["difference"]["value"] <= row["difference"]["high"]
    low, high = row["accuracy_interval"]
    assert low < row["accuracy"] < high
    f1 = [2 * ((same.prediction == name) & (same.label == name)).sum() / ((same.prediction == name).sum() +
          (same.label == name).sum()) for name in ("negative", "positive")]  # fmt: skip
    assert row["macro_f1"] == pytest.approx(np.mean(f1))
    assert row["source_accuracy"] is None  # 12 rows in common are too few
    cells = tables_of(card(few_shot, others=[other]))[0][5]
    gain = row["difference"]
    assert cells[1:] == [with_interval(row["accuracy"], (low, high)),
                         with_interval(row["macro_f1"], row["macro_f1_interval"]), "",
                         with_interval(gain["value"], (gain["low"], gain["high"]), "+"), "32"]  # fmt: skip


def test_others_on_other_rows_are_refused(source_only, few_shot, tmp_path):
    def refused(rows, message):
        rows.to_parquet(tmp_path / "predictions.parquet")
        with pytest.raises(UserError, match=message) as error:
            render_card(few_shot, repo_id="me/x", base=LOCAL, has_adapter=False, license=None,
                        others=[replace(source_only, folder=tmp_path)])  # fmt: skip
        assert "\n" not in str(error.value)

    rows = pd.read_parquet(source_only.folder / "predictions.parquet")
    targets = rows["set"] == "target_test"
    mine = pd.read_parquet(few_shot.folder / "predictions.parquet").query("set == 'target_test'")
    shared = targets & rows["row"].isin(mine["row"])
    flipped = rows.assign(label=rows["label"].where(~shared, "positive"))
    refused(flipped, r"16 of the \d+ test rows that it shares with .* have another label there; give a run on the same")
    few = rows[~targets | rows["row"].isin(mine["row"].iloc[:19])]
    refused(few, "shares 19 target test rows with .*, at least 20 are needed; give a run on the same data")
    refused(rows.assign(domain="elsewhere"), "shares 0 target test rows")
    refused(pd.concat([rows, rows]), "shares 0 target test rows")  # rows that can't be told apart
    (tmp_path / "predictions.parquet").unlink()
    with pytest.raises(UserError, match=r"has no readable predictions\.parquet; make the run again"):
        evidence_rows(few_shot, [replace(source_only, folder=tmp_path)])


# forgetting and calibration


def test_what_was_forgotten(source_only, few_shot):
    after = few_shot.metrics["source_test"]
    before = few_shot.metrics["source_test_before"]
    says = f"{with_interval(after['accuracy'], after['intervals']['accuracy'])} %"
    text = text_of(card(few_shot))
    was = with_interval(before["accuracy"], before["intervals"]["accuracy"])
    assert f"Accuracy on the source's test rows was {was} % before training and is {says} after it (12 rows)." in text
    assert "head is new" not in text
    target, source = percents(few_shot.metrics["target_test"]["calibration_error"], after["calibration_error"])
    assert f"confidence and accuracy: {target} % on target, {source} % on the source." in text
    new = text_of(card(source_only))
    after = source_only.metrics["source_test"]
    says = f"{with_interval(after['accuracy'], after['intervals']['accuracy'])} % (12 rows)."
    assert "The head is new, so there was no source score before training." in new
    assert f"After training, accuracy on the source's test rows is {says}" in new
    untested = copy.deepcopy(source_only)
    for part in (untested.metrics, *untested.metrics["controls"].values()):
        del part["source_test"]
    text = card(untested)
    assert "No source rows were held out, so nothing is known of the source after training." in text_of(text)
    assert "on the source." not in text_of(text)
    assert [row[3] for row in tables_of(text)[0][1:]] == [""] * 5
    assert "It was tested on target, and on no other domain." in bullets(text, "Limits")


# how to use it


def use(block, repo_id, folder, base_folder):
    """Run a code block of the card on local folders; returns its `classify`."""
    assert f'"{repo_id}"' in block
    block = block.replace(f'"{repo_id}"', f'"{folder}"').replace(f'"{LOCAL.name}"', f'"{base_folder}"')
    names = {}
    exec(compile(block, "card", "exec"), names)
    return names["classify"]


def gives_the_recorded_logits(classify, run):
    rows = [json.loads(line) for line in (run.folder / "recorded.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 20
    assert np.ptp([row["logits"] for row in rows], axis=0).min() > 0.005  # tiny models react little
    longest = max(len(classify.tokenizer(row["text"])["input_ids"]) for row in rows)
    if "prompt" not in run.method:
        assert longest > longest_text(run)  # otherwise nothing is cut, and it would not show
    for row in rows:
        scores = {one["label"]: one["score"] for one in classify(row["text"], top_k=None, function_to_apply="none")}
        assert sorted(scores) == sorted(run.label_names)
        np.testing.assert_allclose([scores[label] for label in run.label_names], row["logits"], atol=1e-5)


def test_the_merged_model_is_used_as_the_card_says(source_only, capsys):
    (block,) = code_blocks(card(source_only))
    assert len(block.strip().splitlines()) == 4
    gives_the_recorded_logits(use(block, "me/x", source_only.folder, None), source_only)
    assert re.search("'label': '(positive|negative)'", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["lora", "prompt", "three"])
def test_the_adapter_is_used_as_the_card_says(adapters, name, capsys):
    run, base_folder = adapters[name]
    merged, beside = code_blocks(card(run, has_adapter=True))
    gives_the_recorded_logits(use(merged, "me/x", run.folder, base_folder), run)
    gives_the_recorded_logits(use(beside, "me/x", run.folder, base_folder), run)
    (alone,) = code_blocks(card(run, files="adapter", has_adapter=True))
    assert "subfolder" not in alone
    gives_the_recorded_logits(use(alone, "me/x", run.folder / "adapter", base_folder), run)
    assert capsys.readouterr().out.count("'label': ") == 3


def test_the_adapter_names_its_base(adapters):
    run, _ = adapters["lora"]
    text = card(run, HUB, has_adapter=True)
    block = code_blocks(text)[1]
    assert block.count(f'revision="{COMMIT}"') == 2
    assert f'"{HUB.name}"' in block
    assert "was confirmed to hold" not in text
    assert (
        "No commit on the Hub was confirmed to hold these base weights: base must be a folder that holds them."
        in text_of(card(run, has_adapter=True))
    )
    assert not any("Peft" in block for block in code_blocks(card(run, HUB)))


def test_texts_are_cut_where_the_model_cuts(source_only, adapters):
    assert longest_text(source_only) == 40
    assert longest_text(adapters["prompt"][0]) == 64 - 8  # the tiny model's room, less the learned tokens
    assert "Texts longer than 56 tokens are cut; what follows is not read." in bullets(
        card(adapters["prompt"][0]), "Limits"
    )


# limits


ALWAYS = [
    "Texts longer than 40 tokens are cut; what follows is not read.",
    "It was tested on target, source, and on no other domain.",
    "It was trained once, with seed 42: the intervals cover the choice of test rows, not of seeds.",
]


@pytest.fixture(scope="module")
def sound(source_only):
    """A run that no number speaks against."""
    run = copy.deepcopy(source_only)
    part = {"precision": 0.9, "recall": 0.9, "f1": 0.9, "support": 200.0}
    for name in ("target_test", "source_test"):
        run.metrics[name] |= {
            "accuracy": 0.9,
            "n": 400,
            "calibration_error": 0.0499,
            "intervals": {"accuracy": [0.87, 0.93], "macro_f1": [0.87, 0.93]},
            "per_class": {"negative": dict(part), "positive": dict(part)},
            "slices": [{"slice": "length: short", "n": 100, "accuracy": 0.85, "low": 0.75, "high": 0.9}],
        }
    for name in ("tfidf", "majority", "commonest", "mix"):
        run.metrics["differences"]["target_test"][name] = difference(0.1, 0.05, 0.15)
    return run


LIMITS = {
    "no gain": (
        {"metrics__differences__target_test__tfidf": difference(0.01, 0.0, 0.02)},
        "No gain over TF-IDF + logistic regression is shown on 400 rows: the interval of the difference holds 0.",
    ),
    "tfidf is better": (
        {"metrics__differences__target_test__tfidf": difference(-0.1, -0.2, -0.001)},
        "TF-IDF + logistic regression is better on these rows, by accuracy.",
    ),
    "majority": (
        {"metrics__differences__target_test__majority": difference(0.1, 0.0, 0.2)},
        "By accuracy it is not shown to be better than what reads no text: commonest training label.",
    ),
    "constant": (
        {"metrics__differences__target_test__commonest": difference(-0.1, -0.2, -0.01),
         "metrics__differences__target_test__majority": difference(0.0, -0.1, 0.1)},
        "By accuracy it is worse than what reads no text: commonest label of the target (negative).",
    ),
    "small": (
        {"metrics__target_test__n": 199},
        "Only 199 test rows: accuracy may be anywhere from 87.0 % to 93.0 %.",
    ),
    "class": (
        {"metrics__target_test__per_class__positive": {"precision": 1, "recall": 0.7, "f1": 0.8, "support": 30.0}},
        "It is weakest on the label positive: F1 80.0 %, it finds 70.0 % of the 30 rows that have it.",
    ),
    "rare": (
        {"metrics__target_test__per_class__positive__support": 19.0},
        "Labels with fewer than 20 test rows, whose scores say little: positive (19).",
    ),
    "absent": (
        {"metrics__target_test__per_class__positive": {"precision": 0, "recall": 0, "f1": 0.0, "support": 0.0}},
        "Labels with fewer than 20 test rows, whose scores say little: positive (0).",
    ),
    "slice": (
        {"metrics__target_test__slices": [{"slice": "length: long", "n": 9, "accuracy": 0.6, "low": 0.5, "high": 0.8}]},
        "It is less accurate than overall on length: long: 60.0 [50.0, 80.0] %.",
    ),
    "target": (
        {"metrics__source_test__intervals": {"accuracy": [0.931, 0.99], "macro_f1": [0.9, 1]}},
        "It is less accurate on the target than on the source: the intervals do not overlap.",
    ),
    "calibration": (
        {"metrics__target_test__calibration_error": 0.05},
        "Its probabilities are off by 5.0 points on average (expected calibration error): use them to rank texts "
        "rather than as chances.",
    ),
    "conflicts": (
        {"data__conflicting_labels": 3},
        "The source's labels are not all consistent: 3 texts occur with different ones.",
    ),
}  # fmt: skip


def test_a_sound_run_has_only_the_limits_of_every_run(sound):
    assert limits(sound) == ALWAYS


@pytest.mark.parametrize("which", LIMITS)
def test_each_limit_is_said_when_its_number_says_so(sound, which):
    change, sentence = LIMITS[which]
    run = changed(sound, **change)
    assert set(limits(run)) - set(ALWAYS) == {sentence}
    assert sentence in bullets(card(run), "Limits")


# front matter


def test_what_happened_is_in_name_and_text_but_in_no_tag(few_shot):
    stopped = {"alignment_stopped": "after 40 steps: a+b [loss] is no number; lower --alignment_weight"}
    run = replace(few_shot, adaptation="coral", choices=few_shot.choices | stopped,
                  happened=["alignment stopped after 40 steps"])  # fmt: skip
    text = card(run)
    assert "**coral+full (alignment stopped after 40 steps) " in text
    assert "## What happened\n\n- The alignment was stopped after 40 steps: a+b \\[loss\\] is no number; " in text
    assert ModelCard(text).data.tags == ["hf_transfer", "coral", "full", "domain-adaptation", "text-classification"]
    assert "What happened" not in card(few_shot)


def test_the_front_matter_is_valid_and_survives_a_round_trip(few_shot, source_only):
    text = card(few_shot, HUB, license="mit", others=[source_only])
    raw = text.split("---\n")[1]
    assert "!!" not in raw
    assert yaml.safe_load(raw)["base_model"] == HUB.name
    read = ModelCard(text)
    assert str(read) == text
    data = read.data
    assert (data.library_name, data.pipeline_tag, data.license, data.base_model) == (
        "transformers", "text-classification", "mit", HUB.name)  # fmt: skip
    assert data.tags == ["hf_transfer", "full", "domain-adaptation", "text-classification"]
    assert data.metrics == ["accuracy", "f1"]
    assert data.model_name == "x"
    assert len(data.eval_results) == 6
    for result in data.eval_results:
        scores = few_shot.metrics[result.dataset_split]
        key = {"accuracy": "accuracy", "f1": "macro_f1", "calibration_error": "calibration_error"}[result.metric_type]
        assert result.metric_value == round(scores[key], 4)
        assert result.metric_args["n"] == scores["n"]
        if key != "calibration_error":
            assert result.metric_args["confidence_interval_95"] == [round(b, 4) for b in scores["intervals"][key]]
        assert result.dataset_args == {"fingerprint": few_shot.data["fingerprint"]}
        assert result.dataset_name == ("target" if result.dataset_split == "target_test" else "source")
        assert re.fullmatch(r"(?:[\w-]+/)?[\w.-]+", result.dataset_type)  # the Hub's own rule
        assert result.task_type == "text-classification"
    assert {(result.dataset_split, result.metric_type) for result in data.eval_results} == {
        (which, kind) for which in ("target_test", "source_test") for kind in ("accuracy", "f1", "calibration_error")
    }


def test_only_what_is_known_is_in_the_front_matter(adapters):
    run, _ = adapters["lora"]
    data = yaml.safe_load(card(run, files="adapter", has_adapter=True).split("---\n")[1])
    assert {"license", "base_model"}.isdisjoint(data)
    assert data["library_name"] == "peft"


def test_licences(source_only):
    text = card(source_only)
    assert bullets(text, "Licence") == ["This model: not stated", "Base model: not stated", "Training data: not stated"]
    text = card(source_only, HUB, license="mit")
    assert bullets(text, "Licence")[:2] == ["This model: mit", "Base model: apache-2.0"]
    where, gadgets = "hf_transfer/corpus", "hf_transfer/corpus/gadgets.labeled.jsonl"
    embedded = {"arguments__source": [f"{where}/hotels.labeled.jsonl", f"{where}/films.labeled.jsonl"]}
    own = "Training data: CC0 1.0 (the reviews that hf_transfer ships)"
    assert own in card(changed(source_only, **embedded, arguments__target=gadgets))
    assert own in card(changed(source_only, **embedded, arguments__target=None))
    for source, target in (
        ([f"{where}/hotels.labeled.jsonl", "more.csv"], gadgets),
        ([f"{where}/hotels.labeled.jsonl"], "gadgets.labeled.jsonl"),
        (["corpus/hotels.labeled.jsonl"], gadgets),
        ([f"{where}/hotels.labeled.jsonl.csv"], gadgets),
    ):
        other = changed(source_only, arguments__source=source, arguments__target=target)
        assert bullets(card(other), "Licence")[2] == "Training data: not stated"


# names that would break it


HOSTILE = [
    "a|b",
    "a\\|b\\",
    "<b>x</b><script>alert(1)</script>",
    "{{ 7 * 7 }} {% raw %} {# gone #}",
    "# heading #",
    "one\n---\ntwo\n\n- three",
    "---",
    "\"it's\": 'a' # no",
    "``` ` ~~~",
    "x\n```\n<b>y",
    "[link](https://example.org) ![image](x.png) <https://example.org>",
    "&lt;i&gt; &#124;",
    "*a* _b_ __c__ ~~d~~ $e$",
    "1. x",
    "!!python/tuple [1]",
    "null",
    "line\u2028separator\x85 and \u202e bell \x07",
    "naïve 日本語 🙂",
]


def renamed(run, labels, domains):
    """A copy of `run` with other names of labels and domains; the one slice is its target's."""

    def keys(values, names):
        return {names[key]: value for key, value in values.items()}

    new = copy.deepcopy(run)
    new.label_names = [labels[name] for name in run.label_names]
    new.data["target"] = domains["target"]
    new.data["domains"] = keys(run.data["domains"], domains)
    new.data["labels"] = {name: keys(counts, labels) for name, counts in run.data["labels"].items()}
    for name in ("source_test", "target_test"):
        new.metrics[name]["per_class"] = keys(run.metrics[name]["per_class"], labels)
    part = run.metrics["target_test"]["slices"][0]
    new.metrics["target_test"]["slices"] = [{**part, "slice": f"domain: {domains['target']}", "high": 0.0}]
    return new


@pytest.mark.parametrize("name", HOSTILE)
def test_names_break_nothing(adapters, name):
    run = adapters["lora"][0]
    plain = renamed(run, {"positive": "good", "negative": "bad"}, {"source": "here", "target": "there"})
    label, domain = name, f"{name} (target)"
    run = renamed(run, {"positive": label, "negative": "bad"}, {"source": name, "target": domain})
    run.command = f"hf-transfer run finetune --source '{name}'"
    text, like = card(run, has_adapter=True), card(plain, has_adapter=True)
    tokens = markdown(text)
    kinds = [token.type for token in tokens]
    assert kinds == [token.type for token in markdown(like)]
    assert not any(child.type in ("html_inline", "link_open", "image", "em_open", "s_open")
                   for token in tokens for child in token.children or [])  # fmt: skip
    assert [len(row) for table in tables_of(text) for row in table] == [
        len(row) for table in tables_of(like) for row in table]  # fmt: skip
    _, by_label, by_slice, rows = tables_of(text)
    assert [row[0] for row in by_label[1:]] == ["bad", one_line(label)]
    assert by_slice[1][0] == f"domain: {one_line(domain)}"
    counts = run.data["labels"]["train"]
    assert rows[1][2] == ", ".join(f"{one_line(key)} {count}" for key, count in counts.items())
    assert label in counts
    assert f"trained on labelled texts of {one_line(name)} and tested on {one_line(domain)}, of" in text_of(text)
    assert code_blocks(text, "bash") == [run.command + "\n"]
    labels = next(line for line in code_blocks(text)[1].splitlines() if line.startswith("base, labels = "))
    names = {}
    exec(labels, names)
    assert names["labels"] == ["bad", label]
    read = ModelCard(text)
    assert [result.dataset_name for result in read.data.eval_results[::3]] == [one_line(domain), one_line(name)]
    assert str(read) == text


def test_one_line():
    assert one_line("a\n b\t\u2028c") == "a b c"
    assert one_line("x\u202ey\x00") == "xy"
    assert one_line(" \u200b\n") == "(blank)"


def test_many_labels_are_cut_short(source_only):
    run = changed(source_only, label_names=[f"label {i}" for i in range(12)])
    assert "one of 12 labels: label 0, " in text_of(card(run))
    assert "label 9 and 2 more." in text_of(card(run))


def test_the_same_run_gives_the_same_card(few_shot, source_only):
    texts = {card(few_shot, HUB, license="mit", others=[source_only]) for _ in range(2)}
    assert len(texts) == 1
    assert str(few_shot.folder) not in next(iter(texts)).replace(few_shot.command, "")
