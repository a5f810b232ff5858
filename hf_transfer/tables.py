"""Read one labelled or unlabelled table, wherever it lives, and check it: every problem with its fix.

A table comes from csv, tsv, json, jsonl (each also gzipped) or parquet files, a folder of them, a `save_to_disk`
folder, or a Hub dataset id `name:config@revision`.
"""

from __future__ import annotations

import gzip
import logging
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.errors import DataError, UserError, hub_refusal, listed, nearest
from hf_transfer.texts import random_ranks, text_facts

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

FORMATS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
TEXT_COLUMNS = ("text", "sentence", "review", "content", "body", "comment", "message", "document", "review_text",
                "review_body", "reviewtext", "tweet")  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "sentiment", "class", "category", "target", "polarity", "is_spam", "spam", "stars",
                 "rating", "y")  # fmt: skip
MISSING_LIMIT = 0.05
REWRITTEN_FROM = "rewritten_from"  # column with what a text was before rewrite_source: by that it is known again
UNSUPERVISED = "unsupervised"  # the part of a Hub data set whose labels mean nothing
HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*(/[\w-][\w.-]*)?)(:(?P<config>[\w.-]+))?(@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Table:
    """A checked table; its texts stay on disk.

    Attributes:
        name: short name of the domain, from the file's name.
        texts: column `text` of every row of the file, memory-mapped.
        rows: columns `row` (position in the file), `key`, `content`, `words` (see `text_facts`; the key of what a text
            was before it was rewritten, where it was), `now` (the key of what it is), and where there are any `label`
            (text), `split`, `domain`; rows without text or label are left out.
        notes: what was guessed or dropped, one line each.
        drawn: domain (the table's name where it has no column of them) -> how many of how many rows were read, in
            words; only where `max_rows` left some out.
    """

    name: str
    texts: Dataset
    rows: pd.DataFrame
    notes: list[str]
    drawn: dict[str, str]


def read_table(
    spec: str,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    domain_column: str | None = None,
    max_rows: int | None = None,
    labelled: bool = True,
    quiet: bool = True,
) -> Table:
    """Read `spec` into a Table; without `quiet`, a bar shows what takes long.

    Of each domain at most `max_rows` are read, a random sample in which every label and split keeps its share; it is
    the same rows whatever their order.

    Raises:
        UserError: it can't be read, lacks columns, or over 5 % of its texts or labels are missing; all found.
    """
    dataset = _load(spec, labelled=labelled)
    if len(dataset) == 0:
        raise UserError(f"{spec} holds no rows; give a table with at least a few dozen.")
    problems: list[str] = []

    def attempt(read: Callable[..., Any], rows: Dataset, *options: Any) -> Any:
        try:
            return read(spec, rows, *options)
        except UserError as error:
            problems.append(str(error))
            return None

    text = attempt(_text_column, dataset, text_column)
    label = attempt(_column, dataset, label_column, LABEL_COLUMNS, "label") if labelled else None
    if label and label == text:
        problems.append(f"{spec}: text and label are the same column '{text}'; set --text_column and --label_column.")
        label = None
    texts = attempt(_texts, dataset, text) if text else None
    found = {
        "label": attempt(_label_names, dataset, label) if label else None,
        "domain": attempt(_domains, dataset, domain_column) if domain_column else None,
        "split": attempt(_splits, dataset) if "split" in dataset.column_names else None,
    }
    if texts is None:
        raise DataError(problems)
    columns = {name: values for name, values in found.items() if values is not None}
    name = _domain_name(spec)
    before = _texts(spec, dataset, REWRITTEN_FROM) if REWRITTEN_FROM in dataset.column_names else None
    kept, drawn = _draw(texts if before is None else before, columns, name, max_rows, quiet=quiet)
    rows = text_facts(texts.select(kept) if drawn else texts, quiet=quiet)
    rows["now"] = rows["key"]
    if before is not None:
        known = text_facts(before.select(kept) if drawn else before, quiet=quiet)
        rows["key"] = known["key"].where(known["words"] > 0, rows["now"])
    rows.insert(0, "row", kept)
    rows = rows.assign(**{column: values.take(kept).array for column, values in columns.items()})
    notes = [f"text from column '{text}'" + (f", label from '{label}'" if label else "")]
    rows, dropped = _drop_missing(spec, rows, problems)
    if problems:
        raise DataError(problems)
    return Table(name, texts, rows, notes + dropped, drawn)


def open_table(spec: str, text_column: str | None = None) -> tuple[Dataset, str]:
    """Return the unchanged rows of `spec`, memory-mapped, and the name of their text column.

    Raises:
        UserError: it can't be read, is empty, or its text column is not obvious.
    """
    dataset = _load(spec)
    if len(dataset) == 0:
        raise UserError(f"{spec} holds no rows; give a table with some.")
    return dataset, _text_column(spec, dataset, text_column)


def _load(spec: str, *, labelled: bool = True) -> Dataset:
    import datasets

    path = Path(spec).expanduser()
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            try:
                return _one_dataset(datasets.load_from_disk(str(path)), labelled=labelled)
            except Exception as error:
                raise UserError(f"{spec} looks like a save_to_disk folder but can't be read: {_line(error)} "
                                "Save it again, with rows.") from error  # fmt: skip
        files = sorted(p for p in path.iterdir() if _format(p) and p.is_file())
        if not files:
            raise UserError(
                f"folder {spec} holds no csv, tsv, json, jsonl or parquet file; put some there or name a file."
            )
        kinds = {_suffix(p) for p in files}
        if len(kinds) > 1:
            raise UserError(f"folder {spec} mixes {', '.join(sorted(kinds))}; keep one format per folder.")
        return _load_files(spec, files)
    if path.is_file():
        if not _format(path):
            raise UserError(f"{spec}: can't tell the format of '{path.suffix or path.name}'; use csv, tsv, json, jsonl "
                            "(plain or .gz) or parquet.")  # fmt: skip
        return _load_files(spec, [path])
    near = nearest(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
    hub_id = HUB_ID.fullmatch(spec)
    if _format(path) or path.is_absolute() or spec.startswith((".", "~")) or not hub_id:
        raise UserError(f"there is no file or folder '{spec}'{near}; check the path.")
    try:
        loaded = datasets.load_dataset(hub_id["name"], hub_id["config"], revision=hub_id["revision"])
    except Exception as error:
        here = f"'{spec}' is no file or folder here{near}, and as a Hub dataset it can't be loaded"
        if refusal := hub_refusal(error):
            raise UserError(f"{here}: {refusal}") from error
        reason = _line(str(error).partition("Example of usage")[0] or error)  # the example is not for our flags
        raise UserError(
            f"{here}: {reason} Check the path or the id `name:config@revision`, and the connection."
        ) from error
    return _one_dataset(loaded, labelled=labelled)


def _one_dataset(loaded: Any, *, labelled: bool) -> Dataset:
    """Return all parts as one; without the one that has no labels, if they are wanted."""
    import datasets

    if isinstance(loaded, datasets.Dataset):
        return loaded.with_format(None)  # it may have been saved as tensors
    if len(loaded) == 1:  # a table whose only part is called `train` is not split
        return next(iter(loaded.values()))
    return datasets.concatenate_datasets(
        [
            part
            if "split" in part.column_names
            else part.add_column("split", ["train" if name == UNSUPERVISED else name] * len(part))
            for name, part in loaded.items()
            if name != UNSUPERVISED or not labelled
        ]
    )


def _load_files(spec: str, files: list[Path]) -> Dataset:
    import datasets

    for file in files:
        _check_bytes(file)
    kind = _format(files[0])
    options: dict[str, Any] = {}
    if kind == "csv":
        options = {"sep": _separator(files[0]), "keep_default_na": False, "na_values": [""]}
    level = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(logging.CRITICAL)  # a failure is told once, below
    try:
        if kind == "csv":
            # everything as text: "NA" and "null" are words, and no column changes type half-way through a file
            columns = [_csv_columns(file, options["sep"]) for file in files]
            options["features"] = datasets.Features(dict.fromkeys(columns[0], datasets.Value("string")))
        return datasets.load_dataset(kind, data_files=[str(f) for f in files], split="train", **options)
    except UserError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        if any(sign in str(cause) for sign in ("corresponds to no data", "BatchSize must be greater than 0")):
            raise UserError(f"{spec} holds no rows; give a table with at least a few dozen.") from error
        raise UserError(f"{spec} can't be read as {kind}: {_line(cause)} Check its rows and quoting.") from error
    finally:
        datasets.logging.set_verbosity(level)


def _separator(file: Path) -> str:
    """Return what stands between the fields of a csv or tsv file: spreadsheets save csv with `;` or tabs too."""
    if _suffix(file) == ".tsv":
        return "\t"
    with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as stream:
        header = stream.readline()
    return max(",;\t", key=header.count)


def _csv_columns(file: Path, separator: str) -> list[str]:
    import pandas as pd

    head = pd.read_csv(file, sep=separator, nrows=1)
    if not isinstance(head.index, pd.RangeIndex):
        raise UserError(f"{file}: its rows have more fields than its header has names; quote texts with commas.")
    return list(head.columns)


def _check_bytes(file: Path) -> None:
    """Refuse what the parsers would only fail on obscurely: empty, cut-off, binary or wrongly encoded files."""
    opener = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rb") as stream:
            head = stream.read(1 << 24)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{file} is not a whole gzip file ({_line(error).rstrip('.')}); compress it again.") from error
    except OSError as error:
        raise UserError(f"{file} can't be opened: {error.strerror}; check its permissions.") from error
    if not head.strip():
        raise UserError(f"{file} is empty; give a table with a header and rows.")
    if _format(file) == "parquet":
        return
    if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head[:4096]:
        raise UserError(f"{file} is not UTF-8 text (UTF-16 or binary); save it as UTF-8.")
    try:
        head[:-4].decode("utf-8") if len(head) == 1 << 24 else head.decode("utf-8")
    except UnicodeDecodeError as error:
        line = head[: error.start].count(b"\n") + 1
        if len(head) < 1 << 24 or error.start < len(head) - 8:  # else a character that the limit cut in two
            raise UserError(
                f"{file} is not UTF-8: byte 0x{head[error.start]:02x} in line {line}; save it as UTF-8 "
                "(for example `iconv -f latin1 -t utf-8`)."
            ) from error


def _suffix(path: Path) -> str:
    return (Path(path.stem) if path.suffix == ".gz" else path).suffix.lower()


def _format(path: Path) -> str:
    kind = FORMATS.get(_suffix(path), "")
    return "" if kind == "parquet" and path.suffix == ".gz" else kind


def _domain_name(spec: str) -> str:
    path = Path(spec).expanduser().absolute()
    name = path.name if path.exists() else Path(spec.split("@")[0].split(":")[0]).name
    return name.split(".")[0] or name


def _column(spec: str, dataset: Dataset, asked: str | None, usual: tuple[str, ...], role: str) -> str:
    columns = dataset.column_names
    if asked:
        if asked not in columns:
            raise UserError(f"{spec} has no column '{asked}' (--{role}_column){nearest(asked, columns)}; "
                            f"it has: {listed(columns)}.")  # fmt: skip
        return asked
    by_lower = {column.lower(): column for column in columns}
    for name in usual:
        if name in by_lower:
            return by_lower[name]
    if role == "text":
        strings = [c for c in columns if getattr(dataset.features[c], "dtype", "") in ("string", "large_string")]
        if len(strings) == 1:
            return strings[0]
    raise UserError(f"{spec}: no column is obviously the {role}; name it with --{role}_column. "
                    f"It has: {listed(columns)}.")  # fmt: skip


def _text_column(spec: str, dataset: Dataset, asked: str | None) -> str:
    import datasets

    name = _column(spec, dataset, asked, TEXT_COLUMNS, "text")
    if not isinstance(dataset.features[name], (datasets.Value, datasets.ClassLabel, datasets.Json)):
        raise UserError(f"{spec}: column '{name}' holds lists or objects, plain text is needed; set --text_column.")
    return name


def _texts(spec: str, dataset: Dataset, column: str) -> Dataset:
    """Return the column as `text`, memory-mapped strings; what is no text at all is None."""
    import datasets

    kind = datasets.Features({"text": datasets.Value("string")})
    if dataset.features[column] == kind["text"]:
        return dataset.select_columns(column).rename_columns({column: "text"} if column != "text" else {})

    def strings(batch: dict[str, list[Any]]) -> dict[str, list[str | None]]:
        values = batch[column]
        if any(isinstance(v, (list, dict)) for v in values):
            raise UserError(f"{spec}: column '{column}' holds lists or objects, plain text is needed; set "
                            "--text_column.")  # fmt: skip
        return {"text": [None if v is None or v != v else str(v) for v in values]}

    from hf_transfer.features import cache_folder, cache_key, table_key

    # beside our other files: by default the result would be written beside the user's data
    file = cache_folder() / f"texts-{cache_key(table_key(dataset, [column]))}.arrow"
    return dataset.map(
        strings, batched=True, remove_columns=dataset.column_names, features=kind, cache_file_name=str(file)
    )


def _distinct(dataset: Dataset, column: str) -> tuple[list[Any], np.ndarray]:
    """Return the distinct values of a column, and which of them each row has; -1 where it has none."""
    import datasets

    if isinstance(dataset.features[column], (datasets.Value, datasets.ClassLabel)):
        values = dataset.select_columns(column).with_format("arrow")[:][column]
        coded = values.combine_chunks().dictionary_encode()
        return coded.dictionary.to_pylist(), coded.indices.fill_null(-1).to_numpy()
    places: dict[str, int] = {}  # lists, or JSON of mixed types: 1 and "1" are two values
    values = dataset[column][:]
    codes = [-1 if v is None else places.setdefault(repr(v), len(places)) for v in values]
    first = {code: value for code, value in zip(reversed(codes), reversed(values), strict=True)}
    return [first[i] for i in range(len(places))], np.array(codes)


def _named(names: list[str | None], codes: np.ndarray) -> pd.Series:
    """Return the name of each row; missing where it has none."""
    import pandas as pd

    return pd.Series(pd.array(names, dtype="str").take(codes, allow_fill=True))


def _domains(spec: str, dataset: Dataset, column: str) -> pd.Series:
    distinct, codes = _distinct(dataset, _column(spec, dataset, column, (), "domain"))
    return _named([str(value) for value in distinct], codes).fillna("None")


def _label_names(spec: str, dataset: Dataset, column: str) -> pd.Series:
    """Labels as their names: ClassLabel names, `true`/`false`, whole numbers without `.0`, stripped text."""
    feature, (values, codes) = dataset.features[column], _distinct(dataset, column)
    if hasattr(feature, "int2str"):
        return _named([None if v < 0 else feature.int2str(v) for v in values], codes)
    if any(isinstance(v, (list, dict)) for v in values):
        raise UserError(f"{spec}: column '{column}' holds lists, one label a row is needed; set --label_column.")
    names = [None if v != v or not str(v).strip() else str(v).strip() for v in values]
    present = [name for name in names if name is not None]
    if {name.lower() for name in present} <= {"true", "false"}:
        names = [None if n is None else n.lower() for n in names]
    elif present and all(re.fullmatch(r"-?\d+(\.\d+)?", n) for n in present):
        if any(float(n) != int(float(n)) for n in present):
            fraction = next(n for n in present if float(n) != int(float(n)))
            raise UserError(f"{spec}: column '{column}' holds fractions such as {fraction}; classes are needed "
                            "(whole numbers or names).")  # fmt: skip
        names = [None if n is None else str(int(float(n))) for n in names]
    return _named(names, codes)


def _splits(spec: str, dataset: Dataset) -> pd.Series:
    values, codes = _distinct(dataset, "split")
    same = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
            "val": "validation", "dev": "validation", "test": "test"}  # fmt: skip
    unknown = {str(v) for v in values if str(v).lower() not in same} | ({"None"} if (codes < 0).any() else set())
    if unknown:
        raise UserError(f"{spec}: column 'split' holds {listed(sorted(unknown), 3)}; use train, validation and "
                        "test, or rename the column.")  # fmt: skip
    return _named([same[str(v).lower()] for v in values], codes)


def _draw(
    texts: Dataset, columns: dict[str, pd.Series], name: str, most: int | None, *, quiet: bool
) -> tuple[np.ndarray, dict[str, str]]:
    """Return the positions of the rows to read, and what to say of each domain that has more than `most`."""
    import pandas as pd

    places, drawn = np.arange(len(texts)), dict[str, str]()
    if most is None or len(texts) <= most:
        return places, drawn
    # codes in the order of the names; -1 where there is no label
    codes = {role: pd.factorize(columns[role], sort=True) if role in columns else (np.zeros_like(places), [name])
             for role in ("domain", "label", "split")}  # fmt: skip
    groups = pd.DataFrame({role: numbers for role, (numbers, _) in codes.items()}).groupby([*codes])
    quotas = groups.size()
    sizes = quotas.groupby(level="domain").sum()
    for domain, size in sizes[sizes > most].items():
        drawn[str(codes["domain"][1][domain])] = f"--max_rows {most} reads {most:,} of its {size:,} rows"
        table = quotas[domain].unstack("split", fill_value=0)
        quota = pd.DataFrame(_quotas(table.to_numpy(), table.index < 0, most), table.index, table.columns)
        quotas[domain] = quota.stack()[quotas[domain].index]
    if not drawn:
        return places, drawn
    cells = groups.ngroup().to_numpy()
    return places[random_ranks(texts, cells, quiet=quiet) < quotas.to_numpy()[cells]], drawn


def _quotas(counts: np.ndarray, unlabelled: np.ndarray, most: int) -> np.ndarray:
    """Return how many rows are drawn of each label and split, `most` in all, by largest remainders.

    Every label is drawn at least once where `most` allows. Rows without a label are rounded down: one of few rows would
    be over the share that may be missing.

    Args:
        counts: (labels, splits) rows that there are.
        unlabelled: (labels,) whether its rows have none.
        most: fewer than there are.
    """
    of_label, total = counts.sum(axis=1), counts.sum()
    quotas = of_label * most // total
    remainders = np.where(unlabelled, -1, of_label * most % total)
    quotas[np.argsort(-remainders, kind="stable")[: most - quotas.sum()]] += 1
    if (~unlabelled).sum() <= quotas[~unlabelled].sum():
        for label in np.flatnonzero(~unlabelled & (quotas == 0)):
            over = np.where(unlabelled | (quotas < 2), -np.inf, quotas - of_label * most / total)
            quotas[[label, over.argmax()]] += 1, -1
    out, owed = np.zeros_like(counts), np.zeros(counts.shape[1])
    for label in np.flatnonzero(quotas):  # what rounding gives a split too little, later labels make up for
        out[label] = counts[label] * quotas[label] // of_label[label]
        owed += counts[label] * most / total - out[label]
        first = np.argsort(np.where(out[label] < counts[label], -owed, np.inf), kind="stable")
        rounded_up = first[: quotas[label] - out[label].sum()]
        out[label, rounded_up] += 1
        owed[rounded_up] -= 1
    return out


def _drop_missing(spec: str, rows: pd.DataFrame, problems: list[str]) -> tuple[pd.DataFrame, list[str]]:
    notes = []
    for column, what in (("text", "an empty text"), ("label", "no label")):
        if column == "label" and column not in rows:
            continue
        missing = rows["label"].isna() if column == "label" else rows["words"] == 0
        if (share := missing.mean()) > MISSING_LIMIT:
            problems.append(
                f"{spec}: {missing.sum()} of {len(rows)} rows have {what} ({share:.0%}, over {MISSING_LIMIT:.0%}); "
                f"check --{column}_column or remove those rows."
            )
        elif missing.any():
            notes.append(f"dropped {missing.sum()} of {len(rows)} rows with {what}")
            rows = rows[~missing]
    return rows.reset_index(drop=True), notes


def _line(error: BaseException | str) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:200] + ("..." if len(text) > 200 else "") + ("" if text.endswith(".") else ".")
