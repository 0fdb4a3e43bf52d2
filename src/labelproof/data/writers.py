"""Writing a copy of a data set with other labels in it; the original is never touched."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from labelproof.data import catalog
from labelproof.data.atomic import atomically
from labelproof.data.dataset import Data
from labelproof.data.files import (
    CSV,
    NPZ,
    PARQUET,
    as_text,
    class_folders,
    has_ending,
    id_name,
    read_arrays,
    read_frame,
)
from labelproof.data.images import ImageFiles, to_png
from labelproof.data.tables import column, ids_of, listed, plain

ORIGINAL = "label_original"
"""Where the labels of the original go. Readers never take this column for a feature."""

_IMAGES_PER_ROW_GROUP = 5000


def write_table(
    source: str | os.PathLike[str],
    data: Data,
    path: str | os.PathLike[str],
    *,
    id_column: str | None = None,
    original: str | None = ORIGINAL,
    data_dir: str | os.PathLike[str] | None = None,
) -> Path:
    r"""Write a copy of `source` with the labels of `data`, the old ones kept in a column beside them.

    All other columns come out with the values and types they had (in a CSV: the same text). So do labels that did not
    change. CSV and Parquet may be turned into each other; an .npz stays one. An image folder and a named data set of
    images become Parquet with columns `image` (the bytes of each file; PNG for a named set; of Clothing1M and WebVision
    the full path), `label`, `label_original` and `id`. Paths to images in a table are copied as they are, so they hold
    in the folder of `source` only. The file is written beside its final place and moved there when complete.

    Args:
        source: what `data` was read from, as given to `read`.
        data: the same samples, or some of them, under other labels (`Data.relabelled`); matched by id.
        path: the new file, ending in .csv, .csv.gz, .parquet, .pq or .npz.
        id_column: as given to `read`.
        original: name of the column (or .npz array) that keeps the old labels; `None`: there is no such column, for
            copies that leave out samples and change nothing.
        data_dir: as given to `read`.

    Returns:
        `path`.

    Raises:
        ValueError: `data` was not read from `source`, `path` is the source itself, or its ending does not fit.
        OSError: the file cannot be written.

    >>> import tempfile
    >>> from labelproof.data.readers import read
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "pets.csv").write_text("weight,label\n04.0,cat\n30,dog\n5,cat\n")
    >>> data = read(folder / "pets.csv")
    >>> noisy = data.relabelled(np.array([1, 1, 0]))
    >>> print(write_table(folder / "pets.csv", noisy, folder / "noisy.csv").read_text())
    weight,label,label_original
    04.0,dog,cat
    30,dog,dog
    5,cat,cat
    """
    target, known = Path(path), CSV + PARQUET + NPZ
    if not has_ending(target, known):
        raise ValueError(f"path={str(path)!r} (--out) must end in one of {', '.join(known)}")
    if isinstance(source, str) and source in catalog.NAMES:
        return _write_frame(_named(source, data, original, data_dir), target)
    origin = Path(source)
    if target.exists() and target.samefile(origin):
        raise ValueError(f"path={str(path)!r} (--out) is the input itself, which stays as it is: choose another name")
    if origin.is_dir():
        return _write_frame(_folder(origin, data, original), target)
    if has_ending(origin, NPZ) != has_ending(target, NPZ):
        raise ValueError(f"{origin.name} cannot be written as {target.name}: an .npz stays one, a table stays a table")
    if has_ending(origin, NPZ):
        return _write_npz(origin, data, target, id_column, original)
    if has_ending(origin, CSV) and has_ending(target, CSV):
        return _write_csv(origin, data, target, id_column, original)
    return _write_arrow(origin, data, target, id_column, original)


def check_cells(source: str | os.PathLike[str], data: Data, path: str | os.PathLike[str]) -> None:
    """Refuse a CSV as a copy of what does not fit into one, before anything is done for it.

    Args:
        source: what `data` was read from.
        data: the samples.
        path: the file to come.

    Raises:
        ValueError: `path` is a CSV, and there are images or lists to write.
    """
    origin, target = Path(source), Path(path)
    if not has_ending(target, CSV):
        return
    if has_ending(origin, PARQUET):
        _check_flat(pq.read_schema(origin), origin)
    elif not has_ending(origin, CSV) and (not isinstance(data.x, np.ndarray) or data.x.ndim > 2):
        raise ValueError(f"{target.name} does not fit this data set: it is written to Parquet")


def _check_flat(schema: Any, origin: Path) -> None:
    for field in schema:
        if pa.types.is_nested(field.type) or pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            raise ValueError(
                f"column {field.name!r} of {origin.name} ({field.type}) does not fit into a CSV: write Parquet"
            )


def _write_csv(origin: Path, data: Data, target: Path, id_column: str | None, original: str | None) -> Path:
    frame, given, rows = _given(data, origin, id_column, original)
    # Read without a header: pandas renames repeated and empty names, and every cell is to stay the text it was.
    text = pd.read_csv(origin, header=None, dtype=str, keep_default_na=False, na_filter=False)
    header, body = text.iloc[0].tolist(), text.iloc[1:]
    at = frame.columns.tolist().index(data.target_name)
    old = body[at].tolist()
    out = body.iloc[rows].copy()
    out[at] = [str(label) for label in _relabelled(old, given, rows, data)]
    if original is not None:
        out[len(header)] = [old[row] for row in rows]
        header.append(original)
    return _write_whole(target, lambda partial: out.to_csv(partial, index=False, header=header))


def _write_arrow(origin: Path, data: Data, target: Path, id_column: str | None, original: str | None) -> Path:
    frame, given, rows = _given(data, origin, id_column, original)
    table = pq.read_table(origin) if has_ending(origin, PARQUET) else pa.Table.from_pandas(frame, preserve_index=False)
    at = table.column_names.index(data.target_name)
    labels = _relabelled(table.column(at).to_pylist(), given, rows, data)
    if not np.array_equal(rows, np.arange(table.num_rows)):  # taking copies, which images may be too large for
        table = table.take(rows)
    if original is not None:
        table = table.append_column(original, table.column(at))
    if labels != table.column(at).to_pylist():  # else even the order of categories stays as it is
        table = table.set_column(at, data.target_name, _arrow(labels, table.schema.field(at).type))
    if has_ending(target, PARQUET):
        return _write_whole(target, lambda partial: pq.write_table(table, partial))
    _check_flat(table.schema, origin)
    flat = table.to_pandas(types_mapper=pd.ArrowDtype)
    return _write_whole(target, lambda partial: flat.to_csv(partial, index=False))


def _write_npz(origin: Path, data: Data, target: Path, id_column: str | None, original: str | None) -> Path:
    arrays = read_arrays(origin)
    if data.target_name not in arrays or original in arrays:
        raise ValueError(
            f"{origin.name} has the arrays {listed(list(arrays))}: {data.target_name!r} must be one, {original!r} not"
        )
    old = arrays[data.target_name]
    rows = _rows(arrays.get(id_column or "ids"), len(old), data, origin.name)
    out = {name: values[rows] if values.shape[:1] == old.shape[:1] else values for name, values in arrays.items()}
    before = out[data.target_name]
    if original is not None:
        out[original] = before
    if data.classes is None:
        new = data.y.reshape(before.shape)
        kind = before.dtype if before.dtype.kind == "f" else new.dtype
        out[data.target_name] = np.where(before.astype(new.dtype) == new, before, new).astype(kind)
    else:
        raw = old.reshape(-1).tolist()
        out[data.target_name] = np.asarray(_relabelled(raw, raw, rows, data)).reshape(before.shape)
        if before.dtype.kind not in "US":  # text may have become longer than it was
            out[data.target_name] = out[data.target_name].astype(before.dtype)
    return _write_whole(target, lambda partial: np.savez(partial, **cast("Any", out)))


def _named(name: str, data: Data, original: str | None, data_dir: str | os.PathLike[str] | None) -> pd.DataFrame:
    source = catalog.load(name, data_dir=data_dir, max_bytes=0)
    rows = _rows(source.ids, len(source), data, name)
    old = source.y if source.classes is None else source.classes[source.y]
    if isinstance(source.x, ImageFiles):  # photographs stay where they are
        frame = pd.DataFrame({"image": [str(Path(source.x.where(row)).resolve()) for row in rows]})
    else:
        x = cast("NDArray[Any]", source.x)[rows]
        images = x.ndim > 2
        frame = pd.DataFrame({"image": map(to_png, x)} if images else x, columns=None if images else [*source.columns])
    return _with_labels(frame, source.ids[rows], old.reshape(-1).tolist(), rows, data, original)


def _folder(folder: Path, data: Data, original: str | None) -> pd.DataFrame:
    files = [(name, path) for name, paths in class_folders(folder).items() for path in paths]
    ids = np.asarray([path.relative_to(folder).as_posix() for _, path in files])
    rows = _rows(ids, len(files), data, str(folder))
    frame = pd.DataFrame({"image": [files[row][1].read_bytes() for row in rows]})
    return _with_labels(frame, ids[rows], [name for name, _ in files], rows, data, original)


def _with_labels(
    frame: pd.DataFrame, ids: NDArray[Any], old: list[Any], rows: NDArray[np.int64], data: Data, original: str | None
) -> pd.DataFrame:
    frame[data.target_name] = _relabelled(old, old, rows, data)
    if original is not None:
        frame[original] = [old[row] for row in rows]
    frame["id"] = ids
    return frame


def _write_frame(frame: pd.DataFrame, target: Path) -> Path:
    if has_ending(target, PARQUET):
        group = _IMAGES_PER_ROW_GROUP if "image" in frame else None
        return _write_whole(target, lambda partial: frame.to_parquet(partial, index=False, row_group_size=group))
    if has_ending(target, NPZ) or "image" in frame:
        fitting = "Parquet" if "image" in frame else "CSV or Parquet"
        raise ValueError(f"{target.name} does not fit this data set: it is written to {fitting}")
    return _write_whole(target, lambda partial: frame.to_csv(partial, index=False))


def _given(
    data: Data, origin: Path, id_column: str | None, original: str | None
) -> tuple[pd.DataFrame, list[Any], NDArray[np.int64]]:
    """The source as the reader understands it, all of its labels, and the rows that `data` has."""
    frame = read_frame(origin)
    label = column(frame, data.target_name, "data.target_name", origin.name)
    if original in frame.columns:
        raise ValueError(
            f"{origin.name} has a column {original!r} already: rename it first, or in Python keep the labels "
            "under another name with original="
        )
    name = id_name(frame, id_column, origin.name)
    read_as = {label: data.classes, name: data.ids}
    texts = [
        key for key, values in read_as.items() if key is not None and values is not None and values.dtype.kind == "U"
    ]
    frame = as_text(frame, origin, texts)
    ids = None if name is None else ids_of(frame[name], origin.name)
    return frame, plain(frame[label]).tolist(), _rows(ids, len(frame), data, origin.name)


def _rows(ids: NDArray[Any] | None, count: int, data: Data, origin: str) -> NDArray[np.int64]:
    """The row of each sample of `data` in a source with these ids (`None`: they are row numbers)."""
    rows = pd.Index(np.arange(count) if ids is None else ids).get_indexer(pd.Index(data.ids))
    if (rows < 0).any():
        unknown = data.ids[int((rows < 0).argmax())].item()
        raise ValueError(
            f"sample {unknown!r} is not in {origin}: data must have been read from it, "
            "with the same id_column= (--id-column)"
        )
    return rows.astype(np.int64)


def _relabelled(raw: Sequence[Any], given: Sequence[Any], rows: NDArray[np.int64], data: Data) -> list[Any]:
    """New labels, written the way the source writes them.

    Args:
        raw: every label of the source as it stands there (in a CSV, text).
        given: the same as the reader understands them.
        rows: rows of the source that `data` has.
        data: the new labels.
    """
    if data.classes is None:  # targets were rounded to the type of y on reading: what rounds to the same is unchanged
        targets = data.y[:, 0]
        return [
            raw[row] if targets.dtype.type(given[row]) == new else float(str(new))
            for row, new in zip(rows, targets, strict=True)
        ]
    written = dict(zip(reversed(given), reversed(raw), strict=True))
    labels = data.classes[data.y].tolist()
    return [raw[row] if given[row] == new else written.get(new, new) for row, new in zip(rows, labels, strict=True)]


def _arrow(values: list[Any], kind: Any) -> Any:
    try:
        return pa.array(values, type=kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # a target with fractions in a column of integers
        return pa.array([float(value) for value in values])


def _write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """`atomically`, with an error that names the file."""
    try:
        return atomically(path, write)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error}") from error
