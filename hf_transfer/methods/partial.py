"""Partial fine-tuning: the top layers and the head move, the rest is frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import TrainerCallback

from hf_transfer.errors import UserError
from hf_transfer.methods import Prepared, Setup, as_it_is, freeze
from hf_transfer.models import layers
from hf_transfer.upper import train_above

DEFAULTS = {"learning_rate": 1e-4, "num_train_epochs": 4}


@dataclass
class Arguments:
    """How many layers move, and when."""

    top_layers: int | None = field(default=None, metadata={"help": "Layers that move, from the top; default: half."})
    gradual_unfreezing: bool = field(
        default=False, metadata={"help": "Free one more layer every epoch, from the top (ULMFiT, Howard & Ruder 2018)."}
    )
    layer_lr_decay: float = field(
        default=1.0, metadata={"help": "Learning rate factor from each layer to the one below; 1 is none."}
    )


def prepare(setup: Setup, args: Arguments) -> Prepared:
    """Free the head and the top layers; the frozen layers, without dropout, run once and are cached where possible.

    Raises:
        UserError: more layers asked for than the model has, or a decay outside (0, 1].
    """
    stack = layers(setup.loaded.model)
    top = len(stack) // 2 if args.top_layers is None else args.top_layers
    if not 0 <= top <= len(stack):
        raise UserError(f"--top_layers is {top}; the model has {len(stack)} layers, use 0 to {len(stack)}.")
    if not 0 < args.layer_lr_decay <= 1:
        raise UserError(f"--layer_lr_decay is {args.layer_lr_decay}; use a factor above 0 and up to 1.")
    freeze(setup.loaded)
    name_of = {id(p): name for name, p in setup.loaded.model.named_parameters()}
    scale: dict[str, float] = {}
    moving = list(reversed(stack))[:top]
    for depth, layer in enumerate(moving, start=1):
        for parameter in layer.parameters():
            parameter.requires_grad = True
            scale[name_of[id(parameter)]] = args.layer_lr_decay**depth
    for module in _frozen_modules(setup.loaded.model, moving):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    callbacks: list[TrainerCallback] = [GradualUnfreezing(moving)] if args.gradual_unfreezing else []
    scale = scale if args.layer_lr_decay < 1 else {}
    above = train_above(setup, len(stack) - top)
    choices = {"top_layers": top, "frozen_layers_cached": above is not None}
    if above is None:
        return Prepared(setup.loaded.model, as_it_is, callbacks, scale, choices)
    inputs, whole = above
    if saved := inputs.collator.states.saved_seconds:
        choices["cached_encoding_seconds"] = saved

    def merge(model: Any, tokenizer: Any) -> tuple[Any, Any]:
        whole()
        return model, tokenizer

    return Prepared(setup.loaded.model, merge, callbacks, scale, choices, inputs)


def _frozen_modules(model: Any, moving: list[Any]) -> list[Any]:
    """Return the modules of the trunk that belong to no moving layer."""
    alive = {id(module) for layer in moving for module in layer.modules()}
    return [module for module in model.base_model.modules() if id(module) not in alive]


class GradualUnfreezing(TrainerCallback):
    """Withhold the gradients of layers whose epoch has not come; only the head moves in the first epoch.

    The gradients are computed and dropped, not skipped, so that it works under DDP.
    """

    def __init__(self, moving: list[Any]) -> None:
        self.moving = moving

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drop the gradients of layers still frozen."""
        for layer in self.moving[int(state.epoch or 0) :]:
            for parameter in layer.parameters():
                parameter.grad = None
