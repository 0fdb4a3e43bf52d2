"""The scale of residuals, as robust losses need it: what is usual, however gross the errors of fewer than half are."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from labelproof.functional.ranks import gather_rows

#: Least scale, in the units of standardised targets: residuals this small are as good as none. At 0 the losses would
#: divide by it, and where more than half of a batch is fitted exactly the rest would never be learned.
FLOOR = 1e-3


@cache
def chi_median(dims: int) -> float:
    r"""The median of $\lVert z \rVert$ for a standard normal z of D dimensions, by bisection of its distribution.

    Args:
        dims: D, at least 1.

    >>> round(chi_median(1), 4), round(chi_median(2) ** 2 / 2, 4)  # 1 / 1.4826, and log 2
    (0.6745, 0.6931)
    """
    shape, half = torch.tensor(dims / 2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    low, high = torch.zeros_like(half), math.sqrt(dims) * torch.ones_like(half)  # the median is below the mean square
    for _ in range(60):
        middle = (low + high) / 2
        below = torch.special.gammainc(shape, middle**2 / 2) < half
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return float(low)


def running_scale(before: Tensor, residual: Tensor, *, decay: float) -> Tensor:
    r"""$s \leftarrow \gamma s + (1-\gamma)\,\mathrm{med}_i \lVert r_i - \mathrm{med}\,r \rVert / m_D$, over all ranks.

    $m_D$ is the median of $\lVert z \rVert$ for a standard normal z of D dimensions: of normal residuals s is the
    standard deviation of each column, whatever their mean (med r is taken column by column): gross errors to one side
    shift a fit, and with it all residuals. A batch whose medians are not finite is passed over.

    Args:
        before: s, a scalar; NaN marks one not begun, which the first batch's replaces.
        residual: `(B, D)`.
        decay: gamma, in [0, 1]; at 1 what has begun stays.

    Returns:
        A scalar without gradient, at least `FLOOR`.

    >>> r = torch.tensor([[-1.0], [2.0], [500.0]])
    >>> running_scale(torch.tensor(torch.nan), r, decay=0.9)  # 3 / 0.6745
    tensor(4.4478)
    >>> running_scale(torch.tensor(10.0), r, decay=0.9)
    tensor(9.4448)
    """
    joint = gather_rows(residual.detach().float())
    middle = (len(joint) + 1) // 2  # one of the values, never between two; NaN ranks last
    centre = joint.kthvalue(middle, 0).values
    norm = torch.linalg.vector_norm(joint - centre, dim=1)
    new = (norm.kthvalue(middle).values / chi_median(joint.shape[1])).clamp(min=FLOOR)
    mean = torch.where(before.isfinite(), decay * before + (1 - decay) * new, new)
    return torch.where(new.isfinite(), mean, before)
