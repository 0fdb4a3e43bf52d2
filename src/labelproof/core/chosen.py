"""Training on some rows of a batch: those that score lowest, in one network or in the other of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from labelproof.core.nets import Nets, outputs, side_by_side, unseen
from labelproof.core.task import Task
from labelproof.core.types import Batch, Loss
from labelproof.functional.mixing import Mixup
from labelproof.functional.ranks import world_size
from labelproof.functional.select import smallest, smallest_rows, weighted_mean

#: From a network and a batch to outputs `(B, O)` and scores `(B,)`.
Score = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]


def by_loss(task: Task) -> Score:
    """The score that is the loss itself."""

    def scored(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        out: Tensor = net(batch.x)
        return out, task.loss(out, batch.target)

    return scored


def loss_of_rows(
    task: Task, nets: Nets, batch: Batch, rows: Sequence[Tensor], mix: Mixup | None = None
) -> tuple[Tensor, Tensor]:
    """The sum over networks of the mean loss of the rows chosen for each, and the rows as weights.

    Only these rows are passed through a network, so that BatchNorm's statistics are theirs.

    Args:
        task: what is learned.
        nets: P networks.
        batch: of B rows.
        rows: for each network `(n,)` positions in the batch.
        mix: a draw of mixup over n rows, which are then mixed among themselves; None leaves them as they are.

    Returns:
        The loss, a scalar, and `(P, B)` weights, 1 where a network was trained on a row.
    """

    def one(net: nn.Module, i: Tensor) -> Tensor:
        x, y = batch.x[i], batch.target[i]  # picked here, on the network's own stream, which then owns their memory
        if mix is not None:
            x, y = mix(x), mix(task.encode(y))
        return task.loss(net(x), y).mean()

    each = side_by_side([partial(one, net, i) for net, i in zip(nets, rows, strict=True)], batch.x)
    weight = torch.zeros(len(nets), len(batch.x), device=batch.x.device)
    for row, i in zip(weight, rows, strict=True):
        row.index_fill_(0, i, 1)
    return torch.stack(each).sum(), weight


def loss_of_smallest(
    task: Task, nets: Nets, batch: Batch, keep: float, score: Score, *, first: bool, mix: Mixup | None = None
) -> Loss:
    """The mean loss of the samples that score lowest; with two networks, of those that score lowest in the other.

    Args:
        task: what is learned.
        nets: one or two networks.
        batch: of B rows.
        keep: share to keep, of the joint batch of all ranks.
        score: outputs and scores. With one pass the outputs carry the gradient.
        first: whether a pass of its own scores, before another that trains on the rows kept alone. Several processes,
            each of which keeps another number of rows, pass all rows again under weights; or, if they mix, keep that
            share of each part.
        mix: mixup among the rows kept, over as many rows; needs `first`.
    """
    with unseen(nets) if first else nullcontext():
        seen = side_by_side([partial(score, net, batch) for net in nets], batch.x)
    out, s = torch.stack([o for o, _ in seen]), [each for _, each in seen][::-1]
    if first and (mix is not None or world_size() == 1):
        value, weight = loss_of_rows(task, nets, batch, [smallest_rows(each, keep) for each in s], mix)
        return Loss(value, out=out, trust=weight)
    weight = torch.stack([smallest(each, keep) for each in s])
    pairs = zip(outputs(nets, batch.x) if first else out, weight, strict=True)
    each = [weighted_mean(task.loss(o, batch.target), w) for o, w in pairs]
    return Loss(torch.stack(each).sum(), out=out, trust=weight)
