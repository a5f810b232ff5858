"""Frozen encoder: every text is encoded once; a head that pools tokens by attention is trained on the activations.

Layer (by cross-validation on training rows) and regularisation (on validation rows) need no target label. The trunk is
cut above the chosen layer, and the head becomes one more standard layer (see `pooling`), so the result is smaller than
the model it came from. With unlabelled target rows the head can learn from source states that were brought to the
target's (see `feature_maps`), and several sources can have a head each, mixed into one. Rows labelled NO_LABEL are
encoded with the others: whoever labels them by the head's logits and trains again has only heads to train.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer import __version__
from hf_transfer.errors import UserError
from hf_transfer.features import (
    TokenStates,
    cache_folder,
    cache_key,
    cached_array,
    cut,
    fits_on_disk,
    from_first_process,
    frozen_copy,
    rows_key,
    run_trunk,
    token_states,
    weights_key,
)
from hf_transfer.methods import NO_LABEL, Prepared, Setup, as_it_is
from hf_transfer.models import layers
from hf_transfer.probe import probe_own_pooling
from hf_transfer.similarity import source_shares
from hf_transfer.statistics import metric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datasets import Dataset

    from hf_transfer.pooling import AttentionPool

DEFAULTS: dict[str, Any] = {}
# layers are compared on this many rows, by the beginning of each text, with heads trained for so many steps
SUBSET, COMPARE_TOKENS, COMPARE_STEPS = 512, 128, 60
WEIGHT_DECAYS = (0.5, 5.0)
TARGET_ROWS = 2000  # unlabelled, at most: what a domain's states look like needs no more


@dataclass
class Arguments:
    """What the head is trained on."""

    frozen_layer: int | None = field(
        default=None, metadata={"help": "Layer whose activations are used, 1 is the lowest; default: chosen."}
    )
    feature_map: str | None = field(
        default=None, metadata={"help": "How source activations are brought to the target's (hf-transfer list)."}
    )
    mixture_of_sources: bool = field(
        default=False, metadata={"help": "Train a head for each source; the more a source is like the target, the more "
                                 "its head counts."}
    )  # fmt: skip


def prepare(setup: Setup, args: Arguments) -> Prepared:
    """Train the head on cached activations and write it into the model; nothing is left for the Trainer.

    Raises:
        UserError: a layer that the model does not have, too little disk for the activations, or a map or mixture
            without what it needs.
    """
    from hf_transfer import pooling

    model = setup.loaded.model
    depth = model.config.num_hidden_layers
    if args.frozen_layer is not None and not 1 <= args.frozen_layer <= depth:
        raise UserError(f"--frozen_layer is {args.frozen_layer}; the model has layers 1 to {depth}.")
    classes = model.config.num_labels
    target = _target_rows(setup, args)
    if model.config.model_type not in pooling.FAMILIES or not pooling.room_for(model.config, classes):
        if args.frozen_layer is not None or target is not None:
            given = "--frozen_layer" if target is None else "a feature map or mixture"
            raise UserError(f"{given} has no meaning for {model.config.model_type} models: their head reads the "
                            "last layer; leave it out.")  # fmt: skip
        return probe_own_pooling(setup)
    if not fits_on_disk(model, setup.train):
        raise UserError(f"the states of {len(setup.train):,} rows would fill the disk of {cache_folder()}; point "
                        "HF_TRANSFER_CACHE elsewhere, lower --max_rows, or use --method full.")  # fmt: skip
    from tqdm import tqdm

    labels = np.array(setup.train["labels"][:])
    trunk = frozen_copy(model, setup.precision)
    with tqdm(desc="encode", total=0, unit="text", disable=setup.quiet, leave=False) as bar:
        layer = args.frozen_layer
        by_layer: dict[str, float] = {}
        saved: list[float] = []
        if layer is None:
            by_layer, seconds = from_first_process(_choose_layer(setup, trunk, labels, bar))
            layer = int(max(by_layer, key=lambda name: by_layer[name]))
            saved.append(seconds)
        cut(trunk, layer)
        bar.reset(total=len(setup.train) + len(setup.validation) + (0 if target is None else len(target)))

        def encode(rows: Dataset) -> TokenStates:
            states = token_states(trunk, rows, setup.collator, bar)
            saved.append(states.saved_seconds)
            return states

        head, choices, logits = _train_heads(setup, args, trunk, target, bar, encode)
    cut(model, min(layer + 1, depth))
    if layer == depth:
        stack = layers(model)
        stack.append(copy.deepcopy(stack[-1]))
        model.config.num_hidden_layers += 1
    pooling.write_into(model, head)
    model.requires_grad_(False)
    choices = {
        "layer": layer,
        "head_parameters": sum(p.numel() for p in head.parameters()),
        **({"validation_score_by_layer": by_layer} if by_layer else {}),
        **({"cached_encoding_seconds": round(sum(saved), 3)} if any(saved) else {}),
        **choices,
    }
    return Prepared(model, as_it_is, choices=choices, settled={"frozen_layer": layer}, logits=logits, head=head)


def _target_rows(setup: Setup, args: Arguments) -> Dataset | None:
    """Return the unlabelled rows that the target is known by, or None where nobody asks for them."""
    if args.feature_map is None and not args.mixture_of_sources:
        return None
    flag = "--mixture_of_sources"
    if args.feature_map is not None:
        from hf_transfer import feature_maps

        feature_maps.load(args.feature_map)  # before anything is encoded
        flag = "--feature_map"
    if setup.unlabeled is None:
        raise UserError(f"{flag} needs the target's unlabelled texts; use recipe adapt_domain with --target_unlabeled.")
    if args.mixture_of_sources and len(set(setup.train_domains)) < 2:
        raise UserError(f"--mixture_of_sources needs two sources or more, got {', '.join(set(setup.train_domains))}; "
                        "name more after --source, or leave it out.")  # fmt: skip
    picked = np.random.default_rng(setup.seed).permutation(len(setup.unlabeled))[:TARGET_ROWS]
    return setup.unlabeled.select(np.sort(picked))


def _train_heads(
    setup: Setup,
    args: Arguments,
    trunk: Any,
    target: Dataset | None,
    bar: Any,
    encode: Callable[[Dataset], TokenStates],
) -> tuple[AttentionPool, dict[str, Any], Callable[[], Any] | None]:
    """Return one head, of all sources or mixed of those of each, what was decided for it, and `Prepared.logits`."""
    from hf_transfer import feature_maps, pooling

    parts = _by_source(setup) if args.mixture_of_sources else {"all": setup}
    room = pooling.room_for(trunk.config, setup.loaded.model.config.num_labels)
    pools = min(pooling.POOLS, 1 + (room - 1) // len(parts))  # heads that are mixed share the plain mean
    seen = None if target is None else feature_maps.row_means(encode(target))
    heads, notes, means = [], [], []
    for part in parts.values():
        bar.set_description("encode")
        states = encode(part.train)
        held_out = encode(part.validation) if len(part.validation) else None
        change = None
        if seen is not None:
            means.append(feature_maps.row_means(states))
        if args.feature_map:
            change = feature_maps.load(args.feature_map).fit(means[-1], seen)
            states = feature_maps.mapped(states, change.source)
            held_out = feature_maps.mapped(held_out, change.source) if held_out else None
        bar.set_description("head")
        head, note = _fit_head(part, states, held_out, pools)
        heads.append(head if change is None or change.target is None else pooling.before(change.target, head))
        notes.append(note)
    if seen is None:
        return heads[0], notes[0], partial(_all_logits, heads[0], states, held_out)
    if not args.mixture_of_sources:
        return heads[0], notes[0], None
    shares = source_shares(means, seen)
    for note, share in zip(notes, shares.tolist(), strict=True):
        note["share"] = round(share, 4)
    return pooling.mixture(heads, shares), {"sources": dict(zip(parts, notes, strict=True))}, None


def _all_logits(head: AttentionPool, *sets: TokenStates | None) -> tuple[np.ndarray, ...]:
    """Return the logits of every row of each of `sets`, in input order."""
    from hf_transfer import pooling

    none = np.empty((0, len(head.bias)), dtype=np.float32)
    found = [none if states is None else pooling.pool_logits(head, states, np.arange(len(states.order)))[states.place]
             for states in sets]  # fmt: skip
    return tuple(from_first_process(found))


def _by_source(setup: Setup) -> dict[str, Setup]:
    """Return a setup for each source, by its name.

    Raises:
        UserError: a source without rows of some label.
    """

    def of(name: str, rows: Dataset, domains: Sequence[str]) -> Dataset:
        return rows.select([i for i, domain in enumerate(domains) if domain == name])

    parts = {
        name: replace(
            setup,
            train=of(name, setup.train, setup.train_domains),
            validation=of(name, setup.validation, setup.validation_domains),
        )
        for name in sorted(set(setup.train_domains))
    }
    for name, part in parts.items():
        if len(set(part.train["labels"][:])) < setup.loaded.model.config.num_labels:
            raise UserError(f"--mixture_of_sources trains a head on each source, but {name} has not every label; leave "
                            "that source or the mixture out.")  # fmt: skip
    return parts


def _fit_head(
    setup: Setup, states: TokenStates, held_out: TokenStates | None, pools: int
) -> tuple[AttentionPool, dict[str, Any]]:
    """Train a head on all labelled rows of `states`, with the regularisation that serves others best, and say which.

    Args:
        setup: what the rows are.
        states: of its training rows.
        held_out: of its validation rows; without any, a fifth of the training rows are held out for a while.
        pools: how many the head has.
    """
    from hf_transfer import pooling

    labels = np.array(setup.train["labels"][:])
    fitted = everything = np.flatnonzero(labels[states.order] != NO_LABEL)
    if held_out is not None:
        held_out_labels = np.array(setup.validation["labels"][:])
        tested = np.arange(len(held_out.order))
    else:
        held_out, held_out_labels = states, labels
        fold = np.random.default_rng(setup.seed).permutation(everything)
        fitted, tested = fold[len(fold) // 5 :], fold[: len(fold) // 5]
    parts = [fitted] if fitted is everything else [fitted, everything]
    arms = [(rows, decay) for rows in parts for decay in WEIGHT_DECAYS]
    heads = pooling.fit_pools(
        states,
        labels,
        [rows for rows, _ in arms],
        classes=setup.loaded.model.config.num_labels,
        pools=pools,
        weight_decays=[decay for _, decay in arms],
        class_weights=setup.class_weights,
        sample_weights=setup.sample_weights,
        seed=setup.seed,
        dtype=_fast(setup),
    )
    scores = {}
    for decay, tried in zip(WEIGHT_DECAYS, heads, strict=False):
        logits = pooling.pool_logits(tried, held_out, tested)
        scores[decay] = _cross_entropy(logits, held_out_labels[held_out.order[np.sort(tested)]])
    best = from_first_process(min(scores, key=lambda decay: scores[decay]))
    head = heads[-len(WEIGHT_DECAYS) :][WEIGHT_DECAYS.index(best)]  # of all rows
    return head, {"weight_decay": best, "validation_loss": {str(d): round(score, 4) for d, score in scores.items()}}


def _choose_layer(setup: Setup, trunk: Any, labels: np.ndarray, bar: Any) -> tuple[dict[str, float], float]:
    """Return how good each layer is on a part of the training rows, and the seconds an earlier run spent to find that.

    It is in the cache: the same rows have the same layers, whatever is trained on them besides.
    """
    rng = np.random.default_rng(setup.seed)
    picked = np.sort(rng.permutation(np.flatnonzero(labels != NO_LABEL))[:SUBSET])
    subset = setup.train.select(picked).map(_beginning, keep_in_memory=True, load_from_cache_file=False)
    key = cache_key("layers", __version__, weights_key(trunk), rows_key(subset), labels[picked].tolist(), setup.seed,
                    setup.class_weights, setup.precision, setup.chosen_by)  # fmt: skip
    spent: list[float] = []

    def compute() -> np.ndarray:
        begin = time.perf_counter()
        scores = _score_by_layer(setup, trunk, subset, labels[picked], rng.permutation(len(picked)), bar)
        spent.append(time.perf_counter() - begin)
        return np.array([*scores, *spent])

    *scores, seconds = cached_array(f"layers-{key}", compute).tolist()
    return {str(i + 1): round(value, 4) for i, value in enumerate(scores)}, 0.0 if spent else seconds


def _score_by_layer(
    setup: Setup, trunk: Any, subset: Dataset, labels: np.ndarray, fold: np.ndarray, bar: Any
) -> list[float]:
    """Return the score, cross-validated in two halves of `fold`, of a quick pooling head on every layer."""
    import torch

    from hf_transfer import pooling

    bar.reset(total=len(subset))
    depth = trunk.config.num_hidden_layers
    parts: list[list[Any]] = [[] for _ in range(depth)]
    for _, mask, hidden in run_trunk(trunk, subset, setup.collator, bar):
        for layer in range(depth):
            parts[layer].append(hidden[layer + 1][mask].to(torch.bfloat16).cpu())
    lengths = np.array(subset["length"][:])
    order = np.argsort(-lengths, kind="stable")
    half = len(fold) // 2
    by = metric.load(setup.chosen_by or "accuracy", list(setup.loaded.model.config.id2label.values()))
    scores = []
    for layer in range(depth):
        bar.set_description(f"compare layer {layer + 1}")
        states = TokenStates(torch.cat(parts[layer]), lengths[order], order)
        parts[layer].clear()
        folds = [fold[:half], fold[half:]]
        heads = pooling.fit_pools(
            states,
            labels,
            folds[::-1],
            classes=trunk.config.num_labels,
            pools=2,
            weight_decays=[WEIGHT_DECAYS[-1]] * 2,
            class_weights=setup.class_weights,
            seed=setup.seed,
            dtype=_fast(setup),
            steps=COMPARE_STEPS,
        )
        answers, true = [], []
        for head, tested in zip(heads, folds, strict=True):
            answers.append(pooling.pool_logits(head, states, tested).argmax(1))
            true.append(labels[order[np.sort(tested)]])
        scores.append(by.score(np.concatenate(answers), np.concatenate(true)))
    return scores


def _beginning(row: dict[str, Any]) -> dict[str, Any]:
    lists = {name: value[:COMPARE_TOKENS] for name, value in row.items() if isinstance(value, list)}
    return {**lists, "length": min(row["length"], COMPARE_TOKENS)}


def _fast(setup: Setup) -> Any:
    import torch

    return torch.float32 if setup.precision == "fp32" else torch.bfloat16


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    import scipy.special

    return float(-scipy.special.log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())
