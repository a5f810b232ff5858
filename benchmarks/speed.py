"""Speed against the stock way, peers and ours interleaved in one run: medians and ratios over pairs.

    python benchmarks/speed.py --data path/to/amazon_mds --pairs 5

Work: electronics reviews, `--max_length 256`, the default encoder, all cores. The stock side is written as the
transformers text-classification guide does it: fp32, random batches of 16, `DataCollatorWithPadding`.
"""

from __future__ import annotations

import argparse
import datetime
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "recipes"))


def main() -> None:
    """Measure every row and write the dated table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with electronics.labeled.jsonl.gz")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=320, help="training rows a measurement of full fine-tuning")
    arguments = parser.parse_args()
    os.environ["HF_TRANSFER_CACHE"] = tempfile.mkdtemp()
    work = Work(arguments.data)
    rows = [
        ("full fine-tuning", "examples/s", *pairs(lambda: work.stock(arguments.rows, frozen=False),
                                                  lambda: work.ours(arguments.rows, "full"), arguments.pairs), 3.0),
        ("frozen encoder, 5 epochs of 2,000 rows", "seconds", *pairs(lambda: work.stock_frozen_seconds(),
                                                                     lambda: work.frozen_seconds(), arguments.pairs,
                                                                     seconds=True), 40.0),
        ("predict", "rows/s", *pairs(lambda: work.pipeline(640), lambda: work.predict(640), arguments.pairs), 5.0),
    ]  # fmt: skip
    help_times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "hf_transfer.cli", "--help"], check=True, capture_output=True)
        help_times.append(time.perf_counter() - start)
    write(rows, help_times, arguments)


def pairs(
    stock: Callable[[], float], ours: Callable[[], float], count: int, *, seconds: bool = False
) -> tuple[float, float, float, float, float]:
    """Measure both sides in turn; returns medians of stock and ours, and median, least and largest ratio."""
    results = [(stock(), ours()) for _ in range(count)]
    ratios = [a / b if seconds else b / a for a, b in results]
    medians = [statistics.median(side) for side in zip(*results, strict=True)]
    print([f"{a:.2f} {b:.2f} {r:.1f}x" for (a, b), r in zip(results, ratios, strict=True)], flush=True)
    return *medians, statistics.median(ratios), min(ratios), max(ratios)


class Work:
    """The rows, tokenised once for both sides, and one function a measurement."""

    def __init__(self, data: str) -> None:
        from hf_transfer import tasks
        from hf_transfer.arguments import parse
        from hf_transfer.console import Console
        from hf_transfer.data import load_data
        from hf_transfer.models import default_model, load_model
        from hf_transfer.training import encode_all

        Console(quiet=True)
        self.scratch = tempfile.mkdtemp()
        self.file = str(Path(data) / "electronics.labeled.jsonl.gz")
        kitchen = str(Path(data) / "kitchen.labeled.jsonl.gz")
        self.flags = ["--source", self.file, "--target", kitchen, "--validation_fraction", "0", "--test_fraction", "0",
                      "--quiet", "--output_dir", f"{self.scratch}/run"]  # fmt: skip
        arguments = parse(self.flags)
        self.task = tasks.load("text_classification")
        self.domains = load_data(arguments.data, 0)
        self.name = default_model()
        loaded = load_model(arguments.model, self.task, self.domains.label_names, 0)
        self.tokenizer = loaded.tokenizer
        self.train = encode_all(arguments, self.domains, loaded, self.task)[0]["train"].shuffle(seed=0)

    def stock(self, count: int, *, frozen: bool) -> float:
        """Examples/s of one epoch of the stock Trainer."""
        from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments

        model = AutoModelForSequenceClassification.from_pretrained(self.name, num_labels=2)
        if frozen:
            model.base_model.requires_grad_(False)
        args = TrainingArguments(self.scratch, num_train_epochs=1, per_device_train_batch_size=16, use_cpu=True,
                                 save_strategy="no", disable_tqdm=True, logging_strategy="no")  # fmt: skip
        trainer = Trainer(model, args, data_collator=DataCollatorWithPadding(self.tokenizer),
                          train_dataset=self.train.select(range(count)))  # fmt: skip
        start = time.perf_counter()
        trainer.train()
        return count / (time.perf_counter() - start)

    def ours(self, count: int, method: str) -> float:
        """Examples/s of one epoch of our fit()."""
        from hf_transfer.arguments import parse
        from hf_transfer.methods import Setup
        from hf_transfer.models import load_model
        from hf_transfer.training import fit

        arguments = parse([*self.flags, "--method", method, "--num_train_epochs", "1", "--save_strategy", "no"])
        loaded = load_model(arguments.model, self.task, self.domains.label_names, 0)
        setup = Setup(loaded, self.train.select(range(count)), self.train.select([]),
                      self.task.collator(self.tokenizer), arguments.precision, None, 0)  # fmt: skip
        prepared = arguments.method_module.prepare(setup, arguments.method)
        start = time.perf_counter()
        fit(prepared, setup, self.task, arguments, Path(self.scratch))
        return count / (time.perf_counter() - start)

    def stock_frozen_seconds(self) -> float:
        """Seconds of five epochs of 2,000 rows, from the speed over 480 rows (the cost of an epoch is linear)."""
        return 5 * len(self.train) / self.stock(480, frozen=True)

    def frozen_seconds(self) -> float:
        """Seconds of our frozen method on all rows: encoding, choosing, training, writing; with an empty cache."""
        from hf_transfer.arguments import parse
        from hf_transfer.features import cache_folder
        from hf_transfer.methods import Setup
        from hf_transfer.models import load_model

        for file in cache_folder().glob("states-*"):
            file.unlink()
        arguments = parse([*self.flags, "--method", "frozen"])
        loaded = load_model(arguments.model, self.task, self.domains.label_names, 0)
        setup = Setup(loaded, self.train, self.train.select([]), self.task.collator(self.tokenizer),
                      arguments.precision, None, 0)  # fmt: skip
        start = time.perf_counter()
        arguments.method_module.prepare(setup, arguments.method)
        return time.perf_counter() - start

    def saved(self) -> str:
        """A run folder with a fine-tuned head, made once."""
        from finetune import main as finetune

        folder = Path(self.scratch) / "saved"
        if not folder.is_dir():
            finetune([*self.flags, "--output_dir", str(folder), "--max_rows", "64", "--num_train_epochs", "1"])
            from hf_transfer.predict import scorer

            self.score = scorer(folder)
            self.score(self.domains.test["text"][:64])
        return str(folder)

    def pipeline(self, count: int) -> float:
        """Rows/s of `pipeline(batch_size=32)` on the same model and length."""
        from transformers import pipeline

        pipe = pipeline("text-classification", self.saved(), device="cpu")
        texts = self.domains.test["text"][:count]
        pipe(texts[:32], batch_size=32, truncation=True, max_length=256)
        start = time.perf_counter()
        pipe(texts, batch_size=32, truncation=True, max_length=256)
        return count / (time.perf_counter() - start)

    def predict(self, count: int) -> float:
        """Rows/s of what `hf-transfer predict` does once the model is loaded, tokenisation included."""
        self.saved()
        start = time.perf_counter()
        self.score(self.domains.test["text"][:count])
        return count / (time.perf_counter() - start)


def write(rows: list, help_times: list[float], arguments: argparse.Namespace) -> None:
    """Write the dated table."""
    from hf_transfer.resources import hardware, versions

    today = datetime.date.today().isoformat()
    tools = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines = [f"# Speed, {today}", "",
             f"{hardware()}; {tools}. Electronics reviews, max_length 256, default encoder; "
             f"medians over {arguments.pairs} interleaved pairs, with the least and largest ratio.", "",
             f"Command: `python benchmarks/speed.py --data ... --pairs {arguments.pairs} --rows {arguments.rows}`", "",
             "| work | unit | stock | ours | ratio | required |", "|---|---|---|---|---|---|"]  # fmt: skip
    for work, unit, stock, ours, ratio, low, high, required in rows:
        lines.append(
            f"| {work} | {unit} | {stock:.1f} | {ours:.1f} | {ratio:.1f}x [{low:.1f}, {high:.1f}] | {required:.0f}x |"
        )
    lines.append(
        f"| `hf-transfer --help` | seconds | | {statistics.median(help_times):.2f} | "
        f"[{min(help_times):.2f}, {max(help_times):.2f}] | < 0.5 |"
    )
    text = "\n".join(lines) + "\n"
    (HERE / f"speed-{today}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
