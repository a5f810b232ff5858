"""What a run records about its training domain."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np

from hf_transfer.record import read_recorded, whitener


def test_whitened_rows_are_white():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(4000, 6)) @ rng.normal(size=(6, 6)) + 3).astype(np.float32)
    mean, whitening = whitener(features)
    white = (features - mean) @ whitening
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(white.T), np.eye(6), atol=0.05)


def test_features_of_a_collapsed_encoder_still_give_distances():
    rng = np.random.default_rng(0)
    one_direction = rng.normal(size=(300, 1)) * rng.normal(size=(1, 64)) * 50 + rng.normal(size=(300, 64)) * 1e-6
    for features in (one_direction.astype(np.float32), np.ones((300, 64), dtype=np.float32)):
        mean, whitening = whitener(features)
        distances = np.linalg.norm((features - mean) @ whitening, axis=1)
        assert np.isfinite(distances).all()
        outside = np.linalg.norm((features[:1] + 100 * rng.normal(size=(1, 64)) - mean) @ whitening)
        assert outside > distances.max()


def test_recorded_texts_may_hold_any_character(tmp_path):
    rows = [{"text": f"one{mark}line", "logits": [0.5, -0.5]} for mark in "\u2028\u2029\x85\x0b\x1c"]
    (tmp_path / "recorded.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    assert read_recorded(SimpleNamespace(folder=tmp_path, label_names=["a", "b"])) == rows
