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
    weight = torch.zeros_like(joint)
    weight[joint.argsort(stable=True)[: num_kept(fraction, len(joint))]] = 1
    return weight.chunk(world_size())[rank()] if across_ranks else weight


def weighted_mean(value: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""$\sum_i w_i v_i / \sum_i w_i$ over the joint batch, divided *once*; 0, attached to the graph, if all w are 0.

    Under data parallelism each rank returns `world * (its part of the sum) / (the joint denominator)`: averaging
    gradients over ranks then gives exactly the gradient of the joint batch, however the selected rows are spread.

    Args:
        value: `(B,)`, with gradient.
        weight: `(B,)`, non-negative; `None` means all ones.

    >>> weighted_mean(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([1.0, 1.0, 0.0]))
    tensor(2.)
    """
    if weight is None:
        return value.mean()
    total = sum_over_ranks(weight.sum())
    # where(): a dropped row whose loss overflowed must not turn 0 * inf into NaN
    kept = torch.where(weight > 0, value * weight, torch.zeros_like(value)).sum()
    return world_size() * kept / torch.where(total > 0, total, torch.ones_like(total))
