"""Refusing, before training, what could only fail or mislead later."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.optim import Optimizer

from labelproof.core.method import Method
from labelproof.engine.settings import Settings

KINDS: dict[str, tuple[type[nn.Module], ...]] = {"batchnorm": (nn.modules.batchnorm._BatchNorm,)}
_REMEDY = {
    "batchnorm": "it mixes the samples of a batch. Use network='mlp' or one whose name ends in -gn (cnn-gn, "
    "resnet32-gn), GroupNorm or LayerNorm in a network of your own, or a method that does not look at single samples' "
    "gradients, such as prl-l"
}


def name_of(method: Method) -> str:
    """What users call a method: its registered name, or the class name of their own."""
    return method.name or type(method).__name__


def check_ways(method: Method, settings: Settings) -> None:
    """Refuse what the method cannot be trained with.

    Raises:
        ValueError: `forbids` names a way of training that the settings ask for, or something unknown.
    """
    asked = {
        "devices": settings.devices > 1 and f"devices={settings.devices}: train it on one device",
        "accumulate": settings.accumulate > 1 and f"accumulate={settings.accumulate}: give a larger batch_size instead",
        "16-mixed": settings.precision == "16-mixed" and "precision='16-mixed': use 'bf16-mixed' or '32-true'",
        "compile": settings.compile and "compile=True: it looks inside the network; leave compile out",
    }
    for name in sorted(method.forbids):
        if name not in {**KINDS, **asked}:
            known = ", ".join(sorted({**KINDS, **asked}))
            raise ValueError(f"{name_of(method)} forbids {name!r}, which nobody knows: there are {known}")
        if why := asked.get(name):
            raise ValueError(f"{name_of(method)} cannot be trained with {why}")


def check_network(network: nn.Module, method: Method, shape: tuple[int, ...], num_outputs: int) -> None:
    """Try the network on one zero input of each kind it will meet.

    Raises:
        ValueError: the method forbids one of its layers, the network rejects inputs of this shape, or its outputs have
            another shape than `(B, num_outputs)`.
    """
    who = name_of(method)
    for kind in sorted(method.forbids & set(KINDS)):
        for name, module in network.named_modules():
            if isinstance(module, KINDS[kind]):
                layer = f"{type(module).__name__} {name}".strip()
                raise ValueError(f"{who} cannot train through {kind} ({layer} in the network): {_REMEDY[kind]}")
    was = network.training
    network.eval()
    with torch.no_grad():
        try:
            out = network(torch.zeros(2, *shape, device=next(network.parameters(), torch.empty(0)).device))
        except RuntimeError as error:
            reason = str(error).split("\n")[0]
            raise ValueError(f"the network does not take inputs of shape (B, {_dims(shape)}): {reason}") from error
    network.train(was)
    if tuple(out.shape) != (2, num_outputs):
        raise ValueError(
            f"the network gives outputs of shape (B, {_dims(out.shape[1:])}) where (B, {num_outputs}) is needed: "
            f"its last layer must have {num_outputs} units"
        )


def check_scale(top: float, trained: float, name: str = "images") -> None:
    """Images in [0, 1] and images in [0, 255] do not go together.

    Args:
        top: the largest value of these images.
        trained: that of the training images.
        name: what these are, for the message.

    Raises:
        ValueError: one is at most 1, the other above.
    """
    if top > 0 and (top <= 1) != (trained <= 1):
        raise ValueError(
            f"{name} go up to {top:.3g}, those trained on went up to {trained:.3g}: give them on that scale"
        )


def check_optimizers(module: nn.Module, optimizers: Mapping[str, Optimizer], precision: str) -> None:
    """Every learned parameter belongs to exactly one optimiser, and the precision can serve them all.

    Raises:
        ValueError: a parameter would never be trained, or fp16's gradient scaler meets a second optimiser.
    """
    held = {id(p) for o in optimizers.values() for group in o.param_groups for p in group["params"]}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and id(parameter) not in held:
            raise ValueError(f"parameter {name} is in no optimiser: return one for it from Method.optimizers")
    if precision == "16-mixed" and len(optimizers) > 1:
        # Fabric updates the scaler after each optimiser's step, so that the next one is scaled by another factor
        raise ValueError(
            f"precision='16-mixed' cannot serve several optimisers ({', '.join(optimizers)}): use 'bf16-mixed'"
        )


def _dims(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
