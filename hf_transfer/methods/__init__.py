"""Which weights move: one file is one method, found by its name.

A method module has a docstring (its line in `hf-transfer list`), `DEFAULTS` (its own learning rate and epochs), a
dataclass `Arguments` (its few flags) and `prepare(setup, args) -> Prepared`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hf_transfer.plugins import load_plugin, plugin_names

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedModel, TrainerCallback

    from hf_transfer.models import Loaded

NO_LABEL = -100  # of a row that nothing is learned from; losses leave it out


@dataclass(frozen=True)
class Setup:
    """What a method may use.

    Attributes:
        loaded: model, tokenizer and the names of its new parameters.
        train, validation: encoded rows; of training rows labelled NO_LABEL nothing is learned.
        collator: makes a batch of them.
        precision: bf16, fp16 or fp32.
        class_weights: one weight a label, or None.
        seed: of everything random.
        fingerprint: of the data.
        quiet: no progress bars.
        sample_weights: (training rows,) how much each counts, with mean 1, or None.
        unlabeled: encoded rows of the target, where a method may look at them.
        train_domains, validation_domains: each row's source, where a method may look at it.
        metric: what is reported.
        chosen_by: the metric by which layers, checkpoints and settings are chosen; the task's own where it is empty.
    """

    loaded: Loaded
    train: Dataset
    validation: Dataset
    collator: Any
    precision: str
    class_weights: list[float] | None
    seed: int
    fingerprint: str = ""
    quiet: bool = True
    sample_weights: np.ndarray | None = None
    unlabeled: Dataset | None = None
    train_domains: Sequence[str] = ()
    validation_domains: Sequence[str] = ()
    metric: str = "accuracy"
    chosen_by: str = ""


@dataclass(frozen=True)
class Prepared:
    """A model whose `requires_grad` says what trains, and how.

    Attributes:
        model: to give to the Trainer; nothing trainable means that the method has trained it already.
        merge: trained model -> (model that plain transformers loads, its tokenizer).
        callbacks: for the Trainer.
        lr_scale: parameter name -> factor on the learning rate; 1 where missing.
        choices: what the method decided by itself, for run.json.
        inputs: what the model is trained on, where that is not what the method was given.
        headline: the validation score that chooses the checkpoint, where that is not the task's.
        settled: those of its arguments that it decided, for training once more without deciding again.
        logits: gives those of the training rows and of the validation rows, where the method has their activations.
        head: what a method trained by itself on a frozen encoder; such heads can be averaged.
        keep_adapter: whether a PEFT model's raw adapter is saved too: on the base model it must be the same model.
        lr_least: parameter name -> least learning rate, whatever that of the rest.
    """

    model: nn.Module
    merge: Callable[[Any, Any], tuple[PreTrainedModel, Any]]
    callbacks: list[TrainerCallback] = field(default_factory=list)
    lr_scale: dict[str, float] = field(default_factory=dict)
    choices: dict[str, Any] = field(default_factory=dict)
    inputs: Setup | None = None
    headline: str = ""
    settled: dict[str, Any] = field(default_factory=dict)
    logits: Callable[[], tuple[np.ndarray, np.ndarray]] | None = None
    head: nn.Module | None = None
    keep_adapter: bool = True
    lr_least: dict[str, float] = field(default_factory=dict)


def as_it_is(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """Merge for methods that train the model's own weights: nothing to do."""
    return model, tokenizer


def merge_peft(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    """Merge for PEFT methods that fold into the weights they adapt."""
    return model.merge_and_unload(), tokenizer


def freeze(loaded: Loaded) -> None:
    """Let only the head move: the parameters that the checkpoint did not have, or else those behind the trunk."""
    trunk = f"{loaded.model.base_model_prefix}."
    for name, parameter in loaded.model.named_parameters():
        parameter.requires_grad = is_head(loaded, name, trunk)


def is_head(loaded: Loaded, name: str, trunk: str) -> bool:
    """Whether parameter `name` belongs to the head: new, or outside the trunk called `trunk`."""
    return name in loaded.new_parameters or not name.startswith(trunk)


def head_modules(loaded: Loaded) -> list[str]:
    """Return the top-level names of the head's modules, for PEFT's `modules_to_save`."""
    trunk = f"{loaded.model.base_model_prefix}."
    names = [name for name, _ in loaded.model.named_parameters() if is_head(loaded, name, trunk)]
    new_in_trunk = {name.removeprefix(trunk).split(".")[0] for name in names if name.startswith(trunk)}
    return sorted({name.split(".")[0] for name in names if not name.startswith(trunk)} | new_in_trunk)


def names() -> list[str]:
    """Return the names of all methods."""
    return plugin_names(__path__)


def load(name: str) -> ModuleType:
    """Return the module of method `name`.

    Raises:
        UserError: there is no such method.
    """
    return load_plugin("method", __name__, __path__, name)
