"""What every built-in network is: features, then one linear layer; and what its convolutions are normalised with."""

from __future__ import annotations

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
        """Whether the engine may lay weights and activations out with channels last on a CPU, because that is faster.

        It takes two thirds of the time for the small CNN, nine tenths for ResNets; but with GroupNorm between as much
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
    """GroupNorm in 32 groups, the number of Wu & He, "Group Normalization", ECCV 2018; at most one per channel.

    Every sample is normalised by itself, whatever else is in the batch, and there are no running statistics: training
    and evaluation compute the same. As many parameters as BatchNorm.

    Args:
        channels: below 32, or a multiple of 32.

    >>> group_norm(16).num_groups, group_norm(64).num_groups
    (16, 32)
    """
    return nn.GroupNorm(min(_GROUPS, channels), channels)
