"""What an arm of a comparison is, by its name: METHOD, or ADAPTATION+METHOD.

`lora` trains on the source, `coral+lora` aligns it to the target meanwhile, `dapt+full` continues pretraining first.
Two adaptations are controls: `random+full` starts from random weights (what did pretraining give?), and
`target_only+full` sees the target's labels alone (what did the source give?).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hf_transfer import alignment, feature_maps, methods, objectives
from hf_transfer.errors import UserError, listed, nearest

SOURCE_WEIGHTS = ("importance", "domains", "nearest")
SELF_TRAIN, MIXTURE, DAPT, UDALM = "self_train", "mixture", "dapt", "udalm"
RANDOM, TARGET_ONLY = "random+full", "target_only+full"
RANDOM_RATE = 1e-4  # learning rate from random weights: at 3e-4 they never left chance (benchmarks/README.md)
FROZEN, SOURCE_ONLY = "frozen", "full"


@dataclass(frozen=True)
class Arm:
    """An arm, parsed.

    Attributes:
        adaptation: empty where there is none.
        method: which weights move.
        learns_by_epochs: whether the stock Trainer trains it.
    """

    adaptation: str
    method: str
    learns_by_epochs: bool

    @property
    def name(self) -> str:
        """As it is called in tables and folders."""
        return f"{self.adaptation}+{self.method}" if self.adaptation else self.method

    @property
    def pretraining(self) -> str | None:
        """The objective of the pretraining it begins with: empty for the encoder's own, None for no pretraining."""
        if self.adaptation in (DAPT, UDALM):
            return ""
        return self.adaptation if self.adaptation in objectives.names() else None

    @property
    def tunes(self) -> bool:
        """Whether --tune can choose its settings; self-training takes those of its method on the source."""
        return self.learns_by_epochs and self.adaptation != SELF_TRAIN

    @property
    def uses_target(self) -> bool:
        """Whether it learns from the target's unlabelled texts."""
        return bool(self.adaptation) and self.name not in (RANDOM, TARGET_ONLY)


def adaptations(method: str) -> list[str]:
    """Return what can stand before `method`."""
    first = [DAPT, *objectives.names()]
    if methods.load(method).DEFAULTS:
        return [*alignment.names(), *SOURCE_WEIGHTS, *first, SELF_TRAIN]
    return [*feature_maps.names(), MIXTURE, *SOURCE_WEIGHTS, *first, SELF_TRAIN]


def read_arm(name: str) -> Arm:
    """Parse an arm's name.

    Raises:
        UserError: there is no such method or adaptation, or they don't fit.
    """
    adaptation, _, method = name.rpartition("+")
    arm = Arm(adaptation, method, bool(methods.load(method).DEFAULTS))
    if adaptation and name not in (RANDOM, TARGET_ONLY) and adaptation not in (known := adaptations(method)):
        raise UserError(f"--arms: '{adaptation}' can't stand before {method}{nearest(adaptation, known)}; these can: "
                        f"{listed(known, 30)}.")  # fmt: skip
    return arm


def command(arm: Arm, *, base: str | None, pool: str, teachers: list[str]) -> list[str]:
    """Return the recipe that trains `arm` and its own flags.

    Args:
        arm: what to train.
        base: model that it starts from, where that is not the one that all start from.
        pool: table of the target's unlabelled texts.
        teachers: runs that give self-training its first labels.
    """
    flags = ["--method", arm.method, *(["--model", base] if base else [])]
    if arm.name == TARGET_ONLY:
        return ["finetune", *flags, "--target_only"]
    if arm.name == RANDOM:
        flags += ["--learning_rate", str(RANDOM_RATE)]
    if not arm.uses_target or (arm.pretraining is not None and arm.adaptation != UDALM):
        return ["finetune", *flags]
    flags += ["--target_unlabeled", pool]
    if arm.adaptation == SELF_TRAIN:
        return ["self_train", *flags, *(["--teachers", *teachers] if teachers else [])]
    if arm.adaptation in SOURCE_WEIGHTS:
        own = ["--alignment", "none", "--source_weights", arm.adaptation]
    elif arm.adaptation == MIXTURE:
        own = ["--mixture_of_sources"]
    elif arm.learns_by_epochs:
        own = ["--alignment", arm.adaptation]
    else:
        own = ["--feature_map", arm.adaptation]
    return ["adapt_domain", *flags, *own]


def write_random(model: str | None, revision: str, folder: Path, seed: int) -> None:
    """Save the same architecture with random weights, and its tokenizer: what pretraining is measured by."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    from hf_transfer.models import default_model, read_config

    config = read_config(model, revision)
    torch.manual_seed(seed)
    AutoModel.from_config(config, trust_remote_code=False).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model or default_model(), revision=revision, trust_remote_code=False).save_pretrained(
        folder
    )
