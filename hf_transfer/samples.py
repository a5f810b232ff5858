"""A sample of a domain with the states that a pretrained model has for it: what is looked at before training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.diagnostics import Side
from hf_transfer.errors import UserError
from hf_transfer.tables import Table, read_table

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_transfer.models import Loaded

ROWS = 750  # of a domain
MAX_LENGTH = 96  # tokens read of each text: a domain shows in its beginning


@dataclass(frozen=True)
class Domain:
    """A domain's checked rows, and those of them that were drawn.

    Attributes:
        table: all rows.
        drawn: positions in `table.rows` of the sample.
        notes: what the user should know, one line each.
    """

    table: Table
    drawn: np.ndarray
    notes: list[str]

    @property
    def rows(self) -> Dataset:
        """The sample: column `text`."""
        return self.table.texts.select(self.table.rows["row"].to_numpy()[self.drawn])

    @property
    def labels(self) -> np.ndarray | None:
        """The label names of the sample, if there are any."""
        rows = self.table.rows
        return rows["label"].to_numpy(dtype=object)[self.drawn].astype(str) if "label" in rows else None


def read_domain(
    spec: str,
    *,
    text_column: str | None,
    label_column: str | None,
    seed: int,
    labelled: bool,
    quiet: bool,
    most: int = ROWS,
) -> Domain:
    """Read a table and draw a sample.

    Args:
        spec: file, folder or Hub id.
        text_column: guessed where obvious.
        label_column: likewise.
        seed: of the sample.
        labelled: whether labels are needed; else they are used where they can be read, and a note says why not.
        quiet: no progress bar.
        most: rows of the sample.

    Raises:
        UserError: it can't be read.
    """
    options: dict[str, Any] = {"text_column": text_column, "quiet": quiet}
    try:
        table = read_table(spec, label_column=label_column, **options)
        notes = list(table.notes)
    except UserError as error:
        if labelled:
            raise
        table = read_table(spec, labelled=False, **options)
        notes = [*table.notes, f"read without labels ({str(error).splitlines()[0]})"]
    drawn = np.sort(np.random.default_rng(seed).permutation(len(table.rows))[:most])
    return Domain(table, drawn, [f"{table.name}: {note}" for note in notes])


def sides(domains: list[Domain], loaded: Loaded, *, quiet: bool) -> list[Side]:
    """Run a pretrained trunk over the samples; what it ran over before is read from the cache.

    Args:
        domains: with their samples.
        loaded: model and tokenizer.
        quiet: no progress bar.
    """
    from tqdm import tqdm

    from hf_transfer import tasks
    from hf_transfer.arguments import best_precision
    from hf_transfer.features import frozen_copy, pooled_states
    from hf_transfer.models import longest_input

    task = tasks.load("text_classification")
    trunk = frozen_copy(loaded.model, best_precision())
    collator = task.collator(loaded.tokenizer)
    out = []
    total = sum(len(domain.drawn) for domain in domains)
    with tqdm(desc="encode", total=total, unit="text", disable=quiet, leave=False) as bar:
        for domain in domains:
            texts = domain.rows["text"][:]
            encoded, _ = task.encode(loaded.tokenizer, domain.rows, min(MAX_LENGTH, longest_input(loaded)))
            whole = loaded.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            states = pooled_states(trunk, encoded, collator, bar)
            pieces = np.array([len(ids) for ids in whole])
            out.append(Side(domain.table.name, texts, domain.labels, domain.table.rows, pieces, states))
    return out


def out_folder(output_dir: str | None) -> Path | None:
    """Return the folder to write to, made, or None if none was asked for.

    Raises:
        UserError: it can't be written.
    """
    from hf_transfer.results import check_writable

    if output_dir is None:
        return None
    folder = Path(output_dir)
    check_writable(folder, "--output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
