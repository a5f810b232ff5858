"""The verdict in Markdown, JSON, pictures and one self-contained page."""

from __future__ import annotations

import base64
import json
import shlex
from pathlib import Path
from typing import Any

from hf_transfer.budget import duration
from hf_transfer.choose import aligned, cell, disagreements, number, recommendation
from hf_transfer.controls import CONSTANT
from hf_transfer.learning_curve import REPEATED
from hf_transfer.report import LOW, recalls, with_interval
from hf_transfer.results import write_atomically
from hf_transfer.verdict import GAP
from hf_transfer.verdict_plots import plot_differences, plot_pareto
from hf_transfer.verdict_words import (
    candidate,
    flagged,
    in_words,
    interval_of,
    is_evidence,
    outcome,
    sentences,
)

TEMPLATE = Path(__file__).with_name("verdict.html.jinja")
PICTURES = {"pareto.png": "Score against the seconds that training took",
            "differences.png": "Each arm against its controls"}  # fmt: skip
WORST = 8  # slices shown


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


def _chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _candidates(facts: dict[str, Any]) -> list[list[str]]:
    """Return the table of arms, controls and references, the best first."""
    title, name = facts["metric"]["title"], facts["metric"]["name"]
    beside = {"accuracy": "accuracy %", "macro_f1": "macro-F1 %"}
    beside.pop(name, None)
    missed = bool(facts["verdict"]["conflicts"]) or any(
        min(one["recall"].values()) < LOW for one in facts["candidates"] if one["name"] != CONSTANT
    )
    source = any(one["source_accuracy"] is not None for one in facts["candidates"])
    cells = [["arm or control", f"{title} %", *beside.values(), *["recall % by label"] * missed,
              f"minus {facts['beside']}, points", *["source accuracy %"] * source, "seconds"]]  # fmt: skip
    for one in sorted([*facts["candidates"], *facts["references"]], key=lambda one: -one["score"]):
        others = [f"{100 * one[key]:.1f}" for key in beside]
        if "key" in one:
            cells.append([f"{one['name']}: knows the test labels", f"{100 * one['score']:.1f}", *others,
                          *[""] * (missed + source), "", ""])  # fmt: skip
            continue
        mark = " *" if one["name"] == facts["verdict"]["recommended"] else ""
        shared = f" + {one['shared_seconds']:.0f}" if one["shared_seconds"] else ""
        own = "" if one["source_accuracy"] is None else f"{100 * one['source_accuracy']:.1f}"
        cells.append([
            flagged(one) + mark + (" (control)" if one["control"] and not one["arm"] else ""),
            with_interval(one["score"], one["interval"]),
            *others,
            *[recalls(one["recall"])] * missed,
            with_interval(one["minus"][0], one["minus"][1:], "+") if one["minus"] else "",
            *[own] * source,
            f"{one['seconds']:.1f}{shared}",
        ])  # fmt: skip
    return cells


def _costs(facts: dict[str, Any]) -> list[list[str]]:
    cells = [["arm or control", "seeds", "trainable parameters", "MB", "peak MB", "ms a text"]]
    for one in sorted(facts["candidates"], key=lambda one: one["seconds"]):
        cells.append([
            flagged(one),
            f"{one['seeds']}" if one["folders"] else "",
            f"{one['trainable_parameters']:,}",
            f"{one['megabytes']:.1f}",
            f"{one['peak_memory_mb']:,}",
            "" if one["milliseconds_a_text"] is None else f"{one['milliseconds_a_text']:.1f}",
        ])  # fmt: skip
    return cells


def _comparisons(facts: dict[str, Any]) -> list[list[str]]:
    title = facts["metric"]["title"]
    cells = [["arm", "control", f"difference, points of {title}", "corrected p", "verdict", "detectable (80 % power)"]]
    for one in facts["comparisons"]:
        effect = one["effect"]
        low, high = 100 * effect["corrected_low"], 100 * effect["corrected_high"]
        shown = min(100.0, 100 * effect["detectable"])
        word = effect["word"] if is_evidence(facts, one) else "can't be told: collapsed"
        if facts["verdict"]["conflicts"]:
            word += f" (by {title})"
        cells.append([flagged(candidate(facts, one["arm"])), flagged(candidate(facts, one["control"])),
                      f"{100 * effect['value']:+.1f} [{low:+.1f}, {high:+.1f}]", _chance(effect["corrected_p"]),
                      word, f"{shown:.1f}"])  # fmt: skip
    return cells


def _constants(facts: dict[str, Any]) -> list[list[str]]:
    """Return the table of arms and controls against what knows the test labels and reads no text."""
    title = facts["metric"]["title"]
    others = {"accuracy": "accuracy", "macro_f1": "macro-F1"} if facts["verdict"]["conflicts"] else {}
    others.pop(facts["metric"]["name"], None)
    cells = [["arm or control", "against", f"difference, points of {title}", "p", f"by {title}",
              *(f"points of {other}" for other in others.values())]]  # fmt: skip
    for one in facts["against_references"]:
        effect = one["effect"]
        word = "above" if effect["low"] > 0 else "below" if effect["high"] < 0 else "not shown above"
        cells.append([flagged(candidate(facts, one["arm"])), in_words(facts, one["control"]), interval_of(effect, "+"),
                      _chance(effect["p"]), word, *(interval_of(one[key], "+") for key in others)])  # fmt: skip
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


def _expected(facts: dict[str, Any]) -> list[list[str]]:
    cells = [["further labels", f"gain, points of {facts['metric']['title']}", "95 % interval"]]
    bound = facts["next"]["bound"]
    for one in facts["next"]["expected"]:
        if one["gain"] is None:
            cells.append([f"{one['further']}", "not known", one["reason"]])
            continue
        gain, low, high = (100 * one[key] for key in ("gain", "low", "high"))
        span = f"[{low:+.1f}, {high:+.1f}]"
        if one["high"] < bound["room"]:
            cells.append([f"{one['further']}", f"{gain:+.1f}", span])
        elif one["low"] < bound["room"]:
            cells.append([f"{one['further']}", f"{gain:+.1f}, {_at_most(bound)}", span])
        else:
            cells.append([f"{one['further']}", _at_most(bound), "the probe gains more than there is room for"])
    return cells


def _at_most(bound: dict[str, Any]) -> str:
    """Return what a gain is bounded by."""
    return f"at most {100 * bound['room']:+.1f}: {100 * bound['now']:.1f} % now"


def _bound(facts: dict[str, Any]) -> str:
    """Return the line below the gains of further labels: what bounds them and how that is known."""
    bound, title = facts["next"]["bound"], facts["metric"]["title"]
    if bound["best"] < 1:
        why = (f"labels of equal texts differ so often ({bound['repeated']:,} labelled rows of the target) that no "
               f"rule can be above {100 * bound['best']:.1f} %")  # fmt: skip
    elif bound["repeated"] >= REPEATED:
        why = "100 % is the most there is"
    else:
        why = ("100 % is the most there is. How often labels are noise is not measured: fewer than "
               f"{REPEATED} labelled rows of the target have a text that others have too")  # fmt: skip
    return f"{_at_most(bound).capitalize()} ({facts['verdict']['recommended']}, {title}), and {why}."


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
    weak = "No slice is shown to be worse than the rest."
    if worst and worst["difference"]["word"] == GAP[0]:
        weak = f"Worst: {worst['name']}, {100 * worst['accuracy']:.1f} % of {worst['rows']} rows right."
    mark = "* is recommended. " if facts["verdict"]["recommended"] else ""
    out = [
        {"title": "Arms and controls", "table": _candidates(facts),
         "lines": [f"{mark}95 % intervals; differences are paired, each by itself. Seconds are those of one "
                   "training, + what it shares with others (teachers, continued pretraining).",
                   f"{facts['model']}, trained on {facts['rows']['train']:,} labelled rows "
                   f"({facts['rows']['shots']} of the target); tested on {facts['test_rows']:,} rows. "
                   f"{facts['metric']['why'][0].upper()}{facts['metric']['why'][1:]}.",
                   *(f"{one['name']}: {one['words']}" for one in facts["candidates"] if one["words"]),
                   *(f"{one['name']}: {'; '.join(one['happened'])}." for one in facts["candidates"]
                     if one["happened"])]},
        {"title": "Does it help?", "table": _comparisons(facts),
         "lines": ["Paired on the same rows; intervals and p are Holm-corrected over all these comparisons. helps: the "
                   "interval is above 0; hurts: below 0; no difference shown: it contains 0. The last column is the "
                   "least true difference that such a test would have shown four times in five."]},
        {"title": "Is it above what reads no text?", "table": _constants(facts),
         "lines": ["These know the labels of the test rows, which no training could see: yardsticks, no models. 95 % "
                   "intervals, each comparison by itself; what is not above both is not recommended."]},
        {"title": "What it costs", "table": _costs(facts), "lines": []},
    ]  # fmt: skip
    if facts["forgetting"]:
        out.append({"title": "What did it forget?", "table": _forgetting(facts),
                    "lines": ["Accuracy on the source's test rows, before and after adapting; before: the method, "
                              "named in brackets, trained on the labelled rows alone."]})  # fmt: skip
    if facts["estimates"]:
        out.append(_estimates(facts["estimates"]))
    out.append({"title": f"Where {slices['of']} fails", "table": _slices(facts),
                "lines": [weak]})  # fmt: skip
    if found := facts["next"]["texts"]:
        out.append({"title": "What to label next", "table": [["row of the unlabelled table", "guess", "confidence %"],
                    *([f"{one['row']}", one["guess"], f"{100 * one['confidence']:.0f}"] for one in found[:WORST])],
                    "lines": [f"The first {min(WORST, len(found))} of {len(found)} in label_next.csv, with their "
                              "texts: unsure ones, no two alike. Any beginning of the list will do."]})  # fmt: skip
    if facts["next"]["expected"]:
        out.append({"title": "What further labels would likely buy", "table": _expected(facts), "lines": [
            "Extrapolated from how a linear probe gains from the labelled target rows that training saw; a fine-tuned "
            "model may gain more or less.", _bound(facts)]})  # fmt: skip
    if len(table := _calibration(facts)) > 1:
        out.append({"title": "Is its confidence right?", "table": table,
                    "lines": ["The temperature is fitted on held-out source rows."]})  # fmt: skip
    if facts["screening"]:
        out.append({"title": "Screening", "table": [["arm", f"held-out {facts['metric']['chosen_by']} %", "went on"],
                    *([name, f"{100 * one['score']:.1f}", "yes" if one["kept"] else "no"]
                      for name, one in facts["screening"].items())], "lines": [
                        "After a quarter of their epochs; who did not go on is in no comparison."]})  # fmt: skip
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
             "hf-transfer choose does the same for any runs.",
             recommendation(found), *disagreements(found)]  # fmt: skip
    for test in found["backtests"]:
        regret = test["scores"]["recommendation"]["regret"]
        off = ", ".join(f"{name.replace('_', ' ')} {100 * one['off']:.1f}"
                        for name, one in test["scores"].items() if one["off"] is not None)  # fmt: skip
        lines.append(
            f"Back-test on {test['domain']}: "
            + ("no arm was recommended there." if regret is None else
               f"the recommended arm was {100 * regret:.1f} points of {found['metric']['title']} under the best one "
               "there.")
            + (f" Estimates were off by (points of accuracy, mean over the arms): {off}." if off else "")
        )  # fmt: skip
    if not found["backtests"] and not found["recommended"]:  # else the recommendation says so
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
    return template.render(title=_title(facts), outcome=outcome(facts), sentences=sentences(facts), pictures=pictures,
                           sections=sections(facts), notes=facts["notes"]) + "\n"  # fmt: skip


def _title(facts: dict[str, Any]) -> str:
    return f"Verdict: {', '.join(facts['source'])} to {facts['target'] or 'itself'}"
