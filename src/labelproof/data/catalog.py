"""Named data sets: found among official files or Parquet files, or downloaded.

`docs/data.md` says where each is looked for and how to get it.

>>> from labelproof.data import catalog
>>> digits = catalog.load("digits")
>>> digits.x.shape, digits.x.dtype, digits.num_classes
((1438, 1, 8, 8), dtype('uint8'), 10)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from labelproof.core.registry import lookup
from labelproof.data import webly
from labelproof.data.dataset import Data
from labelproof.data.images import MAX_BYTES
from labelproof.data.official import (
    IMAGENET_CLASSES,
    Pair,
    cached,
    read_cifar_binary,
    read_cifar_python,
    read_human_labels,
    read_image_table,
    read_imagenet32,
    read_mnist,
)

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""CIFAR-10's classes, in the order of their codes."""

# fmt: off
CIFAR100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)
# fmt: on
"""CIFAR-100's fine classes, in the order of their codes (alphabetical: neighbours are not of one superclass)."""

_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"
_HUMAN_URL = "https://github.com/UCSC-REAL/cifar-10-100n/raw/main/data/"

REMOTE = {
    "train-images-idx3-ubyte.gz": (
        _MNIST_URL,
        "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    ),
    "train-labels-idx1-ubyte.gz": (
        _MNIST_URL,
        "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    ),
    "t10k-images-idx3-ubyte.gz": (
        _MNIST_URL,
        "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    ),
    "t10k-labels-idx1-ubyte.gz": (
        _MNIST_URL,
        "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    "cifar-10-binary.tar.gz": (_CIFAR_URL, "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    "cifar-100-binary.tar.gz": (_CIFAR_URL, "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"),
    # No SHA-256 of the human labels is published. They are checked against the labels of the images as well.
    "CIFAR-10_human.pt": (_HUMAN_URL, "md5:96644db5574813cae939af5f7f2a0aec"),
    "CIFAR-100_human.pt": (_HUMAN_URL, "md5:a67b45c1d7992051865b5c755bd68bb1"),
}
"""What can be downloaded: file name to address and checksum."""

_DIGITS_TEST = 0.2
_UCI_TEST = 0.1
_SPLIT_SEED = 0


class _Found(NamedTuple):
    """A part of a data set that was found but not yet read."""

    files: tuple[Path, ...]
    read: Callable[[], Pair]
    slow: bool  # to decode, so that the result is worth keeping


class _Images(NamedTuple):
    classes: tuple[str, ...] | tuple[int, ...]
    train: int
    test: int
    locate: Callable[[Path, str], _Found | None]  # of a folder and a split
    remote: Callable[[str], tuple[str, ...]]  # the files of a split that can be downloaded
    source: str = ""  # how to get what cannot be


class _Human(NamedTuple):
    images: str
    file: str
    key: str


class _Rows(NamedTuple):
    target: str
    rows: int


class _Places(NamedTuple):
    """Where to look, in this order, and where downloads go (`None`: nowhere)."""

    folders: tuple[Path, ...]
    cache: Path
    download: Path | None


def _locate_mnist(folder: Path, split: str) -> _Found | None:
    for inside in ("", "mnist", "MNIST/raw"):
        for ending in ("", ".gz"):
            images, labels = (folder / inside / f"{name}{ending}" for name in _mnist_files(split))
            if images.is_file() and labels.is_file():
                return _Found((images, labels), partial(read_mnist, images, labels), slow=False)
    return _locate_table(folder / "mnist", split)


def _mnist_files(split: str) -> tuple[str, str]:
    stem = "train" if split == "train" else "t10k"
    return f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"


def _locate_cifar(folder: Path, split: str, *, classes: int) -> _Found | None:
    """Binary before Python version, both unpacked or as the archive, before Parquet."""
    if classes == 10:
        binary, python, key, label_bytes = "cifar-10-batches-bin", "cifar-10-batches-py", b"labels", 1
        names = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    else:
        binary, python, key, label_bytes = "cifar-100-binary", "cifar-100-python", b"fine_labels", 2
        names = [split]
    in_binary = [f"{name}.bin" for name in names]
    for inside in ("", f"cifar{classes}"):
        base = folder / inside
        for container in (base / binary, base / f"cifar-{classes}-binary.tar.gz"):
            if container.exists():
                read = partial(read_cifar_binary, container, in_binary, label_bytes)
                return _Found((container,), read, slow=container.is_file())
        for container in (base / python, base / f"cifar-{classes}-python.tar.gz"):
            if container.exists():
                return _Found((container,), partial(read_cifar_python, container, names, key), slow=container.is_file())
    return _locate_table(folder / f"cifar{classes}", split)


def _locate_imagenet32(folder: Path, split: str) -> _Found | None:
    names = [f"train_data_batch_{i}" for i in range(1, 11)] if split == "train" else ["val_data"]
    inside = f"Imagenet32_{'train' if split == 'train' else 'val'}"
    for place in (folder / base / part for base in ("", "imagenet32") for part in ("", inside, f"{inside}_npz")):
        for ending in ("", ".npz"):
            files = tuple(place / f"{name}{ending}" for name in names)
            if any(file.is_file() for file in files):
                return _Found(files, partial(read_imagenet32, files), slow=False)
    return None


def _locate_table(folder: Path, split: str) -> _Found | None:
    path = folder / f"{split}.parquet"
    return _Found((path,), partial(read_image_table, path), slow=True) if path.is_file() else None


_IMAGES = {
    "mnist": _Images(
        tuple(range(10)),
        60_000,
        10_000,
        _locate_mnist,
        lambda split: tuple(f"{name}.gz" for name in _mnist_files(split)),
    ),
    "cifar10": _Images(
        CIFAR10, 50_000, 10_000, partial(_locate_cifar, classes=10), lambda split: ("cifar-10-binary.tar.gz",)
    ),
    "cifar100": _Images(
        CIFAR100, 50_000, 10_000, partial(_locate_cifar, classes=100), lambda split: ("cifar-100-binary.tar.gz",)
    ),
    "imagenet32": _Images(
        tuple(range(IMAGENET_CLASSES)),
        1_281_167,
        50_000,
        _locate_imagenet32,
        lambda split: (),
        "the 32x32 images (train_data_batch_1 to _10 and val_data, pickles or .npz), for which "
        "https://image-net.org/download-images asks you to log in",
    ),
}
_HUMAN = {
    **{
        f"cifar10n:{name}": _Human("cifar10", "CIFAR-10_human.pt", key)
        for name, key in (
            ("aggre", "aggre_label"),
            ("worse", "worse_label"),
            ("random1", "random_label1"),
            ("random2", "random_label2"),
            ("random3", "random_label3"),
        )
    },
    "cifar100n": _Human("cifar100", "CIFAR-100_human.pt", "noisy_label"),
}
_ROWS = {
    "uci/concrete": _Rows("strength", 1_030),
    "uci/energy": _Rows("heating_load", 768),
    "uci/kin8nm": _Rows("y", 8_192),
    "uci/protein": _Rows("RMSD", 45_730),
}

NAMES = ("digits", *_IMAGES, *_HUMAN, *webly.NAMES, *_ROWS)
"""Every name that `load` knows."""


def load(
    name: str,
    *,
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
    image_size: int | tuple[int, int] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Data:
    """A named data set.

    Looked for in `data_dir`, or else in the folder that the environment variable LABELPROOF_DATA names, or else in
    `../shared/data` if there is one; then in the cache folder (`labelproof` in the user's cache, or LABELPROOF_CACHE).
    What is found nowhere is downloaded, into `data_dir` if it was given, otherwise into the cache folder. Decoded
    images are kept in the cache folder, so that they load in a fraction of a second the next time.

    Args:
        name: one of `NAMES`, see `available`.
        split: "train" or "test". The parts of `digits` and of the UCI sets are drawn with a fixed seed.
        data_dir: folder to look in first.
        download: whether to download what is not found.
        image_size: for photographs of mixed sizes (Clothing1M, WebVision): resize them to this many pixels a side, or
            to (height, width); 224 if `None`.
        max_bytes: decode photographs into memory up to this size (4 GiB); beyond it they are decoded as they are used.

    Returns:
        The data: images `(N, C, H, W)` uint8 with their class names, or rows `(N, D)` float32 with targets `(N, 1)`.
        The training part of CIFAR-N has human labels, and the clean ones as its truth.

    Raises:
        ValueError: unknown name or split, a damaged file, human labels in another order than the images, or an
            `image_size` for images that are of one size.
        FileNotFoundError: it was not found; the message names the folders and says what to do.
    """
    lookup("data set", name, dict.fromkeys(NAMES))
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r} must be 'train' or 'test'")
    if image_size is not None and name not in webly.NAMES:
        raise ValueError(
            f"image_size={image_size!r} means nothing for the named data set {name}: leave image_size= (--image-size) "
            f"out; it is for {', '.join(webly.NAMES)}"
        )
    if name == "digits":
        return _digits(split)
    places = _places(data_dir, download=download)
    if name in webly.NAMES:
        return webly.load(name, split=split, folders=places.folders, image_size=image_size, max_bytes=max_bytes)
    if name in _ROWS:
        return _load_rows(name, split, places)
    if name in _HUMAN:
        return _load_human(name, split, places)
    return _load_images(name, split, places)


def available(*, data_dir: str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """What there is: a table with columns name, kind, train, test, classes and where. Reads and downloads nothing.

    Args:
        data_dir: as for `load`.

    >>> print(available()[["name", "kind", "train", "test", "classes"]].head(2).to_string(index=False))
      name              kind  train  test  classes
    digits   8x8 grey images   1438   359       10
     mnist 28x28 grey images  60000 10000       10
    """
    places = _places(data_dir, download=False)
    rows: list[tuple[str, str, int, int, int, str]] = []
    for name in NAMES:
        if name == "digits":
            rows.append((name, "8x8 grey images", 1438, 359, 10, "inside scikit-learn"))
        elif name in webly.NAMES:
            rows.append(webly.row(name, places.folders))
        elif name in _ROWS:
            held = round(_ROWS[name].rows * _UCI_TEST)
            path = _find_rows(name, places)
            where = str(path or f"not found: put {Path(name).name}.csv into a folder uci/ of --data-dir")
            rows.append((name, "rows, regression", _ROWS[name].rows - held, held, 0, where))
        else:
            images = _IMAGES[_HUMAN[name].images if name in _HUMAN else name]
            kind = "28x28 grey images" if name == "mnist" else "32x32 colour images"
            kind += ", human labels" if name in _HUMAN else ""
            rows.append((name, kind, images.train, images.test, len(images.classes), _where(name, places)))
    return pd.DataFrame(rows, columns=["name", "kind", "train", "test", "classes", "where"])


def cache_folder() -> Path:
    """Where downloads and decoded images are kept: LABELPROOF_CACHE, else `labelproof` in the user's cache folder."""
    import pooch  # some 0.2 s, and needed for neither `digits` nor a data_dir of one's own

    return Path(os.environ.get("LABELPROOF_CACHE") or pooch.os_cache("labelproof"))


def _places(data_dir: str | os.PathLike[str] | None, *, download: bool) -> _Places:
    cache = cache_folder()
    for value, said in ((data_dir, "data_dir"), (os.environ.get("LABELPROOF_DATA"), "LABELPROOF_DATA")):
        if value:
            first = Path(value)
            if not first.is_dir():
                raise FileNotFoundError(f"{said}={str(value)!r} is not a folder (looked from {Path.cwd()})")
            break
    else:
        first = Path("../shared/data")
    target = (first if data_dir else cache) if download else None
    return _Places((first, cache) if first.is_dir() else (cache,), cache, target)


def _find(name: str, split: str, places: _Places) -> _Found | None:
    return next((found for folder in places.folders if (found := _IMAGES[name].locate(folder, split))), None)


def _where(name: str, places: _Places) -> str:
    human = _HUMAN.get(name)
    found = _find(human.images if human else name, "train", places)
    labels = _find_human(human, places) if human else None
    if found is None or (human and labels is None):
        what = "images" if found is None else "human labels"
        source = _IMAGES[human.images if human else name].source
        return f"{what} not found: " + ("unpack them into --data-dir" if source else "downloaded when first used")
    return str(labels if labels else found.files[0])


def _pair(name: str, split: str, places: _Places) -> tuple[Pair, Path]:
    """Images and labels of a part, and the file they came from."""
    images = _IMAGES[name]
    found = _find(name, split, places)
    if found is None:
        _download(name, images.remote(split), places)
        found = _find(name, split, places)
    if found is None:
        raise _missing(name, images.remote(split), places, source=images.source)
    pair = cached(found.files, places.cache / "decoded", found.read) if found.slow else found.read()
    if len(pair.x) != len(pair.y) or not len(pair.y) or not 0 <= pair.y.min() <= pair.y.max() < len(images.classes):
        raise ValueError(
            f"{found.files[0]} does not hold {name}: it has {len(pair.x)} images and {len(pair.y)} labels, which must "
            f"be as many, and lie between 0 and {len(images.classes) - 1}"
        )
    return pair, found.files[0]


def _load_images(name: str, split: str, places: _Places) -> Data:
    pair, _ = _pair(name, split, places)
    return Data(x=pair.x, y=pair.y, classes=np.array(_IMAGES[name].classes), name=name)


def _load_human(name: str, split: str, places: _Places) -> Data:
    human = _HUMAN[name]
    pair, source = _pair(human.images, split, places)
    classes = np.array(_IMAGES[human.images].classes)
    if split == "test":  # nobody relabelled the test images
        return Data(x=pair.x, y=pair.y, classes=classes, name=name)
    path = _find_human(human, places)
    if path is None:
        _download(name, (human.file,), places)
        path = _find_human(human, places)
    if path is None:
        raise _missing(name, (human.file,), places)
    clean, noisy = read_human_labels(path, "label" if path.suffix == ".parquet" else "clean_label", human.key)
    if not (clean.shape == noisy.shape == pair.y.shape):
        raise ValueError(
            f"{path} has {len(clean)} labels for the {len(pair.y)} images of {source}: one of them is cut short"
        )
    differs = clean != pair.y
    if differs.any():
        raise ValueError(
            f"{path} does not belong to {source}: its clean labels differ from those of the images in "
            f"{int(differs.sum())} of {len(clean)} rows, the first in row {int(differs.argmax())}. One of them is in "
            "another order (TensorFlow Datasets, for one, shuffles CIFAR): use the official files"
        )
    rate = float((noisy != clean).mean())
    return Data(
        x=pair.x, y=noisy, truth=clean, classes=classes, name=name, noise={"kind": f"human ({human.key})", "rate": rate}
    )


def _find_human(human: _Human, places: _Places) -> Path | None:
    """The .pt file, else the Parquet file of the images if it has the column."""
    for folder in places.folders:
        for inside in ("", human.images, f"{human.images}n"):
            path = folder / inside / human.file
            if path.is_file():
                return path
        table = folder / human.images / "train.parquet"
        if table.is_file() and human.key in pq.read_schema(table).names:
            return table
    return None


def _load_rows(name: str, split: str, places: _Places) -> Data:
    path = _find_rows(name, places)
    if path is None:
        looked = ", ".join(str(folder / f"{name}.csv") for folder in places.folders)
        raise FileNotFoundError(
            f"{name} was not found (looked for {looked}): name the folder that holds uci/ with --data-dir (data_dir=) "
            "or LABELPROOF_DATA; it cannot be downloaded"
        )
    frame, target = pd.read_csv(path), _ROWS[name].target
    if target not in frame or frame.isna().to_numpy().any():
        raise ValueError(f"{path} does not hold {name}: it must have a column {target!r} and no missing values")
    features = frame.drop(columns=target)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(frame))
    held = round(len(frame) * _UCI_TEST)
    rows = np.sort(order[:held] if split == "test" else order[held:])
    return Data(
        x=np.ascontiguousarray(features.to_numpy(dtype=np.float32)[rows]),
        y=frame[[target]].to_numpy(dtype=np.float64)[rows],
        given=frame[target].to_numpy()[rows],
        ids=rows,
        name=name,
        columns=list(features.columns),
        target_name=target,
    )


def _find_rows(name: str, places: _Places) -> Path | None:
    return next((path for folder in places.folders if (path := folder / f"{name}.csv").is_file()), None)


def _digits(split: str) -> Data:
    """The 1,797 digits inside scikit-learn, a fifth of each class held out as the test part."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = cast("NDArray[np.int64]", digits.target.astype(np.int64))
    rng = np.random.default_rng(_SPLIT_SEED)
    test = np.zeros(len(labels), dtype=bool)
    for label in range(10):
        rows = rng.permutation(np.flatnonzero(labels == label))
        test[rows[: round(len(rows) * _DIGITS_TEST)]] = True
    rows = np.flatnonzero(test if split == "test" else ~test)
    x = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # values are 0 to 16
    return Data(x=x[rows], y=labels[rows], classes=np.arange(10), ids=rows, name="digits")


def _download(name: str, files: tuple[str, ...], places: _Places) -> None:
    """Fetch files that are not there yet, their checksums verified."""
    if places.download is None:
        return
    import pooch

    for file in files:
        base, known_hash = REMOTE[file]
        try:
            pooch.retrieve(base + file, known_hash=known_hash, fname=file, path=places.download)
        except (OSError, ValueError) as error:  # no network, a full disk, a wrong checksum
            raise _missing(name, files, places, failure=error) from error


def _missing(
    name: str, files: tuple[str, ...], places: _Places, *, failure: Exception | None = None, source: str = ""
) -> FileNotFoundError:
    looked = " and ".join(str(folder.resolve()) for folder in places.folders)
    sources = source or ", ".join(REMOTE[file][0] + file for file in files)
    told = f"and the download failed ({type(failure).__name__}: {failure})" if failure else "and nothing was downloaded"
    return FileNotFoundError(
        f"{name} was not found in {looked}, {told}. Either name the folder that holds it with --data-dir (data_dir=) "
        f"or LABELPROOF_DATA, or get {sources} and put it there"
    )
