"""Finished runs, and the texts that they are judged on: read, checked and scored."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_transfer.errors import UserError, listed
from hf_transfer.held_out import SETS, HeldOut, held_out, held_out_rows
from hf_transfer.results import Run
from hf_transfer.tables import read_table

if TYPE_CHECKING:
    from hf_transfer.data import Domains

ROWS = 2000  # of a target, at most
FEWEST = 50  # of a target
FEWEST_HELD_OUT = 20  # source rows, below which they say nothing
SEEN = 0.1  # share of a target's texts that a run may have been trained on
PIECE = 256  # texts between two moves of the bar


@dataclass(frozen=True)
class Target:
    """Texts that runs are judged on.

    Attributes:
        name: of the domain.
        texts: a sample of it.
        keys: of all its texts, see `text_facts`.
        labels: (texts,) label names where it only plays the target, else None.
        notes: what the user should know, one line each.
    """

    name: str
    texts: list[str]
    keys: np.ndarray
    labels: np.ndarray | None
    notes: list[str]


@dataclass(frozen=True)
class Finished:
    """A run, and what is known of its data.

    Attributes:
        name: in the table.
        run: as recorded.
        held_out: its source rows.
        trained: keys of the texts whose labels it learned from, or None where they can't be read again.
    """

    name: str
    run: Run
    held_out: HeldOut
    trained: np.ndarray | None


def read_target(
    spec: str, *, labelled: bool, text_column: str | None, label_column: str | None, seed: int, quiet: bool
) -> Target:
    """Read a table and draw a sample of it.

    Args:
        spec: file, folder or Hub id.
        labelled: whether its labels are read.
        text_column: guessed where obvious.
        label_column: likewise.
        seed: of the sample.
        quiet: no progress bar.

    Raises:
        UserError: it can't be read, or has too few rows.
    """
    from hf_transfer.data import FEW_UNLABELED

    table = read_table(spec, text_column=text_column, label_column=label_column, labelled=labelled, quiet=quiet)
    rows = table.rows.drop_duplicates("key")
    if len(rows) < FEWEST:
        raise UserError(f"{spec} has {len(rows)} different texts; at least {FEWEST} are needed to judge runs by.")
    notes = [f"{table.name}: {note}" for note in table.notes]
    if len(rows) < FEW_UNLABELED:
        notes.append(f"{table.name}: only {len(rows)} texts; {FEW_UNLABELED} or more tell more of a domain")
    keys = rows["key"].to_numpy()
    rows = rows.iloc[np.sort(np.random.default_rng(seed).permutation(len(rows))[:ROWS])]
    labels = rows["label"].to_numpy(dtype=object).astype(str) if labelled else None
    return Target(table.name, table.texts.select(rows["row"])["text"][:], keys, labels, notes)


def read_runs(runs: list[Run], notes: list[str], *, quiet: bool) -> list[Finished]:
    """Return the runs with what is known of their data, which is read again; says in `notes` what is missing."""
    same = Counter(run.folder.name for run in runs)
    read: dict[str, Domains | str] = {}
    out = []
    for run in runs:
        name = run.folder.name if same[run.folder.name] == 1 else str(run.folder)
        if isinstance(read.get(key := run.data["fingerprint"], ""), str):
            read[key] = read_data(run, quiet=quiet)
        found = read[key]
        texts = None if isinstance(found, str) else held_out_texts(run, found)
        known = held_out(run, runs[0].label_names, texts)
        if len(known.labels) < FEWEST_HELD_OUT:
            notes.append(f"{name} has {len(known.labels)} held-out source rows, too few for any score that needs some; "
                         "train with a --test_fraction")  # fmt: skip
            known = HeldOut(known.probabilities[:0], known.labels[:0])
        elif texts is None:
            reason = found if isinstance(found, str) else "their order changed"
            notes.append(f"{name}: its data can't be read again ({reason}), so there is no weighted or reverse "
                         "validation")  # fmt: skip
        out.append(Finished(name, run, known, None if isinstance(found, str) else learned_keys(found)))
    if len(read) > 1:
        notes.append("the runs are of different data or splits: their source scores are not about the same rows")
    return out


def read_data(run: Run, *, quiet: bool) -> Domains | str:
    """Read the data of `run` again; returns them, or why they are not those of its training."""
    from hf_transfer.arguments import DataArguments
    from hf_transfer.data import load_data

    names = {field.name for field in dataclasses.fields(DataArguments)}
    try:
        arguments = DataArguments(**{k: v for k, v in run.arguments.items() if k in names})
        domains = load_data(arguments, run.seed, quiet=quiet)
    except UserError as error:
        return str(error).splitlines()[0].rstrip(".")
    return domains if domains.facts["fingerprint"] == run.data["fingerprint"] else "they changed since"


def held_out_texts(run: Run, domains: Domains) -> tuple[str, ...] | None:
    """Return the texts of the run's held-out source rows, in their order; None if the files have another order now."""
    frame = held_out_rows(run)
    texts: list[str] = []
    numbers: list[int] = []
    for name in SETS:
        part = getattr(domains, name)
        part = part.select(np.flatnonzero(np.array(part["domain"][:]) != run.data["target"]))
        texts += part["text"][:]
        numbers += part["row"][:]
    return tuple(texts) if numbers == frame["row"].tolist() else None


def learned_keys(domains: Domains) -> np.ndarray:
    """Return the keys (see `text_facts`) of all texts whose labels were learned from or chosen by."""
    return np.concatenate([np.array(part["key"][:], dtype=np.int64) for part in (domains.train, domains.validation)])


def check_target(
    target: Target, pool: Target, finished: list[Finished], label_names: list[str], notes: list[str]
) -> None:
    """Check that `target` can be judged on: no run learned from its labels, and only the pool is the target itself.

    Raises:
        UserError: it can't.
    """
    if target.labels is not None:
        if np.isin(target.keys, pool.keys).mean() > SEEN:
            raise UserError(f"--backtest {target.name} has texts of --target_unlabeled {pool.name}: the labels of the "
                            "target itself must not choose. Name another domain.")  # fmt: skip
        if unknown := sorted(set(target.labels) - set(label_names)):
            raise UserError(f"--backtest {target.name} has labels that the runs don't know: {listed(unknown)}; they "
                            f"know {listed(label_names)}.")  # fmt: skip
    flag = "--target_unlabeled" if target.labels is None else "--backtest"
    for one in finished:
        run = one.run
        if one.trained is not None:
            share = np.isin(target.keys, one.trained).mean()
            seen, how = share > SEEN, f"{one.name} was trained on {share:.0%} of its texts"
        else:
            seen = target.name in run.data["domains"] and target.name != run.data["target"]
            how = f"{one.name} was trained on a domain of that name"
            notes.append(f"{one.name}: whether it was trained on {target.name} is told by the domain's name only")
        if seen:
            raise UserError(f"{flag} {target.name}: {how}, and a run can't be judged on what it has learned. Leave "
                            "that run out, or name another domain.")  # fmt: skip
        if target.labels is not None and target.name == run.data["target"]:
            notes.append(f"{one.name} has {target.name} for its target; if that is what you choose for, a back-test on "
                         "it shows target labels")  # fmt: skip
        elif target.labels is not None and run.arguments.get("target_unlabeled"):
            notes.append(f"{one.name} was adapted to another target; how it does on {target.name} says little of that")


def score_texts(
    runs: list[Run], texts: list[list[str]], label_names: list[str], *, quiet: bool
) -> tuple[list[list[np.ndarray]], list[float]]:
    """Return the probabilities (texts, classes) of each run for each list of texts, and each run's seconds."""
    from tqdm import tqdm

    from hf_transfer.predict import scorer

    outputs: list[list[np.ndarray]] = []
    seconds: list[float] = []
    with tqdm(desc="score", total=len(runs) * sum(map(len, texts)), unit="text", disable=quiet, leave=False) as bar:
        for run in runs:
            begin = time.perf_counter()
            score, columns = scorer(run.folder), [run.label_names.index(name) for name in label_names]
            outputs.append([])
            for some in texts:
                parts = []
                for i in range(0, len(some), PIECE):
                    parts.append(score(some[i : i + PIECE])[:, columns])
                    bar.update(len(parts[-1]))
                outputs[-1].append(np.concatenate(parts).astype(np.float64))
            seconds.append(time.perf_counter() - begin)
    return outputs, seconds
