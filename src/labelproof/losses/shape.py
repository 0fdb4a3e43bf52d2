"""Any `(B, K, *)` as rows of a matrix, and back to what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from labelproof.functional.device import host

REDUCTIONS = ("mean", "sum", "none")


class Flat(NamedTuple):
    """One row per sample, or per pixel.

    Attributes:
        logits: `(M, K)`.
        target: `(M,)` int64 in [0, K), or `(M, K)` float.
        valid: `(M,)` bool, false where the label is to be ignored; `None` where nothing is.
        shape: of the loss before it is reduced, `(B, *)`.
    """

    logits: Tensor
    target: Tensor
    valid: Tensor | None
    shape: torch.Size


def check_reduction(reduction: str) -> str:
    """Return it, if there is such a one."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r} must be one of {', '.join(REDUCTIONS)}")
    return reduction


def unpack(target: Tensor | Sequence[Tensor], index: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """`target` and `index`, which may also come as a pair in the place of `target`.

    Raises:
        ValueError: a sequence that is no such pair.
    """
    if isinstance(target, Tensor):
        return target, index
    if index is not None or not 1 <= len(target) <= 2 or not all(isinstance(each, Tensor) for each in target):
        raise ValueError(
            f"target is a {type(target).__name__} of {len(target)} and must be a tensor, or a pair of tensors "
            "(target, index) without a third argument, as `for x, *target in loader` gives"
        )
    return target[0], target[1] if len(target) == 2 else None


def flatten(logits: Tensor, target: Tensor, ignore_index: int) -> Flat:
    """Logits and labels as rows.

    Args:
        logits: `(B, K, *)` float.
        target: `(B, *)` integer, or `(B, K, *)` float probabilities.
        ignore_index: label of what is left out.

    Raises:
        ValueError: shapes or types do not fit; or (on a CPU: elsewhere asking would mean waiting) a label is neither
            in [0, K) nor `ignore_index`.
    """
    if logits.ndim < 2 or not logits.is_floating_point():
        raise ValueError(f"logits are {_what(logits)} and must be (B, K) or (B, K, *) floats, K = classes")
    soft, k = target.is_floating_point(), logits.shape[1]
    shape = logits.shape[:1] + logits.shape[2:]
    if target.shape != (logits.shape if soft else shape) or target.dtype == torch.bool:
        raise ValueError(
            f"target is {_what(target)} and must be {tuple(shape)} integers (classes) or {tuple(logits.shape)} floats "
            f"(probabilities) for logits of shape {tuple(logits.shape)}"
        )
    if logits.ndim > 2:
        logits = logits.movedim(1, -1).reshape(-1, k)
        target = target.movedim(1, -1).reshape(-1, k) if soft else target.reshape(-1)
    if soft:
        return Flat(logits, target, None, shape)
    target = target.long()
    reserved = 0 <= ignore_index < k  # a class itself is to be left out
    if not reserved and host(target) and len(target) and 0 <= (labels := target.numpy()).min() <= labels.max() < k:
        return Flat(logits, target, None, shape)
    valid = target != ignore_index
    target = target.masked_fill(~valid, 0)
    if host(target) and bool(((target < 0) | (target >= k)).any()):
        bad = int(target[(target < 0) | (target >= k)][0])
        raise ValueError(f"target has class {bad}, which is not in [0, {k}) and not ignore_index={ignore_index}")
    return Flat(logits, target, valid, shape)


def reduce(each: Tensor, flat: Flat, reduction: str) -> Tensor:
    """`(M,)` losses to a scalar, or to `(B, *)`; 0, attached to the graph, where all are ignored.

    The mean is over what is not ignored, as in `nn.CrossEntropyLoss`: under data parallelism that of this rank's part.
    """
    if flat.valid is not None:
        each = torch.where(flat.valid, each, torch.zeros_like(each))
    if reduction == "none":
        return each.reshape(flat.shape)
    if reduction == "sum" or (flat.valid is None and not len(each)):
        return each.sum()
    return each.mean() if flat.valid is None else each.sum() / flat.valid.sum().clamp(min=1)


def _what(x: Tensor) -> str:
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"
