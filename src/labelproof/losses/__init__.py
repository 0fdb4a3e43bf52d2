"""Losses as plain modules, for people who keep their own training loop.

Each takes the place of `nn.CrossEntropyLoss`: `(B, K)` logits and `(B,)` labels, or `(B, K, H, W)` and `(B, H, W)`,
with `ignore_index` and `reduction`. All compute in fp32, also under autocast. What they remember is in their
`state_dict`: save it with the model.

`ELRLoss` and `SOPLoss` remember each sample, so they are also given the samples' row numbers in the whole training set:

>>> import torch
>>> from labelproof.losses import ELRLoss
>>> criterion = ELRLoss(num_samples=50, num_classes=3)
>>> logits, target, index = torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 2]), torch.tensor([7, 31])
>>> criterion(logits, target, index).backward()

With `lp.with_index(dataset)` a loader gives `(x, target, index)`, and the last two may also come as one pair, so that
three lines of a loop change: the loader's dataset, the criterion, and `for x, *target in loader`.

>>> criterion(logits, [target, index]).backward()

The other losses ignore the index, so that one loop serves all.
"""

from __future__ import annotations

from labelproof.losses.index import IndexWarning
from labelproof.losses.memory import ELRLoss, SOPLoss
from labelproof.losses.robust import (
    BackwardLoss,
    BootstrapLoss,
    ForwardLoss,
    GCELoss,
    MAELoss,
    SCELoss,
    SmallLoss,
)

__all__ = [
    "BackwardLoss",
    "BootstrapLoss",
    "ELRLoss",
    "ForwardLoss",
    "GCELoss",
    "IndexWarning",
    "MAELoss",
    "SCELoss",
    "SOPLoss",
    "SmallLoss",
]
