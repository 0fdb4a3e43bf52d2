r"""What kind of noise, and how much: read off the predictions for samples that the networks were not trained on.

Chen, Liao, Chen, Zhang, "Understanding and utilizing deep neural networks trained with noisy labels", ICML 2019, invert
the accuracy against noisy labels that a network has which memorises: `labelproof.procedures.ncv_theory`. A network
that memorises less agrees more, one that is weak agrees less, and the inverse is off by as much. So each kind has an
estimate here that holds for a network of either sort, and equals the inverse for the network of the theory. With C the
shares of samples by predicted and given class, J by predicted and true class, T the noise:

    (1)  C = J T                                       the given label depends on the true class alone
    (2)  symmetric:  P(label is the m-th least likely class) = r_m = eps / (K - 1) + c q^(K - m),  m < 0.9 K
    (3)  pair flips: d, u, w = shares on the diagonal of C, at i -> next(i), at next(i) -> i, less what uniform errors
         put there, then divided by their sum. With a the share that a network predicts right,
         u = a eps,  w = (1 - a)(1 - eps),  so that eps and a are the roots of  z^2 - (1 + u - w) z + u
    (4)  else, or if its interval lies above (2) and memorising does not explain why: the matrix of `lp.estimate_noise`
    (5)  label precision of the agreeing samples = sum_i J_ii T_ii / sum_i C_ii,  with J from (1)

(2) holds because symmetric noise takes every wrong class alike, also those that a network, even a weak one, finds least
likely, where the true class is the rarer the less likely. That shares fall off by one factor q a rank is what they were
seen to do. Where a network's probabilities rank nothing (hard predictions), the theory's inverse is used.
Symbols: `agreement` = trace C.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment, nnls

from labelproof.procedures.ncv_theory import symmetric, symmetric_rate

#: The floor under the ranks is one where the lowest quarter holds this share of what the next does, and is noise where
#: it makes more than this; pair flips explain this share of the disagreement.
FLAT, LEAST, EXPLAINED, MOST = 0.5, 0.02, 0.8, 0.6
#: Where the theory's inverse is more than this above the floor, labels agree less than even a memorising network's
#: would, and it is asked whether there is other noise on top of the floor: by this much more, if there is.
SLACK = 0.05
#: q for ten classes; from more, steps are smaller.
DECAY = np.linspace(0.2, 0.65, 10)
#: An interval of the full matrix's rate that is wider says that the networks hardly know the classes.
WIDE = 0.2
#: Disagreements for each class below which pairs may be found by chance.
FEW = 5
#: A rate told to what follows stays below 1.
HIGHEST = 0.95

if TYPE_CHECKING:
    from labelproof.issues import NoiseEstimate

Floats = NDArray[np.floating]
Codes = NDArray[np.int64]


class NoiseModel(NamedTuple):
    """A transition matrix and where it comes from.

    Attributes:
        kind: `"symmetric"`, `"pairflip"` or `"transition"`.
        rate: share of wrong labels.
        transition: `(K, K)`, rows = true class, each sums to one.
        precision: estimated share of right labels among the samples whose label is the predicted class.
        agreement: share of those samples.
        doubt: why not to trust it; empty if there is no reason.
    """

    kind: str
    rate: float
    transition: Floats
    precision: float
    agreement: float
    doubt: str


def noise_model(given: Codes, prob: Floats, rate: float | None = None) -> NoiseModel:
    """Choose the kind of noise that fits, and estimate it.

    Args:
        given: `(N,)` codes of the given labels.
        prob: `(N, K)` probabilities from networks that were trained on other samples.
        rate: the share of wrong labels where it is known; then only the kind is chosen.

    >>> rng = np.random.default_rng(0)
    >>> true = rng.integers(0, 10, 20_000)
    >>> given = np.where(rng.random(20_000) < 0.4, (true + rng.integers(1, 10, 20_000)) % 10, true)
    >>> sure = 2.0 * np.eye(10)[true] + rng.normal(size=(20_000, 10))  # a weak network: right in 82 % of the cases
    >>> model = noise_model(given, np.exp(sure))
    >>> model.kind, round(model.rate, 1)
    ('symmetric', 0.4)
    """
    k = prob.shape[1]
    cells: Codes = np.bincount(prob.argmax(1) * k + given, minlength=k * k).reshape(k, k)
    counts = cells / len(given)
    agreement = float(np.trace(counts))
    doubt = _doubt(counts)
    transition: Floats
    floor, flips = _symmetric(given, prob, cells), _pairflip(counts, len(given))
    full: NoiseEstimate | None = None
    if floor is not None and symmetric_rate(agreement, k).rate > floor + SLACK:
        full = _full(given, prob)
        floor = floor if full.interval[0] <= floor + SLACK else None
    if flips is not None and (floor is None or k > 3):  # of three classes, pairs explain any noise
        kind, (found, following) = "pairflip", flips
        doubt = doubt or ("of three classes, pair flips explain any noise" if k == 3 else "")
        transition = flipped(found if rate is None else rate, following)
    elif floor is not None:
        kind, found = "symmetric", min(floor, (k - 1) / k)
        transition = symmetric(found if rate is None else rate, k).confusion
    else:
        kind, full = "transition", full or _full(given, prob)
        found, transition, (low, high) = full.rate, full.transition, full.interval
        wide = f"no kind of noise fits, and a full matrix gives {low:.0%} to {high:.0%}"
        doubt = doubt or (wide if high - low > WIDE else "")
        if rate is not None:
            transition = _rescaled(transition, rate / found) if found > 0 else symmetric(rate, k).confusion
    known = min(found if rate is None else rate, HIGHEST)
    return NoiseModel(kind, float(known), transition, label_precision(counts, transition), agreement, doubt)


def _doubt(counts: Floats) -> str:
    """Why predictions that fell on the labels like this say little, if they do."""
    agreement, never = float(np.trace(counts)), (counts.sum(1) == 0) & (counts.sum(0) > 0)
    if agreement <= float(counts.sum(0).max()):  # of one who always gives the most frequent label
        return f"predictions agree with {agreement:.1%} of the labels, no more than the most frequent label would"
    if never.any():
        return f"{never.sum()} of {len(counts)} classes were never predicted"
    return ""


def flipped(rate: float, following: Codes) -> Floats:
    """`(K, K)`: right with 1 - rate, else the one class that follows."""
    eye = np.eye(len(following))
    return (1 - rate) * eye + rate * eye[following]


def label_precision(counts: Floats, transition: Floats) -> float:
    """Share of right labels among the agreeing samples, equation (5).

    Args:
        counts: `(K, K)` samples, or shares of them, by predicted (rows) and given class.
        transition: `(K, K)` T.

    >>> T = symmetric(0.2, 10).confusion
    >>> round(label_precision(T.T @ T / 10, T), 4)  # the network of the theory
    0.9931
    """
    joint = np.clip(counts @ np.linalg.pinv(transition), 0, None)
    agreeing = np.trace(counts)
    right = float((np.diag(joint) * np.diag(transition)).sum())
    return min(right / float(agreeing), 1.0) if agreeing > 0 else float("nan")


def _symmetric(given: Codes, prob: Floats, cells: Codes) -> float | None:
    """The rate of symmetric noise, equation (2); None where the least likely classes are no floor."""
    n, k = prob.shape
    m = k // 4 or int(k == 3 and _spread_out(cells))
    if m == 0:
        return None
    if (np.median(prob, axis=1) == prob.min(1)).mean() > 0.5:  # hard predictions rank nothing
        found, valid = symmetric_rate(float(np.trace(cells / n)), k)
        return found if valid and k > 3 and _spread_out(cells) else None
    ranked = _by_rank(given, prob)
    if ranked[:m].sum() < FLAT * ranked[m : 2 * m].sum():
        return None
    rate = (k - 1) * (_floor(ranked, n) if k >= 6 else ranked[:m].mean())
    return float(rate) if rate >= LEAST else None


def _by_rank(given: Codes, prob: Floats) -> Floats:
    """`(K,)` share of labels whose class is the least likely, the next ... the most likely; ties are shared out."""
    n, k = prob.shape
    of_given = prob[np.arange(n), given][:, None]
    below, level = (prob < of_given).sum(1), (prob == of_given).sum(1)  # of each label's class, itself included
    starts = np.bincount(below, 1 / level, minlength=k + 1) - np.bincount(below + level, 1 / level, minlength=k + 1)
    return np.asarray(starts.cumsum()[:k] / n)


def _floor(ranked: Floats, n: int) -> float:
    """The level a of r_m = a + c q^(K - m), least squares in units of what chance does to each of these shares."""
    k = len(ranked)
    r = ranked[: -max(k // 10, 1)]  # all but the most likely
    power = np.arange(len(r) - 1, -1, -1)
    weight = 1 / np.sqrt(np.maximum(r, 1 / n) / n)
    fits = []
    for q in DECAY ** (10 / k):
        columns = np.stack([np.ones(len(r)), q**power], axis=1)
        (a, _), off = nnls(columns * weight[:, None], r * weight)
        fits.append((off, a))
    return float(min(fits)[1])


def _spread_out(cells: Codes) -> bool:
    """Whether disagreeing labels are of all classes alike: no cell holds three times its share of its row, or most."""
    k, away = len(cells), cells.copy()
    np.fill_diagonal(away, 0)
    by_chance = 3 * k  # the largest of many cells with less than one each
    return bool(away.max(1).sum() - by_chance < min(3 / (k - 1), MOST) * away.sum())


def _pairflip(counts: Floats, n: int) -> tuple[float, Codes] | None:
    """The rate of flips to one other class each and those classes, equation (3); None where they explain too little."""
    k = len(counts)
    if k < 3:
        return None
    following = _following(counts)
    if following is None:
        return None
    at = np.arange(k)
    d, u, w = np.trace(counts), counts[at, following].sum(), counts[following, at].sum()
    disagreement = 1 - d
    rest = max(disagreement - u - w, 0.0) / (k - 3) if k > 3 else 0.0
    if disagreement < max(LEAST, FEW * k / n) or u + w - 2 * rest < EXPLAINED * disagreement:
        return None  # among few, some class is always the next
    d, u, w = (max(v - rest, 0.0) for v in (d, u, w))
    u, w = u / (d + u + w), w / (d + u + w)
    root = np.sqrt(max((1 + u - w) ** 2 - 4 * u, 0.0))
    return float((1 + u - w - root) / 2), following


def _following(counts: Floats) -> Codes | None:
    """To which other class each flips; None where two flip to each other: the roots cannot be told apart."""
    at, away = np.arange(len(counts)), counts.copy()
    np.fill_diagonal(away, -1)
    following: Codes = linear_sum_assignment(away, maximize=True)[1]
    if (following[following] != at).all():
        return following
    # The network of the theory is off by one either way alike, and chance decides which of both an assignment has:
    # look for rings of classes that are neighbours.
    near = np.argsort(away + away.T, axis=1)[:, -2:].tolist()
    if any(i not in near[j] for i in at for j in near[i]):
        return None
    following = np.full_like(at, -1)
    for start in at:
        ring = [start]
        while following[start] < 0 and (ring[-1] != start or len(ring) == 1):
            ring.append(next(j for j in near[ring[-1]] if j not in ring[-2:-1]))
        if len(ring) > 1:
            here, there = np.array(ring[:-1]), np.array(ring[1:])
            ahead = counts[here, there].sum() >= counts[there, here].sum()
            following[here if ahead else there] = there if ahead else here
    return following


def _full(given: Codes, prob: Floats) -> NoiseEstimate:
    """`lp.estimate_noise`."""
    from labelproof.issues import estimate_noise  # pandas, only where it is needed

    with warnings.catch_warnings():  # of probabilities the user never saw: told in other words
        warnings.simplefilter("ignore")
        return estimate_noise(given, prob, classes=np.arange(prob.shape[1]))


def _rescaled(transition: Floats, factor: float) -> Floats:
    """The matrix with so many times the shares off the diagonal, spread as before."""
    before = 1 - np.diag(transition)
    off = np.minimum(before * factor, HIGHEST)
    scaled = transition * np.divide(off, before, out=np.zeros_like(before), where=before > 0)[:, None]
    np.fill_diagonal(scaled, 1 - off)
    return np.asarray(scaled)
