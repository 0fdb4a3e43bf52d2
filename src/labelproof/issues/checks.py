"""Look at labels and probabilities before anything is computed from them: nonsense in must not give numbers out.

What cannot be meant raises `ValueError`; what can be meant, but seldom is, gives a `UserWarning`. Both name the
argument, what was found, and what to do.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, DTypeLike, NDArray

from labelproof.issues.posterior import MANY, Reals, blocks, in_order, sample_rows

ENOUGH = 20  # fewer labels than this agree or disagree by chance
CALLER = 4  # stacklevel of the line that called find_issues or estimate_noise, seen from _suspect


@dataclass(frozen=True)
class Checked:
    """Labels and probabilities that fit together.

    Attributes:
        given: `(N,)` int64, the given labels as codes 0..K-1.
        p: `(N, K)` float32 or float64, the probabilities as they were passed: `rows` has them sum to one.
        classes: `(K,)` the label each code stands for, in the user's own values.
        some: the rows of a sample, sorted; all of them where there are few.
        sample: `rows(some)`, in double precision where they are all, else in single precision.
    """

    given: NDArray[np.int64]
    p: Reals
    classes: NDArray[Any]
    some: NDArray[np.int64]
    sample: Reals

    def rows(self, which: slice | NDArray[np.int64], dtype: DTypeLike) -> Reals:
        """Some rows of p, a copy, in the order that `posterior` wants; each sums to one."""
        return normalised(self.p[which], dtype)


def normalised(p: Reals, dtype: DTypeLike) -> Reals:
    """A copy of `(N, K)` probabilities, in [0, 1], whose rows sum to one."""
    p = in_order(p.astype(dtype, order="F" if p.shape[1] < MANY else "C"))
    np.clip(p, 0, 1, out=p)
    p /= p.sum(axis=1, keepdims=True)
    return p


def check(labels: ArrayLike, pred_probs: ArrayLike, classes: ArrayLike | None) -> Checked:
    """Check labels and probabilities together; to be called by the public functions themselves (see `CALLER`).

    Args:
        labels: `(N,)` codes or values.
        pred_probs: `(N, K)` probabilities; the columns of a DataFrame name the classes.
        classes: `(K,)` values in column order, or None to infer them.

    Raises:
        ValueError: shapes, lengths, values or classes that do not fit.
    """
    values = _labels(labels)
    columns = getattr(pred_probs, "columns", None)
    if classes is None and columns is not None and pd.Index(columns).get_indexer(pd.Index(values)).min() >= 0:
        classes = columns
    p = _probabilities(pred_probs, len(values))
    names = _classes(values, classes, p.shape[1])
    some = sample_rows(*p.shape)
    sample = normalised(p[some], np.float64 if len(some) == len(p) else np.float32)
    checked = Checked(_codes(values, names), p, names, some, sample)
    _suspect(checked)
    return checked


def as_array(values: Any, name: str) -> NDArray[Any]:
    """`np.asarray`, with a remedy for tensors that NumPy cannot read.

    Raises:
        ValueError: not an array.
    """
    try:
        return np.asarray(values)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{name} cannot be read as an array ({error}); for a tensor pass {name}.detach().cpu().float().numpy()"
        ) from error


def as_numbers(values: Any, name: str) -> NDArray[np.float64]:
    """A float64 array of finite numbers, of any shape.

    Raises:
        ValueError: not numbers, or NaN or infinite values, with their count and the first row.
    """
    array = as_array(values, name)
    try:
        numbers = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must hold numbers, but has dtype {array.dtype} ({error})") from error
    bad = np.atleast_1d(~np.isfinite(numbers).all(axis=tuple(range(1, numbers.ndim))))
    if bad.any():
        raise ValueError(
            f"{name} has NaN or infinite values in {bad.sum()} of {bad.size} rows, the first is row {bad.argmax()}: "
            "drop those samples, or find out why there is no number for them"
        )
    return numbers


def check_ids(ids: ArrayLike | None, n: int) -> NDArray[Any]:
    """One id per sample, each different; row numbers if None.

    Raises:
        ValueError: wrong length, or an id that stands twice.
    """
    if ids is None:
        return np.arange(n)
    array = as_array(ids, "ids")
    if array.shape != (n,):
        raise ValueError(f"ids must have shape ({n},), one per label, but has shape {array.shape}")
    counts = pd.Series(array).value_counts()
    if len(counts) < n:
        raise ValueError(
            f"ids must be unique, but {counts.index[0]!s} stands {counts.iloc[0]} times: "
            "drop the repeated rows, or leave ids out to use row numbers"
        )
    return array


def check_column(values: ArrayLike, name: str, n: int) -> NDArray[Any]:
    """One value per sample.

    Raises:
        ValueError: wrong length.
    """
    array = as_array(values, name)
    if array.shape != (n,):
        raise ValueError(f"{name} must have shape ({n},), one value per label, but has shape {array.shape}")
    return array


def check_evidence(evidence: Mapping[str, ArrayLike] | None, n: int) -> dict[str, NDArray[Any]]:
    """Evidence by its column in the table, `evidence_*`, each `(N,)`.

    Raises:
        ValueError: wrong length.
    """
    named = {name: check_column(values, f"evidence[{name!r}]", n) for name, values in (evidence or {}).items()}
    return {name if name.startswith("evidence_") else f"evidence_{name}": values for name, values in named.items()}


def _labels(labels: ArrayLike) -> NDArray[Any]:
    values = as_array(labels, "labels")
    if values.ndim != 1:
        raise ValueError(
            f"labels must have shape (N,), but has shape {values.shape}: for one-hot rows pass labels.argmax(axis=1)"
        )
    if values.size == 0:
        raise ValueError("labels is empty: there is nothing to look at")
    missing = pd.isna(values)
    if missing.any():
        raise ValueError(
            f"labels has {missing.sum()} missing values, the first in row {missing.argmax()}: drop those samples"
        )
    return values


def _probabilities(pred_probs: ArrayLike, n: int) -> Reals:
    p = as_array(pred_probs, "pred_probs")
    if p.dtype not in (np.float32, np.float64):
        p = as_numbers(p, "pred_probs")
    if p.ndim == 1:
        raise ValueError(
            f"pred_probs must have shape (N, K), one column per class, but has shape {p.shape}: "
            "for the P(positive) of a binary model pass np.column_stack([1 - pred_probs, pred_probs])"
        )
    if p.ndim != 2:
        raise ValueError(f"pred_probs must have shape (N, K), one column per class, but has shape {p.shape}")
    if len(p) != n:
        raise ValueError(f"pred_probs has {len(p)} rows for {n} labels: it needs one row per label, in the same order")
    if p.shape[1] < 2:
        raise ValueError(f"pred_probs has {p.shape[1]} column: at least two classes are needed to tell labels apart")
    sums = p @ np.ones(p.shape[1], p.dtype)
    if not (p.min() >= -1e-6 and p.max() <= 1 + 1e-3 and np.abs(sums - 1).max() <= 0.01):  # NaN is none of these
        _complain(p)
    return p


def _complain(p: Reals) -> None:
    """Say what is wrong with probabilities that are none."""
    p = as_numbers(p, "pred_probs")
    if p.min() < -1e-6 or p.max() > 1 + 1e-3:
        raise ValueError(
            f"pred_probs must lie in [0, 1], but ranges from {p.min():.4g} to {p.max():.4g}: "
            "these look like logits, pass their softmax over classes (scipy.special.softmax(logits, axis=1))"
        )
    sums = p.sum(axis=1)
    off = np.abs(sums - 1) > 0.01
    if off.any():
        raise ValueError(
            f"each row of pred_probs must sum to 1, but {off.sum()} of {len(p)} do not, the first is row "
            f"{off.argmax()} with {sums[off.argmax()]:.4g}: pass softmax outputs, "
            "or divide one-vs-rest scores by their sum"
        )


def _classes(values: NDArray[Any], classes: ArrayLike | None, num_columns: int) -> NDArray[Any]:
    """The class of each column, in the user's values."""
    if classes is not None:
        names = as_array(classes, "classes")
        if names.shape != (num_columns,):
            raise ValueError(
                f"classes must name the {num_columns} columns of pred_probs in order, but has shape {names.shape}"
            )
        if pd.Index(names).has_duplicates:
            raise ValueError(f"classes names a class twice: {_list(names[pd.Index(names).duplicated()])}")
        return names
    found = _unique(values, num_columns)
    if len(found) == num_columns:
        try:
            return np.sort(found)
        except TypeError as error:
            raise ValueError(
                f"labels mixes types that have no order ({_list(found)}): pass classes=, the class of each column"
            ) from error
    if _are_codes(found, num_columns):
        return np.arange(num_columns)
    raise ValueError(
        f"labels has {len(found)} different values ({_list(found)}) but pred_probs has {num_columns} columns: "
        "pass classes=, the class of each column in order (scikit-learn: model.classes_)"
    )


def _codes(values: NDArray[Any], classes: NDArray[Any]) -> NDArray[np.int64]:
    """Labels as positions in classes; integers none of which is a class but that fit 0..K-1 are positions already."""
    if _are_codes(values, len(classes)) and np.array_equal(classes, np.arange(len(classes))):
        codes = values.astype(np.int64)
    else:
        codes = np.asarray(pd.Index(classes).get_indexer(pd.Index(values)), dtype=np.int64)
    unknown = codes < 0
    if unknown.all() and _are_codes(values, len(classes)):
        codes, unknown = values.astype(np.int64), np.zeros_like(unknown)
    if unknown.all() and values.dtype.kind in "iu":  # meant as codes
        unknown = (values < 0) | (values >= len(classes))
    if unknown.any():
        raise ValueError(
            f"labels has {unknown.sum()} labels that are not in classes: {_list(pd.unique(values[unknown]))}; classes "
            f"are {_list(classes)} (codes 0 to {len(classes) - 1}): drop those samples, or name their class and column"
        )
    if codes.min() == codes.max():
        raise ValueError(f"labels holds one class only ({classes[codes[0]]!s}): no label can be told from another")
    return codes


def _unique(values: NDArray[Any], num_classes: int) -> NDArray[Any]:
    """Each value once; codes are counted, which is faster than looking each one up."""
    if _are_codes(values, num_classes):
        return np.flatnonzero(np.bincount(values, minlength=num_classes)).astype(values.dtype)
    return np.asarray(pd.unique(values))


def _are_codes(values: NDArray[Any], num_classes: int) -> bool:
    return bool(values.dtype.kind in "iu" and values.min() >= 0 and values.max() < num_classes)


def _suspect(checked: Checked) -> None:
    """Warn of input that is allowed but seldom meant."""
    given, classes = checked.given, checked.classes
    n, num_classes = checked.p.shape
    share = np.bincount(given, minlength=num_classes) / n
    if (share == 0).any():
        _warn(
            f"no label is of class {_list(classes[share == 0])}: if that class exists, check labels and classes; "
            "nothing can be learnt about how it is mislabelled"
        )
    if n < ENOUGH:
        return
    if _everywhere(checked, lambda _, p: bool(((p == 0) | (p == 1)).all())):
        _warn("pred_probs holds only zeros and ones: pass predict_proba, not predicted classes, to get a ranking")
    some, p = given[checked.some], checked.sample
    confusion = np.bincount(some * num_classes + p.argmax(axis=1), minlength=num_classes**2)
    confusion = confusion.reshape(num_classes, num_classes)
    order, moved = _reordered(confusion)
    if moved.any():
        pairs = [f"labels {classes[k]!s} match the column of {classes[order[k]]!s}" for k in np.flatnonzero(moved)[:3]]
        _warn(
            f"the columns of pred_probs look permuted ({'; '.join(pairs)}): "
            "pass classes= in the order of the columns (scikit-learn: model.classes_)"
        )
        return
    if _everywhere(checked, lambda labels, p: bool((labels == p.argmax(axis=1)).all())):
        _warn(
            "the most probable class equals the label for every sample, so that no label can be found wrong: "
            "use out-of-sample probabilities (lp.cross_val_probs(model, (X, labels))), "
            "and the labels as given, not the predicted ones"
        )
        return
    surplus = p[np.arange(len(p)), some] - p @ share
    if (1 - share.max()) * len(p) >= ENOUGH and surplus.mean() <= 2 * surplus.std() / np.sqrt(len(p)):
        _warn(
            "pred_probs says nothing about the labels (the given class gets no more than its average probability): "
            "check that its rows are in the order of the labels"
        )


def _everywhere(checked: Checked, holds: Callable[[NDArray[np.int64], Reals], bool]) -> bool:
    """Whether something holds for all labels and probabilities: it seldom does even for the sample."""
    if not holds(checked.given[checked.some], checked.sample):
        return False
    n, num_classes = checked.p.shape
    return len(checked.some) == n or all(holds(checked.given[rows], checked.p[rows]) for rows in blocks(n, num_classes))


def _reordered(confusion: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The column each class is mostly predicted as, and which classes that moves; nothing moves without clear proof."""
    order = confusion.argmax(axis=1)
    here = np.diag(confusion)
    there = confusion.max(axis=1)
    moved = (order != np.arange(len(order))) & (there > 2 * here + ENOUGH / 4)
    proven = (
        moved.any() and np.unique(order[moved]).size == moved.sum() and set(order[moved]) == set(np.flatnonzero(moved))
    )
    return order, moved & proven


def _list(values: NDArray[Any]) -> str:
    """The first few values, for a message."""
    return ", ".join(str(value) for value in values[:5]) + (", ..." if len(values) > 5 else "")


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=CALLER + 1)
