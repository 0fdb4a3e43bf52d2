"""The two losses that remember samples, made so that tests can tell whether their state is right."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from labelproof.losses import ELRLoss, SOPLoss


class BoldSOP(SOPLoss):
    """SOP whose u and v start at 0.1, not 1e-8, where errors would pass for rounding."""

    def __init__(self, num_samples: int, num_classes: int) -> None:
        super().__init__(num_samples, num_classes)
        nn.init.normal_(self.u.weight, std=0.1)
        nn.init.normal_(self.v.weight, std=0.1)


#: Name -> a fresh loss for (N, K). What is random in it comes from torch's generator.
REMEMBERING: dict[str, Callable[[int, int], nn.Module]] = {"elr": ELRLoss, "sop": BoldSOP}


def errors_of(criterion: nn.Module, **rates: float) -> list[torch.optim.Optimizer]:
    """The optimiser of u and v, if the loss has any."""
    return [criterion.optimizer(**rates)] if isinstance(criterion, SOPLoss) else []
