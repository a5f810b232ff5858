"""Logits in a fast precision, whose labels are those of float32."""

from __future__ import annotations

import conftest
import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_transfer import tasks
from hf_transfer.inference import SAMPLE, close_rows, exact_logits, predict_logits

ROWS = 300


@pytest.fixture(scope="module")
def near(tiny, tmp_path_factory):
    """The tiny model with close labels, and encoded rows for it."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = conftest.with_close_labels(tiny, tmp_path_factory.mktemp("near"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    task = tasks.load("text_classification")
    encoded, _ = task.encode(tokenizer, Dataset.from_list(conftest.random_texts(ROWS)), 48)
    collator = task.collator(tokenizer)
    with torch.no_grad():  # spread the margins, to both sides: some rows' labels are well apart
        model.classifier.weight[1] += 3 * torch.randn(32, generator=torch.Generator().manual_seed(2))
        margins = np.diff(predict_logits(model, encoded, collator, precision="fp32"))
        model.classifier.bias[1] -= float(np.median(margins))
    return model, encoded, collator


@pytest.fixture
def seen(near):
    """What the last layer computes: a list of (rows, type)."""
    found = []
    handle = near[0].classifier.register_forward_hook(lambda _, __, out: found.append((len(out), out.dtype)))
    yield found
    handle.remove()


def rows_in(seen, dtype):
    return sum(rows for rows, kind in seen if kind == dtype)


def test_close_rows_are_scored_again_in_float32(near, seen):
    model, encoded, collator = near
    fast = predict_logits(model, encoded, collator, precision="bf16")
    assert rows_in(seen, torch.bfloat16) == ROWS == sum(rows for rows, _ in seen)
    seen.clear()
    found = exact_logits(model, encoded, collator, precision="bf16")
    again = rows_in(seen, torch.float32) - SAMPLE
    assert rows_in(seen, torch.bfloat16) == ROWS
    inputs = [{k: v for k, v in row.items() if k != "labels"} for row in encoded]
    with torch.inference_mode():
        exact = np.concatenate([model(**collator([row])).logits.numpy() for row in inputs])
    assert (fast.argmax(1) != exact.argmax(1)).any(), "else there was nothing to mend"
    np.testing.assert_array_equal(found.argmax(1), exact.argmax(1))
    changed = (found != fast).any(axis=1)
    assert 0 < changed.sum() <= again < ROWS
    np.testing.assert_allclose(found[changed], exact[changed], atol=1e-4)
    np.testing.assert_array_equal(found[~changed], fast[~changed])


def test_few_rows_are_all_scored_in_float32(near, seen):
    model, encoded, collator = near
    exact_logits(model, encoded.select(range(SAMPLE)), collator, precision="bf16")
    assert seen
    assert {kind for _, kind in seen} == {torch.float32}


def test_float32_is_float32_whatever_the_launcher_says(near, seen, monkeypatch):
    model, encoded, collator = near
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    predict_logits(model, encoded, collator, precision="fp32")
    assert {kind for _, kind in seen} == {torch.float32}


def test_prediction_leaves_the_forward_pass_as_it_was(near):
    """Accelerate takes off the model's own decorators with its own, without which PEFT's calls fail."""
    model, encoded, collator = near
    predict_logits(model, encoded, collator, precision="bf16")
    batch = collator([{k: v for k, v in encoded[0].items() if k != "labels"}])
    assert isinstance(model(**batch, return_dict=False), tuple)


def test_what_is_no_number_is_close():
    logits = np.array([[5.0, 0.0, 1.0], [1.1, 1.0, 0.0], [np.nan, 0.0, 1.0], [np.inf, np.inf, 0.0]], dtype=np.float32)
    assert close_rows(logits, 0.02).tolist() == [1, 2, 3]
    assert close_rows(logits, 0.001).tolist() == [2, 3]
    assert close_rows(logits, np.nan).tolist() == [0, 1, 2, 3]
