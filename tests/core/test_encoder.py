"""What an encoder brings along, what it refuses, and what becomes of it in training."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import Tensor, nn

import labelproof as lp
from labelproof import networks
from labelproof.core.encoder import Encoder, Started, body, freeze
from labelproof.core.nets import Nets, features, linear_head
from labelproof.data.dataset import Data
from labelproof.engine.stages import fit
from labelproof.methods import CE, METHODS, MSE
from labelproof.networks.factory import as_factory, network_name
from tests.toy import blobs, eager, line, problem, same, settings, streams

NAMES = sorted(METHODS)
CLASSIFIERS = [n for n in NAMES if "classification" in METHODS[n].tasks]


def tower(layers: int = 25, outputs: int = 3) -> nn.Module:
    """Two tensors per layer, and those of the last layer."""
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)), nn.Linear(4, outputs))


def encoder_of(network: nn.Module, **changes: Any) -> Encoder:
    weights = {name: t.detach().clone() for name, t in body(network).items()}
    return replace(Encoder(weights, torch.zeros(4), torch.ones(4)), **changes)


def pictures(seed: int = 0, n: int = 60, channels: int = 1, dark: int = 0) -> Data:
    """Images whose brightest half tells the class."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.integers(0, 160, (n, channels, 8, 8), dtype=np.uint8)
    for i in range(n):
        x[i, :, y[i] * 4 : y[i] * 4 + 4] += 95
    x[0, 0, 0, 0] = 255
    return Data((x >> dark).astype(np.uint8), y, classes=np.arange(2))


def pretrained(data: Data, network: str = "cnn", **about: Any) -> Encoder:
    shape, outputs = data.x.shape[1:], data.num_classes or data.y.shape[1]
    method = CE() if data.num_classes else MSE()
    made = fit(method, as_factory(network, shape, outputs), data, settings(epochs=2, lr=0.01)).encoder()
    return replace(made, about={**made.about, "network": network, **about})


def fine_tuned(encoder: Encoder, data: Data, method: Any = None, **options: Any) -> Any:
    outputs = data.num_classes or data.y.shape[1]
    side = options.pop("streams", None)
    make = as_factory(encoder, data.x.shape[1:], outputs)
    return fit(method or CE(), make, data, settings(**{"epochs": 2, "lr": 0.05, **options}), streams=side)


def kept(fitted: Any, encoder: Encoder) -> list[bool]:
    """For each network, whether all but its last layer is that of the encoder to the last bit."""
    return [all(torch.equal(t, encoder.weights[n]) for n, t in body(p).items()) for p in fitted.nets]


class TestLoading:
    def test_all_but_the_last_layer(self) -> None:
        net = networks.build("cnn", (1, 8, 8), 3)
        whole, own = net.state_dict(), body(net)
        assert set(whole) - set(own) == {"head.weight", "head.bias"}
        assert any("running_mean" in name for name in own)
        assert all(own[name].data_ptr() == whole[name].data_ptr() for name in own)

    def test_a_network_of_other_outputs_takes_it(self) -> None:
        source, target = tower(), tower(outputs=7)
        said = encoder_of(source).into(target)
        assert (len(said.matched), said.missing, said.unused) == (50, [], [])
        assert str(said) == "50 of 50 tensors matched"
        assert same({k: v.data for k, v in body(target).items()}, {k: v.data for k, v in body(source).items()})
        assert not any(p.any() for p in linear_head(target).parameters())
        assert all(p.requires_grad for p in target.parameters())

    def test_the_last_layer_is_left_alone_where_that_is_asked_for(self) -> None:
        target = tower()
        before = deepcopy(linear_head(target))
        encoder_of(tower()).into(target, zero_head=False)
        assert same(dict(before.state_dict()), dict(linear_head(target).state_dict()))

    def test_weights_are_copied(self) -> None:
        made, target = encoder_of(tower()), tower()
        made.into(target)
        with torch.no_grad():
            target[0].weight.zero_()
        assert made.weights["0.weight"].any()

    @pytest.mark.parametrize("gone", [2, 3])
    def test_96_percent_will_do_and_94_will_not(self, gone: int) -> None:
        weights = encoder_of(tower()).weights
        short = Encoder(dict(list(weights.items())[gone:]), torch.zeros(4), torch.ones(4))
        target = tower()
        before = deepcopy(target.state_dict())
        if gone == 2:
            with pytest.warns(UserWarning, match=r"48 of 50 tensors matched; missing: 0\.bias, 0\.weight$"):
                assert len(short.into(target).matched) == 48
            return
        with pytest.raises(
            ValueError,
            match=r"the encoder does not fit this network: 47 of 50 tensors matched; missing: .* At least 95%",
        ):
            short.into(target)
        assert same(dict(before), dict(target.state_dict())), "a refusal changes nothing"

    def test_other_shapes_are_missing_and_foreign_names_are_named(self) -> None:
        weights = dict(encoder_of(tower()).weights)
        weights["3.weight"] = torch.zeros(5, 4)
        weights |= {f"elsewhere.{k}": torch.zeros(1) for k in range(5)}
        with pytest.warns(UserWarning, match="tensors matched") as caught:
            said = Encoder(weights, torch.zeros(4), torch.ones(4), about={"name": "mine.pt"}).into(tower())
        assert said.missing == ["3.weight"]
        assert said.unused == [f"elsewhere.{k}" for k in range(5)]
        [text] = [str(w.message) for w in caught]
        assert text == (
            "mine.pt: 49 of 50 tensors matched; missing: 3.weight; not used: elsewhere.0, elsewhere.1, elsewhere.2 and "
            "2 more"
        )

    def test_another_architecture_is_refused_with_its_own(self) -> None:
        made = encoder_of(
            networks.build("resnet18", (3, 8, 8), 2), about={"network": "resnet18", "name": "r.safetensors"}
        )
        with pytest.raises(
            ValueError, match=r"^r\.safetensors does not fit this network: 0 of 18 tensors matched"
        ) as e:
            made.into(networks.build("cnn", (3, 8, 8), 2))
        assert "it was made for network='resnet18': use that one" in str(e.value)

    def test_nothing_is_not_95_percent_of_nothing(self) -> None:
        with pytest.raises(ValueError, match="0 of 0 tensors matched"):
            encoder_of(tower()).into(nn.Linear(4, 3))

    def test_a_last_layer_that_is_not_linear_is_refused(self) -> None:
        with pytest.raises(ValueError, match="the last layer of Odd is Sequential, and must be a Linear"):
            encoder_of(tower()).into(Odd())

    def test_half_precision_and_other_layouts(self) -> None:
        source = networks.build("cnn", (3, 8, 8), 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        made = encoder_of(source)
        target = networks.build("cnn", (3, 8, 8), 2)
        made.into(target)
        assert same({k: v.data for k, v in body(target).items()}, {k: v.data for k, v in body(source).items()})
        half = replace(made, weights={k: v.half() if v.is_floating_point() else v for k, v in made.weights.items()})
        half.into(target)
        assert all(t.dtype in (torch.float32, torch.int64) for t in target.state_dict().values())

    @pytest.mark.parametrize("name", [n for n in networks.available() if n.startswith(("mlp", "cnn", "resnet18"))])
    def test_features_and_last_layer_are_the_network(self, name: str) -> None:
        """What the probe of pre-training learns is what the network says."""
        net = networks.build(name, (3, 32, 32), 5).eval()
        x = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(net(x), linear_head(net)(features(net, x)))


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.first(x))
        return out


class TestIdentity:
    def test_digest_is_of_weights_and_scaling(self) -> None:
        made = encoder_of(tower())
        backwards = replace(made, weights=dict(reversed(made.weights.items())))
        alike = [backwards, replace(made, about={"name": "x"}), replace(made, frozen=True), deepcopy(made)]
        assert {e.digest for e in alike} == {made.digest}
        moved = {**made.weights, "0.bias": made.weights["0.bias"] + 1e-6}
        renamed = {f"x{k}": v for k, v in made.weights.items()}
        other = [replace(made, mean=made.mean + 1), replace(made, scale=made.scale * 2)]
        other += [replace(made, weights=w) for w in (moved, renamed)]
        assert len({made.digest, *(e.digest for e in other)}) == 5

    def test_the_record_says_what_it_started_from(self) -> None:
        made = encoder_of(tower(), about={"network": "mlp"})
        assert network_name(made) == f"mlp from encoder {made.digest}"
        assert network_name(replace(made, frozen=True)) == f"mlp from frozen encoder {made.digest}"

    def test_it_can_be_compared_hashed_and_shown(self) -> None:
        """scikit-learn shows parameters, and compares how they are shown."""
        made = encoder_of(tower(), about={"network": "mlp"})
        assert made == made
        assert made != deepcopy(made)
        assert len({made, made}) == 1
        assert len(repr(made)) < 200
        assert repr(made) != repr(replace(made, mean=made.mean + 1))

    def test_a_network_must_be_named(self) -> None:
        with pytest.raises(ValueError, match=r"does not say of which network it is: about=\{'network': NAME\}"):
            as_factory(encoder_of(tower()), (4,), 3)
        with pytest.raises(ValueError, match="unknown network 'mpl': did you mean 'mlp'"):
            as_factory(encoder_of(tower(), about={"network": "mpl"}), (4,), 3)(0)


class TestPeers:
    def test_the_last_layer_starts_at_zero_for_the_first_network_alone(self) -> None:
        torch.manual_seed(0)
        make = Started(lambda k: tower(), encoder_of(tower()))
        nets = [make(k) for k in range(3)]
        assert not any(p.any() for p in linear_head(nets[0]).parameters())
        heads = [linear_head(net).weight for net in nets]
        assert heads[1].all()
        assert heads[2].all()
        assert not torch.equal(heads[1], heads[2])
        for net in nets[1:]:
            assert same({k: v.data for k, v in body(nets[0]).items()}, {k: v.data for k, v in body(net).items()})
        assert make.match is not None
        assert len(make.match.matched) == 50

    @pytest.mark.parametrize("name", [n for n in NAMES if METHODS[n].peers == 2 and n != "incv"])
    @pytest.mark.parametrize("frozen", [False, True])
    def test_two_networks_do_not_stay_one(self, name: str, frozen: bool) -> None:
        made, data = replace(pretrained(blobs(97), "mlp"), frozen=frozen), blobs(97)
        r = fine_tuned(made, data, eager(name), epochs=4, lr=0.1)
        a, b = (linear_head(net).weight.detach() for net in r.nets)
        assert float((a - b).norm()) > 0.1 * float(a.norm())
        if not frozen:
            assert not torch.equal(*(next(iter(net.parameters())) for net in r.nets))


class TestFreezing:
    def test_what_learns_and_what_rests(self) -> None:
        net = networks.build("cnn", (1, 8, 8), 3)
        freeze(net)
        learning = {name for name, p in net.named_parameters() if p.requires_grad}
        assert learning == {"head.weight", "head.bias"}
        nets = Nets([net, networks.build("cnn", (1, 8, 8), 3)], twins=True)
        nets.train()
        assert [m for m in nets[0].modules() if m.training] == [nets[0].head]
        assert all(m.training for m in nets[1].modules())
        assert not any(m.training for m in nets.twins.modules() if m is not nets.twins)
        nets.eval()
        assert not any(m.training for m in nets.peers.modules())

    @pytest.mark.parametrize("name", NAMES)
    def test_every_method_leaves_it_to_the_last_bit(self, name: str) -> None:
        kind = METHODS[name]
        network = "cnn-gn" if "batchnorm" in kind.forbids else "cnn"
        if "classification" in kind.tasks:
            data, side = pictures(), {s: pictures(5, 20) for s in kind.streams if s != "train"}
        else:
            data, side, network = line(), {}, "mlp"
        made = replace(pretrained(data, network), frozen=True)
        if name == "simclr":  # whose pre-training could not train anything
            with pytest.raises(ValueError, match="frozen"):
                fine_tuned(made, data, eager(name), batch_size=16)
            return
        r = fine_tuned(made, data, eager(name), batch_size=16, streams=side)
        assert kept(r, made) == [True] * len(r.nets)
        assert all(linear_head(net).weight.any() for net in r.nets), "the last layer learned"

    @pytest.mark.parametrize("name", NAMES)
    def test_every_method_trains_what_is_not_frozen(self, name: str) -> None:
        kind, data = METHODS[name], problem(METHODS[name])
        made = pretrained(data, "mlp")
        r = fine_tuned(made, data, eager(name), streams=streams(kind), epochs=3)
        assert kept(r, made) == [False] * len(r.nets)
        assert all(np.isfinite(v) for row in r.history for v in row.values())
        assert r.notes[-1] == "started from an encoder: 4 of 4 tensors matched"

    @pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "lars"])
    def test_no_optimiser_moves_it(self, optimizer: str) -> None:
        data = pictures()
        made = replace(pretrained(data), frozen=True)
        r = fine_tuned(made, data, optimizer=optimizer, weight_decay=0.5, clip=0.1)
        assert kept(r, made) == [True]
        assert linear_head(r.nets[0]).weight.any()

    def test_frozen_features_are_those_of_evaluation(self) -> None:
        """Training sees what prediction will see: no statistics of the batch, no dropout."""
        seen = []

        class Watched(CE):
            def loss(self, nets: Any, batch: Any, now: Any) -> Any:
                seen.append((batch.x, features(nets[0], batch.x)))
                return super().loss(nets, batch, now)

        data = pictures()
        made = replace(pretrained(data), frozen=True)
        r = fine_tuned(made, data, Watched())
        for x, out in seen:
            torch.testing.assert_close(out, features(r.nets[0].eval(), x), atol=1e-5, rtol=1e-4)


class TestScaling:
    def test_its_own_travels_whatever_the_data(self) -> None:
        """Pre-trained on bright images, fine-tuned on dark ones: the network still sees them as it did before."""
        bright, dark = pictures(0), pictures(1, dark=3)
        made = pretrained(bright)
        torch.testing.assert_close(made.mean, torch.tensor([bright.x.mean()], dtype=torch.float32))
        torch.testing.assert_close(made.scale, torch.tensor([1 / bright.x.std()], dtype=torch.float32))
        assert (made.top, made.about["in_shape"]) == (255.0, (1, 8, 8))
        r = fine_tuned(made, dark)
        own = r.standardise
        assert torch.equal(own.mean.flatten(), made.mean)
        assert torch.equal(own.scale.flatten(), made.scale)
        shown = (torch.from_numpy(dark.x).float() - made.mean.view(1, -1, 1, 1)) * made.scale.view(1, -1, 1, 1)
        with torch.no_grad():
            expected = r.nets[0].eval()(shown).softmax(1)
        np.testing.assert_allclose(r.predict(dark.x), expected, atol=1e-5)
        again = r.encoder()
        assert torch.equal(again.mean, made.mean)
        assert torch.equal(again.scale, made.scale)

    def test_validation_test_and_verified_samples_too(self) -> None:
        dark, seen = pictures(1, n=80, dark=3), {}

        class Watched(METHODS["mentornet-dd"]):  # type: ignore[misc]
            def update(self, run: Any, batch: Any) -> Any:
                seen["clean"] = batch.side["clean"].x
                return super().update(run, batch)

            def predict(self, nets: Any, x: Tensor) -> Tensor:
                seen["predicted"] = torch.cat([seen.get("predicted", x[:0]), x])
                return super().predict(nets, x)

        made = pretrained(pictures(0))
        outputs = 2
        fit(
            Watched(),
            as_factory(made, (1, 8, 8), outputs),
            dark,
            settings(epochs=1, validation_fraction=0.25),
            test=pictures(7, 40, dark=3),
            streams={"clean": pictures(6, 20, dark=3)},
        )
        assert len(seen["predicted"]) >= 60
        low, high = (float((v - made.mean[0]) * made.scale[0]) for v in (0, 31))
        for x in seen.values():
            assert float(x.min()) >= low - 1e-5
            assert float(x.max()) <= high + 1e-5

    def test_columns_of_rows(self) -> None:
        data = blobs(97)
        made = pretrained(data, "mlp")
        assert made.top is None
        other = replace(data, x=data.x * np.float32(100) + np.float32(7))
        r = fine_tuned(made, other)
        assert torch.equal(r.standardise.mean, made.mean)
        assert torch.equal(r.standardise.scale, made.scale)

    def test_a_constant_column_stays_silent(self) -> None:
        data = blobs(97)
        still = replace(data, x=np.concatenate([data.x, np.full((97, 1), 3, np.float32)], 1))
        made = pretrained(still, "mlp")
        assert made.scale[-1] == 0
        wild = replace(still, x=still.x.copy())
        wild.x[:, -1] = 1e6
        np.testing.assert_array_equal(fine_tuned(made, still).predict(still.x), fine_tuned(made, wild).predict(wild.x))

    @pytest.mark.parametrize("streamed", [False, True])
    def test_images_from_0_to_1_are_refused(self, streamed: bool) -> None:
        data = pictures()
        made = pretrained(data, name="mine")
        small = (data.x / 255).astype(np.float32)
        x: Any = [torch.from_numpy(image) for image in small] if streamed else small
        with pytest.raises(ValueError, match=r"images go up to 1, those trained on went up to 255: give them on that"):
            fit(CE(), as_factory(made, (1, 8, 8), 2), replace(data, x=x), settings(epochs=1))

    def test_images_from_0_to_255_are_refused_the_other_way_round(self) -> None:
        data = pictures()
        made = pretrained(replace(data, x=(data.x / 255).astype(np.float32)))
        assert made.top == 1.0
        with pytest.raises(ValueError, match=r"images go up to 255, those trained on went up to 1"):
            fine_tuned(made, data)

    def test_streamed_images_have_a_largest_value_as_well(self) -> None:
        data = pictures()
        streamed = replace(data, x=[torch.from_numpy(image) for image in data.x])
        made = fit(CE(), as_factory("cnn", (1, 8, 8), 2), streamed, settings(epochs=1)).encoder()
        assert made.top == 255.0

    def test_other_channels_or_columns_are_refused(self) -> None:
        made = pretrained(pictures(), name="mine")
        with pytest.raises(ValueError, match=r"mine was trained on inputs of 1 .*, and one of data has 3"):
            fine_tuned(made, pictures(channels=3))
        rows = pretrained(blobs(97), "mlp", name="rows")
        with pytest.raises(ValueError, match=r"rows was trained on inputs of 8 .*, and one of data has 5"):
            fine_tuned(rows, blobs(97, dims=5))

    def test_images_of_another_size_are_refused_where_they_do_not_fit(self) -> None:
        made = pretrained(pictures(), "mlp", name="flat")
        larger = Data(np.zeros((60, 1, 9, 9), np.uint8) + 200, np.arange(60) % 2, classes=np.arange(2))
        with pytest.raises(ValueError, match=r"flat does not fit this network: 3 of 4 tensors matched; missing: "):
            fine_tuned(made, larger)


class TestEstimator:
    @pytest.mark.parametrize("name", CLASSIFIERS)
    def test_every_method_starts_from_it(self, name: str) -> None:
        data = blobs(120)
        made = pretrained(data, "mlp")
        side = {s: (d.x, d.y) for s, d in streams(METHODS[name]).items()}
        clf = lp.NoisyLabelClassifier(method=eager(name), network=made, epochs=4, batch_size=32, lr=0.05)
        assert clf.fit(data.x, data.y, **side).score(data.x, data.truth) > 0.6
        assert len(clf.find_issues()) == 120
        assert any(note.startswith("started from an encoder: 4 of 4") for note in clf.run_.fitted.notes)

    def test_regression(self) -> None:
        data = line(200)
        reg = lp.NoisyLabelRegressor(method="huber", network=pretrained(data, "mlp"), epochs=4, lr=0.01)
        assert np.isfinite(reg.fit(data.x, data.y[:, 0]).predict(data.x)).all()

    def test_cloned_pickled_and_searched_over(self) -> None:
        data = blobs(120)
        made = pretrained(data, "mlp")
        clf = lp.NoisyLabelClassifier(method="ce", network=made, epochs=2, lr=0.05)
        twin = clone(clf)
        assert twin.get_params()["network"].digest == made.digest
        assert "network=" in repr(twin)
        a, b = clf.fit(data.x, data.y), twin.fit(data.x, data.y)
        np.testing.assert_array_equal(a.predict_proba(data.x), b.predict_proba(data.x))
        back = pickle.loads(pickle.dumps(a))
        np.testing.assert_array_equal(a.predict_proba(data.x), back.predict_proba(data.x))
        np.testing.assert_array_equal(back.fit(data.x, data.y).predict_proba(data.x), b.predict_proba(data.x))
        grid = {"network": [made, replace(made, frozen=True), "mlp"], "method__label_smoothing": [0.0, 0.1]}
        found = GridSearchCV(lp.NoisyLabelClassifier(method="ce", epochs=2), grid, cv=2, error_score="raise")
        found.fit(data.x, data.y)
        assert len(found.cv_results_["params"]) == 6
        assert found.best_score_ > 0.5

    def test_the_encoder_itself_is_never_changed(self) -> None:
        data = blobs(120)
        made = pretrained(data, "mlp")
        before = made.digest
        lp.NoisyLabelClassifier(method="co-teaching", network=made, epochs=3, lr=0.1).fit(data.x, data.y)
        assert made.digest == before

    def test_a_run_can_be_gone_on_from(self) -> None:
        """`Fitted.encoder` of an estimator, named, into another estimator."""
        data = blobs(200)
        first = lp.NoisyLabelClassifier(method="elr", epochs=5, lr=0.05).fit(data.x, data.y)
        made = replace(first.run_.fitted.encoder(), about={"network": "mlp"}, frozen=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            second = lp.NoisyLabelClassifier(method="ce", network=made, epochs=5, lr=0.05).fit(data.x, data.y)
        assert second.score(data.x, data.truth) > 0.85


def test_a_stage_of_a_procedure_starts_from_another(tmp_path: Any) -> None:
    """`fit(..., encoder=)` inside a method's `run`, on top of what the user's networks start from."""
    found: dict[str, Any] = {}

    class Two(CE):
        def run(self, fit: Callable[..., Any], data: Any) -> Any:
            first = fit(CE(), data, stage="first", epochs=2)
            found["encoder"] = replace(first.encoder(), frozen=True)
            return fit(self, data, encoder=found["encoder"])

    data = blobs(97)
    plain = fit(Two(), as_factory("mlp", (8,), 3), data, settings(), folder=tmp_path / "plain")
    assert kept(plain, found["encoder"]) == [True]
    users = pretrained(blobs(97, seed=5), "mlp")
    r = fit(Two(), as_factory(users, (8,), 3), data, settings(), folder=tmp_path / "users")
    assert kept(r, found["encoder"]) == [True]
    assert torch.equal(r.standardise.mean, users.mean), "the scaling is that of the first encoder, all the way"
    assert sum(note.startswith("started from") for note in r.notes) == 1
