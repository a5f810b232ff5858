"""Rewrite source texts toward the target: the source's own words are masked and filled in by a model of target text.

In the manner of Calderon et al. 2022 (arXiv:2202.12350), with a masked language model in place of their generator.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from hf_transfer.diagnostics.vocabulary import log_odds, words
from hf_transfer.models import Loaded, longest_input
from hf_transfer.objectives import mlm

# a word is the source's own beyond this z-score, where the target has it at most this share as often: "was" or "we"
# may differ beyond doubt, but only a little
OWN, RARE = 3.0, 0.25
MASKED = 0.3  # of a text's words at most: filling in needs something to go by
BATCH = 32
FEW_WORDS = 50  # put in, that say nothing of a model


def own_words(source: list[str], target: list[str]) -> dict[str, float]:
    """Return the words that the source uses far more than the target, with the z-scores of their log-odds ratios."""
    ours, theirs = (Counter(word for text in texts for word in words(text)) for texts in (source, target))
    rare = RARE * theirs.total() / max(1, ours.total())
    return {word: -z for word, z in log_odds(ours, theirs).items() if z < -OWN and theirs[word] <= rare * ours[word]}


def places(text: str, own: dict[str, float]) -> list[re.Match[str]]:
    """Return where `text` holds words of `own`: in order, of too many the most typical ones, no part of `wasn't`."""
    found = list(re.finditer(r"\w+(?:['\u2019]\w+)*", text))
    mine = sorted((one for one in found if one[0].lower() in own), key=lambda one: -own[one[0].lower()])
    return sorted(mine[: int(MASKED * len(found))], key=lambda one: one.start())


def rewrite(texts: list[str], own: dict[str, float], loaded: Loaded, *, quiet: bool = True) -> list[str]:
    """Return `texts` with the words of `own` replaced by the likeliest whole words that are none of them.

    All words of a text are filled in at once. What lies beyond the model's longest input stays as it is.

    Args:
        texts: of the source.
        own: see `own_words`.
        loaded: a masked language model of the target's text.
        quiet: no progress bar.
    """
    mask = loaded.tokenizer.mask_token
    where = [[] if mask in text else places(text, own) for text in texts]  # its own masks could not be told from ours
    order = sorted((i for i in range(len(texts)) if where[i]), key=lambda i: len(texts[i]))
    allowed = _words_beside(own, loaded.tokenizer)
    out = list(texts)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = loaded.model.to(device).eval()
    with torch.inference_mode(), tqdm(desc="rewrite", total=len(order), unit="text", disable=quiet, leave=False) as bar:
        for begin in range(0, len(order), BATCH):
            rows = order[begin : begin + BATCH]
            masked = [_replaced(texts[i], where[i], [mask] * len(where[i])) for i in rows]
            inputs = loaded.tokenizer(
                masked, truncation=True, max_length=longest_input(loaded), padding=True, return_tensors="pt"
            ).to(device)
            scored = inputs["input_ids"] == loaded.tokenizer.mask_token_id
            scores = mlm.logits(model, scored, **inputs).float().cpu()
            scores[:, ~allowed] = -torch.inf
            filled = [word.strip() for word in loaded.tokenizer.batch_decode(scores.argmax(-1)[:, None])]
            ends = np.cumsum(scored.sum(1).cpu().numpy())
            for i, found in zip(rows, np.split(np.array(filled, dtype=object), ends[:-1]), strict=True):
                out[i] = _replaced(texts[i], where[i][: len(found)], list(found))
            bar.update(len(rows))
    return out


def _words_beside(own: dict[str, float], tokenizer: Any) -> torch.Tensor:
    """Mark the tokens (vocabulary,) that are whole words, but none of `own`."""
    decoded = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    special = set(tokenizer.all_special_tokens)
    return torch.tensor(
        [re.fullmatch(r"\s*\w+", one) is not None and one not in special and one.strip().lower() not in own
         for one in decoded]
    )  # fmt: skip


def _replaced(text: str, where: list[re.Match[str]], by: list[str]) -> str:
    for one, word in reversed(list(zip(where, by, strict=True))):
        text = text[: one.start()] + word + text[one.end() :]
    return text


def most_put_in(before: list[str], after: list[str]) -> tuple[str, float]:
    """Return the word that rewriting put in most often, and its share of all that it put in; 0 where these are few."""
    put = Counter(
        new.lower().strip(".,;:!?")
        for one, other in zip(before, after, strict=True)
        for old, new in zip(one.split(), other.split(), strict=False)
        if new != old
    )
    (word, count), *_ = put.most_common(1) or [("", 0)]
    return word, count / put.total() if put.total() >= FEW_WORDS else 0.0
