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
as in the paper (the code puts it on τ), τ/T_k is dropped in the first epoch (the code drops τ/(T_k − 1)), and
prediction averages both networks. Score and update share one forward pass, as published, unless `score_first` applies:
then the pass that scores has no gradient, and a second one sees the kept rows alone. That is the same update, but for
dropout (other units are dropped than when scoring) and BatchNorm (the kept rows alone normalise; running statistics
still move once a step).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from labelproof.core.chosen import by_loss, loss_of_smallest
from labelproof.core.method import Fit, Method, NoiseRate, check_noise_rate, in_range
from labelproof.core.nets import Nets, outputs
from labelproof.core.task import Task
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.curriculum import kept_share
from labelproof.functional.ranks import world_size
from labelproof.functional.select import num_kept, smallest, weighted_mean
from labelproof.procedures.noise_rate import with_noise_rate

#: Where a backward pass costs r forward passes, one pass over all rows costs 1 + r, two passes 1 + R (1 + r): the same
#: at R = r / (1 + r). That is 2/3 for large networks (r = 2) and, as measured, 1/2 for small ones (r = 1).
BREAK_EVEN = 0.6


class CoTeaching(Method):
    """Two networks, each trained on the samples that have small loss in the other.

    Args:
        noise_rate: τ, share of each batch that is dropped in the end, in [0, 1): the share of wrong labels. `"auto"`
            estimates it by a cross-validation, at the cost of one more training (regression: two). Too low trains on
            wrong labels, too high on too few: at half the true share the paper's accuracy on MNIST falls from 87.6
            to 66.7 % (45 % pair flips) and from 91.3 to 75.9 % (50 % symmetric), half too high it falls to 69.5 and
            79.4 %, and a quarter too high it rises to 97.9 and 98.6 %. Our figures: docs/noise-rate.md.
        num_gradual: T_k, epochs over which the drop rate rises to τ (with `exponent` 1). The paper uses 10.
        exponent: c, on the epoch, above 0. The paper tries 0.5, 1 and 2 and uses 1.
        score_first: `"auto"` makes two passes instead of one, the second with gradient over the kept rows alone, where
            that is cheaper (under 0.6 of the batch kept) and the network has no BatchNorm; `"always"` whenever it can,
            `"never"` not at all. Several processes always make one, as each keeps another number of rows.

    Raises:
        ValueError: a value is out of range.
    """

    title = "Co-teaching"
    paper = "Han et al., NeurIPS 2018"
    cost = "2 networks, 1 forward pass each (2 where few rows are kept, the second over these alone)"
    tasks = frozenset({"classification", "regression"})
    peers = 2

    def __init__(
        self, *, noise_rate: NoiseRate = 0.2, num_gradual: int = 10, exponent: float = 1.0, score_first: str = "auto"
    ) -> None:
        super().__init__()
        self.noise_rate = check_noise_rate(noise_rate)
        self.num_gradual = int(in_range("num_gradual", num_gradual, 1, float("inf"), closed="left"))
        self.exponent = in_range("exponent", exponent, 0, float("inf"), closed="neither")
        if score_first not in {"auto", "always", "never"}:
            raise ValueError(f"score_first={score_first!r} must be 'auto', 'always' or 'never'")
        self.score_first = score_first

    def run(self, fit: Fit, data: Any) -> Any:
        return with_noise_rate(fit, self, data)

    def setup(self, task: Task, num_samples: int, network: nn.Module) -> None:
        super().setup(task, num_samples, network)
        self.batchnorm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        keep = kept_share(self.noise_rate, now.epoch, self.num_gradual, self.exponent)  # (1)
        first = self._scores_first(keep, len(batch.x))
        loss = (self._two_passes if first else self._one_pass)(nets, batch, keep)
        return loss._replace(log={"score_first": loss.value.new_full((), first)})

    def _scores_first(self, keep: float, rows: int) -> bool:
        if self.score_first == "never" or world_size() > 1 or num_kept(keep, rows) < 2:  # BatchNorm needs two rows
            return False
        return self.score_first == "always" or (keep < BREAK_EVEN and not self.batchnorm)

    def _one_pass(self, nets: Nets, batch: Batch, keep: float) -> Loss:
        out = outputs(nets, batch.x)
        l1, l2 = (self.task.loss(o, batch.target) for o in out)
        w1, w2 = smallest(l1, keep), smallest(l2, keep)  # (2)
        value = weighted_mean(l1, w2) + weighted_mean(l2, w1)  # (3)
        return Loss(value, out=torch.stack(out), trust=torch.stack([w2, w1]))

    def _two_passes(self, nets: Nets, batch: Batch, keep: float) -> Loss:
        return loss_of_smallest(self.task, nets, batch, keep, by_loss(self.task), first=True)  # (2), (3)
