"""Are these really the row numbers of the samples? Wrong ones train without an error, and badly.

The usual ways to get them wrong: positions within the batch, or within a subset that is drawn anew; the size of the
batch given for that of the data set; some other column. The surest sign is that a sample's label is not what it was.
"""

from __future__ import annotations

import sys
import warnings

import torch
from torch import Tensor, nn

from labelproof.core.state import check_ids
from labelproof.functional.device import host
from labelproof.functional.ranks import gather_rows

PASSES = 2  # over the data that are watched; a wrong index shows in the second at the latest
FIRST = 16  # batches that are looked at closely
EVERY = (4, 16)  # after these, labels are compared every 4 batches, after the two passes every 16
REMEDY = "wrap the dataset before it is split or shuffled: train_set = lp.with_index(train_set)"


class IndexWarning(UserWarning):
    """The index of a per-sample loss does not look like one; the text says why, and what to do."""


class IndexCheck(nn.Module):
    """Looks at each batch's index, and says once what looks wrong.

    On a CPU at once. Elsewhere findings are added up on the device and read after 16 batches and after each pass, so
    that no step waits. Labels are compared in the first 16 batches and then now and then; visits are counted in the
    first two passes over the data. None of it is saved.

    Args:
        num_samples: N.
        enabled: whether to look at all; types and shapes are always checked.
    """

    labels: Tensor
    visits: Tensor
    found: Tensor

    def __init__(self, num_samples: int, *, enabled: bool) -> None:
        super().__init__()
        self.num_samples, self.enabled = num_samples, enabled
        size = num_samples if enabled else 0
        self.register_buffer("labels", torch.full((size,), -1), persistent=False)  # of each sample; -1: not seen yet
        self.register_buffer("visits", torch.zeros(size, dtype=torch.int16), persistent=False)  # in this pass
        self.register_buffer("found", torch.zeros(2, dtype=torch.long), persistent=False)  # relabelled, repeated
        self._batches = self._passes = self._rows = self._largest = 0
        self._pending: list[Tensor] = []  # ids that are yet to be counted: many at a time is cheaper
        self._said: set[str] = set()

    def ids(self, index: Tensor | None, batch_size: int, device: torch.device) -> Tensor:
        """The index as `(B,)` int64 on `device`.

        Raises:
            ValueError: there is none, or its type or shape is wrong.
            IndexError: an id is not in [0, N).
        """
        if index is None:
            raise ValueError(
                f"this loss remembers each sample and needs its row number: criterion(logits, target, index). To have "
                f"your loader hand it out, {REMEDY}. (For validation call criterion.eval(): it is cross-entropy then, "
                "without an index)"
            )
        if not isinstance(index, Tensor) or index.is_floating_point() or index.dtype == torch.bool:
            kind = str(index.dtype) if isinstance(index, Tensor) else type(index).__name__
            raise ValueError(f"index is {kind} and must be a tensor of integers, row numbers of the training set")
        if tuple(index.shape) != (batch_size,):
            raise ValueError(f"index has shape {tuple(index.shape)} and must be ({batch_size},): one id per sample")
        check_ids(index.long(), self.num_samples)  # here, if it comes from the host: a GPU could only abort
        return index.to(device, torch.long, non_blocking=True)

    @torch.no_grad()
    def forward(self, index: Tensor, labels: Tensor | None) -> None:
        """Look at a batch.

        Args:
            index: `(B,)` int64, in [0, N).
            labels: `(B,)` int64, negative where unknown; `None` where samples have no single hard label.
        """
        if not self.enabled:
            return
        self._batches += 1
        every = EVERY[self._passes >= PASSES]
        if labels is not None and (self._batches <= FIRST or self._batches % every == 0):
            self._compare(index, labels)
        if self._passes < PASSES:
            self._count(index)

    def _compare(self, index: Tensor, labels: Tensor) -> None:
        before = self.labels.index_select(0, index)
        cpu = host(index)
        if cpu and torch.equal(before, labels):
            return
        self.labels.index_copy_(0, index, labels)
        after = self.labels.index_select(0, index)  # two rows of this very batch may share an id
        if cpu and torch.equal(after, labels) and bool((before == -1).all()):
            return
        other = (after != labels) | ((before != labels) & (before >= 0) & (labels >= 0))
        self.found[0] += other.sum()
        if cpu and bool(self.found[0]):
            self._relabelled(len(index), f" (sample {int(index[int(other.int().argmax())])}, for one)")

    def _count(self, index: Tensor) -> None:
        index = gather_rows(index)  # of all ranks: one alone sees only its part of each pass
        self._rows += len(index)
        self._largest = max(self._largest, len(index))
        self._pending.append(index.clone())
        if len(self._pending) == FIRST:
            self._flush()
        if self._batches <= FIRST:
            ordered = index.sort().values
            self.found[1] += (ordered[1:] == ordered[:-1]).sum()
        if self._batches == FIRST or self._rows >= self.num_samples:
            self._read(len(index))

    def _flush(self) -> None:
        index = torch.cat(self._pending)
        self._pending.clear()
        self.visits.index_add_(0, index, torch.ones_like(index, dtype=self.visits.dtype))

    def _read(self, batch_size: int) -> None:
        """Look at what was added up; the device is waited for here."""
        relabelled, repeated = self.found.tolist()
        if relabelled:
            self._relabelled(batch_size)
        looked_at = min(self._batches, FIRST)
        if repeated > looked_at * self._largest / 4 and self._largest > 1 < self.num_samples:
            self._say(
                "repeated",
                f"{repeated / looked_at:.0f} of {self._largest} ids of a batch are repetitions. A sampler with "
                "replacement does that to a few; so many look as if another column (the labels?) were given as index. "
                f"If not intended, {REMEDY}",
            )
        if self._rows < self.num_samples:
            return
        if self._pending:
            self._flush()
        visits = self.visits.float()
        seen, square = torch.stack([(visits > 0).sum(), visits.square().sum()]).tolist()
        self._coverage(int(seen), square / seen - (self._rows / seen) ** 2)
        self.visits.zero_()
        self._rows, self._passes = 0, self._passes + 1

    def _coverage(self, seen: int, variance: float) -> None:
        """After a pass: `seen` different ids, whose numbers of visits vary by `variance`."""
        n = self.num_samples
        if seen >= 0.75 * n:
            return
        begin = f"in {self._rows} samples only {seen} of num_samples={n} ids occurred"
        if seen <= self._largest:
            self._say(
                "coverage",
                f"{begin}, no more than one batch has: they look like positions within the batch, and the memory of "
                f"many samples is mixed up in one row. Ids are rows of the whole training set: {REMEDY}",
            )
        elif variance > 0.4:  # a subset, passed several times, is visited evenly: at most 0.25
            self._say(
                "coverage",
                f"{begin}, some much oftener than others. A sampler with replacement does that, and it is harmless if "
                f"intended; else ids are mixed up (positions within something that is drawn anew?): {REMEDY}",
            )

    def _relabelled(self, batch_size: int, example: str = "") -> None:
        size = (
            f"num_samples={self.num_samples} is also the size of this batch: it must be len(train_set). "
            if batch_size == self.num_samples
            else ""
        )
        self._say(
            "relabelled",
            f"an id came with another label than before{example}: the memory of different samples is mixed up in one "
            f"row. {size}Ids must be rows of the whole training set, the same in each epoch, not positions within the "
            f"batch or a reshuffled subset: {REMEDY}. If labels are changed on purpose: check_index=False",
        )

    def _say(self, what: str, text: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warnings.warn(text, IndexWarning, stacklevel=stacklevel())


def stacklevel() -> int:
    """For `warnings.warn`: the line of the user's that called, past this library and torch."""
    level, frame = 0, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in {"labelproof", "torch"}:
        level, frame = level + 1, frame.f_back
    return level
