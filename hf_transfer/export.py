"""Export a run to ONNX by transformers' own exporter, and keep the result only if it scores as the run did.

Logits in float32 equal the recorded ones. int8 changes them, so that it is judged by the run's metric on its test rows:
it is refused where the paired interval shows a loss of more than a point, and then the float32 export stays.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import io
import json
import logging
import math
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.errors import UserError, listed
from hf_transfer.onnx_engine import FACTS, FOLDER, INPUTS, MODEL, Engine, need
from hf_transfer.record import read_recorded
from hf_transfer.report import with_interval
from hf_transfer.results import Run, check_writable, load_run, write_atomically
from hf_transfer.statistics import metric
from hf_transfer.statistics.effects import ERROR, scores_of
from hf_transfer.statistics.metric import Metric

if TYPE_CHECKING:
    from datasets import Dataset

PARITY = 1e-4  # the largest difference of a logit from the recorded one
MOST_LOST = 0.01  # of the run's metric, by int8
SCOPES = "pkg.torch.onnx.name_scopes"  # where torch.onnx notes the modules that a node comes from
ONE_FILE = 1.5 * 2**30  # bytes of weights; a protobuf file ends at 2 GiB
PACKAGES = ("hf-transfer-nlp", "torch", "transformers", "tokenizers", "onnx", "onnxscript", "onnxruntime")

README = """\
# A text classifier, exported to ONNX

`model.onnx` ({kind}) runs in onnxruntime with the tokenizers package; `tokenizer.json` cuts and pads as the model
wants. What was checked is in `export.json`.

```python
import json

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

session = onnxruntime.InferenceSession("model.onnx")
tokenizer = Tokenizer.from_file("tokenizer.json")
labels = json.load(open("config.json"))["id2label"]

batch = tokenizer.encode_batch(["I would buy it again.", "Broke on the second day."])
inputs = {{
{inputs}
}}
logits = session.run(["logits"], inputs)[0]
print([labels[str(i)] for i in logits.argmax(axis=1)])
```
"""


def export_run(folder: str | Path, *, quantize: str | None = None, force: bool = False, quiet: bool = False) -> str:
    """Write the run's model to `<run>/onnx/`, in place of an older export, once its logits equal the recorded ones.

    Where int8 is refused, the float32 export is written instead.

    Args:
        folder: a finished run.
        quantize: `int8` for 8-bit weights and activations, measured on the run's test rows; None for float32.
        force: keep int8 also if it is shown to lose more than a point of the run's metric, or can't be measured.
        quiet: no progress.

    Returns:
        What was written and measured, for people.

    Raises:
        UserError: no such run, packages are missing, the model can't be exported, its logits differ, the run's data
            changed, or int8 is shown to lose more than a point.
    """
    run = load_run(folder)
    if quantize not in (None, "int8"):
        raise UserError(f"--quantize is '{quantize}'; use int8, or leave it out for float32.")
    need("onnx", "onnxscript", "onnxruntime")
    final = run.folder / FOLDER
    check_writable(final, "RUN")
    from hf_transfer.console import Console

    console = Console(quiet=quiet)
    recorded = read_recorded(run)
    tested, unread = _test_rows(run, force=force) if quantize else (None, "")
    refused = ""
    partial = final.with_name(f"{FOLDER}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        kept, small = partial / "float32", partial / "int8"
        for made in (kept, small):
            made.mkdir(parents=True)
        console.say(f"exporting {run.folder} ...")
        model, tokenizer = _load(run)
        program, sample = _translate(model, tokenizer)
        _write(program, model, tokenizer, kept, "float32")
        fp32 = Engine(kept)
        facts: dict[str, Any] = {
            "format": "onnx",
            "opset": program.opset_imports[""],
            "quantize": None,
            "inputs": fp32.inputs,
            "outputs": ["logits"],
            "labels": run.label_names,
            "max_length": tokenizer.model_max_length,
            "parity": {"rows": len(recorded), "allowed": PARITY, "largest_difference": _parity(fp32, recorded)},
            "scores": None,
            "bytes": {"float32": _size(kept)},
            "run": {"method": run.method, "created": run.created},
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        }
        if quantize:
            _write(_to_int8(program, sample, model), model, tokenizer, small, "int8")
            scores = None
            if tested:
                before = _answers(fp32, tested, "float32", quiet=quiet)
                after = _answers(Engine(small), tested, "int8", quiet=quiet)
                by = metric.load(run.metric, run.label_names)
                scores = compare_int8(before, after, np.array(tested["label"][:]), by)
            if scores and scores["high"] < -MOST_LOST and not force:
                refused = (f"int8 loses more than 1 point: {_loss(scores)}; the float32 export was kept in {final}. "
                           "Add --force to take int8 nevertheless.")  # fmt: skip
            else:
                kept = small
                facts |= {"quantize": quantize, "scores": scores}
                facts["bytes"]["int8"] = _size(small)
        write_atomically(kept / FACTS, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        _swap(kept, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if refused:
        raise UserError(refused)
    return _summary(final, facts, metric.title(run.metric), unread)


def _test_rows(run: Run, *, force: bool) -> tuple[Dataset | None, str]:
    """Return the run's test rows, read from its data again; with `force`, where that fails, None and why."""
    from hf_transfer.data import load_again

    try:
        return load_again(run).test, ""
    except UserError as error:
        if force:
            return None, str(error)
        raise UserError(f"int8 can't be measured: {error}; restore the data, or add --force to export without "
                        "measuring.") from error  # fmt: skip


def _load(run: Run) -> tuple[Any, Any]:
    """Return the run's model, in float32, and its tokenizer."""
    import torch
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    from hf_transfer import tasks
    from hf_transfer.models import brief

    try:
        tokenizer = AutoTokenizer.from_pretrained(run.folder)
        # plain attention makes the leanest graph; onnxruntime fuses what it can by itself
        model = tasks.load(run.task).auto_model.from_pretrained(
            run.folder, use_safetensors=True, dtype=torch.float32, attn_implementation="eager"
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{run.folder}: its model can't be loaded ({brief(error)}); make the run again.") from error
    if not tokenizer.is_fast or tokenizer.pad_token_id is None:
        raise UserError(f"{run.folder}: its tokenizer has no tokenizer.json or no padding token; it can't be exported.")
    model.config.use_cache = False  # no output but the logits
    return model.eval(), tokenizer


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep what torch, transformers and onnxruntime print, log and warn of while they export from the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _translate(model: Any, tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    """Return the ONNX program of `model`, free in batch and length, and the inputs it was traced with."""
    from hf_transfer.models import brief

    taken = inspect.signature(model.forward).parameters
    batch = tokenizer(["a text", "another text, somewhat longer than the first"], padding=True, return_tensors="pt")
    sample = {name: batch[name] for name in tokenizer.model_input_names if name in taken}
    if unknown := sorted(set(sample) - set(INPUTS)):
        raise UserError(f"{model.config.model_type} takes {listed(unknown)}, which can't be exported; only "
                        f"{listed(INPUTS)} can.")  # fmt: skip
    try:
        with _hushed():
            from transformers.exporters import OnnxConfig, OnnxExporter

            program = OnnxExporter().export(model, sample, config=OnnxConfig(dynamic=True)).program
    except Exception as error:  # tracing an unknown architecture can fail in any way
        raise UserError(f"{model.config.model_type} can't be exported to ONNX ({brief(error)}).") from error
    import onnx_ir

    for value in program.graph.inputs:
        value.shape = onnx_ir.Shape(["batch", "sequence"])  # for people; the traced names are s43 and the like
    return program, sample


def _to_int8(program: Any, sample: dict[str, Any], model: Any) -> Any:
    """Return `program` with int8 weights in embeddings and layers; activations are scaled to 8 bits as they come."""
    with _hushed():
        from transformers.exporters import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer
        from transformers.exporters.configs import ExportFormat

        config = OnnxRuntimeDynamicConfig(
            op_types_to_quantize=["MatMul", "Gather"],  # Gather: the embeddings, half of a small model
            per_channel=True,  # with one scale a matrix the errors double
            nodes_to_exclude=_head(program, model),
        )
        return OnnxRuntimeQuantizer(config).quantize(program, sample, ExportFormat.ONNX)


def _head(program: Any, model: Any) -> list[str]:
    """Return the names of the matrix products behind the layers, which cost next to no time.

    The frozen method's logits stand beside constants many times their size there (hf_transfer/pooling.py), so that in
    8 bits they would come in steps of about 0.2. Its pooling layer itself was measured to lose nothing.
    """
    from torch import nn

    layers = [f"'{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    products = [node for node in program.graph if node.op_type in ("MatMul", "Gemm")]
    head = [node for node in products if not any(name in node.metadata_props.get(SCOPES, "") for name in layers)]
    # onnxruntime makes a MatMul of every Gemm before it looks at the names
    return [node.name + ("_MatMul" if node.op_type == "Gemm" else "") for node in head]


def _write(program: Any, model: Any, tokenizer: Any, folder: Path, kind: str) -> None:
    """Write the model and all that is needed to run it."""
    _save(program, folder)
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # cutting and padding become part of the file: whoever loads it can't forget either
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(tokenizer.model_max_length, direction=tokenizer.truncation_side)
    backend.enable_padding(
        direction=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id,
        pad_type_id=tokenizer.pad_token_type_id,
        pad_token=tokenizer.pad_token,
    )
    backend.save(str(folder / "tokenizer.json"))
    names = [value.name for value in program.graph.inputs]
    inputs = "\n".join(f'    "{name}": np.array([row.{INPUTS[name]} for row in batch]),' for name in names)
    write_atomically(folder / "README.md", README.format(kind=kind, inputs=inputs))


def _save(program: Any, folder: Path) -> None:
    """Write model.onnx, one file that can't lose its weights; only beyond protobuf's 2 GB do they lie beside it."""
    import onnx_ir

    for file in folder.glob(f"{MODEL}*"):
        file.unlink()
    weights = sum(value.const_value.nbytes for value in program.graph.initializers.values())
    onnx_ir.save(program, folder / MODEL, external_data=f"{MODEL}.data" if weights > ONE_FILE else None)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob(f"{MODEL}*"))


def _parity(engine: Engine, recorded: list[dict[str, Any]]) -> float:
    """Return the largest difference of any logit from the recorded one, row by row and in padded batches.

    Raises:
        UserError: it is too large.
    """
    texts, expected = [row["text"] for row in recorded], np.array([row["logits"] for row in recorded])
    # batches of rows as they come, not of similar length, so that there is padding
    padded = np.concatenate([engine(texts[i : i + 16], 16) for i in range(0, len(texts), 16)])
    found = float(np.max([np.abs(logits - expected).max() for logits in (engine(texts, 1), padded)]))  # nan stays nan
    if not found <= PARITY:
        raise UserError(
            f"the exported model's logits differ from the recorded ones by up to {found:.2g} on {len(texts)} rows, "
            f"{PARITY:g} is allowed; nothing was written. Make the run again."
        )
    return found


def _answers(engine: Engine, rows: Dataset, name: str, *, quiet: bool) -> np.ndarray:
    """Return the class indices (rows,) that `engine` gives `rows`."""
    from tqdm import tqdm

    with tqdm(total=len(rows), unit="row", desc=f"test {name}", disable=quiet) as bar:
        return np.asarray(engine(rows["text"][:], done=bar.update).argmax(axis=1))


def compare_int8(float32: np.ndarray, int8: np.ndarray, labels: np.ndarray, by: Metric) -> dict[str, Any]:
    """Return both scores, how far int8 is from float32, and what that says of a loss of more than a point.

    Args:
        float32: (rows,) class indices.
        int8: likewise, of the same rows.
        labels: the true ones.
        by: the metric in force.

    Returns:
        `metric` and `rows`; the scores `float32` and `int8`; their `difference` with its paired 95 % interval, `low` to
        `high`; and `rows_to_tell`: about how many rows would tell on which side of a loss of a point it lies, None
        where these do, or where it is just a point and no number is known. All scores are shares, not per cent.
    """
    answers = {"float32": float32, "int8": int8}
    shares = {name: by.shares(by.statistics(given, labels))[None] for name, given in answers.items()}
    difference = scores_of(shares, labels).minus("int8", "float32")
    low, high = difference.bounds()
    away, rows, to_tell = abs(difference.value + MOST_LOST), len(labels), None
    if _is_open(low, high) and away > 1e-9:
        # an interval narrows with the root of the rows, and faster while its two made-up rows still count for much:
        # then fewer would do
        to_tell = max(rows + 1, math.ceil(rows * (difference.reach(ERROR) / away) ** 2))
    return {
        "metric": by.name,
        "rows": rows,
        **{name: by.score(given, labels) for name, given in answers.items()},
        "difference": difference.value,
        "low": low,
        "high": high,
        "rows_to_tell": to_tell,
    }


def _is_open(low: float, high: float) -> bool:
    """Whether a difference may lie on both sides of the largest loss allowed."""
    return low < -MOST_LOST <= high


def _loss(scores: dict[str, Any]) -> str:
    """Return both scores and the difference with its interval, in words."""
    difference = with_interval(scores["difference"], (scores["low"], scores["high"]), "+")
    return (f"{metric.title(scores['metric'])} {scores['int8']:.1%} on {scores['rows']:,} test rows, float32 "
            f"{scores['float32']:.1%} ({difference} points)")  # fmt: skip


def _open_question(scores: dict[str, Any]) -> str:
    """Say that the rows don't tell whether more than a point is lost, and how many would; empty where they do."""
    if not _is_open(scores["low"], scores["high"]):
        return ""
    if (rows := scores["rows_to_tell"]) is None:
        return "whether int8 loses more than 1 point is open, and no number of test rows is known that would tell"
    about = max(scores["rows"] + 1, round(rows, 2 - len(str(rows))))
    return f"whether int8 loses more than 1 point is open; about {about:,} test rows would tell"


def _swap(new: Path, final: Path) -> None:
    """Put the folder `new` in the place of `final`."""
    old = final.with_name(f"{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _summary(folder: Path, facts: dict[str, Any], title: str, unread: str) -> str:
    """Return what was written and measured, in a few lines.

    Args:
        folder: of the export.
        facts: of export.json.
        title: of the run's metric.
        unread: why the test rows could not be read.
    """
    kind, parity = facts["quantize"] or "float32", facts["parity"]
    lines = [
        f"{folder / MODEL}: {kind}, {facts['bytes'][kind] / 1e6:.1f} MB, opset {facts['opset']}; runs in onnxruntime "
        "with the tokenizers package (README.md there)",
        f"float32 logits: within {parity['largest_difference']:.1g} of the recorded ones on {parity['rows']} rows",
    ]
    if scores := facts["scores"]:
        lines.append(f"int8: {_loss(scores)}")
        if scores["high"] < -MOST_LOST:
            lines[-1] += "; more than 1 point is lost, kept by --force"
        if question := _open_question(scores):
            lines.append(question)
    elif facts["quantize"]:
        lines.append(f"not verified: the {title} of int8, because {unread}")
    return "\n".join(lines)
