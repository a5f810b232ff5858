"""The same job gives the same result however it is cut up: accumulation, checkpointing, two processes, a kill."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import conftest
import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig
from safetensors.numpy import load_file
from warm import launch, template

from hf_transfer import tasks
from hf_transfer.arguments import parse
from hf_transfer.errors import UserError
from hf_transfer.results import load_run


@pytest.fixture(scope="module")
def steady(tmp_path_factory):
    """A tiny BERT without dropout: nothing random but the order of the rows, which the seed fixes.

    It is trained with SGD, whose steps are linear in the gradient; Adam's magnify the rounding of the smallest ones.
    """
    folder = conftest.make_model(tmp_path_factory.mktemp("steady"))
    config = json.loads((folder / "config.json").read_text())
    config["hidden_dropout_prob"] = 0.0
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def flags(model, tables, output, *more):
    return ["--method", "full", "--model", str(model), "--source", str(tables["source"]), "--target",
            str(tables["target"]), "--output_dir", str(output), "--max_length", "48", "--precision", "fp32", "--quiet",
            "--num_train_epochs", "2", "--optim", "sgd", "--learning_rate", "0.1",
            "--train_sampling_strategy", "random",
            "--early_stopping_patience", "0", "--validation_fraction", "0.2", "--test_fraction", "0",
            *more]  # fmt: skip


def same(one, other, *, weights=2e-4):
    """Two runs agree in training loss, validation metrics, every weight and every prediction."""
    losses = [[entry["loss"] for entry in run.history if "loss" in entry] for run in (one, other)]
    assert len(losses[0]) == 2
    np.testing.assert_allclose(*losses, rtol=1e-4)
    # not the Trainer's eval_loss: with several processes it averages over padded batches
    evals = [[entry["eval_accuracy"] for entry in run.history if "eval_accuracy" in entry] for run in (one, other)]
    assert len(evals[0]) == 2
    assert evals[0] == evals[1]
    losses = [run.metrics[which]["loss"] for which in ("validation", "target_test") for run in (one, other)]
    np.testing.assert_allclose(losses[::2], losses[1::2], rtol=1e-3)
    first, second = (load_file(run.folder / "model.safetensors") for run in (one, other))
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], atol=weights, err_msg=name)
    rows = [pd.read_parquet(run.folder / "predictions.parquet") for run in (one, other)]
    np.testing.assert_allclose(rows[0]["p_positive"], rows[1]["p_positive"], atol=1e-3)
    assert list(rows[0]["row"]) == list(rows[1]["row"])
    for which in ("target_test", "validation"):
        assert one.metrics[which]["accuracy"] == other.metrics[which]["accuracy"]
        assert one.metrics[which]["n"] == other.metrics[which]["n"]


@pytest.fixture(scope="module")
def plain(steady, tables, recipe, tmp_path_factory):
    return recipe(flags(steady, tables, tmp_path_factory.mktemp("plain") / "run"))


@pytest.fixture(scope="module")
def later(tables, tmp_path_factory):
    """What a run on `tables` may go on with: it has learned from none of these rows."""
    films = [json.loads(line) for line in (conftest.CORPUS / "films.labeled.jsonl").open(encoding="utf-8")][:60]
    return {"source": tables["target"],
            "target": conftest.write_table(tmp_path_factory.mktemp("later") / "films.jsonl", films)}  # fmt: skip


def test_training_learns_something(plain, steady):
    before, after = load_file(steady / "model.safetensors"), load_file(plain.folder / "model.safetensors")
    moved = [name for name in before if not np.array_equal(before[name], after[f"bert.{name}"])]
    assert len(moved) == len(before) > 30


@pytest.mark.recipe
def test_gradient_accumulation_changes_nothing(plain, steady, tables, recipe, tmp_path):
    cut = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "4"]
    same(plain, recipe(flags(steady, tables, tmp_path / "run", *cut)))


@pytest.mark.recipe
@pytest.mark.parametrize("method", ["full", "lora"])
def test_activation_checkpointing_changes_nothing(method, steady, tables, recipe, tmp_path):
    one = recipe(flags(steady, tables, tmp_path / "one", "--method", method))
    other = recipe(flags(steady, tables, tmp_path / "other", "--method", method, "--activation_checkpointing", "true"))
    same(one, other)


@pytest.mark.recipe
def test_class_weights_scale_the_loss(steady, tables, recipe, tmp_path):
    rows = [json.loads(line) for line in tables["source"].read_text().splitlines()]
    skewed = [r for r in rows if r["label"] == "negative"] + [r for r in rows if r["label"] == "positive"][:8]
    tables = {**tables, "source": conftest.write_table(tmp_path / "skewed.jsonl", skewed)}
    run = recipe(flags(steady, tables, tmp_path / "run"))
    weights = dict(zip(run.label_names, run.choices["class_weights"], strict=True))
    counts = run.data["labels"]["train"]
    assert weights["positive"] / weights["negative"] == pytest.approx(counts["negative"] / counts["positive"], rel=1e-3)
    none = recipe(flags(steady, tables, tmp_path / "none", "--class_weights", "none"))
    assert "class_weights" not in none.choices
    assert none.history[0]["loss"] != run.history[0]["loss"]


@pytest.mark.recipe
def test_a_head_of_the_same_labels_is_kept_and_forgetting_measured(plain, later, recipe, tmp_path):
    run = recipe(flags(plain.folder, later, tmp_path / "again", "--test_fraction", "0.2"))
    assert 0 <= run.metrics["source_test_before"]["accuracy"] <= 1
    assert "before training" in (run.folder / "report.md").read_text()
    assert "source_test_before" not in plain.metrics


@pytest.mark.recipe
def test_two_processes_are_two_and_change_nothing(plain, steady, tables, tmp_path):
    command = [sys.executable, "-m", "hf_transfer.cli", "run", "--num_processes", "2", "finetune",
               *flags(steady, tables, tmp_path / "run", "--per_device_train_batch_size", "8")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = load_run(tmp_path / "run")
    assert run.world_size == 2
    assert plain.world_size == 1
    same(plain, run)
    assert run.data["rows"]["target_test"] == run.metrics["target_test"]["n"] == 40


@pytest.mark.recipe
def test_four_processes_share_the_encoding_of_frozen_layers(steady, tables, recipe, tmp_path, monkeypatch):
    more = ["--method", "partial", "--top_layers", "1"]
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(tmp_path / "one process"))
    one = recipe(flags(steady, tables, tmp_path / "one", *more))
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(tmp_path / "four processes"))
    launch(4, "finetune", *flags(steady, tables, tmp_path / "four", *more, "--per_device_train_batch_size", "4"))
    four = load_run(tmp_path / "four")
    assert four.world_size == 4
    assert four.choices["frozen_layers_cached"]
    states = [next(tmp_path.glob(f"{name} process*/states-*.bin")).read_bytes() for name in ("one", "four")]
    alone, shared = (np.frombuffer(each, dtype=np.float32) for each in states)
    np.testing.assert_allclose(alone, shared, atol=1e-5)
    same(one, four)


@pytest.mark.parametrize(("strategy", "said"), [("FSDP", "FSDP has no effect"), ("DEEPSPEED", "DeepSpeed needs GPUs")])
def test_what_a_launcher_asks_for_in_vain_is_refused(strategy, said, steady, tables, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setenv(f"ACCELERATE_USE_{strategy}", "true")
    with pytest.raises(UserError, match=f"{said}.*--num_processes N"):
        parse(flags(steady, tables, tmp_path / "run"))


def test_launcher_configs_are_accelerates_own():
    """Read by accelerate itself, which refuses keys that it doesn't know."""
    files = sorted((conftest.REPOSITORY / "recipes" / "configs" / "accelerate").glob("*.yaml"))
    kinds = {file.stem: ClusterConfig.from_yaml_file(file).distributed_type.value for file in files}
    assert kinds == {"ddp": "MULTI_GPU", "deepspeed": "DEEPSPEED", "fsdp": "FSDP"}


def test_blank_rows_cost_nothing():
    """With several processes the last step is filled up with rows labelled -100."""
    loss = tasks.load("text_classification").loss(None)
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, -100, -100])
    all_rows = loss({"logits": logits}, labels, num_items_in_batch=4)
    assert all_rows.item() == pytest.approx(loss({"logits": logits[:4]}, labels[:4]).item())


@pytest.mark.recipe
def test_two_processes_with_an_uneven_last_step(steady, tables, tmp_path):
    uneven = flags(steady, tables, tmp_path / "run", "--test_fraction", "0.12", "--num_train_epochs", "1")
    launch(2, "finetune", *uneven)
    run = load_run(tmp_path / "run")
    assert run.world_size == 2
    assert run.data["rows"]["train"] % 2 == 0
    assert run.data["rows"]["train"] % 32
    assert len(pd.read_parquet(run.folder / "predictions.parquet")) == 60 - run.data["rows"]["train"] + 40


@pytest.mark.recipe
def test_two_processes_report_a_user_error_once(steady, tables, tmp_path):
    command = [sys.executable, "-m", "hf_transfer.cli", "run", "--num_processes", "2", "finetune",
               *flags(steady, {**tables, "source": "nowhere.csv"}, tmp_path / "run")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("nowhere.csv") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.recipe
def test_a_killed_run_looks_unfinished_and_resumes_to_the_same_end(steady, tables, recipe, tmp_path):
    long = ["--num_train_epochs", "12"]
    whole = recipe(flags(steady, tables, tmp_path / "whole", *long))
    output = tmp_path / "killed"
    script = conftest.REPOSITORY / "recipes" / "finetune.py"
    process = template().start(script, *flags(steady, tables, output, *long))
    checkpoints = output.with_name("killed.partial") / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait().returncode == -signal.SIGKILL, "it did not end by itself"
    assert not output.exists(), "a killed run never looks finished"
    kept = list(checkpoints.glob("checkpoint-*/trainer_state.json"))
    assert kept, "there was something to resume from"
    assert not (checkpoints.parent / "run.json").exists()
    for file in kept:  # as if it had taken an hour so far
        state = json.loads(file.read_text(encoding="utf-8"))
        assert state["stateful_callbacks"]["Spent"]["args"]["before"] > 0
        state["stateful_callbacks"]["Spent"]["args"]["before"] = 3600.0
        file.write_text(json.dumps(state), encoding="utf-8")
    resumed = recipe(flags(steady, tables, output, *long, "--resume"))
    assert 3600 < resumed.seconds["train"] < 3720, "what was spent before the kill counts"
    assert resumed.history[-1]["step"] == whole.history[-1]["step"]
    first, second = (load_file(run.folder / "model.safetensors") for run in (whole, resumed))
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], atol=1e-5, err_msg=name)


def test_report_to_passes_through(steady, tables, recipe, tmp_path):
    run = recipe(flags(steady, tables, tmp_path / "run", "--report_to", "tensorboard"))
    assert len(list((run.folder / "runs").rglob("events.out.tfevents.*"))) == 1


@pytest.mark.recipe
def test_two_processes_train_a_kept_head_together(plain, later, recipe, tmp_path):
    """Testing a model before it is trained must not keep it from being wrapped for several processes."""
    more = ["--validation_fraction", "0.2", "--test_fraction", "0.2"]
    one = recipe(flags(plain.folder, later, tmp_path / "one", *more, "--per_device_train_batch_size", "24"))
    launch(2, "finetune", *flags(plain.folder, later, tmp_path / "two", *more, "--per_device_train_batch_size", "12"))
    assert one.data["rows"]["train"] == 24, "one step an epoch holds every row, in whatever order"
    two = load_run(tmp_path / "two")
    assert two.world_size == 2
    same(one, two)


@pytest.mark.recipe
def test_two_processes_with_batches_of_similar_length_see_every_row(steady, tables, recipe, tmp_path):
    """With all rows in one step an epoch, grouping by length must not lose or repeat any in the second epoch."""
    all_rows = ["--train_sampling_strategy", "group_by_length", "--max_steps", "4", "--eval_strategy", "no",
                "--save_strategy", "no", "--load_best_model_at_end", "false"]  # fmt: skip
    one = recipe(flags(steady, tables, tmp_path / "one", *all_rows, "--per_device_train_batch_size", "48"))
    launch(2, "finetune", *flags(steady, tables, tmp_path / "two", *all_rows, "--per_device_train_batch_size", "24"))
    two = load_run(tmp_path / "two")
    assert two.world_size == 2
    assert one.data["rows"]["train"] == 48
    first, second = (load_file(run.folder / "model.safetensors") for run in (one, two))
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], atol=2e-4, err_msg=name)


@pytest.mark.recipe
def test_resume_refuses_other_data_and_passes_over_half_a_checkpoint(steady, tables, recipe, tmp_path):
    output = tmp_path / "run"
    script = conftest.REPOSITORY / "recipes" / "finetune.py"
    long = [*flags(steady, tables, output, "--num_train_epochs", "12")]
    process = template().start(script, *long)
    checkpoints = output.with_name("run.partial") / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.wait().returncode == -signal.SIGKILL, "it did not end by itself"
    (checkpoints / "checkpoint-999").mkdir()  # as a kill in the middle of writing leaves it
    original = tables["source"].read_text()
    try:
        tables["source"].write_text("\n".join(original.splitlines()[2:]) + "\n")
        with pytest.raises(UserError, match="data changed"):
            recipe([*long, "--resume"])
    finally:
        tables["source"].write_text(original)
    assert recipe([*long, "--resume"]).history[-1]["epoch"] == 12


@pytest.mark.recipe
def test_a_config_file_and_a_flag_that_wins(steady, tables, recipe, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model: {steady}\nsource:\n  - {tables['source']}\ntarget: {tables['target']}\nmax_length: 48\n"
        "precision: fp32\nquiet: true\nmethod: lora\nlearning_rate: 1e-3\nlora_r: 2\nnum_train_epochs: 1\n"
    )
    run = recipe(["--config", str(config), "--output_dir", str(tmp_path / "run"), "--lora_r", "3"])
    assert run.arguments["learning_rate"] == 0.001
    assert run.arguments["lora_r"] == 3
    adapter = json.loads((run.folder / "adapter" / "adapter_config.json").read_text())
    assert adapter["r"] == 3


@pytest.mark.recipe
@pytest.mark.parametrize("column", ["text", "number"])
def test_nothing_is_written_beside_the_data(column, plain, tables, recipe, tmp_path):
    """A dataset folder may be read-only, and is not ours: relabelling, tokenising and recording leave it alone."""
    rows = [json.loads(line) for line in tables["source"].read_text().splitlines()]
    folder = tmp_path / "data"
    saved = [{**row, "number": 1000 + i} for i, row in enumerate(rows)]
    datasets.Dataset.from_list(saved).save_to_disk(folder)
    before = sorted(folder.rglob("*"))
    turned = tmp_path / "turned"
    shutil.copytree(plain.folder, turned)
    config = json.loads((turned / "config.json").read_text())
    config["id2label"] = {"0": config["id2label"]["1"], "1": config["id2label"]["0"]}
    config["label2id"] = {name: int(i) for i, name in config["id2label"].items()}
    (turned / "config.json").write_text(json.dumps(config))
    (turned / "run.json").unlink()  # else it would be known to have learned from some of these rows
    run = recipe(["--model", str(turned), "--source", str(folder), "--text_column", column, "--max_length", "48",
                  "--max_steps", "2", "--quiet", "--output_dir", str(tmp_path / "run")])  # fmt: skip
    assert run.label_names == list(config["id2label"].values()), "the rows were relabelled"
    assert sorted(folder.rglob("*")) == before


@pytest.mark.recipe
def test_weights_that_do_not_move_are_told_of(steady, tables, recipe, tmp_path, capsys):
    recipe(flags(steady, tables, tmp_path / "run", "--learning_rate", "1e-30"))
    assert "trainable tensors did not move" in capsys.readouterr().out
    recipe(flags(steady, tables, tmp_path / "other"))
    assert "did not move" not in capsys.readouterr().out
