"""The contract that every method meets: the right weights move, and plain transformers loads what is left."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref

import conftest
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from warm import launch

from hf_transfer import methods, tasks, upper
from hf_transfer.arguments import parse
from hf_transfer.begin import encode_all
from hf_transfer.controls import run_controls
from hf_transfer.data import load_data
from hf_transfer.errors import UserError
from hf_transfer.features import TokenStates
from hf_transfer.inference import SAMPLE, predict_logits
from hf_transfer.methods import Setup
from hf_transfer.models import layers, load_model
from hf_transfer.pooling import fit_pools, pool_logits
from hf_transfer.resources import Meter
from hf_transfer.results import load_run
from hf_transfer.training import fit

METHODS = ["adapter", "bitfit", "frozen", "full", "ia3", "lora", "partial", "prompt", "qlora"]
FLAGS = {
    "adapter": ["--adapter_size", "8"],
    "partial": ["--top_layers", "1"],
    "prompt": ["--prompt_tokens", "4"],
    "frozen": ["--frozen_layer", "2"],
}
# method -> does a trunk parameter of this name move? (layers are numbered from 0, the tiny model has 3)
MOVES = {
    "full": lambda name: True,
    "partial": lambda name: "layer.2." in name,
    "bitfit": lambda name: name.endswith("bias"),
    "lora": lambda name: False,
    "ia3": lambda name: False,
    "adapter": lambda name: False,
    "prompt": lambda name: False,
}


def flags(method, model, tables, output, *more):
    return ["--method", method, "--model", str(model), "--source", str(tables["source"]), "--target",
            str(tables["target"]), "--output_dir", str(output), "--max_length", "48", "--precision", "fp32", "--quiet",
            "--validation_fraction", "0.2", *FLAGS.get(method, []),
            *([] if method == "frozen" else ["--num_train_epochs", "3"]), *more]  # fmt: skip


def prepared(method, model, tables, folder, *more):
    """Go through the verbs of the recipe up to the trained model."""
    arguments = parse(flags(method, model, tables, folder / "run", *more))
    task = tasks.load("text_classification")
    domains = load_data(arguments.data, arguments.train.seed)
    loaded = load_model(arguments.model, task, domains.label_names, arguments.train.seed)
    encoded, _ = encode_all(arguments, domains, loaded, task)
    setup = Setup(loaded, encoded["train"], encoded["validation"], task.collator(loaded.tokenizer), "fp32", None, 0)
    before = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
    ready = arguments.method_module.prepare(setup, arguments.method)
    history = fit(ready, setup, task, arguments, folder)
    if method == "partial":
        ready.merge(ready.model, loaded.tokenizer)
    return arguments, task, domains, encoded, setup, before, ready, history


def test_there_are_nine_methods_and_one_task():
    assert methods.names() == METHODS
    assert tasks.names() == ["text_classification"]


@pytest.mark.parametrize("method", sorted(MOVES))
def test_exactly_the_right_weights_move(method, tiny, tables, tmp_path):
    *_, setup, before, ready, history = prepared(method, tiny, tables, tmp_path)
    assert any("loss" in entry for entry in history)
    after = {
        name.replace("base_model.model.", "").replace("base_layer.", "").replace(".base.", "."): p
        for name, p in ready.model.named_parameters()
    }
    if method in ("prompt",):
        after = {name.removeprefix("base_model."): p for name, p in after.items()}
    seen = 0
    for name, old in before.items():
        if name.startswith("classifier"):
            continue
        new = after[name]
        seen += 1
        head = name in setup.loaded.new_parameters  # the tiny trunk has a pooler of its own
        assert head or torch.equal(new.detach(), old) != MOVES[method](name), name
    assert seen == sum(not name.startswith("classifier") for name in before)
    heads = [p for name, p in after.items() if "classifier" in name and p.requires_grad]
    assert heads
    for name, p in after.items():
        if "classifier" in name and p.requires_grad and name.endswith("weight"):
            assert not torch.equal(p.detach(), before["classifier.weight"])


def test_frozen_leaves_the_trunk_bit_for_bit_and_cuts_it(tiny, tables, tmp_path):
    *_, before, ready, _ = prepared("frozen", tiny, tables, tmp_path)
    assert not any(p.requires_grad for p in ready.model.parameters())
    assert ready.model.config.num_hidden_layers == len(layers(ready.model)) == 3  # layers 1, 2 and the pooling one
    kept = [n for n, _ in ready.model.named_parameters() if "embeddings" in n or "layer.0." in n or "layer.1." in n]
    assert len(kept) > 30
    parameters = dict(ready.model.named_parameters())
    assert all(torch.equal(parameters[name], before[name]) for name in kept)


def logits_of(model, task, tokenizer, rows, length):
    encoded, _ = task.encode(tokenizer, rows, length)
    return predict_logits(model, encoded, task.collator(tokenizer), precision="fp32")


@pytest.mark.parametrize("method", ["lora", "qlora", "ia3", "adapter", "prompt"])
def test_merging_changes_no_logit(method, tiny, tables, tmp_path):
    _, task, domains, encoded, setup, _, ready, _ = prepared(method, tiny, tables, tmp_path)
    tokenizer = setup.loaded.tokenizer
    apart = predict_logits(ready.model, encoded["target_test"], setup.collator, precision="fp32")
    model, tokenizer = ready.merge(ready.model, tokenizer)
    merged = logits_of(model.eval(), task, tokenizer, domains.target_test, 48 + (4 if method == "prompt" else 0))
    assert np.ptp(apart) > 1e-3
    np.testing.assert_allclose(merged, apart, atol=2e-5)


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize(("dora", "rslora"), [(True, False), (False, True)])
def test_lora_switches(method, dora, rslora, tiny, tables, tmp_path):
    more = ["--lora_dora", str(dora), "--lora_rslora", str(rslora)]
    *_, ready, _ = prepared(method, tiny, tables, tmp_path, *more)
    config = ready.model.peft_config["default"]
    assert (config.use_dora, config.use_rslora) == (dora, rslora)
    assert any("magnitude" in name for name, _ in ready.model.named_parameters()) == dora


def test_qlora_keeps_the_trunk_in_four_bits_and_moves_none_of_it(tiny, tables, tmp_path):
    from bitsandbytes.functional import quantize_4bit
    from bitsandbytes.nn import Linear4bit

    *_, before, ready, _ = prepared("qlora", tiny, tables, tmp_path)
    own = {name.removeprefix("base_model.model.").replace(".base_layer", ""): module
           for name, module in ready.model.named_modules()}  # fmt: skip
    rounded = {name: module for name, module in own.items() if isinstance(module, Linear4bit)}
    assert len(rounded) == 3 * 6 + 1, "every linear layer of the trunk, its pooler among them"
    for name, module in rounded.items():
        state, old = module.weight.quant_state, before[f"{name}.weight"]
        assert (module.weight.dtype, 2 * module.weight.numel()) == (torch.uint8, old.numel())
        assert (state.quant_type, state.nested) == ("nf4", True)
        expected, _ = quantize_4bit(old, quant_type="nf4", compress_statistics=True)
        assert torch.equal(module.weight.data, expected), name
        assert torch.equal(module.bias, before[f"{name}.bias"]), name
    rest = {name: p for name, p in ready.model.named_parameters() if p.is_floating_point()}
    plain = {name.removeprefix("base_model.model."): p for name, p in rest.items() if "base_layer" not in name}
    kept = [name for name, p in plain.items() if name in before and torch.equal(p, before[name])]
    assert len(kept) == 5 + 3 * 4, "embeddings and norms"
    trained = [name for name, p in rest.items() if p.requires_grad]
    assert len(trained) == 2 * len(rounded) + 2
    assert all("lora_" in name or "classifier.modules_to_save" in name for name in trained)
    assert all(rest[name].any() for name in trained if "lora_B" in name), "updates begin at 0, and all have moved"
    assert not torch.equal(own["classifier.modules_to_save.default"].weight, before["classifier.weight"])


def test_qlora_leaves_nothing_in_memory_of_what_it_rounded(tiny):
    from bitsandbytes.nn import Linear4bit

    loaded = load_model(parse(["--model", str(tiny), "--source", "-", "--output_dir", "-"]).model,
                        tasks.load("text_classification"), ["a", "b"], 0)  # fmt: skip
    linear = [weakref.ref(module.weight) for module in loaded.model.base_model.modules() if type(module) is nn.Linear]
    assert len(linear) == 3 * 6 + 1
    module = methods.load("qlora")
    ready = module.prepare(Setup(loaded, None, None, None, "bf16", None, 0), module.Arguments())
    gc.collect()
    assert not [one for one in linear if one() is not None]
    rounded = [one for one in ready.model.modules() if isinstance(one, Linear4bit)]
    assert {one.compute_dtype for one in rounded} == {torch.bfloat16}
    # on CPUs with these instructions, evaluating would pack them so that training goes on without gradients
    assert not any(one.support_avx512bf16_for_cpu for one in rounded)


def test_qlora_ends_with_its_best_checkpoint(tiny, tables, tmp_path):
    # the highest loss counts as the best, so that the last checkpoint is not the best on any machine
    more = ["--learning_rate", "0.05", "--num_train_epochs", "4", "--metric_for_best_model", "loss",
            "--greater_is_better", "true"]  # fmt: skip
    *_, ready, history = prepared("qlora", tiny, tables, tmp_path, *more)
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert losses[-1] < max(losses), "the last is not the best"
    (best,) = (tmp_path / "checkpoints").glob("checkpoint-*")  # the others are gone
    assert json.loads((best / "trainer_state.json").read_text())["log_history"][-1]["eval_loss"] == max(losses)
    saved = load_file(best / "adapter_model.safetensors")
    own = ready.model.state_dict()
    assert len(saved) == 2 * 19 + 2
    for name, value in saved.items():
        where = name.replace(".weight", ".default.weight") if "lora_" in name else name.replace(
            "classifier.", "classifier.modules_to_save.default.")  # fmt: skip
        assert torch.equal(own[where], value), name


@pytest.mark.recipe
def test_qlora_goes_on_where_it_was_killed(tiny, tables, recipe, tmp_path, monkeypatch):
    whole = recipe(flags("qlora", tiny, tables, tmp_path / "whole"))

    class Killed(Exception):
        pass

    def kill(self, args, state, control, **_):
        if state.epoch > 1.5:
            raise Killed

    argv = flags("qlora", tiny, tables, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr("transformers.trainer_callback.DefaultFlowCallback.on_step_begin", kill, raising=False)
        with pytest.raises(Killed):
            recipe(argv)
    resumed = recipe([*argv, "--resume"])
    assert resumed.history[-1]["step"] == whole.history[-1]["step"]
    first, second = (load_file(run.folder / "model.safetensors") for run in (whole, resumed))
    assert {value.dtype for value in first.values()} == {torch.float32}
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], atol=1e-5, err_msg=name)


def test_qlora_says_what_it_needs(tiny, tables, tmp_path, recipe, monkeypatch):
    argv = flags("qlora", tiny, tables, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "bitsandbytes", None)  # as if it was not installed
        with pytest.raises(UserError) as refused:
            recipe(argv)
    line = "--method qlora needs bitsandbytes; run: pip install 'hf-transfer-nlp[qlora]', or use --method lora."
    assert str(refused.value) == line
    module = methods.load("qlora")
    for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "true")
            with pytest.raises(UserError, match="not with FSDP or DeepSpeed"):
                module.prepare(None, module.Arguments())
    assert not list(tmp_path.iterdir()), "nothing is left"


def test_partial_puts_the_dropout_of_frozen_layers_to_rest(tiny, tables, tmp_path):
    *_, setup, _, ready, _ = prepared("partial", tiny, tables, tmp_path)
    model = ready.model.train()
    batch = setup.collator([{k: v for k, v in setup.train[i].items() if k != "labels"} for i in range(4)])
    with torch.no_grad():
        states = [model(**batch, output_hidden_states=True).hidden_states for _ in range(2)]
    assert torch.equal(states[0][2], states[1][2]), "embeddings and layers 0 and 1 are frozen"
    assert not torch.equal(states[0][3], states[1][3]), "layer 2 moves, with its dropout"


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_cached_lower_layers_change_nothing(kind, tables, tmp_path, monkeypatch):
    """Trained on cached states of the frozen layers, and by running them every time: the same weights."""
    model = conftest.make_model(tmp_path / "model", kind)
    dropout = {"hidden_dropout_prob": 0.0, "dropout": 0.0, "seq_classif_dropout": 0.0}  # draws would differ
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {name: 0.0 for name in dropout if name in config}))
    trained = []
    for name, families in (("cached", upper.FAMILIES), ("run", ())):
        monkeypatch.setattr(upper, "FAMILIES", families)
        *_, before, ready, _ = prepared("partial", model, tables, tmp_path / name)
        assert ready.choices["frozen_layers_cached"] == (name == "cached")
        assert list(dict(ready.model.named_parameters())) == list(before)
        assert ready.model.main_input_name == "input_ids"
        trained.append(dict(ready.model.named_parameters()))
    for name in before:
        torch.testing.assert_close(trained[0][name], trained[1][name], atol=2e-5, rtol=0)
    assert any(not torch.equal(trained[0][name], old) for name, old in before.items() if "layer.2." in name)


def test_without_disk_for_the_cache_the_lower_layers_run(tiny, tables, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_transfer.features.DISK_SHARE", 0)
    *_, ready, _ = prepared("partial", tiny, tables, tmp_path)
    assert ready.choices["frozen_layers_cached"] is False


def test_layer_wise_decay_slows_the_lower_layers(tiny, tables, tmp_path):
    *_, before, ready, _ = prepared(
        "partial", tiny, tables, tmp_path, "--top_layers", "3", "--layer_lr_decay", "0.01", "--weight_decay", "0"
    )
    moved = {
        layer: max(
            float((p.detach() - before[n]).abs().max())
            for n, p in ready.model.named_parameters()
            if f"layer.{layer}." in n
        )
        for layer in range(3)
    }
    assert 0 < moved[0] < 0.1 * moved[1] < 0.01 * moved[2] * 1.1


def test_gradual_unfreezing_frees_a_layer_an_epoch(tiny, tables, tmp_path):
    more = ["--top_layers", "3", "--gradual_unfreezing", "--early_stopping_patience", "0", "--validation_fraction", "0"]
    one = prepared("partial", tiny, tables, tmp_path / "a", *more, "--num_train_epochs", "1")
    two = prepared("partial", tiny, tables, tmp_path / "b", *more, "--num_train_epochs", "2")

    def moved(result):
        *_, before, ready, _ = result
        return {
            layer
            for layer in range(3)
            for n, p in ready.model.named_parameters()
            if f"layer.{layer}." in n and not torch.equal(p.detach(), before[n])
        }

    assert moved(one) == set()
    assert moved(two) == {2}


@pytest.fixture(scope="module")
def runs(tiny, tables, recipe, tmp_path_factory):
    """One finished run a method."""
    folder = tmp_path_factory.mktemp("runs")
    return {method: recipe(flags(method, tiny, tables, folder / method)) for method in METHODS}


RELOAD = """
import json, sys
import transformers
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
texts = json.load(open(sys.argv[1]))
out = {}
for folder in sys.argv[2:]:
    pipe = transformers.pipeline("text-classification", folder)
    rows = pipe(texts, top_k=None, truncation=True)
    out[folder] = [{score["label"]: score["score"] for score in row} for row in rows]
assert not any(name.split(".")[0] in ("hf_transfer", "peft") for name in sys.modules), "needs more than transformers"
json.dump(out, sys.stdout)
"""


@pytest.fixture(scope="module")
def reloaded(runs, tables, tmp_path_factory):
    """What plain `pipeline` says of the target rows, in one fresh process without this package."""
    texts = [json.loads(line)["text"] for line in tables["target"].read_text().splitlines()]
    file = tmp_path_factory.mktemp("texts") / "texts.json"
    file.write_text(json.dumps(texts))
    command = [sys.executable, "-c", RELOAD, str(file), *[str(run.folder) for run in runs.values()]]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.recipe
@pytest.mark.parametrize("method", METHODS)
def test_plain_pipeline_gives_the_recorded_probabilities_and_names(method, runs, reloaded):
    run = runs[method]
    recorded = pd.read_parquet(run.folder / "predictions.parquet").query("set == 'target_test'")
    loaded = pd.DataFrame(reloaded[str(run.folder)])
    assert len(recorded) == len(loaded) == 40
    assert list(recorded["row"]) == list(range(40)), "predictions are in input order"
    assert sorted(loaded.columns) == run.label_names == ["negative", "positive"]
    for label in run.label_names:
        np.testing.assert_allclose(recorded[f"p_{label}"], loaded[label], atol=1e-4)
    assert np.ptp(loaded["positive"]) > 1e-3


@pytest.mark.recipe
@pytest.mark.parametrize("method", METHODS)
def test_run_folder_is_complete(method, runs):
    run = runs[method]
    again = load_run(run.folder)
    assert again == run
    names = {file.name for file in run.folder.iterdir()}
    assert names >= {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "run.json",
        "predictions.parquet",
        "report.md",
    }
    assert not {"checkpoints", "arguments.json", "runs"} & names
    assert (run.folder / "adapter" / "adapter_model.safetensors").is_file() == (method in ("lora", "ia3", "prompt"))
    assert not [f for f in run.folder.rglob("*") if f.suffix in (".bin", ".pt", ".pkl", ".pth")]
    assert not run.folder.with_name(run.folder.name + ".partial").exists()
    assert run.world_size == 1
    assert run.peak_memory_mb > 100
    assert run.trainable_parameters > 0
    assert run.method in (run.folder / "report.md").read_text()


def test_peft_adapter_names_its_base_as_the_user_did(runs, tiny):
    config = json.loads((runs["lora"].folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny)


@pytest.fixture(scope="module")
def close(tmp_path_factory):
    """Tables and models with many rows whose labels rounding would swap: (kind of model) -> its folder, and tables."""
    folder = tmp_path_factory.mktemp("close")
    texts = [json.loads(line) for line in (conftest.CORPUS / "hotels.labeled.jsonl").read_text().splitlines()]
    tables = {"source": conftest.write_table(folder / "source.jsonl", texts),
              "target": conftest.write_table(folder / "target.jsonl", conftest.random_texts(400)),
              "long": conftest.write_table(folder / "long.jsonl", conftest.random_texts(1000))}  # fmt: skip
    models = {kind: conftest.with_close_labels(conftest.make_model(folder / f"{kind}-trunk", kind), folder / kind)
              for kind in ("bert", "llama")}  # fmt: skip
    return models, tables


@pytest.mark.recipe
@pytest.mark.parametrize(
    ("kind", "method", "processes"),
    [*(("bert", method, 1) for method in METHODS), ("llama", "lora", 1), ("llama", "frozen", 1), ("bert", "full", 2)],
)
def test_scores_are_those_of_the_folder(kind, method, processes, close, recipe, tmp_path):
    """Tested in bfloat16, saved in float32: every label is the one that plain `pipeline` gives."""
    from transformers import pipeline

    models, tables = close
    if method == "frozen" and kind == "bert":  # writes a head of its own, where few rows are swapped
        tables = {**tables, "target": tables["long"]}
    argv = flags(method, models[kind], tables, tmp_path / "run", "--precision", "bf16", "--test_fraction", "0.4")
    argv[argv.index("--validation_fraction") + 1] = "0.4"
    if method != "frozen":
        argv += ["--max_steps", "2", "--learning_rate", "1e-5"]
    elif kind == "llama":
        at = argv.index("--frozen_layer")
        del argv[at : at + 2]
    if processes == 1:
        recipe(argv)
    else:
        launch(processes, "finetune", *argv)
    run = load_run(tmp_path / "run")
    assert (run.precision, run.world_size) == ("bf16", processes)
    said = pd.read_parquet(run.folder / "predictions.parquet")
    lines = {name: [json.loads(line) for line in file.read_text().splitlines()] for name, file in tables.items()}
    texts = [lines["target" if which == "target_test" else "source"][row]["text"]
             for which, row in zip(said["set"], said["row"], strict=True)]  # fmt: skip
    classify = pipeline("text-classification", str(run.folder))
    said["loaded"] = [entry["label"] for entry in classify(texts, truncation=True, batch_size=64)]
    for which, rows in said.groupby("set"):
        assert len(rows) > SAMPLE
        assert list(rows["prediction"]) == list(rows["loaded"]), which
        assert run.metrics[which]["accuracy"] == (rows["loaded"] == rows["label"]).mean()
    assert set(said["set"]) == {"validation", "source_test", "target_test"}


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "modernbert", "gpt2", "llama"])
@pytest.mark.parametrize("method", ["frozen", "lora", "qlora", "adapter"])
def test_other_architectures(kind, method, tables, recipe, tmp_path):
    model = conftest.make_model(tmp_path / "model", kind)
    arguments = flags(method, model, tables, tmp_path / "run")
    if method == "frozen" and kind in ("modernbert", "gpt2", "llama"):  # their own pooling, of the last layer
        with pytest.raises(UserError, match="no meaning"):
            recipe(arguments)
        at = arguments.index("--frozen_layer")
        del arguments[at : at + 2]
    if method == "adapter" and kind in ("modernbert", "gpt2"):
        with pytest.raises(UserError, match="no plain feed-forward"):
            recipe(arguments)
        return
    run = recipe(arguments)
    recorded = pd.read_parquet(run.folder / "predictions.parquet").query("set == 'target_test'")
    from transformers import pipeline

    texts = [json.loads(line)["text"] for line in tables["target"].read_text().splitlines()]
    one_by_one = pipeline("text-classification", str(run.folder), top_k=None)
    found = [{s["label"]: s["score"] for s in one_by_one([t], truncation=True)[0]} for t in texts[:8]]
    np.testing.assert_allclose(recorded["p_positive"][:8], [row["positive"] for row in found], atol=2e-4)


def test_controls_are_those_of_scikit_learn(tables):
    arguments = parse(flags("full", "unused", tables, "unused"))
    domains = load_data(arguments.data, 0)
    with Meter() as meter:
        controls = run_controls(domains, None, 0, meter)
    assert set(controls) == {"majority", "tfidf"}
    assert len(np.unique(controls["majority"].logits["target_test"].argmax(1))) == 1
    assert controls["tfidf"].trainable_parameters > 100
    assert controls["tfidf"].logits["target_test"].shape == (40, 2)


def test_tfidf_sees_a_part_of_many_rows(tables, tmp_path, monkeypatch):
    """Also of a label so rare that a random part would hold none of it."""
    texts = [json.loads(line) for line in tables["source"].read_text().splitlines()]
    rare = [{"text": f"a rare word {i} {word}", "label": "rare"} for i, word in enumerate("abcdefgh")]
    source = conftest.write_table(tmp_path / "source.jsonl", texts + rare)
    domains = load_data(parse(flags("full", "unused", {**tables, "source": source}, "unused")).data, 0)
    assert len(domains.train) > 30
    with Meter() as meter:
        whole = run_controls(domains, None, 0, meter)["tfidf"]
        monkeypatch.setattr("hf_transfer.controls.TFIDF_ROWS", 30)
        part = run_controls(domains, None, 0, meter)["tfidf"]
    assert (whole.name, part.name) == ("TF-IDF + logistic regression", "TF-IDF + logistic regression on 30 rows")
    assert part.logits["target_test"].shape == whole.logits["target_test"].shape == (40, 3)
    assert part.trainable_parameters < whole.trainable_parameters


def token_states(rows=90, hidden=16):
    """States of texts of 3 to 12 tokens, whose first unit tells the class."""
    rng = np.random.default_rng(0)
    lengths = np.sort(rng.integers(3, 13, rows))[::-1].copy()
    order, labels = rng.permutation(rows), rng.integers(0, 2, rows)
    states = TokenStates(torch.from_numpy(rng.normal(size=(lengths.sum(), hidden)).astype(np.float32)), lengths, order)
    states.values[:, 0] += torch.from_numpy(4 * np.repeat(labels[order], lengths)).float()
    return states, labels


def test_heads_trained_side_by_side_are_those_trained_alone():
    states, labels = token_states()
    options = {"classes": 2, "pools": 3, "class_weights": [1.0, 2.0], "seed": 0, "dtype": torch.float32, "steps": 300}
    everything, part = np.arange(90), np.arange(0, 90, 3)
    both = fit_pools(states, labels, [everything, everything, part], weight_decays=[0.5, 5.0, 0.5], **options)
    for head, decay in zip(both[:2], (0.5, 5.0), strict=True):
        (alone,) = fit_pools(states, labels, [everything], weight_decays=[decay], **options)
        logits = pool_logits(alone, states, everything)
        np.testing.assert_allclose(pool_logits(head, states, everything), logits, atol=1e-5)
        assert (logits.argmax(1) == labels[states.order]).mean() > 0.8
    apart = np.abs(pool_logits(both[0], states, everything) - pool_logits(both[1], states, everything))
    assert apart.max() > 0.01, "each head has its own weight decay"
    # the third head has seen nothing but its own rows: other labels elsewhere change nothing
    other = labels.copy()
    outside = states.order[np.setdiff1d(everything, part)]
    other[outside] = 1 - other[outside]
    again = fit_pools(states, other, [everything, part], weight_decays=[0.5, 0.5], **options)[1]
    np.testing.assert_allclose(pool_logits(again, states, part), pool_logits(both[2], states, part), atol=1e-5)


def test_rows_that_a_head_does_not_learn_from_change_nothing():
    """Not even its scale: else a head beside the target's unlabelled texts would be another than one without them."""
    states, labels = token_states()
    options = {"classes": 2, "pools": 3, "class_weights": None, "seed": 0, "dtype": torch.float32, "steps": 100}
    part, others = np.arange(0, 90, 3), np.setdiff1d(np.arange(90), np.arange(0, 90, 3))
    (head,) = fit_pools(states, labels, [part], weight_decays=[0.5], **options)
    for i in others:
        states.values[states.starts[i] : states.starts[i + 1]] *= 7
    (again,) = fit_pools(states, labels, [part], weight_decays=[0.5], **options)
    np.testing.assert_allclose(pool_logits(again, states, part), pool_logits(head, states, part), atol=1e-6)


def test_frozen_needs_disk_for_its_states(tables, tiny, tmp_path, recipe, monkeypatch):
    monkeypatch.setattr("hf_transfer.methods.frozen.fits_on_disk", lambda *_: False)
    with pytest.raises(UserError, match=r"states of \d+ rows would fill the disk"):
        recipe(flags("frozen", str(tiny), tables, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_prompts_are_for_encoders(tables, recipe, tmp_path):
    model = conftest.make_model(tmp_path / "gpt2", "gpt2")
    with pytest.raises(UserError, match="--method prompt is for encoders, and a gpt2 model scores its last token"):
        recipe(["--model", str(model), "--source", str(tables["source"]), "--method", "prompt", "--prompt_tokens", "4",
                "--max_length", "40", "--quiet", "--output_dir", str(tmp_path / "run")])  # fmt: skip
    assert not list(tmp_path.glob("run*"))
