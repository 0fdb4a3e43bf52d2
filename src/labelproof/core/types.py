"""The words every method is written in: `Batch`, `Clock` and `Loss`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Batch(NamedTuple):
    """One minibatch as a method sees it.

    Attributes:
        index: `(B,)` int64, the stable id of each sample: its row in the *original* training set, whatever
            subset, sampler or rank it came through. Never a position inside a subset or a batch.
        views: the inputs, each `(B, ...)` float; `views[0]` is the ordinary one, further ones are other random
            augmentations of the same samples (SOP+, SimCLR and DivideMix ask for two). Where nothing is random (no
            augmentation) ordinary views are one and the same tensor.
        target: the *given* label: `(B,)` int64 class codes, or `(B, D)` float regression targets.
        side: batches of further streams by name, e.g. `"clean"` for MentorNet DD; their ids are rows of *their* data
            set.
    """

    index: Tensor  # type: ignore[assignment]  # the field hides tuple.index(), which nobody calls on a batch
    views: tuple[Tensor, ...]
    target: Tensor
    side: Mapping[str, Batch] = _NOTHING

    def joined(self, other: Batch) -> Batch:
        """The rows of this batch and of another of the same training set, without side streams."""
        pairs = zip(self.views, other.views, strict=False)  # a side stream has the ordinary view alone
        views = tuple(torch.cat(pair) for pair in pairs)
        return Batch(torch.cat([self.index, other.index]), views, torch.cat([self.target, other.target]))

    @property
    def x(self) -> Tensor:
        """The ordinary view."""
        return self.views[0]


class Clock(NamedTuple):
    """Where training stands. Every schedule is a pure function of it.

    Attributes:
        epoch: epochs finished so far, from 0.
        epochs: epochs in all.
        step: steps finished in this epoch, from 0.
        steps_per_epoch: steps in each epoch.
        rng: a CPU generator for this step alone, derived from (seed, epoch, step): the same on every rank (so a
            permutation drawn from it permutes each rank's own rows) and after every resume.
        accumulate: batches whose gradients make one update of the weights.
    """

    epoch: int
    epochs: int
    step: int
    steps_per_epoch: int
    rng: torch.Generator
    accumulate: int = 1

    @property
    def updates(self) -> int:
        """Updates of the weights finished so far; fewer than steps where gradients are accumulated."""
        return self.epoch * -(-self.steps_per_epoch // self.accumulate) + self.step // self.accumulate


class Loss(NamedTuple):
    """What a method returns for one batch.

    Attributes:
        value: scalar, attached to the graph even when no sample was selected.
        out: `(B, O)` network outputs on `batch.views[0]`, where the method made them anyway: the engine keeps a
            running record of them as evidence about each label, so that no second pass is needed. `None` (mixup,
            say, never sees the ordinary view) makes the engine run one evaluation pass per epoch instead.
        trust: `(B,)` or `(peers, B)` in [0, 1], who was believed. Logged, and evidence for the list of wrong labels.
        log: further scalars (device tensors) to average over the epoch and log.
    """

    value: Tensor
    out: Tensor | None = None
    trust: Tensor | None = None
    log: Mapping[str, Tensor] = _NOTHING

    def of_first(self, rows: int) -> Loss:
        """The same loss, of which the first rows alone are recorded: those of the batch, where others were added."""
        out, trust = self.out, self.trust
        return self._replace(
            out=None if out is None else out[..., :rows, :], trust=None if trust is None else trust[..., :rows]
        )
