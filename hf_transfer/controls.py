"""Controls that every arm must beat: the commonest training label, and TF-IDF with logistic regression."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_transfer.features import cache_folder, cache_key, table_key
from hf_transfer.results import write_atomically

if TYPE_CHECKING:
    from datasets import Dataset
    from sklearn.feature_extraction.text import TfidfVectorizer

    from hf_transfer.data import Domains
    from hf_transfer.resources import Meter

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)
CONSTANT, CONSTANT_NAME = "majority", "commonest training label"  # for every text
KINDS = (CONSTANT, "tfidf")
SETS = ("source_test", "target_test")
TEST_BATCH = 10_000
TFIDF_ROWS = 50_000  # of the training rows at most: on more it would take longer than the model, and gigabytes
FEWEST = 5  # rows of every label in such a part


@dataclass(frozen=True)
class Control:
    """A trained control's outputs and cost.

    Attributes:
        name: in words, with how much it learned from where that is not everything.
        logits: test set -> (rows, classes), in input order.
        seconds: to train it, tuning included.
        trainable_parameters: how many numbers it learned.
        peak_memory_mb: of the process meanwhile.
    """

    name: str
    logits: dict[str, np.ndarray]
    seconds: float
    trainable_parameters: int
    peak_memory_mb: int


def run_controls(domains: Domains, class_weights: list[float] | None, seed: int, meter: Meter) -> dict[str, Control]:
    """Train the controls on the training rows and apply them to the test sets, before any model is loaded.

    Runs on the same rows share them: their outputs are kept in the cache, with what they cost.

    Args:
        domains: the rows.
        class_weights: one weight a label, or None.
        seed: of the solver.
        meter: of the run; gets the stages `majority` and `tfidf`.
    """
    from safetensors import safe_open
    from safetensors.numpy import save

    sets = {name: rows for name in SETS if len(rows := getattr(domains, name))}
    used = [table_key(rows, ["text", "label"]) for rows in (domains.train, *sets.values())]
    key = cache_key(
        "controls",
        CONSTANT_NAME,
        used,
        list(sets),
        class_weights,
        seed,
        TFIDF_ROWS,
        importlib.metadata.version("scikit-learn"),
    )
    file = cache_folder() / f"controls-{key}.safetensors"
    if file.is_file():
        with safe_open(file, framework="np") as kept:
            return {name: Control(logits={which: kept.get_tensor(f"{name} {which}") for which in sets},
                                  **json.loads(kept.metadata()[name])) for name in KINDS}  # fmt: skip
    out = {}
    for name, train in zip(KINDS, (_majority, _tfidf), strict=True):
        with meter.stage(name):
            words, logits, parameters = train(domains, sets, class_weights, seed)
        out[name] = Control(words, logits, meter.seconds[name], parameters, meter.peak_memory // 2**20)
    arrays = {f"{name} {which}": values for name, control in out.items() for which, values in control.logits.items()}
    costs = {name: {k: v for k, v in vars(control).items() if k != "logits"} for name, control in out.items()}
    write_atomically(file, save(arrays, {name: json.dumps(cost) for name, cost in costs.items()}))
    return out


def word_features(**options: Any) -> TfidfVectorizer:
    """Return what makes TF-IDF features of words and word pairs; `options` are those of scikit-learn."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", **options)


def _majority(
    domains: Domains, sets: dict[str, Dataset], class_weights: list[float] | None, seed: int
) -> tuple[str, dict[str, np.ndarray], int]:
    """Log shares of the training labels, for every text: the label that a target has most of may be another one."""
    counts = np.bincount(domains.train["label"][:], minlength=len(domains.label_names))
    shares = np.log(counts / counts.sum() + 1e-9)
    logits = {name: np.tile(shares, (len(rows), 1)) for name, rows in sets.items()}
    return CONSTANT_NAME, logits, len(counts)


def _tfidf(
    domains: Domains, sets: dict[str, Dataset], class_weights: list[float] | None, seed: int
) -> tuple[str, dict[str, np.ndarray], int]:
    """Logistic regression on word and word-pair TF-IDF; its strength is chosen by 5-fold cross-validation.

    Of more than TFIDF_ROWS training rows it sees a random part.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    train = domains.train
    if len(train) > TFIDF_ROWS:
        order = np.random.default_rng(seed).permutation(len(train))
        shuffled = np.array(train["label"][:])[order]
        # some of every label first, also of the rarest
        few = [order[shuffled == label][:FEWEST] for label in range(len(domains.label_names))]
        chosen = np.concatenate([*few, order])
        _, first = np.unique(chosen, return_index=True)
        train = train.select(np.sort(chosen[np.sort(first)][:TFIDF_ROWS]))
    labels = np.array(train["label"][:])
    weight = None if class_weights is None else dict(enumerate(class_weights))
    vectorizer = word_features()
    features = vectorizer.fit_transform(train["text"])
    present, counts = np.unique(labels, return_counts=True)  # target rows alone may lack a label
    model = LogisticRegression(max_iter=300, class_weight=weight, random_state=seed)
    if (folds := int(min(5, counts.min()))) > 1:
        model = GridSearchCV(model, {"C": STRENGTHS}, cv=folds)
    model.fit(features, labels)
    logits = {}
    for name, rows in sets.items():
        parts = [model.predict_proba(vectorizer.transform(batch["text"])) for batch in rows.iter(TEST_BATCH)]
        probabilities = np.zeros((len(rows), len(domains.label_names)))
        probabilities[:, present] = np.concatenate(parts)
        logits[name] = np.log(np.clip(probabilities, 1e-9, 1.0))
    name = "TF-IDF + logistic regression"
    if len(train) < len(domains.train):
        name += f" on {len(train):,} rows"
    return name, logits, getattr(model, "best_estimator_", model).coef_.size
