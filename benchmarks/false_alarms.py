"""How often the verdict says "helps" or "hurts" of equal arms, and how often it sees a gain of 3 points.

    python benchmarks/false_alarms.py
    python benchmarks/false_alarms.py --comparisons 2000    # the Monte-Carlo error of 200 is 3 points

Nothing is trained: predictions are simulated. Whether a row is labelled correctly is drawn once for all candidates, for
one candidate with all of its seeds, or for every seed, so often that two candidates agree on 90 % of the rows (both
right or both wrong). Seeds also move a candidate's true accuracy. The last of several controls has no seeds, as TF-IDF.

The second table is about macro-F1 where one of two labels has 90 % of the rows, and one control gives it to every row.
"""

from __future__ import annotations

import argparse
import datetime
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
import scipy.stats
from tqdm import tqdm

from hf_transfer.statistics import metric
from hf_transfer.statistics.references import references
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


MIX = np.array([0.9, 0.1])  # of labels
NAMES = ["common", "rare"]
ALWAYS = np.array([[1.0, 0.0], [1.0, 0.0]])  # shares of answers, by true label, of a control that has collapsed


@dataclass(frozen=True)
class Skewed:
    """A kind of comparison by macro-F1 in which all arms and all but one control are equal.

    Attributes:
        seeds, rows: how many.
        found: share of the rare label's rows that they find; None for as many as makes them equal to the collapsed
            control, too.
        arms, controls: how many; the last control has collapsed.
    """

    seeds: int
    rows: int
    found: float | None
    arms: int = 3
    controls: int = 3


SKEWED = (Skewed(1, 200, 0.7), Skewed(1, 500, 0.7), Skewed(1, 2000, 0.7), Skewed(1, 200, 0.3), Skewed(1, 500, 0.3),
          Skewed(3, 500, 0.7), Skewed(1, 200, None), Skewed(1, 500, None), Skewed(1, 2000, None))  # fmt: skip


def main() -> None:
    """Simulate and write the dated table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=200, help="a row of the table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tables", nargs="+", default=["accuracy", "macro_f1"], choices=["accuracy", "macro_f1"])
    arguments = parser.parse_args()
    kinds = {"accuracy": (measure, SETTINGS), "macro_f1": (measure_skewed, SKEWED)}
    with ProcessPoolExecutor() as pool:
        found: dict[str, Any] = {name: pool.map(partial(kinds[name][0], arguments=arguments), kinds[name][1])
                                 for name in arguments.tables}  # fmt: skip
        write(list(found.get("accuracy", ())), list(found.get("macro_f1", ())), arguments)


def measure(setting: Setting, arguments: argparse.Namespace) -> dict[str, Any]:
    """Judge simulated comparisons without and with a gain of the first arm: counts of what was said."""
    rng = np.random.default_rng(arguments.seed)
    alarms, adapted, held, held_by_bootstrap, found, agreement = [], [], [], [], [], []
    for _ in tqdm(range(arguments.comparisons), desc=str(setting)):
        candidates, labels = simulate(setting, 0.0, rng)
        verdict = judge(candidates, labels)
        alarms.append(any(one.effect.word != "no difference shown" for one in verdict.comparisons))
        adapted.append(verdict.adapt)
        held += [one.effect.low <= 0 <= one.effect.high for one in verdict.comparisons]
        arm, control = candidates[0], candidates[setting.arms]
        low, high = bootstrap(arm.predictions == labels, control.predictions == labels, rng)
        held_by_bootstrap.append(low <= 0 <= high)
        verdict = judge(*simulate(setting, GAIN, rng))
        gained = [one for one in verdict.comparisons if one.arm == "arm 0"]
        held += [one.effect.low <= GAIN <= one.effect.high for one in gained]
        found += [one.effect.word == "helps" for one in gained]
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


def measure_skewed(setting: Skewed, arguments: argparse.Namespace) -> dict[str, Any]:
    """Judge simulated comparisons by macro-F1: what was said that is not true, and which intervals hold the truth."""
    rng = np.random.default_rng(arguments.seed)
    by = metric.load("macro_f1", NAMES)
    own = answering(setting.found)
    gain = true_macro_f1(own) - true_macro_f1(ALWAYS)  # over the collapsed control
    alarms, adapted, held, held_collapsed = [], [], [], []
    for _ in tqdm(range(arguments.comparisons), desc=str(setting)):
        candidates, labels = simulate_skewed(setting, own, rng)
        verdict = judge(candidates, labels, metric=by, references=references(labels, NAMES, by))
        wrong = False
        for one in verdict.comparisons:
            truth = gain if one.control == candidates[-1].name else 0.0
            said = {"helps": 1, "hurts": -1}.get(one.effect.word, 0)
            wrong |= said != 0 and said != np.sign(round(truth, 9))
            where = held_collapsed if one.control == candidates[-1].name else held
            where.append(one.effect.low <= truth <= one.effect.high)
        alarms.append(wrong)
        adapted.append(verdict.adapt)
    return {"setting": setting, "gain": gain, "alarms": alarms, "adapted": adapted, "held": held,
            "held_collapsed": held_collapsed}  # fmt: skip


def simulate_skewed(setting: Skewed, own: np.ndarray, rng: np.random.Generator) -> tuple[list[Candidate], np.ndarray]:
    """Return equal arms and controls, the last control collapsed, and the labels."""
    labels = rng.choice(2, setting.rows, p=MIX)
    alike = rng.random(setting.rows)  # what all of them find hard
    candidates = []
    for i in range(setting.arms + setting.controls - 1):
        shape = (setting.seeds, setting.rows)
        draws = np.where(rng.random(shape) < AGREEMENT, alike, rng.random(shape))
        answers = (draws > own[labels, 0]).astype(int)
        control = i >= setting.arms
        name = f"control {i - setting.arms}" if control else f"arm {i}"
        candidates.append(Candidate(name, answers, float(i), 1.0, control=control))
    always = np.zeros((setting.seeds, setting.rows), dtype=int)
    return [*candidates, Candidate("collapsed", always, 99.0, 1.0, control=True)], labels


def answering(found: float | None) -> np.ndarray:
    """Return the shares of answers, (true label, answer), of a model that finds so many of the rare label's rows."""
    if found is not None:
        return np.array([[0.97, 0.03], [1 - found, found]])
    # a guess, drawn for so many rows that it is worth as much as the common label for all
    share = scipy.optimize.brentq(lambda q: true_macro_f1(guessing(q)) - true_macro_f1(ALWAYS), 0.15, 0.9)
    return guessing(share)


def guessing(share: float) -> np.ndarray:
    """Return the shares of answers of one that gives the rare label to so many rows, whatever they are."""
    return np.array([[1 - share, share]] * 2)


def true_macro_f1(answers: np.ndarray) -> float:
    """Return macro-F1 on ever more rows."""
    joint = MIX[:, None] * answers
    total = joint.sum(axis=0) + MIX
    return float(np.mean(2 * np.diag(joint) / total))


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


def write(results: list[dict[str, Any]], skewed: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Write the dated tables."""
    today = datetime.date.today().isoformat()
    lines = [
        f"# False alarms and power of the verdict, {today}",
        "",
        f"numpy {np.__version__}, scipy {scipy.__version__}. In %, with 95 % Wilson intervals where cases are "
        "independent.",
        "",
        f"Command: `python benchmarks/false_alarms.py --comparisons {arguments.comparisons} --seed {arguments.seed} "
        f"--tables {' '.join(arguments.tables)}`",
        *(equal_table(results, arguments.comparisons) if results else []),
        *(skewed_table(skewed, arguments.comparisons) if skewed else []),
    ]
    name = "-".join(["false-alarms", *(arguments.tables if len(arguments.tables) == 1 else []), today])
    text = "\n".join(lines) + "\n"
    (HERE / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def equal_table(results: list[dict[str, Any]], comparisons: int) -> list[str]:
    """Return the lines about accuracy."""
    lines = [
        "",
        f"## Accuracy of {100 * ACCURACY:.0f} %",
        "",
        f"{comparisons:,} simulated comparisons of equal arms a row, and as many in which the first arm is "
        f'{100 * GAIN:.0f} points better. False alarms: comparisons with "helps" or "hurts" among all pairs of arm '
        "and control (at most 5 % wanted), and comparisons after which an arm is recommended. Coverage: of the "
        "uncorrected 95 % intervals of all pairs (93 to 97 % wanted). Power: pairs of the better arm of which it is "
        "said (at least 80 % wanted with one seed). Last column: coverage of the percentiles of a bootstrap over seeds "
        "and rows, for the first pair. The last line takes what one seed shows of models for what is true of arms.",
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
    return lines


def skewed_table(results: list[dict[str, Any]], comparisons: int) -> list[str]:
    """Return the lines about macro-F1."""
    lines = [
        "",
        "## Macro-F1, 90 % of the rows with one label",
        "",
        f"{comparisons:,} simulated comparisons a row: 3 equal arms, 2 controls equal to them and one that gives every "
        "row the common label. False alarms: comparisons in which any word says what is not true (at most 64 of 1,000 "
        "wanted). Coverage: of the uncorrected 95 % intervals, of all pairs (93 to 97 % wanted) and of those with the "
        "collapsed control. An arm is recommended only if it also beats both references made of the test labels.",
        "",
        "| seeds | rows | of the rare label found | gain over the collapsed control | false alarms | "
        "an arm recommended | coverage | coverage, collapsed control |",
        "|---" * 8 + "|",
    ]
    for result in results:
        own: Skewed = result["setting"]
        held = [f"{100 * np.mean(some):.1f}" for some in (result["held"] + result["held_collapsed"],
                                                          result["held_collapsed"])]  # fmt: skip
        cells = [own.seeds, f"{own.rows:,}", "as a guess" if own.found is None else f"{100 * own.found:.0f} %",
                 f"{100 * result['gain']:.1f}", share(result["alarms"]), share(result["adapted"]), *held]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


if __name__ == "__main__":
    main()
