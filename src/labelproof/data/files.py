"""Opening data files and folders: what the readers and the writer share."""

from __future__ import annotations

import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from labelproof.data.images import SUFFIXES
from labelproof.data.tables import column, ids_of, listed

CSV = (".csv", ".csv.gz")
PARQUET = (".parquet", ".pq")
NPZ = (".npz",)

_SPLITS = {"train", "test", "val", "valid", "validation"}


def has_ending(path: Path, endings: tuple[str, ...]) -> bool:
    """Whether a file's name says it is of this kind."""
    return path.name.lower().endswith(endings)


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


def id_values(frame: pd.DataFrame, asked: str | None, origin: str) -> tuple[str | None, NDArray[Any] | None]:
    """Name and values of the id column: the one asked for, one called id, or an index that pandas wrote into a CSV."""
    name = column(frame, asked, "id_column", origin)
    if name is None:
        name = next((c for c in frame.columns if c.lower() == "id"), None)
    if name is None and frame.columns[0] == "Unnamed: 0" and frame.iloc[:, 0].is_unique:
        name = "Unnamed: 0"
    return name, None if name is None else ids_of(frame[name], origin)


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
