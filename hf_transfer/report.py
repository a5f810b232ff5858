"""Tables and a plot from finished runs: Markdown, JSON and PNG."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hf_transfer.controls import CONSTANT_NAME
from hf_transfer.errors import UserError, listed
from hf_transfer.evaluation import small_test
from hf_transfer.happened import what_happened
from hf_transfer.results import FILE, Run, check_writable, load_run, write_atomically
from hf_transfer.statistics import metric
from hf_transfer.statistics.effects import conflict

SHOWN = 6  # labels whose recall stands in a table, the worst ones
LOW = 0.1  # recall below which the recalls of all are shown


def test_set(run: Run) -> str:
    """Return the name of the set that a run's headline is about."""
    return "target_test" if "target_test" in run.metrics else "source_test"


def rows_of(runs: list[Run]) -> list[dict[str, Any]]:
    """Return one dict an arm, references and controls first; those of runs on the same data appear once."""
    out: list[dict[str, Any]] = []
    seen: set[str] = set()
    for run in runs:
        which = test_set(run)
        if run.data["fingerprint"] not in seen:
            seen.add(run.data["fingerprint"])
            for known in run.metrics["references"][which].values():
                out.append(_row(known["name"], None, known, None, None, run, (None, None, None)))
            for scores in run.metrics["controls"].values():
                cost = (scores["seconds"], scores["trainable_parameters"], scores["peak_memory_mb"])
                out.append(_row(scores["name"], None, scores[which], scores.get("source_test"), None, run, cost))
    for run in runs:
        which = test_set(run)
        difference = run.metrics["differences"][which]["tfidf"]
        cost = (training_seconds(run), run.trainable_parameters, run.peak_memory_mb)
        source = run.metrics.get("source_test")
        out.append(_row(run.arm, run.folder.name, run.metrics[which], source, difference, run, cost))
    return out


def _row(
    arm: str,
    name: str | None,
    scores: dict[str, Any],
    source: dict[str, Any] | None,
    difference: Any,
    run: Run,
    cost: tuple[float | None, int | None, int | None],
) -> dict[str, Any]:
    found = scores.get("intervals", {})  # references have none, they know the test rows
    per_class = scores.get("per_class", {})
    return {
        "arm": arm,
        "run": name,
        "target": run.data["target"],
        "n": run.metrics[test_set(run)]["n"],
        "metric": run.metric,
        "score": metric.of(scores, run.metric) if per_class else scores[run.metric],
        "score_interval": found.get(run.metric),
        "accuracy": scores["accuracy"],
        "accuracy_interval": found.get("accuracy"),
        "macro_f1": scores["macro_f1"],
        "macro_f1_interval": found.get("macro_f1"),
        "recall": {label: part["recall"] for label, part in per_class.items() if part["support"]},
        "collapsed": scores.get("collapsed", ""),
        "source_accuracy": source["accuracy"] if source else None,
        "versus_tfidf": difference,
        "seconds": cost[0],
        "trainable_parameters": cost[1],
        "peak_memory_mb": cost[2],
    }


def training_seconds(run: Run) -> float:
    """Return an arm's seconds: tuning, preparing (encoding, heads), training, labelling; not loading and testing.

    What an earlier run had encoded counts with what it took then: that it was there is luck.
    """
    spent = sum(run.seconds.get(stage, 0.0) for stage in ("tune", "prepare", "train", "label the target"))
    return round(spent + run.choices.get("cached_encoding_seconds", 0.0), 1)


def table(rows: list[dict[str, Any]]) -> str:
    """Return `rows` as a Markdown table whose columns also line up in a terminal."""
    which = "target" if any(row["target"] for row in rows) else "source test"
    several = len({row["target"] for row in rows}) > 1
    by = {row["metric"] for row in rows}
    more = sorted(by - {"accuracy", "macro_f1"})
    of = f" of {metric.title(*by)}" if len(by) == 1 else ""
    # a control of one label for all finds nothing else, by design
    missed = any(min(row["recall"].values(), default=1.0) < LOW for row in rows if row["arm"] != CONSTANT_NAME)
    cells = [["arm", f"{which} accuracy", "macro-F1", *map(metric.title, more), *["recall by label"] * missed,
              "source accuracy", f"vs TF-IDF, points{of}", "seconds", "trainable", "MB"]]  # fmt: skip
    for row in rows:
        difference = row["versus_tfidf"]
        own = [row["score"], row["score_interval"]]
        cells.append([
            (row["arm"] if row["run"] in (None, row["arm"]) else f"{row['arm']} ({row['run']})")
            + (f" -> {row['target'] or 'source'}" if several else "") + (" (collapsed)" if row["collapsed"] else ""),
            with_interval(row["accuracy"], row["accuracy_interval"]),
            with_interval(row["macro_f1"], row["macro_f1_interval"]),
            *(with_interval(*own) if row["metric"] == name else "" for name in more),
            *[recalls(row["recall"])] * missed,
            "" if row["source_accuracy"] is None else f"{100 * row['source_accuracy']:.1f}",
            "" if difference is None else " ".join([_gain(difference), *[metric.title(row["metric"])] * (len(by) > 1)]),
            "" if row["seconds"] is None else f"{row['seconds']:.1f}",
            "" if row["trainable_parameters"] is None else f"{row['trainable_parameters']:,}",
            "" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:,}",
        ])  # fmt: skip
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def recalls(found: dict[str, float]) -> str:
    """Return the recall of each label in per cent, of many labels the lowest."""
    shown = sorted(found, key=lambda label: found[label])[:SHOWN]
    return ", ".join(f"{label} {100 * found[label]:.0f}" for label in found if label in shown) + (
        ", ..." if len(found) > SHOWN else ""
    )


def with_interval(value: float, interval: Any, sign: str = "") -> str:
    """Return a share in per cent with its interval, where it has one; `sign` "+" shows the sign."""
    # "-0.0" says that a bound is below 0, which what is equal but for rounding is not
    exact = (0.0 if abs(one) < 1e-9 else 100 * one for one in (value, *(interval or ())))
    shown = [f"{one:{sign}.1f}" for one in exact]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]" if interval else shown[0]


def target_labels(run: Run) -> str | None:
    """Say in words how many target labels training saw; None if it saw none."""
    shots = run.arguments.get("target_shots", "0")
    if run.data["target"] is None or shots == "0":
        return None
    if shots == "all":
        return "all target labels outside the test rows"
    return f"{shots} target label{'' if shots == '1' else 's'} a class"


def verdict(run: Run, shown: Callable[[str], str] = str) -> str:
    """Say whether the run is above every constant and beat TF-IDF on the test rows.

    Args:
        run: finished.
        shown: how names of labels and controls are written.
    """
    which = test_set(run)
    scores, differences = run.metrics[which], run.metrics["differences"][which]
    names = {name: one["name"] for name, one in {**run.metrics["controls"], **run.metrics["references"][which]}.items()}
    title, n, arm = shown(metric.title(run.metric)), scores["n"], shown(run.arm)
    settled, out = run.arguments.get("metric") is not None, []
    known = run.metrics["references"][which]
    torn = [name for name in (*known, *run.metrics["controls"])
            if conflict(differences[name]["accuracy"], differences[name]["macro_f1"])]  # fmt: skip
    if torn:
        first = differences[torn[0]]
        others = f" (so it is against {listed([names[name] for name in torn[1:]])})" if torn[1:] else ""
        out.append(
            f"Accuracy and macro-F1 disagree: against {shown(names[torn[0]])} {arm} has "
            f"{_gain(first['accuracy'])} points of accuracy and {_gain(first['macro_f1'])} of macro-F1"
            + shown(others)
            + ("." if settled else "; nothing is recommended until --metric says which counts.")
        )
    lost = run.metrics["controls"]["tfidf"][which]["collapsed"]
    difference, other = differences["tfidf"], shown(names["tfidf"]) + (" (collapsed)" if lost else "")
    words = "helps" if difference["low"] > 0 else "hurts" if difference["high"] < 0 else "shows no difference"
    gained = f"{_gain(difference)} points of {title}"
    if below := [name for name in known if differences[name]["low"] <= 0]:
        worst = min(below, key=lambda name: differences[name]["value"])
        how = "is worse than" if differences[worst]["high"] < 0 else "is not shown to be better than"
        out.append(f"{arm} {how} {shown(names[worst])}, which reads no text: {_gain(differences[worst])} points of "
                   f"{title} on {n} rows; against {other} {gained}.")  # fmt: skip
    elif torn and not settled:
        out.append(f"Against {other}: {gained} on {n} rows.")
    else:
        out.append(f"{arm} {words} against {other}: {gained} on {n} rows.")
    if scores["collapsed"]:
        out.append(f"Collapsed: {arm} {shown(scores['collapsed'])}; it has not learned to tell labels apart, try "
                   "more --num_train_epochs.")  # fmt: skip
    if lost:
        out.append(f"Collapsed: {shown(names['tfidf'])} {shown(lost)}; to beat it shows little.")
    if target_labels(run) and not run.arguments.get("target_only"):
        out.append(
            "Not verified: what the source adds to the target's labels (hf-transfer compare trains on these alone)."
        )
    support = {label: int(part["support"]) for label, part in scores["per_class"].items()}
    if small := small_test(support, difference["detectable"]):
        out.append(shown(small))
    return " ".join(out)


def _gain(difference: dict[str, float]) -> str:
    return with_interval(difference["value"], (difference["low"], difference["high"]), "+")


def run_report(run: Run) -> str:
    """Return the Markdown report of one run."""
    which = test_set(run)
    counted = run.data["rows"] | {"unlabelled": run.data.get("unlabeled_rows", 0)}
    lines = [
        f"# {run.arm}: {', '.join(n for n in run.data['domains'] if n != run.data['target'])} -> "
        f"{run.data['target'] or 'held-out source rows'}",
        "",
        verdict(run),
        "",
        table(rows_of([run])),
        "",
        "Scores in %, with 95 % bootstrap intervals over the test rows; differences are paired. The first rows of "
        "the table know the labels of the test rows, which no training could see.",
        "",
        "## By class",
        "",
        "| label | precision | recall | F1 | rows |",
        "|---|---|---|---|---|",
    ]
    for label, scores in run.metrics[which]["per_class"].items():
        lines.append(
            f"| {label} | {100 * scores['precision']:.1f} | {100 * scores['recall']:.1f} | {100 * scores['f1']:.1f} "
            f"| {scores['support']:.0f} |"
        )
    if happened := what_happened(run.choices):
        at = lines.index("## By class")
        lines[at:at] = ["## What happened", "", *(f"- {sentence}" for _, sentence in happened), ""]
    lines += ["", "## By slice", "", "| slice | accuracy | rows |", "|---|---|---|"]
    for part in run.metrics[which]["slices"]:
        accuracy = with_interval(part["accuracy"], (part["low"], part["high"]))
        lines.append(f"| {part['slice']} | {accuracy} | {part['n']} |")
    before = run.metrics.get("source_test_before")
    if before:
        after = run.metrics["source_test"]
        lines += ["", f"Source accuracy before training {100 * before['accuracy']:.1f} %, after "
                      f"{100 * after['accuracy']:.1f} %."]  # fmt: skip
    lines += [
        "",
        f"Expected calibration error on the test rows: {100 * run.metrics[which]['calibration_error']:.1f} %.",
        "",
        "![scores and calibration](report.png)",
        "",
        "## Circumstances",
        "",
        f"- model: {run.model} ({run.model_revision}), {run.parameters:,} parameters",
        f"- rows: {', '.join(f'{name} {count}' for name, count in counted.items() if count)}",
        f"- data fingerprint: `{run.data['fingerprint'][:16]}`",
        f"- seconds: {', '.join(f'{stage} {seconds:.1f}' for stage, seconds in run.seconds.items())}",
        f"- {run.hardware}, {run.precision}, {run.world_size} process(es), seed {run.seed}",
        f"- made by: `{run.command}`",
        "",
    ]
    by_method = {name: value for name, value in run.choices.items() if name != "tuned"}
    if tuned := run.choices.get("tuned"):
        best = tuned["trials"][tuned["chosen"]]
        settings = [f"{name} {best[name]:g}" for name in ("learning_rate", "num_train_epochs") if name in best]
        lines.insert(-1, f"- tuned: {', '.join(settings)}; the best of {len(tuned['trials'])} trials by validation "
                         f"{tuned['by']}")  # fmt: skip
    if by_method:
        lines.insert(-1, f"- chosen by the method: `{json.dumps(by_method)}`")
    return "\n".join(lines)


def write_report(folders: list[str], output_dir: str | None = None) -> tuple[str, list[Path]]:
    """Compare the runs in `folders`: returns the table and the files written (report.md, .json, .png).

    Args:
        folders: run folders; others among them are passed over if at least one is a run.
        output_dir: where to write; the runs' common parent by default.

    Raises:
        UserError: none of the folders is a finished run, or `output_dir` can't be written.
    """
    below = [str(file.parent) for folder in folders for file in sorted(Path(folder).glob(f"*/{FILE}"))]
    found = [
        name
        for name in dict.fromkeys((*folders, *below))
        if (Path(name) / FILE).is_file() and not name.endswith(".partial")
    ]
    if not found:
        raise UserError(
            f"no finished run among {', '.join(folders[:4]) or 'nothing'}; give folders that hold a {FILE}."
        )
    runs = sorted((load_run(folder) for folder in found), key=training_seconds)
    rows = rows_of(runs)
    text = table(rows)
    where = Path(output_dir) if output_dir else runs[0].folder.parent
    check_writable(where, "--output_dir")
    where.mkdir(parents=True, exist_ok=True)
    files = [where / f"report.{kind}" for kind in ("md", "json", "png")]
    lines = ["# Runs", "", text, "", "Scores in %, with 95 % bootstrap intervals over the test rows.", "",
             "![accuracy against seconds](report.png)", "",
             *[f"- {'' if run.folder.name == run.arm else f'{run.folder.name}: '}{verdict(run)}"
               for run in runs], ""]  # fmt: skip
    fingerprints = {run.data["fingerprint"] for run in runs}
    if len(fingerprints) > 1:
        care = f"These runs are on {len(fingerprints)} different data sets or splits; compare with care."
        lines.append(f"{care}\n")
        text += f"\n{care}"
    write_atomically(files[0], "\n".join(lines))
    write_atomically(files[1], json.dumps(rows, indent=2) + "\n")
    plot(rows, files[2])
    return text, files


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw scores with intervals against training seconds; controls and references as horizontal lines."""
    import matplotlib
    import matplotlib.ticker

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    styles = iter(("--", ":", "-.", "-") * len(rows))
    colours = iter(plt.get_cmap("tab10").colors * len(rows))
    for row in rows:
        value, mark = 100 * row["score"], " (collapsed)" if row["collapsed"] else ""
        if row["run"] is None:
            axes.axhline(value, linestyle=next(styles), color="0.4", linewidth=1.2,
                         label=f"{row['arm']}{mark} {value:.1f}")  # fmt: skip
        else:
            low, high = (100 * bound for bound in row["score_interval"])
            axes.errorbar(
                max(row["seconds"], 0.1), value, yerr=[[value - low], [high - value]], fmt="o", capsize=4,
                color=next(colours), label=f"{row['run']}{mark} {value:.1f}",
            )  # fmt: skip
    axes.set_xscale("log")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.set_xlabel("training seconds (log scale)")
    axes.set_ylabel(f"{' or '.join(dict.fromkeys(metric.title(row['metric']) for row in rows))} on the test rows, %")
    axes.grid(visible=True, alpha=0.25)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    _save(figure, file)


def plot_run(run: Run, logits: np.ndarray, labels: np.ndarray, file: Path) -> None:
    """Draw one run's score beside its references and controls, and how often it is right at each confidence.

    Args:
        run: the run.
        logits: (test rows, classes).
        labels: (test rows,) class indices.
        file: PNG to write.
    """
    import matplotlib as mpl
    import scipy.special

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    rows = rows_of([run])
    for height, row in enumerate(reversed(rows)):
        value = 100 * row["score"]
        low, high = (100 * bound for bound in row["score_interval"] or (row["score"], row["score"]))
        colour = "0.45" if row["run"] is None else "tab:blue"
        left.errorbar(value, height, xerr=[[value - low], [high - value]], fmt="o", capsize=4, color=colour)
        left.annotate(f"{value:.1f}", (value, height), textcoords="offset points", xytext=(0, 7), ha="center")
    left.set_yticks(range(len(rows)), [textwrap.fill(row["arm"] + (" (collapsed)" if row["collapsed"] else ""), 24)
                                         for row in reversed(rows)], fontsize=8)  # fmt: skip
    left.set_ylim(-0.5, len(rows) - 0.3)
    left.set_xlabel(f"{metric.title(run.metric)} on {rows[-1]['n']:,} test rows, %, with 95 % intervals")
    left.grid(visible=True, axis="x", alpha=0.25)
    probabilities = scipy.special.softmax(logits, axis=1)
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    for part in np.array_split(np.argsort(confidence), min(10, max(1, len(labels) // 20))):
        right.plot(100 * confidence[part].mean(), 100 * hit[part].mean(), "o", color="tab:blue")
    least = 100 / logits.shape[1]
    right.plot([least, 100], [least, 100], color="0.6", linewidth=1)
    right.set_xlabel("confidence, %")
    right.set_ylabel("labelled correctly, %")
    right.set_title("test rows in tenths; on the line: calibrated", fontsize=9)
    right.grid(visible=True, alpha=0.25)
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    """Write `figure` as PNG, whole or not at all, the same bytes for the same content."""
    import matplotlib.pyplot as plt

    part = file.with_name(f".{file.name}")
    figure.savefig(part, dpi=150, format="png", metadata={"Software": None})
    plt.close(figure)
    part.replace(file)
