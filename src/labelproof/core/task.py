"""What is being learned: how outputs become losses, probabilities and residuals, for any method.

A method that asks its task, and never `cross_entropy` itself, serves classification and regression alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch.nn.functional as F
from torch import Tensor

from labelproof.functional.losses import cross_entropy, squared_error


class Task(Protocol):
    """The contract. B rows, O network outputs.

    Attributes:
        kind: `"classification"` or `"regression"`.
        num_outputs: O, the width of the network's last layer.
        metric: name of what `score` measures once averaged.
    """

    kind: ClassVar[str]
    metric: ClassVar[str]

    @property
    def num_outputs(self) -> int: ...

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        """`(B, O)` and targets (hard, or soft as `encode` makes them) to `(B,)`; never reduced, always in fp32."""

    def prob(self, out: Tensor) -> Tensor:
        """`(..., O)` outputs to the quantity predicted, fp32: class probabilities, or the regression value itself."""

    def residual(self, out: Tensor, target: Tensor) -> Tensor:
        """Gradient of `loss` with respect to `out`, `(B, O)` fp32: p - onehot(y), or f - y."""

    def encode(self, target: Tensor) -> Tensor:
        """Targets as `(B, O)` floats that can be averaged: one-hot rows, or the values themselves."""

    def score(self, prob: Tensor, target: Tensor) -> Tensor:
        """`(B,)` fp32: 1 where the predicted class is the target, or the squared error."""


@dataclass(frozen=True)
class Classification:
    """One of `num_classes` classes.

    >>> import torch
    >>> task = Classification(3)
    >>> task.residual(torch.zeros(1, 3), torch.tensor([2]))
    tensor([[ 0.3333,  0.3333, -0.6667]])
    """

    num_classes: int
    kind: ClassVar[str] = "classification"
    metric: ClassVar[str] = "accuracy"

    @property
    def num_outputs(self) -> int:
        return self.num_classes

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(out, target)

    def prob(self, out: Tensor) -> Tensor:
        return out.float().softmax(-1)

    def residual(self, out: Tensor, target: Tensor) -> Tensor:
        return self.prob(out) - self.encode(target)

    def encode(self, target: Tensor) -> Tensor:
        return target if target.is_floating_point() else F.one_hot(target, self.num_classes).float()

    def score(self, prob: Tensor, target: Tensor) -> Tensor:
        return (prob.argmax(1) == target).float()


@dataclass(frozen=True)
class Regression:
    """`num_targets` real values, in whatever units the data feed chose (the engine standardises them).

    >>> import torch
    >>> Regression(2).residual(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 2.0]]))
    tensor([[1., 0.]])
    """

    num_targets: int
    kind: ClassVar[str] = "regression"
    metric: ClassVar[str] = "mse"

    @property
    def num_outputs(self) -> int:
        return self.num_targets

    def loss(self, out: Tensor, target: Tensor) -> Tensor:
        return squared_error(out, target)

    def prob(self, out: Tensor) -> Tensor:
        return out.float()

    def residual(self, out: Tensor, target: Tensor) -> Tensor:
        return out.float() - target.float()

    def encode(self, target: Tensor) -> Tensor:
        return target.float()

    def score(self, prob: Tensor, target: Tensor) -> Tensor:
        return (prob - target.float()).square().mean(1)
