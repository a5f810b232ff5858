"""What is known about a model, from its run.json, as Markdown: scores with intervals, controls, circumstances."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path
from typing import Any

SCALE = ("Scores in %, with 95 % bootstrap intervals over the test texts; gains are in points of the metric that "
         "the run reports, paired. The first rows know the labels of the test texts.")  # fmt: skip


def test_set(run: dict[str, Any]) -> str:
    """Return the name of the set that the headline is about."""
    return "target_test" if "target_test" in run["metrics"] else "source_test"


def about(run: dict[str, Any]) -> str:
    """Say in a few sentences what the model does and how well."""
    data, scores = run["data"], run["metrics"][test_set(run)]
    source = ", ".join(plain(name) for name in data["domains"] if name != data["target"])
    labels = [f"**{plain(name)}**" for name in run["label_names"]]
    several = ", ".join(labels[:12]) + (", ..." if len(labels) > 12 else "")
    words = several if len(labels) != 2 else " or ".join(labels)
    path = f"from {source} to {plain(data['target'])}" if data["target"] else f"on {source}"
    tested = f"texts of {plain(data['target'])}" if data["target"] else "held-out texts"
    how = "; ".join([run["method"], *run.get("happened", [])])
    return (f"Labels a text as {words}. The model: {plain(base_model(run))}, adapted {path} ({plain(how)}). "
            f"On {scores['n']:,} {tested} it is right in {interval(scores, 'accuracy')} % of cases.")  # fmt: skip


def verdict(run: dict[str, Any]) -> str:
    """Return what the run's report says of its test texts."""
    return plain(run["verdict"])


def scores(models: list[tuple[str, dict[str, Any]]]) -> str:
    """Return the table of (name, run) pairs below their controls; controls on the same data appear once."""
    groups: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = {}
    for name, run in models:
        groups.setdefault((run["data"]["fingerprint"], test_set(run)), []).append((name, run))
    lines = []
    for group in groups.values():
        _, run = group[0]
        for known in run["metrics"]["references"][test_set(run)].values():
            values = [f"{100 * known[name]:.1f}" for name in ("accuracy", "macro_f1")]
            lines.append([plain(known["name"]), _tested(run), *values, "", ""])
        for control in run["metrics"]["controls"].values():
            lines.append([plain(control["name"]) + _flag(control, run), *_scores(control, run), ""])
        for name, run in group:
            title = name if name == run["method"] else f"{name} ({run['method']})"
            gain = _gain(run["metrics"]["differences"][test_set(run)]["tfidf"])
            lines.append([f"**{plain(title)}**" + _flag(run["metrics"], run), *_scores(run["metrics"], run), gain])
    header = ["", "tested on", "accuracy", "macro-F1", "on source", "over TF-IDF"]
    return table(header, lines)


def _scores(sets: dict[str, Any], run: dict[str, Any]) -> list[str]:
    tested, source = sets[test_set(run)], sets.get("source_test")
    return [
        _tested(run),
        interval(tested, "accuracy"),
        interval(tested, "macro_f1"),
        f"{100 * source['accuracy']:.1f}" if source else "",
    ]


def _tested(run: dict[str, Any]) -> str:
    return f"{plain(run['data']['target'] or 'source')}, {run['metrics'][test_set(run)]['n']:,} texts"


def _flag(sets: dict[str, Any], run: dict[str, Any]) -> str:
    return " (collapsed)" if sets[test_set(run)].get("collapsed") else ""


def per_class(run: dict[str, Any]) -> str:
    """Return precision, recall and F1 of each label."""
    lines = [
        [plain(label), *(f"{100 * row[name]:.1f}" for name in ("precision", "recall", "f1")), f"{row['support']:.0f}"]
        for label, row in run["metrics"][test_set(run)]["per_class"].items()
    ]
    return table(["label", "precision", "recall", "F1", "texts"], lines)


def slices(run: dict[str, Any]) -> str:
    """Return the accuracy on parts of the test texts; nothing where there are none."""
    parts = run["metrics"][test_set(run)].get("slices") or []
    lines = [[plain(part["slice"]), f"{part['n']:,}",
              _range(part["accuracy"], part["low"], part["high"])] for part in parts]  # fmt: skip
    return table(["part of the test texts", "texts", "accuracy"], lines) if lines else ""


def circumstances(run: dict[str, Any]) -> str:
    """Return a list of how the model was made."""
    rows = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in run["data"]["rows"].items() if count)
    seconds = ", ".join(f"{plain(stage)} {value:.1f}" for stage, value in run["seconds"].items())
    lines = {
        "base model": f"{plain(base_model(run))}, {run['parameters']:,} parameters, "
                      f"{run['trainable_parameters']:,} of them trained",
        "texts": rows,
        "data fingerprint": f"`{run['data']['fingerprint'][:16]}`",
        "seed": run["seed"],
        "hardware": f"{plain(run['hardware'])}, {run['precision']}, {run['world_size']} process(es)",
        "seconds": seconds,
        "made": plain(run["created"]),
    }  # fmt: skip
    before, after = run["metrics"].get("source_test_before"), run["metrics"].get("source_test")
    if before and after:
        lines["source accuracy"] = (f"{100 * before['accuracy']:.1f} % before training, "
                                    f"{100 * after['accuracy']:.1f} % after")  # fmt: skip
    return "\n".join(f"- {name}: {value}" for name, value in lines.items())


def picture(folder: Path, run: dict[str, Any]) -> str:
    """Return report.png as HTML, the image inside; nothing where there is none."""
    file = folder / "report.png"
    if not file.is_file():
        return ""
    content = base64.b64encode(file.read_bytes()).decode()
    words = f"Plots of this run: accuracy with intervals beside its controls, and calibration. {verdict(run)}"
    return f'<img class="report" src="data:image/png;base64,{content}" alt="{html.escape(words)}">'


def base_model(run: dict[str, Any]) -> str:
    """Return the base model's name; of a folder only its last part."""
    return Path(run["model"]).name if run["model"].startswith(("/", ".", "~")) else run["model"]


def interval(scores: dict[str, Any], name: str) -> str:
    """Return a score in % with its interval."""
    return _range(scores[name], *scores["intervals"][name])


def _gain(gain: dict[str, float]) -> str:
    return _range(gain["value"], gain["low"], gain["high"], "+")


def _range(value: float, low: float, high: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def table(header: list[str], lines: list[list[str]]) -> str:
    """Return a Markdown table, numbers to the right."""
    marks = ["---", *["---:" if line != "tested on" else "---" for line in header[1:]]]
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, marks, *lines])


def plain(text: str) -> str:
    """Return `text` such that neither Markdown nor HTML reads anything into it."""
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))
