"""An attention-pooling head on frozen token states, and its exact form as one standard transformer layer.

The head is `logits = b + sum_p W_p pool_p(x)`, where each pool is a softmax-weighted mean over the tokens,
`pool_p = sum_t softmax_t(q_p . x_t) x_t`, and the last pool has q = 0: the plain mean. A self-attention layer whose
queries are constants computes just that at every position, so plain transformers can load the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from hf_transfer.features import TokenStates

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hf_transfer.feature_maps import Affine

BATCH = 64
POOLS = 4  # more bring nothing
STEPS = (300, 3000)  # at least, at most; ten epochs in between
TOKEN_DROPOUT = 0.3
# outputs of the exported layer: logits times SCALE drown the residual; anchors of ANCHOR fix the LayerNorm's scale.
# The product stays below float16's 65504.
SCALE, ANCHOR = 1e3, 30.0
SMALL = 1e-3  # tanh is the identity for SMALL * logits


class AttentionPool(nn.Module):
    """Attention pooling and a linear layer on standardised token states.

    Args:
        mean, std: (hidden,) of the token states.
        classes: number of logits.
        pools: number of pools, the plain mean included.
        seed: of the first queries.
        dtype: to compute in; bfloat16 is three times as slow as float32 where the hardware doesn't multiply it.
    """

    def __init__(
        self, mean: torch.Tensor, std: torch.Tensor, classes: int, pools: int, seed: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.dtype = dtype
        generator = torch.Generator().manual_seed(seed)
        self.queries = nn.Parameter(0.02 * torch.randn(len(mean), pools - 1, generator=generator))
        self.weight = nn.Parameter(torch.zeros(pools, len(mean), classes))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, classes) of `states` (batch, tokens, hidden) under a boolean `mask`."""
        return _all_logits([self], states, mask)[0]


def _all_logits(heads: list[AttentionPool], states: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Return the logits of each of several heads, that differ in their parameters only, in one pass over `states`."""
    first = heads[0]
    states = states.to(first.dtype)
    queries = torch.cat([head.queries for head in heads], dim=1)
    scores = states @ (queries / first.std[:, None]).to(states.dtype)
    scores = functional.pad(scores.float(), (0, 1))  # the plain mean scores every token 0
    weights = scores.masked_fill(~mask[..., None], float("-inf")).softmax(dim=1)
    pooled = torch.bmm(weights.transpose(1, 2).to(states.dtype), states).float()
    pooled = (pooled - first.mean) / first.std
    *own, mean = pooled.split([*[head.queries.shape[1] for head in heads], 1], dim=1)
    return [
        torch.einsum("bph,phc->bc", torch.cat([part, mean], dim=1), head.weight) + head.bias
        for part, head in zip(own, heads, strict=True)
    ]


def fit_pools(
    states: TokenStates,
    labels: np.ndarray,
    rows: list[np.ndarray],
    *,
    classes: int,
    pools: int,
    weight_decays: list[float],
    class_weights: list[float] | None,
    seed: int,
    dtype: torch.dtype = torch.bfloat16,
    steps: int | None = None,
    sample_weights: np.ndarray | None = None,
) -> list[AttentionPool]:
    """Train AttentionPools side by side with AdamW and one learning-rate cycle: reading the states is most of the cost.

    Args:
        states: cached token states.
        labels: (rows,) class indices, in input order.
        rows: for each head, which positions of `states.order` to train on.
        classes: number of logits.
        pools: number of pools, the plain mean included.
        weight_decays: for each head, AdamW's; its regularisation.
        class_weights: one weight a class, or None.
        seed: of first weights, batch order and token dropout.
        dtype: to compute in.
        steps: optimiser steps; ten epochs within STEPS by default.
        sample_weights: (rows,) in input order, with mean 1, or None.
    """
    ordered = np.unique(np.concatenate(rows))
    learned = np.repeat(np.isin(np.arange(len(states.order)), ordered), states.lengths)
    total, mean, square = int(learned.sum()), torch.zeros(()), torch.zeros(())
    for part, own in zip(states.values.split(1 << 14), torch.from_numpy(learned).split(1 << 14), strict=True):
        mine = part[own].float()  # the scale is theirs that it learns from, whatever else was encoded
        mean, square = mean + mine.sum(0) / total, square + mine.square().sum(0) / total
    std = (square - mean.square()).clamp_min(1e-6).sqrt()
    heads = [AttentionPool(mean, std, classes, pools, seed, dtype) for _ in rows]
    groups: list[dict[str, Any]] = []
    for head, decay in zip(heads, weight_decays, strict=True):
        groups.append({"params": [head.queries], "lr": 1e-2, "weight_decay": decay})
        groups.append({"params": [head.weight, head.bias], "lr": 1e-3, "weight_decay": decay})
    optimizer = torch.optim.AdamW(groups)
    per_epoch = -(-len(ordered) // BATCH)
    steps = steps or int(np.clip(10 * per_epoch, *STEPS))
    rates = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.1)
    weight = torch.ones(classes) if class_weights is None else torch.tensor(class_weights)
    own_weight = torch.ones(len(labels)) if sample_weights is None else torch.from_numpy(sample_weights).float()
    member = torch.zeros(len(heads), len(states.order))
    for own, mine in zip(member, rows, strict=True):
        own[torch.from_numpy(mine)] = 1.0
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    for step in range(steps):
        if step % per_epoch == 0:
            shift = rng.integers(0, BATCH)  # other neighbours in every epoch, at no cost in padding
            cuts = [part for part in np.split(ordered, range(shift, len(ordered), BATCH)) if len(part)]
            order = rng.permutation(len(cuts))
        chosen = cuts[order[step % per_epoch % len(cuts)]]  # BATCH rows at most: one batch
        for batch, mask, index in states.batches(chosen, BATCH):
            kept = mask & (torch.rand(mask.shape, generator=generator) >= TOKEN_DROPOUT)
            kept[:, 0] = True
            target = torch.from_numpy(labels[index])
            loss = torch.zeros(())
            for logits, own in zip(_all_logits(heads, batch, kept), member, strict=True):
                counted = own[torch.from_numpy(chosen)] * weight[target]
                row_losses = own_weight[index] * functional.cross_entropy(logits, target, reduction="none")
                loss = loss + (counted * row_losses).sum() / counted.sum().clamp_min(1e-6)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return [head.eval() for head in heads]


@torch.inference_mode()
def pool_logits(model: AttentionPool, states: TokenStates, rows: np.ndarray) -> np.ndarray:
    """Return the logits of `rows` (positions in `states.order`), in the order of `np.sort(rows)`."""
    return np.concatenate([model(batch, mask).numpy() for batch, mask, _ in states.batches(rows, BATCH)])


def before(change: Affine, head: AttentionPool) -> AttentionPool:
    """Return the head whose logits of token states are those that `head` gives to their images under `change`."""
    matrix, shift = (torch.from_numpy(part).float() for part in (change.matrix, change.shift))
    queries, weight, bias = _raw(head)  # shift adds the same to a query's scores of all tokens: softmax drops it
    return _standardised(matrix @ queries, matrix @ weight, bias + (shift @ weight).sum(0), like=head)


def mixture(heads: list[AttentionPool], shares: np.ndarray) -> AttentionPool:
    """Return the head whose logits are the sum of those of `heads`, weighted by `shares`; the plain mean is shared."""
    queries, weights, biases = zip(*map(_raw, heads), strict=True)
    scaled = [share * weight for share, weight in zip(shares.tolist(), weights, strict=True)]
    weight = torch.cat([*(one[:-1] for one in scaled), sum(one[-1:] for one in scaled)])
    bias = sum(share * bias for share, bias in zip(shares.tolist(), biases, strict=True))
    return _standardised(torch.cat(queries, dim=1), weight, bias, like=heads[0])


@torch.no_grad()
def _raw(head: AttentionPool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries (hidden, pools - 1), weight (pools, hidden, classes) and bias, for states as they are."""
    weight = head.weight / head.std[:, None]
    return head.queries / head.std[:, None], weight, head.bias - (head.mean @ weight).sum(0)


def _standardised(
    queries: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, like: AttentionPool
) -> AttentionPool:
    """Return the head of `_raw`'s parameters on states standardised as those of `like`: small numbers stay exact."""
    head = AttentionPool(like.mean, like.std, len(bias), len(weight), 0, like.dtype)
    with torch.no_grad():
        head.queries.copy_(queries * like.std[:, None])
        head.weight.copy_(weight * like.std[:, None])
        head.bias.copy_(bias + (like.mean @ weight).sum(0))
    return head.eval()


def room_for(config: object, classes: int) -> int:
    """Return how many pools one attention layer of `config` can hold for `classes` logits; 0 if none."""
    heads, hidden = config.num_attention_heads, config.hidden_size  # type: ignore[attr-defined]
    if 2 * classes + 2 > hidden:
        return 0
    return heads // -(-classes // (hidden // heads))


# where each family keeps the parts of a post-LayerNorm layer, and its head on the first token
_BERT = {
    "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
    "out": "attention.output.dense", "norm": "attention.output.LayerNorm",
    "up": "intermediate.dense", "down": "output.dense", "last_norm": "output.LayerNorm",
}  # fmt: skip
_DISTILBERT = {
    "query": "attention.q_lin", "key": "attention.k_lin", "value": "attention.v_lin",
    "out": "attention.out_lin", "norm": "sa_layer_norm", "up": "ffn.lin1", "down": "ffn.lin2",
    "last_norm": "output_layer_norm",
}  # fmt: skip
FAMILIES = {
    "bert": (_BERT, "bert.pooler.dense", "classifier", "tanh"),
    "roberta": (_BERT, "classifier.dense", "classifier.out_proj", "tanh"),
    "xlm-roberta": (_BERT, "classifier.dense", "classifier.out_proj", "tanh"),
    "camembert": (_BERT, "classifier.dense", "classifier.out_proj", "tanh"),
    "distilbert": (_DISTILBERT, "pre_classifier", "classifier", "relu"),
}


@torch.no_grad()
def write_into(model: PreTrainedModel, pool: AttentionPool) -> None:
    """Overwrite the last layer and the head of `model` so that its logits are those of `pool` one layer below.

    Args:
        model: of a family in FAMILIES; its last layer is the one to overwrite.
        pool: trained on the output of the layer below.
    """
    from hf_transfer.models import layers

    parts, dense_name, final_name, activation = FAMILIES[model.config.model_type]
    layer = layers(model)[-1]
    at = {role: layer.get_submodule(name) for role, name in parts.items()}
    for role in ("query", "key", "value", "out", "up", "down"):
        at[role].weight.zero_()
        at[role].bias.zero_()
    for role in ("norm", "last_norm"):
        at[role].weight.fill_(1.0)
        at[role].bias.zero_()
    hidden, heads = model.config.hidden_size, model.config.num_attention_heads
    size = hidden // heads
    pools, _, classes = pool.weight.shape
    group = -(-classes // size)  # heads a pool needs to carry all logits
    for p in range(pools):
        for g in range(group):
            first = (p * group + g) * size
            if p < pools - 1:
                at["key"].weight[first] = pool.queries[:, p] / pool.std
                at["query"].bias[first] = size**0.5  # attention divides scores by this
            for c in range(g * size, min(classes, (g + 1) * size)):
                unit = first + c - g * size
                value = pool.weight[p, :, c] / pool.std
                at["value"].weight[unit] = value
                at["value"].bias[unit] = (pool.bias[c] if p == 0 else 0.0) - value @ pool.mean
                at["out"].weight[2 * c, unit] = SCALE
                at["out"].weight[2 * c + 1, unit] = -SCALE
    anchors = (hidden - 2 * classes) // 2 * 2
    signs = torch.tensor([1.0, -1.0]).repeat(anchors // 2)
    at["out"].bias[2 * classes : 2 * classes + anchors] = SCALE * ANCHOR * signs
    unscale = ANCHOR * (anchors / hidden) ** 0.5  # what the LayerNorm divides by, times SCALE
    dense, final = model.get_submodule(dense_name), model.get_submodule(final_name)
    for module in (dense, final):
        module.weight.zero_()
        module.bias.zero_()
    for c in range(classes):
        plus, minus = torch.zeros(hidden), torch.zeros(hidden)
        plus[2 * c], plus[2 * c + 1] = 0.5 * unscale, -0.5 * unscale
        minus = -plus
        if activation == "tanh":
            dense.weight[c] = SMALL * plus
            final.weight[c, c] = 1 / SMALL
        else:  # relu(z) - relu(-z) = z
            dense.weight[2 * c], dense.weight[2 * c + 1] = plus, minus
            final.weight[c, 2 * c], final.weight[c, 2 * c + 1] = 1.0, -1.0
