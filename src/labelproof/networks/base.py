"""What every built-in network is: features, then one linear layer; and what its convolutions are normalised with."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

#: Makes the layer that normalises so many channels of `(B, C, H, W)`: `nn.BatchNorm2d` or `group_norm`.
Norm = Callable[[int], nn.Module]
_GROUPS = 32


class Backbone(nn.Module):
    """A network whose output is `head(features(x))`.

    Methods that look inside a network (gradient norms of the last layer, local dimensionality, contrastive
    pre-training) need these two names and nothing else, so a network of the user's own that has them serves as well.

    Attributes:
        head: the last layer, `(B, F) -> (B, num_outputs)`.
    """

    head: nn.Linear

    @property
    def channels_last(self) -> bool:
        """Whether the engine may lay weights and activations out with channels last, because that is faster.

        Tensor cores of a GPU want it so. On a CPU it takes two thirds of the time for the small CNN, nine tenths for
        ResNets; but with GroupNorm, which has no code of its own for it on a GPU either, between as much
        time (wide networks) and 1.4 times as much (ResNet-32 on 28x28), so these stay as they are.
        """
        return not any(isinstance(module, nn.GroupNorm) for module in self.modules())

    def features(self, x: Tensor) -> Tensor:
        """Float input `(B, *in_shape)` to what the last layer sees, `(B, F)`."""
        raise TypeError(f"{type(self).__name__} must define features(x)")

    def forward(self, x: Tensor) -> Tensor:
        """Logits or regression outputs, `(B, num_outputs)`."""
        out: Tensor = self.head(self.features(x))
        return out


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm in 32 groups, the number of Wu & He, "Group Normalization", ECCV 2018.

    Fewer where 32 do not divide the channels: one per channel below 32, else as many of the 32 as do (16 for the 48 and
    80 channels of Inception-ResNet-v2).

    Every sample is normalised by itself, whatever else is in the batch, and there are no running statistics: training
    and evaluation compute the same. As many parameters as BatchNorm.

    Args:
        channels: how many there are.

    >>> group_norm(16).num_groups, group_norm(64).num_groups, group_norm(48).num_groups
    (16, 32, 16)
    """
    return nn.GroupNorm(channels if channels < _GROUPS else math.gcd(_GROUPS, channels), channels)
