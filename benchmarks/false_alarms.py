"""How often the verdict says "helps" or "hurts" of equal arms, and how often it sees a gain of 3 points.

    python benchmarks/false_alarms.py
    python benchmarks/false_alarms.py --comparisons 2000    # the Monte-Carlo error of 200 is 3 points

Nothing is trained: predictions are simulated. Whether a row is labelled correctly is drawn once for all candidates, for
one candidate with all of its seeds, or for every seed, so often that two candidates agree on 90 % of the rows (both
right or both wrong). Seeds also move a candidate's true accuracy. The last of several controls has no seeds, as TF-IDF.
"""

from __future__ import annotations

import argparse
import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from tqdm import tqdm

from hf_transfer.verdict import Candidate, judge

HERE = Path(__file__).resolve().parent
ACCURACY = 0.88
AGREEMENT = 0.9
GAIN = 0.03
RESAMPLES = 2000


@dataclass(frozen=True)
class Setting:
    """A kind of comparison.

    Attributes:
        seeds, rows, arms, controls: how many.
        spread: standard deviation over seeds of a candidate's true accuracy.
        wild: that of the first arm, where it differs.
    """

    seeds: int
    rows: int
    arms: int
    controls: int
    spread: float = 0.0
    wild: float | None = None


SETTINGS = (
    Setting(1, 2000, 1, 1),
    Setting(1, 2000, 5, 5),
    Setting(1, 200, 5, 5),
    Setting(3, 2000, 5, 5),
    Setting(3, 2000, 5, 5, 0.005),
    Setting(3, 2000, 5, 5, 0.01),
    Setting(3, 2000, 5, 5, 0.02),
    Setting(3, 200, 5, 5, 0.01),
    Setting(3, 2000, 1, 1, 0.01),
    Setting(5, 2000, 5, 5, 0.01),
    Setting(3, 2000, 5, 5, 0.002, wild=0.02),
    Setting(1, 2000, 5, 5, 0.01),
)


def main() -> None:
    """Simulate and write the dated table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=200, help="a row of the table")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write([measure(setting, arguments) for setting in SETTINGS], arguments)


def measure(setting: Setting, arguments: argparse.Namespace) -> dict[str, Any]:
    """Judge simulated comparisons without and with a gain of the first arm: counts of what was said."""
    rng = np.random.default_rng(arguments.seed)
    alarms, adapted, held, held_by_bootstrap, found, agreement = [], [], [], [], [], []
    for _ in tqdm(range(arguments.comparisons), desc=str(setting)):
        candidates, labels = simulate(setting, 0.0, rng)
        verdict = judge(candidates, labels)
        alarms.append(any(one.accuracy.word != "no difference shown" for one in verdict.comparisons))
        adapted.append(verdict.adapt)
        held += [one.accuracy.low <= 0 <= one.accuracy.high for one in verdict.comparisons]
        arm, control = candidates[0], candidates[setting.arms]
        low, high = bootstrap(arm.predictions == labels, control.predictions == labels, rng)
        held_by_bootstrap.append(low <= 0 <= high)
        verdict = judge(*simulate(setting, GAIN, rng))
        gained = [one for one in verdict.comparisons if one.arm == "arm 0"]
        held += [one.accuracy.low <= GAIN <= one.accuracy.high for one in gained]
        found += [one.accuracy.word == "helps" for one in gained]
        agreement += [1 - one.disagreement for one in gained]
    return {"setting": setting, "alarms": alarms, "adapted": adapted, "held": held, "bootstrap": held_by_bootstrap,
            "found": found, "agreement": agreement}  # fmt: skip


def simulate(setting: Setting, gain: float, rng: np.random.Generator) -> tuple[list[Candidate], np.ndarray]:
    """Return arms and controls of equal expected accuracy, but for the first arm's gain, and the labels."""
    count, seeds, rows = setting.arms + setting.controls, setting.seeds, setting.rows
    shapes = ((rows,), (count, 1, rows), (count, seeds, rows))
    for_all, for_one, for_seed = (rng.random(shape) < ACCURACY for shape in shapes)
    moved = rng.normal(0.0, setting.spread, (count, seeds, 1))
    if setting.wild is not None:
        moved[0] *= setting.wild / setting.spread
    seedless = setting.controls > 1
    if seedless:
        for_seed[-1], moved[-1] = for_one[-1], 0.0
    moved[0] += gain
    alone = 1 - np.sqrt(1 - (1 - AGREEMENT) / (2 * ACCURACY * (1 - ACCURACY)))
    kind = rng.random((count, 1, rows))
    right = np.where(kind > alone, for_all, np.where(kind > alone / 2, for_one, for_seed))
    flip = np.where(right, np.maximum(-moved, 0) / ACCURACY, np.maximum(moved, 0) / (1 - ACCURACY))
    right ^= rng.random(right.shape) < flip
    labels = rng.integers(0, 2, rows)
    predictions = list(np.where(right, labels, 1 - labels))
    if seedless:
        predictions[-1] = predictions[-1][:1]
    names = [f"arm {i}" for i in range(setting.arms)] + [f"control {i}" for i in range(setting.controls)]
    return [Candidate(name, predictions[i], float(i), 1.0, control=i >= setting.arms)
            for i, name in enumerate(names)], labels  # fmt: skip


def bootstrap(right: np.ndarray, right_other: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Return the 95 % percentiles when seeds are resampled, and rows (for all seeds alike)."""
    difference = right.astype(int) - right_other.astype(int)
    kinds, counts = np.unique(difference, axis=1, return_counts=True)
    by_seed = rng.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES) @ kinds.T / counts.sum()
    weights = rng.multinomial(len(kinds), np.full(len(kinds), 1 / len(kinds)), size=RESAMPLES) / len(kinds)
    low, high = np.percentile((by_seed * weights).sum(axis=1), [2.5, 97.5])
    return float(low), float(high)


def share(outcomes: list[bool]) -> str:
    """Return a share in %, with its 95 % Wilson interval."""
    test = scipy.stats.binomtest(sum(outcomes), len(outcomes))
    ends = test.proportion_ci(method="wilson")
    return f"{100 * test.statistic:.1f} [{100 * ends.low:.1f}, {100 * ends.high:.1f}]"


def write(results: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Write the dated table."""
    today = datetime.date.today().isoformat()
    lines = [
        f"# False alarms and power of the verdict, {today}",
        "",
        f"{arguments.comparisons:,} simulated comparisons of equal arms a row, accuracy {100 * ACCURACY:.0f} %, and as "
        f"many in which the first arm is {100 * GAIN:.0f} points better. In %, with 95 % Wilson intervals where cases "
        'are independent. False alarms: comparisons with "helps" or "hurts" among all their pairs of arm and control '
        "(at most 5 % wanted), and comparisons after which an arm is recommended. Coverage: of the uncorrected 95 % "
        "intervals of all pairs (93 to 97 % wanted). Power: pairs of the better arm of which it is said (at least 80 % "
        "wanted with one seed). Last column: coverage of the percentiles of a bootstrap over seeds and rows, for the "
        "first pair. The last line takes what one seed shows of models for what is true of their arms.",
        "",
        f"numpy {np.__version__}, scipy {scipy.__version__}.",
        "",
        f"Command: `python benchmarks/false_alarms.py --comparisons {arguments.comparisons} --seed {arguments.seed}`",
        "",
        "| seeds | rows | arms x controls | seeds move accuracy by, points | agreement | false alarms | an arm "
        "recommended | coverage | power, 3 points | coverage, bootstrap over seeds |",
        "|---" * 10 + "|",
    ]
    for result in results:
        one: Setting = result["setting"]
        spread = f"{100 * one.spread:g}" + ("" if one.wild is None else f", the first arm {100 * one.wild:g}")
        cells = [one.seeds, f"{one.rows:,}", f"{one.arms} x {one.controls}", spread,
                 f"{100 * np.mean(result['agreement']):.0f}", share(result["alarms"]), share(result["adapted"]),
                 f"{100 * np.mean(result['held']):.1f}", f"{100 * np.mean(result['found']):.1f}",
                 share(result["bootstrap"])]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    text = "\n".join(lines) + "\n"
    (HERE / f"false-alarms-{today}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
