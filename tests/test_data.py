"""Splits: aligned labels, shots, no text on both sides of a split, and the same answer in whatever order rows come."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from conftest import write_table

from hf_transfer.arguments import DataArguments
from hf_transfer.data import fingerprint, load_data, summary
from hf_transfer.errors import DataError
from hf_transfer.texts import normalise

WORDS = ["amber", "brick", "cedar", "delta", "ember", "flint", "grove", "heath", "inlet", "jetty", "knoll", "larch",
         "maple", "north", "ocean", "pearl"]  # fmt: skip
PARTS = ("train", "validation", "source_test", "target_test")


def make_rows(prefix, count, labels=("neg", "pos"), **more):
    """Distinct texts, labels in turn."""
    return [
        {
            "text": f"{prefix} {WORDS[i % 16]} {WORDS[i // 16 % 16]} {WORDS[i // 256]}.",
            "label": labels[i % len(labels)],
        }
        | more
        for i in range(count)
    ]


class Tables:
    """Write tables and load them."""

    def __init__(self, folder):
        self.folder = folder

    def write(self, name, rows):
        return str(write_table(self.folder / f"{name}.jsonl", rows))

    def load(self, source, target=None, seed=1, **options):
        sources = source if isinstance(source, dict) else {"source": source}
        files = [self.write(name, rows) for name, rows in sources.items()]
        if target is not None:
            options["target"] = self.write("target", target)
        return load_data(DataArguments(source=files, **options), seed)


@pytest.fixture
def tables_in(tmp_path):
    return Tables(tmp_path)


def frame(domains, name):
    rows = getattr(domains, name).to_pandas()
    return rows.assign(name=[domains.label_names[int(i)] for i in rows["label"]])


def content(domains):
    """What is in each part, whatever the order."""
    return {
        name: sorted(zip(*(frame(domains, name)[c] for c in ("text", "name", "domain")), strict=True)) for name in PARTS
    }


def sizes(domains):
    return {name: len(getattr(domains, name)) for name in PARTS}


def keys(domains, *names):
    return {normalise(text) for name in names for text in getattr(domains, name)["text"]}


def parts_of(domains):
    """Each normalised text -> the parts it is in, source and target test as one."""
    where = {}
    for name in PARTS:
        for key in keys(domains, name):
            where.setdefault(key, set()).add(name.removeprefix("source_").removeprefix("target_"))
    return where


def shuffled(rows, seed=0):
    return random.Random(seed).sample(rows, len(rows))


# labels


def test_labels_are_aligned_by_name(tables_in):
    """The target writes 1.0 for the source's "1", and starts with the other label."""
    source = make_rows("hotel", 80, labels=("0", "1", "10", "2"))
    target = [{**row, "label": float(row["label"])} for row in make_rows("film", 44, labels=("10", "2", "1", "0"))]
    domains = tables_in.load(source, target)
    assert domains.label_names == ["0", "1", "2", "10"]
    truth = {row["text"]: str(int(row["label"])) for row in source + target}
    for name in PARTS:
        rows = frame(domains, name)
        assert [truth[text] for text in rows["text"]] == list(rows["name"])
    assert sizes(domains) == {"train": 56, "validation": 8, "source_test": 16, "target_test": 44}


def test_text_labels_are_aligned_by_name(tables_in):
    domains = tables_in.load(
        make_rows("hotel", 80, labels=("positive", "negative")), make_rows("film", 40, labels=("negative", "positive"))
    )
    assert domains.label_names == ["negative", "positive"]
    target = frame(domains, "target_test").sort_values("row")
    assert list(target["label"]) == [0, 1] * 20


@pytest.mark.parametrize("spelling", [("False", "True"), (False, True)])
def test_truth_values_are_aligned(tables_in, spelling):
    domains = tables_in.load(make_rows("hotel", 80, labels=("true", "false")), make_rows("film", 40, labels=spelling))
    assert domains.label_names == ["false", "true"]
    assert list(frame(domains, "target_test").sort_values("row")["label"]) == [0, 1] * 20


def test_unknown_target_labels_are_refused(tables_in):
    with pytest.raises(DataError, match=r"labels that the source never had: Pos \(did you mean 'pos'\?\)"):
        tables_in.load(make_rows("hotel", 80), make_rows("film", 40, labels=("neg", "Pos")))


def test_relabelled(tables_in):
    domains = tables_in.load(make_rows("hotel", 90, labels=("a", "b", "c")), make_rows("film", 30, labels=("c", "b")))
    turned = domains.relabelled(["c", "a", "b"])
    assert turned.label_names == ["c", "a", "b"]
    assert content(turned) == content(domains)
    assert set(turned.target_test["label"]) == {0, 2}
    assert set(domains.target_test["label"]) == {1, 2}
    assert domains.relabelled(["a", "b", "c"]) is domains


def test_relabelled_rows_keep_their_numbers(tables_in):
    """The same rows in another order are not those that an earlier call relabelled."""
    rows = make_rows("hotel", 60)
    for table in (rows, rows[::-1]):
        part = tables_in.load(table, make_rows("film", 30)).relabelled(["pos", "neg"]).train
        assert [table[i]["text"] for i in part["row"]] == part["text"][:]


# shots


def test_no_shots(tables_in):
    domains = tables_in.load(make_rows("hotel", 200), target := make_rows("film", 60), target_shots="0")
    assert sizes(domains) == {"train": 140, "validation": 20, "source_test": 40, "target_test": 60}
    assert sorted(domains.target_test["text"]) == sorted(row["text"] for row in target)
    for name in ("train", "validation", "source_test"):
        assert set(getattr(domains, name)["domain"]) == {"source"}
    assert set(domains.test["domain"]) == {"target"}


@pytest.mark.parametrize("k", [1, 5, 20])
def test_k_shots(tables_in, k):
    target = make_rows("film", 60, labels=("neg", "pos"))
    target += [{"text": row["text"].upper().replace(".", "!!"), "label": row["label"]} for row in target[:20]]
    domains = tables_in.load(make_rows("hotel", 200), target, target_shots=str(k))
    train = frame(domains, "train")
    shots = train[train["domain"] == "target"]
    assert Counter(shots["name"]) == {"neg": k, "pos": k}
    assert "target" not in set(domains.validation["domain"]) | set(domains.source_test["domain"])
    chosen = {normalise(text) for text in shots["text"]}
    assert len(chosen) == 2 * k
    assert keys(domains, "target_test") == {normalise(row["text"]) for row in target} - chosen
    # duplicates of what is tested stay with it
    assert len(domains.target_test) == sum(normalise(row["text"]) not in chosen for row in target)


def test_k_shots_with_contradicting_duplicates(tables_in):
    """A text with both labels is one shot at most, of one label, in whatever order the rows come."""
    target = make_rows("film", 24)
    turned = {"neg": "pos", "pos": "neg"}
    target += [{"text": row["text"].upper(), "label": turned[row["label"]]} for row in target[:12]]
    first = tables_in.load(make_rows("hotel", 200), target, target_shots="5")
    train = frame(first, "train")
    assert Counter(train[train["domain"] == "target"]["name"]) == {"neg": 5, "pos": 5}
    assert len({normalise(text) for text in train[train["domain"] == "target"]["text"]}) == 10
    assert not keys(first, "train", "validation") & keys(first, "target_test")
    assert content(tables_in.load(make_rows("hotel", 200), shuffled(target), target_shots="5")) == content(first)


def test_too_many_shots_are_refused(tables_in):
    with pytest.raises(DataError, match=r"--target_shots 30: target target has only 30 distinct texts labelled"):
        tables_in.load(make_rows("hotel", 200), make_rows("film", 60), target_shots="30")
    assert tables_in.load(make_rows("hotel", 200), make_rows("film", 60), target_shots="29")
    one_class = [{**row, "split": "train" if row["label"] == "neg" else "test"} for row in make_rows("film", 60)]
    with pytest.raises(DataError, match=r"has only 0 distinct texts labelled pos"):
        tables_in.load(make_rows("hotel", 200), one_class, target_shots="3")


def test_all_shots(tables_in):
    domains = tables_in.load(make_rows("hotel", 200), make_rows("film", 100), target_shots="all")
    found = {name: Counter(getattr(domains, name)["domain"]) for name in PARTS}
    assert found == {
        "train": {"source": 140, "target": 70},
        "validation": {"source": 20, "target": 10},
        "source_test": {"source": 40},
        "target_test": {"target": 20},
    }
    assert Counter(frame(domains, "target_test")["name"]) == {"neg": 10, "pos": 10}


def test_all_shots_keep_some_for_testing_without_a_test_fraction(tables_in):
    domains = tables_in.load(make_rows("hotel", 200), make_rows("film", 100), target_shots="all", test_fraction=0.0)
    assert sizes(domains) == {"train": 250, "validation": 30, "source_test": 0, "target_test": 20}


# the split column


def with_splits(rows, *counts):
    """Give the first rows to train, the next to validation, the rest to test."""
    train, validation = counts
    names = ["train"] * train + ["validation"] * validation + ["test"] * (len(rows) - train - validation)
    return [{**row, "split": name} for row, name in zip(rows, names, strict=True)]


def texts(rows, name):
    return sorted(row["text"] for row in rows if row["split"] == name)


def test_split_column_of_the_source(tables_in):
    source = with_splits(make_rows("hotel", 100), 60, 10)
    domains = tables_in.load(source, make_rows("film", 40))
    for name, part in (("train", "train"), ("validation", "validation"), ("test", "source_test")):
        assert sorted(getattr(domains, part)["text"]) == texts(source, name)
    assert len(domains.target_test) == 40


def test_a_source_of_test_rows_alone_is_refused(tables_in):
    with pytest.raises(DataError, match="too few training rows"):
        tables_in.load(with_splits(make_rows("hotel", 100), 0, 0), make_rows("film", 40))


def test_validation_is_taken_from_train_if_the_split_column_has_none(tables_in):
    source = with_splits(make_rows("hotel", 100), 60, 0)
    domains = tables_in.load(source, make_rows("film", 40))
    assert sizes(domains) == {"train": 54, "validation": 6, "source_test": 40, "target_test": 40}
    assert sorted([*domains.train["text"], *domains.validation["text"]]) == texts(source, "train")
    without = tables_in.load(source, make_rows("film", 40), validation_fraction=0.0)
    assert sizes(without) == {"train": 60, "validation": 0, "source_test": 40, "target_test": 40}


def test_split_column_in_one_of_two_sources(tables_in):
    """What one source says of its rows holds, though the other says nothing."""
    hotels, films = with_splits(make_rows("hotel", 100), 60, 10), make_rows("film", 100)
    domains = tables_in.load({"hotels": hotels, "films": films}, make_rows("mug", 40))
    test = frame(domains, "source_test")
    assert sorted(test[test["domain"] == "hotels"]["text"]) == texts(hotels, "test")
    assert Counter(test["domain"]) == {"hotels": 30, "films": 20}
    assert Counter(domains.validation["domain"]) == {"hotels": 10, "films": 10}
    assert Counter(domains.train["domain"]) == {"hotels": 60, "films": 70}


@pytest.mark.parametrize(("shots", "train", "validation"), [("0", 0, 0), ("3", 6, 0), ("all", 50, 10)])
def test_split_column_of_the_target(tables_in, shots, train, validation):
    target = with_splits(make_rows("film", 100), 50, 10)
    domains = tables_in.load(make_rows("hotel", 200), target, target_shots=shots)
    assert sorted(domains.target_test["text"]) == texts(target, "test")
    assert len(domains.target_test) == 40
    shots_in = [t for t, d in zip(domains.train["text"], domains.train["domain"], strict=True) if d == "target"]
    assert len(shots_in) == train
    assert set(shots_in) <= set(texts(target, "train") + texts(target, "validation"))
    assert Counter(domains.validation["domain"])["target"] == validation


@pytest.mark.parametrize("shots", ["10", "all"])
def test_target_test_texts_repeated_in_its_train_split_are_left_out(tables_in, shots):
    """The split column itself leaks: 20 training rows are test texts in capitals."""
    target = with_splits(make_rows("film", 80), 50, 0)
    target += [{**row, "text": row["text"].upper(), "split": "train"} for row in target[-20:]]
    domains = tables_in.load(make_rows("hotel", 200), target, target_shots=shots)
    assert not keys(domains, "train", "validation") & keys(domains, "target_test")
    used = pd.concat([frame(domains, "train"), frame(domains, "validation")])
    count = Counter(used[used["domain"] == "target"]["name"])
    assert count == ({"neg": 10, "pos": 10} if shots == "10" else {"neg": 25, "pos": 25})
    assert len(domains.target_test) == 30
    if shots == "all":
        assert domains.facts["leaks_removed"] == 20
        assert "LEAK: 20 rows are also target test rows; left out of training" in domains.notes


def test_source_test_texts_repeated_in_its_train_split_are_left_out(tables_in):
    source = with_splits(make_rows("hotel", 100), 60, 10)
    source += [{**row, "text": row["text"].upper(), "split": "train"} for row in source[-20:]]
    domains = tables_in.load(source, make_rows("film", 40))
    assert sizes(domains) == {"train": 60, "validation": 10, "source_test": 30, "target_test": 40}
    assert "left out 20 rows whose text is also in another split" in domains.notes
    assert domains.facts["leaks_removed"] == 0


# determinism


@pytest.mark.parametrize("shots", ["0", "4", "all"])
def test_splits_depend_on_rows_and_seed_only(tables_in, shots):
    source, target = make_rows("hotel", 200), make_rows("film", 100)
    source += [{"text": row["text"].upper(), "label": "neg"} for row in source[:30]]  # some contradict
    first = tables_in.load(source, target, target_shots=shots)
    again = tables_in.load(source, target, target_shots=shots)
    moved = tables_in.load(shuffled(source), shuffled(target), target_shots=shots)
    assert content(first) == content(again) == content(moved)
    assert first.facts["fingerprint"] == again.facts["fingerprint"] == moved.facts["fingerprint"]
    other = tables_in.load(source, target, seed=2, target_shots=shots)
    assert content(other)["train"] != content(first)["train"]
    assert other.facts["fingerprint"] != first.facts["fingerprint"]


def test_splits_are_stratified(tables_in):
    source = make_rows("hotel", 400, labels=("a", "a", "a", "a", "a", "a", "b", "b", "b", "c"))
    domains = tables_in.load(source, make_rows("film", 40, labels=("a", "b")))
    for name, share in (("train", 0.7), ("validation", 0.1), ("source_test", 0.2)):
        counts = Counter(frame(domains, name)["name"])
        assert counts == {"a": round(240 * share), "b": round(120 * share), "c": round(40 * share)}


def test_row_is_the_position_in_the_file(tables_in):
    source, target = make_rows("hotel", 200), make_rows("film", 60)
    domains = tables_in.load(source, target, target_shots="5", max_rows=150)
    for name, rows in (("train", source), ("source_test", source), ("target_test", target)):
        part = frame(domains, name)
        part = part[part["domain"] == ("target" if rows is target else "source")]
        assert len(part) >= 30
        assert [rows[i]["text"] for i in part["row"]] == list(part["text"])


# the same text on both sides


def test_normalise():
    assert normalise("  It's GREAT -- really!\n") == normalise("it s great, really") == "it s great really"
    assert normalise("Straße_7") == "strasse 7"
    assert normalise(" ?! ") == "?!"
    assert normalise("so good") != normalise("sogood")


@pytest.mark.parametrize("shots", ["0", "4", "all"])
def test_no_text_is_in_two_splits(tables_in, shots):
    source, target = make_rows("hotel", 150), make_rows("film", 100)
    source += [{"text": f" {row['text'].upper().replace(' ', ' - ')}!", "label": row["label"]} for row in source[:75]]
    target += [{"text": f"{row['text'].title()}?", "label": row["label"]} for row in target[:50]]
    source += make_rows("shared", 30)
    target += [{**row, "text": row["text"].upper()} for row in make_rows("shared", 30)]
    assert len({normalise(row["text"]) for row in source + target}) == 280
    domains = tables_in.load(source, target, target_shots=shots)
    where = parts_of(domains)
    assert len(where) == 280
    assert {key: parts for key, parts in where.items() if len(parts) > 1} == {}
    assert domains.facts["duplicates"] == {"source": 75, "target": 50}


def test_a_shot_that_the_source_knows_too_stays_a_shot(tables_in):
    """Target rows decide over source rows: whatever the source would do with those texts, the shots are complete."""
    target = make_rows("film", 40)
    source = make_rows("hotel", 200) + [{**row, "text": row["text"].upper()} for row in target]
    domains = tables_in.load(source, target, target_shots="10")
    train = frame(domains, "train")
    assert Counter(train[train["domain"] == "target"]["name"]) == {"neg": 10, "pos": 10}
    assert len(domains.target_test) == 20
    shots = {normalise(text) for text in train[train["domain"] == "target"]["text"]}
    assert not shots & keys(domains, "source_test", "validation")


def test_leaks_are_removed_and_counted(tables_in):
    source, target = make_rows("hotel", 200), make_rows("film", 60)
    leaked = [{"text": f"{row['text'].upper()} :-)", "label": row["label"]} for row in target[:40]]
    clean, dirty = tables_in.load(source, target), tables_in.load(source + leaked, target)
    assert clean.facts["leaks_removed"] == 0
    assert not [note for note in clean.notes if "LEAK" in note]
    assert not keys(dirty, "train", "validation") & keys(dirty, "target_test")
    # leaked rows that fell into the source's own test are no leak
    stayed = sum(text.endswith(":-)") for text in dirty.source_test["text"])
    assert dirty.facts["leaks_removed"] + stayed == 40
    assert 25 <= dirty.facts["leaks_removed"] < 40
    assert f"LEAK: {dirty.facts['leaks_removed']} rows are also target test rows; left out of training" in dirty.notes
    assert f"into training: {dirty.facts['leaks_removed']} (removed)" in summary(dirty, {})
    assert len(dirty.target_test) == 60


def test_rewritten_texts_are_known_by_what_they_were_and_by_what_they_are(tables_in):
    source, target = make_rows("hotel", 200), make_rows("film", 60)
    rewritten = [{**row, "text": f"rewritten {row['text']}", "rewritten_from": row["text"]} for row in source[:100]]
    plain = tables_in.load(source, target)
    both = tables_in.load([*rewritten, *source[100:]], target)
    assert sizes(both) == sizes(plain)
    assert both.facts["duplicates"] == {"source": 0, "target": 0}, "rows that are as they were are not one text"
    assert keys(both, "source_test") - keys(plain, "source_test"), "else none of them was rewritten"
    copies = [{**row, "text": tested["text"].upper()} for row, tested in zip(rewritten[:30], target, strict=False)]
    leaky = tables_in.load([*copies, *rewritten[30:], *source[100:]], target)
    assert not keys(leaky, "train", "validation") & keys(leaky, "target_test")
    assert 20 <= leaky.facts["leaks_removed"] <= 30


def test_rows_that_nobody_uses_may_be_the_source(tables_in):
    target = with_splits(make_rows("hotel", 100), 60, 0)
    source = [{name: value for name, value in row.items() if name != "split"} for row in target[:60]]
    domains = tables_in.load(source, target)
    assert len(domains.target_test) == 40
    with pytest.raises(DataError, match="60 of 60 source rows are also target rows"):
        tables_in.load(source, target, target_shots="all")


def test_the_same_table_twice_is_refused(tables_in):
    with pytest.raises(DataError, match="80 of 100 source rows are also target test rows"):
        tables_in.load(make_rows("hotel", 100), make_rows("hotel", 100))
    with pytest.raises(DataError, match="100 of 100 source rows are also target rows; source and target must differ"):
        tables_in.load(make_rows("hotel", 100), make_rows("hotel", 100), target_shots="all")


@pytest.mark.parametrize("shots", ["0", "4", "all"])
def test_a_token_planted_in_target_tests_reaches_no_training_row(tables_in, shots):
    source, target = make_rows("hotel", 200), make_rows("film", 100)
    tested = set(tables_in.load(source, target, target_shots=shots).target_test["text"])
    assert len(tested) == {"0": 100, "4": 92, "all": 20}[shots]
    # the marker is all punctuation to the comparison of texts, so that every row stays in its split
    target = [{**row, "text": row["text"] + "☢" * (row["text"] in tested)} for row in target]
    source += [row for row in target if row["text"].endswith("☢")][:20]
    domains = tables_in.load(source, target, target_shots=shots)
    assert sum("☢" in text for text in domains.target_test["text"]) == len(tested) == len(domains.target_test)
    assert not [text for name in ("train", "validation") for text in getattr(domains, name)["text"] if "☢" in text]


def test_conflicts_and_duplicates_are_counted(tables_in):
    source = make_rows("hotel", 100)
    source += [{**row, "label": "pos"} for row in source[:10]]
    domains = tables_in.load(source, make_rows("film", 40))
    assert domains.facts["duplicates"] == {"source": 10, "target": 0}
    assert domains.facts["conflicting_labels"] == 5
    assert "5 source texts occur with different labels" in domains.notes


# which rows


def test_several_sources(tables_in):
    sources = {"hotels": make_rows("hotel", 100), "films": make_rows("film", 60)}
    domains = tables_in.load(sources, make_rows("mug", 40))
    assert domains.facts["domains"] == {"hotels": 100, "films": 60, "target": 40}
    assert len(domains.train) == 112
    assert set(domains.train["domain"]) == {"hotels", "films"}
    assert domains.facts["rows"] == sizes(domains)


def test_sources_of_one_name_stay_apart(tables_in, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    files = []
    for folder in folders:
        folder.mkdir()
        files.append(str(write_table(folder / "rows.jsonl", make_rows(folder.name, 50))))
    domains = load_data(DataArguments(source=files, target=tables_in.write("rows", make_rows("mug", 40))), 1)
    assert domains.facts["domains"] == {"rows": 50, files[1]: 50, "rows (target)": 40}
    assert domains.facts["target"] == "rows (target)"
    assert len(domains.target_test) == 40
    assert set(domains.train["domain"]) == {"rows", files[1]}


def test_domain_column(tables_in):
    rows = make_rows("hotel", 80, shop="hotels") + make_rows("film", 60, shop="films") + make_rows("m", 40, shop="mugs")
    file = tables_in.write("all", shuffled(rows))
    domains = load_data(DataArguments(source=[file], domain_column="shop", target="mugs"), 1)
    assert domains.facts["domains"] == {"hotels": 80, "films": 60, "mugs": 40}
    assert domains.facts["target"] == "mugs"
    assert set(domains.target_test["domain"]) == {"mugs"}
    assert len(domains.target_test) == 40
    assert set(domains.train["domain"]) == {"hotels", "films"}
    outside = tables_in.write("target", make_rows("car", 40))
    apart = load_data(DataArguments(source=[file], domain_column="shop", target=outside), 1)
    assert set(apart.train["domain"]) == {"hotels", "films", "mugs"}
    assert len(apart.target_test) == 40


def test_domain_column_over_two_tables(tables_in):
    """A domain that two tables hold keeps the rows of both."""
    one = tables_in.write("one", make_rows("hotel", 60, shop="hotels") + make_rows("film", 60, shop="films"))
    two = tables_in.write("two", make_rows("inn", 40, shop="hotels"))
    domains = load_data(DataArguments(source=[one, two], domain_column="shop", target="films"), 1)
    assert domains.facts["domains"] == {"hotels": 100, "films": 60}


def test_max_rows(tables_in):
    domains = tables_in.load(make_rows("hotel", 300), make_rows("film", 100), max_rows=80)
    assert domains.facts["domains"] == {"source": 80, "target": 80}
    assert len(domains.target_test) == 80
    assert "source: --max_rows 80 reads 80 of its 300 rows; 16 test rows are left" in domains.notes
    assert "target: --max_rows 80 reads 80 of its 100 rows; 80 test rows are left" in domains.notes
    domains = tables_in.load(make_rows("hotel", 90), make_rows("film", 1200), max_rows=1000)
    assert [note for note in domains.notes if "max_rows" in note] == [
        "target: --max_rows 1000 reads 1,000 of its 1,200 rows; 1,000 test rows are left"
    ]


def test_max_rows_of_each_value_of_a_domain_column(tables_in):
    """A small domain of a large table keeps its rows, and so does its test split."""
    rows = [
        row | {"split": "test" if i % 5 < 2 else "train"}
        for shop, count in (("hotels", 600), ("films", 400), ("mugs", 50))
        for i, row in enumerate(make_rows(shop, count, shop=shop))
    ]
    random.Random(1).shuffle(rows)
    file = tables_in.write("all", rows)
    for target, tested in (("mugs", 20), ("films", 40)):
        domains = load_data(DataArguments(source=[file], domain_column="shop", target=target, max_rows=100), 1)
        assert len(domains.target_test) == tested
        assert Counter(frame(domains, "target_test")["name"]) == {"neg": tested // 2, "pos": tested // 2}
        assert [note for note in domains.notes if "max_rows" in note] == [
            f"{shop}: --max_rows 100 reads 100 of its {count} rows; 40 test rows are left"
            for shop, count in (("films", 400), ("hotels", 600))
        ]
    random.Random(2).shuffle(rows)
    tables_in.write("all", rows)
    again = load_data(DataArguments(source=[file], domain_column="shop", target=target, max_rows=100), 1)
    assert again.facts["fingerprint"] == domains.facts["fingerprint"]


def test_max_rows_of_a_domain_in_two_tables_and_of_unlabelled_texts(tables_in):
    files = [tables_in.write(name, make_rows(f"{name} hotel", 60, shop="hotels") + make_rows(f"{name} film", 60,
             shop="films")) for name in ("one", "two")]  # fmt: skip
    raw = tables_in.write("raw", [{"text": row["text"]} for row in make_rows("raw", 300)])
    domains = load_data(DataArguments(source=files, domain_column="shop", target="films", target_unlabeled=raw,
                                      max_rows=50), 1)  # fmt: skip
    assert domains.facts["domains"] == {"hotels": 100, "films": 100}
    assert "films: --max_rows 50 reads 50 of its 60 rows in two; 100 test rows are left" in domains.notes
    assert "raw: --max_rows 50 reads 50 of its 300 rows" in domains.notes
    assert len(domains.unlabeled) == 50


def test_without_a_target_the_source_is_tested(tables_in):
    domains = tables_in.load(make_rows("hotel", 100))
    assert sizes(domains) == {"train": 70, "validation": 10, "source_test": 20, "target_test": 0}
    assert domains.test is domains.source_test
    assert domains.facts["target"] is None
    with pytest.raises(DataError, match="nothing to test on"):
        tables_in.load(make_rows("hotel", 100), test_fraction=0.0)


@pytest.mark.parametrize("shots", ["0", "4"])
def test_target_rows_that_nobody_uses_may_be_its_unlabelled_texts(tables_in, shots):
    target = [{**row, "split": "test" if i // 2 % 2 else "train"} for i, row in enumerate(make_rows("film", 80))]
    file = tables_in.write("more", [{"text": row["text"]} for row in target if row["split"] == "train"])
    domains = tables_in.load(make_rows("hotel", 100), target, target_unlabeled=file, target_shots=shots)
    assert len(domains.unlabeled) == len(set(domains.unlabeled["text"])) == 40
    assert not set(domains.unlabeled["text"]) & set(domains.target_test["text"])


def test_unlabelled_rows_are_counted_and_compared(tables_in):
    target = make_rows("film", 40)
    unlabelled = [{"text": row["text"].upper()} for row in target[:7]] + [{"text": f"only here {i}"} for i in range(13)]
    file = tables_in.write("more", unlabelled)
    domains = tables_in.load(make_rows("hotel", 100), target, target_unlabeled=file)
    assert domains.facts["unlabeled_rows"] == len(domains.unlabeled) == 13
    assert set(domains.unlabeled["text"]) == {f"only here {i}" for i in range(13)}
    assert "LEAK: 7 unlabelled texts are also target test rows; left out" in domains.notes
    assert "only 13 unlabelled texts: 200 or more tell more of a domain" in domains.notes
    same = tables_in.write("same", [{"text": row["text"]} for row in make_rows("hotel", 100)])
    notes = tables_in.load(make_rows("hotel", 100), target, target_unlabeled=same).notes
    assert "100 of 100 unlabelled texts are also source rows: there is nothing to adapt to" in notes
    assert "left out 30 unlabelled texts that are held-out labelled rows too" in notes
    often = tables_in.write("often", [*unlabelled, *unlabelled[7:], unlabelled[7]])
    domains = tables_in.load(make_rows("hotel", 100), target, target_unlabeled=often)
    assert len(domains.unlabeled) == 13
    assert "left out 14 unlabelled texts that are there already" in domains.notes
    with pytest.raises(DataError, match=r"7 of 9 texts are target test rows; what is tested must not be trained on"):
        load_data(DataArguments(source=[tables_in.write("source", make_rows("hotel", 100))],
                                target=tables_in.write("target", target),
                                target_unlabeled=tables_in.write("more", unlabelled[:9])), 1)  # fmt: skip


def test_every_problem_is_listed_at_once(tables_in):
    with pytest.raises(DataError) as caught:
        load_data(DataArguments(source=["/no/such.csv", "/nor/this.csv"], target="/nor/that.csv"), 1)
    assert len(caught.value.problems) == 3
    with pytest.raises(DataError, match="one class only"):
        tables_in.load(make_rows("hotel", 60, labels=("x",)), make_rows("film", 20, labels=("x",)))
    with pytest.raises(DataError, match=r"too few training rows labelled c \(2\)"):
        tables_in.load(make_rows("hotel", 60) + make_rows("rare", 3, labels=("c",)), make_rows("film", 20))
    rows = [{"text": f"t {i}", "label": f"id{i}"} for i in range(60)]
    with pytest.raises(DataError, match="looks like text or an id"):
        tables_in.load(rows, make_rows("film", 20, labels=("id1", "id2")))


# the fingerprint


def test_fingerprint_sees_content_and_nothing_else(tables_in, tmp_path):
    source, target = make_rows("hotel", 100), make_rows("film", 40)
    first = tables_in.load(source, target).facts["fingerprint"]
    assert len(first) == 64
    pd.DataFrame(source).to_csv(tmp_path / "source.csv", index=False)
    pd.DataFrame(target).to_parquet(tmp_path / "target.parquet")
    other = DataArguments(source=[str(tmp_path / "source.csv")], target=str(tmp_path / "target.parquet"))
    assert load_data(other, 1).facts["fingerprint"] == first
    flipped = [*target[:-1], {**target[-1], "label": "neg"}]
    assert target[-1]["label"] == "pos"
    assert tables_in.load(source, flipped).facts["fingerprint"] != first
    edited = [*target[:-1], {**target[-1], "text": target[-1]["text"] + " indeed"}]
    assert tables_in.load(source, edited).facts["fingerprint"] != first
    assert tables_in.load(source, target[:-1]).facts["fingerprint"] != first


def test_fingerprint_of_one_row():
    row = {"split": "train", "domain": "d", "label": 1, "content": 7}
    seen = {fingerprint(pd.DataFrame([{**row, key: value}])) for key, value in
            [("content", 7), ("content", 8), ("label", 0), ("domain", "e"), ("split", "test")]}  # fmt: skip
    assert len(seen) == 5


def test_facts_are_ready_for_json(tables_in):
    domains = tables_in.load(make_rows("hotel", 100), make_rows("film", 40), target_shots="3")
    assert json.loads(json.dumps(domains.facts)) == domains.facts
    assert domains.facts["labels"]["target_test"] == {"neg": 17, "pos": 17}
    assert domains.facts["mean_words"]["target_test"] == 4.0
    text = summary(domains, {"train": 0.125})
    assert "neg 50%, pos 50%" in text
    assert "12.5%" in text


# tables larger than memory

WATCH = """
import sys, threading
from hf_transfer.arguments import DataArguments
from hf_transfer.data import load_data

def held():  # MB of this process's own memory, without the pages of mapped files
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1e3

def watch():
    while not done.wait(0.01):
        peak[0] = max(peak[0], held())

small, large = sys.argv[1:]
load_data(DataArguments(source=[small]), 0)
peak, done = [held()], threading.Event()
before = peak[0]
thread = threading.Thread(target=watch)
thread.start()
domains = load_data(DataArguments(source=[large]), 0)
done.set()
thread.join()
print(len(domains.train), len(domains.train[0]["text"]), peak[0] - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from Linux's /proc")
def test_texts_stay_on_disk(tables_in):
    """A table of 240 MB, of which less than half may ever be in memory; as lists of strings it would be twice that."""
    row = "w" * 119 + " "
    large = tables_in.write("large", [{"text": f"{i} {row * 200}", "label": "ab"[i % 2]} for i in range(10_000)])
    assert Path(large).stat().st_size > 240e6
    small = tables_in.write("small", make_rows("hotel", 100))
    told = subprocess.run([sys.executable, "-c", WATCH, small, large], capture_output=True, text=True, check=True)
    rows, length, grown = told.stdout.split()
    assert (int(rows), int(length) > 24_000) == (7000, True)
    assert float(grown) < 120


def test_parts_are_the_rows_of_the_files(tables_in):
    """Several tables, with rows dropped from their middle: every part still has its own rows' texts."""
    hotels, films, mugs = make_rows("hotel", 90), make_rows("film", 90), make_rows("mug", 60)
    hotels[3]["text"] = films[5]["text"] = mugs[7]["text"] = "  "
    unlabelled = [{"text": row["text"]} for row in make_rows("raw", 30)]
    unlabelled[2]["text"] = ""
    file = tables_in.write("raw", unlabelled)
    domains = tables_in.load({"hotels": hotels, "films": films}, mugs, target_shots="4", target_unlabeled=file)
    files = {"hotels": hotels, "films": films, "target": mugs}
    seen = 0
    for name in PARTS:
        for row in getattr(domains, name):
            there = files[row["domain"]][row["row"]]
            assert (row["text"], domains.label_names[row["label"]]) == (there["text"], there["label"])
            seen += 1
    assert seen == 89 + 89 + 59
    assert [unlabelled[i]["text"] for i in domains.unlabeled["row"]] == domains.unlabeled["text"][:]
    assert len(domains.unlabeled) == 29
