"""The two pictures of a verdict: scores against seconds, and every comparison with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_transfer.verdict_words import candidate, flagged, is_evidence


def plot_pareto(facts: dict[str, Any], file: Path) -> None:
    """Draw scores against seconds, the line of those that nothing cheaper beats, and what reads no text."""
    import matplotlib
    import matplotlib.ticker
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    colours, shapes = [f"C{i}" for i in range(10)], "osD^vP"
    cost = {one["name"]: max(one["seconds"] + one["shared_seconds"], 0.1) for one in facts["candidates"]}
    front, best = [], -1.0
    for one in sorted(facts["candidates"], key=lambda one: (cost[one["name"]], -one["score"])):
        if (value := 100 * one["score"]) > best:
            front.append((cost[one["name"]], value))
            best = value
    for i, one in enumerate(sorted(facts["candidates"], key=lambda one: -one["score"])):
        value, (low, high) = 100 * one["score"], (100 * bound for bound in one["interval"])
        mark = " *" if one["name"] == facts["verdict"]["recommended"] else ""
        control = one["control"] and not one["arm"]
        axes.errorbar(cost[one["name"]], value, yerr=[[max(0, value - low)], [max(0, high - value)]],
                      fmt=shapes[i // len(colours) % len(shapes)], capsize=3, color=colours[i % len(colours)],
                      markerfacecolor="white" if control else None,
                      label=f"{flagged(one)}{mark} {value:.1f}")  # fmt: skip
    for known, style in zip(facts["references"], ("--", ":", "-."), strict=False):
        axes.axhline(100 * known["score"], color="0.4", linestyle=style, linewidth=1.2,
                     label=f"{known['name']} {100 * known['score']:.1f}")  # fmt: skip
    axes.plot(*zip(*front, strict=True), color="0.7", linewidth=1, zorder=0, drawstyle="steps-post")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5), numticks=20))
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set(xlabel="seconds (log scale)",
             ylabel=f"{facts['metric']['title']} on {facts['test_rows']:,} test rows, %")  # fmt: skip
    axes.grid(visible=True, alpha=0.25)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False,
                title="hollow: control; *: recommended;\nsteps: best for the time", title_fontsize=8)  # fmt: skip
    _save(figure, file)


def plot_differences(facts: dict[str, Any], file: Path) -> None:
    """Draw every comparison with its corrected interval, coloured by its word; pale where a side has collapsed."""
    from matplotlib.figure import Figure

    rows = facts["comparisons"][::-1]
    figure = Figure(figsize=(9, 1.2 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    colours = {"helps": "tab:green", "hurts": "tab:red", "no difference shown": "0.5"}
    names = []
    for height, one in enumerate(rows):
        effect, sides = one["effect"], [candidate(facts, one[side]) for side in ("arm", "control")]
        low, high = 100 * effect["corrected_low"], 100 * effect["corrected_high"]
        value = min(max(100 * effect["value"], low), high)
        counts = is_evidence(facts, one)
        axes.errorbar(value, height, xerr=[[value - low], [high - value]], fmt="o", capsize=3,
                      color=colours[effect["word"]] if counts else "0.8")  # fmt: skip
        names.append(" against ".join(map(flagged, sides)))
    axes.axvline(0, color="0.3", linewidth=1)
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(f"difference in {facts['metric']['title']}, points, with Holm-corrected intervals\n"
                    "green: helps, red: hurts, grey: no difference shown, pale: a side has collapsed")  # fmt: skip
    axes.grid(visible=True, axis="x", alpha=0.25)
    _save(figure, file)


def _save(figure: Any, file: Path) -> None:
    part = file.with_name(f".{file.name}")
    figure.savefig(part, dpi=150, format="png", metadata={"Software": None})
    part.replace(file)
