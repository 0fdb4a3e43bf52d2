"""Clothing1M and mini-WebVision in their own formats: photographs of mixed sizes under lists of paths and labels.

Clothing1M: Xiao, Xia, Yang, Huang, Wang, "Learning from massive noisy labeled data for image classification", CVPR
2015. WebVision 1.0: Li, Wang, Li, Agustsson, Van Gool, "WebVision database", arXiv:1708.02862; its "mini" part is the
Google subset of the first 50 classes (Jiang et al., MentorNet, ICML 2018). The lists are checked as they are read, a
million lines at once. The images are opened as they are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from labelproof.data.dataset import Data
from labelproof.data.images import MAX_BYTES, SUFFIXES, ImageFiles, in_memory

IMAGE_SIZE = 224
"""Pixels a side that photographs are resized to if nothing else is asked for."""

_ENDING = "(?i:" + "|".join(ending.replace(".", r"\.") for ending in SUFFIXES) + ")"
_KEY = rf"^(?P<key>.+{_ENDING})$"
_PAIR = rf"^(?P<key>.+{_ENDING})[ \t]+(?P<label>-?[0-9]{{1,9}})$"  # keys may hold commas and spaces


class _Set(NamedTuple):
    train: int
    test: int
    classes: int
    known: int  # classes that may occur in the lists; those beyond `classes` are left out
    folders: tuple[str, ...]  # inside a data folder
    lists: tuple[str, ...]  # any of which tells that the data set is there
    source: str


_CLOTHING_LISTS = ("noisy_train_key_list.txt", "clean_train_key_list.txt", "clean_test_key_list.txt")
_CLOTHING = _Set(
    1_000_000,
    10_526,
    14,
    14,
    ("", "clothing1m", "Clothing1M"),
    (*_CLOTHING_LISTS, *(f"annotations/{name}" for name in _CLOTHING_LISTS)),
    "ask its authors for it as https://github.com/Cysu/noisy_label says, and put images/ and the key lists",
)
_SETS = {
    "clothing1m": _CLOTHING,
    "clothing1m:clean": _CLOTHING._replace(train=47_570),
    "webvision": _Set(
        65_944,
        2_500,
        50,
        1000,
        ("", "webvision", "WebVision"),
        ("info/train_filelist_google.txt", "info/val_filelist.txt"),
        "get WebVision 1.0 (resized images) from https://data.vision.ee.ethz.ch/cvl/webvision/dataset2017.html, and "
        "put google/, val_images_256/ and info/",
    ),
}

NAMES = (*_SETS,)
"""The data sets that this module reads."""


class ListedImages(ImageFiles):
    """The images of a list, resized and in colour, without a look at any of them first.

    Args:
        root: folder that the keys are relative to.
        keys: `(N,)` text, their paths.
        lines: `(N,)` integers, the line of each in the list, from 1 on.
        listing: the file of the list, for messages.
        image_size: pixels a side, or (height, width).

    Raises:
        FileNotFoundError: the first image does not exist. Others are told of when they are used.
    """

    def __init__(
        self,
        root: Path,
        keys: NDArray[np.str_],
        lines: NDArray[np.int64],
        listing: Path,
        image_size: int | tuple[int, int],
    ) -> None:
        self.lines = lines
        super().__init__(_Paths(root, keys), origin=str(listing), image_size=image_size, mode="RGB")
        self._open(0).close()

    def row(self, index: int) -> str:
        return f"line {self.lines[index]} of {self.origin}"


class _Paths(Sequence[Path]):
    """A million paths in the memory of their text."""

    def __init__(self, root: Path, keys: NDArray[np.str_]) -> None:
        self.root, self.keys = root, keys

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> _Paths: ...
    def __getitem__(self, index: int | slice) -> Path | _Paths:
        if isinstance(index, slice):
            return _Paths(self.root, self.keys[index])
        return self.root / str(self.keys[index])


class _Listed(NamedTuple):
    """Rows of a list: keys `(N,)` text, labels `(N,)` codes, and the line of each in its file, from 1 on."""

    keys: NDArray[np.str_]
    labels: NDArray[np.int64]
    lines: NDArray[np.int64]
    file: Path


def load(
    name: str,
    *,
    split: str,
    folders: Sequence[Path],
    image_size: int | tuple[int, int] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Data:
    """One of `NAMES`.

    Args:
        name: "clothing1m" (trained on the noisy list), "clothing1m:clean" (on the clean one) or "webvision".
        split: "train" or "test": the clean test list of Clothing1M, the validation list of WebVision.
        folders: where to look.
        image_size: pixels a side, or (height, width); 224 if `None`.
        max_bytes: decode the images into memory up to this size; beyond it they are decoded as they are used.

    Returns:
        RGB images, with their paths as ids. The truth is not known: of the noisy images of Clothing1M few have a clean
        label, and `Data.truth` holds all or none.

    Raises:
        ValueError: a list is broken. The message names file and line, and says what to do.
        FileNotFoundError: the data set, one of its files or the first image is not there.
    """
    root = find(name, folders)
    if root is None:
        looked = " and ".join(str(folder.resolve()) for folder in folders)
        raise FileNotFoundError(
            f"{name} was not found in {looked} (none of {', '.join(_SETS[name].lists)} is there or in "
            f"{' or '.join(inside + '/' for inside in _SETS[name].folders if inside)}). It cannot be downloaded: "
            f"{_SETS[name].source} into one folder, which you name with --data-dir (data_dir=) or LABELPROOF_DATA"
        )
    if name == "webvision":
        listed, images, classes = _webvision(root, split)
    else:
        listed, images, classes = _clothing1m(root, split, clean=name.endswith(":clean"))
    size = IMAGE_SIZE if image_size is None else image_size
    files = ListedImages(images, listed.keys, listed.lines, listed.file, size)
    return Data(x=in_memory(files, max_bytes), y=listed.labels, classes=classes, ids=listed.keys, name=name)


def find(name: str, folders: Sequence[Path]) -> Path | None:
    """The folder of a data set, told by its lists."""
    places = (folder / inside for folder in folders for inside in _SETS[name].folders)
    return next((place for place in places if any((place / listing).is_file() for listing in _SETS[name].lists)), None)


def row(name: str, folders: Sequence[Path]) -> tuple[str, str, int, int, int, str]:
    """The data set's line in `labelproof.data.catalog.available`."""
    kind = {"clothing1m": "photographs, web labels", "clothing1m:clean": "photographs, checked labels"}
    about, root = _SETS[name], find(name, folders)
    where = str(root) if root else "not found: unpack it into --data-dir"
    return name, kind.get(name, kind["clothing1m"]), about.train, about.test, about.classes, where


def _clothing1m(root: Path, split: str, *, clean: bool) -> tuple[_Listed, Path, NDArray[Any]]:
    kind = "noisy" if split == "train" and not clean else "clean"
    file, pairs = (
        _within(root, name, ("", "annotations")) for name in (f"{kind}_{split}_key_list.txt", f"{kind}_label_kv.txt")
    )
    keys = _columns(file, _KEY, "the path of an image and nothing else, as images/7/55/123,456.jpg")[0]
    _refuse_repeated(keys, file)
    known = pd.DataFrame(dict(zip(("key", "label"), _pairs(pairs, _CLOTHING.known), strict=True))).drop_duplicates()
    twice = known["key"].duplicated()
    if twice.any():
        line = int(known.index[twice][0])
        raise ValueError(
            f"{pairs}, line {line + 1}: {known['key'][line]!r} has another label than in a line before: keep the line "
            "that holds"
        )
    rows = pd.Index(known["key"]).get_indexer(pd.Index(keys))
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        raise ValueError(
            f"{file}, line {missing[0] + 1}: {str(keys[missing[0]])!r} has no label in {pairs} ({len(missing)} of "
            f"{len(keys)} lines have none): download both again, or take those lines out"
        )
    labels = known["label"].to_numpy()[rows]
    names = _names(root, "category_names_eng.txt", ("", "annotations"), _CLOTHING.classes, exactly=True)
    return _Listed(keys, labels, np.arange(1, len(keys) + 1), file), root, names


def _webvision(root: Path, split: str) -> tuple[_Listed, Path, NDArray[Any]]:
    about = _SETS["webvision"]
    file = _within(root, "train_filelist_google.txt" if split == "train" else "val_filelist.txt", ("info",))
    keys, labels = _pairs(file, about.known)
    _refuse_repeated(keys, file)
    rows = np.flatnonzero(labels < about.classes)
    if not len(rows):
        raise ValueError(f"{file} has no image of the first {about.classes} classes: download it again")
    images = root
    if split == "test":
        places = [root / name for name in ("val_images_256", "val_images")]
        images = next((place for place in places if place.is_dir()), places[0])
    names = _names(root, "synsets.txt", ("info",), about.classes)
    return _Listed(keys[rows], labels[rows], rows + 1, file), images, names


def _within(root: Path, name: str, folders: Sequence[str]) -> Path:
    """A file in one of the folders of a data set."""
    places = [root / folder / name for folder in folders]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"{' or '.join(map(str, places))} does not exist: it belongs to the data set, copy it there"
        )
    return found


def _names(root: Path, name: str, folders: Sequence[str], count: int, *, exactly: bool = False) -> NDArray[Any]:
    """What classes are called: a line each, an ImageNet id before it left out; numbers if there is no such file."""
    path = next((path for folder in folders if (path := root / folder / name).is_file()), None)
    if path is None:
        return np.arange(count)
    lines = pd.Series(_lines(path).to_pylist(), dtype=object).str.strip()
    names = lines.str.replace(r"^n\d{8}\s+", "", regex=True)[:count]
    if len(lines) < count or (exactly and len(lines) > count) or not names.is_unique or not names.all():
        raise ValueError(
            f"{path} has {len(lines)} lines, {names.nunique()} different among the first {count}: it must name {count} "
            "classes, one in a line; without the file they are called by their numbers"
        )
    return names.to_numpy().astype(str)


def _pairs(path: Path, classes: int) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Keys and labels of a list with a path and a label in each line."""
    keys, text = _columns(path, _PAIR, "the path of an image, a space and a label, as images/7/55/123,456.jpg 3")
    labels = text.astype(np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        raise ValueError(
            f"{path}, line {wrong[0] + 1}: label {labels[wrong[0]]} is not within 0 and {classes - 1}: correct the "
            "line, or download the list again"
        )
    return keys, labels


def _columns(path: Path, pattern: str, form: str) -> list[NDArray[np.str_]]:
    """The groups of a pattern in every line of a list, `(N,)` text each."""
    lines = _lines(path)
    found = pc.extract_regex(lines, pattern=pattern)
    wrong = np.flatnonzero(found.is_null().to_numpy(zero_copy_only=False))
    if len(wrong):
        raise ValueError(
            f"{path}, line {wrong[0] + 1}: {lines[int(wrong[0])].as_py()[:200]!r} must be {form} "
            f"({len(wrong)} of {len(lines)} lines are not): correct it, or download the list again"
        )
    return [column.to_numpy(zero_copy_only=False).astype(str) for column in found.flatten()]


def _lines(path: Path) -> Any:
    """The lines of a text file as an Arrow array, empty ones at its end left out."""
    try:
        text = path.read_text(encoding="utf-8-sig").rstrip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}): download it again") from error
    if not text:
        raise ValueError(f"{path} is empty: download it again")
    return pa.array(text.split("\n"), type=pa.string())


def _refuse_repeated(keys: NDArray[np.str_], file: Path) -> None:
    twice = pd.Series(keys).duplicated().to_numpy()
    if twice.any():
        line = int(twice.argmax())
        raise ValueError(
            f"{file}, line {line + 1}: {str(keys[line])!r} stands in a line before as well "
            f"({int(twice.sum())} lines do): take the repeated lines out"
        )
