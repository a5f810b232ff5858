"""Continue the pretraining of a model on unlabelled text of a domain (DAPT; Gururangan et al. 2020, arXiv:2004.10964).

What the checkpoint lacks for an objective, such as the head of a sentence encoder that never filled in a mask, is
learnt first, with everything else frozen: the errors of a random head would only spoil a trained trunk.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from hf_transfer import objectives
from hf_transfer.arguments import as_dict
from hf_transfer.data import FEW_UNLABELED, fingerprint
from hf_transfer.errors import UserError, listed
from hf_transfer.finish import close_folder
from hf_transfer.leaks import KEYS
from hf_transfer.methods import Prepared, Setup, as_it_is
from hf_transfer.models import Loaded, public_name, read_config
from hf_transfer.objectives import NOTHING, padded
from hf_transfer.resources import hardware, versions
from hf_transfer.results import write_atomically
from hf_transfer.tables import read_table
from hf_transfer.tasks import Task
from hf_transfer.tasks.text_classification import encode
from hf_transfer.training import fit, last_whole_checkpoint

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_transfer.arguments import Arguments, PretrainedArguments
    from hf_transfer.resources import Meter

FILE = "pretraining.json"
# how long what is new learns alone, as a share of the whole training and beside it, and how fast
HEAD_SHARE, HEAD_LEARNING_RATE = 0.2, 1e-3


@dataclass
class PoolArguments:
    """Which texts are read."""

    target_unlabeled: list[str] = field(
        metadata={
            "help": "Unlabelled texts of the target: csv, tsv, json, jsonl or parquet (also .gz), folders of them, "
            "save_to_disk folders, or Hub ids `name:config@revision`."
        }
    )
    text_column: str | None = field(default=None, metadata={"help": "Column with the text; guessed when obvious."})
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the texts held out to choose the checkpoint; 0 for none."}
    )
    max_length: int = field(default=256, metadata={"help": "Longest text in tokens; the rest is cut."})
    max_rows: int | None = field(default=None, metadata={"help": "Read at most this many rows a file (a quick try)."})


@dataclass
class ObjectiveArguments:
    """What is learnt from the texts."""

    objective: str | None = field(
        default=None,
        metadata={"help": "mlm or tsdae for encoders, clm for decoders (hf-transfer list); default: mlm or clm."},
    )


@dataclass(frozen=True)
class Pool:
    """Distinct texts of a domain.

    Attributes:
        train, held_out: column `text`.
        keys: (texts,) hashes, see `text_facts`.
        facts: counts and the fingerprint, ready for JSON.
        notes: what the user should know, one line each.
    """

    train: Dataset
    held_out: Dataset
    keys: pd.Series
    facts: dict[str, Any]
    notes: list[str]


def read_pool(args: PoolArguments, seed: int, *, quiet: bool = True) -> Pool:
    """Read all tables, keep one of equal texts, leave out what a `split` column calls test, and hold some out.

    Raises:
        UserError: a table can't be read, or fewer than two texts are left.
    """
    from datasets import concatenate_datasets

    parts: list[pd.DataFrame] = []
    texts: list[Dataset] = []
    notes: list[str] = []
    for spec in args.target_unlabeled:
        table = read_table(spec, text_column=args.text_column, max_rows=args.max_rows, labelled=False, quiet=quiet)
        notes += [f"{table.name}: {note}" for note in [*table.notes, *table.drawn.values()]]
        parts.append(table.rows.assign(at=table.rows["row"] + sum(map(len, texts)), domain=table.name))
        texts.append(table.texts)
    rows = pd.concat(parts, ignore_index=True)
    if "split" in rows and (tested := rows["split"] == "test").any():
        notes.append(f"left out {tested.sum()} texts that column 'split' calls test")
        rows = rows[~tested]
    distinct = rows.sort_values(["key", "content"]).drop_duplicates("key")  # whatever their order in the files
    if len(distinct) < 2:
        raise UserError(f"{listed(args.target_unlabeled)}: pretraining needs at least 2 different texts, and thousands "
                        f"to be of use; there are {len(distinct)}. Give more.")  # fmt: skip
    if len(distinct) < FEW_UNLABELED:
        notes.append(f"only {len(distinct)} different texts: {FEW_UNLABELED} or more tell more of a domain")
    count = math.ceil(args.validation_fraction * len(distinct))
    chosen = np.random.default_rng(seed).permutation(len(distinct)) < count
    distinct = distinct.assign(split=np.where(chosen, "validation", "train"), label="").sort_values("at")
    everything = concatenate_datasets(texts)
    train, held_out = (everything.select(distinct.loc[distinct["split"] == name, "at"])
                       for name in ("train", "validation"))  # fmt: skip
    facts = {
        "rows": {"train": len(train), "held_out": len(held_out)},
        "duplicates": len(rows) - len(distinct),
        "domains": {name: int(n) for name, n in distinct["domain"].value_counts().items()},
        "fingerprint": fingerprint(distinct),
    }
    return Pool(train, held_out, distinct["key"], facts, notes)


def choose_objective(name: str | None, args: PretrainedArguments) -> str:
    """Return the name of the objective; where none is given, of the one that fits the model's architecture.

    Raises:
        UserError: it does not fit.
    """
    kind = read_config(args.model, args.model_revision).model_type
    if name is None:
        name = "clm" if objectives.load("mlm").refusal(kind) else "mlm"
    if reason := objectives.load(name).refusal(kind):
        raise UserError(f"--objective {name}: {reason}.")
    return name


def language_task(objective: ModuleType) -> Task:
    """Return what training needs to know of an objective; what is learnt is judged by its loss alone."""
    return Task(
        pipeline_tag=objective.TAG,
        auto_model=objective.AUTO_MODEL,
        encode=encode,
        collator=lambda tokenizer: collator(objective.hide(tokenizer), tokenizer.pad_token_id),
        loss=token_loss,
        compute_metrics=lambda logits, labels, names: {},
        headline="loss",
    )


def token_loss(class_weights: None, label_smoothing: float = 0.0) -> Any:
    """Return cross-entropy for `Trainer(compute_loss_func=...)`: a sum over the tokens of the step, by their number."""

    def compute(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        wanted = labels[labels != NOTHING]
        logits = outputs["logits"].float()
        total = functional.cross_entropy(logits, wanted, reduction="sum", label_smoothing=label_smoothing)
        return total / max(1, len(wanted) if num_items_in_batch is None else num_items_in_batch)

    return compute


def collator(
    hide: Callable[[dict[str, Any]], dict[str, Any]], pad: int
) -> Callable[[list[dict[str, Any]]], dict[str, torch.Tensor]]:
    """Return a collator that hides what is to be guessed, anew every time, and pads to the longest text of a batch.

    Rows that have `labels` are held-out ones, see `hidden_once`.
    """

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = padded([row if "labels" in row else hide(row) for row in rows], pad)
        return {**batch, "scored": batch["labels"] != NOTHING}

    return collate


def hidden_once(rows: Dataset, hide: Callable[[dict[str, Any]], dict[str, Any]], seed: int) -> Dataset:
    """Return held-out rows with what is hidden drawn once, so that their losses can be compared."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return rows.map(hide, keep_in_memory=True, load_from_cache_file=False)


class Learner(nn.Module):
    """A model with an objective's view of it.

    Args:
        model: as the objective prepared it.
        logits: the objective's function.
    """

    _keys_to_ignore_on_save = None  # the Trainer asks for it when it loads a checkpoint

    def __init__(self, model: Any, logits: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.model, self.logits, self.config = model, logits, model.config

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return every weight once: a file can't hold the second names of tied ones."""
        own = {name for name, _ in self.named_parameters()}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in own}

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Do what `--activation_checkpointing` asks for."""
        for part in (self.model, *self.model.children()):
            if isinstance(part, PreTrainedModel):
                part.activation_checkpointing_enable(**options)

    def forward(self, scored: torch.Tensor, labels: Any = None, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return `logits` (n, vocabulary) of the n tokens that `scored` marks.

        The Trainer takes `labels` out before; it looks for the name in this signature.
        """
        return {"logits": self.logits(self.model, scored, **inputs)}


def pretrain(
    objective: ModuleType, setup: Setup, arguments: Arguments, partial: Path, meter: Meter
) -> tuple[Any, dict[str, float | None]]:
    """Train by the stock Trainer, first what is new alone; returns the model to save, and its losses on held-out texts.

    Args:
        objective: module of `hf_transfer.objectives`.
        setup: model, encoded rows and collator.
        arguments: of the recipe.
        partial: the folder that grows.
        meter: gets the seconds.
    """
    learner = Learner(objective.prepare(setup.loaded), objective.logits)
    prepared, task = Prepared(learner, as_it_is), language_task(objective)
    losses: dict[str, float | None] = {"before": None, "new_weights_alone": None, "after": None}
    resumed = arguments.train.resume and last_whole_checkpoint(partial / "checkpoints")
    if setup.loaded.new_parameters and not resumed:
        with meter.stage("learn what is new"):
            losses["before"] = _first(learn_new(prepared, setup, task, arguments))
    with meter.stage("train"):
        history = fit(prepared, setup, task, arguments, partial, meter)
    first, seen = _first(history), [entry["eval_loss"] for entry in history if "eval_loss" in entry and entry["step"]]
    losses["new_weights_alone" if setup.loaded.new_parameters else "before"] = first
    losses["after"] = None if not seen else min(seen) if arguments.train.load_best_model_at_end else seen[-1]
    return objective.saved(learner.model, setup.loaded), losses


def learn_new(prepared: Prepared, setup: Setup, task: Task, arguments: Arguments) -> list[dict[str, Any]]:
    """Train the parameters that the checkpoint did not have, with all others frozen; returns the log.

    It takes a fifth as many steps as the training that follows, at `HEAD_LEARNING_RATE`, and leaves no checkpoint.
    """
    new = {id(p) for name, p in setup.loaded.model.named_parameters() if name in setup.loaded.new_parameters}
    moving = [p for p in prepared.model.parameters() if p.requires_grad]
    train: Any = arguments.train
    shorter = replace(
        train,
        learning_rate=HEAD_LEARNING_RATE,
        num_train_epochs=HEAD_SHARE * train.num_train_epochs,
        max_steps=math.ceil(HEAD_SHARE * train.max_steps) if train.max_steps > 0 else -1,
        save_strategy="no",
        load_best_model_at_end=False,
        resume=False,
    )
    for parameter in moving:
        parameter.requires_grad = id(parameter) in new
    with tempfile.TemporaryDirectory() as scratch:
        history = fit(prepared, setup, task, replace(arguments, train=shorter), Path(scratch))
    for parameter in moving:
        parameter.requires_grad = True
    return history


def _first(history: list[dict[str, Any]]) -> float | None:
    return next((entry["eval_loss"] for entry in history if "eval_loss" in entry), None)


def save(model: Any, loaded: Loaded, pool: Pool, losses: dict[str, float | None], arguments: Arguments,
         partial: Path, meter: Meter) -> Path:  # fmt: skip
    """Write model, tokenizer and a record of what was done, and give the folder its name; returns it."""
    folder = Path(str(arguments.train.output_dir))
    if arguments.train.process_index == 0:
        model.save_pretrained(partial)
        loaded.tokenizer.save_pretrained(partial)
        record = {
            "model": public_name(loaded.name),
            "model_revision": loaded.revision,
            "weights_sha256": loaded.weights_sha256,
            "arguments": {**as_dict(arguments), "model": public_name(loaded.name)},
            "data": pool.facts,
            "new_parameters": sorted(loaded.new_parameters),
            "held_out_loss": losses,
            "seconds": meter.seconds,
            "hardware": hardware(),
            "versions": versions(),
        }
        earlier = Path(loaded.name).expanduser() / KEYS  # what it had learned from before counts as well
        keys = [pool.keys, *([pd.read_parquet(earlier)["key"]] if earlier.is_file() else [])]
        pd.concat(keys).drop_duplicates().to_frame("key").to_parquet(partial / KEYS, index=False)
        write_atomically(partial / FILE, json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n")
        shutil.rmtree(partial / "checkpoints", ignore_errors=True)
        close_folder(partial, folder)
    return folder
