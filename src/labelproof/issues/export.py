"""`save_issues`: the table of issues as a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd

_WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    ".csv": lambda table, path: table.to_csv(path, index=False),
    ".parquet": lambda table, path: table.to_parquet(path, index=False),
    ".json": lambda table, path: table.to_json(path, orient="records", indent=1, double_precision=15),
}


def save_issues(table: pd.DataFrame, path: str | os.PathLike[str]) -> Path:
    """Write a table of issues, whole or not at all.

    The file is written beside its place and then moved there, so that a crash leaves the old file. Columns and order
    are kept; the index (row numbers of the input) is not, `id` is what names a sample. Parquet keeps types too; ids
    like 007 in a CSV or JSON file stay text if the reader is told so (`pandas.read_csv(path, dtype={"id": str})`).

    Args:
        table: from `find_issues` or `find_target_issues`, or part of one (`table[table.flagged]`).
        path: ends in .csv, .parquet or .json (a list of one object per row).

    Returns:
        The path.

    Raises:
        ValueError: another suffix.
        FileNotFoundError: the folder does not exist.
        PermissionError: the folder or file may not be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_issues(pd.DataFrame({"id": ["a"], "p_wrong": [0.25]}), f"{folder}/issues.csv")
        ...     print(path.read_text())
        id,p_wrong
        a,0.25
    """
    path = Path(path)
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise ValueError(f"path must end in {', '.join(_WRITERS)}, but is {path.name!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}, create it first")
    half_written = path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")
    try:
        write(table, half_written)
        os.replace(half_written, path)
    except PermissionError as error:
        raise PermissionError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error
    finally:
        half_written.unlink(missing_ok=True)
    return path
