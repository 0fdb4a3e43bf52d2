r"""Which class each sample truly has, given its label and what a model says: the mathematics under `find_issues`.

A model that was trained on wrong labels predicts the *label*, not the truth. Noise first, then, is taken out of the
predictions; what remains is compared with each label. Two facts about wrong labels carry everything:
`T[k, j] = P(given j | true k)` does not depend on the sample otherwise (Natarajan et al., NeurIPS 2013), and where
the model is sure, disagreement is noise, not ignorance (confident learning: Northcutt et al., JAIR 2021).

| symbol | code | shape | meaning |
|---|---|---|---|
| p | `p` | (N, K) | predicted probabilities, by a model that saw given labels |
| T | `transition` | (K, K) | P(given j given true k), rows sum to one |
| q | `q` | (N, K) | p with the noise taken out: probabilities of the *true* class, uncalibrated |
| a | `slope` | | how sharp q should be (1 / temperature) |
| s | `s` | (N, K) | q calibrated |
| r | `r` | (N, K) | P(true k given p and the given label): the result |

    p_i = T' q_i                                                            (1)  what training on noisy labels does
    q <- q * (T (p / T' q))^w     w = 1, 2, 2, 2, 2, from the mean of all p (2)  undo it: maximum likelihood for (1)
    s_ik = softmax_k(a log q_ik)                                            (3)  calibrate
    r_ik = s_ik T[k, y_i] / sum_l s_il T[l, y_i]                            (4)  Bayes, y_i the given label
    T[k, j] = (sum_i r_ik [y_i = j] + c T0[k, j]) / (sum_i r_ik + c)        (5)  the noise these r imply
    a <- argmax_a sum_ik r_ik log s_ik     (one Newton step)                (6)  the calibration these r imply

(3) to (6) are EM for the likelihood of the given labels, sum_i log sum_k s_ik T[k, y_i]; (2) is repeated with each
better T. Its w = 1 is maximum likelihood's own step; longer ones get as far in five as those in ten. (5) shrinks
towards T0, one noise rate for all classes (c = 10 labels), so that a class of ten samples borrows from the others.
Before that, the wrong labels of a class are drawn towards how often each label occurs, by as much as chance explains of
the differences between classes (`drawn_together`): where noise is symmetric, a few flips into one class and none into
another mean nothing. EM needs a start that already tells noise from ambiguity, as both explain a disagreement: T is
counted over hard decisions, r_ik = [k = argmax q_i], five times with (2) between. That start takes every
mistake of the model for a wrong label; EM then hands back those that the model was unsure about. Of a class that the
model hardly ever decides for (in fewer cases than 2 % of its labels) nothing is known: the start takes all its labels
for right. Of many samples, some are fitted, and T is then counted once more twice over the r of six times as many
(`verdict.fitted`).

**Models that did not learn the noise** (trained on clean labels, or robustly) have p = q, and (2) would do harm. Where
the model decides for k, compare its mean probabilities with the shares of the labels, T as counted at the start: the
slope of the regression line of the former on the latter, over all j != k, is about 1 if it predicts labels and 0 if
it predicts the truth (measured: 0.44 and more, 0.14 and less). Below 0.3, q = p. Where these shares differ no more
than by chance, there is nothing to tell the two apart by, and little to lose.

**Probabilities recorded in training.** (4) assumes that p knows y_i only through the sample. Outputs of a network
on its own training samples break that: p_i holds some of y_i itself, and EM takes memorised noise for the model's
ignorance. Then it contradicts itself. A model that ignorant (errors e = mean(1 - max_k s_ik)) leaves many samples
near a tie between two classes, but a network that has fitted its samples leaves few. With m_i the log-odds between
the two largest q_i after the hard start, in units of their median, these together mean "memorised":

    mean of the smallest eighth of m  >  1/8        the density of m rises away from ties (it cannot otherwise)
    e  >  1.4 P(m < 0.2)                            more claimed errors than there are ties to explain them
    P(argmax q_i = y_i given y_i = j)  >  0.2       for each class j: otherwise nothing was fitted

There p_i already contains y_i, so counting y_i again by (4) would be wrong: r = softmax(8 log q / median margin).
The 1.4, the 0.2 and the 8 are measured, not derived; docs/finding-wrong-labels.md has the figures, and where it fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Reals = NDArray[np.floating[Any]]  # float64 or float32: where there are many samples, half the memory is half the time
Codes = NDArray[np.int64]
Parts = list[tuple[Codes, Reals]]  # labels and rows of some samples, so few that they stay in a core's cache

TINY = 1e-6  # least probability: log-odds beyond 14 say nothing about noise
FIT_ROWS, FIT_CELLS = 10_000, 500_000  # T and a are fitted on at most so many samples and probabilities,
FIT_PER_CLASS = 5  # but on so many samples for each class at least;
COUNTED = 6  # T is then counted again, over so many times as many
POWERS = (1, 2, 2, 2, 2)  # the w of (2)
MANY = 32  # classes; what is fast for few of them is slow for so many
BLOCK_CELLS = 128_000  # so many probabilities are looked at together: what lies in a core's cache


@dataclass(frozen=True)
class Posterior:
    """What is believed about every sample.

    Attributes:
        proba: `(N, K)` float64, P(true class | predicted probabilities, given label); rows sum to one.
        transition: `(K, K)` float64, P(given j | true k); rows sum to one.
        errors: share of samples, in [0, 1], that the model itself takes for the wrong class.
        memorised: whether the probabilities hold the given labels themselves (see the module's text).
    """

    proba: Floats
    transition: Floats
    errors: float
    memorised: bool


@dataclass(frozen=True)
class Fit:
    """What was learned about noise and model from some of the samples.

    Attributes:
        prior: `(K,)` mean probabilities, where (2) starts.
        unmixing: `(K, K)` the T of (2); None where the model did not learn the noise.
        transition: `(K, K)` the T of (4); None where the label must not be counted twice.
        slope: the a of (3).
        errors: as in `Posterior`.
    """

    prior: Floats
    unmixing: Floats | None
    transition: Floats | None
    slope: float
    errors: float

    def believe(self, given: Codes, p: Reals) -> Reals:
        """P(true class) of some samples, (2) to (4).

        Args:
            given: `(N,)` codes.
            p: `(N, K)` probabilities, rows sum to one.

        Returns:
            `(N, K)`, of p's dtype and order; rows sum to one.
        """
        return _believe(_calibrate(_true_classes(p, self.unmixing, self.prior), self.slope), given, self.transition)


def sample_rows(n: int, num_classes: int) -> Codes:
    """The rows that noise is counted over, sorted: all of them, or some at random, the same each time."""
    most = COUNTED * fit_rows(num_classes)
    return np.arange(n) if most >= n else np.sort(np.random.default_rng(0).choice(n, most, replace=False))


def fit_rows(num_classes: int) -> int:
    """On how many samples T and a are fitted."""
    return max(min(FIT_ROWS, FIT_CELLS // num_classes), FIT_PER_CLASS * num_classes)


def in_order(p: Reals) -> Reals:
    """The same numbers, laid out for speed: by class where there are few, as sums over them then add long columns."""
    return np.asarray(p, order="F" if p.shape[1] < MANY else "C")


def top(p: Reals) -> Codes:
    """The most probable class of each row, `(N,)`."""
    return np.asarray(np.ascontiguousarray(p).argmax(axis=1), dtype=np.int64)


def infer(given: Codes, p: Reals, fit: Fit | None = None) -> Posterior:
    """Infer each sample's true class from its given label and predicted probabilities.

    Args:
        given: `(N,)` int64 class codes in 0..K-1.
        p: `(N, K)`, rows sum to one.
        fit: what is known of noise and model; None: learned from all of the samples.

    Returns:
        The posterior; time is O(N K^2), memory O(N K).
    """
    n, num_classes = p.shape
    fit = fit or learn(given, p)
    proba, counts = np.empty((n, num_classes)), np.zeros((num_classes, num_classes))
    for rows in blocks(n, num_classes):
        proba[rows] = fit.believe(given[rows], in_order(p[rows]))
        counts += soft_confusion(given[rows], proba[rows])
    return Posterior(proba, shrunk_rows(counts), fit.errors, memorised=fit.transition is None)


def unmix(p: Reals, transition: Floats, prior: Floats, powers: tuple[int, ...] = POWERS) -> Reals:
    """Take the noise out of predictions of noisy labels, equation (2).

    Args:
        p: `(N, K)`, probabilities of the given labels, rows sum to one.
        transition: `(K, K)` float64, P(given j | true k).
        prior: `(K,)` float64, positive, where the steps start.
        powers: the w of each step, the first of which is 1.

    Returns:
        `(N, K)` of p's dtype in [1e-6, 1], rows sum to one: probabilities of the true classes.

    Example:
        >>> flips = np.array([[0.6, 0.4, 0.0], [0.0, 0.6, 0.4], [0.4, 0.0, 0.6]])  # 40 % into the next class
        >>> int(unmix(np.array([[0.45, 0.55, 0.0]]), flips, np.ones(3) / 3).argmax())  # 1 would have left some for 2
        0
    """
    first = prior[:, None] * transition / np.maximum(prior @ transition, 1e-12)
    q = _times(p, first.T)  # the first step: all samples start alike
    for power in powers[1:]:
        q = _step(q, p, transition, power)
    return _floored(q)


def soft_confusion(given: Codes, r: Reals) -> Floats:
    """Expected number of samples of true class k (rows) and given label j (columns), `(K, K)` float64."""
    labels = np.zeros_like(r)
    labels[np.arange(len(given)), given] = 1
    return np.asarray(r.T @ labels, dtype=np.float64)


def shrunk_rows(counts: Floats, strength: float = 10.0) -> Floats:
    """Turn counts of (true, given) into P(given | true), each row drawn towards the rate of all, equation (5).

    Args:
        counts: `(K, K)` float64, not negative.
        strength: how many labels the common rate is worth.

    Returns:
        `(K, K)` float64, positive, rows sum to one; a class without samples gets the common rate.
    """
    total = max(float(counts.sum()), TINY)
    right = min(max(float(np.trace(counts)) / total, TINY), 1 - TINY)
    common = (1 - right) * _common_shape(counts)
    common[np.diag_indices(len(counts))] = right
    rows = counts + strength * common + TINY
    return np.asarray(rows / rows.sum(axis=1, keepdims=True))


def drawn_together(counts: Floats) -> Floats:
    """Counts of (true, given) whose wrong labels are spread over classes as those of all rows, where that fits, (7).

    Counts about a common shape have Pearson's X^2 = (n + c) / (1 + c) per degree of freedom, n wrong labels to a row
    and c the precision of a Dirichlet distribution: how many wrong labels the common shape is worth. It is taken for
    three times n at most, so that rows that look alike by chance keep something of their own.

    Args:
        counts: `(K, K)` float64, not negative.

    Returns:
        `(K, K)` float64; the diagonal and the sums of rows are as they were.
    """
    wrong = counts - np.diag(np.diag(counts))
    sizes = wrong.sum(axis=1, keepdims=True)
    freedom = (len(counts) - 2) * np.count_nonzero(sizes)
    if freedom <= 0:
        return counts
    shape = _common_shape(counts)
    per_row = float((sizes**2).sum() / sizes.sum())
    excess = float(((wrong - sizes * shape) ** 2 / np.maximum(sizes * shape, TINY)).sum()) / freedom - 1
    worth = min(max((per_row - 1 - excess) / max(excess, TINY), 0.0), 3 * per_row)
    wrong = sizes * (wrong + worth * shape) / np.maximum(sizes + worth, TINY)
    return np.asarray(wrong + np.diag(np.diag(counts)))


def _common_shape(counts: Floats) -> Floats:
    """How wrong labels of each true class are spread if only the frequency of labels counts; rows sum to one."""
    shape = np.tile(counts.sum(axis=0) / max(float(counts.sum()), TINY) + TINY, (len(counts), 1))
    shape[np.diag_indices(len(counts))] = 0
    return np.asarray(shape / shape.sum(axis=1, keepdims=True))


def learn(given: Codes, p: Reals) -> Fit:
    """Estimate T and a, and find out what kind of model made p.

    Args:
        given: `(N,)` codes.
        p: `(N, K)`, rows sum to one.
    """
    num_classes = p.shape[1]
    prior = p.mean(axis=0, dtype=np.float64)
    parts = [(given[rows], in_order(p[rows])) for rows in blocks(len(p), num_classes)]
    mass = np.sum([soft_confusion(top(part), part) for _, part in parts], axis=0)
    learnt = _learnt_noise(_decisions(parts), mass)
    hard, start = _hard_start(parts, prior, learnt)
    transition = hard
    agree, slope = _decisions(start), 1.5
    logs = first = [(labels, np.log(q)) for labels, q in start]

    for repeat in range(2):
        unmixing = transition if learnt else None
        if repeat and learnt:
            logs = [(labels, np.log(unmix(part, transition, prior))) for labels, part in parts]
        for _ in range(6):
            transition, slope = _improved(logs, transition, slope)
    errors = _errors(logs, slope)

    margin = np.concatenate([_margin(log_q) for _, log_q in first])
    median = max(float(np.median(margin)), TINY)
    if not _memorised(margin / median, errors, agree):
        return Fit(prior, unmixing, transition, slope, errors)
    return Fit(prior, hard if learnt else None, None, 8 / median, _errors(first, 8 / median))


def blocks(n: int, num_classes: int, *, larger: int = 1) -> list[slice]:
    """All of n rows in pieces that stay in a core's cache, or in pieces so many times larger."""
    step = max(larger * BLOCK_CELLS // num_classes, 1)
    return [slice(start, start + step) for start in range(0, n, step)]


def _hard_start(parts: Parts, prior: Floats, learnt: bool) -> tuple[Floats, Parts]:
    """T counted over hard decisions, five times, and q as the last of them makes it."""
    now = parts
    for _ in range(5 if learnt else 1):
        transition = shrunk_rows(drawn_together(_known(_decisions(now))))
        now = [(labels, _true_classes(p, transition if learnt else None, prior)) for labels, p in parts]
    return transition, now


def _improved(logs: Parts, transition: Floats, slope: float) -> tuple[Floats, float]:
    """T and a after one step of EM, (3) to (6); `logs` holds labels and log q."""
    counts, gradient, curvature = np.zeros_like(transition), 0.0, 0.0
    for labels, log_q in logs:
        s = _sharpened(log_q, slope)
        r = _believe(s, labels, transition)
        counts += soft_confusion(labels, r)
        one, two = _slope_terms(log_q, r, s)
        gradient, curvature = gradient + one, curvature + two
    return shrunk_rows(drawn_together(counts)), _newton_slope(slope, gradient, curvature)


def _decisions(parts: Parts) -> Floats:
    """Number of samples by most probable class (rows) and given label (columns), `(K, K)`."""
    return np.asarray(sum(_hard_confusion(labels, top(q), q.shape[1]) for labels, q in parts))


def _known(confusion: Floats) -> Floats:
    """The confusion (decisions by labels) less the mistakes in labels of classes that are hardly ever decided for."""
    unknown = confusion.sum(axis=1) < 0.02 * confusion.sum(axis=0)
    return np.where(unknown & ~np.eye(len(confusion), dtype=bool), 0.0, confusion)


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


def _times(q: Reals, matrix: Floats) -> Reals:
    """`q @ matrix` in q's own precision and order."""
    matrix = matrix.astype(q.dtype)
    return q @ matrix if q.flags.c_contiguous else (matrix.T @ q.T).T


def _step(q: Reals, p: Reals, transition: Floats, power: int) -> Reals:
    """One step of (2), w = `power`."""
    ratio = _times(q, transition)
    np.maximum(ratio, 1e-12, out=ratio)
    np.divide(p, ratio, out=ratio)
    ratio = _times(ratio, transition.T)
    q = q * ratio
    for _ in range(power - 1):
        q *= ratio
    q /= q.sum(axis=1, keepdims=True)
    return q


def _floored(q: Reals) -> Reals:
    """No probability below the least one; rows sum to one."""
    q = np.maximum(q, TINY)
    return np.asarray(q / q.sum(axis=1, keepdims=True))


def _true_classes(p: Reals, unmixing: Floats | None, prior: Floats) -> Reals:
    """q: p without the noise that the model learnt, if it did."""
    return _floored(p) if unmixing is None else unmix(p, unmixing, prior)


def _errors(logs: Parts, slope: float) -> float:
    """Share of samples whose most probable class is not the true one, by the model's own calibrated account."""
    doubt = [1 - _sharpened(log_q, slope).max(axis=1) for _, log_q in logs]
    return float(np.concatenate(doubt).mean(dtype=np.float64))


def _memorised(margin: Reals, errors: float, confusion: Floats) -> bool:
    """Whether EM contradicts itself; `margin` (N,) in units of its median, `confusion` by decision (rows) and label."""
    eighth = max(len(margin) // 8, 1)
    labels = confusion.sum(axis=0)
    fitted = bool((np.diag(confusion) >= 0.2 * labels).all())
    risen = np.partition(margin, eighth - 1)[:eighth].mean() > 1 / 8
    return bool(fitted and risen and errors > 1.4 * max((margin < 0.2).mean(), 1 / len(margin)))


def _calibrate(q: Reals, slope: float) -> Reals:
    """Equation (3), `(N, K)`."""
    return _sharpened(np.log(q), slope)


def _sharpened(log_q: Reals, slope: float) -> Reals:
    """Equation (3), `(N, K)`, where the logarithm is at hand."""
    s = log_q - log_q.max(axis=1, keepdims=True)
    s *= slope
    np.exp(s, out=s)
    return np.asarray(s / s.sum(axis=1, keepdims=True))


def _believe(s: Reals, given: Codes, transition: Floats | None) -> Reals:
    """Equation (4), `(N, K)`."""
    if transition is None:
        return s
    matrix = transition.astype(s.dtype)
    r = s * (matrix.T[given] if s.flags.c_contiguous else np.take(matrix, given, axis=1).T)
    r /= r.sum(axis=1, keepdims=True)
    return np.asarray(r)


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
