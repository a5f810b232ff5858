"""(IA)3: learned factors on keys, values and feed-forward activations, folded in afterwards (Liu et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from hf_transfer.errors import UserError
from hf_transfer.methods import Prepared, Setup, head_modules, merge_peft

DEFAULTS = {"learning_rate": 5e-3, "num_train_epochs": 6}


@dataclass
class Arguments:
    """(IA)3 has no flags of its own: PEFT knows where the factors go in each architecture."""


def prepare(setup: Setup, args: Arguments) -> Prepared:
    """Wrap the model with (IA)3; the head trains in full and is saved with the adapter.

    Raises:
        UserError: PEFT has no places for this architecture.
    """
    from peft import IA3Config, get_peft_model

    try:
        model = get_peft_model(
            setup.loaded.model, IA3Config(task_type="SEQ_CLS", modules_to_save=head_modules(setup.loaded))
        )
    except ValueError as error:
        kind = setup.loaded.model.config.model_type
        raise UserError(f"PEFT knows no (IA)3 places for {kind} models; use lora or adapter.") from error
    return Prepared(model, merge_peft)
