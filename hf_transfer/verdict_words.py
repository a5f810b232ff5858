"""The verdict in words, the most important first."""

from __future__ import annotations

from typing import Any

from hf_transfer.arms import FROZEN, RANDOM, SOURCE_ONLY, TARGET_ONLY
from hf_transfer.controls import CONSTANT
from hf_transfer.errors import listed
from hf_transfer.evaluation import small_test
from hf_transfer.report import with_interval

TRAINED = (FROZEN, SOURCE_ONLY)


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
             and not candidate(facts, one["arm"])["collapsed"]]  # fmt: skip
    return bool(words) and set(words) == {"hurts"}


def _conflicts(facts: dict[str, Any]) -> list[str]:
    if not (found := facts["verdict"]["conflicts"]):
        return []
    known = {one["key"]: one | {"name": f"the {one['name']}"} for one in facts["references"]}
    first = min(found, key=lambda one: one["control"] not in known)  # a control may have collapsed
    arm, other = candidate(facts, first["arm"]), known.get(first["control"]) or candidate(facts, first["control"])
    said = []
    for key, title in (("accuracy", "accuracy"), ("macro_f1", "macro-F1")):
        how = "below" if first[key]["high"] < 0 else "above"
        said.append(f"by {title} {arm['name']} ({100 * arm[key]:.1f} %) is {how} {other['name']}, "
                    f"{100 * other[key]:.1f} %: {interval_of(first[key], '+')} points")  # fmt: skip
    others = [name for name in dict.fromkeys(one["arm"] for one in found) if name != first["arm"]]
    more = f"; so {'is' if len(others) == 1 else 'are'} {', '.join(others)}" if others else ""
    end = ". Nothing is recommended: run again with --metric accuracy or --metric macro_f1, whichever counts."
    if facts["metric"]["settled"]:
        end = f". --metric {facts['metric']['name']} decides here."
    out = [f"Accuracy and macro-F1 disagree: {'; '.join(said)}{more}{end}"]
    above = [one for one in facts["candidates"] if (sides := against_references(facts, one["name"])) and all(
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
    score = f"{100 * candidate(facts, chosen)['score']:.1f} % {title}"
    if not verdict["adapt"]:
        shown = ("every arm that transfers is shown worse" if _worse_than(facts, chosen) else
                 "nothing that transfers is shown to beat every control without transfer")  # fmt: skip
        own = {TARGET_ONLY: "train", "tfidf on the target": "train TF-IDF"}.get(chosen)
        if own:
            return [f"Don't transfer: {own} on your {facts['rows']['shots']} target labels alone ({chosen}, {score}). "
                    f"{on[0].upper()}{on[1:]} {shown}."]  # fmt: skip
        return [f"Nothing is shown to help: {on} {shown}. Until more is known take {chosen} ({score}), the cheapest "
                "control that is not shown worse than the best."]  # fmt: skip
    plain = [name for name in mine if name not in TRAINED and not candidate(facts, name)["collapsed"]]
    nearest = min(plain, key=lambda name: mine[name]["value"])
    (near, *_) = sorted(against_references(facts, chosen), key=lambda one: one["effect"]["value"])
    out = [f"{chosen} helps ({score}): {on} it beats every control without transfer, the nearest ({nearest}) by "
           f"{_points(mine[nearest])}, and what reads no text ({in_words(facts, near['control'])}) by "
           f"{interval_of(near['effect'])}."]  # fmt: skip
    best = max(verdict["helping"], key=lambda name: candidate(facts, name)["score"])
    if best != chosen:
        out[0] += f" {best} scores more, which may be chance; {chosen} is cheaper."
    for name in TRAINED:
        if name in mine:
            out.append(f"{chosen} against {name}: {mine[name]['word']}, {_points(mine[name])}.")
    return out


def _arm(facts: dict[str, Any], arm: str) -> str:
    """Return in one line how an arm does against all that it is compared with."""
    mine = {one["control"]: one["effect"] for one in facts["comparisons"] if one["arm"] == arm}
    own = bool(candidate(facts, arm)["collapsed"])
    lost = [name for name in mine if own or candidate(facts, name)["collapsed"]]
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
    for one in against_references(facts, arm):
        if one["effect"]["low"] <= 0:
            how = "below" if one["effect"]["high"] < 0 else "not shown above"
            parts.append(f"{how} the {in_words(facts, one['control'])}, {interval_of(one['effect'], '+')} points")
    worse = [name for name in mine if mine[name]["word"] == "hurts" and name not in {*TRAINED, CONSTANT, *lost}]
    negative = "negative transfer, " if worse and facts["target_labels"] else ""
    by = f" (by {facts['metric']['title']})" if facts["verdict"]["conflicts"] else ""
    return f"{arm}{' (collapsed)' if own else ''}{by}: {negative}{'; '.join(parts)}."


def _pretraining(facts: dict[str, Any]) -> list[str]:
    for one in facts["comparisons"]:
        if (one["arm"], one["control"]) == (SOURCE_ONLY, RANDOM):
            for name, whose in ((RANDOM, "control"), (SOURCE_ONLY, "arm")):
                if candidate(facts, name)["collapsed"]:
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


def candidate(facts: dict[str, Any], name: str) -> dict[str, Any]:
    """Return what is known of an arm or control."""
    return next(one for one in facts["candidates"] if one["name"] == name)


def against_references(facts: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Return what is said of an arm or control against the references."""
    return [one for one in facts["against_references"] if one["arm"] == name]


def in_words(facts: dict[str, Any], name: str) -> str:
    """Return how a control or reference is called in sentences."""
    return next((one["name"] for one in facts["references"] if one["key"] == name), name)


def _points(effect: dict[str, Any]) -> str:
    """Return a difference in points with its corrected interval."""
    value, low, high = (100 * effect[key] for key in ("value", "corrected_low", "corrected_high"))
    return f"{value:.1f} points [{low:.1f}, {high:.1f}]"


def interval_of(difference: dict[str, float], sign: str = "") -> str:
    """Return a difference with its 95 % interval, without a unit."""
    return with_interval(difference["value"], (difference["low"], difference["high"]), sign)


def flagged(one: dict[str, Any]) -> str:
    """Return a candidate's name with what happened to it in brackets."""
    flags = [*one["happened"], *["collapsed"] * bool(one["collapsed"])]
    return f"{one['name']} ({'; '.join(flags)})" if flags else one["name"]


def is_evidence(facts: dict[str, Any], one: dict[str, Any]) -> bool:
    """Whether a comparison shows anything: both its sides have learned to tell labels apart."""
    return not any(candidate(facts, one[side])["collapsed"] for side in ("arm", "control"))
