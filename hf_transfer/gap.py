"""How far two domains are apart, and in what: look before you train (`hf-transfer gap`)."""

from __future__ import annotations

import json
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
NOT_MEASURED = "not measured"  # how a finding begins that found nothing because something is missing
FEWEST = 40  # rows of a domain that halves of it still say something about


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
    facts = {
        "source": {"name": one.name, "rows": len(one.facts), "sample": len(one.texts)},
        "target": {"name": other.name, "rows": len(other.facts), "sample": len(other.texts)},
        "model": public_name(loaded.name),
        "seed": seed,
        "notes": [note for domain in domains for note in domain.notes],
        "verdict": verdict(found),
        "findings": {name: vars(finding) for name, finding in found.items()},
    }
    text = report(facts)
    if folder is not None:
        write_atomically(folder / "gap.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        write_atomically(folder / "gap.md", text + "\n")
        plot(found, one, other, folder / "gap.png")
        text += f"\n\nwritten: {folder}/gap.md, gap.json, gap.png"
    return text


def verdict(found: dict[str, Finding]) -> str:
    """Say in one sentence which kinds of difference there are."""
    kinds = {
        "vocabulary": "words",
        "length": "length",
        "labels": "the mix of labels",
        "concept": "what the labels mean",
    }
    differ = [kind for name, kind in kinds.items() if found[name].apart]
    inside = found["proxy_a_distance"].apart or found["mmd"].apart
    if not differ:
        if inside:
            return "The domains differ for the model, though not in words, length or labels."
        return "No difference between the domains is shown: they may be one."
    listed = differ[0] if len(differ) == 1 else f"{', '.join(differ[:-1])} and {differ[-1]}"
    return f"The domains differ in {listed}{'' if inside else ', though hardly for the model'}."


def report(facts: dict[str, Any]) -> str:
    """Return the report in Markdown."""
    one, other = facts["source"], facts["target"]
    lines = [f"# Gap from {one['name']} to {other['name']}", "", facts["verdict"], "",
             f"{one['rows']:,} and {other['rows']:,} rows; features of {one['sample']:,} and {other['sample']:,} of "
             f"them by {facts['model']}.", "", "| what | apart | found |", "|---|---|---|"]  # fmt: skip
    for name, finding in facts["findings"].items():
        apart = "yes" if finding["apart"] else "-" if finding["summary"].startswith(NOT_MEASURED) else "no"
        lines.append(f"| {name.replace('_', ' ')} | {apart} | {finding['summary']} |")
    if advice := [finding["advice"] for finding in facts["findings"].values() if finding["advice"]]:
        lines += ["", *(f"- {sentence}" for sentence in advice)]
    words = facts["findings"]["vocabulary"]["numbers"]
    lines += ["", f"More in {other['name']}: {', '.join(words['more_in_target'])}", "",
              f"More in {one['name']}: {', '.join(words['more_in_source'])}"]  # fmt: skip
    lines += ["", *(f"note: {note}" for note in facts["notes"])]
    return "\n".join(lines)


def plot(found: dict[str, Finding], source: Side, target: Side, file: Path) -> None:
    """Draw both distances by layer, what they go with, lengths, mixes of labels, and the words that differ most."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    (by_layer, kernel, parts), (lengths, labels, words) = figure.subplots(2, 3)
    numbers = found["proxy_a_distance"].numbers
    by_layer.plot(numbers["by_layer"], marker="o", label="between the domains")
    by_layer.plot(numbers["within_domain_by_layer"], marker="o", color="0.6", label="within a domain")
    by_layer.set(title="proxy A-distance", xlabel="layer (0: embeddings)", ylim=(-0.05, 2.05))
    by_layer.legend(fontsize=8)
    kernel.plot(found["mmd"].numbers["by_layer"], marker="o")
    kernel.axhline(0, color="0.6")
    kernel.set(title=f"MMD$^2$ (p {found['mmd'].numbers['p']:.2g})", xlabel="layer (0: embeddings)")
    shares = found["parts"].numbers.get("parts", {})
    _bars(parts, {"": shares}, "what MMD$^2$ goes with", "nothing to divide")
    mixes = found["labels"].numbers.get("shares", {})
    named = {
        f"{key}: {side.name}": mixes[key] for key, side in (("source", source), ("target", target)) if key in mixes
    }
    _bars(labels, named, "mix of labels", "not both have labels")
    counts = [side.facts["words"].to_numpy() for side in (source, target)]
    bins = np.linspace(0, max(1, np.quantile(np.concatenate(counts), 0.98)), 40)
    for side, one in zip((source, target), counts, strict=True):
        lengths.hist(one, bins=bins, density=True, alpha=0.5, label=side.name)
    lengths.set(title="words a text", yticks=[])
    lengths.legend(fontsize=8)
    found_words = found["vocabulary"].numbers
    more = list(found_words["more_in_target"].items())[::-1] + [
        (word, -z) for word, z in found_words["more_in_source"].items()
    ]
    words.barh(range(len(more)), [z for _, z in more], color=["tab:orange" if z > 0 else "tab:blue" for _, z in more])
    words.set_yticks(range(len(more)), [word for word, _ in more], fontsize=7)
    words.set(title="words that differ most")
    words.set_xlabel(f"more in {source.name}  < z-score >  more in {target.name}", fontsize=8)
    figure.savefig(file, dpi=120, metadata={"Software": None})


def _bars(axes: Axes, shares: dict[str, dict[str, float]], title: str, otherwise: str) -> None:
    """Draw shares by name, a colour for each of what has them; or say why there are none."""
    axes.set_title(title)
    largest = {name: max(some.get(name, 0.0) for some in shares.values()) for some in shares.values() for name in some}
    names = sorted(largest, key=lambda name: -largest[name])[:SHOWN]
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
