r"""Meta-Weight-Net: a small network says how much a sample with this loss counts, and learns it from a meta set.

Shu, Xie, Yi, Zhao, Zhou, Xu, Meng: "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting", NeurIPS 2019.
Variant: Ghosh, Lan: "Contrastive Learning Improves Model Robustness Under Label Noise", CVPR Workshops 2021.

    (1)  virtual step:  θ'(φ) = θ − α ∇_θ Σ_i c_i ℓ_i(θ),   v_i = V(ℓ_i; φ),  ℓ_i without gradient
    (2)  meta step:     φ ← φ − Adam[ ∇_φ M(θ'(φ)) ],       M: mean loss on a batch of the meta set
    (3)  real step:     θ ← θ − step[ ∇_θ Σ_i c_i ℓ_i(θ) ], with the updated V, without gradient in φ
    c = v / B ("mean": released code of Ghosh & Lan), v ("sum": their text), or v / Σ v ("normalised": released code of
    Shu et al.);  V: 1 → 100 → 1, ReLU, sigmoid, 301 parameters.

Symbols: `alpha`, `inner_lr` = α, `weigher` = V. Shapes: ℓ, v, c (B,).
Deviations: by default the last layer alone takes (1), on features of the one forward pass that (3) uses too; if all do,
the meta batch has three quarters of the batch's rows (theirs: all), to save time. Running statistics move once.
α follows the schedule (Ghosh & Lan: 0.1). Where nobody verified samples, some of the training data are the meta set.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from labelproof.core.method import Fit, MakeOptimizer, Method, Run, in_range, one_of
from labelproof.core.nets import Nets
from labelproof.core.stepped import of_last_layer, of_network
from labelproof.core.task import Task
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.losses import mean_absolute_error
from labelproof.functional.meta import Reduction, meta_gradient, shares
from labelproof.procedures.meta_set import with_meta_set


class MWNet(Method):
    """Learns to weigh samples by their loss, such that a step on them serves those of the stream "clean".

    Args:
        last_layer: whether (1) moves the last layer alone, at 1.5 times the cost of cross-entropy, or all, at 3.
        inner_lr: α; `None` takes the learning rate of each step, a number stays. Ghosh & Lan: 0.1.
        reduction: of weighted losses, in (1) and (3). "sum" multiplies the learning rate by the batch size.
        meta_loss: M, cross-entropy, or mean absolute error for meta sets with wrong labels (Ghosh & Lan).
        lr_weights: of V's Adam. Too low (in a few thousand steps 0.001 is; take 0.01): all weigh the same.
        meta_size: samples, as many of each class and at most a tenth of the data, put aside where no "clean" ones are
            given. The papers: 1,000, all labels right.

    Raises:
        ValueError: a value is out of range.
    """

    title, paper = "Meta-Weight-Net", "Shu et al., NeurIPS 2019"
    cost = "1 network, 1 forward pass, and 1 over a clean batch without gradient"
    optional, own_streams = ("clean",), ("clean",)
    forbids = frozenset({"16-mixed", "devices", "accumulate"})

    def __init__(
        self, *, last_layer: bool = True, inner_lr: float | None = None, reduction: Reduction = "mean",
        meta_loss: Literal["ce", "mae"] = "ce", lr_weights: float = 1e-3, meta_size: int = 1000,
    ) -> None:  # fmt: skip
        super().__init__()
        self.last_layer = last_layer
        self.inner_lr = inner_lr if inner_lr is None else in_range("inner_lr", inner_lr, 0, float("inf"))
        self.reduction = one_of("reduction", reduction, ("mean", "sum", "normalised"))
        self.meta_loss = one_of("meta_loss", meta_loss, ("ce", "mae"))
        self.lr_weights = in_range("lr_weights", lr_weights, 0, float("inf"), closed="neither")
        self.meta_size = int(in_range("meta_size", meta_size, 1, float("inf"), closed="left"))

    def run(self, fit: Fit, data: Any) -> Any:
        return with_meta_set(fit, self, data, self.meta_size)

    def setup(self, task: Task, num_samples: int, network: nn.Module) -> None:
        super().setup(task, num_samples, network)
        self.weigher = nn.Sequential(nn.Linear(1, 100), nn.ReLU(), nn.Linear(100, 1))
        self.alpha = 0.1 if self.inner_lr is None else self.inner_lr

    def optimizers(self, nets: Nets, make: MakeOptimizer) -> dict[str, Optimizer]:
        own = Adam(self.weigher.parameters(), self.lr_weights, weight_decay=1e-4)
        return {**super().optimizers(nets, make), "weights": own}

    def weigh(self, each: Tensor) -> Tensor:
        """V: losses `(B,)` to weights `(B,)`."""
        with torch.autocast(each.device.type, enabled=False):
            v: Tensor = self.weigher(each.detach()[:, None])
            return v.squeeze(1).sigmoid()

    def side_batch_size(self, stream: str, batch_size: int, rows: int, side_rows: int) -> int:
        return batch_size if self.last_layer else max(2, 3 * batch_size // 4)

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        """(3) under V as it is, with that gradient in θ and (2)'s in φ; `log["meta_loss"]` has the latter alone.

        `update` lets V step in between. Where `loss` is called without it, α is `inner_lr`, or 0.1 if that is `None`.
        """
        clean = batch.side["clean"]
        passes = (of_last_layer if self.last_layer else of_network)(nets[0], batch.x, clean.x)
        each = self.task.loss(passes.out, batch.target)
        v = self.weigh(each)
        judge = self.task.loss if self.meta_loss == "ce" else mean_absolute_error
        how: Any = {"rate": self.alpha, "reduction": self.reduction}
        how["meta_loss"] = lambda p: judge(passes.elsewhere(p), clean.target).mean()
        how["losses"] = lambda p: self.task.loss(passes.again(p), batch.target)
        meta, slope = meta_gradient(each, v, passes.params, **how)
        pull = (v * slope).sum()
        value = (shares(v.detach(), self.reduction) * each).sum()
        log = {"meta_loss": meta + pull - pull.detach()}
        return Loss(value + pull - pull.detach(), passes.out, v.detach(), log)

    def update(self, run: Run, batch: Batch) -> Loss:
        self.alpha = run.lr if self.inner_lr is None else self.inner_lr
        first: Any = run.forward(batch)  # (1)
        run.backward(first.log["meta_loss"])
        run.step("weights")  # (2)
        each = self.task.loss(first.out, batch.target)
        w = self.weigh(each).detach()
        value = (shares(w, self.reduction) * each).sum()
        run.backward(value)
        run.step("nets")  # (3)
        log = {"meta_loss": first.log["meta_loss"].detach(), "weight": w.mean()}
        return Loss(value.detach(), first.out.detach(), w, log)
