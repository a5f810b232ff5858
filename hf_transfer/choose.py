"""Which of several finished runs fits a target best, without a label of it (`hf-transfer choose`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_transfer import label_free
from hf_transfer.candidates import Finished, Target, check_target, read_runs, read_target, score_texts
from hf_transfer.errors import UserError, listed
from hf_transfer.judging import RULE, Judged, choice, judge, tested
from hf_transfer.results import FILE, check_writable, load_run, write_atomically
from hf_transfer.samples import out_folder


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

    Args:
        folders: of finished runs with the same labels; other files and folders among them are passed over.
        target_unlabeled: a table of the target's texts; labels in it are not read.
        backtest: labelled tables of other domains, which none of the runs was trained on: the scores are compared with
            the true accuracy there.
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
    finished = read_runs(runs, notes, quiet=quiet)
    for target in targets:
        check_target(target, targets[0], finished, label_names, notes)
    outputs, seconds = score_texts(runs, [target.texts for target in targets], label_names, quiet=quiet)
    judged = [judge(target, finished, [output[i] for output in outputs], label_names, seed=seed, quiet=quiet)
              for i, target in enumerate(targets)]  # fmt: skip
    facts = facts_of(finished, targets, judged, seconds, notes) | {"seed": seed}
    text = report(facts)
    if (folder := out_folder(output_dir)) is not None:
        write_atomically(folder / "choose.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        write_atomically(folder / "choose.md", text + "\n")
        text += f"\n\nwritten: {folder}/choose.md, choose.json"
    return text


def facts_of(
    finished: list[Finished], targets: list[Target], judged: list[Judged], seconds: list[float], notes: list[str]
) -> dict[str, Any]:
    """Return everything found, ready for JSON and for `report`; the first target is the one to choose for."""
    names = [one.name for one in finished]

    def name_of(i: int | None) -> str | None:
        return None if i is None else names[i]

    here = judged[0]
    for target, on in zip(targets, judged, strict=True):
        for name, scores in on.scores.items():
            notes += [f"{names[i]}, {name.replace('_', ' ')} on {target.name}: {score.note}"
                      for i, score in enumerate(scores) if score.note]  # fmt: skip
    return {
        "target": {"name": targets[0].name, "texts": len(targets[0].texts)},
        "recommended": name_of(here.chosen),
        "rule": list(RULE),
        "runs": [
            {
                "name": one.name,
                "folder": str(one.run.folder),
                "method": one.run.method,
                "scores": {name: scores[i].value for name, scores in here.scores.items()},
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
                "recommended": name_of(on.chosen),
                "out": {names[i]: reason for i, reason in enumerate(on.out) if reason},
                "scores": tested(on),
            }
            for target, on in zip(targets[1:], judged[1:], strict=True)
        ],
        "notes": notes,
    }


def report(facts: dict[str, Any]) -> str:
    """Return the report in Markdown."""
    runs, scores, backtests = facts["runs"], facts["scores"], facts["backtests"]
    target = facts["target"]
    cells = [["run", *(name.replace("_", " ") for name in scores), "mean rank", "scored in"]]
    for run in runs:
        found = [
            cell(name, run["scores"][name]) + (" *" if scores[name]["chooses"] == run["name"] else "")
            for name in scores
        ]
        rank = "out" if run["out"] else number(run["mean_rank"], ".1f")
        cells.append([run["name"], *found, rank, f"{run['scoring_seconds']:.1f} s"])
    lines = [f"# Which of {len(runs)} runs for {target['name']}", "", sentence(facts), "",
             f"{target['texts']:,} texts of {target['name']}, no label of it was read. * is a score's own choice among "
             "all runs, those that are out included.", "", *aligned(cells), ""]  # fmt: skip
    head = ["score", "better", "chooses", "seconds"]
    for test in backtests:
        head += [f"back-test on {test['domain']}: Spearman", "Kendall", "regret, points", "off by, points"]
    cells = [head]
    for name in [*scores, "recommendation"]:
        if name == "recommendation":
            line = ["recommendation", "", facts["recommended"] or "", ""]
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
        right = ", ".join(f"{name} {value:.1%}" for name, value in test["accuracy"].items())
        lines += ["", f"back-test on {test['domain']}, {test['texts']:,} texts whose labels the scores did not see: "
                  f"right are {right}; recommended there: {test['recommended'] or 'none'}"]  # fmt: skip
    lines += ["", *(f"note: {note}" for note in facts["notes"])]
    return "\n".join(lines).rstrip()


def sentence(facts: dict[str, Any]) -> str:
    """Say which run is recommended and why, and which are out."""
    runs = facts["runs"]
    inside = sorted((run["mean_rank"], run["name"]) for run in runs if run["mean_rank"] is not None)
    if facts["recommended"] is None:
        said = "No run is recommended: " + ("nothing tells the best ones apart." if inside else "none is fit for it.")
    else:
        rank = next(run["mean_rank"] for run in runs if run["name"] == facts["recommended"])
        others = [f"{name} {other:.1f}" for other, name in inside if name != facts["recommended"]]
        equal = any(other == rank and name != facts["recommended"] for other, name in inside)
        said = f"Recommended: {facts['recommended']}, mean rank {rank:.1f} over the scores that vote" + (
            (f" ({listed(others, 3)})" if others else "")
            + ("; of equal ones the more accurate on held-out source rows." if equal else ".")
        )
    return "\n".join([said, *(f"Out: {run['name']}, {run['out']}." for run in runs if run["out"])])


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
