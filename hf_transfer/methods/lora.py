"""LoRA: low-rank updates of chosen weight matrices, folded into them afterwards (Hu et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hf_transfer.errors import UserError, listed, nearest
from hf_transfer.methods import Prepared, Setup, head_modules, merge_peft

DEFAULTS = {"learning_rate": 1e-3, "num_train_epochs": 5}
KINDS = ("Linear", "Conv1D", "Embedding")


@dataclass
class Arguments:
    """Size and place of the updates."""

    lora_r: int = field(default=8, metadata={"help": "Rank of the updates."})
    lora_alpha: int = field(default=16, metadata={"help": "Updates are scaled by alpha / rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the updates' input."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Module names to update; default: every linear layer of the trunk."}
    )
    lora_dora: bool = field(default=False, metadata={"help": "DoRA: magnitude and direction apart (Liu et al. 2024)."})
    lora_rslora: bool = field(
        default=False, metadata={"help": "rsLoRA: scale by alpha / sqrt(rank) (Kalajdzievski 2023)."}
    )


def prepare(setup: Setup, args: Arguments) -> Prepared:
    """Wrap the model with LoRA; the head trains in full and is saved with the adapter.

    Raises:
        UserError: what `check` raises.
    """
    check(setup, args)
    return Prepared(wrap(setup, args), merge_peft)


def check(setup: Setup, args: Arguments) -> None:
    """Check the flags against the model as it was loaded.

    Raises:
        UserError: a rank below 1, a dropout that is no share, or module names that the model lacks.
    """
    if args.lora_r < 1:
        raise UserError(f"--lora_r is {args.lora_r}; the rank must be at least 1.")
    if not 0 <= args.lora_dropout < 1:
        raise UserError(f"--lora_dropout is {args.lora_dropout}; use a share from 0 to below 1.")
    known = [name for name, module in setup.loaded.model.base_model.named_modules() if type(module).__name__ in KINDS]
    for wanted in args.lora_target_modules or []:
        if not any(f".{name}".endswith(f".{wanted}") for name in known):
            short = sorted({name.split(".")[-1] for name in known})
            raise UserError(f"--lora_target_modules: the model has no such module '{wanted}' to update"
                            f"{nearest(wanted, short)}; it has: {listed(short)}.")  # fmt: skip


def wrap(setup: Setup, args: Arguments) -> Any:
    """Return PEFT's model: updates that train on a frozen trunk, and a copy of the head that trains."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="SEQ_CLS",
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=args.lora_target_modules or "all-linear",
        exclude_modules=head_modules(setup.loaded),
        use_dora=args.lora_dora,
        use_rslora=args.lora_rslora,
        modules_to_save=head_modules(setup.loaded),
    )
    return get_peft_model(setup.loaded.model, config)
