"""Self-training: which rows are trusted, rounds that stop where they bring nothing, texts that are encoded once."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import conftest
import numpy as np
import pytest
import scipy.special
from huggingface_hub import ModelCard
from safetensors.numpy import load_file
from transformers import AutoTokenizer, BertModel, GPT2Model
from warm import launch

from hf_transfer import methods, pooling
from hf_transfer.base import Base
from hf_transfer.card import render_card
from hf_transfer.co_training import with_words
from hf_transfer.errors import UserError
from hf_transfer.held_out import held_out
from hf_transfer.inference import predict_logits
from hf_transfer.label_prior import tempered, training_mix
from hf_transfer.methods import NO_LABEL
from hf_transfer.predict import scorer
from hf_transfer.pseudo import expected_shares, most_confident, temperature
from hf_transfer.results import load_run


def test_the_most_confident_of_each_class():
    p = np.array([0.9, 0.8, 0.7, 0.6, 0.55, 0.2, 0.3, 0.45])
    probabilities = np.stack([p, 1 - p], axis=1)
    found = most_confident(probabilities, np.array([0.5, 0.5]), 0.5)
    assert found.rows.tolist() == [0, 1, 5, 6]
    assert found.labels.tolist() == [0, 0, 1, 1]
    skewed = most_confident(probabilities, np.array([0.75, 0.25]), 0.5)
    assert skewed.labels.tolist() == [0, 0, 0, 1]
    every = most_confident(probabilities, np.array([0.25, 0.75]), 1.0)
    assert every.rows.tolist() == [0, 1, 5, 6, 7], "no more than the model gives that label"


def two_views(classes, rows, told=0.3):
    """Texts some of whose words tell the label, and a model that errs at random, for other reasons than the words."""
    rng = np.random.default_rng(0)
    truth = rng.integers(classes, size=rows)
    texts = [" ".join(f"w{rng.integers(50)}" if rng.random() > told else f"of{label}no{rng.integers(20)}"
                      for _ in range(12)) for label in truth]  # fmt: skip
    logits = rng.normal(size=(rows, classes)) + 2 * np.eye(classes)[truth]
    return texts, truth, scipy.special.softmax(2 * logits, axis=1)


@pytest.mark.parametrize("classes", [2, 3])
def test_words_correct_what_a_model_says(classes):
    texts, truth, given = two_views(classes, 700)
    both = with_words(given[:600], texts[:600], texts[600:], truth[600:], 0)
    before, after = ((one.argmax(1) == truth[:600]).mean() for one in (given[:600], both))
    assert before < 0.93
    assert after > before + 0.04
    assert both.sum(axis=1) == pytest.approx(1.0)
    assert (with_words(given[:600], texts[:600], texts[600:], truth[600:], 0) == both).all()


def test_words_that_tell_nothing_have_no_say():
    texts, truth, given = two_views(2, 700, told=0.0)
    both = with_words(given[:600], texts[:600], texts[600:], truth[600:], 0)
    assert (both.argmax(1) == given[:600].argmax(1)).mean() > 0.97
    alone = with_words(given[:600], [f"t{i}" for i in range(600)], texts[600:], truth[600:], 0)
    assert alone == pytest.approx(given[:600]), "no word of theirs occurs twice"
    assert with_words(given[:2], ["one", "two"], ["three", "four"], np.array([0, 1]), 0) == pytest.approx(given[:2])


@pytest.mark.parametrize("target", [0.5, 0.55, 0.1])
def test_the_mix_of_labels_to_expect_is_the_source_s_unless_it_is_clearly_another(target):
    rng = np.random.default_rng(0)
    scores = np.where(rng.random(2000) < target, 1.0, -1.0) + rng.normal(size=2000)
    p = scipy.special.expit(2 * scores)  # what holds where both labels are as frequent
    source = np.array([0.5, 0.5])
    found = expected_shares(np.stack([1 - p, p], axis=1), source, source)
    assert (found is source) == (target > 0.4)
    assert abs(found[1] - (0.5 if target > 0.4 else (target + 0.5) / 2)) < 0.03


@pytest.mark.recipe
@pytest.mark.parametrize("method", ["full", "lora", "partial", "frozen"])
def test_rounds(method, tiny, tables, tmp_path, monkeypatch):
    main, asked = conftest.load_recipe("self_train"), []
    words = main.__globals__["with_words"]
    monkeypatch.setitem(main.__globals__, "with_words", lambda *given, **more: asked.append(1) or words(*given, **more))
    pool = conftest.write_table(tmp_path / "pool.jsonl", [{"text": t} for t in conftest.corpus_texts("films")[:60]])
    argv = ["--model", str(tiny), "--source", str(tables["source"]), "--target", str(tables["target"]), "--method",
            method, "--target_unlabeled", str(pool), "--max_length", "40", "--validation_fraction", "0.2", "--quiet",
            "--rounds", "1", "--fraction", "0.5", "--output_dir", str(tmp_path / "run")]  # fmt: skip
    run = main([*argv, *([] if method == "frozen" else ["--num_train_epochs", "1"])])
    rounds = run.choices["rounds"]
    assert len(rounds) == 2
    assert rounds[0]["rows"] == run.data["rows"]["train"]
    assert rounds[0]["rows"] < rounds[1]["rows"] <= rounds[0]["rows"] + 30
    assert run.metrics["target_test"]["n"] == 40
    assert run.arm == f"self_train+{method}"
    assert run.happened == []
    assert len(asked) == (1 if run.method == "frozen" else 0)


@pytest.fixture
def frozen(tables, tmp_path, monkeypatch):
    """A command line of the frozen method, 40 target texts and a cache of its own."""
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(tmp_path / "cache"))
    pool = conftest.write_table(tmp_path / "pool.jsonl", [{"text": t} for t in conftest.corpus_texts("films")[:40]])

    def make(model, output, *more):
        return ["--model", str(model), "--source", str(tables["source"]), "--target", str(tables["target"]), "--method",
                "frozen", "--target_unlabeled", str(pool), "--max_length", "40", "--validation_fraction", "0.2",
                "--precision", "fp32", "--quiet", "--output_dir", str(output), *more]  # fmt: skip

    return make


@pytest.mark.recipe
@pytest.mark.parametrize(("kind", "trunk"), [("bert", BertModel), ("gpt2", GPT2Model)])
def test_a_frozen_encoder_reads_the_targets_texts_once(kind, trunk, frozen, tmp_path, monkeypatch):
    """However many rounds there are; and the trunk sees the source's rows only as often as without any round."""
    model, seen = conftest.make_model(tmp_path / "model", kind), Counter()
    forward = trunk.forward

    def counted(self, input_ids, attention_mask, **more):
        seen.update(tuple(ids[mask.bool()].tolist()) for ids, mask in zip(input_ids, attention_mask, strict=True))
        return forward(self, input_ids, attention_mask=attention_mask, **more)

    monkeypatch.setattr(trunk, "forward", counted)
    main = conftest.load_recipe("self_train")
    monkeypatch.setitem(main.__globals__, "SAME", 1.0)  # no round ends it
    monkeypatch.setitem(main.__globals__, "WORSE", 1.0)
    run = main(frozen(model, tmp_path / "run", "--rounds", "3"))
    assert len(run.choices["rounds"]) == 4, "all of them ran"
    texts = conftest.corpus_texts("films")[:40]
    ids = [
        tuple(row) for row in AutoTokenizer.from_pretrained(model)(texts, truncation=True, max_length=40)["input_ids"]
    ]
    assert [seen[row] for row in ids] == [1] * 40
    rounds = seen.total()
    seen.clear()
    monkeypatch.setenv("HF_TRANSFER_CACHE", str(tmp_path / "other"))
    argv = frozen(model, tmp_path / "plain")
    del argv[argv.index("--target_unlabeled") : argv.index("--target_unlabeled") + 2]
    conftest.load_recipe("finetune")(argv)
    validation = run.data["rows"]["validation"] if kind == "gpt2" else 0  # finetune does not ask for its logits
    assert rounds == seen.total() + 40 + validation


@pytest.fixture
def rounds(tiny, frozen, tmp_path, monkeypatch):
    """Run three rounds whose logits are given; returns the run, and the heads of the rounds and of what was saved."""

    def run(given):
        main, heads, calls = conftest.load_recipe("self_train"), [], iter(given)
        own, finish = main.__globals__["_round"], main.__globals__["finish"]
        monkeypatch.setitem(main.__globals__, "_round", lambda *args: heads.append(own(*args)) or heads[-1])
        noted = lambda job, last, **more: heads.append(last) or finish(job, last, **more)  # noqa: E731
        monkeypatch.setitem(main.__globals__, "finish", noted)
        monkeypatch.setitem(main.__globals__, "logits_of", lambda *_: next(calls))
        done = main([word for word in frozen(tiny, tmp_path / "run", "--rounds", "3") if word != "--quiet"])
        *trained, saved = heads
        return done, [one.head for _, one, _ in trained], saved.head

    return run


def logits_of_labels(labels):
    return np.stack([1.0 - 2 * labels, 2.0 * labels - 1], axis=1)


def held_out_truth(tables):
    """Labels of the held-out source rows, in order."""
    from hf_transfer.arguments import DataArguments
    from hf_transfer.data import load_data

    return np.array(load_data(DataArguments(source=[str(tables["source"])], target=str(tables["target"]),
                                            validation_fraction=0.2), 42).validation["label"][:])  # fmt: skip


@pytest.mark.recipe
def test_a_round_that_changes_no_label_is_the_last(rounds, tables):
    same = (logits_of_labels(np.arange(40) % 2), logits_of_labels(held_out_truth(tables)))
    run, heads, saved = rounds([same] * 4)
    assert [one["labels_kept"] for one in run.choices["rounds"]] == [0.0, 1.0]
    assert len(heads) == 2
    assert saved is heads[1]


@pytest.mark.recipe
def test_a_round_that_is_worse_on_the_source_is_dropped(rounds, tables, capsys):
    truth = held_out_truth(tables)
    good = (logits_of_labels(np.arange(40) % 2), logits_of_labels(truth))
    bad = (
        logits_of_labels(np.arange(40) // 20),
        logits_of_labels(np.where(np.arange(len(truth)) < 2, 1 - truth, truth)),
    )
    run, heads, saved = rounds([good, bad])
    assert [one["source_validation"] for one in run.choices["rounds"]] == [1.0, 1 - 2 / len(truth)]
    assert len(heads) == 2
    assert saved is heads[0]
    assert "mean_with_first_head" not in run.choices
    said = capsys.readouterr().out
    assert "round 1 is worse on the source and dropped" in said
    name = "frozen (self-training dropped: round 1 was worse on the source)"
    assert (run.arm, run.adaptation) == (name, ""), "what is saved has learned from no text of the target"
    assert load_run(run.folder).arm == name
    assert f"| {name} (run) |" in said
    assert name in run.verdict
    assert run.verdict in said
    why = (
        f"Round 1 of self-training had {100 * (1 - 2 / len(truth)):.1f} % of the held-out source rows right, after "
        "100.0 %, and was dropped: the model learned from the labelled rows alone, from no text of the target."
    )
    report = (run.folder / "report.md").read_text()
    assert report.startswith(f"# {name}: ")
    assert f"## What happened\n\n- {why}\n" in report
    card = render_card(run, repo_id="me/x", base=Base("tiny", None, None), has_adapter=False, license=None)
    assert f"**{name} " in card
    assert f"## What happened\n\n- {why}\n" in card
    tags = ModelCard(card).data.tags
    assert "frozen" in tags
    assert "self_train" not in tags


@pytest.mark.recipe
def test_a_slow_decline_ends_the_rounds(rounds, tables, monkeypatch):
    """Every round loses less than what it may, but they are compared with the best one."""
    truth, given = held_out_truth(tables), []
    for wrong in range(4):
        labels = np.where(np.arange(len(truth)) < wrong, 1 - truth, truth)
        given.append((logits_of_labels((np.arange(40) + wrong) // 2 % 2), logits_of_labels(labels)))
    main = conftest.load_recipe("self_train")
    monkeypatch.setattr(conftest, "load_recipe", lambda name: main)
    monkeypatch.setitem(main.__globals__, "WORSE", 1.5 / len(truth))
    run, heads, saved = rounds(given)
    assert [one["round"] for one in run.choices["rounds"]] == [0, 1, 2]
    assert saved is not heads[2]
    assert run.arm == "self_train+frozen (round 2 dropped)"
    assert "and was dropped: the model is that of round 1." in (run.folder / "report.md").read_text()


@pytest.mark.recipe
def test_a_killed_round_goes_on(tiny, tables, tmp_path, monkeypatch):
    """The first one, from its checkpoint; killed in a later one they begin again. The end is the same."""
    from hf_transfer import training

    pool = conftest.write_table(tmp_path / "pool.jsonl", [{"text": t} for t in conftest.corpus_texts("films")[:60]])
    main, steps = conftest.load_recipe("self_train"), []

    def train(name, *more, last=10**6):
        def note(self, args, state, control, **rest):
            steps.append(state.global_step)
            if len(steps) == last:
                raise KeyboardInterrupt

        steps.clear()
        with monkeypatch.context() as patch:
            patch.setattr(training.Spent, "on_step_end", note)
            return main(["--model", str(tiny), "--source", str(tables["source"]), "--target", str(tables["target"]),
                         "--target_unlabeled", str(pool), "--max_length", "40", "--validation_fraction", "0.2",
                         "--num_train_epochs", "3", "--early_stopping_patience", "0", "--learning_rate", "1e-3",
                         "--quiet", "--output_dir", str(tmp_path / name), *more])  # fmt: skip

    whole = load_file(train("whole").folder / "model.safetensors")
    every = [*steps]
    first = every[1:].index(1) + 1
    assert first < len(every)
    for killed_at, repeated in ((first - 1, every[first // 3 * 2 :]), (first + 2, every)):
        with pytest.raises(KeyboardInterrupt):
            train(f"at{killed_at}", last=killed_at)
        found = load_file(train(f"at{killed_at}", "--resume").folder / "model.safetensors")
        assert steps == repeated
        for name, value in whole.items():
            np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


@pytest.mark.recipe
def test_what_an_earlier_run_found_out_is_not_asked_again(frozen, tmp_path, monkeypatch):
    """Which layer is best, and the source's states; the seconds of it stay known, those of a run's own rounds aside."""
    model, recipe = conftest.make_model(tmp_path / "model"), conftest.load_recipe("self_train")
    before = recipe(frozen(model, tmp_path / "before")).choices
    assert len(before["validation_score_by_layer"]) == 3
    assert "cached_encoding_seconds" not in before, "its second round found what its first one had paid for"
    monkeypatch.setattr(methods.load("frozen"), "_score_by_layer", None)
    after = recipe(frozen(model, tmp_path / "after")).choices
    assert after["cached_encoding_seconds"] > 0
    assert after["validation_score_by_layer"] == before["validation_score_by_layer"]
    assert after["layer"] == before["layer"]


@pytest.mark.recipe
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_labels_are_the_predictions_of_the_model_that_is_saved(kind, frozen, tmp_path, monkeypatch):
    """In every round the logits that choose labels, of the cached states, are those of the round's own model."""
    model, found = conftest.make_model(tmp_path / "model", kind), []
    main = conftest.load_recipe("self_train")
    own = main.__globals__["logits_of"]

    def checked(job, prepared):
        found.append(own(job, prepared))
        for given, part in zip(found[-1], (job.pool, job.setup.validation), strict=True):
            again = predict_logits(prepared.model, part, job.setup.collator, precision="fp32")
            np.testing.assert_allclose(given, again, atol=0.02)
        return found[-1]

    monkeypatch.setitem(main.__globals__, "logits_of", checked)
    monkeypatch.setitem(main.__globals__, "WORSE", 1.0)
    run = main(frozen(model, tmp_path / "run"))
    assert len(found) == 2
    assert np.ptp(found[-1][0]) > 0.5
    assert np.abs(found[0][0] - found[1][0]).max() > 0.05, "a round learns from its labels"
    expected = scipy.special.softmax(found[-1][0], axis=1)
    np.testing.assert_allclose(scorer(run.folder)(conftest.corpus_texts("films")[:40]), expected, atol=0.01)


@pytest.mark.recipe
def test_the_result_is_the_mean_of_the_first_head_and_the_last(frozen, tmp_path, monkeypatch):
    """Where the model has heads enough to hold both (`pooling.room_for`); the test before is of one that has not."""
    model, found = conftest.make_model(tmp_path / "model"), []
    config = json.loads((model / "config.json").read_text(encoding="utf-8")) | {"num_attention_heads": 8}
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    main = conftest.load_recipe("self_train")
    own = main.__globals__["logits_of"]
    monkeypatch.setitem(main.__globals__, "logits_of", lambda *given: found.append(own(*given)) or found[-1])
    monkeypatch.setitem(main.__globals__, "WORSE", 1.0)
    run = main(frozen(model, tmp_path / "run"))
    first, last = (of_pool for of_pool, _ in found)
    assert np.abs(first - last).max() > 0.05
    expected = scipy.special.softmax((first + last) / 2, axis=1)
    np.testing.assert_allclose(scorer(run.folder)(conftest.corpus_texts("films")[:40]), expected, atol=0.01)
    assert run.choices["mean_with_first_head"]


@pytest.mark.recipe
def test_nothing_is_learned_from_rows_without_a_label(tiny, frozen, tmp_path, monkeypatch):
    learned, fit_pools = [], pooling.fit_pools

    def spied(states, labels, rows, **more):
        learned.append([labels[states.order[own]] for own in rows])
        return fit_pools(states, labels, rows, **more)

    monkeypatch.setattr(pooling, "fit_pools", spied)
    run = conftest.load_recipe("self_train")(frozen(tiny, tmp_path / "run", "--fraction", "0.5"))
    assert all((labels != NO_LABEL).all() for heads in learned for labels in heads)
    assert [len(labels) for labels in (learned[-2][-1], learned[-1][-1])] == [
        one["rows"] for one in run.choices["rounds"]
    ]
    argv = frozen(tiny, tmp_path / "plain")
    del argv[argv.index("--target_unlabeled") : argv.index("--target_unlabeled") + 2]
    plain = conftest.load_recipe("finetune")(argv)
    by_layer = "validation_score_by_layer"
    assert run.choices[by_layer] == plain.choices[by_layer], "the layer is chosen by labelled rows alone"
    assert run.choices["layer"] == plain.choices["layer"]


@pytest.mark.recipe
def test_two_processes_change_nothing(tiny, frozen, tmp_path):
    one = conftest.load_recipe("self_train")(frozen(tiny, tmp_path / "one"))
    launch(2, "self_train", *frozen(tiny, tmp_path / "two"))
    two = load_run(tmp_path / "two")
    assert two.world_size == 2
    assert two.choices["rounds"] == one.choices["rounds"]
    p = [scorer(run.folder)(conftest.corpus_texts("films")[:20]) for run in (one, two)]
    np.testing.assert_allclose(p[1], p[0], atol=1e-3)


class Stopped(Exception):
    """Carries the arguments that a recipe would have begun with."""


@pytest.mark.parametrize("method", methods.names())
def test_what_is_trusted_by_default_depends_on_the_method(method, tables, tmp_path, monkeypatch):
    main = conftest.load_recipe("self_train")

    def stop(arguments):
        raise Stopped(arguments.more[0])

    monkeypatch.setitem(main.__globals__, "begin", stop)
    config = tmp_path / "some.yaml"
    config.write_text("fraction: 0.4\n", encoding="utf-8")
    argv = ["--method", method, "--source", str(tables["source"]), "--target_unlabeled", "x.csv",
            "--output_dir", str(tmp_path / "run")]  # fmt: skip
    found = []
    for more in ([], ["--fraction", "0.3", "--pool_rows", "50"], ["--config", str(config)]):
        with pytest.raises(Stopped) as stopped:
            main([*argv, *more])
        how = stopped.value.args[0]
        found.append((how.fraction, how.pool_rows))
    default = (1.0, 2000) if method == "frozen" else (0.7, None)
    assert found == [default, (0.3, 50), (0.4, default[1])]


def test_help_says_that_it_depends(capsys):
    with pytest.raises(SystemExit):
        conftest.load_recipe("self_train")(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "with --method frozen 1.0 by default" in said
    assert "with --method frozen 2000" in said


@pytest.mark.parametrize(
    "change", [["--rounds", "0"], ["--fraction", "0"], ["--fraction", "1.5"], ["--pool_rows", "0"]]
)
def test_refused(change, tables, tmp_path):
    with pytest.raises(UserError, match=r"use 1 or more|use a share above 0 and up to 1"):
        conftest.load_recipe("self_train")(["--source", str(tables["source"]), "--target_unlabeled", "x.csv",
                                            "--output_dir", str(tmp_path / "run"), *change])  # fmt: skip


def test_teachers(tiny, tables, tmp_path, capsys, monkeypatch):
    """Finished runs give the first labels, of a sample of the texts: their mean, in this run's order of labels."""
    pool = conftest.write_table(tmp_path / "pool.jsonl", [{"text": t} for t in conftest.corpus_texts("films")[:60]])
    common = ["--model", str(tiny), "--source", str(tables["source"]), "--target", str(tables["target"]), "--quiet",
              "--max_length", "40", "--validation_fraction", "0.2"]  # fmt: skip
    folders = []
    for method in ("full", "frozen"):
        folders.append(str(tmp_path / method))
        more = ["--num_train_epochs", "1"] if method == "full" else []
        conftest.load_recipe("finetune")([*common, "--method", method, "--output_dir", folders[-1], *more])
    argv = [word for word in common if word != "--quiet"]
    argv += ["--method", "frozen", "--target_unlabeled", str(pool), "--fraction", "0.5", "--pool_rows", "40"]
    main, jobs = conftest.load_recipe("self_train"), []
    own = main.__globals__["sampled"]
    monkeypatch.setitem(main.__globals__, "sampled", lambda job, most: jobs.append(own(job, most)) or jobs[0])
    run = main([*argv, "--teachers", *folders, "--output_dir", str(tmp_path / "run")])
    assert "a random 40 of its 60 unlabelled texts" in capsys.readouterr().out
    assert run.choices["pool_rows"] == 40
    (only,) = run.choices["rounds"]
    assert only["round"] == 1
    picked = np.sort(np.random.default_rng(run.seed).permutation(60)[:40])
    texts = [conftest.corpus_texts("films")[i] for i in picked]
    assert jobs[0].domains.unlabeled["text"][:] == texts
    ids = AutoTokenizer.from_pretrained(tiny)(texts, truncation=True, max_length=40)["input_ids"]
    assert jobs[0].pool["input_ids"][:] == ids, "what is labelled is what is learned from"
    runs = [load_run(folder) for folder in folders]
    powers = [temperature(held_out(one, run.label_names), training_mix(one)) for one in runs]
    assert None not in powers, "each is calibrated by the rows that it held out"
    given = np.mean([tempered(scorer(one.folder)(texts), power) for one, power in zip(runs, powers, strict=True)], 0)
    train = jobs[0].domains.train
    given = with_words(given, texts, train["text"][:], np.array(train["label"][:]), run.seed)
    expected = most_confident(given, np.array([0.5, 0.5]), 0.5)  # of so few texts no other mix is believed
    assert only["rows"] == run.data["rows"]["train"] + len(expected.rows)


def test_teachers_that_must_not_teach(tiny, tables, tmp_path):
    rows = [{"text": f"a text {i}", "label": ("bad", "good")[i % 2]} for i in range(60)]
    other = conftest.write_table(tmp_path / "other.jsonl", rows)
    pool = conftest.write_table(tmp_path / "pool.jsonl", rows)
    mine = Path(shutil.copy(tables["source"], tmp_path / "source.jsonl"))
    common = ["--model", str(tiny), "--quiet", "--max_length", "40", "--method", "frozen"]
    ours = ["--source", str(mine), "--target", str(tables["target"])]
    finetune, self_train = conftest.load_recipe("finetune"), conftest.load_recipe("self_train")
    finetune([*common, *ours, "--target_shots", "4", "--output_dir", str(tmp_path / "few")])
    finetune([*common, "--source", str(other), "--output_dir", str(tmp_path / "others")])
    finetune([*common, "--source", str(mine), str(tables["target"]), "--output_dir", str(tmp_path / "both")])
    argv = [*common, *ours, "--target_unlabeled", str(pool), "--output_dir", str(tmp_path / "no"), "--teachers"]
    for teacher, said in (("few", "learned from target labels, and from another split"),
                          ("both", r"learned from the labels of \d+ rows that are tested here"),
                          ("others", "knows the labels bad, good; these data have negative, positive")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            self_train([*argv, str(tmp_path / teacher)])
    again = [*common[2:], *ours, "--output_dir", str(tmp_path / "no"), "--model"]
    with pytest.raises(UserError, match=r"LEAK: --model .*both learned from the labels of \d+ rows that are tested"):
        finetune([*again, str(tmp_path / "both")])
    source = [*common[2:], "--source", str(other), "--output_dir"]
    finetune([*source, str(tmp_path / "later"), "--model", str(tmp_path / "both")])
    with pytest.raises(UserError, match=r"LEAK: --model .*later learned from the labels of \d+ rows that are tested"):
        finetune([*again, str(tmp_path / "later")])  # which began with one that did
    finetune([*again, str(tmp_path / "few"), "--target_shots", "4"])  # the same data and splits
    again[again.index("--output_dir") + 1] = str(tmp_path / "never")
    with mine.open("a") as file:
        file.write(json.dumps({"text": "one more", "label": "positive"}) + "\n")
    with pytest.raises(UserError, match=r"LEAK: --model .*few learned .* or may have"):
        finetune([*again, str(tmp_path / "few")])  # its data can't be read again
    (tmp_path / "few" / "run.json").write_text("{}")
    finetune([*again, str(tmp_path / "few")])  # no run of ours: a model like any other
