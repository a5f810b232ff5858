"""A linear probe in the last linear layer's own place, for architectures without an exact averaging layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.features import cache_key, cached_array, from_first_process, rows_key, weights_key
from hf_transfer.methods import NO_LABEL, Prepared, Setup, as_it_is

if TYPE_CHECKING:
    from datasets import Dataset


def probe_own_pooling(setup: Setup) -> Prepared:
    """Fit the model's last linear layer by logistic regression on what it reads, its strength by cross-validation."""
    import torch
    from sklearn.linear_model import LogisticRegressionCV

    model, classes = setup.loaded.model.eval().requires_grad_(False), setup.loaded.model.config.num_labels
    final = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == classes][-1]
    key = weights_key(model)
    labels, features = np.array(setup.train["labels"][:]), _probed(setup, setup.train, model, final, key)
    known = labels != NO_LABEL
    assert setup.sample_weights is None or known.all()
    probe = LogisticRegressionCV(
        Cs=[0.01, 0.1, 1.0, 10.0],
        cv=3,
        class_weight=None if setup.class_weights is None else dict(enumerate(setup.class_weights)),
        fit_intercept=final.bias is not None,
        max_iter=500,
        use_legacy_attributes=False,
        l1_ratios=(0.0,),
        scoring="neg_log_loss",
    ).fit(features[known], labels[known], sample_weight=setup.sample_weights)
    coefficients, intercept = torch.from_numpy(probe.coef_), torch.from_numpy(np.atleast_1d(probe.intercept_))
    if classes == 2:
        coefficients, intercept = torch.cat([-coefficients, coefficients]) / 2, torch.cat([-intercept, intercept]) / 2
    with torch.no_grad():
        final.weight.copy_(coefficients)
        if final.bias is not None:
            final.bias.copy_(intercept)

    def logits() -> tuple[np.ndarray, np.ndarray]:
        held_out = _probed(setup, setup.validation, model, final, key)
        return from_first_process(
            tuple((part @ coefficients.numpy().T + intercept.numpy()).astype("f4") for part in (features, held_out))
        )

    return Prepared(
        model,
        as_it_is,
        choices={
            "layer": model.config.num_hidden_layers,
            "C": float(probe.C_),
            "head_parameters": sum(p.numel() for p in final.parameters()),
        },
        logits=logits,
    )


def _probed(setup: Setup, rows: Dataset, model: Any, final: Any, key: str) -> np.ndarray:
    """Return what `final` reads of each of `rows`, (rows, features), from the cache under `key` if it is there."""
    import torch

    def compute() -> np.ndarray:
        seen: list[torch.Tensor] = []
        hook = final.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
        features = np.empty((len(rows), final.in_features), dtype=np.float32)
        inputs = rows.remove_columns("labels")
        order = np.argsort(rows["length"][:], kind="stable")
        with torch.inference_mode():
            for begin in range(0, len(order), 16):
                chosen = order[begin : begin + 16]
                batch = setup.collator([inputs[int(i)] for i in chosen]).to(model.device)
                model(**batch)
                value = seen.pop()
                if value.dim() == 3:  # decoders score every token and keep the last one's
                    last = batch["attention_mask"].cumsum(1).argmax(1)
                    value = value[torch.arange(len(chosen)), last]
                features[chosen] = value.float().cpu().numpy()
        hook.remove()
        return features

    if not len(rows):
        return np.empty((0, final.in_features), dtype=np.float32)
    return cached_array(f"probed-{cache_key(key, rows_key(rows))}", compute)
