"""Models from run folders or from the Hub: how a text is labelled, and the state that its distance is measured on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BATCH = 32  # texts at a time
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "report.png")  # what is fetched of a model on the Hub


class Unusable(Exception):
    """What was given can't be shown; the message is one line that says why and what to do."""


@contextlib.contextmanager
def whole(file: Path) -> Iterator[None]:
    """Say of what fails inside that `file` is damaged.

    Raises:
        Unusable: in place of any other exception: each library has its own for what it can't read.
    """
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:150]
        raise Unusable(f"{file} can't be read ({type(error).__name__}: {reason}); make it again.") from error


@dataclass
class Prediction:
    """One labelled text.

    Attributes:
        probabilities: label -> probability, most likely first.
        state: (hidden,) mean over the text's tokens of the layer asked for, or None.
        tokens: how many of the text were read.
        cut: whether it has more.
    """

    probabilities: dict[str, float]
    state: Any
    tokens: int
    cut: bool

    @property
    def label(self) -> str:
        """The most likely label."""
        return next(iter(self.probabilities))


class Model:
    """A text classifier, its tokenizer and what is known about it.

    Args:
        name: to show.
        folder: as `save_pretrained` writes it, with a run.json beside.

    Raises:
        Unusable: there is no run, or its model can't be loaded.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        if folder.name.endswith(".partial") or not (folder / "run.json").is_file():
            raise Unusable(f"{folder} holds no finished run: run.json is missing; give the --output_dir of a run.")
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer, logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            self.run: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self.net = AutoModelForSequenceClassification.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
            ).eval()
        except Exception as error:  # each library has its own for a file that is missing, damaged or unknown to it
            reason = str(error).strip().split("\n")[0][:150]
            raise Unusable(f"{folder}: its model can't be loaded ({reason}); make the run again.") from error
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        self.net.to(device).requires_grad_(False)
        self.labels = [self.net.config.id2label[i] for i in range(self.net.config.num_labels)]

    def encode(self, text: str) -> tuple[Any, bool]:
        """Return the tokenizer's encoding of `text` (lists), cut where the model ends; and whether it was cut."""
        limit = self.tokenizer.model_max_length
        whole = self.tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True,
                               truncation=True, max_length=limit, return_overflowing_tokens=True)  # fmt: skip
        whole.pop("overflow_to_sample_mapping", None)
        return {name: parts[0] for name, parts in whole.items()}, len(whole["input_ids"]) > 1

    def predict(self, text: str, layer: int | None = None) -> Prediction:
        """Label one text; `layer` is the hidden state whose mean over the tokens is wanted, if any."""
        import torch

        encoding, cut = self.encode(text)
        inputs = self.tensors({name: [encoding[name]] for name in self.tokenizer.model_input_names if name in encoding})
        with torch.inference_mode():
            out = self.net(**inputs, output_hidden_states=layer is not None)
        state = None if layer is None else out.hidden_states[layer][0].float().mean(dim=0).cpu()
        values = out.logits[0].float().softmax(dim=-1).tolist()
        ranked = dict(sorted(zip(self.labels, values, strict=True), key=lambda pair: -pair[1]))
        return Prediction(ranked, state, encoding["special_tokens_mask"].count(0), cut)

    def predict_many(self, texts: list[str]) -> list[tuple[str, float]]:
        """Return label and probability of each text, in their order; texts of similar length run together."""
        import torch

        encoded = self.tokenizer(texts, truncation=True, max_length=self.tokenizer.model_max_length)
        order = sorted(range(len(texts)), key=lambda i: -len(encoded["input_ids"][i]))
        out: list[tuple[str, float]] = [("", 0.0)] * len(texts)
        for begin in range(0, len(order), BATCH):
            rows = order[begin : begin + BATCH]
            inputs = self.tensors(self.tokenizer.pad({name: [encoded[name][i] for i in rows] for name in encoded}))
            with torch.inference_mode():
                logits = self.net(**inputs).logits.float()
            best = logits.softmax(dim=-1).max(dim=-1)
            for i, label, confidence in zip(rows, best.indices.tolist(), best.values.tolist(), strict=True):
                out[i] = (self.labels[label], confidence)
        return out

    def tensors(self, batch: Any) -> dict[str, Any]:
        """Return the model inputs `batch` as tensors where the network is."""
        import torch

        return {name: torch.tensor(values, device=self.net.device) for name, values in batch.items()}


def fetch(repo: str, revision: str | None) -> Path:
    """Return the folder of a model on the Hub at `revision`, downloaded where it is not cached.

    Raises:
        Unusable: the Hub doesn't give it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(FILES), ignore_patterns="*/*"))
    except Exception as error:  # of huggingface_hub, httpx or the file system
        reason = str(error).strip().split("\n")[0][:150]
        raise Unusable(f"the model {repo} can't be fetched from the Hub ({type(error).__name__}: {reason}).") from error
