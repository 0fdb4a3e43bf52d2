"""Columns to arrays: features, class codes, targets and ids out of a pandas frame, with an error for what does not fit.

Rows are counted from 0 in every message, the header left out.
"""

from __future__ import annotations

import shlex
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from labelproof.core.registry import did_you_mean

MAX_CATEGORIES = 50
"""A text column with more distinct values than this is not one-hot encoded but refused."""

MAX_FLOAT_CLASSES = 20
"""Fractional labels with more distinct values than this are regression targets."""

TASKS = ("auto", "classification", "regression")
_LABEL_NAMES = ("label", "target", "class", "y")
_LISTED = 60


class Labels(NamedTuple):
    """Labels as `Data` holds them."""

    y: NDArray[Any]
    classes: NDArray[Any] | None
    truth: NDArray[Any] | None
    given: NDArray[Any] | None = None


def listed(names: Sequence[Hashable]) -> str:
    """Names for a message, cut short if there are very many."""
    rest = len(names) - _LISTED
    return ", ".join(map(str, names[:_LISTED])) + (f" ... and {rest} more" if rest > 0 else "")


def leave_out(name: str) -> str:
    """The remedy for a feature column that does not fit, for Python and for the command line."""
    return f"leave it out with drop=[{name!r}] (--drop {shlex.quote(name)})"


def column(frame: pd.DataFrame, name: str | None, argument: str, origin: str) -> str | None:
    """`name`, if the frame has such a column; `None` stays `None`.

    Raises:
        ValueError: it has not; the message names the closest column and lists them all.
    """
    if name is None or name in frame.columns:
        return name
    names = [str(known) for known in frame.columns]
    raise ValueError(
        f"{argument}={name!r} is not a column of {origin}{did_you_mean(name, names)} There are: {listed(names)}"
    )


def label_column(frame: pd.DataFrame, label: str | None, origin: str) -> str:
    """The label column: the one asked for, else the only one called label, target, class or y, in any case.

    Raises:
        ValueError: no such column, or several; the message lists the columns.
    """
    asked = column(frame, label, "label", origin)
    if asked is not None:
        return asked
    found = [str(name) for name in frame.columns if str(name).lower() in _LABEL_NAMES]
    if len(found) == 1:
        return found[0]
    what = f"{' and '.join(found)} could each be" if found else "none is called label, target, class or y, so none is"
    raise ValueError(
        f"which column of {origin} holds the labels? {what} taken for it: say so with label= (--label). "
        f"Its columns: {listed(list(frame.columns))}"
    )


def refuse_missing(values: pd.Series[Any], name: str, origin: str, remedy: str) -> None:
    """Raise if a value is missing or infinite, saying in which column, how many, and in which row first."""
    bad = values.isna().to_numpy()
    what = "missing"
    if not bad.any() and pd.api.types.is_float_dtype(values.dtype):
        bad = np.isinf(values.to_numpy(dtype=np.float64))
        what = "infinite"
    if bad.any():
        count = int(bad.sum())
        noun = "values" if count > 1 else "value"
        raise ValueError(
            f"column {name!r} of {origin} has {count} {what} {noun}, the first in row {int(bad.argmax())}: {remedy}"
        )


def encode_labels(
    given: pd.Series[Any],
    *,
    task: str,
    origin: str,
    truth: pd.Series[Any] | None = None,
    classes: NDArray[Any] | None = None,
) -> Labels:
    """Class codes or targets out of the column(s) of labels.

    Args:
        given: the labels; its name is used in messages.
        task: `"classification"`, `"regression"` or `"auto"`, see `labelproof.data.readers.read`.
        origin: what to call the data in messages.
        truth: true labels, coded with the same classes.
        classes: code with these instead of the sorted distinct values; numbers are taken for text if these are text.

    Raises:
        ValueError: labels missing, not numbers in regression, unknown to `classes`, or mostly distinct.
    """
    columns = [given] if truth is None else [given, truth]
    for values in columns:
        remedy = "drop those rows or fill them in (an empty cell, NA, n/a, None, null and nan count as missing)"
        refuse_missing(values, str(values.name), origin, remedy)
    if task == "regression" or (task == "auto" and _looks_continuous(given)):
        targets = [_targets(values, origin) for values in columns]
        return Labels(targets[0], None, targets[1] if truth is not None else None, _exact(given))
    if task == "auto":
        _refuse_distinct(given, origin)
    simple = [plain(values) if classes is None else _like_classes(values, classes) for values in columns]
    if len({_family(values) for values in simple}) > 1:
        raise ValueError(
            f"columns {str(given.name)!r} and {str(columns[1].name)!r} of {origin} hold labels of different kinds "
            f"({_first(given)!r} and {_first(columns[1])!r}): write the truth as the labels are written"
        )
    together = pd.concat(simple, ignore_index=True)
    if classes is None:
        codes, uniques = pd.factorize(together, sort=True)
        classes = np.asarray(pd.Index(uniques).tolist())
    else:
        codes = pd.Index(classes.tolist()).get_indexer(pd.Index(together.tolist()))
        if (codes < 0).any():
            at = int((codes < 0).argmax())
            raise ValueError(
                f"label {_first(together[at:])!r} (row {at % len(given)} of {origin}) is not a class of the training "
                f"data, which are: {listed(classes.tolist())}"
            )
    codes = codes.astype(np.int64)
    return Labels(codes[: len(given)], classes, codes[len(given) :] if truth is not None else None)


def feature_matrix(
    frame: pd.DataFrame, *, origin: str, like: Sequence[str] | None = None
) -> tuple[NDArray[np.float32], list[str]]:
    """All columns as one float32 matrix `(N, D)` with the names of its columns.

    Numbers stay as they are, booleans become 0 and 1, text of up to 50 distinct values becomes one 0/1 column per value
    ("colour=red").

    Args:
        frame: feature columns only.
        origin: what to call the data in messages.
        like: the columns of an earlier matrix, to come out in the same order.

    Raises:
        ValueError: no column, missing or infinite values, a column that makes no numbers, or one that `like` lacks.
    """
    parts: dict[str, NDArray[np.float32]] = {}
    texts: set[str] = set()
    for name, values in frame.items():
        remedy = f"fill or drop those rows, or {leave_out(str(name))}"
        refuse_missing(values, str(name), origin, remedy)
        if pd.api.types.is_bool_dtype(values.dtype) or pd.api.types.is_numeric_dtype(values.dtype):
            parts[str(name)] = _numbers(values, str(name), origin)
        else:
            texts.add(str(name))
            parts |= _one_hot(values, str(name), origin)
    if not parts:
        raise ValueError(f"{origin} has no feature columns: nothing is left beside labels and ids")
    if like is not None:
        parts = _aligned(parts, texts, like, origin)
    return np.column_stack(list(parts.values())), list(parts)


def text_columns(columns: Iterable[str], like: Sequence[str]) -> list[str]:
    """Which of these columns were text where `like` was made: "c" if it has "c=1" and the like, but no "c"."""
    return [name for name in columns if name not in like and any(made.startswith(f"{name}=") for made in like)]


def ids_of(values: pd.Series[Any], origin: str) -> NDArray[Any]:
    """The ids in a column, `(N,)`, integers or text.

    Raises:
        ValueError: one is missing.
    """
    refuse_missing(
        values,
        str(values.name),
        origin,
        "every sample needs an id: fill them in, or name another column with id_column= (--id-column)",
    )
    return np.asarray(plain(values).tolist())


def _first(values: pd.Series[Any]) -> Any:
    """The first value as Python has it: messages should not say `np.int64(3)`."""
    return values.iloc[:1].tolist()[0]


def plain(values: pd.Series[Any]) -> pd.Series[Any]:
    """The same values as plain numbers, booleans or text, whatever the column's storage."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    values = values.infer_objects()
    if pd.api.types.is_bool_dtype(values.dtype):
        return values.astype(bool)
    if pd.api.types.is_integer_dtype(values.dtype):
        return values.astype(np.int64)
    if pd.api.types.is_float_dtype(values.dtype):
        return values.astype(np.float64)
    return values.astype(str)


def _like_classes(values: pd.Series[Any], classes: NDArray[Any]) -> pd.Series[Any]:
    """The values as text or as numbers, whichever the classes are: a short test file may look like the other."""
    values = plain(values)
    if classes.dtype.kind == "U":
        return values.astype(str)
    if classes.dtype.kind in "iuf" and _family(values) == "text":
        numbers = pd.to_numeric(values, errors="coerce")
        return values.astype(object).where(numbers.isna(), numbers)
    return values


def _exact(values: pd.Series[Any]) -> NDArray[Any]:
    """The numbers in their own type."""
    kind: Any = values.dtype
    return values.to_numpy(dtype=getattr(kind, "numpy_dtype", kind), copy=True)  # a view would hold the whole table


def _family(values: pd.Series[Any]) -> str:
    if pd.api.types.is_bool_dtype(values.dtype):
        return "yes or no"
    return "number" if pd.api.types.is_numeric_dtype(values.dtype) else "text"


def _looks_continuous(values: pd.Series[Any]) -> bool:
    if not pd.api.types.is_float_dtype(values.dtype):
        return False
    numbers = values.to_numpy(dtype=np.float64)
    return bool((numbers % 1 != 0).any()) and len(np.unique(numbers)) > MAX_FLOAT_CLASSES


def _refuse_distinct(values: pd.Series[Any], origin: str) -> None:
    distinct = values.nunique()
    if distinct > max(MAX_FLOAT_CLASSES, len(values) // 2):
        raise ValueError(
            f"label column {str(values.name)!r} of {origin} has {distinct} distinct values in {len(values)} rows: "
            "is it the label? If it is a number to predict, say task='regression' (--task regression); if every value "
            "is a class, task='classification' (--task classification)"
        )


def _targets(values: pd.Series[Any], origin: str) -> NDArray[np.float64]:
    """`(N, 1)`, in float64: 1e9 + 0.1 has no place in float32."""
    kind, where = values.dtype, f"label column {str(values.name)!r} of {origin}"
    if pd.api.types.is_bool_dtype(kind):
        raise ValueError(
            f"{where} holds yes or no ({_first(values)!r}), and regression needs numbers: say task='classification' "
            "(--task classification), or write 1 and 0"
        )
    if not pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_complex_dtype(kind):
        text = values.astype(str)
        wrong = pd.to_numeric(text, errors="coerce").isna().to_numpy()
        if not wrong.any():
            raise ValueError(f"{where} holds its numbers as text ({_first(text)!r}): convert it with pandas.to_numeric")
        row, count = int(wrong.argmax()), int(wrong.sum())
        raise ValueError(
            f"{where} holds {text.iloc[row]!r} in row {row}, the first of {count} in {len(values)} rows that are no "
            f"numbers: regression needs plain numbers, with a decimal point and without a unit (of a date, say, the "
            "days since another); if these are classes, say task='classification' (--task classification)"
        )
    return values.to_numpy(dtype=np.float64, copy=True)[:, None]  # pandas gives views that cannot be written to


def _numbers(values: pd.Series[Any], name: str, origin: str) -> NDArray[np.float32]:
    exact = values.to_numpy(dtype=np.float64)
    with np.errstate(over="ignore"):
        numbers = exact.astype(np.float32)
    if not np.isfinite(numbers).all():
        row = int(np.isinf(numbers).argmax())
        raise ValueError(
            f"column {name!r} of {origin} holds {exact[row]:g} (row {row}), too large for float32: scale it"
        )
    return numbers


def _one_hot(values: pd.Series[Any], name: str, origin: str) -> dict[str, NDArray[np.float32]]:
    first = _first(values)
    categorical = isinstance(values.dtype, pd.CategoricalDtype)
    if not categorical and not isinstance(first, str):
        raise ValueError(
            f"column {name!r} of {origin} holds {type(first).__name__} values, which make no features: "
            f"turn it into numbers or text, or {leave_out(name)}"
        )
    codes, uniques = pd.factorize(plain(values).astype(str), sort=True)
    if len(uniques) > MAX_CATEGORIES:
        shown = first if len(str(first)) <= 30 else f"{str(first)[:30]}..."
        raise ValueError(
            f"column {name!r} of {origin} holds {len(uniques)} distinct texts (the first is {shown!r}), more than the "
            f"{MAX_CATEGORIES} that are made columns of: {leave_out(name)}, name the samples with it with "
            f"id_column={name!r} (--id-column {shlex.quote(name)}), or turn it into numbers first"
        )
    return {f"{name}={value}": (codes == code).astype(np.float32) for code, value in enumerate(uniques)}


def _aligned(
    parts: Mapping[str, NDArray[np.float32]], texts: set[str], like: Sequence[str], origin: str
) -> dict[str, NDArray[np.float32]]:
    """The columns in the order of `like`; a text value that does not occur here gets a column of zeros."""
    rows = len(next(iter(parts.values())))
    out: dict[str, NDArray[np.float32]] = {}
    for name in like:
        if name in texts:
            raise ValueError(f"column {name!r} of {origin} holds text, where the training data holds numbers")
        if name not in parts and not any(name.startswith(f"{text}=") for text in texts):
            raise ValueError(
                f"{origin} lacks the column {name!r} of the training data; its columns: {listed([*parts])}"
            )
        out[name] = parts.get(name, np.zeros(rows, dtype=np.float32))
    known = {text for text in texts if any(name.startswith(f"{text}=") for name in like)}
    new = [name for name in parts if name not in out and any(name.startswith(f"{text}=") for text in known)]
    if new:
        raise ValueError(f"{origin} has values that the training data has not: {listed(new)}")
    return out
