r"""Co-teaching+: two networks, each taught by what the other finds easy among the samples on which they disagree.

Yu, Han, Yao, Niu, Tsang, Sugiyama: "How does Disagreement Help Generalization against Label Corruption?", ICML 2019.

    (1)  λ(T) = 1 − τ min(T / E_k, 1)                                 share kept in epoch T = 1, 2, ...
    (2)  D' = { i : argmax f_1(x_i) ≠ argmax f_2(x_i) }               prediction disagreement
    (3)  D̄_1 = argmin_{D ⊂ D', |D| = λ(T)|D'|} Σ_{i∈D} ℓ_1i,   D̄_2 likewise
    (4)  L = mean_{i∈D̄_2} ℓ_1i + mean_{i∈D̄_1} ℓ_2i                    the exchange

The two networks of Co-teaching come to agree, and from then on each teaches the other only what it knows. Samples on
which they disagree keep them apart; those of small loss among these are probably clean.

Symbols: `noise_rate` = τ, `num_gradual` = E_k, `differ` = D', `w` = D̄ as 0/1 weights. Shapes: ℓ, differ, w (B,).
Deviations: in the first `warmup` epochs, and in a batch without disagreement, D' is the whole batch, which is
Co-teaching. The released code does the former (its `init_epoch`, a constant per data set; that the paper means it so is
unverified), and for the latter takes the mean over all labels, its gate of 5,000 steps having no effect. There the
logits go through softmax twice, the mean is divided by the number kept again, and the sample with id 0 never counts as
disagreement; here none of this. λ|D'| is rounded down, to 1 at least. One step on the sum of both losses, which is each
network's own, and prediction averages both. The paper's second schedule, under which λ falls on after E_k, is left out.
"""

from __future__ import annotations

from typing import Any

import torch

from labelproof.core.method import Fit, Method, NoiseRate, check_noise_rate, check_warmup, in_range
from labelproof.core.nets import Nets, outputs
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.curriculum import kept_share
from labelproof.functional.ranks import sum_over_ranks
from labelproof.functional.select import smallest_among, weighted_mean
from labelproof.procedures.noise_rate import with_noise_rate


class CoTeachingPlus(Method):
    """Two networks that disagree, each trained on those samples in dispute that have small loss in the other.

    Args:
        noise_rate: τ, share of the samples in dispute that is dropped in the end, in [0, 1): the share of wrong labels.
            `"auto"` estimates it by a cross-validation, at the cost of one more training. Too low trains on wrong
            labels, too high on hardly any samples, for those in dispute are few already.
        num_gradual: E_k, epochs over which the drop rate rises to τ. The paper uses 10.
        warmup: epochs of plain Co-teaching at first, at least 0. The released code has 0 for MNIST, 5 for CIFAR-100, 20
            for CIFAR-10 and 100 for Tiny-ImageNet. Too few, and the networks dispute everything, as they know nothing;
            too many, and they agree on nearly all, so that the steps after them are taken on a handful of samples.

    Raises:
        ValueError: a value is out of range.
    """

    title = "Co-teaching+ (small loss where two networks disagree)"
    paper = "Yu et al., ICML 2019"
    cost = "2 networks, 1 forward pass each"
    peers = 2

    def __init__(self, *, noise_rate: NoiseRate = 0.2, num_gradual: int = 10, warmup: int = 10) -> None:
        super().__init__()
        self.noise_rate = check_noise_rate(noise_rate)
        self.num_gradual = int(in_range("num_gradual", num_gradual, 1, float("inf"), closed="left"))
        self.warmup = int(in_range("warmup", warmup, 0, float("inf"), closed="left"))

    def run(self, fit: Fit, data: Any) -> Any:
        return with_noise_rate(fit, self, data)

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        check_warmup(self.warmup, now)
        keep = kept_share(self.noise_rate, now.epoch, self.num_gradual)  # (1)
        out = outputs(nets, batch.x)
        differ = out[0].argmax(1) != out[1].argmax(1)  # (2)
        among = differ | (sum_over_ranks(differ.sum()) == 0) if now.epoch >= self.warmup else torch.ones_like(differ)
        l1, l2 = (self.task.loss(o, batch.target) for o in out)
        w1, w2 = smallest_among(l1, keep, among), smallest_among(l2, keep, among)  # (3)
        value = weighted_mean(l1, w2) + weighted_mean(l2, w1)  # (4)
        log = {"disagree": differ.float().mean()}
        return Loss(value, out=torch.stack(out), trust=torch.stack([w2, w1]), log=log)
