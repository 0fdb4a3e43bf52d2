r"""`find_target_issues`: regression targets that are probably wrong, worst first.

With z_i the residuals, each target column less its median and in units of its spread (1.4826 times the median absolute
deviation, so that neither units nor a minority of gross errors matter), and d_i = |z_i| over the D columns:

    f(d) = (1 - w) t(d; s) + w / V(R)

t is the density in D dimensions of Student's t with 4 degrees of freedom and scale s: residuals of real models have
heavier tails than a normal, which would take 2 to 9 % of *clean* targets for wrong. V(R) is the volume of the ball of
radius R = min(max d, 30 s): a wrong target may be anywhere, and one that is off a thousandfold does not hide those that
are off threefold. w and s by EM; p_wrong is the share of the second term in f, which grows with d.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import lgamma, log, pi

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from labelproof.issues.checks import as_numbers, check_evidence, check_ids
from labelproof.issues.table import build_table

FREEDOM = 4.0  # of Student's t
REACH = 30.0  # largest residual told apart from still larger ones, in units of s


def find_target_issues(
    targets: ArrayLike,
    predictions: ArrayLike,
    *,
    ids: ArrayLike | None = None,
    evidence: Mapping[str, ArrayLike] | None = None,
) -> pd.DataFrame:
    """List every regression target by how likely it is to be wrong, worst first.

    Args:
        targets: `(N,)` or `(N, D)` given targets, in any units.
        predictions: of the same shape, best out-of-sample (`sklearn.model_selection.cross_val_predict`).
        ids: `(N,)` your names of the samples, each different. None: row numbers.
        evidence: further columns of `(N,)` values by name, carried along as `evidence_<name>`.

    Returns:
        A table as from `find_issues`; `suggested` is the prediction. For D > 1 `given` and `suggested` are those of
        the column that is furthest off, whose number is in `evidence_column`. Other units of a column, or of all,
        give the same table but for `given` and `suggested`.

    Raises:
        ValueError: shapes that differ, too few rows, or values that are not finite.

    Example:
        >>> hours = np.linspace(0, 10, 50)
        >>> given = 20 + 3 * hours + np.sin(7 * hours)
        >>> given[5] *= 10
        >>> find_target_issues(given, 20 + 3 * hours).round(2).head(2)
            id   given  suggested  p_wrong  rank  flagged
        5    5  238.19      23.06      1.0     1     True
        34  34   39.82      40.82      0.0     2    False
    """
    given, predicted = _columns(targets, "targets"), _columns(predictions, "predictions")
    if given.shape != predicted.shape:
        raise ValueError(
            f"targets has shape {np.shape(targets)} but predictions {np.shape(predictions)}: they must be equal"
        )
    n = len(given)
    if n < 3:
        raise ValueError(f"targets has {n} rows: at least 3 are needed to tell usual residuals from unusual ones")
    names, extra = check_ids(ids, n), check_evidence(evidence, n)

    off = _standardised(given - predicted)
    # Equal distances (for even N two residuals lie as far from their median) must stay equal in other units.
    distance = np.round(np.linalg.norm(off, axis=1), 9)
    p_wrong = _outlying(distance, off.shape[1])
    rows, worst = np.arange(n), np.abs(off).argmax(axis=1)
    if off.shape[1] > 1:
        extra = {"evidence_column": worst} | extra
    order = np.argsort(-distance, kind="stable")
    return build_table(order, names, given[rows, worst], predicted[rows, worst], p_wrong, extra)


def _columns(values: ArrayLike, name: str) -> NDArray[np.float64]:
    numbers = as_numbers(values, name)
    if numbers.ndim not in (1, 2) or numbers.size == 0:
        raise ValueError(f"{name} must have shape (N,) or (N, D) and not be empty, but has shape {numbers.shape}")
    return numbers.reshape(len(numbers), -1)


def _standardised(residuals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Residuals less their median, in units of their spread, column by column."""
    centred = residuals - np.median(residuals, axis=0)
    spread = 1.4826 * np.median(np.abs(centred), axis=0)
    # More than half the residuals are equal: any other measure of spread will do, as long as units cancel.
    spread = np.where(spread > 0, spread, np.abs(centred).mean(axis=0))
    return np.asarray(centred / np.where(spread > 0, spread, 1.0))


def _outlying(distance: NDArray[np.float64], dims: int) -> NDArray[np.float64]:
    """Posterior of the broad component, `(N,)`, non-decreasing in `distance`."""
    share, scale = 0.1, 1.0
    normaliser = lgamma((FREEDOM + dims) / 2) - lgamma(FREEDOM / 2) - dims / 2 * log(FREEDOM * pi)
    ball = dims / 2 * log(pi) - lgamma(dims / 2 + 1)
    if distance.max() == 0:
        return np.zeros_like(distance)
    for _ in range(100):
        usual = normaliser - (FREEDOM + dims) / 2 * np.log1p((distance / scale) ** 2 / FREEDOM)
        broad = -ball - dims * log(min(float(distance.max()) / scale, REACH))  # both in units of scale
        outlying = 1 / (1 + np.exp(np.clip(usual - broad + log((1 - share) / share), -700, 700)))
        share = float(np.clip(outlying.mean(), 1e-4, 0.5))
        trust = (1 - outlying) * (FREEDOM + dims) / (FREEDOM + (distance / scale) ** 2)
        scale = max(float(np.sqrt((trust * distance**2).sum() / (1 - outlying).sum() / dims)), 1e-9)
    return np.asarray(outlying)
