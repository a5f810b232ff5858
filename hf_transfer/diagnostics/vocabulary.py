"""Words: unseen ones, how far the word frequencies are apart, and which words differ most."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from hf_transfer.diagnostics import Finding, Side, told

PRIOR = 0.01  # pseudo-count a word
SHOWN = 10
RARE, CANDIDATES = 0.25, 200  # the source's rate of the target's own words against the target's; words looked at
MATCHED = 30  # rows with matched labels, below which labels are left as they are
DRAWS = 99  # of texts; more differ than by chance where the null is above the distance in none of them: p 0.01


def measure(source: Side, target: Side, seed: int) -> Finding:
    """Compare word frequencies; the null is the same between two parts of the source, of as many texts and words.

    Where both domains have labels, target rows are drawn with the source's shares of them, so that words differ here by
    more than the mix of labels.

    The distance is Jensen-Shannon's (in bits, 0 to 1). The words that differ most have the largest z-scores of the
    log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008, doi:10.1093/pan/mpn018).
    """
    rng = np.random.default_rng(seed)
    ids: dict[str, int] = {}
    ours, theirs = ([np.array([ids.setdefault(word, len(ids)) for word in words(text)], dtype=int)
                     for text in side.texts] for side in (source, target))  # fmt: skip
    half = len(ours) // 2
    drawn = []
    for _ in range(DRAWS):
        order, other = rng.permutation(len(ours)), _like(source, target, rng)
        parts = [[texts[i] for i in rows] for texts, rows in
                 ((ours, order[:half]), (ours, order[half : half + len(other)]), (theirs, other))]  # fmt: skip
        size = min(sum(map(len, part)) for part in parts)  # fewer words would lie further apart by chance
        known, again, new = (_drawn(part, size, len(ids), rng) for part in parts)
        drawn.append((_distance(known, again), _distance(known, new), _unseen(known, again), _unseen(known, new)))
    nulls = np.array(drawn)[:, 0]
    null, between, unseen_null, unseen = (float(mean) for mean in np.mean(drawn, axis=0))
    everything = [_count(side, np.arange(len(side.texts))) for side in (source, target)]
    z = log_odds(*everything)
    ranked = sorted(z, key=lambda word: z[word])
    pieces = [float(side.pieces.sum() / max(1, sum(map(len, map(words, side.texts))))) for side in (source, target)]
    apart, untold = told(len(ours), len(theirs), apart=between > max(1.2 * null + 0.005, float(nulls.max())))
    few, many = ranked[:SHOWN], ranked[::-1][:SHOWN]
    advice = ""
    if apart:
        rates = [{word: n / one.total() for word, n in one.items()} for one in everything]
        own = [word for word in ranked[::-1][:CANDIDATES] if rates[0].get(word, 0.0) < RARE * rates[1].get(word, 0.0)]
        which = f"The target's own words ({', '.join(own[:5])}, ...) are rare in the source"
        if not own:
            more = [word for word in many[:5] if z[word] > 0]
            which = f"The target uses some words more ({', '.join(more)}, ...), though the source has them"
        advice = (f"{which}: learn from unlabelled target text, by self-training (self_train) first, then by continued "
                  "pretraining (pretrain_domain); compare tells which one helps.")  # fmt: skip
    return Finding(
        summary=f"Jensen-Shannon {between:.3f} bits (within the source {null:.3f}); {unseen:.1%} of target words "
        f"unseen (within {unseen_null:.1%}); {pieces[1]:.2f} tokens a word (source {pieces[0]:.2f})",
        advice=advice,
        apart=apart,
        numbers={
            "jensen_shannon": between,
            "jensen_shannon_within_source": null,
            "unseen_words": unseen,
            "unseen_words_within_source": unseen_null,
            "tokens_per_word": {"source": pieces[0], "target": pieces[1]},
            "more_in_target": {word: round(z[word], 2) for word in many},
            "more_in_source": {word: round(-z[word], 2) for word in few},
        },
        untold=untold,
        same_meaning=True,
    )


def _like(source: Side, target: Side, rng: np.random.Generator) -> np.ndarray:
    """Return target rows in random order: half of them, no more than half of the source's.

    They have the source's shares of labels, or are fewer so that they have; but not where hardly any would be left.
    """
    order, half = rng.permutation(len(target.texts)), min(len(target.texts), len(source.texts)) // 2
    if source.labels is None or target.labels is None:
        return order[:half]
    names, counts = np.unique(source.labels, return_counts=True)
    shares = counts / counts.sum()
    there = [order[target.labels[order] == name] for name in names]
    size = min(half, *(int(len(rows) / share) for rows, share in zip(there, shares, strict=True)))
    if size < MATCHED:
        return order[:half]
    return rng.permutation(np.concatenate([rows[: round(size * s)] for rows, s in zip(there, shares, strict=True)]))


def words(text: str) -> list[str]:
    """Return the lower-case words of a text."""
    return re.findall(r"\w+", text.lower())


def _count(side: Side, rows: np.ndarray) -> Counter[str]:
    return Counter(word for i in rows for word in words(side.texts[int(i)]))


def _drawn(texts: list[np.ndarray], size: int, vocabulary: int, rng: np.random.Generator) -> np.ndarray:
    """Count `size` words drawn from all texts: whole ones would be few where they are long, and repeat themselves."""
    return np.bincount(rng.choice(np.concatenate(texts), size, replace=False), minlength=vocabulary)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.spatial.distance import jensenshannon

    return float(jensenshannon(a, b, base=2) ** 2) if a.any() and b.any() else 0.0


def _unseen(known: np.ndarray, other: np.ndarray) -> float:
    return float(other[known == 0].sum() / max(1, other.sum()))


def log_odds(source: Counter[str], target: Counter[str]) -> dict[str, float]:
    """Return a z-score a word, positive where the target uses it more."""
    both = source + target
    total = both.total()
    prior = {word: PRIOR * len(both) * count / total for word, count in both.items()}
    weight = sum(prior.values())
    scores = {}
    for word, extra in prior.items():
        ratio = 0.0
        for counts, sign in ((target, 1), (source, -1)):
            there = counts[word] + extra
            ratio += sign * float(np.log(there / (counts.total() + weight - there)))
        scores[word] = ratio / float(np.sqrt(1 / (target[word] + extra) + 1 / (source[word] + extra)))
    return scores
