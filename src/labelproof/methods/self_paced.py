r"""Self-paced learning: one network, trained on what it finds easy.

Kumar, Packer, Koller: "Self-Paced Learning for Latent Variable Models", NeurIPS 2010; in the form in which Co-teaching
(Han et al., NeurIPS 2018) compares with it, as "MentorNet".

    (1)  min over θ and v ∈ {0,1}^N of  Σ_i v_i ℓ_i(θ) − (1/K) Σ_i v_i      solved for v:  v_i = 1 if ℓ_i < 1/K
    (2)  R(T) = 1 − τ min(T^c / T_k, 1)               share of the batch kept in epoch T = 1, 2, ...
    (3)  D̄ = argmin_{|D| = R(T)B} Σ_{i∈D} ℓ_i,   L = mean_{i∈D̄} ℓ_i

Small loss means probably clean. With one network its mistakes feed back into it: what it has once fitted wrongly has a
small loss from then on. Co-teaching is the remedy, at twice the cost.

Symbols: `noise_rate` = τ, `num_gradual` = T_k, `exponent` = c, `v` = v. Shapes: ℓ, v (B,).
Deviations: the 2010 paper starts from few samples and adds harder ones, by a threshold 1/K on the loss; (2) starts from
all and keeps a share of each batch, so that (1)'s threshold is that of the batch, as in the Co-teaching comparison.
"""

from __future__ import annotations

from typing import Any

from labelproof.core.method import Fit, Method, NoiseRate, check_noise_rate, in_range
from labelproof.core.nets import Nets
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.curriculum import kept_share
from labelproof.functional.select import smallest, weighted_mean
from labelproof.procedures.noise_rate import with_noise_rate


class SelfPaced(Method):
    """Trains on the part of each batch that has the smallest loss.

    Args:
        noise_rate: τ, share of each batch that is dropped in the end, in [0, 1): the share of wrong labels. `"auto"`
            estimates it by a cross-validation, at the cost of one more training (regression: two). Too low trains on
            wrong labels, too high on too few; docs/noise-rate.md says what either costs.
        num_gradual: T_k, epochs over which the drop rate rises to τ.
        exponent: c, on the epoch.

    Raises:
        ValueError: a value is out of range.
    """

    title = "Self-paced learning (small loss, one network)"
    paper = "Kumar et al., NeurIPS 2010; Han et al., NeurIPS 2018"
    tasks = frozenset({"classification", "regression"})

    def __init__(self, *, noise_rate: NoiseRate = 0.2, num_gradual: int = 10, exponent: float = 1.0) -> None:
        super().__init__()
        self.noise_rate = check_noise_rate(noise_rate)
        self.num_gradual = int(in_range("num_gradual", num_gradual, 1, float("inf"), closed="left"))
        self.exponent = in_range("exponent", exponent, 0, float("inf"), closed="neither")

    def run(self, fit: Fit, data: Any) -> Any:
        return with_noise_rate(fit, self, data)

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        keep = kept_share(self.noise_rate, now.epoch, self.num_gradual, self.exponent)  # (2)
        out = nets[0](batch.x)
        each = self.task.loss(out, batch.target)
        v = smallest(each, keep)
        return Loss(weighted_mean(each, v), out=out, trust=v)  # (3)
