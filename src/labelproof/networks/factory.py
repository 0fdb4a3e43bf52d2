"""Whatever the user calls a network, as a function that makes one per peer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

from torch import nn

from labelproof.core.encoder import Encoder, Started
from labelproof.networks import build

NetworkLike = str | nn.Module | Callable[..., nn.Module] | Encoder


def as_factory(network: NetworkLike, in_shape: Sequence[int], num_outputs: int) -> Callable[[int], nn.Module]:
    """A function from the number of a peer to its network.

    Args:
        network: the name of a built-in network; an `nn.Module`, which the first peer starts as a copy of (its weights
            may be pre-trained) and further peers as copies with fresh weights; or a callable that returns a module,
            called with those of `in_shape=` and `num_outputs=` that its signature names; or an `Encoder`, which all
            peers start from.
        in_shape: shape of one input.
        num_outputs: width of the last layer.

    Raises:
        ValueError: `network` is none of these, or a further peer cannot be given fresh weights.

    >>> make = as_factory(lambda num_outputs: nn.Linear(4, num_outputs), (4,), 3)
    >>> make(0).out_features
    3
    """
    if isinstance(network, str):
        name = network
        return lambda peer: build(name, in_shape, num_outputs)
    if isinstance(network, Encoder):
        if "network" not in network.about:
            raise ValueError("the encoder does not say of which network it is: about={'network': NAME} must name it")
        return Started(as_factory(network.about["network"], in_shape, num_outputs), network)
    if isinstance(network, nn.Module):
        module = network
        return lambda peer: deepcopy(module) if peer == 0 else _fresh(module)
    if callable(network):
        offered = {"in_shape": tuple(in_shape), "num_outputs": num_outputs}
        make, accepted = network, _accepted(network, offered)
        first: list[nn.Module] = []

        def build_peer(peer: int) -> nn.Module:
            made = make(**accepted)
            if first and made is first[0]:  # it hands out one module again and again: treat it as one
                return _fresh(made)
            first.append(made)
            return deepcopy(made)

        return build_peer
    raise ValueError(
        f"network={network!r} must be the name of a built-in network, an nn.Module or a callable that returns one"
    )


def network_name(network: NetworkLike) -> str:
    """What to call it in records: the built-in name, or the name of the user's class or function."""
    if isinstance(network, str):
        return network
    if isinstance(network, Encoder):
        return f"{network.about.get('network')} from {'frozen ' * network.frozen}encoder {network.digest}"
    return type(network).__name__ if isinstance(network, nn.Module) else getattr(network, "__name__", repr(network))


def _accepted(network: Callable[..., nn.Module], offered: dict[str, Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(network).parameters.values()
    except (TypeError, ValueError):  # some builtins and C extensions have no signature
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return offered
    return {p.name: offered[p.name] for p in parameters if p.name in offered}


def _fresh(module: nn.Module) -> nn.Module:
    copy = deepcopy(module)
    parts = list(copy.named_modules())
    wholes = [named for named in parts if next(named[1].children(), None) is not None]
    # What draws the weights of its parts has the last word over them: inner before outer, after the single layers.
    for name, part in [named for named in parts if named not in wholes] + wholes[::-1]:
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
        elif next(part.parameters(recurse=False), None) is not None:
            raise ValueError(
                f"the network's part {name or type(part).__name__!r} has weights but no reset_parameters(), so the "
                "second network would start as a copy of the first: pass a function that returns a new network"
            )
    return copy
