"""A few texts to click on, from those recorded with a run."""

from __future__ import annotations

import json
from pathlib import Path

COUNT = 4
LENGTH = (40, 320)  # characters that read well


def choose(file: Path, count: int = COUNT) -> list[str]:
    """Return up to `count` texts of a recorded.jsonl, short ones first choice, the labels in turn."""
    if not file.is_file():
        return []
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    short = [row for row in rows if LENGTH[0] <= len(row["text"]) <= LENGTH[1]]
    groups: dict[str, list[str]] = {}
    for row in short if len(short) >= count else rows:
        groups.setdefault(row["label"], []).append(row["text"])
    turns = [(turn, text) for texts in groups.values() for turn, text in enumerate(dict.fromkeys(texts))]
    return [text for _, text in sorted(turns, key=lambda pair: pair[0])[:count]]
