"""Talking to the other ranks of a data-parallel run; with one process each of these does nothing.

Every rank holds the same number of rows of each joint batch (`labelproof.data.feed` sees to it), in rank order, so
that gathered rows stand in the order of the joint batch and no sizes have to be exchanged.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Number of processes that train together; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's place among them, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all ranks, `(world * B, ...)`, in rank order; without gradient. Same tensor on every rank."""
    if world_size() == 1:
        return rows
    rows = rows.detach().contiguous()
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return gather_rows(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        return sum_over_ranks(grad.contiguous()).chunk(world_size())[rank()]


def gather_rows_with_gradient(rows: Tensor) -> Tensor:
    """Rows of all ranks, `(world * B, ...)`, in rank order, through which gradients flow back to the rank of each row.

    A row's gradient is the sum of what the losses of all ranks make of it. So gradients averaged over ranks, as
    data-parallel wrappers do, are those of the mean of the ranks' losses. Every rank must take part in the backward
    pass, or the others wait for it.

    >>> gather_rows_with_gradient(torch.ones(2, 1)).shape  # one process: the rows themselves
    torch.Size([2, 1])
    """
    return _Gather.apply(rows) if world_size() > 1 else rows  # type: ignore[no-untyped-call]


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum over ranks; without gradient."""
    value = value.detach()
    if world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def joint_mean(rows: Tensor) -> Tensor:
    """Mean over the rows of the joint batch, `(B, ...)` to `(...)`, to be used inside a function that is not linear.

    With gradient: averaged over ranks, as data-parallel wrappers do, gradients of any function of it are those of the
    joint batch.
    """
    mine = rows.mean(0)
    return mine + (sum_over_ranks(mine) / world_size() - mine).detach() if world_size() > 1 else mine


def of_first_rank(value: T) -> T:
    """The first rank's value, on every rank: where last digits could differ and decide what each does next."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]
