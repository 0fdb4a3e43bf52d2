r"""Co-teaching: two networks, each taught by what the other finds easy.

Han, Yao, Yu, Niu, Xu, Hu, Tsang, Sugiyama: "Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy
Labels", NeurIPS 2018.

    (1)  R(T) = 1 − τ min(T^c / T_k, 1)            share of the batch kept in epoch T = 1, 2, ...
    (2)  D̄_1 = argmin_{|D| = R(T)B} Σ_{i∈D} ℓ_1i,   D̄_2 likewise      each network's small-loss samples
    (3)  L = mean_{i∈D̄_2} ℓ_1i + mean_{i∈D̄_1} ℓ_2i                     the exchange

Networks fit clean samples first, so small loss means probably clean; as the two err differently, exchanging the
selections keeps one network's mistakes from feeding back into itself.

Symbols: `noise_rate` = τ, `num_gradual` = T_k, `exponent` = c, `w` = the selections as 0/1 weights. Shapes: ℓ, w (B,).
Deviations: one step on the sum of both losses; the networks share no parameters, so this is each network's own step.
The mean in (3) is divided once (the released code divides by the number kept again), the exponent stands on the epoch
as in the paper (the code puts it on τ), and prediction averages both networks. Both score and update use one forward
pass, as published.
"""

from __future__ import annotations

import torch

from labelproof.core.method import Method, in_range
from labelproof.core.nets import Nets
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.select import smallest, weighted_mean


class CoTeaching(Method):
    """Two networks, each trained on the samples that have small loss in the other.

    Args:
        noise_rate: τ, share of each batch that is dropped in the end, in [0, 1): your estimate of the share of wrong
            labels (`lp.estimate_noise` gives one). Too low trains on wrong labels, too high on too few.
        num_gradual: T_k, epochs over which the drop rate rises to τ.
        exponent: c, on the epoch.

    Raises:
        ValueError: a value is out of range.
    """

    title = "Co-teaching"
    paper = "Han et al., NeurIPS 2018"
    cost = "2 networks, 1 forward pass each"
    tasks = frozenset({"classification", "regression"})
    peers = 2

    def __init__(self, *, noise_rate: float = 0.2, num_gradual: int = 10, exponent: float = 1.0) -> None:
        super().__init__()
        self.noise_rate = in_range("noise_rate", noise_rate, 0, 1, closed="left")
        self.num_gradual = int(in_range("num_gradual", num_gradual, 1, float("inf"), closed="left"))
        self.exponent = in_range("exponent", exponent, 0, float("inf"), closed="neither")

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        keep = 1 - self.noise_rate * min((now.epoch + 1) ** self.exponent / self.num_gradual, 1)  # (1)
        out = [net(batch.x) for net in nets]
        l1, l2 = (self.task.loss(o, batch.target) for o in out)
        w1, w2 = smallest(l1, keep), smallest(l2, keep)  # (2)
        value = weighted_mean(l1, w2) + weighted_mean(l2, w1)  # (3)
        return Loss(value, out=torch.stack(out), trust=torch.stack([w2, w1]))
