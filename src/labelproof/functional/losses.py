"""Per-sample losses. All return `(B,)`, never reduced, and are computed in fp32 whatever the inputs are."""

from __future__ import annotations

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

    >>> import torch
    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).exp()
    tensor([4., 4.])
    """
    return F.cross_entropy(logits.float(), target, reduction="none", label_smoothing=label_smoothing)


def squared_error(out: Tensor, target: Tensor) -> Tensor:
    r"""$\tfrac12 \lVert f - y \rVert^2$ over the targets, `(B, D)` and `(B, D)` to `(B,)`, fp32.

    The half makes the gradient with respect to f the residual itself.

    >>> import torch
    >>> squared_error(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
    tensor([12.5000])
    """
    return 0.5 * (out.float() - target.float()).square().flatten(1).sum(1)
