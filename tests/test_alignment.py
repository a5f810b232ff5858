"""Alignments: nothing on equal domains, gradients to both sides, the formulas, and every one under every method."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from types import SimpleNamespace

import alignment_grid
import conftest
import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from scipy.optimize import linprog
from transformers import AutoModel, pipeline
from warm import launch

from hf_transfer import aligned, alignment, tasks
from hf_transfer.aligned import PREFIX, Aligned, PairCollator, Progress
from hf_transfer.alignment import Batch, coral, jdot, mmd
from hf_transfer.alignment._adversary import strength
from hf_transfer.errors import UserError
from hf_transfer.methods import Prepared, Setup, as_it_is
from hf_transfer.training import set_learning_rates

ALIGNMENTS = [
    "cdan",
    "coral",
    "dann",
    "jdot",
    "mmd",
]  # of features; udalm, which reads words, is in test_pretraining.py
METHODS = ["adapter", "bitfit", "full", "ia3", "lora", "partial", "prompt", "qlora"]


def build(name, hidden=6, classes=3):
    module = alignment.load(name)
    torch.manual_seed(0)
    return module.build(hidden, classes, module.Arguments(), None)


def batch(seed, rows=12, shift=0.0, labels=True):
    generator = torch.Generator().manual_seed(seed)
    features = (torch.randn(rows, 6, generator=generator) + shift).requires_grad_()
    logits = (torch.randn(rows, 3, generator=generator)).requires_grad_()
    return Batch(features, logits, torch.zeros(rows, dtype=torch.long) if labels else None)


def test_all_alignments_are_found():
    assert alignment.names() == [*ALIGNMENTS, "udalm"]
    assert alignment_grid.METHODS == METHODS


@pytest.mark.parametrize("name", ["coral", "mmd"])
def test_distances_are_0_on_equal_inputs_and_grow_with_the_gap(name):
    loss = build(name)
    assert loss(batch(0), batch(0), 0.5).item() == pytest.approx(0.0, abs=1e-6)
    scales = [float(loss(batch(0, 400), Batch(batch(1, 400).features * scale, batch(1, 400).logits, None), 0.5))
              for scale in (1.0, 2.0, 4.0)]  # fmt: skip
    assert scales == sorted(scales)
    assert scales[0] < 0.1 * scales[2]


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_both_sides_get_gradients(name):
    source, target = batch(0), batch(1, shift=2.0, labels=False)
    build(name)(source, target, 0.5).backward()
    for side in (source, target):
        assert side.features.grad.abs().sum() > 0


def test_coral_is_its_formula():
    a, b = batch(0).features.detach().numpy(), 3 * batch(1).features.detach().numpy()
    expected = ((np.cov(a.T) - np.cov(b.T)) ** 2).sum() / (4 * 36)
    found = coral.Coral()(Batch(torch.tensor(a), None, None), Batch(torch.tensor(b), None, None), 0)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_mmd_is_its_formula():
    a, b = batch(0).features.detach().numpy(), batch(1, shift=1.0).features.detach().numpy()
    both = np.concatenate([a, b])
    distances = ((both[:, None] - both[None]) ** 2).sum(-1)
    width = distances.sum() / (len(both) ** 2 - len(both))
    kernel = sum(np.exp(-distances / (factor * width)) for factor in mmd.WIDTHS)
    others = [(i, j) for i in range(12) for j in range(12) if i != j]
    expected = np.mean(
        [kernel[i, j] + kernel[12 + i, 12 + j] - kernel[i, 12 + j] - kernel[j, 12 + i] for i, j in others]
    )
    found = mmd.MaximumMeanDiscrepancy()(Batch(torch.tensor(a), None, None), Batch(torch.tensor(b), None, None), 0)
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_mmd_has_no_bias():
    """Small batches of one domain are no gap on average: the biased estimate's mean is 0.5 here."""
    with torch.no_grad():
        values = [float(build("mmd")(batch(2 * i), batch(2 * i + 1), 0)) for i in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 200**0.5
    assert np.std(values) < 0.5


def random_classes(seed, rows, classes=3):
    return torch.randint(classes, (rows,), generator=torch.Generator().manual_seed(seed))


def test_jdot_is_the_cost_of_the_optimal_plan():
    """Against the linear programme of optimal transport, solved by another method."""
    source, target = batch(0), batch(1, shift=1.0, labels=False)
    labels = random_classes(2, 12)
    labels[3] = -100  # a blank row: its label costs nothing
    a, b, logits = (x.detach().double().numpy() for x in (source.features, target.features, target.logits))
    surprise = -np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    for weight in (0.0, 0.7):
        cost = np.array([[((x - y) ** 2).mean() + weight * (surprise[j, labels[i]] if labels[i] >= 0 else 0.0)
                          for j, y in enumerate(b)] for i, x in enumerate(a)])  # fmt: skip
        margins = np.concatenate([np.kron(np.eye(12), np.ones(12)), np.kron(np.ones(12), np.eye(12))])
        solved = linprog(cost.ravel(), A_eq=margins, b_eq=np.full(24, 1 / 12), method="highs-ipm")
        found = jdot.JointDistributionTransport(weight)(Batch(source.features, source.logits, labels), target, 0)
        assert found.item() == pytest.approx(solved.fun, rel=1e-4)
        assert found.item() < 0.9 * np.trace(cost) / 12, "the plan is not the order of the rows"


def test_jdot_is_0_where_both_sides_agree_and_does_not_depend_on_the_width():
    loss, labels = jdot.JointDistributionTransport(1.0), random_classes(0, 12)
    sure = 50.0 * torch.nn.functional.one_hot(labels, 3)
    one, order = batch(0), torch.randperm(12, generator=torch.Generator().manual_seed(1))
    moved = Batch(one.features[order], sure[order], None)
    assert loss(Batch(one.features, sure, labels), moved, 0).item() == pytest.approx(0.0, abs=1e-6)
    wrong = Batch(one.features[order], sure[order].roll(1, 1), None)
    assert loss(Batch(one.features, sure, labels), wrong, 0).item() > 0.5
    two = batch(1)
    once, twice = (loss(*(Batch(side.features.repeat(1, times), side.logits, labels) for side in (one, two)), 0)
                   for times in (1, 2))  # fmt: skip
    assert once.item() == pytest.approx(twice.item(), rel=1e-5)


def test_jdot_teaches_the_target_the_labels_of_what_is_moved_onto_it():
    source, target = batch(0), batch(1, labels=False)
    build("jdot")(source, target, 0.5).backward()
    assert target.logits.grad.abs().sum() > 0
    assert source.logits.grad is None


def test_a_cost_that_is_no_number_reaches_the_one_who_stops():
    broken = Batch(torch.full((12, 6), float("nan")), batch(0).logits, torch.zeros(12, dtype=torch.long))
    assert torch.isnan(build("jdot")(broken, batch(1, labels=False), 0.5))


@pytest.mark.parametrize("name", ["cdan", "dann"])
def test_equal_domains_leave_a_discriminator_at_chance(name):
    """Whatever it has learned: the loss of equal rows is log 2 at the least."""
    loss = build(name)
    for scale in (0.1, 1.0, 10.0):
        equal = Batch(scale * batch(0).features.detach(), batch(0).logits, None)
        assert loss(equal, equal, 0.5).item() >= np.log(2) - 1e-6
    with torch.no_grad():
        loss.discriminator.layers[-1].weight.zero_()
        loss.discriminator.layers[-1].bias.zero_()
    assert loss(equal, equal, 0.5).item() == pytest.approx(np.log(2))


@pytest.mark.parametrize(("hidden", "classes"), [(6, 3), (600, 30)])
def test_cdan_joins_features_and_classes(hidden, classes):
    """By their outer product, or by a random projection that keeps its inner products (Long et al. 2018, eq. 6)."""
    generator = torch.Generator().manual_seed(0)
    one = Batch(torch.randn(8, hidden, generator=generator), 3 * torch.randn(8, classes, generator=generator), None)
    joint = build("cdan", hidden, classes).joint(one)
    shares = one.logits.softmax(-1)
    expected = (one.features @ one.features.T) * (shares @ shares.T)
    assert joint.shape == (8, min(hidden * classes, 4096))
    assert torch.allclose(joint @ joint.T, expected, rtol=1e-4) == (hidden == 6)
    scale = torch.outer(expected.diag(), expected.diag()).sqrt()
    assert ((joint @ joint.T - expected).abs() / scale).max() < 0.1


def test_adversaries_reverse_the_gradient():
    """The discriminator learns to tell the domains apart; the features move to where it can't."""
    dann = build("dann")
    source, target = batch(0, 200), batch(1, 200, shift=1.5)
    optimizer = torch.optim.Adam(dann.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        before = dann(source, target, 1.0)
        before.backward()
        optimizer.step()
    dann.discriminator.shown = dann.discriminator.right = 0
    dann(source, target, 1.0)
    assert dann.discriminator.shown == 400
    assert dann.discriminator.right > 360
    source.features.grad = target.features.grad = None
    before = dann(source, target, 1.0)
    before.backward()
    moved = [Batch(one.features.detach() - 50 * one.features.grad, one.logits, None) for one in (source, target)]
    assert dann(*moved, 1.0) > before, "a step down the reversed gradient raises the discriminator's loss"
    source.features.grad = None
    dann(source, target, 0.0).backward()
    assert source.features.grad.abs().sum() == 0, "nothing is reversed at the beginning"
    assert strength(0) == 0
    assert strength(1) > 0.999


def test_pairs_are_of_similar_length_and_depend_on_the_batch_alone():
    import datasets

    target = datasets.Dataset.from_list([{"input_ids": list(range(n)), "length": n} for n in range(1, 1001)])

    def collate(rows):
        return {"lengths": [row["length"] for row in rows], "labels": [row.get("labels") for row in rows]}

    collator = PairCollator(collate, list(range(1, 1001)), target, seed=3)
    rows = [{"input_ids": [i] * 500, "length": 500, "labels": i} for i in range(8)]
    first, again, other = collator(rows), collator(rows), collator(rows[::-1])
    assert first == again != other
    assert first["source_labels"] == first["labels"] == list(range(8))
    assert len(set(first[f"{PREFIX}lengths"])) == 8
    assert all(abs(length - 500) <= 101 for length in first[f"{PREFIX}lengths"])
    few = PairCollator(collator.collator, [500], target.select(range(3)), 0)
    assert sorted(set(few(rows)[f"{PREFIX}lengths"])) == [1, 2, 3]


@pytest.mark.parametrize("sampled", ["by length", "at random"])
def test_every_part_of_the_target_has_its_turn(sampled):
    """Where its texts are longer than the source's, many of both are cut at one length, and batches are mixed."""
    import datasets

    lengths = {"source": np.clip(np.arange(2000) // 8, 1, 128), "target": np.clip(np.arange(3000) // 6, 60, 300)}
    target = datasets.Dataset.from_list([{"input_ids": [i], "length": int(n)} for i, n in enumerate(lengths["target"])])

    def collate(rows):
        return {"rows": [row["input_ids"][0] for row in rows], "labels": [row.get("labels") for row in rows]}

    collator = PairCollator(collate, lengths["source"].tolist(), target, seed=0)
    order = np.arange(2000) if sampled == "by length" else np.random.default_rng(0).permutation(2000)
    drawn, apart = [], []
    for begin in range(0, 2000, 16):
        rows = [{"input_ids": [int(i)], "length": int(lengths["source"][i]), "labels": 0} for i in order[begin:][:16]]
        drawn += (one := collator(rows)[f"{PREFIX}rows"])
        apart.append(np.ptp(lengths["target"][one]))
    assert len(drawn) == 2000
    shares = np.histogram(drawn, bins=10, range=(0, 3000))[0] / 2000
    assert shares.min() > 0.05
    assert shares.max() < 0.15
    if sampled == "by length":
        assert np.median(apart) < 60, "a batch's rows are about as long as each other"


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """What the combinations train on, see alignment_grid.py: a tiny BERT without dropout, and encoded rows."""
    import datasets
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("grid")
    config = conftest.make_model(folder / "model", layers=2) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_dropout_prob": 0.0}))
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    films = conftest.corpus_texts("films")
    hotels = [{"text": text, "label": i % 2} for i, text in enumerate(conftest.corpus_texts("hotels"))]
    parts = {"train": hotels[: alignment_grid.STEPS * alignment_grid.ROWS],
             "pool": [{"text": text} for text in films[:30]], "one": [{"text": films[0]}]}  # fmt: skip
    for name, rows in parts.items():
        encoded, _ = tasks.load("text_classification").encode(tokenizer, datasets.Dataset.from_list(rows), 40)
        encoded.save_to_disk(folder / name)
    return folder


@pytest.fixture(scope="module")
def alone(grid):
    """What every combination ends with in one process."""
    return {(name, method): trained for name, method, trained in alignment_grid.train_all(grid)}


@pytest.mark.recipe
def test_every_alignment_under_every_method(alone, grid):
    start = {name: value.numpy() for name, value in AutoModel.from_pretrained(grid / "model").state_dict().items()}
    assert len(alone) == 40
    for (name, method), (weights, history, choices, model) in alone.items():
        assert history[-1]["step"] == alignment_grid.STEPS
        assert "alignment_stopped" not in choices
        assert weights, (name, method)
        assert not [key for key in model.state_dict() if "alignment" in key]
        if method == "full":
            moved = [key for key, value in start.items() if not np.array_equal(value, weights[f"bert.{key}"])]
            assert len(moved) == len(start)
    trunks = {alone[name, "full"][0]["bert.pooler.dense.weight"].numpy().tobytes() for name in ALIGNMENTS}
    assert len(trunks) == 5, "each has a say"


@pytest.mark.recipe
def test_every_alignment_under_every_method_with_two_processes(alone, grid):
    """They end with the same weights; with those of one process where the loss is a mean over rows."""
    launch(2, alignment_grid.__file__, grid)
    facts = [json.loads((grid / f"{rank}.json").read_text()) for rank in (0, 1)]
    collapsed = [one["steps"].pop("collapse") for one in facts]
    assert facts[0]["steps"] == facts[1]["steps"]
    assert list(facts[0]["steps"].values()) == [alignment_grid.STEPS] * 40
    compared = 0
    for (name, method), (weights, *_) in alone.items():
        first, second = (load_file(grid / f"{name}-{method}.{rank}.safetensors") for rank in (0, 1))
        assert first.keys() == second.keys() == weights.keys()
        for key, value in first.items():
            np.testing.assert_array_equal(value, second[key], err_msg=f"{name} {method} {key}")
            if name in alignment_grid.BY_ROW:
                np.testing.assert_allclose(value, weights[key], atol=1e-5, err_msg=f"{name} {method} {key}")
                compared += 1
    assert compared > 100
    assert collapsed == [1, 1], "the first process saw a collapse, and both stopped"
    assert all("is no number" in one["choices"]["alignment_stopped"] for one in facts)


@pytest.fixture
def command(tables, tmp_path):
    rows = [{"text": text} for text in conftest.corpus_texts("films")[:60]]
    pool = conftest.write_table(tmp_path / "pool.jsonl", rows)

    def make(model, output, *more):
        return ["--model", str(model), "--source", str(tables["source"]), "--target", str(tables["target"]),
                "--target_unlabeled", str(pool), "--max_length", "40", "--validation_fraction", "0.2", "--quiet",
                "--num_train_epochs", "1", "--output_dir", str(output), *more]  # fmt: skip

    return make


@pytest.mark.recipe
@pytest.mark.parametrize(("name", "method"), [("coral", "partial"), ("dann", "full"), ("jdot", "prompt")])
def test_the_whole_recipe(name, method, command, tiny, tmp_path):
    more = ["--prompt_tokens", "4"] if method == "prompt" else []
    argv = command(tiny, tmp_path / "run", "--alignment", name, "--method", method, *more)
    run = conftest.load_recipe("adapt_domain")(argv)
    assert run.arguments["alignment"] == name
    assert run.arm == f"{name}+{method}"
    assert run.data["unlabeled_rows"] == 60
    found = pipeline("text-classification", str(run.folder))("a text")
    assert found[0]["label"] in run.label_names
    assert not [key for key in load_file(run.folder / "model.safetensors") if "alignment" in key]


class Fake:
    """What the Trainer tells callbacks."""

    def __init__(self, step=0, steps=100, folder="nowhere"):
        self.global_step, self.max_steps, self.is_world_process_zero = step, steps, True
        self.should_training_stop, self.best_model_checkpoint = False, "checkpoint-1" if step > 20 else None
        self.load_best_model_at_end, self.output_dir = True, folder


@pytest.fixture
def watched(tiny):
    """A model that is aligned by dann, and what watches it; neither is trained."""
    from transformers import AutoModelForSequenceClassification

    def build_both(choices, weight=1.0):
        model = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=2)
        both = Aligned(model, build("dann", 32), weight)
        return both, Progress(both, choices)

    return build_both


def watch(both, callback, right, *, first=0, steps=100, rows=32, given=lambda step: [0, 1], target=None, meant=(0, 1)):
    """Tell the callback of steps whose discriminator told so many rows right; returns the step that was the last.

    `target` gives the labels of target rows, where they are not those of source rows.
    """
    for step, told in enumerate(right, first):
        now, control = Fake(step, steps), Fake()
        callback.on_step_begin(now, now, control)
        both.given, both.meant = (Counter(given(step)), Counter((target or given)(step))), set(meant)
        both.alignment.discriminator.right, both.alignment.discriminator.shown = told, rows
        callback.on_step_end(now, now, control)
        if control.should_training_stop:
            return step
    return None


COLLAPSES = {
    "no number": ({"right": [26] * 100}, 1, "is no number"),
    "one label": ({"right": [26] * 100, "given": lambda step: [1]}, 51, "every text was given one label"),
    "of the target": (
        {"right": [26] * 100, "given": lambda step: [0] * 8 + [1] * 8, "target": lambda step: [1] * 16},
        63,
        "all of 1008 target texts were given one label, and 504 source texts another",
    ),
    "blind": ({"right": [16] * 100}, 31, "never told the domains apart"),
}


@pytest.mark.parametrize("kind", COLLAPSES)
def test_collapse_stops_and_says_why(kind, watched, capsys):
    steps, first, said = COLLAPSES[kind]
    both, callback = watched(choices := {})
    both.failed = kind == "no number"
    stopped = watch(both, callback, **steps)
    assert stopped is not None
    assert stopped <= first
    assert said in choices["alignment_stopped"]
    kept = "the best checkpoint is kept" if first > 20 else "the last weights are kept"
    assert kept in capsys.readouterr().out


@pytest.mark.parametrize("rows", [16, 32])
def test_a_discriminator_that_guesses_is_found_out_and_one_that_knows_a_little_is_not(rows, watched):
    both, _ = watched({})
    rng, guessed, knew = np.random.default_rng(0), 0, 0
    for _ in range(50):
        guessed += watch(both, Progress(both, {}), rng.binomial(rows, 0.5, 300), steps=300, rows=rows) == 91
        knew += watch(both, Progress(both, {}), rng.binomial(rows, 0.6, 120), steps=300, rows=rows) is None
    assert guessed >= 49
    assert knew == 50


def test_an_alignment_of_no_weight_has_no_discriminator_to_watch(watched):
    assert watch(*watched({}, weight=0.0), [16] * 100) is None


def test_what_was_watched_goes_on_from_a_checkpoint(watched, tmp_path):
    """A discriminator that told the domains apart early, and is blind since, was not blind always."""
    (tmp_path / "checkpoint-50").mkdir()
    both, callback = watched(kept := {"mixed_losses": [[0.5, 1.0]]})
    assert watch(both, callback, [26] * 50) is None
    callback.on_save(now := Fake(50, folder=str(tmp_path)), now, None)
    for folder in (tmp_path, tmp_path / "killed before it was written"):
        both, callback = watched(choices := {})
        callback.on_train_begin(now := Fake(50, folder=str(folder)), now, None)
        assert set(callback.watched) == set(Progress(both, {}).watched)
        assert choices == (kept if folder == tmp_path else {})
        assert watch(both, callback, [16] * 50, first=50) is None
    note = tmp_path / "checkpoint-50" / "alignment.json"
    older = json.loads(note.read_text())
    del older["watched"]["of_target"]
    note.write_text(json.dumps(older))
    both, callback = watched({})
    callback.on_train_begin(now := Fake(50, folder=str(tmp_path)), now, None)
    assert watch(both, callback, [16] * 50, first=50) is None, "of a version that watched less"
    both, callback = watched({})
    assert watch(both, callback, [16] * 50) == 31
    callback.on_save(now := Fake(50, folder=str(tmp_path)), now, None)
    again, callback = watched(choices := {})
    callback.on_train_begin(now, now, None)
    assert "never told" in choices["alignment_stopped"]
    assert watch(again, callback, [26] * 50, first=50) == 50, "what was stopped stays so"


def test_what_labels_are_given_and_meant(watched):
    both, callback = watched({})
    both.train()
    inputs = {"input_ids": torch.ones(4, 3, dtype=torch.long), "attention_mask": torch.ones(4, 3, dtype=torch.long)}
    inputs |= {f"{PREFIX}{name}": value for name, value in inputs.items()}
    both(**inputs, source_labels=torch.tensor([1, 1, 1, -100]))
    assert both.meant == {1}
    both(**inputs, source_labels=torch.tensor([0, -100, -100, -100]))
    assert both.meant == {0, 1}, "of all parts of a step"
    assert [one.total() for one in both.given] == [8, 8]
    both.given = Counter([1]), Counter([1])
    assert both.alignment.discriminator.shown == 16
    callback.on_step_end(now := Fake(1), now, Fake())
    assert (both.meant, both.given, both.alignment.discriminator.shown) == (set(), (Counter(), Counter()), 0)
    assert callback.watched["same"] == 1
    assert callback.watched["shown"] == 16


def test_rows_of_one_label_are_no_collapse(watched):
    """Steps that have one label anyway say nothing; two labels now and then are enough."""
    assert watch(*watched({}), [26] * 100, given=lambda step: [1], meant={1}) is None
    assert watch(*watched({}), [26] * 100, given=lambda step: [1] if step % 15 else [0, 1]) is None
    rare = {"given": lambda step: [1] * 15 + [0] * (step % 4 == 0), "target": lambda step: [1] * 16}
    assert watch(*watched({}), [26] * 100, **rare) is None, "25 source rows in all: the target may have fewer"
    rare = {"given": lambda step: [0] * 8 + [1] * 8, "target": lambda step: [1] * 15 + [int(step % 50 > 0)]}
    assert watch(*watched({}), [26] * 100, **rare) is None, "one text of 800 has the other label"


@pytest.mark.recipe
@pytest.mark.parametrize("spoiled", ["alignment", "encoder"])
def test_what_is_no_number_spoils_nothing(spoiled, command, tiny, tmp_path, monkeypatch):
    """Training ends, with the reason in run.json and weights that are whole: the best checkpoint's, if they are not."""
    steps, when = [], 2 if spoiled == "alignment" else 6

    def forward(self, source, target, progress, before=coral.Coral.forward):
        steps.append(progress)
        if len(steps) == when and spoiled == "encoder":
            source.features.register_hook(lambda gradient: gradient * float("nan"))
            return before(self, source, target, progress)
        value = before(self, source, target, progress)
        return value * float("nan") if len(steps) == when else value

    monkeypatch.setattr(coral.Coral, "forward", forward)
    run = conftest.load_recipe("adapt_domain")([*command(tiny, tmp_path / "run"), "--alignment", "coral",
                                                "--num_train_epochs", "3", "--eval_strategy", "steps", "--eval_steps",
                                                "2", "--save_strategy", "steps", "--save_steps", "2"])  # fmt: skip
    assert len(steps) == when
    what = "the alignment's loss" if spoiled == "alignment" else "the loss on held-out rows"
    assert run.choices["alignment_stopped"].startswith(f"after {when} steps: {what} is no number")
    assert run.arm == f"coral+full (alignment stopped after {when} steps: {what} is no number)"
    report = (run.folder / "report.md").read_text()
    assert f"- The alignment was stopped {run.choices['alignment_stopped']}." in report
    assert np.isfinite(run.metrics["target_test"]["loss"])
    assert run.choices["alignment_weight"] == 100
    json.loads((run.folder / "run.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("kind", "weights"),
    [("bert", {"coral": 100.0, "dann": 0.1, "jdot": 0.1}), ("gpt2", {"coral": 1.0, "dann": 0.1, "jdot": 0.1})],
)
def test_how_much_an_alignment_weighs_by_default(kind, weights, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(conftest.make_model(tmp_path / kind, kind), num_labels=2)
    rows = datasets.Dataset.from_dict({"input_ids": [[1, 2]] * 4, "length": [2] * 4, "labels": [0, 1, -100, -100]})
    setup = Setup(SimpleNamespace(model=model), rows, rows.select([]), None, "fp32", None, 0)
    for name, weight in weights.items():
        chosen = alignment.load(name)
        for given, expected in ((None, weight), (3.0, 3.0)):
            done = aligned.align(Prepared(model, as_it_is), setup, chosen, chosen.Arguments(), given)
            assert done.model.weight == done.choices["alignment_weight"] == expected


def test_distances_are_computed_in_32_bits(tiny):
    """Also where the encoder computes in 16."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=2)
    products = []

    class Product(torch.nn.Module):
        def forward(self, source, target, progress):
            products.append((source.features.float() @ target.features.float().T).dtype)
            return source.features.sum() * 0

    both = Aligned(model, Product(), 1.0).train()
    inputs = {"input_ids": torch.ones(4, 3, dtype=torch.long), "attention_mask": torch.ones(4, 3, dtype=torch.long)}
    inputs |= {f"{PREFIX}{name}": value for name, value in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16):
        out = both(**inputs, source_labels=torch.tensor([0, 1, 0, 1]))
    assert out["logits"].dtype == torch.bfloat16
    assert products == [torch.float32]


@pytest.fixture(scope="module")
def steady(grid):
    """The folder of a tiny BERT without dropout: what is trained in two ways must be the same in the end."""
    return grid / "model"


@pytest.mark.recipe
def test_a_killed_alignment_resumes_to_the_same_end(command, steady, tmp_path, monkeypatch):
    main, step_end, seen = conftest.load_recipe("adapt_domain"), Progress.on_step_end, {}
    monkeypatch.setattr(aligned, "PATIENCE", 10**6)  # so small a model learns nothing in this time

    def train(name, *more, last=10**6):
        def noted(self, args, state, control, **rest):
            step_end(self, args, state, control, **rest)
            seen[name] = self.watched
            if state.global_step == last:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(Progress, "on_step_end", noted)
            return main(command(steady, tmp_path / name, "--alignment", "dann", "--num_train_epochs", "6",
                                "--learning_rate", "1e-3", "--early_stopping_patience", "0", *more))  # fmt: skip

    whole = train("one")
    with pytest.raises(KeyboardInterrupt):
        train("two", last=11)
    resumed = train("two", "--resume")
    assert resumed.history[-1]["step"] == whole.history[-1]["step"] == 18
    assert seen["two"] == seen["one"], "every step was watched once"
    assert seen["one"]["shown"] == 6 * 2 * whole.data["rows"]["train"]
    first, second = (load_file(run.folder / "model.safetensors") for run in (whole, resumed))
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], atol=1e-5, err_msg=name)


@pytest.mark.recipe
def test_activations_that_are_computed_again_change_nothing(command, steady, tmp_path):
    main = conftest.load_recipe("adapt_domain")
    first, second = (
        load_file(
            main(command(steady, tmp_path / flag, "--activation_checkpointing", flag)).folder / "model.safetensors"
        )
        for flag in ("false", "true")
    )
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_decoder_is_aligned_by_its_last_tokens(kind, tmp_path):
    """What is aligned of a text is what its label comes from, however much padding is behind it."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(conftest.make_model(tmp_path / kind, kind), num_labels=2)
    model.config.pad_token_id = model.config.pad_token_id or 0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    seen = []

    class Seeing(torch.nn.Module):
        def forward(self, source, target, progress):
            seen.append((source.features, target.features))
            return source.features.sum() * 0

    both = Aligned(model, Seeing(), 1.0).train()
    pad = model.config.pad_token_id
    rows = [torch.tensor([pad + 5, pad + 6, pad + 7, pad + 8]), torch.tensor([pad + 9, pad + 4])]

    def features(some):
        ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True, padding_value=pad)
        inputs = {"input_ids": ids, "attention_mask": (ids != pad).long()}
        others = {f"{PREFIX}{name}": value.flip(0) for name, value in inputs.items()}
        out = both(**inputs, **others, source_labels=torch.zeros(len(some)))
        return [part.detach() for part in seen.pop()], out["logits"]

    (source, target), logits = features(rows)
    alone = torch.cat([features([row])[0][0] for row in rows])
    torch.testing.assert_close(source, alone)
    torch.testing.assert_close(target, alone.flip(0))
    torch.testing.assert_close(logits, model.score(alone))


@pytest.mark.recipe
@pytest.mark.parametrize(("kind", "name", "method"), [("gpt2", "dann", "full"), ("llama", "coral", "lora")])
def test_the_recipe_on_a_decoder(kind, name, method, command, tmp_path):
    model = conftest.make_model(tmp_path / kind, kind)
    run = conftest.load_recipe("adapt_domain")(
        command(model, tmp_path / "run", "--alignment", name, "--method", method)
    )
    assert run.arm == f"{name}+{method}"
    assert pipeline("text-classification", str(run.folder))("a text")[0]["label"] in run.label_names


@pytest.mark.recipe
@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("adapt_domain", ["--method", "full", "--alignment", "dann", "--num_train_epochs", "1"]),
        ("adapt_domain", ["--method", "full", "--alignment", "jdot", "--num_train_epochs", "1"]),
        ("adapt_domain", ["--method", "frozen", "--mixture_of_sources"]),
        ("adapt_domain", ["--method", "frozen", "--source_weights", "nearest"]),
        ("self_train", ["--method", "frozen"]),
    ],
)
def test_three_labels_of_different_frequency(recipe, words, tiny, tmp_path):
    """Numbers are labels too, and one of ten rows is enough to be learned."""
    files = {}
    for name, corpus in (("one", "hotels"), ("two", "films"), ("target", "gadgets")):
        rows = [{"text": f"{text} {'bad' if label == '7' else 'so' if label == '2' else 'good'}", "label": label}
                for text, label in zip(conftest.corpus_texts(corpus), itertools.cycle("1111112227"))]  # fmt: skip
        files[name] = str(conftest.write_table(tmp_path / f"{name}.jsonl", rows[:60]))
        rest = [{"text": row["text"]} for row in rows[60:]]
    pool = str(conftest.write_table(tmp_path / "pool.jsonl", rest))
    run = conftest.load_recipe(recipe)(["--model", str(tiny), "--source", files["one"], files["two"], "--target",
                                        files["target"], "--target_unlabeled", pool, "--max_length", "40", "--quiet",
                                        "--output_dir", str(tmp_path / "run"), *words])  # fmt: skip
    assert run.label_names == ["1", "2", "7"]
    frame = pd.read_parquet(run.folder / "predictions.parquet")
    tested = frame[frame["set"] == "target_test"]
    assert len(tested) == 60
    assert tested["label"].value_counts().to_dict() == {"1": 36, "2": 18, "7": 6}
    np.testing.assert_allclose(tested[["p_1", "p_2", "p_7"]].sum(axis=1), 1.0, atol=1e-5)
    if "frozen" in words:
        assert set(tested["prediction"]) > {"1"}
    said = pipeline("text-classification", str(run.folder))([row["text"] for row in rows[:60]], truncation=True)
    said = [one["label"] for one in said]
    assert tested.sort_values("row")["prediction"].tolist() == said


@pytest.mark.parametrize("rate", [5e-5, 5e-3])
@pytest.mark.parametrize("name", ["cdan", "dann"])
def test_a_discriminator_learns_faster_than_a_pretrained_encoder(name, rate, grid):
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

    model = AutoModelForSequenceClassification.from_pretrained(grid / "model", num_labels=2)
    rows = datasets.load_from_disk(grid / "train")
    setup = aligned.with_target(
        Setup(SimpleNamespace(model=model), rows, rows.select([]), None, "fp32", None, 0), rows.remove_columns("labels")
    )
    chosen, slow = alignment.load(name), "bert.pooler.dense.weight"
    done = aligned.align(Prepared(model, as_it_is, lr_scale={slow: 0.5}), setup, chosen, chosen.Arguments())
    trainer = Trainer(done.model, TrainingArguments(str(grid / "rates"), learning_rate=rate, use_cpu=True))
    set_learning_rates(trainer, done)
    name_of = {id(p): name for name, p in done.model.named_parameters()}
    rates = {name_of[id(p)]: group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert rates.keys() == set(name_of.values())
    assert rates.pop(f"model.{slow}") == pytest.approx(rate / 2)
    own = [rates.pop(name) for name in list(rates) if name.startswith("alignment.")]
    assert own == [pytest.approx(max(rate, 1e-3))] * 4
    assert set(rates.values()) == {rate}


def test_a_healthy_training_is_not_stopped(watched):
    both, callback = watched(choices := {})
    assert watch(both, callback, [26] * 50 + [16] * 50) is None, "aligned in the end"
    assert choices == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--alignment", "corral"], r"no alignment 'corral' \(did you mean 'coral'\?\)"),
        (["--alignment", "jdot", "--jdot_label_weight", "-1"], "--jdot_label_weight is -1.0; it must be 0 or more"),
        (["--alignment_weight", "-1"], "--alignment_weight is -1.0; it must be 0 or more"),
        (["--alignment", "coral", "--method", "frozen"], "--method frozen trains without a Trainer"),
        (["--lora_r", "4"], "one of --method lora"),
    ],
)
def test_what_can_not_be_aligned_is_refused(change, said, command, tiny, tmp_path):
    argv = command(tiny, tmp_path / "run", *change)
    if "--method" in change:
        argv = [word for word in argv if word not in ("--num_train_epochs", "1")]
    with pytest.raises(UserError, match=said):
        conftest.load_recipe("adapt_domain")(argv)
    assert not (tmp_path / "run").exists()


def test_unlabelled_text_is_needed(tables, tiny, tmp_path):
    with pytest.raises(UserError, match="--target_unlabeled is missing"):
        conftest.load_recipe("adapt_domain")(["--model", str(tiny), "--source", str(tables["source"]),
                                              "--output_dir", str(tmp_path / "run")])  # fmt: skip
