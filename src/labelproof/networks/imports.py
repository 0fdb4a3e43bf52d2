"""Weights of other people's checkpoints under the names of our networks.

A checkpoint differs from another in three ways, none of which says anything about its network: the dictionaries the
weights lie in (`state_dict`, `model`, `network`), the prefixes of their names (`module.`, `encoder_q.`, `backbone.`,
`convnet.`, `f.`), and how a ResNet's parts are called. So dictionaries become prefixes (`tensors_in`), a network starts
wherever the names that tell it (`Naming.anchors`) stand behind the same prefix, and its parts are renamed by the rules
of `NAMINGS`. What no rule is for is a last layer or a projection head, and left out.

Namings were read from the sources of torchvision, timm 1.0, lightly 1.6, AndrewAtanov/simclr-pytorch, sthalles/SimCLR,
leftthomas/SimCLR, p3i0t/SimCLR-CIFAR10, Spijkervet/SimCLR and HobbitLong/SupContrast.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from labelproof.core.encoder import LEAST, Match, body
from labelproof.networks import build

#: The networks that a checkpoint may be of, tried in turn unless one is named.
CANDIDATES = (
    *("resnet18", "resnet34", "resnet50", "resnet18-imagenet", "resnet34-imagenet", "resnet50-imagenet"),
    "inception-resnet-v2",
)
#: In a prefix, these mark a network that follows another one, which is the one to take.
_FOLLOWERS = ("encoder_k", "momentum", "target", "teacher", "ema")
#: BatchNorm's count of batches, of which old files have none and which nothing here depends on.
_COUNTER = "num_batches_tracked"
_SIDE = 75  # pixels that every image network takes


class Naming(NamedTuple):
    """How somebody calls the parts of a network.

    Attributes:
        anchors: names that, behind one and the same prefix, show that a network starts there.
        rules: pairs of a pattern for the start of a name and what it is called here. The first one that fits counts.
        inner: pairs of a pattern for the rest of a name and what it is called here; all that fit count.
    """

    anchors: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]
    inner: tuple[tuple[str, str], ...] = ()


def _resnet(conv: str, norm: str, *stages: str) -> Naming:
    return Naming(
        anchors=(f"{conv}.weight", *(f"{stage}.0.conv1.weight" for stage in stages)),
        rules=(
            (rf"{conv}\.", "stem.0."),
            (rf"{norm}\.", "stem.1."),
            *((rf"{stage}\.(\d+)\.", rf"blocks.{number}:\1.") for number, stage in enumerate(stages)),
        ),
        inner=((r"\.downsample\.", ".shortcut."),),
    )


#: Of ResNets: by name (torchvision, timm), then by place in an `nn.Sequential` of all parts but the last: without ReLU
#: and pooling (lightly's own), with ReLU (leftthomas), with both (torchvision's). Of Inception-ResNet-v2: timm's.
NAMINGS = (
    _resnet("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"),
    _resnet("0", "1", "2", "3", "4", "5"),
    _resnet("0", "1", "3", "4", "5", "6"),
    _resnet("0", "1", "4", "5", "6", "7"),
    Naming(
        anchors=("conv2d_1a.conv.weight", "mixed_5b.branch0.conv.weight", "conv2d_7b.conv.weight"),
        rules=(
            *((rf"conv2d_{n}\.", f"stem.{k}.") for k, n in {0: "1a", 1: "2a", 2: "2b", 4: "3b", 5: "4a"}.items()),
            (r"mixed_(5b|6a|7a)\.", r"mixed_\1."),
            (r"repeat\.", "block35."),
            (r"repeat_1\.", "block17."),
            (r"repeat_2\.", "block8."),
            (r"block8\.", "block8.9."),
            (r"conv2d_7b\.", "conv_7b."),
        ),
        inner=(
            (r"\.branch(\d)\.(?=conv|bn)", r".branches.\1.0."),
            (r"\.branch(\d)\.", r".branches.\1."),
            (r"\.conv\.", ".0."),
            (r"\.bn\.", ".1."),
            (r"\.conv2d\.", ".project."),
        ),
    ),
)


class Found(NamedTuple):
    """A network in a checkpoint.

    Attributes:
        network: one of `labelproof.networks.available()`.
        weights: its tensors by their names there, the last layer's left out.
        match: which of the network's tensors they are.
        prefix: what stands before their names in the file.
    """

    network: str
    weights: dict[str, Tensor]
    match: Match
    prefix: str

    @property
    def share(self) -> float:
        """Of the tensors of both, the share that has a counterpart.

        Both count, or SE-ResNet-50, whose blocks have two layers more, would pass for ResNet-50.
        """
        matched, missing, unused = map(len, self.match)
        return matched / (matched + max(missing, unused))

    @property
    def fits(self) -> bool:
        """Whether enough is there, and the first layer, which alone tells the two stems of a ResNet apart."""
        return self.share >= LEAST and set(_first(self.network)) <= self.weights.keys()


def tensors_in(content: Any, prefix: str = "") -> dict[str, Tensor]:
    """All tensors of nested dictionaries, the keys that lead there joined by points.

    >>> list(tensors_in({"epoch": 3, "state_dict": {"fc.bias": torch.zeros(2)}}))
    ['state_dict.fc.bias']
    """
    if isinstance(content, Tensor):
        return {prefix[:-1]: content.detach()}
    if not isinstance(content, Mapping):
        return {}
    return {n: t for key, value in content.items() for n, t in tensors_in(value, f"{prefix}{key}.").items()}


def recognise(tensors: Mapping[str, Tensor], file: str, network: str | None = None) -> Found:
    """The network of which a checkpoint holds the weights.

    Args:
        tensors: by their names in the file, see `tensors_in`.
        file: its name, for errors.
        network: which network it is; if not given, that of `CANDIDATES` that fits best.

    Returns:
        The network's name and its weights. Counts of BatchNorm that old files lack are filled in.

    Raises:
        ValueError: no network fits, or several are in the file.

    >>> trained = build("resnet18", (3, 32, 32), 10).state_dict()
    >>> recognise({f"module.{name}": tensor for name, tensor in trained.items()}, "r18.pt").match
    Match(matched=['stem.0.weight', ...], missing=[], unused=[])
    """
    names = dict.fromkeys((*CANDIDATES, *([network] if network else [])))
    found = [one for name in names for one in _readings(tensors, name, file)]
    asked = [one for one in found if network in (None, one.network)]
    best, closest = (max(some, key=lambda one: one.share, default=None) for some in (asked, found))
    if best is not None and best.fits:
        return best
    if closest is None:
        first = ", ".join([*list(tensors)[:3], "..."]) if tensors else "it has no tensors by name"
        raise ValueError(
            f"{file} holds no network that is known here ({first}): rename its tensors to those of torchvision's "
            "ResNet, name the network with network= if it is one of this library, or build it yourself, load the "
            "weights, and train that"
        )
    said = f"The closest is network={closest.network!r}: {_counts(closest)}"
    if network is not None:
        said = f"network={network!r} was asked for: {_counts(best) if best else 'no name fits'}. {said}"
    raise ValueError(f"{file} is of another architecture. {said}. At least {LEAST:.0%} must match, and the first layer")


def _counts(one: Found) -> str:
    return f"{one.match} ({len(one.match.missing)} missing, {len(one.match.unused)} not used)"


def _readings(tensors: Mapping[str, Tensor], network: str, file: str) -> Iterator[Found]:
    """The file read as that network, under each naming that it fits."""
    own = Naming(anchors=_first(network), rules=((r"(?!head\.)", ""),))
    for naming in (own, *NAMINGS):
        prefixes = _starts(tensors, naming)
        if len(prefixes) > 1:
            raise ValueError(
                f"{file} holds several networks, under {', '.join(map(repr, prefixes))}: save the state dict of one"
            )
        for prefix in prefixes:
            weights = _renamed(tensors, prefix, naming)
            wanted = _template(network, weights)
            weights |= {n: torch.zeros(()).long() for n in wanted if n.endswith(_COUNTER) and n not in weights}
            fits = [n for n, shape in wanted.items() if n in weights and weights[n].shape == shape]
            missing, unused = wanted.keys() - set(fits), weights.keys() - wanted.keys()
            yield Found(network, {n: weights[n] for n in fits}, Match(fits, sorted(missing), sorted(unused)), prefix)


def _starts(tensors: Mapping[str, Tensor], naming: Naming) -> list[str]:
    """Prefixes behind which a network starts; those of followers only if there is no other."""
    first = naming.anchors[0] if naming.anchors else None
    starts = [name.removesuffix(first) for name in tensors if first and name.endswith(first)]
    whole = [p for p in starts if (not p or p[-1] == ".") and all(p + name in tensors for name in naming.anchors)]
    leading = [p for p in whole if not any(word in p for word in _FOLLOWERS)] or whole
    twice = all(_same(tensors[p + name], tensors[leading[0] + name]) for p in leading for name in naming.anchors)
    return leading[:1] if twice else leading  # a module that two others hold is saved twice


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def _renamed(tensors: Mapping[str, Tensor], prefix: str, naming: Naming) -> dict[str, Tensor]:
    named = {}
    for name, tensor in tensors.items():
        rest = name.removeprefix(prefix)
        if not name.startswith(prefix) or not (rule := _rule(rest, naming)):
            continue
        new = re.sub(rule[0], rule[1], rest, count=1)
        for pattern, replacement in naming.inner:
            new = re.sub(pattern, replacement, new)
        named[new] = tensor
    # Ours are numbered through, over all stages.
    blocks = sorted({(int(m[1]), int(m[2])) for name in named if (m := re.match(r"blocks\.(\d+):(\d+)\.", name))})
    places = {f"blocks.{stage}:{place}.": f"blocks.{number}." for number, (stage, place) in enumerate(blocks)}
    return {re.sub(r"^blocks\.\d+:\d+\.", lambda m: places[m[0]], name): tensor for name, tensor in named.items()}


def _rule(name: str, naming: Naming) -> tuple[str, str] | None:
    return next((rule for rule in naming.rules if re.match(rule[0], name)), None)


def _first(network: str) -> tuple[str, ...]:
    return tuple(_shapes(network, (3, _SIDE, _SIDE)))[:1]


def _template(network: str, weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Names and shapes of a network's tensors, for inputs as the first layer of the weights takes them."""
    usual = _shapes(network, (3, _SIDE, _SIDE))
    first = weights.get(*_first(network))
    if first is None or first.ndim != len(next(iter(usual.values()))):
        return usual
    return _shapes(network, (first.shape[1], _SIDE, _SIDE) if first.ndim == 4 else (first.shape[1],))


@cache
def _shapes(network: str, in_shape: tuple[int, ...]) -> dict[str, torch.Size]:
    with torch.device("meta"):  # nothing is drawn, and no memory taken
        made = build(network, in_shape, 1)
    return {name: tensor.shape for name, tensor in body(made).items()}
