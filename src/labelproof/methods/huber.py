r"""Huber's loss: least squares for usual residuals, absolute error for gross ones, at a scale that is estimated.

Huber: "Robust Estimation of a Location Parameter", Ann. Math. Statist. 35, 1964; for regression, with a robust scale:
Huber & Ronchetti: "Robust Statistics", 2nd ed., Wiley 2009, ch. 7. Constant: Holland & Welsch, Commun. Stat. A6, 1977.

    (1)  r_i = f(x_i) − ỹ_i
    (2)  s ← γ s + (1 − γ) med_i ‖r_i − med r‖ / m_D    m_D: median of ‖z‖, z ~ N(0, I_D); m_1 = 0.6745. No gradient
    (3)  ρ(r) = ½‖r‖²              where ‖r‖ ≤ δ s
                δ s (‖r‖ − δ s/2)  beyond
    (4)  L = (1/B) Σ_i ρ(r_i)
    (5)  ∂ρ/∂r = w r,   w = min(1, δ s / ‖r‖)      the weight of iteratively reweighted least squares

No target pulls harder than δ s, however wrong it is; but each pulls that hard for ever, so errors to the same side
shift the fit. Where they are many: δ = 0.5, the Cauchy loss, which lets go of them, or trimming, which leaves them
out.

Symbols: `delta` = δ, `scale` = s, `decay` = γ, `w` = w. Shapes: f(x), ỹ, r (B, D) in standardised units; w (B,).
Deviations: the textbooks take s from all residuals and alternate between it and the fit; here it is the median of the
present batch (of all ranks), averaged over batches. D columns share one norm, so that δ = 1.345 has 95 % efficiency at
the normal for D = 1, 92 to 99 % for 2 to 50, and for large D clean samples too have weights below 1. s is at least
0.001 in the targets' standardised units. Passes in evaluation mode leave it as it is.
"""

from __future__ import annotations

import torch
from torch import nn

from labelproof.core.method import Method, in_range
from labelproof.core.nets import Nets
from labelproof.core.state import RunningScale
from labelproof.core.task import Task
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.losses import huber


class Huber(Method):
    """Least squares whose gradient is bounded: gross errors pull no harder than usual ones.

    Args:
        delta: δ, residuals beyond which the loss is linear, in units of their scale s, above 0. 1.345 loses 5 % of the
            data's information where errors are normal; smaller ones lose more (towards 0, absolute error, 36 %) and
            are shifted less by corrupted targets: with 40 % of them in `concrete` times ten, 0.5 makes a third of the
            test error. Large ones are least squares.
        decay: γ, of the running scale, in [0, 1). Small batches ask for one near 1.

    Raises:
        ValueError: a value is out of range.
    """

    title = "Huber loss, with a running robust scale"
    paper = "Huber, Ann. Math. Statist. 1964"
    tasks = frozenset({"regression"})

    def __init__(self, *, delta: float = 1.345, decay: float = 0.9) -> None:
        super().__init__()
        self.delta = in_range("delta", delta, 0, float("inf"), closed="neither")
        self.decay = in_range("decay", decay, 0, 1, closed="left")

    def setup(self, task: Task, num_samples: int, network: nn.Module) -> None:
        super().setup(task, num_samples, network)
        self.scale = RunningScale(self.decay)

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        out = nets[0](batch.x)
        r = self.task.residual(out, batch.target)  # (1)
        s = self.scale(r, training=nets.training)  # (2)
        w = (self.delta * s / torch.linalg.vector_norm(r.detach(), dim=1)).clamp(max=1)  # (5)
        return Loss(huber(r, self.delta * s).mean(), out=out, trust=w, log={"scale": s})  # (3), (4)
