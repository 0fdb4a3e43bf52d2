r"""Empirical risk minimisation: cross-entropy, with the honest extras every comparison owes.

    (1)  L = (1/B) Σ_i −Σ_k q_ik log p_ik            p = softmax(f(x)),  q = onehot(ỹ)
    (2)  q ← (1 − s) q + s/K                          label smoothing s          Szegedy et al., CVPR 2016
    (3)  x ← ℓ x + (1 − ℓ) x_π,  q ← ℓ q + (1 − ℓ) q_π,  ℓ ~ Beta(α, α)   mixup  Zhang et al., ICLR 2018

Early stopping, the third baseline, is the engine's (`early_stopping=True`).

Symbols: `label_smoothing` = s, `mixup` = α (0 switches it off). Shapes: f(x) (B, K), q (B, K).
Deviations: ℓ ← max(ℓ, 1 − ℓ), which leaves the distribution of the pairs unchanged. Under mixup the network never
sees the ordinary view, so the engine makes its record of predictions in one evaluation pass per epoch. With several
processes each mixes within its own part of the batch.
"""

from __future__ import annotations

from labelproof.core.method import Method, in_range
from labelproof.core.nets import Nets
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.losses import cross_entropy
from labelproof.functional.mixing import Mixup


class CE(Method):
    """Plain cross-entropy: the baseline that memorises wrong labels.

    Args:
        label_smoothing: share of each label that is spread over all classes, in [0, 1).
        mixup: parameter of the Beta distribution, 0 for none. The usual value is 1.

    Raises:
        ValueError: a value is out of range.
    """

    title = "Cross-entropy"
    paper = "baseline; label smoothing: Szegedy et al., CVPR 2016; mixup: Zhang et al., ICLR 2018"

    def __init__(self, *, label_smoothing: float = 0.0, mixup: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = in_range("label_smoothing", label_smoothing, 0, 1, closed="left")
        self.mixup = in_range("mixup", mixup, 0, float("inf"), closed="left")

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        if not self.mixup:
            out = nets[0](batch.x)
            return Loss(cross_entropy(out, batch.target, label_smoothing=self.label_smoothing).mean(), out=out)
        mix = Mixup.draw(self.mixup, batch.x, now.rng)
        out, q = nets[0](mix(batch.x)), mix(self.task.encode(batch.target))
        return Loss(cross_entropy(out, q, label_smoothing=self.label_smoothing).mean())
