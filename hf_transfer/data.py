"""Source and target domains: aligned labels, leak-free splits, and what to know before training.

Rules every split obeys: rows with the same normalised text stay together; the same rows and seed give the same split,
whatever their order in the file; no text of the target's test rows is ever among the training rows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hf_transfer.errors import DataError, UserError, listed, nearest
from hf_transfer.features import cache_folder, cache_key, table_key
from hf_transfer.tables import Table, read_table

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_transfer.arguments import DataArguments
    from hf_transfer.results import Run

MIN_ROWS_PER_LABEL = 4
FEW_UNLABELED = 200


@dataclass(frozen=True)
class Domains:
    """The rows of a run, by what they may be used for.

    Attributes:
        label_names: class names; a row's `label` is an index into them.
        train, validation, source_test, target_test: columns `text`, `label`, `domain`, `row`, `key` (see `text_facts`;
            of a rewritten text, that of what it was); possibly empty.
        unlabeled: column `text`, or None.
        facts: counts, duplicates, leaks and the fingerprint, ready for run.json.
        notes: what the user should know, one line each.
    """

    label_names: list[str]
    train: Dataset
    validation: Dataset
    source_test: Dataset
    target_test: Dataset
    unlabeled: Dataset | None
    facts: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def test(self) -> Dataset:
        """The rows that the headline numbers are about: the target's, or without a target the source's."""
        return self.target_test if len(self.target_test) else self.source_test

    def relabelled(self, label_names: list[str]) -> Domains:
        """Return the same rows with label indices that follow the order of `label_names`."""
        if label_names == self.label_names:
            return self
        new = [label_names.index(name) for name in self.label_names]

        def remap(name: str) -> Dataset:
            rows: Dataset = getattr(self, name)
            key = cache_key("relabelled", table_key(rows, rows.column_names), new)  # also their order and numbers
            return rows.map(
                lambda batch: {"label": [new[label] for label in batch["label"]]},
                batched=True,
                cache_file_name=str(cache_folder() / f"rows-{key}.arrow"),
            ) if len(rows) else rows  # fmt: skip

        parts = ("train", "validation", "source_test", "target_test")
        return replace(self, label_names=label_names, **{name: remap(name) for name in parts})


def load_data(args: DataArguments, seed: int, *, quiet: bool = True) -> Domains:
    """Read, check, align and split the domains that `args` names; without `quiet`, a bar shows what takes long.

    `seed` is that of the splits where `args` does not name another.

    Raises:
        DataError: every problem found, listed at once.
    """
    problems: list[str] = []
    notes: list[str] = []
    texts: list[Dataset] = []
    seed = seed if args.split_seed is None else args.split_seed
    columns: dict[str, Any] = {"text_column": args.text_column, "label_column": args.label_column,
                               "max_rows": args.max_rows, "quiet": quiet}  # fmt: skip

    def read(spec: str, **options: Any) -> Table | None:
        try:
            table = read_table(spec, **(columns | options))
        except UserError as error:
            problems.extend(str(error).splitlines())
            return None
        notes.extend(f"{table.name}: {note}" for note in table.notes)
        # where a row's text is among the texts of all tables
        rows = table.rows.assign(at=table.rows["row"] + sum(map(len, texts)))
        texts.append(table.texts)
        return replace(table, rows=rows)

    sources: dict[str, pd.DataFrame] = {}
    drawn: list[tuple[str, str]] = []  # domain, and how many of how many of its rows were read
    for spec in args.source:
        if table := read(spec, domain_column=args.domain_column):
            if args.domain_column:
                for name, rows in table.rows.groupby("domain"):
                    earlier = [sources[name]] if name in sources else []
                    sources[name] = pd.concat([*earlier, rows.drop(columns="domain")], ignore_index=True)
                where = f" in {table.name}" if len(args.source) > 1 else ""  # each may hold some of a domain
                drawn += [(name, words + where) for name, words in table.drawn.items()]
            else:
                name = table.name if table.name not in sources else spec
                sources[name] = table.rows
                drawn += [(name, words) for words in table.drawn.values()]
    sources_read = bool(sources) and not problems
    target, target_name = None, ""
    if args.target and args.domain_column and args.target in sources:
        target, target_name = sources.pop(args.target), args.target
        if not sources:
            problems.append(f"--domain_column {args.domain_column} holds only '{args.target}'; no source is left.")
    elif args.target and args.domain_column and sources and not Path(args.target).exists():
        problems.append(
            f"--target '{args.target}' is neither a domain of column '{args.domain_column}'"
            f"{nearest(args.target, sources)} nor a file; the domains are: {listed(sources)}."
        )
    elif args.target and (table := read(args.target)):
        target, target_name = table.rows, table.name if table.name not in sources else f"{table.name} (target)"
        drawn += [(target_name, words) for words in table.drawn.values()]
    unlabeled = read(args.target_unlabeled, labelled=False, label_column=None) if args.target_unlabeled else None
    if unlabeled is not None:
        notes.extend(f"{name}: {words}" for name, words in unlabeled.drawn.items())
    unread = bool(problems)
    label_names = _align(sources, target, target_name, problems) if sources_read and sources else []
    if unread:
        raise DataError(problems)

    source = pd.concat([rows.assign(domain=name) for name, rows in sources.items()], ignore_index=True)
    target = source.iloc[:0].copy() if target is None else target.assign(domain=target_name)

    source["split"] = _split(source, args.validation_fraction, args.test_fraction, seed)
    target["split"] = _split_target(target, target_name, args, seed, problems)
    duplicates = {
        name: int(rows["key"].duplicated().sum())
        for name, rows in [("source", source), ("target", target)]
        if len(rows)
    }
    conflicts = int((source.groupby("key")["label"].nunique() > 1).sum())
    test_keys = set(target.loc[target["split"] == "test", "key"])
    labelled = pd.concat([source, target], ignore_index=True)
    is_target = pd.Series(labelled.index >= len(source), index=labelled.index)
    copies = labelled["now"].isin(test_keys) & labelled["split"].isin(["train", "validation"])  # rewritten into one
    strays = _strays(labelled, is_target) | copies
    leaks = strays & (labelled["key"].isin(test_keys) | copies)
    if (own := int((leaks & ~is_target).sum())) > 0.5 * len(source):
        problems.append(f"{own} of {len(source)} source rows are also target test rows; source and target must differ.")
    elif (same := source["key"].isin(set(target.loc[target["split"] != "unused", "key"]))).mean() > 0.5:
        # split alike, so that nothing leaks
        problems.append(f"{same.sum()} of {len(source)} source rows are also target rows; source and target must "
                        "differ.")  # fmt: skip
    else:
        labelled, is_target = labelled[~strays], is_target[~strays]
    if args.target_only:
        used = is_target | (labelled["split"] == "test")
        labelled, is_target = labelled[used], is_target[used]
    _check_labels(labelled[labelled["split"] == "train"], label_names, problems)
    if len(target) and not test_keys:
        problems.append(f"target {target_name}: no test rows are left; lower --target_shots or give more rows.")
    if not len(target) and not (labelled["split"] == "test").any():
        problems.append("there is nothing to test on: give --target, or a --test_fraction above 0.")
    if unlabeled is not None:
        tested = unlabeled.rows["key"].isin(test_keys)
        if tested.mean() > 0.5:
            problems.append(
                f"{args.target_unlabeled}: {tested.sum()} of {len(tested)} texts are target test rows; what is tested "
                "must not be trained on, not even without labels. Give other texts."
            )
        elif tested.any():
            notes.append(f"LEAK: {tested.sum()} unlabelled texts are also target test rows; left out")
        left = unlabeled.rows[~tested]
        if (own := left["key"].isin(set(source["key"]))).mean() > 0.5:
            notes.append(
                f"{own.sum()} of {len(own)} unlabelled texts are also source rows: there is nothing to adapt to"
            )
        held_out = left["key"].isin(set(labelled.loc[labelled["split"].isin(["validation", "test"]), "key"]))
        if held_out.any():
            notes.append(f"left out {held_out.sum()} unlabelled texts that are held-out labelled rows too")
        again = left["key"].duplicated() & ~held_out
        if again.any():
            notes.append(f"left out {again.sum()} unlabelled texts that are there already")
        unlabeled = replace(unlabeled, rows=left[~held_out & ~again])
        if not problems and not len(unlabeled.rows):
            problems.append(f"{args.target_unlabeled}: every text is a held-out labelled row; give other texts.")
        if not problems and len(unlabeled.rows) < FEW_UNLABELED:
            notes.append(f"only {len(unlabeled.rows)} unlabelled texts: {FEW_UNLABELED} or more tell more of a domain")
    if problems:
        raise DataError(problems)

    if leaks.any():
        notes.append(f"LEAK: {leaks.sum()} rows are also target test rows; left out of training")
    if others := int((strays & ~leaks).sum()):
        notes.append(f"left out {others} rows whose text is also in another split")
    test_rows = labelled.loc[labelled["split"] == "test", "domain"].value_counts()
    notes.extend(f"{name}: {words}; {test_rows.get(name, 0):,} test rows are left" for name, words in drawn)
    if conflicts:
        notes.append(f"{conflicts} source texts occur with different labels")
    absent = sorted(set(label_names) - set(target["label"])) if len(target) else []
    if absent:
        notes.append(f"target has no rows labelled {', '.join(absent)}")

    labelled = labelled.assign(label=labelled["label"].map({name: i for i, name in enumerate(label_names)}))
    parts = {
        "train": labelled["split"] == "train",
        "validation": labelled["split"] == "validation",
        "source_test": (labelled["split"] == "test") & ~is_target,
        "target_test": (labelled["split"] == "test") & is_target,
    }
    frames = {name: labelled[chosen] for name, chosen in parts.items()}
    facts = {
        "target": target_name or None,
        "rows": {name: len(frame) for name, frame in frames.items()},
        "labels": {
            name: {label_names[int(i)]: int(n) for i, n in frame["label"].value_counts().sort_index().items()}
            for name, frame in frames.items()
        },
        "domains": {name: int(n) for name, n in labelled["domain"].value_counts().items()},
        "mean_words": {name: round(float(frame["words"].mean()), 1) for name, frame in frames.items() if len(frame)},
        "duplicates": duplicates,
        "conflicting_labels": conflicts,
        "leaks_removed": int(leaks.sum()),
        "unlabeled_rows": len(unlabeled.rows) if unlabeled is not None else 0,
        "fingerprint": fingerprint(labelled),
    }
    everything = _with_columns(texts, labelled, ["label", "domain", "row", "key"])
    return Domains(
        label_names=label_names,
        unlabeled=unlabeled.texts.add_column("row", range(len(unlabeled.texts))).select(unlabeled.rows["row"])
        if unlabeled is not None
        else None,
        facts=facts,
        notes=notes,
        **{name: everything.select(frame["at"]) for name, frame in frames.items()},
    )


def load_again(run: Run, *, quiet: bool = True) -> Domains:
    """Read the data of a finished run from where it was, with the run's order of labels.

    Raises:
        UserError: it can't be read, or is no longer the same; the line wants an end that says what to do without it.
    """
    from hf_transfer.arguments import DataArguments

    names = {field.name for field in fields(DataArguments)}
    given = DataArguments(**{name: value for name, value in run.arguments.items() if name in names})
    try:
        domains = load_data(given, run.seed, quiet=quiet)
    except UserError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"the data of {run.folder} can't be read again ({reason})") from error
    if domains.facts["fingerprint"] != run.data["fingerprint"]:
        raise UserError(f"the data of {run.folder} changed since it was trained")
    return domains.relabelled(run.label_names)


def fingerprint(rows: pd.DataFrame) -> str:
    """Return a SHA-256 over every row's split, domain, label and text, independent of their order."""
    lines = pd.util.hash_pandas_object(rows[["split", "domain", "label", "content"]], index=False)
    return hashlib.sha256(np.sort(lines.to_numpy()).tobytes()).hexdigest()


def summary(domains: Domains, truncation: dict[str, float]) -> str:
    """Return the table printed before training: rows, label mix, length, truncation, duplicates, leaks.

    Args:
        domains: the loaded data.
        truncation: share of tokens lost at `--max_length`, by split.
    """
    facts = domains.facts
    lines = [f"{'':12} {'rows':>7} {'words':>6} {'tokens cut':>11}  labels"]
    for name, rows in facts["rows"].items():
        if rows:
            mix = ", ".join(f"{label} {count / rows:.0%}" for label, count in facts["labels"][name].items())
            cut = f"{truncation[name]:.1%}" if name in truncation else ""
            lines.append(f"{name:12} {rows:>7} {facts['mean_words'][name]:>6} {cut:>11}  {mix}")
    if facts["unlabeled_rows"]:
        lines.append(f"{'unlabelled':12} {facts['unlabeled_rows']:>7}")
    duplicates = ", ".join(f"{count} in {name}" for name, count in facts["duplicates"].items())
    lines.append(f"domains: {', '.join(f'{name} ({n})' for name, n in facts['domains'].items())}")
    lines.append(f"duplicates: {duplicates}; leaks from target test into training: {facts['leaks_removed']} (removed)")
    return "\n".join(lines + [f"note: {note}" for note in domains.notes])


def _with_columns(texts: list[Dataset], rows: pd.DataFrame, columns: list[str]) -> Dataset:
    """Return all texts, as they lie on disk, beside `columns` of those rows that `rows` has."""
    from datasets import concatenate_datasets

    everything = concatenate_datasets(texts)
    placed = rows.set_index("at")
    for name in columns:
        column = placed[name].reindex(range(len(everything)), fill_value="" if name == "domain" else -1)
        everything = everything.add_column(name, column.to_numpy())
    return everything


def _align(
    sources: dict[str, pd.DataFrame], target: pd.DataFrame | None, target_name: str, problems: list[str]
) -> list[str]:
    """Return the label names, in a stable order: whole numbers by value, other names by alphabet."""
    names = {label for rows in sources.values() for label in rows["label"].unique()}
    if len(names) < 2:
        problems.append(
            f"the source has one class only ({listed(names) or 'none'}); at least 2 are needed, check --label_column."
        )
    if len(names) > 2 and len(names) > sum(map(len, sources.values())) / 4:
        problems.append(f"the label column has {len(names)} different values, which looks like text or an id; set "
                        "--label_column.")  # fmt: skip
        return []
    if target is not None and (unknown := sorted(set(target["label"]) - names)):
        hint = "".join(nearest(label.lower(), {n.lower() for n in names}) for label in unknown[:1])
        problems.append(
            f"target {target_name} has labels that the source never had: {listed(unknown, 5)}{hint}; the source "
            f"has {listed(sorted(names))}. Rename them to the source's."
        )
    whole = all(re.fullmatch(r"-?\d+", name) for name in names)
    return sorted(names, key=int if whole else str)


def _split(rows: pd.DataFrame, validation: float, test: float, seed: int) -> pd.Series:
    """Return train / validation / test for each row, by its `split` column or stratified by label."""
    if "split" in rows and rows["split"].notna().any():
        given = rows["split"].copy()
        if validation and not (given == "validation").any():
            inner = _split(rows[given == "train"].drop(columns="split"), validation, 0.0, seed)
            given.update(inner)
        if (free := rows["split"].isna()).any():  # another source has no such column
            given.update(_split(rows[free].drop(columns="split"), validation, test, seed))
        return given

    def assign(keys: np.ndarray) -> list[str]:
        tested, validated = round(len(keys) * test), round(len(keys) * validation)
        return ["test"] * tested + ["validation"] * validated + ["train"] * (len(keys) - tested - validated)

    return _assign(rows, assign, seed)


def _assign(rows: pd.DataFrame, assign: Callable[[np.ndarray], list[str]], seed: int) -> pd.Series:
    """Shuffle the distinct texts of each label and give them the names that `assign` lists."""
    if not len(rows):
        return pd.Series([], index=rows.index, dtype=object, name="split")
    first = rows.sort_values(["key", "label"]).drop_duplicates("key").set_index("key")["label"]
    rng = np.random.default_rng(seed)
    where = []
    for label in sorted(first.unique()):
        keys = first.index[first == label].to_numpy(copy=True)  # in order, whatever that of the rows
        rng.shuffle(keys)
        where.append(pd.Series(assign(keys), index=keys, dtype=object))
    return rows["key"].map(pd.concat(where)).rename("split")


def _split_target(target: pd.DataFrame, name: str, args: DataArguments, seed: int, problems: list[str]) -> pd.Series:
    shots = args.target_shots
    if not len(target):
        return pd.Series([], dtype=object, index=target.index)
    if shots == "all":
        return _split(target, args.validation_fraction, args.test_fraction or 0.2, seed)
    pool, test = target.sort_values(["key", "label", "content"]), None
    if "split" in target and (target["split"] == "test").any():
        test = target["split"].where(target["split"] == "test", "unused")
        pool = pool[~pool["key"].isin(target.loc[test == "test", "key"])]
    if shots == "0":
        return pd.Series("test", index=target.index) if test is None else test
    k = int(shots)
    few = pool.drop_duplicates("key")["label"].value_counts().reindex(sorted(set(target["label"])), fill_value=0)
    if (few < k + (test is None)).any():
        problems.append(
            f"--target_shots {k}: target {name} has only {few.min()} distinct texts labelled {few.idxmin()}; lower it."
        )
        return pd.Series("test", index=target.index)
    chosen = _assign(pool, lambda keys: ["train"] * k + ["rest"] * (len(keys) - k), seed)
    # a shot is one labelled row: a text that occurs twice among the chosen is used once
    chosen[(chosen == "train") & pool["key"].duplicated()] = "unused"
    if test is None:
        return chosen.replace("rest", "test")
    test.update(chosen.replace("rest", "unused"))
    return test


def _strays(rows: pd.DataFrame, is_target: pd.Series) -> pd.Series:
    """Mark the rows whose text is also in a split that comes first: the target's, then test, validation, train."""
    rank = rows["split"].map({"test": 0, "validation": 1, "train": 2}) + 3 * ~is_target
    first = rank.groupby(rows["key"]).transform("min")
    return rank.notna() & (rank % 3 != first % 3)


def _check_labels(train: pd.DataFrame, label_names: list[str], problems: list[str]) -> None:
    counts = train["label"].value_counts()
    rare = [f"{name} ({counts.get(name, 0)})" for name in label_names if counts.get(name, 0) < MIN_ROWS_PER_LABEL]
    if rare:
        problems.append(
            f"too few training rows labelled {listed(rare)}; at least {MIN_ROWS_PER_LABEL} are needed. Add rows, "
            "drop those labels, or lower --test_fraction and --validation_fraction."
        )
