"""Selections as weights, and the one reduction that turns per-sample losses into a scalar.

Selections are 0/1 weights rather than index lists: shapes stay static, the graph is never empty, and a rank on which
nothing was selected still joins the backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor

from labelproof.functional.ranks import gather_rows, rank, sum_over_ranks, world_size


def num_kept(fraction: float, n: int) -> int:
    """Number of samples to keep of `n`: floor(fraction * n), at least 1.

    The small offset keeps products such as (1 - 0.9) * 10 = 0.99999... from losing a sample to rounding.

    >>> num_kept(1 - 0.9, 10), num_kept(0.55, 128), num_kept(0.0, 16)
    (1, 70, 1)
    """
    return min(n, max(1, int(fraction * n + 1e-6)))


def smallest_rows(score: Tensor, fraction: float) -> Tensor:
    """Positions of the `num_kept(fraction, B)` smallest scores of this rank, `(k,)`, smallest first.

    The rows to which `smallest` gives weight 1, for a second forward pass over these alone. With several ranks the
    rows that `smallest` finds in the joint batch are spread unevenly, so there is no such k.

    Args:
        score: `(B,)`. NaN ranks last. Ties go to the earlier row.
        fraction: share to keep, in [0, 1].

    >>> smallest_rows(torch.tensor([0.3, 9.0, 0.1, 0.2]), 0.5)
    tensor([2, 3])
    """
    return score.detach().argsort(stable=True)[: num_kept(fraction, len(score))]


def smallest(score: Tensor, fraction: float, *, across_ranks: bool = True) -> Tensor:
    """Weight 1 for the `num_kept(fraction, B)` smallest scores, 0 for the rest.

    Args:
        score: `(B,)`, e.g. per-sample losses. NaN ranks last. Ties go to the earlier row.
        fraction: share of the batch to keep, in [0, 1].
        across_ranks: rank over the joint batch of all processes (the default: the same selection however many
            processes share the batch) or over this rank's rows alone.

    Returns:
        `(B,)` weights of the dtype of `score`, without gradient.

    >>> smallest(torch.tensor([0.3, 9.0, 0.1, 0.2]), 0.5)
    tensor([0., 0., 1., 1.])
    """
    score = score.detach()
    joint = gather_rows(score) if across_ranks else score
    weight = torch.zeros_like(joint).index_fill_(0, smallest_rows(joint, fraction), 1)
    return weight.chunk(world_size())[rank()] if across_ranks else weight


def smallest_among(score: Tensor, fraction: float, among: Tensor) -> Tensor:
    """Weight 1 for the smallest scores among some rows of the joint batch of all processes, 0 for the rest.

    How many rows these are is known to the device alone, and stays there: nobody waits for the number.

    Args:
        score: `(B,)`. Ties go to the earlier row; what is not finite may be left out.
        fraction: share of those rows to keep, in [0, 1]; of n rows `num_kept(fraction, n)`, none of none.
        among: `(B,)` bool, the rows.

    Returns:
        `(B,)` weights of the dtype of `score`, without gradient.

    >>> smallest_among(torch.tensor([0.3, 9.0, 0.1, 0.2]), 0.5, torch.tensor([True, True, False, True]))
    tensor([0., 0., 0., 1.])
    """
    order = gather_rows(score.detach().masked_fill(~among, torch.inf)).argsort(stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    count = sum_over_ranks(among.sum())
    kept = (count * round(fraction * 2**32) + 2**12) >> 32  # num_kept in whole numbers, as exact on every device
    return (among & (place.chunk(world_size())[rank()] < kept.clamp(min=1))).to(score.dtype)


def weighted_mean(value: Tensor, weight: Tensor | None = None, *, at_least: float = 0.0) -> Tensor:
    r"""$\sum_i w_i v_i / \sum_i w_i$ over the joint batch, divided *once*; 0, attached to the graph, if all w are 0.

    Under data parallelism each rank returns `world * (its part of the sum) / (the joint denominator)`: averaging
    gradients over ranks then gives exactly the gradient of the joint batch, however the selected rows are spread.

    Args:
        value: `(B,)`, with gradient.
        weight: `(B,)`, non-negative; `None` means all ones.
        at_least: share of the batch, in [0, 1]: where the weights sum to less, the divisor is this share of the number
            of rows, so that few rows do not move as much as many.

    >>> weighted_mean(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([1.0, 1.0, 0.0]))
    tensor(2.)
    """
    if weight is None:
        return value.mean()
    total = sum_over_ranks(weight.sum()).clamp(min=at_least * world_size() * len(value))
    # where(): a dropped row whose loss overflowed must not turn 0 * inf into NaN
    kept = torch.where(weight > 0, value * weight, torch.zeros_like(value)).sum()
    return world_size() * kept / torch.where(total > 0, total, torch.ones_like(total))
