"""Terms that are added to a loss."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-4


def elr_term(p: Tensor, t: Tensor) -> Tensor:
    r"""Early-learning regulariser $\log(1 - \langle p_i, t_i\rangle)$ of Liu et al. (2020), eq. 6, per sample.

    It is at most 0 and falls to `log(EPS)` as prediction and target agree: minimising it pulls p towards t. Products
    are elementwise, so that autocast leaves them in fp32 (in fp16 and bf16 the clamp bound 1 - 1e-4 rounds to 1 and
    the logarithm is -inf).

    Args:
        p: `(B, K)` probabilities, clamped away from 0 and 1, with gradient.
        t: `(B, K)` targets, without gradient.

    Returns:
        `(B,)` fp32.

    >>> elr_term(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]]))
    tensor([-0.6931])
    """
    return torch.log1p(-(p.float() * t.float()).sum(1).clamp(max=1 - EPS))
