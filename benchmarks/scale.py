"""From a thousand rows to a million: cost of a row, and memory, of `hf-transfer predict` and of training.

    python benchmarks/scale.py RUN --rows 1000 10000 100000 1000000
    python benchmarks/scale.py RUN --work train --rows 10000 100000 1000000

Texts come from the embedded corpus, each with its row number. A small model shows what the rest costs: reading,
tokenising, sorting, writing. Training reads, checks, splits and tokenises all rows, and takes 5 steps.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Measure every size and write the dated table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a finished run; its model is also what --work train starts from")
    parser.add_argument("--work", choices=["predict", "train"], default="predict")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    arguments = parser.parse_args()
    corpus = [json.loads(line) for file in sorted((HERE.parent / "hf_transfer" / "corpus").glob("*.labeled.jsonl"))
              for line in file.read_text(encoding="utf-8").splitlines()]  # fmt: skip
    table = []
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            table.append((rows, *measure(arguments, corpus, rows, Path(folder))))
        print(table[-1], flush=True)
    write(arguments, table)


def measure(
    arguments: argparse.Namespace, corpus: list[dict[str, str]], rows: int, folder: Path
) -> tuple[float, float, float, float]:
    """Return seconds, MB of input, and the largest resident and anonymous memory in MB, of `rows` rows."""
    data, output = folder / "rows.jsonl", folder / "scored.jsonl"
    with data.open("w", encoding="utf-8") as stream:
        for i, row in zip(range(rows), itertools.cycle(corpus)):
            stream.write(json.dumps({"id": i, "text": f"{row['text']} {i}", "label": row["label"]}) + "\n")
    words = ["predict", arguments.run, str(data), "--output", str(output)]
    if arguments.work == "train":
        words = [
            "run", "finetune", "--model", arguments.run, "--source", str(data), "--output_dir", str(folder / "run"),
            "--max_steps", "5", "--eval_strategy", "no", "--load_best_model_at_end", "False", "--test_fraction", "0.01",
            "--validation_fraction", "0", "--max_length", "64", "--text_column", "text", "--label_column", "label",
        ]  # fmt: skip
    begin, resident, anonymous = time.perf_counter(), 0, 0
    command = [sys.executable, "-m", "hf_transfer.cli", *words, "--quiet"]
    environment = os.environ | {"HF_TRANSFER_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "home")}
    with subprocess.Popen(command, cwd=HERE.parent, env=environment) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                memory = watched.memory_info()
            except psutil.NoSuchProcess:
                break
            resident, anonymous = max(resident, memory.rss), max(anonymous, memory.rss - memory.shared)
            time.sleep(0.05)
    seconds = time.perf_counter() - begin
    assert process.returncode == 0
    if arguments.work == "predict":
        with output.open(encoding="utf-8") as stream:
            assert [json.loads(line)["id"] for line in stream] == list(range(rows))
    return seconds, data.stat().st_size / 1e6, resident / 1e6, anonymous / 1e6


def write(arguments: argparse.Namespace, table: list[tuple[int, float, float, float, float]]) -> None:
    """Write the dated table."""
    from hf_transfer.resources import hardware, versions

    run = json.loads((Path(arguments.run) / "run.json").read_text(encoding="utf-8"))
    today = datetime.date.today().isoformat()
    tools = ", ".join(f"{name} {version}" for name, version in versions().items())
    first = table[0]
    name = "scale" if arguments.work == "predict" else "scale-train"
    words = "" if arguments.work == "predict" else "--work train "
    lines = [f"# Scale of {arguments.work}, {today}", "",
             f"{hardware()}; {tools}. A {run['method']} run with {run['parameters']:,} parameters; measured once.",
             "", f"Command: `python benchmarks/scale.py RUN {words}--rows {' '.join(map(str, arguments.rows))}`", "",
             "| rows | input, MB | seconds | ms a row, beyond the smallest | resident, MB | anonymous, MB |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for rows, seconds, size, resident, anonymous in table:
        cost = f"{1000 * (seconds - first[1]) / (rows - first[0]):.3f}" if rows > first[0] else ""
        lines.append(f"| {rows:,} | {size:.1f} | {seconds:.1f} | {cost} | {resident:.0f} | {anonymous:.0f} |")
    text = "\n".join(lines) + "\n"
    (HERE / f"{name}-{today}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
