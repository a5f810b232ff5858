"""Weights of source rows: the density ratio of a known shift, no text scored by itself, and rows counted as often."""

from __future__ import annotations

import json

import alignment_grid
import conftest
import datasets
import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer
from warm import launch

from hf_transfer import methods, pooling, tasks
from hf_transfer.arguments import parse
from hf_transfer.begin import begin
from hf_transfer.errors import UserError
from hf_transfer.importance import (
    CLIP,
    SourceArguments,
    effective_rows,
    importance,
    nearest,
    target_odds,
    weigh,
)
from hf_transfer.methods import Setup
from hf_transfer.models import load_model
from hf_transfer.results import load_run
from hf_transfer.training import fit

WORDS = list(dict.fromkeys(word for word in " ".join(conftest.corpus_texts()).lower().split() if word.isalpha()))
UNIFORM = np.full(20, 1 / 20)


def drawn(shares, rows, seed, length=6):
    """Texts of words drawn at random, and the count of every word in each."""
    picked = np.random.default_rng(seed).choice(len(shares), (rows, length), p=shares)
    counts = np.stack([np.bincount(row, minlength=len(shares)) for row in picked])
    return [" ".join(WORDS[i] for i in row) for row in picked], counts


def tilted(by):
    """Shares of 20 words, the last ones likelier than the first."""
    shares = np.exp(np.linspace(-by, by, 20))
    return shares / shares.sum()


@pytest.fixture(scope="module")
def shifted():
    """Source and target (texts and counts), the log of the true density ratio of each source text, what is found."""
    shares = tilted(0.6)
    source, target = drawn(UNIFORM, 1000, 0), drawn(shares, 1000, 1)
    return source, target, source[1] @ np.log(shares / UNIFORM), target_odds(source[0], target[0], seed=0)


def test_a_known_shift_is_undone(shifted):
    (_, counts), (_, target_counts), truth, (odds, told) = shifted
    assert np.corrcoef(np.log(odds), truth)[0, 1] > 0.9
    assert np.polyfit(truth, np.log(odds), 1)[0] == pytest.approx(1.0, abs=0.25), "calibrated, not only in order"
    assert 0.7 < told < 0.9
    weights, power = importance(odds)
    assert power == 1
    aim = target_counts.mean(0)
    before, after = counts.mean(0) - aim, (weights[:, None] * counts).mean(0) - aim
    assert np.abs(after).sum() < 0.3 * np.abs(before).sum()


def test_more_rows_of_one_side_do_not_change_the_weights(shifted):
    (source, _), (target, _), _, (odds, _) = shifted
    one, other = (importance(found)[0] for found in (odds, target_odds(source, target[:400], seed=0)[0]))
    assert np.corrcoef(np.log(one), np.log(other))[0, 1] > 0.9
    assert one.mean() == pytest.approx(1.0)
    assert other.mean() == pytest.approx(1.0)


def test_equal_domains_weigh_the_same():
    odds, told = target_odds(drawn(UNIFORM, 1000, 0)[0], drawn(UNIFORM, 1000, 1)[0], seed=0)
    weights, _ = importance(odds)
    assert told == pytest.approx(0.5, abs=0.05)
    assert weights.std() < 0.15
    assert effective_rows(weights) > 980


def test_no_text_is_scored_by_a_classifier_that_saw_it_or_its_like():
    """Both domains are the same, of so many words that a classifier knows every text that it has seen."""
    many = np.full(1000, 1 / 1000)
    source, target = drawn(many, 150, 0, length=12)[0], drawn(many, 150, 1, length=12)[0]
    assert target_odds(source, target, seed=0)[1] == pytest.approx(0.5, abs=0.12)
    twins = [text.upper() for text in source], [f"{text}." for text in target]
    assert target_odds([*source, *twins[0]], [*target, *twins[1]], seed=0)[1] == pytest.approx(0.5, abs=0.12)


def test_weights_are_clipped_and_have_mean_1():
    odds = np.array([1.0] * 990 + [40.0] * 10)
    weights, power = importance(odds)
    assert power == 1
    assert weights.mean() == pytest.approx(1.0)
    assert weights[-1] / weights[0] == pytest.approx(CLIP * odds.mean())
    np.testing.assert_allclose(importance(7 * odds)[0], weights)


def test_weights_on_a_few_rows_are_flattened():
    odds = np.exp(np.random.default_rng(0).normal(0, 6, 2000))
    assert effective_rows(odds) < 20
    weights, power = importance(odds)
    assert 500 <= effective_rows(weights) < 550
    assert 0 < power < 0.5
    assert np.argsort(weights, kind="stable").tolist()[:1000] == np.argsort(odds, kind="stable").tolist()[:1000]


def test_effective_rows_is_its_formula():
    weights = np.random.default_rng(0).gamma(1.0, size=50)
    assert effective_rows(weights) == pytest.approx(50 / (1 + weights.var() / weights.mean() ** 2))
    assert effective_rows(np.ones(50)) == 50
    assert effective_rows(np.eye(50)[3]) == 1


def test_the_nearest_of_each_label():
    odds = np.array([0.9, 0.1, 0.8, 0.7, 0.2, 0.3, 0.6, 0.4])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert nearest(odds, labels, 0.5).tolist() == [0, 2, 6, 7]
    assert nearest(odds, labels, 0.01).tolist() == [0, 6], "no label is lost"
    assert nearest(odds, labels, 1.0).tolist() == list(range(8))


# a run's rows


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Sources of words drawn at random, `near` to the target and `far` from it; texts of the target, and of `far`."""
    folder, out = tmp_path_factory.mktemp("files"), {}
    for seed, (name, shares, count) in enumerate([("near", tilted(1.2), 60), ("far", tilted(-1.2), 60),
                                                  ("target", tilted(1.2), 20), ("pool", tilted(1.2), 120),
                                                  ("few", tilted(1.2), 10), ("same", tilted(-1.2), 120)]):  # fmt: skip
        texts, _ = drawn(shares, count, seed, length=12)
        rows = [{"text": text, "label": ("negative", "positive")[i % 2]} for i, text in enumerate(texts)]
        out[name] = conftest.write_table(folder / f"{name}.jsonl", rows)
    return out


def flags(files, model, output, *more, sources=("near", "far"), pool="pool"):
    return ["--model", str(model), "--source", *(str(files[name]) for name in sources), "--target",
            str(files["target"]), "--target_unlabeled", str(files[pool]), "--max_length", "40", "--precision", "fp32",
            "--validation_fraction", "0.2", "--test_fraction", "0", "--output_dir", str(output), *more]  # fmt: skip


@pytest.fixture(scope="module")
def steady(tmp_path_factory):
    """A tiny BERT without dropout."""
    folder = conftest.make_model(tmp_path_factory.mktemp("steady"), layers=2)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_dropout_prob": 0.0}))
    return folder


def test_every_kind_of_weights(files, steady, tmp_path, capsys):
    with begin(parse(flags(files, steady, tmp_path / "run"))) as job:
        assert weigh(job, SourceArguments()) == (job.setup, {})
        rows = job.domains.train
        of, labels = np.array(rows["domain"][:]), np.array(rows["label"][:])
        odds, told = target_odds(rows["text"][:], job.domains.unlabeled["text"][:], job.setup.seed)
        assert told > 0.6

        setup, noted = weigh(job, SourceArguments("importance"))
        weights, power = importance(odds)
        np.testing.assert_allclose(setup.sample_weights, weights)
        assert noted["power"] == power
        assert noted["effective_rows"] == pytest.approx(effective_rows(setup.sample_weights), abs=0.1)
        assert setup.train is job.setup.train

        setup, noted = weigh(job, SourceArguments("domains"))
        near, far = (noted["domain_weights"][name] for name in ("near", "far"))
        assert near > 1.3 > 0.7 > far
        for name, weight in noted["domain_weights"].items():
            np.testing.assert_allclose(setup.sample_weights[of == name], weight, atol=1e-4)
            np.testing.assert_allclose(weights[of == name].mean(), weight, atol=1e-4)
        assert setup.sample_weights.mean() == pytest.approx(1.0)

        setup, noted = weigh(job, SourceArguments("nearest", 0.25))
        assert setup.sample_weights is None
        kept = nearest(odds, labels, 0.25)
        assert setup.train["input_ids"][:] == job.setup.train.select(kept)["input_ids"][:]
        assert np.bincount(setup.train["labels"][:]).tolist() == [12, 12]
        assert noted["nearest_rows"] == 24
        assert (of[kept] == "near").mean() > 0.9
    said = capsys.readouterr().out
    assert f"source weights: near {near:.2f}, far {far:.2f}, worth " in said
    assert "the 24 of 96 training rows that are most like the target are kept" in said
    assert "can't be told apart" not in said


@pytest.mark.parametrize(
    ("more", "change", "said"),
    [
        (["--source_weights", "domains"], {"sources": ["far"]}, "needs several sources, there is one .far"),
        (["--source_weights", "domains", "--target_shots", "4"], {"sources": ["far"]}, "needs several .*one .far"),
        (
            ["--source_weights", "domains", "--target_shots", "all", "--target_only"],
            {},
            "needs several .*there is none",
        ),
        (["--source_weights", "nearest"], {"pool": "few"}, "there are 10 distinct unlabelled target texts; at least"),
        (["--source_weights", "nearby"], {}, "--source_weights is 'nearby'; use none, importance, domains, nearest"),
        (["--nearest_fraction", "0"], {}, "--nearest_fraction is 0.0; use a share above 0"),
        (["--alignment_weight", "2"], {}, "unknown flag --alignment_weight"),
    ],
)
def test_refused(more, change, said, files, steady, tmp_path):
    with pytest.raises(UserError, match=said):
        conftest.load_recipe("adapt_domain")(
            flags(files, steady, tmp_path / "run", "--quiet", "--alignment", "none", *more, **change)
        )
    assert not list(tmp_path.iterdir())


# weights count rows as often


@pytest.fixture(scope="module")
def twelve(steady):
    """12 encoded rows, how often each counts, the rows that often, and rows to choose by.

    Every text is there with both labels, which count 4 times together, so that the mean of all texts stays.
    """
    tokenizer = AutoTokenizer.from_pretrained(steady)
    texts = conftest.corpus_texts("hotels")
    often = np.array([1, 3, 2, 2, 3, 1, 3, 1, 1, 3, 3, 1])
    rows = datasets.Dataset.from_list([{"text": texts[i // 2], "label": i % 2} for i in range(12)])
    held_out = datasets.Dataset.from_list([{"text": texts[20 + i], "label": i % 2} for i in range(12)])
    encode = tasks.load("text_classification").encode
    encoded, validation = (encode(tokenizer, part, 40)[0] for part in (rows, held_out))
    return encoded, often, encoded.select(np.repeat(np.arange(12), often)), validation


def trained(method, steady, rows, validation, weights, folder, *more):
    """Train by the verbs of a recipe, every row in every step; returns the trained weights."""
    usual = list(alignment_grid.SMALL.get(method, []))
    if method != "frozen":
        usual += ["--max_steps", "4", "--per_device_train_batch_size", "24", "--optim", "sgd", "--learning_rate", "0.1",
                 "--warmup_steps", "0", "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end",
                 "false"]  # fmt: skip
    arguments = parse(["--method", method, "--model", str(steady), "--source", "none", "--precision", "fp32", "--quiet",
                       "--output_dir", str(folder), *usual, *more])  # fmt: skip
    task = tasks.load("text_classification")
    loaded = load_model(arguments.model, task, ["negative", "positive"], seed=0)
    setup = Setup(loaded, rows, validation, task.collator(loaded.tokenizer), "fp32", None, seed=0,
                  sample_weights=weights)  # fmt: skip
    prepared = arguments.method_module.prepare(setup, arguments.method)
    history = fit(prepared, setup, task, arguments, folder)
    model, _ = prepared.merge(prepared.model, loaded.tokenizer)
    assert method == "frozen" or history[-1]["step"] == 4
    return {name: value.numpy() for name, value in model.state_dict().items()}


@pytest.mark.recipe
@pytest.mark.parametrize("method", ["frozen", *alignment_grid.METHODS])
def test_weights_are_rows_counted_as_often(method, steady, twelve, tmp_path, monkeypatch):
    assert len(methods.names()) == 9
    monkeypatch.setattr(pooling, "TOKEN_DROPOUT", 0.0)
    monkeypatch.setattr(pooling, "BATCH", 10**9)  # every row in every step
    monkeypatch.setattr(pooling, "STEPS", (20, 20))
    rows, often, repeated, validation = twelve
    more = ["--frozen_layer", "1"] if method == "frozen" else []
    weights = often / often.mean()
    runs = {"repeated": (repeated, None, more), "weighted": (rows, weights, more), "plain": (rows, None, more)}
    if method != "frozen":
        pieces = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "3"]
        runs["in pieces"] = (rows, weights, [*more, *pieces])
    found = {name: trained(method, steady, part, validation, own, tmp_path / name, *words)
             for name, (part, own, words) in runs.items()}  # fmt: skip
    apart = {name: max(np.abs(value - found[name][key]).max() for key, value in found["weighted"].items())
             for name in runs}  # fmt: skip
    plain = apart.pop("plain")
    assert plain > 1e-3
    assert max(apart.values()) < 0.01 * plain, apart


def test_a_probe_weighs_rows_too(twelve, tmp_path):
    """Every text is there with both labels: only weights say which of them is meant."""
    decoder, (rows, _, _, validation) = conftest.make_model(tmp_path / "gpt2", "gpt2"), twelve
    meant = np.where(np.isin(np.arange(12), [0, 3, 4, 7, 8, 11]), 1.9, 0.1)
    heads = [trained("frozen", decoder, rows, validation, weights, tmp_path / str(i))["score.weight"]
             for i, weights in enumerate((meant, 2 - meant, np.ones(12)))]  # fmt: skip
    np.testing.assert_allclose(heads[0], -heads[1], atol=1e-4 * np.abs(heads[0]).max())
    assert np.abs(heads[2]).max() < 1e-3 * np.abs(heads[0]).max()


@pytest.mark.recipe
def test_two_processes_weigh_the_same_and_learn_the_same(files, steady, tmp_path):
    def argv(name, *more):
        return flags(files, steady, tmp_path / name, "--quiet", "--method", "full", "--alignment", "none",
                     "--source_weights", "importance", "--num_train_epochs", "1", "--optim", "sgd", "--learning_rate",
                     "0.1", "--train_sampling_strategy", "random", "--early_stopping_patience", "0", *more)  # fmt: skip

    one = conftest.load_recipe("adapt_domain")(argv("one"))
    launch(2, "adapt_domain", *argv("two", "--per_device_train_batch_size", "8"))
    two = load_run(tmp_path / "two")
    assert (one.world_size, two.world_size) == (1, 2)
    assert one.choices == two.choices
    first, second = (load_file(run.folder / "model.safetensors") for run in (one, two))
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], atol=2e-4, err_msg=name)


@pytest.mark.recipe
@pytest.mark.parametrize(("method", "name", "kind"), [("frozen", "none", "importance"), ("partial", "coral", "domains"),
                                                      ("lora", "dann", "nearest")])  # fmt: skip
def test_with_and_without_alignment(method, name, kind, files, steady, tmp_path):
    more = [] if method == "frozen" else ["--max_steps", "2"]
    argv = flags(files, steady, tmp_path / "run", "--quiet", "--method", method, "--alignment", name,
                 "--source_weights", kind, *more)  # fmt: skip
    run = conftest.load_recipe("adapt_domain")(argv)
    assert run.choices["source_weights"] == kind
    assert run.choices["domains_told_apart"] > 0.6
    assert ("domain_weights" in run.choices) == (kind == "domains")
    assert run.metrics["target_test"]["n"] == 20


def test_domains_that_are_one_are_said_to_be(files, steady, tmp_path, capsys):
    more = ["--method", "frozen", "--alignment", "none", "--source_weights", "importance", "--frozen_layer", "1"]
    argv = flags(files, steady, tmp_path / "run", *more, sources=["far"], pool="same")
    run = conftest.load_recipe("adapt_domain")(argv)
    assert run.choices["domains_told_apart"] < 0.55
    assert "source and target can't be told apart by their words" in capsys.readouterr().out
