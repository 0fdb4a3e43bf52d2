"""Losses that remember each sample: ELR's targets, SOP's u and v."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import prod
from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from labelproof.core.method import in_range
from labelproof.core.state import SampleParameter, SampleTable
from labelproof.functional import fused, regularisers, sop
from labelproof.functional.losses import cross_entropy
from labelproof.functional.ranks import world_size
from labelproof.losses.index import IndexCheck, stacklevel
from labelproof.losses.shape import Flat, check_reduction, flatten, reduce, unpack


class _Remembering(nn.Module):
    """Shapes, ids and reduction of a loss with state per sample."""

    PART: ClassVar[str]  # of the loss, beside cross-entropy
    lam: float  # its weight

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        spatial: Sequence[int],
        ignore_index: int,
        reduction: str,
        check_index: bool,
    ) -> None:
        super().__init__()
        self.num_samples, self.num_classes, self.spatial = num_samples, num_classes, tuple(spatial)
        for name, value in {"num_samples": num_samples, "num_classes": num_classes}.items():
            if not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name}={value!r:.100} must be a whole number from 1: len(train_set), or its classes")
        if any(size < 1 for size in self.spatial):
            raise ValueError(f"spatial={self.spatial} must be positive sizes, as (H, W)")
        self.ignore_index = ignore_index
        self.reduction = check_reduction(reduction)
        self.check = IndexCheck(num_samples, enabled=check_index)
        self._last: tuple[Tensor, Tensor] | None = None
        self._valid: Tensor | None = None

    @property
    def parts(self) -> dict[str, Tensor]:
        """Mean of each part of the last training batch's loss, without gradient: to be logged apart."""
        if self._last is None:
            return {}
        valid = slice(None) if self._valid is None else self._valid
        loss, part = (each.detach()[valid] for each in self._last)
        return {"ce": (loss - self.lam * part).clamp(min=0).mean(), self.PART: part.mean()}

    def forward(self, logits: Tensor, target: Tensor | Sequence[Tensor], index: Tensor | None = None) -> Tensor:
        """The loss of a batch.

        In evaluation (`criterion.eval()`, or under `torch.no_grad()`) it is plain cross-entropy: nothing is remembered
        and no index needed.

        Args:
            logits: `(B, K)`, or `(B, K, *spatial)`.
            target: `(B,)` or `(B, *spatial)` classes; or float probabilities of the shape of `logits`; or a pair
                `(target, index)`, without a third argument.
            index: `(B,)` integers, rows of the samples in the whole training set.

        Raises:
            ValueError: shapes or types do not fit, a label is not a class, or there is no index.
            IndexError: an id is not in [0, N).
        """
        target, index = unpack(target, index)
        flat = flatten(logits, target, self.ignore_index)
        if not (self.training and torch.is_grad_enabled()):
            return reduce(cross_entropy(flat.logits, flat.target), flat, self.reduction)
        if logits.shape[1:] != (self.num_classes, *self.spatial):
            want = ", ".join(str(size) for size in ("B", self.num_classes, *self.spatial))
            raise ValueError(
                f"logits have shape {tuple(logits.shape)} and must have ({want}): num_classes={self.num_classes}, "
                f"spatial={self.spatial} (the sizes after the classes, one target is remembered for each pixel)"
            )
        ids = self.check.ids(index, len(logits), logits.device)
        self.check(ids, None if target.is_floating_point() or self.spatial else target.long())
        each, part = self._visit(flat, ids)
        self._last, self._valid = (each.detach(), part.detach()), flat.valid
        return reduce(each, flat, self.reduction)

    def _visit(self, flat: Flat, ids: Tensor) -> tuple[Tensor, Tensor]:
        """`(M,)` losses of a batch, and their part beside cross-entropy; updates what is remembered."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"num_samples={self.num_samples}, num_classes={self.num_classes}, spatial={self.spatial}"


class ELRLoss(_Remembering):
    """Early-learning regularisation (Liu et al., NeurIPS 2020) as a drop-in for `nn.CrossEntropyLoss`.

    The memory is in the `state_dict`: save it with the model. The loss is negative late in training, by design: log
    `criterion.parts`, which has cross-entropy apart. The equations are those of `labelproof.methods.ELR`. Under data
    parallelism every rank keeps the whole table, the same on all; batches must be equally large on all ranks. A pixel
    that is ignored leaves its target as it is.

    Args:
        num_samples: N, samples in the whole training set (not in a batch).
        num_classes: K.
        lam: weight of the regulariser. The paper uses 3 for CIFAR-10, 7 for CIFAR-100.
        beta: momentum of the targets, in [0, 1). The paper uses 0.7, and 0.9 for CIFAR-100 and asymmetric noise.
        spatial: (H, W) for logits `(B, K, H, W)`: one target per pixel is remembered, 4 N K H W bytes, so crops and
            flips must not move pixels.
        memory: how the targets are kept: `"dense"`, `"bf16"`, `"fp16"`, `"cpu"`, `"mmap"`, `"topk"` or `"topk:50"`.
        ignore_index: label of samples, or pixels, that are left out.
        reduction: `"mean"`, `"sum"` or `"none"`.
        check_index: whether to warn of ids that do not look like row numbers (`IndexWarning`).

    Raises:
        ValueError: a value is out of range.
        MemoryError: there is no room for the table.

    >>> criterion = ELRLoss(num_samples=50, num_classes=3)
    >>> z = torch.zeros(2, 3, requires_grad=True)
    >>> criterion(z, torch.tensor([0, 2]), torch.tensor([7, 31]))
    tensor(0.7825, grad_fn=<MeanBackward0>)
    >>> criterion.parts
    {'ce': tensor(1.0986), 'elr': tensor(-0.1054)}
    """

    PART = "elr"

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        lam: float = 3.0,
        beta: float = 0.7,
        spatial: Sequence[int] = (),
        memory: str = "dense",
        ignore_index: int = -100,
        reduction: str = "mean",
        check_index: bool = True,
    ) -> None:
        super().__init__(
            num_samples,
            num_classes,
            spatial=spatial,
            ignore_index=ignore_index,
            reduction=reduction,
            check_index=check_index,
        )
        self.lam = in_range("lam", lam, 0, float("inf"), closed="left")
        self.beta = in_range("beta", beta, 0, 1, closed="left")
        if self.spatial and memory.startswith("topk"):
            raise ValueError(
                f"memory={memory!r} keeps a row of classes; with spatial={self.spatial} use 'bf16' or 'cpu'"
            )
        self.t = SampleTable(num_samples, *self.spatial, num_classes, memory=memory)

    def _visit(self, flat: Flat, ids: Tensor) -> tuple[Tensor, Tensor]:
        simple = flat.valid is None and not flat.target.is_floating_point()
        rows = self.t.rows(ids, scale=self.beta if simple else 1)
        t = rows.reshape(-1, self.num_classes) if self.spatial else rows
        before = t.clone() if flat.valid is not None else t
        terms: regularisers.ELRTerms | fused.ELRLosses
        if flat.target.is_floating_point():
            terms = regularisers.elr_terms(flat.logits, flat.target, t, lam=self.lam, beta=self.beta)
        else:
            terms = fused.elr_terms(flat.logits, flat.target, t, lam=self.lam, beta=self.beta, faded=simple)
        new = terms.t if flat.valid is None else torch.where(flat.valid.unsqueeze(1), terms.t, before)
        self.t.write(ids, new.reshape(rows.shape) if self.spatial else new, checked=True)
        return terms.loss, terms.reg

    def belief(self) -> Tensor:
        """What each sample is believed to be, `(N, *spatial, K)` fp32: for `lp.find_issues(labels, belief)`.

        The targets brought to sum 1; all classes alike for samples that were never seen.
        """
        t = self.t.dense()
        total = t.sum(-1, keepdim=True)
        return torch.where(total > 0, t / total.clamp(min=1e-12), 1 / self.num_classes)


class SOPLoss(_Remembering):
    """Sparse over-parameterisation (Liu et al., ICML 2022) as a drop-in for `nn.CrossEntropyLoss`.

    A label is taken to be the prediction plus an error, which is learned: u (one number per sample) and v (K numbers),
    both in the `state_dict`. They need an optimiser of their own, plain SGD without momentum or weight decay and with
    a large learning rate:

        criterion = SOPLoss(len(train_set), num_classes)
        errors = criterion.optimizer(lr_u=10, lr_v=10)
        ...
        criterion(model(x), y, index).backward()
        optimizer.step(); errors.step()
        optimizer.zero_grad(); errors.zero_grad()

    Only the squared error trains v, cross-entropy does not: as published. Do not wrap it in
    `DistributedDataParallel`: its backward pass already gives every rank the gradient of the joint batch. The
    learning rates are for the mean over a batch of samples; a mean over pixels needs larger ones.

    Args:
        num_samples: N, samples in the whole training set (not in a batch).
        num_classes: K.
        spatial: (H, W) for logits `(B, K, H, W)`: one error per pixel is learned, so crops and flips must not move
            pixels.
        ignore_index: label of samples, or pixels, that are left out.
        reduction: `"mean"`, `"sum"` or `"none"`.
        check_index: whether to warn of ids that do not look like row numbers (`IndexWarning`).

    Raises:
        ValueError: a value is out of range.

    >>> criterion = SOPLoss(num_samples=50, num_classes=2)
    >>> z = torch.zeros(1, 2, requires_grad=True)
    >>> criterion(z, torch.tensor([0]), torch.tensor([7])).backward()
    >>> criterion.parts["ce"]
    tensor(0.6931)
    """

    PART, lam = "mse", 1.0

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        *,
        spatial: Sequence[int] = (),
        ignore_index: int = -100,
        reduction: str = "mean",
        check_index: bool = True,
    ) -> None:
        super().__init__(
            num_samples,
            num_classes,
            spatial=spatial,
            ignore_index=ignore_index,
            reduction=reduction,
            check_index=check_index,
        )
        pixels = prod(self.spatial)
        self.u, self.v = SampleParameter(num_samples, pixels), SampleParameter(num_samples, pixels * num_classes)
        self._agreed = self._said = False
        self._version, self._unused = -1, 0

    def optimizer(self, *, lr_u: float = 10.0, lr_v: float = 10.0) -> torch.optim.SGD:
        """The optimiser of u and v; step and zero it beside the network's.

        Args:
            lr_u: learning rate of u. The paper uses 10 for CIFAR-10, 1 for CIFAR-100.
            lr_v: learning rate of v. The paper uses 10 for symmetric noise, 100 for asymmetric noise.

        Raises:
            ValueError: a rate is not positive.
        """
        in_range("lr_u", lr_u, 0, float("inf"), closed="neither")
        in_range("lr_v", lr_v, 0, float("inf"), closed="neither")
        groups = [{"params": list(self.u.parameters()), "lr": lr_u}, {"params": list(self.v.parameters()), "lr": lr_v}]
        return torch.optim.SGD(groups, lr=lr_u)

    def _visit(self, flat: Flat, ids: Tensor) -> tuple[Tensor, Tensor]:
        self._prepare(len(ids))
        u, v = self.u.rows(ids).reshape(-1, 1), self.v.rows(ids).reshape(-1, self.num_classes)
        sop_terms = sop.sop_terms if flat.target.is_floating_point() else fused.sop_terms
        terms = sop_terms(flat.logits, flat.target, u, v)
        return terms.loss, terms.mse

    def _prepare(self, batch_size: int) -> None:
        """All ranks start from the same random rows; and it is noticed where nobody steps them."""
        if world_size() > 1 and not self._agreed:
            for parameter in self.parameters():
                dist.broadcast(parameter.detach(), 0)
            self._agreed = True
        version = self.u.weight._version  # in-place changes: one per step of the optimiser
        self._unused = 0 if version != self._version else self._unused + 1
        self._version = version
        if self._unused > max(64, self.num_samples / max(1, batch_size)) and not self._said:
            self._said = True
            warnings.warn(
                "u and v have not been stepped for a pass over the data: they learn nothing, and their gradients pile "
                "up. Make errors = criterion.optimizer(), and in each step errors.step() and errors.zero_grad()",
                UserWarning,
                stacklevel=stacklevel(),
            )
