r"""SCE: symmetric cross-entropy.

Wang, Ma, Chen, Luo, Yi, Bailey: "Symmetric Cross Entropy for Robust Learning with Noisy Labels", ICCV 2019.

    (1)  RCE = −Σ_k p_k log q_k,   q = onehot(ỹ),  log 0 := A     so that RCE = −A (1 − p_ỹ)
    (2)  L = (1/B) Σ_i [ α CE_i + β RCE_i ]

Cross-entropy with the roles of prediction and label exchanged is MAE times −A/2: robust where cross-entropy is not,
while cross-entropy keeps the optimisation going.

Symbols: `alpha` = α, `beta` = β, `log_zero` = A. Shapes: p, q (B, K). Deviations: none.
"""

from __future__ import annotations

from labelproof.core.method import Method, in_range
from labelproof.core.nets import Nets
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.losses import mean_absolute_error


class SCE(Method):
    """Cross-entropy, plus cross-entropy with prediction and label exchanged, which is bounded.

    Args:
        alpha: weight α of cross-entropy, at least 0. The paper uses 0.1 for CIFAR-10 and 6 for CIFAR-100.
        beta: weight β of the reverse cross-entropy, at least 0. The paper uses 1 for CIFAR-10 and 0.1 for CIFAR-100.
        log_zero: A, what log 0 is taken as, below 0.

    Raises:
        ValueError: a value is out of range.
    """

    title = "Symmetric cross-entropy (SCE)"
    paper = "Wang et al., ICCV 2019"

    def __init__(self, *, alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4.0) -> None:
        super().__init__()
        self.alpha = in_range("alpha", alpha, 0, float("inf"), closed="left")
        self.beta = in_range("beta", beta, 0, float("inf"), closed="left")
        self.log_zero = in_range("log_zero", log_zero, float("-inf"), 0, closed="neither")

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        out = nets[0](batch.x)
        ce = self.task.loss(out, batch.target)
        rce = -self.log_zero / 2 * mean_absolute_error(out, batch.target)  # (1)
        return Loss((self.alpha * ce + self.beta * rce).mean(), out=out)  # (2)
