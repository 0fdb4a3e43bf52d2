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
| d | `decided` | (N,) | the class of the largest q |
| a | `slope` | | how sharp q should be (1 / temperature) |
| log b | `offset` | (K, K) | by class decided for (rows): how much more often it is truly j than q says |
| s | `s` | (N, K) | q calibrated |
| r | `r` | (N, K) | P(true k given p and the given label): the result |

    p_i = T' q_i                                                            (1)  what training on noisy labels does
    q <- q * (T (p / T' q))^w     w = 1, 2, 2, 2, 2, from the mean of all p (2)  undo it: maximum likelihood for (1)
    s_ij = softmax_j(a log q_ij + log b[d_i, j])                            (3)  calibrate
    r_ik = s_ik T[k, y_i] / sum_l s_il T[l, y_i]                            (4)  Bayes, y_i the given label
    T[k, j] / T[k, k] = sum_(d_i = k, y_i = j, U_ij) r_ik / #(d_i = k, y_i = k, U_ij)     (5)  the noise these r imply
    a <- argmax_a sum_ik r_ik log s_ik     (one Newton step)                (6)  the calibration these r imply
    b[k, j] <- b[k, j] (c + sum_(d_i = k) r_ij) / (c + sum_(d_i = k) s_ij)       with c = 30 samples

(3) to (6) are EM for the likelihood of the given labels, sum_i log sum_k s_ik T[k, y_i]; (2) is repeated with each
better T. Its w = 1 is maximum likelihood's own step; longer ones get as far in five as those in ten (three are taken
of 32 classes or more). b needs 30 samples for each pair of classes; where there are fewer it stays 1.

U_ij in (5) chooses the samples in which the model holds j for less likely, beside k, than it usually does where it
decides for k: log q_ij - log q_ik is no larger than its mean over all i with d_i = k. The choice looks at p alone, so
that it changes nothing of what is counted where (4) holds; but where the model confuses j and k it leaves out the
samples that it confuses, whose labels would be taken for wrong. The rates (5) are drawn towards how often each label
occurs, by as much as chance explains of the differences between classes (7, `learning.drawn_together`): where noise is
symmetric, a few flips into one class and none into another mean nothing. Rows of T are then drawn towards one noise
rate for all classes (10 labels' worth), so that a class of ten samples borrows from the others.

A weak model's mistakes still look like class-dependent noise. EM is therefore run twice, with T as it is and with T
whose wrong labels are spread as labels are; the one is taken that predicts labels better, by the sum of
log P(given label) with each sample's own share in T taken out (leave one out: many cells are no advantage in
themselves). That needs b, which both have to explain the model's mistakes by. A model that predicts noisy labels to
perfection leaves nothing to tell the two by, and class-dependent noise then passes for its mistakes; so the even T must
also account for more than half of the labels that the other one believes wrong.

EM needs a start that already tells noise from ambiguity, as both explain a disagreement: T is counted over hard
decisions, r_ik = [k = d_i], up to five times with (2) between. That start takes every mistake of the model for a wrong
label; EM then hands back those that the model was unsure about. Of a class that the model hardly ever decides for (in
fewer cases than 2 % of its labels) nothing is known: the start takes all its labels for right. Of many samples, some
are fitted, and the last two steps are taken with more (`verdict.fitted`).

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

TINY = 1e-6  # least probability: log-odds beyond 14 say nothing about noise
FIT_ROWS, FIT_CELLS = 10_000, 500_000  # T and a are fitted on at most so many samples and probabilities,
FIT_PER_CLASS = 5  # but on so many samples for each class at least;
COUNTED, COUNTED_CELLS = 6, 1_000_000  # EM ends on so many times as many, but on no more probabilities than this
POWERS = (1, 2, 2, 2, 2)  # the w of (2),
SHORT = (1, 2, 2)  # of many classes, whose products take most of the time, and while T is sought
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
    """What `learning` found out about noise and model.

    Attributes:
        prior: `(K,)` mean probabilities, where (2) starts.
        unmixing: `(K, K)` the T of (2); None where the model did not learn the noise.
        transition: `(K, K)` the T of (4); None where the label must not be counted twice.
        slope: the a of (3).
        offset: `(K, K)` the log b of (3); None: zeros.
        errors: as in `Posterior`.
    """

    prior: Floats
    unmixing: Floats | None
    transition: Floats | None
    slope: float
    offset: Floats | None
    errors: float

    def believe(self, given: Codes, p: Reals) -> Reals:
        """P(true class) of some samples, (2) to (4).

        Args:
            given: `(N,)` codes.
            p: `(N, K)` probabilities, rows sum to one.

        Returns:
            `(N, K)`, of p's dtype and order; rows sum to one.
        """
        return bayes(self.calibrated(p), given, self.transition)

    def calibrated(self, p: Reals) -> Reals:
        """The s of (3), `(N, K)`: what is believed before the labels are looked at."""
        return sharpened(np.log(true_classes(p, self.unmixing, self.prior)), self.slope, self.offset)


def sample_rows(n: int, num_classes: int) -> Codes:
    """The rows that noise is counted over, sorted: all of them, or some at random, the same each time."""
    fit = fit_rows(num_classes)
    most = max(min(COUNTED * fit, COUNTED_CELLS // num_classes), fit)
    return np.arange(n) if most >= n else np.sort(np.random.default_rng(0).choice(n, most, replace=False))


def fit_rows(num_classes: int) -> int:
    """On how many samples T and a are fitted."""
    return max(min(FIT_ROWS, FIT_CELLS // num_classes), FIT_PER_CLASS * num_classes)


def in_order(p: Reals) -> Reals:
    """The same numbers, laid out for speed: by class where there are few, as sums over them then add long columns."""
    return np.asarray(p, order="F" if p.shape[1] < MANY else "C")


def top(p: Reals) -> Codes:
    """The most probable class of each row, `(N,)`; the first of equal ones."""
    if p.flags.c_contiguous:
        return np.asarray(p.argmax(axis=1), dtype=np.int64)
    most, found = p.max(axis=1), np.zeros(len(p), np.int8 if p.shape[1] < 128 else np.int64)
    for k in range(p.shape[1] - 1, 0, -1):  # down long columns, which is far faster than along short rows
        np.copyto(found, k, where=p[:, k] == most)
    np.copyto(found, 0, where=p[:, 0] == most)
    return found.astype(np.int64)


def infer(given: Codes, p: Reals, fit: Fit) -> Posterior:
    """Infer each sample's true class from its given label and predicted probabilities.

    Args:
        given: `(N,)` int64 class codes in 0..K-1.
        p: `(N, K)`, rows sum to one.
        fit: what is known of noise and model.

    Returns:
        The posterior; time is O(N K^2), memory O(N K).
    """
    n, num_classes = p.shape
    proba, counts = np.empty((n, num_classes)), np.zeros((num_classes, num_classes))
    for rows in blocks(n, num_classes):
        proba[rows] = fit.believe(given[rows], in_order(p[rows]))
        counts += soft_confusion(given[rows], proba[rows])
    return Posterior(proba, shrunk_rows(counts), fit.errors, memorised=fit.transition is None)


def unmix(p: Reals, transition: Floats, prior: Floats, powers: tuple[int, ...] | None = None) -> Reals:
    """Take the noise out of predictions of noisy labels, equation (2).

    Args:
        p: `(N, K)`, probabilities of the given labels, rows sum to one.
        transition: `(K, K)` float64, P(given j | true k).
        prior: `(K,)` float64, positive, where the steps start.
        powers: the w of each step, the first of which is 1; None: `POWERS`, or `SHORT` for many classes.

    Returns:
        `(N, K)` of p's dtype in [1e-6, 1], rows sum to one: probabilities of the true classes.

    Example:
        >>> flips = np.array([[0.6, 0.4, 0.0], [0.0, 0.6, 0.4], [0.4, 0.0, 0.6]])  # 40 % into the next class
        >>> int(unmix(np.array([[0.45, 0.55, 0.0]]), flips, np.ones(3) / 3).argmax())  # 1 would have left some for 2
        0
    """
    powers = powers or (SHORT if p.shape[1] >= MANY else POWERS)
    first = prior[:, None] * transition / np.maximum(prior @ transition, 1e-12)
    q = _times(p, first.T)  # the first step: all samples start alike
    for power in powers[1:]:
        q = _step(q, p, transition, power)
    return _floored(q)


def soft_confusion(given: Codes, r: Reals, num_labels: int | None = None) -> Floats:
    """Expected number of samples of true class k (rows) and given label j (columns), `(K, num_labels or K)` float64."""
    labels = np.zeros((len(r), num_labels or r.shape[1]), r.dtype, order="F" if r.flags.f_contiguous else "C")
    labels[np.arange(len(given)), given] = 1
    return np.asarray(r.T @ labels, dtype=np.float64)


def shrunk_rows(counts: Floats, strength: float = 10.0) -> Floats:
    """Turn counts of (true, given) into P(given | true), each row drawn towards the rate of all.

    Args:
        counts: `(K, K)` float64, not negative.
        strength: how many labels the common rate is worth.

    Returns:
        `(K, K)` float64, positive, rows sum to one; a class without samples gets the common rate.
    """
    total = max(float(counts.sum()), TINY)
    right = min(max(float(np.trace(counts)) / total, TINY), 1 - TINY)
    common = (1 - right) * common_shape(counts.sum(axis=0))
    common[np.diag_indices(len(counts))] = right
    rows = counts + strength * common + TINY
    return np.asarray(rows / rows.sum(axis=1, keepdims=True))


def common_shape(labels: NDArray[Any]) -> Floats:
    """How wrong labels of each true class are spread if only the number `(K,)` of labels counts; rows sum to one."""
    shape = np.tile(labels / max(float(labels.sum()), TINY) + TINY, (len(labels), 1))
    shape[np.diag_indices(len(labels))] = 0
    return np.asarray(shape / shape.sum(axis=1, keepdims=True))


def blocks(n: int, num_classes: int, *, larger: int = 1) -> list[slice]:
    """All of n rows in pieces that stay in a core's cache, or in pieces so many times larger."""
    step = max(larger * BLOCK_CELLS // num_classes, 1)
    return [slice(start, start + step) for start in range(0, n, step)]


def _times(q: Reals, matrix: Floats) -> Reals:
    """`q @ matrix` in q's own precision and order."""
    matrix = matrix.astype(q.dtype)
    return q @ matrix if q.flags.c_contiguous else (matrix.T @ q.T).T


def _sums(q: Reals) -> Reals:
    """Sums of rows, `(N, 1)`: a product is faster than `sum`."""
    return (q @ np.ones(q.shape[1], q.dtype))[:, None]


def _step(q: Reals, p: Reals, transition: Floats, power: int) -> Reals:
    """One step of (2), w = `power`."""
    ratio = _times(q, transition)
    np.maximum(ratio, 1e-12, out=ratio)
    np.divide(p, ratio, out=ratio)
    ratio = _times(ratio, transition.T)
    q = q * ratio
    for _ in range(power - 1):
        q *= ratio
    q /= _sums(q)
    return q


def _floored(q: Reals) -> Reals:
    """No probability below the least one; rows sum to one."""
    q = np.maximum(q, TINY)
    return np.asarray(q / _sums(q))


def true_classes(p: Reals, unmixing: Floats | None, prior: Floats, powers: tuple[int, ...] | None = None) -> Reals:
    """q: p without the noise that the model learnt, if it did."""
    return _floored(p) if unmixing is None else unmix(p, unmixing, prior, powers)


def sharpened(log_q: Reals, slope: float, offset: Floats | None) -> Reals:
    """Equation (3), `(N, K)`; `log_q` is log q."""
    s = log_q * log_q.dtype.type(slope)
    if offset is not None:
        s += by_row(offset, top(log_q), s)
    s -= s.max(axis=1, keepdims=True)
    np.exp(s, out=s)
    s /= _sums(s)
    return s


def bayes(s: Reals, given: Codes, transition: Floats | None) -> Reals:
    """Equation (4), `(N, K)`."""
    if transition is None:
        return s
    r = s * by_row(transition.T, given, s)
    r /= _sums(r)
    return np.asarray(r)


def by_row(matrix: Floats, rows: Codes, like: Reals) -> Reals:
    """`matrix[rows]`, in the precision and order of `like`."""
    matrix = matrix.astype(like.dtype)
    return matrix[rows] if like.flags.c_contiguous else np.take(matrix.T, rows, axis=1).T
