"""Feature maps of the frozen method: what they do to the source, and that the exported model is the head on states."""

from __future__ import annotations

import json

import conftest
import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from safetensors.numpy import load_file
from sklearn.covariance import LedoitWolf
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from warm import launch

from hf_transfer import feature_maps, pooling
from hf_transfer.errors import UserError
from hf_transfer.feature_maps import Affine, mapped, row_means
from hf_transfer.features import TokenStates, cache_folder
from hf_transfer.results import load_run
from hf_transfer.similarity import source_shares

MAPS = ["coral", "moments", "subspace"]
STEPS = pooling.STEPS
HIDDEN = 6


def rows_of(seed, rows=4000, scale=1.0, shift=0.0, hidden=HIDDEN):
    """Correlated rows of another covariance and mean for every seed."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(hidden) + 0.4 * rng.standard_normal((hidden, hidden))
    return (rng.standard_normal((rows, hidden)) @ mixing * scale + shift + rng.standard_normal(hidden)).astype("f4")


def random_states(seed, rows=9, hidden=HIDDEN):
    rng = np.random.default_rng(seed)
    lengths = np.sort(rng.integers(2, 12, rows))[::-1].copy()
    values = torch.from_numpy(rng.standard_normal((lengths.sum(), hidden)).astype("f4")) + 1.5
    return TokenStates(values, lengths, rng.permutation(rows))


def random_head(seed, pools=3, hidden=HIDDEN, classes=2):
    generator = torch.Generator().manual_seed(seed)
    mean, std = torch.randn(hidden, generator=generator), torch.rand(hidden, generator=generator) + 0.5
    head = pooling.AttentionPool(mean, std, classes, pools, seed, torch.float32)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head


def moved(rows, change):
    return rows @ change.matrix + change.shift


def test_all_maps_are_found():
    assert feature_maps.names() == MAPS


def test_coral_gives_the_source_the_targets_mean_and_covariance():
    source, target = rows_of(0), rows_of(1, scale=3.0, shift=5.0)
    change = feature_maps.load("coral").fit(source, target)
    assert change.target is None, "nothing changes in what is exported"
    found = moved(source, change.source)
    np.testing.assert_allclose(found.mean(0), target.mean(0), atol=1e-3)
    np.testing.assert_allclose(np.cov(found.T), np.cov(target.T), atol=0.02 * np.cov(target.T).max())
    assert np.abs(np.cov(source.T) - np.cov(target.T)).max() > 0.3 * np.cov(target.T).max()


def test_coral_is_its_formula():
    """The matrix is the source's covariance to the power -1/2 times the target's to 1/2, few rows or many."""
    source, target = rows_of(0, 12, hidden=30), rows_of(1, 15, hidden=30)
    own, other = (LedoitWolf().fit(rows).covariance_ for rows in (source, target))
    expected = np.linalg.inv(scipy.linalg.sqrtm(own)) @ scipy.linalg.sqrtm(other)
    change = feature_maps.load("coral").fit(source, target)
    np.testing.assert_allclose(change.source.matrix, expected, rtol=1e-3, atol=1e-4)


def test_moments_gives_the_source_the_targets_mean_and_deviation():
    source, target = rows_of(0), rows_of(1, scale=3.0, shift=5.0)
    change = feature_maps.load("moments").fit(source, target)
    assert change.target is None
    found = moved(source, change.source)
    np.testing.assert_allclose(found.mean(0), target.mean(0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.std(0), target.std(0), rtol=1e-3)
    np.testing.assert_allclose(np.corrcoef(found.T), np.corrcoef(source.T), atol=1e-3)


@pytest.mark.parametrize("name", MAPS)
def test_equal_domains_stay_as_they_are(name):
    source, target = rows_of(0), rows_of(0)[::-1]
    change = feature_maps.load(name).fit(source, target)
    np.testing.assert_allclose(moved(source, change.source), source, atol=1e-4)
    again = rows_of(0)[:2000], rows_of(0)[2000:]
    change = feature_maps.load(name).fit(*again)
    left = moved(source, change.source) - (source if change.target is None else moved(source, change.target))
    assert np.abs(left).mean() < 0.1 * source.std(), "two halves of a domain differ by chance only"


def test_subspace_alignment_is_its_formula(monkeypatch):
    """Source coordinates on its own axes are read as coordinates on the target's."""
    monkeypatch.setattr(feature_maps.load("subspace"), "DIMENSIONS", 3)
    source, target = rows_of(0), rows_of(1, shift=4.0)
    change = feature_maps.load("subspace").fit(source, target)
    axes = [np.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][:3].T for rows in (source, target)]
    aligned = (source - source.mean(0)) @ axes[0] @ axes[0].T @ axes[1]
    np.testing.assert_allclose((moved(source, change.source) - target.mean(0)) @ axes[1], aligned, atol=2e-3)
    projected = (target - target.mean(0)) @ axes[1]
    np.testing.assert_allclose((moved(target, change.target) - target.mean(0)) @ axes[1], projected, atol=2e-3)
    for rows, part in ((source, change.source), (target, change.target)):
        assert np.linalg.matrix_rank(moved(rows, part) - target.mean(0), tol=0.05) == 3


def test_a_map_before_a_head_is_a_head():
    states, head = random_states(0), random_head(1)
    rng = np.random.default_rng(2)
    change = Affine(rng.standard_normal((HIDDEN, HIDDEN)), rng.standard_normal(HIDDEN))
    rows = np.arange(len(states.order))
    expected = pooling.pool_logits(head, mapped(states, change), rows)
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(pooling.pool_logits(pooling.before(change, head), states, rows), expected, atol=1e-4)


def test_a_mixture_is_the_weighted_sum_of_its_heads():
    states, heads, shares = random_states(0), [random_head(seed) for seed in (1, 2, 3)], np.array([0.2, 0.5, 0.3])
    rows = np.arange(len(states.order))
    mixed = pooling.mixture(heads, shares)
    assert len(mixed.weight) == 3 * 2 + 1, "the plain mean is shared"
    expected = sum(share * pooling.pool_logits(head, states, rows) for share, head in zip(shares, heads, strict=True))
    np.testing.assert_allclose(pooling.pool_logits(mixed, states, rows), expected, atol=1e-4)


def test_mapped_states_leave_no_file():
    states, change = random_states(0), Affine(2 * np.eye(HIDDEN), np.ones(HIDDEN))
    there = sorted(cache_folder().iterdir())
    new = mapped(states, change)
    assert sorted(cache_folder().iterdir()) == there
    torch.testing.assert_close(new.values, 2 * states.values + 1)
    np.testing.assert_allclose(row_means(new), 2 * row_means(states) + 1, rtol=1e-5)
    first = states.values[: states.lengths[0]].mean(0)
    np.testing.assert_allclose(row_means(states)[0], first, rtol=1e-5)


def test_shares_say_what_the_target_is_a_mixture_of():
    one, other, third = (rows_of(0) + shift for shift in (0.0, 8.0, -8.0))
    shares = source_shares([one[:900], other[:300], third[:300]], np.concatenate([one[900:1200], other[300:1200]]))
    np.testing.assert_allclose(shares, [0.25, 0.75, 0.0], atol=0.08)
    assert shares.sum() == pytest.approx(1.0)


@pytest.fixture
def command(tables, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(pooling, "STEPS", (60, 60))
    texts = {name: conftest.corpus_texts(name) for name in ("films", "gadgets")}
    pool = conftest.write_table(tmp_path / "pool.jsonl", [{"text": text} for text in texts["gadgets"][100:180]])
    films = [{"text": text, "label": ("negative", "positive")[i % 2]} for i, text in enumerate(texts["films"][:50])]
    other = conftest.write_table(tmp_path / "films.jsonl", films)

    def make(output, *more):
        return ["--model", str(tiny), "--method", "frozen", "--frozen_layer", "2", "--source", str(tables["source"]),
                str(other), "--target", str(tables["target"]), "--target_unlabeled", str(pool), "--max_length", "40",
                "--test_fraction", "0", "--precision", "fp32", "--quiet", "--output_dir", str(output),
                *more]  # fmt: skip

    return make


CHANGES = [["--feature_map", "coral"], ["--feature_map", "subspace"], ["--mixture_of_sources"],
           ["--mixture_of_sources", "--feature_map", "subspace", "--validation_fraction", "0"]]  # fmt: skip


@pytest.mark.recipe
@pytest.mark.parametrize("change", CHANGES, ids=" ".join)
def test_the_exported_model_is_the_head_on_states(change, command, tiny, tables, tmp_path, monkeypatch):
    """Its logits are those of the head on what the pretrained model has in its second layer; the trunk is as it was."""
    written = []
    write_into = pooling.write_into
    monkeypatch.setattr(pooling, "write_into", lambda model, head: (written.append(head), write_into(model, head)))
    run = conftest.load_recipe("adapt_domain")(command(tmp_path / "run", *change))
    (head,) = written
    assert run.arguments["alignment"] == "none"
    tokenizer = AutoTokenizer.from_pretrained(run.folder)
    texts = [json.loads(line)["text"] for line in tables["target"].read_text().splitlines()][:8]
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(tiny)(**batch, output_hidden_states=True).hidden_states[2]
        expected = head(states, batch["attention_mask"].bool())
        found = AutoModelForSequenceClassification.from_pretrained(run.folder)(**batch).logits
    assert np.ptp(expected.numpy()) > 0.05
    # the residual path is drowned, by a factor of SCALE, not gone
    torch.testing.assert_close(found, expected, atol=2 / pooling.SCALE, rtol=1e-4)
    if "--mixture_of_sources" in change:
        shares = [source["share"] for source in run.choices["sources"].values()]
        assert sorted(run.choices["sources"]) == ["films", "source"]
        assert sum(shares) == pytest.approx(1.0, abs=1e-3)
        assert len(head.weight) == 3, "the tiny model has room for four pools: one and the plain mean for each source"


@pytest.mark.recipe
def test_a_map_changes_the_head(command, tmp_path):
    adapt = conftest.load_recipe("adapt_domain")
    coral, _, subspace = (adapt(command(tmp_path / name, "--feature_map", name)) for name in MAPS)
    plain = conftest.load_recipe("finetune")(command(tmp_path / "plain"))
    p = [pd.read_parquet(run.folder / "predictions.parquet")["p_positive"] for run in (coral, subspace, plain)]
    assert np.abs(p[0] - p[2]).max() > 0.01
    assert np.abs(p[1] - p[2]).max() > 0.001


@pytest.mark.recipe
def test_two_processes_change_nothing(command, tmp_path, monkeypatch):
    monkeypatch.setattr(pooling, "STEPS", STEPS)  # the others know no shorter ones
    change = ["--mixture_of_sources", "--feature_map", "coral"]
    one = conftest.load_recipe("adapt_domain")(command(tmp_path / "one", *change))
    launch(2, "adapt_domain", *command(tmp_path / "two", *change))
    two = load_run(tmp_path / "two")
    assert two.world_size == 2
    assert two.choices["sources"].keys() == one.choices["sources"].keys()
    weights = [load_file(run.folder / "model.safetensors") for run in (one, two)]
    for name, value in weights[0].items():
        np.testing.assert_allclose(weights[1][name], value, rtol=1e-3, atol=1e-3 * max(1.0, np.abs(value).max()))


REFUSED = [
    (["--feature_map", "corral"], r"no feature map 'corral' \(did you mean 'coral'\?\)"),
    (["--feature_map", "coral", "--alignment", "dann"], "can't be aligned meanwhile"),
    ([], "nothing adapts the model to the target"),
    (["--feature_map", "coral", "--source_weights", "nearest"], "leave one out"),
    (["--feature_map", "coral", "--target_shots", "4"], "leave --target_shots out"),
    (["--mixture_of_sources", "--source", "{source}"], "needs two sources or more, got source"),
]


@pytest.mark.parametrize(("change", "said"), REFUSED)
def test_what_does_not_fit_is_refused(change, said, command, tables, tmp_path):
    change = [word.format(**tables) for word in change]
    with pytest.raises(UserError, match=said) as refused:
        conftest.load_recipe("adapt_domain")(command(tmp_path / "run", *change))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "run.partial").exists()


def test_every_source_of_a_mixture_needs_every_label(command, tmp_path):
    argv = command(tmp_path / "run", "--mixture_of_sources")
    happy = [{"text": f"a fine text {i}", "label": "positive"} for i in range(20)]
    argv[argv.index(str(tmp_path / "films.jsonl"))] = str(conftest.write_table(tmp_path / "happy.jsonl", happy))
    with pytest.raises(UserError, match="but happy has not every label"):
        conftest.load_recipe("adapt_domain")(argv)


def test_other_recipes_and_architectures_have_no_maps(command, tmp_path):
    with pytest.raises(UserError, match="use recipe adapt_domain"):
        conftest.load_recipe("finetune")(command(tmp_path / "run", "--feature_map", "coral"))
    argv = command(tmp_path / "run", "--feature_map", "coral")
    argv[1] = str(conftest.make_model(tmp_path / "gpt2", "gpt2"))
    del argv[argv.index("--frozen_layer") : argv.index("--frozen_layer") + 2]
    with pytest.raises(UserError, match="no meaning for gpt2 models"):
        conftest.load_recipe("adapt_domain")(argv)
