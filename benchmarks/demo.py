"""The demo app: seconds until the first answer, latency of a warm request, and 50,000 rows in *Batch*.

    python benchmarks/demo.py runs/quickstart --starts 5 --requests 100

The app runs as a process of its own. It is asked over one kept-alive HTTP connection, as a browser does, and through
gradio_client, which sets up a new one for every request. Texts come from the embedded corpus.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from gradio_client import Client, handle_file

HERE = Path(__file__).resolve().parent
APP = HERE.parent / "spaces" / "demo" / "app.py"
ROWS = 50_000


def main() -> None:
    """Measure and write the dated table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--requests", type=int, default=100)
    arguments = parser.parse_args()
    corpus = [json.loads(line)["text"] for file in sorted((HERE.parent / "hf_transfer" / "corpus").glob("*.jsonl"))
              for line in file.read_text(encoding="utf-8").splitlines()]  # fmt: skip
    started = []
    name = Path(arguments.run).resolve().name
    for _ in range(arguments.starts):
        with app(arguments.run) as (http, _, begin):
            ask(http, "predict", corpus[0], name)
            started.append(time.perf_counter() - begin)
            print(f"first answer after {started[-1]:.1f} s", flush=True)
    with app(arguments.run) as (http, process, _), tempfile.TemporaryDirectory() as folder:
        client = Client(str(http.base_url), verbose=False)
        ways = {
            "predict": lambda text: ask(http, "predict", text, name),
            "predict by gradio_client": lambda text: client.predict(text, name, api_name="/predict"),
            "explain": lambda text: ask(http, "explain", text, name),
        }
        warm = {}
        for way, call in ways.items():
            seconds = []
            for i in range(arguments.requests + 5):
                begin = time.perf_counter()
                call(corpus[i % len(corpus)])
                seconds.append(time.perf_counter() - begin)
            warm[way] = sorted(seconds[5:])
        took, growth = batch(client, process, corpus, name, Path(folder))
    write(arguments, started, warm, took, growth)


def ask(http: Any, endpoint: str, *values: str) -> Any:
    """Call an endpoint and return what its last event holds."""
    event = http.post(f"/gradio_api/call/{endpoint}", json={"data": values}).json()["event_id"]
    with http.stream("GET", f"/gradio_api/call/{endpoint}/{event}") as lines:
        return next(json.loads(line[5:]) for line in lines.iter_lines() if line.startswith("data:"))


@contextmanager
def app(run: str) -> Iterator[tuple]:
    """Start the app; a connection to it, its process, and when it was started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(APP), run, "--port", str(port)], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "HF_HUB_OFFLINE": "1"})  # fmt: skip
    try:
        assert process.stdout
        assert process.stdout.readline().startswith("running on")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as http:
            yield http, psutil.Process(process.pid), begin
    finally:
        process.terminate()
        process.wait(30)


def batch(client: object, process: object, corpus: list[str], name: str, folder: Path) -> tuple[float, float]:
    """Label 50,000 rows, check their order; returns seconds, and by how many MB the app grew at most."""
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "text"])
        writer.writerows([i, corpus[i % len(corpus)]] for i in range(ROWS))
    before, most, done = process.memory_info().rss, 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.2):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    try:
        output, _ = client.predict(handle_file(folder / "rows.csv"), "", name, api_name="/batch")
    finally:
        done.set()
        watcher.join()
    seconds = time.perf_counter() - begin
    with Path(output).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["id"] for row in rows] == [str(i) for i in range(ROWS)]
    assert all(row["text"] == corpus[i % len(corpus)] for i, row in enumerate(rows))
    return seconds, (most - before) / 1e6


def write(arguments: argparse.Namespace, started: list, warm: dict, took: float, growth: float) -> None:
    """Write the dated table."""
    import gradio

    from hf_transfer.resources import hardware, versions

    def latency(seconds: list[float]) -> str:
        return f"{1000 * statistics.median(seconds):.0f} ms ({1000 * seconds[int(0.95 * len(seconds))]:.0f} ms)"

    run = json.loads((Path(arguments.run) / "run.json").read_text(encoding="utf-8"))
    today = datetime.date.today().isoformat()
    tools = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [f"# Demo, {today}", "",
             f"{hardware()}; gradio {gradio.__version__}, {tools}. A {run['method']} run of {run['model']}; texts of "
             "the embedded corpus; whoever asks runs on the same cores.", "",
             f"Command: `python benchmarks/demo.py RUN --starts {arguments.starts} --requests {arguments.requests}`",
             "", "| | measured | required |", "|---|---|---|",
             f"| start of the process to the first answer, median of {len(started)} [least, largest] "
             f"| {statistics.median(started):.1f} s [{min(started):.1f}, {max(started):.1f}] | < 10 s |",
             f"| label of one text, warm, median (95th percentile) of {len(warm['predict'])} "
             f"| {latency(warm['predict'])} | < 150 ms |",
             f"| the same through gradio_client | {latency(warm['predict by gradio_client'])} | |",
             f"| weights of its words | {latency(warm['explain'])} | |",
             f"| {ROWS:,} rows in Batch, in order | {took:.0f} s ({ROWS / took:.0f} rows/s) | completes |",
             f"| memory growth meanwhile | {growth:.0f} MB | < 200 MB |"]  # fmt: skip
    text = "\n".join(lines) + "\n"
    (HERE / f"demo-{today}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
