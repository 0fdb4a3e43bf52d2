"""Reading a user's own data: CSV, Parquet, .npz, a folder with one folder per class, or a named data set.

Writing a copy with other labels is `write_table`.
"""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from labelproof.core.registry import did_you_mean
from labelproof.data import catalog
from labelproof.data.dataset import Data
from labelproof.data.embeddings import holds_vectors, vectors
from labelproof.data.files import (
    CSV,
    NPZ,
    PARQUET,
    as_text,
    class_folders,
    has_ending,
    id_name,
    index_columns,
    read_arrays,
    read_frame,
    stem,
    with_codes,
)
from labelproof.data.images import MAX_BYTES, SUFFIXES, ImageFiles, load_images
from labelproof.data.tables import (
    TASKS,
    column,
    encode_labels,
    feature_matrix,
    ids_of,
    label_column,
    listed,
    refuse_missing,
    text_columns,
)
from labelproof.data.writers import ORIGINAL, check_cells, write_table

__all__ = ["check_cells", "read", "write_table"]


@dataclass(frozen=True)
class _Options:
    label: str | None
    id_column: str | None
    image_column: str | None
    embedding_column: str | None
    image_size: int | tuple[int, int] | None
    truth: str | None
    drop: Sequence[str]
    task: str
    max_bytes: int
    like: Data | None

    def refuse(self, source: str, *names: str) -> None:
        """Raise if an option was given that means nothing for this source.

        A test file is read with the options of the training file, whose columns it need not have.
        """
        for name in names:
            value = getattr(self, name)
            if value not in (None, ()) and (self.like is None or name == "image_size"):
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(f"{name}={value!r} means nothing for {source}: leave {name}= ({flag}) out")

    def within(self, names: Container[str]) -> _Options:
        """The options for a source with these columns: a test file may lack ids, the truth and what is dropped."""
        if self.like is None:
            return self
        return replace(
            self,
            id_column=self.id_column if self.id_column in names else None,
            truth=self.truth if self.truth in names else None,
            drop=tuple(name for name in self.drop if name in names),
        )

    @property
    def asked_task(self) -> str:
        if self.like is None:
            return self.task
        return "regression" if self.like.classes is None else "classification"


def read(
    source: str | os.PathLike[str],
    *,
    label: str | None = None,
    id_column: str | None = None,
    image_column: str | None = None,
    embedding_column: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    truth: str | None = None,
    drop: Sequence[str] = (),
    task: str = "auto",
    like: Data | None = None,
    max_bytes: int = MAX_BYTES,
    data_dir: str | os.PathLike[str] | None = None,
) -> Data:
    r"""A labelled data set out of a file, a folder or a name.

    - **CSV** (`.csv`, `.csv.gz`) and **Parquet** (`.parquet`, `.pq`): either feature columns, or one column of images,
      as bytes or as paths relative to the file, or one column of vectors (embeddings). Numbers stay as they are,
      booleans become 0 and 1, text with up to 50 distinct values becomes one 0/1 column per value. Beside images or
      vectors, other columns are not used.
    - **.npz**: arrays `x` (or `X`) and `y`, and `ids` if there are any. Images are `(N, H, W)`, `(N, H, W, C)` or
      `(N, C, H, W)` of uint8, C = 1 or 3.
    - **A folder** with one folder of images per class; ids are paths inside it.
    - **A name** that `labelproof.data.catalog.load` knows: its training part. Names win over files; write `./mnist`
      for a folder called so.

    Args:
        source: what to read.
        label: column (or .npz array) of the given labels. Else the only one called label, target, class or y.
        id_column: column that names each sample; else one called `id`, else the row numbers. As in the labels, numbers
            with leading zeros ("007") are text.
        image_column: column of images, if it is not plain which one.
        embedding_column: column that holds a vector of numbers per row, if it is not plain which one.
        image_size: resize images to this many pixels a side, or to (height, width). Clothing1M and WebVision, of mixed
            sizes, are resized to 224 if it is `None`.
        truth: column of true labels, where they are known: coded like the labels, used only to measure.
        drop: columns to leave out of the features. `label_original`, which `write_table` adds, never is one, nor is an
            index that pandas wrote into a CSV.
        task: "classification", "regression" or "auto": labels with fractions and more than 20 distinct values make a
            regression, all others a classification (but if more than half of all rows have labels of their own, that
            is an error: they are ids, text or numbers to predict).
        like: code labels and features as in this data set, for a test file: a column that was text there is text here.
            The file need not have the columns of `id_column`, `truth` and `drop`.
        max_bytes: decode images into memory up to this size (4 GiB); beyond it they are decoded as they are used.
        data_dir: where named data sets lie, see `labelproof.data.catalog.load`.

    Returns:
        The data: features float32 `(N, D)`, or images uint8 `(N, C, H, W)` (grey if all are grey, otherwise RGB).

    Raises:
        ValueError: anything that does not fit. The message names file, column and row, and says what to do.
        FileNotFoundError: there is no such file, or a named data set was not found.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "fruit.csv"
    >>> _ = path.write_text("weight,colour,label\n150,red,apple\n120,yellow,banana\n155,green,apple\n")
    >>> data = read(path)
    >>> data.columns, data.classes[data.y].tolist()
    (['weight', 'colour=green', 'colour=red', 'colour=yellow'], ['apple', 'banana', 'apple'])
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r} must be one of {', '.join(TASKS)}")
    options = _Options(
        label, id_column, image_column, embedding_column, image_size, truth, tuple(drop), task, max_bytes, like
    )
    if isinstance(source, str) and source in catalog.NAMES:
        return _read_named(source, options, data_dir)
    path = Path(source)
    if path.is_dir():
        return _read_folder(path, options)
    if has_ending(path, CSV + PARQUET) and path.is_file():
        return _read_table(path, options)
    if has_ending(path, NPZ) and path.is_file():
        return _read_npz(path, options)
    raise _unreadable(path, str(source))


def _unreadable(path: Path, source: str) -> Exception:
    if path.is_file():
        known = ", ".join(CSV + PARQUET + NPZ)
        return ValueError(f"{path.name}: files are read by their ending, and {path.suffix!r} is not among {known}")
    if path.suffix:
        return FileNotFoundError(f"{path} does not exist (looked in {Path.cwd()})")
    return ValueError(
        f"{source!r} is neither a file, a folder nor a named data set{did_you_mean(source, catalog.NAMES)} "
        f"There are: {', '.join(catalog.NAMES)}"
    )


def _read_named(name: str, options: _Options, data_dir: str | os.PathLike[str] | None) -> Data:
    refused = ("label", "id_column", "image_column", "embedding_column", "truth", "drop")
    options.refuse(f"the named data set {name}", *refused)
    data = catalog.load(name, data_dir=data_dir, image_size=options.image_size, max_bytes=options.max_bytes)
    kind = "regression" if data.classes is None else "classification"
    if options.task not in ("auto", kind):
        raise ValueError(f"task={options.task!r} does not fit the named data set {name}, which is a {kind}")
    return data


def _read_table(path: Path, options: _Options) -> Data:
    frame, origin = read_frame(path), path.name
    options = options.within(frame.columns)
    like = () if options.like is None else options.like.columns
    label = label_column(frame, options.label, origin)
    truth = column(frame, options.truth, "truth", origin)
    _refuse_same(label, truth)
    id_column = id_name(frame, options.id_column, origin)
    for name in options.drop:
        column(frame, name, "drop", origin)
    frame = _as_written(frame, path, options, label, id_column)
    labels = encode_labels(
        frame[label],
        task=options.asked_task,
        origin=origin,
        truth=None if truth is None else frame[truth],
        classes=None if options.like is None else options.like.classes,
    )
    unused = {label, truth, id_column, ORIGINAL, *index_columns(frame), *options.drop}
    rest = frame[[name for name in frame.columns if name not in unused]]
    if like:
        rest = rest[[name for name in rest.columns if name in {*like, *text_columns(rest.columns, like)}]]
    x, columns = _table_inputs(rest, path, options)
    return Data(
        x=x,
        y=labels.y,
        classes=labels.classes,
        truth=labels.truth,
        given=labels.given,
        name=stem(path),
        columns=columns,
        target_name=label,
        **_given_ids(None if id_column is None else ids_of(frame[id_column], origin)),
    )


def _table_inputs(rest: pd.DataFrame, path: Path, options: _Options) -> tuple[NDArray[Any] | ImageFiles, list[str]]:
    """Images, vectors or features out of the columns beside labels and ids, and the names of features."""
    name, kind = _input_column(rest, options, path.name)
    if kind == "image":
        sources = _image_sources(rest[name], path)
        images = load_images(sources, origin=path.name, image_size=options.image_size, max_bytes=options.max_bytes)
        return images, []
    options.refuse(f"{path.name}, which has no image column", "image_size")
    if kind == "embedding":
        return _fitting(vectors(rest[name], origin=path.name), name, path.name, options.like), []
    like = () if options.like is None else options.like.columns
    return feature_matrix(rest, origin=path.name, like=like or None)


def _fitting(x: NDArray[np.float32], name: str, origin: str, like: Data | None) -> NDArray[np.float32]:
    known = None if like is None or not isinstance(like.x, np.ndarray) else like.x.shape[1:]
    if known not in (None, x.shape[1:]):
        raise ValueError(
            f"column {name!r} of {origin} holds vectors of {x.shape[1]} numbers, and the training data has inputs of "
            f"shape {known}: both must come from one model; name the column with embedding_column= (--embedding-column)"
        )
    return x


def _as_written(frame: pd.DataFrame, path: Path, options: _Options, label: str, id_column: str | None) -> pd.DataFrame:
    """The frame with those columns as text whose numbers are codes, or which were text in the training data."""
    labels = [label] if options.truth is None else [label, options.truth]
    ids = [] if id_column is None else [id_column]
    if options.like is None:
        return with_codes(frame, path, ids, [] if options.task == "regression" else labels)
    texts = text_columns(frame.columns, options.like.columns)
    if options.like.classes is not None and options.like.classes.dtype.kind == "U":
        texts += labels
    return as_text(with_codes(frame, path, ids), path, texts)


def _refuse_same(label: str, truth: str | None) -> None:
    if label == truth:
        raise ValueError(
            f"label={label!r} (--label) and truth={truth!r} (--truth) are the same column: the truth must be other "
            "labels, to measure the given ones with; leave truth= (--truth) out if there are none"
        )


def _given_ids(ids: NDArray[Any] | None) -> dict[str, Any]:
    """As an argument of `Data`, which numbers the rows if it gets none."""
    return {} if ids is None else {"ids": ids}


def _input_column(frame: pd.DataFrame, options: _Options, origin: str) -> tuple[str, str]:
    """The column that holds all of the input, and whether "image" or "embedding"; nothing twice if none does."""
    holds = {"image": _holds_images, "embedding": holds_vectors}
    names = {kind: column(frame, getattr(options, f"{kind}_column"), f"{kind}_column", origin) for kind in holds}
    asked = [(name, kind) for kind, name in names.items() if name is not None]
    if len(asked) > 1:
        raise ValueError(
            f"image_column={asked[0][0]!r} (--image-column) and embedding_column={asked[1][0]!r} (--embedding-column) "
            "were both given: only one column can be the input"
        )
    found = asked or [
        (str(name), kind) for kind, test in holds.items() for name, values in frame.items() if test(values)
    ]
    if len(found) > 1:
        what = " or ".join(dict.fromkeys("images" if kind == "image" else "vectors" for _, kind in found))
        choices = " or ".join(f"{kind}_column= (--{kind}-column)" for kind in dict.fromkeys(kind for _, kind in found))
        raise ValueError(
            f"columns {listed([name for name, _ in found])} of {origin} each hold {what}: choose one with {choices}"
        )
    return found[0] if found else ("", "")


def _holds_images(values: pd.Series[Any]) -> bool:
    """Bytes, the {bytes, path} pairs of Hugging Face, or text of which every entry ends like an image file."""
    present = values.dropna()
    if present.empty or pd.api.types.is_numeric_dtype(values.dtype):
        return False
    if isinstance(present.iloc[0], str):
        return all(str(value).lower().endswith(SUFFIXES) for value in present)
    return isinstance(_encoded(present.iloc[0]), bytes)


def _encoded(value: Any) -> Any:
    return value.get("bytes") if isinstance(value, dict) else value


def _image_sources(values: pd.Series[Any], path: Path) -> list[Path | bytes]:
    name = str(values.name)
    refuse_missing(values, name, path.name, "drop those rows, or put the images in")
    sources: list[Path | bytes] = []
    for row, value in enumerate(map(_encoded, values)):
        if isinstance(value, bytes):
            sources.append(value)
        elif isinstance(value, str):
            sources.append(path.parent / value)
        else:
            raise ValueError(
                f"image_column={name!r} of {path.name} holds a {type(value).__name__} in row {row}, "
                "neither the bytes of an image file nor a path"
            )
    return sources


def _read_npz(path: Path, options: _Options) -> Data:
    options.refuse(path.name, "image_column", "embedding_column", "image_size", "drop")
    arrays = read_arrays(path)
    options = options.within(arrays)
    x_name = "X" if "X" in arrays and "x" not in arrays else "x"
    y_name = options.label or "y"
    wanted = [name for name in (x_name, y_name, options.truth, options.id_column) if name is not None]
    for name in wanted:
        if name not in arrays:
            raise ValueError(
                f"{path.name} has no array {name!r}{did_you_mean(name, arrays)} It has: {listed(list(arrays))}. "
                "Save it with np.savez(path, x=inputs, y=labels)"
            )
    _refuse_same(y_name, options.truth)
    given = arrays[y_name]
    if not len(given):
        raise ValueError(f"{path.name} has no rows")
    ids = arrays.get(options.id_column or "ids")
    common: dict[str, Any] = {"name": stem(path), "target_name": y_name, **_given_ids(ids)}
    x = _inputs(arrays[x_name], path.name)
    names = [y_name] if options.truth is None else [y_name, options.truth]
    if given.ndim == 2 and given.shape[1] > 1:
        targets = [_many_targets(arrays[name], path.name, options.asked_task) for name in names]
        return Data(x=x, y=targets[0], truth=targets[1] if len(names) > 1 else None, given=given, **common)
    series = [pd.Series(arrays[name].reshape(-1), name=name) for name in names]
    labels = encode_labels(
        series[0],
        task=options.asked_task,
        origin=path.name,
        truth=series[1] if len(series) > 1 else None,
        classes=None if options.like is None else options.like.classes,
    )
    return Data(x=x, y=labels.y, classes=labels.classes, truth=labels.truth, given=labels.given, **common)


def _inputs(x: NDArray[Any], origin: str) -> NDArray[Any]:
    """Rows `(N, D)` as float32, images as `(N, C, H, W)` uint8 (float32 if they were fractions)."""
    whole = x.dtype.kind in "iu" and (x.size == 0 or (x.min() >= 0 and x.max() <= 255))
    if x.ndim == 4 or (x.ndim == 3 and whole):
        images = x[:, None] if x.ndim == 3 else x
        if images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
            images = images.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(images, dtype=np.uint8) if whole else _finite(images, f"x of {origin}")
    if x.ndim != 2:
        raise ValueError(
            f"x of {origin} has shape {x.shape}: it must be (N, D) rows, or (N, H, W), (N, H, W, C) or (N, C, H, W) "
            "images; flatten anything else with x.reshape(len(x), -1)"
        )
    return _finite(x, f"x of {origin}")


def _finite(x: NDArray[Any], what: str, kind: type[np.floating[Any]] = np.float32) -> NDArray[Any]:
    if x.dtype.kind not in "fiub":
        raise ValueError(f"{what} holds {x.dtype} values: inputs must be numbers")
    with np.errstate(over="ignore"):
        numbers = np.ascontiguousarray(x, dtype=kind)
    bad = ~np.isfinite(numbers)
    if bad.any():
        place = np.argwhere(bad)[0].tolist()
        raise ValueError(
            f"{what} has {int(bad.sum())} values that are not finite (missing, infinite or too large for "
            f"{kind.__name__}), the first at {place} (row first): fill them or drop those rows"
        )
    return numbers


def _many_targets(given: NDArray[Any], origin: str, task: str) -> NDArray[Any]:
    one_hot = bool(np.isin(given, (0, 1)).all() and (given.sum(axis=1) == 1).all())
    if task == "classification" or given.dtype.kind != "f" or (one_hot and task == "auto"):
        raise ValueError(
            f"y of {origin} has shape {given.shape}: classes must be one label per sample (of one-hot rows take "
            "y.argmax(1)); several regression targets must be floats, and if each is 0 or 1 say task='regression' "
            "(--task regression)"
        )
    return _finite(given, f"y of {origin}", np.float64)


def _read_folder(folder: Path, options: _Options) -> Data:
    refused = ("label", "id_column", "image_column", "embedding_column", "truth", "drop")
    options.refuse(f"the image folder {folder}", *refused)
    if options.task == "regression":
        raise ValueError(f"task='regression' does not fit {folder}: a folder per class makes a classification")
    paths = class_folders(folder)
    labels = encode_labels(
        pd.Series([name for name, files in paths.items() for _ in files], name="label"),
        task="classification",
        origin=str(folder),
        classes=None if options.like is None else options.like.classes,
    )
    files = [path for files in paths.values() for path in files]
    return Data(
        x=load_images(files, origin=str(folder), image_size=options.image_size, max_bytes=options.max_bytes),
        y=labels.y,
        classes=labels.classes,
        ids=np.asarray([path.relative_to(folder).as_posix() for path in files]),
        name=folder.resolve().name,
    )
