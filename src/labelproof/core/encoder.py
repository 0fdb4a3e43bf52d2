"""`Encoder`: a network trained before, without its last layer, and how its inputs are to be scaled.

Both belong together: an encoder that is fed inputs scaled in another way loads without complaint and performs badly.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from labelproof.core.nets import linear_head

#: Share of a network's tensors that an encoder must have for it to be loaded.
LEAST = 0.95


class Match(NamedTuple):
    """What became of an encoder's tensors.

    Attributes:
        matched: names that were loaded.
        missing: names that the network has and the encoder has not, or in another shape.
        unused: names that the encoder has and the network has not.
    """

    matched: list[str]
    missing: list[str]
    unused: list[str]

    def __str__(self) -> str:
        said = f"{len(self.matched)} of {len(self.matched) + len(self.missing)} tensors matched"
        for name, values in (("missing", self.missing), ("not used", self.unused)):
            said += f"; {name}: {_few(values)}" if values else ""
        return said


@dataclass(frozen=True, eq=False, repr=False)
class Encoder:
    """The part of a trained network that comes before its last layer.

    Attributes:
        weights: tensors by name, as in the network's `state_dict`, those of the last layer left out.
        mean, scale: `(C,)` or `(D,)` float32; what the network sees is `(x - mean) * scale`, per channel of images or
            per column of rows, x as the data has it (0 to 255 for photographs in bytes).
        top: the largest value of the images it was trained on, where they were images; 1 and 255 are told apart.
        about: the name of the network, for `labelproof.networks`; shape of an input and what trained it, for people.
        frozen: whether it stays as it is while the last layer is trained.
    """

    weights: Mapping[str, Tensor]
    mean: Tensor
    scale: Tensor
    top: float | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    frozen: bool = False

    def into(self, network: nn.Module, *, zero_head: bool = True) -> Match:
        """Load the weights into a network of the same architecture.

        Args:
            network: changed in place; its last layer must be a `Linear`.
            zero_head: start the last layer at zero, so that no class is preferred (Ghosh & Lan, CVPRW 2021).

        Returns:
            What was matched; a part that was not is warned of.

        Raises:
            ValueError: fewer than 95 % of the network's tensors, those of the last layer aside, were found.
        """
        own, head = body(network), linear_head(network)
        fits = [name for name, tensor in own.items() if name in self.weights and _same(tensor, self.weights[name])]
        match = Match(fits, sorted(own.keys() - set(fits)), sorted(self.weights.keys() - own.keys()))
        name = self.about.get("name", "the encoder")
        if not match.matched or len(match.matched) < LEAST * len(own):
            made = self.about.get("network")
            raise ValueError(
                f"{name} does not fit this network: {match}. At least {LEAST:.0%} must match"
                + (f"; it was made for network={made!r}: use that one" if made else "; is it of another architecture?")
            )
        if match.missing or match.unused:
            warnings.warn(f"{name}: {match}", stacklevel=3)
        with torch.no_grad():
            for key in match.matched:
                own[key].copy_(self.weights[key])
            if zero_head:
                for parameter in head.parameters():
                    parameter.zero_()
        if self.frozen:
            freeze(network)
        return match

    def __repr__(self) -> str:
        name = self.about.get("network", "?")
        return f"Encoder({name!r}, {len(self.weights)} tensors, {self.digest}{', frozen' * self.frozen})"

    @property
    def digest(self) -> str:
        """A short hash of weights and scaling."""
        h = hashlib.blake2b(digest_size=4)
        for name, tensor in [*sorted(self.weights.items()), ("mean", self.mean), ("scale", self.scale)]:
            h.update(name.encode())
            h.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return h.hexdigest()


class Started:
    """A factory of networks that start from an encoder.

    The first network's last layer starts at zero. Those of further peers are drawn, so that two networks that see the
    same batches do not stay one and the same.

    Args:
        make: from the number of a peer to its network.
        encoder: what they start from.

    Attributes:
        match: what became of the encoder's tensors, once a network was made.
    """

    def __init__(self, make: Callable[[int], nn.Module], encoder: Encoder) -> None:
        self.make, self.encoder = make, encoder
        self.match: Match | None = None

    def __call__(self, peer: int) -> nn.Module:
        network = self.make(peer)
        self.match = self.encoder.into(network, zero_head=peer == 0)
        return network


def body(network: nn.Module) -> dict[str, Tensor]:
    """The network's tensors by name, those of its last layer left out."""
    head = linear_head(network)
    inside = {id(t) for t in (*head.parameters(), *head.buffers())}
    return {name: t for name, t in network.state_dict(keep_vars=True).items() if id(t) not in inside}


def freeze(network: nn.Module) -> None:
    """Train the last layer alone: nothing else gets gradients, BatchNorm's statistics rest (see `Nets.train`)."""
    head = linear_head(network)
    network.requires_grad_(False)
    head.requires_grad_(True)
    network.frozen = True  # type: ignore[assignment]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.is_floating_point() == b.is_floating_point()


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
