"""Weights of our networks under other people's names, for tests of the way back.

Written from the sources of those projects, and on purpose without a look at `labelproof.networks.imports`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
State = dict[str, Tensor]


def trained(network: str, channels: int = 3) -> nn.Module:
    """With weights, statistics and counts that no new network has."""
    from labelproof import networks

    net = networks.build(network, (channels, 75, 75), 7)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(11)
            elif name.endswith(("running_var", "running_mean")) or tensor.ndim == 1:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            else:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * tensor[0].numel() ** -0.5)
    return net.eval()


def parts(network: str, net: nn.Module) -> list[tuple[str, State]]:
    """(conv, bn, (stage, block)..., fc) with their tensors, from the network's modules."""
    found = [("conv", dict(net.stem[0].state_dict())), ("bn", dict(net.stem[1].state_dict()))]
    blocks = iter(net.blocks)
    for stage, depth in enumerate(DEPTHS[network.split("-", maxsplit=1)[0]]):
        for position in range(depth):
            found.append((f"{stage}.{position}", dict(next(blocks).state_dict())))
    return [*found, ("fc", dict(net.head.state_dict()))]


def named(
    network: str, net: nn.Module, call: Callable[[str], str | None], prefix: str = "", shortcut: str = "downsample"
) -> State:
    """All parts under `call(part)`, left out where that is none."""
    state: State = {}
    for part, tensors in parts(network, net):
        if (name := call(part)) is not None:
            state |= {f"{prefix}{name}.{k.replace('shortcut', shortcut)}": t.clone() for k, t in tensors.items()}
    return state


def torchvision(part: str) -> str:
    if part[0].isdigit():
        return f"layer{int(part[0]) + 1}{part[1:]}"
    return {"conv": "conv1", "bn": "bn1", "fc": "fc"}[part]


def bare(part: str) -> str | None:
    return None if part == "fc" else torchvision(part)


def sequence(first_stage: int) -> Callable[[str], str | None]:
    """Parts by their place in an `nn.Sequential` whose first stage stands there."""

    def call(part: str) -> str | None:
        if part == "fc":
            return None
        return {"conv": "0", "bn": "1"}.get(part) or f"{int(part[0]) + first_stage}{part[1:]}"

    return call


def mlp(prefix: str, *places: str) -> State:
    return {f"{prefix}{place}.weight": torch.randn(8, 8) for place in places}


def inception(net: nn.Module) -> State:
    """timm's names."""
    state: State = {}

    def unit(name: str, layers: nn.Module) -> None:
        for ours, theirs in ((0, "conv"), (1, "bn")):
            state.update({f"{name}.{theirs}.{k}": t.clone() for k, t in layers[ours].state_dict().items()})

    def branches(name: str, part: nn.Module) -> None:
        for number, branch in enumerate(part.branches):
            units = [(k, m) for k, m in enumerate(branch) if isinstance(m, nn.Sequential)]
            for k, layers in units:
                unit(f"{name}.branch{number}" + (f".{k}" if len(branch) > 1 else ""), layers)
        if hasattr(part, "project"):
            state.update({f"{name}.conv2d.{k}": t.clone() for k, t in part.project.state_dict().items()})

    for place, name in {0: "1a", 1: "2a", 2: "2b", 4: "3b", 5: "4a"}.items():
        unit(f"conv2d_{name}", net.stem[place])
    for name in ("mixed_5b", "mixed_6a", "mixed_7a"):
        branches(name, getattr(net, name))
    for name, blocks in {"repeat": net.block35, "repeat_1": net.block17, "repeat_2": net.block8[:9]}.items():
        for number, block in enumerate(blocks):
            branches(f"{name}.{number}", block)
    branches("block8", net.block8[9])
    unit("conv2d_7b", net.conv_7b)
    return state | {f"classif.{k}": t.clone() for k, t in net.head.state_dict().items()}


def without_counts(state: Mapping[str, Tensor]) -> State:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
