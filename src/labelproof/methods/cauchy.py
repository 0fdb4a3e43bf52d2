r"""The Cauchy (Lorentzian) loss: gross errors lose their pull, at a scale that is estimated.

The likelihood of Cauchy's distribution, as an M-estimator with its constant in Holland & Welsch: "Robust Regression
Using Iteratively Reweighted Least-Squares", Commun. Stat. A6, 1977; the scale as in Huber & Ronchetti: "Robust
Statistics", 2nd ed., Wiley 2009, ch. 7.

    (1)  r_i = f(x_i) − ỹ_i
    (2)  s ← γ s + (1 − γ) med_i ‖r_i − med r‖ / m_D    m_D: median of ‖z‖, z ~ N(0, I_D); m_1 = 0.6745. No gradient
    (3)  ρ(r) = ½ (c s)² log(1 + ‖r‖² / (c s)²)
    (4)  L = (1/B) Σ_i ρ(r_i)
    (5)  ∂ρ/∂r = w r,   w = 1 / (1 + ‖r‖² / (c s)²)      the weight of iteratively reweighted least squares

The pull of a target is largest, c s / 2, at a residual of c s and falls beyond. Errors to one side shift the fit less
than under Huber's loss; but ρ is not convex, and what is far off at the beginning may never be fitted. Where 40 % err
to one side s grows with them: take c = 1.

Symbols: `c` = c, `scale` = s, `decay` = γ, `w` = w. Shapes: f(x), ỹ, r (B, D) in standardised units; w (B,).
Deviations: the textbooks take s from all residuals and alternate between it and the fit; here it is the median of the
present batch (of all ranks), averaged over batches. D columns share one norm, so that c = 2.3849 has 95 % efficiency at
the normal for D = 1, 93 to 97 % for 2 to 50, and for large D clean samples have small weights too. s is at least 0.001
in the targets' standardised units. Passes in evaluation mode leave it as it is.
"""

from __future__ import annotations

import torch
from torch import nn

from labelproof.core.method import Method, in_range
from labelproof.core.nets import Nets
from labelproof.core.state import RunningScale
from labelproof.core.task import Task
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.losses import cauchy


class Cauchy(Method):
    """A loss that hardly rises for gross errors: the further off a target is, the less it counts.

    Args:
        c: residuals at which the pull is largest, in units of their scale s, above 0. 2.3849 loses 5 % of the data's
            information where errors are normal; smaller ones lose more and bear more corrupted targets (1 bears 40 %
            of them in `concrete` times ten), but may give up hard samples; large ones are least squares.
        decay: γ, of the running scale, in [0, 1). Small batches ask for one near 1.

    Raises:
        ValueError: a value is out of range.
    """

    title = "Cauchy loss, with a running robust scale"
    paper = "Holland & Welsch, Commun. Stat. 1977"
    tasks = frozenset({"regression"})

    def __init__(self, *, c: float = 2.3849, decay: float = 0.9) -> None:
        super().__init__()
        self.c = in_range("c", c, 0, float("inf"), closed="neither")
        self.decay = in_range("decay", decay, 0, 1, closed="left")

    def setup(self, task: Task, num_samples: int, network: nn.Module) -> None:
        super().setup(task, num_samples, network)
        self.scale = RunningScale(self.decay)

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        out = nets[0](batch.x)
        r = self.task.residual(out, batch.target)  # (1)
        s = self.scale(r, training=nets.training)  # (2)
        w = 1 / (1 + (torch.linalg.vector_norm(r.detach(), dim=1) / (self.c * s)) ** 2)  # (5)
        return Loss(cauchy(r, self.c * s).mean(), out=out, trust=w, log={"scale": s})  # (3), (4)
