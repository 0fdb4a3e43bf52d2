"""Early stopping on the noisy validation score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class EarlyStopping:
    """Remembers the best epoch, and its weights if they are to be kept.

    Args:
        patience: epochs to wait for an improvement; `None` never stops and keeps no weights.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.epoch, self.waited = 0, 0
        self.best: float | None = None
        self.weights: dict[str, Tensor] = {}

    def watch(self, epoch: int, score: float, weights: Mapping[str, Tensor]) -> None:
        """Take in the score of an epoch (from 1); higher is better. `weights` are what predicted it."""
        self.waited += 1
        if self.best is None or score > self.best:
            self.epoch, self.best, self.waited = epoch, score, 0
            if self.patience is not None:
                self.weights = {k: v.detach().clone() for k, v in weights.items()}

    @property
    def stopped(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Everything but the setting."""
        return {k: v for k, v in vars(self).items() if k != "patience"}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict`."""
        vars(self).update(state)
