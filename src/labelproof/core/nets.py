"""`Nets`: the networks a method trains, and their moving-average twins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from labelproof.functional.ranks import world_size

T = TypeVar("T", Tensor, tuple[Tensor, ...])


class Nets(nn.Module):
    """Peers, trained by gradient, each with an optional twin that follows it by exponential moving average.

    Twins start as copies, are never trained, and average BatchNorm's running statistics along with the parameters, so
    that they can be evaluated as they stand.

    Args:
        peers: one network per peer, each initialised on its own.
        twins: whether to keep a twin of each.

    >>> nets = Nets([nn.Linear(2, 1), nn.Linear(2, 1)], twins=True)
    >>> len(nets), nets[1] is nets.peers[1], nets.twins[0].weight.requires_grad
    (2, True, False)
    """

    def __init__(self, peers: Sequence[nn.Module], *, twins: bool = False) -> None:
        super().__init__()
        self.peers = nn.ModuleList(peers)
        self.twins = nn.ModuleList(deepcopy(p).requires_grad_(False).eval() for p in peers if twins)

    def __getitem__(self, k: int) -> nn.Module:
        return self.peers[k]

    def __len__(self) -> int:
        return len(self.peers)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self.peers)

    def train(self, mode: bool = True) -> Nets:
        """Peers follow `mode`; twins stay in evaluation mode, for a forward pass of theirs must not move statistics.

        So does all but the last layer of a network that is `frozen` (`labelproof.core.encoder.freeze`).
        """
        super().train(mode)
        self.twins.eval()
        for peer in self.peers:
            if getattr(peer, "frozen", False):
                peer.eval()
                last_layer(peer).train(mode)
        return self

    @torch.no_grad()
    def update_twins(self, decay: float) -> None:
        r"""$\theta' \leftarrow d\,\theta' + (1-d)\,\theta$ for parameters and float buffers; counters are copied."""
        for peer, twin in zip(self.peers, self.twins, strict=True):
            mine, theirs = _tensors(twin), _tensors(peer)
            floats = [(a, b) for a, b in zip(mine, theirs, strict=True) if a.is_floating_point()]
            torch._foreach_lerp_([a for a, _ in floats], [b for _, b in floats], 1 - decay)
            for a, b in zip(mine, theirs, strict=True):
                if not a.is_floating_point():
                    a.copy_(b)


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


def side_by_side(calls: Sequence[Callable[[], T]], like: Tensor) -> list[T]:
    """Run calls that do not depend on each other at the same time, where the device can.

    On a CUDA GPU each gets a stream of its own, on which its backward pass will run as well; on a CPU, which one call
    fills, and under data parallelism, whose hooks expect one stream, they run one after another.

    Args:
        calls: forward passes of different networks, each returning a tensor or a tuple of them.
        like: a tensor on the device they run on.

    Returns:
        What they returned, in order.

    >>> nets = Nets([nn.Linear(2, 1), nn.Linear(2, 1)])
    >>> x = torch.ones(3, 2)
    >>> [out.shape for out in side_by_side([lambda net=net: net(x) for net in nets], x)]
    [torch.Size([3, 1]), torch.Size([3, 1])]
    """
    if not like.is_cuda or world_size() > 1 or len(calls) == 1:
        return [call() for call in calls]
    here = torch.cuda.current_stream(like.device)
    results = []
    for k, call in enumerate(calls):
        stream = _stream(like.device, k)
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            results.append(call())
    for k, result in enumerate(results):
        here.wait_stream(_stream(like.device, k))
        for tensor in result if isinstance(result, tuple) else (result,):
            tensor.record_stream(here)  # its memory belongs to the other stream, which must not reuse it too early
    return results


def outputs(nets: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    """What each of some networks says of `x`, side by side."""
    return side_by_side([partial(net, x) for net in nets], x)


@cache
def _stream(device: torch.device, k: int) -> torch.cuda.Stream:
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


@contextmanager
def still_statistics(net: nn.Module) -> Iterator[None]:
    """Forward passes in here normalise by the batch, as in training, and leave BatchNorm's running statistics alone.

    For a pass that only scores samples, beside the one that trains.

    >>> norm = nn.BatchNorm1d(2)
    >>> with still_statistics(norm):
    ...     _ = norm(torch.randn(8, 2))
    >>> int(norm.num_batches_tracked)
    0
    """
    kinds = nn.modules.batchnorm._NormBase  # BatchNorm and InstanceNorm
    norms = [m for m in net.modules() if isinstance(m, kinds) and m.training]
    kept = [(m, name, buffer) for m in norms for name, buffer in m._buffers.items()]
    for m, name, _ in kept:
        setattr(m, name, None)  # without running statistics a layer takes the batch's
    try:
        yield
    finally:
        for m, name, buffer in kept:
            setattr(m, name, buffer)


@contextmanager
def unseen(net: nn.Module) -> Iterator[None]:
    """For passes before the one that trains: normalised by the batch, without gradient, statistics left alone."""
    with still_statistics(net), torch.no_grad():
        yield
    torch.clear_autocast_cache()  # before torch 2.11 it hands weights cast without gradient to the next pass


def preview(nets: Nets, x: Tensor) -> Tensor:
    """What all peers say of `x` before the pass that trains, see `unseen`.

    Returns:
        `(peers, B, O)` outputs.

    >>> preview(Nets([nn.Linear(2, 1), nn.Linear(2, 1)]), torch.ones(3, 2)).shape
    torch.Size([2, 3, 1])
    """
    with unseen(nets):
        return torch.stack(outputs(nets, x))


class Snapshot(nn.Module):
    """A copy of a network as it was at some time, a part of every checkpoint; always in evaluation mode.

    Args:
        network: its shapes and first values.

    >>> net = nn.Linear(2, 1)
    >>> kept = Snapshot(net)
    >>> _ = nn.init.zeros_(net.weight)
    >>> kept.restore(net); bool(net.weight.any())
    True
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.net = deepcopy(network).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Snapshot:
        """It stays in evaluation mode."""
        return self

    @torch.no_grad()
    def take(self, network: nn.Module) -> None:
        """Remember the network as it is now."""
        torch._foreach_copy_(_tensors(self.net), _tensors(network))

    @torch.no_grad()
    def restore(self, network: nn.Module) -> None:
        """Put the network back to what was remembered."""
        torch._foreach_copy_(_tensors(network), _tensors(self.net))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


def with_features(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """One forward pass: the outputs `(B, O)`, and what the last layer saw, `(B, F)`.

    The last layer is that of `last_layer`.

    Raises:
        ValueError: the network has neither, or does not use it.

    >>> out, seen = with_features(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.ones(5, 4))
    >>> out.shape, seen.shape
    (torch.Size([5, 2]), torch.Size([5, 3]))
    """
    seen: list[Tensor] = []

    def look(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(inputs[0] if inputs else named["input"])

    hook = last_layer(network).register_forward_pre_hook(look, with_kwargs=True)
    try:
        out = network(x)
    finally:
        hook.remove()
    if not seen:
        raise ValueError(f"{type(network).__name__} does not use its last layer: call the one it uses `head`")
    return out, seen[-1].flatten(1)


def last_layer(network: nn.Module) -> nn.Module:
    """The network's `head`, or else its last `Linear`.

    Raises:
        ValueError: the network has neither.
    """
    head = getattr(network, "head", None)
    layers = [head] if isinstance(head, nn.Module) else [m for m in network.modules() if isinstance(m, nn.Linear)]
    if not layers:
        name = type(network).__name__
        raise ValueError(f"{name} has no Linear layer: add features(x), and call its last layer `head`")
    return layers[-1]


def linear_head(network: nn.Module) -> nn.Linear:
    """The last layer, which must be a `Linear`.

    Raises:
        ValueError: it is none.
    """
    layer = last_layer(network)
    if not isinstance(layer, nn.Linear):
        raise ValueError(f"the last layer of {type(network).__name__} is {type(layer).__name__}, and must be a Linear")
    return layer


def features(network: nn.Module, x: Tensor) -> Tensor:
    """What the last layer sees, `(B, F)`: `network.features(x)` if it is a method, else from `with_features`.

    Raises:
        ValueError: the network has neither that method nor a last layer.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> features(net, torch.ones(5, 4)).shape
    torch.Size([5, 3])
    """
    own = getattr(network, "features", None)
    if callable(own) and not isinstance(own, nn.Module):  # a submodule of that name is the convolutions' alone
        out: Tensor = own(x)
        return out.flatten(1)
    return with_features(network, x)[1]
