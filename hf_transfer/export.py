"""Export a run to ONNX by transformers' own exporter, and keep the result only if it scores as the run did."""

from __future__ import annotations

import contextlib
import importlib.metadata
import inspect
import io
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.errors import UserError, listed
from hf_transfer.onnx_engine import FACTS, FOLDER, INPUTS, MODEL, Engine, need
from hf_transfer.record import read_recorded
from hf_transfer.results import Run, check_writable, load_run, write_atomically

if TYPE_CHECKING:
    from datasets import Dataset

PARITY = 1e-4  # the largest difference of a logit from the recorded one
MOST_LOST = 0.01  # of accuracy, by int8
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

    Args:
        folder: a finished run.
        quantize: `int8` for 8-bit weights and activations, measured on the run's test rows; None for float32.
        force: keep int8 also if it loses more than a point of accuracy, or if that can't be measured.
        quiet: no progress.

    Returns:
        What was written and measured, for people.

    Raises:
        UserError: no such run, packages are missing, the model can't be exported, its logits differ, the run's data
            changed, or int8 loses more than a point.
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
    tested = _test_rows(run, force=force) if quantize else None
    partial = final.with_name(f"{FOLDER}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        console.say(f"exporting {run.folder} ...")
        model, tokenizer = _load(run)
        program, sample = _translate(model, tokenizer)
        _write(program, model, tokenizer, partial, quantize or "float32")
        fp32 = Engine(partial)
        facts: dict[str, Any] = {
            "format": "onnx",
            "opset": program.opset_imports[""],
            "quantize": quantize,
            "inputs": fp32.inputs,
            "outputs": ["logits"],
            "labels": run.label_names,
            "max_length": tokenizer.model_max_length,
            "parity": {"rows": len(recorded), "allowed": PARITY, "largest_difference": _parity(fp32, recorded)},
            "accuracy": None,
            "bytes": {"float32": _size(partial)},
            "run": {"method": run.method, "created": run.created},
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        }
        if quantize:
            before = _accuracy(fp32, tested, "float32", quiet=quiet) if tested else None
            _save(_to_int8(program, sample, model), partial)
            facts["bytes"]["int8"] = _size(partial)
            if tested:
                after = _accuracy(Engine(partial), tested, "int8", quiet=quiet)
                facts["accuracy"] = {
                    "rows": len(tested),
                    "float32": before,
                    "int8": after,
                }
                _refuse_loss(facts["accuracy"], force=force)
        write_atomically(partial / FACTS, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
        _swap(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return _summary(final, facts)


def _test_rows(run: Run, *, force: bool) -> Dataset | None:
    """Return the run's test rows, read from its data again; None if that fails and `force` is given."""
    from hf_transfer.data import load_again

    try:
        return load_again(run).test
    except UserError as error:
        if force:
            return None
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


def _accuracy(engine: Engine, rows: Dataset, name: str, *, quiet: bool) -> float:
    """Return the share of `rows` that are labelled correctly."""
    from tqdm import tqdm

    with tqdm(total=len(rows), unit="row", desc=f"test {name}", disable=quiet) as bar:
        logits = engine(rows["text"][:], done=bar.update)
    return float((logits.argmax(axis=1) == np.array(rows["label"][:])).mean())


def _refuse_loss(accuracy: dict[str, Any], *, force: bool) -> None:
    if accuracy["float32"] - accuracy["int8"] > MOST_LOST + 1e-9 and not force:
        raise UserError(
            f"int8 lowers the accuracy on {accuracy['rows']} test rows from {accuracy['float32']:.1%} to "
            f"{accuracy['int8']:.1%}, more than 1 point; leave --quantize out, or add --force to accept it."
        )


def _swap(new: Path, final: Path) -> None:
    """Put the folder `new` in the place of `final`."""
    old = final.with_name(f"{final.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def _summary(folder: Path, facts: dict[str, Any]) -> str:
    """Return what was written and measured, in a few lines."""
    kind, parity = facts["quantize"] or "float32", facts["parity"]
    lines = [
        f"{folder / MODEL}: {kind}, {facts['bytes'][kind] / 1e6:.1f} MB, opset {facts['opset']}; runs in onnxruntime "
        "with the tokenizers package (README.md there)",
        f"float32 logits: within {parity['largest_difference']:.1g} of the recorded ones on {parity['rows']} rows",
    ]
    if accuracy := facts["accuracy"]:
        lines.append(
            f"int8 accuracy on {accuracy['rows']} test rows: {accuracy['int8']:.1%}, float32 {accuracy['float32']:.1%} "
            f"({100 * (accuracy['int8'] - accuracy['float32']):+.1f} points)"
        )
    elif facts["quantize"]:
        lines.append("int8 accuracy: NOT MEASURED, the run's data are not there or changed")
    return "\n".join(lines)
