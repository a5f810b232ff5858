"""The verdict in Markdown, JSON, pictures and one self-contained page."""

from __future__ import annotations

import base64
import json
import shlex
from pathlib import Path
from typing import Any

from hf_transfer.arms import FROZEN, RANDOM, SOURCE_ONLY, TARGET_ONLY
from hf_transfer.budget import duration
from hf_transfer.choose import aligned, cell, number
from hf_transfer.results import write_atomically
from hf_transfer.verdict import GAP

TEMPLATE = Path(__file__).with_name("verdict.html.jinja")
PICTURES = {"pareto.png": "Accuracy against the seconds that training took",
            "differences.png": "Each arm against its controls"}  # fmt: skip
WORST = 8  # slices shown
TRAINED = (FROZEN, SOURCE_ONLY)


def write_pages(facts: dict[str, Any], folder: Path) -> None:
    """Write verdict.json, verdict.md, verdict.html and the pictures into `folder`."""
    plot_pareto(facts, folder / "pareto.png")
    plot_differences(facts, folder / "differences.png")
    write_atomically(folder / "verdict.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    write_atomically(folder / "verdict.md", markdown(facts))
    write_atomically(folder / "verdict.html", html(facts, folder))


def said(facts: dict[str, Any], folder: Path) -> str:
    """Return what the terminal shows at the end."""
    lines = ["", *aligned(_candidates(facts)), "", *sentences(facts), "", f"written: {folder}/verdict.md, verdict.html"]
    run = shlex.quote(facts["verdict"]["best_run"])
    if facts["verdict"]["folder"] is None:
        lines.append(f"the best of the runs, which is not recommended: {run}")
    lines += [f"next: hf-transfer predict {run} new.csv --output scored.csv", f"      hf-transfer demo {run}"]
    return "\n".join(lines)


def sentences(facts: dict[str, Any]) -> list[str]:
    """Return the verdict in words, the most important first; each word has one meaning, see `verdict`."""
    verdict, n = facts["verdict"], facts["test_rows"]
    where = facts["target"] if facts["target_labels"] else "the source's own test rows"
    chosen = verdict["recommended"]
    out = []
    mine = {one["control"]: one["accuracy"] for one in facts["comparisons"] if one["arm"] == chosen}
    if verdict["adapt"]:
        plain = [name for name in mine if name not in TRAINED]
        nearest = min(plain, key=lambda name: mine[name]["value"])
        others = [name for name in verdict["helping"] if name != chosen]
        out.append(
            f"{chosen} helps: on {n:,} rows of {where} it beats every control without transfer, the nearest "
            f"({nearest}) by {_points(mine[nearest])}."
            + (f" So {'do' if len(others) > 1 else 'does'} {', '.join(others)}; {chosen} is the cheapest that is not "
               "shown worse than the best." if others else "")
        )  # fmt: skip
        for name in TRAINED:
            if name in mine and mine[name]["word"] != "hurts":
                out.append(f"Against {name}, which learns from labelled rows alone: {mine[name]['word']}, "
                           f"{_points(mine[name])}.")  # fmt: skip
    else:
        out.append(f"Do nothing: on {n:,} rows of {where} nothing that transfers is shown to beat every control. Take "
                   f"{chosen}, the cheapest control that is not shown worse than the best.")  # fmt: skip
    trained = {one["name"]: one["seeds"] for one in facts["candidates"] if one["folders"]}
    if missing := [name for name in (SOURCE_ONLY, RANDOM, TARGET_ONLY) if name not in trained and any(
            run.startswith(f"{name}-seed") for run in facts["left_out"])]:  # fmt: skip
        out.append(f"Nothing was compared with {', '.join(missing)}, which could not be trained (see Left out).")
    hurting = [one for one in facts["comparisons"] if one["accuracy"]["word"] == "hurts"]
    begin = "Negative transfer: " if facts["target_labels"] else ""
    out += [f"{begin if one['control'] not in TRAINED else ''}{one['arm']} is worse than {one['control']} by "
            f"{_points(one['accuracy'], turned=True)}." for one in hurting]  # fmt: skip
    for one in facts["comparisons"]:
        if (one["arm"], one["control"]) == (SOURCE_ONLY, RANDOM):
            out.append(f"What pretraining gave: {one['accuracy']['word']}, {_points(one['accuracy'])} between full and "
                       "the same from random weights.")  # fmt: skip
    detectable = [min(100.0, 100 * one["accuracy"]["detectable"]) for one in facts["comparisons"]]
    out.append(f"A true difference of less than {min(detectable):.1f} to {max(detectable):.1f} points, by comparison, "
               "would be missed more than one time in five.")  # fmt: skip
    if few := [name for name, seeds in trained.items() if seeds < facts["seeds"]]:
        out.append(f"Fewer seeds than the others: {', '.join(few)}; another seed may move them as far as it moves the "
                   "others.")  # fmt: skip
    out += [f"{one['name']} was stopped {why}." for one in facts["candidates"] for why in one["stopped"]]
    if (share := facts["time"]["share"]) < 1:
        out.append(f"The budget left room for {share:.0%} of the epochs that a method has by itself: what learns "
                   "by epochs may be better than it looks here; a larger --budget tells.")  # fmt: skip
    if facts["seeds"] == 1:
        out.append("Every arm was trained once: this is about these models, another seed may give others.")
    if not facts["target_labels"]:
        found = facts["estimates"]
        choice = found and found["recommended"]
        out.insert(0, "There are no target labels to test on: scores and words are about the source's own test rows"
                   + (f"; by estimates from the target's texts alone, which may err, {choice} fits it best." if choice
                      else "."))  # fmt: skip
    return out


def _named(facts: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((one for one in facts["candidates"] if one["name"] == name), None)


def _points(effect: dict[str, Any], *, turned: bool = False) -> str:
    """Return a difference in points with its corrected interval."""
    value, low, high = (100 * effect[key] for key in ("value", "corrected_low", "corrected_high"))
    if turned:
        value, low, high = -value, -high, -low
    return f"{value:.1f} points [{low:.1f}, {high:.1f}]"


def _candidates(facts: dict[str, Any]) -> list[list[str]]:
    """Return the table of arms and controls, the most accurate first."""
    gain = _named(facts, "full") or _named(facts, "tfidf")
    assert gain is not None
    cells = [["", "accuracy %", "seeds", "macro-F1", f"against {gain['name']}", "source %", "seconds", "trainable",
              "MB", "peak MB", "ms a text"]]  # fmt: skip
    for one in sorted(facts["candidates"], key=lambda one: -one["accuracy"]):
        low, high = (100 * bound for bound in one["interval"])
        mark = " *" if one["name"] == facts["verdict"]["recommended"] else ""
        shared = f" + {one['shared_seconds']:.0f}" if one["shared_seconds"] else ""
        cells.append([
            one["name"] + mark + (" (control)" if one["control"] and not one["arm"] else ""),
            f"{100 * one['accuracy']:.1f} [{low:.1f}, {high:.1f}]",
            f"{one['seeds']}" if one["folders"] else "",
            f"{100 * one['macro_f1']:.1f}",
            "" if one is gain else f"{100 * (one['accuracy'] - gain['accuracy']):+.1f}",
            "" if one["source_accuracy"] is None else f"{100 * one['source_accuracy']:.1f}",
            f"{one['seconds']:.1f}{shared}",
            f"{one['trainable_parameters']:,}",
            f"{one['megabytes']:.1f}",
            f"{one['peak_memory_mb']:,}",
            "" if one["milliseconds_a_text"] is None else f"{one['milliseconds_a_text']:.1f}",
        ])  # fmt: skip
    return cells


def _comparisons(facts: dict[str, Any]) -> list[list[str]]:
    cells = [["arm", "control", "difference, points", "corrected p", "verdict", "could have shown"]]
    for one in facts["comparisons"]:
        effect = one["accuracy"]
        low, high = 100 * effect["corrected_low"], 100 * effect["corrected_high"]
        shown = min(100.0, 100 * effect["detectable"])
        cells.append([one["arm"], one["control"], f"{100 * effect['value']:+.1f} [{low:+.1f}, {high:+.1f}]",
                      f"{effect['corrected_p']:.2g}", effect["word"], f"{shown:.1f}"])  # fmt: skip
    return cells


def _forgetting(facts: dict[str, Any]) -> list[list[str]]:
    cells = [["arm", "on", "rows", "before", "after", "change, points", "verdict"]]
    for arm, found in facts["forgetting"].items():
        for part in found["parts"]:
            effect = part["difference"]
            low, high = 100 * effect["corrected_low"], 100 * effect["corrected_high"]
            cells.append([arm, part["name"] or "all", f"{part['rows']:,}",
                          f"{100 * part['other']:.1f} ({found['before']})", f"{100 * part['accuracy']:.1f}",
                          f"{100 * effect['value']:+.1f} [{low:+.1f}, {high:+.1f}]", effect["word"]])  # fmt: skip
    return cells


def _slices(facts: dict[str, Any]) -> list[list[str]]:
    cells = [["slice", "rows", "accuracy %", "all other rows %", "gap, points", "verdict"]]
    for part in facts["slices"]["parts"][:WORST]:
        effect = part["difference"]
        low, high = 100 * effect["corrected_low"], 100 * effect["corrected_high"]
        cells.append([part["name"], f"{part['rows']:,}", f"{100 * part['accuracy']:.1f}", f"{100 * part['other']:.1f}",
                      f"{100 * effect['value']:+.1f} [{low:+.1f}, {high:+.1f}]", effect["word"]])  # fmt: skip
    return cells


def _calibration(facts: dict[str, Any]) -> list[list[str]]:
    cells = [["", "temperature", "calibration error %, before", "after", "log loss, before", "after"]]
    for one in facts["candidates"]:
        if found := one["calibration"]:
            before, after = found["before"], found["after"]
            errors = [f"{100 * scores['calibration_error']:.1f}" for scores in (before, after)]
            losses = [f"{scores['loss']:.3f}" for scores in (before, after)]
            cells.append([one["name"], f"{found['temperature']:.2f}", *errors, *losses])
    return cells


def _expected(found: list[dict[str, Any]]) -> list[list[str]]:
    cells = [["further labels", "gain, points", "95 % interval"]]
    for one in found:
        if one["gain"] is None:
            cells.append([f"{one['further']}", "not known", one["reason"]])
        else:
            low, high = 100 * one["low"], 100 * one["high"]
            cells.append([f"{one['further']}", f"{100 * one['gain']:+.1f}", f"[{low:+.1f}, {high:+.1f}]"])
    return cells


def _plan(facts: dict[str, Any]) -> list[list[str]]:
    cells = [["run", "expected s", "took s"]]
    cells += [[name, f"{one['expected']:.0f}", f"{one['seconds']:.0f}"] for name, one in facts["time"]["runs"].items()]
    return cells


def _again(found: list[dict[str, Any]]) -> list[str]:
    """Return what the time left over was planned for, a line for each kind of it."""
    out = []
    for why in dict.fromkeys(one["why"] for one in found):
        runs = [one["run"] + (f" ({one['share']:.0%} of the epochs)" if one["share"] < 1 else "")
                for one in found if one["why"] == why]  # fmt: skip
        out.append(f"Planned with the time left over, {why}: {', '.join(runs)}.")
    return out


def sections(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the parts of the page: title, table, and lines below it."""
    slices, time = facts["slices"], facts["time"]
    worst = slices["parts"][0] if slices["parts"] else None
    out = [
        {"title": "Arms and controls", "table": _candidates(facts),
         "lines": ["* is recommended. 95 % intervals. Seconds are those of one training, + what it shares with others "
                   "(teachers, continued pretraining).",
                   *(f"{one['name']}: {one['words']}" for one in facts["candidates"] if one["words"]),
                   *(f"{one['name']}: {'; '.join(one['happened'])}." for one in facts["candidates"]
                     if one["happened"])]},
        {"title": "Does it help?", "table": _comparisons(facts),
         "lines": ["Paired on the same rows; intervals and p are Holm-corrected over all these comparisons. helps: the "
                   "interval is above 0; hurts: below 0; no difference shown: it contains 0. The last column is the "
                   "least true difference that such a test would have shown four times in five."]},
    ]  # fmt: skip
    if facts["forgetting"]:
        out.append({"title": "What did it forget?", "table": _forgetting(facts),
                    "lines": ["Accuracy on the source's test rows, before and after adapting; before: the method, "
                              "named in brackets, trained on the labelled rows alone."]})  # fmt: skip
    if facts["estimates"]:
        out.append(_estimates(facts["estimates"]))
    out.append({"title": f"Where {slices['of']} fails", "table": _slices(facts),
                "lines": [f"Worst: {worst['name']}." if worst and worst["difference"]["word"] == GAP[0] else
                          "No slice is shown to be worse than the rest."]})  # fmt: skip
    if found := facts["next"]["texts"]:
        out.append({"title": "What to label next", "table": [["row of the unlabelled table", "guess", "confidence %"],
                    *([f"{one['row']}", one["guess"], f"{100 * one['confidence']:.0f}"] for one in found[:WORST])],
                    "lines": [f"The first {min(WORST, len(found))} of {len(found)} in label_next.csv, with their "
                              "texts: unsure ones, no two alike. Any beginning of the list will do."]})  # fmt: skip
    if found := facts["next"]["expected"]:
        out.append({"title": "What further labels would likely buy", "table": _expected(found), "lines": [
            "Extrapolated from how a linear probe gains from the labelled target rows that training saw; a fine-tuned "
            "model may gain more or less."]})  # fmt: skip
    if len(table := _calibration(facts)) > 1:
        out.append({"title": "Is its confidence right?", "table": table,
                    "lines": ["The temperature is fitted on held-out source rows."]})  # fmt: skip
    ratio = time["median_ratio"]
    out.append({"title": "Time", "table": _plan(facts), "lines": [
        f"{duration(time['spent'])} of {duration(time['budget'])}, with what reading and the verdict took."
        + (f" A run took {ratio:.2f} times the expected seconds (median)." if ratio else ""),
        *_again(time["again"])]})  # fmt: skip
    if facts["left_out"]:
        out.append({"title": "Left out", "table": [["run", "why"], *map(list, facts["left_out"].items())], "lines": []})
    return out


def _estimates(found: dict[str, Any]) -> dict[str, Any]:
    """Return the section of what is estimated without labels, and how well that went elsewhere."""
    cells = [["arm", *(name.replace("_", " ") for name in found["scores"]), "mean rank"]]
    for run in found["runs"]:
        rank = run["out"] or number(run["mean_rank"], ".1f")
        cells.append([run["name"], *(cell(name, value) for name, value in run["scores"].items()), rank])
    lines = [f"Estimates from {found['target']['texts']:,} unlabelled texts of the target; no label was read. "
             "hf-transfer choose does the same for any runs."]  # fmt: skip
    for test in found["backtests"]:
        regret = test["scores"]["recommendation"]["regret"]
        off = ", ".join(f"{name.replace('_', ' ')} {100 * one['off']:.1f}"
                        for name, one in test["scores"].items() if one["off"] is not None)  # fmt: skip
        lines.append(
            f"Back-test on {test['domain']}: the recommended arm was {number(regret and 100 * regret, '.1f')} "
            "points under the best one there."
            + (f" Estimates were off by (points, mean over the arms): {off}." if off else "")
        )
    if not found["backtests"]:
        lines.append("How far to trust them is not known: --backtest with a labelled table of another domain tells.")
    return {"title": "Estimates without target labels", "table": cells, "lines": lines}


def markdown(facts: dict[str, Any]) -> str:
    """Return the whole report."""
    lines = [f"# {_title(facts)}", "", *(f"- {sentence}" for sentence in sentences(facts)), ""]
    lines += [f"![{words}]({name})" for name, words in PICTURES.items()]
    for section in sections(facts):
        lines += ["", f"## {section['title']}", "", *aligned(section["table"]), "", *filter(None, section["lines"])]
    lines += ["", *(f"note: {note}" for note in facts["notes"]), ""]
    return "\n".join(lines)


def html(facts: dict[str, Any], folder: Path) -> str:
    """Return the same as a page that asks for nothing outside itself."""
    import jinja2

    pictures = [{"words": words, "data": base64.b64encode((folder / name).read_bytes()).decode()}
                for name, words in PICTURES.items()]  # fmt: skip
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=_title(facts), sentences=sentences(facts), pictures=pictures,
                           sections=sections(facts), notes=facts["notes"]) + "\n"  # fmt: skip


def _title(facts: dict[str, Any]) -> str:
    return f"Verdict: {', '.join(facts['source'])} to {facts['target'] or 'itself'}"


def plot_pareto(facts: dict[str, Any], file: Path) -> None:
    """Draw accuracy against seconds, and the line of those that nothing cheaper beats."""
    import matplotlib.ticker
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    cost = {one["name"]: max(one["seconds"] + one["shared_seconds"], 0.1) for one in facts["candidates"]}
    front, best = [], -1.0
    for one in sorted(facts["candidates"], key=lambda one: (cost[one["name"]], -one["accuracy"])):
        value, (low, high) = 100 * one["accuracy"], (100 * bound for bound in one["interval"])
        if value > best:
            front.append((cost[one["name"]], value))
            best = value
        marker, colour = ("s", "0.5") if one["control"] and not one["arm"] else ("o", "tab:blue")
        if one["name"] == facts["verdict"]["recommended"]:
            colour = "tab:green"
        axes.errorbar(cost[one["name"]], value, yerr=[[max(0, value - low)], [max(0, high - value)]], fmt=marker,
                      capsize=3, color=colour)  # fmt: skip
    axes.plot(*zip(*front, strict=True), color="0.7", linewidth=1, zorder=0, drawstyle="steps-post")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5), numticks=20))
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set(xlabel="seconds (log scale)", ylabel=f"accuracy on {facts['test_rows']:,} test rows, %")
    axes.grid(visible=True, alpha=0.25)
    bottom, top = axes.set_ylim(axes.get_ylim())
    points = sorted((100 * one["accuracy"], cost[one["name"]], one["name"]) for one in facts["candidates"])
    heights = _apart([value for value, _, _ in points], 0.055 * (top - bottom), top)
    for (value, seconds, name), height in zip(points, heights, strict=True):
        axes.annotate(name, (seconds, value), xytext=(1.02, height), textcoords=axes.get_yaxis_transform(),
                      va="center", fontsize=8, annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": "0.8", "linewidth": 0.6, "shrinkA": 0})  # fmt: skip
    _save(figure, file)


def _apart(values: list[float], gap: float, top: float) -> list[float]:
    """Return heights near ascending `values`, `gap` apart, none above `top`: names beside points must not overlap."""
    out: list[float] = []
    for value in values:
        out.append(max(value, out[-1] + gap) if out else value)
    for i in reversed(range(len(out))):
        out[i] = min(out[i], out[i + 1] - gap if i + 1 < len(out) else top)
    return out


def plot_differences(facts: dict[str, Any], file: Path) -> None:
    """Draw every comparison with its corrected interval, coloured by its word."""
    from matplotlib.figure import Figure

    rows = facts["comparisons"][::-1]
    figure = Figure(figsize=(8, 1.2 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    colours = {"helps": "tab:green", "hurts": "tab:red", "no difference shown": "0.5"}
    for height, one in enumerate(rows):
        effect = one["accuracy"]
        low, high = 100 * effect["corrected_low"], 100 * effect["corrected_high"]
        value = min(max(100 * effect["value"], low), high)
        axes.errorbar(value, height, xerr=[[value - low], [high - value]], fmt="o", capsize=3,
                      color=colours[effect["word"]])  # fmt: skip
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_yticks(range(len(rows)), [f"{one['arm']} against {one['control']}" for one in rows], fontsize=8)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("difference in accuracy, points, with Holm-corrected intervals")
    axes.grid(visible=True, axis="x", alpha=0.25)
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    part = file.with_name(f".{file.name}")
    figure.savefig(part, dpi=150, format="png", metadata={"Software": None})
    part.replace(file)
