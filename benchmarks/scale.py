"""`hf-transfer predict` from a thousand rows to a million: cost of a row, and memory.

    python benchmarks/scale.py RUN --rows 1000 10000 100000 1000000

Texts come from the embedded corpus, each with its row number. A small model shows what the rest costs: reading,
tokenising, sorting, writing.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
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
    parser.add_argument("run")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    arguments = parser.parse_args()
    corpus = [json.loads(line)["text"] for file in sorted((HERE.parent / "hf_transfer" / "corpus").glob("*.jsonl"))
              for line in file.read_text(encoding="utf-8").splitlines()]  # fmt: skip
    table = []
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            table.append((rows, *measure(arguments.run, corpus, rows, Path(folder))))
        print(table[-1], flush=True)
    write(arguments, table)


def measure(run: str, corpus: list[str], rows: int, folder: Path) -> tuple[float, float, float, float]:
    """Return seconds, MB of input, and the largest resident and anonymous memory in MB, of predicting `rows` rows."""
    data, output = folder / "rows.jsonl", folder / "scored.jsonl"
    with data.open("w", encoding="utf-8") as stream:
        for i, text in zip(range(rows), itertools.cycle(corpus)):
            stream.write(json.dumps({"id": i, "text": f"{text} {i}"}) + "\n")
    begin, resident, anonymous = time.perf_counter(), 0, 0
    command = [sys.executable, "-m", "hf_transfer.cli", "predict", run, str(data), "--output", str(output), "--quiet"]
    with subprocess.Popen(command, cwd=HERE.parent) as process:
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
    lines = [f"# Scale of predict, {today}", "",
             f"{hardware()}; {tools}. A {run['method']} run with {run['parameters']:,} parameters; measured once.",
             "", f"Command: `python benchmarks/scale.py RUN --rows {' '.join(map(str, arguments.rows))}`", "",
             "| rows | input, MB | seconds | ms a row, beyond the smallest | resident, MB | anonymous, MB |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for rows, seconds, size, resident, anonymous in table:
        cost = f"{1000 * (seconds - first[1]) / (rows - first[0]):.3f}" if rows > first[0] else ""
        lines.append(f"| {rows:,} | {size:.1f} | {seconds:.1f} | {cost} | {resident:.0f} | {anonymous:.0f} |")
    text = "\n".join(lines) + "\n"
    (HERE / f"scale-{today}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
