"""Encoders on disk: what is written is read, and what cannot be trusted is refused."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import re
import sys
import types
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import labelproof as lp
from labelproof.core.encoder import Encoder, body
from labelproof.networks.encoders import NORMALISATIONS
from tests.networks import foreign


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def made(net: nn.Module, **about: Any) -> Encoder:
    weights = {name: t.detach().clone() for name, t in body(net).items()}
    return Encoder(weights, torch.tensor([0.25]), torch.tensor([3.0]), 1.0, about)


@pytest.fixture
def encoder() -> Encoder:
    net = lp.networks.build("cnn", (1, 8, 8), 10)
    net(torch.randn(4, 1, 8, 8))  # moves the running statistics
    return made(net, network="cnn", in_shape=(1, 8, 8), method="simclr", epochs=3, final={"loss": 1.5})


# ---------------------------------------------------------------------------------------------------------- our own


def test_what_is_saved_is_loaded(encoder, tmp_path):
    path = lp.save_encoder(encoder, tmp_path / "e.safetensors")
    again = lp.load_encoder(path)
    assert again.weights.keys() == encoder.weights.keys()
    for name, tensor in encoder.weights.items():
        assert again.weights[name].dtype == tensor.dtype
        assert torch.equal(again.weights[name], tensor)
    assert torch.equal(again.mean, encoder.mean)
    assert torch.equal(again.scale, encoder.scale)
    assert (again.top, again.frozen, again.digest) == (1.0, False, encoder.digest)
    assert again.about == {**encoder.about, "name": str(path)}
    assert lp.load_encoder(str(path), freeze=True, network="cnn").frozen


def test_a_moved_file_goes_by_its_new_name(encoder, tmp_path):
    path = lp.save_encoder(encoder, tmp_path / "a.safetensors")
    copy = lp.save_encoder(lp.load_encoder(path), tmp_path / "b.safetensors")
    assert lp.load_encoder(copy).about["name"] == str(copy)
    assert path.read_bytes() == copy.read_bytes()


def test_the_file_is_plain_safetensors(encoder, tmp_path):
    """Anyone can read it without us."""
    path = lp.save_encoder(encoder, tmp_path / "e.safetensors")
    tensors = load_file(path)
    assert tensors.keys() == {*encoder.weights, "input.mean", "input.scale"}
    with safe_open(path, framework="np") as opened:
        head = json.loads(opened.metadata()["labelproof.encoder"])
    assert head["format"] == 1
    assert head["top"] == 1.0
    assert head["about"]["network"] == "cnn"
    assert head["about"]["in_shape"] == [1, 8, 8]


def test_channels_last_and_shared_memory_are_written_as_they_are(tmp_path):
    net = lp.networks.build("cnn", (3, 8, 8), 10).to(memory_format=torch.channels_last)
    weights = dict(body(net))
    weights["again"] = weights["layers.4.weight"]
    assert not weights["again"].is_contiguous()
    path = lp.save_encoder(Encoder(weights, torch.zeros(3), torch.ones(3)), tmp_path / "e.safetensors")
    again = lp.load_encoder(path).weights
    assert torch.equal(again["again"], weights["again"])
    assert torch.equal(again["layers.4.weight"], weights["again"])


def test_a_training_starts_where_the_saved_one_ended(encoder, tmp_path):
    again = lp.networks.build("cnn", (1, 8, 8), 4).eval()
    lp.load_encoder(lp.save_encoder(encoder, tmp_path / "e.safetensors")).into(again)
    other = lp.networks.build("cnn", (1, 8, 8), 4).eval()
    encoder.into(other)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(again.features(x), other.features(x))


def test_a_kill_while_writing_leaves_the_old_file(encoder, tmp_path, monkeypatch):
    path = lp.save_encoder(encoder, tmp_path / "e.safetensors")
    before = path.read_bytes()

    def dies(tensors: Any, part: Path, metadata: Any) -> None:
        part.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("labelproof.networks.encoders.save_file", dies)
    with pytest.raises(OSError, match="no space left"):
        lp.save_encoder(encoder, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["e.safetensors"]


def test_what_cannot_be_written(encoder, tmp_path):
    with pytest.raises(ValueError, match=r"e\.pt' must end in \.safetensors"):
        lp.save_encoder(encoder, tmp_path / "e.pt")
    bad = Encoder(encoder.weights, encoder.mean, encoder.scale, about={"by": {1, 2}})
    with pytest.raises(ValueError, match=r"encoder\.about=.*cannot be written as JSON: .*set"):
        lp.save_encoder(bad, tmp_path / "e.safetensors")
    bad = Encoder({"input.mean": torch.zeros(1)}, encoder.mean, encoder.scale)
    with pytest.raises(ValueError, match=r"has a tensor 'input\.mean', the name of the scaling"):
        lp.save_encoder(bad, tmp_path / "e.safetensors")
    assert not os.listdir(tmp_path)


def test_our_own_files_say_how_inputs_are_scaled(encoder, tmp_path):
    path = lp.save_encoder(encoder, tmp_path / "e.safetensors")
    with pytest.raises(ValueError, match=r"normalise='imagenet': .*e\.safetensors says itself .*leave normalise out"):
        lp.load_encoder(path, normalise="imagenet")


def test_our_own_files_say_which_network_they_are_of(encoder, tmp_path):
    path = lp.save_encoder(encoder, tmp_path / "e.safetensors")
    with pytest.raises(
        ValueError, match=r"network='resnet18': .*e\.safetensors is of network='cnn', leave network out"
    ):
        lp.load_encoder(path, network="resnet18")


@pytest.mark.parametrize(
    ("head", "lost", "message"),
    [
        ({"format": 2, "top": None, "about": {}}, None, r"has format 2, this version of labelproof reads 1: install"),
        ({"format": 1}, None, r"is no whole encoder of labelproof \(KeyError\('top'\)\): save it again"),
        ({"format": 1, "top": None, "about": {}}, "input.scale", r"is no whole encoder .*KeyError\('input.scale'\)"),
        ("{", None, r"is no whole encoder of labelproof \(JSONDecodeError"),
        ("[]", None, r"is no whole encoder of labelproof \(TypeError"),
    ],
)
def test_our_own_file_that_is_not_whole(encoder, head, lost, message, tmp_path):
    path = lp.save_encoder(encoder, tmp_path / "e.safetensors")
    tensors = load_file(path)
    tensors.pop(lost, None)
    save_file(tensors, path, metadata={"labelproof.encoder": head if isinstance(head, str) else json.dumps(head)})
    with pytest.raises(ValueError, match=rf"e\.safetensors {message}"):
        lp.load_encoder(path)


# ---------------------------------------------------------------------------------------------------------- others'


class Code:
    """A pickle that runs a command when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


class Options:
    """Somebody's class."""


def with_code(path: Path, mark: Path) -> None:
    torch.save({"state_dict": {"conv1.weight": torch.zeros(2)}, "extra": Code(mark)}, path)


def old_with_code(path: Path, mark: Path) -> None:
    torch.save({"extra": Code(mark)}, path, _use_new_zipfile_serialization=False)


def with_class(path: Path, mark: Path) -> None:
    torch.save({"state_dict": {}, "options": Options()}, path)


def whole_module(path: Path, mark: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), path)


@pytest.mark.parametrize(
    ("write", "what"),
    [
        (with_code, r"(posix|nt)\.system"),
        (old_with_code, r"(posix|nt)\.system"),
        (with_class, r"\S*Options"),
        (whole_module, r"torch\.nn\.modules\.container\.Sequential"),
    ],
)
@pytest.mark.parametrize("ending", ["pt", "pth.tar", "ckpt", "bin"])
def test_foreign_pickles_are_refused_and_do_not_run(write, what, ending, tmp_path):
    path, mark = tmp_path / f"model.{ending}", tmp_path / "ran"
    write(path, mark)
    message = rf"model\.{re.escape(ending)} holds more than weights \({what}\).*torch\.save\(model\.state_dict\(\), "
    with pytest.raises(ValueError, match=message):
        lp.load_encoder(path, normalise="zero-one")
    assert not mark.exists()


def test_the_code_would_have_run(tmp_path):
    """So that the test above can fail."""
    path, mark = tmp_path / "model.pt", tmp_path / "ran"
    with_code(path, mark)
    torch.load(path, weights_only=False)
    assert mark.exists()


def test_the_remedy_of_the_refusal_works(tmp_path):
    path, mark = tmp_path / "model.pt", tmp_path / "ran"
    state = foreign.named("resnet18", foreign.trained("resnet18"), foreign.torchvision)
    torch.save({"state_dict": state, "extra": Code(mark)}, path)
    with pytest.raises(ValueError, match="holds more than weights") as caught:
        lp.load_encoder(path, normalise="zero-one")
    words = re.findall(
        r"torch\.save\(torch\.load\(FILE, weights_only=False\)\['state_dict'\], 'weights\.pt'\)", str(caught.value)
    )
    assert len(words) == 1
    code = words[0].replace("FILE", "path").replace("'weights.pt'", "out")
    out = tmp_path / "weights.pt"
    exec(code, {"torch": torch, "path": path, "out": out})
    assert lp.load_encoder(out, normalise="zero-one").about["network"] == "resnet18"


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore:'torch.load' received a zip file")
def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))
    with pytest.raises(ValueError, match=r"model\.pt holds more than weights \(TorchScript\)"):
        lp.load_encoder(path, normalise="zero-one")


def test_options_of_argparse_are_data(tmp_path):
    state = foreign.named("resnet18", foreign.trained("resnet18"), foreign.torchvision)
    torch.save(
        {"state_dict": state, "args": Namespace(lr=0.1, gpu=None, device=torch.device("cpu"))}, tmp_path / "a.pt"
    )
    assert lp.load_encoder(tmp_path / "a.pt", normalise="zero-one").about["network"] == "resnet18"
    assert Namespace not in torch.serialization.get_safe_globals()  # trusted for this one reading alone


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
@pytest.mark.parametrize("old", [True, False])
def test_truncated_checkpoints(share, old, tmp_path):
    path = tmp_path / "cut.pth"
    state = foreign.named("resnet18", foreign.trained("resnet18"), foreign.torchvision)
    torch.save(state, path, _use_new_zipfile_serialization=not old)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"cut\.pth is damaged, or no file of torch\.save \(.*\): copy it") as caught:
        lp.load_encoder(path, normalise="zero-one")
    assert "weights_only" not in str(caught.value)  # torch's own advice is to turn the protection off


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_truncated_encoders(encoder, share, tmp_path):
    path = lp.save_encoder(encoder, tmp_path / "cut.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=r"cut\.safetensors is damaged, or no \.safetensors file \(.*\): copy or save"):
        lp.load_encoder(path)


@pytest.mark.parametrize("content", [b"hello, world\n" * 20, pickle.dumps({"a": Path("a")}), b"\x80\x04junk"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_that_are_none(content, tmp_path):
    path = tmp_path / "notes.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.pt (is damaged|holds more than weights)") as caught:
        lp.load_encoder(path, normalise="zero-one")
    assert "set to `False`" not in str(caught.value)


def test_there_is_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no encoder in .*e\.safetensors: there is no such file"):
        lp.load_encoder(tmp_path / "e.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        lp.load_encoder(tmp_path)


def test_an_unknown_network():
    with pytest.raises(ValueError, match=r"unknown network 'resnet-50': did you mean 'resnet50'\?"):
        lp.load_encoder("e.pt", network="resnet-50")


# ----------------------------------------------------------------------------------------------------- normalisation


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "r18.pt"
    torch.save(foreign.named("resnet18", foreign.trained("resnet18"), foreign.torchvision), path)
    return path


def test_a_missing_normalisation_names_the_choices_and_who_uses_what(checkpoint):
    with pytest.raises(ValueError, match=r"^missing normalisation: .*r18\.pt does not say") as caught:
        lp.load_encoder(checkpoint)
    text = str(caught.value)
    assert ", ".join(NORMALISATIONS) in text
    assert "Ghosh & Lan take zero-one" in text
    assert "ImageNet take imagenet" in text


@pytest.mark.parametrize("normalise", [*NORMALISATIONS, ((0.1, 0.2, 0.3), (0.4, 0.5, 1.0)), ([0.5], [0.25])])
def test_the_network_sees_what_the_normalisation_says(checkpoint, normalise):
    """ToTensor and Normalize, as people write them, of bytes."""
    mean, std = {
        "zero-one": ((0.0,) * 3, (1.0,) * 3),
        "minus-one-one": ((0.5,) * 3, (0.5,) * 3),
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    }.get(normalise if isinstance(normalise, str) else "", normalise)
    encoder = lp.load_encoder(checkpoint, normalise=normalise)
    assert encoder.mean.shape == encoder.scale.shape == (3,)
    assert encoder.mean.dtype == encoder.scale.dtype == torch.float32
    assert encoder.top == 255.0
    x = torch.arange(256.0)[:, None].expand(-1, 3)
    want = (x / 255 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close((x - encoder.mean) * encoder.scale, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("normalise", "message"),
    [
        ("image-net", r"normalise='image-net': did you mean 'imagenet'\? There are: zero-one, "),
        (
            "none",
            r"normalise='none'.*There are: zero-one, minus-one-one, imagenet, cifar10, cifar100, or a pair of mean",
        ),
        ((0.5, 0.5, 0.5), r"normalise=\(0\.5, 0\.5, 0\.5\) must be one of zero-one, .*or a pair"),
        (3, r"normalise=3 must be one of"),
        (((0.5, 0.5), (0.5, 0.5)), r"normalise is for 2 channels, and .*r18\.pt takes 3"),
        (((123.7, 116.3, 103.5), (58.4, 57.1, 57.4)), r"must be mean and standard deviation as shares of 255, from 0"),
        (((0.5,), (0.0,)), r"shares of 255"),
        (((float("nan"),), (1.0,)), r"shares of 255"),
    ],
)
def test_normalisations_that_are_none(checkpoint, normalise, message):
    with pytest.raises(ValueError, match=message):
        lp.load_encoder(checkpoint, normalise=normalise)


def test_colours_are_not_for_grey_images(tmp_path):
    torch.save(foreign.named("resnet18", foreign.trained("resnet18", 1), foreign.torchvision), tmp_path / "grey.pt")
    with pytest.raises(ValueError, match=r"normalise is for 3 channels, and .*grey\.pt takes 1"):
        lp.load_encoder(tmp_path / "grey.pt", normalise="imagenet")


def test_rows_have_no_such_convention(tmp_path):
    torch.save(lp.networks.build("mlp", (13,), 3).state_dict(), tmp_path / "rows.pt")
    with pytest.raises(
        ValueError, match=r"rows\.pt is of a network for rows, and does not say how .*: make an Encoder"
    ):
        lp.load_encoder(tmp_path / "rows.pt", normalise="zero-one", network="mlp")


# --------------------------------------------------------------------------------------------------------- published


@pytest.mark.parametrize("path", ["torchvision:resnet50", "timm:resnet50.a1_in1k"])
def test_without_the_extra(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"is not installed: pip install 'labelproof\[vision\]'$"):
        lp.load_encoder(path)


@pytest.fixture
def libraries(monkeypatch) -> dict[str, torch.Tensor]:
    """Stand-ins for the parts of torchvision and timm that are called, with weights of our own making."""
    state = foreign.named("resnet18-imagenet", foreign.trained("resnet18-imagenet"), foreign.torchvision)
    transforms = Namespace(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    weights = Namespace(transforms=lambda: transforms, get_state_dict=lambda progress, check_hash: state)
    models = types.ModuleType("torchvision.models")
    models.list_models = lambda module: ["resnet18", "vgg16"]
    models.get_model_weights = lambda name: Namespace(DEFAULT=weights)
    timm = types.ModuleType("timm")
    timm.list_models = lambda: ["resnet18", "vgg16"]
    timm.create_model = lambda name, pretrained: Namespace(
        state_dict=lambda: state, pretrained_cfg={"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    )
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    monkeypatch.setitem(sys.modules, "timm", timm)
    return state


@pytest.mark.parametrize("path", ["torchvision:resnet18", "timm:resnet18.a1_in1k", "timm:resnet18"])
def test_published_weights_bring_their_normalisation(path, libraries):
    encoder = lp.load_encoder(path, freeze=True)
    assert encoder.about["network"] == "resnet18-imagenet"
    assert encoder.about["name"] == path
    assert encoder.frozen
    assert torch.equal(encoder.weights["stem.0.weight"], libraries["conv1.weight"])
    torch.testing.assert_close(encoder.mean, 255 * torch.tensor([0.1, 0.2, 0.3]))
    torch.testing.assert_close(1 / encoder.scale, 255 * torch.tensor([0.4, 0.5, 0.6]))
    with pytest.raises(ValueError, match=rf"normalise='imagenet': {path} says itself"):
        lp.load_encoder(path, normalise="imagenet")


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_name_that_the_library_does_not_have(library, libraries):
    with pytest.raises(
        ValueError, match=rf"^{library}:resnet19 is unknown: did you mean 'resnet18'\? {library} has 2 net"
    ):
        lp.load_encoder(f"{library}:resnet19")


def library(name: str) -> Any:
    """The module, or a skip that says why."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:  # a torchvision of another torch does not register its operators
        pytest.skip(f"{name} does not load here: {error}")


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
@pytest.mark.parametrize("of", ["torchvision", "timm"])
def test_the_same_outputs_as_the_real_library(of, name, monkeypatch):
    """Its own code makes the network and knows the normalisation; only the download is replaced."""
    if of == "torchvision":
        theirs = library("torchvision.models").get_model(name, weights=None)
        place = "torchvision.models._api.load_state_dict_from_url", lambda *_, **__: theirs.state_dict()
    else:
        theirs = library("timm").create_model(name, pretrained=False)
        place = "timm.models._builder.load_pretrained", lambda net, **_: net.load_state_dict(theirs.state_dict())
    monkeypatch.setattr(*place)
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
    encoder = lp.load_encoder(f"{of}:{name}")
    assert encoder.about["network"] == f"{name}-imagenet"
    torch.testing.assert_close(encoder.mean, 255 * torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(1 / encoder.scale, 255 * torch.tensor([0.229, 0.224, 0.225]))
    ours = lp.networks.build(f"{name}-imagenet", (3, 224, 224), 10).eval()
    assert not encoder.into(ours).missing
    x = torch.randn(2, 3, 224, 224)
    theirs.eval().fc = nn.Identity()
    with torch.no_grad():
        want = theirs(x)
        torch.testing.assert_close(ours.features(x), want, rtol=1e-5, atol=1e-5 * float(want.abs().max()))


def test_the_same_outputs_as_the_real_inception(tmp_path):
    timm = library("timm")
    theirs = timm.create_model("inception_resnet_v2", pretrained=False).eval()
    with torch.no_grad():
        for tensor in theirs.state_dict().values():
            if tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5)
    torch.save(theirs.state_dict(), tmp_path / "inception.pt")
    encoder = lp.load_encoder(tmp_path / "inception.pt", normalise="minus-one-one")
    ours = lp.networks.build("inception-resnet-v2", (3, 299, 299), 10).eval()
    assert not encoder.into(ours).missing
    x = torch.randn(1, 3, 299, 299)
    with torch.no_grad():
        want = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
        torch.testing.assert_close(ours.features(x), want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))
