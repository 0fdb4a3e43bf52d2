r"""How noisy regression targets are around each sample, from the residuals themselves.

Real targets are noisier in some places than in others (large values, some inputs), and a residual is suspicious only
beside what is usual there. With a_i = |z_i| the absolute residuals in units of their spread over all samples:

    g(x_i, rank of prediction_i) ~ median of log a_i,   fitted by boosted trees to the other four fifths of the samples
    b = slope of log a on g, within [0, 1]
    s_i = exp(0.7 b (g_i - median g))

Absolute error in logarithms: neither a gross error nor many of them move it far. Cross-fitted: no residual sets its own
scale. Trees: units and outliers of the features do not matter, and no leaf has fewer than 50 residuals, so that few
samples get the one scale of all. The slope shrinks what was only fitted noise; where g says nothing, s is 1. The power
0.7 was the best over four real and four made data sets (docs/finding-wrong-labels.md): a region where many targets are
wrong looks noisy too, and is to be taken for noisy by part only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labelproof.issues.checks import as_array

FOLDS = 5
LEAF = 50  # fewest residuals that may have a scale of their own
ENOUGH = 2 * LEAF * FOLDS // (FOLDS - 1)  # fewer samples cannot be split
MOST = 20_000  # samples that one model is fitted to
POWER = 0.7
SMALLEST, LARGEST = 1e-3, 1e3  # residuals beyond, in units of their spread, are as good as equal, or as wrong


def local_scale(
    off: NDArray[np.float64], predicted: NDArray[np.float64], features: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """How large residuals usually are near each sample, relative to all samples.

    Does not depend on the order of the rows, nor on the unit of the predictions. Time grows with N (F + 1), in that
    each model is fitted to at most 20,000 rows.

    Args:
        off: `(N,)` residuals in units of their spread.
        predicted: `(N,)` predictions.
        features: `(N, F)` checked by `check_features`.

    Returns:
        `(N,)` positive, median about 1. All 1 for fewer than 125 samples.

    Example:
        >>> x = np.linspace(0, 1, 2000)
        >>> off = np.random.default_rng(0).normal(0, 1 + 9 * x) / 5
        >>> local_scale(off, np.zeros(2000), x[:, None])[[0, 1000, 1999]].round(1)
        array([0.3, 0.9, 1.7])
    """
    n = len(off)
    if n < ENOUGH:
        return np.ones(n)
    # Rounded, for the last bits differ from unit to unit.
    level = np.asarray(np.round(np.log(np.clip(np.abs(off), SMALLEST, LARGEST)), 9), dtype=np.float64)
    place = np.unique(predicted, return_inverse=True)[1].reshape(-1)
    columns = () if features is None else tuple(features.T)
    order = np.lexsort((*columns, off, level, place))  # any order of the rows gives this one
    kind = np.float32 if features is None else features.dtype
    table = np.column_stack([place.astype(kind), *columns])[order]
    guess, level = _cross_fitted(table, level[order]), level[order]
    centred = guess - guess.mean()
    spread = float(centred @ centred)
    slope = float(np.clip(centred @ (level - level.mean()) / spread, 0, 1)) if spread > 0 else 0.0
    scale = np.empty(n)
    scale[order] = np.exp(POWER * slope * (guess - np.median(guess)))
    return scale


def check_features(features: ArrayLike | None, n: int) -> NDArray[Any] | None:
    """Features as `(N, F)` floats. Missing values (NaN) become smaller than all others, which trees tell apart.

    Raises:
        ValueError: another shape or length, infinite values, or no numbers.
    """
    if features is None:
        return None
    table = as_array(features, "features")
    if table.ndim != 2 or len(table) != n or table.shape[1] == 0:
        raise ValueError(
            f"features must have shape ({n}, F), one row of numbers per target, but has shape {table.shape}: "
            "leave them out where samples are no rows of a table"
        )
    if table.dtype not in (np.float32, np.float64):
        try:
            table = table.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"features must hold numbers, but has dtype {table.dtype} ({error}): encode categories first"
            ) from error
    endless = np.isinf(table).any(axis=0)
    if endless.any():
        raise ValueError(
            f"features has infinite values in {endless.sum()} columns, the first is column {endless.argmax()}: "
            "replace them by numbers, or by NaN where there is none"
        )
    missing = np.isnan(table)
    if missing.any():
        low = np.where(missing, np.inf, table).min(axis=0)
        high = np.where(missing, -np.inf, table).max(axis=0)
        low, high = (np.where(missing.all(axis=0), 0.0, end) for end in (low, high))
        below = low - (high - low) - np.abs(low) - 1
        table = np.where(missing, below, table).astype(table.dtype)
    return table


def _cross_fitted(table: NDArray[Any], level: NDArray[np.float64]) -> NDArray[np.float64]:
    """The level that the samples of the other folds suggest for each, `(N,)`."""
    from sklearn.ensemble import HistGradientBoostingRegressor  # a second to load

    guess, fold = np.empty(len(level)), np.arange(len(level)) % FOLDS
    for each in range(FOLDS):
        rest = np.flatnonzero(fold != each)
        if len(rest) > MOST:
            rest = rest[np.arange(MOST) * len(rest) // MOST]
        model = HistGradientBoostingRegressor(
            loss="absolute_error",
            max_iter=60,
            max_leaf_nodes=8,
            min_samples_leaf=LEAF,
            early_stopping=False,
            random_state=0,
        )
        guess[fold == each] = model.fit(table[rest], level[rest]).predict(table[fold == each])
    return guess
