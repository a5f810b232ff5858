"""What a finished run recorded of source rows that it did not learn from: the only labels a choice may look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_transfer.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from hf_transfer.results import Run

SETS = ("validation", "source_test")


@dataclass(frozen=True)
class HeldOut:
    """Labelled rows and what a run says of them.

    Attributes:
        probabilities: (rows, classes).
        labels: (rows,) class indices.
        texts: (rows,), or None where they are not at hand.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    texts: tuple[str, ...] | None = None

    @property
    def right(self) -> np.ndarray:
        """(rows,) whether each was labelled correctly."""
        return self.probabilities.argmax(axis=1) == self.labels


def held_out_rows(run: Run) -> pd.DataFrame:
    """Return the rows of the run's predictions.parquet that are of SETS and of a source.

    Raises:
        UserError: it can't be read.
    """
    import pandas as pd
    import pyarrow as pa

    file = run.folder / "predictions.parquet"
    try:
        frame = pd.read_parquet(file)
        return frame[frame["set"].isin(SETS) & (frame["domain"] != run.data["target"])]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{file} can't be read ({str(error)[:80]}); make the run again.") from error


def held_out(run: Run, label_names: list[str], texts: tuple[str, ...] | None = None) -> HeldOut:
    """Return what `run` recorded of its held-out source rows; maybe there are none.

    Args:
        run: finished.
        label_names: the run's, in the order that classes are to have.
        texts: of those rows, in their order.

    Raises:
        UserError: the record can't be read.
    """
    frame = held_out_rows(run)
    labels = frame["label"].map({name: i for i, name in enumerate(label_names)})
    probabilities = frame[[f"p_{name}" for name in label_names]]
    return HeldOut(probabilities.to_numpy(dtype=np.float64), labels.to_numpy(dtype=int), texts)
