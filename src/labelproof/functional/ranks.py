"""Talking to the other ranks of a data-parallel run; with one process each of these does nothing.

Every rank holds the same number of rows of each joint batch (`labelproof.data.feed` sees to it), in rank order, so
that gathered rows stand in the order of the joint batch and no sizes have to be exchanged.
"""

from __future__ import annotations

from typing import TypeVar

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
