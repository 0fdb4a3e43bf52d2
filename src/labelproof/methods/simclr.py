r"""Contrastive initialisation: features from SimCLR, then a robust or a plain loss on the wrong labels.

Ghosh, Lan: "Contrastive Learning Improves Model Robustness Under Label Noise", CVPR Workshops 2021.

    (1)  f pre-trained without labels                                   `labelproof.procedures.contrast`
    (2)  a linear last layer on f, which starts at zero; both are trained on
    (3)  L = (1/B) Σ_i ℓ_q(p_iỹ),   ℓ_q(p) = (1 − p^q) / q              q → 0: cross-entropy (CCE);  q = 1: MAE / 2

Memorising wrong labels takes changing the features, which are good to begin with; up to 90 % of wrong labels even
cross-entropy does well. Their third variant is Meta-Weight-Net, and any other method can be initialised likewise:
`labelproof pretrain DATA --out encoder`, then `labelproof train DATA --encoder encoder --method NAME`.

Symbols: `q` = q. Shapes: p (B, K).
Deviations: the paper pre-trains a ResNet-50 for 1000 epochs with batches of 1024; the defaults here suit small networks
and a CPU. (3) is taken in log space, where the released code has infinite gradients at p = 0. The released code selects
and reports by 1,000 samples whose labels it kept clean.
"""

from __future__ import annotations

from typing import Any

from labelproof.core.method import Fit, Method, in_range
from labelproof.core.nets import Nets
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.losses import generalised_cross_entropy
from labelproof.procedures.contrast import Contrast, pretrain


class SimCLR(Method):
    """Pre-trains without labels, then fine-tunes on the labels as given.

    Args:
        q: of the loss, in [0, 1]: 0 is cross-entropy, 1 the mean absolute error. The paper: 0.5 or 0.66 beside 0.
        length: epochs of pre-training, as a multiple of the run's.
        temperature: of the contrastive loss, above 0.
        pretrain_lr: learning rate of pre-training, for its AdamW.
        pretrain_batch_size: samples per step of pre-training: the others are what each is told apart from.

    Raises:
        ValueError: a value is out of range.
    """

    title = "Contrastive initialisation (SimCLR)"
    paper = "Ghosh & Lan, CVPR Workshops 2021; Chen et al., ICML 2020"
    cost = "a training with 2 views, then 1 network, 1 forward pass"

    def __init__(
        self,
        *,
        q: float = 0.0,
        length: float = 2.0,
        temperature: float = 0.5,
        pretrain_lr: float = 1e-3,
        pretrain_batch_size: int = 256,
    ) -> None:
        super().__init__()
        self.q = in_range("q", q, 0, 1)
        self.length = in_range("length", length, 0, float("inf"), closed="neither")
        self.temperature = in_range("temperature", temperature, 0, float("inf"), closed="neither")
        self.pretrain_lr = in_range("pretrain_lr", pretrain_lr, 0, float("inf"), closed="neither")
        least = in_range("pretrain_batch_size", pretrain_batch_size, 2, float("inf"), closed="left")
        self.pretrain_batch_size = int(least)

    def run(self, fit: Fit, data: Any) -> Any:
        encoder = pretrain(
            fit,
            Contrast(temperature=self.temperature),
            data,
            length=self.length,
            optimizer="adamw",
            lr=self.pretrain_lr,
            weight_decay=None,
            batch_size=min(self.pretrain_batch_size, len(data.trained)),
            early_stopping=False,
            validation_fraction=0.0,  # which is chosen by labels
        )  # (1)
        return fit(self, data, encoder=encoder)  # (2)

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        out = nets[0](batch.x)
        each = generalised_cross_entropy(out, batch.target, self.q) if self.q else self.task.loss(out, batch.target)
        return Loss(each.mean(), out=out)  # (3)
