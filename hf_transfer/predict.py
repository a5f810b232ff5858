"""Label a table with a run's model: chunk by chunk, in input order, with flat memory, and on again after a kill."""

from __future__ import annotations

import glob
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.errors import UserError
from hf_transfer.held_out import held_out
from hf_transfer.label_prior import check_estimator, estimate, training_mix
from hf_transfer.results import Run, check_writable, load_run, write_atomically

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

CHUNK = 2048  # rows; what a kill can lose, and what is sorted by length together


def predict_rows(
    run_folder: str,
    data: str,
    output: str,
    *,
    text_column: str | None = None,
    batch_size: int = 32,
    engine: str = "torch",
    label_prior: str | None = None,
    quiet: bool = False,
) -> str:
    """Write the rows of `data` to `output` with `prediction`, `confidence` and one `p_<label>` column a label.

    Rows keep their order; what has no text gets no label. If it is killed, the same command goes on where it was.

    Args:
        run_folder: a finished run.
        data: any table that recipes read; label columns are kept, not used.
        output: .csv, .tsv, .jsonl or .parquet.
        text_column: guessed when obvious.
        batch_size: texts at a time.
        engine: what runs the model: torch, or onnx for what `export_run` wrote.
        label_prior: em or bbse, to estimate the mix of labels of these rows and correct what is written by it; the
            mix goes to `<output>.label_prior.json` too.
        quiet: no progress bar.

    Returns:
        One line on what was written, and one on the mix of labels if it was estimated.

    Raises:
        UserError: no such run or export, unreadable data, an output that exists or has another format, or a mix of
            labels that can't be estimated.
    """
    run = load_run(run_folder)
    file = Path(output)
    if file.suffix not in (".csv", ".tsv", ".jsonl", ".parquet"):
        raise UserError(f"--output {output} must end in .csv, .tsv, .jsonl or .parquet.")
    if file.exists():
        raise UserError(f"--output {output} is there already; remove it or name another file.")
    check_writable(file.parent, "--output")
    if batch_size < 1:
        raise UserError(f"--batch_size is {batch_size}; it must be at least 1.")
    from hf_transfer.console import Console
    from hf_transfer.tables import open_table

    Console(quiet=quiet)
    dataset, text = open_table(data, text_column)
    added = ["prediction", "confidence", *[f"p_{label}" for label in run.label_names]]
    if clash := [name for name in added if name in dataset.column_names]:
        raise UserError(f"{data} has columns of the names to be added ({', '.join(clash)}); rename them.")
    if label_prior:
        known = held_out(run, run.label_names)
        check_estimator(label_prior, run, known)
    score = scorer(run.folder, batch_size, engine)
    start = time.perf_counter()
    file.parent.mkdir(parents=True, exist_ok=True)
    scores = _scores_file(file, run, engine, dataset, text)
    done = _score_all(score, dataset, text, scores, len(run.label_names), quiet=quiet)
    probabilities = np.memmap(scores, dtype=np.float32, mode="r", shape=(len(dataset), len(run.label_names)))
    mix = None
    if label_prior:
        labelled = np.asarray(probabilities[~np.isnan(probabilities[:, 0])])
        try:
            mix = estimate(label_prior, labelled, training_mix(run), known, quiet=quiet)
        except UserError:
            scores.unlink()
            raise
    part, table, empty = file.with_name(f".{file.name}.part"), dataset.with_format("arrow"), 0
    with _Writer(part, file.suffix, _schema(dataset, added)) as writer:
        for begin in range(0, len(dataset), CHUNK):
            rows = probabilities[begin : begin + CHUNK]
            rows = mix.apply(rows) if mix else rows
            unlabelled = np.isnan(rows[:, 0])
            empty += int(unlabelled.sum())
            best = np.where(unlabelled, -1, np.nan_to_num(rows).argmax(axis=1))
            names = [run.label_names[i] if i >= 0 else None for i in best]
            numbers = np.round(np.column_stack([rows.max(axis=1), rows]), 6)
            writer.write(table[begin : begin + CHUNK], [names, *numbers.T])
    if mix:
        facts = json.dumps(mix.facts(run.label_names), indent=2, ensure_ascii=False)
        write_atomically(file.with_name(f"{file.name}.label_prior.json"), facts + "\n")
    part.replace(file)
    scores.unlink()
    seconds = time.perf_counter() - start
    note = f" ({empty} without text left unlabelled)" if empty else ""
    note += f" ({done} rows were scored before)" if done else ""
    speed = f"{seconds:.1f} s ({(len(dataset) - done) / seconds:.0f} rows/s)"
    said = f"{len(dataset)} rows{note}, text from column '{text}', written to {output} in {speed}, by {engine}"
    return f"{said}\n{mix.summary(run.label_names)}" if mix else said


def _scores_file(output: Path, run: Run, engine: str, dataset: Dataset, text: str) -> Path:
    """Return the file beside `output` that scores grow in; its name says of which texts and model they are.

    Those of other texts or models, which nobody can go on with, are removed.
    """
    from hf_transfer.features import cache_key, table_key
    from hf_transfer.onnx_engine import FOLDER

    weights = sorted((run.folder / FOLDER if engine == "onnx" else run.folder).glob("model*"))
    model = [run.created, engine, *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in weights)]
    key = cache_key(model, len(dataset), table_key(dataset, [text]))
    found = output.with_name(f".{output.name}.{key}.scores")
    for old in output.parent.glob(f".{glob.escape(output.name)}.*.scores"):
        if old != found:
            old.unlink()
    return found


def _score_all(
    score: Callable[[list[str]], np.ndarray], dataset: Dataset, text: str, file: Path, classes: int, *, quiet: bool
) -> int:
    """Append the probabilities (float32) of the rows that `file` lacks, chunk by chunk; how many it had."""
    from tqdm import tqdm

    width = 4 * classes
    size = file.stat().st_size if file.is_file() else 0
    done = min(size // width, len(dataset)) // CHUNK * CHUNK  # whole chunks: the last may be cut
    table = dataset.select_columns(text).with_format("arrow")
    with (
        file.open("r+b" if done else "wb") as stream,
        tqdm(total=len(dataset), initial=done, unit="row", disable=quiet) as bar,
    ):
        stream.truncate(done * width)
        stream.seek(0, os.SEEK_END)
        for begin in range(done, len(dataset), CHUNK):
            column = table[begin : begin + CHUNK][text].to_pylist()
            texts = ["" if value is None or value != value else str(value) for value in column]
            full = [i for i, value in enumerate(texts) if value.strip()]
            probabilities = np.full((len(texts), classes), np.nan, dtype=np.float32)
            if full:
                probabilities[full] = score([texts[i] for i in full])
            stream.write(probabilities.tobytes())
            stream.flush()
            bar.update(len(texts))
    return done


def scorer(folder: Path, batch_size: int = 32, engine: str = "torch") -> Callable[[list[str]], np.ndarray]:
    """Load a run's model once; returns a function from texts to probabilities (texts, classes), in input order.

    Raises:
        UserError: no such run or engine, a damaged model, or with `onnx` no export.
    """
    from scipy.special import softmax

    if engine == "torch":
        logits = _torch_logits(folder, batch_size)
        return lambda texts: softmax(logits(texts), axis=1)
    if engine != "onnx":
        raise UserError(f"--engine is '{engine}'; use torch or onnx.")
    from hf_transfer.onnx_engine import FOLDER, Engine

    run = load_run(folder)
    model = Engine(run.folder / FOLDER)
    if model.facts.get("run", {}).get("created") != run.created:
        raise UserError(f"{run.folder / FOLDER} was exported from another run; run hf-transfer export {folder} again.")
    return lambda texts: softmax(model(texts, batch_size), axis=1)


def _torch_logits(folder: Path, batch_size: int) -> Callable[[list[str]], np.ndarray]:
    """Load a run's model in the fastest precision, and in float32 for the texts that this may label otherwise."""
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    from hf_transfer import tasks
    from hf_transfer.arguments import best_precision
    from hf_transfer.console import Console
    from hf_transfer.inference import close_rows, text_logits
    from hf_transfer.models import brief
    from hf_transfer.record import read_recorded

    Console(quiet=True)
    run = load_run(folder)
    task = tasks.load(run.task)

    def load(precision: str) -> Callable[[list[str]], np.ndarray]:
        model = task.auto_model.from_pretrained(folder, use_safetensors=True)
        return text_logits(model, tokenizer, task.collator(tokenizer), precision=precision, batch_size=batch_size)

    # a run from the Hub lacks the recorded texts, without which nothing says how far a fast precision can be trusted
    known = (run.folder / "recorded.jsonl").is_file()
    precision = best_precision() if known and run.precision != "fp32" else "fp32"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        fast = load(precision)
        if precision == "fp32":
            return fast
        exact = load("fp32")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder}: its model can't be loaded ({brief(error)}); make the run again.") from error
    recorded = read_recorded(run)
    apart = np.abs(fast([row["text"] for row in recorded]) - [row["logits"] for row in recorded]).max()

    def logits(texts: list[str]) -> np.ndarray:
        result = fast(texts)
        close = close_rows(result, apart)
        if len(close):
            result[close] = exact([texts[i] for i in close])
        return result

    return logits


def _schema(dataset: Dataset, added: list[str]) -> Any:
    """Return the Arrow schema of `dataset` with the `added` columns; fixed, so that no chunk can differ."""
    import pyarrow as pa

    schema = dataset.features.arrow_schema.remove_metadata()
    for name in added:
        schema = schema.append(pa.field(name, pa.string() if name == "prediction" else pa.float32()))
    return schema


class _Writer:
    """Append tables of one Arrow schema to one file of the given format."""

    def __init__(self, file: Path, suffix: str, schema: Any) -> None:
        self.file, self.suffix, self.schema = file, suffix, schema
        self.parquet: Any = None
        self.first = True

    def __enter__(self) -> _Writer:
        self.file.unlink(missing_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self.parquet is not None:
            self.parquet.close()
        if error[0] is not None:
            self.file.unlink(missing_ok=True)

    def write(self, table: pa.Table, added: list[Any]) -> None:
        """Append `table` with the `added` columns, which the schema ends with."""
        import pandas as pd
        import pyarrow as pa

        fields = list(self.schema)[-len(added) :]
        columns = [pa.array(values, field.type, from_pandas=True) for values, field in zip(added, fields, strict=True)]
        table = pa.Table.from_arrays([*table.columns, *columns], schema=self.schema)
        if self.suffix == ".parquet":
            import pyarrow.parquet as pq

            if self.parquet is None:
                self.parquet = pq.ParquetWriter(self.file, self.schema)
            self.parquet.write_table(table)
            return
        # by default an integer beside a missing value becomes a float, and ids lose digits
        integers = {field.type for field in self.schema if pa.types.is_integer(field.type)}
        names = {kind: str(kind).replace("uint", "UInt").replace("int", "Int") for kind in integers}
        nullable = {kind: pd.api.types.pandas_dtype(name) for kind, name in names.items()}
        frame = table.to_pandas(types_mapper=nullable.get)
        if self.suffix == ".jsonl":
            with self.file.open("a", encoding="utf-8") as stream:
                stream.write(frame.to_json(orient="records", lines=True, force_ascii=False))
        else:
            separator = "\t" if self.suffix == ".tsv" else ","
            frame.to_csv(self.file, mode="a", index=False, header=self.first, sep=separator)
        self.first = False
