"""Which rows to label next (planted clusters, certain rows, duplicates), and what labels bring (known laws)."""

from __future__ import annotations

import time

import conftest
import numpy as np
import pytest
import scipy.special
from sklearn.cluster import kmeans_plusplus
from sklearn.metrics import f1_score
from test_compare import filled, flags, texts_of

from hf_transfer.comparison import open_comparison
from hf_transfer.labelling import next_rows
from hf_transfer.learning_curve import (
    REPEATED,
    SHARES,
    _mixed,
    best_possible,
    extrapolate,
    fit_probe,
    learning_curve,
    shares_by_size,
    shot_weights,
)
from hf_transfer.statistics import metric
from hf_transfer.verdict_pages import _bound, _expected
from hf_transfer.what_next import what_next

ACCURACY, MACRO_F1 = (metric.load(name, ["no", "yes"]) for name in ("accuracy", "macro_f1"))


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
    for seed in range(40):
        rows = next_rows(logits, features, 20, seed=seed)
        ours.append(left(np.concatenate([np.zeros((1, 32)), gradients[rows]])))
        # so heavy an origin is its first choice; then, at distance 0, it weighs nothing
        centres, picked = kmeans_plusplus(with_origin, 21, sample_weight=np.r_[1e12, np.ones(300)], n_local_trials=4,
                                          random_state=seed)  # fmt: skip
        assert picked[0] == 0
        theirs.append(left(centres))
        drawn.append(left(np.concatenate([np.zeros((1, 32)), gradients[rng.permutation(300)[:20]]])))
    error = np.hypot(np.std(ours), np.std(theirs)) / np.sqrt(40)
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


def curve_of(sizes, law, rng, rows=64, repeats=5, own=0.7):
    """Simulated outcomes (repeats, rows, sizes) whose chance to be right follows `law`, rows mostly as they are."""
    latent = rng.random((1, rows, 1))
    fresh = rng.random((repeats, rows, len(sizes)))
    mixed = np.where(rng.random((repeats, rows, len(sizes))) < own, latent, fresh)
    return mixed < law(np.asarray(sizes, dtype=float))


def power_law(a=0.9, b=0.8, n0=16, c=0.5):
    return lambda n: a - b * (n + n0) ** -c


def sizes_of(shots):
    return np.array([round(share * shots) for share in SHARES])


def test_a_known_law_is_found_again():
    law, shots = power_law(b=2.0, n0=64), 2000
    sizes = np.array([0, 20, 60, 200, 600])
    right = curve_of(sizes, law, np.random.default_rng(0), rows=shots, repeats=20)
    for one in extrapolate(sizes, right, seed=0, further=(1000, 4000)):
        true = law(shots + one.further) - law(shots)
        assert one.low < true < one.high
        assert one.gain == pytest.approx(true, rel=0.25)
        assert one.reason == ""


@pytest.mark.parametrize(("shots", "law"), [
    (32, power_law()), (64, power_law(0.85, 0.9, 32, 0.5)), (128, power_law(0.85, 3.0, 32, 1.0)),
    (64, power_law(0.8, 0.0)), (48, power_law(0.95, 2.5, 64, 0.5)),
])  # fmt: skip
def test_the_interval_holds_the_gain(shots, law):
    rng = np.random.default_rng(5)
    held, off = [], []
    for seed in range(40):
        told = extrapolate(sizes_of(shots), curve_of(sizes_of(shots), law, rng, shots), seed=seed)
        for one in told:
            if one.gain is not None:
                true = law(shots + one.further) - law(shots)
                held.append(one.low <= true <= one.high)
                off.append(one.gain - true)
                assert -0.03 < one.low <= one.gain <= one.high < 0.5
    assert len(held) > 100
    assert np.mean(held) > 0.9
    assert abs(np.mean(off)) < 0.04


def test_intervals_grow_with_the_distance_and_shrink_with_the_labels():
    rng, law = np.random.default_rng(6), power_law()
    widths = {}
    for shots in (32, 256):
        told = [
            extrapolate(sizes_of(shots), curve_of(sizes_of(shots), law, rng, shots), seed=seed) for seed in range(5)
        ]
        widths[shots] = [np.mean([one[i].high - one[i].low for one in told]) for i in range(3)]
        assert widths[shots] == sorted(widths[shots])
    assert widths[32][0] > 1.5 * widths[256][0]


def test_so_far_beyond_the_labels_at_hand_there_is_a_reason():
    right = curve_of(sizes_of(24), power_law(), np.random.default_rng(7), 24)
    near, far = extrapolate(sizes_of(24), right, seed=0, further=(7 * 24, 7 * 24 + 1))
    assert near.gain is not None
    assert (far.gain, far.low, far.high) == (None, None, None)
    assert "more than 8 times as many" in far.reason


def test_accuracies_that_fall_get_a_reason_and_no_number():
    right = curve_of(sizes_of(200), lambda n: 0.9 - 0.002 * n, np.random.default_rng(8), 200)
    for one in extrapolate(sizes_of(200), right, seed=0):
        assert one.gain is None
        assert "does not rise" in one.reason


@pytest.mark.parametrize("always", [True, False])
def test_shots_that_are_all_right_or_all_wrong_do_not_break_it(always):
    for one in extrapolate(sizes_of(40), np.full((5, 40, len(SHARES)), always), seed=0, further=(50,)):
        assert one.gain is not None
        assert 0 <= one.gain < 0.1
        assert one.high > one.low
        assert not always or one.gain < 0.01


def two_domains(source=300, shots=40, turn=1.0, hidden=8, seed=0):
    """Two classes; what tells them apart is turned between the domains."""
    rng = np.random.default_rng(seed)
    out = []
    for rows, angle in ((source, 0.0), (shots, turn)):
        labels = np.arange(rows) % 2
        features = rng.normal(size=(rows, hidden))
        features[:, 0] += 3 * np.cos(angle) * (labels - 0.5)
        features[:, 1] += 3 * np.sin(angle) * (labels - 0.5)
        out += [features, labels]
    return out


def test_the_curve_needs_source_and_shots_only():
    source, source_labels, pool, pool_labels = two_domains(shots=1200)
    told = learning_curve(source, source_labels, pool[:80], pool_labels[:80], by=ACCURACY, seed=1)
    assert [one.further for one in told] == [50, 100, 200]
    assert told == learning_curve(source, source_labels, pool[:80], pool_labels[:80], by=ACCURACY, seed=1)
    assert told != learning_curve(source, source_labels, pool[:80], pool_labels[:80], by=ACCURACY, seed=2)
    centre, scale = source.mean(axis=0), source.std(axis=0)
    source, pool = (source - centre) / scale, (pool - centre) / scale

    def score(count):
        return (fit_probe(source, source_labels, pool[:count], pool_labels[:count]).predict(pool[300:])
                == pool_labels[300:]).mean()  # fmt: skip

    for one in told:
        assert one.low <= score(80 + one.further) - score(80) <= one.high


def test_with_accuracy_the_numbers_are_those_of_right_and_wrong():
    """As they were when the curve knew of accuracy alone."""
    source, source_labels, pool, labels = two_domains(shots=1200)
    told = learning_curve(source, source_labels, pool[:80], labels[:80], by=ACCURACY, seed=1)
    assert [(one.gain, one.low, one.high) for one in told] == [
        pytest.approx(numbers, abs=1e-9) for numbers in (
            (0.005106673194156807, -0.009152219877087229, 0.022406326299387228),
            (0.008722281440591992, -0.007955391759791151, 0.03536534157384108),
            (0.013787808247717076, -0.006940985878000716, 0.05644278026356264),
        )
    ]  # fmt: skip
    right = curve_of(sizes_of(64), power_law(), np.random.default_rng(11), 64)
    last = extrapolate(sizes_of(64), right, seed=3)[-1]
    numbers = (0.026107276000560814, -0.0063357190726418215, 0.09184751020920033)
    assert (last.gain, last.low, last.high) == pytest.approx(numbers, abs=1e-9)


def test_no_gain_goes_beyond_the_room_that_is_left():
    right = curve_of(sizes_of(64), power_law(0.95, 1.4, 16, 0.5), np.random.default_rng(2), 64)
    free = extrapolate(sizes_of(64), right, seed=0)
    assert free[-1].gain > 0.03
    assert free[-1].high > 0.1
    assert free == extrapolate(sizes_of(64), right, seed=0, room=0.5)
    for room in (0.027, 0.001, 0.0):  # 97.3 % now, say
        for one, before in zip(extrapolate(sizes_of(64), right, seed=0, room=room), free, strict=True):
            assert one.low == min(before.low, room) <= one.high == min(before.high, room)
            assert 0 <= one.gain <= min(before.gain, room)


def skewed(rows, seed, turn, share=0.15):
    """Two classes, `share` of the rows of the second one; what tells them apart is turned by `turn`."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < share).astype(int)
    features = rng.normal(size=(rows, 8))
    features[:, 0] += 6 * np.cos(turn) * labels
    features[:, 1] += 6 * np.sin(turn) * labels
    return features, labels


def test_the_curve_of_a_skewed_target_goes_by_macro_f1():
    (source, known), (target, labels) = skewed(600, 0, 0.0), skewed(6000, 2, 1.3)
    shots, own = target[:150], labels[:150]
    _, shares = shares_by_size(source, known, shots, own, by=MACRO_F1, seed=0)
    _, right = shares_by_size(source, known, shots, own, by=ACCURACY, seed=0)
    centre, scale = source.mean(axis=0), source.std(axis=0) + 1e-6
    source, target = (source - centre) / scale, (target - centre) / scale
    answers = fit_probe(source, known, target[:0], own[:0]).predict(target[:150])
    assert shares[:, :, 0].mean() == pytest.approx(f1_score(own, answers, average="macro"))
    assert right[:, :, 0].mean() == pytest.approx((answers == own).mean())
    rises = [one[:, :, -1].mean() - one[:, :, 0].mean() for one in (shares, right)]
    assert rises[0] > 0.3 > 0.2 > rises[1] > 0, "what labels bring is the rare one's"

    held, off, widths = [], [], {MACRO_F1.name: [], ACCURACY.name: []}
    for seed in range(6):
        drawn = np.random.default_rng(seed).permutation(2000)

        def score(count, drawn=drawn):
            probe = fit_probe(source, known, target[drawn[:count]], labels[drawn[:count]])
            return MACRO_F1.score(probe.predict(target[2000:]), labels[2000:])

        for by in (MACRO_F1, ACCURACY):
            few = drawn[:150]
            curve = shares_by_size(source, known, target[few], labels[few], by=by, seed=seed)
            for one in extrapolate(*curve, seed=seed, further=(50, 200)):
                widths[by.name].append(one.high - one.low)
                if by is MACRO_F1:
                    gain = score(150 + one.further) - score(150)
                    held.append(one.low <= gain <= one.high)
                    off.append(one.gain - gain)
    assert np.mean(held) >= 0.85
    assert abs(np.mean(off)) < 0.02
    assert np.mean(widths[MACRO_F1.name]) > 1.5 * np.mean(widths[ACCURACY.name]), "a few rows decide it"


def test_label_noise_bounds_what_labels_can_bring():
    labels = np.array([0, 0, 1] * 10 + [1, 0] * 30)  # of ten texts three rows each, the others are there once
    contents = np.r_[np.repeat(np.arange(10), 3), 100 + np.arange(60)]
    best, repeated = best_possible(contents, labels, ACCURACY)
    assert (best, repeated) == (pytest.approx(20 / 30), 30), "of rows that tell, not of all"
    assert best_possible(contents, labels, MACRO_F1) == (pytest.approx(20 / 30), 30)
    mixed = np.random.default_rng(0).permutation(len(labels))
    assert best_possible(contents[mixed], labels[mixed], ACCURACY) == (pytest.approx(20 / 30), 30)
    assert best_possible(contents, np.zeros(90, dtype=int), ACCURACY) == (1.0, 30), "measured, and there is none"
    # from REPEATED rows on, below it is not measured
    pairs = np.repeat(np.arange(REPEATED // 2), 2)
    assert best_possible(pairs, np.arange(len(pairs)) % 2, ACCURACY) == (0.5, REPEATED)
    assert best_possible(pairs[:-1], np.arange(len(pairs) - 1) % 2, ACCURACY) == (1.0, REPEATED - 2)
    assert best_possible(pairs[:0], pairs[:0], ACCURACY) == (1.0, 0)


def test_noise_among_rare_labels_costs_more_macro_f1_than_accuracy_but_is_bounded_by_the_latter():
    by = [metric.load(name, ["a", "b", "c"]) for name in ("accuracy", "macro_f1")]
    # two large classes that can't be told apart, a third one that can
    contents, labels = np.repeat(np.arange(40), 2), np.r_[np.tile([0, 1], 30), np.full(20, 2)]
    accuracy, macro_f1 = (best_possible(contents, labels, one)[0] for one in by)
    assert accuracy == pytest.approx(50 / 80)
    assert macro_f1 == max(accuracy, f1_score(labels, np.where(labels == 2, 2, 0), average="macro"))


def test_too_few_shots_get_a_reason():
    source, source_labels, target, labels = two_domains(shots=40)
    few = np.r_[np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:9]]
    for rows in (few, few[:20], few[:0]):
        for one in learning_curve(source, source_labels, target[rows], labels[rows], by=ACCURACY, seed=0):
            assert one.gain is None
            assert f"{9 if len(rows) == 29 else 0} labelled target rows; 10 of each" in one.reason


def test_a_shot_is_tried_only_by_probes_that_did_not_learn_it():
    source, source_labels, target, labels = two_domains(hidden=200)
    rng = np.random.default_rng(9)
    target, labels = rng.normal(size=target.shape), rng.permutation(labels)  # nothing to learn but by heart
    sizes, shares = shares_by_size(source, source_labels, target, labels, by=ACCURACY, seed=0)
    assert sizes.tolist() == [0, 5, 10, 20, 30]
    assert shares.shape == (5, 40, 5)
    assert shares.mean(axis=(0, 1)).max() < 0.75
    assert np.minimum(abs(shares), abs(shares - 1)).max() < 1e-9, "whether a shot is right"


def test_every_beginning_has_the_labels_in_their_shares():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    rows = np.random.default_rng(0).permutation(100)
    for size in (10, 20, 50):
        counts = np.bincount(labels[_mixed(rows, labels)[:size]], minlength=3)
        assert np.abs(counts - np.array([0.6, 0.3, 0.1]) * size).max() <= 1
    assert sorted(_mixed(rows, labels)) == list(range(100))


def test_shots_weigh_the_geometric_mean():
    weights = shot_weights(900, 25)
    assert weights[:900].tolist() == [1.0] * 900
    assert weights[900:].sum() == pytest.approx(np.sqrt(25 * 900))
    assert len(shot_weights(10, 0)) == 10


def test_a_source_of_one_class_is_refused():
    with pytest.raises(ValueError, match="two classes"):
        learning_curve(np.ones((5, 2)), np.zeros(5), np.ones((40, 2)), np.arange(40) % 2, by=ACCURACY, seed=0)
    with pytest.raises(ValueError, match="same rows"):
        learning_curve(np.ones((5, 2)), np.zeros(4), np.ones((40, 2)), np.arange(40) % 2, by=ACCURACY, seed=0)


@pytest.mark.recipe
def test_a_comparison_promises_no_more_than_its_recommended_arm_leaves(tmp_path):
    folder = filled(tmp_path)
    target = texts_of(240, 6)
    twice = [{**row, "label": {"good": "bad", "bad": "good"}[row["label"]]} for row in target[:3]] + target[3:12]
    told, jobs = {}, {}
    for name, rows in (("clean", target), ("noisy", target + twice)):
        table = conftest.write_table(tmp_path / f"{name}.jsonl", rows)
        words = flags(folder, target=str(table), target_unlabeled=None, arms="frozen,lora", target_shots="all",
                      output_dir=str(tmp_path / f"out-{name}"))  # fmt: skip
        jobs[name] = open_comparison(words, None)
        told[name] = what_next(jobs[name], None, 0.9)
    assert told["clean"]["bound"] == {"now": 0.9, "best": 1.0, "repeated": 0, "room": pytest.approx(0.1)}
    bound = told["noisy"]["bound"]  # of 24 rows that are there twice, 3 can't be right
    assert bound == {"now": 0.9, "best": 1 - 3 / 24, "repeated": 24, "room": 0.0}
    assert [one["further"] for one in told["clean"]["expected"]] == [50, 100, 200]
    known = [one for one in told["clean"]["expected"] if one["gain"] is not None]
    assert known
    high = what_next(jobs["clean"], None, 0.9999)
    for one, before in zip(high["expected"], told["clean"]["expected"], strict=True):
        if before["gain"] is not None:
            assert 0.9999 + one["high"] <= 1 < 0.9999 + before["high"]
            assert one["gain"] <= before["gain"] < before["high"]
    # nothing is recommended, or no arm helps
    assert what_next(jobs["clean"], None, None) == {"texts": [], "expected": [], "bound": None}


def page(expected, **bound):
    """What the page says of gains, for (gain, low, high)."""
    found = [{"further": 50, "gain": g, "low": low, "high": high, "reason": ""} for g, low, high in expected]
    facts = {"metric": {"title": "accuracy"}, "verdict": {"recommended": "full"}, "next": {"expected": found,
             "bound": {"now": 0.973, "best": 1.0, "repeated": 0, "room": 0.027} | bound}}  # fmt: skip
    return [line[1:] for line in _expected(facts)[1:]], _bound(facts)


def test_the_page_says_what_bounds_a_gain():
    cells, line = page([(0.01, -0.01, 0.02), (0.015, -0.01, 0.027), (0.027, 0.027, 0.027)])
    assert cells == [
        ["+1.0", "[-1.0, +2.0]"], ["+1.5, at most +2.7: 97.3 % now", "[-1.0, +2.7]"],
        ["at most +2.7: 97.3 % now", "the probe gains more than there is room for"],
    ]  # fmt: skip
    assert line == (
        "At most +2.7: 97.3 % now (full, accuracy), and 100 % is the most there is. How often labels are "
        "noise is not measured: fewer than 20 labelled rows of the target have a text that others have too."
    )
    assert page([], repeated=20)[1].endswith("and 100 % is the most there is.")
    assert page([], best=0.98, room=0.007, repeated=1040)[1] == (
        "At most +0.7: 97.3 % now (full, accuracy), and labels of equal texts differ so often (1,040 labelled rows of "
        "the target) that no rule can be above 98.0 %."
    )
