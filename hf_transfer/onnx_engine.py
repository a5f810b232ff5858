"""Score texts with an exported model: onnxruntime, tokenizers and numpy, no torch and no transformers."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from hf_transfer.errors import UserError

FOLDER = "onnx"  # inside the run's
MODEL = "model.onnx"
FACTS = "export.json"  # what was checked
INPUTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}  # in tokenizers' words


def need(*packages: str) -> None:
    """Check that the ONNX packages are installed.

    Raises:
        UserError: one is missing.
    """
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise UserError(f"ONNX needs {' and '.join(missing)}: run pip install 'hf-transfer-nlp[onnx]'.")


class Engine:
    """The exported model in `folder`, loaded once; call it with texts.

    Args:
        folder: holds model.onnx and a tokenizer.json that cuts and pads as the model wants; export.json says what was
            checked.

    Raises:
        UserError: onnxruntime is missing, or the files are missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        need("onnxruntime")
        if not (folder / MODEL).is_file():
            raise UserError(f"{folder.parent} has no ONNX export; run "
                            f"hf-transfer export {folder.parent} --format onnx first.")  # fmt: skip
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        # onnxruntime's own default is every core of the machine, also where this process may use only a few
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        options.intra_op_num_threads = int((os.environ.get("OMP_NUM_THREADS") or str(cores)).split(",")[0])
        options.log_severity_level = 3
        try:
            self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            padding = self.tokenizer.padding or {}
            self.padding = {key: padding[key] for key in ("direction", "pad_id", "pad_type_id", "pad_token")}
            self.session = onnxruntime.InferenceSession(folder / MODEL, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # both libraries raise what has no common base
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"{folder} can't be loaded ({reason}); export the run again.") from error
        self.facts = json.loads((folder / FACTS).read_text(encoding="utf-8")) if (folder / FACTS).is_file() else {}
        self.tokenizer.no_padding()  # texts are padded batch by batch, once they are sorted
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.classes = self.session.get_outputs()[0].shape[1]

    def __call__(
        self, texts: Sequence[str], batch_size: int = 32, done: Callable[[int], object] | None = None
    ) -> np.ndarray:
        """Return logits (texts, classes) float32 in input order; texts of similar length run together.

        Args:
            texts: to score.
            batch_size: texts at a time.
            done: told after every batch how many texts it had.
        """
        encoded = self.tokenizer.encode_batch_fast(list(texts))
        order = np.argsort([-len(one) for one in encoded], kind="stable")
        logits = np.empty((len(encoded), self.classes), dtype=np.float32)
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            batch = [encoded[row] for row in rows]
            for one in batch:
                one.pad(len(batch[0]), **self.padding)  # the first is the longest
            feed = {name: np.array([getattr(one, INPUTS[name]) for one in batch]) for name in self.inputs}
            logits[rows] = self.session.run(["logits"], feed)[0]
            if done:
                done(len(rows))
        return logits
