"""QLoRA: low-rank updates of a base model whose linear layers are kept in 4 bits (Dettmers et al. 2023).

The trunk's linear layers are rounded to 4-bit NormalFloat with double quantisation by bitsandbytes; updates and head
train on them in full precision (https://arxiv.org/abs/2305.14314). The finished run is a plain model in full precision
without bitsandbytes: the updates are folded into the *rounded* weights, since those are what they were trained and
validated with; beside the original weights they would give other predictions. For the same reason there is no
`adapter/`: on the base model as published it would be another model than the one that was tested.

What is saved is memory while training. The base model is read in full precision before it is rounded, in main memory,
and the finished model is folded and tested in full precision, which takes 4 bytes a weight.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_transfer.errors import UserError
from hf_transfer.methods import Prepared, Setup, head_modules, lora, merge_peft
from hf_transfer.methods.lora import Arguments

DEFAULTS = lora.DEFAULTS
COMPUTE = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def prepare(setup: Setup, args: Arguments) -> Prepared:
    """Round the trunk's linear layers to 4 bits and wrap the model with LoRA; the head trains in full.

    Raises:
        UserError: bitsandbytes is missing, the model is to be spread over devices, the trunk has no plain linear layer,
            or what `lora.check` raises.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("--method qlora needs bitsandbytes; run: pip install 'hf-transfer-nlp[qlora]', or use --method "
                        "lora.")  # fmt: skip
    if any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("FSDP", "DEEPSPEED")):
        raise UserError("--method qlora works in one process or with DDP, not with FSDP or DeepSpeed; leave these out, "
                        "or use --method lora.")  # fmt: skip
    lora.check(setup, args)
    trunk, heads = setup.loaded.model.base_model, head_modules(setup.loaded)
    linear = {
        name: type(module)
        for name, module in trunk.named_modules()
        if type(module) in (nn.Linear, Conv1D) and name.split(".")[0] not in heads
    }
    if not linear:
        raise UserError(f"{setup.loaded.model.config.model_type} has no plain linear layers to round for --method "
                        "qlora; use full.")  # fmt: skip
    for name in linear:
        trunk.set_submodule(name, _rounded(trunk.get_submodule(name), COMPUTE[setup.precision]))
    transposed = [name for name, kind in linear.items() if kind is Conv1D]

    def merge(trained: Any, tokenizer: Any) -> tuple[Any, Any]:
        _unround(trained)
        model, tokenizer = merge_peft(trained, tokenizer)
        for name in transposed:
            model.base_model.set_submodule(name, _conv1d(model.base_model.get_submodule(name)))
        return model, tokenizer

    return Prepared(lora.wrap(setup, args), merge, keep_adapter=False)


def _rounded(module: Any, compute: torch.dtype) -> nn.Linear:
    """Return a linear layer (or GPT-2's, which is transposed) with its weight in 4 bits, its bias as it was."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    weight = module.weight.detach().T if isinstance(module, Conv1D) else module.weight.detach()
    out, width = weight.shape
    layer = Linear4bit(
        width, out, bias=module.bias is not None, compute_dtype=compute, quant_type="nf4", device=torch.device("meta")
    )
    packed = Params4bit(weight, compress_statistics=True, quant_type="nf4", module=layer)
    layer.weight = packed.to(weight.device)  # rounds
    layer.bias = module.bias
    # else evaluating on a CPU with these instructions would pack the weights in a way that lets no gradient through
    layer.support_avx512bf16_for_cpu = False
    return layer.train(module.training)


def _unround(model: nn.Module) -> None:
    """Put layers in full precision, of the same function, in the place of all 4-bit ones."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    for name, layer in list(model.named_modules()):
        if isinstance(layer, Linear4bit):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
            plain.weight = nn.Parameter(dequantize_4bit(layer.weight.data, layer.weight.quant_state).float())
            if layer.bias is not None:
                plain.bias = nn.Parameter(layer.bias.detach().float())  # its type was that of the computation
            model.set_submodule(name, plain.train(layer.training))


def _conv1d(linear: nn.Linear) -> Conv1D:
    """Return `linear` as GPT-2's transposed layer."""
    layer = Conv1D(linear.out_features, 0)
    layer.weight = nn.Parameter(linear.weight.detach().T.contiguous())
    layer.bias = linear.bias
    return layer
