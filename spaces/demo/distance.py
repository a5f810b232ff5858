"""How far a text lies from the training domain, in words (Mahalanobis distance; Lee et al. 2018, arXiv 1807.03888)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Domain:
    """The training texts as a model sees them, from domain.safetensors.

    Args:
        file: tensors `mean` (h,), `whitening` (h, h) and `distances` (101,), the 0..100 % quantiles of held-out texts.
    """

    def __init__(self, file: Path) -> None:
        from safetensors import safe_open

        with safe_open(file, framework="pt") as content:
            facts = content.metadata()
            self.mean, self.whitening, self.distances = map(content.get_tensor, ("mean", "whitening", "distances"))
        self.layer = int(facts["layer"])
        self.source = ", ".join(json.loads(facts["source"]))
        self.accuracy: list[dict[str, Any]] = json.loads(facts["accuracy"])

    def distance(self, state: Any) -> float:
        """Return how far a text is whose mean state of `layer` is `state` (h,)."""
        return float(((state - self.mean) @ self.whitening).norm())

    def percentile(self, distance: float) -> int:
        """Return the share of held-out training texts, in whole per cent, that lie nearer; 101 if all do."""
        nearer = int((self.distances < distance).sum())  # of 101 quantiles
        return 101 if nearer == len(self.distances) else max(0, min(99, nearer - 1))

    def words(self, distance: float) -> str:
        """Say in a sentence or two how usual a text at `distance` is, and how often such texts are labelled right."""
        share = self.percentile(distance)
        if share > 100:
            text = f"**Outside.** Farther from the training texts ({self.source}) than every held-out one of them"
        elif share >= 90:
            text = f"**Unusual.** Farther from the training texts ({self.source}) than {share} % of held-out ones"
        else:
            text = (f"**Typical.** Closer to the training texts ({self.source}) than {100 - share} % of held-out "
                    "ones")  # fmt: skip
        for part in self.accuracy:
            if part["from"] <= min(share, 100) < part["to"]:
                return (f"{text}. Of test texts about as far away, {100 * part['accuracy']:.0f} % (n = {part['n']}) "
                        "were labelled correctly.")  # fmt: skip
        return f"{text}."


def domain_of(folder: Path) -> Domain | None:
    """Return the training domain of the model in `folder`, None where it is not known."""
    file = folder / "domain.safetensors"
    return Domain(file) if file.is_file() else None
