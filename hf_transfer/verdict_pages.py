"""The verdict in Markdown, JSON, pictures and one self-contained page."""

from __future__ import annotations

import base64
import json
import shlex
from pathlib import Path
from typing import Any

from hf_transfer.arms import FROZEN, RANDOM, SOURCE_ONLY, TARGET_ONLY
from hf_transfer.budget import duration
from hf_transfer.choose import aligned, cell, disagreements, number, recommendation
from hf_transfer.controls import CONSTANT
from hf_transfer.errors import listed
from hf_transfer.evaluation import small_test
from hf_transfer.learning_curve import REPEATED
from hf_transfer.report import LOW, recalls, with_interval
from hf_transfer.results import write_atomically
from hf_transfer.verdict import GAP

TEMPLATE = Path(__file__).with_name("verdict.html.jinja")
PICTURES = {"pareto.png": "Score against the seconds that training took",
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
    out = []
    if not facts["target_labels"]:
        choice = facts["estimates"] and facts["estimates"]["recommended"]
        out.append("There are no target labels to test on: scores and words are about the source's own test rows"
                   + (f"; by estimates from the target's texts alone, which may err, {choice} fits it best." if choice
                      else "."))  # fmt: skip
    out += [*_conflicts(facts), *_recommended(facts)]
    chosen = facts["verdict"]["recommended"]
    out += [_arm(facts, name) for name in dict.fromkeys(one["arm"] for one in facts["comparisons"]) if name != chosen]
    out += _pretraining(facts)
    for one in facts["candidates"]:
        if one["collapsed"]:
            share = f" (in {one['seeds_collapsed']} of {one['seeds']} seeds)" if one["seeds"] > 1 else ""
            out.append(
                f"Collapsed: {one['name']} {one['collapsed']}{share}; more epochs or another seed may mend that."
            )
    detectable = [min(1.0, one["effect"]["detectable"]) for one in facts["comparisons"]]
    out += filter(None, [small_test(facts["test_labels"], min(detectable))])
    out.append(f"True differences of less than {100 * min(detectable):.1f} to {100 * max(detectable):.1f} points of "
               f"{facts['metric']['title']}, by comparison, would often be missed (80 % power).")  # fmt: skip
    return out + _not_verified(facts)


def outcome(facts: dict[str, Any]) -> str:
    """Return the verdict in one word: helps, hurts (where every arm is worse than what is recommended) or open."""
    chosen = facts["verdict"]["recommended"]
    if chosen is None:
        return "open"
    return "helps" if facts["verdict"]["adapt"] else "hurts" if _worse_than(facts, chosen) else "open"


def _worse_than(facts: dict[str, Any], control: str) -> bool:
    """Whether every arm that has not collapsed is shown worse than a control."""
    words = [one["effect"]["word"] for one in facts["comparisons"] if one["control"] == control
             and not _named(facts, one["arm"])["collapsed"]]  # fmt: skip
    return bool(words) and set(words) == {"hurts"}


def _conflicts(facts: dict[str, Any]) -> list[str]:
    if not (found := facts["verdict"]["conflicts"]):
        return []
    known = {one["key"]: one | {"name": f"the {one['name']}"} for one in facts["references"]}
    first = min(found, key=lambda one: one["control"] not in known)  # a control may have collapsed
    arm, other = _named(facts, first["arm"]), known.get(first["control"]) or _named(facts, first["control"])
    said = []
    for key, title in (("accuracy", "accuracy"), ("macro_f1", "macro-F1")):
        how = "below" if first[key]["high"] < 0 else "above"
        said.append(f"by {title} {arm['name']} ({100 * arm[key]:.1f} %) is {how} {other['name']}, "
                    f"{100 * other[key]:.1f} %: {_span(first[key], '+')} points")  # fmt: skip
    others = [name for name in dict.fromkeys(one["arm"] for one in found) if name != first["arm"]]
    more = f"; so {'is' if len(others) == 1 else 'are'} {', '.join(others)}" if others else ""
    end = ". Nothing is recommended: run again with --metric accuracy or --metric macro_f1, whichever counts."
    if facts["metric"]["settled"]:
        end = f". --metric {facts['metric']['name']} decides here."
    out = [f"Accuracy and macro-F1 disagree: {'; '.join(said)}{more}{end}"]
    above = [one for one in facts["candidates"] if (sides := _beside(facts, one["name"])) and all(
        side[key]["low"] > 0 for side in sides for key in ("accuracy", "macro_f1"))]  # fmt: skip
    if above:
        shown = [f"{one['name']} ({100 * one['accuracy']:.1f} % accuracy, {100 * one['macro_f1']:.1f} % macro-F1)"
                 for one in sorted(above, key=lambda one: -one["score"])]  # fmt: skip
        out.append(f"Above what reads no text by both: {', '.join(shown)}.")
    return out


def _recommended(facts: dict[str, Any]) -> list[str]:
    verdict, title = facts["verdict"], facts["metric"]["title"]
    where = facts["target"] if facts["target_labels"] else "the source's own test rows"
    on = f"on {facts['test_rows']:,} rows of {where}"
    chosen = verdict["recommended"]
    mine = {one["control"]: one["effect"] for one in facts["comparisons"] if one["arm"] == chosen}
    if verdict["conflicts"] and not facts["metric"]["settled"]:
        return []
    if chosen is None:
        (best, *_) = sorted(facts["references"], key=lambda one: -one["score"])
        return [f"Nothing is recommended: {on} no arm and no control is shown to be above what reads no text at all "
                f"({best['name']}: {100 * best['score']:.1f} % {title})."]  # fmt: skip
    score = f"{100 * _named(facts, chosen)['score']:.1f} % {title}"
    if not verdict["adapt"]:
        shown = ("every arm that transfers is shown worse" if _worse_than(facts, chosen) else
                 "nothing that transfers is shown to beat every control without transfer")  # fmt: skip
        own = {TARGET_ONLY: "train", "tfidf on the target": "train TF-IDF"}.get(chosen)
        if own:
            return [f"Don't transfer: {own} on your {facts['rows']['shots']} target labels alone ({chosen}, {score}). "
                    f"{on[0].upper()}{on[1:]} {shown}."]  # fmt: skip
        return [f"Nothing is shown to help: {on} {shown}. Until more is known take {chosen} ({score}), the cheapest "
                "control that is not shown worse than the best."]  # fmt: skip
    plain = [name for name in mine if name not in TRAINED and not _named(facts, name)["collapsed"]]
    nearest = min(plain, key=lambda name: mine[name]["value"])
    (near, *_) = sorted(_beside(facts, chosen), key=lambda one: one["effect"]["value"])
    out = [f"{chosen} helps ({score}): {on} it beats every control without transfer, the nearest ({nearest}) by "
           f"{_points(mine[nearest])}, and what reads no text ({_words(facts, near['control'])}) by "
           f"{_span(near['effect'])}."]  # fmt: skip
    best = max(verdict["helping"], key=lambda name: _named(facts, name)["score"])
    if best != chosen:
        out[0] += f" {best} scores more, which may be chance; {chosen} is cheaper."
    for name in TRAINED:
        if name in mine:
            out.append(f"{chosen} against {name}: {mine[name]['word']}, {_points(mine[name])}.")
    return out


def _arm(facts: dict[str, Any], arm: str) -> str:
    """Return in one line how an arm does against all that it is compared with."""
    mine = {one["control"]: one["effect"] for one in facts["comparisons"] if one["arm"] == arm}
    own = bool(_named(facts, arm)["collapsed"])
    lost = [name for name in mine if own or _named(facts, name)["collapsed"]]
    parts = []
    for word, said in (("hurts", "worse than"), ("no difference shown", "no difference shown from"),
                       ("helps", "better than")):  # fmt: skip
        there = [name for name, effect in mine.items() if effect["word"] == word and name not in lost]
        if not there:
            continue
        values = sorted(abs(100 * mine[name]["value"]) for name in there)
        by = f", by {values[0]:.1f}" + (f" to {values[-1]:.1f} points" if len(there) > 1 else " points")
        who = f"all {len(there)} controls" if len(there) == len(mine) > 1 else listed(there)
        parts.append(f"{said} {who}" + (by if word != "no difference shown" else ""))
    if lost:
        parts.append(f"against {listed(lost)} can't be told: the {'arm' if own else 'control'} learned nothing")
    chosen = facts["verdict"]["recommended"]
    for one in facts["comparisons"]:
        if (one["arm"], one["control"], one["effect"]["word"]) == (chosen, arm, "helps"):
            parts.append(f"{chosen} is better, by {_points(one['effect'])}")
    for one in _beside(facts, arm):
        if one["effect"]["low"] <= 0:
            how = "below" if one["effect"]["high"] < 0 else "not shown above"
            parts.append(f"{how} the {_words(facts, one['control'])}, {_span(one['effect'], '+')} points")
    worse = [name for name in mine if mine[name]["word"] == "hurts" and name not in {*TRAINED, CONSTANT, *lost}]
    negative = "negative transfer, " if worse and facts["target_labels"] else ""
    by = f" (by {facts['metric']['title']})" if facts["verdict"]["conflicts"] else ""
    return f"{arm}{' (collapsed)' if own else ''}{by}: {negative}{'; '.join(parts)}."


def _pretraining(facts: dict[str, Any]) -> list[str]:
    for one in facts["comparisons"]:
        if (one["arm"], one["control"]) == (SOURCE_ONLY, RANDOM):
            for name, whose in ((RANDOM, "control"), (SOURCE_ONLY, "arm")):
                if _named(facts, name)["collapsed"]:
                    return [f"What pretraining gave can't be told: the {whose} learned nothing ({name})."]
            return [
                f"What pretraining gave full: {one['effect']['word']}, {_points(one['effect'])} over random weights."
            ]
    return []


def _not_verified(facts: dict[str, Any]) -> list[str]:
    """Return what the verdict does not rest on, though one might think so."""
    trained = {one["name"]: one["seeds"] for one in facts["candidates"] if one["folders"]}
    out = []
    if missing := [name for name in (SOURCE_ONLY, RANDOM, TARGET_ONLY) if name not in trained and any(
            run.startswith(f"{name}-seed") for run in facts["left_out"])]:  # fmt: skip
        out.append(f"Not verified: anything against {', '.join(missing)}, which could not be trained (see Left out).")
    if few := [name for name, seeds in trained.items() if seeds < facts["seeds"]]:
        out.append(f"Not verified: further seeds of {', '.join(few)}, which were trained less often than the others "
                   "and may vary as much.")  # fmt: skip
    if short := [
        one["name"] for one in facts["candidates"] if any("by the budget" in words for words in one["happened"])
    ]:
        out.append(f"Not verified: full training of {', '.join(short)}, cut short by the budget; with more "
                   "epochs they may be better than they look, a larger --budget tells.")  # fmt: skip
    if facts["target_labels"] and not facts["rows"]["shots"]:
        out.append("Not verified: what some labels of the target alone would give; training saw none (--target_shots).")
    if facts["seeds"] == 1:
        out.append("Not verified: other seeds. Every arm was trained once; another seed may change small differences.")
    return out


def _named(facts: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in facts["candidates"] if one["name"] == name)


def _beside(facts: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return what is said of an arm or control against the references."""
    return [one for one in facts["against_references"] if one["arm"] == name]


def _words(facts: dict[str, Any], name: str) -> str:
    """Return how a control or reference is called in sentences."""
    return next((one["name"] for one in facts["references"] if one["key"] == name), name)


def _points(effect: dict[str, Any]) -> str:
    """Return a difference in points with its corrected interval."""
    value, low, high = (100 * effect[key] for key in ("value", "corrected_low", "corrected_high"))
    return f"{value:.1f} points [{low:.1f}, {high:.1f}]"


def _span(difference: dict[str, float], sign: str = "") -> str:
    """Return a difference with its 95 % interval, without a unit."""
    return with_interval(difference["value"], (difference["low"], difference["high"]), sign)


def _chance(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _flagged(one: dict[str, Any]) -> str:
    """Return a candidate's name with what happened to it in brackets."""
    flags = [*one["happened"], *["collapsed"] * bool(one["collapsed"])]
    return f"{one['name']} ({'; '.join(flags)})" if flags else one["name"]


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
            _flagged(one) + mark + (" (control)" if one["control"] and not one["arm"] else ""),
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
            _flagged(one),
            f"{one['seeds']}" if one["folders"] else "",
            f"{one['trainable_parameters']:,}",
            f"{one['megabytes']:.1f}",
            f"{one['peak_memory_mb']:,}",
            "" if one["milliseconds_a_text"] is None else f"{one['milliseconds_a_text']:.1f}",
        ])  # fmt: skip
    return cells


def _counts(facts: dict[str, Any], one: dict[str, Any]) -> bool:
    """Whether a comparison shows anything: both its sides have learned to tell labels apart."""
    return not any(_named(facts, one[side])["collapsed"] for side in ("arm", "control"))


def _comparisons(facts: dict[str, Any]) -> list[list[str]]:
    title = facts["metric"]["title"]
    cells = [["arm", "control", f"difference, points of {title}", "corrected p", "verdict", "detectable (80 % power)"]]
    for one in facts["comparisons"]:
        effect = one["effect"]
        low, high = 100 * effect["corrected_low"], 100 * effect["corrected_high"]
        shown = min(100.0, 100 * effect["detectable"])
        word = effect["word"] if _counts(facts, one) else "can't be told: collapsed"
        if facts["verdict"]["conflicts"]:
            word += f" (by {title})"
        cells.append([_flagged(_named(facts, one["arm"])), _flagged(_named(facts, one["control"])),
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
        cells.append([_flagged(_named(facts, one["arm"])), _words(facts, one["control"]), _span(effect, "+"),
                      _chance(effect["p"]), word, *(_span(one[key], "+") for key in others)])  # fmt: skip
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
                      label=f"{_flagged(one)}{mark} {value:.1f}")  # fmt: skip
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
        effect, sides = one["effect"], [_named(facts, one[side]) for side in ("arm", "control")]
        low, high = 100 * effect["corrected_low"], 100 * effect["corrected_high"]
        value = min(max(100 * effect["value"], low), high)
        counts = _counts(facts, one)
        axes.errorbar(value, height, xerr=[[value - low], [high - value]], fmt="o", capsize=3,
                      color=colours[effect["word"]] if counts else "0.8")  # fmt: skip
        names.append(" against ".join(map(_flagged, sides)))
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
