r"""ELR's and SOP's losses with their gradients in closed form: what autograd would do, in few passes over `(B, K)`.

With many classes a loss takes the time of reading and writing `(B, K)` numbers, and autograd makes several passes of
each equation. The functions here give what `regularisers.elr_terms` and `sop.sop_terms` give (tests compare them and
check the gradients against finite differences) in about a third of the time. Hard labels only.

They differ from autograd where a number lies exactly on the bound of a clamp: its gradient is 0 here. Only `loss`
carries a gradient; its parts are for logs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from labelproof.functional.device import argmax, host
from labelproof.functional.regularisers import EPS
from labelproof.functional.sop import TINY

#: (a, x, low, high): a where low < x < high, else 0; in one pass, where a comparison and a `where` are ten on a CPU
_inside = torch.ops.aten.hardtanh_backward
#: (a, x, low): a where x > low, else 0
_above = torch.ops.aten.threshold_backward
#: (g, p, dim, dtype): p (g - <g, p>), the gradient of softmax
_through_softmax = torch.ops.aten._softmax_backward_data


class ELRLosses(NamedTuple):
    """ELR's loss per sample and its regulariser, as `regularisers.ELRTerms`, and the targets after the visit."""

    loss: Tensor
    reg: Tensor
    t: Tensor
    lam: float

    @property
    def ce(self) -> Tensor:
        """`(B,)` cross-entropy; taken when asked for, as only logs need it."""
        return (self.loss.detach() - self.lam * self.reg).clamp_(min=0)


def elr_terms(logits: Tensor, target: Tensor, t: Tensor, *, lam: float, beta: float, faded: bool = False) -> ELRLosses:
    """`regularisers.elr_terms` for hard labels.

    Args:
        logits: `(B, K)`.
        target: `(B,)` int64.
        t: `(B, K)` fp32, the rows of the table before this visit; **overwritten** with those after it.
        lam: weight of the regulariser.
        beta: momentum of the targets.
        faded: whether `t` has been multiplied by `beta` already, as `SampleTable.rows` can at no cost.

    >>> terms = elr_terms(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 2), lam=2.0, beta=0.5)
    >>> terms.loss, terms.ce, terms.reg, terms.t
    (tensor([0.1178]), tensor([0.6931]), tensor([-0.2877]), tensor([[0.2500, 0.2500]]))
    """
    t = t if faded else t.mul_(beta)
    loss, reg = _ELR.apply(_wide(logits), target, t, lam, 1 - beta)  # type: ignore[no-untyped-call]
    return ELRLosses(loss, reg, t, lam)


class SOPLosses(NamedTuple):
    """SOP's loss per sample and its squared error, as `sop.SOPTerms`, without the corrected prediction."""

    loss: Tensor
    mse: Tensor

    @property
    def ce(self) -> Tensor:
        """`(B,)` cross-entropy of the corrected prediction; taken when asked for, as only logs need it."""
        return (self.loss.detach() - self.mse).clamp_(min=0)


def sop_terms(logits: Tensor, target: Tensor, u: Tensor, v: Tensor) -> SOPLosses:
    """`sop.sop_terms` for hard labels.

    Args:
        logits: `(B, K)`.
        target: `(B,)` int64.
        u: `(B, 1)` fp32.
        v: `(B, K)` fp32.

    >>> terms = sop_terms(torch.zeros(1, 2), torch.tensor([1]), torch.zeros(1, 1), torch.zeros(1, 2))
    >>> terms.loss, terms.ce, terms.mse
    (tensor([2.6931]), tensor([0.6931]), tensor([2.]))
    """
    wide = torch.promote_types(logits.dtype, u.dtype)  # fp32, unless something is fp64
    return SOPLosses(*_SOP.apply(logits.to(wide), target, u.to(wide), v.to(wide)))  # type: ignore[no-untyped-call]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _log_p_y(z: Tensor, p: Tensor, y: Tensor) -> Tensor:
    """`(B, 1)`, from the softmax that is there already; exact too where the label's probability underflows."""
    p_y = p.gather(1, y)
    if host(p) and p_y.numpy().min(initial=1) > 1e-30:  # elsewhere asking would mean waiting
        return p_y.log_()
    return z.gather(1, y) - z.amax(1, keepdim=True) + p.amax(1, keepdim=True).log_()


class _ELR(torch.autograd.Function):
    r"""ELR and its gradient.

    With $m$ = 1 where the clamp of $p$ is not active, $a = m\,p\,t$ and $s=\langle p, t\rangle$ the gradient is
    $p - y + \frac{\lambda}{1-s}\,(p\sum_k a_k - a)$: of the regulariser, the paper's
    $p_c / (1 - \langle p,t\rangle) \sum_k (t_k - t_c)\,p_k$.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, target: Tensor, t: Tensor, lam: float, share: float) -> tuple[Tensor, Tensor]:
        y = target.unsqueeze(1)
        p = z.softmax(1)
        log_p_y = _log_p_y(z, p, y)
        clamped = p.clamp(EPS, 1 - EPS)
        t.addcmul_(clamped, clamped.sum(1, keepdim=True).reciprocal_(), value=share)
        a = clamped.mul_(t)
        rest = torch.rsub(a.sum(1, keepdim=True), 1).clamp_(min=EPS)
        reg = rest.log()
        if ctx.needs_input_grad[0]:
            _inside.grad_input(a, p, EPS, 1 - EPS, grad_input=a)
            ctx.save_for_backward(p, a, rest, y)
            ctx.lam = lam
        reg = reg.squeeze(1)
        loss = torch.sub(lam * reg, log_p_y.squeeze(1))
        ctx.mark_non_differentiable(reg)
        return loss, reg

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        p, a, rest, y = ctx.saved_tensors
        grad = grad.unsqueeze(1)
        r = torch.div(grad, rest).mul_(ctx.lam)
        d_z = (p * torch.addcmul(grad, a.sum(1, keepdim=True), r)).addcmul_(a, r, value=-1)
        return d_z.scatter_add_(1, y, -grad), None, None, None, None


class _SOP(torch.autograd.Function):
    r"""SOP and its gradients.

    With $r = \max(p + U - V, \epsilon)$, $S = \sum_k r_k$, $m$ = 1 where $r > \epsilon$:

    $\mathrm{ce} = \log S - \log r_y$, its gradient in $r$ is $g = m\,(1/S - y/r_y)$, in $z$ is
    $p\,(g - \langle g, p\rangle)$, in u is $2\,u\,g_y$; that of $\mathrm{mse}$ in u is $4\,u\,(h_y + U_y - 1)$, in v is
    $4\,v\,(V - h)$ off the label, with $h$ the hard prediction.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, target: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        y = target.unsqueeze(1)
        p, hard = z.softmax(1), argmax(z)
        wrong = (hard != y).to(p.dtype)
        claimed = u.square().clamp_(max=1)
        missed = torch.addcmul(v.new_full((), TINY), v, v).scatter_(1, y, 0)
        square = torch.linalg.vector_norm(missed, dim=1, keepdim=True)
        clamped = not (host(square) and square.numpy().max(initial=0) < 1)  # if the sum is below 1, each entry is
        if clamped:
            square = torch.linalg.vector_norm(missed.clamp_(max=1), dim=1, keepdim=True)
        excess = claimed - wrong
        mse = square.square_().addcmul_(excess, excess).add_(wrong).sub_(missed.gather(1, hard), alpha=2).squeeze(1)

        r = torch.sub(p, missed, out=missed).scatter_add_(1, y, claimed).clamp_(min=EPS)
        total, r_y = r.sum(1, keepdim=True), r.gather(1, y)
        q_y = r_y / total
        log_q_y = q_y.clamp(min=EPS).log_()
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(p, r, total, r_y, q_y, excess, u, v, y, hard, wrong)
            ctx.clamped = clamped
        ctx.mark_non_differentiable(mse)
        return mse - log_q_y.squeeze(1), mse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
        p, r, total, r_y, q_y, excess, u, v, y, hard, wrong = ctx.saved_tensors
        grad = grad.unsqueeze(1)
        active = _above(grad, q_y, EPS)  # 0 where the label's share is clamped
        scale = active / total
        at_y = _above(scale - active / r_y, r_y, EPS)
        g = _above(scale.expand_as(r), r, EPS).scatter_(1, y, at_y)
        d_u = _inside(u, u, -1, 1) * torch.addcmul(at_y, grad, excess, value=2).mul_(2)
        if ctx.clamped:
            v = _inside(v, v, -1, 1)
        d_v = v.pow(3).scatter_(1, y, 0).scatter_add_(1, hard, -v.gather(1, hard) * wrong)
        return _through_softmax(g, p, 1, p.dtype), None, d_u, d_v.mul_(4 * grad)
