"""Opening data files and folders: what the readers and the writer share."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from labelproof.data.images import SUFFIXES
from labelproof.data.tables import column, listed

CSV = (".csv", ".csv.gz")
PARQUET = (".parquet", ".pq")
NPZ = (".npz",)

_SPLITS = {"train", "test", "val", "valid", "validation"}


def has_ending(path: Path, endings: tuple[str, ...]) -> bool:
    """Whether a file's name says it is of this kind."""
    return path.name.lower().endswith(endings)


def stem(path: Path) -> str:
    """The name of a data file without the ending that says its kind: dots before it belong to the name."""
    ending = next(ending for ending in CSV + PARQUET + NPZ if has_ending(path, (ending,)))
    return path.name[: -len(ending)]


def read_frame(path: Path) -> pd.DataFrame:
    """A CSV or Parquet file as a frame with text column names.

    Raises:
        ValueError: it cannot be parsed, has no rows, or its columns are not told apart by their names.
    """
    parquet = has_ending(path, PARQUET)
    try:
        frame = pd.read_parquet(path) if parquet else _read_csv(path)
    except (ValueError, OSError, EOFError, zlib.error) as error:  # errors of pandas and pyarrow are ValueErrors
        kind = "Parquet" if parquet else "CSV"
        raise ValueError(f"{path.name} cannot be read as {kind}: {error}") from error
    if any(name is not None for name in frame.index.names):
        frame = frame.reset_index()  # an index that was stored under a name is a column like any other
    if not len(frame):
        raise ValueError(f"{path.name} has no rows")
    frame.columns = frame.columns.map(str)
    if len(frame.columns) == 1 and (found := [mark for mark in ";\t|" if mark in frame.columns[0]]):
        raise ValueError(f"{path.name} is separated by {found[0]!r}, but only commas are read: save it with commas")
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise ValueError(f"{path.name} has several columns called {twice!r}: rename all but one")
    return frame


def _read_csv(path: Path) -> pd.DataFrame:
    with warnings.catch_warnings():
        # Rows longer than the header: by default pandas would shift all columns by one, silently.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            return pd.read_csv(path, low_memory=False, index_col=False)
        except pd.errors.ParserWarning:
            raise ValueError("its rows have more fields than its header has names") from None


def as_text(frame: pd.DataFrame, path: Path, names: Iterable[str]) -> pd.DataFrame:
    """The frame of `path` with the named columns as text: in a CSV, as it stands there ("007" rather than 7)."""
    numeric = [name for name in names if pd.api.types.infer_dtype(frame[name]) != "string"]
    if not numeric:
        return frame
    out = frame.copy(deep=False)
    if has_ending(path, PARQUET):
        for name in numeric:
            out[name] = frame[name].map(str, na_action="ignore")
        return out
    # By place, since pandas renames columns as it reads.
    places = [place for place, name in enumerate(frame.columns) if name in numeric]
    text = pd.read_csv(path, dtype=str, usecols=places, index_col=False)
    for at, place in enumerate(places):
        out[frame.columns[place]] = text.iloc[:, at]
    return out


def with_codes(frame: pd.DataFrame, path: Path, *groups: Sequence[str]) -> pd.DataFrame:
    """The frame of `path` with each group of columns as text, if numbers in one of them have leading zeros ("007").

    As numbers they would not be what the user wrote. A Parquet file says itself which columns are text.
    """
    whole = [name for group in groups for name in group if pd.api.types.infer_dtype(frame[name]) == "integer"]
    if has_ending(path, PARQUET) or not whole:
        return frame
    text = as_text(frame, path, whole)
    codes = {name for name in whole if text[name].str.strip().str.fullmatch(r"0\d+", na=False).any()}
    return as_text(frame, path, [name for group in groups if codes & {*group} for name in group])


def index_columns(frame: pd.DataFrame) -> list[str]:
    """Row indices that pandas wrote into a CSV: leading columns without a name, of integers or of unique values."""
    unnamed = takewhile(lambda name: name.startswith("Unnamed: "), frame.columns)
    return [name for name in unnamed if pd.api.types.is_integer_dtype(frame[name].dtype) or frame[name].is_unique]


def id_name(frame: pd.DataFrame, asked: str | None, origin: str) -> str | None:
    """The id column: the one asked for, one called id, or an index that pandas wrote into a CSV."""
    found = [name for name in frame.columns if name.lower() == "id"]
    found += [name for name in index_columns(frame) if frame[name].is_unique]
    return column(frame, asked, "id_column", origin) or next(iter(found), None)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file.

    Raises:
        ValueError: it is none, is damaged, or holds Python objects (which could run code when unpickled).
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(f"{path.name} cannot be read as .npz: {error}") from error


def class_folders(folder: Path) -> dict[str, list[Path]]:
    """The image files under each class folder, classes and files in sorted order; hidden ones are passed over.

    Raises:
        ValueError: there are no class folders, one holds no image, or they are the parts of a split.
    """
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        there = listed(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        raise ValueError(f"{folder} has no folders in it, one per class, but: {there}. A data file is named itself")
    if {name.lower() for name in classes} <= _SPLITS:
        raise ValueError(
            f"{folder} holds the folders {listed(classes)}, which are no classes: give {folder / classes[0]}"
        )
    paths = {name: _images_below(folder / name) for name in classes}
    empty = [name for name, files in paths.items() if not files]
    if empty:
        raise ValueError(
            f"class folder {folder / empty[0]} has no images ({', '.join(SUFFIXES)}): remove it or fill it"
        )
    return paths


def _images_below(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
