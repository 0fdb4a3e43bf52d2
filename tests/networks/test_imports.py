"""Other people's checkpoints come out as the very network that was put in."""

from __future__ import annotations

import re
from argparse import Namespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import labelproof as lp
from labelproof.networks.imports import recognise, tensors_in
from tests.networks import foreign


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def optimiser() -> dict[str, Any]:
    """That of a small network, after a step with momentum."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    made = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(2, 3, 5, 5)).sum().backward()
    made.step()
    return made.state_dict()


def simclr_pytorch(name: str, net: nn.Module) -> Any:
    """AndrewAtanov/simclr-pytorch, which Ghosh & Lan start from."""
    state = foreign.named(name, net, foreign.bare, "convnet.")
    state |= foreign.mlp("convnet.", "fc") | foreign.mlp("projection.", "fc1", "bn1", "fc2", "bn2")
    options = Namespace(arch="ResNet50", data="cifar", temperature=0.5, gpu=0, dist="dp")
    return {"state_dict": state, "hparams": options, "opt_state_dict": optimiser(), "iter": 48_000}


def sthalles(name: str, net: nn.Module) -> Any:
    state = foreign.named(name, net, foreign.bare, "backbone.") | foreign.mlp("backbone.fc.", "0", "2")
    return {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": optimiser()}


def leftthomas(name: str, net: nn.Module) -> Any:
    return foreign.named(name, net, foreign.sequence(3), "f.") | foreign.mlp("g.", "0", "1", "3")


def p3i0t(name: str, net: nn.Module) -> Any:
    return foreign.named(name, net, foreign.bare, "enc.") | foreign.mlp("projector.", "0", "2")


def spijkervet(name: str, net: nn.Module) -> Any:
    return foreign.named(name, net, foreign.bare, "encoder.") | foreign.mlp("projector.", "0", "2")


def sup_contrast(name: str, net: nn.Module) -> Any:
    state = foreign.named(name, net, foreign.bare, "encoder.module.", "shortcut") | foreign.mlp("head.", "0", "2")
    return {"opt": Namespace(model=name, cosine=True), "model": state, "optimizer": optimiser(), "epoch": 1000}


def moco(name: str, net: nn.Module) -> Any:
    """The follower first, which is another network of the same shape."""
    other = {k: t + 1 for k, t in foreign.named(name, net, foreign.bare, "module.encoder_k.").items()}
    state = other | foreign.named(name, net, foreign.bare, "module.encoder_q.")
    state |= foreign.mlp("module.encoder_q.fc.", "0", "2") | {"module.queue": torch.randn(8, 64)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": optimiser()}


def solo_learn(name: str, net: nn.Module) -> Any:
    """A checkpoint of Lightning."""
    state = {k: t - 1 for k, t in foreign.named(name, net, foreign.bare, "momentum_backbone.").items()}
    state |= foreign.named(name, net, foreign.bare, "backbone.") | foreign.mlp("classifier", "")
    return {
        "epoch": 3,
        "pytorch-lightning_version": "2.1.2",
        "state_dict": state,
        "optimizer_states": [optimiser()],
        "hyper_parameters": {"name": "simclr", "num_classes": 10, "backbone": {"name": "resnet18"}},
        "callbacks": {},
    }


def lightly_of_torchvision(name: str, net: nn.Module) -> Any:
    state = foreign.named(name, net, foreign.sequence(4), "backbone.")
    return {"state_dict": state | foreign.mlp("projection_head.layers.", "0", "1", "3")}


def lightly(name: str, net: nn.Module) -> Any:
    return {"state_dict": foreign.named(name, net, foreign.sequence(2), "backbone.", "shortcut")}


def byol(name: str, net: nn.Module) -> Any:
    """lucidrains/byol-pytorch: the network twice, and its follower."""
    state = foreign.named(name, net, foreign.torchvision, "net.")
    state |= foreign.named(name, net, foreign.torchvision, "online_encoder.net.")
    return state | {k: t * 2 for k, t in foreign.named(name, net, foreign.torchvision, "target_encoder.net.").items()}


def torchvision(name: str, net: nn.Module) -> Any:
    return foreign.named(name, net, foreign.torchvision)


def old_torchvision(name: str, net: nn.Module) -> Any:
    """Before BatchNorm counted batches."""
    return foreign.without_counts(torchvision(name, net))


def kuangliu(name: str, net: nn.Module) -> Any:
    return {"net": foreign.named(name, net, foreign.bare, "module.", "shortcut") | foreign.mlp("module.", "linear")}


def compiled(name: str, net: nn.Module) -> Any:
    """torch.compile around data parallelism."""
    return {"model": foreign.named(name, net, foreign.torchvision, "_orig_mod.module.")}


def timm_inception(name: str, net: nn.Module) -> Any:
    return foreign.inception(net)


def ours(name: str, net: nn.Module) -> Any:
    return {"network": dict(net.state_dict()), "epoch": 5}


CASES = [
    (simclr_pytorch, "resnet50"),
    (simclr_pytorch, "resnet18"),
    (sthalles, "resnet18-imagenet"),
    (leftthomas, "resnet50"),
    (leftthomas, "resnet18"),
    (p3i0t, "resnet34"),
    (spijkervet, "resnet18-imagenet"),
    (sup_contrast, "resnet50"),
    (moco, "resnet50-imagenet"),
    (solo_learn, "resnet18"),
    (lightly_of_torchvision, "resnet18-imagenet"),
    (lightly_of_torchvision, "resnet50-imagenet"),
    (lightly, "resnet18"),
    (byol, "resnet18-imagenet"),
    (torchvision, "resnet34-imagenet"),
    (torchvision, "resnet50-imagenet"),
    (old_torchvision, "resnet18-imagenet"),
    (kuangliu, "resnet18"),
    (compiled, "resnet18-imagenet"),
    (timm_inception, "inception-resnet-v2"),
    (ours, "resnet34"),
    (ours, "inception-resnet-v2"),
]


@pytest.mark.parametrize(("of", "network"), CASES, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_a_checkpoint_is_the_network_that_was_put_in(of, network, tmp_path):
    net = foreign.trained(network)
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(of(network, net), path)
    encoder = lp.load_encoder(path, normalise="zero-one")
    assert encoder.about["network"] == network
    again = lp.networks.build(network, (3, 75, 75), 4).eval()
    match = encoder.into(again)
    assert (match.missing, match.unused) == ([], [])
    x = torch.rand(2, 3, 75, 75)
    with torch.no_grad():
        assert torch.equal(again.features(x), net.features(x))
    assert not again.head.weight.any()
    assert not any(name.startswith("head.") for name in encoder.weights)


def test_one_channel_is_seen_from_the_first_layer(tmp_path):
    net = foreign.trained("resnet18", channels=1)
    torch.save(torchvision("resnet18", net), tmp_path / "grey.pt")
    encoder = lp.load_encoder(tmp_path / "grey.pt", normalise="zero-one")
    assert encoder.mean.shape == encoder.scale.shape == (1,)
    again = lp.networks.build("resnet18", (1, 32, 32), 4).eval()
    assert len(encoder.into(again).missing) == 0


def test_safetensors_of_others(tmp_path):
    net = foreign.trained("resnet18")
    save_file(torchvision("resnet18", net), tmp_path / "r18.safetensors", metadata={"format": "pt"})
    encoder = lp.load_encoder(tmp_path / "r18.safetensors", normalise="imagenet")
    assert torch.equal(encoder.weights["stem.0.weight"], net.stem[0].weight)


def test_a_network_that_is_named_need_not_be_a_resnet(tmp_path):
    net = foreign.trained("cnn9")
    torch.save({"state_dict": {f"module.{k}": t for k, t in net.state_dict().items()}}, tmp_path / "cnn9.pt")
    encoder = lp.load_encoder(tmp_path / "cnn9.pt", normalise="cifar10", network="cnn9")
    again = lp.networks.build("cnn9", (3, 75, 75), 4).eval()
    encoder.into(again)
    x = torch.rand(2, 3, 75, 75)
    with torch.no_grad():
        assert torch.equal(again.features(x), net.features(x))
    with pytest.raises(ValueError, match=r"cnn9\.pt holds no network that is known here .*name the network"):
        lp.load_encoder(tmp_path / "cnn9.pt", normalise="cifar10")


def fewer(state: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """About that share of what is no last layer, its first layers among them, and no count lost."""
    names = [n for n in state if not n.startswith("fc.")]
    lost = round(len(names) * (1 - share))
    spared = ("conv1.weight", "num_batches_tracked")
    return {n: state[n] for n in names if n not in [n for n in names if not n.endswith(spared)][-lost:]}


@pytest.mark.parametrize("share", [0.96, 0.94])
def test_what_is_missing_is_said_and_refused_below_95_percent(share, tmp_path):
    full = torchvision("resnet18", foreign.trained("resnet18"))
    state = fewer(full, share)
    lost = sorted(n for n in full if n not in state and not n.startswith("fc."))
    path = tmp_path / "part.pt"
    torch.save(state, path)
    total = len(full) - 2
    count = f"{total - len(lost)} of {total} tensors matched"
    if share > 0.95:
        again = lp.networks.build("resnet18", (3, 32, 32), 4)
        with pytest.warns(UserWarning, match=rf"part\.pt: {count}; missing: blocks\.7"):
            match = lp.load_encoder(path, normalise="zero-one").into(again)
        assert len(match.missing) == len(lost) > 3
    else:
        with pytest.raises(
            ValueError, match=rf"part\.pt is of another architecture.*'resnet18': {count}.*{len(lost)} miss"
        ):
            lp.load_encoder(path, normalise="zero-one")


def test_a_deeper_network_is_refused():
    """ResNet-101 has all tensors of ResNet-50, in the same shapes, and 17 blocks more in its third stage."""
    state = torchvision("resnet50-imagenet", foreign.trained("resnet50-imagenet"))
    inner = {n.removeprefix("layer3.5."): t for n, t in state.items() if n.startswith("layer3.5.")}
    state |= {f"layer3.{k}.{n}": t for k in range(6, 23) for n, t in inner.items()}
    message = r"r101\.pt is of another architecture.*'resnet50-imagenet': 268 of 318 .*\(50 missing, 312 not used\)"
    with pytest.raises(ValueError, match=message):
        recognise(state, "r101.pt")


def test_a_network_with_more_in_its_blocks_is_refused():
    """SE-ResNet-50 has all tensors of ResNet-50 under the same names, and two layers more in each block."""
    state = torchvision("resnet50-imagenet", foreign.trained("resnet50-imagenet"))
    for name in [n for n in state if n.endswith("conv3.weight")]:
        for layer in ("fc1", "fc2"):
            state |= {name.replace("conv3.weight", f"se.{layer}.{kind}"): torch.zeros(3) for kind in ("weight", "bias")}
    with pytest.raises(ValueError, match=r"'resnet50-imagenet': 318 of 318 tensors.*\(0 missing, 64 not used\)"):
        recognise(state, "se.pt")


@pytest.mark.parametrize(("size", "closest"), [(5, "resnet18"), (7, "resnet18-imagenet")])
def test_the_first_layer_tells_the_stems_apart(size, closest):
    """Of 122 tensors all but one are the same."""
    state = torchvision("resnet18", foreign.trained("resnet18"))
    state["conv1.weight"] = torch.randn(64, 3, size, size)
    if size == 7:
        assert recognise(state, "r18.pt").network == closest
    else:
        with pytest.raises(ValueError, match=rf"'{closest}': .*missing: stem\.0\.weight.*and the first layer$"):
            recognise(state, "r18.pt")


def test_another_network_than_the_one_asked_for():
    state = torchvision("resnet34", foreign.trained("resnet34"))
    with pytest.raises(
        ValueError,
        match=r"^r34\.pt is of another architecture\. network='resnet50' was asked for: \d+ of 318 tensors matched.* "
        r"The closest is network='resnet34': 216 of 216 tensors matched \(0 missing, 0 not used\)\. At least 95%",
    ):
        recognise(state, "r34.pt", "resnet50")
    own = dict(foreign.trained("resnet18").state_dict())
    assert recognise(own, "r18.pt").match.unused == []  # its last layer is not counted
    with pytest.raises(ValueError, match=r"'mlp' was asked for: no name fits\. The closest is network='resnet18'"):
        recognise(own, "r18.pt", "mlp")
    assert recognise(state, "r34.pt", "resnet34").network == "resnet34"


def test_groups_are_not_taken_for_batch_norm():
    """Their weights have the same names and shapes; the statistics are what is missing."""
    state = dict(foreign.trained("resnet18-gn").state_dict())
    with pytest.raises(ValueError, match=r"closest is network='resnet18'.*missing: .*running_mean"):
        recognise(state, "gn.pt")
    assert recognise(state, "gn.pt", "resnet18-gn").network == "resnet18-gn"
    with pytest.raises(ValueError, match=r"network='resnet18-gn' was asked for: .*40 not used|60 not used"):
        recognise(dict(foreign.trained("resnet18").state_dict()), "bn.pt", "resnet18-gn")


def test_several_networks_in_one_file():
    one, other = foreign.trained("resnet18"), lp.networks.build("resnet18", (3, 32, 32), 2)
    state = foreign.named("resnet18", one, foreign.bare, "net1.") | foreign.named(
        "resnet18", other, foreign.bare, "net2."
    )
    with pytest.raises(
        ValueError, match=r"two\.pt holds several networks, under 'net1\.', 'net2\.': save the state dict"
    ):
        recognise(state, "two.pt")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"visual.proj": torch.zeros(3), "a.b": torch.zeros(1)}, "visual.proj, a.b, ..."),
        ({}, "it has no tensors by name"),
    ],
)
def test_no_network_at_all(state, said):
    with pytest.raises(ValueError, match=rf"x\.pt holds no network that is known here \({re.escape(said)}\): rename"):
        recognise(state, "x.pt")


def test_a_transformer_whose_first_layer_has_our_name_is_refused():
    with pytest.raises(ValueError, match="closest is network="):
        recognise({"stem.0.weight": torch.zeros(4, 5), "stem.0.bias": torch.zeros(4)}, "t.pt")


def test_tensors_of_nested_dictionaries():
    content = {"a": {0: torch.zeros(1), "b": {"c": nn.Parameter(torch.ones(2))}}, "n": 3, "list": [torch.zeros(1)]}
    found = tensors_in(content)
    assert list(found) == ["a.0", "a.b.c"]
    assert not found["a.b.c"].requires_grad


def test_reading_draws_no_random_numbers():
    state = torchvision("resnet18", foreign.trained("resnet18"))
    before = torch.get_rng_state()
    recognise(state, "r18.pt")
    assert torch.equal(torch.get_rng_state(), before)
