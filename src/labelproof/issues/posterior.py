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
    q <- q * T (p / T' q)         10 times, from the mean of all p          (2)  undo it: maximum likelihood for (1)
    s_ik = softmax_k(a log q_ik)                                            (3)  calibrate
    r_ik = s_ik T[k, y_i] / sum_l s_il T[l, y_i]                            (4)  Bayes, y_i the given label
    T[k, j] = (sum_i r_ik [y_i = j] + c T0[k, j]) / (sum_i r_ik + c)        (5)  the noise these r imply
    a <- argmax_a sum_ik r_ik log s_ik     (one Newton step)                (6)  the calibration these r imply

(3) to (6) are EM for the likelihood of the given labels, sum_i log sum_k s_ik T[k, y_i]; (2) is repeated with each
better T. (5) shrinks towards T0, one noise rate for all classes (c = 10 labels), so that a class of ten samples
borrows from the others. EM needs a start that already tells noise from ambiguity, as both explain a disagreement:
T counted over hard decisions, r_ik = [k = argmax q_i], five times with (2). That start takes every mistake of the
model for a wrong label; EM then hands back those that the model was unsure about. Of a class that the model hardly
ever decides for (in fewer cases than 2 % of its labels) nothing is known: the start takes all its labels for right.

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

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

TINY = 1e-6  # least probability: log-odds beyond 14 say nothing about noise
FIT_CELLS = 1_000_000  # T and a are fitted on about this many cells of p; more samples would hardly change them


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
class _Fit:
    unmixing: Floats | None  # the T of (2); None where the model did not learn the noise
    transition: Floats | None  # the T of (4); None where the label must not be counted twice
    slope: float
    errors: float


def infer(given: Codes, p: Floats) -> Posterior:
    """Infer each sample's true class from its given label and predicted probabilities.

    Args:
        given: `(N,)` int64 class codes in 0..K-1.
        p: `(N, K)` float64, rows sum to one.

    Returns:
        The posterior; time is O(N K^2), memory O(N K).
    """
    n, num_classes = p.shape
    most = max(FIT_CELLS // num_classes, 3 * num_classes)
    some = np.random.default_rng(0).choice(n, most, replace=False) if n > most else np.arange(n)
    prior = p.mean(axis=0)
    fit = _fit(given[some], p[some], prior)
    proba = np.empty_like(p)
    for start in range(0, n, most):  # bounded memory, not a loop over samples
        rows = slice(start, start + most)
        s = _calibrate(_true_classes(p[rows], fit.unmixing, prior), fit.slope)
        proba[rows] = _believe(s, given[rows], fit.transition)
    transition = shrunk_rows(soft_confusion(given, proba))
    return Posterior(proba, transition, fit.errors, memorised=fit.transition is None)


def unmix(p: Floats, transition: Floats, prior: Floats, *, steps: int = 10) -> Floats:
    """Take the noise out of predictions of noisy labels, equation (2).

    Args:
        p: `(N, K)` float64, probabilities of the given labels, rows sum to one.
        transition: `(K, K)` float64, P(given j | true k).
        prior: `(K,)` float64, positive, where the steps start.
        steps: multiplicative steps, each of which raises the likelihood.

    Returns:
        `(N, K)` float64 in [1e-6, 1], rows sum to one: probabilities of the true classes.

    Example:
        >>> flips = np.array([[0.6, 0.4, 0.0], [0.0, 0.6, 0.4], [0.4, 0.0, 0.6]])  # 40 % into the next class
        >>> int(unmix(np.array([[0.45, 0.55, 0.0]]), flips, np.ones(3) / 3).argmax())  # 1 would have left some for 2
        0
    """
    q = np.tile(prior, (len(p), 1))
    for _ in range(steps):
        q *= (p / np.maximum(q @ transition, 1e-12)) @ transition.T
    np.maximum(q, TINY, out=q)
    q /= q.sum(axis=1, keepdims=True)
    return q


def soft_confusion(given: Codes, r: Floats) -> Floats:
    """Expected number of samples of true class k (rows) and given label j (columns), `(K, K)` float64."""
    num_classes = r.shape[1]
    counts = np.empty((num_classes, num_classes))
    for k in range(num_classes):
        counts[k] = np.bincount(given, weights=r[:, k], minlength=num_classes)
    return counts


def shrunk_rows(counts: Floats, strength: float = 10.0) -> Floats:
    """Turn counts of (true, given) into P(given | true), each row drawn towards the rate of all, equation (5).

    Args:
        counts: `(K, K)` float64, not negative.
        strength: how many labels the common rate is worth.

    Returns:
        `(K, K)` float64, positive, rows sum to one; a class without samples gets the common rate.
    """
    num_classes = len(counts)
    total = max(float(counts.sum()), TINY)
    right = min(max(float(np.trace(counts)) / total, TINY), 1 - TINY)
    labels = counts.sum(axis=0) / total + TINY
    common = (1 - right) * labels / (labels.sum() - labels)[:, None]
    common[np.diag_indices(num_classes)] = right
    rows = counts + strength * common + TINY
    return np.asarray(rows / rows.sum(axis=1, keepdims=True))


def _fit(given: Codes, p: Floats, prior: Floats) -> _Fit:
    """Estimate T and a, and find out what kind of model made p."""
    num_classes = p.shape[1]
    learnt = _learnt_noise(_hard_confusion(given, p.argmax(axis=1), num_classes), p)
    q = p
    for _ in range(5):
        transition = shrunk_rows(_known(_hard_confusion(given, q.argmax(axis=1), num_classes)))
        q = _true_classes(p, transition if learnt else None, prior)
    hard, margin, slope = transition, _margin(np.log(q)), 1.5
    agree = _hard_confusion(given, q.argmax(axis=1), num_classes)

    for repeat in range(4):
        unmixing = transition if learnt else None
        if repeat:
            q = _true_classes(p, unmixing, prior)
        log_q = np.log(q)
        for _ in range(4):
            s = _calibrate(q, slope)
            r = _believe(s, given, transition)
            transition = shrunk_rows(soft_confusion(given, r))
            slope = _newton_slope(slope, log_q, r, s)
    errors = _errors(q, slope)

    median = max(float(np.median(margin)), TINY)
    if not _memorised(margin / median, errors, agree):
        return _Fit(unmixing, transition, slope, errors)
    unmixing, slope = (hard if learnt else None), 8 / median
    return _Fit(unmixing, None, slope, _errors(_true_classes(p, unmixing, prior), slope))


def _known(confusion: Floats) -> Floats:
    """The confusion (decisions by labels) less the mistakes in labels of classes that are hardly ever decided for."""
    unknown = confusion.sum(axis=1) < 0.02 * confusion.sum(axis=0)
    return np.where(unknown & ~np.eye(len(confusion), dtype=bool), 0.0, confusion)


def _learnt_noise(confusion: Floats, p: Floats) -> bool:
    """Whether the model predicts the labels rather than the truth; `confusion` by decision (rows) and label."""
    sizes = np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    apart = ~np.eye(len(confusion), dtype=bool)
    weights = np.broadcast_to(sizes, confusion.shape)[apart]
    labels = (confusion / sizes)[apart]
    predicted = (soft_confusion(p.argmax(axis=1), p).T / sizes)[apart]
    mean = np.average(labels, weights=weights)
    labels -= mean
    spread = (weights * labels**2).sum()
    by_chance = mean * (1 - mean) * labels.size
    return bool(spread < 3 * by_chance or (weights * labels * predicted).sum() > 0.3 * spread)


def _true_classes(p: Floats, unmixing: Floats | None, prior: Floats) -> Floats:
    """q: p without the noise that the model learnt, if it did."""
    if unmixing is not None:
        return unmix(p, unmixing, prior)
    q = np.maximum(p, TINY)
    q /= q.sum(axis=1, keepdims=True)
    return q


def _errors(q: Floats, slope: float) -> float:
    """Share of samples whose most probable class is not the true one, by the model's own calibrated account."""
    return float(1 - _calibrate(q, slope).max(axis=1).mean())


def _memorised(margin: Floats, errors: float, confusion: Floats) -> bool:
    """Whether EM contradicts itself; `margin` (N,) in units of its median, `confusion` by decision (rows) and label."""
    eighth = max(len(margin) // 8, 1)
    labels = confusion.sum(axis=0)
    fitted = bool((np.diag(confusion) >= 0.2 * labels).all())
    risen = np.partition(margin, eighth - 1)[:eighth].mean() > 1 / 8
    return bool(fitted and risen and errors > 1.4 * max((margin < 0.2).mean(), 1 / len(margin)))


def _calibrate(q: Floats, slope: float) -> Floats:
    """Equation (3), `(N, K)`."""
    s = np.log(q)
    s -= s.max(axis=1, keepdims=True)
    s *= slope
    np.exp(s, out=s)
    s /= s.sum(axis=1, keepdims=True)
    return s


def _believe(s: Floats, given: Codes, transition: Floats | None) -> Floats:
    """Equation (4), `(N, K)`."""
    if transition is None:
        return s
    r = s * transition.T[given]
    r /= r.sum(axis=1, keepdims=True)
    return r


def _newton_slope(slope: float, log_q: Floats, r: Floats, s: Floats) -> float:
    """Equation (6): one guarded Newton step; the second derivative is the variance of log q under s."""
    gradient = np.vdot(r - s, log_q)
    mean = np.einsum("nk,nk->n", s, log_q)
    curvature = np.einsum("nk,nk,nk->", s, log_q, log_q) - mean @ mean
    step = float(gradient / max(curvature, TINY))
    return min(max(slope + min(max(step, -0.3), 0.3), 0.3), 8.0)


def _margin(log_q: Floats) -> Floats:
    """Log-odds between the two most probable classes, `(N,)`."""
    top = np.partition(log_q, log_q.shape[1] - 2, axis=1)[:, -2:]
    return np.asarray(top[:, 1] - top[:, 0])


def _hard_confusion(given: Codes, believed: Codes, num_classes: int) -> Floats:
    """Number of samples by believed class (rows) and given label (columns), `(K, K)`."""
    cells = np.bincount(believed * num_classes + given, minlength=num_classes**2)
    return np.asarray(cells.reshape(num_classes, num_classes), dtype=np.float64)
