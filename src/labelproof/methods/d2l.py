r"""D2L: dimensionality-driven learning. Training notices when memorisation begins, and turns away from the labels.

Ma, Wang, Houle, Zhou, Erfani, Xia, Wijewickrema, Bailey: "Dimensionality-Driven Learning with Noisy Labels", ICML 2018.

    (1)  LID_e = mean over samples of −( (1/k) Σ_{j≤k} log(r_j / r_k) )^{-1}      after epoch e, of the last features;
         r_1 ≤ ... ≤ r_k distances to the k nearest others in a minibatch of m
    (2)  turning point: LID_e − mean(LID of the last w epochs) > 2 sd(LID of the last w epochs)
         → back to the weights of the epoch before; looked for after an initial phase
    (3)  α_e = exp(−(e/T) · LID_e / min_{j<e} LID_j)                              from the turning point on; 1 before
    (4)  L = (1/B) Σ_i −⟨y*_i, log p_i⟩,   y*_i = α ỹ_i + (1 − α) onehot(argmax p_i)

The subspace that samples span shrinks while the network learns what they share and grows when it begins to memorise.

Symbols: `neighbours` = k, `group` = m, `window` = w, `lid` = LID, `alpha` = α; T epochs in all.
Deviations: e counts finished epochs. The m · `groups` samples are another random choice after each epoch. The initial
loss is cross-entropy as in the paper (the released code has since moved to symmetric cross-entropy).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from labelproof.core.method import Method, Scan, in_range
from labelproof.core.nets import Nets, Snapshot, features
from labelproof.core.state import Curve
from labelproof.core.task import Task
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.lid import local_intrinsic_dimensionality
from labelproof.functional.losses import bootstrapped_cross_entropy


class D2L(Method):
    """Notices when memorisation begins, goes one epoch back, and trusts its own predictions more from then on.

    Args:
        initial: epochs before a turning point is looked for. The paper uses 5 for MNIST, 20 for SVHN, 40 for CIFAR-10
            and 60 for CIFAR-100.
        window: w, epochs the dimensionality is compared with.
        neighbours: k of the nearest samples.
        group: m, samples among which neighbours are looked for.
        groups: so many groups of m are measured.

    Raises:
        ValueError: a value is out of range.
    """

    title = "Dimensionality-driven learning (D2L)"
    paper = "Ma et al., ICML 2018"
    cost = "1 network, 1 forward pass, and one over 1,280 samples per epoch"

    alpha: Tensor

    def __init__(
        self, *, initial: int = 5, window: int = 5, neighbours: int = 20, group: int = 128, groups: int = 10
    ) -> None:
        super().__init__()
        self.initial = int(in_range("initial", initial, 0, float("inf"), closed="left"))
        self.window = int(in_range("window", window, 2, float("inf"), closed="left"))
        self.neighbours = int(in_range("neighbours", neighbours, 2, float("inf"), closed="left"))
        self.group = int(in_range("group", group, 3, float("inf"), closed="left"))
        self.groups = int(in_range("groups", groups, 1, float("inf"), closed="left"))

    def setup(self, task: Task, num_samples: int, network: nn.Module) -> None:
        super().setup(task, num_samples, network)
        self.before = Snapshot(network)  # as it was one epoch ago
        self.lid = Curve()
        self.register_buffer("alpha", torch.tensor(1.0))

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        out = nets[0](batch.x)
        each = bootstrapped_cross_entropy(out, batch.target, beta=self.alpha, hard=True)
        return Loss(each.mean(), out=out, log={"alpha": self.alpha})  # (4)

    def after_epoch(self, nets: Nets, scan: Scan, now: Clock) -> None:
        _, z = scan(lambda b: features(nets[0], b.x), rows=self.group * self.groups)
        groups = [g for g in torch.split(z, self.group) if len(g) >= min(self.group, len(z))]
        each = torch.cat([local_intrinsic_dimensionality(g, self.neighbours) for g in groups])
        lid = each[each.isfinite()].mean()  # (1)
        if not lid.isfinite():  # features that have collapsed to a point have no dimension
            return
        before, last = self.lid.values, self.lid.values[-self.window :]
        turned = float(self.alpha) < 1
        if not turned and now.epoch >= max(self.initial, self.window):
            turned = bool(lid - last.mean() > 2 * last.std(correction=0))  # (2)
            if turned:
                self.before.restore(nets[0])
        if turned:
            self.alpha.copy_(torch.exp(-(now.epoch + 1) / now.epochs * lid / before.min()))  # (3)
        else:
            self.before.take(nets[0])
        self.lid.append(lid)
