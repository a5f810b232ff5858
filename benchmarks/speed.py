"""Speed and memory against the ways people do it today, everything measured on one machine in one run.

    pip install sentence-transformers setfit
    python benchmarks/speed.py --data path/to/amazon_mds --pairs 5
    python benchmarks/speed.py --data path/to/amazon_mds --works full predict   # some rows of the table

Work: electronics reviews, `--max_length 256`, the default encoder, all cores. Every measurement is a process of its
own, and its peak memory counts from where its work begins; the sides take turns. What the peers' Trainer needs for
several epochs is extrapolated from the speed of one, start-up left out. Peers are run as their documentation does:
the transformers text-classification guide (fp32, random batches of 16, `DataCollatorWithPadding`), PEFT's LoRA under
the same Trainer, `pipeline`, `SentenceTransformer.encode` with scikit-learn's `LogisticRegression`, SetFit's Trainer.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
EPOCHS = {"frozen": 5, "partial": 4}
SHOTS = 8  # a class, for the few-shot row
TESTED = 500  # kitchen reviews that accuracy is measured on, once and after the rounds
MATRIX = 1536


@dataclass(frozen=True)
class Work:
    """One row of the table.

    Attributes:
        title: what is done.
        unit: of what both sides return; of seconds less is better.
        ours, peers: names of functions here.
        rows: argument of ours; peers whose speed does not depend on it take `peer_rows`.
        required: the least ratio of the better peer to ours.
        peer_rows: argument of the peers, where their speed does not depend on it: random batches are alike, while
            batches of similar length need many rows to choose from.
    """

    title: str
    unit: str
    ours: str
    peers: tuple[str, ...]
    rows: int
    required: float | None
    peer_rows: int | None = None


WORKS = {
    "full": Work("full fine-tuning", "examples/s", "our_full", ("stock_full",), 480, 7.0, 128),
    "lora": Work("LoRA (r 8, query and value)", "examples/s", "our_lora", ("stock_lora",), 480, 6.0, 128),
    "partial": Work("upper half, 4 epochs", "seconds", "our_partial", ("stock_partial",), 320, 10.0, 128),
    "frozen": Work("frozen encoder, 5 epochs", "seconds", "our_frozen", ("stock_frozen",), 2000, 60.0),
    "features": Work("frozen encoder, from texts", "seconds", "our_frozen", ("sentence_transformer",), 2000, 3.0),
    "few": Work(f"{SHOTS} labels a class", "seconds", "our_few", ("setfit",), SHOTS, None),
    "predict": Work("predict", "rows/s", "our_predict", ("pipeline_1", "pipeline_32"), 320, 4.0),
    "onnx": Work("predict, onnxruntime int8", "rows/s", "our_onnx", ("pipeline_1", "pipeline_32"), 320, 4.0),
    "latency": Work("one text at a time, median", "ms", "our_latency", ("pipeline_latency",), 150, 1 / 0.3),
}


HAVE_ACCURACY = ("our_frozen", "sentence_transformer", "our_few", "setfit")


def main() -> None:
    """Measure the works asked for and write the dated table; or, with --side, measure one side once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with electronics.labeled.jsonl.gz and kitchen's")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tested", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        measure_one(arguments)
        return
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, __file__, "--data", arguments.data, "--scratch", scratch]
        run(command, "saved_run", 64)
        works = [WORKS[name] for name in arguments.works]
        sides = {"machine": MATRIX}
        for work in works:
            sides |= dict.fromkeys(work.peers, work.peer_rows or work.rows) | {work.ours: work.rows}
        rounds = []
        for _ in range(arguments.pairs):
            rounds.append({})
            for side, rows in sides.items():
                rounds[-1][side] = run(command, side, rows)
                print(len(rounds), side, json.dumps(rounds[-1][side]), flush=True)
        accuracy = {side: run([*command, "--tested", str(TESTED)], side, sides[side])["accuracy"]
                    for side in HAVE_ACCURACY if side in sides}  # fmt: skip
    write(works, rounds, accuracy, arguments)


def run(command: list[str], side: str, rows: int) -> dict[str, Any]:
    """Measure `side` in a process of its own."""
    done = subprocess.run([*command, "--side", side, "--rows", str(rows)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure_one(arguments: argparse.Namespace) -> None:
    """Call the side's function and print what it returns, with the process's peak memory, as a line of JSON."""
    cache = Path(arguments.scratch) / "cache"
    os.environ.update(HF_TRANSFER_CACHE=str(cache), HF_HUB_OFFLINE="1")
    for file in cache.glob("states-*"):  # tokens may be there already, what the encoder makes of them not
        file.unlink()
    side: Callable[[Reviews, int], dict[str, Any]] = globals()[arguments.side]
    with contextlib.redirect_stdout(io.StringIO()):
        reviews = Reviews(Path(arguments.data), Path(arguments.scratch), arguments.tested)
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        result = side(reviews, arguments.rows)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({**result, "peak_mb": int(peak.split()[1]) / 1000}))


class Reviews:
    """What both sides of a work are given."""

    def __init__(self, data: Path, scratch: Path, tested: int = 0) -> None:
        from hf_transfer import tasks
        from hf_transfer.arguments import parse
        from hf_transfer.begin import encode_all
        from hf_transfer.console import Console
        from hf_transfer.data import load_data
        from hf_transfer.models import default_model, load_model

        Console(quiet=True)
        self.scratch, self.tested = scratch, tested
        self.flags = ["--source", str(data / "electronics.labeled.jsonl.gz"), "--target",
                      str(data / "kitchen.labeled.jsonl.gz"), "--validation_fraction", "0", "--test_fraction", "0",
                      "--quiet", "--output_dir", f"{scratch}/run", "--max_length", "256"]  # fmt: skip
        arguments = parse(self.flags)
        self.task = tasks.load("text_classification")
        self.domains = load_data(arguments.data, 0)
        self.name = default_model()
        loaded = load_model(arguments.model, self.task, self.domains.label_names, 0)
        self.tokenizer = loaded.tokenizer
        encoded = encode_all(arguments, self.domains, loaded, self.task)[0]
        self.train, self.test = encoded["train"].shuffle(seed=0), encoded["target_test"].shuffle(seed=0)
        self.texts = self.domains.train.shuffle(seed=0)["text"][:]
        self.test_texts = self.domains.test.shuffle(seed=0)["text"][:]

    def flops(self, encoded: Any, layers: int = 6, passes: float = 3.0) -> float:
        """Floating-point operations that a text needs on average: 2 a weight and token, and attention's, a pass.

        A backward pass counts for two forward passes; padding counts for nothing.
        """
        import numpy as np

        lengths, hidden = np.array(encoded["length"][:], dtype=float), 384
        return float(passes * layers * (2 * 12 * hidden**2 * lengths + 4 * hidden * lengths**2).mean())

    def accuracy(self, logits: Any) -> float:
        """Share of right labels among as many test rows, in per cent."""
        import numpy as np

        return float(100 * (logits.argmax(1) == np.array(self.test["labels"][: len(logits)])).mean())


def machine(reviews: Reviews, size: int) -> dict[str, Any]:
    """GFLOP/s of a matrix product of `size`, the best of many, in float32 and bfloat16."""
    import torch

    best = {}
    for kind in (torch.float32, torch.bfloat16):
        a, b = torch.randn(size, size, dtype=kind), torch.randn(size, size, dtype=kind)
        seconds: list[float] = []
        while sum(seconds) < 3:
            start = time.perf_counter()
            a @ b
            seconds.append(time.perf_counter() - start)
        best[str(kind).removeprefix("torch.")] = 2e-9 * size**3 / min(seconds)
    return {"value": best["float32"], **best}


# training


def step_clock() -> Any:
    """A callback that knows the seconds from the first step's beginning to the last one's end."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        begin = seconds = 0.0

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.begin = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.seconds = time.perf_counter() - self.begin

    return Clock()


def stock_trainer(reviews: Reviews, model: Any, rows: int) -> float:
    """Examples/s of one epoch of the guide's Trainer."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    args = TrainingArguments(str(reviews.scratch / "stock"), num_train_epochs=1, per_device_train_batch_size=16,
                             use_cpu=True, save_strategy="no", disable_tqdm=True, logging_strategy="no")  # fmt: skip
    clock = step_clock()
    trainer = Trainer(model, args, data_collator=DataCollatorWithPadding(reviews.tokenizer),
                      train_dataset=reviews.train.select(range(rows)), callbacks=[clock])  # fmt: skip
    trainer.train()
    return rows / clock.seconds


def stock_model(reviews: Reviews) -> Any:
    """The default encoder with a new head, as the guide loads it."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(reviews.name, num_labels=2)


def stock_full(reviews: Reviews, rows: int) -> dict[str, Any]:
    """Everything trains."""
    speed = stock_trainer(reviews, stock_model(reviews), rows)
    return {"value": speed, **flops(reviews, speed, rows, 3), "precision": "float32"}


def flops(reviews: Reviews, speed: float, rows: int, passes: float) -> dict[str, float]:
    """GFLOP/s that the first `rows` training rows needed."""
    return {"gflops": 1e-9 * speed * reviews.flops(reviews.train.select(range(rows)), passes=passes)}


def stock_lora(reviews: Reviews, rows: int) -> dict[str, Any]:
    """PEFT's LoRA under the guide's Trainer."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
    speed = stock_trainer(reviews, get_peft_model(stock_model(reviews), config), rows)
    return {"value": speed, **flops(reviews, speed, rows, 2), "precision": "float32"}


def stock_partial(reviews: Reviews, rows: int) -> dict[str, Any]:
    """Embeddings and the lower half frozen; seconds of all epochs from the speed over one, each costs the same."""
    model = stock_model(reviews)
    for module in (model.bert.embeddings, *model.bert.encoder.layer[:3]):
        module.requires_grad_(False)
    return {"value": EPOCHS["partial"] * WORKS["partial"].rows / stock_trainer(reviews, model, rows)}


def stock_frozen(reviews: Reviews, rows: int) -> dict[str, Any]:
    """The encoder frozen; seconds of all epochs from the speed over 160 rows, each costs the same."""
    model = stock_model(reviews)
    model.base_model.requires_grad_(False)
    speed = stock_trainer(reviews, model, 160)
    return {"value": EPOCHS["frozen"] * rows / speed, **flops(reviews, speed, 160, 1), "precision": "float32"}


def our_training(reviews: Reviews, method: str, rows: int, *flags: str) -> tuple[float, float, str]:
    """Seconds of the steps alone, of preparing and fitting in all, and the precision."""
    from hf_transfer.arguments import parse
    from hf_transfer.methods import Setup
    from hf_transfer.models import load_model
    from hf_transfer.training import fit

    arguments = parse([*reviews.flags, "--method", method, "--save_strategy", "no", *flags])
    loaded = load_model(arguments.model, reviews.task, reviews.domains.label_names, 0)
    setup = Setup(loaded, reviews.train.select(range(rows)), reviews.train.select([]),
                  reviews.task.collator(reviews.tokenizer), arguments.precision, None, 0)  # fmt: skip
    start = time.perf_counter()
    prepared = arguments.method_module.prepare(setup, arguments.method)
    clock = step_clock()
    prepared.callbacks.append(clock)
    fit(prepared, setup, reviews.task, arguments, reviews.scratch / "ours")
    seconds = time.perf_counter() - start
    return clock.seconds, seconds, {"bf16": "bfloat16", "fp32": "float32"}[arguments.precision]


def our_full(reviews: Reviews, rows: int) -> dict[str, Any]:
    """--method full."""
    seconds, _, precision = our_training(reviews, "full", rows, "--num_train_epochs", "1")
    return {"value": rows / seconds, **flops(reviews, rows / seconds, rows, 3), "precision": precision}


def our_lora(reviews: Reviews, rows: int) -> dict[str, Any]:
    """--method lora on the same matrices as PEFT's."""
    seconds, _, precision = our_training(
        reviews, "lora", rows, "--num_train_epochs", "1", "--lora_target_modules", "query", "value"
    )
    return {"value": rows / seconds, **flops(reviews, rows / seconds, rows, 2), "precision": precision}


def our_partial(reviews: Reviews, rows: int) -> dict[str, Any]:
    """--method partial: the lower half encodes once."""
    return {"value": our_training(reviews, "partial", rows, "--num_train_epochs", str(EPOCHS["partial"]))[1]}


# frozen features


def our_frozen(reviews: Reviews, rows: int) -> dict[str, Any]:
    """--method frozen on all rows with an empty cache: tokenising, encoding, choosing, training."""
    return few_or_all(reviews, range(rows))


def our_few(reviews: Reviews, shots: int) -> dict[str, Any]:
    """--method frozen on a few labels."""
    return few_or_all(reviews, few_rows(reviews, shots))


def few_rows(reviews: Reviews, shots: int) -> list[int]:
    """The first `shots` training rows of each class."""
    labels = reviews.train["labels"][:]
    return [i for label in (0, 1) for i in [i for i, one in enumerate(labels) if one == label][:shots]]


def few_or_all(reviews: Reviews, rows: Any) -> dict[str, Any]:
    """Seconds of the frozen method on `rows`, from their texts on; and accuracy where it is asked for."""
    from hf_transfer.arguments import parse
    from hf_transfer.inference import text_logits
    from hf_transfer.methods import Setup
    from hf_transfer.models import load_model

    arguments = parse([*reviews.flags, "--method", "frozen"])
    loaded = load_model(arguments.model, reviews.task, reviews.domains.label_names, 0)
    collator = reviews.task.collator(reviews.tokenizer)
    texts = reviews.domains.train.shuffle(seed=0).select(rows)
    start = time.perf_counter()
    encoded, _ = reviews.task.encode(reviews.tokenizer, texts, 256)
    setup = Setup(loaded, encoded, encoded.select([]), collator, arguments.precision, None, 0)
    prepared = arguments.method_module.prepare(setup, arguments.method)
    seconds = time.perf_counter() - start
    if not reviews.tested:
        return {"value": seconds}
    reviews.tokenizer.model_max_length = 256
    logits = text_logits(prepared.model, reviews.tokenizer, collator, precision=arguments.precision)
    return {"value": seconds, "accuracy": reviews.accuracy(logits(reviews.test_texts[: reviews.tested]))}


def sentence_transformer(reviews: Reviews, rows: int) -> dict[str, Any]:
    """`SentenceTransformer.encode` and logistic regression."""
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression

    model = SentenceTransformer(reviews.name, device="cpu")
    model.max_seq_length = 256
    start = time.perf_counter()
    features = model.encode(reviews.texts[:rows], show_progress_bar=False)
    probe = LogisticRegression(max_iter=1000).fit(features, reviews.train["labels"][:rows])
    seconds = time.perf_counter() - start
    if not reviews.tested:
        return {"value": seconds}
    tested = probe.predict_proba(model.encode(reviews.test_texts[: reviews.tested], show_progress_bar=False))
    return {"value": seconds, "accuracy": reviews.accuracy(tested)}


def setfit(reviews: Reviews, shots: int) -> dict[str, Any]:
    """SetFit's own Trainer with its defaults, on the same few labels."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    model = SetFitModel.from_pretrained(reviews.name)
    model.model_body.max_seq_length = 256
    shuffled = reviews.domains.train.shuffle(seed=0)
    few = shuffled.select(few_rows(reviews, shots))
    data = Dataset.from_dict({"text": few["text"][:], "label": few["label"][:]})
    args = TrainingArguments(output_dir=str(reviews.scratch / "setfit"), batch_size=16, num_epochs=1,
                             save_strategy="no", show_progress_bar=False)  # fmt: skip
    start = time.perf_counter()
    Trainer(model=model, args=args, train_dataset=data).train()
    seconds = time.perf_counter() - start
    if not reviews.tested:
        return {"value": seconds}
    tested = model.predict_proba(reviews.test_texts[: reviews.tested], as_numpy=True, show_progress_bar=False)
    return {"value": seconds, "accuracy": reviews.accuracy(tested)}


# prediction


def saved_run(reviews: Reviews, rows: int) -> dict[str, Any]:
    """Make the run that all sides predict with, and its ONNX export."""
    sys.path.insert(0, str(HERE.parent / "recipes"))
    from finetune import main as finetune

    from hf_transfer.export import export_run

    folder = reviews.scratch / "saved"
    finetune([*reviews.flags, "--output_dir", str(folder), "--max_rows", str(rows), "--num_train_epochs", "1"])
    export_run(folder, quantize="int8", force=True, quiet=True)
    return {"value": 0}


def per_second(reviews: Reviews, rows: int, call: Callable[[list[str]], Any], precision: str) -> dict[str, Any]:
    """Rows/s of `call` on texts, after a first batch of other ones."""
    call(reviews.test_texts[-32:])
    start = time.perf_counter()
    call(reviews.test_texts[:rows])
    speed = rows / (time.perf_counter() - start)
    flops = reviews.flops(reviews.test.select(range(rows)), passes=1)
    return {"value": speed, "gflops": 1e-9 * speed * flops, "precision": precision}


def stock_pipeline(reviews: Reviews, batch_size: int) -> Callable[[list[str]], Any]:
    """The pipeline of transformers."""
    from transformers import pipeline

    pipe = pipeline("text-classification", str(reviews.scratch / "saved"), device="cpu")
    return lambda texts: pipe(texts, batch_size=batch_size, truncation=True, max_length=256)


def pipeline_1(reviews: Reviews, rows: int) -> dict[str, Any]:
    """One text a batch."""
    return per_second(reviews, rows, stock_pipeline(reviews, 1), "float32")


def pipeline_32(reviews: Reviews, rows: int) -> dict[str, Any]:
    """32 texts a batch."""
    return per_second(reviews, rows, stock_pipeline(reviews, 32), "float32")


def our_predict(reviews: Reviews, rows: int) -> dict[str, Any]:
    """What `hf-transfer predict` does once the model is loaded."""
    from hf_transfer.arguments import best_precision
    from hf_transfer.predict import scorer

    precision = {"bf16": "bfloat16", "fp32": "float32"}[best_precision()]
    return per_second(reviews, rows, scorer(reviews.scratch / "saved"), precision)


def our_onnx(reviews: Reviews, rows: int) -> dict[str, Any]:
    """`hf-transfer predict --engine onnx` on an int8 export."""
    from hf_transfer.predict import scorer

    return per_second(reviews, rows, scorer(reviews.scratch / "saved", engine="onnx"), "int8")


def one_by_one(reviews: Reviews, rows: int, call: Callable[[list[str]], Any]) -> dict[str, Any]:
    """Milliseconds of single texts: median, and 99th percentile."""
    for text in reviews.test_texts[-20:]:
        call([text])
    seconds = []
    for text in reviews.test_texts[:rows]:
        start = time.perf_counter()
        call([text])
        seconds.append(time.perf_counter() - start)
    return {"value": 1000 * statistics.median(seconds), "p99": 1000 * statistics.quantiles(seconds, n=100)[98]}


def pipeline_latency(reviews: Reviews, rows: int) -> dict[str, Any]:
    """The pipeline, one text a call."""
    return one_by_one(reviews, rows, stock_pipeline(reviews, 1))


def our_latency(reviews: Reviews, rows: int) -> dict[str, Any]:
    """The scorer, one text a call."""
    from hf_transfer.predict import scorer

    return one_by_one(reviews, rows, scorer(reviews.scratch / "saved"))


# the table


def write(
    works: list[Work], rounds: list[dict[str, Any]], accuracy: dict[str, float], arguments: argparse.Namespace
) -> None:
    """Write the dated table."""
    from hf_transfer.resources import hardware, versions

    def middle(side: str, what: str) -> float:
        return statistics.median(one[side][what] for one in rounds)

    today = datetime.date.today().isoformat()
    peers = {name: importlib.metadata.version(name) for name in ("sentence-transformers", "setfit", "onnxruntime")}
    tools = ", ".join(f"{name} {version}" for name, version in {**versions(), **peers}.items())
    lines = [f"# Speed, {today}", "",
             f"{hardware()}; {tools}. Electronics reviews, max_length 256, default encoder; medians over "
             f"{len(rounds)} interleaved rounds. Ratios above 1 are in our favour; of two peers the better one of "
             "each round counts. Matrix products on this machine, the best of each round: "
             f"{middle('machine', 'float32'):.0f} GFLOP/s in float32 "
             f"[{min(one['machine']['float32'] for one in rounds):.0f}, "
             f"{max(one['machine']['float32'] for one in rounds):.0f}], "
             f"{middle('machine', 'bfloat16'):.1f} in bfloat16.", "",
             f"Command: `python benchmarks/speed.py --data ... --pairs {len(rounds)} --works "
             f"{' '.join(arguments.works)}`", "",
             "| work | unit | peer | ours | ratio [least, largest] | hoped for | peak memory, MB | of it |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    use, other = [], []
    for work in works:
        less = work.unit in ("seconds", "ms")
        ratios = []
        for one in rounds:
            peer = (min if less else max)(one[side]["value"] for side in work.peers)
            mine = one[work.ours]["value"]
            ratios.append(peer / mine if less else mine / peer)
        best, memory = min(middle(side, "peak_mb") for side in work.peers), middle(work.ours, "peak_mb")
        beaten = ", ".join(f"{side} {middle(side, 'value'):.1f}" for side in work.peers)
        hoped = f"{work.required:.1f}x" if work.required else ""
        lines.append(f"| {work.title} | {work.unit} | {beaten} | {middle(work.ours, 'value'):.1f} | "
                     f"{statistics.median(ratios):.1f}x [{min(ratios):.1f}, {max(ratios):.1f}] | {hoped} | "
                     f"{best:.0f} -> {memory:.0f} | {memory / best:.2f}x |")  # fmt: skip
        for side in (*work.peers, work.ours):
            if (precision := rounds[0][side].get("precision")) in rounds[0]["machine"]:
                shares = [one[side]["gflops"] / one["machine"][precision] for one in rounds]
                use.append(f"| {side} | {precision} | {statistics.median(shares):.0%} |")
            if "p99" in rounds[0][side]:
                other.append(f"| {side} | 99th percentile, ms | {middle(side, 'p99'):.1f} |")
    other += [
        f"| {side} | accuracy on {TESTED:,} kitchen reviews, % | {share:.1f} |" for side, share in accuracy.items()
    ]
    if use:
        lines += ["", "Share of the machine's peak in its precision, by the operations that the real tokens need:", "",
                  "| side | precision | share of peak |", "|---|---|---|", *dict.fromkeys(use)]  # fmt: skip
    if other:
        lines += ["", "| side | what | value |", "|---|---|---|", *dict.fromkeys(other)]
    text = "\n".join(lines) + "\n"
    part = "" if arguments.works == list(WORKS) else f"-{'-'.join(arguments.works)}"
    (HERE / f"speed{part}-{today}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
