"""TSDAE: a text is written anew from one vector of a text that lost 60 % of it (Wang et al. 2021, arXiv:2104.06979)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from hf_transfer.errors import UserError
from hf_transfer.models import Loaded, load_pretrained
from hf_transfer.objectives import NOTHING

DELETED = 0.6
AUTO_MODEL, TAG = AutoModelForCausalLM, "feature-extraction"
OPTIONS = {"is_decoder": True, "add_cross_attention": True}


class Denoiser(nn.Module):
    """An encoder, and the same weights as a decoder, which sees the encoder's first state and nothing else of the text.

    As in the paper the weights are shared: what writes well also reads well, and no second model is kept in memory.

    Args:
        encoder: gets the shortened text.
        decoder: with cross-attention, of the same architecture.
    """

    def __init__(self, encoder: Any, decoder: Any) -> None:
        super().__init__()
        self.encoder, self.decoder, self.config = encoder, decoder, encoder.config
        shared = dict(decoder.base_model.named_parameters())
        for name in [name for name, _ in encoder.named_parameters() if name in shared]:
            module, _, leaf = name.rpartition(".")
            setattr(encoder.get_submodule(module), leaf, shared[name])

    def vector(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Return the first token's state (texts, hidden): the one that classifiers read."""
        return self.encoder(**inputs).last_hidden_state[:, 0]

    def forward(self, decoder_input_ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Return logits (texts, tokens, vocabulary) for the token after each of `decoder_input_ids`."""
        vector = self.vector(**inputs)
        return self.decoder(input_ids=decoder_input_ids, encoder_hidden_states=vector[:, None], use_cache=False).logits


def refusal(kind: str) -> str:
    """Return why models of `kind` can't both read and write, or nothing."""
    if kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return f"{kind} models are no encoders; use clm"
    return "" if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else f"{kind} models have no form as a decoder; use mlm"


def prepare(loaded: Loaded) -> nn.Module:
    """Return encoder and decoder, all of which trains but for a pooler, which nothing here reads.

    Raises:
        UserError: the architecture has no cross-attention.
    """
    if not any("cross" in name for name in loaded.new_parameters):
        raise UserError(f"--objective tsdae: {loaded.model.config.model_type} models can't read a vector while they "
                        "write; use mlm.")  # fmt: skip
    encoder = load_pretrained(loaded.name, loaded.revision, AutoModel, 0)
    for name in {key.split(".")[0] for key in encoder.new_parameters}:
        setattr(encoder.model, name, None)  # a pooler that nobody has trained must not pass for pretrained
    encoder.model.requires_grad_(False)  # what it shares with the decoder moves
    return Denoiser(encoder.model, loaded.model)


def hide(tokenizer: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what deletes tokens of an encoded row, but no special ones; it draws from torch's own random state."""

    def shortened(row: dict[str, Any]) -> dict[str, Any]:
        ids = torch.tensor(row["input_ids"])
        special = torch.tensor(tokenizer.get_special_tokens_mask(row["input_ids"], already_has_special_tokens=True))
        drawn = torch.rand(len(ids)).masked_fill(special.bool(), 1.0)
        kept = drawn > min(DELETED, float(drawn.masked_fill(special.bool(), 0.0).max()) - 1e-6)  # one at least
        return {
            **{name: torch.tensor(row[name])[kept].tolist() for name in tokenizer.model_input_names if name in row},
            "length": row["length"],
            "decoder_input_ids": row["input_ids"],
            "labels": [*row["input_ids"][1:], NOTHING],
        }

    return shortened


def logits(model: Any, scored: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """Score the tokens of the whole text but for the first."""
    return model(**inputs)[scored]


def saved(model: Any, loaded: Loaded) -> Any:
    """Return the encoder."""
    return model.encoder
