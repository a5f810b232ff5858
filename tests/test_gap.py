"""`gap` and `rank`: their numbers against independent formulas, and generated shifts told apart."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats
import sklearn.datasets
from conftest import write_table

from hf_transfer import compare, diagnostics, features, gap, transferability
from hf_transfer.arguments import DataArguments, ModelArguments
from hf_transfer.cli import main
from hf_transfer.diagnostics import Side, mmd, proxy_a_distance, vocabulary
from hf_transfer.errors import UserError
from hf_transfer.gap import domain_gap
from hf_transfer.rank import rank_models

GOOD, BAD = ["great", "lovely", "clean", "perfect"], ["awful", "dirty", "broken", "poor"]
PLACES = ["hotel", "room", "bed", "staff", "breakfast", "lobby", "pool", "view"]
GADGETS = ["battery", "screen", "charger", "cable", "button", "sound", "device", "camera"]
KINDS = ("vocabulary", "length", "labels", "concept")


def rows(count, seed, *, words=PLACES, positive=0.5, flipped=False, length=12):
    """Texts whose label is that of their one telling word; returns dicts."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(count):
        good = rng.random() < positive
        text = [*rng.choice(words, length), *rng.choice(GOOD if good else BAD, 3), str(seed * 10_000 + i)]
        rng.shuffle(text)
        out.append({"text": " ".join(text), "label": ["neg", "pos"][good != flipped]})
    return out


@pytest.fixture
def measured(tiny, tmp_path):
    """Write two tables, run the command, and read what it wrote."""

    def measure(source, target, **options):
        files = [str(write_table(tmp_path / f"{name}.jsonl", table))
                 for name, table in (("here", source), ("there", target))]  # fmt: skip
        text = domain_gap(*files, model=str(tiny), output_dir=str(tmp_path / "out"), quiet=True, **options)
        return text, json.loads((tmp_path / "out" / "gap.json").read_text())

    return measure


def test_all_diagnostics_are_found():
    assert diagnostics.names() == [
        "concept", "duplicates", "labels", "length", "mmd", "parts", "proxy_a_distance", "vocabulary"
    ]  # fmt: skip


NOTHING = "- No difference is shown that calls for anything."
PRESUME = ("self_train", "adapt_domain", "pretrain_domain", "aligning", "alignment", "--label_prior")
SHIFTS = {
    "none": ({}, []),
    "words": ({"words": GADGETS}, ["vocabulary"]),
    "length": ({"length": 30}, ["length"]),
    "label prior": ({"positive": 0.85}, ["labels"]),
    "concept": ({"flipped": True}, ["concept"]),
}


@pytest.mark.parametrize("shift", SHIFTS)
def test_generated_shifts_are_told_apart(shift, measured):
    change, expected = SHIFTS[shift]
    text, facts = measured(rows(400, 1), rows(400, 2, **change))
    assert [kind for kind in KINDS if facts["findings"][kind]["apart"]] == expected
    shown, _, untold = facts["differences"].partition(";")
    for kind, words in gap.KINDS.items():
        assert (words in shown) == (kind in expected)
        assert (words in untold) == (facts["findings"][kind]["answer"] == "can't tell")
    assert facts["verdict"] in text
    advice = [finding["advice"] for finding in facts["findings"].values() if finding["advice"]]
    assert all(sentence in text for sentence in advice)
    assert (len(advice) > 0) == (len(expected) > 0)
    assert (NOTHING in text) == (not expected)


PARTS = {"label mix": {"positive": 0.9}, "length": {"long": 0.8}, "words and style": {"moved": 2.0}, "none": {}}


@pytest.mark.parametrize("shift", PARTS)
def test_what_the_model_sees_goes_with_what_was_changed(shift):
    from hf_transfer.diagnostics import parts

    rng = np.random.default_rng(0)

    def side(name, positive=0.5, long=0.3, moved=0.0):
        labels, lengths = (
            rng.random(400) < positive,
            np.where(rng.random(400) < long, 30, 10) + rng.integers(5, size=400),
        )
        states = rng.normal(size=(400, 4, 6))
        states[:, :, 0] += 4 * labels[:, None]
        states[:, :, 1] += lengths[:, None] / 5
        states[:, :, 2] += moved
        named = np.where(labels, "pos", "neg")
        facts = pd.DataFrame({"label": named, "words": lengths})
        return Side(name, ["a " * n for n in lengths], named, facts, lengths, states)

    found = parts.measure(side("here"), side("there", **PARTS[shift]), 0)
    assert found.apart == (shift != "none")
    if shift != "none":
        assert sum(found.numbers["parts"].values()) == pytest.approx(1.0, abs=1e-3)
        assert set(found.numbers["parts"]) == {shift, "words and style"}, "what does not differ has no part"
        assert found.numbers["parts"][shift] > 0.9
        assert parts.REMEDIES[shift] in found.advice


def test_length_and_words_that_can_not_be_told_apart():
    from hf_transfer.diagnostics import parts

    rng = np.random.default_rng(0)
    sides = [Side(name, ["a " * n] * 100, None, pd.DataFrame({"words": [n] * 100}), np.ones(100),
                  rng.normal(i, size=(100, 4, 6)))
             for i, (name, n) in enumerate((("here", 5), ("there", 50)))]  # fmt: skip
    found = parts.measure(*sides, 0)
    assert found.numbers["parts"] == {"length, or words and style": 1.0}
    assert found.advice == ""


def test_weighted_mmd_is_that_of_repeated_rows():
    from hf_transfer.diagnostics import parts

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 4)), rng.normal(1, size=(20, 4))
    similar = mmd.kernel(a, b)
    first = np.arange(50) < 30
    assert parts.weighted(similar, np.ones(30), np.ones(20)) == pytest.approx(mmd.squared(similar, first[None])[0])
    weights = np.array([2.0] * 10 + [1.0] * 20)
    expected = sum(
        sign * np.average([similar[i, j] for i, j in pairs], weights=[w[i] * v[j] for i, j in pairs])
        for sign, w, v, pairs in (
            (1, weights, weights, [(i, j) for i in range(30) for j in range(30) if i != j]),
            (1, np.ones(50), np.ones(50), [(i, j) for i in range(30, 50) for j in range(30, 50) if i != j]),
            (-2, weights, np.ones(50), [(i, j) for i in range(30) for j in range(30, 50)]),
        )
    )
    assert parts.weighted(similar, weights, np.ones(20)) == pytest.approx(expected)


def test_shorter_texts_have_no_other_words():
    """Of a large vocabulary: the fewer words are counted, the further apart they would seem."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, 3001)

    def side(name, length):
        texts = [" ".join(f"w{i}" for i in rng.choice(3000, length, p=shares / shares.sum())) for _ in range(400)]
        return Side(name, texts, None, pd.DataFrame(), np.full(400, length), np.zeros((400, 1, 2)))

    for lengths in ((60, 8), (8, 60)):
        found = vocabulary.measure(side("here", lengths[0]), side("there", lengths[1]), 0)
        assert not found.apart
        null, between = (found.numbers[name] for name in ("jensen_shannon_within_source", "jensen_shannon"))
        assert between == pytest.approx(null, rel=0.15)


def test_advice_names_words_that_the_source_hardly_has():
    rng = np.random.default_rng(0)

    def side(name, extra):
        texts = [" ".join([*rng.choice(["the", "a", "is"], 12), *["it"] * n, *own]) for n, own in extra]
        return Side(name, texts, None, pd.DataFrame(), np.full(len(texts), 15), np.zeros((len(texts), 1, 2)))

    source, frequent = side("here", [(2, [])] * 100), side("there", [(6, [])] * 100)
    assert (
        "uses some words more (it, ...), though the source has them" in vocabulary.measure(source, frequent, 0).advice
    )
    own = vocabulary.measure(source, side("there", [(6, ["knife", "pan", "knife"])] * 100), 0)
    assert "The target's own words (knife, pan, ...) are rare in the source" in own.advice


def test_texts_with_words_of_their_own_are_no_other_vocabulary():
    """A text repeats its own words: a few long texts hold fewer of them than as many words of short ones."""
    rng = np.random.default_rng(0)

    def side(name, length):
        texts = [" ".join(f"own{name}{i}" if own else f"w{word}" for own, word in
                          zip(rng.random(length) < 0.3, rng.integers(0, 200, length), strict=True))
                 for i in range(300)]  # fmt: skip
        return Side(name, texts, None, pd.DataFrame(), np.full(300, length), np.zeros((300, 1, 2)))

    for lengths in ((12, 400), (400, 12)):
        found = vocabulary.measure(side("here", lengths[0]), side("there", lengths[1]), 0)
        null, between = (found.numbers[name] for name in ("jensen_shannon_within_source", "jensen_shannon"))
        assert between == pytest.approx(null, rel=0.15)
        assert not found.apart


def test_labels_that_hardly_overlap_can_not_be_told_from_words():
    from hf_transfer.diagnostics import parts

    rng = np.random.default_rng(0)
    sides = []
    for i, mix in enumerate(([0.4, 0.4, 0.2, 0], [0, 0, 0.1, 0.9])):
        named = rng.choice(["a", "b", "c", "d"], 200, p=mix)
        facts = pd.DataFrame({"label": named, "words": 2})
        sides.append(Side("x", ["a b"] * 200, named, facts, np.full(200, 2), rng.normal(i, size=(200, 4, 6))))
    found = parts.measure(*sides, 0)
    assert found.numbers["parts"] == {"label mix, or words and style": 1.0}
    assert found.advice == ""


def test_mixes_that_differ_by_chance_have_no_part():
    from hf_transfer.diagnostics import parts

    for seed in range(5):
        rng = np.random.default_rng(seed)
        sides = []
        for i in range(2):
            own = rng.random(400) < 0.5
            facts = pd.DataFrame({"label": own.astype(str), "words": 2})
            states = rng.normal(size=(400, 4, 6)) + 0.5 * i + 2 * own[:, None, None]
            sides.append(Side("x", ["a b"] * 400, own.astype(str), facts, np.full(400, 2), states))
        assert parts.measure(*sides, seed).numbers["parts"] == {"words and style": 1.0}


def test_a_missed_kind_of_a_frequent_label_is_no_other_concept():
    """A probe that is right on 30 % of the target, since most of its spam is of a kind that the source has not."""
    from hf_transfer.diagnostics import concept

    rng = np.random.default_rng(0)

    def side(name, spam, known):
        ham = np.arange(400) >= spam
        centre = np.where(ham, -1.0, np.where(np.arange(400) < known, 1.0, -0.8))
        states = np.stack([centre, np.where(ham | (np.arange(400) < known), 0.0, 3.0)], axis=1)
        states = (states + 0.2 * rng.normal(size=states.shape))[:, None]
        return Side(name, [""] * 400, np.where(ham, "ham", "spam"), pd.DataFrame(), np.ones(400), states)

    found = concept.measure(side("sms", 80, 80), side("comments", 340, 60), 0)
    assert found.numbers["source_probe_on_target"] < 0.4
    assert found.numbers["target_probe_on_target"] > 0.8
    assert not found.apart


def by_class(name, centres, labels, *, spread=1.0, seed=0, features=6, along=1, moved=0.0):
    """A side whose rows are `centres` of their label away from 0 in the first features, `moved` in the last one."""
    rng = np.random.default_rng(seed)
    labels = np.array(labels)
    states = rng.normal(size=(len(labels), 1, features)) * spread
    states[:, 0, -1] += moved
    states[:, 0, :along] += np.array([centres[label] for label in labels])[:, None]
    return Side(name, [""] * len(labels), labels, pd.DataFrame(), np.ones(len(labels)), states)


HERE = {"ham": -1.0, "spam": 1.0}


def test_a_source_worse_than_the_commonest_label_may_mean_the_same():
    """Of a skewed target it is worse, though its labels are those of the target."""
    from hf_transfer.diagnostics import concept

    nearer = {"ham": -0.7, "spam": 0.7}
    source = by_class("here", nearer, ["ham", "spam"] * 200)
    found = concept.measure(source, by_class("there", nearer, ["ham"] * 360 + ["spam"] * 40, seed=1), 0)
    numbers = found.numbers
    assert 0.7 < numbers["source_probe_on_target"] < 0.85 < numbers["commonest_label_share"] == 0.9
    assert (numbers["source_probe_below_commonest_label"], numbers["source_probe_below_guessing"]) == (True, False)
    assert (found.answer, found.untold) == ("no", ""), "another mix of labels is no other meaning"
    assert found.first.startswith(
        "A probe of the source does worse, by accuracy, than the target's commonest label: it is right on "
    )
    assert "mean" not in found.first.replace("mean recall", "")
    assert "turned" not in found.first


def test_a_source_worse_than_the_commonest_label_that_shares_no_texts():
    """The case in which 20 % against 98.5 % was said to be no other concept."""
    from hf_transfer.diagnostics import concept

    source = by_class("here", HERE, ["ham", "spam"] * 200, spread=0.3, along=5)
    target = by_class("there", {"ham": 1.5, "spam": 4.0}, ["ham"] * 348 + ["spam"] * 52, spread=0.3, seed=1, along=5,
                      moved=9.0)  # fmt: skip
    found = concept.measure(source, target, 0)
    assert found.numbers["source_probe_on_target"] < 0.3
    assert found.numbers["target_probe_on_target"] > 0.95
    assert not found.numbers["source_probe_below_guessing"]
    assert (found.apart, found.answer) == (None, "can't tell")
    assert found.untold.startswith("30 target rows that look like the source's (")
    assert "its commonest label" not in found.first
    assert found.first.endswith("Whether the labels mean something else can't be told.")


def test_few_rows_of_a_source_are_no_other_meaning():
    """Of 12 rows a probe learns little, however alike the domains are."""
    from hf_transfer.diagnostics import concept

    for seed in range(5):
        source = by_class("here", HERE, ["ham", "spam"] * 6, seed=seed, features=60)
        target = by_class("there", HERE, ["ham", "spam"] * 200, seed=seed + 50, features=60)
        found = concept.measure(source, target, 0)
        assert found.numbers["target_probe_on_target"] - found.numbers["source_probe_on_target"] > 0.05
        assert not found.apart


@pytest.mark.parametrize("rows_there", [20, 60, 400])
def test_turned_labels_stand_first(rows_there, measured):
    text, facts = measured(rows(200, 1, flipped=True), rows(rows_there, 2, words=[*PLACES[:6], *GADGETS[:2]]))
    first = next(line for line in text.splitlines()[1:] if line)
    assert first == facts["verdict"]
    assert first.startswith("What the labels mean differs between the domains, or they are turned round: a probe of ")
    concept = facts["findings"]["concept"]
    assert (concept["apart"], concept["answer"], concept["untold"]) == (True, "yes", "")
    for number in ("source_probe_on_target", "target_probe_on_target"):
        assert f"{concept['numbers'][number]:.1%}" in first
    assert f"{concept['numbers']['commonest_label_share']:.0%}" in first
    assert concept["numbers"]["source_probe_below_guessing"]
    assert facts["advice"][0] == concept["advice"]
    assert not [word for word in PRESUME if word in text]


def test_twenty_rows(measured):
    """What so few rows can't tell is no "no"; a difference that they show is one."""
    text, facts = measured(rows(200, 1), rows(20, 2))
    answers = {name: finding["answer"] for name, finding in facts["findings"].items()}
    assert answers.pop("duplicates") == "-"
    assert set(answers.values()) == {"can't tell"}
    assert all(facts["findings"][name]["apart"] is None for name in answers)
    assert all(f"| can't tell | {facts['findings'][name]['summary']}; needed: {facts['findings'][name]['untold']} |"
               in text for name in answers)  # fmt: skip
    assert facts["findings"]["length"]["untold"] == "36 rows of the target (it has 20)"
    assert facts["verdict"] == (
        "No difference between the domains is shown; whether they differ in words, length, the mix of labels or what "
        "the labels mean, or for the model can't be told."
    )
    assert NOTHING in text
    text, facts = measured(rows(200, 1), rows(20, 2, words=GADGETS, positive=0.95, length=30))
    assert [kind for kind in KINDS if facts["findings"][kind]["answer"] == "yes"] == ["vocabulary", "length", "labels"]
    assert facts["findings"]["concept"]["answer"] == "can't tell"
    assert facts["findings"]["mmd"]["answer"] == facts["findings"]["proxy_a_distance"]["answer"] == "yes"


def test_halves_of_a_domain_are_told_to_be_alike(measured):
    table = rows(200, 1)
    text, facts = measured(table[:100], table[100:])
    answers = {name: finding["answer"] for name, finding in facts["findings"].items()}
    assert answers == {name: "-" if name == "duplicates" else "no" for name in answers}
    assert facts["verdict"] == "No difference between the domains is shown: they may be one."
    assert NOTHING in text


def test_a_skewed_target_is_not_turned_round(measured):
    text, facts = measured(rows(200, 1), rows(200, 2, positive=0.9))
    assert facts["verdict"] == "The domains differ in the mix of labels."
    assert facts["findings"]["concept"]["answer"] == "no"
    assert "(--label_prior)" in text
    assert "Only if" not in text


def test_advice_depends_on_what_the_labels_mean():
    """What builds on the source's labels is advised where they hold, on that condition, or not at all."""
    from hf_transfer.diagnostics import Finding

    def lines(**concept):
        found = {"concept": Finding("", concept.pop("advice", ""), **concept), "labels": Finding(
            "", "The mix differs: use --label_prior.", apart=True, same_meaning=True), "length": Finding(
                "", "Texts are longer.", apart=True)}  # fmt: skip
        kept, lines = gap.borne_out(found)
        assert kept["labels"].advice == next((line for line in lines if "--label_prior" in line), "")
        return lines

    plain = ["The mix differs: use --label_prior.", "Texts are longer."]
    assert lines(apart=False) == plain
    assert lines(apart=True, advice="Label rows.") == ["Label rows.", plain[1]]
    assert lines(apart=None, untold="x", first="Worse.", advice="Label rows.") == ["Label rows.", plain[1]]
    for untold, needed in (("52 rows of ham", "52 rows of ham"), ("", "labels of both domains, named alike")):
        told = lines(apart=None, untold=untold)
        assert told[0].startswith("First have 30 labelled target rows or more: ")
        assert told[0].endswith(f"needed to tell: {needed}.")
        assert told[1:] == ["Only if the labels mean the same: the mix differs: use --label_prior.", plain[1]]


RARER = 1 / np.arange(1, 41) ** 1.5


@pytest.mark.parametrize("name", ["labels", "length", "proxy_a_distance", "vocabulary"])
def test_few_rows_of_one_domain_are_not_told_apart(name):
    """Samples of 20 rows; one in a hundred may be."""
    measure = diagnostics.load(name).measure

    def one(count, seed):
        rng = np.random.default_rng(seed)
        words = rng.choice(60, (count, 1)) * 3 + rng.integers(0, 3, (count, 60))
        texts = [" ".join(f"w{word}" for word in row[: rng.integers(30, 60)]) for row in words]
        labels = rng.choice([f"label {i}" for i in range(40)], count, p=RARER / RARER.sum())
        facts = pd.DataFrame({"words": [len(text.split()) for text in texts], "label": labels})
        return Side("x", texts, labels, facts, np.ones(count), rng.normal(size=(count, 7, 10)))

    source = one(400, 0)
    answers = [measure(source, one(20, seed), seed).answer for seed in range(1, 11)]
    assert answers.count("yes") <= 1
    assert "no" not in answers


def test_report_has_every_part(measured, tmp_path):
    text, facts = measured(rows(200, 1), rows(150, 2, words=GADGETS))
    assert "# Gap from here to there" in text
    assert (facts["source"]["rows"], facts["target"]["rows"]) == (200, 150)
    table = [line for line in text.splitlines() if line.startswith("| ") and "| apart |" not in line]
    assert [line.split(" | ")[0][2:] for line in table] == [name.replace("_", " ") for name in diagnostics.names()]
    more = facts["findings"]["vocabulary"]["numbers"]["more_in_target"]
    assert set(list(more)[:8]) == set(GADGETS)
    assert (tmp_path / "out" / "gap.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "out" / "gap.md").read_text().strip() in text


def test_a_target_without_labels(measured):
    text, facts = measured(rows(100, 1), [{"text": row["text"]} for row in rows(100, 2)])
    for name in ("labels", "concept"):
        assert facts["findings"][name]["summary"] == "not measured: the target has no labels"
    assert "read without labels" in text


def test_labels_of_other_names(measured):
    """The same labels by other names are neither another mix nor another concept."""
    other = [{**row, "label": {"neg": "0", "pos": "1"}[row["label"]]} for row in rows(200, 2)]
    _, facts = measured(rows(200, 1), other)
    for name in ("labels", "concept"):
        said = facts["findings"][name]["summary"]
        assert said == "not measured: no label in common (neg, pos / 0, 1); name them alike in both tables"
    mixed = [{**row, "label": "unsure"} if i % 4 == 0 else row for i, row in enumerate(rows(400, 2))]
    _, facts = measured(rows(400, 1), mixed)
    assert facts["findings"]["labels"]["apart"]
    assert not facts["findings"]["concept"]["apart"]
    assert facts["findings"]["concept"]["numbers"]["target_probe_on_target"] > 0.9


LACKING = {
    "neg": "two labels that both domains have, each with 5 rows or more of the source",
    "pos": "500 labelled rows of the target or so (there are 100), 5 of each of two labels at least",
}


@pytest.mark.parametrize("last", LACKING)
def test_labels_too_few_for_a_probe(last, measured):
    target = rows(100, 2, positive=0.0)
    _, facts = measured(rows(100, 1), [*target[:-1], {**target[-1], "label": last}])
    concept = facts["findings"]["concept"]
    assert (concept["answer"], concept["untold"]) == ("can't tell", LACKING[last])


def test_equal_tables_are_said_to_be_equal(measured):
    table = rows(100, 1)
    text, facts = measured(table, table[:60])
    assert facts["findings"]["duplicates"]["numbers"]["shared"] == 60
    assert "there is no domain to transfer to" in text


def test_features_are_computed_once(measured, monkeypatch):
    table, other = rows(100, 1), rows(100, 2)
    first, _ = measured(table, other)
    monkeypatch.setattr(features, "run_trunk", lambda *_: pytest.fail("the trunk ran again"))
    assert measured(table, other)[0] == first


def test_the_command(tiny, tmp_path, capsys, monkeypatch):
    files = [str(write_table(tmp_path / f"{i}.jsonl", rows(80, i))) for i in (1, 2)]
    main(["gap", "--source", files[0], "--target", files[1], "--model", str(tiny), "--quiet"])
    assert "No difference between the domains is shown" in capsys.readouterr().out
    main(["rank", "--models", str(tiny), "--source", files[0], "--quiet"])
    assert "Best by LogME: layer" in capsys.readouterr().out
    monkeypatch.setattr("hf_transfer.models.default_model", lambda: str(tiny))
    main(["rank", "--source", files[0], "--quiet"])
    assert "Best by LogME: layer" in capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1.jsonl", "2.jsonl"]


def test_a_label_column_that_only_the_source_has(measured):
    source, target = ([{"text": row["text"], **({"opinion": row["label"]} if labelled else {})} for row in table]
                      for table, labelled in ((rows(80, 1), True), (rows(80, 2), False)))  # fmt: skip
    text, facts = measured(source, target, label_column="opinion")
    assert "| labels | - | not measured: the target has no labels |" in text
    assert any("there: read without labels" in note for note in facts["notes"])
    with pytest.raises(UserError, match="has no column 'opinion'"):
        measured(target, source, label_column="opinion")


def test_what_can_not_be_compared_is_refused(measured, tmp_path):
    with pytest.raises(UserError, match=r"there has 9 usable rows; at least 10 are needed"):
        measured(rows(100, 1), rows(9, 2))
    assert measured(rows(100, 1), rows(10, 2))[1]["target"]["rows"] == 10
    with pytest.raises(UserError, match="there is no file or folder"):
        domain_gap(str(tmp_path / "no.csv"), str(tmp_path / "no.csv"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--output_dir"):
        domain_gap("a.csv", "b.csv", output_dir=str(tmp_path / "file" / "out"))


@pytest.mark.parametrize("flipped", [False, True])
def test_compare_says_the_first_line_of_the_gap(flipped, tiny, tmp_path):
    """Also where the label's column is not one that is guessed."""
    files = [write_table(tmp_path / f"{name}.jsonl", [{"text": row["text"], "opinion": row["label"]} for row in table])
             for name, table in (("here", rows(100, 1, flipped=flipped)), ("there", rows(100, 2)))]  # fmt: skip
    data = DataArguments(source=[str(files[0])], target=str(files[1]), label_column="opinion")
    arguments = SimpleNamespace(data=data, model=ModelArguments(model=str(tiny)), train=SimpleNamespace(seed=0))
    said = []
    compare._gap(
        SimpleNamespace(arguments=arguments, folder=tmp_path / "out", console=SimpleNamespace(say=said.append))
    )
    first = "What the labels mean differs between the domains, or they are turned round" if flipped else "No difference"
    assert len(said) == 1
    assert said[0].startswith(first)
    assert said[0] in (tmp_path / "out" / "gap" / "gap.md").read_text().splitlines()


# the measures


def side(texts=(), labels=None, states=None):
    keys = pd.Series(texts, dtype=object).map(hash)
    facts = pd.DataFrame({"key": keys, "words": [len(text.split()) for text in texts]})
    pieces = facts["words"].to_numpy()
    states = np.zeros((len(texts), 2, 4)) if states is None else states
    return Side("x", list(texts), None if labels is None else np.array(labels), facts, pieces, states)


def test_mmd_is_the_unbiased_estimate():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(7, 3)), rng.normal(size=(5, 3))
    both = np.concatenate([a, b])
    kernel = np.exp(-((both[:, None] - both[None]) ** 2).sum(2))
    found = mmd.squared(kernel, np.array([[True] * 7 + [False] * 5]))[0]
    k = lambda x, y: float(np.exp(-((x - y) ** 2).sum()))  # noqa: E731
    within_a = sum(k(a[i], a[j]) for i in range(7) for j in range(7) if i != j) / 42
    within_b = sum(k(b[i], b[j]) for i in range(5) for j in range(5) if i != j) / 20
    across = sum(k(x, y) for x in a for y in b) / 35
    assert found == pytest.approx(within_a + within_b - 2 * across)


def test_mmd_p_values():
    rng = np.random.default_rng(0)
    p = [mmd.share_as_large(mmd.permuted(rng.normal(size=(30, 4)), rng.normal(size=(30, 4)), seed))
         for seed in range(60)]  # fmt: skip
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01, "p is uniform where nothing differs"
    assert mmd.share_as_large(mmd.permuted(rng.normal(size=(30, 4)), rng.normal(1, 1, size=(30, 4)), 0)) < 0.01


@pytest.mark.parametrize("layers", [2, 13])
def test_mmd_of_all_layers_is_one_test(layers):
    """However deep the model is: equal domains are told apart no oftener, and different ones are."""

    def measured(seed, apart):
        rng = np.random.default_rng(seed)
        states = [rng.normal(size=(40, layers, 4)) for _ in range(2)]
        states[1][:, 1] += apart
        found = mmd.measure(*(side(states=one) for one in states), seed)
        assert bool(found.apart) == (found.numbers["p"] < 0.01)
        assert found.numbers["by_layer"][1] == max(found.numbers["by_layer"]) or not apart
        return found.numbers["p"]

    assert scipy.stats.kstest([measured(seed, 0.0) for seed in range(25)], "uniform").pvalue > 0.01
    assert [measured(seed, 1.5) for seed in range(3)] == [0.001] * 3


def test_proxy_a_distance_from_none_to_all():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 5)), rng.normal(size=(300, 5))
    assert proxy_a_distance.distance(a, b, 0) < 0.3
    assert proxy_a_distance.distance(a, b + 10, 0) == 2.0
    some = proxy_a_distance.distance(a, b + np.array([1, 0, 0, 0, 0]), 0)
    error = scipy.stats.norm.cdf(-0.5)  # of the best classifier between unit Gaussians one apart
    assert some == pytest.approx(2 * (1 - 2 * error), abs=0.15)


def test_word_distances():
    here, there = vocabulary._count(side(["a b", "a c"]), range(2)), vocabulary._count(side(["A d"]), range(1))
    assert (here, there) == ({"a": 2, "b": 1, "c": 1}, {"a": 1, "d": 1})
    p, q = np.array([2, 1, 1, 0]) / 4, np.array([1, 0, 0, 1]) / 2
    m = (p + q) / 2
    entropy = lambda x: -sum(v * np.log2(v) for v in x if v)  # noqa: E731
    assert vocabulary._distance(4 * p, 2 * q) == pytest.approx(entropy(m) - (entropy(p) + entropy(q)) / 2)
    assert vocabulary._unseen(4 * p, 2 * q) == 0.5
    z = vocabulary.log_odds(here, there)
    assert z["d"] > 0 > z["b"]
    turned = vocabulary.log_odds(there, here)
    assert all(turned[word] == pytest.approx(-score) for word, score in z.items())


def evidence(features, y):
    """Log evidence a row of Bayesian linear regression at its best alpha and beta, from the normal density itself."""

    def negative(log):
        alpha, beta = np.exp(log)
        covariance = np.eye(len(y)) / beta + features @ features.T / alpha
        return -scipy.stats.multivariate_normal.logpdf(y, np.zeros(len(y)), covariance)

    starts = [(0.0, 0.0), (3.0, 1.0), (-2.0, 2.0)]
    return -min(scipy.optimize.minimize(negative, start, method="Nelder-Mead").fun for start in starts) / len(y)


# LogME and H-score of scikit-learn's tables, as they are, by the authors' LogME.py (github.com/thuml/LogME, 3a08950;
# its fixed point stops at a change of 1e-3) and tllib/ranking/hscore.py (thuml/Transfer-Learning-Library, 29a228d)
PUBLISHED = {
    "iris": (-0.1600602, 1.1918988),
    "wine": (-0.0044610, 1.7058208),
    "breast_cancer": (-0.1850244, 0.7743246),
}


@pytest.mark.parametrize(("table", "published"), PUBLISHED.items())
def test_scores_of_the_published_implementations(table, published):
    features, labels = getattr(sklearn.datasets, f"load_{table}")(return_X_y=True)
    assert transferability.logme(features, labels) == pytest.approx(published[0], abs=5e-5)
    # theirs has no shrinkage: ours has as good as none where features have one scale and every row is there often
    alike = np.tile((features - features.mean(0)) / features.std(0), (200, 1))
    assert transferability.h_score(alike, np.tile(labels, 200)) == pytest.approx(published[1], rel=0.01)


@pytest.mark.parametrize("hidden", [3, 40])
def test_logme_is_the_largest_evidence(hidden):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(30, hidden)), rng.integers(0, 3, 30)
    x[:, 0] += 2 * labels
    expected = np.mean([evidence(x, (labels == label).astype(float)) for label in range(3)])
    assert transferability.logme(x, labels) == pytest.approx(expected, abs=2e-3)


def test_h_score_is_its_formula():
    from sklearn.covariance import ledoit_wolf

    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(200, 6)), rng.integers(0, 3, 200)
    x[:, 0] += 2 * labels
    covariance, shrinkage = ledoit_wolf(x)
    means = np.stack([x[labels == label].mean(0) for label in labels])
    expected = (1 - shrinkage) * np.trace(np.linalg.inv(covariance) @ np.cov(means.T, bias=True))
    assert transferability.h_score(x, labels) == pytest.approx(expected)
    assert transferability.h_score(x, rng.permutation(labels)) < 0.2 * expected


@pytest.mark.parametrize("score", ["logme", "h_score", "neighbours", "probe"])
def test_scores_order_features_by_how_well_they_fit(score):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    found = [getattr(transferability, score)(rng.normal(size=(200, 8)) + gain * labels[:, None], labels)
             for gain in (0.0, 0.5, 2.0)]  # fmt: skip
    assert found == sorted(found)
    assert found[2] > found[0]


def test_rank_orders_models_and_layers(tiny, tmp_path):
    file = str(write_table(tmp_path / "t.jsonl", rows(120, 1)))
    text = rank_models([str(tiny)], file, output_dir=str(tmp_path / "out"), quiet=True)
    ranking = json.loads((tmp_path / "out" / "rank.json").read_text())["ranking"]
    assert sorted(row["layer"] for row in ranking) == [1, 2, 3]
    assert [row["logme"] for row in ranking] == sorted((row["logme"] for row in ranking), reverse=True)
    assert f"Best by LogME: layer {ranking[0]['layer']} of" in text
    assert ("(at best" in text) == (ranking[0]["probe"] < max(row["probe"] for row in ranking))
    few = str(write_table(tmp_path / "few.jsonl", [*rows(40, 1), *[{"text": f"rare {i}", "label": "x"} for i in "ab"]]))
    with pytest.raises(UserError, match="the rarest has 2 rows in the sample"):
        rank_models([str(tiny)], few, quiet=True)
