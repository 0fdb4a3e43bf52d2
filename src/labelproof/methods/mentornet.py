r"""MentorNet: a student, and a curriculum that says how much each sample counts. Predefined (PD) or learned (DD).

Jiang, Zhou, Leung, Li, Fei-Fei: "MentorNet: Learning Data-Driven Curriculum for Very Deep Neural Networks on Corrupted
Labels", ICML 2018.

    (1)  λ1 ← (λ1 + p-th percentile of ℓ_1 ... ℓ_B) / 2
    (2)  PD:  v_i = clip(1 − (ℓ_i − λ1) / λ2, 0, 1),   or 1[ℓ_i ≤ λ1] where λ2 = 0
    (3)  DD:  v_i = g(z_i) = σ(a·tanh(A z_i)),   z_i = (ℓ_i, ℓ_i − λ1, e(ỹ_i), e'(% of epochs))
    (4)  student:  L = Σ_i v_i ℓ_i / Σ_i v_i,   v without gradient
    (5)  mentor: −mean over verified x, y of ½ log g(z(x,y)) + ½ Σ_{j≠y} q_j log(1 − g(z(x,j))),  q_j = p_j / (1 − p_y)

Small loss means probably clean. PD fixes how small; DD asks which losses verified labels, and wrong ones the student
finds likely, have now. Keep the verified samples in the training set as well: a student that trains on neither label of
(5) gives wrong *training* labels, once memorised, smaller losses than both, and g takes them for right.

Symbols: `lam1`, `lam2` = λ1, λ2, `noise_rate` = 1 − p, `label`, `percent` = e, e'. Shapes: v, ℓ (B,); q (B, K).
Deviations: the paper divides (4) by B, and has wrong labels where (5) makes them. g learns beside the student; its LSTM
of history length 1 is a tanh layer. In DD p = 0.75, as released. The released code also drops at random.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from labelproof.core.method import Fit, MakeOptimizer, Method, NoiseRate, check_noise_rate, in_range
from labelproof.core.nets import Nets, preview
from labelproof.core.task import Task
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.curriculum import known, percentile, right_or_wrong, self_paced_weights, threshold
from labelproof.functional.select import weighted_mean
from labelproof.procedures.noise_rate import with_noise_rate


class MentorNet(Method):
    """Weighs samples by their loss, along a fixed curve.

    Args:
        noise_rate: 1 - p, the share of wrong labels, in [0, 1); `"auto"` estimates it first, at the cost of one more
            training; 0.25 and 0.3 as released. Too low trains on wrong labels, too high on few.
        lam2: λ2, at least 0: how far above λ1, in nats, the weight has fallen to 0. At 0 samples count or do not.
        burn_in: share of the epochs, from the first, in which all samples weigh 1, in [0, 1). Too short: losses mean
            nothing yet; too long: wrong labels are memorised.

    Raises:
        ValueError: a value is out of range.
    """

    title, paper = "MentorNet, predefined curriculum (PD)", "Jiang et al., ICML 2018"
    lam1: Tensor

    def __init__(self, *, noise_rate: NoiseRate = 0.25, lam2: float = 1.0, burn_in: float = 0.2) -> None:
        super().__init__()
        self.noise_rate = check_noise_rate(noise_rate)
        self.lam2 = in_range("lam2", lam2, 0, float("inf"), closed="left")
        self.burn_in = in_range("burn_in", burn_in, 0, 1, closed="left")

    def run(self, fit: Fit, data: Any) -> Any:
        return with_noise_rate(fit, self, data)

    def setup(self, task: Task, num_samples: int, network: nn.Module) -> None:
        super().setup(task, num_samples, network)
        self.register_buffer("lam1", torch.tensor(torch.nan))  # the first batch's percentile takes its place

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        out = nets[0](batch.x)
        each = self.task.loss(out, batch.target)
        self.lam1.copy_(threshold(self.lam1, percentile(each, 1 - known(self.noise_rate))))  # (1)
        burning_in = now.epoch < self.burn_in * now.epochs
        v = torch.ones_like(each) if burning_in else self_paced_weights(each, self.lam1, self.lam2)  # (2)
        return Loss(weighted_mean(each, v), out=out, trust=v, log={"lam1": self.lam1})  # (4)


class MentorNetDD(Method):
    """Weighs samples by what a small network learns from verified labels, the stream "clean", best trained on as well.

    Args:
        lr_mentor: learning rate of the mentor's Adam. Too low a one lags behind the student, too high a one is erratic.

    Raises:
        ValueError: a value is out of range.
    """

    title, paper = "MentorNet, data-driven curriculum (DD)", "Jiang et al., ICML 2018"
    cost = "1 network, 1 forward pass, and 1 over a clean batch without gradient"
    streams = ("train", "clean")
    lam1: Tensor

    def __init__(self, *, lr_mentor: float = 0.01) -> None:
        super().__init__()
        self.lr_mentor = in_range("lr_mentor", lr_mentor, 0, float("inf"), closed="neither")

    def setup(self, task: Task, num_samples: int, network: nn.Module) -> None:
        super().setup(task, num_samples, network)
        self.register_buffer("lam1", torch.tensor(torch.nan))
        self.label, self.percent = (nn.Parameter(torch.zeros(n, d)) for n, d in ((task.num_outputs, 2), (100, 5)))
        self.hidden, self.last = nn.Linear(9, 20), nn.Linear(20, 1)

    def optimizers(self, nets: Nets, make: MakeOptimizer) -> dict[str, Optimizer]:
        return {**super().optimizers(nets, make), "mentor": Adam(self.parameters(), self.lr_mentor)}

    def g(self, each: Tensor, label: Tensor, now: Clock) -> Tensor:
        """(3) before σ: losses `(..., )` and embeddings of their labels `(..., 2)` to logits `(..., )`."""
        percent = self.percent[int(100 * (now.epoch + now.step / now.steps_per_epoch) / now.epochs)]
        with torch.autocast(each.device.type, enabled=False):
            shared = (t.expand(*each.shape, -1) for t in (label, percent))
            z = torch.cat([torch.stack([each, each - self.lam1], -1), *shared], -1)
            return torch.squeeze(self.last(self.hidden(z).tanh()), -1)

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        out, clean = nets[0](batch.x), batch.side["clean"]
        each = self.task.loss(out, batch.target)
        self.lam1.copy_(threshold(self.lam1, percentile(each, 0.75)))  # (1); what a distance from λ1 means is learned
        log_p = preview(nets, clean.x)[0].float().log_softmax(1)  # normalised by the batch, like the losses it judges
        v = self.g(each.detach(), self.label[batch.target], now).sigmoid().detach()
        mentor = right_or_wrong(self.g(-log_p, self.label, now), log_p, clean.target)  # (5)
        return Loss(weighted_mean(each, v) + mentor, out=out, trust=v, log={"mentor": mentor.detach()})  # (4)
