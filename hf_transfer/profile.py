"""Where a run's time goes: seconds by stage, and the bottleneck in one sentence (`--profile`)."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

PARTS = ("batches", "forward", "backward", "optimiser", "evaluate", "save")
ADVICE = {
    "read": "convert large tables to parquet",
    "tokenise": "it is cached, the next run on these rows does without",
    "prepare": "what the method computes once is cached, the next run on these rows does without",
    "tune": "ask for fewer trials (--tune)",
    "batches": "shorten texts (--max_length)",
    "forward": "shorten texts (--max_length), or keep the lower layers frozen (--method partial, frozen)",
    "backward": "train fewer layers (--method partial, frozen), or shorten texts (--max_length)",
    "optimiser": "take larger steps (--gradient_accumulation_steps), or train fewer weights (--method lora, partial)",
    "predict": "test on fewer rows (--test_fraction, --max_rows)",
    "evaluate": "evaluate less often (--eval_strategy steps --eval_steps N), or hold out fewer rows",
    "save": "save less often (--save_strategy steps --save_steps N)",
}


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
            name = f"train: {part}"
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


def profile_table(seconds: dict[str, float]) -> str:
    """Return the stages of a run as a table, and its bottleneck as a sentence.

    Args:
        seconds: by stage, with `total`; stages within training are called `train: ...`.
    """
    total = seconds["total"]
    within = {name: value for name, value in seconds.items() if name.startswith("train: ")}
    whole = {name: value for name, value in seconds.items() if name != "total" and name not in within}
    rows = []
    for name, value in whole.items():
        rows.append((name, value))
        if name == "train":
            rows += [(f"  {part.removeprefix('train: ')}", value) for part, value in within.items()]
    rows.append(("other", max(0.0, total - sum(whole.values()))))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value:>9.2f} s  {value / total:>6.1%}" for name, value in rows]
    parts = {name: value for name, value in whole.items() if name != "train" or not within} | within
    slowest = max(parts, key=lambda name: parts[name])
    name = slowest.removeprefix("train: ")
    advice = f"; to shorten it: {ADVICE[name]}" if name in ADVICE else ""
    return "\n".join([*lines, f"bottleneck: {name}, {parts[slowest] / total:.0%} of {total:.1f} s{advice}"])
