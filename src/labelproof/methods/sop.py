r"""SOP and SOP+: sparse over-parameterisation. The error of each label is learned beside the network.

Liu, Zhu, Qu, You: "Robust Training under Label Noise by Over-parameterization", ICML 2022.

    (1)  s_i = U_i − V_i,   U_i = clamp(u_i² ⊙ ỹ_i, 0, 1),   V_i = clamp(v_i² ⊙ (1 − ỹ_i), 0, 1)     error of label i
    (2)  q_i = N(p_i + U_i − sg(V_i)),   p = softmax(f(x)),   N: clamp to ε, divide by the sum, clamp to [ε, 1]
    (3)  L = (1/B) Σ_i −⟨ỹ_i, log q_i⟩ + (1/B) Σ_i ‖onehot(argmax f(x_i)) + s_i − ỹ_i‖²
    (4)  SOP+ adds λ_C (1/B) Σ_i KL(sg(p(weak view)) ‖ p(strong view))  and  λ_B Σ_k −(1/K) log((1/B) Σ_i q_ik)

The network follows the first term of (3) and those of (4), u both terms of (3), v the second alone. As u and v start
near 0 and appear squared, gradient descent keeps them sparse: only labels that the network keeps contradicting get an
error of their own, and stop pulling at the network.

The equations are written out in `functional.sop.sop_terms`; what SOP runs is its faster twin in `functional.fused`.

Symbols: `u` (N, 1), `v` (N, K), `lr_u`, `lr_v` = α_u, α_v, `consistency` = λ_C, `balance` = λ_B; ε = 1e-4.
Deviations: where the paper projects u and v to [−1, 1], U and V are clamped as in the released code, and there too the
gradient of v reaches (3)'s second term only. u and v are stepped by plain SGD, as published, and do not follow the
learning-rate schedule. Both views go through one forward pass. The balance term assumes equally frequent classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Optimizer

from labelproof.core.method import MakeOptimizer, Method, in_range
from labelproof.core.nets import Nets
from labelproof.core.state import SampleParameter
from labelproof.core.task import Task
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional import fused
from labelproof.functional.ranks import joint_mean
from labelproof.functional.regularisers import EPS
from labelproof.functional.sop import sop_terms


class SOP(Method):
    """Sparse over-parameterisation.

    Args:
        lr_u: learning rate of u. The paper uses 10 for CIFAR-10, 1 for CIFAR-100.
        lr_v: learning rate of v. The paper uses 10 for symmetric noise, 100 for asymmetric noise.

    Raises:
        ValueError: a value is out of range.
    """

    title = "Sparse over-parameterisation (SOP)"
    paper = "Liu et al., ICML 2022"
    cost = "1 network, 1 forward pass, N x (K + 1) learned rows"

    def __init__(self, *, lr_u: float = 10.0, lr_v: float = 10.0) -> None:
        super().__init__()
        self.lr_u = in_range("lr_u", lr_u, 0, float("inf"), closed="neither")
        self.lr_v = in_range("lr_v", lr_v, 0, float("inf"), closed="neither")

    def setup(self, task: Task, num_samples: int, network: nn.Module) -> None:
        super().setup(task, num_samples, network)
        self.u, self.v = SampleParameter(num_samples, 1), SampleParameter(num_samples, task.num_outputs)

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        out = nets[0](batch.x)
        u, v = self.u.rows(batch.index), self.v.rows(batch.index)
        terms = fused.sop_terms(out, batch.target, u, v)
        return Loss(terms.loss.mean(), out=out, log={"ce": terms.ce.mean(), "mse": terms.mse.mean()})  # (3)

    def optimizers(self, nets: Nets, make: MakeOptimizer) -> dict[str, Optimizer]:
        own = {"u": SGD(self.u.parameters(), self.lr_u), "v": SGD(self.v.parameters(), self.lr_v)}
        return {**super().optimizers(nets, make), **own}


class SOPPlus(SOP):
    """SOP with consistency between two views and balance between classes.

    Args:
        lr_u: learning rate of u. The paper uses 10 for CIFAR-10, 1 for CIFAR-100.
        lr_v: learning rate of v. The paper uses 10 for symmetric noise, 100 for asymmetric noise.
        consistency: weight λ_C, at least 0.
        balance: weight λ_B, at least 0. Set it to 0 where classes differ much in size.

    Raises:
        ValueError: a value is out of range.
    """

    title = "SOP with consistency and class balance (SOP+)"
    cost = "1 network, 1 forward pass over 2 views, N x (K + 1) learned rows"
    views = ("weak", "strong")

    def __init__(
        self, *, lr_u: float = 10.0, lr_v: float = 10.0, consistency: float = 0.9, balance: float = 0.1
    ) -> None:
        super().__init__(lr_u=lr_u, lr_v=lr_v)
        self.consistency = in_range("consistency", consistency, 0, float("inf"), closed="left")
        self.balance = in_range("balance", balance, 0, float("inf"), closed="left")

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        out, strong = nets[0](torch.cat(batch.views)).chunk(2)
        terms = sop_terms(out, batch.target, self.u.rows(batch.index), self.v.rows(batch.index))
        p = out.detach().float().softmax(1)
        kl = F.kl_div(strong.float().log_softmax(1), p, reduction="none").sum(1)
        balance = -joint_mean(terms.q).clamp(EPS, 1).log().mean()
        value = (terms.loss + self.consistency * kl).mean() + self.balance * balance  # (3) + (4)
        parts = {"ce": terms.ce.mean(), "mse": terms.mse.mean(), "consistency": kl.mean(), "balance": balance}
        return Loss(value, out=out, log=parts)
