"""Noise and model, learned from labels and probabilities: how `posterior` comes by its T, a and b.

EM, equations (2) to (6) of `labelproof.issues.posterior`, whose text has the reasons.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from labelproof.issues.posterior import (
    SHORT,
    TINY,
    Codes,
    Fit,
    Floats,
    Reals,
    bayes,
    blocks,
    by_row,
    common_shape,
    in_order,
    sharpened,
    shrunk_rows,
    soft_confusion,
    top,
    true_classes,
)

Parts = list[tuple[Codes, Reals]]  # labels and rows of some samples, so few that they stay in a core's cache

HARD_STEPS = 5  # how often T is counted over hard decisions at most,
SETTLED = 0.01  # or until no cell changes by more than that
SOFT_STEPS = 4  # EM steps after each of
UNMIXINGS = 2  # so many times (2)
PAIRS = 30  # the c of (6); so many samples for each pair of classes, on average, or b is not learned


@dataclass(frozen=True)
class Piece:
    """Some samples as EM sees them.

    Attributes:
        given: `(N,)` labels.
        log_q: `(N, K)`.
        decided: `(N,)` the class of the largest q.
        apart: `(N,)` bool, whether the given label is one that the model holds for unlikely, for where it decides so.
    """

    given: Codes
    log_q: Reals
    decided: Codes
    apart: NDArray[np.bool_]


@dataclass(frozen=True)
class View:
    """All samples as EM sees them.

    Attributes:
        pieces: the samples.
        exposure: `(K, K)` number of labels k, where the model decides for k (rows) and holds j for unlikely (columns).
        shape: `(K, K)` how wrong labels are spread if only the frequency of labels counts.
    """

    pieces: list[Piece]
    exposure: Floats
    shape: Floats


@dataclass(frozen=True)
class Noise:
    """What EM changes: T, a and log b, and whether T has one rate for each class."""

    transition: Floats
    slope: float
    offset: Floats | None
    even: bool


@dataclass(frozen=True)
class Found:
    """Where EM ended.

    Attributes:
        fit: the result.
        noise: the T, a and b of it.
        score: sum over samples of log P(given label), each sample's own share in T taken out.
        rate: share of labels believed wrong.
    """

    fit: Fit
    noise: Noise
    score: float
    rate: float


def learn(given: Codes, p: Reals, more: tuple[Codes, Reals] | None = None) -> Fit:
    """Estimate T, a and b, and find out what kind of model made p.

    Args:
        given: `(N,)` codes.
        p: `(N, K)`, rows sum to one.
        more: labels and probabilities of more samples, these among them, for the last two steps of EM.

    Returns:
        The fit; time is O(N K^2).
    """
    num_classes = p.shape[1]
    prior = p.mean(axis=0, dtype=np.float64)
    parts = _parts(given, p)
    mass = np.sum([soft_confusion(top(part), part) for _, part in parts], axis=0)
    learnt = _learnt_noise(_decisions(parts), mass)
    hard, start = _hard_start(parts, prior, common_shape(np.bincount(given, minlength=num_classes)), learnt)
    found = _em(parts, start, Noise(hard, 1.5, _no_offset(given, num_classes), even=False), prior, learnt)

    margin = np.concatenate([_margin(piece.log_q) for piece in start.pieces])
    median = max(float(np.median(margin)), TINY)
    if _memorised(margin / median, found.fit.errors, _confusion(start)):
        return Fit(prior, hard if learnt else None, None, 8 / median, None, _errors(start, 8 / median, None))
    if found.noise.offset is not None and num_classes > 2:
        even = _rates(_view(parts, start.shape), even=True)
        view = _view(_unmixed(parts, even, prior, learnt), start.shape)
        rival = _em(parts, view, Noise(even, 1.5, _no_offset(given, num_classes), even=True), prior, learnt)
        if rival.score >= found.score and rival.rate > found.rate / 2:
            found = rival
    fit, noise = found.fit, found.noise
    if more is None:
        return fit
    view = _view(_unmixed(_parts(*more), noise.transition, prior, learnt), start.shape)
    unmixing = noise.transition if learnt else None
    for _ in range(2):
        noise = _improved(view, noise)
    return replace(fit, unmixing=unmixing, transition=noise.transition, slope=noise.slope, offset=noise.offset)


def drawn_together(wrong: Floats, exposure: Floats, shape: Floats, *, even: bool) -> tuple[Floats, Floats]:
    """Wrong labels for each right one, drawn towards a common shape, where that fits, (7).

    Counts about a common shape have Pearson's X^2 = (n + c) / (1 + c) per degree of freedom, n wrong labels to a row
    and c the precision of a Dirichlet distribution: how many wrong labels the common shape is worth. It is taken for
    three times n at most, so that rows that look alike by chance keep something of their own.

    Args:
        wrong: `(K, K)` float64, wrong labels by true class (rows) and label; the diagonal is zero.
        exposure: `(K, K)` float64, right labels of that class that were looked at for it.
        shape: `(K, K)` float64, rows sum to one, the diagonal is zero.
        even: whether rows have the common shape itself.

    Returns:
        `(K, K)` rates, and what one label more would add to each.
    """
    exposure = np.maximum(exposure, 1.0)
    sizes = wrong.sum(axis=1, keepdims=True)
    rate = sizes / (exposure * shape).sum(axis=1, keepdims=True)
    freedom = (len(wrong) - 2) * np.count_nonzero(sizes)
    if even:
        return rate * shape, np.zeros_like(wrong)
    if freedom <= 0:
        return wrong / exposure, 1 / exposure
    expected = rate * exposure * shape
    per_row = float((sizes**2).sum() / sizes.sum())
    excess = float(((wrong - expected) ** 2 / np.maximum(expected, TINY)).sum()) / freedom - 1
    worth = min(max((per_row - 1 - excess) / max(excess, TINY), 0.0), 3 * per_row)
    weight = exposure + worth / np.maximum(rate, TINY)
    return (wrong + worth * shape) / weight, 1 / weight


def _parts(given: Codes, p: Reals) -> Parts:
    return [(given[rows], in_order(p[rows])) for rows in blocks(*p.shape)]


def _no_offset(given: Codes, num_classes: int) -> Floats | None:
    """Where b starts; None where there are too few samples to learn it."""
    return np.zeros((num_classes, num_classes)) if len(given) >= PAIRS * num_classes**2 else None


def _unmixed(
    parts: Parts, transition: Floats, prior: Floats, learnt: bool, powers: tuple[int, ...] | None = None
) -> Parts:
    """Labels and q."""
    return [(labels, true_classes(p, transition if learnt else None, prior, powers)) for labels, p in parts]


def _view(parts: Parts, shape: Floats, *, apart_only: bool = True) -> View:
    """Decisions, and which labels the model holds for unlikely; of labels and q. Else all labels count as such."""
    size = len(shape)
    logs = [(labels, np.log(np.maximum(q, TINY))) for labels, q in parts]
    decided = [top(log_q) for _, log_q in logs]
    usual = np.sum([soft_confusion(d, log_q).T for d, (_, log_q) in zip(decided, logs, strict=True)], axis=0)
    usual /= np.maximum(np.sum([np.bincount(d, minlength=size) for d in decided], axis=0), 1)[:, None]
    usual -= np.diag(usual)[:, None]  # mean log odds of class j against k, where it is decided for k
    exposure, pieces = np.zeros_like(usual), []
    for d, (labels, log_q) in zip(decided, logs, strict=True):
        rows = np.arange(len(d))
        low = log_q - log_q[rows, d][:, None] <= by_row(usual, d, log_q) if apart_only else np.ones_like(log_q, bool)
        exposure += soft_confusion(np.where(d == labels, d, size), low.astype(log_q.dtype), size + 1)[:, :size].T
        pieces.append(Piece(labels, log_q, d, low[rows, labels]))
    return View(pieces, exposure, shape)


def _hard_start(parts: Parts, prior: Floats, shape: Floats, learnt: bool) -> tuple[Floats, View]:
    """T counted over hard decisions, several times, and the view of the last q."""
    now, before = parts, np.zeros_like(shape)
    for _ in range(HARD_STEPS if learnt else 1):
        transition = _rates(_view(now, shape, apart_only=False), even=False)
        if np.abs(transition - before).max() < SETTLED:
            break
        now, before = _unmixed(parts, transition, prior, learnt, SHORT), transition
    return before, _view(now, shape)


def _rates(view: View, *, even: bool) -> Floats:
    """T counted over hard decisions, but for the mistakes in labels of classes that are hardly ever decided for."""
    confusion, apart = _confusion(view), _confusion(view, apart_only=True)
    unknown = confusion.sum(axis=1) < 0.02 * confusion.sum(axis=0)
    return _transition(np.diag(confusion), np.where(unknown, 0.0, apart), view, even=even)


def _confusion(view: View, *, apart_only: bool = False) -> Floats:
    """Number of samples by decision (rows) and given label (columns), `(K, K)`."""
    cells = [
        (piece.given[piece.apart], piece.decided[piece.apart]) if apart_only else (piece.given, piece.decided)
        for piece in view.pieces
    ]
    return np.asarray(sum(_hard_confusion(labels, decided, len(view.shape)) for labels, decided in cells))


def _transition(right: Floats, apart: Floats, view: View, *, even: bool) -> Floats:
    """Equation (5), of the number of labels `(K,)` that agree with decisions, and of unlikely ones `(K, K)`."""
    wrong = apart - np.diag(np.diag(apart))
    rates, _ = drawn_together(wrong, view.exposure, view.shape, even=even)
    return shrunk_rows(right[:, None] * rates + np.diag(right))


def _em(parts: Parts, view: View, noise: Noise, prior: Floats, learnt: bool) -> Found:
    """EM from a start."""
    for repeat in range(UNMIXINGS):
        unmixing = noise.transition if learnt else None
        if repeat and learnt:
            view = _view(_unmixed(parts, noise.transition, prior, learnt), view.shape)
        for _ in range(SOFT_STEPS):
            noise = _improved(view, noise)
    errors = _errors(view, noise.slope, noise.offset)
    fit = Fit(prior, unmixing, noise.transition, noise.slope, noise.offset, errors)
    return Found(fit, noise, *_judged(view, noise))


def _improved(view: View, noise: Noise) -> Noise:
    """T, a and b after one step of EM, (3) to (6)."""
    size = len(noise.transition)
    right, apart = np.zeros(size), np.zeros(size**2)
    gradient, curvature = 0.0, 0.0
    claimed, found = np.zeros((size, size)), np.zeros((size, size))
    for piece in view.pieces:
        s = sharpened(piece.log_q, noise.slope, noise.offset)
        r = bayes(s, piece.given, noise.transition)
        believed = r[np.arange(len(r)), piece.decided]
        right += np.bincount(piece.given, weights=believed * (piece.given == piece.decided), minlength=size)
        cells = piece.decided * size + piece.given
        apart += np.bincount(cells, weights=believed * piece.apart, minlength=size**2)
        one, two = _slope_terms(piece.log_q, r, s)
        gradient, curvature = gradient + one, curvature + two
        if noise.offset is not None:
            claimed += soft_confusion(piece.decided, s).T
            found += soft_confusion(piece.decided, r).T
    offset = noise.offset
    if offset is not None:
        offset = offset + np.clip(np.log((found + PAIRS) / (claimed + PAIRS)), -0.5, 0.5)
    transition = _transition(right, apart.reshape(size, size), view, even=noise.even)
    return Noise(transition, _newton_slope(noise.slope, gradient, curvature), offset, noise.even)


def _judged(view: View, noise: Noise) -> tuple[float, float]:
    """The score and the rate of `Found`."""
    transition, size = noise.transition, len(noise.transition)
    right = np.diag(_confusion(view))
    apart = _confusion(view, apart_only=True)
    _, each = drawn_together(apart - np.diag(np.diag(apart)), view.exposure, view.shape, even=noise.even)
    each = each * right[:, None]
    each[np.diag_indices(size)] = 1
    total = np.maximum(right / np.maximum(np.diag(transition), TINY), 1.0)
    score = wrong = 0.0
    for piece in view.pieces:
        s = sharpened(piece.log_q, noise.slope, noise.offset)
        rows, d, y = np.arange(len(s)), piece.decided, piece.given
        likely = (s * by_row(transition.T, y, s)).sum(axis=1)
        there = transition[d, y]
        share = each[d, y] * (piece.apart | (d == y)) * s[rows, d] * there / likely
        without = np.maximum((there * total[d] - share) / np.maximum(total[d] - share, TINY), 0.0)
        score += float(np.log(np.maximum(likely + s[rows, d] * (without - there), TINY)).sum())
        wrong += float((1 - s[rows, y] * np.diag(transition)[y] / likely).sum())
    return score, wrong / sum(len(piece.given) for piece in view.pieces)


def _errors(view: View, slope: float, offset: Floats | None) -> float:
    """Share of samples whose most probable class is not the true one, by the model's own calibrated account."""
    doubt = [1 - sharpened(piece.log_q, slope, offset).max(axis=1) for piece in view.pieces]
    return float(np.concatenate(doubt).mean(dtype=np.float64))


def _decisions(parts: Parts) -> Floats:
    """Number of samples by most probable class (rows) and given label (columns), `(K, K)`."""
    return np.asarray(sum(_hard_confusion(labels, top(q), q.shape[1]) for labels, q in parts))


def _learnt_noise(confusion: Floats, mass: Floats) -> bool:
    """Whether the model predicts the labels rather than the truth.

    `confusion` counts by decision (rows) and label, `mass` adds up p by class (rows) and decision.
    """
    sizes = np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    apart = ~np.eye(len(confusion), dtype=bool)
    weights = np.broadcast_to(sizes, confusion.shape)[apart]
    labels = (confusion / sizes)[apart]
    predicted = (mass.T / sizes)[apart]
    mean = np.average(labels, weights=weights)
    labels -= mean
    spread = (weights * labels**2).sum()
    by_chance = mean * (1 - mean) * labels.size
    return bool(spread < 3 * by_chance or (weights * labels * predicted).sum() > 0.3 * spread)


def _memorised(margin: Reals, errors: float, confusion: Floats) -> bool:
    """Whether EM contradicts itself; `margin` (N,) in units of its median, `confusion` by decision (rows) and label."""
    eighth = max(len(margin) // 8, 1)
    labels = confusion.sum(axis=0)
    fitted = bool((np.diag(confusion) >= 0.2 * labels).all())
    risen = np.partition(margin, eighth - 1)[:eighth].mean() > 1 / 8
    return bool(fitted and risen and errors > 1.4 * max((margin < 0.2).mean(), 1 / len(margin)))


def _slope_terms(log_q: Reals, r: Reals, s: Reals) -> tuple[float, float]:
    """Gradient of (6) and its negative second derivative, which is the variance of log q under s."""
    gradient = float(((r - s) * log_q).sum())
    weighted = s * log_q
    mean = weighted.sum(axis=1)
    weighted *= log_q
    return gradient, float(weighted.sum()) - float(mean @ mean)


def _newton_slope(slope: float, gradient: float, curvature: float) -> float:
    """Equation (6): one guarded Newton step."""
    step = gradient / max(curvature, TINY)
    return min(max(slope + min(max(step, -0.3), 0.3), 0.3), 8.0)


def _margin(log_q: Reals) -> Reals:
    """Log-odds between the two most probable classes, `(N,)`."""
    top = np.partition(log_q, log_q.shape[1] - 2, axis=1)[:, -2:]
    return np.asarray(top[:, 1] - top[:, 0])


def _hard_confusion(given: Codes, believed: Codes, num_classes: int) -> Floats:
    """Number of samples by believed class (rows) and given label (columns), `(K, K)`."""
    cells = np.bincount(believed * num_classes + given, minlength=num_classes**2)
    return np.asarray(cells.reshape(num_classes, num_classes), dtype=np.float64)
