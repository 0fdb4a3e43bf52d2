"""Where and how the rows of a `SampleTable` are kept.

| memory | bytes per row of K numbers | what it costs |
|---|---|---|
| `dense` | 4 K, on the device | nothing |
| `fp16`, `bf16` | 2 K, on the device | 3 or 2 digits; smaller updates are lost, as ELR's with beta = .99 |
| `cpu` | 4 K, in host memory | with a GPU, a transfer and a wait per step |
| `mmap`, `mmap:DIR` | 4 K, in a file | reading and writing through the page cache |
| `topk`, `topk:50` | 4 k + 2 (6 k + 2 from K = 32,768 on), on the device | see below |

`topk` is for rows that are shares of a whole (class probabilities): beyond the k largest only the sum is kept.
"""

from __future__ import annotations

import atexit
import errno
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from labelproof.core.registry import did_you_mean
from labelproof.functional.device import host

FORMS = ("dense", "fp16", "bf16", "cpu", "mmap", "topk")
DEFAULT_TOP = 50
_HUGE = 64 * 1024**2  # bytes from which huge pages are asked for


_usual: ContextVar[str] = ContextVar("memory", default="dense")


@contextmanager
def kept_as(memory: str) -> Iterator[None]:
    """Tables made inside the `with` block are of this form, unless they ask for another."""
    token = _usual.set(memory)
    try:
        yield
    finally:
        _usual.reset(token)


def usual_memory() -> str:
    """The form that `kept_as` says; `"dense"` outside it."""
    return _usual.get()


def parse_memory(memory: str) -> tuple[str, str]:
    """The form and its argument.

    Raises:
        ValueError: unknown form or argument.

    >>> parse_memory("topk:20"), parse_memory("dense")
    (('topk', '20'), ('dense', ''))
    """
    form, colon, rest = str(memory).partition(":")
    if form not in FORMS:
        raise ValueError(f"unknown memory {memory!r}{did_you_mean(form, FORMS)} There are: {', '.join(FORMS)}")
    if colon and form not in {"mmap", "topk"}:
        raise ValueError(f"memory={memory!r}: {form} takes no argument")
    if form == "topk" and colon and not (rest.isdecimal() and int(rest) > 0):
        raise ValueError(f"memory={memory!r}: the number of classes to keep must be a whole number from 1, as topk:50")
    if form == "mmap" and colon and not rest:
        raise ValueError(f"memory={memory!r}: the folder is missing; give one, as mmap:DIR, or mmap alone")
    return form, rest


def make_store(memory: str, num_samples: int, shape: tuple[int, ...]) -> Store:
    """A store of zeros.

    Args:
        memory: one of the forms at the top of this module.
        num_samples: N.
        shape: of one row.

    Raises:
        ValueError: unknown form.
        MemoryError: there is not enough memory, or disk, for it; the message says how much it takes.
    """
    form, rest = parse_memory(memory)
    top = int(rest or DEFAULT_TOP) if form == "topk" else 0
    if form == "topk" and (len(shape) != 1 or shape[0] <= top):
        form = "dense"  # nothing to leave out
    try:
        if form == "topk":
            return TopK(num_samples, shape[0], top)
        if form in {"cpu", "mmap"}:
            return Host(num_samples, shape, folder=(rest or tempfile.gettempdir()) if form == "mmap" else None)
        return Dense(num_samples, shape, {"fp16": torch.float16, "bf16": torch.bfloat16}.get(form, torch.float32))
    except OSError as error:
        if form == "mmap" and error.errno not in {errno.ENOSPC, errno.ENOMEM, errno.EFBIG}:
            raise ValueError(f"memory={memory!r}: no file can be made there ({error}); give a folder") from error
        raise MemoryError(_no_room(memory, num_samples, shape, error)) from error
    except RuntimeError as error:
        raise MemoryError(_no_room(memory, num_samples, shape, error)) from error


def _no_room(memory: str, num_samples: int, shape: tuple[int, ...], error: Exception) -> str:
    size = 4 * num_samples * prod(shape) / 1e9
    return (
        f"no room for {num_samples:,} rows of {shape} numbers as memory={memory!r} ({size:.3g} GB in fp32; "
        f"{str(error).splitlines()[0]}): try memory='topk', 'bf16' or 'mmap:DIR'"
    )


def lookup(values: Tensor, index: Tensor, scale: float = 1.0) -> Tensor:
    """Rows of the given ids times a number, `(B, *shape)` fp32."""
    if host(index) and values.dtype == torch.float32 and values.ndim == 2 and values.shape[1] > 15:
        starts = torch.arange(len(index))  # bags of one row each: they are fetched ahead, by index_select they are not
        weights = None if scale == 1 else values.new_full((len(index),), scale)
        return torch.embedding_bag(values, index, starts, per_sample_weights=weights)[0]
    rows = values.index_select(0, index).float()
    return rows if scale == 1 else rows.mul_(scale)


def first_of_each(index: Tensor, rows: Tensor) -> Tensor:
    """Rows such that repeated ids agree: each gets the row that stands first under its id."""
    ordered, order = index.sort(stable=True)
    return rows[order[torch.searchsorted(ordered, index)]]


def _assign(values: Tensor, index: Tensor, rows: Tensor) -> None:
    """The first row of each id, in host memory: the last one assigned is the one that stays, so from back to front.

    NumPy takes a third of the time of `index_copy_`, and promises the order. It takes ids below 0 for positions from
    the end: a caller has looked that there are none.
    """
    values.numpy()[index.numpy()[::-1]] = rows.float().numpy()[::-1]


def _zeros(num_samples: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros; large ones on huge pages where there are such: random rows are read and written in 2/3 of the time."""
    size = num_samples * prod(shape) * dtype.itemsize
    if size < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(num_samples, *shape, dtype=dtype)
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        block.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(block, dtype=dtype).reshape(num_samples, *shape)


class Dense(nn.Module):
    """One number per entry, on the device."""

    values: Tensor

    def __init__(self, num_samples: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("values", _zeros(num_samples, shape, dtype))

    @property
    def nbytes(self) -> int:
        return self.values.numel() * self.values.element_size()

    def read(self, index: Tensor, scale: float = 1.0) -> Tensor:
        return lookup(self.values, index, scale)

    def write(self, index: Tensor, rows: Tensor) -> None:
        if host(index) and self.values.dtype == torch.float32:
            _assign(self.values, index, rows)
        else:
            self.values.index_copy_(0, index, first_of_each(index, rows).to(self.values.dtype))


class Host(nn.Module):
    """In host memory, or in a file that is mapped into it, wherever the rest of the method is."""

    values: Tensor

    def __init__(self, num_samples: int, shape: tuple[int, ...], *, folder: str | None = None) -> None:
        super().__init__()
        values = _zeros(num_samples, shape, torch.float32) if folder is None else _mapped(num_samples, shape, folder)
        self.register_buffer("values", values)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        return self  # .to(device) and .half() leave it where and as it is

    @property
    def nbytes(self) -> int:
        return self.values.numel() * self.values.element_size()

    def read(self, index: Tensor, scale: float = 1.0) -> Tensor:
        return lookup(self.values, index.cpu(), scale).to(index.device)

    def write(self, index: Tensor, rows: Tensor) -> None:
        _assign(self.values, index.cpu(), rows.float().cpu())


def _mapped(num_samples: int, shape: tuple[int, ...], folder: str) -> Tensor:
    """Zeros in a new file that vanishes with the process (on Windows, if that ends well), all its blocks reserved."""
    os.makedirs(folder, exist_ok=True)
    size = num_samples * prod(shape)
    handle, path = tempfile.mkstemp(prefix="labelproof-", suffix=".table", dir=folder)
    try:
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a crash in the middle of an epoch
            os.posix_fallocate(handle, 0, 4 * size)
        else:
            os.truncate(handle, 4 * size)
        values = torch.from_file(path, shared=True, size=size, dtype=torch.float32)
    finally:
        os.close(handle)
        try:
            os.unlink(path)
        except OSError:  # Windows keeps a file that is mapped
            atexit.register(_unlink, path)
    return values.reshape(num_samples, *shape)


def _unlink(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


class TopK(nn.Module):
    """The k largest entries of each row, and the sum of the others, spread evenly over them when read.

    For rows of non-negative numbers few of which matter: probabilities of many classes.
    """

    classes: Tensor
    largest: Tensor
    rest: Tensor

    def __init__(self, num_samples: int, width: int, k: int) -> None:
        super().__init__()
        self.width = width
        small = width <= torch.iinfo(torch.int16).max
        self.register_buffer("classes", torch.zeros(num_samples, k, dtype=torch.int16 if small else torch.int32))
        self.register_buffer("largest", torch.zeros(num_samples, k, dtype=torch.float16))
        self.register_buffer("rest", torch.zeros(num_samples, 1, dtype=torch.float16))

    @property
    def nbytes(self) -> int:
        return sum(b.numel() * b.element_size() for b in self.buffers())

    def read(self, index: Tensor, scale: float = 1.0) -> Tensor:
        rows = self._dense(*(b.index_select(0, index) for b in (self.classes, self.largest, self.rest)))
        return rows if scale == 1 else rows.mul_(scale)

    def _dense(self, classes: Tensor, largest: Tensor, rest: Tensor) -> Tensor:
        even = rest.float() / (self.width - self.classes.shape[1])
        return even.repeat(1, self.width).scatter_(1, classes.long(), largest.float())

    def write(self, index: Tensor, rows: Tensor) -> None:
        rows = first_of_each(index, rows)
        largest, classes = rows.topk(self.classes.shape[1], dim=1, sorted=False)
        self.classes.index_copy_(0, index, classes.to(self.classes.dtype))
        self.largest.index_copy_(0, index, largest.half())
        self.rest.index_copy_(0, index, (rows.sum(1, keepdim=True) - largest.sum(1, keepdim=True)).clamp(min=0).half())


#: Rows behind one interface: `read(index)` gives fp32 rows (times `scale`) on the device of the ids, `write(index,
#: rows)` stores them (the first where an id comes twice), `nbytes` is what they take.
Store: TypeAlias = Dense | Host | TopK
