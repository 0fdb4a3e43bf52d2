"""Feeds: batches of a data set, from device memory or streamed, behind one interface.

Order and augmentation are pure functions of (seed, epoch, step): a feed has no state to save. Each joint batch is cut
into equal consecutive parts, one per rank. The remainder modulo the number of ranks (fewer samples than ranks) sits out
the epoch, another handful each time; with one process every sample is visited in every epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from labelproof.core.types import Batch
from labelproof.data.contrast import Contrast
from labelproof.data.dataset import MapStyle
from labelproof.data.seeds import generator, seeded
from labelproof.data.strata import Strata
from labelproof.data.strong import Strong
from labelproof.data.transforms import Standardise, crop_flip
from labelproof.functional.ranks import rank, world_size

#: Kinds of view: as the run's `augment` has it, and with a policy or masking noise on top.
VIEWS = ("weak", "strong", "contrast")


class Feed(Protocol):
    """What the engine asks of a source of batches."""

    steps: int

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """This rank's part of the shuffled, augmented batches of an epoch, from batch `start` on."""

    def ordered(self, batch_size: int, rows: NDArray[np.int64] | None = None) -> Iterator[Batch]:
        """This rank's part of all samples (or of the given rows), in order, not augmented, for evaluation."""


def batch_bounds(n: int, batch_size: int, world: int = 1) -> list[tuple[int, int]]:
    """Where each joint batch begins and ends in the shuffled order.

    A tail of fewer than two samples per rank joins the batch before it: BatchNorm cannot train on a single sample, and
    dropping it would leave samples out.

    >>> batch_bounds(97, 32)
    [(0, 32), (32, 64), (64, 97)]
    """
    n -= n % world
    cuts = list(range(0, n, batch_size))
    if len(cuts) > 1 and n - cuts[-1] < 2 * world:
        cuts.pop()
    return list(zip(cuts, [*cuts[1:], n], strict=True))


def endless(feed: Feed, position: int) -> Iterator[Batch]:
    """A feed's batches epoch after epoch, from the batch at `position` on."""
    epoch, start = divmod(position, feed.steps)
    while True:
        yield from feed.epoch(epoch, start=start)
        epoch, start = epoch + 1, 0


class _Base:
    """Order, parts and views: what both feeding paths share."""

    def __init__(
        self,
        y: NDArray[Any],
        rows: NDArray[np.int64],
        *,
        standardise: Standardise,
        device: torch.device,
        batch_size: int,
        seed: int,
        views: Sequence[str] = ("weak",),
        augment: str = "none",
        span: tuple[float, float] = (0.0, 255.0),
        pool: Tensor | None = None,
        balanced: int | None = None,
    ) -> None:
        if isinstance(views, str) or not set(views) <= set(VIEWS):
            raise ValueError(f"views={views!r} must be a tuple of names out of {', '.join(VIEWS)}")
        self.rows, self.device, self.seed, self.views, self.augment = rows, device, seed, views, augment
        self.strong = Strong(standardise, seed=seed, span=span)
        self.contrast = Contrast(standardise, seed=seed, span=span, pool=pool, flip=augment == "crop-flip")
        self.strata = None if balanced is None else Strata(y[rows], balanced)
        self.bounds = batch_bounds(len(rows) if balanced is None else balanced, batch_size, world_size())
        self.steps = len(self.bounds)
        self.standardise = standardise
        self.target = from_array(y).to(device)

    def _order(self, epoch: int) -> Tensor:
        rng = generator(self.seed, "shuffle", epoch)
        order = torch.randperm(len(self.rows), generator=rng) if self.strata is None else self.strata.draw(rng)
        return torch.from_numpy(self.rows)[order]

    def _parts(self, start: int) -> list[slice]:
        """Per joint batch from `start` on, this rank's slice of the epoch's order."""
        world, r = world_size(), rank()
        size = [(hi - lo) // world for lo, hi in self.bounds]
        return [slice(lo + r * s, lo + (r + 1) * s) for (lo, _), s in zip(self.bounds, size, strict=True)][start:]

    def _mine(self, batch_size: int, rows: NDArray[np.int64] | None) -> list[Tensor]:
        rows = np.array_split(self.rows if rows is None else rows, world_size())[rank()]
        return [torch.from_numpy(rows[at : at + batch_size]) for at in range(0, len(rows), batch_size)]

    def _batch(self, index: Tensor, raw: Tensor, epoch: int, step: int) -> Batch:
        views: list[Tensor] = []
        for v, kind in enumerate(self.views):
            drawn = kind != "weak" or self.augment != "none" or "weak" not in self.views[:v]
            views.append(self._view(raw, kind, (epoch, step, v)) if drawn else views[self.views.index("weak")])
        return Batch(index, tuple(views), self.target[index])

    def _view(self, raw: Tensor, kind: str, at: tuple[int, int, int]) -> Tensor:
        lo, hi = self.bounds[at[1]]
        part, joint = slice(rank() * len(raw), (rank() + 1) * len(raw)), hi - lo
        if kind == "contrast":  # with a crop of its own
            return self.contrast(raw, at=at, part=part, joint=joint)
        if self.augment != "none":
            rng = generator(self.seed, "augment", *at)
            pad, flip = max(1, raw.shape[-1] // 8), self.augment == "crop-flip"
            raw = crop_flip(raw, rng, pad=pad, flip=flip, part=part, joint=joint)
        if kind == "strong":
            return self.strong(raw, at=at, part=part, joint=joint)
        out: Tensor = self.standardise(raw)
        return out

    def _plain(self, index: Tensor, raw: Tensor) -> Batch:
        return Batch(index, (self.standardise(raw),), self.target[index])


class DeviceFeed(_Base):
    """Small data: the raw inputs (images as uint8) lie on the device; a batch is a gather there.

    Args:
        x: `(N, ...)` all inputs; batches carry row numbers of it as ids.
        y: `(N,)` or `(N, D)` given labels of all rows.
        rows: the rows this feed serves.
        standardise: applied to each batch, on `device`.
        device: where the data is kept.
        batch_size: samples per joint batch, over all ranks.
        seed: of shuffling and augmentation.
        views: kinds of the augmented versions of each sample: `"weak"` is `augment` alone, `"strong"` adds what
            `labelproof.data.strong` describes, `"contrast"` is that of `labelproof.data.contrast`.
        augment: `"none"`, `"crop"` or `"crop-flip"`.
        span: smallest and largest value of images, between which strong and contrast views stay.
        pool: `(M, D)` raw rows whose values replace those of contrast views.
        balanced: so many samples make an epoch, of each class the same number; each sample once if `None`.

    Raises:
        ValueError: a view of another kind is asked for.
    """

    def __init__(self, x: NDArray[Any], y: NDArray[Any], rows: NDArray[np.int64], **common: Any) -> None:
        super().__init__(y, rows, **common)
        self.x = from_array(x).to(self.device)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        order = self._order(epoch).to(self.device)
        for step, part in enumerate(self._parts(start), start):
            index = order[part]
            yield self._batch(index, self.x[index], epoch, step)

    def ordered(self, batch_size: int, rows: NDArray[np.int64] | None = None) -> Iterator[Batch]:
        for part in self._mine(batch_size, rows):
            index = part.to(self.device)
            yield self._plain(index, self.x[index])


class StreamFeed(_Base):
    """Large data: a map-style data set streamed through worker processes.

    Random transforms of the data set itself (drawing from torch, NumPy or `random`) are seeded per (seed, epoch,
    sample): the same whatever worker loads the sample and wherever a run resumes. Arguments as for `DeviceFeed`, with
    a map-style `x`.

    Args:
        workers: loading processes; 0 loads in the training process.
    """

    def __init__(
        self, x: MapStyle, y: NDArray[Any], rows: NDArray[np.int64], *, workers: int = 0, **common: Any
    ) -> None:
        super().__init__(y, rows, **common)
        self.x, self.workers = x, workers

    def _load(self, plan: list[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        pin = self.device.type == "cuda"
        loader: DataLoader[Any] = DataLoader(
            _Seeded(self.x, self.seed, epoch),
            batch_sampler=[rows.tolist() for rows in plan],
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=pin,
            # the loader itself draws a base seed for its workers: not from the global generator
            generator=generator(self.seed, "workers", epoch + 1),
        )
        for index, raw in loader:
            yield index.to(self.device, non_blocking=pin), raw.to(self.device, non_blocking=pin)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Batch]:
        order = self._order(epoch)
        plan = [order[part] for part in self._parts(start)]
        for step, (index, raw) in enumerate(self._load(plan, epoch), start):
            yield self._batch(index, raw, epoch, step)

    def ordered(self, batch_size: int, rows: NDArray[np.int64] | None = None) -> Iterator[Batch]:
        for index, raw in self._load(self._mine(batch_size, rows), -1):
            yield self._plain(index, raw)


class _Seeded(Dataset[tuple[int, Tensor]]):
    """Pairs each sample with its id (module level: spawned workers pickle it)."""

    def __init__(self, base: MapStyle, seed: int, epoch: int) -> None:
        self.base, self.seed, self.epoch = base, seed, epoch

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, load_item(self.base, index, self.seed, self.epoch)


def from_array(x: NDArray[Any]) -> Tensor:
    """A tensor on the array's memory; of a copy where that is read-only, which torch does not allow."""
    return torch.from_numpy(x if x.flags.writeable else x.copy())


def load_item(base: MapStyle, index: int, seed: int = 0, epoch: int = -1) -> Tensor:
    """One input of a map-style data set; its random transforms depend on (seed, epoch, index) alone."""
    with seeded(seed, "sample", epoch, index):
        return as_tensor(base[index], index)


def as_tensor(item: Any, index: int) -> Tensor:
    """One input as a tensor: of an `(input, label)` pair the input; PIL images become `(C, H, W)` uint8.

    Raises:
        ValueError: it is none of a number array, a tensor or a PIL image.
    """
    if isinstance(item, tuple | list):
        item = item[0]
    if isinstance(item, Tensor):
        return item
    if hasattr(item, "getbands"):  # a PIL image, without importing PIL for those who have none
        pixels = np.array(item)
        return torch.from_numpy(pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    array = np.asarray(item)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"sample {index} is a {type(item).__name__}: inputs must be arrays, tensors or PIL images")
    return torch.from_numpy(array if array.dtype == np.uint8 else array.astype(np.float32))


def _collate(items: list[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
    shapes = {tuple(x.shape): i for i, x in items}
    if len(shapes) > 1:
        (a, i), (b, j) = list(shapes.items())[:2]
        raise ValueError(f"inputs must be of one shape, but sample {i} is {a} and sample {j} is {b}: resize them first")
    return torch.tensor([i for i, _ in items]), torch.stack([x for _, x in items])
