"""`with_meta_set`: a part of the training data put aside to judge training by, where nobody has verified any."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelproof.core.method import Fit
from labelproof.data.seeds import derive

#: At most this share of the training data is put aside (but 2 samples of each class).
SHARE = 0.1


def with_meta_set(fit: Fit, method: Any, data: Any, size: int) -> Any:
    """Train with the stream "clean" that was given, or with one that is put aside, which is said.

    Args:
        fit: trains.
        method: what is trained; "clean" is one of its `own_streams`.
        data: the training data.
        size: samples to put aside.

    Raises:
        ValueError: a class has one sample only.
    """
    if "clean" in fit.given or data.classes is None:
        return fit(method, data)
    rows = data.trained
    label = data.y[rows]
    some = balanced_rows(label, min(size, int(SHARE * len(rows))), seed=derive(fit.seed, "meta set"))
    if len(absent := np.setdiff1d(label, label[some])):
        raise ValueError(
            f"class {data.classes.tolist()[absent[0]]!r} has one training sample, and a meta set needs one as well: "
            "give verified samples (--clean DATA on the command line, fit(X, y, clean=(X_clean, y_clean)) in Python), "
            "or drop the class"
        )
    fit.note(
        f"meta set: {len(some):,} of the training samples, put aside with their labels as given, which nobody has "
        "verified; with --clean DATA it is yours",
        meta_samples=len(some),
    )
    return fit(method, data.only(np.delete(rows, some)), streams={"clean": data.take(rows[some])})


def balanced_rows(label: NDArray[Any], size: int, *, seed: int) -> NDArray[np.int64]:
    """Random rows, as many of each class.

    Args:
        label: `(N,)` int64 classes.
        size: rows in all; but at least 2 and at most half of each class.
        seed: of the choice.

    Returns:
        Row numbers, ascending. None of a class that has one row only.

    >>> label = np.array([0, 1, 0, 1, 0, 1, 0, 0, 0, 2])
    >>> np.bincount(label[balanced_rows(label, 4, seed=0)])
    array([2, 1])
    """
    order = np.random.default_rng(seed).permutation(len(label))
    order = order[np.argsort(label[order], kind="stable")]
    count = np.bincount(label)
    place = np.arange(len(label)) - (np.cumsum(count) - count)[label[order]]  # within its class
    each = max(2, size // max(1, int((count > 0).sum())))
    return np.sort(order[place < np.minimum(count // 2, each)[label[order]]])
