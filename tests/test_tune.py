"""Tuning: the trials are trainings the run could have done, the choice is made on validation rows, a kill loses one."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import conftest
import pandas as pd
import pytest
from warm import launch

from hf_transfer import tuning
from hf_transfer.arguments import parse
from hf_transfer.errors import UserError
from hf_transfer.results import load_run
from hf_transfer.tuning import TuneArguments, search_space

SHORT = ["--max_length", "40", "--precision", "fp32", "--validation_fraction", "0.2", "--quiet"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model of one layer: these tests train often."""
    return conftest.make_model(tmp_path_factory.mktemp("small"), layers=1)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    texts = [{"text": text} for text in conftest.corpus_texts("films")[:40]]
    return conftest.write_table(tmp_path_factory.mktemp("pool") / "pool.jsonl", texts)


def flags(model, tables, output, *more):
    return ["--model", str(model), "--source", str(tables["source"]), "--target", str(tables["target"]),
            "--output_dir", str(output), *SHORT, *more]  # fmt: skip


def best_epoch(run):
    """The validation score that the run chose its checkpoint by."""
    return min(entry["eval_loss"] for entry in run.history if "eval_loss" in entry)


def without_seconds(tuned):
    trials = [{name: value for name, value in trial.items() if name != "seconds"} for trial in tuned["trials"]]
    return {**tuned, "trials": trials}


def space_of(*more):
    return search_space(parse(["--source", "x.csv", "--output_dir", "x", *more], more=(TuneArguments,)))


def test_the_space_lies_around_the_methods_own_settings():
    space = space_of("--method", "lora")
    assert space.learning_rate == (1e-3 / 4, 1e-3 * 4)
    assert space.num_train_epochs == (2, 5, 10)
    assert space.first == ({"learning_rate": 1e-3, "num_train_epochs": 5},)


def test_what_is_given_is_tried_first_and_the_methods_own_rate_second():
    space = space_of("--method", "full", "--learning_rate", "1e-7", "--num_train_epochs", "1")
    assert [trial["learning_rate"] for trial in space.first] == [1e-7, 5e-5]
    assert space.learning_rate == (1e-7 / 4, 5e-5 * 4)
    assert space.num_train_epochs == (1, 2)
    assert {trial["num_train_epochs"] for trial in space.first} == {1}
    steps = space_of("--max_steps", "9")
    assert steps.num_train_epochs == ()
    assert steps.first == ({"learning_rate": 5e-5},)


def test_the_best_is_the_first_of_equals_and_no_failure():
    record = {"greater_is_better": False, "trials": [{"score": s} for s in (None, 0.5, 0.4, 0.4)]}
    assert tuning._best(record) == 2
    assert tuning._best({**record, "greater_is_better": True}) == 1
    assert tuning._best({**record, "trials": [{"score": None}] * 2}) == 0


@pytest.fixture(scope="module")
def tuned(small, tables, recipe, tmp_path_factory):
    return recipe(flags(small, tables, tmp_path_factory.mktemp("tuned") / "run", "--tune", "4"))


@pytest.mark.recipe
def test_a_tuned_run_says_what_was_tried_and_trains_with_the_best(tuned, small, tables, recipe, tmp_path):
    record = tuned.choices["tuned"]
    first, *others = record["trials"]
    assert (first["learning_rate"], first["num_train_epochs"]) == (5e-5, 4), "what would have been used is tried first"
    assert len({(trial["learning_rate"], trial["num_train_epochs"]) for trial in record["trials"]}) == 4
    assert all(5e-5 / 4 <= trial["learning_rate"] <= 5e-5 * 4 for trial in others)
    best = record["trials"][record["chosen"]]
    assert best["score"] == min(trial["score"] for trial in record["trials"]) < first["score"]
    assert tuned.arguments["learning_rate"] == best["learning_rate"]
    assert tuned.arguments.get("num_train_epochs", 3) == best["num_train_epochs"]
    assert record["by"] == "loss"
    assert best["score"] == best_epoch(tuned), "a trial is the very training that follows"
    assert tuned.seconds["tune"] > 0
    assert "--tune 4" in tuned.command
    report = (tuned.folder / "report.md").read_text()
    assert f"learning_rate {best['learning_rate']:g}" in report
    assert "the best of 4 trials by validation loss" in report
    assert not list(tuned.folder.rglob("trials.log*"))
    given = ["--learning_rate", str(best["learning_rate"]), "--num_train_epochs", str(best["num_train_epochs"])]
    plain = recipe(flags(small, tables, tmp_path / "plain", *given))
    losses = [[(e.get("loss"), e.get("eval_loss")) for e in run.history] for run in (plain, tuned)]
    assert losses[0] == losses[1], "as if the settings had been given"
    assert plain.metrics["target_test"]["loss"] == tuned.metrics["target_test"]["loss"]
    assert "tuned" not in plain.choices
    assert "tune" not in plain.seconds


@pytest.mark.recipe
@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("lora", []),
        ("partial", ["--top_layers", "1", "--layer_lr_decay", "0.5", "--gradual_unfreezing", "true"]),
        ("prompt", ["--prompt_tokens", "2"]),
        ("adapter", []),
    ],
)
def test_every_trial_starts_from_the_pretrained_weights(method, more, tiny, tables, recipe, tmp_path):
    """The second trial scores as the training that follows, whatever `prepare` makes of the model."""
    run = recipe(flags(tiny, tables, tmp_path / "run", "--method", method, "--num_train_epochs", "2",
                       "--learning_rate", "1e-9", "--tune", "2", *more))  # fmt: skip
    record = run.choices["tuned"]
    scores = [entry[f"eval_{record['by']}"] for entry in run.history if f"eval_{record['by']}" in entry]
    assert record["trials"][1]["score"] == min(scores)
    assert record["chosen"] == 1


@pytest.mark.recipe
def test_a_planted_bad_learning_rate_is_beaten(small, tables, recipe, tmp_path):
    for rate in ("1e-7", "1e30"):
        run = recipe(flags(small, tables, tmp_path / rate, "--tune", "2", "--learning_rate", rate,
                           "--num_train_epochs", "1"))  # fmt: skip
        record = run.choices["tuned"]
        assert record["trials"][0]["learning_rate"] == float(rate)
        assert record["chosen"] == 1
        assert "learning_rate" not in run.arguments, "it is the library's default again"
    assert record["trials"][0]["score"] is None, "a loss that is no number is the worst score"


@pytest.mark.recipe
@pytest.mark.parametrize(
    "how",
    [
        ["--alignment", "coral", "--method", "lora"],
        ["--alignment", "dann", "--method", "partial", "--top_layers", "1"],
        ["--alignment", "none", "--source_weights", "importance"],
    ],
)
def test_adapting_is_tuned_too(how, small, pool, tables, tmp_path):
    adapt = conftest.load_recipe("adapt_domain")
    run = adapt(flags(small, tables, tmp_path / "run", *how, "--target_unlabeled", str(pool), "--num_train_epochs", "1",
                      "--tune", "2"))  # fmt: skip
    record = run.choices["tuned"]
    assert record["trials"][record["chosen"]]["score"] == best_epoch(run)
    assert run.choices.get("source_weights", "none") == ("importance" if "importance" in how else "none")


def relabelled(file, output, rows):
    """Write the table with the labels of `rows` turned."""
    other = {"positive": "negative", "negative": "positive"}
    table = [json.loads(line) for line in file.read_text().splitlines()]
    return conftest.write_table(
        output, [{**row, "label": other[row["label"]]} if i in rows else row for i, row in enumerate(table)]
    )


@pytest.mark.recipe
def test_labels_that_training_may_not_see_do_not_matter(small, tables, recipe, tmp_path):
    table = [json.loads(line) for line in tables["target"].read_text().splitlines()]
    split = [{**row, "split": "train" if i % 2 else "test"} for i, row in enumerate(table)]
    target = conftest.write_table(tmp_path / "target.jsonl", split)
    seen = ["--tune", "2", "--target_shots", "6", "--num_train_epochs", "1"]
    runs = [recipe(flags(small, {**tables, "target": target}, tmp_path / "run", *seen))]
    rows = pd.read_parquet(runs[0].folder / "predictions.parquet")
    tested = set(rows[rows["set"] == "target_test"]["row"])
    assert tested == set(range(0, 40, 2))
    for name, turned in (("unseen", tested), ("all", set(range(40)))):
        other = relabelled(target, tmp_path / f"{name}.jsonl", turned)
        runs.append(recipe(flags(small, {**tables, "target": other}, tmp_path / name, *seen)))
    records = [without_seconds(run.choices["tuned"]) for run in runs]
    assert records[0] == records[1]
    assert runs[0].metrics["target_test"]["loss"] != runs[1].metrics["target_test"]["loss"]
    assert records[0] != records[2], "what it may see does"


@pytest.mark.recipe
def test_a_killed_search_goes_on_with_the_trial_it_was_at(tuned, small, tables, recipe, tmp_path):
    output = tmp_path / "killed"
    wanted = flags(small, tables, output, "--tune", "4")
    process = subprocess.Popen([sys.executable, str(conftest.REPOSITORY / "recipes" / "finetune.py"), *wanted])
    log = tmp_path / "killed.partial" / "checkpoints" / "trials.log"
    started = '"op_code":4'  # a trial
    deadline = time.monotonic() + 240
    while not (log.is_file() and log.read_text().count(started) >= 3) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = tuning._record(log)["trials"]
    assert len(done) == 2, "killed in the third"
    with log.open("a") as file:
        file.write('{"op_code":5,"half a li')  # as a full disk leaves it
    with pytest.raises(UserError, match="other values of tune"):
        recipe([*wanted[:-1], "5", "--resume"])
    run = recipe([*wanted, "--resume"])
    assert run.choices["tuned"]["trials"][:2] == done, "not made again: they took the very same seconds"
    assert without_seconds(run.choices["tuned"]) == without_seconds(tuned.choices["tuned"])


@pytest.mark.recipe
@pytest.mark.parametrize("at", [0, 1, 2])
def test_an_interrupted_search_makes_no_trial_twice(at, small, tables, recipe, tmp_path, monkeypatch):
    """Also in the first trial, whose settings are not drawn, and in the training after the last one."""
    from transformers import Trainer

    wanted = flags(small, tables, tmp_path / "run", "--tune", "2", "--max_steps", "1", "--eval_strategy", "steps",
                   "--save_strategy", "steps", "--eval_steps", "1", "--save_steps", "1")  # fmt: skip
    train, rates = Trainer.train, []

    def watched(self, *args, trial=None, **others):
        if len(rates) == at:
            raise KeyboardInterrupt
        result = train(self, *args, trial=trial, **others)
        rates.append(self.args.learning_rate)
        return result

    monkeypatch.setattr(Trainer, "train", watched)
    with pytest.raises(KeyboardInterrupt):
        recipe(wanted)
    monkeypatch.setattr(Trainer, "train", train)
    log = tmp_path / "run.partial" / "checkpoints" / "trials.log"
    assert len(tuning._record(log)["trials"]) == len(rates) == at
    tried = []
    monkeypatch.setattr(tuning, "_try", lambda *args, do=tuning._try: tried.append(args[-1]) or do(*args))
    run = recipe([*wanted, "--resume"])
    assert tried == list(range(at, 2))
    trials = run.choices["tuned"]["trials"]
    assert [trial["learning_rate"] for trial in trials][:at] == rates
    assert trials[0]["learning_rate"] == 5e-5


@pytest.mark.recipe
def test_two_processes_try_the_same(small, tables, tmp_path):
    more = ["--tune", "3", "--num_train_epochs", "1", "--train_sampling_strategy", "random", "--optim", "sgd",
            "--learning_rate", "0.01", "--per_device_train_batch_size", "8"]  # fmt: skip
    launch(2, "finetune", *flags(small, tables, tmp_path / "two", *more))
    run = load_run(tmp_path / "two")
    assert run.world_size == 2
    record = run.choices["tuned"]
    assert [trial["learning_rate"] for trial in record["trials"][:2]] == [0.01, 5e-5]
    assert len(record["trials"]) == 3
    assert record["trials"][record["chosen"]]["score"] == best_epoch(run)


def refused(small, tables, tmp_path, *more, recipe="finetune"):
    with pytest.raises(UserError) as error:
        conftest.load_recipe(recipe)(flags(small, tables, tmp_path / "run", *more))
    assert not list(tmp_path.glob("run*"))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--tune", "-1"], "--tune is -1; give the number"),
        (["--tune", "2", "--method", "frozen"], "--method frozen has none"),
        (["--tune", "2", "--validation_fraction", "0"], "--validation_fraction 0 leaves none"),
        (["--tune", "2", "--eval_strategy", "no", "--load_best_model_at_end", "false"], "--eval_strategy is no"),
        (["--tune", "2", "--method", "lora", "--lora_r", "0"], "--lora_r is 0"),
    ],
)
def test_refused(more, said, small, tables, tmp_path):
    assert said in refused(small, tables, tmp_path, *more)


def test_refused_by_adapt_domain(small, pool, tables, tmp_path):
    more = ["--tune", "2", "--method", "frozen", "--feature_map", "moments", "--target_unlabeled", str(pool)]
    assert "--method frozen has none" in refused(small, tables, tmp_path, *more, recipe="adapt_domain")


def test_too_few_rows_to_validate_are_told_of(small, tables, tmp_path):
    rows = tables["source"].read_text().splitlines()
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join([*rows[:6], *rows[-6:]]) + "\n")
    said = refused(small, {**tables, "source": few}, tmp_path, "--tune", "2", "--validation_fraction", "0.01",
                   "--test_fraction", "0")  # fmt: skip
    assert "--tune chooses by validation rows, and there are none" in said


def test_a_missing_optuna_is_named(small, tables, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "optuna" else find(name, *rest)
    )
    assert "pip install 'hf-transfer-nlp[tune]'" in refused(small, tables, tmp_path, "--tune", "2")


def test_sharded_models_are_refused(small, tables, tmp_path, monkeypatch):
    arguments = parse(flags(small, tables, tmp_path / "run", "--tune", "2"), more=(TuneArguments,))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="not with FSDP or DeepSpeed"):
        tuning.check_tuning(arguments)


def test_help_tells_of_it(capsys):
    with pytest.raises(SystemExit):
        conftest.load_recipe("finetune")(["--help"])
    assert "--tune" in capsys.readouterr().out
