"""Train the upper layers alone, on cached states of the layers below them, which are frozen and need to run only once.

The frozen layers and the embeddings are replaced by modules that hand on what they are given, so that the model, its
names and its Trainer stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from hf_transfer.features import TokenStates, cut, fits_on_disk, frozen_copy, token_states
from hf_transfer.models import layers

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_transfer.methods import Setup

# embeddings, then layers, which pass on hidden states and nothing else
FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert")


class Given(nn.Module):
    """Stands in for the embeddings: hands on the states that the model was given for them."""

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, *args: Any, **others: Any) -> torch.Tensor:
        """Return `inputs_embeds`."""
        return inputs_embeds


class Passed(nn.Module):
    """Stands in for a layer: hands on the states it gets."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **others: Any) -> torch.Tensor:
        """Return `hidden_states`."""
        return hidden_states


class StatesCollator:
    """Make a batch of cached states for rows that name their `row`.

    Args:
        states: of all rows.
        dtype: of the model.
    """

    def __init__(self, states: TokenStates, dtype: torch.dtype) -> None:
        self.states, self.dtype = states, dtype

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return padded `inputs_embeds` (batch, tokens, hidden), `attention_mask`, and what else the rows have."""
        starts = self.states.starts
        states = [
            self.states.values[starts[i] : starts[i + 1]] for i in (self.states.place[row["row"]] for row in rows)
        ]
        lengths = torch.tensor([len(one) for one in states])
        padded = pad_sequence(states, batch_first=True).to(self.dtype)
        batch = {"inputs_embeds": padded, "attention_mask": (torch.arange(padded.shape[1]) < lengths[:, None]).long()}
        for name in {"labels", "sample_weight"} & rows[0].keys():
            batch[name] = torch.tensor([row[name] for row in rows])
        return batch


def train_above(setup: Setup, depth: int) -> tuple[Setup, Callable[[], None]] | None:
    """Make `setup`'s model start above its `depth` lowest layers, and encode the rows so far.

    Args:
        setup: with a model whose embeddings and lower layers are frozen and have no dropout.
        depth: how many layers are frozen.

    Returns:
        What to train on instead, and what makes the model whole again, in place; None where it can't be done: another
        architecture, nothing frozen, or too little disk.
    """
    from datasets import concatenate_datasets
    from tqdm import tqdm

    model = setup.loaded.model
    sets = [rows for rows in (setup.train, setup.validation) if len(rows)]
    rows = concatenate_datasets(sets)
    if depth == 0 or model.config.model_type not in FAMILIES or not fits_on_disk(model, rows):
        return None
    trunk = frozen_copy(model, setup.precision)
    cut(trunk, depth)
    exact = torch.float32 if setup.precision == "fp32" else torch.bfloat16
    with tqdm(desc="encode", total=len(rows), unit="text", disable=setup.quiet, leave=False) as bar:
        states = token_states(trunk, rows, setup.collator, bar, exact)
    base, stack = model.base_model, layers(model)
    embeddings, below = base.embeddings, list(stack[:depth])
    base.embeddings = Given()
    for i in range(depth):
        stack[i] = Passed()
    model.main_input_name = "inputs_embeds"

    def whole() -> None:
        base.embeddings = embeddings
        for i, layer in enumerate(below):
            stack[i] = layer
        vars(model).pop("main_input_name", None)

    def with_row(part: Dataset, first: int) -> Dataset:
        return part.select_columns(["labels", "length"]).add_column("row", range(first, first + len(part)))

    count = len(setup.train)
    inputs = replace(
        setup,
        train=with_row(setup.train, 0),
        validation=with_row(setup.validation, count) if len(setup.validation) else setup.validation,
        collator=StatesCollator(states, model.dtype),
    )
    return inputs, whole
