"""Whether the learning curve foretells what further target labels bring, and whether chosen rows beat drawn ones.

    python benchmarks/labelling.py --data path/to/amazon
    python benchmarks/labelling.py --data path/to/amazon --seeds 30 60    # others than those that it was tuned on

Features are mean token states of the default encoder's fourth layer, of the first 128 tokens of 1,500 reviews a domain.
In each repetition 1,000 target rows are set aside to score on; shots, further labels and the rows to choose from are
drawn from the other 500. Source: 1,000 reviews.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
import sklearn
from tqdm import tqdm

from hf_transfer import learning_curve as curve
from hf_transfer.labelling import next_rows
from hf_transfer.statistics import metric

HERE = Path(__file__).resolve().parent
ROWS, LENGTH, LAYER, PIECE = 1500, 128, 4, 250
SOURCE, TESTED = 1000, 1000
SHOTS = (8, 16, 32, 64)  # a class
CHOSEN = 50
BY = metric.load("accuracy", ["0", "1"])
CHOICES = ("BADGE", "least margin", "BADGE, features less their mean")


def main() -> None:
    """Measure and write the dated table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder of <domain>.labeled.jsonl.gz")
    parser.add_argument("--pairs", nargs="+", default=["books:kitchen", "kitchen:books"], metavar="SOURCE:TARGET")
    parser.add_argument("--seeds", nargs=2, type=int, default=[0, 30], metavar=("FIRST", "END"))
    arguments = parser.parse_args()
    names = sorted({name for pair in arguments.pairs for name in pair.split(":")})
    domains = {name: encode(arguments.data / f"{name}.labeled.jsonl.gz") for name in names}
    results = {}
    for pair in arguments.pairs:
        source, target = pair.split(":")
        seeds = tqdm(range(*arguments.seeds), desc=pair)
        results[pair] = [repetition(domains[source], domains[target], seed) for seed in seeds]
    write(results, arguments)


def encode(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return features (rows, hidden) and labels (rows,) of some rows of a file, without repeats."""
    from datasets import Dataset
    from transformers import AutoModel

    from hf_transfer import tasks
    from hf_transfer.features import cut, frozen_copy, pooled_states
    from hf_transfer.models import load_pretrained

    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if not row.get("dup")]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:ROWS]]
    task = tasks.load("text_classification")
    loaded = load_pretrained(None, "main", AutoModel, 0)
    trunk = frozen_copy(loaded.model, "fp32")
    cut(trunk, LAYER)
    parts = []
    for begin in tqdm(range(0, len(rows), PIECE), desc=file.name):  # by pieces, each cached
        texts = Dataset.from_dict({"text": [row["text"] for row in rows[begin : begin + PIECE]]})
        encoded, _ = task.encode(loaded.tokenizer, texts, LENGTH)
        parts.append(pooled_states(trunk, encoded, task.collator(loaded.tokenizer))[:, LAYER])
    return np.concatenate(parts), np.array([row["label"] for row in rows])


def repetition(
    source: tuple[np.ndarray, np.ndarray], target: tuple[np.ndarray, np.ndarray], seed: int
) -> dict[str, Any]:
    """Return what was expected and what came, by shots a class, and what chosen rows brought, by shots and choice."""
    features, labels = source[0][:SOURCE], source[1][:SOURCE]
    centre, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    features, pool, pool_labels = (features - centre) / scale, (target[0] - centre) / scale, target[1]
    order = np.random.default_rng(seed).permutation(len(pool))
    free, tested = order[:-TESTED], order[-TESTED:]

    def fitted(rows: np.ndarray) -> Any:
        return curve.fit_probe(features, labels, pool[rows], pool_labels[rows])

    def score(probe: Any) -> float:
        return float((probe.predict(pool[tested]) == pool_labels[tested]).mean())

    out: dict[str, Any] = {"curve": {}, "choice": {}}
    for each in SHOTS:
        shots = np.concatenate([free[pool_labels[free] == label][:each] for label in (0, 1)])
        rest = free[~np.isin(free, shots)]
        probe = fitted(shots)
        now = score(probe)
        later = [score(fitted(np.concatenate([shots, rest[:count]]))) for count in curve.FURTHER]
        # one level below `learning_curve`, which refuses fewer than FEWEST shots
        sizes, shares = curve.shares_by_size(features, labels, pool[shots], pool_labels[shots], by=BY, seed=seed)
        out["curve"][each] = (now, [one - now for one in later], curve.extrapolate(sizes, shares, seed=seed))
        logits, left = probe.predict_log_proba(pool[rest]), pool[rest]
        picked = (
            next_rows(logits, left, CHOSEN, seed=seed),
            np.argsort(np.abs(logits[:, 0] - logits[:, 1]), kind="stable")[:CHOSEN],
            next_rows(logits, left - left.mean(axis=0), CHOSEN, seed=seed),
        )
        drawn = score(fitted(np.concatenate([shots, rest[:CHOSEN]])))
        out["choice"][each] = [drawn - now] + [
            score(fitted(np.concatenate([shots, rest[one]]))) - drawn for one in picked
        ]
    return out


def points(value: float, sign: str = "+") -> str:
    """Return a share in points."""
    return f"{100 * value:{sign}.1f}"


def write(results: dict[str, list[dict[str, Any]]], arguments: argparse.Namespace) -> None:
    """Write the dated table."""
    today = datetime.date.today().isoformat()
    first, end = arguments.seeds
    lines = [
        f"# What further labels bring, and which, {today}",
        "",
        f"{end - first} repetitions a line, all-MiniLM-L6-v2, layer {LAYER}, mean over the first {LENGTH} tokens, "
        f"{SOURCE:,} source reviews, scored on {TESTED:,} target reviews. Points of accuracy.",
        "",
        f"numpy {np.__version__}, scipy {scipy.__version__}, scikit-learn {sklearn.__version__}.",
        "",
        f"Command: `python benchmarks/labelling.py --data DATA --pairs {' '.join(arguments.pairs)} "
        f"--seeds {first} {end}`",
        "",
        "## The extrapolated learning curve",
        "",
        "Covered: of the 95 % intervals, those that hold the gain that was then seen (in brackets the 95 % Wilson "
        "interval; repetitions share rows, so it is too narrow). Bias: mean of expected minus seen; the error is its "
        f"root mean square. Reasons: answers that were none, but a reason. Below {curve.FEWEST} shots a class "
        "`learning_curve` refuses; what it would have said is shown.",
        "",
        "| source -> target | shots a class | accuracy now | further labels | gain seen, mean | its spread | expected, "
        "mean | bias | error | error of always saying the mean | interval, mean | covered, % | reasons |",
        "|---" * 13 + "|",
    ]
    for pair, repetitions in results.items():
        for each in SHOTS:
            for i, count in enumerate(curve.FURTHER):
                lines.append(curve_line(pair, each, count, [(now, seen[i], told[i]) for now, seen, told in
                                                            (one["curve"][each] for one in repetitions)]))  # fmt: skip
    lines += ["", "Intervals of all lines from " + f"{curve.FEWEST} shots a class up:", ""]
    for pair, repetitions in results.items():
        held = [told.low <= seen <= told.high for one in repetitions for each in SHOTS if each >= curve.FEWEST
                for seen, told in zip(*one["curve"][each][1:], strict=True) if told.gain is not None]  # fmt: skip
        lines.append(f"- {pair.replace(':', ' -> ')}: {100 * np.mean(held):.1f} % of {len(held)} hold the gain seen")
    lines += [
        "",
        f"## {CHOSEN} chosen rows against {CHOSEN} drawn ones",
        "",
        f"Gain over the shots alone by {CHOSEN} rows drawn at random, and what chosen ones bring beyond that, with "
        "95 % intervals (Student) over the repetitions. Chosen from the rows of the 500 that are no shots.",
        "",
        f"| source -> target | shots a class | drawn | {' | '.join(CHOICES)} |",
        "|---" * (3 + len(CHOICES)) + "|",
    ]
    for pair, repetitions in results.items():
        for each in SHOTS:
            values = np.array([one["choice"][each] for one in repetitions])
            reach = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(axis=0, ddof=1) / np.sqrt(len(values))
            cells = [
                f"{points(m)} [{points(m - r)}, {points(m + r)}]" for m, r in zip(values.mean(0), reach, strict=True)
            ]
            lines.append(f"| {pair.replace(':', ' -> ')} | {each} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    (HERE / f"labelling-{today}.md").write_text(text, encoding="utf-8")
    print(text)


def curve_line(pair: str, each: int, count: int, outcomes: list[tuple[float, float, curve.Expected]]) -> str:
    """Return a line of the first table, of (accuracy now, gain seen, what was expected)."""
    told = [(seen, one) for _, seen, one in outcomes if one.gain is not None]
    seen = np.array([value for _, value, _ in outcomes])
    cells = [pair.replace(":", " -> "), str(each), points(np.mean([now for now, *_ in outcomes]), ""), str(count),
             points(seen.mean()), points(seen.std(ddof=1), "")]  # fmt: skip
    if told:
        off = np.array([one.gain - value for value, one in told])
        test = scipy.stats.binomtest(sum(one.low <= value <= one.high for value, one in told), len(told))
        ends = test.proportion_ci(method="wilson")
        low, high = (np.mean([getattr(one, end) for _, one in told]) for end in ("low", "high"))
        cells += [points(np.mean([one.gain for _, one in told])), points(off.mean()),
                  points(np.sqrt((off**2).mean()), ""),
                  points(seen.std(), ""), f"{points(low)} to {points(high)}",
                  f"{100 * test.statistic:.0f} [{100 * ends.low:.0f}, {100 * ends.high:.0f}]"]  # fmt: skip
    else:
        cells += ["-"] * 6
    return "| " + " | ".join([*cells, str(len(outcomes) - len(told))]) + " |"


if __name__ == "__main__":
    main()
