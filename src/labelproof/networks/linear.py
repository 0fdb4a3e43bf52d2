"""One linear layer: logistic or linear regression, for inputs that are features already, such as embeddings."""

from __future__ import annotations

import math

from torch import Tensor, nn

from labelproof.networks.base import Backbone


class Linear(Backbone):
    """`(B, *in_shape)` of any shape is flattened to rows first, and that is all its features are.

    Training takes seconds on a column of embeddings, because nothing but the last layer is trained.

    >>> import torch
    >>> Linear((384,), 4).features(torch.zeros(2, 384)).shape
    torch.Size([2, 384])
    """

    def __init__(self, in_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(math.prod(in_shape), num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """`(B, *in_shape) -> (B, F)`, F the product of `in_shape`."""
        return x.flatten(1)
