"""Which of several finished runs fits a target best, without a label of it (`hf-transfer choose`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_transfer import label_free
from hf_transfer.candidates import Finished, Target, check_target, read_runs, read_target, score_texts
from hf_transfer.errors import UserError, listed
from hf_transfer.judging import RULE, Judged, choice, disagreement, errors, judge, tested, undecided, voting
from hf_transfer.report import with_interval
from hf_transfer.results import FILE, Run, check_writable, load_run, write_atomically
from hf_transfer.samples import out_folder
from hf_transfer.statistics import metric
from hf_transfer.statistics.metric import Metric


def choose_run(
    folders: list[str],
    target_unlabeled: str,
    *,
    backtest: list[str] | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    output_dir: str | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> str:
    """Score runs on a target's unlabelled texts and recommend one; returns the report, also written if asked for.

    What the runs' folders hold of scores on labelled target rows is shown beside it, and not chosen by.

    Args:
        folders: of finished runs with the same labels; other files and folders among them are passed over.
        target_unlabeled: a table of the target's texts; labels in it are not read.
        backtest: labelled tables of other domains, which none of the runs was trained on: the scores are compared with
            the true accuracy there, and their order with that by the metric that the runs report.
        text_column: guessed where obvious.
        label_column: of the back-tests; likewise.
        output_dir: where choose.md and choose.json go.
        seed: of samples and folds.
        quiet: no progress bars.

    Raises:
        UserError: no such run, runs with different labels, a table that can't be read, or one that a run learned from.
    """
    from hf_transfer.console import Console

    Console(quiet=quiet)
    if output_dir is not None:
        check_writable(Path(output_dir), "--output_dir")
    found = [name for name in dict.fromkeys(folders) if (Path(name) / FILE).is_file() or not Path(name).exists()]
    runs = [load_run(name) for name in found or folders]
    label_names = runs[0].label_names
    for run in runs:
        if sorted(run.label_names) != sorted(label_names):
            raise UserError(f"{run.folder} knows the labels {listed(run.label_names)}, {runs[0].folder} knows "
                            f"{listed(label_names)}; compare runs with the same labels.")  # fmt: skip
    options: dict[str, Any] = {"text_column": text_column, "seed": seed, "quiet": quiet}
    targets = [read_target(target_unlabeled, labelled=False, label_column=None, **options)]
    for spec in backtest or []:
        targets.append(read_target(spec, labelled=True, label_column=label_column, **options))
    notes = [note for target in targets for note in target.notes]
    reported = list(dict.fromkeys(run.metric for run in runs))
    by = metric.load(reported[0] if len(reported) == 1 else "macro_f1", label_names)
    if len(reported) > 1:
        notes.append(f"the runs report different metrics ({listed(map(metric.title, reported))}): where true scores "
                     f"are compared, {by.title} counts")  # fmt: skip
    finished = read_runs(runs, notes, quiet=quiet)
    for target in targets:
        check_target(target, targets[0], finished, label_names, notes)
    outputs, seconds = score_texts(runs, [target.texts for target in targets], label_names, quiet=quiet)
    judged = [judge(target, finished, [output[i] for output in outputs], by, seed=seed, quiet=quiet)
              for i, target in enumerate(targets)]  # fmt: skip
    facts = facts_of(finished, targets, judged, by, seconds, notes) | {"seed": seed}
    text = report(facts)
    if (folder := out_folder(output_dir)) is not None:
        write_atomically(folder / "choose.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        write_atomically(folder / "choose.md", text + "\n")
        text += f"\n\nwritten: {folder}/choose.md, choose.json"
    return text


def facts_of(
    finished: list[Finished],
    targets: list[Target],
    judged: list[Judged],
    by: Metric,
    seconds: list[float],
    notes: list[str],
) -> dict[str, Any]:
    """Return everything found, ready for JSON and for `report`; the first target is the one to choose for."""
    names = [one.name for one in finished]

    def name_of(i: int | None) -> str | None:
        return None if i is None else names[i]

    here, results = judged[0], [tested(on) for on in judged[1:]]
    off = errors(results)
    rivals = None
    if (rival := undecided(here, off)) is not None:
        voted = voting(here.scores, [i for i, rank in enumerate(here.ranks) if rank is not None])
        rivals = {"runs": [name_of(here.chosen), name_of(rival)], "off": {n: off[n] for n in voted if n in off}}
    for target, on in zip(targets, judged, strict=True):
        for name, scores in on.scores.items():
            notes += [f"{names[i]}, {name.replace('_', ' ')} on {target.name}: {score.note}"
                      for i, score in enumerate(scores) if score.note]  # fmt: skip
    apart = []
    for i, one in enumerate(finished):
        values = {name: scores[i].value for name, scores in here.scores.items() if label_free.load(name).PERCENT}
        if not here.out[i] and (pair := disagreement(values, off)):
            found = {name: {"value": values[name], "off": off[name]} for name in pair}
            apart.append({"run": one.name, "scores": found})
    return {
        "target": {"name": targets[0].name, "texts": len(targets[0].texts)},
        "metric": {"name": by.name, "title": by.title},
        "recommended": name_of(here.chosen) if rivals is None else None,
        "undecided": rivals,
        "disagreements": apart,
        "off": off,
        "rule": list(RULE),
        "runs": [
            {
                "name": one.name,
                "folder": str(one.run.folder),
                "method": one.run.method,
                "scores": {name: scores[i].value for name, scores in here.scores.items()},
                "labelled": labelled(one.run, by),
                "mean_rank": here.ranks[i],
                "out": here.out[i] or None,
                "held_out_rows": len(one.held_out.labels),
                "scoring_seconds": round(seconds[i], 2),
            }
            for i, one in enumerate(finished)
        ],
        "scores": {
            name: {
                "higher_is_better": label_free.load(name).HIGHER,
                "chooses": name_of(choice(name, scores)),
                "seconds": round(here.seconds[name], 2),
            }
            for name, scores in here.scores.items()
        },
        "backtests": [
            {
                "domain": target.name,
                "texts": len(target.texts),
                "accuracy": dict(zip(names, on.accuracy or [], strict=True)),
                "metric": dict(zip(names, on.metric or [], strict=True)),
                "recommended": name_of(on.chosen),
                "out": {names[i]: reason for i, reason in enumerate(on.out) if reason},
                "scores": result,
            }
            for target, on, result in zip(targets[1:], judged[1:], results, strict=True)
        ],
        "notes": notes,
    }


def labelled(run: Run, by: Metric) -> dict[str, Any] | None:
    """Return what the run's folder holds of labelled target rows, which are not chosen by; None if it has none.

    `metric`, `score` and `interval` are the run's own, `compared` has the score and its interval by which runs are
    compared.
    """
    if (scores := run.metrics.get("target_test")) is None:
        return None
    score, compared = (
        {"score": metric.of(scores, name), "interval": scores["intervals"][name]} for name in (run.metric, by.name)
    )
    return {"target": run.data["target"], "rows": scores["n"], "metric": run.metric, **score, "compared": compared}


def report(facts: dict[str, Any]) -> str:
    """Return the report in Markdown."""
    runs, scores, backtests = facts["runs"], facts["scores"], facts["backtests"]
    target, title = facts["target"], facts["metric"]["title"]
    known = list(
        dict.fromkeys((one["labelled"]["target"], one["labelled"]["metric"]) for one in runs if one["labelled"])
    )
    cells = [["run", *(f"labelled {domain}, {metric.title(name)} % (not used)" for domain, name in known),
              *(name.replace("_", " ") for name in scores), "mean rank", "scored in"]]  # fmt: skip
    for run in runs:
        found = [
            cell(name, run["scores"][name]) + (" *" if scores[name]["chooses"] == run["name"] else "")
            for name in scores
        ]
        rank = "out" if run["out"] else number(run["mean_rank"], ".1f")
        own = run["labelled"] or {"target": None, "metric": None}
        shown = [with_interval(own["score"], own["interval"]) if (own["target"], own["metric"]) == column else "-"
                 for column in known]  # fmt: skip
        cells.append([run["name"], *shown, *found, rank, f"{run['scoring_seconds']:.1f} s"])
    lines = [f"# Which of {len(runs)} runs for {target['name']}", "", sentence(facts), "",
             f"{target['texts']:,} texts of {target['name']}, no label of it was read. * is a score's own choice among "
             "all runs, those that are out included."
             + (f" The labelled rows of {listed(dict.fromkeys(domain for domain, _ in known))} were tested when the "
                "runs were made, and are not chosen by; 95 % intervals." if known else ""),
             "", *aligned(cells), ""]  # fmt: skip
    head = ["score", "better", "chooses", "seconds"]
    for test in backtests:
        head += [f"back-test on {test['domain']}: Spearman", "Kendall", f"regret, points of {title}",
                 "off by, points of accuracy"]  # fmt: skip
    cells = [head]
    for name in [*scores, "recommendation"]:
        if name == "recommendation":
            line = ["recommendation", "", facts["recommended"] or "none", ""]
        else:
            one = scores[name]
            better = "higher" if one["higher_is_better"] else "lower"
            votes = " (votes)" if name in facts["rule"] else ""
            line = [name.replace("_", " ") + votes, better, one["chooses"] or "", f"{one['seconds']:.1f}"]
        for test in backtests:
            result = test["scores"][name]
            regret, off = (None if result[name] is None else 100 * result[name] for name in ("regret", "off"))
            line += [number(result["spearman"], "+.2f"), number(result["kendall"], "+.2f"), number(regret, ".1f"),
                     number(off, ".1f")]  # fmt: skip
        cells.append(line)
    lines += aligned(cells)
    for test in backtests:
        kinds = {"right are": test["accuracy"]} | ({} if title == "accuracy" else {f"{title} is": test["metric"]})
        found = [f"{words} {', '.join(f'{name} {value:.1%}' for name, value in true.items())}"
                 for words, true in kinds.items()]  # fmt: skip
        lines += ["", f"back-test on {test['domain']}, {test['texts']:,} texts whose labels the scores did not see: "
                  f"{'; '.join(found)}; recommended there: {test['recommended'] or 'none'}"]  # fmt: skip
    if backtests:
        lines += ["", f"Order (Spearman, Kendall) and regret go by {title}, which the runs report; off by goes by "
                  "accuracy, which the scores estimate."]  # fmt: skip
    lines += ["", *(f"note: {note}" for note in facts["notes"])]
    return "\n".join(lines).rstrip()


def sentence(facts: dict[str, Any]) -> str:
    """Say which run is recommended and why, what speaks against it, and which are out."""
    outside = [f"Out: {run['name']}, {run['out']}." for run in facts["runs"] if run["out"]]
    return "\n".join([recommendation(facts), *by_labels(facts), *outside, *disagreements(facts)])


def recommendation(facts: dict[str, Any]) -> str:
    """Say which run is recommended and why, or why none is."""
    runs = facts["runs"]
    inside = sorted((run["mean_rank"], run["name"]) for run in runs if run["mean_rank"] is not None)
    if facts["undecided"]:
        return f"No run is recommended: {too_close(facts)}."
    if facts["recommended"] is None:
        return "No run is recommended: " + ("nothing tells the best ones apart." if inside else "none is fit for it.")
    rank = next(run["mean_rank"] for run in runs if run["name"] == facts["recommended"])
    others = [f"{name} {other:.1f}" for other, name in inside if name != facts["recommended"]]
    said = f"Recommended: {facts['recommended']}, mean rank {rank:.1f} over the scores that vote"
    said += f" ({listed(others, 3)})" if others else ""
    if any(other == rank and name != facts["recommended"] for other, name in inside):
        said += "; of equal ones the more accurate on held-out source rows"
    if not facts["off"]:
        why = "all runs were out in the back-tests" if facts["backtests"] else "--backtest tells"
        said += f"; how far the estimates are off is not known ({why})"
    return f"{said}."


def too_close(facts: dict[str, Any]) -> str:
    """Say why the best two runs can't be told apart, as part of a sentence."""
    off = [f"{100 * value:.1f}" for value in sorted(facts["undecided"]["off"].values())]
    return (f"the estimates of {' and '.join(facts['undecided']['runs'])} differ by less than they were off in "
            f"back-tests ({' to '.join(dict.fromkeys((off[0], off[-1])))} points)")  # fmt: skip


def by_labels(facts: dict[str, Any]) -> list[str]:
    """Say, one line a labelled domain, whether by those labels another run is better than the recommended one.

    Where none is recommended, which is the best.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in facts["runs"]:
        if run["labelled"]:
            groups.setdefault(run["labelled"]["target"], []).append(run)
    title, out = facts["metric"]["title"], []
    for domain, runs in groups.items():
        best = max(runs, key=lambda run: run["labelled"]["compared"]["score"])
        mine = next((run for run in runs if run["name"] == facts["recommended"]), None)
        if mine is None and (facts["recommended"] is not None or len(runs) < 2):
            continue
        first, begin = best["labelled"]["compared"], f"By labelled rows of {domain}, which were not used,"
        score = f"{with_interval(first['score'], first['interval'])} % {title}"
        if mine is None:
            equal = [run["name"] for run in runs if run["labelled"]["compared"]["score"] == first["score"]]
            out.append(f"{begin} {listed(equal)} {'are' if len(equal) > 1 else 'is'} the best: {score}.")
        elif first["score"] > (other := mine["labelled"]["compared"])["score"]:
            apart = first["interval"][0] > other["interval"][1]
            out.append(f"{begin} {best['name']} is better than {mine['name']}: {score} against "
                       f"{with_interval(other['score'], other['interval'])}; "
                       + ("the intervals are apart." if apart else "higher, but the intervals overlap."))  # fmt: skip
    return out


def disagreements(facts: dict[str, Any]) -> list[str]:
    """Say, one line a run, which two estimates of its accuracy can't both be as near as they were in back-tests."""
    return [
        f"{one['run']}: two estimates of its accuracy disagree by more than they were off in back-tests: "
        + " against ".join(f"{name.replace('_', ' ')} {found['value']:.1%} (off by {100 * found['off']:.1f} points)"
                           for name, found in one["scores"].items()) + "."
        for one in facts["disagreements"]
    ]  # fmt: skip


def cell(name: str, value: float | None) -> str:
    """Return a score as the table shows it."""
    return number(value, ".1%" if label_free.load(name).PERCENT else ".3f")


def number(value: float | None, form: str) -> str:
    """Return `value` in that format, or a dash."""
    return "-" if value is None else format(value, form)


def aligned(cells: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table, header first, whose columns also line up in a terminal."""
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    return [lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]]
