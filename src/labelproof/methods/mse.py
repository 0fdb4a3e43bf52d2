r"""Least squares: the regression baseline.

    (1)  L = (1/B) Σ_i ½ ‖f(x_i) − ỹ_i‖²

Shapes: f(x), ỹ (B, D), in standardised units.
"""

from __future__ import annotations

from labelproof.core.method import Method
from labelproof.core.nets import Nets
from labelproof.core.types import Batch, Clock, Loss


class MSE(Method):
    """Fits every target it is given: the baseline of regression."""

    title = "Mean squared error"
    paper = "baseline"
    tasks = frozenset({"regression"})

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        out = nets[0](batch.x)
        return Loss(self.task.loss(out, batch.target).mean(), out=out)
