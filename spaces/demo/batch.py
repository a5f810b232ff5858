"""Label a CSV file row by row, with flat memory: checked whole first, then scored and written chunk by chunk."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from models import Model

ROWS = 100_000
MEGABYTES = 100
COLUMNS = 1_000
CELL = 100_000  # characters
ROW = 1_000_000  # characters
CHUNK = 512  # rows in memory, at most
MEMORY = 500_000  # bytes of a chunk about, after which it ends; tokens take far more
ADDED = ("prediction", "confidence")
TEXT_COLUMNS = ("text", "sentence", "review", "content", "body", "comment", "message", "document", "review_text",
                "review_body", "reviewtext", "tweet")  # fmt: skip
FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # the last four: full-width, which some spreadsheets take too
NUMBER = re.compile(r"[-+]?(\d+([.,]\d+)*|[.,]\d+)([eE][-+]?\d+)? ?%?")


class Unreadable(Exception):
    """A file that can't be taken; the message says why and what to change."""


@dataclass
class Table:
    """A CSV file that was read once from end to end without trouble.

    Attributes:
        file, encoding, delimiter: how to read it again.
        header: its column names.
        rows: how many follow.
        text: position of the text column.
    """

    file: Path
    encoding: str
    delimiter: str
    header: list[str]
    rows: int
    text: int

    def __iter__(self) -> Iterator[list[str]]:
        """Give every row after the header."""
        lines = _read(self.file, self.encoding, self.delimiter)
        next(lines)
        return (row for _, row in lines)


def check(file: Path, column: str = "") -> Table:
    """Read `file` (.csv or .tsv) from end to end and find the column with the text; guessed where not given.

    Raises:
        Unreadable: too large, not UTF-8, malformed, too many rows, or no such column.
    """
    if file.suffix.lower() not in (".csv", ".tsv"):
        raise Unreadable(f"{file.name} is neither .csv nor .tsv; save the table as CSV (UTF-8).")
    if (size := file.stat().st_size / 1e6) > MEGABYTES:
        raise Unreadable(f"The file has {size:.0f} MB, more than the {MEGABYTES} MB allowed here; split it.")
    with file.open("rb") as stream:
        start = stream.read(1 << 16)
    encoding = "utf-8-sig" if start.startswith(b"\xef\xbb\xbf") else "utf-8"
    first = start.split(b"\n", 1)[0].decode(encoding, errors="replace")
    delimiter = "\t" if file.suffix.lower() == ".tsv" else max(",;\t", key=first.count)  # spreadsheets save all three
    lines = _read(file, encoding, delimiter)
    _, header = next(lines, (0, []))
    if not any(name.strip() for name in header):
        raise Unreadable("The file is empty, or its first line is; it needs a line with column names.")
    if len(header) > COLUMNS:
        raise Unreadable(f"There are {len(header):,} columns; at most {COLUMNS:,} are taken: leave some out.")
    if clash := [name for name in header if name.strip().lower() in ADDED]:
        raise Unreadable(f"There is a column '{clash[0]}' already; rename it, as one of that name is added.")
    text = _text_column(header, column.strip())
    rows = 0
    for line, row in lines:
        rows += 1
        if len(row) != len(header):
            raise Unreadable(f"The row that ends in line {line} has {len(row)} cells, the first line has "
                             f"{len(header)}; is a text with commas or line breaks not in quotes?")  # fmt: skip
        if rows > ROWS:
            raise Unreadable(f"There are more than {ROWS:,} rows, the most allowed here; split the file.")
    if not rows:
        raise Unreadable("The file has column names but no rows.")
    return Table(file, encoding, delimiter, header, rows, text)


def score(table: Table, model: Model, output: Path) -> Iterator[int]:
    """Write the rows of `table` with `prediction` and `confidence` to `output`, in order; gives the rows done so far.

    A row without text keeps its place, with no prediction. No cell can run as a formula in a spreadsheet.
    """
    with output.open("w", encoding=table.encoding, newline="") as stream:
        writer = csv.writer(stream, delimiter=table.delimiter)
        writer.writerow(map(harmless, [*table.header, *ADDED]))
        done = 0
        for rows in _chunks(table):
            where = [i for i, row in enumerate(rows) if row[table.text].strip()]
            answers = dict(zip(where, model.predict_many([rows[i][table.text] for i in where]), strict=True))
            for i, row in enumerate(rows):
                label, confidence = answers.get(i, ("", None))
                last = "" if confidence is None else f"{confidence:.6f}"
                writer.writerow([*map(harmless, row), harmless(label), last])
            done += len(rows)
            yield done


def harmless(cell: str) -> str:
    """Put a ' before what a spreadsheet would run as a formula; numbers stay as they are."""
    risky = cell.startswith(("\t", "\r", "\n")) or cell.lstrip().startswith(FORMULA)
    return f"'{cell}" if risky and not NUMBER.fullmatch(cell) else cell


def _text_column(header: list[str], wanted: str) -> int:
    names = [name.strip() for name in header]
    if wanted:
        if names.count(wanted) == 1:
            return names.index(wanted)
        problem = f"{names.count(wanted) or 'no'} columns '{wanted}'"
    else:
        found = [i for name in TEXT_COLUMNS for i, other in enumerate(names) if other.lower() == name]
        if found or len(names) == 1:
            return (found or [0])[0]
        problem = "no column that is surely the text"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    raise Unreadable(f"There is {problem}; give the name of one of: {shown}.")


def _read(file: Path, encoding: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Give each row with the number of its last line; a blank line counts only where it is an empty text."""
    csv.field_size_limit(CELL)
    with file.open(encoding=encoding, newline="") as stream:
        lines = _Lines(stream)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        single = None
        try:
            for row in reader:
                lines.left = ROW
                single = len(row) == 1 if single is None else single
                if row or single:
                    yield lines.number, row or [""]
        except UnicodeDecodeError as error:
            raise Unreadable("The file is not UTF-8; save it as 'CSV UTF-8' (in a spreadsheet: Save as).") from error
        except csv.Error as error:
            raise Unreadable(f"Line {lines.number} can't be read as CSV ({error}).") from error


class _Lines:
    """The lines of `stream`, as long as they have no more than `left` characters together; `number` is the last's."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.left, self.number = stream, ROW, 0

    def __iter__(self) -> Iterator[str]:
        while line := self.stream.readline(self.left + 1):
            self.number += 1
            self.left -= len(line)
            if self.left < 0:
                raise csv.Error(f"its row has more than {ROW:,} characters")
            if "\0" in line:
                raise csv.Error("it has a NUL byte, as in a damaged or binary file")
            yield line


def _chunks(rows: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    chunk, size = [], 0
    for row in rows:
        chunk.append(row)
        size += sum(50 + len(cell) for cell in row)  # 50: what an empty one takes
        if len(chunk) == CHUNK or size > MEMORY:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
