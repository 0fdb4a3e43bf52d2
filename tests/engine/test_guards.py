"""Layers that a method cannot train through, and networks that do not fit the data."""

from __future__ import annotations

import re

import pytest
from torch import nn

from labelproof import networks
from labelproof.core.method import Method
from labelproof.engine.guards import check_network
from labelproof.methods import METHODS


class OneByOne(Method):
    """Stands for methods that look at single samples' gradients."""

    forbids = frozenset({"batchnorm"})


class Named(OneByOne):
    name = "one-by-one"


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.BatchNorm1d(4), "BatchNorm1d"),
        (nn.SyncBatchNorm(4), "SyncBatchNorm"),
        (nn.LazyBatchNorm1d(), "LazyBatchNorm1d"),
    ],
)
def test_every_batchnorm_is_refused_by_the_name_of_the_first(layer, name):
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(layer, nn.ReLU()), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=rf"^OneByOne cannot train through batchnorm \({name} 1\.0 in the network\): "):
        check_network(net, OneByOne(), (4,), 4)


def test_a_network_that_is_one_layer_has_no_name_to_give():
    with pytest.raises(
        ValueError, match=r"^one-by-one cannot train through batchnorm \(BatchNorm1d in the network\): "
    ):
        check_network(nn.BatchNorm1d(4), Named(), (4,), 4)


def test_the_remedy_names_what_there_is():
    with pytest.raises(ValueError, match="it mixes the samples of a batch") as caught:
        check_network(networks.build("cnn", (1, 8, 8), 3), Named(), (1, 8, 8), 3)
    text = str(caught.value)
    assert "one-by-one cannot train through batchnorm (BatchNorm2d layers.1 in the network)" in text
    named = ["mlp", *re.findall(r"[\w-]+-gn\b", text)]
    assert len(named) > 1
    for name in named:
        check_network(networks.build(name, (1, 8, 8), 3), Named(), (1, 8, 8), 3)
    method = re.search(r"such as (\S+)$", text).group(1)
    if method in METHODS:
        assert not METHODS[method].forbids


@pytest.mark.parametrize("name", [name for name in networks.available() if name == "mlp" or name.endswith("-gn")])
def test_the_networks_of_the_remedy_pass(name):
    shape = (1, 75, 75)  # the fewest pixels that all take
    check_network(networks.build(name, shape, 3), OneByOne(), shape, 3)


@pytest.mark.parametrize(
    "layer", [nn.GroupNorm(2, 4), nn.LayerNorm((4, 2, 2)), nn.InstanceNorm2d(4, track_running_stats=True)]
)
def test_other_norms_pass(layer):
    check_network(nn.Sequential(layer, nn.Flatten()), OneByOne(), (4, 2, 2), 16)


def test_a_network_is_left_in_its_mode():
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout())
    for training in (True, False):
        net.train(training)
        check_network(net, OneByOne(), (4,), 3)
        assert net.training is training
        assert net[1].training is training


def test_outputs_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"outputs of shape \(B, 2\) where \(B, 3\) is needed: .* must have 3 units"):
        check_network(nn.Linear(4, 2), OneByOne(), (4,), 3)
    with pytest.raises(ValueError, match=r"the network does not take inputs of shape \(B, 5\): "):
        check_network(nn.Linear(4, 3), OneByOne(), (5,), 3)
