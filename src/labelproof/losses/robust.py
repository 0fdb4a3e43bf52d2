"""Robust losses without memory per sample. The equations are those of the methods of the same names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from labelproof.core.method import in_range
from labelproof.functional.losses import (
    bootstrapped_cross_entropy,
    bounded_cross_entropy,
    cross_entropy,
    forward_corrected,
    generalised_cross_entropy,
    mean_absolute_error,
)
from labelproof.functional.ranks import gather_rows, rank, world_size
from labelproof.functional.select import weighted_mean
from labelproof.functional.transition import check_transition, invert_transition
from labelproof.losses.shape import Flat, check_reduction, flatten, reduce, unpack


class DropIn(nn.Module):
    """What all losses share: shapes, ignored labels, reduction.

    Args:
        ignore_index: label of samples, or pixels, that are left out.
        reduction: `"mean"` over what is not ignored, `"sum"`, or `"none"`: `(B, *)`, 0 where ignored.

    Raises:
        ValueError: an unknown reduction.
    """

    def __init__(self, *, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.reduction = check_reduction(reduction)

    def forward(self, logits: Tensor, target: Tensor | Sequence[Tensor], index: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        Args:
            logits: `(B, K)` or `(B, K, *)`.
            target: `(B,)` or `(B, *)` classes; or float probabilities of the shape of `logits`; or a pair
                `(target, index)`.
            index: ignored.

        Raises:
            ValueError: shapes or types do not fit, or a label is not a class.
        """
        flat = flatten(logits, unpack(target, index)[0], self.ignore_index)
        return reduce(self.each(flat.logits, flat.target), flat, self.reduction)

    def each(self, logits: Tensor, target: Tensor) -> Tensor:
        """`(M, K)` logits, and `(M,)` classes or `(M, K)` probabilities, to `(M,)` losses."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in vars(self).items() if not k.startswith("_") and k != "training")


class GCELoss(DropIn):
    """Generalised cross-entropy (Zhang & Sabuncu, NeurIPS 2018).

    Args:
        q: between cross-entropy (towards 0) and mean absolute error (1), in (0, 1].
        k: truncation, in [0, 1): samples whose label has a probability of at most k get a constant loss and so no
            gradient. From the start that would leave nothing to learn from (all p are about 1 / K): train with 0
            first, then set `criterion.k`. The paper uses 0.5 from epoch 40 of 120 on. Hard labels only.
        ignore_index: label of samples, or pixels, that are left out.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Raises:
        ValueError: a value is out of range.

    >>> GCELoss(q=1.0)(torch.zeros(2, 4), torch.tensor([0, 3]))
    tensor(0.7500)
    """

    def __init__(self, *, q: float = 0.7, k: float = 0.0, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__(ignore_index=ignore_index, reduction=reduction)
        self.q = in_range("q", q, 0, 1, closed="right")
        self.k = in_range("k", k, 0, 1, closed="left")

    def each(self, logits: Tensor, target: Tensor) -> Tensor:
        lq = generalised_cross_entropy(logits, target, self.q)
        if not self.k:
            return lq
        _hard_only(target, "GCELoss with k > 0")
        return lq.clamp(max=(1 - self.k**self.q) / self.q)


class MAELoss(DropIn):
    """Mean absolute error between probabilities and label (Ghosh et al., AAAI 2017), in [0, 2].

    Args:
        ignore_index: label of samples, or pixels, that are left out.
        reduction: `"mean"`, `"sum"` or `"none"`.

    >>> MAELoss()(torch.zeros(2, 4), torch.tensor([0, 3]))
    tensor(1.5000)
    """

    def each(self, logits: Tensor, target: Tensor) -> Tensor:
        return mean_absolute_error(logits, target)


class SCELoss(DropIn):
    """Symmetric cross-entropy (Wang et al., ICCV 2019). Hard labels only.

    Args:
        alpha: weight of cross-entropy, at least 0. The paper uses 0.1 for CIFAR-10 and 6 for CIFAR-100.
        beta: weight of the reverse cross-entropy, at least 0. The paper uses 1 for CIFAR-10 and 0.1 for CIFAR-100.
        log_zero: what log 0 is taken as, below 0.
        ignore_index: label of samples, or pixels, that are left out.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Raises:
        ValueError: a value is out of range.

    >>> SCELoss(alpha=0.0, beta=1.0)(torch.zeros(1, 4), torch.tensor([0]))
    tensor(3.)
    """

    def __init__(
        self,
        *,
        alpha: float = 0.1,
        beta: float = 1.0,
        log_zero: float = -4.0,
        ignore_index: int = -100,
        reduction: str = "mean",
    ) -> None:
        super().__init__(ignore_index=ignore_index, reduction=reduction)
        self.alpha = in_range("alpha", alpha, 0, float("inf"), closed="left")
        self.beta = in_range("beta", beta, 0, float("inf"), closed="left")
        self.log_zero = in_range("log_zero", log_zero, float("-inf"), 0, closed="neither")

    def each(self, logits: Tensor, target: Tensor) -> Tensor:
        _hard_only(target, "SCELoss")
        ce = cross_entropy(logits, target)
        return self.alpha * ce + self.beta * self.log_zero * torch.expm1(-ce)


class BootstrapLoss(DropIn):
    """Bootstrapping (Reed et al., ICLR 2015 workshop): the label mixed with the network's own prediction.

    Args:
        kind: `"hard"` (the predicted class) or `"soft"` (the predicted probabilities).
        beta: weight of the given label, in [0, 1]; `None` takes the paper's 0.8 for hard, 0.95 for soft.
        ignore_index: label of samples, or pixels, that are left out.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Raises:
        ValueError: an unknown kind, or a value out of range.

    >>> BootstrapLoss(kind="soft")
    BootstrapLoss(ignore_index=-100, reduction=mean, kind=soft, beta=0.95)
    """

    def __init__(
        self, *, kind: str = "hard", beta: float | None = None, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        super().__init__(ignore_index=ignore_index, reduction=reduction)
        if kind not in {"hard", "soft"}:
            raise ValueError(f"kind={kind!r} must be 'hard' or 'soft'")
        self.kind = kind
        self.beta = in_range("beta", {"hard": 0.8, "soft": 0.95}[kind] if beta is None else beta, 0, 1)

    def each(self, logits: Tensor, target: Tensor) -> Tensor:
        return bootstrapped_cross_entropy(logits, target, beta=self.beta, hard=self.kind == "hard")


class _Corrected(DropIn):
    """A loss with a transition matrix, which is a buffer: it moves with the module and is in its `state_dict`."""

    transition: Tensor

    def __init__(self, transition: Any, *, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__(ignore_index=ignore_index, reduction=reduction)
        columns = check_transition(transition).float().T.contiguous()  # a batch takes those of its labels
        self.register_buffer("transition", columns.T)

    def forward(self, logits: Tensor, target: Tensor | Sequence[Tensor], index: Tensor | None = None) -> Tensor:
        k = len(self.transition)
        if logits.ndim >= 2 and logits.shape[1] != k:
            raise ValueError(f"logits have {logits.shape[1]} classes, transition is for {k}")
        return super().forward(logits, target, index)


class ForwardLoss(_Corrected):
    """Forward correction (Patrini et al., CVPR 2017): cross-entropy of the prediction passed through the noise.

    The network learns the probabilities of the *clean* classes.

    Args:
        transition: `(K, K)`, rows = true class: the probabilities of the given labels.
        ignore_index: label of samples, or pixels, that are left out.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Raises:
        ValueError: the matrix is not one of probabilities.

    >>> ForwardLoss([[0.8, 0.2], [0.4, 0.6]])(torch.zeros(1, 2), torch.tensor([0])).neg().exp()
    tensor(0.6000)
    """

    def each(self, logits: Tensor, target: Tensor) -> Tensor:
        return forward_corrected(logits, target, self.transition)


class BackwardLoss(_Corrected):
    """Backward correction (Patrini et al., CVPR 2017): losses of all labels, weighted by the inverse of the noise.

    On average over the noise it is the clean loss. Its variance is large where the matrix is nearly singular: prefer
    `ForwardLoss` unless you need an unbiased loss.

    Args:
        transition: `(K, K)`, rows = true class: the probabilities of the given labels.
        floor: lower bound of each p, in [0, 1), in units of 1/K, as in `labelproof.methods.Backward`; 0 sets none: the
            loss is then unbounded below, as in the paper, and training mostly ends in chaos.
        ignore_index: label of samples, or pixels, that are left out.
        reduction: `"mean"`, `"sum"` or `"none"`.

    Raises:
        ValueError: the matrix is not one of probabilities, or cannot be inverted.

    >>> BackwardLoss([[1.0, 0.0], [0.0, 1.0]])(torch.zeros(1, 2), torch.tensor([0]))
    tensor(0.6931)
    """

    inverse: Tensor

    def __init__(
        self, transition: Any, *, floor: float = 0.1, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        super().__init__(transition, ignore_index=ignore_index, reduction=reduction)
        self.floor = in_range("floor", floor, 0, 1, closed="left")
        self.register_buffer("inverse", invert_transition(self.transition))

    def each(self, logits: Tensor, target: Tensor) -> Tensor:
        if not target.is_floating_point():
            return bounded_cross_entropy(logits, self.inverse[target], floor=self.floor)
        with torch.autocast(logits.device.type, enabled=False):
            return bounded_cross_entropy(logits, target.float() @ self.inverse, floor=self.floor)


class SmallLoss(DropIn):
    """Cross-entropy of the samples (or pixels) of a batch with the smallest loss; the rest gets no gradient.

    What one network of Co-teaching does (Han et al., NeurIPS 2018). Under data parallelism the selection is over the
    joint batch, whose parts must be equal, as `DistributedSampler` makes them. In evaluation (`criterion.eval()`, or
    under `torch.no_grad()`) it is plain cross-entropy of all.

    Args:
        noise_rate: share of each batch that is dropped, in [0, 1).
        num_gradual: epochs over which the share rises to `noise_rate`, 0 for from the start. With more than 0, call
            `criterion.set_epoch(epoch)` as for a `DistributedSampler`; the paper uses 10.
        ignore_index: label of samples, or pixels, that are left out.
        reduction: `"mean"` over the selected, `"sum"` or `"none"` (0 where not selected).

    Raises:
        ValueError: a value is out of range.

    >>> z = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    >>> SmallLoss(noise_rate=0.5, reduction="none")(z.requires_grad_(), torch.tensor([0, 0])).detach()
    tensor([0.1269, 0.0000])
    """

    def __init__(
        self, *, noise_rate: float = 0.2, num_gradual: int = 0, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        super().__init__(ignore_index=ignore_index, reduction=reduction)
        self.noise_rate = in_range("noise_rate", noise_rate, 0, 1, closed="left")
        self.num_gradual = int(in_range("num_gradual", num_gradual, 0, float("inf"), closed="left"))
        self._epoch: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Tell the epoch, from 0; at the start of each."""
        self._epoch = int(epoch)

    @property
    def keep(self) -> float:
        """Share of the batch that is kept now.

        Raises:
            ValueError: the schedule needs an epoch and was told none.
        """
        if not self.num_gradual:
            return 1 - self.noise_rate
        if self._epoch is None:
            raise ValueError(
                f"num_gradual={self.num_gradual} needs criterion.set_epoch(epoch) at the start of each epoch (or 0: "
                "drop the same share throughout)"
            )
        return 1 - self.noise_rate * min((self._epoch + 1) / self.num_gradual, 1)

    def forward(self, logits: Tensor, target: Tensor | Sequence[Tensor], index: Tensor | None = None) -> Tensor:
        flat = flatten(logits, unpack(target, index)[0], self.ignore_index)
        each = cross_entropy(flat.logits, flat.target)
        if not (self.training and torch.is_grad_enabled()):
            return reduce(each, flat, self.reduction)
        kept = _selected(each.detach(), flat, self.keep)
        if self.reduction == "mean":
            return weighted_mean(each, kept)
        chosen = torch.where(kept > 0, each, torch.zeros_like(each))
        return chosen.sum() if self.reduction == "sum" else chosen.reshape(flat.shape)


def _selected(each: Tensor, flat: Flat, fraction: float) -> Tensor:
    """Weight 1 for the smallest of those that are valid, over all ranks; at least one if any is."""
    valid = torch.ones_like(each, dtype=torch.bool) if flat.valid is None else flat.valid
    joint = gather_rows(each.masked_fill(~valid, torch.inf))
    count = gather_rows(valid).sum()
    order = joint.argsort(stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    chosen = place < (fraction * count + 1e-6).floor().clamp(min=1)
    return (chosen.chunk(world_size())[rank()] & valid).to(each.dtype)


def _hard_only(target: Tensor, name: str) -> None:
    if target.is_floating_point():
        raise ValueError(f"{name} takes classes, not probabilities: give target.argmax(1), or use another loss")
