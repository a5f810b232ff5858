"""Learning from the target's own text: continued pretraining, joint masked language modelling, a rewritten source."""

from __future__ import annotations

import json
import sys

import conftest
import datasets
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.nn import functional
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, TrainerCallback, pipeline
from warm import launch

from hf_transfer import alignment, objectives, tasks
from hf_transfer.aligned import PREFIX, Aligned, MixedLoss, PairCollator, align
from hf_transfer.arguments import DataArguments, PretrainedArguments, parse
from hf_transfer.data import load_data
from hf_transfer.errors import UserError
from hf_transfer.methods import Prepared, Setup, as_it_is
from hf_transfer.models import load_pretrained
from hf_transfer.objectives import NOTHING, clm, mlm, padded, tsdae
from hf_transfer.pretraining import (
    Learner,
    ObjectiveArguments,
    PoolArguments,
    choose_objective,
    collator,
    hidden_once,
    language_task,
    learn_new,
    read_pool,
)
from hf_transfer.results import load_run
from hf_transfer.rewriting import most_put_in, own_words, places, rewrite
from hf_transfer.tasks.text_classification import encode
from hf_transfer.training import fit


def make_model(folder, kind="bert"):
    """A tiny model; an encoder's tokenizer knows a mask."""
    conftest.make_model(folder, kind)
    if kind not in ("gpt2", "llama"):
        tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def masking(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("masking"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    rows = [{"text": text} for text in conftest.corpus_texts("gadgets")]
    return conftest.write_table(tmp_path_factory.mktemp("texts") / "raw.jsonl", rows)


def flags(model, texts, output, *more):
    return ["--model", str(model), "--target_unlabeled", str(texts), "--output_dir", str(output), "--max_length", "40",
            "--num_train_epochs", "2", "--learning_rate", "1e-3", "--precision", "fp32", "--quiet", *more]  # fmt: skip


def pretrained(*arguments):
    """Run the recipe; returns the folder and its record."""
    folder = conftest.load_recipe("pretrain_domain")(flags(*arguments))
    return folder, json.loads((folder / "pretraining.json").read_text())


@pytest.fixture(scope="module")
def dapt(masking, texts, tmp_path_factory):
    return pretrained(masking, texts, tmp_path_factory.mktemp("dapt") / "run")


# the texts


def pool_of(*files, fraction=0.25, seed=3):
    return read_pool(PoolArguments([str(file) for file in files], validation_fraction=fraction), seed)


def test_texts_of_several_tables_are_used_once(tmp_path):
    first = conftest.write_table(tmp_path / "one.jsonl", [{"text": f"text {i}"} for i in range(30)])
    second = conftest.write_table(tmp_path / "two.jsonl", [{"text": f"Text {i}!"} for i in range(20, 40)])
    pool = pool_of(first, second)
    assert pool.facts["rows"] == {"train": 30, "held_out": 10}
    assert pool.facts["duplicates"] == 10
    assert any("only 40 different texts" in note for note in pool.notes)
    numbers = sorted(int("".join(filter(str.isdigit, text))) for text in [*pool.train["text"], *pool.held_out["text"]])
    assert numbers == list(range(40))
    again = pool_of(second, first)
    assert {text.lower().strip("!") for text in again.held_out["text"]} == {
        text.lower().strip("!") for text in pool.held_out["text"]
    }
    assert set(pool_of(first, second, seed=4).held_out["text"]) != set(pool.held_out["text"])


def test_texts_to_be_tested_are_left_out(tmp_path):
    rows = [{"text": f"text {i}", "split": "test" if i < 5 else "train"} for i in range(20)]
    pool = pool_of(conftest.write_table(tmp_path / "one.jsonl", rows), fraction=0.0)
    assert len(pool.train) == 15
    assert len(pool.held_out) == 0
    assert not {f"text {i}" for i in range(5)} & set(pool.train["text"])


def test_too_few_texts_are_refused(tmp_path):
    file = conftest.write_table(tmp_path / "one.jsonl", [{"text": "the same"}, {"text": "The same!"}])
    with pytest.raises(UserError, match="at least 2 different texts, and thousands to be of use; there are 1"):
        pool_of(file)


# what is hidden


def test_masks_are_drawn_anew_and_never_on_special_tokens(masking):
    tokenizer = AutoTokenizer.from_pretrained(masking)
    texts = conftest.corpus_texts("gadgets")
    rows, _ = encode(tokenizer, datasets.Dataset.from_dict({"text": texts}), 40)
    collate = collator(mlm.hide(tokenizer), tokenizer.pad_token_id)
    torch.manual_seed(0)
    first, second = (collate(list(rows)) for _ in range(2))
    ids = padded([{"input_ids": row["input_ids"]} for row in rows], tokenizer.pad_token_id)["input_ids"]
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    for batch in (first, second):
        assert (batch["scored"] == (batch["labels"] != NOTHING)).all()
        assert not (batch["scored"] & special).any()
        assert batch["scored"].sum() / (~special).sum() == pytest.approx(0.15, abs=0.02)
        assert (batch["labels"][batch["scored"]] == ids[batch["scored"]]).all()
        assert (batch["input_ids"][~batch["scored"]] == ids[~batch["scored"]]).all()
        hidden = batch["input_ids"][batch["scored"]] == tokenizer.mask_token_id
        assert hidden.float().mean() == pytest.approx(0.8, abs=0.05)
    assert not torch.equal(first["scored"], second["scored"])
    held_out = []
    for state in (1, 2):
        torch.manual_seed(state)
        held_out.append(hidden_once(rows, mlm.hide(tokenizer), seed=5))
        assert torch.initial_seed() == state, "the training draws as if nothing had been held out"
    assert held_out[0]["labels"][:] == held_out[1]["labels"][:]
    batch = collate([held_out[0][i] for i in range(8)])
    assert torch.equal(batch["labels"], collate([held_out[0][i] for i in range(8)])["labels"]), "masked no second time"


def test_the_next_token_is_the_label(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(make_model(tmp_path, "gpt2"))
    row = clm.hide(tokenizer)({"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]})
    assert row["labels"] == [6, 7, NOTHING]


def test_tsdae_deletes_60_percent_and_asks_for_the_whole_text(masking):
    tokenizer = AutoTokenizer.from_pretrained(masking)
    rows, _ = encode(tokenizer, datasets.Dataset.from_dict({"text": conftest.corpus_texts("gadgets")}), 40)
    hide = tsdae.hide(tokenizer)
    torch.manual_seed(0)
    kept = total = 0
    for row in rows:
        short, special = hide(row), set(tokenizer.all_special_ids)
        assert short["decoder_input_ids"] == row["input_ids"]
        assert short["labels"] == [*row["input_ids"][1:], NOTHING]
        assert short["input_ids"][0] == row["input_ids"][0]
        left = iter(row["input_ids"])
        assert all(token in left for token in short["input_ids"]), "in their order"
        kept += sum(token not in special for token in short["input_ids"])
        total += sum(token not in special for token in row["input_ids"])
    assert kept / total == pytest.approx(0.4, abs=0.03)
    one = {"input_ids": [2, 9, 3], "attention_mask": [1, 1, 1], "length": 3}
    assert all(hide(one)["input_ids"] == [2, 9, 3] for _ in range(10)), "something is left of every text"


# objectives


def test_all_objectives_are_found():
    assert objectives.names() == ["clm", "mlm", "tsdae"]


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("gpt2", "mlm", "gpt2 models fill in no masks; use clm"),
        ("gpt2", "tsdae", "gpt2 models are no encoders; use clm"),
        ("bert", "clm", "bert models read in both directions; use mlm or tsdae"),
        ("distilbert", "tsdae", "distilbert models have no form as a decoder; use mlm"),
        ("bert", "mml", r"no objective 'mml' \(did you mean 'mlm'\?\)"),
    ],
)
def test_objectives_that_do_not_fit_are_refused(kind, name, said, texts, tmp_path):
    model = conftest.make_model(tmp_path / "model", kind)
    with pytest.raises(UserError, match=said):
        pretrained(model, texts, tmp_path / "run", "--objective", name)
    assert not list(tmp_path.glob("run*"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ([], "tokenizer has no mask token"),
        (["--method", "lora"], "unknown flag --method; see"),
        (["--source", "x.csv"], "unknown flag --source"),
        (["--max_length", "65", "--objective", "tsdae"], "beyond the 64 tokens"),
        (["--push_to_hub"], "--push_to_hub: what is pushed is a finished run"),
        (["--validation_fraction", "1"], "--validation_fraction is 1.0; use a share from 0 to 0.9"),
    ],
)
def test_what_else_is_refused(change, said, tiny, texts, tmp_path):
    with pytest.raises(UserError, match=said):
        pretrained(tiny, texts, tmp_path / "run", *change)
    assert not list(tmp_path.glob("run*"))


@pytest.mark.parametrize(("kind", "name"), [("bert", "mlm"), ("modernbert", "mlm"), ("gpt2", "clm"), ("llama", "clm")])
def test_the_objective_fits_the_architecture_by_default(kind, name, tmp_path):
    assert choose_objective(None, PretrainedArguments(str(make_model(tmp_path, kind)))) == name


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "modernbert"])
def test_scoring_the_masked_tokens_alone_changes_nothing(kind, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(make_model(tmp_path, kind)).eval()
    ids = torch.randint(5, 500, (3, 12), generator=torch.Generator().manual_seed(0))
    scored = torch.rand(3, 12, generator=torch.Generator().manual_seed(1)) < 0.3
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        torch.testing.assert_close(mlm.logits(model, scored, **inputs), model(**inputs).logits[scored])
        assert model(**inputs).logits.shape[:2] == (3, 12), "and the model is as it was"


def test_the_vector_is_all_that_the_decoder_gets(masking):
    loaded = load_pretrained(str(masking), "main", tsdae.AUTO_MODEL, 0, **tsdae.OPTIONS)
    model = tsdae.prepare(loaded)
    shared = {id(p) for p in model.encoder.parameters()} & {id(p) for p in model.decoder.parameters()}
    assert len(shared) == len(list(model.encoder.parameters())) - 2, "all but the pooler"
    read, text = torch.tensor([[2, 11, 12, 3]]), torch.tensor([[2, 11, 30, 12, 40, 3]])
    with torch.no_grad():
        before = model(text, input_ids=read)
        vector = model.vector(input_ids=read)

        def spoil(module, args, output):
            output.last_hidden_state = torch.cat([vector[:, None], torch.randn(1, 9, 32)], 1)
            return output

        spoiling = model.encoder.register_forward_hook(spoil)
        torch.testing.assert_close(model(text, input_ids=read), before), "other states of the encoder are not read"
        spoiling.remove()
        other = model(text, input_ids=torch.tensor([[2, 77, 78, 3]]))
        assert (other - before).abs().max() > 1e-3, "the vector is"
        changed = model(torch.tensor([[2, 11, 30, 12, 99, 3]]), input_ids=read)
        torch.testing.assert_close(changed[:, :4], before[:, :4]), "what comes later is not seen while it is written"


# training


@pytest.mark.recipe
@pytest.mark.parametrize(("kind", "name"), [("bert", "tsdae"), ("gpt2", "clm"), ("llama", "clm")])
def test_loss_falls_on_held_out_texts(kind, name, texts, tmp_path):
    model = make_model(tmp_path / "model", kind)
    folder, record = pretrained(model, texts, tmp_path / "run", *(["--objective", name] if name == "tsdae" else []))
    losses = record["held_out_loss"]
    assert losses["after"] < 0.95 * losses["before"]
    assert record["arguments"]["objective"] == name
    assert (losses["new_weights_alone"] is None) == (kind == "gpt2"), "only gpt2's checkpoint has all that is needed"
    assert record["data"]["rows"] == {"train": 180, "held_out": 20}
    trunk, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert type(trunk) is type(AutoModel.from_pretrained(model))
    assert {path.suffix for path in folder.iterdir()} == {".json", ".parquet", ".safetensors"}


@pytest.mark.recipe
def test_masked_words_are_learnt(dapt, masking):
    folder, record = dapt
    losses = record["held_out_loss"]
    assert losses["after"] < losses["new_weights_alone"] < losses["before"]
    assert record["arguments"]["objective"] == "mlm"
    assert any(name.startswith("cls.predictions") for name in record["new_parameters"])
    before, after = AutoModel.from_pretrained(masking).eval(), AutoModel.from_pretrained(folder).eval()
    ids = torch.tensor([[2, 11, 12, 13, 3]])
    with torch.no_grad():
        assert (before(ids).last_hidden_state - after(ids).last_hidden_state).abs().max() > 0.01
    for one, other in zip(before.pooler.parameters(), after.pooler.parameters(), strict=True):
        assert torch.equal(one, other), "the pooler, which nothing here has trained, came along"
    assert pipeline("fill-mask", str(folder))("the <mask> works")[0]["token_str"]
    assert {path.suffix for path in folder.iterdir()} == {".json", ".parquet", ".safetensors"}
    assert not list(folder.parent.glob("*.partial"))


@pytest.mark.recipe
def test_a_head_that_is_there_goes_on_at_once(dapt, texts, tmp_path, capsys):
    loud = [word for word in flags(dapt[0], texts, tmp_path / "more") if word != "--quiet"]
    folder = conftest.load_recipe("pretrain_domain")([*loud, "--validation_fraction", "0"])
    record = json.loads((folder / "pretraining.json").read_text())
    assert record["new_parameters"] == []
    assert "learn what is new" not in record["seconds"]
    assert record["held_out_loss"] == {"before": None, "new_weights_alone": None, "after": None}
    assert "the checkpoint has every weight for this objective" in capsys.readouterr().out


def setup_of(model, texts, objective, **options):
    loaded = load_pretrained(str(model), "main", objective.AUTO_MODEL, 0, **options)
    rows, _ = encode(loaded.tokenizer, datasets.Dataset.from_json(str(texts)), 40)
    held_out = hidden_once(rows.select(range(20)), objective.hide(loaded.tokenizer), 0)
    collate = language_task(objective).collator(loaded.tokenizer)
    return Setup(loaded, rows.select(range(20, 60)), held_out, collate, "fp32", None, 0)


def test_what_is_new_is_learnt_with_the_trunk_untouched(masking, texts, tmp_path):
    arguments = parse(
        flags(masking, texts, tmp_path / "run"), None, (ObjectiveArguments,), PoolArguments, PretrainedArguments
    )
    arguments.train.prediction_loss_only = True
    setup = setup_of(masking, texts, mlm)
    learner = Learner(mlm.prepare(setup.loaded), mlm.logits)
    before = {name: value.clone() for name, value in learner.named_parameters()}
    history = learn_new(Prepared(learner, as_it_is), setup, language_task(mlm), arguments)
    moved = {name.removeprefix("model.") for name, value in learner.named_parameters()
             if not torch.equal(value, before[name])}  # fmt: skip
    assert moved == {name for name in setup.loaded.new_parameters if "decoder" not in name}
    assert len(moved) == 5
    assert all(parameter.requires_grad for parameter in learner.parameters()), "afterwards everything moves"
    assert history[-1]["epoch"] == pytest.approx(0.4, abs=0.3)
    assert not list(tmp_path.iterdir())


@pytest.mark.recipe
def test_resumed_where_it_was_stopped(dapt, masking, texts, tmp_path, monkeypatch):
    """What is new is not learnt again, and the end is that of a run that was not stopped."""
    recipe = conftest.load_recipe("pretrain_domain")
    argv = flags(masking, texts, tmp_path / "run")

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["pretrain_domain"], "save", stop)
        with pytest.raises(KeyboardInterrupt):
            recipe(argv)
    assert (tmp_path / "run.partial" / "arguments.json").is_file()
    with pytest.raises(UserError, match="holds an unfinished run; add --resume"):
        recipe(argv)
    other = conftest.write_table(tmp_path / "raw.jsonl", [{"text": f"text {i}"} for i in range(300)])
    with pytest.raises(UserError, match="other values of target_unlabeled"):
        recipe([*flags(masking, other, tmp_path / "run"), "--resume"])
    folder = recipe([*argv, "--resume"])
    record = json.loads((folder / "pretraining.json").read_text())
    assert "learn what is new" not in record["seconds"]
    whole, resumed = (load_file(one / "model.safetensors") for one in (dapt[0], folder))
    for name, value in whole.items():
        np.testing.assert_allclose(value, resumed[name], atol=1e-5, err_msg=name)


@pytest.mark.recipe
def test_two_processes_pretrain_together(masking, texts, tmp_path):
    launch(2, "pretrain_domain", *flags(masking, texts, tmp_path / "run", "--per_device_train_batch_size", "8"))
    record = json.loads((tmp_path / "run" / "pretraining.json").read_text())
    assert record["arguments"]["world_size"] == 2
    assert record["held_out_loss"]["after"] < record["held_out_loss"]["new_weights_alone"]
    AutoModelForMaskedLM.from_pretrained(tmp_path / "run")


@pytest.mark.recipe
def test_recipes_go_on_with_what_comes_out(dapt, masking, tables, texts, recipe, tmp_path, capsys):
    run = recipe(["--model", str(dapt[0]), "--source", str(tables["source"]), "--target", str(tables["target"]),
                  "--method", "lora", "--max_length", "40", "--num_train_epochs", "1",
                  "--output_dir", str(tmp_path / "run")])  # fmt: skip
    assert run.model == str(dapt[0])
    assert run.data["pretrained_on_test_texts"] == run.metrics["target_test"]["n"] == 40
    leak = "LEAK: --model was pretrained on 40 of the texts that are tested"
    assert leak in capsys.readouterr().out
    recipe(["--model", str(run.folder), "--source", str(tables["source"]), "--target", str(tables["target"]),
            "--method", "frozen", "--max_length", "40", "--output_dir", str(tmp_path / "again")])  # fmt: skip
    assert leak in capsys.readouterr().out, "what it was pretrained on stays known of what it became"
    pupil = conftest.load_recipe("self_train")(
        ["--model", str(masking), "--source", str(tables["source"]), "--target", str(tables["target"]), "--method",
         "frozen", "--max_length", "40", "--target_unlabeled", str(texts), "--teachers", str(run.folder),
         "--output_dir", str(tmp_path / "pupil")]
    )  # fmt: skip
    leak = f"LEAK: --teachers {run.folder} began with a model that was pretrained on 40 of the texts that are tested"
    assert leak in capsys.readouterr().out
    assert pupil.data["pretrained_on_test_texts"] == 40
    start, end = (load_file(folder / "model.safetensors") for folder in (dapt[0], run.folder))
    assert not [name for name in end if name.startswith("cls.")]
    words, pooler = "bert.embeddings.word_embeddings.weight", "bert.pooler.dense.weight"
    np.testing.assert_array_equal(start[words], end[words], err_msg="LoRA leaves them alone")
    np.testing.assert_allclose(start[pooler], end[pooler], atol=0.01, err_msg="it was adapted, not new")


# UDALM


def udalm_on(model, rows=40):
    """A classifier on `model`, aligned by udalm to `rows` texts; and what it was made of."""
    task = tasks.load("text_classification")
    loaded = load_pretrained(str(model), "main", task.auto_model, 0, num_labels=2)
    both = {}
    for domain in ("hotels", "gadgets"):
        encoded, _ = encode(loaded.tokenizer, datasets.Dataset.from_dict({"text": conftest.corpus_texts(domain)}), 40)
        both[domain] = encoded.select(range(rows))
    train = datasets.concatenate_datasets([
        both["hotels"].add_column("labels", [i % 2 for i in range(rows)]),
        both["gadgets"].add_column("labels", [NOTHING] * rows),
    ])  # fmt: skip
    setup = Setup(loaded, train, train.select(range(8)), task.collator(loaded.tokenizer), "fp32", None, 0)
    own = alignment.load("udalm")
    return align(Prepared(loaded.model, as_it_is), setup, own, own.Arguments()), setup


def test_target_rows_teach_the_trunk_by_their_words_alone(dapt):
    prepared, _ = udalm_on(dapt[0])
    aligned, rows = prepared.model, list(prepared.inputs.train.select(range(8)))
    batch = prepared.inputs.collator(rows)
    assert batch[f"{PREFIX}labels"].shape == batch[f"{PREFIX}input_ids"].shape
    assert 0.05 < (batch[f"{PREFIX}labels"] != NOTHING).float().mean() < 0.25
    aligned.train()
    for module in aligned.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    weight = aligned.model.bert.encoder.layer[0].output.dense.weight

    def gradient(of):
        aligned.zero_grad()
        of(aligned(**batch)).backward()
        return None if weight.grad is None else weight.grad.clone()

    classified = gradient(lambda out: functional.cross_entropy(out["logits"], batch["labels"]))
    alone = functional.cross_entropy(
        aligned.model(**{k: v for k, v in batch.items() if not k.startswith(PREFIX)}).logits, batch["labels"]
    )
    aligned.zero_grad()
    alone.backward()
    torch.testing.assert_close(classified, weight.grad), "the task's loss is that of the source rows"
    joint = gradient(lambda out: out["penalty"])
    reference = AutoModelForMaskedLM.from_pretrained(dapt[0], attention_probs_dropout_prob=0.0).train()
    for module in reference.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    target = {k.removeprefix(PREFIX): v for k, v in batch.items() if k.startswith(PREFIX)}
    loss = reference(**target).loss
    loss.backward()
    torch.testing.assert_close(aligned(**batch)["penalty"], 0.1 * loss)
    torch.testing.assert_close(joint, 0.1 * reference.bert.encoder.layer[0].output.dense.weight.grad)
    embeddings = aligned.model.bert.embeddings.word_embeddings.weight
    assert embeddings is aligned.alignment.head.get_output_embeddings().weight
    torch.testing.assert_close(embeddings.grad, 0.1 * reference.bert.embeddings.word_embeddings.weight.grad)


def test_learned_tokens_before_a_text_are_passed_over(dapt):
    loss = udalm_on(dapt[0])[0].model.alignment.eval()
    words, states = torch.tensor([[NOTHING, 30, NOTHING, 40]]), torch.randn(1, 4, 32)
    with torch.no_grad():
        plain, count = loss.total(states, words)
        behind, _ = loss.total(torch.cat([torch.randn(1, 3, 32), states], 1), words)
    assert count == 2
    torch.testing.assert_close(plain, behind)


def test_labels_of_target_rows_are_never_read(dapt):
    prepared, setup = udalm_on(dapt[0])
    rows = list(prepared.inputs.train.select(range(8)))
    target = setup.train.select(range(40, 80)).remove_columns("labels")
    hide, pad = prepared.model.alignment.hide, setup.loaded.tokenizer.pad_token_id

    def batch(labels):
        lengths = [len(row["input_ids"]) for row in rows]
        pairs = PairCollator(setup.collator, lengths, target.add_column("labels", labels), 0,
                             lambda some: padded([hide(row) for row in some], pad))  # fmt: skip
        return pairs(rows)

    one, other = batch([0] * 40), batch([1] * 40)
    assert one.keys() == other.keys()
    assert f"{PREFIX}labels" in one
    assert all(torch.equal(one[name], other[name]) for name in one)


class Best(TrainerCallback):
    """Remember by which value the Trainer chose."""

    def on_train_end(self, args, state, control, **kwargs):
        self.value = state.best_metric


@pytest.mark.parametrize("more", [[], ["--metric_for_best_model", "accuracy"]])
def test_the_checkpoint_is_chosen_by_both_losses(more, dapt, tmp_path):
    prepared, setup = udalm_on(dapt[0])
    best = Best()
    prepared.callbacks.append(best)
    argv = ["--source", "x.csv", "--output_dir", str(tmp_path), "--quiet", "--precision", "fp32"]
    arguments = parse([*argv, "--num_train_epochs", "2", "--max_length", "40", *more])
    fit(prepared, setup, tasks.load("text_classification"), arguments, tmp_path / "partial")
    measured = prepared.choices["mixed_losses"]
    assert len(measured) == 2
    assert best.value == pytest.approx(min(task + prepared.model.weight * words for task, words in measured))


def test_the_mixed_loss_is_that_of_held_out_words(dapt):
    prepared, _ = udalm_on(dapt[0])
    (mixed,) = [one for one in prepared.callbacks if isinstance(one, MixedLoss)]
    trained = set(map(tuple, prepared.inputs.collator.target["input_ids"][:]))
    assert len(mixed.rows) == 4
    assert len(trained) == 36
    metrics = {"eval_loss": 0.5}
    step = type("", (), {"is_world_process_zero": True, "per_device_eval_batch_size": 3})
    mixed.aligned.weight = 2.0
    mixed.on_evaluate(step, step, None, metrics)
    reference, losses = AutoModelForMaskedLM.from_pretrained(dapt[0]).eval(), []
    for row in mixed.rows:
        with torch.no_grad():
            logits = reference(torch.tensor([row["input_ids"]])).logits[0]
        words = torch.tensor(row["labels"])
        losses += functional.cross_entropy(logits, words, reduction="none")[words != NOTHING].tolist()
    assert metrics["eval_mixed_loss"] == pytest.approx(0.5 + 2.0 * np.mean(losses), rel=1e-4)
    assert prepared.choices["mixed_losses"] == [[0.5, pytest.approx(np.mean(losses), rel=1e-4)]]


@pytest.fixture
def adapt(texts, tables, tmp_path):
    def run(model, *more, processes=1):
        argv = ["--model", str(model), "--source", str(tables["source"]), "--target", str(tables["target"]),
                "--target_unlabeled", str(texts), "--alignment", "udalm", "--max_length", "40", "--quiet",
                "--validation_fraction", "0.2", "--num_train_epochs", "1", "--output_dir", str(tmp_path / "run"),
                "--max_rows", "150", *more]  # fmt: skip
        if processes == 1:
            return conftest.load_recipe("adapt_domain")(argv)
        launch(processes, "adapt_domain", *argv)
        return load_run(argv[-1])

    return run


@pytest.mark.recipe
@pytest.mark.parametrize("method", ["adapter", "bitfit", "full", "ia3", "lora", "prompt"])
def test_udalm_under_every_method_that_reads_words(method, adapt, dapt):
    more = {"prompt": ["--prompt_tokens", "4"], "adapter": ["--adapter_size", "8"]}.get(method, [])
    run = adapt(dapt[0], "--method", method, *more)
    (losses,) = run.choices["mixed_losses"]
    assert 0 < losses[0] < losses[1] < 10
    assert pipeline("text-classification", str(run.folder))("a text")[0]["label"] in run.label_names
    assert not [key for key in load_file(run.folder / "model.safetensors") if "alignment" in key or "cls" in key]


@pytest.mark.recipe
def test_two_processes_learn_task_and_words_as_one_does(adapt, dapt, tmp_path):
    batch = "--per_device_train_batch_size"
    one, two = (adapt(dapt[0], batch, str(16 // processes), "--output_dir", str(tmp_path / str(processes)),
                      processes=processes) for processes in (1, 2))  # fmt: skip
    assert two.world_size == 2
    assert two.history[-1]["step"] == one.history[-1]["step"]
    assert two.choices["mixed_losses"] == [pytest.approx(one.choices["mixed_losses"][0], rel=0.02)]


def test_udalm_needs_words_and_a_head(adapt, dapt, masking, tmp_path):
    with pytest.raises(UserError, match="masks words, and --method partial trains on cached states without any"):
        adapt(dapt[0], "--method", "partial")
    with pytest.raises(UserError, match="has no head for it; first hf-transfer run pretrain_domain"):
        adapt(masking)
    with pytest.raises(UserError, match="gpt2 models fill in no masks; choose another alignment or --model"):
        adapt(make_model(tmp_path / "gpt2", "gpt2"))
    assert not list(tmp_path.glob("run*"))


# rewriting


def test_only_the_sources_own_words_give_way(dapt):
    source, target = conftest.corpus_texts("hotels"), conftest.corpus_texts("gadgets")
    own = own_words(source, target)
    assert "room" in own
    assert "was" not in own, "the target has it too, if less often"
    assert not own.keys() & own_words(target, source).keys()
    text = "The hotel room was lovely, and the staff of this hotel were too kind to us."
    found = [one[0] for one in places(text, {"hotel": 9.0, "room": 5.0, "staff": 7.0, "us": 4.0, "kind": 3.0})]
    assert found == ["hotel", "room", "staff", "hotel"], "no more than 30 % of 16 words, the most typical ones"
    assert not places("It wasn't what we had seen.", {"t": 9.0}), "half a word is none"
    loaded = load_pretrained(str(dapt[0]), "main", mlm.AUTO_MODEL, 0)
    likeliest = loaded.tokenizer.convert_tokens_to_ids(["hotel", "staff", ".", "[UNK]", "[SEP]"])
    with torch.no_grad():
        loaded.model.get_output_embeddings().bias[likeliest] += 1000
    new = rewrite([text, "Nothing of the kind.", ""], {"hotel": 9.0, "staff": 7.0}, loaded)
    assert new[1:] == ["Nothing of the kind.", ""]
    assert rewrite(["A <mask> of the hotel staff."], {"hotel": 9.0, "staff": 7.0}, loaded) == [
        "A <mask> of the hotel staff."
    ]
    before, after = text.split(), new[0].split()
    assert [i for i, (one, other) in enumerate(zip(before, after, strict=True)) if one != other] == [1, 7, 10]
    assert not {"hotel", "staff"} & {word.strip(".,").lower() for word in after}
    tokenizer = loaded.tokenizer
    masked = text.replace("hotel", "<mask>").replace("staff", "<mask>")
    ids = tokenizer(masked, return_tensors="pt")
    with torch.no_grad():
        scores = loaded.model(**ids).logits[ids["input_ids"] == tokenizer.mask_token_id]
    words = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    allowed = [i for i, word in enumerate(words) if word.isalnum() and word not in ("hotel", "staff")]
    assert [after[i].strip(".,") for i in (1, 7, 10)] == [words[allowed[int(row[allowed].argmax())]] for row in scores]


def test_a_model_that_puts_in_one_word_is_found_out():
    before = [f"the book{i} was good, the plot dull" for i in range(40)]
    same = [text.replace(f"book{i}", "it").replace("plot", "It") for i, text in enumerate(before)]
    assert most_put_in(before, same) == ("it", 1.0)
    various = [text.replace(f"book{i}", f"pan{i}").replace("plot", "handle") for i, text in enumerate(before)]
    assert most_put_in(before, various) == ("handle", 0.5)
    assert most_put_in(before[:20], same[:20])[1] == 0.0, "40 words are too few"
    assert most_put_in(before, before) == ("", 0.0)


@pytest.mark.recipe
def test_a_text_that_would_change_its_label_stays_as_it_was(dapt, tables, texts, recipe, tmp_path):
    run = recipe(["--model", str(dapt[0]), "--source", str(tables["source"]), "--target", str(tables["target"]),
                  "--method", "full", "--max_length", "40", "--quiet", "--num_train_epochs", "1",
                  "--output_dir", str(tmp_path / "run")])  # fmt: skip
    argv = ["--source", str(tables["source"]), "--target_unlabeled", str(texts), "--model", str(dapt[0]),
            "--classifier", str(run.folder), "--quiet", "--output", str(tmp_path / "new.jsonl")]  # fmt: skip
    rewriting = conftest.load_recipe("rewrite_source")
    frame = rewriting(argv)
    rows = [json.loads(line) for line in tables["source"].read_text().splitlines()]
    written = [json.loads(line) for line in (tmp_path / "new.jsonl").read_text().splitlines()]
    assert [row["label"] for row in written] == [row["label"] for row in rows]
    assert 0 < frame["rewritten"].sum() < 60
    label = pipeline("text-classification", str(run.folder), truncation=True, max_length=40)
    for row, new in zip(rows, written, strict=True):
        assert new["rewritten"] == (new["text"] != row["text"])
        if new["rewritten"]:
            assert label(new["text"])[0]["label"] == row["label"]
    before = [row for row, new in zip(rows, written, strict=True) if new["rewritten"]][:10]
    again = conftest.write_table(tmp_path / "tested.jsonl", [*before, *map(json.loads, tables["target"].open())])
    domains = load_data(DataArguments(source=[str(tmp_path / "new.jsonl")], target=str(again)), 0)
    learned = {*domains.train["text"], *domains.validation["text"]}
    after = {new["text"] for row, new in zip(rows, written, strict=True) if row in before}
    assert len(after) == len(before) >= 1
    assert not after & learned, "what is tested is known again"
    with pytest.raises(UserError, match="is there already"):
        rewriting(argv)
    with pytest.raises(UserError, match="has not learnt to fill in words"):
        rewriting([*argv, "--output", str(tmp_path / "b.csv"), "--model", str(run.folder)])


def test_other_alignments_get_the_targets_texts_as_they_are(tiny):
    from transformers import AutoModelForSequenceClassification

    seen = []
    model = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=2)

    class Look(torch.nn.Module):
        def forward(self, source, target, progress):
            seen.append(target)
            return target.features.sum() * 0

    ids = torch.tensor([[2, 11, 12, 3]])
    Aligned(model, Look(), 1.0).train()(
        torch.tensor([0]), input_ids=ids, attention_mask=torch.ones_like(ids), source_labels=torch.tensor([0]),
        **{f"{PREFIX}input_ids": ids, f"{PREFIX}attention_mask": torch.ones_like(ids)})  # fmt: skip
    assert seen[0].words is None
    assert seen[0].states.shape == (1, 4, 32)
