"""What a model that was trained here before knows already of the texts that are tested."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from hf_transfer.candidates import learned_keys, read_data
from hf_transfer.errors import UserError
from hf_transfer.results import Run, load_run
from hf_transfer.texts import text_facts

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_transfer.data import Domains

KEYS = "pretraining_keys.parquet"  # in a model's folder: by which the texts that it was pretrained on are known again


def seen_before(model_name: str, rows: Dataset) -> int:
    """Return how many of `rows` (column `text`) pretrain_domain has shown the model in folder `model_name`."""
    file = Path(model_name).expanduser() / KEYS
    return int(text_facts(rows)["key"].isin(pd.read_parquet(file)["key"]).sum()) if file.is_file() else 0


def tested_rows(run: Run, domains: Domains, *, quiet: bool) -> int:
    """Return how many tested rows of `domains` the run learned from; where its data are gone, all if it may have.

    Args:
        run: what learned.
        domains: what is tested.
        quiet: no progress bar.
    """
    if run.data["fingerprint"] == domains.facts["fingerprint"]:
        return 0
    data = read_data(run, quiet=quiet)
    if isinstance(data, str):
        target = domains.facts["target"]
        return len(domains.test) if target in run.data["domains"] and target != run.data["target"] else 0
    return int(text_facts(domains.test)["key"].isin(learned_keys(data, quiet=quiet)).sum())


def check_model(name: str, domains: Domains, *, quiet: bool) -> None:
    """Refuse a finished run as the model to begin with, if it learned from what is tested.

    Args:
        name: of the model: a folder or Hub id.
        domains: what is tested.
        quiet: no progress bar.

    Raises:
        UserError: it did.
    """
    if (Path(name).expanduser() / "run.json").is_file() and (seen := tested_rows(load_run(name), domains, quiet=quiet)):
        raise UserError(f"LEAK: --model {name} learned from the labels of {seen} rows that are tested here; begin with "
                        "one that was trained without them, or say by a column `split` what is tested.")  # fmt: skip
