"""Which pretrained model and which layer fit the labels, from one pass of features (`hf-transfer rank`)."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np

from hf_transfer.errors import UserError
from hf_transfer.results import write_atomically
from hf_transfer.samples import out_folder, read_domain, sides

FEWEST = 5  # rows of each label, so that every fold has one


def rank_models(
    models: list[str],
    source: str,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    output_dir: str | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> str:
    """Score every layer of every model on labelled rows; returns the table, best first, also written if asked for.

    Args:
        models: folders or Hub ids; none for the embedded encoder.
        source: a labelled table.
        text_column: guessed where obvious.
        label_column: likewise.
        output_dir: where rank.md and rank.json go.
        seed: of the sample and the folds.
        quiet: no progress bars.

    Raises:
        UserError: a table or model that can't be read, or too few rows.
    """
    from hf_transfer import tasks, transferability
    from hf_transfer.arguments import ModelArguments
    from hf_transfer.console import Console
    from hf_transfer.models import default_model, load_model, public_name

    Console(quiet=quiet)
    folder = out_folder(output_dir)
    domain = read_domain(source, text_column=text_column, label_column=label_column, seed=seed, labelled=True,
                         quiet=quiet)  # fmt: skip
    assert domain.labels is not None
    names, labels = np.unique(domain.labels, return_inverse=True)
    counts = np.bincount(labels)
    if len(names) < 2 or counts.min() < FEWEST:
        raise UserError(f"{domain.table.name}: of {len(names)} labels the rarest has {counts.min()} rows in the "
                        f"sample; at least 2 labels of {FEWEST} rows are needed.")  # fmt: skip
    rows: list[dict[str, Any]] = []
    for name in models or [default_model()]:
        begin = time.perf_counter()
        loaded = load_model(ModelArguments(model=name), tasks.load("text_classification"), ["0", "1"], seed)
        (side,) = sides([domain], loaded, quiet=quiet)
        encoding = time.perf_counter() - begin
        for layer in range(1, side.states.shape[1]):
            features = side.states[:, layer]
            begin = time.perf_counter()
            scores = {
                "logme": transferability.logme(features, labels),
                "h_score": transferability.h_score(features, labels),
                "neighbours": transferability.neighbours(features, labels, seed),
                "probe": transferability.probe(features, labels, seed),
            }
            seconds = round(time.perf_counter() - begin, 2)
            rows.append({"model": public_name(name), "layer": layer, **scores, "seconds": seconds,
                         "encoding_seconds": round(encoding, 2)})  # fmt: skip
    rows.sort(key=lambda row: -row["logme"])  # agreed best with accuracy on the target: benchmarks/ranking.py
    text = table(rows, len(labels))
    if folder is not None:
        facts = {"source": domain.table.name, "rows": len(labels), "seed": seed, "ranking": rows}
        write_atomically(folder / "rank.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        write_atomically(folder / "rank.md", text + "\n")
        text += f"\n\nwritten: {folder}/rank.md, rank.json"
    return text


def table(rows: list[dict[str, Any]], count: int) -> str:
    """Return the scores in Markdown, best LogME first, and a sentence on the best."""
    header = ("model", "layer", "LogME", "H-score", "probe", "nearest rows", "seconds")
    cells = [header, *((row["model"], str(row["layer"]), f"{row['logme']:.4f}", f"{row['h_score']:.3f}",
                        f"{row['probe']:.1%}", f"{row['neighbours']:.1%}", f"{row['seconds']:.1f}")
                       for row in rows)]  # fmt: skip
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    best, cost = rows[0], {row["model"]: row["encoding_seconds"] for row in rows}
    error = 1.96 * (best["probe"] * (1 - best["probe"]) / count) ** 0.5
    probed = max(rows, key=lambda row: row["probe"])
    other = "" if probed is best else f" (at best {probed['probe']:.1%}: layer {probed['layer']} of {probed['model']})"
    lines += ["", f"Best by LogME: layer {best['layer']} of {best['model']}; a linear probe on {count} rows is right "
              f"on {best['probe']:.1%} +- {error:.1%}{other}. Encoding took "
              f"{', '.join(f'{seconds:.1f} s ({name})' for name, seconds in cost.items())}."]  # fmt: skip
    return "\n".join(lines)
