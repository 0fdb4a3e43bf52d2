"""Holding out a validation part."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def hold_out(y: NDArray[Any], fraction: float, *, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split rows into training and validation, each class (or range of targets) in the same proportion.

    Systematic sampling of the rows sorted by label: every stretch of the order gives its share.

    Args:
        y: `(N,)` labels or `(N, D)` targets; the first column orders the latter.
        fraction: share of the rows to hold out, in [0, 1).
        seed: of the order within a label.

    Returns:
        Row numbers of both parts, ascending. Every class keeps at least one sample in training.

    >>> train, held = hold_out(np.array([0, 0, 0, 0, 1, 1, 1, 1]), 0.25, seed=0)
    >>> len(held), np.bincount(np.array([0, 0, 0, 0, 1, 1, 1, 1])[held])
    (2, array([1, 1]))
    """
    rows = np.arange(len(y))
    if fraction == 0:
        return rows, rows[:0]
    key = y if y.ndim == 1 else y[:, 0]
    order = np.random.default_rng(seed).permutation(len(y))
    order = order[np.argsort(key[order], kind="stable")]
    steps = np.floor(fraction * (rows + 0.5) + 0.5)
    picked = np.zeros(len(y), dtype=bool)
    picked[order[np.diff(steps, prepend=steps[0] if len(y) else 0) > 0]] = True
    if key.dtype.kind in "iu":
        _, first, code = np.unique(key, return_index=True, return_inverse=True)
        picked[first[np.bincount(code, picked) == np.bincount(code)]] = False
    return rows[~picked], rows[picked]
