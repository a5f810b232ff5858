"""A whole comparison against one fine-tuning with the stock Trainer: what certainty costs.

    python benchmarks/six_arms.py --data path/to/amazon_mds

Ours is `hf-transfer compare` with its controls (TF-IDF, random weights), frozen, LoRA, full and a frozen encoder
with self-training, one seed, from the command to the written verdict. The peer is one full fine-tuning as the
text-classification guide of transformers does it (fp32, random batches of 16, dynamic padding, the same four epochs,
validated after each), on as many training rows, 1,600, and tested on the same rows. Both are processes of their own,
one after the other. The peer trains for one epoch; the other three are taken to last as long.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ARMS = "frozen,lora,full,self_train+frozen"
EPOCHS, REQUIRED = 4, 0.8


def main() -> None:
    """Run both and write the dated table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with <domain>.{labeled,extra,unlabeled}.jsonl.gz")
    parser.add_argument("--source", default="electronics")
    parser.add_argument("--target", default="kitchen")
    parser.add_argument("--work", help="where the comparison is kept; default: nowhere")
    parser.add_argument("--stock", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stock:
        stock(arguments)
        return
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(arguments.work or scratch)
        work.mkdir(parents=True, exist_ok=True)
        ours = run([sys.executable, "-m", "hf_transfer.cli", "compare", *flags(arguments, work)], scratch)
        stock_wall = run([sys.executable, __file__, *sys.argv[1:], "--stock", str(work / "stock.json")], scratch)
        verdict = json.loads((work / "verdict" / "verdict.json").read_text(encoding="utf-8"))
        stocks = json.loads((work / "stock.json").read_text(encoding="utf-8"))
    write(arguments, ours, stock_wall + (EPOCHS - 1) * stocks["epoch_seconds"], verdict)


def file(domain: str, kind: str, arguments: argparse.Namespace) -> str:
    """Return the path of one of a domain's files."""
    return str(Path(arguments.data) / f"{domain}.{kind}.jsonl.gz")


def flags(arguments: argparse.Namespace, work: Path) -> list[str]:
    """Return the command line of the comparison, whose training rows are 1,600."""
    pool = work / "pool.jsonl"
    with pool.open("w", encoding="utf-8") as out:
        for kind in ("extra", "unlabeled"):
            with gzip.open(file(arguments.target, kind, arguments), "rt", encoding="utf-8") as lines:
                out.writelines(json.dumps({"text": json.loads(line)["text"]}) + "\n" for line in lines)
    return ["--source", file(arguments.source, "labeled", arguments), "--target",
            file(arguments.target, "labeled", arguments), "--target_unlabeled", str(pool), "--validation_fraction",
            "0.1", "--test_fraction", "0.1", "--max_length", "256", "--arms", ARMS, "--seeds", "1", "--budget", "3h",
            "--output_dir", str(work / "verdict")]  # fmt: skip


def run(command: list[str], scratch: str) -> float:
    """Return the wall-clock seconds of a process that starts without any cache."""
    environment = os.environ | {"HF_TRANSFER_CACHE": f"{scratch}/cache", "HF_HUB_OFFLINE": "1"}
    begin = time.perf_counter()
    subprocess.run(command, check=True, env=environment)
    return time.perf_counter() - begin


def stock(arguments: argparse.Namespace) -> None:
    """Fine-tune for an epoch as the guide does, test, and write the seconds of that epoch."""
    from datasets import load_dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    from hf_transfer.models import default_model

    name = default_model()
    tokenizer = AutoTokenizer.from_pretrained(name)
    source, target = (
        load_dataset("json", data_files=file(domain, "labeled", arguments), split="train")
        for domain in (arguments.source, arguments.target)
    )
    parts = source.shuffle(seed=0)
    sets = {"train": parts.select(range(1600)), "validation": parts.select(range(1600, 1800)), "test": target}
    encoded = {
        key: rows.map(
            lambda batch: {**tokenizer(batch["text"], truncation=True, max_length=256),
                           "labels": [int(label) for label in batch["label"]]},
            batched=True, remove_columns=rows.column_names,
        )
        for key, rows in sets.items()
    }  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=2)
    training = TrainingArguments(
        output_dir=f"{arguments.stock}.checkpoints", learning_rate=5e-5, num_train_epochs=1,
        per_device_train_batch_size=16, per_device_eval_batch_size=16, weight_decay=0.01, eval_strategy="epoch",
        save_strategy="epoch", load_best_model_at_end=True, report_to=[], disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=training, train_dataset=encoded["train"], eval_dataset=encoded["validation"],
        processing_class=tokenizer, data_collator=DataCollatorWithPadding(tokenizer),
    )  # fmt: skip
    begin = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begin
    trainer.predict(encoded["test"])
    Path(arguments.stock).write_text(json.dumps({"epoch_seconds": seconds}), encoding="utf-8")


def write(arguments: argparse.Namespace, ours: float, theirs: float, verdict: dict) -> None:
    """Write the dated table."""
    from hf_transfer.resources import hardware, versions

    today = datetime.date.today().isoformat()
    lines = [
        f"# Six arms against one stock fine-tuning, {arguments.source} to {arguments.target}, {today}", "",
        f"{hardware()}; {', '.join(f'{name} {version}' for name, version in versions().items())}", "",
        "| | seconds | ratio |", "|---|---|---|",
        f"| stock Trainer, full, fp32, {EPOCHS} epochs | {theirs:.0f} | 1 |",
        f"| `hf-transfer compare`, everything | {ours:.0f} | {ours / theirs:.2f} (required: <= {REQUIRED}) |", "",
        "| | accuracy % | seconds of training |", "|---|---|---|",
        *(f"| {one['name']} | {100 * one['accuracy']:.1f} | {one['seconds']:.0f} |" for one in verdict["candidates"]),
        "", f"Expected against real seconds of a run, median: {verdict['time']['median_ratio']:.2f}.", "",
        f"Command: `python benchmarks/six_arms.py --data path/to/amazon_mds`; {verdict['test_rows']} test rows.", "",
    ]  # fmt: skip
    table = HERE / f"six-arms-{today}.md"
    table.write_text("\n".join(lines), encoding="utf-8")
    print(f"written: {table}")


if __name__ == "__main__":
    main()
