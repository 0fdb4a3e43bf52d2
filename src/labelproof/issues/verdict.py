"""How likely each label is to be wrong: the posterior of `posterior`, computed only for the rows that need it.

Most rows of a large set are clear: the given label has nearly all of the probability, or nearly none. What the
posterior says of those is read off a curve over one number of each row,

    1 - p_y                    where the given class y is the most probable one
    1 - (max_k p_k - p_y)      where another one is

which is learned from the sample that noise and model were fitted on, as are its limits: below (beyond) them 999 of
1,000 sampled rows have p_wrong under 1 % (over 99 %). All others get the posterior itself. Rows of a set that is no
larger than the sample all do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from labelproof.issues.checks import Checked
from labelproof.issues.learning import learn
from labelproof.issues.posterior import (
    TINY,
    Codes,
    Fit,
    Floats,
    Reals,
    blocks,
    fit_rows,
    in_order,
    top,
)

CLEAR = 0.01  # p_wrong of a clear row, or what is missing to one
STRAYS = 0.001  # share of sampled rows beyond a limit that may be less clear than that
FEW = 100  # fewer clear rows than this draw no curve: then none are


@dataclass(frozen=True)
class Verdict:
    """What is believed of each label.

    Attributes:
        odds: `(N,)` log-odds that the label is wrong; float64, or float32 where there are many samples.
        other: `(N,)` int64, the most probable class beside the given one; the given one in clear rows that are right.
        beaten: `(N,)` bool, whether that class is more probable than the given one.
    """

    odds: Reals
    other: Codes
    beaten: NDArray[np.bool_]

    @property
    def p_wrong(self) -> Floats:
        """`(N,)` float64 in [0, 1]."""
        return np.asarray(1 / (1 + np.exp(-self.odds.astype(np.float64))))


@dataclass(frozen=True)
class Curve:
    """What is missing to certainty, `factor * score ** power`, over a score that is smaller in clearer rows."""

    limit: float
    factor: float
    power: float

    def __call__(self, score: Reals) -> Reals:
        """Log-odds, negative, at `(N,)` scores."""
        missing = np.minimum(self.factor * np.maximum(score, TINY) ** self.power, 0.5)
        return np.asarray(np.log(missing / (1 - missing)))


Screens = tuple[Curve, Curve]


def judge(checked: Checked, *, all_rows: bool = False) -> Verdict:
    """Judge every label.

    Args:
        checked: labels and probabilities.
        all_rows: whether clear rows get the posterior itself, too, and with it `other`.
    """
    n, num_classes = checked.p.shape
    fit = fitted(checked)
    dtype = checked.sample.dtype
    odds, other, beaten = np.empty(n, dtype), checked.given.copy(), np.empty(n, np.bool_)
    rest = np.arange(n)
    if not all_rows and len(checked.some) < n:
        right, score = _all_scores(checked, dtype)
        curves = _screens(fit, *_first(checked))
        rest, clear = _split(right, score, curves)
        odds = np.where(right, curves[0](score), -curves[1](score))
        beaten = ~right
        rows = np.flatnonzero(clear & beaten)
        for part in blocks(len(rows), num_classes):
            other[rows[part]] = checked.p[rows[part]].argmax(axis=1)
    for part in blocks(len(rest), num_classes):
        rows = rest[part]
        given, p = checked.given[rows], checked.rows(rows, dtype)
        odds[rows], other[rows], beaten[rows] = _posterior(fit, given, p)
    return Verdict(odds, other, beaten)


def fitted(checked: Checked) -> Fit:
    """Noise and model, learned from a part of the sample, and then from all of it."""
    given, p = _first(checked)
    more = None if len(p) == len(checked.sample) else (checked.given[checked.some], checked.sample)
    return learn(given, p, more)


def _all_scores(checked: Checked, dtype: DTypeLike) -> tuple[NDArray[np.bool_], Reals]:
    """`_scores` of all rows."""
    n, num_classes = checked.p.shape
    right, score = np.empty(n, np.bool_), np.empty(n, dtype)
    for part in blocks(n, num_classes):
        right[part], score[part] = _scores(checked.given[part], in_order(checked.p[part]))
    return right, score


def _split(right: NDArray[np.bool_], score: Reals, curves: Screens) -> tuple[Codes, NDArray[np.bool_]]:
    """The rows that need the posterior, and which are clear."""
    clear = score <= np.where(right, score.dtype.type(curves[0].limit), score.dtype.type(curves[1].limit))
    return np.flatnonzero(~clear), clear


def worst_first(odds: Reals) -> Codes:
    """The rows by falling log-odds, equal ones in their order, `(N,)` int64."""
    if odds.dtype == np.float64:
        return np.argsort(-odds, kind="stable")
    bits = (odds + np.float32(0)).view(np.int32).astype(np.int64)  # + 0: no -0
    bits = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # floats as integers of the same order
    keys = (-bits << 32) | np.arange(len(odds))  # sorting numbers is far faster than sorting positions by numbers
    keys.sort()
    return keys & 0xFFFFFFFF


def _posterior(fit: Fit, given: Codes, p: Reals) -> tuple[Reals, Codes, NDArray[np.bool_]]:
    """Log-odds, best other class and whether it is the more probable one."""
    rows = np.arange(len(given))
    r = fit.believe(given, p)
    trusted = r[rows, given]
    r[rows, given] = 0
    other = top(r)
    least = np.finfo(r.dtype).tiny
    odds = np.log(np.maximum(r.sum(axis=1), least)) - np.log(np.maximum(trusted, least))  # 1 - trusted would lose much
    return odds, other, r[rows, other] > trusted


def _scores(given: Codes, p: Reals) -> tuple[NDArray[np.bool_], Reals]:
    """Whether the given class is the most probable one, and how far from clear that is, `(N,)` in [0, 1]."""
    mine, most = p[np.arange(len(given)), given], p.max(axis=1)
    right = mine == most
    return right, 1 - np.where(right, mine, most - mine)


def _first(checked: Checked) -> tuple[Codes, Reals]:
    """Labels and probabilities of the part of the sample that T and a are fitted on."""
    n, most = len(checked.some), fit_rows(checked.p.shape[1])
    part = np.arange(n) if n < 2 * most else np.sort(np.random.default_rng(1).choice(n, most, replace=False))
    return checked.given[checked.some[part]], checked.sample[part]


def _screens(fit: Fit, given: Codes, p: Reals) -> Screens:
    """The curves for clear rows that are right, and for those that are wrong, drawn through sampled rows."""
    odds, other, _ = _posterior(fit, given, p)
    right, score = _scores(given, p)
    agreed = other == top(p)
    return (
        _curve(score[right], odds[right], np.ones(np.count_nonzero(right), dtype=np.bool_)),
        _curve(score[~right], -odds[~right], agreed[~right]),
    )


def _curve(score: Reals, odds: Reals, agreed: NDArray[np.bool_]) -> Curve:
    """Fit a curve and its limit to sampled rows; `odds` are of what is missing."""
    order = np.argsort(score)
    missing = 1 / (1 + np.exp(-odds[order].astype(np.float64)))
    strays = np.cumsum((missing > CLEAR) | ~agreed[order])
    clear = np.flatnonzero(strays <= STRAYS * np.arange(1, len(score) + 1))
    count = int(clear[-1]) + 1 if len(clear) else 0
    if count < FEW:
        return Curve(-np.inf, 1, 1)
    score, missing = np.maximum(score[order][:count].astype(np.float64), TINY), missing[:count]
    x, y = np.log(score), np.log(np.maximum(missing, TINY))
    x -= x.mean()
    power = min(max(float(x @ y) / max(float(x @ x), TINY), 0.1), 3.0)
    shape = score**power
    return Curve(float(score[-1]), float(missing.sum() / shape.sum()), power)
