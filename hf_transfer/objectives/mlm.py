"""Masked language modelling: 15 % of the tokens are hidden and guessed (Devlin et al. 2019, arXiv:1810.04805)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModel, AutoModelForMaskedLM, DataCollatorForLanguageModeling
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from hf_transfer.errors import UserError
from hf_transfer.models import Loaded, load_pretrained

AUTO_MODEL, TAG = AutoModelForMaskedLM, "fill-mask"
OPTIONS: dict[str, bool] = {}


def refusal(kind: str) -> str:
    """Return why models of `kind` can't fill in masks, or nothing."""
    return "" if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES else f"{kind} models fill in no masks; use clm"


def prepare(loaded: Loaded) -> torch.nn.Module:
    """Return the model, all of which trains."""
    return loaded.model


def hide(tokenizer: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what masks an encoded row; it draws from torch's own random state.

    Raises:
        UserError: the tokenizer knows no mask.
    """
    if tokenizer.mask_token is None:
        raise UserError("the model's tokenizer has no mask token, so no words can be masked; use another --model, or "
                        "what masks none (pretrain_domain --objective tsdae).")  # fmt: skip
    stock = DataCollatorForLanguageModeling(tokenizer)

    def masked(row: dict[str, Any]) -> dict[str, Any]:
        ids, labels = stock.torch_mask_tokens(torch.tensor([row["input_ids"]]))
        return {**row, "input_ids": ids[0].tolist(), "labels": labels[0].tolist()}

    return masked


def logits(model: Any, scored: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """Score the masked tokens; the others, over which the vocabulary is as wide, would double the cost of a step."""

    def select(trunk: Any, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[scored][None]
        return output

    selecting = model.base_model.register_forward_hook(select)
    try:
        return model(**inputs).logits[0]
    finally:
        selecting.remove()


def saved(model: Any, loaded: Loaded) -> Any:
    """Return the model with its head, and with what the checkpoint's trunk had besides: BERT's pooler, which it lacks.

    The head is there for those who fill in words later; classifiers read the pooler.
    """
    trunk = load_pretrained(loaded.name, loaded.revision, AutoModel, 0)
    for name, module in trunk.model.named_children():
        new = any(key.startswith(f"{name}.") for key in trunk.new_parameters)
        if getattr(model.base_model, name, None) is None and not new:
            setattr(model.base_model, name, module)
    return model
