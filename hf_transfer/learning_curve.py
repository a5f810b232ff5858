"""What further target labels would likely buy: the learning curve of those at hand, extrapolated with an interval.

Target rows with labels are split again and again; a linear probe on frozen features learns from the source and ever
more of one part and is tried on the other part. The score with n labels is taken to follow an inverse power law,

    score(n) = a - b * (n + n0)^-c

(Figueroa et al. 2012, BMC Med. Inform. Decis. Mak. 12:8, for text classifiers; Hestness et al. 2017, arXiv 1712.00409).
Here n0 is what the source is worth in target labels. A few dozen rows can't tell the exponent from n0, nor a rise from
chance: laws on a grid of both are fitted by generalised least squares, with the bootstrap's covariance of the
scores, and averaged by how well they fit and by how large a rise is to be expected at all (Hoeting et al. 1999,
Stat. Sci. 14). So the interval grows with the distance, by how far the laws disagree. benchmarks/labelling.py tries it.

The score is that of the metric in force, each row's part in it being its share (`Metric.shares`): for accuracy whether
it is right. A probe mostly starts lower than the model that is recommended and gains what that model has no room for,
so gains are bounded by what is left above the latter (`best_possible`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_transfer.statistics.metric import Metric

FURTHER = (50, 100, 200)
FEWEST = 10  # shots a class
SHARES = (0.0, 0.125, 0.25, 0.5, 0.75)  # of the shots that are learned from
FOLDS = 4  # so the last share is all of them but one fold
REPEATS = 5
SOURCE = 1000  # rows, at most: more change little and cost time
STRENGTH = 0.01  # of the probe, on standardised features
EXPONENTS = (0.25, 0.5, 1.0)  # 1/2 and 1 are those of theory; Hestness et al. find less
WORTH = (4, 16, 64, 256)  # target labels
HORIZON = 200  # further labels, after which
UNDONE = 1 / 3  # of the source-only errors are undone or fewer, in two of three cases: what is thought before any look
NOISE = 0.055  # over sqrt(shots): by which gains of accuracy differ from draw to draw, as seen on 1,000 test rows
RESAMPLES = 300
DRAWS = 4000
TOO_FAR = 8  # times the labels at hand, beyond which nothing is said
MISFIT = 0.01  # chance of so bad a fit if a law were true
REPEATED = 20  # rows whose text others have too, by which labels are held against each other


@dataclass(frozen=True)
class Expected:
    """What some further labels would likely buy; shares, not per cent.

    Attributes:
        further: labels, drawn at random from the target.
        gain: in the score over that with the labels at hand, or None.
        low, high: its 95 % interval, for one such draw of labels; None with the gain.
        reason: why there is none, in words; empty where there is one.
    """

    further: int
    gain: float | None
    low: float | None
    high: float | None
    reason: str


def learning_curve(
    source_features: np.ndarray,
    source_labels: np.ndarray,
    target_features: np.ndarray,
    target_labels: np.ndarray,
    *,
    by: Metric,
    seed: int,
    further: tuple[int, ...] = FURTHER,
    room: float = 1.0,
) -> list[Expected]:
    """Return what each number of further target labels would likely buy a linear probe, one entry each.

    It is about a probe on these features: a fine-tuned model may gain more or less. It takes about 80 small fits.

    Args:
        source_features: (rows, hidden) mean-pooled states of a frozen encoder; of more than SOURCE some are drawn.
        source_labels: (rows,) class indices.
        target_features: (shots, hidden) of the labelled target rows that training sees, never of test rows.
        target_labels: (shots,) class indices.
        by: the metric in force.
        seed: of the splits and of the resampling.
        further: numbers of labels.
        room: what a gain can be at most.

    Raises:
        ValueError: the shapes don't fit, or the source has no two classes.
    """
    if len(source_features) != len(source_labels) or len(target_features) != len(target_labels):
        raise ValueError("features and labels need the same rows")
    if len(np.unique(source_labels)) < 2:
        raise ValueError("the source needs rows of two classes")
    least = min(int((target_labels == label).sum()) for label in np.union1d(source_labels, target_labels))
    if least < FEWEST:
        reason = f"the rarest label has {least} labelled target rows; {FEWEST} of each are needed to see a trend"
        return [Expected(count, None, None, None, reason) for count in further]
    sizes, shares = shares_by_size(source_features, source_labels, target_features, target_labels, by=by, seed=seed)
    return extrapolate(sizes, shares, seed=seed, further=further, room=room)


def best_possible(contents: np.ndarray, labels: np.ndarray, by: Metric) -> tuple[float, int]:
    """Return the best score that labels allow, by those of equal texts, and how many rows have a text that others have.

    A rule gives equal texts one label, so it is wrong where they have several. How often that is among rows of a text
    that others have too is taken to be how often any row's label is noise. With fewer than REPEATED of them nothing is
    measured, and the score is 1.

    Args:
        contents: (rows,) equal for equal texts.
        labels: (rows,) class indices.
        by: the metric in force. For others than accuracy the commonest label of each text may not be the best answer;
            then the score is no less than the share of rows that a rule could get right.
    """
    _, text, rows = np.unique(contents, return_inverse=True, return_counts=True)
    repeated = rows[text] > 1
    if (count := int(repeated.sum())) < REPEATED:
        return 1.0, count
    of_text = np.zeros((len(rows), len(by.label_names)), dtype=int)
    np.add.at(of_text, (text, labels), 1)
    answers, true = of_text.argmax(axis=1)[text][repeated], labels[repeated]
    return max(float((answers == true).mean()), by.score(answers, true)), count


def shares_by_size(
    source_features: np.ndarray,
    source_labels: np.ndarray,
    target_features: np.ndarray,
    target_labels: np.ndarray,
    *,
    by: Metric,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers of shots (sizes,), and each shot's share in the score of probes that learned so many others.

    The shares are (repeats, shots, sizes), their mean over the shots is the score, see `Metric.shares`.

    Args:
        source_features: (rows, hidden); of more than SOURCE some are drawn.
        source_labels: (rows,) class indices.
        target_features: (shots, hidden).
        target_labels: (shots,) class indices, of each at least FOLDS.
        by: the metric in force.
        seed: of the splits.
    """
    from sklearn.model_selection import StratifiedKFold

    drawn = np.random.default_rng(seed).permutation(len(source_labels))[:SOURCE]
    source, source_y = source_features[drawn], source_labels[drawn]
    centre, scale = source.mean(axis=0), source.std(axis=0) + 1e-6
    source, target = (source - centre) / scale, (target_features - centre) / scale
    sizes = np.array([round(share * len(target)) for share in SHARES])
    answers = np.empty((REPEATS, len(target), len(sizes)), dtype=int)
    answers[:, :, 0] = fit_probe(source, source_y, target[:0], target_labels[:0]).predict(target)
    for repeat in range(REPEATS):
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed + repeat)
        for learned, tried in folds.split(target, target_labels):
            ordered = _mixed(np.random.default_rng([seed, repeat]).permutation(learned), target_labels)
            for column, size in enumerate(sizes[1:], start=1):
                rows = ordered[:size]
                probe = fit_probe(source, source_y, target[rows], target_labels[rows])
                answers[repeat, tried, column] = probe.predict(target[tried])
    shares = [[by.shares(by.statistics(column, target_labels)) for column in repeat.T] for repeat in answers]
    return sizes, np.moveaxis(np.array(shares), 1, 2)


def extrapolate(
    sizes: np.ndarray, shares: np.ndarray, *, seed: int, further: tuple[int, ...] = FURTHER, room: float = 1.0
) -> list[Expected]:
    """Return what each number of further labels would likely buy, given the learning curve of the labels at hand.

    Args:
        sizes: (sizes,) numbers of shots learned from, the first 0.
        shares: (repeats, shots, sizes) of each shot, not learned from, in the score.
        seed: of the resampling.
        further: numbers of labels.
        room: what a gain can be at most.
    """
    import scipy.stats

    rng = np.random.default_rng(seed)
    shots, observed = shares.shape[1], shares.mean(axis=(0, 1))
    precision = _precision(shares, rng)
    laws = [_fit(sizes, observed, precision, c, n0, shots) for c in EXPONENTS for n0 in WORTH]
    fit = float(scipy.stats.chi2.sf(min(law.misfit + min(law.rise, 0.0) ** 2 / law.variance for law in laws),
                                    len(sizes) - 2))  # fmt: skip
    if fit < MISFIT:
        curve = ", ".join(f"{score:.1%} with {size}" for size, score in zip(sizes, observed, strict=True))
        reason = f"the score does not rise by an inverse power law with the labels at hand: {curve}"
        return [Expected(count, None, None, None, reason) for count in further]
    rises = np.linspace(0.0, 1.0, 401)
    chances = np.stack([_log_chances(law, rises, 1 - observed[0]) for law in laws])
    chances = np.exp(chances - chances.max())
    drawn = rng.choice(chances.size, size=DRAWS, p=(chances / chances.sum()).ravel())
    law_drawn, rise_drawn = np.unravel_index(drawn, chances.shape)
    noise = rng.normal(0.0, NOISE * _weight(shares[:, :, -1]) ** 2 / np.sqrt(shots), DRAWS)
    out = []
    for count in further:
        if shots + count > TOO_FAR * shots:
            reason = (f"{shots} labelled target rows say nothing of {shots + count}: more than {TOO_FAR} times as many "
                      "are out of sight")  # fmt: skip
            out.append(Expected(count, None, None, None, reason))
            continue
        gains = rises[rise_drawn] * np.array([law.share(shots, shots + count) for law in laws])[law_drawn]
        low, high = np.percentile(np.minimum(gains + noise, room), [2.5, 97.5])
        gain = min(float(np.minimum(gains, room).mean()), room)  # a mean of equal numbers may be rounded up
        out.append(Expected(count, gain, float(low), float(high), ""))
    return out


@dataclass(frozen=True)
class _Law:
    """An inverse power law fitted to the scores.

    Attributes:
        exponent, worth: c and n0.
        end: labels at which the rise is taken: those at hand and HORIZON.
        rise: from no target labels to `end`.
        variance: of the rise.
        spread: log of the square root of the determinant of the covariance of both.
        misfit: what is left, chi-squared.
    """

    exponent: float
    worth: int
    end: int
    rise: float
    variance: float
    spread: float
    misfit: float

    def share(self, begin: float, end: float) -> float:
        """Return the part of the rise that happens between two numbers of labels."""
        return float(
            _risen(end, self.exponent, self.worth, self.end) - _risen(begin, self.exponent, self.worth, self.end)
        )


def _risen(size: np.ndarray | float, exponent: float, worth: int, end: int) -> np.ndarray:
    """Return which part of the rise from no labels to `end` of them has happened with `size` labels."""
    start, now, full = (np.asarray(n + worth, dtype=float) ** -exponent for n in (0, size, end))
    return (start - now) / (start - full)


def _fit(
    sizes: np.ndarray, observed: np.ndarray, precision: np.ndarray, exponent: float, worth: int, shots: int
) -> _Law:
    end = shots + HORIZON
    design = np.stack([np.ones(len(sizes)), _risen(sizes, exponent, worth, end)], axis=1)
    covariance = np.linalg.inv(design.T @ precision @ design)
    start, rise = covariance @ design.T @ precision @ observed
    rest = observed - design @ (start, rise)
    spread = float(np.linalg.slogdet(covariance)[1]) / 2
    return _Law(exponent, worth, end, rise, covariance[1, 1], spread, float(rest @ precision @ rest))


def _precision(shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the inverse covariance of the scores, by resampling repeats and, for all sizes alike, shots.

    Sizes that agree on all shots would have none between them: it is taken to be that of half a shot at least.
    """
    repeats, shots, sizes = shares.shape
    of_repeats = rng.multinomial(repeats, np.full(repeats, 1 / repeats), RESAMPLES) / repeats
    of_shots = rng.multinomial(shots, np.full(shots, 1 / shots), RESAMPLES) / shots
    resampled = np.einsum("br,bn,rnm->bm", of_repeats, of_shots, shares.astype(float), optimize=True)
    return np.linalg.inv(np.cov(resampled.T) + np.eye(sizes) / (2 * shots**2))


def _weight(shares: np.ndarray) -> float:
    """Return how far a row moves the score, as a multiple of how far it would move an accuracy of that height.

    It is 1 for accuracy, more where few rows decide. NOISE grows with its square: such a row counts for more, and those
    that teach as much are drawn more seldom (tried in benchmarks/README.md).
    """
    mean = shares.mean()
    return float(shares.std() / np.sqrt(mean * (1 - mean))) if 0 < mean < 1 else 1.0


def _log_chances(law: _Law, rises: np.ndarray, errors: float) -> np.ndarray:
    """Return log chances of rises under a law: likelihood times prior, which leaves next to nothing above 1.

    Args:
        law: as fitted.
        rises: from none to the horizon's labels.
        errors: what the source alone leaves up to a score of 1.
    """
    likely = law.spread - (law.misfit + (rises - law.rise) ** 2 / law.variance) / 2
    expected = -((rises / (UNDONE * max(errors, 1e-3))) ** 2) / 2
    return likely + expected


def _mixed(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return `rows` in an order whose every beginning has the labels in their shares, as far as that goes."""
    place = np.empty(len(rows))
    for label in np.unique(labels[rows]):
        own = np.flatnonzero(labels[rows] == label)
        place[own] = (np.arange(len(own)) + 0.5) / len(own)
    return rows[np.argsort(place, kind="stable")]


def shot_weights(source: int, shots: int) -> np.ndarray:
    """Return the weight of each training row, source rows first: 1, and for a shot sqrt(source / shots).

    All shots together then weigh the geometric mean of two bounds: as much as they'd weigh as rows among rows, and as
    much as the source. The best share lies between and moves to the target as its rows become more (Ben-David et al.
    2010, Mach. Learn. 79): few shots with half of all weight would be learned by heart, as rows among rows be drowned.

    Args:
        source: how many rows.
        shots: likewise.
    """
    return np.concatenate([np.ones(source), np.full(shots, np.sqrt(source / max(shots, 1)))])


def fit_probe(source: np.ndarray, source_labels: np.ndarray, shots: np.ndarray, shot_labels: np.ndarray) -> Any:
    """Return logistic regression on source and shots, weighed by `shot_weights`.

    Args:
        source: (rows, hidden) standardised features.
        source_labels: (rows,) class indices.
        shots: (shots, hidden), by the same means and deviations.
        shot_labels: (shots,) class indices.
    """
    from sklearn.linear_model import LogisticRegression

    features, labels = np.concatenate([source, shots]), np.concatenate([source_labels, shot_labels])
    probe = LogisticRegression(C=STRENGTH, max_iter=300, tol=1e-3)
    return probe.fit(features, labels, sample_weight=shot_weights(len(source), len(shots)))
