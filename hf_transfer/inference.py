"""Logits of many texts, fast and in input order, because texts of similar length run together."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset

SAMPLE = 64  # rows that are scored in both precisions, to see how far they lie apart
CLOSE = 10.0  # margins up to so many times the largest difference seen there are not trusted


def release(trainer: Any) -> None:
    """Take back what accelerate did to a Trainer's model, so that the next Trainer wraps and casts it anew.

    Without this a model that was used for prediction would be trained without DDP, and one that was trained would be
    tested without autocast: accelerate marks a model as prepared and does nothing the second time.
    """
    forward = vars(trainer.model).get("_original_forward")
    trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    if forward is not None:  # accelerate strips it of the model's own decorators too, without which PEFT fails
        trainer.model.forward = forward
    for module in (trainer.model, getattr(trainer.model, "base_model", None)):
        if module is not None:
            vars(module).pop("_is_accelerate_prepared", None)


def predict_logits(model: Any, encoded: Dataset, collator: Any, *, precision: str, batch_size: int = 32,
                   quiet: bool = True) -> np.ndarray:  # fmt: skip
    """Return logits (rows, classes) float32 in the order of `encoded`, by a stock Trainer, the same on every process.

    Args:
        model: a classification model, plain or PEFT.
        encoded: columns of model inputs and `length`.
        collator: makes a batch.
        precision: bf16, fp16 or fp32.
        batch_size: texts per device and step.
        quiet: no progress bar.
    """
    import tempfile

    import torch
    from transformers import Trainer, TrainingArguments

    if not len(encoded):
        return np.empty((0, model.config.num_labels), dtype=np.float32)
    order = np.argsort(-np.array(encoded["length"][:]), kind="stable")
    sorted_rows = encoded.select(order).remove_columns([c for c in ("labels",) if c in encoded.column_names])
    with tempfile.TemporaryDirectory() as scratch:
        args = TrainingArguments(
            output_dir=scratch,
            per_device_eval_batch_size=batch_size,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            remove_unused_columns=False,
            use_cpu=not torch.accelerator.is_available(),
            disable_tqdm=quiet,
            report_to="none",
            log_level="error",
        )
        args.mixed_precision = "no" if precision == "fp32" else precision  # whatever the launcher has set
        trainer = Trainer(model=model, args=args, data_collator=collator)
        output = trainer.predict(sorted_rows)
    release(trainer)
    logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
    result = np.empty(logits.shape, dtype=np.float32)
    result[order] = logits
    return result


def exact_logits(model: Any, encoded: Dataset, collator: Any, *, precision: str, batch_size: int = 32,
                 quiet: bool = True) -> np.ndarray:  # fmt: skip
    """Return logits like `predict_logits`, whose best labels are those of float32, in which models are saved.

    Rows whose two best labels lie so close that `precision` may have swapped them are scored again in float32: the
    share is a few percent, float32 alone takes two to five times as long. Few rows are all scored in float32.
    """
    predict = partial(predict_logits, model, collator=collator, batch_size=batch_size, quiet=quiet)
    if precision == "fp32" or len(encoded) <= SAMPLE:
        return predict(encoded, precision="fp32")
    logits = predict(encoded, precision=precision)
    by_length = np.argsort(encoded["length"][:], kind="stable")
    sample = by_length[np.linspace(0, len(encoded) - 1, SAMPLE).astype(int)]
    close = close_rows(logits, np.abs(predict(encoded.select(sample), precision="fp32") - logits[sample]).max())
    logits[close] = predict(encoded.select(close), precision="fp32")
    return logits


def close_rows(logits: np.ndarray, apart: float) -> np.ndarray:
    """Return the rows of `logits` (rows, classes) whose best two are not clearly apart, or are no numbers.

    Args:
        logits: in a fast precision.
        apart: the largest difference of a logit from float32 that was seen.
    """
    second, best = np.partition(logits, -2, axis=1)[:, -2:].T
    with np.errstate(invalid="ignore"):
        return np.flatnonzero(~(best - second > CLOSE * apart))


def text_logits(
    model: Any, tokenizer: Any, collator: Any, *, precision: str, batch_size: int = 32
) -> Callable[[list[str]], np.ndarray]:
    """Return a function from texts to logits (texts, classes) float32, which costs little even for one text.

    Args:
        model: a classification model that does nothing else from now on; moved to the accelerator, its weights take the
            type of `precision`, which spares what autocast casts at every call.
        tokenizer: its `model_max_length` is where texts are cut.
        collator: makes a batch.
        precision: bf16, fp16 or fp32.
        batch_size: texts at a time.
    """
    import torch

    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = model.to(device).eval()
    if precision != "fp32":
        model = model.to(torch.bfloat16 if precision == "bf16" else torch.float16)

    def logits(texts: list[str]) -> np.ndarray:
        encoded = tokenizer(texts, truncation=True)
        order = np.argsort([-len(ids) for ids in encoded["input_ids"]], kind="stable")
        result = np.empty((len(texts), model.config.num_labels), dtype=np.float32)
        with torch.inference_mode():
            for begin in range(0, len(order), batch_size):
                rows = order[begin : begin + batch_size]
                batch = collator([{name: encoded[name][row] for name in encoded} for row in rows]).to(device)
                result[rows] = model(**batch).logits.float().cpu().numpy()
        return result

    return logits
