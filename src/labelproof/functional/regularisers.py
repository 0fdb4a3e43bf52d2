"""Terms that are added to a loss."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from labelproof.functional.losses import cross_entropy

EPS = 1e-4


def ramp(step: int, length: int) -> float:
    r"""Share of its weight that a term has reached, $e^{-5 (1 - \min(s / L, 1))^2}$; 1 if L = 0.

    Args:
        step: steps so far, s.
        length: steps over which the weight rises, L.

    >>> ramp(0, 100), ramp(100, 100), ramp(0, 0)
    (0.006737946999085467, 1.0, 1.0)
    """
    return math.exp(-5 * (1 - min(step / length, 1)) ** 2) if length else 1.0


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


class ELRTerms(NamedTuple):
    """ELR's loss per sample, its parts, and the targets it was taken with.

    Attributes:
        loss: `(B,)` fp32, `ce + lam * reg`.
        ce: `(B,)` fp32, cross-entropy.
        reg: `(B,)` fp32, `elr_term`; negative, which makes the loss negative late in training, by design.
        t: `(B, K)` fp32, the targets after this visit, without gradient: to be stored.
    """

    loss: Tensor
    ce: Tensor
    reg: Tensor
    t: Tensor


def elr_terms(logits: Tensor, target: Tensor, t: Tensor, *, lam: float, beta: float) -> ELRTerms:
    r"""One visit of ELR to a batch, from the logits on (`fused.elr_terms` does the same, faster).

    (1) $p = \mathrm{clamp}(\mathrm{softmax}(z), \epsilon, 1-\epsilon)$, $\epsilon$ = 1e-4;
    (2) $t \leftarrow \beta t + (1-\beta)\,p / \sum_k p_k$, without gradient;
    (3) cross-entropy + $\lambda$ `elr_term`.

    Args:
        logits: `(B, K)`.
        target: `(B,)` int64 classes, or `(B, K)` float probabilities.
        t: `(B, K)` the rows of the table before this visit.
        lam: weight $\lambda$ of the regulariser.
        beta: momentum $\beta$ of the targets, in [0, 1).

    >>> terms = elr_terms(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 2), lam=2.0, beta=0.5)
    >>> terms.loss, terms.ce, terms.reg, terms.t
    (tensor([0.1178]), tensor([0.6931]), tensor([-0.2877]), tensor([[0.2500, 0.2500]]))
    """
    p = logits.float().softmax(1).clamp(EPS, 1 - EPS)
    t = torch.lerp(p.detach() / p.detach().sum(1, keepdim=True), t.float(), beta)
    ce, reg = cross_entropy(logits, target), elr_term(p, t)
    return ELRTerms(ce + lam * reg, ce, reg, t)
