r"""GCE: generalised cross-entropy, plain and truncated.

Zhang, Sabuncu: "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels", NeurIPS 2018.

    (1)  L_q(p, y) = (1 − p_y^q) / q                            q → 0 is cross-entropy, q = 1 is MAE / 2
    (2)  L_trunc(p, y) = L_q(k) if p_y ≤ k else L_q(p, y),   L_q(k) = (1 − k^q) / q
    (3)  min over θ and w ∈ {0,1}^N of  (1/N) Σ_i w_i L_q(p_i, ỹ_i) + (1 − w_i) L_q(k)
         w_i = 1 if p_iỹ > k else 0, renewed now and then by a pass over all samples        (pruning)

Large p_y weigh as in MAE, which ignores what it cannot fit; small ones keep some of cross-entropy's gradient.

Symbols: `q` = q, `k` = k (0 leaves the truncation out), `w` = the pruning weights (N,). Shapes: p (B, K).
Deviations: (1) is taken in log space, as the power's gradient is infinite at p_y = 0. The pass for w uses the network
as it stands, where a common implementation uses the epoch that was best on the *test* set, and the constant
(1 − w) L_q(k) is kept, which that implementation drops.
"""

from __future__ import annotations

import torch
from torch import nn

from labelproof.core.method import Method, Scan, in_range
from labelproof.core.nets import Nets
from labelproof.core.state import SampleTable
from labelproof.core.task import Task
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.losses import generalised_cross_entropy


class GCE(Method):
    """A loss between cross-entropy and mean absolute error: hard samples weigh less.

    Args:
        q: between cross-entropy (towards 0) and mean absolute error (1), in (0, 1]. The paper uses 0.7.
        k: truncation, in [0, 1); 0 leaves it out. The paper uses 0.5.
        prune_from: with truncation, epochs before the first pruning pass.
        prune_every: with truncation, epochs between pruning passes.

    Raises:
        ValueError: a value is out of range.
    """

    title = "Generalised cross-entropy (GCE)"
    paper = "Zhang & Sabuncu, NeurIPS 2018"

    def __init__(self, *, q: float = 0.7, k: float = 0.0, prune_from: int = 40, prune_every: int = 10) -> None:
        super().__init__()
        self.q = in_range("q", q, 0, 1, closed="right")
        self.k = in_range("k", k, 0, 1, closed="left")
        self.prune_from = int(in_range("prune_from", prune_from, 0, float("inf"), closed="left"))
        self.prune_every = int(in_range("prune_every", prune_every, 1, float("inf"), closed="left"))

    def setup(self, task: Task, num_samples: int, network: nn.Module) -> None:
        super().setup(task, num_samples, network)
        if self.k:
            self.pruned = SampleTable(num_samples, 1)  # 1 - w, so that all samples take part at first

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        out = nets[0](batch.x)
        lq = generalised_cross_entropy(out, batch.target, self.q)  # (1)
        if not self.k:
            return Loss(lq.mean(), out=out)
        w = 1 - self.pruned.rows(batch.index)[:, 0]
        return Loss((w * lq + (1 - w) * (1 - self.k**self.q) / self.q).mean(), out=out, trust=w)  # (3)

    def after_epoch(self, nets: Nets, scan: Scan, now: Clock) -> None:
        since = now.epoch + 1 - self.prune_from
        if self.k and since >= 0 and since % self.prune_every == 0:
            index, p = scan(lambda b: torch.exp(-self.task.loss(nets[0](b.x), b.target)))
            self.pruned.write(index, (p <= self.k).float()[:, None], joint=True)
