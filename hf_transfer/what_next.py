"""What to do for the target next: which of its texts to label, and what further labels would likely buy."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.begin import encode_rows
from hf_transfer.candidates import learned_keys, score_texts
from hf_transfer.features import frozen_copy, pooled_states
from hf_transfer.labelling import next_rows
from hf_transfer.learning_curve import best_possible, learning_curve
from hf_transfer.record import telling_layer
from hf_transfer.results import Run, write_atomically
from hf_transfer.statistics import metric
from hf_transfer.texts import text_facts

if TYPE_CHECKING:
    from datasets import Dataset

    from hf_transfer.comparison import Comparison

TEXTS, SOURCE = 1000, 1000  # that are looked at, at most
FILE = "label_next.csv"


def what_next(job: Comparison, run: Run, recommended: float | None) -> dict[str, Any]:
    """Return texts worth labelling, also written as a table, and the gain that further labels would likely bring.

    No test row is looked at for either: the texts are of the target's unlabelled ones, and the gain is estimated from
    the labelled target rows that training may see. What bounds the gain is known from all labelled target rows.

    Args:
        job: a comparison; without unlabelled texts, or without such rows, what needs them is left out.
        run: of its best arm, which is unsure of some texts and not of others.
        recommended: score of the arm that is recommended; without one nothing is said of what further labels bring.

    Returns:
        `texts`, `expected` (see `learning_curve`) and, where anything is expected, its `bound`: the score `now`, the
        `best` that labels allow, the rows whose text others have (`repeated`), by which that is known, and the `room`.
    """
    rng = np.random.default_rng(job.arguments.train.seed)
    out: dict[str, Any] = {"texts": _texts(job, run, rng), "expected": [], "bound": None}
    if recommended is not None:
        bound = _bound(job, recommended)
        if expected := _expected(job, rng, bound["room"]):
            out |= {"expected": expected, "bound": bound}
    return out


def _sample(rows: Dataset, most: int, rng: np.random.Generator) -> Dataset:
    return rows.select(np.sort(rng.permutation(len(rows))[:most]))


def _features(job: Comparison, rows: Dataset) -> np.ndarray:
    """Return the mean of each text's token states in the pretrained encoder, (rows, hidden), cached.

    They are those of the layer for which benchmarks/labelling.py has tried both what they are used for.
    """
    loaded = job.setup.loaded
    encoded, _ = encode_rows(rows, ["text"], loaded, job.task, job.arguments.data.max_length)
    trunk = frozen_copy(loaded.model, job.setup.precision)
    return pooled_states(trunk, encoded, job.setup.collator)[:, telling_layer(loaded.model)]


def _texts(job: Comparison, run: Run, rng: np.random.Generator) -> list[dict[str, Any]]:
    import pandas as pd

    if job.domains.unlabeled is None:
        return []
    rows = job.domains.unlabeled
    known = np.isin(text_facts(rows)["key"], learned_keys(job.domains))
    rows = _sample(rows.select(np.flatnonzero(~known)), TEXTS, rng)
    if not len(rows):
        return []
    names = job.domains.label_names
    outputs, _ = score_texts([run], [rows["text"][:]], names, quiet=True)
    (probabilities,) = outputs[0]
    chosen = next_rows(np.log(np.clip(probabilities, 1e-9, 1)), _features(job, rows), seed=job.arguments.train.seed)
    texts, numbers = rows["text"][:], rows["row"][:]
    table = [
        {"row": int(numbers[i]), "guess": names[int(probabilities[i].argmax())],
         "confidence": round(float(probabilities[i].max()), 4), "text": texts[i]}
        for i in chosen
    ]  # fmt: skip
    write_atomically(job.folder / FILE, pd.DataFrame(table).to_csv(index=False))
    return table


def _bound(job: Comparison, recommended: float) -> dict[str, Any]:
    """Return what bounds a gain over the recommended arm's score."""
    target, contents, labels = job.domains.facts["target"], [], []
    for rows in (job.domains.train, job.domains.validation, job.domains.target_test):
        own = rows.select(np.flatnonzero(np.array(rows["domain"][:]) == target))
        contents.append(text_facts(own)["content"])
        labels.append(np.array(own["label"][:], dtype=int))
    by = metric.load(job.setup.metric, job.domains.label_names)
    best, repeated = best_possible(np.concatenate(contents), np.concatenate(labels), by)
    return {"now": recommended, "best": best, "repeated": repeated, "room": max(0.0, best - recommended)}


def _expected(job: Comparison, rng: np.random.Generator, room: float) -> list[dict[str, Any]]:
    train = job.domains.train
    own = np.array(train["domain"][:]) == job.domains.facts["target"]
    if not own.any() or own.all():
        return []
    shots, source = train.select(np.flatnonzero(own)), _sample(train.select(np.flatnonzero(~own)), SOURCE, rng)
    found = learning_curve(
        _features(job, source), np.array(source["label"][:]), _features(job, shots), np.array(shots["label"][:]),
        by=metric.load(job.setup.metric, job.domains.label_names), seed=job.arguments.train.seed, room=room,
    )  # fmt: skip
    return [asdict(one) for one in found]
