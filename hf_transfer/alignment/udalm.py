"""UDALM: masked words of the target are guessed on the same steps (Karouzos et al. 2021, arXiv:2104.07078)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutput

from hf_transfer.alignment import Batch
from hf_transfer.errors import UserError
from hf_transfer.methods import Setup
from hf_transfer.models import load_pretrained, public_name
from hf_transfer.objectives import NOTHING, mlm


@dataclass
class Arguments:
    """No flags of its own."""


class Given(nn.Module):
    """Stands in for a trunk: hands on the states that the head is to read."""

    def forward(self, *args: Any, inputs_embeds: torch.Tensor, **others: Any) -> BaseModelOutput:
        """Return `inputs_embeds` as a trunk would."""
        return BaseModelOutput(inputs_embeds)


class Udalm(nn.Module):
    """Cross-entropy of the target's masked words, by the checkpoint's masked-LM head on the classifier's own trunk.

    Args:
        setup: whose checkpoint has such a head.

    Attributes:
        hide: masks an encoded row, see `objectives.mlm.hide`.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        kind = setup.loaded.model.config.model_type
        if reason := mlm.refusal(kind):
            raise UserError(f"--alignment udalm: {reason.partition(';')[0]}; choose another alignment or --model.")
        self.hide = mlm.hide(setup.loaded.tokenizer)
        pretrained = load_pretrained(setup.loaded.name, setup.loaded.revision, mlm.AUTO_MODEL, setup.seed)
        if pretrained.new_parameters:
            raise UserError(
                "--alignment udalm needs a model that has learnt to fill in words, and "
                f"{public_name(setup.loaded.name)} has no head for it; first hf-transfer run "
                "pretrain_domain --target_unlabeled ... --output_dir runs/dapt, then --model runs/dapt."
            )
        self.head = pretrained.model
        tied = self.head.get_output_embeddings().weight is self.head.get_input_embeddings().weight
        setattr(self.head, self.head.base_model_prefix, Given())
        if tied:
            self.head.get_output_embeddings().weight = setup.loaded.model.get_input_embeddings().weight

    def total(self, states: torch.Tensor, words: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Return the sum of the masked words' losses, and how many there are.

        Args:
            states: (rows, tokens, hidden); learned tokens that a method puts before the text are passed over.
            words: (rows, tokens) what was masked, -100 elsewhere.
        """
        masked = words != NOTHING
        logits = self.head(inputs_embeds=states[:, -words.shape[1] :][masked][None]).logits[0]
        return functional.cross_entropy(logits.float(), words[masked], reduction="sum"), len(logits)

    def forward(self, source: Batch, target: Batch, progress: float) -> torch.Tensor:
        """Return the mean loss of a masked word (scalar)."""
        assert target.states is not None
        assert target.words is not None
        total, count = self.total(target.states, target.words)
        return total / max(1, count)


def build(hidden: int, classes: int, args: Arguments, setup: Setup) -> nn.Module:
    """Return the loss with its head.

    Raises:
        UserError: the model has no masked-LM head.
    """
    return Udalm(setup)
