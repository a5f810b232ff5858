"""ONNX exports against torch: the same logits, their score in int8, and the speed, interleaved in one run.

    python benchmarks/export.py runs/frozen runs/full --pairs 5

The runs' data must still be where they were. All sides have the same threads and the same batches, tokenisation
included: torch in fp32 (SDPA attention), the float32 export and the int8 export in onnxruntime.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Export and measure every run, and write the dated table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=128, help="test rows a measurement of speed")
    arguments = parser.parse_args()
    quality, speed = [], []
    for folder in arguments.runs:
        rows = measure(Path(folder), arguments.pairs, arguments.rows)
        quality.append(rows[0])
        speed += rows[1]
    write(quality, speed, arguments)


def measure(folder: Path, pairs: int, count: int) -> tuple[list[str], list[list[str]]]:
    """Return the cells on logits and scores of a run, and those on speed, a row a batch size."""
    from hf_transfer.data import load_again
    from hf_transfer.export import export_run
    from hf_transfer.onnx_engine import Engine
    from hf_transfer.report import with_interval
    from hf_transfer.results import load_run
    from hf_transfer.statistics.metric import title

    run = load_run(folder)
    texts = load_again(run).test["text"][:]
    order = np.random.default_rng(0).permutation(len(texts))[:count]
    texts = [texts[i] for i in order]
    with tempfile.TemporaryDirectory() as scratch:
        copies, sides, facts = [Path(scratch, kind) / "run" for kind in ("float32", "int8")], [torch_side(folder)], []
        for copy, quantize in zip(copies, (None, "int8"), strict=True):
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("onnx*"))
            export_run(copy, quantize=quantize, force=True, quiet=True)
            facts.append(json.loads((copy / "onnx" / "export.json").read_text()))
            sides.append(Engine(copy / "onnx"))
        speed = [[run.method, str(size), *interleaved(sides, texts, size, pairs)] for size in (1, 32)]
    parity, scores, sizes = facts[0]["parity"], facts[1]["scores"], facts[1]["bytes"]
    return [
        run.method,
        f"{parity['largest_difference']:.1e} on {parity['rows']} rows",
        f"{sizes['float32'] / 1e6:.0f} / {sizes['int8'] / 1e6:.0f} MB",
        title(scores["metric"]),
        f"{scores['float32']:.1%}",
        f"{scores['int8']:.1%}",
        with_interval(scores["difference"], (scores["low"], scores["high"]), "+"),
        str(scores["rows"]),
    ], speed


def torch_side(folder: Path) -> Callable[[list[str], int], np.ndarray]:
    """Return what scores texts in torch, fp32, in the batches that the engine makes: by length, then padded."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def score(texts: list[str], batch_size: int) -> np.ndarray:
        encoded = tokenizer(texts, truncation=True)
        order = sorted(range(len(texts)), key=lambda i: -len(encoded["input_ids"][i]))
        logits = np.empty((len(texts), model.config.num_labels), dtype=np.float32)
        with torch.inference_mode():
            for begin in range(0, len(order), batch_size):
                rows = order[begin : begin + batch_size]
                batch = tokenizer.pad({k: [v[i] for i in rows] for k, v in encoded.items()}, return_tensors="pt")
                logits[rows] = model(**batch).logits.numpy()
        return logits

    return score


def interleaved(sides: list, texts: list[str], size: int, pairs: int) -> list[str]:
    """Score `texts` with each side in turn; the cells are medians in rows/s and both ratios to the first side."""
    for side in sides:
        side(texts[:32], size)
    seconds = []
    for _ in range(pairs):
        turn = []
        for side in sides:
            start = time.perf_counter()
            side(texts, size)
            turn.append(time.perf_counter() - start)
        seconds.append(turn)
        print([f"{len(texts) / one:.1f}" for one in turn], "rows/s", flush=True)
    cells = [f"{len(texts) / statistics.median(side):.1f}" for side in zip(*seconds, strict=True)]
    for side in (1, 2):
        ratios = [turn[0] / turn[side] for turn in seconds]
        cells.append(f"{statistics.median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}]")
    return cells


def write(quality: list[list[str]], speed: list[list[str]], arguments: argparse.Namespace) -> None:
    """Write the dated tables."""
    import onnxruntime
    import torch

    from hf_transfer.resources import hardware, versions

    today = datetime.date.today().isoformat()
    tools = ", ".join(f"{name} {version}" for name, version in versions().items())
    cpu = f"{hardware()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    lines = [f"# ONNX export, {today}", "",
             f"{cpu}; onnxruntime {onnxruntime.__version__}, {tools}. "
             f"Speed over {arguments.rows} test texts, medians over {arguments.pairs} interleaved rounds, with the "
             "least and largest ratio.", "",
             f"Command: `python benchmarks/export.py ... --pairs {arguments.pairs} --rows {arguments.rows}`", "",
             "| run | largest difference of a recorded logit, float32 | size, float32 / int8 | metric | float32 | int8 "
             "| difference, points | test rows |", "|---|---|---|---|---|---|---|---|",
             *(f"| {' | '.join(row)} |" for row in quality), "",
             "| run | batch | torch fp32, rows/s | onnxruntime float32 | onnxruntime int8 | float32 to torch "
             "| int8 to torch |", "|---|---|---|---|---|---|---|",
             *(f"| {' | '.join(row)} |" for row in speed)]  # fmt: skip
    text = "\n".join(lines) + "\n"
    (HERE / f"export-{today}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
