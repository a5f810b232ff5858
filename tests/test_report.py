"""run.json and back; the table, JSON and plot of several runs; and what a run is said to have done."""

from __future__ import annotations

import json
import struct
import zlib

import pytest

from hf_transfer.errors import UserError
from hf_transfer.report import plot, rows_of, run_report, table, test_set, training_seconds, verdict, write_report
from hf_transfer.results import FILE, Run, load_run

test_set.__test__ = False  # the package's function, not a test

TFIDF, MAJORITY = "TF-IDF + logistic regression", "commonest training label"
COMMONEST, MIX = "commonest label of the target", "labels by the target's own mix"


def scores(accuracy, macro_f1, n=200):
    return {
        "accuracy": accuracy,
        "macro_f1": macro_f1,
        "calibration_error": 0.031,
        "loss": 0.4,
        "collapsed": "",
        "n": n,
        "per_class": {
            "neg": {"precision": 0.911, "recall": 0.822, "f1": 0.864, "support": 120.0},
            "pos": {"precision": 0.733, "recall": 0.644, "f1": 0.685, "support": 80.0},
        },
        "slices": [{"slice": "length: short (up to 9 tokens)", "n": 70, "accuracy": 0.75, "low": 0.6, "high": 0.9}],
        "intervals": {
            "accuracy": [accuracy - 0.04, accuracy + 0.03],
            "macro_f1": [macro_f1 - 0.05, macro_f1 + 0.05],
        },
    }


def difference(value, low, high):
    """Of accuracy, and of macro-F1 the same."""
    one = {"value": value, "low": low, "high": high}
    return {**one, "p": 0.01, "detectable": 0.06, "accuracy": one, "macro_f1": one}


def control(name, accuracy, macro_f1, seconds, parameters, sets=("source_test", "target_test")):
    return {
        "name": name,
        **{name: scores(accuracy, macro_f1) for name in sets},
        "seconds": seconds,
        "trainable_parameters": parameters,
        "peak_memory_mb": 321,
    }


def make_run(folder, method="lora", accuracy=0.85, gain=(0.05, 0.01, 0.09), fingerprint="f" * 64, seconds=20.0, **more):
    value, low, high = gain
    sets = ("source_test", "target_test")
    content = {
        "folder": folder,
        "task": "text_classification",
        "method": method,
        "model": "tiny/model",
        "model_revision": "abc123",
        "weights_sha256": {},
        "label_names": ["neg", "pos"],
        "arguments": {"max_length": 64, "lora_r": 8, "source": ["hotels.csv"]},
        "command": f"hf-transfer run finetune --method {method} --source hotels.csv",
        "data": {
            "target": "gadgets",
            "rows": {"train": 700, "validation": 100, "source_test": 200, "target_test": 200},
            "domains": {"hotels": 500, "films": 500, "gadgets": 200},
            "fingerprint": fingerprint,
        },
        "metrics": {
            "source_test": scores(0.91, 0.9),
            "target_test": scores(accuracy, accuracy - 0.012),
            "controls": {
                "majority": control(MAJORITY, 0.501, 0.334, 0.02, 2),
                "tfidf": control(TFIDF, 0.777, 0.766, 1.54, 12345),
            },
            "references": {
                name: {
                    "commonest": {"name": COMMONEST, "accuracy": 0.6, "macro_f1": 0.375, "balanced_accuracy": 0.5},
                    "mix": {"name": MIX, "accuracy": 0.52, "macro_f1": 0.5, "balanced_accuracy": 0.5},
                }
                for name in sets
            },
            "differences": {
                name: {
                    "tfidf": difference(value, low, high),
                    "majority": difference(0.3, 0.2, 0.4),
                    "commonest": difference(0.25, 0.15, 0.35),
                    "mix": difference(0.33, 0.25, 0.41),
                }
                for name in sets
            },
        },
        "choices": {"epochs": 3},
        "trainable_parameters": 98765,
        "parameters": 22713216,
        "seconds": {"load": 3.0, "prepare": 0.5, "train": seconds - 0.5, "evaluate": 2.0, "total": seconds + 6},
        "peak_memory_mb": 1234,
        "device_peak_memory_mb": None,
        "world_size": 1,
        "precision": "fp32",
        "seed": 42,
        "hardware": "2 CPU cores (x86_64)",
        "versions": {"torch": "2.13.0"},
        "created": "2025-11-20T17:00:00",
        "history": [{"epoch": 1.0, "loss": 0.5, "note": "ünïcödé"}],
    }
    run = Run(**(content | more))
    folder.mkdir(parents=True)
    run.save(folder)
    return run


@pytest.fixture
def three(tmp_path):
    """Three runs on the same data, the slowest first."""
    return [
        make_run(tmp_path / "runs" / "full", "full", 0.862, (0.085, 0.031, 0.138), seconds=200.0),
        make_run(tmp_path / "runs" / "adapted", "lora", 0.79, (0.013, -0.02, 0.046), seconds=80.0),
        make_run(tmp_path / "runs" / "frozen", "frozen", 0.7, (-0.077, -0.12, -0.03), seconds=5.0),
    ]


def folders(runs):
    return [str(run.folder) for run in runs]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def png_size(data):
    """Width and height of a PNG, each of whose chunks is checked."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    position, kinds = 8, []
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        body = data[position + 4 : position + 8 + length]
        assert struct.unpack(">I", data[position + 8 + length : position + 12 + length])[0] == zlib.crc32(body)
        kinds.append(body[:4])
        position += 12 + length
    assert kinds[0] == b"IHDR"
    assert kinds[-1] == b"IEND"
    assert b"IDAT" in kinds
    return struct.unpack(">II", data[16:24])


# run.json


def test_run_survives_json(tmp_path):
    run = make_run(tmp_path / "one", device_peak_memory_mb=17)
    again = load_run(tmp_path / "one")
    assert again == run
    assert load_run(str(tmp_path / "one")) == run
    content = json.loads((tmp_path / "one" / FILE).read_text(encoding="utf-8"))
    assert "folder" not in content
    assert content["format"] == 4
    assert "ünïcödé" in (tmp_path / "one" / FILE).read_text(encoding="utf-8")
    assert [file.name for file in (tmp_path / "one").iterdir()] == [FILE]


def test_no_run_and_damaged_runs_are_named(tmp_path):
    (tmp_path / "half.partial").mkdir()
    with pytest.raises(UserError, match=r"no finished run \(unfinished"):
        load_run(tmp_path / "half")
    with pytest.raises(UserError, match=r"none holds no finished run: run\.json is missing"):
        load_run(tmp_path / "none")
    make_run(tmp_path / "one")
    file = tmp_path / "one" / FILE
    whole = file.read_text(encoding="utf-8")
    content = json.loads(whole)
    del content["metrics"]
    for damaged in (whole[: len(whole) // 2], "[]", json.dumps(content)):
        file.write_text(damaged, encoding="utf-8")
        with pytest.raises(UserError, match="can't be read as a run"):
            load_run(tmp_path / "one")


# the comparison


def test_runs_in_a_folder_are_found(three, tmp_path):
    above = three[0].folder.parent
    assert write_report([str(above)])[0] == write_report(folders(three))[0]
    with pytest.raises(UserError, match=r"run\.json is missing\. Give one of the runs in it: "):
        load_run(above)


def test_report_is_written(three, tmp_path):
    text, files = write_report(folders(three))
    assert files == [tmp_path / "runs" / f"report.{kind}" for kind in ("md", "json", "png")]
    assert text in files[0].read_text(encoding="utf-8")
    width, height = png_size(files[2].read_bytes())
    assert width > 600
    assert height > 400
    assert len(files[2].read_bytes()) > 10_000
    assert sorted(file.name for file in (tmp_path / "runs").iterdir() if file.is_file()) == [
        "report.json", "report.md", "report.png"]  # fmt: skip


def test_the_plot_shows_the_runs(three, tmp_path):
    plot(rows_of(three), tmp_path / "three.png")
    plot(rows_of(three[:1]), tmp_path / "one.png")
    assert (tmp_path / "three.png").read_bytes() != (tmp_path / "one.png").read_bytes()
    plot(rows_of(three), tmp_path / "again.png")
    assert (tmp_path / "three.png").read_bytes() == (tmp_path / "again.png").read_bytes()


def test_table_holds_every_arm_with_its_numbers(three):
    lines = write_report(folders(three))[0].splitlines()
    assert len(lines) == 2 + 2 + 2 + 3
    assert len({len(line) for line in lines}) == 1  # lines up in a terminal
    found = [cells(line) for line in lines]
    assert found[0] == ["arm", "target accuracy", "macro-F1", "source accuracy", "vs TF-IDF, points of accuracy",
                        "seconds",                        "trainable", "MB"]  # fmt: skip
    assert set("".join(found[1])) == {"-"}
    assert found[2:] == [
        [COMMONEST, "60.0", "37.5", "", "", "", "", ""],
        [MIX, "52.0", "50.0", "", "", "", "", ""],
        [MAJORITY, "50.1 [46.1, 53.1]", "33.4 [28.4, 38.4]", "50.1", "", "0.0", "2", "321"],
        [TFIDF, "77.7 [73.7, 80.7]", "76.6 [71.6, 81.6]", "77.7", "", "1.5", "12,345", "321"],
        ["frozen", "70.0 [66.0, 73.0]", "68.8 [63.8, 73.8]", "91.0", "-7.7 [-12.0, -3.0]", "5.0", "98,765", "1,234"],
        ["lora (adapted)", "79.0 [75.0, 82.0]", "77.8 [72.8, 82.8]", "91.0", "+1.3 [-2.0, +4.6]", "80.0", "98,765",
         "1,234"],
        ["full", "86.2 [82.2, 89.2]", "85.0 [80.0, 90.0]", "91.0", "+8.5 [+3.1, +13.8]", "200.0", "98,765", "1,234"],
    ]  # fmt: skip


def test_json_holds_the_same(three):
    _, files = write_report(folders(three))
    rows = json.loads(files[1].read_text(encoding="utf-8"))
    assert [row["arm"] for row in rows] == [COMMONEST, MIX, MAJORITY, TFIDF, "frozen", "lora", "full"]
    assert [row["run"] for row in rows] == [None, None, None, None, "frozen", "adapted", "full"]
    assert [row["accuracy"] for row in rows] == [0.6, 0.52, 0.501, 0.777, 0.7, 0.79, 0.862]
    assert rows[5]["accuracy_interval"] == [0.75, 0.8200000000000001]
    assert rows[5]["versus_tfidf"] == difference(0.013, -0.02, 0.046)
    assert {row["n"] for row in rows} == {200}
    assert {row["target"] for row in rows} == {"gadgets"}
    assert table(rows) == write_report(folders(three))[0]


def test_controls_appear_once_for_equal_data(three, tmp_path):
    arms = [row["arm"] for row in rows_of(three)]
    assert arms.count(MAJORITY) == arms.count(TFIDF) == 1
    other = make_run(tmp_path / "other", fingerprint="e" * 64)
    arms = [row["arm"] for row in rows_of([*three, other])]
    assert arms.count(MAJORITY) == arms.count(TFIDF) == 2
    assert arms.count(COMMONEST) == arms.count(MIX) == 2
    assert len(arms) == 12


def test_a_control_of_fewer_rows_says_so(tmp_path):
    run = make_run(tmp_path / "run")
    run.metrics["controls"]["tfidf"]["name"] = f"{TFIDF} on 50 rows"
    assert f"against {TFIDF} on 50 rows: " in verdict(run)
    assert [row["arm"] for row in rows_of([run])][2:] == [MAJORITY, f"{TFIDF} on 50 rows", "lora"]


def test_different_data_is_warned_of(three, tmp_path):
    warning = "These runs are on 2 different data sets or splits; compare with care."
    equal = write_report(folders(three), str(tmp_path / "equal"))[1][0].read_text(encoding="utf-8")
    assert "compare with care" not in equal
    other = make_run(tmp_path / "other", fingerprint="e" * 64)
    mixed = write_report(folders([*three, other]), str(tmp_path / "mixed"))[1][0].read_text(encoding="utf-8")
    assert warning in mixed.splitlines()


def test_other_folders_are_passed_over(three, tmp_path):
    (tmp_path / "runs" / "lora.partial").mkdir()
    every = sorted(map(str, (tmp_path / "runs").iterdir()))
    assert len(every) == 4
    text, files = write_report(every, str(tmp_path / "new" / "place"))
    assert len(text.splitlines()) == 9
    assert files[0].parent == tmp_path / "new" / "place"
    assert write_report(every, str(tmp_path / "new" / "place"))[0] == text  # again, over the old files
    with pytest.raises(UserError, match=r"no finished run among .*lora\.partial"):
        write_report([str(tmp_path / "runs" / "lora.partial")])


def test_seconds_are_those_of_preparing_and_training(tmp_path):
    run = make_run(tmp_path / "a", seconds=20.0)
    assert training_seconds(run) == 20.0
    run.seconds = {"load": 3.0, "train": 7.04}
    assert training_seconds(run) == 7.0


# the verdict


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        ((0.05, 0.01, 0.09), "helps"),
        ((0.05, 0.0001, 0.09), "helps"),
        ((-0.05, -0.09, -0.01), "hurts"),
        ((-0.05, -0.09, -0.0001), "hurts"),
        ((0.02, -0.01, 0.05), "shows no difference"),
        ((-0.02, -0.05, 0.01), "shows no difference"),
        ((0.02, 0.0, 0.04), "shows no difference"),
        ((-0.02, -0.04, 0.0), "shows no difference"),
        ((0.0, 0.0, 0.0), "shows no difference"),
    ],
)
def test_verdict(tmp_path, gain, words):
    run = make_run(tmp_path / "run", gain=gain)
    value, low, high = (f"{100 * number:+.1f}" for number in gain)
    assert verdict(run) == f"lora {words} against {TFIDF}: {value} [{low}, {high}] points of accuracy on 200 rows."
    assert verdict(run) in write_report(folders([run]))[1][0].read_text(encoding="utf-8")


def test_a_run_that_gives_one_label_to_all_is_called_so(tmp_path):
    run = make_run(tmp_path / "run")
    assert "Collapsed" not in verdict(run)
    assert "collapsed" not in table(rows_of([run]))
    run.metrics["target_test"]["collapsed"] = "gives 100.0% of the rows the label 'neg'"
    assert "Collapsed: lora gives 100.0% of the rows the label 'neg'; it has not learned" in verdict(run)
    assert "lora (run) (collapsed)" in table(rows_of([run]))
    run.metrics["controls"]["tfidf"]["target_test"]["collapsed"] = "finds none of the rows labelled 'pos' (80)"
    assert f"Collapsed: {TFIDF} finds none of the rows labelled 'pos' (80); to beat it shows little." in verdict(run)


def test_a_run_is_named_by_what_happened(tmp_path):
    happened = {"happened": ["2 of 4 epochs, by the budget"], "choices": {"epochs_by_budget": [2.0, 4.0]}}
    run = make_run(tmp_path / "coral", "full", adaptation="coral", **happened)
    name = "coral+full (2 of 4 epochs, by the budget)"
    assert load_run(run.folder).arm == name
    assert f"| {name} (coral) " in table(rows_of([run]))
    assert verdict(run).startswith(f"{name} helps")
    report = run_report(run)
    assert report.startswith(f"# {name}: ")
    assert "\n## What happened\n\n- It was trained for 2 of 4 epochs, for which the --budget of its" in report
    assert report.index("What happened") < report.index("## By class")
    plain = make_run(tmp_path / "plain", "full", adaptation="coral")
    assert plain.arm == "coral+full"
    assert "What happened" not in run_report(plain)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [((-0.2, -0.01), "is worse than"), ((-0.1, 0.0), "is not shown to be better than"),
     ((-0.1, 0.1), "is not shown to be better than")],
)  # fmt: skip
def test_what_is_not_above_a_constant_does_not_help(tmp_path, bounds, words):
    run = make_run(tmp_path / "run", gain=(0.3, 0.2, 0.4))
    run.metrics["differences"]["target_test"]["commonest"] = difference(sum(bounds) / 2, *bounds)
    assert verdict(run).startswith(f"lora {words} {COMMONEST}, which reads no text: ")
    assert f"on 200 rows; against {TFIDF} +30.0 [+20.0, +40.0] points of accuracy." in verdict(run)
    assert "helps" not in verdict(run)


def test_metrics_that_disagree_are_said_first(tmp_path):
    run = make_run(tmp_path / "run", gain=(0.3, 0.2, 0.4))
    torn = {**difference(0.1, 0.05, 0.15), "accuracy": {"value": -0.1, "low": -0.15, "high": -0.05}}
    run.metrics["differences"]["target_test"] |= {"commonest": torn, "majority": torn}
    assert verdict(run).startswith(
        f"Accuracy and macro-F1 disagree: against {COMMONEST} lora has -10.0 [-15.0, -5.0] points of accuracy and "
        f"+10.0 [+5.0, +15.0] of macro-F1 (so it is against {MAJORITY}); nothing is recommended until --metric says "
        "which counts. Against"
    )
    assert "helps" not in verdict(run)
    run.arguments["metric"] = "macro_f1"
    assert "nothing is recommended" not in verdict(run)
    assert f"lora helps against {TFIDF}" in verdict(run)


def test_what_the_source_adds_to_target_labels_is_not_verified(tmp_path):
    words = "Not verified: what the source adds to the target's labels (hf-transfer compare trains on these alone)."
    run = make_run(tmp_path / "run")
    assert words not in verdict(run)
    run.arguments["target_shots"] = "all"
    assert words in verdict(run)
    run.arguments["target_only"] = True
    assert words not in verdict(run), "it has no source"


def test_a_label_that_is_hardly_found_shows_all_recalls(three):
    rows = rows_of(three)
    assert "recall by label" not in table(rows), "of the constant none is expected"
    rows[-1]["recall"]["pos"] = 0.09
    assert "| recall by label " in table(rows)
    assert "| neg 82, pos 9 " in table(rows)


def test_another_metric_has_a_column_of_its_own(tmp_path):
    run = make_run(tmp_path / "run", metric="balanced_accuracy")
    for part in (run.metrics["target_test"], *(one["target_test"] for one in run.metrics["controls"].values())):
        part["balanced_accuracy"] = 0.7
        part["intervals"]["balanced_accuracy"] = [0.65, 0.75]
    found = table(rows_of([run])).splitlines()
    assert cells(found[0])[3] == "balanced accuracy"
    assert cells(found[0])[5] == "vs TF-IDF, points of balanced accuracy"
    assert cells(found[-1])[3] == "70.0 [65.0, 75.0]"


def test_runs_judged_by_different_metrics_say_which(tmp_path):
    plain = make_run(tmp_path / "plain")
    balanced = make_run(tmp_path / "balanced", metric="macro_f1")
    shown = [line for line in table(rows_of([plain, balanced])).splitlines() if line.startswith("| lora")]
    assert [("points" in line, " accuracy |" in line, " macro-F1 |" in line) for line in shown] == [
        (False, True, False), (False, False, True)]  # fmt: skip
    text = write_report([str(plain.folder), str(balanced.folder)])[1][0].read_text(encoding="utf-8")
    assert "\n- plain: " in text
    assert "\n- balanced: " in text


def test_without_a_target_the_source_is_the_headline(tmp_path):
    run = make_run(tmp_path / "run", gain=(0.05, 0.01, 0.09))
    assert test_set(run) == "target_test"
    for part in (run.metrics, run.metrics["differences"], run.metrics["references"], *run.metrics["controls"].values()):
        del part["target_test"]
    run.data["target"] = None
    run.metrics["differences"]["source_test"]["tfidf"] = difference(-0.2, -0.3, -0.1)
    assert test_set(run) == "source_test"
    assert verdict(run).startswith("lora hurts")
    assert rows_of([run])[-1]["accuracy"] == 0.91
    assert run_report(run).startswith("# lora: hotels, films, gadgets -> held-out source rows\n")


# the report of one run


def test_run_report(tmp_path):
    run = make_run(tmp_path / "run")
    text = run_report(run)
    lines = text.splitlines()
    assert lines[0] == "# lora: hotels, films -> gadgets"
    assert verdict(run) in lines
    assert table(rows_of([run])) in text
    assert "| neg | 91.1 | 82.2 | 86.4 | 120 |" in lines
    assert "| pos | 73.3 | 64.4 | 68.5 | 80 |" in lines
    assert "Expected calibration error on the test rows: 3.1 %." in lines
    for fact in (
        "- model: tiny/model (abc123), 22,713,216 parameters",
        "- rows: train 700, validation 100, source_test 200, target_test 200",
        f"- data fingerprint: `{'f' * 16}`",
        "- made by: `hf-transfer run finetune --method lora --source hotels.csv`",
        '- chosen by the method: `{"epochs": 3}`',
    ):
        assert fact in lines
    assert "before training" not in text
    run.data["unlabeled_rows"] = 300
    assert "target_test 200, unlabelled 300\n" in run_report(run)
    run.metrics["source_test_before"] = scores(0.955, 0.95)
    assert "Source accuracy before training 95.5 %, after 91.0 %." in run_report(run).splitlines()
