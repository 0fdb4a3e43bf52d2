r"""Bootstrapping: the label mixed with the network's own prediction.

Reed, Lee, Anguelov, Szegedy, Erhan, Rabinovich: "Training Deep Neural Networks on Noisy Labels with Bootstrapping",
ICLR 2015 workshop.

    (1)  L = −(1/B) Σ_i Σ_k [ β ỹ_ik + (1 − β) b_ik ] log p_ik
    (2)  hard:  b_i = onehot(argmax_k p_ik)        β = 0.8
    (3)  soft:  b_i = p_i                          β = 0.95

A network that predicts something else than a wrong label is believed in part. The soft form is cross-entropy with
minimum-entropy regularisation: its gradient flows through both factors of p log p.

Symbols: `beta` = β, `kind` chooses (2) or (3). Shapes: p, b (B, K).
Deviations: from the paper none. Many re-implementations stop the gradient of b in (3), which is another loss.
"""

from __future__ import annotations

from typing import Literal

from labelproof.core.method import Method, in_range
from labelproof.core.nets import Nets
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.losses import bootstrapped_cross_entropy


class Bootstrap(Method):
    """Mixes each label with the network's own prediction.

    Args:
        kind: what the label is mixed with: `"hard"` the predicted class, `"soft"` the predicted probabilities.
        beta: weight β of the given label, in [0, 1]. `None` takes the paper's: 0.8 for hard, 0.95 for soft.

    Raises:
        ValueError: a value is out of range or unknown.
    """

    title = "Bootstrapping"
    paper = "Reed et al., ICLR 2015 workshop"

    def __init__(self, *, kind: Literal["hard", "soft"] = "hard", beta: float | None = None) -> None:
        super().__init__()
        if kind not in {"hard", "soft"}:
            raise ValueError(f"kind={kind!r} must be 'hard' or 'soft'")
        self.kind = kind
        self.beta = None if beta is None else in_range("beta", beta, 0, 1)

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        out, hard = nets[0](batch.x), self.kind == "hard"
        beta = (0.8 if hard else 0.95) if self.beta is None else self.beta
        return Loss(bootstrapped_cross_entropy(out, batch.target, beta=beta, hard=hard).mean(), out=out)  # (1)
