"""What every built-in network is: features, then one linear layer."""

from __future__ import annotations

from torch import Tensor, nn


class Backbone(nn.Module):
    """A network whose output is `head(features(x))`.

    Methods that look inside a network (gradient norms of the last layer, local dimensionality, contrastive
    pre-training) need these two names and nothing else, so a network of the user's own that has them serves as well.

    Attributes:
        head: the last layer, `(B, F) -> (B, num_outputs)`.
        channels_last: the engine may lay weights and activations out with channels last, which is faster on a CPU: two
            thirds of the time for the small CNN, nine tenths for ResNets.
    """

    head: nn.Linear
    channels_last: bool = True

    def features(self, x: Tensor) -> Tensor:
        """Float input `(B, *in_shape)` to what the last layer sees, `(B, F)`."""
        raise TypeError(f"{type(self).__name__} must define features(x)")

    def forward(self, x: Tensor) -> Tensor:
        """Logits or regression outputs, `(B, num_outputs)`."""
        out: Tensor = self.head(self.features(x))
        return out
