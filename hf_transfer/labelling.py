"""Which unlabelled rows to label next: those that the model is unsure of, and of those no two alike.

BADGE (Ash et al. 2020, arXiv 1906.03671) looks at the step that training would take for each row if the model's own
guess were its label. With probabilities p, the guess y = argmax p and features h, the gradient of the cross-entropy
with respect to a linear head's weights is

    g = (p - onehot(y)) outer h        (classes x hidden):   long where p is unsure, pointing where h points,

and rows are drawn one after the other by k-means++ (Arthur and Vassilvitskii 2007), each with a chance in proportion to
its squared distance to the nearest g that is there already. Of a few drawn candidates the one is kept that leaves the
least sum of squared distances, as scikit-learn's `kmeans_plusplus` does: a row like many others, not an odd one.

Two things differ from the paper. The origin counts as the first choice: a row whose g is 0 has nothing to teach, and
plain k-means++ would draw one as soon as any other row is in. And g is never built. The inner product factorises,

    <g, g'> = <p - onehot(y), p' - onehot(y')> <h, h'>,

which is why scikit-learn's function, that wants rows x (classes * hidden) numbers, isn't called.
"""

from __future__ import annotations

import numpy as np

SAME = 1e-5  # squared distance between two gradients, as a share of their own squares, that may be rounding


def next_rows(logits: np.ndarray, features: np.ndarray, count: int = 50, *, seed: int) -> np.ndarray:
    """Return which rows to label next, (min(count, rows),) positions in the order of choice.

    Any beginning of them is a choice too. Rows that have nothing to add come last, the least sure first. Of rows that
    are all alike two may be chosen early, one on each side of the decision: their gradients are opposite. It takes time
    in proportion to count * rows * (classes + hidden): 50 of 10,000 rows of 384 features well under a second.

    Args:
        logits: (rows, classes) of the unlabelled rows.
        features: (rows, hidden) what the model's head sees of them, or mean token states of its encoder.
        count: how many.
        seed: of the draws.

    Raises:
        ValueError: the shapes don't fit, or numbers are missing.
    """
    import scipy.special

    if logits.ndim != 2 or features.ndim != 2 or len(logits) != len(features):
        raise ValueError(f"logits {logits.shape} and features {features.shape} need two axes each and the same rows")
    if not (np.isfinite(logits).all() and np.isfinite(features).all()):
        raise ValueError("logits and features must be finite")
    rng = np.random.default_rng(seed)
    features = features.astype(np.float32)  # reading them is most of the time
    residuals = scipy.special.softmax(logits.astype(np.float64), axis=1)
    residuals[np.arange(len(logits)), logits.argmax(axis=1)] -= 1
    squares = (residuals**2).sum(axis=1) * (features**2).sum(axis=1, dtype=np.float64)
    nearest = squares.copy()  # squared distance to what is chosen; so far, to the origin
    count = min(count, len(logits))
    tries = 2 + int(np.log(max(count, 1)))  # scikit-learn's
    chosen: list[int] = []
    while len(chosen) < count and (total := nearest.sum()) > 0:
        tried = rng.choice(len(nearest), size=tries, p=nearest / total)
        products = (residuals[tried] @ residuals.T) * (features[tried] @ features.T)
        both = squares[tried, None] + squares
        distances = both - 2 * products
        distances[distances <= SAME * both] = 0
        distances[np.arange(tries), tried] = 0
        left = np.minimum(nearest, distances)
        best = int(left.sum(axis=1).argmin())
        nearest = left[best]
        chosen.append(int(tried[best]))
    order = np.argsort(-squares, kind="stable")
    rest = order[~np.isin(order, chosen)]
    return np.concatenate([np.array(chosen, dtype=int), rest[: count - len(chosen)]])
