"""Bottleneck adapters beside each feed-forward block (Houlsby et al. 2019), in the parallel form of He et al. 2022.

The parallel form, `ffn(x) + up(act(down(x)))`, is a feed-forward block that is wider by the bottleneck: after training
the adapters fold into a standard model without any change of its outputs. The sequential form can't.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hf_transfer.errors import UserError
from hf_transfer.methods import Prepared, Setup, freeze
from hf_transfer.models import layers

DEFAULTS = {"learning_rate": 1e-3, "num_train_epochs": 5}
WIDTH = {
    "distilbert": "hidden_dim"
}  # where a family's config keeps the feed-forward width, if not in `intermediate_size`


@dataclass
class Arguments:
    """Size of the bottleneck."""

    adapter_size: int = field(default=64, metadata={"help": "Units of each bottleneck."})


class Widened(nn.Module):
    """A frozen linear layer with extra outputs that train: the adapter's way down."""

    def __init__(self, base: nn.Linear, extra: int) -> None:
        super().__init__()
        self.base, self.extra = base, nn.Linear(base.in_features, extra, bias=base.bias is not None)
        nn.init.normal_(self.extra.weight, std=0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return base and extra outputs side by side."""
        return torch.cat([self.base(x), self.extra(x)], dim=-1)

    def merged(self) -> nn.Linear:
        """Return the same function as one linear layer."""
        bias = None if self.base.bias is None else torch.cat([self.base.bias, self.extra.bias])
        return _linear(torch.cat([self.base.weight, self.extra.weight]), bias)


class Deepened(nn.Module):
    """A frozen linear layer with extra inputs that train, from zero: the adapter's way up."""

    def __init__(self, base: nn.Linear, extra: int) -> None:
        super().__init__()
        self.base, self.extra = base, nn.Linear(extra, base.out_features, bias=False)
        nn.init.zeros_(self.extra.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of both layers on their shares of the inputs."""
        width = self.base.in_features
        return self.base(x[..., :width]) + self.extra(x[..., width:])

    def merged(self) -> nn.Linear:
        """Return the same function as one linear layer."""
        return _linear(torch.cat([self.base.weight, self.extra.weight], dim=1), self.base.bias)


def prepare(setup: Setup, args: Arguments) -> Prepared:
    """Freeze the model but for its head, and put an adapter beside every feed-forward block.

    Raises:
        UserError: no bottleneck, or an architecture without plain feed-forward layers.
    """
    model = setup.loaded.model
    if args.adapter_size < 1:
        raise UserError(f"--adapter_size is {args.adapter_size}; it must be at least 1.")
    width: int = getattr(model.config, WIDTH.get(model.config.model_type, "intermediate_size"), 0)
    freeze(setup.loaded)
    for layer in layers(model):
        wide = [(n, m) for n, m in layer.named_modules() if isinstance(m, nn.Linear) and m.out_features == width]
        back = [(n, m) for n, m in layer.named_modules() if isinstance(m, nn.Linear) and m.in_features == width]
        if not wide or len(back) != 1:
            raise UserError(
                f"{model.config.model_type} has no plain feed-forward layers for --method adapter; use lora."
            )
        for name, module in wide:
            layer.set_submodule(name, Widened(module, args.adapter_size))
        layer.set_submodule(back[0][0], Deepened(back[0][1], args.adapter_size))
    return Prepared(model, lambda trained, tokenizer: (_merge(trained, width + args.adapter_size), tokenizer))


def _merge(model: Any, width: int) -> Any:
    for name, module in list(model.named_modules()):
        if isinstance(module, (Widened, Deepened)):
            model.set_submodule(name, module.merged())
    setattr(model.config, WIDTH.get(model.config.model_type, "intermediate_size"), width)
    return model


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer
