"""Encode once: the token states of a frozen trunk, cached on disk and memory-mapped, shared by all who need them."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.models import layers

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedModel

CPU_TOKENS, DEVICE_TOKENS = 2048, 32_768  # a batch; on CPUs activations of more fall out of the caches
DISK_SHARE = 0.25  # of what is free, that cached states may take


@dataclass(frozen=True)
class TokenStates:
    """One layer's token states of a set of rows.

    Attributes:
        values: (all tokens, hidden), row after row, longest row first.
        lengths: (rows,) tokens of each row, in that order.
        order: (rows,) which input row each is.
        saved_seconds: that an earlier run spent on them, where they were in the cache.
    """

    values: torch.Tensor
    lengths: np.ndarray
    order: np.ndarray
    saved_seconds: float = 0.0

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each row begins in `values`, in that order, and where the last one ends."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @cached_property
    def place(self) -> np.ndarray:
        """The position in `order` of each input row."""
        return np.argsort(self.order)

    def batches(self, rows: np.ndarray, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, np.ndarray]]:
        """Yield padded states (batch, tokens, hidden), their mask and the input rows, in groups of similar length.

        Args:
            rows: positions in `order`; sorted here, so that a batch is nearly free of padding.
            size: rows a batch.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows = np.sort(rows)
        for begin in range(0, len(rows), size):
            chosen = rows[begin : begin + size]
            lengths = torch.from_numpy(self.lengths[chosen])
            states = pad_sequence([self.values[self.starts[i] : self.starts[i + 1]] for i in chosen], batch_first=True)
            mask = torch.arange(states.shape[1])[None, :] < lengths[:, None]
            yield states, mask, self.order[chosen]


def cache_folder() -> Path:
    """Return the folder for tokens and features: `HF_TRANSFER_CACHE`, or beside the Hub's own cache."""
    from huggingface_hub.constants import HF_HOME

    folder = Path(os.environ.get("HF_TRANSFER_CACHE", Path(HF_HOME) / "hf_transfer"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cache_key(*parts: Any) -> str:
    """Return a short hash of `parts` (anything that JSON takes)."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def table_key(rows: Dataset, columns: list[str]) -> str:
    """Return a short hash of `columns` of `rows`, which are read piece by piece."""
    digest = hashlib.blake2b(digest_size=16)
    for batch in rows.select_columns(columns).with_format("arrow").iter(1000):
        digest.update(json.dumps(batch.to_pydict(), sort_keys=True, default=str).encode())
    return digest.hexdigest()


def cached_array(name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array that the cache holds under `name`, computed at the first call."""
    file = cache_folder() / f"{name}.npy"
    if not file.is_file():
        part = file.with_suffix(f".{os.getpid()}.part.npy")
        np.save(part, compute(), allow_pickle=False)
        part.replace(file)
    return np.load(file, allow_pickle=False)


def weights_key(module: nn.Module) -> str:
    """Return a hash of a module's weights."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def rows_key(encoded: Dataset) -> str:
    """Return a hash of the token ids of `encoded`."""
    digest = hashlib.blake2b(digest_size=16)
    for ids in encoded.with_format("numpy")["input_ids"]:
        digest.update(np.asarray(ids, dtype=np.int32).tobytes() + b";")
    return digest.hexdigest()


def frozen_copy(model: PreTrainedModel, precision: str) -> PreTrainedModel:
    """Return the trunk of `model`, without gradients or dropout, in the fastest type that `precision` allows."""
    import torch

    trunk = copy.deepcopy(model.base_model).eval().requires_grad_(False)
    trunk = trunk.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    return trunk.to(torch.bfloat16) if precision == "bf16" else trunk


def cut(model: PreTrainedModel, depth: int) -> None:
    """Remove the layers above `depth`, in place."""
    del layers(model)[depth:]
    model.config.num_hidden_layers = depth


def run_trunk(
    trunk: PreTrainedModel, encoded: Dataset, collator: Any, progress: Any = None, share: tuple[int, int] = (0, 1)
) -> Iterator[tuple[np.ndarray, torch.Tensor, tuple[torch.Tensor, ...]]]:
    """Yield (rows, attention mask, hidden states of every layer) by batches of similar length, longest first.

    Args:
        trunk: run as it is.
        encoded: columns of model inputs and `length`.
        collator: makes a batch.
        progress: a bar that is told of rows.
        share: (i, n), to leave out all but the i-th of every n batches.
    """
    import torch

    lengths = np.array(encoded["length"][:])
    order = np.argsort(-lengths, kind="stable")
    inputs = encoded.remove_columns([c for c in ("labels",) if c in encoded.column_names])
    begin, count, tokens = 0, 0, CPU_TOKENS if trunk.device.type == "cpu" else DEVICE_TOKENS
    with torch.inference_mode():
        while begin < len(order):
            size = max(1, tokens // int(lengths[order[begin]]))
            rows = order[begin : begin + size]
            if count % share[1] == share[0]:
                batch = collator([inputs[int(i)] for i in rows]).to(trunk.device)
                yield rows, batch["attention_mask"].bool(), trunk(**batch, output_hidden_states=True).hidden_states
            begin += size
            count += 1
            if progress is not None:
                progress.update(len(rows))


def fits_on_disk(trunk: PreTrainedModel, encoded: Dataset) -> bool:
    """Whether the token states of `encoded`, in float32, take no more of the cache's disk than they should."""
    size = 4 * trunk.config.hidden_size * int(np.sum(encoded["length"][:]))
    return size < DISK_SHARE * shutil.disk_usage(cache_folder()).free


def from_first_process(value: Any) -> Any:
    """Return what the first of several processes has for `value`: what they choose by rounded numbers might differ."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]


def of_all_processes(value: Any) -> list[Any]:
    """Return what every process has."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def token_states(
    trunk: PreTrainedModel, encoded: Dataset, collator: Any, progress: Any = None, dtype: torch.dtype | None = None
) -> TokenStates:
    """Return the last layer's token states, read from the cache if they are there.

    The processes of a machine compute a share each, into one file.

    Args:
        trunk: run as it is.
        encoded: columns of model inputs and `length`.
        collator: makes a batch.
        progress: a bar that is told of rows.
        dtype: of the states; bfloat16 by default.
    """
    import torch
    from torch import distributed

    dtype = dtype or torch.bfloat16
    lengths = np.array(encoded["length"][:])
    order = np.argsort(-lengths, kind="stable")
    hidden, total = trunk.config.hidden_size, int(lengths.sum())
    key = cache_key("tokens", weights_key(trunk), rows_key(encoded), str(trunk.dtype), str(dtype))
    file = cache_folder() / f"states-{key}.bin"
    several = distributed.is_available() and distributed.is_initialized()
    share = (int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])) if several else (0, 1)
    part = file.with_suffix(f".{os.getppid() if several else os.getpid()}.part")
    note = file.with_suffix(".json")
    missing = not (file.is_file() and note.is_file())

    def meet() -> None:
        if several:
            distributed.barrier()

    meet()  # nobody may finish the file before all have looked for it
    begin_time = time.perf_counter()
    if missing:
        values = torch.from_file(str(part), shared=True, size=total * hidden, dtype=dtype).view(total, hidden)
        written = TokenStates(values, lengths[order], order)
        for rows, mask, states in run_trunk(trunk, encoded, collator, progress, share):
            begin = written.starts[written.place[rows[0]]]
            flat = states[-1][mask]
            values[begin : begin + len(flat)] = flat.to(dtype).cpu()
        del values, written
    elif progress is not None:
        progress.update(len(encoded))
    meet()
    if missing and share[0] == 0:
        note.write_text(json.dumps({"seconds": round(time.perf_counter() - begin_time, 3)}), encoding="utf-8")
        part.replace(file)
    meet()
    values = torch.from_file(str(file), shared=False, size=total * hidden, dtype=dtype).view(total, hidden)
    saved = 0.0 if missing else json.loads(note.read_text(encoding="utf-8"))["seconds"]
    return TokenStates(values, lengths[order], order, saved)


def pooled_states(trunk: PreTrainedModel, encoded: Dataset, collator: Any, progress: Any = None) -> np.ndarray:
    """Return mean token states, read from the cache if they are there: (rows, layers + 1, hidden) float32, input order.

    Args:
        trunk: run as it is.
        encoded: columns of model inputs and `length`.
        collator: makes a batch.
        progress: a bar that is told of rows.
    """
    key = cache_key("pooled", weights_key(trunk), rows_key(encoded), str(trunk.dtype))
    if progress is not None and (cache_folder() / f"pooled-{key}.npy").is_file():
        progress.update(len(encoded))

    def compute() -> np.ndarray:
        out = np.empty((len(encoded), trunk.config.num_hidden_layers + 1, trunk.config.hidden_size), dtype=np.float32)
        for rows, mask, states in run_trunk(trunk, encoded, collator, progress):
            weights = mask.unsqueeze(-1).float()
            for layer, one in enumerate(states):
                out[rows, layer] = ((one.float() * weights).sum(1) / weights.sum(1)).cpu().numpy()
        return out

    return cached_array(f"pooled-{key}", compute)
