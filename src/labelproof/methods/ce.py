r"""Empirical risk minimisation: cross-entropy, with the honest extras every comparison owes.

    (1)  L = (1/B) Σ_i −Σ_k q_ik log p_ik            p = softmax(f(x)),  q = onehot(ỹ)
    (2)  q ← (1 − s) q + s/K                          label smoothing s          Szegedy et al., CVPR 2016
    (3)  x ← ℓ x + (1 − ℓ) x_π,  q ← ℓ q + (1 − ℓ) q_π,  ℓ ~ Beta(α, α)   mixup  Zhang et al., ICLR 2018

    (4)  early learning ends after epoch t where |g'(1) − g'(t)| / |g'(1)| > r,        Liu et al., CVPR 2022 (ADELE)
         g(t) = a (1 − exp(−t^b / c)) fitted to the share of training labels predicted

Networks fit clean labels first and memorise wrong ones later. With (4) the network is kept as it was when that began,
found without any clean label, and predicts from then on. Training goes on, so that curves show what was avoided and the
record of each sample's predictions, by which wrong labels are listed, is that of the whole run (it ranks better than
the predictions of that one epoch). Early stopping on held-out labels, the other way to stop in time, is the engine's
(`early_stopping=True`).

Symbols: `label_smoothing` = s, `mixup` = α, `early_learning` = r (0 switches each off). Shapes: f(x) (B, K), q (B, K).
Deviations: ℓ ← max(ℓ, 1 − ℓ), which leaves the distribution of the pairs unchanged. Under mixup the network never
sees the ordinary view, so the engine makes its record of predictions in one evaluation pass per epoch. With several
processes each mixes within its own part of the batch. ADELE, made for segmentation, applies (4) per class to the
overlap of regions and goes on with corrected labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labelproof.core.method import Method, Scan, in_range
from labelproof.core.nets import Nets, Snapshot
from labelproof.core.state import Curve
from labelproof.core.task import Task
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.losses import cross_entropy
from labelproof.functional.mixing import Mixup
from labelproof.functional.ranks import sum_over_ranks
from labelproof.functional.turning import slowdown


class CE(Method):
    """Fits every label it is given: the baseline that memorises wrong ones.

    Args:
        label_smoothing: share of each label that is spread over all classes, in [0, 1).
        mixup: parameter of the Beta distribution, 0 for none. The usual value is 1.
        early_learning: r in [0, 1), how far learning must have slowed down for the network to be kept as it is then;
            0 for never. ADELE uses 0.9.

    Raises:
        ValueError: a value is out of range.
    """

    title = "Cross-entropy"
    paper = "baseline; label smoothing: Szegedy et al., CVPR 2016; mixup: Zhang et al., ICLR 2018"

    seen: Tensor
    ended: Tensor

    def __init__(self, *, label_smoothing: float = 0.0, mixup: float = 0.0, early_learning: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = in_range("label_smoothing", label_smoothing, 0, 1, closed="left")
        self.mixup = in_range("mixup", mixup, 0, float("inf"), closed="left")
        self.early_learning = in_range("early_learning", early_learning, 0, 1, closed="left")
        if mixup and early_learning:
            raise ValueError(
                f"early_learning={early_learning} watches plain predictions, mixup={mixup} makes none: use one"
            )

    def setup(self, task: Task, num_samples: int, network: nn.Module) -> None:
        super().setup(task, num_samples, network)
        if self.early_learning:
            self.kept = Snapshot(network)
            self.curve = Curve()
            self.register_buffer("seen", torch.zeros(2))  # predicted as labelled, and all
            self.register_buffer("ended", torch.tensor(0.0))

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        if not self.mixup:
            out = nets[0](batch.x)
            if self.early_learning:
                agree = self.task.score(out.detach(), batch.target)
                self.seen += sum_over_ranks(torch.stack([agree.sum(), torch.ones_like(agree).sum()]))
            return Loss(cross_entropy(out, batch.target, label_smoothing=self.label_smoothing).mean(), out=out)
        mix = Mixup.draw(self.mixup, batch.x, now.rng)
        out, q = nets[0](mix(batch.x)), mix(self.task.encode(batch.target))
        return Loss(cross_entropy(out, q, label_smoothing=self.label_smoothing).mean())

    def after_epoch(self, nets: Nets, scan: Scan, now: Clock) -> None:
        if not self.early_learning or self.ended:
            return
        agree, seen = self.seen
        self.curve.append(agree / seen)
        self.seen.zero_()
        self.kept.take(nets[0])
        self.ended.fill_(slowdown(self.curve.values) > self.early_learning)  # (4)

    def predict(self, nets: Nets, x: Tensor) -> Tensor:
        return self.task.prob(self.kept(x)) if self.early_learning and self.ended else super().predict(nets, x)
