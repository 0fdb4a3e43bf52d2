r"""Trimmed loss: what has the largest losses of the whole training set is left out.

Shen, Sanghavi: "Learning with Bad Training Data via Iterative Trimmed Loss Minimization", ICML 2019. In regression with
squared error: the least trimmed squares of Rousseeuw, "Least Median of Squares Regression", JASA 79, 1984, by
concentration steps (Rousseeuw & Van Driessen, Data Min. Knowl. Discov. 12, 2006).

    (1)  min over θ and S, |S| = ⌊α N⌋, of  Σ_{i∈S} ℓ_i(θ)
    (2)  S_t = argmin_{|S| = ⌊α N⌋} Σ_{i∈S} ℓ_i(θ_t)        θ_{t+1}: some training on S_t, from θ_t on
    (3)  q_t = the ⌊α n⌋-th smallest of the n losses seen in epoch t,   w_i = 1[ℓ_i ≤ q_t] in epoch t + 1
    (4)  L = Σ_i w_i ℓ_i / max(Σ_i w_i, α B)

(3) is (2) without another pass over the data: each sample's loss is noted as it is trained on (or left out), and the
level that ended S_t is what losses are held against in the epoch after. PRL-L differs in that it ranks within each
batch, leaves out τ of every one, and ranks by the norm of the loss layer's gradient; here a batch may be kept whole or
left out, by chance or because its samples are alike. In regression with squared error both rank rows alike.

Symbols: `noise_rate` = τ = 1 − α, `losses` = ℓ (N, 1), `q` = q, `w` = w. Shapes: ℓ, w (B,).
Deviations: rounds are epochs of one training (the paper may train anew in each). q is of the epoch before, when losses
were mostly larger, so that early on fewer than τ are left out; before there is one, w = 1 for all. The divisor in (4)
keeps a batch of which little is left from weighing as much as one kept whole: each sample of S counts alike. The
smallest loss of a batch is kept even above q, so that no step is empty.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from labelproof.core.method import Fit, Method, NoiseRate, Scan, check_noise_rate, check_warmup, in_range
from labelproof.core.nets import Nets
from labelproof.core.state import SampleTable
from labelproof.core.task import Task
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.curriculum import known
from labelproof.functional.select import num_kept, smallest, weighted_mean
from labelproof.procedures.noise_rate import with_noise_rate


class Trimmed(Method):
    """Leaves out the samples whose losses are the largest of the whole training set.

    Args:
        noise_rate: τ, share of the samples left out, in [0, 1): that of wrong labels or corrupted targets. `"auto"`
            estimates it by a cross-validation, at the cost of one more training (regression: two). Too low trains on
            wrong labels, too high on few, and not on the hardest.
        warmup: first epochs, in which all samples are trained on, at least 1. Too short: losses mean nothing yet; too
            long: wrong labels are memorised.

    Raises:
        ValueError: a value is out of range.
    """

    title = "Iterative trimmed loss"
    paper = "Shen & Sanghavi, ICML 2019; Rousseeuw, JASA 1984"
    cost = "1 network, 1 forward pass, 1 number per sample"
    tasks = frozenset({"classification", "regression"})
    q: Tensor

    def __init__(self, *, noise_rate: NoiseRate = 0.2, warmup: int = 1) -> None:
        super().__init__()
        self.noise_rate = check_noise_rate(noise_rate)
        self.warmup = int(in_range("warmup", warmup, 1, float("inf"), closed="left"))

    def run(self, fit: Fit, data: Any) -> Any:
        return with_noise_rate(fit, self, data)

    def setup(self, task: Task, num_samples: int, network: nn.Module) -> None:
        super().setup(task, num_samples, network)
        self.losses = SampleTable(num_samples, 1)
        self.losses.write(torch.arange(num_samples), -torch.ones(num_samples, 1), joint=True)  # -1: never seen
        self.register_buffer("q", torch.tensor(torch.inf))

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        check_warmup(self.warmup, now)
        keep = 1 - known(self.noise_rate)
        out = nets[0](batch.x)
        each = self.task.loss(out, batch.target)
        self.losses.write(batch.index, each.detach()[:, None])
        w = torch.maximum((each <= self.q).to(each.dtype), smallest(each, 0))  # (3), and the smallest of all
        return Loss(weighted_mean(each, w, at_least=keep), out=out, trust=w, log={"kept": w.mean()})  # (4)

    def after_epoch(self, nets: Nets, scan: Scan, now: Clock) -> None:
        losses, rate = self.losses.values.flatten().float(), known(self.noise_rate)
        seen = losses[losses >= 0]  # held-out samples never are
        if rate > 0 and now.epoch + 1 >= self.warmup and len(seen):
            self.q.copy_(seen.kthvalue(num_kept(1 - rate, len(seen))).values)  # (3)
