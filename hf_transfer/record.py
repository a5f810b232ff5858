"""What a finished run keeps for later checks: logits of a few texts, and what is typical of the training domain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.errors import UserError
from hf_transfer.results import Run, write_atomically

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_transfer.data import Domains
    from hf_transfer.tasks import Task

ROWS = 64  # recorded with their logits
SAMPLE = 400  # rows a set that distances are measured on, at most
FEWEST = 20  # held-out rows, below which no distance is said
BINS = ((0, 50), (50, 90), (90, 100), (100, 101))  # percentiles among the held-out distances; the last is beyond all


def record_logits(model: Any, tokenizer: Any, domains: Domains, file: Path, seed: int) -> None:
    """Write up to 64 test rows with the logits, in float32, of the model as it is saved (JSON lines).

    Args:
        model: merged, in evaluation mode.
        tokenizer: its own, which cuts at `model_max_length`.
        domains: the rows; those of its test set are drawn evenly over domains and labels.
        file: to write.
        seed: of the draw.
    """
    import torch

    rows = domains.test.select(_spread(domains.test, ROWS, seed))
    lines = []
    for row in rows:
        inputs = tokenizer(row["text"], truncation=True, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            logits = model(**inputs).logits[0].float().tolist()
        lines.append({**row, "label": domains.label_names[row["label"]], "logits": logits})
    write_atomically(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_recorded(run: Run) -> list[dict[str, Any]]:
    """Return the rows recorded at training: text, label, domain, row and logits.

    Raises:
        UserError: there are none, or they don't fit the run.
    """
    file = run.folder / "recorded.jsonl"
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
        if not rows or any(
            len(row["logits"]) != len(run.label_names) or not isinstance(row["text"], str) for row in rows
        ):
            raise ValueError("no rows, or not a text and one logit a label")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} can't be read ({str(error)[:80]}), without it the model can't be checked; make the "
                        "run again.") from error  # fmt: skip
    return rows


def _spread(rows: Dataset, most: int, seed: int) -> list[int]:
    """Return up to `most` row numbers in random order, taking domains and labels in turn."""
    groups: dict[tuple[str, int], list[int]] = {}
    for i in np.random.default_rng(seed).permutation(len(rows)):
        row = rows[int(i)]
        groups.setdefault((row["domain"], row["label"]), []).append(int(i))
    turns = [(turn, group, i) for group, members in groups.items() for turn, i in enumerate(members)]
    return [i for _, _, i in sorted(turns)[:most]]


def record_domain(
    model: Any,
    tokenizer: Any,
    task: Task,
    domains: Domains,
    right: np.ndarray,
    file: Path,
    *,
    precision: str,
    seed: int,
) -> None:
    """Write what tells how far a text lies from the training domain (safetensors), if enough rows are held out.

    The distance is Mahalanobis' with a shrunk covariance, of mean token states of a layer two thirds up, where domains
    differ most clearly (benchmarks/README.md); Lee et al. 2018, https://arxiv.org/abs/1807.03888. It is read against
    the distances of held-out rows, and against how often test rows at that distance were labelled correctly.

    Args:
        model: merged, in evaluation mode.
        tokenizer: its own.
        task: encodes the rows.
        domains: the rows.
        right: (test rows,) whether the model labelled each correctly.
        file: to write.
        precision: of the forward passes.
        seed: of the samples.
    """
    import torch
    from datasets import concatenate_datasets
    from safetensors.torch import save

    held_out = concatenate_datasets([rows for rows in (domains.validation, domains.source_test) if len(rows)] or
                                    [domains.validation])  # fmt: skip
    if len(held_out) < FEWEST:
        return
    rng = np.random.default_rng(seed)
    layer = telling_layer(model)
    trunk = lower_part(model, layer, precision)
    tested = rng.permutation(len(domains.test))[:SAMPLE]

    def features(rows: Dataset) -> np.ndarray:
        encoded, _ = task.encode(tokenizer, rows, tokenizer.model_max_length)
        return mean_states(trunk, encoded, task.collator(tokenizer), layer)

    def sample(rows: Dataset) -> Dataset:
        return rows.select(rng.permutation(len(rows))[:SAMPLE])

    mean, whitening = whitener(features(sample(domains.train)))

    def distances(rows: Dataset) -> np.ndarray:
        return np.linalg.norm((features(rows) - mean) @ whitening, axis=1)

    quantiles = np.quantile(distances(sample(held_out)), np.linspace(0, 1, 101)).astype(np.float32)
    far = distances(domains.test.select(tested))
    percentile = np.maximum(np.searchsorted(quantiles, far) - 1, 0)  # the 1st of the 101 is the nearest row itself
    accuracy = [
        {"from": low, "to": high, "n": int(inside.sum()), "accuracy": float(right[tested][inside].mean())}
        for low, high in BINS
        if (inside := (percentile >= low) & (percentile < high)).any()
    ]
    facts = {
        "layer": layer,
        "source": sorted({name for name in domains.train.unique("domain") if name != domains.facts["target"]}),
        "target": domains.facts["target"] or "",
        "rows": min(len(held_out), SAMPLE),
        "accuracy": accuracy,
    }
    tensors = {"mean": mean, "whitening": whitening, "distances": quantiles}
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    write_atomically(file, save({name: torch.from_numpy(value) for name, value in tensors.items()}, metadata))


def whitener(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (hidden,) and a matrix (hidden, hidden), float32: rows less the one, times the other, are white.

    Args:
        features: (rows, hidden); a fine-tuned encoder may leave most directions nearly empty.
    """
    from sklearn.covariance import LedoitWolf

    fitted = LedoitWolf().fit(features.astype(np.float64))
    variances, directions = np.linalg.eigh(fitted.covariance_)
    floor = max(1e-6 * variances[-1], 1e-12)
    whitening = directions / np.sqrt(np.maximum(variances, floor))
    return fitted.location_.astype(np.float32), whitening.astype(np.float32)


def telling_layer(model: Any) -> int:
    """Return the hidden state in which domains differ most clearly: two thirds up (benchmarks/README.md)."""
    depth = model.config.num_hidden_layers
    return min(round(2 * depth / 3), depth - 1)


def lower_part(model: Any, layer: int, precision: str) -> Any:
    """Return a copy of the trunk that ends above hidden state `layer`: what lies higher would run for nothing."""
    from hf_transfer.features import cut, frozen_copy

    trunk = frozen_copy(model, precision)
    cut(trunk, layer + 1)  # the last layer's own state is normalised once more in many architectures
    return trunk


def mean_states(trunk: Any, encoded: Dataset, collator: Any, layer: int) -> np.ndarray:
    """Return the mean over a text's tokens of hidden state `layer`: (rows, hidden) float32, in input order."""
    from hf_transfer.features import run_trunk

    out: np.ndarray | None = None
    for rows, mask, states in run_trunk(trunk, encoded, collator):
        weights = mask.unsqueeze(-1).float()
        means = ((states[layer].float() * weights).sum(1) / weights.sum(1)).cpu().numpy()
        if out is None:
            out = np.empty((len(encoded), means.shape[1]), dtype=np.float32)
        out[rows] = means
    assert out is not None
    return out
