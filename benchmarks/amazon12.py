"""Adaptation on the twelve ordered pairs of the Amazon reviews (Blitzer et al. 2007), 2,000 rows to 2,000 rows.

    python benchmarks/amazon12.py --data path/to/amazon_mds --arms full self_train+partial --pairs four
    python benchmarks/amazon12.py --data path/to/amazon_mds --arms full frozen self_train+frozen --pairs all --seeds 0 1

An arm is a METHOD (trained on the source alone, once for its three targets) or ADAPTATION+METHOD (trained once a pair).
`mlm` and `tsdae` continue pretraining on the target's texts first, once a target; `udalm` and `rewrite` begin there.
`--source_rows` and `--max_length` make a smaller experiment, which needs a --work of its own.
The unlabelled pool of a target is its `extra`, labels dropped, with its `unlabeled`. Finished runs stay under --work:
a stopped benchmark goes on where it was. The dated table goes to benchmarks/.
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

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "recipes"))

DOMAINS = ("books", "dvd", "electronics", "kitchen")
PAIRS = {
    "four": [("electronics", "books"), ("kitchen", "dvd"), ("books", "electronics"), ("dvd", "kitchen")],
    "all": [(source, target) for source in DOMAINS for target in DOMAINS if source != target],
    "three": [("others", target) for target in DOMAINS],  # three sources, one target
}
# adaptation -> recipe and flags; {METHOD} is the folder of the run of that method on the source alone
ADAPTATIONS = {
    # of the pool's some 7,000 texts 3,000, to end on two cores; --method frozen takes 2,000 by itself
    "self_train": (
        "self_train",
        ["--teachers", "{full}", "{frozen}", "--num_train_epochs", "2", "--pool_rows", "3000"],
    ),
    "self_train_alone": ("self_train", ["--teachers", "{own}", "--num_train_epochs", "2"]),
    **{name: ("adapt_domain", ["--alignment", name]) for name in ("coral", "mmd", "dann", "cdan", "jdot")},
    **{name: ("adapt_domain", ["--alignment", "none", "--source_weights", name]) for name in ("importance", "nearest")},
    **{f"map_{name}": ("adapt_domain", ["--feature_map", name]) for name in ("coral", "moments", "subspace")},
    "mixture": ("adapt_domain", ["--mixture_of_sources"]),
    "udalm": ("adapt_domain", ["--alignment", "udalm", "--model", "{mlm}"]),
    **{name: ("finetune", ["--model", f"{{{name}}}"]) for name in ("mlm", "tsdae")},
    "rewrite": ("finetune", []),
}
DRAWS, ROWS = 2000, 2000
PRETRAINED_ON = 2000  # texts of a pool


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with <domain>.{labeled,extra,unlabeled}.jsonl.gz")
    parser.add_argument("--arms", nargs="+", required=True, help=f"METHOD or {{{','.join(ADAPTATIONS)}}}+METHOD")
    parser.add_argument("--pairs", nargs="+", default=["four"], help="four, all, three, or SOURCE-TARGET")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--baseline", default="full", help="the arm that the others are compared with")
    parser.add_argument("--work", default="runs/amazon12", help="where the runs are kept")
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--source_rows", type=int, default=ROWS, help="labelled reviews of a source, drawn at random")
    parser.add_argument("--name", default="amazon12", help="name of the table's file")
    arguments = parser.parse_args()
    pairs = [pair for given in arguments.pairs for pair in PAIRS.get(given, [tuple(given.split("-"))])]
    arms = list(dict.fromkeys([arguments.baseline, *arguments.arms]))
    if "three" in arguments.pairs and (rewriting := [arm for arm in arms if arm.startswith("rewrite")]):
        parser.error(f"{rewriting[0]} rewrites one source; leave it or --pairs three out")
    rows = [measure(arm, source, target, seed, arguments)
            for arm in arms for source, target in pairs for seed in arguments.seeds]  # fmt: skip
    write(pd.DataFrame(rows), pairs, arms, arguments)


def measure(arm: str, source: str, target: str, seed: int, arguments: argparse.Namespace) -> dict:
    """Train where that was not done before: which rows of the target are right, and the seconds it took."""
    from hf_transfer.predict import predict_rows
    from hf_transfer.report import training_seconds
    from hf_transfer.results import load_run

    folder = (adapted if "+" in arm else alone)(arm, source, target, seed, arguments)
    if load_run(folder).data["target"] == target:
        frame = pd.read_parquet(folder / "predictions.parquet")
        frame = frame[frame["set"] == "target_test"].sort_values("row")
    else:  # trained beside another target, of which it saw nothing
        scored = folder / f"scored-{target}.parquet"
        if not scored.is_file():
            predict_rows(str(folder), file(target, "labeled", arguments), str(scored))
        frame = pd.read_parquet(scored)
    assert len(frame) == ROWS
    right = (frame["prediction"].astype(int) == frame["label"].astype(int)).to_numpy()
    spent, stopped = training_seconds(done := load_run(folder)), done.choices.get("alignment_stopped", "")
    print(f"{arm:24} {source:>12} -> {target:12} {100 * right.mean():5.1f} %  {spent:5.0f} s {stopped}", flush=True)
    return {"arm": arm, "source": source, "target": target, "seed": seed, "right": right, "seconds": spent,
            "stopped": bool(stopped)}  # fmt: skip


def alone(method: str, source: str, target: str, seed: int, arguments: argparse.Namespace) -> Path:
    """Return the run of `method` on the source alone; one source's serves all targets."""
    which = f"others-{target}" if source == "others" else source
    other = target if source == "others" else next(domain for domain in DOMAINS if domain != source)
    folder = Path(arguments.work) / f"{method}-{which}-seed{seed}"
    return run("finetune", method, source, other, seed, folder, [], arguments)


def adapted(arm: str, source: str, target: str, seed: int, arguments: argparse.Namespace) -> Path:
    """Return the run of an adaptation to one target."""
    adaptation, _, method = arm.partition("+")
    recipe, flags = ADAPTATIONS[adaptation]
    if method == "frozen" and recipe == "self_train":  # it has no epochs, and its own first head labels at once
        flags = [] if "{own}" in flags else flags[: flags.index("--num_train_epochs")]
    names = {name: method if name == "own" else name for name in ("full", "frozen", "own") if f"{{{name}}}" in flags}
    known = {f"{{{name}}}": str(alone(which, source, target, seed, arguments)) for name, which in names.items()}
    known |= {f"{{{name}}}": str(pretrained(name, target, seed, arguments)) for name in ("mlm", "tsdae")
              if f"{{{name}}}" in flags}  # fmt: skip
    flags = [known.get(flag, flag) for flag in flags]
    folder = Path(arguments.work) / f"{arm}-{source}-{target}-seed{seed}"
    if recipe != "finetune":
        flags += ["--target_unlabeled", str(pool(target, arguments))]
    if adaptation == "rewrite":
        flags += ["--source", str(rewritten(method, source, target, seed, arguments))]
    return run(recipe, method, source, target, seed, folder, flags, arguments)


def pretrained(objective: str, target: str, seed: int, arguments: argparse.Namespace) -> Path:
    """Return the encoder that was trained on the target's texts, for all sources."""
    folder = Path(arguments.work) / f"{objective}-{target}-seed{seed}"
    if not (folder / "pretraining.json").is_file():
        importlib.import_module("pretrain_domain").main(
            ["--objective", objective, "--target_unlabeled", str(pool(target, arguments)), "--max_rows",
             str(PRETRAINED_ON), "--max_length", str(arguments.max_length), "--seed", str(seed), "--output_dir",
             str(folder), "--quiet"])  # fmt: skip
    return folder


def rewritten(method: str, source: str, target: str, seed: int, arguments: argparse.Namespace) -> Path:
    """Return the source's table, rewritten by the model of target text and checked by the run on the source alone."""
    path = Path(arguments.work) / f"rewritten-{method}-{source}-{target}-seed{seed}.jsonl"
    if not path.is_file():
        importlib.import_module("rewrite_source").main(
            ["--source", str(labelled(source, arguments)), "--target_unlabeled", str(pool(target, arguments)),
             "--model", str(pretrained("mlm", target, seed, arguments)), "--classifier",
             str(alone(method, source, target, seed, arguments)), "--output", str(path), "--quiet"])  # fmt: skip
    return path


def run(recipe: str, method: str, source: str, target: str, seed: int, folder: Path, flags: list[str],
        arguments: argparse.Namespace) -> Path:  # fmt: skip
    """Run a recipe, unless its folder is there."""
    if not (folder / "run.json").is_file():
        sources = [domain for domain in DOMAINS if domain != target] if source == "others" else [source]
        importlib.import_module(recipe).main(
            ["--method", method, "--source", *[str(labelled(name, arguments)) for name in sources], "--target",
             file(target, "labeled", arguments), "--max_length", str(arguments.max_length), "--validation_fraction",
             "0", "--test_fraction", "0", "--seed", str(seed), "--output_dir", str(folder), "--quiet",
             *flags])  # fmt: skip
    return folder


def file(domain: str, kind: str, arguments: argparse.Namespace) -> str:
    """Return the path of one of a domain's files."""
    return str(Path(arguments.data) / f"{domain}.{kind}.jsonl.gz")


def labelled(source: str, arguments: argparse.Namespace) -> Path:
    """Return a table of the source's labelled reviews, or of so many of them, drawn at random once for all seeds."""
    whole = Path(file(source, "labeled", arguments))
    if arguments.source_rows == ROWS:
        return whole
    with gzip.open(whole, "rt", encoding="utf-8") as lines:
        drawn = random.Random(0).sample(list(lines), arguments.source_rows)
    return written(f"{source}.labeled.jsonl", drawn, arguments)


def pool(target: str, arguments: argparse.Namespace) -> Path:
    """Return a table of the target's unlabelled texts."""
    texts = []
    for kind in ("extra", "unlabeled"):
        with gzip.open(file(target, kind, arguments), "rt", encoding="utf-8") as lines:
            texts += [json.dumps({"text": json.loads(line)["text"]}) + "\n" for line in lines]
    return written(f"pool-{target}.jsonl", texts, arguments)


def written(name: str, lines: list[str], arguments: argparse.Namespace) -> Path:
    """Write lines under --work, whole or not at all: another process may read them."""
    from hf_transfer.results import write_atomically

    path = Path(arguments.work) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "".join(lines))
    return path


def mean_difference(rows: pd.DataFrame, arm: str, baseline: str) -> tuple[float, float, float]:
    """Return the mean of arm minus baseline, with a 95 % bootstrap interval over pairs and rows; seeds are averaged.

    Pairs with one target are tested on the same rows, so these are drawn once for all of them. The interval is about
    other pairs of these four domains, not about other domains: by simulation it holds 88 % of the time where gains
    differ by domain, not by pair.
    """
    cells = rows.groupby(["arm", "source", "target"])["right"].apply(lambda runs: np.mean(list(runs), axis=0))
    keys = list(cells.loc[arm].index)
    gains = np.stack([cells.loc[(arm, *key)] - cells.loc[(baseline, *key)] for key in keys])
    targets = np.unique([target for _, target in keys], return_inverse=True)[1]
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(DRAWS):
        drawn = rng.integers(0, ROWS, (targets.max() + 1, ROWS))
        draws.append(np.mean([gains[i, drawn[targets[i]]].mean() for i in rng.integers(0, len(keys), len(keys))]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(gains.mean()), float(low), float(high)


def write(rows: pd.DataFrame, pairs: list[tuple[str, str]], arms: list[str], arguments: argparse.Namespace) -> None:
    """Write the table: a row an arm, a column a pair, the mean, the difference to the baseline, the seconds."""
    from hf_transfer.resources import hardware, versions

    today = datetime.date.today().isoformat()
    tools = ", ".join(f"{name} {version}" for name, version in versions().items())
    heads = " | ".join(f"{source[0]}->{target[0]}" for source, target in pairs)
    lines = [
        f"# Adaptation without target labels, Amazon reviews, {today}",
        "",
        f"Train on {arguments.source_rows:,} reviews of the source and the target's unlabelled pool, test on "
        f"{ROWS:,} of the target; `--max_length {arguments.max_length}`, default encoder "
        f"(all-MiniLM-L6-v2), no validation rows; seeds {arguments.seeds}. "
        f"Accuracy in %; the difference to {arguments.baseline} is paired, with a 95 % bootstrap interval over pairs "
        "and test rows (of these four domains), seeds averaged. Seconds: the median of preparing, training and "
        "labelling, what was encoded before included; one training on the source alone serves three targets; "
        "teachers, continued pretraining and rewriting are not counted.",
        "",
        f"{hardware()}; {tools}.",
        "",
        f"Command: `python benchmarks/amazon12.py --data ... --arms {' '.join(arguments.arms)} --pairs "
        f"{' '.join(arguments.pairs)} --seeds {' '.join(map(str, arguments.seeds))} --source_rows "
        f"{arguments.source_rows} "
        f"--max_length {arguments.max_length} --baseline {arguments.baseline}`",
        "",
        f"| arm | {heads} | mean | difference to {arguments.baseline} | seconds |",
        "|---" * (len(pairs) + 4) + "|",
    ]
    for arm in arms:
        own = rows[rows["arm"] == arm]
        by_pair = [100 * np.mean([right.mean() for right in own[(own.source == s) & (own.target == t)]["right"]])
                   for s, t in pairs]  # fmt: skip
        value, low, high = (100 * number for number in mean_difference(rows, arm, arguments.baseline))
        gain = "" if arm == arguments.baseline else f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
        cells = " | ".join(f"{value:.1f}" for value in by_pair)
        stopped = f" (stopped early in {own['stopped'].sum()})" if own["stopped"].any() else ""
        lines.append(
            f"| {arm}{stopped} | {cells} | {np.mean(by_pair):.2f} | {gain} | {statistics.median(own['seconds']):.0f} |"
        )
    text = "\n".join(lines) + "\n"
    (HERE / f"{arguments.name}-{today}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
