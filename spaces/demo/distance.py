"""How far a text lies from the training domain, in words (Mahalanobis distance; Lee et al. 2018, arXiv 1807.03888)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evidence import plain
from models import whole

FEW = 10  # texts, of which no percentage is said


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
        self.held_out = int(facts["rows"])
        self.accuracy: list[dict[str, Any]] = json.loads(facts["accuracy"])

    def distance(self, state: Any) -> float:
        """Return how far a text is whose mean state of `layer` is `state` (h,)."""
        return float(((state - self.mean) @ self.whitening).norm())

    def percentile(self, distance: float) -> int:
        """Return the share of held-out training texts, in whole per cent, that lie nearer; 100 if all do."""
        return max(0, int((self.distances < distance).sum()) - 1)  # of 101 quantiles

    def words(self, distance: float) -> str:
        """Say in a sentence or two how usual a text at `distance` is, and how often such texts are labelled right."""
        share, among = self.percentile(distance), f"{self.held_out} held-out ones"
        if share == 100:
            name, place = "Outside", f"Farther from the training texts ({plain(self.source)}) than all of {among}"
        elif share >= 90:
            name, place = "Unusual", f"Farther from the training texts ({plain(self.source)}) than {share} % of {among}"
        else:
            name = "Typical"
            place = f"Closer to the training texts ({plain(self.source)}) than {100 - share} % of {among}"
        text = f"**{name}.** {place}."
        part = next((part for part in self.accuracy if part["from"] <= share < part["to"]), {"n": 0})
        if part["n"] < FEW:
            return f"{text} Too few test texts are as far away (n = {part['n']}) to say how often the label is right."
        return (f"{text} Of test texts about as far away, {100 * part['accuracy']:.0f} % (n = {part['n']}) were "
                "labelled correctly.")  # fmt: skip


def domain_of(folder: Path) -> Domain | None:
    """Return the training domain of the model in `folder`, None where it is not known."""
    file = folder / "domain.safetensors"
    if not file.is_file():
        return None
    with whole(file):
        domain = Domain(file)
        domain.words(domain.distance(domain.mean))  # whatever is missing is missed now
    return domain
