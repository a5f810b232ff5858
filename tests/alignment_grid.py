"""Train every alignment under every method for a few steps, in this process or, by torchrun, in several.

    torchrun --standalone --nproc-per-node 2 tests/alignment_grid.py FOLDER

FOLDER holds `model/`, and the encoded rows `train/`, `pool/` and `one/` (a pool of a single text, so that it does not
matter who draws from it). Every process writes the weights that it ended with beside them, and `RANK.json`.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
from pathlib import Path

import datasets
import torch
from safetensors.torch import save_file

from hf_transfer import aligned, alignment, methods, tasks
from hf_transfer.arguments import parse
from hf_transfer.methods import Setup
from hf_transfer.models import load_model
from hf_transfer.training import fit

STEPS, ROWS = 2, 16  # rows a step
METHODS = [name for name in methods.names() if methods.load(name).DEFAULTS]  # those that a Trainer trains
# whose loss is a mean over rows: several processes do the same as one; the others compare the rows of a batch
FEATURES = [name for name in alignment.names() if name != "udalm"]  # it reads words: test_pretraining.py
BY_ROW = ("cdan", "dann")
SMALL = {"prompt": ["--prompt_tokens", "4"], "adapter": ["--adapter_size", "8"]}


def train(folder: Path, name: str, method: str, processes: int = 1):
    """Train one combination: (trained weights by name, the log, what the run notes, the merged model)."""
    argv = ["--method", method, "--model", str(folder / "model"), "--source", "none", "--output_dir",
            str(folder / "runs" / f"{name}-{method}"), "--max_steps", str(STEPS), "--per_device_train_batch_size",
            str(ROWS // processes), "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end",
            "false", "--optim", "sgd", "--learning_rate", "0.05", "--warmup_steps", "0", "--lr_scheduler_type",
            "constant", "--precision", "fp32", "--quiet", "--train_sampling_strategy", "random",
            *SMALL.get(method, [])]  # fmt: skip
    arguments = parse(argv)
    task, chosen = tasks.load("text_classification"), alignment.load(name)
    loaded = load_model(arguments.model, task, ["negative", "positive"], seed=0)
    rows, pool = (datasets.load_from_disk(folder / part) for part in ("train", "one" if name in BY_ROW else "pool"))
    setup = Setup(loaded, rows, rows.select([]), task.collator(loaded.tokenizer), "fp32", None, seed=0)
    both = aligned.with_target(setup, pool)
    prepared = arguments.method_module.prepare(both, arguments.method)
    together = aligned.align(prepared, both, chosen, chosen.Arguments())
    history = fit(together, setup, task, arguments, folder / "runs" / f"{name}-{method}.{processes}")
    weights = {key: p.detach().clone() for key, p in prepared.model.named_parameters() if p.requires_grad}
    model, _ = prepared.merge(prepared.model, loaded.tokenizer)
    return weights, history, prepared.choices, model


def train_all(folder: Path, processes: int = 1):
    """Train all combinations, one after the other: yields (alignment, method, what `train` returns)."""
    gc.freeze()  # each Trainer collects garbage, which takes longer than these trainings if it looks at every library
    for name in FEATURES:
        for method in METHODS:
            yield name, method, train(folder, name, method, processes)
    gc.unfreeze()


def main(folder: Path) -> None:
    """Train all combinations, and one that fails in the first process alone."""
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    steps = {}
    for name, method, (weights, history, _, _) in train_all(folder, processes):
        save_file(weights, folder / f"{name}-{method}.{rank}.safetensors")
        steps[f"{name}-{method}"] = history[-1]["step"]
    if rank == 0:
        alignment.load("coral").Coral.forward = lambda self, source, target, progress: source.features.sum() * math.nan
    _, history, choices, _ = train(folder, "coral", "full", processes)
    steps["collapse"] = history[-1]["step"]
    (folder / f"{rank}.json").write_text(json.dumps({"steps": steps, "choices": choices}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
