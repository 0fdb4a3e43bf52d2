r"""Decoupling "when to update" from "how to update": two networks, trained where they disagree.

Malach, Shalev-Shwartz: "Decoupling 'when to update' from 'how to update'", NeurIPS 2017.

    (1)  w_i = 1 if argmax f_1(x_i) ≠ argmax f_2(x_i), else 0           when to update; 1 for all in the first epochs
    (2)  L = Σ_k [ Σ_i w_i ℓ_ki / max(φB, Σ_i w_i) ],   k = 1, 2         how to update: cross-entropy, as ever

Gradient descent on all labels goes on until the wrong ones are memorised. Two networks that agree, be it against a
wrong label, are left in peace, and the closer they come, the less they move. No noise rate is needed. Wrong labels of
samples in dispute are learned nevertheless.

Symbols: `w` = w, `floor` = φ, `warmup` = epochs with w = 1. Shapes: ℓ, w (B,).
Deviations: from the paper none; it is a meta-algorithm that leaves batches and steps open. φ is the released code's,
whose weights for two unbalanced classes are left out. One step on the sum of both losses, which is each network's own
as they share no parameters, and prediction averages both networks.
"""

from __future__ import annotations

import torch

from labelproof.core.method import Method, check_warmup, in_range
from labelproof.core.nets import Nets, outputs
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.select import weighted_mean


class Decoupling(Method):
    """Two networks, trained only on samples for which they predict different classes; needs no noise rate.

    `trust` is here what was learned from. It is no evidence that a label is right: a sample left out is one that both
    networks put into the same class, be it the given one or not.

    Args:
        warmup: epochs of plain cross-entropy at first, at least 0. Too few, and the networks settle on what they agree
            on before they know anything; too many, and both have memorised the same wrong labels by then.
        floor: φ, in [0, 1]: the sum of losses is divided by no less than this share of the batch, so that a handful of
            samples in dispute does not move the networks as much as a batch of them. The released code has 0.1; 0 makes
            it a mean over any handful.

    Raises:
        ValueError: a value is out of range.
    """

    title = "Decoupling (update on disagreement)"
    paper = "Malach & Shalev-Shwartz, NeurIPS 2017"
    cost = "2 networks, 1 forward pass each"
    peers = 2

    def __init__(self, *, warmup: int = 5, floor: float = 0.1) -> None:
        super().__init__()
        self.warmup = int(in_range("warmup", warmup, 0, float("inf"), closed="left"))
        self.floor = in_range("floor", floor, 0, 1)

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        check_warmup(self.warmup, now)
        out = outputs(nets, batch.x)
        differ = (out[0].argmax(1) != out[1].argmax(1)).float()
        w = differ if now.epoch >= self.warmup else torch.ones_like(differ)  # (1)
        l1, l2 = (self.task.loss(o, batch.target) for o in out)
        value = weighted_mean(l1, w, at_least=self.floor) + weighted_mean(l2, w, at_least=self.floor)  # (2)
        return Loss(value, out=torch.stack(out), trust=w, log={"disagree": differ.mean()})
