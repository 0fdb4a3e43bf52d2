"""Image files and image bytes as uint8 arrays, all at once or one at a time."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
"""File names taken for images."""

MAX_BYTES = 4 * 1024**3
"""Decoded images beyond this many bytes are not held in memory unless asked for."""

T = TypeVar("T")

_GREY = ("1", "L", "LA")
_DEEP = ("I", "F")  # I;16 and its relatives begin with I too
_CHUNK = 512


class _Header(NamedTuple):
    height: int
    width: int
    mode: str


class ImageFiles:
    """Images decoded one at a time: a map-style data set for what is too large to hold in memory.

    All are of one shape. They are grey (C = 1) if every one of them is, otherwise RGB (C = 3); transparency is dropped
    and of an animation the first frame is taken. A rotation noted in a photograph's EXIF data is not applied.

    Args:
        sources: a path or the encoded bytes (PNG, JPEG ...) of each image.
        origin: what bytes came from, for messages ("train.parquet").
        image_size: resize to this many pixels a side, or to (height, width); `None` takes them as they are.
        mode: "L" or "RGB" to have them all so, without opening a million files to see what they are. Takes an
            `image_size`. A missing or broken file is then told of when it is used.

    Attributes:
        shape: `(C, H, W)` of every image.
        nbytes: what all of them take, decoded.

    Raises:
        ValueError: an image cannot be read, holds more than 8 bits per channel, or is of another size than the rest;
            `mode` is given without `image_size`.
        FileNotFoundError: a file does not exist.

    >>> from labelproof.data.images import ImageFiles, to_png
    >>> files = ImageFiles([to_png(np.full((1, 8, 8), 200, np.uint8))] * 3)
    >>> len(files), files.shape, int(files[2].max())
    (3, (1, 8, 8), 200)
    """

    def __init__(
        self,
        sources: Sequence[Path | bytes],
        *,
        origin: str = "the data",
        image_size: int | tuple[int, int] | None = None,
        mode: str | None = None,
    ) -> None:
        if not len(sources):
            raise ValueError(f"{origin} holds no images")
        if mode not in (None, "L", "RGB") or (mode is not None and image_size is None):
            raise ValueError(f"mode={mode!r} must be 'L' or 'RGB', with an image_size (now {image_size!r}), or None")
        self.sources, self.origin = sources, origin
        self.size = _as_size(image_size)
        headers = _in_threads(self._header, len(sources)) if mode is None else []
        self.mode = mode or ("L" if all(header.mode in _GREY for header in headers) else "RGB")
        height, width = self.size or self._common_size(headers)
        self.shape = (1 if self.mode == "L" else 3, height, width)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """One image, `(C, H, W)`."""
        with self._open(index) as image:
            try:
                pixels = np.asarray(self._converted(image))
            except Exception as error:  # decoders raise anything from OSError to struct.error on a broken file
                raise ValueError(f"cannot decode image {self.where(index)}: {error}") from error
        return np.array(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), order="C")

    @property
    def nbytes(self) -> int:
        return len(self) * int(np.prod(self.shape))

    def to_array(self) -> NDArray[np.uint8]:
        """All images, `(N, C, H, W)`, decoded in threads (Pillow lets other threads run while it decodes)."""
        out = np.empty((len(self), *self.shape), dtype=np.uint8)

        def decode(index: int) -> None:
            out[index] = self[index]

        _in_threads(decode, len(self))
        return out

    def where(self, index: int) -> str:
        """What to call an image in a message: its path, or its row."""
        source = self.sources[index]
        return self.row(index) if isinstance(source, bytes) else str(source)

    def row(self, index: int) -> str:
        """Where an image stands in what lists it."""
        return f"row {index} of {self.origin}"

    def _open(self, index: int) -> Image.Image:
        source = self.sources[index]
        try:
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"image {self.where(index)} ({self.row(index)}) does not exist: put it there, or take it out of the "
                "list"
            ) from None
        except Exception as error:  # as above
            raise ValueError(
                f"cannot read image {self.where(index)}: not an image, or a broken one ({error})"
            ) from error
        if image.mode.startswith(_DEEP):
            raise ValueError(
                f"image {self.where(index)} has more than 8 bits per channel (mode {image.mode}): "
                "scale it to 8 bits first, since how much of its range matters is for you to say"
            )
        return image

    def _converted(self, image: Image.Image) -> Image.Image:
        if self.size is None:
            return image.convert(self.mode)
        width_height = self.size[::-1]
        image.draft(None, width_height)  # a JPEG much larger than asked for is decoded at a fraction of its size
        return image.convert(self.mode).resize(width_height, Image.Resampling.BILINEAR)

    def _header(self, index: int) -> _Header:
        with self._open(index) as image:
            return _Header(image.height, image.width, image.mode)

    def _common_size(self, headers: list[_Header]) -> tuple[int, int]:
        first = headers[0]
        for index, header in enumerate(headers):
            if header[:2] != first[:2]:
                side = min(first.height, first.width)
                raise ValueError(
                    f"images are of different sizes: {self.where(0)} is {first.height}x{first.width} and "
                    f"{self.where(index)} is {header.height}x{header.width} (height x width): "
                    f"resize them all with image_size={side} (--image-size {side}) or another size"
                )
        return first.height, first.width


def load_images(
    sources: Sequence[Path | bytes],
    *,
    origin: str = "the data",
    image_size: int | tuple[int, int] | None = None,
    max_bytes: int = MAX_BYTES,
) -> NDArray[np.uint8] | ImageFiles:
    """Images as one `(N, C, H, W)` uint8 array, or as `ImageFiles` if that would take more than `max_bytes`."""
    return in_memory(ImageFiles(sources, origin=origin, image_size=image_size), max_bytes)


def in_memory(files: ImageFiles, max_bytes: int = MAX_BYTES) -> NDArray[np.uint8] | ImageFiles:
    """The images decoded, `(N, C, H, W)`, or `files` as they are if that would take more than `max_bytes`."""
    return files if files.nbytes > max_bytes else files.to_array()


def to_png(image: NDArray[np.uint8]) -> bytes:
    """One image `(C, H, W)`, C = 1 or 3, as the bytes of a PNG file (lossless)."""
    stream = io.BytesIO()
    Image.fromarray(image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)).save(stream, format="PNG")
    return stream.getvalue()


def _as_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(
            f"image_size={image_size!r} (--image-size) must be pixels a side, or (height, width), each at least 1"
        )
    return size


def _in_threads(work: Callable[[int], T], count: int) -> list[T]:
    """`[work(0), ..., work(count - 1)]`. In chunks, because a small image takes less time than handing it over."""

    def chunk(start: int) -> list[T]:
        return [work(index) for index in range(start, min(start + _CHUNK, count))]

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return [result for part in pool.map(chunk, range(0, count, _CHUNK)) for result in part]
