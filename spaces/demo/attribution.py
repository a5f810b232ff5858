"""The words that move a label: integrated gradients on the embeddings (Sundararajan et al. 2017, arXiv 1703.01365)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from evidence import plain

if TYPE_CHECKING:
    from models import Model

STEPS = (12, 48, 192)  # of the integral, as many as it takes and the text's length allows
CLOSE = 0.03  # the share of the difference that may be missing
PASS = 2048  # tokens in one backward pass, to bound its memory
MOST = 16_384  # tokens in the passes of more than the fewest steps, to bound the time
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
                lines.append(f"Most {title} **{plain(self.label)}**: {', '.join(map(plain, found))}.")
        if abs(self.difference) < 1e-3:
            lines.append("The words hardly move this label: a text of blanks gets nearly the same score.")
        else:
            share = 100 * (1 - self.missing / self.difference)
            lines.append(f"The weights add up to {share:.0f} % of the difference to a text of blanks "
                         f"(log-odds {self.difference:+.2f}).")  # fmt: skip
        return "  \n".join(lines)


def explain(model: Model, text: str) -> Explanation:
    """Attribute the label that `model` gives `text` to its words.

    The baseline is the same text with every token but the special ones replaced by the padding token. Both enter the
    network as embeddings: nothing is hooked into it, and others may use it meanwhile.
    """
    import numpy as np
    import torch

    encoding, _ = model.encode(text)
    inputs = model.tensors({name: [encoding[name]] for name in model.tokenizer.model_input_names if name in encoding})
    ids = inputs.pop("input_ids")
    special = torch.tensor([encoding["special_tokens_mask"]], device=ids.device).bool()
    layer = model.net.get_input_embeddings()

    def logits(rows: Any) -> Any:
        return model.net(
            inputs_embeds=rows, **{name: values.expand(len(rows), -1) for name, values in inputs.items()}
        ).logits

    def slopes(rows: Any) -> Any:
        rows.requires_grad_()
        return torch.autograd.grad(log_odds(logits(rows), target).sum(), rows)[0]

    with torch.no_grad():
        blank = layer(ids.where(special, torch.full_like(ids, _blank(model.tokenizer))))
        way = layer(ids) - blank
        ends = logits(torch.cat([blank, blank + way]))
    target = int(ends[1].argmax())
    difference = float(log_odds(ends, target).diff())
    for steps in STEPS:
        points, shares = (torch.tensor(values, dtype=way.dtype, device=way.device).view(-1, 1, 1)
                          for values in np.polynomial.legendre.leggauss(steps))  # fmt: skip
        slope = torch.zeros_like(way)
        for point, share in zip(*(values.split(max(1, PASS // ids.shape[1])) for values in (points, shares)),
                                strict=True):  # fmt: skip
            slope += (share / 2 * slopes(blank + (point + 1) / 2 * way)).sum(dim=0)  # quadrature is on -1..1
        scores = (way * slope)[0].float().sum(dim=-1)
        missing = difference - float(scores.sum())
        if abs(missing) <= CLOSE * abs(difference) or 4 * steps * ids.shape[1] > MOST:
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
