"""Per-sample losses. All return `(B,)`, never reduced, and are computed in fp32 whatever the inputs are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    r"""$-\sum_k q_k \log p_k$ with $p = \mathrm{softmax}(z)$.

    Args:
        logits: `(B, K)`.
        target: `(B,)` int64 classes, or `(B, K)` float probabilities q.
        label_smoothing: share s of q that is spread evenly, $q \leftarrow (1-s)\,q + s/K$.

    Returns:
        `(B,)` fp32.

    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).exp()
    tensor([4., 4.])
    """
    return F.cross_entropy(logits.float(), target, reduction="none", label_smoothing=label_smoothing)


def squared_error(out: Tensor, target: Tensor) -> Tensor:
    r"""$\tfrac12 \lVert f - y \rVert^2$ over the targets, `(B, D)` and `(B, D)` to `(B,)`, fp32.

    The half makes the gradient with respect to f the residual itself.

    >>> squared_error(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
    tensor([12.5000])
    """
    return 0.5 * (out.float() - target.float()).square().flatten(1).sum(1)


def generalised_cross_entropy(logits: Tensor, target: Tensor, q: float) -> Tensor:
    r"""$L_q = (1 - p_y^q) / q$ of Zhang & Sabuncu (2018), between cross-entropy (q to 0) and MAE / 2 (q = 1).

    Taken in log space, $p_y^q = e^{q \log p_y}$: its gradient is finite where $p_y$ underflows, that of a power is not.

    Args:
        logits: `(B, K)`.
        target: `(B,)` int64.
        q: in (0, 1].

    Returns:
        `(B,)` fp32, at most 1 / q.

    >>> generalised_cross_entropy(torch.zeros(1, 4), torch.tensor([0]), q=1.0)
    tensor([0.7500])
    """
    return -torch.expm1(-q * cross_entropy(logits, target)) / q


def mean_absolute_error(logits: Tensor, target: Tensor) -> Tensor:
    r"""$\lVert p - \mathrm{onehot}(y) \rVert_1 = 2 (1 - p_y)$ of Ghosh et al. (2017), `(B,)` fp32 in [0, 2].

    >>> mean_absolute_error(torch.zeros(1, 4), torch.tensor([0]))
    tensor([1.5000])
    """
    return -2 * torch.expm1(-cross_entropy(logits, target))
