"""A network, or its last layer, as a function of its parameters: to see what a gradient step would change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn
from torch.func import functional_call

from labelproof.core.nets import features, last_layer, still_statistics, unseen, with_features
from labelproof.functional.meta import Tape

#: From parameters by name to outputs `(B, O)`.
Outputs = Callable[[Mapping[str, Tensor]], Tensor]


class Passes(NamedTuple):
    """One forward pass, and what other parameters would have said.

    Attributes:
        out: `(B, O)` outputs on the batch, with the graph for the step itself. Running statistics have moved once.
        params: what may be changed, by name; frozen parameters are left out.
        again: from other parameters to outputs on the batch; for forward mode, as the tape remembers values.
        elsewhere: from other parameters to outputs on other samples.
    """

    out: Tensor
    params: dict[str, Tensor]
    again: Outputs
    elsewhere: Outputs


def of_last_layer(net: nn.Module, x: Tensor, other: Tensor) -> Passes:
    """The last layer changes: the other samples take one pass without gradient, all else is small.

    Args:
        net: in training mode. All passes normalise by their batch; those of other parameters leave statistics alone.
        x: the batch.
        other: other samples.

    >>> import torch
    >>> passes = of_last_layer(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), *torch.ones(2, 5, 2))
    >>> list(passes.params), torch.equal(passes.elsewhere(passes.params), passes.out)
    (['weight', 'bias'], True)
    """
    out, seen = with_features(net, x)
    head, seen = last_layer(net), seen.detach()
    with unseen(net):
        there = features(net, other)
    return Passes(
        out,
        _learned(head),
        lambda p: _call(head, p, seen),
        lambda p: _call(head, p, there),
    )


def of_network(net: nn.Module, x: Tensor, other: Tensor) -> Passes:
    """All of the network changes; arguments as for `of_last_layer`."""
    tape = Tape(x.device)
    with tape.recording():
        out = net(x)

    def again(p: Mapping[str, Tensor]) -> Tensor:
        with still_statistics(net), tape.replaying():
            return _call(net, p, x)

    def elsewhere(p: Mapping[str, Tensor]) -> Tensor:
        with still_statistics(net):
            return _call(net, p, other)

    return Passes(out, _learned(net), again, elsewhere)


def _call(module: nn.Module, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    out: Tensor = functional_call(module, dict(params), x)
    return out


def _learned(module: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
