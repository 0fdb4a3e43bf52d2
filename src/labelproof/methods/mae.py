r"""MAE: mean absolute error as a classification loss.

Ghosh, Kumar, Sastry: "Robust Loss Functions under Label Noise for Deep Neural Networks", AAAI 2017.

    (1)  L = (1/B) Σ_i ‖p_i − onehot(ỹ_i)‖_1 = (2/B) Σ_i (1 − p_iỹ)

Symmetric: the loss summed over all labels is a constant, so symmetric noise of any rate below (K − 1)/K leaves the
minimiser where it is. It learns slowly where there are many classes.

Shapes: p (B, K). Deviations: none.
"""

from __future__ import annotations

from labelproof.core.method import Method
from labelproof.core.nets import Nets
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.losses import mean_absolute_error


class MAE(Method):
    """Mean absolute error between probabilities and label: bounded, so that no wrong label can pull hard."""

    title = "Mean absolute error (MAE)"
    paper = "Ghosh et al., AAAI 2017"

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        out = nets[0](batch.x)
        return Loss(mean_absolute_error(out, batch.target).mean(), out=out)
