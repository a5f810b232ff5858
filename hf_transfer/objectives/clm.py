"""Causal language modelling: each token is guessed from those before it, for decoders (Radford et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from hf_transfer.models import Loaded
from hf_transfer.objectives import NOTHING

AUTO_MODEL, TAG = AutoModelForCausalLM, "text-generation"
OPTIONS: dict[str, bool] = {}


def refusal(kind: str) -> str:
    """Return why models of `kind` don't read from left to right, or nothing."""
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return f"{kind} models read in both directions; use mlm or tsdae"
    return "" if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else f"{kind} models are no decoders; choose another --model"


def prepare(loaded: Loaded) -> torch.nn.Module:
    """Return the model, all of which trains."""
    return loaded.model


def hide(tokenizer: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what labels each token of an encoded row with the next one."""
    return lambda row: {**row, "labels": [*row["input_ids"][1:], NOTHING]}


def logits(model: Any, scored: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """Score the tokens of a text but for the last."""
    return model(**inputs, use_cache=False).logits[scored]


def saved(model: Any, loaded: Loaded) -> Any:
    """Return the model."""
    return model
