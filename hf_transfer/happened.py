"""What went another way in a run than was asked for: a few words for its name, and a sentence for report and card.

Recipes and `compare` note the facts in the run's `choices`; both texts are made of these.
"""

from __future__ import annotations

from typing import Any

from hf_transfer.results import STOPPED

# among `choices`: `round` that was dropped, the one `kept` before it, and the shares of held-out source rows that were
# right `before` and `after` it
DROPPED = "dropped_round"
EPOCHS = "epochs_by_budget"  # among `choices`: that it was trained for, and those that it would have had


def what_happened(choices: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (few words, sentence) of everything that went another way; empty for most runs."""
    out = []
    if dropped := choices.get(DROPPED):
        number, before, after = dropped["round"], 100 * dropped["before"], 100 * dropped["after"]
        sentence = (f"Round {number} of self-training had {after:.1f} % of the held-out source rows right, after "
                    f"{before:.1f} %, and was dropped: ")  # fmt: skip
        if dropped["kept"]:
            out.append((f"round {number} dropped", f"{sentence}the model is that of round {dropped['kept']}."))
        else:
            out.append(
                (
                    f"self-training dropped: round {number} was worse on the source",
                    f"{sentence}the model learned from the labelled rows alone, from no text of the target.",
                )
            )
    if stopped := choices.get(STOPPED):
        out.append((f"alignment stopped {stopped.split(';')[0]}", f"The alignment was stopped {stopped}."))
    if epochs := choices.get(EPOCHS):
        cut = f"{epochs[0]:g} of {epochs[1]:g} epochs"
        out.append(
            (f"{cut}, by the budget", f"It was trained for {cut}, for which the --budget of its comparison had time.")
        )
    return out
