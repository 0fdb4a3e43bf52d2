"""Forward passes, counted by hooks: what a method computes, whatever the machine."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Passes:
    """Counts the rows that enter networks, apart for passes with and without gradient.

    A network is counted where its first layer with weights is called: `features(x)` enters it as well as `net(x)`.
    Networks a method brings itself (MentorNet's mentor) are not counted: they see a few numbers per sample.
    """

    def __init__(self) -> None:
        self.with_gradient = self.without = 0

    def watch(self, net: nn.Module) -> nn.Module:
        """The same network, counted from now on, and with it every copy made of it (twins, snapshots)."""

        def count(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            # a closure, which copies of the network share
            if out.requires_grad:
                self.with_gradient += len(out)
            else:
                self.without += len(out)

        first = next(m for m in net.modules() if any(True for _ in m.parameters(recurse=False)))
        first.register_forward_hook(count)
        return net

    def take(self, samples: int) -> list[float]:
        """Passes per sample, with gradient and without, since the last call.

        Args:
            samples: rows that were trained on meanwhile, each as often as it was.
        """
        found = [round(n / samples, 4) for n in (self.with_gradient, self.without)]
        self.with_gradient = self.without = 0
        return found


def words(counts: Any) -> str:
    """Passes with gradient + without.

    >>> words([2.0, 0.128])
    '2 + 0.1'
    """
    return " + ".join(f"{round(n, 1):g}" for n in counts)
