"""Full fine-tuning: every weight moves."""

from __future__ import annotations

from dataclasses import dataclass

from hf_transfer.methods import Prepared, Setup, as_it_is

DEFAULTS = {"learning_rate": 5e-5, "num_train_epochs": 4}


@dataclass
class Arguments:
    """Full fine-tuning has no flags of its own."""


def prepare(setup: Setup, args: Arguments) -> Prepared:
    """Let every parameter train."""
    setup.loaded.model.requires_grad_(True)
    return Prepared(setup.loaded.model, as_it_is)
