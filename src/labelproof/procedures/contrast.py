r"""SimCLR: features learned without labels, from what two distortions of one sample have in common.

Chen, Kornblith, Norouzi, Hinton: "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.

    (1)  h = f(x̃),  z = g(h) / ‖g(h)‖                     for two views x̃ of each of B samples
    (2)  ℓ_ij = −log [ exp(z_i·z_j / τ) / Σ_{k≠i} exp(z_i·z_k / τ) ],   i, j views of one sample, k of all 2B
    (3)  L = mean of ℓ_ij over the 2B views

f is the network without its last layer; g, two layers with BatchNorm, is thrown away in the end. Labels enter nowhere
in f. Two monitors use them: the network's own last layer learns from h, without gradient to f, to predict the labels as
given (a linear probe), and now and then each sample is compared with its nearest neighbours in h. Where labels are
wrong, both can agree with them only as far as they are right.

Symbols: `temperature` = τ, `g` = g. Shapes: h (2B, F), z (2B, D). Views: `labelproof.data.contrast`; of rows (SCARF,
Bahri et al., ICLR 2022) the first view is the row itself.
Deviations: over several processes BatchNorm is of each process's part, not of the joint batch; the negatives are those
of all processes. The last layer of g has a BatchNorm without a trainable shift, as in the code that trained the
encoders of Ghosh & Lan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from labelproof.core.encoder import Encoder, body
from labelproof.core.method import Fit, MakeOptimizer, Method, Scan, in_range
from labelproof.core.nets import Nets, features, linear_head
from labelproof.core.task import Task
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.contrast import nt_xent
from labelproof.functional.neighbours import knn_agreement

#: Samples whose neighbours are looked at, and how often in the course of a training.
NEIGHBOURS_OF, TIMES = 5000, 10


class Contrast(Method):
    """Learns features without labels.

    Args:
        temperature: τ, above 0: below 0.1 the nearest negatives alone count, towards 1 all count alike.
        width: D, outputs of the projection g that views are compared in.
        probe_lr: learning rate of the linear probe's Adam.

    Raises:
        ValueError: a value is out of range.
    """

    name = "simclr"
    title, paper = "SimCLR", "Chen et al., ICML 2020"
    cost = "1 network, 1 forward pass of 2 views"
    tasks = frozenset({"classification", "regression"})
    views = ("contrast", "contrast")

    def __init__(self, *, temperature: float = 0.5, width: int = 128, probe_lr: float = 1e-3) -> None:
        super().__init__()
        self.temperature = in_range("temperature", temperature, 0, float("inf"), closed="neither")
        self.width = int(in_range("width", width, 1, float("inf"), closed="left"))
        self.probe_lr = in_range("probe_lr", probe_lr, 0, float("inf"), closed="neither")

    def setup(self, task: Task, num_samples: int, network: nn.Module) -> None:
        super().setup(task, num_samples, network)
        if not any(t.requires_grad for t in body(network).values()):
            raise ValueError(
                "simclr trains what comes before the last layer, and in this network that is frozen, or nothing: start "
                "from an encoder that is not frozen, or use another network than linear"
            )
        size = linear_head(network).in_features
        last = nn.BatchNorm1d(self.width)
        last.bias.requires_grad_(False)
        self.g = nn.Sequential(
            nn.Linear(size, size, bias=False),
            nn.BatchNorm1d(size),
            nn.ReLU(),
            nn.Linear(size, self.width, bias=False),
            last,
        )

    def optimizers(self, nets: Nets, make: MakeOptimizer) -> dict[str, Optimizer]:
        head = list(linear_head(nets[0]).parameters())
        probed = {id(p) for p in head}
        learned = [p for p in (*nets[0].parameters(), *self.g.parameters()) if id(p) not in probed and p.requires_grad]
        return {"nets": make([{"params": learned}]), "probe": Adam(head, self.probe_lr)}

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        rows = len(batch.index)
        h = features(nets[0], torch.cat(batch.views))  # (1), normalised over both views
        z = self.g(h)
        contrast = nt_xent(z[:rows], z[rows:], self.temperature)  # (2), (3)
        out = linear_head(nets[0])(h[:rows].detach())
        probe = self.task.loss(out, batch.target).mean()
        return Loss(contrast + probe, out=out, log={"contrast": contrast.detach(), "probe": probe.detach()})

    def after_epoch(self, nets: Nets, scan: Scan, now: Clock) -> Mapping[str, float] | None:
        every = max(1, now.epochs // TIMES)
        if self.task.kind != "classification" or ((now.epoch + 1) % every and now.epoch + 1 < now.epochs):
            return None

        def look(batch: Batch) -> Tensor:
            seen = F.normalize(features(nets[0], batch.x).float(), dim=1)
            return torch.cat([seen, batch.target[:, None].float()], 1)

        _, found = scan(look, rows=NEIGHBOURS_OF)
        return {"knn_agreement": float(knn_agreement(found[:, :-1], found[:, -1].long()))}


def pretrain(fit: Fit, method: Contrast, data: Any, *, length: float = 1.0, **changes: Any) -> Encoder:
    """Train the features in a stage of its own, and say how it went.

    Args:
        fit: trains once.
        method: how.
        data: inputs; labels are for the monitors alone.
        length: share of the run's epochs, or how many times as many.
        changes: settings of this stage.
    """
    fitted = fit(method, data, stage="pretrain", length=length, **changes)
    last = fitted.history[-1]
    figures = {name: last[name] for name in ("contrast", "agree", "knn_agreement") if name in last}
    names = {"contrast": "contrastive loss", "agree": "probe agrees for", "knn_agreement": "neighbours agree for"}
    told = ", ".join(f"{names[name]} {value:.3f}" for name, value in figures.items())
    fit.note(f"pre-trained without labels for {last['epoch']} epochs: {told}", pretraining=figures)
    encoder: Encoder = fitted.encoder()
    return encoder
