"""Class-balanced sampling: in each epoch the same number of every class, another choice each time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Strata:
    """The samples of each class, of which an epoch takes equal numbers.

    A class with more samples than its share is gone through without repetition within an epoch; one with fewer has each
    sample as often as any other of it, up to one.

    Args:
        y: `(n,)` int64, the class of each sample.
        size: samples of an epoch; where it is no multiple of the number of classes, some have one more, by lot.

    Raises:
        ValueError: the labels are no classes, or there are more classes than `size`.

    >>> strata = Strata(np.array([0] * 8 + [1] * 2), 6)
    >>> order = strata.draw(torch.Generator().manual_seed(0))
    >>> sorted((order >= 8).tolist())
    [False, False, False, True, True, True]
    """

    def __init__(self, y: NDArray[Any], size: int) -> None:
        if y.ndim != 1 or y.dtype.kind not in "iu":
            raise ValueError("sampling='balanced' is for classes, and these labels are numbers: use sampling='all'")
        self.size, self.y = size, torch.from_numpy(np.unique(y, return_inverse=True)[1].reshape(-1))
        self.counts = torch.bincount(self.y)
        if size < len(self.counts):
            raise ValueError(f"epoch_samples={size} is less than one of each of the {len(self.counts)} classes")

    def draw(self, rng: torch.Generator) -> Tensor:
        """`(size,)` int64 positions in `y`, in random order."""
        k, n = len(self.counts), len(self.y)
        share = torch.full((k,), self.size // k)
        share[torch.randperm(k, generator=rng)[: self.size % k]] += 1
        mixed = torch.randperm(n, generator=rng)
        by_class = mixed[self.y[mixed].argsort(stable=True)]  # shuffled within each class
        first = self.counts.cumsum(0) - self.counts
        label = torch.repeat_interleave(torch.arange(k), share)
        place = torch.arange(self.size) - torch.repeat_interleave(share.cumsum(0) - share, share)
        return by_class[first[label] + place % self.counts[label]][torch.randperm(self.size, generator=rng)]
