r"""The equations of SOP (Liu et al., ICML 2022): a label is the prediction plus a sparse error, which is learned.

Every sample i has a scalar u_i and a row v_i of K values, all near 0 at first:

    U = clamp(u² ⊙ y, 0, 1)          what the label claims beyond the prediction
    V = clamp(v² ⊙ (1 − y), 0, 1)    what the prediction claims beyond the label
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from labelproof.functional.regularisers import EPS

#: Added to v^2, which starts near 1e-16: its square would be a subnormal number, a hundred times slower on a CPU
TINY = 1.1e-19


class SOPTerms(NamedTuple):
    """SOP's loss per sample, its parts, and the corrected prediction.

    Attributes:
        loss: `(B,)` fp32, `ce + mse`.
        ce: `(B,)` fp32, cross-entropy between label and corrected prediction; trains the network and u.
        mse: `(B,)` fp32, squared error of hard prediction plus error against the label; trains u and v.
        q: `(B, K)` fp32, the corrected prediction, with gradient to the network and u; SOP+ balances its batch
            mean.
    """

    loss: Tensor
    ce: Tensor
    mse: Tensor
    q: Tensor


def sop_terms(logits: Tensor, target: Tensor, u: Tensor, v: Tensor) -> SOPTerms:
    r"""SOP's two losses with the gradients of the paper: network from `ce`, u from both, v from `mse` alone.

    $q = \mathrm{clamp}(p + U - \mathrm{sg}(V), \epsilon)$ brought to sum 1 and clamped to $[\epsilon, 1]$, with
    $\epsilon$ = 1e-4;  $\mathrm{ce} = -\sum_k y_k \log q_k$;
    $\mathrm{mse} = \lVert \mathrm{onehot}(\arg\max z) + U - V - y \rVert^2$. The loss is their sum
    (`fused.sop_terms` gives the same, faster).

    Args:
        logits: `(B, K)`.
        target: `(B,)` int64 classes, or `(B, K)` float probabilities.
        u: `(B, 1)`, this batch's rows, fp32 (values of 1e-8 are 0 in fp16 and could never move).
        v: `(B, K)`, likewise.

    >>> import torch
    >>> z, u, v = torch.tensor([[2.0, 0.0]]), torch.zeros(1, 1), torch.zeros(1, 2)
    >>> sop_terms(z, torch.tensor([1]), u, v).mse
    tensor([2.])
    """
    z, k = logits.float(), logits.shape[1]
    y = target.float() if target.is_floating_point() else F.one_hot(target, k).float()
    claimed = (u.square() * y).clamp(0, 1)
    missed = ((v.square() + TINY) * (1 - y)).clamp(0, 1)
    q = (z.softmax(1) + claimed - missed.detach()).clamp(min=EPS)
    q = (q / q.sum(1, keepdim=True)).clamp(EPS, 1)
    hard = F.one_hot(z.argmax(1), k).float()
    ce, mse = -(y * q.log()).sum(1), (hard + claimed - missed - y).square().sum(1)
    return SOPTerms(ce + mse, ce, mse, q)
