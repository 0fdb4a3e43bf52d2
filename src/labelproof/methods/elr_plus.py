r"""ELR+: early-learning regularisation with two networks, moving-average targets and mixup.

Liu, Niles-Weed, Razavian, Fernandez-Granda: "Early-Learning Regularization Prevents Memorization of Noisy Labels",
NeurIPS 2020.

    (1)  h^k_i ← β h^k_i + (1 − β) softmax(f(x_i; θ'_j)),  j ≠ k      target: the other network's twin, no gradient
    (2)  x̃ = ℓ x + (1 − ℓ) x_π, and so ỹ of onehot(y), q^k of h^k     mixup: ℓ ~ Beta(α, α), ℓ ← max(ℓ, 1 − ℓ)
    (3)  p^k_i = clamp(softmax(f(x̃_i; θ_k)), ε, 1 − ε)                ε = 1e-4
    (4)  L = Σ_k (1/B) Σ_i [ CE(f(x̃_i; θ_k), ỹ_i) + r(s; S) λ log(1 − ⟨q^k_i, p^k_i⟩) ]      in step s = 0, 1, ...
    (5)  θ'_k ← d θ'_k + (1 − d) θ_k          d = min(1 − 1/(s+1), γ), or r(s+1; T) γ if T > 0
    (6)  prediction: softmax of the mean of both networks' logits

r(s; S) = exp(−5 (1 − min(s/S, 1))²), or 1 if S = 0. As in ELR, targets remember what was predicted early on. They are
steadier here, coming from averages of weights (the twins), and each network takes them from the other.

Symbols: `lam` = λ, `beta` = β, `mixup` = α, `lam_ramp` = S, `twin_decay` = γ, `twin_ramp` = T.
Shapes: f (B, K), h^k (N, K); q, p, ỹ of both networks (2B, K), the first network's rows first.
Deviations: what the paper leaves open is done as in the released code, except that one batch serves both networks, so
that they share one split and one vector of noisy labels (its two loaders drew both twice: each network trained on most
of the other's validation samples, and fewer labels were wrong in both copies than was stated; expect lower accuracy
than it printed). Both take each step together, not an epoch each. Twins start as copies, average BatchNorm's statistics
too, and are evaluated with these. The label weighting, switched on there whenever K = 100, is an option without 0/0.
Each rank mixes its part of the batch. The record of predictions (`out`) is that of the twins on the ordinary view.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from labelproof.core.method import Method, in_range
from labelproof.core.nets import Nets, outputs
from labelproof.core.state import SampleTable
from labelproof.core.task import Task
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.losses import cross_entropy
from labelproof.functional.mixing import Mixup
from labelproof.functional.regularisers import EPS, elr_term, ramp


class ELRPlus(Method):
    """Two networks, each pulled towards what the other's moving average predicted early on, with mixup.

    Args:
        lam: weight λ of the regulariser: 3 in the paper, for CIFAR-10 (1 for asymmetric noise), 7 for CIFAR-100. Too
            low and wrong labels are memorised, too high and early mistakes are kept.
        beta: momentum β of the targets, in [0, 1): .7 in the paper (.9 for CIFAR-100 and asymmetric noise).
        mixup: parameter α of the Beta distribution, 0 for none: 1 in the paper.
        lam_ramp: S, steps over which λ rises, 0 for none: 40,000 for the paper's CIFAR-100.
        twin_decay: γ in [0, 1): .997 in the paper (.9999 for Clothing1M). Too high and targets lag behind.
        twin_ramp: T, steps over which d rises, 0 for plain averages up to γ: 40,000 for the paper's CIFAR runs.
        reweight: ỹ ← ỹ⊙q / Σ(ỹ⊙q), as the released code does for 100 classes; without mixup it has no effect.

    Raises:
        ValueError: a value is out of range.
    """

    title = "ELR with two networks, weight averaging and mixup (ELR+)"
    paper = "Liu et al., NeurIPS 2020"
    cost = "2 networks, 1 forward pass each, 1 of each twin without gradient, two N x K tables"
    peers = 2
    twins = True

    def __init__(
        self, *, lam: float = 3.0, beta: float = 0.7, mixup: float = 1.0, lam_ramp: int = 0,
        twin_decay: float = 0.997, twin_ramp: int = 0, reweight: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.lam = in_range("lam", lam, 0, math.inf, closed="left")
        self.beta = in_range("beta", beta, 0, 1, closed="left")
        self.mixup = in_range("mixup", mixup, 0, math.inf, closed="left")
        self.lam_ramp = int(in_range("lam_ramp", lam_ramp, 0, math.inf, closed="left"))
        self.twin_decay = in_range("twin_decay", twin_decay, 0, 1, closed="left")
        self.twin_ramp = int(in_range("twin_ramp", twin_ramp, 0, math.inf, closed="left"))
        self.reweight = reweight

    def setup(self, task: Task, num_samples: int, network: nn.Module) -> None:
        super().setup(task, num_samples, network)
        self.h1, self.h2 = (SampleTable(num_samples, task.num_outputs) for _ in range(2))

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        mix = Mixup.draw(self.mixup, batch.x, now.rng)
        with torch.no_grad():
            seen = torch.stack(outputs(nets.twins, batch.x))
            t1, t2 = self.task.prob(seen)
            h1, h2 = self.h1.ema(batch.index, t2, self.beta), self.h2.ema(batch.index, t1, self.beta)  # (1)
            q = torch.cat([mix(h1), mix(h2)])
            x, y = mix(batch.x), mix(self.task.encode(batch.target)).repeat(self.peers, 1)  # (2)
        z = torch.cat(outputs(nets, x))
        p = z.float().softmax(1).clamp(EPS, 1 - EPS)  # (3)
        ce, reg = cross_entropy(z, _weighted(y, q) if self.reweight else y), elr_term(p, q)
        lam = ramp(now.updates, self.lam_ramp) * self.lam
        value = self.peers * (ce + lam * reg).mean()  # (4)
        return Loss(value, out=seen, log={"ce": ce.detach().mean(), "elr": reg.detach().mean()})

    def after_step(self, nets: Nets, batch: Batch, now: Clock) -> None:
        s = now.updates + 1
        d = ramp(s, self.twin_ramp) * self.twin_decay if self.twin_ramp else min(1 - 1 / s, self.twin_decay)
        nets.update_twins(d)  # (5)

    def predict(self, nets: Nets, x: Tensor) -> Tensor:
        return self.task.prob(torch.stack([net(x).float() for net in nets]).mean(0))  # (6)

    def belief(self) -> Tensor:
        h = torch.stack([self.h1.dense(), self.h2.dense()])
        return h.div_(h.sum(2, keepdim=True)).mean(0)  # NaN where a sample was never visited, as ELR's


def _weighted(y: Tensor, q: Tensor) -> Tensor:
    """Labels times targets, as shares; the labels themselves where targets give them nothing (at 0 it would be 0/0)."""
    both = y * q
    total = both.sum(1, keepdim=True)
    return torch.where(total > EPS**2, both / total.clamp(min=EPS**2), y)
