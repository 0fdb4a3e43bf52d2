"""A column that holds a vector per row, such as an embedding that was computed before: `(N, D)` float32 out of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from labelproof.data.tables import leave_out, refuse_missing


def holds_vectors(values: pd.Series[Any]) -> bool:
    """Whether a column holds lists of numbers, going by the first; in a CSV they are text such as "[0.5, -1]".

    >>> holds_vectors(pd.Series([[0.5, -1.0], [2.0, 0.0]])), holds_vectors(pd.Series(["[0.5, -1]"]))
    (True, True)
    >>> holds_vectors(pd.Series([["a", "tag"]])), holds_vectors(pd.Series([0.5])), holds_vectors(pd.Series(["[AP]"]))
    (False, False, False)
    """
    present = values.dropna()
    if present.empty or pd.api.types.is_numeric_dtype(values.dtype):
        return False
    first = present.iloc[0]
    if isinstance(first, str):
        try:
            first = json.loads(first) if first.startswith("[") else None
        except ValueError:
            return False
    if not isinstance(first, list | np.ndarray):
        return False
    try:
        return np.asarray(first).dtype.kind in "fiu"
    except ValueError:  # lists of different lengths within
        return False


def vectors(values: pd.Series[Any], *, origin: str) -> NDArray[np.float32]:
    """The vectors of a column as one matrix.

    Args:
        values: a list or array of numbers per row; its name is used in messages.
        origin: what to call the data in messages.

    Returns:
        `(N, D)` float32.

    Raises:
        ValueError: vectors are missing, empty, of different lengths, or hold what is no finite float32.

    >>> vectors(pd.Series([[0.5, -1.0], [2.0, 0.0]], name="embedding"), origin="news.parquet").tolist()
    [[0.5, -1.0], [2.0, 0.0]]
    """
    name = str(values.name)
    what = f"column {name!r} of {origin}"
    refuse_missing(values, name, origin, "every row needs a vector: compute those, or drop the rows")
    rows = _from_text(values, what) if isinstance(values.iloc[0], str) else values.tolist()
    lengths = np.array([len(row) if isinstance(row, list | tuple | np.ndarray) else -1 for row in rows])
    if (lengths < 1).any():
        row = int((lengths < 1).argmax())
        found = "an empty vector" if lengths[row] == 0 else f"a {type(rows[row]).__name__}"
        raise ValueError(f"{what} holds {found} in row {row}: put a vector of numbers there, or {leave_out(name)}")
    if (lengths != lengths[0]).any():
        row = int((lengths != lengths[0]).argmax())
        raise ValueError(
            f"{what} holds vectors of different lengths: {lengths[0]} numbers in row 0, {lengths[row]} in row {row}. "
            f"One model makes vectors of one length: compute them again, or {leave_out(name)}"
        )
    try:
        exact = np.stack(rows).astype(np.float64)
    except (ValueError, TypeError):
        exact = np.empty(())
    if exact.ndim != 2:
        raise ValueError(f"{what} must hold one flat vector of numbers per row: make it so, or {leave_out(name)}")
    with np.errstate(over="ignore"):
        out = exact.astype(np.float32)
    bad = ~np.isfinite(out).all(axis=1)
    if bad.any():
        count = int(bad.sum())
        raise ValueError(
            f"{what} has {count} vector{'s' * (count > 1)} with numbers that are not finite (missing, infinite or too "
            f"large for float32), the first in row {int(bad.argmax())}: compute those again, or drop the rows"
        )
    return out


def _from_text(values: pd.Series[Any], what: str) -> list[Any]:
    """The lists that the cells of a CSV spell out, all parsed at once."""
    try:
        rows = json.loads(f"[{','.join(values)}]")
    except (ValueError, TypeError):
        rows = []
    if len(rows) != len(values):
        raise ValueError(
            f'{what} holds text, not all of which reads like "[0.5, -1]": write the table to Parquet, which holds '
            "vectors as they are (DataFrame.to_parquet)"
        )
    return list(rows)
