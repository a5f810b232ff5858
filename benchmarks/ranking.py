"""Does `hf-transfer rank` order the layers as they turn out on the target? On the twelve Amazon pairs.

    python benchmarks/ranking.py --data path/to/amazon_mds

The scores come from the source's labelled rows alone. The truth is the accuracy on all rows of the target of logistic
regression that was trained on all rows of the source, layer by layer (`--max_length 256`).
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

HERE = Path(__file__).resolve().parent
DOMAINS = ("books", "dvd", "electronics", "kitchen")
SCORES = ("probe", "neighbours", "logme", "h_score")


def main() -> None:
    """Measure and write the dated table."""
    from hf_transfer.models import default_model
    from hf_transfer.rank import rank_models

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with <domain>.labeled.jsonl.gz")
    arguments = parser.parse_args()
    files = {domain: str(Path(arguments.data) / f"{domain}.labeled.jsonl.gz") for domain in DOMAINS}
    features = {domain: states(files[domain]) for domain in DOMAINS}
    rows, seconds = [], []
    for source in DOMAINS:
        with tempfile.TemporaryDirectory() as folder:
            rank_models([default_model()], files[source], output_dir=folder, quiet=True)
            ranking = json.loads((Path(folder) / "rank.json").read_text(encoding="utf-8"))["ranking"]
        ranking.sort(key=lambda row: row["layer"])
        seconds.append(ranking[0]["encoding_seconds"] + sum(row["seconds"] for row in ranking))
        for target in DOMAINS:
            if target != source:
                truth = [transferred(features, source, target, row["layer"]) for row in ranking]
                best = int(np.argmax(truth))
                found = {name: [row[name] for row in ranking] for name in SCORES}
                rows.append({
                    "pair": f"{source} -> {target}",
                    "truth": truth,
                    "best": best,
                    **{name: float(scipy.stats.spearmanr(values, truth).statistic) for name, values in found.items()},
                    **{f"{name} loss": truth[best] - truth[int(np.argmax(values))] for name, values in found.items()},
                })  # fmt: skip
                print(rows[-1], flush=True)
    write(rows, seconds)


def states(file: str) -> tuple[np.ndarray, np.ndarray]:
    """Return mean token states of every layer (rows, layers + 1, hidden) and labels of a table."""
    from hf_transfer import tasks
    from hf_transfer.arguments import ModelArguments, best_precision
    from hf_transfer.features import frozen_copy, pooled_states
    from hf_transfer.models import load_model
    from hf_transfer.tables import read_table

    table = read_table(file)
    task = tasks.load("text_classification")
    loaded = load_model(ModelArguments(), task, ["0", "1"], 0)
    encoded, _ = task.encode(loaded.tokenizer, table.texts.select(table.rows["row"]), 256)
    trunk = frozen_copy(loaded.model, best_precision())
    labels = table.rows["label"].to_numpy().astype(int)
    return pooled_states(trunk, encoded, task.collator(loaded.tokenizer)), labels


def transferred(features: dict[str, tuple[np.ndarray, np.ndarray]], source: str, target: str, layer: int) -> float:
    """Return the accuracy on the target of a probe that was trained on the source."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    probe.fit(features[source][0][:, layer], features[source][1])
    return float(probe.score(features[target][0][:, layer], features[target][1]))


def write(rows: list[dict[str, Any]], seconds: list[float]) -> None:
    """Write the dated table."""
    from hf_transfer.resources import hardware, versions
    from hf_transfer.samples import ROWS

    today = datetime.date.today().isoformat()
    tools = ", ".join(f"{name} {version}" for name, version in versions().items())
    layers = range(1, len(rows[0]["truth"]) + 1)
    lines = [
        f"# Ranking of layers against what they turn out to be worth, {today}",
        "",
        f"Spearman's rank correlation, over the layers of the default encoder, of each score on {ROWS} labelled source "
        "rows (`hf-transfer rank`) with the accuracy on the target of logistic regression trained on all source rows; "
        "and in brackets the points that the layer chosen by the score loses to the best one.",
        "",
        f"{hardware()}; {tools}. `rank` took {min(seconds):.0f} to {max(seconds):.0f} s a source.",
        "",
        "Command: `python benchmarks/ranking.py --data ...`",
        "",
        f"| pair | accuracy by layer {layers[0]} to {layers[-1]}, % | probe | nearest rows | LogME | H-score |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        truth = " ".join(f"{100 * value:.1f}" for value in row["truth"])
        cells = " | ".join(f"{row[name]:+.2f} ({100 * row[f'{name} loss']:.1f})" for name in SCORES)
        lines.append(f"| {row['pair']} | {truth} | {cells} |")
    means = " | ".join(f"{np.mean([row[name] for row in rows]):+.2f} "
                       f"({100 * np.mean([row[f'{name} loss'] for row in rows]):.1f})" for name in SCORES)  # fmt: skip
    lines.append(f"| **mean** | | {means} |")
    text = "\n".join(lines) + "\n"
    (HERE / f"ranking-{today}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
