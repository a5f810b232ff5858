"""Words: unseen ones, how far the word frequencies are apart, and which words differ most."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import numpy as np

from hf_transfer.diagnostics import Finding, Side

PRIOR = 0.01  # pseudo-count a word
SHOWN = 10
RARE, CANDIDATES = 0.25, 200  # the source's rate of the target's own words against the target's; words looked at
FEWEST = 30  # rows with matched labels, below which labels are left as they are


def measure(source: Side, target: Side, seed: int) -> Finding:
    """Compare word frequencies; the null is the same between two halves of the source, of as many words each.

    Where both domains have labels, target rows are drawn with the source's shares of them, so that words differ here by
    more than the mix of labels.

    The distance is Jensen-Shannon's (in bits, 0 to 1). The words that differ most have the largest z-scores of the
    log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008, doi:10.1093/pan/mpn018).
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(source.texts))
    other = _like(source, target, rng)
    half = len(order) // 2
    rows = [[words(side.texts[int(i)]) for i in part]
            for side, part in ((source, order[:half]), (source, order[half : 2 * half]), (target, other))]  # fmt: skip
    size = min(sum(map(len, part)) for part in rows)  # fewer words would lie further apart by chance
    *halves, theirs = (_drawn(part, size, rng) for part in rows)
    null, between = _distance(*halves), _distance(halves[0], theirs)
    unseen_null, unseen = _unseen(*halves), _unseen(halves[0], theirs)
    everything = [_count(side, np.arange(len(side.texts))) for side in (source, target)]
    z = log_odds(*everything)
    ranked = sorted(z, key=lambda word: z[word])
    pieces = [float(side.pieces.sum() / max(1, sum(map(len, map(words, side.texts))))) for side in (source, target)]
    apart = between > 1.2 * null + 0.005
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
    )


def _like(source: Side, target: Side, rng: np.random.Generator) -> np.ndarray:
    """Return as many target rows as can be drawn with the source's label shares, in random order; at most half."""
    order, half = rng.permutation(len(target.texts)), len(target.texts) // 2
    if source.labels is None or target.labels is None:
        return order[:half]
    names, counts = np.unique(source.labels, return_counts=True)
    shares = counts / counts.sum()
    there = [order[target.labels[order] == name] for name in names]
    size = min(half, *(int(len(rows) / share) for rows, share in zip(there, shares, strict=True)))
    if size < FEWEST:
        return order[:half]
    return rng.permutation(np.concatenate([rows[: round(size * s)] for rows, s in zip(there, shares, strict=True)]))


def words(text: str) -> list[str]:
    """Return the lower-case words of a text."""
    return re.findall(r"\w+", text.lower())


def _count(side: Side, rows: np.ndarray) -> Counter[str]:
    return Counter(word for i in rows for word in words(side.texts[int(i)]))


def _drawn(texts: list[list[str]], size: int, rng: np.random.Generator) -> Counter[str]:
    """Count `size` words drawn from all texts: whole ones would be few where they are long, and repeat themselves."""
    everything = list(itertools.chain.from_iterable(texts))
    return Counter(everything[i] for i in rng.permutation(len(everything))[:size])


def _distance(a: Counter[str], b: Counter[str]) -> float:
    from scipy.spatial.distance import jensenshannon

    vocabulary = sorted({*a, *b})
    counts = [np.array([one[word] for word in vocabulary], dtype=float) for one in (a, b)]
    return float(jensenshannon(*counts, base=2) ** 2) if all(one.sum() for one in counts) else 0.0


def _unseen(known: Counter[str], other: Counter[str]) -> float:
    return sum(count for word, count in other.items() if word not in known) / max(1, other.total())


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
