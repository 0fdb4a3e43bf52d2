"""`find_issues`: the list of labels that are probably wrong, worst first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from labelproof.issues.checks import as_numbers, check, check_column, check_evidence, check_ids
from labelproof.issues.verdict import judge, worst_first

LEVELS = 512  # suspicion is calibrated over at most this many groups of samples


def find_issues(
    labels: ArrayLike,
    pred_probs: ArrayLike,
    *,
    classes: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    suspicion: ArrayLike | None = None,
    evidence: Mapping[str, ArrayLike] | None = None,
) -> pd.DataFrame:
    """List every label by how likely it is to be wrong, worst first.

    Args:
        labels: `(N,)` given labels: values of `classes`, or codes 0..K-1.
        pred_probs: `(N, K)` probabilities of each class, best out-of-sample (cross-validation); the time average of a
            network's outputs on its own training samples will do. Arrays, CPU tensors or a DataFrame.
        classes: `(K,)` the class of each column. None: the columns of a DataFrame, else the sorted labels.
        ids: `(N,)` your names of the samples, each different. None: row numbers.
        suspicion: `(N,)` float, higher = more likely wrong, of any scale, from a training method. It replaces the
            ranking; `p_wrong` is then the isotonic regression of the posterior on it. Samples where it is NaN (those
            held out from training) keep their posterior and are ranked by it.
        evidence: further columns of `(N,)` values by name, carried along as `evidence_<name>`.

    Returns:
        One row per sample: `id`; `given` and `suggested` label, in your own values; `p_wrong`, the probability in
        [0, 1] that the label is wrong; `rank`, 1 for the worst; `flagged`, `p_wrong > 0.5` (then `suggested` differs
        from `given`); then the evidence. The index is the row number of the input: `table.sort_index()` restores its
        order. Equations in `labelproof.issues.posterior`.

    Raises:
        ValueError: arguments that do not fit together.

    Example:
        >>> probs = np.array([[0.9, 0.1]] * 30 + [[0.1, 0.9]] * 30)
        >>> labels = ["cat"] * 30 + ["dog"] * 30
        >>> labels[3] = "dog"
        >>> find_issues(labels, probs).round(2).head(2)
            id given suggested  p_wrong  rank  flagged
        3    3   dog       cat      1.0     1     True
        30  30   dog       dog      0.0     2    False
    """
    with threadpool_limits(1, user_api="blas"):  # small products: threads take longer to meet than to multiply
        checked = check(labels, pred_probs, classes)
        n = len(checked.given)
        names = check_ids(ids, n)
        columns = check_evidence(evidence, n)
        scores = None if suspicion is None else check_column(as_numbers(suspicion, "suspicion"), "suspicion", n)
        verdict = judge(checked, all_rows=scores is not None)
    p_wrong = verdict.p_wrong
    if scores is None:
        order = worst_first(verdict.odds)
        falling = np.minimum.accumulate(p_wrong[order])  # exp() may err in the last digit
    else:
        known = ~np.isnan(scores)
        posterior, p_wrong = p_wrong, p_wrong.copy()
        p_wrong[known] = isotonic(posterior[known], scores[known]) if known.any() else []
        order = np.lexsort((-verdict.odds, -np.where(known, scores, -np.inf), -p_wrong))
        falling = p_wrong[order]
    suggested = np.where((p_wrong > 0.5) | verdict.beaten, verdict.other, checked.given)
    small = np.min_scalar_type(len(checked.classes))  # what is looked up in order of rank had better be short
    given, suggested = (checked.classes[codes.astype(small)[order]] for codes in (checked.given, suggested))
    return build_table(order, order if ids is None else names[order], given, suggested, falling, columns)


def build_table(
    order: NDArray[np.int64],
    ids: NDArray[Any],
    given: NDArray[Any],
    suggested: NDArray[Any],
    p_wrong: NDArray[np.float64],
    evidence: Mapping[str, NDArray[Any]],
) -> pd.DataFrame:
    """The table of issues; `order` lists the rows of the input worst first, `(N,)`.

    `evidence` is in the order of the input, all else `(N,)` in that of the table.
    """
    columns = {
        "id": ids,
        "given": given,
        "suggested": suggested,
        "p_wrong": p_wrong,
        "rank": np.arange(1, len(order) + 1),
        "flagged": p_wrong > 0.5,
    }
    return pd.DataFrame(columns | {name: values[order] for name, values in evidence.items()}, index=order, copy=False)


def isotonic(target: NDArray[np.float64], score: NDArray[np.float64]) -> NDArray[np.float64]:
    """The non-decreasing function of `score` that fits `target` best in least squares, at every sample.

    Equal scores get equal values. Scores are grouped (at most 512 groups of equal size), fitted by pooling adjacent
    violators (Ayer et al. 1955), and interpolated between groups.

    Args:
        target: `(N,)` float64 in [0, 1].
        score: `(N,)` float64.

    Returns:
        `(N,)` float64 in [0, 1].

    Example:
        >>> isotonic(np.array([0.1, 0.6, 0.4, 0.9]), np.array([1.0, 2.0, 3.0, 4.0]))
        array([0.1, 0.5, 0.5, 0.9])
    """
    _, level, counts = np.unique(score, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    groups = np.minimum((middle * LEVELS / len(score)).astype(np.int64), LEVELS - 1)
    group = groups[level]
    size = np.bincount(group, minlength=LEVELS)
    used = size > 0
    sums, size = np.bincount(group, weights=target, minlength=LEVELS)[used], size[used]
    place = np.bincount(groups, weights=middle * counts, minlength=LEVELS)[used] / size

    blocks: list[tuple[float, int, int]] = []  # sum of targets, samples, groups
    for total, samples in zip(sums.tolist(), size.tolist(), strict=True):
        block = (total, samples, 1)
        while blocks and blocks[-1][0] * block[1] >= block[0] * blocks[-1][1]:
            before = blocks.pop()
            block = (before[0] + block[0], before[1] + block[1], before[2] + block[2])
        blocks.append(block)
    fitted = np.repeat([total / samples for total, samples, _ in blocks], [groups for _, _, groups in blocks])
    return np.asarray(np.clip(np.interp(middle, place, fitted), 0, 1))[level]
