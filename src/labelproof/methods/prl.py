r"""PRL: provable robustness to arbitrary corruption, by dropping the samples whose gradients are largest.

Liu, Sun, Wang, Tan, Zhou: "Learning Deep Neural Networks under Agnostic Corrupted Supervision", ICML 2021.

    (1)  s_i = ‖∂ℓ_i/∂f(x_i)‖           PRL-L: ‖p_i − onehot(ỹ_i)‖ in classification, ‖f(x_i) − ỹ_i‖ in regression;
                                       with `features` times (‖h_i‖² + 1)^½, h_i what the last layer sees: of its W, b
    (2)  s_i = ‖∂ℓ_i/∂θ‖                PRL-G: of all weights
    (3)  ε_t = (1 + o) ε min(T / T_k, 1)       in epoch T = 1, 2, ...
    (4)  D̄ = argmin_{|D| = (1 − ε_t)B} Σ_{i∈D} s_i,   L = mean_{i∈D̄} ℓ_i;     co-PRL: over the D̄ of the other network

Whatever was done to at most εB labels, gradients kept are no larger than the largest of a right one, M, and their mean
is off that of right labels by at most 2εM / (1 − ε); in classification, small losses bound none. Over-estimate ε where
batches are small or targets far off: a batch may hold more wrong labels than the data.

Symbols: `noise_rate` = ε, `overestimate` = o, `num_gradual` = T_k. Shapes: ℓ, s (B,), h (B, F).
Deviations: PRL-L makes one forward pass; the released code's second has the kept rows alone, and BatchNorm of these, as
ours under mixup. The mean is divided once, one sample is always kept. With squared errors (1) orders samples as losses
do: in regression PRL-L without `features` is self-paced learning.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from labelproof.core.chosen import loss_of_smallest
from labelproof.core.method import Fit, Method, NoiseRate, check_kept, check_noise_rate, in_range
from labelproof.core.nets import Nets, linear_head, with_features
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.curriculum import kept_share, known
from labelproof.functional.gradnorm import gradient_norms
from labelproof.functional.mixing import Mixup
from labelproof.functional.ranks import world_size
from labelproof.functional.select import num_kept
from labelproof.procedures.noise_rate import with_noise_rate


class PRLG(Method):
    """Trains on the part of each batch that has the smallest gradient of all weights; not through BatchNorm.

    Args:
        noise_rate: ε, share of corrupted labels or targets, in [0, 1); `"auto"` estimates it by a cross-validation, at
            the cost of one more training, in regression two.
        overestimate: o, at least 0: 0.25 drops a quarter more than ε, which costs less than a quarter too few.
        num_gradual: T_k, epochs over which the dropped share rises.
        mixup: α of mixup among the samples kept, 0 for none.

    Raises:
        ValueError: a value is out of range.
    """

    title, paper = "PRL-G (full gradient norm)", "Liu et al., ICML 2021"
    cost = "1 network, 1 forward and backward pass that score, another over the rows kept"
    tasks = frozenset({"classification", "regression"})
    forbids, passes = frozenset({"batchnorm", "compile"}), 2

    def __init__(
        self, *, noise_rate: NoiseRate = 0.2, overestimate: float = 0.0, num_gradual: int = 10, mixup: float = 0.0
    ) -> None:
        super().__init__()
        self.noise_rate = check_noise_rate(noise_rate)
        self.overestimate = in_range("overestimate", overestimate, 0, float("inf"), closed="left")
        self.num_gradual = int(in_range("num_gradual", num_gradual, 1, float("inf"), closed="left"))
        self.mixup = in_range("mixup", mixup, 0, float("inf"), closed="left")

    def run(self, fit: Fit, data: Any) -> Any:
        return with_noise_rate(fit, self, data)

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        rate, rows = min(1.0, (1 + self.overestimate) * known(self.noise_rate)), len(batch.x)
        check_kept(1 - rate, rows * (1 if self.mixup else world_size()), now)
        keep = kept_share(rate, now.epoch, self.num_gradual)  # (3)
        mixing, kept = self.mixup > 0 and num_kept(keep, rows) > 1, batch.index[: num_kept(keep, rows)]
        mix, first = Mixup.draw(self.mixup, kept, now.rng) if mixing else None, mixing or self.passes == 2
        return loss_of_smallest(self.task, nets, batch, keep, self.scored, first=first, mix=mix)  # (4)

    def scored(self, net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        s, out = gradient_norms(net, batch.x, partial(self.task.loss, target=batch.target))  # (2)
        return out, s


class PRLL(PRLG):
    """Trains on the part of each batch that has the smallest gradient at the loss layer: quick, for any network.

    Args:
        features: take the gradient of the last layer's weights, not of its outputs alone.
    """

    title, forbids, passes = "PRL-L (loss-layer gradient norm)", frozenset(), 1
    cost = "1 network, 1 forward pass (with mixup 2, the second over the rows kept)"

    def __init__(
        self, *, noise_rate: NoiseRate = 0.2, overestimate: float = 0.0, num_gradual: int = 10, mixup: float = 0.0,
        features: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(noise_rate=noise_rate, overestimate=overestimate, num_gradual=num_gradual, mixup=mixup)
        self.features = features

    def scored(self, net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        out, h = with_features(net, batch.x) if self.features else (net(batch.x), None)
        s = self.task.residual(out.detach(), batch.target).norm(dim=1)  # (1)
        one = h is not None and linear_head(net).bias is not None
        return out, s if h is None else s * (one + h.detach().float().square().sum(1)).sqrt()


class CoPRLG(PRLG):
    """Two networks, each trained on the samples whose gradient is small in the other; not through BatchNorm."""

    title, peers = "co-PRL-G (two networks, full gradient norm)", 2
    cost = "2 networks, for each 1 forward and backward pass that score, another over the rows kept"


class CoPRLL(PRLL):
    """Two networks, each trained on the samples whose loss-layer gradient is small in the other."""

    title, peers = "co-PRL-L (two networks, loss-layer gradient norm)", 2
    cost = "2 networks, 1 forward pass each (with mixup 2)"
