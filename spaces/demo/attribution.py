"""The words that move a label: integrated gradients on the embeddings (Sundararajan et al. 2017, arXiv 1703.01365)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models import Model

STEPS = (12, 48, 192)  # of the integral, as many as it takes
CLOSE = 0.03  # the share of the difference that may be missing
TOKENS = 2048  # in one backward pass, to bound its memory
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # written without spaces: a character is a word here
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+(?:['\u2019-][^\W{CJK}]+)*|[^\w\s]")


@dataclass
class Explanation:
    """How each word moved the log-odds of a label, against a text of blanks.

    Attributes:
        label: the predicted one.
        pieces: (text, weight) in reading order, which together are the text; weight None between words and where the
            text was cut off.
        difference: log-odds of the label with the words, minus those without.
        missing: the part of `difference` that the weights do not add up to.
    """

    label: str
    pieces: list[tuple[str, float | None]]
    difference: float
    missing: float

    def shown(self) -> list[tuple[str, float | None]]:
        """Return `pieces` with weights from -1 to 1, the strongest word at an end."""
        largest = max((abs(weight) for _, weight in self.pieces if weight is not None), default=0.0) or 1.0
        return [(text, None if weight is None else round(weight / largest, 3)) for text, weight in self.pieces]

    def words(self) -> str:
        """Say which words count most, and how completely all of them add up."""
        ranked = sorted(((weight, text) for text, weight in self.pieces if weight), reverse=True)
        lines = []
        for title, chosen in (("for", ranked[:3]), ("against", ranked[::-1][:3])):
            found = [text for weight, text in chosen if (weight > 0) == (title == "for")]
            if found:
                lines.append(f"Most {title} **{self.label}**: {', '.join(_plain(word) for word in found)}.")
        if abs(self.difference) < 1e-3:
            lines.append("The words hardly move this label: a text of blanks gets nearly the same score.")
        else:
            share = 100 * (1 - self.missing / self.difference)
            lines.append(f"The weights add up to {share:.0f} % of the difference to a text of blanks "
                         f"(log-odds {self.difference:+.2f}).")  # fmt: skip
        return "  \n".join(lines)


def explain(model: Model, text: str) -> Explanation:
    """Attribute the label that `model` gives `text` to its words.

    The baseline is the same text with every token but the special ones replaced by the padding token.
    """
    import torch
    from captum.attr import LayerIntegratedGradients

    encoding, _ = model.encode(text)
    inputs = model.tensors({name: [encoding[name]] for name in model.tokenizer.model_input_names if name in encoding})
    ids = inputs.pop("input_ids")
    special = torch.tensor([encoding["special_tokens_mask"]], device=ids.device).bool()
    baseline = ids.where(special, torch.full_like(ids, _blank(model.tokenizer)))
    layer = model.net.get_input_embeddings()

    def forward(ids: Any, target: int) -> Any:
        rows = {name: values.expand(len(ids), -1) for name, values in inputs.items()}
        return log_odds(model.net(input_ids=ids, **rows).logits, target)

    with model.lock:
        with torch.no_grad():
            logits = model.net(input_ids=ids, **inputs).logits
            target = int(logits.argmax())
            # by embeddings: some models count positions by padding ids, and captum's own check would trip over that
            blank = model.net(inputs_embeds=layer(baseline), **inputs).logits
            difference = float(log_odds(logits, target) - log_odds(blank, target))
        for steps in STEPS:
            weights = LayerIntegratedGradients(forward, layer).attribute(
                ids, baseline, additional_forward_args=target, n_steps=steps,
                internal_batch_size=max(1, TOKENS // ids.shape[1]),
            )  # fmt: skip
            scores = weights[0].float().sum(dim=-1)
            missing = difference - float(scores.sum())
            if abs(missing) <= CLOSE * abs(difference):
                break
    pieces = _merge(text, encoding["offset_mapping"], scores.tolist(), encoding["special_tokens_mask"])
    return Explanation(model.labels[target], pieces, difference, missing)


def log_odds(logits: Any, target: int) -> Any:
    """Return the log-odds (rows,) of class `target` against all others; `logits` (rows, classes)."""
    import torch

    others = [i for i in range(logits.shape[-1]) if i != target]
    return logits[:, target] - torch.logsumexp(logits[:, others], dim=-1)


def _blank(tokenizer: Any) -> int:
    candidates = (tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id)
    return next((token for token in candidates if token is not None), 0)


def _merge(text: str, offsets: list[tuple[int, int]], scores: list[float], special: list[int]) -> list[Any]:
    """Give each word of `text` the sum of its tokens' scores; words that share a token are one."""
    pieces: list[list[Any]] = []  # begin, end, weight
    found = [match.span() for match in WORD.finditer(text)]
    tokens = [(begin, end, score) for (begin, end), score, mark in zip(offsets, scores, special, strict=True)
              if not mark]  # fmt: skip
    for begin, end in found:
        if pieces and any(first < pieces[-1][1] and last > begin for first, last, _ in tokens):
            pieces[-1][1] = end
        else:
            pieces.append([begin, end, None])
    at = 0
    for begin, _, score in tokens:
        while at + 1 < len(pieces) and pieces[at][1] <= begin:
            at += 1
        if pieces:
            pieces[at][2] = (pieces[at][2] or 0.0) + score
    out: list[tuple[str, float | None]] = []
    done = 0
    for begin, end, weight in pieces:
        if begin > done:
            out.append((text[done:begin], None))
        out.append((text[begin:end], weight))
        done = end
    return out + ([(text[done:], None)] if done < len(text) else [])


def _plain(word: str) -> str:
    """Return `word` such that Markdown and HTML show it as it is."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~<>&$-])", r"\\\1", word)
