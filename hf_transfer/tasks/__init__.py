"""What the data means: one file is one task, found by its name. A task module ends with `TASK = Task(...)`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hf_transfer.plugins import load_plugin, plugin_names


@dataclass(frozen=True)
class Task:
    """What a recipe needs to know of a task.

    Attributes:
        pipeline_tag: the Hub's name of the task; `pipeline(pipeline_tag, run_folder)` serves the result.
        auto_model: transformers' Auto class with the head.
        encode: (tokenizer, dataset, max_length) -> dataset of model inputs with `length`, and how many tokens of
            each text were cut.
        collator: tokenizer -> data collator.
        loss: (class weights or None, label smoothing) -> loss function for the Trainer.
        compute_metrics: (logits, labels, label names) -> scores.
        headline: the score that chooses checkpoints and heads tables.
    """

    pipeline_tag: str
    auto_model: Any
    encode: Callable[..., Any]
    collator: Callable[..., Any]
    loss: Callable[..., Any]
    compute_metrics: Callable[..., dict[str, Any]]
    headline: str


def names() -> list[str]:
    """Return the names of all tasks."""
    return plugin_names(__path__)


def load(name: str) -> Task:
    """Return the task called `name`.

    Raises:
        UserError: there is no such task.
    """
    return load_plugin("task", __name__, __path__, name).TASK
