"""One label a text: sentiment, topic, spam or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from hf_transfer.evaluation import classification_scores
from hf_transfer.tasks import Task

if TYPE_CHECKING:
    from datasets import Dataset


def encode(
    tokenizer: Any, dataset: Dataset, max_length: int, cache_file: str | None = None
) -> tuple[Dataset, np.ndarray]:
    """Tokenise `text`, keeping `label` as `labels` and adding `length`.

    Args:
        tokenizer: a fast tokenizer.
        dataset: columns `text` and maybe `label`.
        max_length: tokens kept, special ones included.
        cache_file: an Arrow file that is read if it is there and written if not; without one it is kept in memory.

    Returns:
        The encoded dataset, and how many tokens of each text were cut, (rows,).
    """

    def batch(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        cut = tokenizer(rows["text"], truncation=True, max_length=max_length, return_overflowing_tokens=True)
        texts = cut.pop("overflow_to_sample_mapping")
        first = np.flatnonzero(np.diff(texts, prepend=-1))
        out = {name: [cut[name][i] for i in first] for name in tokenizer.model_input_names if name in cut}
        lengths = np.array([len(ids) for ids in cut["input_ids"]])
        out["length"] = lengths[first].tolist()
        specials = tokenizer.num_special_tokens_to_add()
        # an overflow piece repeats the special tokens, which are no loss
        total = np.bincount(texts, weights=np.maximum(lengths - specials, 0), minlength=len(first)) + specials
        out["lost"] = (total - lengths[first]).astype(int).tolist()
        if "label" in rows:
            out["labels"] = rows["label"]
        return out

    encoded = dataset.map(
        batch,
        batched=True,
        remove_columns=dataset.column_names,
        cache_file_name=cache_file,
        keep_in_memory=cache_file is None,  # by default a file would be written beside the user's data
        desc="tokenise",
    )
    return encoded.remove_columns("lost"), np.array(encoded["lost"][:], dtype=int)


def loss(class_weights: list[float] | None, label_smoothing: float = 0.0) -> Any:
    """Return cross-entropy for `Trainer(compute_loss_func=...)`.

    A sum over the rows divided by the number of rows in the *whole* step, so that gradient accumulation and several
    processes give exactly the loss of one big batch. With `class_weights` each row's loss is scaled by its label's,
    and by its own where the outputs have `sample_weight`.
    """

    def compute(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        weight = None if class_weights is None else torch.tensor(class_weights, device=labels.device)
        logits = outputs["logits"].float()
        losses = functional.cross_entropy(
            logits, labels, weight=weight, reduction="none", label_smoothing=label_smoothing
        )
        if "sample_weight" in outputs:
            losses = losses * outputs["sample_weight"]
        return losses.sum() / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return compute


def collator(tokenizer: Any) -> Callable[[list[dict[str, Any]]], Any]:
    """Return a collator that pads to the longest text of a batch, and leaves out `length`."""
    pad = DataCollatorWithPadding(tokenizer)
    return lambda rows: pad([{key: value for key, value in row.items() if key != "length"} for row in rows])


TASK = Task(
    pipeline_tag="text-classification",
    auto_model=AutoModelForSequenceClassification,
    encode=encode,
    collator=collator,
    loss=loss,
    compute_metrics=classification_scores,
    headline="accuracy",
)
