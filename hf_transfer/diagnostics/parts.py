"""Parts: how much of what the model sees between the domains goes with the mix of labels, length, or the rest."""

from __future__ import annotations

import numpy as np

from hf_transfer.diagnostics import Finding, Side, labels, length, told
from hf_transfer.diagnostics.mmd import ROWS, kernel, permuted, share_as_large

BINS = 5  # of length
ALIKE = 0.3  # share of either side's rows that must have rows like them on the other
MOST = 0.5  # a part with more than this is what to do something about
REMEDIES = {
    "label mix": "correct the label prior when predicting (--label_prior)",
    "length": "give source and target texts alike lengths (--max_length), and compare accuracy by length in the report",
    "words and style": "learn from unlabelled target text (self_train, adapt_domain); compare tells which way helps",
}


def measure(source: Side, target: Side, seed: int) -> Finding:
    """Divide MMD^2 two thirds up the layers: what is gone when rows are weighed alike, first by label, then by length.

    Rows of both domains are put into cells (label; label and length). The source's are weighed so that every cell has
    the target's share; cells that one side lacks are left out of both. Where weighing makes it larger, that part is 0.
    Labels and lengths that differ by no more than chance have no part: that of two samples would be chance, too. Where
    it can't be told whether they differ, their part is one with the rest.
    """
    layer = source.states.shape[1] * 2 // 3
    rng = np.random.default_rng(seed)
    picks = [rng.permutation(len(side.states))[:ROWS] for side in (source, target)]
    a, b = (side.states[pick, layer] for side, pick in zip((source, target), picks, strict=True))
    values = permuted(a, b, seed)
    if share_as_large(values) >= 0.01:
        apart, untold = told(len(a), len(b), apart=False)
        return Finding(f"nothing to divide: no difference beyond chance on layer {layer}", "", apart, untold=untold)
    similar, whole = kernel(a, b), float(values[0])
    cells: list[list[str]] = [[""] * len(pick) for pick in picks]
    left = {}  # before each step
    last = "words and style"
    rest = whole
    for name, found, kinds in (
        ("label mix", labels.measure(source, target, seed), _labels),
        ("length", length.measure(source, target, seed), _lengths),
    ):
        if found.untold:
            last = _or(name, last)
        if not found.apart:
            continue
        finer = [[f"{cell} {kind}" for cell, kind in zip(*both, strict=True)]
                 for both in zip(cells, kinds(source, target, picks), strict=True)]  # fmt: skip
        if np.isnan(after := _left(similar, *finer)):
            name, after = _or(name, last), 0.0
        left[name], rest, cells = rest, after, finer
        if after == 0.0:
            break
    else:
        left[last] = rest
    steps = np.minimum.accumulate(np.clip([*left.values(), 0.0], 0.0, whole))
    parts = dict(zip(left, ((steps[:-1] - steps[1:]) / whole).tolist(), strict=True))
    largest = max(parts, key=lambda name: parts[name])
    advice = ""
    if parts[largest] > MOST and largest in REMEDIES:
        advice = f"What the model sees goes with {largest} for the most part: {REMEDIES[largest]}."
    shown = ", ".join(f"{share:.0%} with {name}" for name, share in parts.items())
    return Finding(
        summary=f"of MMD^2 {whole:.4f} on layer {layer} go {shown}",
        advice=advice,
        apart=True,
        numbers={"layer": layer, "mmd": whole, "parts": {name: round(share, 4) for name, share in parts.items()}},
        same_meaning=largest != "length",
    )


def _or(name: str, others: str) -> str:
    """Return the name of a part that can't be told from others."""
    return f"{name}, {'' if ', or ' in others else 'or '}{others}"


def _labels(source: Side, target: Side, picks: list[np.ndarray]) -> list[list[str]]:
    names = [np.asarray(side.labels, dtype=str) for side in (source, target)]
    return [own[pick].tolist() for own, pick in zip(names, picks, strict=True)]


def _lengths(source: Side, target: Side, picks: list[np.ndarray]) -> list[list[str]]:
    """Return which of BINS equally frequent lengths each row has."""
    counts = [np.array([len(side.texts[int(i)].split()) for i in pick])
              for side, pick in zip((source, target), picks, strict=True)]  # fmt: skip
    edges = np.quantile(np.concatenate(counts), np.linspace(0, 1, BINS + 1)[1:-1])
    return [np.digitize(one, edges).astype(str).tolist() for one in counts]


def _left(similar: np.ndarray, ours: list[str], theirs: list[str]) -> float:
    """Return MMD^2 of the rows whose cell both sides have, the source's weighed to the target's shares of the cells.

    It is nan where hardly any row of a side has rows like it.
    """
    import pandas as pd

    cells, codes = np.unique([*ours, *theirs], return_inverse=True)
    one, other = codes[: len(ours)], codes[len(ours) :]
    counts = pd.DataFrame({"ours": np.bincount(one, minlength=len(cells)),
                           "theirs": np.bincount(other, minlength=len(cells))})  # fmt: skip
    both = (counts > 0).all(axis=1).to_numpy()
    if min(both[one].mean(), both[other].mean()) < ALIKE:
        return float("nan")
    ratio = np.where(both, counts["theirs"] / counts["ours"].clip(lower=1), 0.0)
    return weighted(similar, ratio[one], both[other].astype(float))


def weighted(similar: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return MMD^2 between samples whose rows have weights, of pairs of different rows; unbiased if weights are given.

    Args:
        similar: kernel (rows, rows) of both samples, one after the other.
        ours: (rows,) of the first sample.
        theirs: (rows,) of the second.
    """
    a, b = ours / ours.sum(), theirs / theirs.sum()
    n = len(a)

    def within(block: np.ndarray, weights: np.ndarray) -> float:
        own = np.square(weights)
        return float((weights @ block @ weights - own @ np.diag(block)) / (1 - own.sum()))

    return within(similar[:n, :n], a) + within(similar[n:, n:], b) - 2 * float(a @ similar[:n, n:] @ b)
