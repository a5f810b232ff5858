"""What a model learns from text without labels: one file is one objective, found by its name.

An objective module has a docstring (its line in `hf-transfer list`) and

- `AUTO_MODEL`, `OPTIONS`, `TAG`: transformers' Auto class with the head, settings of its config, the Hub's name of it;
- `refusal(kind) -> str`: why a `model_type` doesn't fit; empty if it does;
- `prepare(loaded) -> nn.Module`: what is trained, with a `config`;
- `hide(tokenizer)`: a function from an encoded row to what the model is given of it, with `labels`, a token each, -100
  where there is nothing to predict;
- `logits(model, scored, **inputs)`: (n, vocabulary) for the n tokens that `scored` (rows, tokens) marks, row by row;
- `saved(model, loaded)`: the pretrained model that recipes go on with.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

from hf_transfer.plugins import load_plugin, plugin_names

if TYPE_CHECKING:
    import torch

NOTHING = -100  # the label of a token that is not to be predicted


def names() -> list[str]:
    """Return the names of all objectives."""
    return plugin_names(__path__)


def load(name: str) -> ModuleType:
    """Return the module of objective `name`.

    Raises:
        UserError: there is no such objective.
    """
    return load_plugin("objective", __name__, __path__, name)


def padded(rows: list[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """Return what the model is given of rows, as tensors (rows, tokens) of the longest row's length.

    Args:
        rows: from an objective's `hide`.
        pad: the padding token.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    filler = {"input_ids": pad, "decoder_input_ids": pad, "labels": NOTHING}
    return {
        name: pad_sequence([torch.tensor(row[name]) for row in rows], True, filler.get(name, 0))
        for name in rows[0]
        if name != "length"
    }
