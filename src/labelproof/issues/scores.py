"""How good a ranking of suspects is, where the truth is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from labelproof.issues.checks import check_column


def average_precision(wrong: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Area under the precision-recall curve, as a step function; tied scores count as one step.

    Args:
        wrong: `(N,)` bool, what is to be found.
        score: `(N,)` float64, higher = more suspicious.

    Returns:
        In [0, 1]; NaN if nothing is wrong.

    Example:
        >>> average_precision(np.array([True, False, True]), np.array([0.9, 0.8, 0.1]))
        0.8333333333333333
    """
    total = int(wrong.sum())
    if total == 0:
        return float("nan")
    order = np.argsort(-score, kind="stable")
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # of each run of equal scores
    found = np.cumsum(wrong[order])[last]
    return float(np.sum(np.diff(found, prepend=0) * found / (last + 1)) / total)


def calibration_error(wrong: NDArray[np.bool_], p_wrong: NDArray[np.float64], bins: int = 10) -> float:
    """Expected calibration error: |share wrong - mean p_wrong| over equal-width bins, weighted by their size.

    Args:
        wrong: `(N,)` bool.
        p_wrong: `(N,)` float64 in [0, 1].
        bins: how many.

    Returns:
        In [0, 1].

    Example:
        >>> calibration_error(np.array([True, True, False, False]), np.array([0.9, 0.9, 0.1, 0.1])).__round__(3)
        0.1
    """
    which = np.minimum((p_wrong * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(which, weights=wrong - p_wrong, minlength=bins)
    return float(np.abs(gaps).sum() / len(wrong))


def summarise(table: pd.DataFrame, truth: ArrayLike | None = None) -> dict[str, Any]:
    """Count what a table of issues says, and measure it where the truth is known.

    Args:
        table: from `find_issues` or `find_target_issues` (its index, the input's row numbers, is used).
        truth: `(N,)` in the order of the input: the true labels, in the values of `table.given`; or bool, True where
            the label is wrong.

    Returns:
        `samples`, `flagged`, `expected_wrong` (sum of p_wrong). With the truth also `wrong`, `average_precision` (of
        the ranking), `precision` and `recall` (of `flagged`; NaN where undefined), `precision_at_wrong` (of as many as
        are wrong, from the top), `calibration_error` (of `p_wrong`,
        10 bins), and for true labels `suggestions_right` (share of the found wrong labels with the right suggestion).

    Raises:
        ValueError: a truth of another length, or none of whose values is a given label.

    Example:
        >>> probs = np.array([[0.9, 0.1]] * 30 + [[0.1, 0.9]] * 30)
        >>> from labelproof.issues import find_issues
        >>> labels, truth = np.repeat([0, 1], 30), np.repeat([0, 1], 30)
        >>> labels[:3] = 1
        >>> result = summarise(find_issues(labels, probs), truth)
        >>> result["flagged"], result["wrong"], result["average_precision"]
        (3, 3, 1.0)
    """
    flagged = table["flagged"].to_numpy(dtype=bool)
    p_wrong = table["p_wrong"].to_numpy(dtype=np.float64)
    result: dict[str, Any] = {
        "samples": len(table),
        "flagged": int(flagged.sum()),
        "expected_wrong": float(p_wrong.sum()),
    }
    if truth is None:
        return result
    known = check_column(truth, "truth", len(table))[table.index.to_numpy()]
    given = table["given"].to_numpy()
    right: NDArray[np.bool_] | None = None
    if known.dtype.kind == "b" and given.dtype.kind != "b":
        wrong = known
    else:
        if not np.isin(known, given).any():
            raise ValueError(
                f"truth has none of the given labels (it starts with {known[0]!s}, given with {given[0]!s}): "
                "pass true labels in the values of table.given, or a bool mask of the wrong ones"
            )
        wrong = np.asarray(known != given, dtype=bool)
        right = np.asarray(known == table["suggested"].to_numpy(), dtype=bool)
    found = int((wrong & flagged).sum())
    result |= {
        "wrong": int(wrong.sum()),
        "average_precision": average_precision(wrong, -table["rank"].to_numpy(dtype=np.float64)),
        "precision": found / int(flagged.sum()) if flagged.any() else float("nan"),
        "recall": found / int(wrong.sum()) if wrong.any() else float("nan"),
        "precision_at_wrong": float(wrong[table["rank"].to_numpy().argsort()][: wrong.sum()].mean())
        if wrong.any()
        else float("nan"),
        "calibration_error": calibration_error(wrong, p_wrong),
    }
    if right is not None:
        result["suggestions_right"] = float((right & wrong & flagged).sum() / found) if found else float("nan")
    return result
