"""The files that MNIST, CIFAR, CIFAR-N and ImageNet32 are published as, read without trusting them.

Formats: http://yann.lecun.com/exdb/mnist/ (IDX), https://www.cs.toronto.edu/~kriz/cifar.html (binary and Python
versions) and https://github.com/UCSC-REAL/cifar-10-100n (human labels). Pickles among them are read by unpicklers that
know arrays, numbers and text and nothing else, so that a tampered file cannot run code.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from labelproof.data.atomic import atomically
from labelproof.data.images import ImageFiles

IMAGENET_CLASSES = 1000
_SIDE, _PIXELS = 32, 3 * 32 * 32
_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]  # the name of its module differs between NumPy 1 and 2


class Pair(NamedTuple):
    """Images `(N, C, H, W)` uint8 and their labels `(N,)` int64."""

    x: NDArray[np.uint8]
    y: NDArray[np.int64]


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes, gzipped or not, as an array of its shape.

    Raises:
        ValueError: it is no such file, or is cut short.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:  # BadGzipFile is an OSError
        raise ValueError(f"{path} cannot be unpacked ({error}): download it again") from error
    dims = raw[3] if len(raw) >= 4 and raw[:3] == b"\x00\x00\x08" else 0
    shape = tuple(np.frombuffer(raw, dtype=">u4", count=dims, offset=4).tolist()) if len(raw) >= 4 + 4 * dims else ()
    if not shape or len(raw) != 4 + 4 * dims + int(np.prod(shape)):
        raise ValueError(f"{path} is not a whole IDX file of bytes: download it again")
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dims).reshape(shape).copy()  # a view would be read-only


def read_mnist(images: Path, labels: Path) -> Pair:
    """MNIST from its two IDX files."""
    return Pair(read_idx(images)[:, None], read_idx(labels).astype(np.int64))


def read_cifar_binary(container: Path, names: Sequence[str], label_bytes: int) -> Pair:
    """CIFAR from its binary version: records of a label byte (CIFAR-100: two, coarse and fine) and 3,072 pixels.

    Args:
        container: the folder, or the .tar.gz as it was downloaded.
        names: the batch files in order.
        label_bytes: 1 or 2.

    Raises:
        ValueError: a file is missing or not a whole number of records.
    """
    parts = []
    for name, raw in _members(container, names):
        if len(raw) == 0 or len(raw) % (label_bytes + _PIXELS):
            raise ValueError(f"{name} in {container} is not a whole number of CIFAR records: download it again")
        parts.append(np.frombuffer(raw, dtype=np.uint8).reshape(-1, label_bytes + _PIXELS))
    records = np.concatenate(parts)
    x = np.ascontiguousarray(records[:, label_bytes:]).reshape(-1, 3, _SIDE, _SIDE)
    return Pair(x, records[:, label_bytes - 1].astype(np.int64))


def read_cifar_python(container: Path, names: Sequence[str], label_key: bytes) -> Pair:
    """CIFAR from its Python version, pickled dictionaries with `b"data"` `(n, 3072)` and labels under `label_key`.

    Raises:
        ValueError: a file is missing, or is not such a dictionary of plain values.
    """
    xs, ys = [], []
    for name, raw in _members(container, names):
        try:
            batch = unpickled(io.BytesIO(raw))
            xs.append(np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, _SIDE, _SIDE))
            ys.append(np.asarray(batch[label_key], dtype=np.int64))
        except Exception as error:  # a broken pickle raises anything
            raise ValueError(f"{name} in {container} is not a CIFAR batch ({error}): download it again") from error
    return Pair(np.concatenate(xs), np.concatenate(ys))


def read_imagenet32(files: Sequence[Path]) -> Pair:
    """Downsampled ImageNet out of its batches: dictionaries of `data` `(n, 3072)` and `labels`, 1 to 1000.

    Format: https://patrykchrabaszcz.github.io/Imagenet32/, pickles or .npz files. The 3.9 GB of the training part are
    read batch by batch into their final place.

    Args:
        files: the batches, in order.

    Returns:
        Images and labels, the labels from 0 on.

    Raises:
        ValueError: a file is missing or damaged, is no such dictionary, or asks for more than arrays, numbers and text.
    """
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise ValueError(f"{files[0].parent} lacks {', '.join(missing)}: download it again")
    x = np.empty((sum(map(_most_rows, files)), 3, _SIDE, _SIDE), dtype=np.uint8)  # what is not written takes no memory
    labels: list[NDArray[np.int64]] = []
    end = 0
    for path in files:
        data, codes = _imagenet32_batch(path)
        x[end : end + len(data)] = data.reshape(-1, 3, _SIDE, _SIDE)
        end += len(data)
        labels.append(codes - 1)
    return Pair(x[:end], np.concatenate(labels))


def _most_rows(path: Path) -> int:
    """At most how many images a batch can hold, going by its size."""
    if path.suffix != ".npz":
        return path.stat().st_size // _PIXELS
    with _naming(path), zipfile.ZipFile(path) as archive:
        return archive.getinfo("data.npy").file_size // _PIXELS


def _imagenet32_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    with _naming(path), path.open("rb") as stream:
        if path.suffix == ".npz":
            with np.load(stream, allow_pickle=False) as archive:
                data, labels = archive["data"], archive["labels"]
        else:  # Python 2 wrote its keys as bytes
            batch = {k.decode() if isinstance(k, bytes) else k: v for k, v in unpickled(stream).items()}
            data, labels = batch["data"], batch["labels"]
        codes = np.asarray(labels).reshape(-1).astype(np.int64)
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _PIXELS or data.shape[0] != len(codes):
            raise ValueError(
                f"it holds data {data.dtype} {data.shape} and {len(codes)} labels, not uint8 (n, {_PIXELS}) and n"
            )
        wrong = np.flatnonzero((codes < 1) | (codes > IMAGENET_CLASSES))
        if len(wrong):
            raise ValueError(f"label {codes[wrong[0]]} in row {wrong[0]} is not within 1 and {IMAGENET_CLASSES}")
    return data, codes


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Any error as one that names the file."""
    try:
        yield
    except Exception as error:  # a broken pickle raises anything
        raise ValueError(f"{path} is not a batch of ImageNet32 ({error}): download it again") from error


def read_image_table(path: Path) -> Pair:
    """A Parquet file with columns `image` (encoded bytes) and `label` (class codes)."""
    table = pq.read_table(path, columns=["image", "label"])
    x = ImageFiles(table.column("image").to_pylist(), origin=str(path)).to_array()
    return Pair(x, _codes(table.column("label")))


def read_human_labels(path: Path, clean: str, noisy: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Clean and human labels of CIFAR-N, `(N,)` each, out of its .pt file or out of columns of a Parquet file.

    Args:
        path: the file.
        clean: key or column of the clean labels in it.
        noisy: key or column of the human labels.

    Raises:
        ValueError: the file cannot be read, or lacks one of them.
    """
    if path.suffix == ".parquet":
        table = pq.read_table(path, columns=[clean, noisy])
        return _codes(table.column(clean)), _codes(table.column(noisy))
    import torch

    arrays: list[Any] = [(_RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    kinds = [type(np.dtype(name)) for name in ("int64", "int32", "uint8", "float64")]
    try:
        with torch.serialization.safe_globals([*arrays, np.ndarray, np.dtype, *kinds]):
            found = torch.load(path, map_location="cpu", weights_only=True)
        return _codes(found[clean]), _codes(found[noisy])
    except KeyError as error:
        raise ValueError(f"{path} has no {error}, only {', '.join(map(str, found))}") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a file of human labels ({error}): download it again") from error


def cached(files: Sequence[Path], folder: Path, build: Callable[[], Pair]) -> Pair:
    """What `build` makes of `files`, from `folder` if it was made before and they have not changed since.

    A cache that cannot be read or written is passed over: it only ever saves time.
    """
    key = hashlib.sha256(b"1\0")  # the version of what is kept
    for path in files:
        status = path.stat()
        key.update(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    place = folder / f"{files[0].parent.name}-{files[0].name.split('.')[0]}-{key.hexdigest()[:20]}.npz"
    try:
        with np.load(place, allow_pickle=False) as archive:
            return Pair(archive["x"], archive["y"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        made = build()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        atomically(place, lambda partial: np.savez(partial, x=made.x, y=made.y))
    return made


def _codes(values: Any) -> NDArray[np.int64]:
    return np.asarray(values).reshape(-1).astype(np.int64)


def unpickled(stream: IO[bytes]) -> Any:
    """What a pickle of plain values holds; text of Python 2 comes as bytes.

    Raises:
        pickle.UnpicklingError: it asks for anything but arrays, numbers, text and containers. A broken pickle raises
            anything.
    """
    return _Unpickler(stream, encoding="bytes").load()


class _Unpickler(pickle.Unpickler):
    """Builds NumPy arrays, numbers, text and containers; anything else in a pickle is an error."""

    def find_class(self, module: str, name: str, /) -> Any:
        known = {
            ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
            ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no data file needs")
        return known[module, name]


def _encode(text: str, encoding: str) -> bytes:
    """What Python 3 writes bytes as in a pickle that Python 2 can read; of all codecs, only this one."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}, which no data file needs")
    return text.encode("latin1")


def _members(container: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file, in the order asked for, from a folder or a .tar.gz (nothing is unpacked)."""
    found: dict[str, bytes] = {}
    if container.is_dir():
        found = {name: (container / name).read_bytes() for name in names if (container / name).is_file()}
    else:
        try:
            with tarfile.open(container) as archive:
                for member in archive:
                    if Path(member.name).name in names and (stream := archive.extractfile(member)) is not None:
                        found[Path(member.name).name] = stream.read()
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"{container} cannot be unpacked ({error}): download it again") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{container} lacks {', '.join(missing)}: download it again")
    yield from ((name, found[name]) for name in names)
