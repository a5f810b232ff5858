"""Where a run's time goes: seconds by stage, the bottleneck, and what a flag could have saved (`--profile`)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

if TYPE_CHECKING:
    from hf_transfer.arguments import Arguments

WITHIN = "train: "  # begins the names of the parts of training
PARTS = ("batches", "forward", "backward", "optimiser", "evaluate", "save")
CACHED = ("majority", "tfidf", "tokenise")  # as a whole, for the next run on the same rows
LEAST = 0.05  # of all seconds; less is not worth a word


class StepTimes(TrainerCallback):
    """Split the seconds of training into `PARTS`, in place in `seconds`, under names such as `train: forward`.

    Whatever happens between two events counts for what the second one ends.
    """

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.last = 0.0
        self.hooks: list[Any] = []

    def mark(self, part: str | None) -> None:
        """Add the time since the last mark to `part`."""
        import torch

        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        now = time.perf_counter()
        if part:
            name = WITHIN + part
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Watch the model's forward passes, those of training only."""
        self.hooks = [
            model.register_forward_pre_hook(lambda module, *_: self.mark("batches") if module.training else None),
            model.register_forward_hook(lambda module, *_: self.mark("forward") if module.training else None),
        ]
        self.mark(None)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End a backward pass whose gradients are only added."""
        self.mark("backward")

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the last backward pass of a step, with the clipping of its gradients."""
        self.mark("backward")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the optimiser's step."""
        self.mark("optimiser")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the scoring of the validation rows."""
        self.mark("evaluate")

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the writing of a checkpoint."""
        self.mark("save")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop watching."""
        for hook in self.hooks:
            hook.remove()
        for name, value in self.seconds.items():
            self.seconds[name] = round(value, 3)


def total(seconds: dict[str, float]) -> float:
    """Return the seconds of all stages; the parts of training are within `train` already."""
    return round(sum(value for name, value in seconds.items() if not name.startswith(WITHIN)), 3)


def advice(arguments: Arguments) -> dict[str, str]:
    """Return what would shorten a stage, by its name, with the flags that do; no other stage has a flag for it alone.

    Loading, merging and the final saving are such, and so is what a method prepares.
    """
    method, train = getattr(arguments.model, "method", None), arguments.train
    shorter = "shorten texts (--max_length)"
    larger = "take larger steps (--gradient_accumulation_steps)"
    out = {
        "tune": "make fewer trials (--tune)",
        "predict": "test on fewer rows (--test_fraction, or a smaller --target)",
        "label the target": "label fewer of its texts (--pool_rows)",
        "train: batches": shorter,
        "train: forward": shorter,
        "train: backward": shorter,
        "train: optimiser": larger,
        "train: evaluate": "hold out fewer rows (--validation_fraction), or evaluate less often (--eval_strategy steps "
                           "--eval_steps N --save_strategy steps --save_steps N)",
    }  # fmt: skip
    if method == "partial" and arguments.method.top_layers != 0:
        fewer = "train fewer layers (--top_layers)"
        out |= {"train: forward": f"{fewer}, or {shorter}", "train: backward": f"{fewer}, or {shorter}",
                "train: optimiser": f"{larger}, or {fewer}"}  # fmt: skip
    elif method not in ("partial", None):
        once = "run the lower layers once (--method partial, with encoders like BERT)"
        out |= {"train: forward": f"{once}, or {shorter}",
                "train: backward": f"train fewer layers (--method partial), or {shorter}"}  # fmt: skip
    if method == "full":
        out["train: optimiser"] = f"{larger}, or train fewer weights (--method lora, partial)"
    if train.eval_strategy == "no":
        out["train: save"] = "write no checkpoints, without which --resume begins anew (--save_strategy no)"
    elif train.save_strategy != "best":
        out["train: save"] = "write a checkpoint only where the validation score is the best yet (--save_strategy best)"
    return out


def profile_table(seconds: dict[str, float], shortens: dict[str, str]) -> str:
    """Return the stages of a run as a table, and as a sentence its bottleneck and the most that a flag could save.

    Args:
        seconds: by stage, with `total`; stages within training are called `train: ...`.
        shortens: what would shorten a stage, see `advice`.
    """
    everything = seconds["total"]
    within = {name: value for name, value in seconds.items() if name.startswith(WITHIN)}
    whole = {name: value for name, value in seconds.items() if name != "total" and name not in within}
    if within:  # making the Trainer, and loading the best checkpoint
        within[f"{WITHIN}other"] = max(0.0, whole["train"] - sum(within.values()))
    whole["other"] = max(0.0, everything - sum(whole.values()))
    rows = []
    for name, value in whole.items():
        rows.append((name, value))
        if name == "train":
            rows += [(f"  {part.removeprefix(WITHIN)}", value) for part, value in within.items()]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value:>9.2f} s  {value / everything:>6.1%}" for name, value in rows]

    def shown(stage: str) -> str:
        short = stage.removeprefix(WITHIN)
        return stage if short in whole else short

    parts = {name: value for name, value in whole.items() if name != "train" or not within} | within
    slowest = max(parts, key=lambda name: parts[name])
    sentence = f"bottleneck: {shown(slowest)}, {100 * parts[slowest] / everything:.0f} % of {everything:.1f} s"
    if slowest in CACHED:
        sentence += ", cached for the next run on these rows"
    avoidable = max((name for name in parts if name in shortens), key=lambda name: parts[name], default=None)
    if avoidable is not None and parts[avoidable] >= LEAST * everything:
        of = "it" if avoidable == slowest else shown(avoidable)
        sentence += f"; up to {parts[avoidable]:.1f} s of {of} can be avoided: {shortens[avoidable]}"
    return "\n".join([*lines, sentence])
