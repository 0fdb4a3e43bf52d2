"""Where the predictions of clean and of wrong labels wander during training: the simplex figure of the ELR paper."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from labelproof.functional.ranks import rank, sum_over_ranks

#: Cells along each side of the triangle.
SIDE = 30


class Paths:
    """Counts predictions on the lattice of rounded shares of the true class, of a second one and of the rest.

    The second class is the given one where that is wrong, else the one after the true class.

    Args:
        truth: true labels; only its device matters.
        num_classes: K.

    Attributes:
        epochs: per finished epoch `(2, SIDE + 1, SIDE + 1)` int32 counts: of right and of wrong labels, by rounded
            share of the true class and of the second.
    """

    def __init__(self, truth: Tensor, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(2 * (SIDE + 1) ** 2, device=truth.device, dtype=torch.int64)
        self.epochs: list[Tensor] = []

    @torch.no_grad()
    def add(self, prob: Tensor, truth: Tensor, given: Tensor) -> None:
        """Count one batch.

        Args:
            prob: `(B, K)` predictions.
            truth: `(B,)` true classes.
            given: `(B,)` given classes.
        """
        wrong = truth != given
        second = torch.where(wrong, given, (truth + 1) % self.num_classes)
        shares = prob.gather(1, torch.stack([truth, second], dim=1)).nan_to_num(0).mul(SIDE).round().long()
        cell = (wrong * (SIDE + 1) + shares[:, 0]) * (SIDE + 1) + shares[:, 1]
        self.counts.index_add_(0, cell, torch.ones_like(cell))

    def end_epoch(self) -> None:
        """Close an epoch."""
        self.epochs.append(sum_over_ranks(self.counts).reshape(2, SIDE + 1, SIDE + 1).cpu().to(torch.int32))
        self.counts.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Finished epochs, and the counts of all ranks in the present one. A collective call."""
        done = torch.stack(self.epochs) if self.epochs else torch.empty(0, 2, SIDE + 1, SIDE + 1, dtype=torch.int32)
        return {"counts": sum_over_ranks(self.counts).cpu(), "epochs": done}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore `state_dict`; the first rank holds what all had counted."""
        self.counts.copy_(state["counts"]) if rank() == 0 else self.counts.zero_()
        self.epochs = list(state["epochs"])
