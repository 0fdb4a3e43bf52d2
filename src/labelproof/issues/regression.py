r"""`find_target_issues`: regression targets that are probably wrong, worst first.

With z_ij the residuals, each target column less its median and in units of its spread (`robust_spread`, so that neither
units nor a minority of gross errors matter) times the noise that is usual near that sample
(`labelproof.issues.local_scale`), and d_i = |z_i| over the D columns:

    f(d) = (1 - w) t(d; s) + w / V(R)

t is the density in D dimensions of Student's t with 4 degrees of freedom and scale s: residuals of real models have
heavier tails than a normal, which would take 2 to 9 % of *clean* targets for wrong. V(R) is the volume of the ball of
radius R = min(max d, 30 s): a wrong target may be anywhere, and one that is off a thousandfold does not hide those that
are off threefold. w and s by EM; p_wrong is the share of the second term in f, which grows with d.

w is at most 0.5: medians follow the majority, and where most targets are wrong nothing here tells which part is right.
An estimate that comes to the limit is warned of.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import lgamma, log, pi

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from labelproof.issues.checks import as_numbers, check_evidence, check_ids
from labelproof.issues.local_scale import check_features, local_scale
from labelproof.issues.table import build_table

FREEDOM = 4.0  # of Student's t
REACH = 30.0  # largest residual told apart from still larger ones, in units of s
COVERED = 0.95  # of ordinary residuals, by `suggested_low` and `suggested_high`
MOST_WRONG = 0.5  # largest share of wrong targets that is told
LARGEST = 1e300  # of a target, so that differences and multiples of it are numbers, too
FAR = 1e100  # residuals further off, in units of their spread, count as that far: squares of it are numbers, too


def find_target_issues(
    targets: ArrayLike,
    predictions: ArrayLike,
    *,
    features: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    evidence: Mapping[str, ArrayLike] | None = None,
) -> pd.DataFrame:
    """List every regression target by how likely it is to be wrong, worst first.

    Args:
        targets: `(N,)` or `(N, D)` given targets, in any units.
        predictions: of the same shape, best out-of-sample (`sklearn.model_selection.cross_val_predict`).
        features: `(N, F)` rows of a table of numbers, NaN where one is missing; they say where targets are noisier
            than elsewhere. None: the predictions alone say it.
        ids: `(N,)` your names of the samples, each different. None: row numbers.
        evidence: further columns of `(N,)` values by name, carried along as `evidence_<name>`.

    Returns:
        A table as from `find_issues`: `suggested` is what the target should be, `suggested_value` where `flagged`, else
        as `given`. Then, in the units of the target: `suggested_value`, the usual target where the model predicts this
        (the prediction plus the median residual, which is not 0 for a model that is always too low);
        `suggested_low` and `suggested_high`, as far below and above it, between which about 95 % of right targets lie;
        `scale`, the noise that is usual there (as a standard deviation). For D > 1 all of these are of the column that
        is furthest off, whose number is in `evidence_column`. Other units of a column, or of all, rank the same.

    Raises:
        ValueError: shapes that differ, too few rows, or values that are not finite or beyond ±1e300.

    Warns:
        UserWarning: the share of wrong targets came to one half, the most that is told.

    Example:
        >>> hours = np.linspace(0, 10, 50)
        >>> given = 20 + 3 * hours + np.sin(7 * hours)
        >>> given[5] *= 10
        >>> table = find_target_issues(given, 20 + 3 * hours).round(2)
        >>> table.iloc[:2, 1:6]
             given  suggested  p_wrong  rank  flagged
        5   238.19      23.07      1.0     1     True
        34   39.82      39.82      0.0     2    False
        >>> table.iloc[:2, 6:]
            suggested_value  suggested_low  suggested_high  scale
        5             23.07          22.07           24.06   1.11
        34            40.82          39.83           41.82   1.11
    """
    found = residuals(targets, predictions, features)
    table = as_table(found, ids, evidence)
    warn_of_limit(found.mixture)
    return table


def as_table(found: Residuals, ids: ArrayLike | None, evidence: Mapping[str, ArrayLike] | None) -> pd.DataFrame:
    """The table of `find_target_issues` from residuals."""
    n, dims = found.off.shape
    names, extra = check_ids(ids, n), check_evidence(evidence, n)
    p_wrong = found.mixture.outlying
    rows, worst = np.arange(n), np.abs(found.off).argmax(axis=1)
    given, predicted, scale = (a[rows, worst] for a in (found.given, found.predicted, found.scale))
    half = _ordinary(np.abs(found.off), 1 - p_wrong)[worst] * scale
    usual = predicted + found.centre[worst]  # a model that is always 3 too low says so
    columns = {
        "suggested_value": usual,
        "suggested_low": usual - half,
        "suggested_high": usual + half,
        "scale": scale,
    }
    columns |= {"evidence_column": worst} if dims > 1 else {}
    order = np.argsort(-found.distance, kind="stable")
    suggested = np.where(p_wrong > 0.5, usual, given)
    return build_table(order, names[order], given[order], suggested[order], p_wrong[order], columns | extra)


@dataclass(frozen=True)
class Residuals:
    """Targets beside predictions.

    Attributes:
        given, predicted: `(N, D)` float64.
        centre: `(D,)` median residual.
        scale: `(N, D)` positive, how large residuals usually are there, in the units of the targets.
        off: `(N, D)` residuals less `centre` in units of `scale`, none far beyond ±`FAR`.
    """

    given: NDArray[np.float64]
    predicted: NDArray[np.float64]
    centre: NDArray[np.float64]
    scale: NDArray[np.float64]
    off: NDArray[np.float64]

    @property
    def distance(self) -> NDArray[np.float64]:
        """`(N,)` how far off each target is, over all columns."""
        # Equal distances (for even N two residuals lie as far from their median) must stay equal in other units.
        return np.asarray(np.round(np.linalg.norm(self.off, axis=1), 9))

    @cached_property
    def mixture(self) -> Mixture:
        """Fitted to `distance`, once."""
        return fit_mixture(self.distance, self.off.shape[1])


def residuals(targets: ArrayLike, predictions: ArrayLike, features: ArrayLike | None = None) -> Residuals:
    """Check targets, predictions and features, and scale the residuals by local noise.

    Raises:
        ValueError: see `find_target_issues`.
    """
    given, predicted = _columns(targets, "targets"), _columns(predictions, "predictions")
    if given.shape != predicted.shape:
        raise ValueError(
            f"targets has shape {np.shape(targets)} but predictions {np.shape(predictions)}: they must be equal"
        )
    n = len(given)
    if n < 3:
        raise ValueError(f"targets has {n} rows: at least 3 are needed to tell usual residuals from unusual ones")
    table = check_features(features, n)
    centre = np.median(given - predicted, axis=0)
    centred = given - predicted - centre
    overall = _positive(robust_spread(centred))
    with np.errstate(over="ignore"):
        off = np.clip(centred / overall, -FAR, FAR)
    each = zip(off.T, predicted.T, strict=True)
    local = np.stack([local_scale(z, values, table) for z, values in each], axis=1)
    local = local * _positive(robust_spread(off / local))
    return Residuals(given, predicted, centre, overall * local, off / local)


def _columns(values: ArrayLike, name: str) -> NDArray[np.float64]:
    numbers = as_numbers(values, name)
    if numbers.ndim not in (1, 2) or numbers.size == 0:
        raise ValueError(f"{name} must have shape (N,) or (N, D) and not be empty, but has shape {numbers.shape}")
    numbers = numbers.reshape(len(numbers), -1)
    far = (np.abs(numbers) > LARGEST).any(axis=1)
    if far.any():
        raise ValueError(
            f"{name} has values beyond ±{LARGEST:g} in {far.sum()} of {far.size} rows, the first is row "
            f"{far.argmax()}: drop those samples, or count in larger units"
        )
    return numbers


def robust_spread(values: ArrayLike) -> NDArray[np.float64]:
    """A standard deviation that a minority of gross errors does not move: 1.4826 times the median absolute deviation.

    Where more than half of the values are equal it is that of the others, as in the standardisation of targets.

    Args:
        values: `(N, D)`, finite.

    Returns:
        `(D,)`, in the units of each column; 0 where all values are equal.

    Example:
        >>> robust_spread([[0, 0], [1, 0], [2, 0], [9e9, 3]]).round(2)
        array([1.48, 4.45])
    """
    numbers = np.asarray(values, dtype=np.float64)
    away = np.abs(numbers - np.median(numbers, axis=0))
    spread = np.median(away, axis=0)
    for column in np.flatnonzero((spread == 0) & (away.max(axis=0) > 0)):
        spread[column] = np.median(away[away[:, column] > 0, column])
    return np.asarray(1.4826 * spread)


def _positive(spread: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(spread > 0, spread, 1.0)


def _ordinary(size: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """What 95 % of the residuals stay below in each column, `(D,)`, those of wrong targets left out."""
    order = np.argsort(size, axis=0, kind="stable")
    below = np.cumsum(weight[order], axis=0)
    rank = (below < COVERED * below[-1]).sum(axis=0)
    return np.asarray(np.take_along_axis(np.take_along_axis(size, order, axis=0), rank[None], axis=0)[0])


@dataclass(frozen=True)
class Mixture:
    """The fitted f(d) of this module.

    Attributes:
        outlying: `(N,)` float64, posterior of the broad component, non-decreasing in the distance.
        share: w, the share of the broad component, at most `MOST_WRONG`.
        deviation: standard error of w, from the curvature of the likelihood in w and log s.
    """

    outlying: NDArray[np.float64]
    share: float
    deviation: float


def fit_mixture(distance: NDArray[np.float64], dims: int) -> Mixture:
    """Fit usual and broad residuals to `(N,)` distances by EM."""
    share, scale, n = 0.1, 1.0, len(distance)
    normaliser = lgamma((FREEDOM + dims) / 2) - lgamma(FREEDOM / 2) - dims / 2 * log(FREEDOM * pi)
    ball = dims / 2 * log(pi) - lgamma(dims / 2 + 1)
    top = float(distance.max())
    if top == 0:
        return Mixture(np.zeros_like(distance), 0.0, 0.0)
    for _ in range(100):
        square = (distance / scale) ** 2
        usual = normaliser - (FREEDOM + dims) / 2 * np.log1p(square / FREEDOM)
        broad = -ball - dims * log(min(top / scale, REACH))  # both in units of scale
        outlying = 1 / (1 + np.exp(np.clip(usual - broad + log((1 - share) / share), -700, 700)))
        share = float(np.clip(outlying.mean(), 1e-4, MOST_WRONG))
        trust = (1 - outlying) * (FREEDOM + dims) / (FREEDOM + square)
        scale = max(float(np.sqrt((trust * distance**2).sum() / (1 - outlying).sum() / dims)), 1e-9)
    by_share = outlying / share - (1 - outlying) / (1 - share)
    by_scale = (1 - outlying) * ((FREEDOM + dims) * square / (FREEDOM + square) - dims)
    by_scale -= outlying * dims * (top / scale > REACH)
    information = (
        np.array([[by_share @ by_share, by_share @ by_scale], [by_share @ by_scale, by_scale @ by_scale]])
        + np.eye(2) / n
    )  # of one sample in N, where nothing else says anything
    return Mixture(outlying, share, float(np.sqrt(np.linalg.inv(information)[0, 0])))


def warn_of_limit(mixture: Mixture) -> None:
    """Tell the caller's caller where the share of wrong targets is as large as it can come out."""
    if mixture.share >= MOST_WRONG:
        warnings.warn(
            f"the share of wrong targets came to {MOST_WRONG:.0%}, the most that is told, so that the list and its "
            "p_wrong say little: half of the targets or more are wrong, or the predictions hardly fit (rows in another "
            "order, a model that has learned too little); look at some of the targets yourself, or take a better model",
            stacklevel=3,
        )
