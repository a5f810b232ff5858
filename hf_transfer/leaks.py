"""What a model that was trained here before knows already of the texts that are tested."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from hf_transfer.candidates import SEEN, learned_keys, read_data
from hf_transfer.errors import UserError
from hf_transfer.results import FILE, Run, load_run

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_transfer.data import Domains

KEYS = "pretraining_keys.parquet"  # in a model's folder: by which the texts that it was pretrained on are known again
CHAIN = 10  # runs, each of which began with the one before: no more are looked at


def seen_before(model_name: str, rows: Dataset) -> int:
    """Return how many of `rows` (column `key`) pretrain_domain has shown the model in folder `model_name`."""
    file = Path(model_name).expanduser() / KEYS
    return int(np.isin(rows["key"][:], pd.read_parquet(file)["key"]).sum()) if file.is_file() else 0


def tested_rows(run: Run, domains: Domains, *, quiet: bool) -> int:
    """Return how many tested rows of `domains` the run, or one that it began with, learned from.

    Where the data of one can't be read again, all if it learned from a domain of that name.

    Args:
        run: what learned.
        domains: what is tested.
        quiet: no progress bar.
    """
    learned = np.zeros(len(domains.test), dtype=bool)
    for one in _with_earlier(run):
        if one.data["fingerprint"] == domains.facts["fingerprint"]:
            continue
        data = read_data(one, quiet=quiet)
        if isinstance(data, str):
            shots = str(one.arguments["target_shots"]) != "0"
            known = {name for name in one.data["domains"] if shots or name != one.data["target"]}
            target = domains.facts["target"]
            learned |= bool(known & ({target} if target else set(domains.facts["domains"])))
        else:
            learned |= np.isin(domains.test["key"][:], learned_keys(data))
    return int(learned.sum())


def _with_earlier(run: Run) -> list[Run]:
    """Return the run, the one whose model it began with, and so on."""
    runs = [run]
    while len(runs) < CHAIN and (earlier := _run_of(runs[-1].model)):
        runs.append(earlier)
    return runs


def _run_of(model_name: str) -> Run | None:
    """Return the run whose folder a model's name is, if it is one of ours."""
    folder = Path(model_name).expanduser()
    if not (folder / FILE).is_file():
        return None
    try:
        return load_run(folder)
    except UserError:  # of another program: a model like any other
        return None


def check_model(name: str, domains: Domains, *, quiet: bool) -> None:
    """Refuse a finished run as the model to begin with, if it learned from what is tested; a few rows are a note.

    Args:
        name: of the model: a folder or Hub id.
        domains: what is tested; gets the note.
        quiet: no progress bar.

    Raises:
        UserError: it did.
    """
    if (run := _run_of(name)) is None:
        return
    if (seen := tested_rows(run, domains, quiet=quiet)) > SEEN * len(domains.test):
        raise UserError(f"LEAK: --model {name} learned from the labels of {seen} rows that are tested here, or may "
                        "have; begin with one that was trained without them, or say by a column `split` what is "
                        "tested.")  # fmt: skip
    if seen:
        domains.notes.append(f"LEAK: --model {name} learned from the labels of {seen} rows that are tested here")
