"""A comparison: a question about source and target, its data, and the folder that its answer grows in.

`compare.json` has the question, the plan and the seconds spent; `runs/` a finished run for each arm, control and seed,
and each is an ordinary run folder.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from hf_transfer.arguments import Arguments, DataArguments, TaskArguments, as_dict, parse
from hf_transfer.arms import FROZEN, RANDOM, SOURCE_ONLY, TARGET_ONLY, Arm, read_arm
from hf_transfer.begin import class_weights, encode_all
from hf_transfer.budget import Rows, duration, read_duration
from hf_transfer.candidates import FEWEST, SEEN, learned_keys, read_target
from hf_transfer.console import Console
from hf_transfer.controls import Control, run_controls
from hf_transfer.data import Domains, load_data, summary
from hf_transfer.errors import UserError, listed
from hf_transfer.evaluation import choose_metrics
from hf_transfer.features import cache_key, weights_key
from hf_transfer.leaks import check_model, seen_before
from hf_transfer.methods import Setup
from hf_transfer.models import load_model, ordered_labels
from hf_transfer.processes import warm_up
from hf_transfer.resources import Meter
from hf_transfer.results import check_writable, write_atomically
from hf_transfer.tables import open_table
from hf_transfer.texts import text_facts
from hf_transfer.tuning import TuneArguments, check_trials

if TYPE_CHECKING:
    from hf_transfer.tasks import Task

FILE, POOL_FILE = "compare.json", "pool.jsonl"
ARMS, ADAPTED = ("frozen", "lora", "full"), ("self_train+frozen", "self_train+full")  # by default; the latter: pool
POOL = 2000  # unlabelled texts that arms learn from, at most, unless there are more labelled ones
MOST_VALUES = 20  # of a column whose values are slices
END, END_SHARE = 10.0, 0.05  # seconds, and of the budget, that are kept for judging, drawing and writing


@dataclass
class CompareArguments:
    """What is compared, and for how long."""

    budget: str = field(
        default="10m", metadata={"help": "Wall-clock time for everything, with its unit: 90s, 10m, 2h."}
    )
    arms: str | None = field(
        default=None,
        metadata={
            "help": "METHOD or ADAPTATION+METHOD, with commas: frozen,lora,coral+lora,dapt+full (hf-transfer list). "
            "Default: frozen,lora,full, with --target_unlabeled also self_train+frozen,self_train+full."
        },
    )
    seeds: int = field(default=3, metadata={"help": "Runs of each arm, if the budget allows."})
    slice_columns: list[str] = field(
        default_factory=list, metadata={"help": "Columns of the tested table whose values are looked at one by one."}
    )
    backtest: list[str] = field(
        default_factory=list,
        metadata={"help": "Labelled tables of other domains. Without target labels: how well does the estimate do "
                  "there?"},
    )  # fmt: skip
    num_processes: int = field(default=1, metadata={"help": "Processes that train an arm, a device each."})


@dataclass
class Comparison:
    """One comparison.

    Attributes:
        arguments: as parsed; `how` of them is this command's own.
        console: what is said to the user.
        folder: that grows.
        state: compare.json.
        arms: to compare.
        controls: trained ones, whether or not they are arms too.
        task: what the data means.
        domains: the rows.
        lengths: (test rows,) tokens.
        columns: name -> (test rows,) values, as text, of the columns to slice by.
        simple: majority and TF-IDF, and TF-IDF on the target's labels alone where there are any.
        rows: how many there are.
        setup: to time steps with.
        began: from when on seconds are not counted in `state` yet.
    """

    arguments: Arguments
    how: CompareArguments
    console: Console
    folder: Path
    state: dict[str, Any]
    arms: list[Arm]
    controls: list[Arm]
    task: Task
    domains: Domains
    lengths: np.ndarray
    columns: dict[str, np.ndarray]
    simple: dict[str, Control]
    rows: Rows
    setup: Setup
    began: float

    @property
    def trials(self) -> int:
        """That choose an arm's settings before its training."""
        return self.arguments.more[1].tune

    @property
    def budget(self) -> float:
        """Seconds for everything."""
        return read_duration(self.how.budget)

    @property
    def spent(self) -> float:
        """Seconds that what is there has cost, and this call so far."""
        return sum(self.state["seconds"].values()) + self.state["other"] + time.perf_counter() - self.began

    @property
    def kept(self) -> float:
        """Seconds that are kept for the verdict."""
        return END + END_SHARE * self.budget + float(self.state.get("reading", 0.0))

    @property
    def left(self) -> float:
        """Seconds that are left for training before the verdict is written."""
        return max(0.0, self.budget - self.spent - self.kept)

    @property
    def clock(self) -> str:
        """How much time is spent and left, in words."""
        return (f"{duration(self.spent)} of {duration(self.budget)} spent, {duration(self.left)} left before the "
                "verdict is written")  # fmt: skip

    def path(self, arm: Arm, seed: int, *, longer: bool = False) -> Path:
        """Return the folder of a run, or of one that will take its place."""
        return self.folder / ("longer" if longer else "runs") / f"{arm.name}-seed{seed}"

    @property
    def pool(self) -> Path:
        """The table of unlabelled texts that arms learn from."""
        return self.folder / POOL_FILE

    def save(self) -> None:
        """Write compare.json, with the seconds so far."""
        now = time.perf_counter()
        self.state["other"] += now - self.began
        self.began = now
        write_atomically(self.folder / FILE, json.dumps(self.state, indent=2) + "\n")


def resting(job: Comparison) -> set[str]:
    """Return the arms that screening has put aside, and that no time left over has trained to the end since."""
    seed, started = job.arguments.train.seed, job.state["started"]
    return {name for name, one in job.state.get("screening", {}).items()
            if not one["kept"] and started.get(f"{name}-seed{seed}", {}).get("share", 1.0) < 1}  # fmt: skip


def open_comparison(argv: list[str], description: str | None) -> Comparison:
    """Read everything, train what takes seconds, and find what is wrong before anything takes longer.

    Raises:
        UserError: anything that is wrong with the data, the arms or the folder.
    """
    from hf_transfer import tasks

    began = time.perf_counter()
    arguments = parse(argv, description, (CompareArguments, TuneArguments), model=TaskArguments)
    (how, tuning), train, data = arguments.more, arguments.train, arguments.data
    check_trials(tuning.tune)
    if how.seeds < 1 or how.num_processes < 1:
        raise UserError(f"--seeds is {how.seeds} and --num_processes {how.num_processes}; both must be at least 1.")
    if train.push_to_hub:
        raise UserError("--push_to_hub: look at the verdict first, then `hf-transfer publish` the run you chose.")
    read_duration(how.budget)
    if data.target_only:
        raise UserError("--target_only: that is one of the controls, whenever there are target labels to train on.")
    if how.backtest and (data.target or not data.target_unlabeled):
        raise UserError("--backtest is about estimates without target labels; give --target_unlabeled and no --target, "
                        "or leave it out.")  # fmt: skip
    names = how.arms.split(",") if how.arms else [*ARMS, *(ADAPTED if data.target_unlabeled else ())]
    arms = [read_arm(name.strip()) for name in dict.fromkeys(names)]
    if needing := [arm.name for arm in arms if arm.uses_target and not data.target_unlabeled]:
        raise UserError(f"--arms: {listed(needing)} learn from the target's unlabelled texts; give --target_unlabeled, "
                        "or leave them out.")  # fmt: skip
    labels = data.target is not None and data.target_shots != "0"
    controls = [read_arm(name) for name in (FROZEN, SOURCE_ONLY, RANDOM, *([TARGET_ONLY] if labels else []))]
    folder = Path(str(train.output_dir))
    check_writable(folder, "--output_dir")
    state = _open(folder, arguments)
    warm_up()
    console = Console(quiet=train.quiet)
    task = tasks.load(arguments.model.task)
    domains = load_data(data, train.seed, quiet=console.quiet)
    metric, chosen_by, why = choose_metrics(arguments.model.metric, domains.facts)
    _refuse_leaks(domains)
    columns = _columns(arguments, how, domains)
    domains = domains.relabelled(ordered_labels(arguments.model, domains.label_names))
    pool = _drawn(domains, train.seed)
    _check_estimates(how, domains, data, train.seed, pool)
    weights = class_weights(arguments, domains.train["label"][:], len(domains.label_names))
    split_seed = train.seed if data.split_seed is None else data.split_seed
    own = np.array(domains.train["domain"][:]) == domains.facts["target"]
    with Meter() as meter:
        simple = run_controls(domains, weights, split_seed, meter)
        if labels:
            alone = replace(domains, train=domains.train.select(np.flatnonzero(own)))
            simple["tfidf on the target"] = run_controls(alone, None, split_seed, meter)["tfidf"]
    loaded = load_model(arguments.model, task, domains.label_names, train.seed)
    encoded, cut = encode_all(arguments, domains, loaded, task)
    check_model(loaded.name, domains, quiet=console.quiet)
    if seen := seen_before(loaded.name, domains.test):
        raise UserError(f"LEAK: --model was pretrained on {seen} of the texts that are tested; pretrain without them.")
    console.say(summary(domains, cut))
    console.say(why)
    now = {"labelled rows": domains.facts["fingerprint"], "unlabelled texts": cache_key(pool),
           "model": weights_key(loaded.model)}  # fmt: skip
    if changed := [name for name, key in now.items() if state.setdefault("keys", now)[name] != key]:
        raise UserError(f"the {listed(changed)} changed since {folder} was started; restore that, or name a new "
                        "--output_dir.")  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    if pool:
        column = data.text_column or "text"
        lines = (json.dumps({column: text}, ensure_ascii=False) + "\n" for text in pool)
        write_atomically(folder / POOL_FILE, "".join(lines))
    setup = Setup(loaded, encoded["train"], encoded["validation"], task.collator(loaded.tokenizer),
                  arguments.precision, weights, train.seed, metric=metric, chosen_by=chosen_by)  # fmt: skip
    held_out = int((np.array(domains.validation["domain"][:]) == domains.facts["target"]).sum())
    rows = Rows(len(domains.train), len(domains.validation), int(own.sum()), len(pool), held_out)
    tested = encoded["target_test" if len(domains.target_test) else "source_test"]
    comparison = Comparison(
        arguments, how, console, folder, state, arms, controls, task, domains, np.array(tested["length"][:]),
        columns, simple, rows, setup, began,
    )  # fmt: skip
    comparison.save()
    return comparison


def _open(folder: Path, arguments: Arguments) -> dict[str, Any]:
    """Return the state of the comparison in `folder`, or a new one.

    Raises:
        UserError: the folder holds something else, or another comparison.
    """
    question = {name: value for name, value in json.loads(json.dumps(as_dict(arguments), default=str)).items()
                if name not in ("budget", "slice_columns", "backtest", "dataloader_num_workers")}  # fmt: skip
    file = folder / FILE
    if not file.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"--output_dir {folder} holds other files; name a new folder, or remove it first.")
        return {"question": question, "seconds": {}, "other": 0.0, "started": {}, "stopped": {},
                "again": [], "failed": {}}  # fmt: skip
    state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if "started" not in state:
        raise UserError(f"{folder} holds a comparison that was made by another version; name a new --output_dir.")
    then = state["question"]
    if changed := sorted(key for key in {*then, *question} if then.get(key) != question.get(key)):
        raise UserError(f"{folder} holds a comparison with other values of {', '.join(changed)}; give the same to go "
                        "on with it, or name a new --output_dir.")  # fmt: skip
    state["failed"] = {}
    return state


def _check_estimates(how: CompareArguments, domains: Domains, data: DataArguments, seed: int, pool: list[str]) -> None:
    """Find what would keep the estimates without target labels from being made, which come last."""
    if data.target is not None or domains.unlabeled is None:
        return
    if len(domains.unlabeled) < FEWEST:
        raise UserError(f"--target_unlabeled has {len(domains.unlabeled)} texts; at least {FEWEST} are needed to "
                        "estimate anything without labels.")  # fmt: skip
    learned = learned_keys(domains)
    own = text_facts(Dataset.from_dict({"text": pool}))["key"].unique()
    known = np.isin(own, learned).mean()
    if known > SEEN:
        raise UserError(f"--target_unlabeled: {known:.0%} of its texts are labelled source rows; without target labels "
                        "nothing can be estimated from what was learned. Give other texts.")  # fmt: skip
    for spec in how.backtest:
        other = read_target(spec, labelled=True, text_column=data.text_column, label_column=data.label_column,
                            seed=seed, quiet=True)  # fmt: skip
        if unknown := sorted(set(other.labels if other.labels is not None else []) - set(domains.label_names)):
            raise UserError(f"--backtest {spec} has labels that the source lacks: {listed(unknown)}; it has "
                            f"{listed(domains.label_names)}.")  # fmt: skip
        for keys, whose in ((own, "--target_unlabeled"), (learned, "--source")):
            if (share := np.isin(other.keys, keys).mean()) > SEEN:
                raise UserError(f"--backtest {spec}: {share:.0%} of its texts are in {whose} too; name a table "
                                "of another domain.")  # fmt: skip


def _refuse_leaks(domains: Domains) -> None:
    if leaks := domains.facts["leaks_removed"]:
        raise UserError(f"LEAK: {leaks} labelled rows to train on are also target test rows (but for case and "
                        "punctuation); no verdict can rest on that: remove them from one table.")  # fmt: skip


def _drawn(domains: Domains, seed: int) -> list[str]:
    """Return the unlabelled texts that arms learn from, a random part of many."""
    if domains.unlabeled is None:
        return []
    count = min(len(domains.unlabeled), max(POOL, len(domains.train)))
    drawn = np.sort(np.random.default_rng(seed).permutation(len(domains.unlabeled))[:count])
    return list(domains.unlabeled.select(drawn)["text"][:])


def _columns(arguments: Arguments, how: CompareArguments, domains: Domains) -> dict[str, np.ndarray]:
    """Return, as text, the asked-for columns of the tested rows.

    Raises:
        UserError: the tested table lacks one, or it has too many values for slices.
    """
    asked, data = how.slice_columns, arguments.data
    if not asked:
        return {}
    if data.target is None or data.domain_column or len(domains.target_test) == 0:
        raise UserError("--slice_columns are columns of the --target table; name one, without --domain_column.")
    table, _ = open_table(data.target, data.text_column)
    out = {}
    for name in asked:
        if name not in table.column_names:
            raise UserError(f"--slice_columns: {Path(data.target).name} has no column '{name}'; it has "
                            f"{', '.join(table.column_names)}.")  # fmt: skip
        values = np.array([str(value) for value in table[name][:]])[np.array(domains.test["row"][:])]
        if len(np.unique(values)) > MOST_VALUES:
            raise UserError(f"--slice_columns: '{name}' has {len(np.unique(values))} different values; slices need a "
                            f"column of at most {MOST_VALUES}.")  # fmt: skip
        out[name] = values
    return out
