r"""DivideMix: samples whose labels are probably wrong lose them, and are kept as unlabelled ones.

Li, Socher, Hoi: "DivideMix: Learning with Noisy Labels as Semi-supervised Learning", ICLR 2020.

    (1)  warm-up: cross-entropy, + γ mean_i Σ_c p_ic log p_ic
    (2)  w_i = posterior of the component of the lower mean of two Gaussians fitted to the losses, scaled to [0, 1]
    (3)  network k takes w from the other: i ∈ X (labelled) where w_i > τ, else i ∈ U
    (4)  X: q = sharpen(w ỹ + (1 − w) p̄_k),   U: q = sharpen((p̄_1 + p̄_2) / 2),   p̄ = mean of p over two views
    (5)  (x, q) ← ℓ (x, q) + (1 − ℓ) (x, q)_σ,   ℓ = max(ℓ', 1 − ℓ'),   ℓ' ~ Beta(α, α),   over both views of X ∪ U
    (6)  L = mean_X CE(q, p) + λ mean_U ‖q − p‖² / K + Σ_c π_c log(π_c / mean_{X ∪ U} p_c),   summed over networks;
         λ = λ_u clip((epoch − warm-up) / ramp, 0, 1)

Symbols: `threshold` = τ, `temperature` = T of sharpen, `alpha` = α, `confidence_penalty` = γ, `pi` = π, `doubt[i, k]`
= 1 − w_i as network k takes it (0 before (2)). Shapes: p̄, q (2, B, K); w (2, B); x in (5) 2B rows, permuted by σ.
Deviations: π is the share of each class among the labels (the paper's is uniform); where losses are constant, or no w
exceeds τ, all labels are believed for an epoch; losses are the last epoch's (the paper averages 5 at 90 % noise). The
released code steps on 64 samples of X and 64 of U from two loaders: here they are weights inside batches of the whole
set, and an empty one adds 0. Each network guesses once, in training mode, for both, and leaves BatchNorm's statistics
alone (the code: again for the other, in evaluation mode). Each rank mixes its own rows.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from labelproof.core.method import Method, Scan, check_warmup, in_range
from labelproof.core.nets import Nets, outputs, preview, side_by_side
from labelproof.core.state import SampleTable
from labelproof.core.task import Task
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional import mixmatch
from labelproof.functional.mixing import Mixup


class DivideMix(Method):
    """Two networks find each other's probably wrong labels, and learn from guesses in their place.

    Args:
        warmup: epochs before the first division, else a tenth of all. The paper's: 10 (CIFAR-10), 30 (CIFAR-100).
        threshold: τ in [0, 1): a label is kept where it is right with a probability w above it. The paper's: 0.5.
        temperature: T > 0; guesses are sharpened to p^(1/T) / Σ p^(1/T). The paper's: 0.5.
        alpha: α >= 0 of mixup, 0 for none. The paper's: 4, and 0.5 for real noise.
        lambda_u: λ_u >= 0, weight of guesses. The paper's: 25 for CIFAR-10 and little noise, else 50 to 150, 0 for real
            noise. Users report that a wrong one costs 10 points on asymmetric noise: compare with 0.
        ramp: epochs in which λ rises to λ_u. The paper's: 16.
        uniform_prior: whether π is 1/K as in the paper; better if rare classes shall count as much as frequent ones.
        confidence_penalty: γ >= 0, against confidence in the warm-up. The paper's: 1 for asymmetric noise, else 0.

    Raises:
        ValueError: a value is out of range.
    """

    title, paper = "DivideMix", "Li et al., ICLR 2020"
    cost = "2 networks, 2 forward passes over 2 views (1 without augmentation), and one over all samples per epoch"
    peers, views = 2, ("weak", "weak")
    pi: Tensor

    def __init__(
        self,
        *,
        warmup: int | None = None,
        threshold: float = 0.5,
        temperature: float = 0.5,
        alpha: float = 4.0,
        lambda_u: float = 25.0,
        ramp: int = 16,
        uniform_prior: bool = False,
        confidence_penalty: float = 0.0,
    ) -> None:
        super().__init__()
        self.warmup = None if warmup is None else int(in_range("warmup", warmup, 1, torch.inf, closed="left"))
        self.threshold = in_range("threshold", threshold, 0, 1, closed="left")
        self.temperature = in_range("temperature", temperature, 0, torch.inf, closed="neither")
        self.alpha = in_range("alpha", alpha, 0, torch.inf, closed="left")
        self.lambda_u = in_range("lambda_u", lambda_u, 0, torch.inf, closed="left")
        self.ramp = int(in_range("ramp", ramp, 1, torch.inf, closed="left"))
        self.uniform_prior = uniform_prior
        self.confidence_penalty = in_range("confidence_penalty", confidence_penalty, 0, torch.inf, closed="left")

    def setup(self, task: Task, num_samples: int, network: nn.Module) -> None:
        super().setup(task, num_samples, network)
        self.doubt = SampleTable(num_samples, 2)
        self.register_buffer("pi", torch.full((task.num_outputs,), 1 / task.num_outputs))

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        check_warmup(self.warmup or 1, now)
        since = now.epoch + now.step / now.steps_per_epoch - (self.warmup or max(now.epochs // 10, 1))
        if since < 0:
            out = torch.stack(outputs(nets, batch.x))
            ce = torch.stack([self.task.loss(o, batch.target).mean() for o in out])
            return Loss((ce + self.confidence_penalty * mixmatch.negative_entropy(out).mean(1)).sum(), out=out)  # (1)
        x = torch.cat(list({id(view): view for view in batch.views}.values()))  # one, where nothing is augmented
        seen = preview(nets, x).reshape(2, -1, len(batch.index), self.task.num_outputs)  # network, view, row, class
        p, label = self.task.prob(seen).mean(1), self.task.encode(batch.target)
        w = 1 - self.doubt.rows(batch.index).T
        q, labelled = mixmatch.co_targets(p, label, w, self.threshold, self.temperature)  # (3), (4)
        mixes = [Mixup.draw(self.alpha, x, now.rng) for _ in nets]
        outs = side_by_side([partial(net, mix(x)) for net, mix in zip(nets, mixes, strict=True)], x)
        q = torch.stack([mix(t) for mix, t in zip(mixes, q.repeat(1, seen.shape[1], 1), strict=True)])
        lx, lu, penalty = mixmatch.mixmatch_terms(torch.stack(outs), q, labelled.repeat(1, seen.shape[1]), self.pi)
        value = lx + self.lambda_u * min(since / self.ramp, 1) * lu + penalty  # (6)
        log = {"lx": lx, "lu": lu, "penalty": penalty, "labelled": labelled.mean()}
        return Loss(value, out=seen[:, 0], trust=labelled, log=log)

    def after_epoch(self, nets: Nets, scan: Scan, now: Clock) -> None:
        if not (self.warmup or max(now.epochs // 10, 1)) <= now.epoch + 1 < now.epochs:
            return
        index, seen = scan(lambda b: torch.stack([*(self.task.loss(net(b.x), b.target) for net in nets), b.target], 1))
        seed = int(torch.randint(2**31, (), generator=now.rng))
        w = mixmatch.divide(mixmatch.min_max(seen[:, :2]), self.threshold, seed).flip(1)  # (2), exchanged
        self.doubt.write(index, 1 - w, joint=True)
        if not self.uniform_prior:
            self.pi.copy_(mixmatch.class_shares(seen[:, 2].long(), self.task.num_outputs))

    def predict(self, nets: Nets, x: Tensor) -> Tensor:
        return self.task.prob(torch.stack([net(x).float() for net in nets]).mean(0))
