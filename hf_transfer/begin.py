"""What every recipe does before it trains: check the folder, read, run the controls, load the model, tokenise."""

from __future__ import annotations

import json
import shutil
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_transfer import tasks
from hf_transfer.arguments import Arguments, as_dict
from hf_transfer.console import Console
from hf_transfer.controls import Control, run_controls
from hf_transfer.data import Domains, load_data, summary
from hf_transfer.errors import UserError
from hf_transfer.evaluation import choose_metrics
from hf_transfer.features import cache_folder, cache_key, table_key
from hf_transfer.leaks import check_model, seen_before
from hf_transfer.methods import Setup
from hf_transfer.models import Loaded, load_model, longest_input, ordered_labels, public_name
from hf_transfer.publish import check_push
from hf_transfer.resources import Meter
from hf_transfer.results import check_writable

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_transfer.tasks import Task

SHOW_ROWS = 20_000  # tokenising more than these takes so long that a bar is shown
MUCH_CUT, LITTLE_CUT = 0.05, 0.01  # shares of a set's tokens: what is warned of, and what a proposed length may cut
SETS = ("train", "validation", "source_test", "target_test")
SPARE_DISK = 10  # the run folder and three checkpoints with Adam's state, in multiples of the weights in float32


@dataclass(frozen=True)
class Job:
    """One recipe call, ready to train.

    Attributes:
        arguments: as parsed.
        console: what is said to the user.
        meter: running since the start.
        partial: the folder that grows.
        task: what the data means.
        domains: the rows.
        encoded: the labelled ones, tokenised, by the names of SETS.
        pool: the target's unlabelled ones, tokenised, if there are any.
        controls: to compare with.
        setup: what the method is given.
    """

    arguments: Arguments
    console: Console
    meter: Meter
    partial: Path
    task: Task
    domains: Domains
    encoded: dict[str, Dataset]
    pool: Dataset | None
    controls: dict[str, Control]
    setup: Setup


@contextmanager
def begin(arguments: Arguments) -> Iterator[Job]:
    """Give a `with` block everything to train with, measured from here on.

    Raises:
        UserError: anything that is wrong with the data, the model, the folder or the repository to push to.
    """
    console = Console(quiet=arguments.train.quiet or arguments.train.process_index > 0)
    partial = open_folder(arguments)
    check_push(arguments)
    task = tasks.load(arguments.model.task)
    seed = arguments.train.seed
    with Meter() as meter:
        with meter.stage("read"):
            domains = load_data(arguments.data, seed, quiet=console.quiet)
            domains = domains.relabelled(ordered_labels(arguments.model, domains.label_names))
            weights = class_weights(arguments, domains.train["label"][:], len(domains.label_names))
        metric, chosen_by, why = choose_metrics(arguments.model.metric, domains.facts)
        split_seed = seed if arguments.data.split_seed is None else arguments.data.split_seed
        controls = run_controls(domains, weights, split_seed, meter)
        with meter.stage("load model"):
            loaded = load_model(arguments.model, task, domains.label_names, seed)
        with meter.stage("tokenise"):
            encoded, cut = encode_all(arguments, domains, loaded, task)
            pool = None
            if domains.unlabeled is not None:
                pool, _ = encode_rows(domains.unlabeled, ["text"], loaded, task, arguments.data.max_length)
        check_model(loaded.name, domains, quiet=console.quiet)
        if seen := seen_before(loaded.name, domains.test):
            domains.facts["pretrained_on_test_texts"] = seen
            domains.notes.append(f"LEAK: --model was pretrained on {seen} of the texts that are tested; for a fair "
                                 "score pretrain without them")  # fmt: skip
        console.say(summary(domains, cut))
        console.say(why)
        console.say(f"model: {public_name(loaded.name)}; method: {arguments.model.method}; {arguments.training_line()}")
        check_folder(partial, domains.facts["fingerprint"], loaded)
        setup = Setup(
            loaded=loaded,
            train=encoded["train"],
            validation=encoded["validation"],
            collator=task.collator(loaded.tokenizer),
            precision=arguments.precision,
            class_weights=weights,
            seed=seed,
            fingerprint=domains.facts["fingerprint"],
            quiet=console.quiet,
            metric=metric,
            chosen_by=chosen_by,
        )
        yield Job(arguments, console, meter, partial, task, domains, encoded, pool, controls, setup)


def open_folder(arguments: Arguments) -> Path:
    """Return the folder that the run will grow in, `<output_dir>.partial`; it is renamed when all is written.

    Raises:
        UserError: the output folder holds something or can't be written, or an unfinished run is not to be resumed.
    """
    final, resume = Path(str(arguments.train.output_dir)), arguments.train.resume
    if final.is_dir() and any(final.iterdir()):
        what = "a finished run" if (final / "run.json").is_file() else "other files"
        raise UserError(f"--output_dir {final} holds {what}; name a new folder, or remove it first.")
    partial = final.with_name(final.name + ".partial")
    for folder in (final, partial):
        check_writable(folder, "--output_dir")
    note = partial / "arguments.json"
    wanted = json.loads(json.dumps(as_dict(arguments), default=str))
    if resume:
        if not note.is_file():
            raise UserError(f"--resume: there is no unfinished run in {partial}; leave --resume out.")
        started = json.loads(note.read_text(encoding="utf-8"))
        wanted["fingerprint"] = started["fingerprint"]  # compared when the data is read
        changed = sorted(key for key in {*started, *wanted} if started.get(key) != wanted.get(key))
        if changed:
            raise UserError(f"--resume: the unfinished run was started with other values of {', '.join(changed)}; "
                            f"give the same, or remove {partial}.")  # fmt: skip
    elif note.is_file() and arguments.train.process_index == 0:
        raise UserError(f"{partial} holds an unfinished run; add --resume to continue it, or remove that folder.")
    return partial


def check_folder(partial: Path, fingerprint: str, loaded: Loaded) -> None:
    """Check that the folder fits the run, once data and model are known to be good; `fit` makes it.

    Raises:
        UserError: too little disk space, a folder that can't be written, or other data than the run to resume had.
    """
    note = partial / "arguments.json"
    if note.is_file() and json.loads(note.read_text(encoding="utf-8"))["fingerprint"] != fingerprint:
        raise UserError(f"--resume: the data changed since {partial} was started; restore it, or remove that folder.")
    there = check_writable(partial, "--output_dir")
    need = SPARE_DISK * 4 * sum(p.numel() for p in loaded.model.parameters())
    if (free := shutil.disk_usage(there).free) < need:
        raise UserError(f"{there} has {free / 1e6:,.0f} MB of free disk, this run needs {need / 1e6:,.0f} MB; free "
                        "some or choose another --output_dir.")  # fmt: skip


def encode_all(
    arguments: Arguments, domains: Domains, loaded: Loaded, task: Task
) -> tuple[dict[str, Dataset], dict[str, float]]:
    """Tokenise every split once, cached on disk: encoded splits, and the share of tokens cut in each.

    The shares are put among the facts of `domains`, and a warning of large ones among its notes.

    Raises:
        UserError: `--max_length` is beyond what the model takes, or cuts every training text.
    """
    max_length, room = arguments.data.max_length, longest_input(loaded)
    encoded, whole = {}, {}
    with (
        arguments.train.main_process_first(desc="tokenise"),
        progress(sum(domains.facts["rows"].values()), quiet=arguments.train.quiet),
    ):
        for name in SETS:
            rows: Dataset = getattr(domains, name)
            if not len(rows):
                encoded[name] = rows
                continue
            encoded[name], lost = encode_rows(rows, ["text", "label"], loaded, task, max_length)
            whole[name] = np.array(encoded[name]["length"][:]) + lost
    cut, note = cut_at(max_length, whole, room)
    domains.facts["tokens_cut"] = cut
    domains.notes.extend(note)
    if cut["train"] and max_length < room and min(encoded["train"]["length"][:]) == max_length:
        raise UserError(f"every training text is longer than --max_length {max_length} tokens; raise it.")
    return encoded, cut


def cut_at(max_length: int, lengths: dict[str, np.ndarray], room: int) -> tuple[dict[str, float], list[str]]:
    """Return the share of each set's tokens that is cut; where it is large also a warning that proposes a length.

    Args:
        max_length: tokens kept of a text.
        lengths: (rows,) tokens of the whole texts of each set.
        room: tokens that the model takes.
    """

    def cut(tokens: int) -> dict[str, float]:
        return {name: float(np.maximum(own - tokens, 0).sum() / own.sum()) for name, own in lengths.items()}

    shares = cut(max_length)
    much = ", ".join(f"{100 * share:.1f} % of {name}" for name, share in shares.items() if share > MUCH_CUT)
    noted = {name: round(share, 4) for name, share in shares.items()}
    if not much:
        return noted, []
    warning = f"{much.replace('% of', '% of the tokens of', 1)} are cut at --max_length {max_length}; "
    if max_length >= room:
        return noted, [f"{warning}the model reads no more"]
    longest = max(int(own.max()) for own in lengths.values())
    options = range(16, min(longest, room) + 16, 16)
    first = bisect_left(options[:-1], True, key=lambda tokens: max(cut(tokens).values()) < LITTLE_CUT)
    enough = min(options[first], room)
    left = max(cut(enough).values())
    if left < LITTLE_CUT:
        return noted, [f"{warning}{enough} would cut under {100 * LITTLE_CUT:.0f} %"]
    return noted, [f"{warning}{enough}, all that the model reads, would still cut {100 * left:.1f} %"]


@contextmanager
def progress(rows: int, *, quiet: bool) -> Iterator[None]:
    """Let `datasets` draw bars meanwhile, where there are so many rows that it takes long."""
    import datasets

    if not quiet and rows > SHOW_ROWS:
        datasets.enable_progress_bars()
    try:
        yield
    finally:
        datasets.disable_progress_bars()


def encode_rows(
    rows: Dataset, columns: list[str], loaded: Loaded, task: Task, max_length: int
) -> tuple[Dataset, np.ndarray]:
    """Tokenise `columns` of `rows`, cached on disk: the encoded rows, and how many tokens of each were cut, (rows,).

    Raises:
        UserError: `max_length` is beyond what the model takes.
    """
    if max_length > (room := longest_input(loaded)):
        raise UserError(f"--max_length {max_length} is beyond the {room} tokens that {loaded.name} takes; lower it.")
    tokenizer = json.loads(loaded.tokenizer.backend_tokenizer.to_str())
    settings = {**tokenizer, "truncation": None, "padding": None}  # these two follow the last call
    key = cache_key("encode", settings, table_key(rows, columns), max_length)
    return task.encode(loaded.tokenizer, rows, max_length, str(cache_folder() / f"tokens-{key}.arrow"))


def class_weights(arguments: Arguments, labels: np.ndarray | list[int], classes: int) -> list[float] | None:
    """Return one weight a label, mean 1 over the training rows, or None where labels are even enough."""
    counts = np.bincount(labels, minlength=classes)
    wanted = arguments.train.class_weights
    if wanted == "none" or (wanted == "auto" and counts.max() < 3 * counts.min()):
        return None
    return (counts.sum() / (len(counts) * counts)).tolist()
