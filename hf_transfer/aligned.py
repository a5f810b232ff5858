"""A model that is trained on its task and, on the same steps, tied to a target domain without labels.

The loss is the task's on source rows plus the weighted loss of an alignment between both domains' features. A stock
Trainer trains it: every batch, of every process, is given target rows by the collator.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback

from hf_transfer.alignment import Batch, udalm
from hf_transfer.alignment._adversary import Discriminator
from hf_transfer.errors import UserError
from hf_transfer.features import from_first_process, of_all_processes
from hf_transfer.methods import NO_LABEL
from hf_transfer.models import scores_last_token
from hf_transfer.objectives import padded
from hf_transfer.results import STOPPED, write_atomically

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_transfer.methods import Prepared, Setup

PREFIX = "target_"
SOURCE_LABELS = "source_labels"
HELD_OUT = 0.1  # share of the target's texts whose masked words help to choose the checkpoint
NEIGHBOURS = 200  # target rows of like length among which each is drawn
# training has failed if after the share EARLY of it what the discriminator told right, of ENOUGH rows or more, was
# never TOLD standard errors more than chance, or after the share LATE every text gets one label for PATIENCE steps, or
# ENOUGH target texts running while OTHERS source rows get another: before, a model may not have begun to learn
EARLY, LATE, PATIENCE, ENOUGH, TOLD, OTHERS = 0.3, 0.5, 20, 1000, 4.0, 100
MIXED = "mixed_losses"  # among a run's `choices`
WATCHED = "alignment.json"  # in a checkpoint: what `Progress` has seen until then
WEIGHT = 0.1  # of an alignment: a whole one kept encoders from learning their task (benchmarks/README.md)
DISCRIMINATOR_RATE = 1e-3  # it begins with random weights: at a fine-tuning's rate it would not learn in time


@dataclass
class AlignmentArguments:
    """How strongly the domains are tied."""

    alignment_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of the alignment beside the task's loss; 0.1, but with coral 100 (1 on decoders)."},
    )


class Aligned(nn.Module):
    """A classifier and an alignment, trained as one.

    Args:
        model: what the method prepared, plain or PEFT.
        alignment: gives the second loss.
        weight: of it.
    """

    _keys_to_ignore_on_save = None  # the Trainer asks for it when it loads a checkpoint

    def __init__(self, model: Any, alignment: nn.Module, weight: float) -> None:
        super().__init__()
        self.model, self.alignment, self.weight = model, alignment, weight
        self.config = model.config
        self.progress, self.failed = 0.0, False
        self.given = Counter[int](), Counter[int]()  # of this step: predicted labels of source and target rows
        self.meant = set[int]()  # the true ones of source rows
        self.seen: list[torch.Tensor] = []
        last_linear(model).register_forward_pre_hook(self._see)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return what trains: the rest is as it was loaded, and PEFT's second view of a weight could not be saved."""
        moving = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if name in moving}

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Do what `--activation_checkpointing` asks for."""
        self.model.activation_checkpointing_enable(**options)

    def _see(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if self.training:
            self.seen.append(inputs[0])

    def forward(self, labels: Any = None, **inputs: Any) -> dict[str, torch.Tensor]:
        """Return `logits` of the source rows, and while training the weighted `penalty`.

        The Trainer looks for `labels` among the parameters and keeps them for its loss; a copy is in SOURCE_LABELS.
        """
        source_labels: Any = inputs.pop(SOURCE_LABELS, None)
        own = {name: value for name, value in inputs.items() if not name.startswith(PREFIX)}
        if not self.training:
            return {"logits": self.model(**own).logits}
        other = {name.removeprefix(PREFIX): value for name, value in inputs.items() if name.startswith(PREFIX)}
        words = other.pop("labels", None)  # where the collator has masked some
        self.seen.clear()
        logits, states = [self.model(**own).logits], list[torch.Tensor]()
        with keeping_states(self.model, states):
            logits.append(self.model(**other).logits)
        features = [one if one.dim() == 2 else _last_token(one, rows["attention_mask"])
                    for one, rows in zip(self.seen, (own, other), strict=True)]  # fmt: skip
        self.seen.clear()
        source = Batch(features[0], logits[0], source_labels)
        target = Batch(features[1], logits[1], None, states[0], words)
        # distances and covariances are differences of large numbers: 16 bits, as the encoder's, would lose them
        exactly = torch.autocast(logits[0].device.type, enabled=False) if words is None else nullcontext()
        with exactly:
            penalty = self.weight * self.alignment(source, target, self.progress)
        if not math.isfinite(float(penalty.detach())):  # `Progress` ends it; the step must not spoil the weights
            self.failed = True
            penalty = torch.zeros_like(penalty) + sum(0.0 * p.nan_to_num().sum() for p in self.alignment.parameters())
        for labels, rows in zip(self.given, logits, strict=True):
            labels.update(rows.argmax(-1).tolist())
        self.meant.update(label for label in source_labels.tolist() if label >= 0)
        return {"logits": logits[0], "penalty": penalty}


@contextmanager
def keeping_states(model: Any, states: list[torch.Tensor]) -> Iterator[None]:
    """Append the trunk's last token states of every forward pass to `states`, also behind PEFT's wrappers."""
    trunk = next(m for m in model.modules() if isinstance(m, PreTrainedModel)).base_model
    keeping = trunk.register_forward_hook(lambda module, inputs, output: states.append(output.last_hidden_state))
    try:
        yield
    finally:
        keeping.remove()


def last_linear(model: Any) -> nn.Linear:
    """Return the layer that ends in the logits, also behind PEFT's wrappers."""
    classes = model.config.num_labels
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes][-1]


def _last_token(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Decoders score every token and keep the last one's."""
    return values[torch.arange(len(values), device=values.device), mask.cumsum(1).argmax(1)]


class PairCollator:
    """Give every row of a batch a target row about as long, as lengths go in its own domain.

    A long row gets a long one, so that batches need little padding, and over the source every part of the target has
    its turn, also where its texts are longer or shorter, or many are cut at one length. Which ones are drawn depends on
    the batch and the seed alone, so that a resumed run draws what the whole one would have.

    Args:
        collator: makes a batch.
        lengths: of all source rows.
        target: encoded rows; labels are left out.
        seed: of the drawing.
        collate_target: makes a batch of the target's rows, where it is not made as the others are.
    """

    def __init__(
        self,
        collator: Callable[[list[dict[str, Any]]], Any],
        lengths: list[int],
        target: Dataset,
        seed: int,
        collate_target: Callable[[list[dict[str, Any]]], Any] | None = None,
    ) -> None:
        self.collator, self.seed, self.collate_target = collator, seed, collate_target or collator
        self.target = target.remove_columns([c for c in ("labels",) if c in target.column_names])
        self.order = np.argsort(target["length"][:], kind="stable")
        self.lengths = np.sort(lengths)

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        """Return the batch, its labels once more for the model, and the target's inputs under names with PREFIX."""
        batch = self.collator(rows)
        state = zlib.crc32(repr([row.get("input_ids", row.get("row")) for row in rows]).encode())
        rng = np.random.default_rng([self.seed, state])
        own = [row["length"] for row in rows]
        first, last = (np.searchsorted(self.lengths, own, side) for side in ("left", "right"))
        middle = rng.uniform(first, last) / len(self.lengths) * len(self.order)  # one anywhere among equal lengths
        width = min(NEIGHBOURS, len(self.order))
        begin = np.clip(middle.astype(int) - width // 2, 0, len(self.order) - width)
        drawn: list[int] = []
        for at in begin:
            near = self.order[at : at + width]
            new = near[~np.isin(near, drawn)]
            drawn.append(int(rng.choice(new if len(new) else near)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**62)))
            other = self.collate_target([self.target[i] for i in drawn])
        others = {f"{PREFIX}{name}": value for name, value in other.items()}
        return {**batch, SOURCE_LABELS: batch["labels"], **others}


class Progress(TrainerCallback):
    """Tell the alignment how far training is, and stop where it has failed; a best checkpoint so far is kept.

    Args:
        aligned: what is trained.
        choices: of the run; gets `alignment_stopped`, the reason.
    """

    def __init__(self, aligned: Aligned, choices: dict[str, Any]) -> None:
        self.aligned, self.choices = aligned, choices
        # steps with one label only; target rows with one label, and source rows with another meanwhile; rows that the
        # discriminator was shown and told right; whether it ever could
        self.watched: dict[str, Any] = {"same": 0, "label": None, "of_target": 0, "others": 0, "shown": 0, "right": 0,
                                        "told": False}  # fmt: skip
        learns = aligned.weight > 0
        self.discriminators = [m for m in aligned.alignment.modules() if learns and isinstance(m, Discriminator)]

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on from what was seen until the checkpoint."""
        file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / WATCHED
        if file.is_file():
            kept = json.loads(file.read_text(encoding="utf-8"))
            self.watched |= kept["watched"]
            self.choices.update(kept["choices"])
        elif state.global_step:  # killed before it was written: no reason to give up what went on until then
            self.watched["told"] = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep what was seen beside the weights."""
        if state.is_world_process_zero:
            choices = {name: self.choices[name] for name in (STOPPED, MIXED) if name in self.choices}
            file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / WATCHED
            write_atomically(file, json.dumps({"watched": self.watched, "choices": choices}))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the share of training that is done."""
        self.aligned.progress = state.global_step / max(1, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look for collapse."""
        if STOPPED in self.choices:  # before it was killed
            control.should_training_stop = True
            return
        counts = (sum(one.shown for one in self.discriminators), sum(one.right for one in self.discriminators))
        own = (self.aligned.given, self.aligned.meant, self.aligned.failed, *counts)
        # all processes decide alike: one that went on would wait for the others forever
        given, meant, failed, shown, right = zip(*of_all_processes(own), strict=True)
        watched, progress = self.watched, self.aligned.progress
        of_source, of_target = (sum(labels, Counter[int]()) for labels in zip(*given, strict=True))
        if len(set().union(*meant)) > 1:
            watched["same"] = watched["same"] + 1 if len(of_source | of_target) == 1 else 0
        label = next(iter(of_target)) if len(of_target) == 1 else None
        if label is None or label != watched["label"]:
            watched.update({"label": label, "of_target": 0, "others": 0})
        if label is not None:
            watched["of_target"] += of_target.total()
            watched["others"] += of_source.total() - of_source[label]
        watched["shown"] += sum(shown)
        watched["right"] += sum(right)
        watched["told"] |= watched["right"] > watched["shown"] / 2 + TOLD * math.sqrt(watched["shown"] / 4)
        for labels in self.aligned.given:
            labels.clear()
        self.aligned.meant.clear()
        for discriminator in self.discriminators:
            discriminator.shown = discriminator.right = 0
        why = ""
        if any(failed):
            why = "the alignment's loss is no number; lower --alignment_weight or --learning_rate"
        elif progress > LATE and watched["same"] >= PATIENCE:
            why = f"for {PATIENCE} steps every text was given one label; lower --alignment_weight"
        elif progress > LATE and watched["of_target"] >= ENOUGH and watched["others"] >= OTHERS:
            why = (f"all of {watched['of_target']} target texts were given one label, and {watched['others']} source "
                   "texts another; lower --alignment_weight, unless the target hardly has another")  # fmt: skip
        elif progress > EARLY and self.discriminators and watched["shown"] >= ENOUGH and not watched["told"]:
            why = ("the discriminator has never told the domains apart, so there is nothing to align; look at "
                   "hf-transfer gap, or raise --learning_rate")  # fmt: skip
        if why and (any(failed) or not control.should_training_stop):
            self._stop(why, args, state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Look for an encoder that a step has spoiled: early stopping would end the training before the next step."""
        if not math.isfinite(metrics["eval_loss"]) and STOPPED not in self.choices:
            self._stop("the loss on held-out rows is no number; lower --alignment_weight or --learning_rate", args,
                       state, control)  # fmt: skip

    def _stop(self, why: str, args: Any, state: Any, control: Any) -> None:
        control.should_training_stop = True
        self.choices[STOPPED] = f"after {state.global_step} steps: {why}"
        best = args.load_best_model_at_end and state.best_model_checkpoint
        kept = "the best checkpoint is kept" if best else "the last weights are kept"
        if state.is_world_process_zero:
            print(f"warning: stopped after {state.global_step} steps, {kept}: {why}.")


class MixedLoss(TrainerCallback):
    """Add the masked words' loss on held-out target rows to the validation loss: UDALM chooses its checkpoint by it.

    Args:
        aligned: what is trained, by `udalm`.
        rows: encoded, of the target.
        pad: the padding token.
        setup: for precision and seed.
        choices: of the run; gets `mixed_losses`, the source's and the target's part at every evaluation.
    """

    def __init__(self, aligned: Aligned, rows: Dataset, pad: int, setup: Setup, choices: dict[str, Any]) -> None:
        self.aligned, self.pad, self.precision, self.choices = aligned, pad, setup.precision, choices
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(setup.seed)  # masked once, so that losses can be compared
            self.rows = [aligned.alignment.hide(row) for row in sorted(rows, key=lambda row: row["length"])]

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        """Add `eval_mixed_loss` to what the Trainer has measured."""
        size = args.per_device_eval_batch_size
        value = from_first_process(self._measure(size) if state.is_world_process_zero else None)
        both = (metrics["eval_loss"], value)
        self.choices.setdefault(MIXED, []).append([one if math.isfinite(one) else None for one in both])
        metrics["eval_mixed_loss"] = metrics["eval_loss"] + self.aligned.weight * value

    def _measure(self, size: int) -> float:
        self.aligned.eval()
        total, count, device = 0.0, 0, next(self.aligned.parameters()).device
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=self.precision != "fp32"):
            for begin in range(0, len(self.rows), size):
                batch = padded(self.rows[begin : begin + size], self.pad)
                inputs = {name: value.to(device) for name, value in batch.items()}
                words = inputs.pop("labels")
                states: list[torch.Tensor] = []
                with keeping_states(self.aligned.model, states):
                    self.aligned.model(**inputs)
                lost, number = self.aligned.alignment.total(states[0], words)
                total, count = total + float(lost), count + number
        return total / max(1, count)


def with_target(setup: Setup, target: Dataset) -> Setup:
    """Return `setup` with the target's encoded rows behind its training rows, so that a method prepares both alike."""
    from datasets import concatenate_datasets

    unlabelled = target.add_column("labels", [NO_LABEL] * len(target))
    return replace(setup, train=concatenate_datasets([setup.train, unlabelled]))


def align(prepared: Prepared, setup: Setup, alignment: Any, args: Any, weight: float | None = None) -> Prepared:
    """Wrap what a method prepared, so that it is trained with an alignment to the target.

    Args:
        prepared: by the method.
        setup: what it was given: see `with_target`.
        alignment: module of `hf_transfer.alignment`.
        args: its arguments.
        weight: of the alignment; its own default where it is None.

    Raises:
        UserError: a weight below 0, or an alignment that reads words with a method that doesn't.
    """
    if weight is None:
        weight = getattr(alignment, "WEIGHT", WEIGHT)
        if scores_last_token(setup.loaded.model):  # a decoder's last states have no bounds
            weight = min(weight, 1.0)
    if not 0 <= weight < math.inf:
        raise UserError(f"--alignment_weight is {weight}; it must be 0 or more.")
    if alignment is udalm and prepared.inputs is not None:
        raise UserError("--alignment udalm masks words, and --method partial trains on cached states without any; "
                        "choose another method or alignment.")  # fmt: skip
    prepared.choices["alignment_weight"] = weight
    inputs = prepared.inputs or setup
    labelled = np.array(inputs.train["labels"][:]) != NO_LABEL
    source, target = (inputs.train.select(np.flatnonzero(part)) for part in (labelled, ~labelled))
    torch.manual_seed(setup.seed)
    loss = alignment.build(last_linear(prepared.model).in_features, prepared.model.config.num_labels, args, setup)
    wrapped = Aligned(prepared.model, loss, weight)
    callbacks, headline, collate_target = [*prepared.callbacks, Progress(wrapped, prepared.choices)], "", None
    if alignment is udalm:
        pad, headline = setup.loaded.tokenizer.pad_token_id, "mixed_loss"
        order = np.random.default_rng(setup.seed).permutation(len(target))
        count = int(HELD_OUT * len(target))
        held_out, target = target.select(order[:count]), target.select(order[count:])
        callbacks.append(MixedLoss(wrapped, held_out.remove_columns("labels"), pad, setup, prepared.choices))

        def collate_target(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
            return padded([loss.hide(row) for row in rows], pad)

    faster = {
        f"{name}.{own}": DISCRIMINATOR_RATE
        for name, module in wrapped.named_modules() if isinstance(module, Discriminator)
        for own, _ in module.named_parameters()
    }  # fmt: skip
    return replace(
        prepared,
        model=wrapped,
        callbacks=callbacks,
        lr_scale={f"model.{name}": scale for name, scale in prepared.lr_scale.items()},
        lr_least=faster,
        inputs=replace(
            inputs,
            train=source,
            collator=PairCollator(inputs.collator, source["length"][:], target, setup.seed, collate_target),
        ),
        headline=headline,
    )
