"""Labels of any kind to class codes and back, and one hash for equal labels on every system. NumPy only."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Codes = NDArray[np.int64]
Floats = NDArray[np.float64]


def as_labels(y: ArrayLike) -> NDArray[Any]:
    """`y` as a non-empty array of integers, booleans, floats, strings or objects.

    Raises:
        ValueError: it is a single value, empty, or of another dtype.
    """
    values = np.asarray(y)
    if values.dtype.kind == "U" and values.ndim == 1 and not isinstance(y, np.ndarray) and isinstance(y, Iterable):
        listed = list(y)
        if not all(isinstance(value, str) for value in listed):  # NumPy made "nan" of a NaN, or "1" of a 1
            values = _filled(listed, np.dtype(object))
    if values.ndim == 0:
        raise ValueError(f"y must be a vector of labels, got the single value {y!r}")
    if values.size == 0:
        raise ValueError(f"y is empty (shape {values.shape}): there are no labels to put noise into")
    if values.dtype.kind not in "biufUO":
        raise ValueError(f"y has dtype {values.dtype}: labels are integers, strings or booleans, targets are floats")
    return values


def coded(
    values: NDArray[Any], num_classes: int | None = None, classes: Sequence[Any] | None = None
) -> tuple[NDArray[Any], Codes]:
    """The `(K,)` label values (all of them, if `num_classes` or `classes` says so) and the `(N,)` codes of `values`.

    Raises:
        ValueError: not a vector, a missing label, fractions, fewer than two classes, or labels outside those named.
    """
    if values.ndim != 1:
        raise ValueError(
            f"y must be a vector (N,) of class labels, got shape {values.shape}: "
            "ravel a column of labels, take the argmax of one-hot rows"
        )
    if values.dtype.kind == "f":
        refuse_missing(values, "label")
        if (values != np.floor(values)).any():
            raise ValueError(
                "y holds fractions, so it looks like regression targets: choose a regression kind "
                "(uniform, sign-flip, linear-adversarial, coordinate-swap, mixture), or give class labels"
            )
    table, codes = _factorised(values)
    if num_classes is not None or classes is not None:
        found, table = table.tolist(), _full_table(table, num_classes, classes)
        position = {value: i for i, value in enumerate(table.tolist())}
        stray = [value for value in found if value not in position]
        if stray:
            raise ValueError(f"y holds label {stray[0]!r}, which is not among the classes given ({show(table)})")
        codes = np.array([position[value] for value in found], dtype=np.int64)[codes]
    if len(table) < 2:
        raise ValueError(
            f"y holds one class only ({show(table)}): noise needs two or more; "
            "if others exist, name them all by classes= (or num_classes=)"
        )
    return table, codes


def digest(labels: ArrayLike) -> str:
    """SHA-256 (hex) of a label vector, the same for int32 and int64, str and object arrays, on every system.

    It covers the order and the values, not the classes that are absent. Use it to see that a file holds the noise a
    paper or a run reports. Floats are hashed bit for bit as 64-bit numbers.

    Args:
        labels: `(N,)` class labels, or `(N,)` / `(N, D)` float targets.

    Raises:
        ValueError: empty, missing values, or not label-like.

    Example:
        >>> import labelproof as lp
        >>> noisy = lp.noise.inject([0, 1, 2] * 10, "pairflip", 0.5)
        >>> lp.noise.digest(noisy.labels.astype("int8")) == noisy.hash
        True
    """
    values = as_labels(labels)
    if values.dtype.kind == "f":
        return digest_floats(values)
    if values.ndim != 1:
        raise ValueError(f"labels must be a vector (N,), or float targets (N, D), got shape {values.shape}")
    return digest_codes(*_factorised(values))


def digest_codes(table: NDArray[Any], codes: Codes) -> str:
    """`digest(table[codes])`: over the values present, sorted as bytes, then the position of each label in them."""
    if table.dtype.kind == "f":
        return digest_floats(table[codes])
    tokens = [_token(value) for value in table.tolist()]
    present = np.flatnonzero(np.bincount(codes, minlength=len(table))).tolist()
    ordered = sorted(present, key=tokens.__getitem__)
    position = np.zeros(len(table), dtype="<i8")
    position[ordered] = np.arange(len(ordered))
    sha = hashlib.sha256(b"labelproof.labels.1\n")
    for i in ordered:
        sha.update(b"%d:%s\n" % (len(tokens[i]), tokens[i]))
    sha.update(position[codes].tobytes())
    return sha.hexdigest()


def digest_floats(values: NDArray[Any]) -> str:
    """`digest` of an array of floats."""
    shape = "x".join(str(size) for size in values.shape)
    canonical = (values.astype("<f8") + 0.0).astype("<f8")  # + 0.0: -0.0 and 0.0 are one number
    return hashlib.sha256(f"labelproof.targets.1 {shape}\n".encode() + canonical.tobytes()).hexdigest()


def refuse_missing(values: NDArray[Any], what: str) -> None:
    """Raise a `ValueError` that names the rows with NaN, infinity or None, if there are any."""
    if values.dtype.kind == "f":
        rows = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    else:
        rows = np.flatnonzero([_is_missing(value) for value in values.tolist()])
    if rows.size:
        first = ", ".join(str(row) for row in rows[:5]) + (", ..." if rows.size > 5 else "")
        raise ValueError(f"y has {rows.size} missing or infinite {what}s (rows {first}): drop or fill these rows first")


def show(classes: NDArray[Any], most: int = 6) -> str:
    """Label values for a message, shortened."""
    listed = [repr(value) for value in classes[:most].tolist()]
    return ", ".join(listed) + (", ..." if len(classes) > most else "")


def _factorised(values: NDArray[Any]) -> tuple[NDArray[Any], Codes]:
    """Sorted distinct values and the position of each entry among them."""
    if values.dtype.kind in "biuf":
        found, codes = np.unique(values, return_inverse=True)
        return found, codes.reshape(-1).astype(np.int64, copy=False)
    listed = values.tolist()  # a dict is several times faster here than sorting N strings
    try:
        distinct = set(listed)
        if any(_is_missing(value) for value in distinct):
            refuse_missing(values, "label")
        ordered = sorted(distinct)
    except TypeError:
        types = ", ".join(sorted({type(value).__name__ for value in listed}))
        raise ValueError(f"y must hold labels of one simple type, got {types}: make them all strings, say") from None
    position = {value: i for i, value in enumerate(ordered)}
    codes = np.fromiter(map(position.__getitem__, listed), dtype=np.int64, count=len(listed))
    return _filled(ordered, values.dtype), codes


def _full_table(found: NDArray[Any], num_classes: int | None, classes: Sequence[Any] | None) -> NDArray[Any]:
    """All label values, from `classes` or `num_classes`, in the dtype of the labels where they fit it."""
    if classes is not None:
        listed = list(classes)
        if len(set(listed)) != len(listed):
            raise ValueError(f"classes must name each label once, got {listed!r}")
        if num_classes is not None and num_classes != len(listed):
            raise ValueError(f"num_classes={num_classes!r}, but classes names {len(listed)}: give one of the two")
    else:
        try:
            k = operator.index(num_classes or 0)
        except TypeError:
            raise ValueError(f"num_classes must be an integer, got {num_classes!r}") from None
        in_range = found.dtype.kind in "biuf" and found.min() >= 0 and found.max() < k
        if not in_range:
            if k == len(found):
                return found
            raise ValueError(
                f"num_classes={k} does not fit the {len(found)} labels of y ({show(found)}): "
                "it stands for the labels 0..num_classes-1; name others by classes=[...]"
            )
        listed = list(range(k))
    if found.dtype.kind == "O":
        return _filled(listed, found.dtype)
    given = np.asarray(listed)
    try:
        cast = given.astype(found.dtype)
    except (TypeError, ValueError):
        return given
    return cast if np.array_equal(cast, given) else given


def _filled(listed: list[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """A vector of exactly these values; `np.array` would look inside them or turn them into strings."""
    table = np.empty(len(listed), dtype=dtype)
    table[:] = listed
    return table


def _is_missing(value: Any) -> bool:
    try:
        return value is None or bool(value != value)  # noqa: PLR0124 - only NaN and NaT differ from themselves
    except TypeError:  # pandas.NA has no truth value
        return True


def _token(value: Any) -> bytes:
    """A label as bytes: its type as users see it ("1" is not 1, True is not 1) and its text."""
    plain = value.item() if isinstance(value, np.generic) else value
    return f"{type(plain).__name__}={plain}".encode(errors="surrogatepass")
