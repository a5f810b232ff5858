"""Accuracy on the Amazon reviews (Blitzer et al. 2007): train on 2,000 of a source, test on 2,000 of each target.

    python benchmarks/amazon.py --data path/to/amazon_mds --jobs frozen:all lora:electronics full:electronics,books

A job is METHOD:SOURCES. One training serves three targets. Runs are kept under --work, so a stopped benchmark goes on
where it was; the dated table goes to benchmarks/.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "recipes"))

DOMAINS = ("books", "dvd", "electronics", "kitchen")


def main() -> None:
    """Run the jobs and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with <domain>.labeled.jsonl.gz")
    parser.add_argument("--jobs", nargs="+", required=True, help="METHOD:SOURCE[,SOURCE...] or METHOD:all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", default="runs/amazon", help="where the runs are kept")
    parser.add_argument("--name", default="amazon", help="name of the table's file")
    arguments = parser.parse_args()
    rows = []
    for job in arguments.jobs:
        method, _, sources = job.partition(":")
        for source in DOMAINS if sources == "all" else sources.split(","):
            rows += evaluate(method, source, arguments)
    write(pd.DataFrame(rows), arguments)


def evaluate(method: str, source: str, arguments: argparse.Namespace) -> list[dict]:
    """Train once on `source`; returns one row a target."""
    from finetune import main as finetune

    from hf_transfer.evaluation import intervals, paired_difference
    from hf_transfer.predict import predict_rows
    from hf_transfer.results import load_run

    data, folder = Path(arguments.data), Path(arguments.work) / f"{method}-{source}-seed{arguments.seed}"
    targets = [name for name in DOMAINS if name != source]
    file = {name: str(data / f"{name}.labeled.jsonl.gz") for name in DOMAINS}
    if not (folder / "run.json").is_file():
        finetune(["--method", method, "--source", file[source], "--target", file[targets[0]], "--max_length", "256",
                  "--validation_fraction", "0", "--test_fraction", "0", "--seed", str(arguments.seed),
                  "--output_dir", str(folder)])  # fmt: skip
    run = load_run(folder)
    out = []
    for target in targets:
        scored = folder / f"scored-{target}.parquet"
        if not scored.is_file():
            predict_rows(str(folder), file[target], str(scored))
        frame = pd.read_parquet(scored)
        right = (frame["prediction"].astype(int) == frame["label"]).to_numpy()
        baseline = tfidf_right(source, target, arguments)
        low, high = intervals(frame["prediction"].astype(int).to_numpy(), frame["label"].to_numpy())["accuracy"]
        difference = paired_difference(right, baseline)
        seconds = run.seconds["prepare"] + run.seconds["train"]
        out.append({"method": method, "source": source, "target": target, "accuracy": right.mean(), "low": low,
                    "high": high, "tfidf": baseline.mean(), "gain": difference["value"], "gain_low": difference["low"],
                    "gain_high": difference["high"], "seconds": seconds,
                    "choice": run.choices.get("layer", "")})  # fmt: skip
    return out


def tfidf_right(source: str, target: str, arguments: argparse.Namespace) -> np.ndarray:
    """Which rows of `target` the TF-IDF control gets right (cached)."""
    from hf_transfer.arguments import DataArguments
    from hf_transfer.controls import run_controls
    from hf_transfer.data import load_data
    from hf_transfer.resources import Meter

    file = Path(arguments.work) / f"tfidf-{source}-{target}.npy"
    if not file.is_file():
        paths = [str(Path(arguments.data) / f"{name}.labeled.jsonl.gz") for name in (source, target)]
        domains = load_data(DataArguments([paths[0]], paths[1], validation_fraction=0, test_fraction=0), arguments.seed)
        with Meter() as meter:
            logits = run_controls(domains, None, arguments.seed, meter)["tfidf"].logits["target_test"]
        np.save(file, logits.argmax(axis=1) == np.array(domains.target_test["label"][:]))
    return np.load(file)


def write(table: pd.DataFrame, arguments: argparse.Namespace) -> None:
    """Write the table with means by method, intervals and circumstances."""
    from hf_transfer.resources import hardware, versions

    today = datetime.date.today().isoformat()
    tools = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [
        f"# Amazon reviews, {today}",
        "",
        f"Train on the source's 2,000 reviews, test on the target's 2,000; `--max_length 256`, seed {arguments.seed}, "
        "default encoder (all-MiniLM-L6-v2), the methods' own defaults, no validation rows (the last checkpoint). "
        "Accuracy in %, 95 % bootstrap intervals over the test rows; the gain over TF-IDF + logistic regression is "
        "paired. Seconds are those of preparing and training, shared by the three targets of a source.",
        "",
        f"{hardware()}; {tools}.",
        "",
        f"Command: `python benchmarks/amazon.py --data ... --jobs {' '.join(arguments.jobs)}`",
        "",
        "| method | source -> target | accuracy | TF-IDF | gain | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for r in table.itertuples():
        lines.append(
            f"| {r.method} | {r.source} -> {r.target} | {100 * r.accuracy:.1f} [{100 * r.low:.1f}, {100 * r.high:.1f}] "
            f"| {100 * r.tfidf:.1f} | {100 * r.gain:+.1f} [{100 * r.gain_low:+.1f}, {100 * r.gain_high:+.1f}] "
            f"| {r.seconds:.0f} |"
        )
    lines += ["", "| method | pairs | mean accuracy | TF-IDF on the same pairs |", "|---|---|---|---|"]
    for method, part in table.groupby("method", sort=False):
        lines.append(
            f"| {method} | {len(part)} | {100 * part['accuracy'].mean():.2f} | {100 * part['tfidf'].mean():.2f} |"
        )
    text = "\n".join(lines) + "\n"
    (HERE / f"{arguments.name}-{today}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
