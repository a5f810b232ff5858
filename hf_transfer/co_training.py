"""Co-training: a second opinion on pseudo-labels, by the words of the texts alone.

A classifier on words learns the source's labels and those that a model gave the target's texts, and is asked about
target texts that it did not learn from. It knows words of the target that the source lacks, and errs on other texts
than the model does, so that both together are right more often (Blum and Mitchell 1998, doi:10.1145/279943.279962).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

FOLDS = 5
MOST = 50_000  # target rows that one classifier learns from
LEAST = 1e-6  # probability


def with_words(
    probabilities: np.ndarray,
    texts: Sequence[str],
    source_texts: Sequence[str],
    source_labels: np.ndarray,
    seed: int,
    *,
    quiet: bool = True,
) -> np.ndarray:
    """Return `probabilities` (rows, classes) of a model's, corrected by what the words of the texts say.

    Log-odds are added up. Those of the words are brought to the spread of the model's, times their correlation with
    them: words that can't tell what the model says (of a language without spaces, say) have no say.

    Args:
        probabilities: of the target's texts.
        texts: of the target, distinct ones.
        source_texts: with known labels, some of every class.
        source_labels: (source rows,) class indices.
        seed: of the folds.
        quiet: no progress bar.
    """
    import scipy.special
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression
    from tqdm import tqdm

    from hf_transfer.controls import word_features

    try:
        features = word_features(min_df=2).fit([*source_texts, *texts])
    except ValueError:  # no word occurs twice
        return probabilities
    known, ours, given = features.transform(source_texts), features.transform(texts), probabilities.argmax(1)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(given))
    told = np.zeros_like(probabilities)
    for asked in tqdm(np.array_split(order, FOLDS), desc="words", unit="fold", disable=quiet, leave=False):
        learned = rng.permutation(np.setdiff1d(order, asked))[:MOST]
        classifier = LogisticRegression(C=10.0, max_iter=300, random_state=seed)
        classifier.fit(vstack([known, ours[learned]]), np.concatenate([source_labels, given[learned]]))
        told[asked] = classifier.predict_proba(ours[asked])
    own, words = (_centred(one) for one in (probabilities, told))
    spread = [float(one.std()) for one in (own, words)]
    if not all(spread):
        return probabilities
    say = max(0.0, float(np.corrcoef(own.ravel(), words.ravel())[0, 1])) * spread[0] / spread[1]
    return scipy.special.softmax(own + say * words, axis=1)


def _centred(probabilities: np.ndarray) -> np.ndarray:
    """Return log-probabilities less each row's mean of them."""
    logs = np.log(np.clip(probabilities, LEAST, 1.0))
    return logs - logs.mean(axis=1, keepdims=True)
