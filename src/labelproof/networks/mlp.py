"""Multi-layer perceptron: two hidden layers of 256 units with ReLU.

The textbook network (Rumelhart, Hinton & Williams, Nature 323, 1986, with the ReLU of Nair & Hinton, ICML 2010).
It has no BatchNorm on purpose: every sample is treated by itself, whatever else is in the batch.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from labelproof.networks.base import Backbone

_WIDTH = 256


class MLP(Backbone):
    """`(B, *in_shape)` of any shape is flattened to rows first."""

    def __init__(self, in_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(in_shape), _WIDTH),
            nn.ReLU(),
            nn.Linear(_WIDTH, _WIDTH),
            nn.ReLU(),
        )
        self.head = nn.Linear(_WIDTH, num_outputs)

    def features(self, x: Tensor) -> Tensor:
        """`(B, *in_shape) -> (B, 256)`."""
        out: Tensor = self.layers(x)
        return out
