"""Does a verdict mislead where the target's mix of labels is not the source's: real reviews, thinned by label.

    python benchmarks/skewed_labels.py --data path/to/amazon_mds --work runs/skewed
    python benchmarks/skewed_labels.py --data path/to/amazon_mds --work runs/skewed --pairs books:kitchen --arms frozen

The source has as many rows of each label; of the target's so many are left out that 90 % (or 10 %) are positive, or
that three labels (one star; two or four; five) have 65, 25 and 10 %. Each is a whole `compare`, checked against what
must hold: nothing below a constant of the test labels is called a help or recommended, and where metrics conflict the
first line says so. Finished comparisons stay under --work. The dated table goes to benchmarks/.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import random
from pathlib import Path
from typing import Any

from hf_transfer.compare import compare
from hf_transfer.verdict_words import sentences

HERE = Path(__file__).resolve().parent
PAIRS = ("books:kitchen", "electronics:dvd")
MIXES = {
    "90 / 10": {"positive": 0.9, "negative": 0.1},
    "10 / 90": {"positive": 0.1, "negative": 0.9},
    "65 / 25 / 10": {"middling": 0.65, "good": 0.25, "bad": 0.1},
    "10 / 25 / 65": {"bad": 0.65, "good": 0.25, "middling": 0.1},
}
THREE = {1.0: "bad", 2.0: "middling", 4.0: "middling", 5.0: "good"}  # by stars


def main() -> None:
    """Compare on every pair and mix, check, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with <domain>.labeled.jsonl.gz")
    parser.add_argument("--work", required=True, help="folder for tables and comparisons")
    parser.add_argument("--pairs", nargs="*", default=list(PAIRS), help="source:target")
    parser.add_argument("--mixes", nargs="*", default=list(MIXES), choices=list(MIXES))
    parser.add_argument("--arms", default="frozen,lora,full")
    parser.add_argument("--source_rows", type=int, default=400)
    parser.add_argument("--target_rows", type=int, default=500)
    parser.add_argument("--target_shots", default="0")
    parser.add_argument("--max_length", default="64")
    parser.add_argument("--budget", default="5m")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    found = [(pair, mix, verdict_of(arguments, pair, mix)) for pair in arguments.pairs for mix in arguments.mixes]
    write(arguments, found)


def verdict_of(arguments: argparse.Namespace, pair: str, mix: str) -> dict[str, Any]:
    """Run one comparison and return its facts, checked."""
    folder = Path(arguments.work) / f"{pair.replace(':', '-')} {mix.replace(' / ', '-')}"
    folder.mkdir(parents=True, exist_ok=True)
    shares, (source, target) = MIXES[mix], pair.split(":")
    even = dict.fromkeys(shares, 1 / len(shares))
    tables = {}
    for name, wanted, count in ((source, even, arguments.source_rows), (target, shares, arguments.target_rows)):
        rows = thinned(labelled(Path(arguments.data), name, three=len(shares) == 3), wanted, count, arguments.seed)
        tables[name] = folder / f"{name}.jsonl"
        tables[name].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    compare(["--source", str(tables[source]), "--target", str(tables[target]), "--arms", arguments.arms, "--seeds", "1",
             "--max_length", arguments.max_length, "--budget", arguments.budget, "--target_shots",
             arguments.target_shots, "--seed", str(arguments.seed),
             "--output_dir", str(folder / "verdict")])  # fmt: skip
    facts: dict[str, Any] = json.loads((folder / "verdict" / "verdict.json").read_text(encoding="utf-8"))
    check(facts)
    return facts


def labelled(data: Path, domain: str, *, three: bool) -> list[dict[str, str]]:
    """Return a domain's reviews with their labels by name."""
    with gzip.open(data / f"{domain}.labeled.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    names = ("negative", "positive")
    return [{"text": row["text"], "label": THREE[row["rating"]] if three else names[row["label"]]}
            for row in rows if not row["dup"]]  # fmt: skip


def thinned(rows: list[dict[str, str]], shares: dict[str, float], count: int, seed: int) -> list[dict[str, str]]:
    """Return at most `count` rows drawn such that labels have these shares."""
    draw = random.Random(seed)
    by_label = {label: [row for row in rows if row["label"] == label] for label in shares}
    count = min(count, *(int(len(by_label[label]) / share) for label, share in shares.items()))
    chosen = [row for label, share in shares.items() for row in draw.sample(by_label[label], round(share * count))]
    draw.shuffle(chosen)
    return chosen


def check(facts: dict[str, Any]) -> None:
    """Check what no verdict may do.

    Raises:
        AssertionError: what is not above a constant is a help or recommended, or a conflict is not said first.
    """
    above = {one["name"]: True for one in facts["candidates"]}
    for one in facts["against_references"]:
        above[one["arm"]] &= one["effect"]["low"] > 0
    verdict, said = facts["verdict"], sentences(facts)
    for name in (*verdict["helping"], *filter(None, [verdict["recommended"]])):
        assert above[name], f"{name} is not above a constant of the test labels"
    if verdict["conflicts"]:
        assert said[0].startswith("Accuracy and macro-F1 disagree"), said[0]
        assert verdict["recommended"] is None or facts["metric"]["settled"]


def write(arguments: argparse.Namespace, found: list[tuple[str, str, dict[str, Any]]]) -> None:
    """Write the dated table."""
    today = datetime.date.today().isoformat()
    lines = [
        f"# Verdicts where the labels' mix differs, {today}",
        "",
        f"Amazon reviews: {arguments.source_rows} rows of the source, as many of each label; up to "
        f"{arguments.target_rows} of the target, thinned by label; {arguments.max_length} tokens, "
        f"{arguments.target_shots} target labels a class, seed {arguments.seed}, arms {arguments.arms}. In %, 95 % "
        "intervals over test rows. No line calls a help or recommends what is not shown above the constants.",
        "",
        f"Command: `python benchmarks/skewed_labels.py --data path/to/amazon_mds --work runs/skewed --pairs "
        f"{' '.join(arguments.pairs)} --arms {arguments.arms} --budget {arguments.budget} --target_shots "
        f"{arguments.target_shots}`",
        "",
        "| pair | target's mix | rows | metric | commonest label of the target | arm | score | accuracy | macro-F1 | "
        "helps | recommended | first line |",
        "|---" * 12 + "|",
    ]
    for pair, mix, facts in found:
        (most, *_) = facts["references"]
        said = sentences(facts)[0].split(";")[0].split(":")[0]
        for one in facts["candidates"]:
            if not one["arm"]:
                continue
            low, high = (100 * bound for bound in one["interval"])
            lines.append("| " + " | ".join([
                pair.replace(":", " -> "), mix, f"{facts['test_rows']}", facts["metric"]["title"],
                f"{100 * most['score']:.1f}", one["name"] + (" (collapsed)" if one["collapsed"] else ""),
                f"{100 * one['score']:.1f} [{low:.1f}, {high:.1f}]", f"{100 * one['accuracy']:.1f}",
                f"{100 * one['macro_f1']:.1f}", "yes" if one["name"] in facts["verdict"]["helping"] else "no",
                facts["verdict"]["recommended"] or "nothing", said,
            ]) + " |")  # fmt: skip
    text = "\n".join(lines) + "\n"
    (HERE / f"skewed-labels-{today}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
