"""Losses as plain modules, for people who keep their own training loop.

>>> import torch
>>> from labelproof.losses import ELRLoss
>>> criterion = ELRLoss(num_samples=50, num_classes=3)
>>> logits, target, index = torch.zeros(2, 3, requires_grad=True), torch.tensor([0, 2]), torch.tensor([7, 31])
>>> criterion(logits, target, index).backward()
"""

from __future__ import annotations

from torch import Tensor, nn

from labelproof.core.method import in_range
from labelproof.core.state import SampleTable
from labelproof.functional.losses import cross_entropy
from labelproof.functional.regularisers import EPS, elr_term

__all__ = ["ELRLoss"]


class ELRLoss(nn.Module):
    """Early-learning regularisation (Liu et al., NeurIPS 2020) as a drop-in for `nn.CrossEntropyLoss`.

    Besides logits and labels it needs the row number of each sample in the *whole* training set. Its memory is in its
    `state_dict`: save it with the model. The equations are those of `labelproof.methods.ELR`.

    Args:
        num_samples: N, samples in the whole training set (not in a batch).
        num_classes: K.
        lam: weight of the regulariser.
        beta: momentum of the targets, in [0, 1).

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(self, num_samples: int, num_classes: int, *, lam: float = 3.0, beta: float = 0.7) -> None:
        super().__init__()
        self.lam = in_range("lam", lam, 0, float("inf"), closed="left")
        self.beta = in_range("beta", beta, 0, 1, closed="left")
        self.t = SampleTable(num_samples, num_classes)

    def forward(self, logits: Tensor, target: Tensor, index: Tensor) -> Tensor:
        """The mean loss of a batch; updates the memory of its samples.

        Args:
            logits: `(B, K)`.
            target: `(B,)` int64.
            index: `(B,)` int64, rows of the samples in the training set.

        Raises:
            IndexError: an index is not in [0, N).
        """
        p = logits.float().softmax(1).clamp(EPS, 1 - EPS)
        t = self.t.ema(index, p.detach() / p.detach().sum(1, keepdim=True), self.beta)
        return (cross_entropy(logits, target) + self.lam * elr_term(p, t)).mean()
