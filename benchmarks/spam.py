"""From text messages to comments under videos: another kind of text, four times as much spam, no target labels.

    python benchmarks/spam.py --data path/to/shared/data --seeds 0 1 2

Source: SMS Spam Collection (13 % spam). Target: YouTube Spam Collection (51 % spam), tested on its test split; its
training split, without labels, is the pool. Finished runs stay under --work. `label_prior+METHOD` is METHOD with its
predictions corrected by the mix of labels that EM finds in the tested texts (`predict --label_prior em`).
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import importlib
import json
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap
from sklearn.metrics import f1_score

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "recipes"))

ARMS = {
    "full": ("finetune", ["--method", "full"]),
    "frozen": ("finetune", ["--method", "frozen"]),
    "self_train+full": ("self_train", ["--method", "full"]),
    "self_train+frozen": ("self_train", ["--method", "frozen"]),
    **{f"{name}+full": ("adapt_domain", ["--method", "full", "--alignment", name])
       for name in ("coral", "mmd", "dann", "cdan", "jdot")},
    **{f"{name}+{method}": ("adapt_domain", ["--method", method, "--alignment", "none", "--source_weights", name])
       for name in ("importance", "nearest") for method in ("full", "frozen")},
    **{f"map_{name}+frozen": ("adapt_domain", ["--method", "frozen", "--feature_map", name])
       for name in ("coral", "moments", "subspace")},
    **{f"{name}+{method}": ("finetune", ["--method", method, "--model", f"{{{name}}}"])
       for name in ("mlm", "tsdae") for method in ("full", "frozen")},
    "udalm+full": ("adapt_domain", ["--method", "full", "--alignment", "udalm", "--model", "{mlm}"]),
    "label_prior+full": ("finetune", ["--method", "full"]),
    "label_prior+frozen": ("finetune", ["--method", "frozen"]),
}  # fmt: skip


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with spam_sms/ and spam_youtube/")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--source_rows", type=int, help="random messages, to end sooner; a --work for each")
    parser.add_argument("--work", default="runs/spam", help="where the runs are kept")
    arguments = parser.parse_args()
    rows = [measure(arm, seed, arguments) for arm in arguments.arms for seed in arguments.seeds]
    write(pd.DataFrame(rows), arguments)


def measure(arm: str, seed: int, arguments: argparse.Namespace) -> dict:
    """Train where that was not done before: which test rows are right, and the seconds it took."""
    from hf_transfer.results import load_run

    recipe, flags = ARMS[arm]
    folder = Path(arguments.work) / f"{arm.removeprefix('label_prior+')}-seed{seed}"
    if not (folder / "run.json").is_file():
        data = Path(arguments.data)
        more = ["--target_unlabeled", str(pool(arguments))] if recipe != "finetune" else []
        flags = [str(pretrained(flag[1:-1], seed, arguments)) if flag.startswith("{") else flag for flag in flags]
        importlib.import_module(recipe).main(
            ["--source", str(source(arguments)), "--target",
             str(data / "spam_youtube" / "youtube_spam.jsonl.gz"), "--max_length", "128", "--seed", str(seed),
             "--output_dir", str(folder), "--quiet", *flags, *more])  # fmt: skip
    run, tested = load_run(folder), pd.read_parquet(folder / "predictions.parquet")
    tested = tested[tested["set"] == "target_test"].sort_values("row")
    found = corrected(run, tested) if arm.startswith("label_prior+") else tested["prediction"].to_numpy()
    right = found == tested["label"].to_numpy()
    spam, stopped = float((found == "1").mean()), run.choices.get("alignment_stopped", "")
    print(f"{arm:20} seed {seed} {100 * right.mean():5.1f} %, {100 * spam:.0f} % called spam {stopped}", flush=True)
    return {"arm": arm, "seed": seed, "right": right, "spam": spam,
            "f1": f1_score(tested["label"], found, average="macro"),
            "tfidf": run.metrics["controls"]["tfidf"]["target_test"]["accuracy"],
            "seconds": run.seconds["total"]}  # fmt: skip


def corrected(run: Any, tested: pd.DataFrame) -> np.ndarray:
    """Return the labels of the tested rows under the mix that EM finds in them."""
    from hf_transfer.held_out import held_out
    from hf_transfer.label_prior import estimate, training_mix

    outputs = tested[[f"p_{name}" for name in run.label_names]].to_numpy()
    mix = estimate("em", outputs, training_mix(run), held_out(run, run.label_names))
    print(mix.summary(run.label_names))
    return np.array(run.label_names)[mix.apply(outputs).argmax(1)]


def pretrained(objective: str, seed: int, arguments: argparse.Namespace) -> Path:
    """Return the encoder that was trained on the target's texts."""
    folder = Path(arguments.work) / f"{objective}-seed{seed}"
    if not (folder / "pretraining.json").is_file():
        importlib.import_module("pretrain_domain").main(
            ["--objective", objective, "--target_unlabeled", str(pool(arguments)), "--max_length", "128", "--seed",
             str(seed), "--output_dir", str(folder), "--quiet"])  # fmt: skip
    return folder


def source(arguments: argparse.Namespace) -> Path:
    """Return the table of messages, or one of so many of them, drawn at random by the first seed."""
    whole = Path(arguments.data) / "spam_sms" / "sms_spam.jsonl.gz"
    if not arguments.source_rows:
        return whole
    path = Path(arguments.work) / "source.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(whole, "rt", encoding="utf-8") as lines:
        drawn = random.Random(arguments.seeds[0]).sample(list(lines), arguments.source_rows)
    path.write_text("".join(drawn), encoding="utf-8")
    return path


def pool(arguments: argparse.Namespace) -> Path:
    """Return a table of the texts of the target's training split."""
    path = Path(arguments.work) / "pool.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        gzip.open(Path(arguments.data) / "spam_youtube" / "youtube_spam.jsonl.gz", "rt", encoding="utf-8") as lines,
        path.open("w", encoding="utf-8") as out,
    ):
        rows = map(json.loads, lines)
        out.writelines(json.dumps({"text": row["text"]}) + "\n" for row in rows if row["split"] == "train")
    return path


def write(rows: pd.DataFrame, arguments: argparse.Namespace) -> None:
    """Write the dated table."""
    from hf_transfer.resources import hardware, versions

    today = datetime.date.today().isoformat()
    tools = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [
        f"# SMS spam to YouTube spam, {today}",
        "",
        f"Train on the training split of {arguments.source_rows or 'all'} messages and the target's unlabelled "
        "texts, test on the target's "
        f"{len(rows['right'][0])} test comments; default encoder (all-MiniLM-L6-v2), the methods' own defaults, seeds "
        f"{arguments.seeds}. Accuracy in %; the difference to {arguments.arms[0]} is paired, with a 95 % bootstrap "
        f"interval over the rows, seeds averaged. TF-IDF + logistic regression reaches {100 * rows['tfidf'][0]:.1f} %.",
        "",
        f"{hardware()}; {tools}.",
        "",
        f"Command: `python benchmarks/spam.py --data ... --arms {' '.join(arguments.arms)} --seeds "
        f"{' '.join(map(str, arguments.seeds))}"
        f"{f' --source_rows {arguments.source_rows}' if arguments.source_rows else ''}`",
        "",
        f"| arm | accuracy by seed | mean | macro-F1 | called spam, % | difference to {arguments.arms[0]} | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    base = np.mean(list(rows[rows["arm"] == arguments.arms[0]]["right"]), axis=0)
    for arm in arguments.arms:
        own = rows[rows["arm"] == arm]
        gains, gain = 100 * (np.mean(list(own["right"]), axis=0) - base), ""
        if gains.any():
            low, high = bootstrap((gains,), np.mean, n_resamples=2000, method="percentile", rng=0).confidence_interval
            gain = f"{gains.mean():+.1f} [{low:+.1f}, {high:+.1f}]"
        by_seed = ", ".join(f"{100 * right.mean():.1f}" for right in own["right"])
        lines.append(f"| {arm} | {by_seed} | {100 * np.mean([right.mean() for right in own['right']]):.1f} | "
                     f"{100 * own['f1'].mean():.1f} | {100 * own['spam'].mean():.0f} | {gain} | "
                     f"{statistics.median(own['seconds']):.0f} |")  # fmt: skip
    text = "\n".join(lines) + "\n"
    (HERE / f"spam-{today}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
