r"""Adversaries for class labels: who sees the data and a model of it relabels the rows that do most harm. NumPy only.

Agnostic corruption (Liu et al., "Learning Deep Neural Networks under Agnostic Corrupted Supervision", ICML 2021): at
most $\lfloor \epsilon N \rfloor$ of the N labels are wrong, and nothing is assumed on which or how. These are two of
the ways to use the budget up; `docs/noise.md` has them in words. Definitions are our own. With $p$ the `(N, K)`
probabilities of the model that the adversary sees and $y$ the right labels:

    (1)  loss      $j_i = \arg\min_{j \neq y_i} p_{ij}$, gain $g_i = \log p_{i y_i} - \log p_{i j_i}$; the rows of
                   largest gain become $j_i$. No choice of rows and labels within the budget has a larger sum of
                   losses $-\sum_i \log p_{i \tilde y_i}$. Rows of negative gain keep their label
    (2)  targeted  rows of class s become t, those of largest $p_{it}$ first: of all choices of as many rows of s the
                   one of least loss, so that filters on the loss see least
    (3)  pairs     the next pair (s, t) has the largest $\frac{1}{n_s} \sum_{i \in A} p_{it}$, A the rows of s that the
                   remaining budget b covers, $|A| = \min(b, n_s)$: much of the class, and much like t
    (4)  model     $p = \mathrm{softmax}(Z W / \tau)$, Z standardised features and a 1, W the ridge regression of
                   one-hot labels on Z, $\tau$ of least log loss on a grid

Everything follows from the data; the generator only decides between equal rows and classes. The linear model is a weak
eye: an adversary that sees the network itself takes its probabilities as `pred_probs`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelproof.data.noise_features import Features
from labelproof.data.noise_labels import Codes, Floats, show

#: Features that the own model takes: beyond, its matrix of squares would fill gigabytes.
MOST_FEATURES = 8192
#: Ridge, per row: small beside the variance of a standardised feature, 1.
_RIDGE = 0.01
#: Temperatures tried. Regression on one-hot labels has scores between about 0 and 1, softmax wants them further apart.
_TEMPERATURES = np.geomspace(0.01, 1, 25)
_TINY = np.finfo(np.float64).tiny  # what a probability of 0 counts as


def adversarial_loss(
    table: NDArray[Any],
    codes: Codes,
    x: NDArray[Any] | None,
    budget: int,
    rng: np.random.Generator,
    *,
    pred_probs: Any = None,
) -> tuple[Codes, dict[str, Any]]:
    """Relabel the rows whose loss rises most (1).

    Args:
        table: `(K,)` label values.
        codes: `(N,)` right classes.
        x: `(N, ...)` features; needed without `pred_probs`.
        budget: rows that may be relabelled.
        rng: decides between equals.
        pred_probs: `(N, K)` probabilities of the model that the adversary sees; by default of its own (4).

    Returns:
        `(N,)` classes after the attack, and what the adversary chose (here nothing).

    Raises:
        ValueError: neither `x` nor `pred_probs`, or they do not fit.

    >>> p = np.array([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5]])
    >>> adversarial_loss(np.array(["a", "b"]), np.array([0, 0, 1]), None, 1, np.random.default_rng(0), pred_probs=p)[0]
    array([1, 0, 1])
    """
    p = _probabilities("adversarial-loss", table, codes, x, pred_probs)
    rows, order = np.arange(len(codes)), rng.permutation(len(table))
    right = p[rows, codes]
    p[rows, codes] = np.inf
    wrong = order[p[:, order].argmin(axis=1)]
    gain = np.log(right) - np.log(p[rows, wrong])
    chosen = _first(gain, budget, rng)
    chosen = chosen[gain[chosen] >= 0]
    new = codes.copy()
    new[chosen] = wrong[chosen]
    return new, {}


def adversarial_targeted(
    table: NDArray[Any],
    codes: Codes,
    x: NDArray[Any] | None,
    budget: int,
    rng: np.random.Generator,
    *,
    source: Any = None,
    target: Any = None,
    pred_probs: Any = None,
) -> tuple[Codes, dict[str, Any]]:
    """Relabel class `source` as `target`, rows most like the target first (2); then the next pair (3).

    Args:
        table: `(K,)` label values.
        codes: `(N,)` right classes.
        x: `(N, ...)` features; needed without `pred_probs`.
        budget: rows that are relabelled.
        rng: decides between equals.
        source: label value of the first class attacked; by default the adversary's choice (3).
        target: what it is to be learned as, likewise.
        pred_probs: `(N, K)` probabilities of the model that the adversary sees; by default of its own (4).

    Returns:
        `(N,)` classes after the attack, and the first `source` and `target`.

    Raises:
        ValueError: neither `x` nor `pred_probs`, or they do not fit; `source` or `target` is no class, both are the
            same, the source has no rows, or all rows are the target's.

    >>> p = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8]])
    >>> pets = np.array(["cat", "dog"])
    >>> adversarial_targeted(pets, np.array([0, 0, 1]), None, 1, np.random.default_rng(0), source="cat", pred_probs=p)
    (array([1, 0, 1]), {'source': 'cat', 'target': 'dog'})
    """
    s, t = _code("source", source, table), _code("target", target, table)
    if s is not None and s == t:
        raise ValueError(f"source and target are both {source!r}: name two classes of {show(table)}, or only one")
    if s is not None and not (codes == s).any():
        raise ValueError(f"source {source!r} has no rows in y: name a class that has, or leave source= out")
    if t is not None and (codes == t).all():
        raise ValueError(f"target {target!r} is the label of every row of y: name another class, or leave target= out")
    p = _probabilities("adversarial-targeted", table, codes, x, pred_probs)
    members = [np.flatnonzero(codes == c) for c in range(len(table))]
    mean = np.stack([p[m].mean(axis=0) if len(m) else p[0] for m in members])
    open_ = np.array([len(m) > 0 for m in members])
    new = codes.copy()
    pairs: list[tuple[int, int]] = []
    while budget > 0 or not pairs:
        i, j = _next_pair(p, members, mean, open_, max(budget, 1), s, t)
        chosen = members[i][_first(p[members[i], j], budget, rng)]
        new[chosen] = j
        budget -= len(chosen)
        open_[i] = False
        pairs.append((i, j))
        s = t = None
        if not open_.any():
            break
    names = table.tolist()
    return new, {"source": names[pairs[0][0]], "target": names[pairs[0][1]]}


def _next_pair(
    p: Floats, members: list[Codes], mean: Floats, open_: NDArray[np.bool_], budget: int, s: int | None, t: int | None
) -> tuple[int, int]:
    """The pair of largest score (3) among the classes not yet used up; `s` and `t` where they are asked for."""
    score = mean.copy()
    for c in np.flatnonzero(open_):
        n = len(members[c])
        if n > budget:
            score[c] = -np.partition(-p[members[c]], budget - 1, axis=0)[:budget].sum(axis=0) / n
    np.fill_diagonal(score, -np.inf)
    score[~open_] = -np.inf
    asked = np.ones(score.shape, dtype=bool)
    if s is not None:
        asked[np.arange(len(score)) != s] = False
    if t is not None:
        asked[:, np.arange(len(score)) != t] = False
    i, j = np.unravel_index(np.where(asked, score, -np.inf).argmax(), score.shape)
    return int(i), int(j)


def _first(value: Floats, count: int, rng: np.random.Generator) -> Codes:
    """Positions of the `count` largest values; the generator decides between equals."""
    order = rng.permutation(len(value))
    return order[np.argsort(-value[order], kind="stable")[:count]]


def _code(name: str, value: Any, table: NDArray[Any]) -> int | None:
    if value is None:
        return None
    try:
        return int({v: i for i, v in enumerate(table.tolist())}[value])
    except (KeyError, TypeError):  # TypeError: a list, say
        raise ValueError(f"{name} {value!r} is not a label of y ({show(table)})") from None


def _probabilities(kind: str, table: NDArray[Any], codes: Codes, x: NDArray[Any] | None, pred_probs: Any) -> Floats:
    """`(N, K)` float64 probabilities above 0, a new array: those given, checked, or the own model's."""
    if pred_probs is None:
        if x is None:
            raise ValueError(
                f"kind {kind!r} needs a model to attack: pass the inputs, x=, one row per label, and it fits its own, "
                "or pred_probs=, the (N, K) probabilities of yours"
            )
        return own_model(x, codes, len(table))
    p = np.asarray(pred_probs)
    if p.shape != (len(codes), len(table)) or p.dtype.kind not in "fiub":
        raise ValueError(
            f"pred_probs must hold ({len(codes)}, {len(table)}) numbers, a row for each label and a column for each "
            f"class of {show(table)}, got shape {p.shape}, dtype {p.dtype}"
        )
    p = p.astype(np.float64)
    off = ~(np.isfinite(p).all(axis=1) & (p >= 0).all(axis=1) & (np.abs(p.sum(axis=1) - 1) <= 1e-3))
    if off.any():
        raise ValueError(
            f"pred_probs must be probabilities, each row at least 0 and of sum 1: row {int(off.argmax())} is not; "
            "give scores through a softmax first"
        )
    return np.asarray(np.maximum(p, _TINY))


def own_model(x: NDArray[Any], codes: Codes, k: int) -> Floats:
    """`(N, K)` probabilities of a linear model fitted to all rows, in closed form (4).

    Args:
        x: `(N, ...)` numbers.
        codes: `(N,)` classes.
        k: number of classes.

    Raises:
        ValueError: more than `MOST_FEATURES` features, none that varies, or values that are not finite.

    >>> own_model(np.array([[-1.0], [-2.0], [1.0], [2.0]]), np.array([0, 0, 1, 1]), 2).argmax(1)
    array([0, 0, 1, 1])
    """
    n, width = len(codes), int(np.prod(x.shape[1:]))
    if width > MOST_FEATURES:
        raise ValueError(
            f"x has {width:,} features, and the adversary's own model takes at most {MOST_FEATURES:,}: "
            "pass pred_probs=, the (N, K) probabilities of a model of yours"
        )
    features = Features(x)
    gram, by_class = n * _RIDGE * np.eye(width), np.zeros((width, k))
    blocks = list(features.blocks(np.arange(n)))
    for rows in blocks:
        z = features.standardised(rows)
        gram += z.T @ z
        by_class += z.T @ np.eye(k)[codes[rows]]
    w = np.linalg.solve(gram, by_class)
    scores = np.concatenate([features.standardised(rows) @ w for rows in blocks]) + np.bincount(codes, minlength=k) / n
    losses = [-_log_softmax(scores / tau)[np.arange(n), codes].mean() for tau in _TEMPERATURES]
    p: Floats = np.exp(_log_softmax(scores / _TEMPERATURES[int(np.argmin(losses))]))
    return np.maximum(p, _TINY)


def _log_softmax(scores: Floats) -> Floats:
    scores = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)))
