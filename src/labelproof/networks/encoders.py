"""Encoders on disk: our own files, and those of others.

>>> import tempfile, torch
>>> from labelproof import networks
>>> from labelproof.core.encoder import body
>>> net = networks.build("cnn", (1, 8, 8), 10)
>>> made = Encoder(body(net), torch.tensor([0.5]), torch.tensor([2.0]), top=1.0, about={"network": "cnn"})
>>> with tempfile.TemporaryDirectory() as folder:
...     path = save_encoder(made, f"{folder}/digits.safetensors")
...     load_encoder(path).about["network"]
'cnn'
"""

from __future__ import annotations

import json
import os
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from labelproof.core.encoder import Encoder
from labelproof.core.registry import did_you_mean, lookup
from labelproof.data.atomic import atomically
from labelproof.networks import available
from labelproof.networks.imports import recognise, tensors_in

#: Mean and standard deviation of the inputs, as a share of the largest value (255), by the name of the convention.
NORMALISATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "zero-one": ((0.0,), (1.0,)),
    "minus-one-one": ((0.5,), (0.5,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
_FORMAT = 1
_KEY = "labelproof.encoder"
_INPUT = ("input.mean", "input.scale")
_TOP = 255.0

#: A name of `NORMALISATIONS`, or mean and standard deviation per channel as a share of 255.
Normalise = str | tuple[Sequence[float], Sequence[float]]


def save_encoder(encoder: Encoder, path: str | os.PathLike[str]) -> Path:
    """Write an encoder with the scaling of its inputs to one file, whole or not at all.

    Args:
        encoder: what to save; whether it is frozen is not saved.
        path: a `.safetensors` file; what is there before is replaced.

    Returns:
        The path.

    Raises:
        ValueError: the path ends otherwise, or `encoder.about` holds something that JSON has no word for.
        OSError: it cannot be written.
    """
    file = Path(path)
    if file.suffix != ".safetensors":
        raise ValueError(f"path={str(file)!r} must end in .safetensors, the format of encoders")
    if taken := sorted(set(_INPUT) & set(encoder.weights)):
        raise ValueError(f"the encoder has a tensor {taken[0]!r}, the name of the scaling in the file: rename it")
    head = {"format": _FORMAT, "top": encoder.top, "about": {k: v for k, v in encoder.about.items() if k != "name"}}
    try:
        text = json.dumps(head)
    except TypeError as error:
        raise ValueError(f"encoder.about={dict(encoder.about)!r} cannot be written as JSON: {error}") from None
    tensors = {**encoder.weights, **dict(zip(_INPUT, (encoder.mean, encoder.scale), strict=True))}
    # The format takes neither other layouts (channels last) nor two names for the same memory.
    plain = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    return atomically(file, lambda part: save_file(plain, part, metadata={_KEY: text}))


def load_encoder(
    path: str | os.PathLike[str],
    *,
    freeze: bool = False,
    normalise: Normalise | None = None,
    network: str | None = None,
) -> Encoder:
    """Read an encoder: a file of `save_encoder`, a checkpoint of somebody else's, or published weights.

    Checkpoints are read as data: what would have to run code is refused. Supported are ResNet-18, 34 and 50 with
    either stem and Inception-ResNet-v2 under the names of `labelproof.networks.imports`, and the state dict of any
    network of `lp.networks.available()`. Their last layers and projection heads are left out.

    Args:
        path: a `.safetensors` file, ours or not; a file that `torch.save` wrote (`.pt`, `.pth`, `.ckpt`, `.tar`);
            `torchvision:NAME` or `timm:NAME` for the weights that these libraries download, which need the extra
            `labelproof[vision]`.
        freeze: leave it as it is and train the last layer alone.
        normalise: how images of 0 to 255 were scaled for it, which such a file does not say: `"zero-one"` (divided by
            255), `"minus-one-one"`, `"imagenet"`, `"cifar10"` or `"cifar100"` (mean and standard deviation of these),
            or a pair of mean and standard deviation per channel as shares of 255. Our own files and the two libraries
            do say it.
        network: one of `lp.networks.available()`; if not given, it is found by names and shapes.

    Returns:
        The encoder; `about` says the network and the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, needs code to run, is of another architecture, or its normalisation is missing.
        ImportError: the extra is not installed.
    """
    if network is not None:
        lookup("network", network, available())
    published = re.fullmatch(r"(torchvision|timm):(\S+)", str(path))
    if published:
        _own_scaling(str(path), normalise)
        content, normalise = _PUBLISHED[published[1]](published[2])
        return _foreign(content, str(path), normalise, network, freeze)
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no encoder in {file}: there is no such file")
    if file.suffix == ".safetensors":
        tensors, about = _read_safetensors(file)
        if about is not None:
            _own_scaling(str(file), normalise)
            return _own(tensors, about, file, network, freeze)
        return _foreign(tensors, str(file), normalise, network, freeze)
    return _foreign(_read_pickle(file), str(file), normalise, network, freeze)


def _own_scaling(name: str, normalise: Normalise | None) -> None:
    if normalise is not None:
        raise ValueError(f"normalise={normalise!r}: {name} says itself how its inputs are scaled, leave normalise out")


def _own(tensors: dict[str, Tensor], head: str, file: Path, network: str | None, freeze: bool) -> Encoder:
    try:
        said = json.loads(head)
        version, top, about = said["format"], said["top"], dict(said["about"])
        mean, scale = (tensors.pop(name) for name in _INPUT)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no whole encoder of labelproof ({error!r}): save it again") from None
    if version != _FORMAT:
        raise ValueError(
            f"{file} has format {version}, this version of labelproof reads {_FORMAT}: install a newer one"
        )
    if network not in (None, about.get("network")):
        raise ValueError(f"network={network!r}: {file} is of network={about.get('network')!r}, leave network out")
    if isinstance(about.get("in_shape"), list):
        about["in_shape"] = tuple(about["in_shape"])
    return Encoder(tensors, mean, scale, top, {**about, "name": str(file)}, freeze)


def _foreign(content: Any, name: str, normalise: Normalise | None, network: str | None, freeze: bool) -> Encoder:
    found = recognise(tensors_in(content), name, network)
    first = next(iter(found.weights.values()))
    if first.ndim != 4:
        raise ValueError(
            f"{name} is of a network for rows, and does not say how their columns were scaled: make an Encoder of its "
            "weights with mean and scale (labelproof.core.encoder)"
        )
    mean, std = _scaling(normalise, first.shape[1], name)
    about = {"name": name, "network": found.network, "prefix": found.prefix}
    return Encoder(found.weights, mean * _TOP, 1 / (std * _TOP), _TOP, about, freeze)


def _scaling(normalise: Normalise | None, channels: int, name: str) -> tuple[Tensor, Tensor]:
    """`(C,)` mean and standard deviation."""
    choices = f"{', '.join(NORMALISATIONS)}, or a pair of mean and standard deviation per channel"
    if normalise is None:
        raise ValueError(
            f"missing normalisation: {name} does not say how its inputs were scaled. Give normalise: {choices}. "
            "SimCLR encoders such as those of Ghosh & Lan take zero-one, weights of ImageNet take imagenet (those of "
            "Inception networks minus-one-one); see how the code that made the file calls Normalize"
        )
    if isinstance(normalise, str):
        if normalise not in NORMALISATIONS:
            raise ValueError(f"normalise={normalise!r}{did_you_mean(normalise, NORMALISATIONS)} There are: {choices}")
        normalise = NORMALISATIONS[normalise]
    try:
        mean, std = (torch.as_tensor(values, dtype=torch.float32).reshape(-1) for values in normalise)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"normalise={normalise!r} must be one of {choices}") from None
    if not {len(mean), len(std)} <= {1, channels}:
        raise ValueError(f"normalise is for {max(len(mean), len(std))} channels, and {name} takes {channels}")
    if not (std > 0).all() or not (mean >= 0).all() or max(mean.max(), std.max()) > 1:
        raise ValueError(f"normalise={normalise!r} must be mean and standard deviation as shares of 255, from 0 to 1")
    return mean.expand(channels).clone(), std.expand(channels).clone()


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors, and what we have written about them."""
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dictionary)
            return tensors, (opened.metadata() or {}).get(_KEY)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged, or no .safetensors file ({error}): copy or save it again") from None


def _read_pickle(file: Path) -> Any:
    """What `torch.save` wrote, without running anything."""
    try:
        # Options of argparse, which some save beside the weights, hold data and run nothing.
        with file.open("rb") as opened, torch.serialization.safe_globals([Namespace]):
            return torch.load(opened, map_location="cpu", weights_only=True)
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # half a file, or one that is none, fails in any way
        kind, text = type(error).__name__, str(error)
    needs = re.search(r"GLOBAL (\S+)|Unsupported class (\S+)|(TorchScript|legacy \.tar)", text)
    if not needs:
        why = ": ".join(filter(None, (kind, re.split(r"\. |\n", text)[0])))
        raise ValueError(f"{file} is damaged, or no file of torch.save ({why}): copy it, or save its state dict, again")
    what = next(filter(None, needs.groups()))
    raise ValueError(
        f"{file} holds more than weights ({what}), and nothing in a file is run here. Where it was made, or where you "
        "trust it, save the weights alone: torch.save(model.state_dict(), 'weights.pt'), or, for a dictionary of "
        "several things, torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pt')"
    )


def _torchvision(name: str) -> tuple[Mapping[str, Tensor], Normalise]:
    models = _vision("torchvision.models")
    _check_known("torchvision", name, models.list_models(models))
    weights = models.get_model_weights(name).DEFAULT
    how = weights.transforms()
    return weights.get_state_dict(progress=False, check_hash=True), (how.mean, how.std)


def _timm(name: str) -> tuple[Mapping[str, Tensor], Normalise]:
    timm = _vision("timm")
    _check_known("timm", name.partition(".")[0], timm.list_models())
    model = timm.create_model(name, pretrained=True)
    return model.state_dict(), (model.pretrained_cfg["mean"], model.pretrained_cfg["std"])


_PUBLISHED = {"torchvision": _torchvision, "timm": _timm}


def _check_known(library: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"{library}:{name} is unknown{did_you_mean(name, known)} {library} has {len(known)} networks")


def _vision(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is not installed: pip install 'labelproof[vision]'") from error
