"""How far two domains are apart, and in what: look before you train (`hf-transfer gap`)."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer import diagnostics
from hf_transfer.diagnostics import Finding, Side
from hf_transfer.errors import UserError
from hf_transfer.results import write_atomically
from hf_transfer.samples import ROWS, out_folder, read_domain, sides

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

SHOWN = 12  # labels in the plot
FEWEST = 10  # rows of a domain: its halves have a row for each fold
KINDS = {"vocabulary": "words", "length": "length", "labels": "the mix of labels", "concept": "what the labels mean"}
WIDTH = 150  # characters of the verdict on a line of the plot


def domain_gap(
    source: str,
    target: str,
    *,
    model: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    output_dir: str | None = None,
    seed: int = 0,
    most: int = ROWS,
    quiet: bool = False,
) -> str:
    """Measure everything in `diagnostics/` and return the report, also written as Markdown, JSON and PNG if asked for.

    Args:
        source: a table, with or without labels.
        target: likewise.
        model: folder or Hub id whose states are compared; default: the embedded encoder.
        text_column: guessed where obvious.
        label_column: likewise.
        output_dir: where gap.md, gap.json and gap.png go.
        seed: of the samples and tests.
        most: rows of a domain that the model reads.
        quiet: no progress bars.

    Raises:
        UserError: a table or model that can't be read, or too few rows.
    """
    from hf_transfer import tasks
    from hf_transfer.arguments import ModelArguments
    from hf_transfer.console import Console
    from hf_transfer.models import load_model, public_name

    Console(quiet=quiet)
    folder = out_folder(output_dir)
    options: dict[str, Any] = {"text_column": text_column, "label_column": label_column, "seed": seed, "most": most,
                               "quiet": quiet}  # fmt: skip
    # a column that is named must be in the source; the target may have no labels
    domains = [read_domain(spec, labelled=needed, **options)
               for spec, needed in ((source, label_column is not None), (target, False))]  # fmt: skip
    for domain in domains:
        if len(domain.drawn) < FEWEST:
            raise UserError(f"{domain.table.name} has {len(domain.drawn)} usable rows; at least {FEWEST} are needed.")
    loaded = load_model(ModelArguments(model=model), tasks.load("text_classification"), ["0", "1"], seed)
    one, other = sides(domains, loaded, quiet=quiet)
    found = {name: diagnostics.load(name).measure(one, other, seed) for name in diagnostics.names()}
    found, advice = borne_out(found)
    facts: dict[str, Any] = {
        "source": {"name": one.name, "rows": len(one.facts), "sample": len(one.texts)},
        "target": {"name": other.name, "rows": len(other.facts), "sample": len(other.texts)},
        "model": public_name(loaded.name),
        "seed": seed,
        "notes": [note for domain in domains for note in domain.notes],
        "verdict": found["concept"].first or differences(found),
        "differences": differences(found),
        "advice": advice,
        "findings": {name: {**vars(finding), "answer": finding.answer} for name, finding in found.items()},
    }
    text = report(facts, found)
    if folder is not None:
        write_atomically(folder / "gap.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        write_atomically(folder / "gap.md", text + "\n")
        plot(found, one, other, facts["verdict"], folder / "gap.png")
        text += f"\n\nwritten: {folder}/gap.md, gap.json, gap.png"
    return text


def borne_out(found: dict[str, Finding]) -> tuple[dict[str, Finding], list[str]]:
    """Keep the advice that the findings together bear out; returns them and the report's lines of advice.

    Learning from the target's texts, aligning features and correcting the mix of labels all build on what the source's
    labels say: none is advised where they say something else, and only under that condition where it is not known.
    """
    concept = found["concept"]
    kept, depends = {}, False
    for name, finding in found.items():
        advice = finding.advice
        if finding.same_meaning and advice:
            if concept.apart or concept.first:
                advice = ""
            elif concept.apart is None:
                depends, advice = True, f"Only if the labels mean the same: {advice[0].lower()}{advice[1:]}"
        kept[name] = dataclasses.replace(finding, advice=advice)
    lines = [finding.advice for finding in kept.values() if finding.advice]
    if depends:
        needed = concept.untold or "labels of both domains, named alike"
        lines.insert(0, f"First have {diagnostics.FEWEST} labelled target rows or more: run this again with them, and "
                     "test on them what you try of the following. Whether the labels mean the same in both domains is "
                     f"not known; needed to tell: {needed}.")  # fmt: skip
    if not any(finding.advice for name, finding in kept.items() if name != "duplicates"):
        lines.append("No difference is shown that calls for anything.")
    return kept, lines


def differences(found: dict[str, Finding]) -> str:
    """Say in one sentence which kinds of difference there are, and which can't be told."""
    differ, untold, same = (
        [kind for name, kind in KINDS.items() if found[name].answer == answer] for answer in ("yes", "can't tell", "no")
    )
    model = {found[name].answer for name in ("proxy_a_distance", "mmd")}
    for_model = "yes" in model
    if differ:
        said = f"The domains differ in {_and(differ)}{', though hardly for the model' if model == {'no'} else ''}"
    elif for_model:
        said = f"The domains differ for the model{f', though not in {_or(same)}' if same else ''}"
    else:
        said = "No difference between the domains is shown"
    places = [f"in {_or(untold)}"] if untold else []
    if model == {"can't tell"}:
        places.append("for the model")
    if places:
        return f"{said}; whether they differ {', or '.join(places)} can't be told."
    return f"{said}." if differ or for_model else f"{said}: they may be one."


def _and(names: list[str], last: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {last} {names[-1]}"


def _or(names: list[str]) -> str:
    return _and(names, "or")


def report(facts: dict[str, Any], found: dict[str, Finding]) -> str:
    """Return the report in Markdown."""
    one, other = facts["source"], facts["target"]
    lines = [f"# Gap from {one['name']} to {other['name']}", "", facts["verdict"], ""]
    if facts["differences"] != facts["verdict"]:
        lines += [facts["differences"], ""]
    lines += [f"{one['rows']:,} and {other['rows']:,} rows; features of {one['sample']:,} and {other['sample']:,} of "
              f"them by {facts['model']}.", "", "| what | apart | found |", "|---|---|---|"]  # fmt: skip
    for name, finding in found.items():
        needed = f"; needed: {finding.untold}" if finding.untold else ""
        lines.append(f"| {name.replace('_', ' ')} | {finding.answer} | {finding.summary}{needed} |")
    lines += ["", *(f"- {sentence}" for sentence in facts["advice"])]
    words = facts["findings"]["vocabulary"]["numbers"]
    lines += ["", f"More in {other['name']}: {', '.join(words['more_in_target'])}", "",
              f"More in {one['name']}: {', '.join(words['more_in_source'])}"]  # fmt: skip
    lines += ["", *(f"note: {note}" for note in facts["notes"])]
    return "\n".join(lines)


def plot(found: dict[str, Finding], source: Side, target: Side, verdict: str, file: Path) -> None:
    """Draw distances by layer, what they go with, probes, lengths, mixes of labels, and the words that differ most."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15.5, 8), layout="constrained")
    figure.suptitle(textwrap.fill(verdict, WIDTH), fontsize=11, parse_math=False)
    axes: dict[str, Axes] = figure.subplot_mosaic(
        [["by_layer", "kernel", "parts", "probes"], ["lengths", "labels", "words", "words"]]
    )
    by_layer, kernel, parts, probes, lengths, labels, words = axes.values()
    numbers = found["proxy_a_distance"].numbers
    by_layer.plot(numbers["by_layer"], marker="o", label="between the domains")
    by_layer.plot(numbers["within_domain_by_layer"], marker="o", color="0.6", label="within a domain")
    by_layer.set(
        title=_title("proxy A-distance", found["proxy_a_distance"]), xlabel="layer (0: embeddings)", ylim=(-0.05, 2.05)
    )
    by_layer.legend(fontsize=8)
    kernel.plot(found["mmd"].numbers["by_layer"], marker="o")
    kernel.axhline(0, color="0.6")
    kernel.set(
        title=_title(f"MMD$^2$ (p {found['mmd'].numbers['p']:.2g})", found["mmd"]), xlabel="layer (0: embeddings)"
    )
    shares = found["parts"].numbers.get("parts", {})
    _bars(parts, {"": shares}, _title("what MMD$^2$ goes with", found["parts"]), "nothing to divide")
    numbers = found["concept"].numbers
    right = {
        "source's probe\nin the source": numbers.get("source_probe_on_source"),
        "source's probe": numbers.get("source_probe_on_target"),
        "target's own probe": numbers.get("target_probe_on_target"),
        "commonest label": numbers.get("commonest_label_share"),
    }
    _bars(probes, {"": {name: share for name, share in right.items() if share is not None}},
          _title("what the labels mean", found["concept"]), "no probe", ordered=False)  # fmt: skip
    probes.set_xlabel("% right on the target")
    mixes = found["labels"].numbers.get("shares", {})
    named = {
        f"{key}: {side.name}": mixes[key] for key, side in (("source", source), ("target", target)) if key in mixes
    }
    _bars(labels, named, _title("mix of labels", found["labels"]), "not both have labels")
    counts = [side.facts["words"].to_numpy() for side in (source, target)]
    bins = np.linspace(0, max(1, np.quantile(np.concatenate(counts), 0.98)), 40).tolist()
    for side, one in zip((source, target), counts, strict=True):
        lengths.hist(one, bins=bins, density=True, alpha=0.5, label=side.name)
    lengths.set(title=_title("words a text", found["length"]), yticks=[])
    lengths.legend(fontsize=8)
    found_words = found["vocabulary"].numbers
    more = list(found_words["more_in_target"].items())[::-1] + [
        (word, -z) for word, z in found_words["more_in_source"].items()
    ]
    words.barh(range(len(more)), [z for _, z in more], color=["tab:orange" if z > 0 else "tab:blue" for _, z in more])
    words.set_yticks(range(len(more)), [word for word, _ in more], fontsize=7)
    words.set(title=_title("words that differ most", found["vocabulary"]))
    words.set_xlabel(f"more in {source.name}  < z-score >  more in {target.name}", fontsize=8)
    figure.savefig(file, dpi=120, metadata={"Software": None})


def _title(what: str, finding: Finding) -> str:
    """Return the title of a panel: what it shows, and whether the domains differ in that."""
    return f"{what}\napart: {'not measured' if finding.answer == '-' else finding.answer}"


def _bars(axes: Axes, shares: dict[str, dict[str, float]], title: str, otherwise: str, *, ordered: bool = True) -> None:
    """Draw shares by name, a colour for each of what has them; or say why there are none."""
    axes.set_title(title)
    largest = {name: max(some.get(name, 0.0) for some in shares.values()) for some in shares.values() for name in some}
    names = sorted(largest, key=lambda name: -largest[name] if ordered else 0)[:SHOWN]
    if not names:
        axes.set_axis_off()
        axes.text(0.5, 0.5, otherwise, ha="center", transform=axes.transAxes)
        return
    height = 0.8 / len(shares)
    for i, (label, some) in enumerate(shares.items()):
        places = np.arange(len(names)) + (i - (len(shares) - 1) / 2) * height
        axes.barh(places, [100 * some.get(name, 0.0) for name in names], height, alpha=0.7, label=label)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="%", xlim=(0, 100))
    if len(shares) > 1:
        axes.legend(fontsize=8)
