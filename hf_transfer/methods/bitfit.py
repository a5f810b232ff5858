"""BitFit: only the bias terms and the head move (Ben Zaken et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from hf_transfer.errors import UserError
from hf_transfer.methods import Prepared, Setup, as_it_is, freeze

DEFAULTS = {"learning_rate": 1e-3, "num_train_epochs": 6}


@dataclass
class Arguments:
    """BitFit has no flags of its own."""


def prepare(setup: Setup, args: Arguments) -> Prepared:
    """Free the head and every parameter called `bias`.

    Raises:
        UserError: the model has no biases.
    """
    model = setup.loaded.model
    freeze(setup.loaded)
    biases = [p for name, p in model.base_model.named_parameters() if name.endswith("bias")]
    if not biases:
        raise UserError(f"{model.config.model_type} has no bias terms for --method bitfit; use lora or adapter.")
    for parameter in biases:
        parameter.requires_grad = True
    return Prepared(model, as_it_is)
