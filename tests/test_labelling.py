"""Which rows to label next: planted clusters, certain rows, duplicates, and the explicit gradients."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.special
from sklearn.cluster import kmeans_plusplus

from hf_transfer.labelling import next_rows


def planted(clusters=10, each=30, classes=2, hidden=16, spread=0.02, seed=0):
    """Equally unsure rows in far clusters: logits, features and the cluster of each row."""
    rng = np.random.default_rng(seed)
    centres = np.linalg.qr(rng.normal(size=(hidden, hidden)))[0][:clusters]
    of = np.repeat(np.arange(clusters), each)
    logits = np.zeros((len(of), classes))
    logits[:, 0] = 0.4
    return logits, centres[of] + spread * rng.normal(size=(len(of), hidden)), of


@pytest.mark.parametrize("classes", [2, 5])
def test_each_cluster_is_visited_before_any_is_visited_twice(classes):
    logits, features, of = planted(classes=classes)
    for seed in range(20):
        rows = next_rows(logits, features, 20, seed=seed)
        assert len(set(rows)) == 20
        assert len(set(of[rows[:10]])) == 10, seed


def test_certain_rows_are_avoided():
    logits, features, _ = planted()
    sure = np.arange(len(logits)) % 3 > 0
    logits[sure, 0] = 12.0
    for seed in range(20):
        rows = next_rows(logits, features, 50, seed=seed)
        assert not sure[rows].any(), seed


def test_duplicates_are_not_all_chosen():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(200, 16))
    features[:80] = features[0] + 1e-3 * rng.normal(size=(80, 16))  # on both sides of the decision
    features[80:100] = features[80]
    logits = np.stack([rng.normal(0, 0.1, 200), np.zeros(200)], axis=1)
    logits[80:100] = 0.0
    for seed in range(20):
        rows = next_rows(logits, features, 50, seed=seed)
        assert (rows < 80).sum() <= 2
        assert ((rows >= 80) & (rows < 100)).sum() == 1


def test_a_choice_is_as_good_as_scikit_learn_s_on_the_explicit_gradients():
    rng = np.random.default_rng(2)
    logits, features = 2 * rng.normal(size=(300, 4)), rng.normal(size=(300, 8))
    residuals = scipy.special.softmax(logits, axis=1) - np.eye(4)[logits.argmax(axis=1)]
    gradients = np.einsum("rc,rh->rch", residuals, features).reshape(300, -1)
    with_origin = np.concatenate([np.zeros((1, 32)), gradients])

    def left(centres):
        return ((with_origin[1:, None] - centres[None]) ** 2).sum(axis=2).min(axis=1).sum()

    ours, theirs, drawn = [], [], []
    for seed in range(60):
        rows = next_rows(logits, features, 20, seed=seed)
        ours.append(left(np.concatenate([np.zeros((1, 32)), gradients[rows]])))
        # so heavy an origin is its first choice; then, at distance 0, it weighs nothing
        centres, picked = kmeans_plusplus(with_origin, 21, sample_weight=np.r_[1e12, np.ones(300)], n_local_trials=4,
                                          random_state=seed)  # fmt: skip
        assert picked[0] == 0
        theirs.append(left(centres))
        drawn.append(left(np.concatenate([np.zeros((1, 32)), gradients[rng.permutation(300)[:20]]])))
    error = np.hypot(np.std(ours), np.std(theirs)) / np.sqrt(60)
    assert abs(np.mean(ours) - np.mean(theirs)) < 3 * error
    assert np.mean(drawn) - np.mean(ours) > 10 * error


def test_the_seed_decides():
    logits, features, _ = planted()
    first = next_rows(logits, features, 30, seed=3)
    assert np.array_equal(first, next_rows(logits, features, 30, seed=3))
    assert not np.array_equal(first, next_rows(logits, features, 30, seed=4))


def test_more_than_there_are_gives_all_in_the_order_of_choice():
    logits, features, of = planted(each=4)
    features[:4] = features[0]
    logits[30:, 0] = 800.0  # exactly certain
    rows = next_rows(logits, features, 1000, seed=0)
    assert sorted(rows) == list(range(40))
    assert set(rows[-10:]) == set(range(30, 40))
    assert len(set(of[rows[:7]])) == 7
    assert next_rows(logits[:0], features[:0], 5, seed=0).tolist() == []


def test_ten_thousand_rows_take_two_seconds_with_many_classes_too():
    rng = np.random.default_rng(0)
    logits, features = rng.normal(size=(10_000, 150)), rng.normal(size=(10_000, 384)).astype(np.float32)
    begin = time.process_time()  # of this process: the machine may be busy
    next_rows(logits, features, seed=0)
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(("logits", "features"), [
    (np.zeros((3, 2)), np.zeros((4, 5))), (np.zeros(3), np.zeros((3, 5))), (np.full((3, 2), np.nan), np.ones((3, 5))),
])  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(logits, features):
    with pytest.raises(ValueError, match=r"axes|finite"):
        next_rows(logits, features, 2, seed=0)
