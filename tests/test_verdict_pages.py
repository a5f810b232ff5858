"""What the verdict says in words and tables, of made-up predictions whose right reading is known."""

from __future__ import annotations

import numpy as np
import pytest
from verdict_facts import answering, cases, found

from hf_transfer.arms import RANDOM, TARGET_ONLY
from hf_transfer.verdict_pages import _candidates, _comparisons, markdown, write_pages
from hf_transfer.verdict_words import outcome, sentences


@pytest.fixture(scope="module")
def verdicts():
    return {name: found(**case) for name, case in cases().items()}


def first(facts):
    return sentences(facts)[0]


def line(facts, start):
    (one,) = [words for words in sentences(facts) if words.startswith(start)]
    return one


def test_every_case_is_read_rightly(verdicts):
    assert set(verdicts) == {"helps", "hurts", "nothing shown", "collapsed control", "metrics disagree"}
    assert first(verdicts["helps"]).startswith(
        "full helps (89.5 % accuracy): on 600 rows of target it beats every control"
    )
    assert first(verdicts["hurts"]) == (
        "Don't transfer: train on your 64 target labels alone (target_only+full, 90.2 % accuracy). On 600 rows of "
        "target every arm that transfers is shown worse.")  # fmt: skip
    assert first(verdicts["nothing shown"]).startswith(
        "Nothing is shown to help: on 60 rows of target nothing that transfers is shown to beat every control"
    )
    assert first(verdicts["collapsed control"]).startswith("full helps (87.8 % macro-F1)")
    torn = first(verdicts["metrics disagree"])
    assert torn.startswith(
        "Accuracy and macro-F1 disagree: by accuracy frozen (55.2 %) is below the commonest label of the target "
        "(neutral), 64.2 %: -9.0 [")  # fmt: skip
    assert torn.endswith("run again with --metric accuracy or --metric macro_f1, whichever counts.")
    assert {name: outcome(facts) for name, facts in verdicts.items()} == {
        "helps": "helps", "hurts": "hurts", "nothing shown": "open", "collapsed control": "helps",
        "metrics disagree": "open"}  # fmt: skip
    assert verdicts["metrics disagree"]["verdict"]["recommended"] is None
    assert not any("helps (" in words for words in sentences(verdicts["metrics disagree"]))


def test_what_is_above_the_references_by_both_metrics_is_named_beside_a_conflict():
    facts = found(**cases()["metrics disagree"])
    start = "Above what reads no text by both: "
    assert not any(words.startswith(start) for words in sentences(facts)), "every arm is below one by accuracy"
    for one in facts["against_references"]:
        if one["arm"] == "full":
            one["accuracy"] = {"value": 0.1, "low": 0.05, "high": 0.15}
    assert line(facts, start) == f"{start}full (56.0 % accuracy, 53.7 % macro-F1)."
    facts["against_references"] = []
    assert not any(words.startswith(start) for words in sentences(facts)), "nothing is above what was not there"


def test_one_line_an_arm(verdicts):
    facts = verdicts["hurts"]
    assert line(facts, "frozen: ") == (
        "frozen: negative transfer, worse than tfidf on the target, target_only+full, by 18.7 to 27.8 points; no "
        "difference shown from tfidf, random+full; better than majority, by 12.3 points.")  # fmt: skip
    assert len([words for words in sentences(facts) if words.startswith(("frozen", "full"))]) == 2
    assert line(verdicts["helps"], "frozen: ") == (
        "frozen: better than all 3 controls, by 13.2 to 36.5 points; full is better, by 3.0 points "
        "[0.2, 5.8].")  # fmt: skip


def test_a_collapsed_control_is_no_evidence(verdicts):
    facts = verdicts["collapsed control"]
    assert line(facts, "What pretraining gave") == (
        "What pretraining gave can't be told: the control learned nothing (random+full).")  # fmt: skip
    assert line(facts, "frozen: ") == (
        "frozen: better than majority, tfidf, by 19.8 to 37.5 points; against random+full can't be told: the control "
        "learned nothing; full is better, by 4.3 points [0.8, 7.7].")  # fmt: skip
    words = {(row[0], row[1]): row[4] for row in _comparisons(facts)[1:]}
    assert words["full", "random+full (collapsed)"] == "can't be told: collapsed"
    assert words["full", "tfidf"] == "helps"
    assert line(facts, "Collapsed: ").startswith("Collapsed: random+full gives 100.0% of the rows the label 'ham'; ")
    names = [row[0] for row in _candidates(facts)]
    assert "random+full (collapsed) (control)" in names
    assert "majority (control)" in names, "one label for all is what it is for"
    assert {row[1] for row in _comparisons(facts)[1:]} == {"majority", "tfidf", "random+full (collapsed)", "frozen"}
    by_accuracy = found(**(cases()["collapsed control"] | {"metric": "accuracy"} | worse_than_the_common_label()))
    said = line(by_accuracy, "frozen")
    assert "against random+full can't be told: the control learned nothing" in said
    assert "negative transfer" not in said
    assert "worse than random+full" not in said
    assert "below the commonest label of the target (ham), -" in said


def worse_than_the_common_label():
    labels = cases()["collapsed control"]["labels"]
    return {"predictions": {"majority": 0 * labels, "tfidf": answering(labels, (0.7, 0.6), 1),
                            "frozen": answering(labels, (0.72, 0.99), 2), "full": answering(labels, (0.71, 0.95), 3),
                            RANDOM: 0 * labels}}  # fmt: skip


def test_a_collapsed_arm_hurts_nobody():
    labels = np.arange(400) % 2
    facts = found({"majority": 0 * labels, "tfidf": answering(labels, (0.8, 0.8), 1),
                   "frozen": answering(labels, (0.7, 0.7), 2), "full": 0 * labels,
                   RANDOM: answering(labels, (0.7, 0.7), 3)}, labels, ["a", "b"])  # fmt: skip
    assert "against majority, tfidf, random+full, frozen can't be told: the arm learned nothing" in line(facts, "full")
    assert "negative transfer" not in line(facts, "full")
    assert line(facts, "full").startswith("full (collapsed): ")
    assert line(facts, "What pretraining gave").startswith(
        "What pretraining gave can't be told: the arm learned nothing"
    )


def test_seeds_that_collapse_are_counted():
    labels = np.arange(300) % 2
    good = answering(labels, (0.9, 0.9), 1)
    facts = found({"majority": 0 * labels, "tfidf": answering(labels, (0.7, 0.7), 2), "frozen": good,
                   "full": np.stack([good, 0 * labels, good]), RANDOM: 0 * labels}, labels, ["a", "b"])  # fmt: skip
    assert line(facts, "Collapsed: full").startswith(
        "Collapsed: full gives 100.0% of the rows the label 'a' (in 1 of 3 seeds); ")  # fmt: skip


def test_what_is_below_a_constant_is_never_recommended(verdicts):
    """An arm that beats every control by 40 points, and gets fewer rows right than one label for all would."""
    facts = found(**(cases()["metrics disagree"] | {"metric": "accuracy"}))
    assert facts["verdict"]["recommended"] is None
    assert facts["verdict"]["helping"] == []
    said = sentences(facts)
    assert said[0].endswith("--metric accuracy decides here.")
    assert said[1].startswith(
        "Nothing is recommended: on 400 rows of target no arm and no control is shown to be above what reads no "
        "text at all (commonest label of the target (neutral): 64.2 % accuracy)"
    )
    assert "below the commonest label of the target (neutral), -9.0 [-16.6, -1.3] points" in line(facts, "frozen")
    assert "helps (" not in " ".join(said)


def test_references_stand_in_the_first_table_by_their_score(verdicts):
    names = [row[0] for row in _candidates(verdicts["metrics disagree"])]
    assert "commonest label of the target (neutral): knows the test labels" in names
    assert names.index("labels by the target's own mix: knows the test labels") == 4
    header, *rows = _candidates(verdicts["collapsed control"])
    assert header[:4] == ["arm or control", "macro-F1 %", "accuracy %", "recall % by label"]
    assert dict(zip(header, rows[0], strict=True))["recall % by label"] == "ham 93, spam 92"
    assert "recall % by label" not in _candidates(verdicts["helps"])[0], "none is under 10 %, but the constant's"


def test_a_column_says_what_it_is_a_difference_from(verdicts):
    header, *rows = _candidates(verdicts["helps"])
    assert header[3] == "minus full, points"
    assert [row[3] for row in rows if row[0] == "frozen"] == ["-3.0 [-5.8, -0.2]"]


def test_small_chances_are_not_spelled_out(verdicts):
    chances = [row[3] for row in _comparisons(verdicts["helps"])[1:]]
    assert "< 0.001" in chances
    assert all(chance == "< 0.001" or float(chance) >= 0.001 for chance in chances)


def test_what_was_not_verified_is_said():
    case = cases()["hurts"]
    predictions = {name: one for name, one in case["predictions"].items() if name != TARGET_ONLY}
    predictions["full"] = np.stack([predictions["full"]] * 2)
    facts = found(**(case | {"predictions": predictions, "failed": {f"{TARGET_ONLY}-seed0": "no time"},
                             "happened": {"frozen": ["2 of 4 epochs, by the budget"]}}))  # fmt: skip
    unsure = [words for words in sentences(facts) if words.startswith("Not verified: ")]
    assert [words.split(",")[0].split(";")[0] for words in unsure] == [
        "Not verified: anything against target_only+full",
        "Not verified: further seeds of frozen",
        "Not verified: full training of frozen",
    ]
    assert "frozen (2 of 4 epochs, by the budget)" in [row[0] for row in _candidates(facts)]


def test_a_small_test_says_how_little_it_shows(verdicts):
    assert line(verdicts["nothing shown"], "A small test: ") == (
        "A small test: 60 rows, the fewest of them labelled 'negative' (30); a true difference of less than about 16 "
        "points would often be missed (80 % power).")  # fmt: skip
    assert not [words for words in sentences(verdicts["helps"]) if words.startswith("A small test")]


def test_pages_are_whole(verdicts, tmp_path):
    for name, facts in verdicts.items():
        where = tmp_path / name
        where.mkdir()
        write_pages(facts, where)
        page = (where / "verdict.html").read_text()
        assert sentences(facts)[0][:40] in page.replace("&#39;", "'")
        assert (where / "pareto.png").stat().st_size > 20_000
        assert (where / "differences.png").stat().st_size > 10_000
        assert markdown(facts) == (where / "verdict.md").read_text()
        assert "Is it above what reads no text?" in page
