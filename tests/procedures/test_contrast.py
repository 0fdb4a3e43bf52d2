"""Pre-training without labels: the loss by hand, who learns from what, and that labels leave the features alone."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from labelproof import networks
from labelproof.core.encoder import body, freeze
from labelproof.core.nets import Nets, features, linear_head
from labelproof.core.task import Classification, Regression
from labelproof.core.types import Batch, Clock
from labelproof.data.dataset import Data
from labelproof.data.seeds import generator
from labelproof.engine import checkpoint
from labelproof.engine.stages import Stages, fit
from labelproof.engine.training import Training
from labelproof.functional.neighbours import knn_agreement
from labelproof.networks.factory import as_factory
from labelproof.procedures.contrast import Contrast, pretrain
from tests.toy import line, mlp, same, settings


def rows(n: int = 160, seed: int = 0) -> Data:
    """Ten columns, each a noisy copy of one of two hidden numbers, whose signs make four classes."""
    rng = np.random.default_rng(seed)
    hidden = rng.choice([-1.0, 1.0], (n, 2))
    x = (np.repeat(hidden, 5, 1) + 0.6 * rng.normal(size=(n, 10))).astype(np.float32)
    y = ((hidden > 0) @ [1, 2]).astype(np.int64)
    return Data(x, y, classes=np.arange(4), truth=y)


def pictures(n: int = 64, channels: int = 3, size: int = 8) -> Data:
    x = np.random.default_rng(0).integers(0, 256, (n, channels, size, size), dtype=np.uint8)
    return Data(x, np.arange(n) % 3, classes=np.arange(3))


def shuffled(data: Data) -> Data:
    return data.relabelled(np.random.default_rng(5).permutation(data.y))


def trained(data: Data, network: str = "mlp", method: Contrast | None = None, **options: Any) -> Any:
    folder = options.pop("folder", None)
    resume = options.pop("resume", False)
    make = as_factory(network, data.x.shape[1:], data.num_classes or data.y.shape[1])
    how = settings(**{"batch_size": 32, "lr": 1e-3, "optimizer": "adamw", "epochs": 2, **options})
    return fit(method or Contrast(), make, data, how, folder=folder, resume=resume)


def set_up(task: Any = None, n: int = 6) -> tuple[Contrast, Nets, Batch, Clock]:
    torch.manual_seed(0)
    nets, method = Nets([mlp(5, 3, width=7)]), Contrast(temperature=0.2, width=4)
    method.setup(task or Classification(3), 20, nets[0])
    for norm in (method.g[1], method.g[4]):  # away from where BatchNorm starts
        norm.weight.data.uniform_(0.5, 2)
    method.g[1].bias.data.normal_()
    views = torch.randn(n, 5), torch.randn(n, 5)
    target = torch.arange(n) % 3 if task is None else torch.randn(n, 1)
    return method, nets, Batch(torch.arange(n), views, target), Clock(0, 4, 0, 2, generator(0, "test", 0, 0))


def by_hand(method: Contrast, nets: Nets, batch: Batch) -> tuple[float, float]:
    """The contrastive loss and the probe's, in float64 with loops."""
    _, first, _, _, head = nets[0]
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in (first.weight, first.bias, head.weight, head.bias))
    x = torch.cat(batch.views).double().numpy()
    h = np.maximum(x @ w1.T + b1, 0)

    def normalised(a: Any, norm: nn.BatchNorm1d) -> Any:
        scale, shift = (p.detach().double().numpy() for p in (norm.weight, norm.bias))
        return (a - a.mean(0)) / np.sqrt(a.var(0) + norm.eps) * scale + shift

    inner, outer = (method.g[k].weight.detach().double().numpy() for k in (0, 3))
    z = normalised(np.maximum(normalised(h @ inner.T, method.g[1]), 0) @ outer.T, method.g[4])
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    n, total = len(batch.index), 0.0
    for i in range(2 * n):
        j = (i + n) % (2 * n)
        below = sum(np.exp(z[i] @ z[k] / method.temperature) for k in range(2 * n) if k != i)
        total -= np.log(np.exp(z[i] @ z[j] / method.temperature) / below)
    out = h[:n] @ w2.T + b2
    p = np.exp(out) / np.exp(out).sum(1, keepdims=True)
    return total / (2 * n), -np.log(p[np.arange(n), batch.target.numpy()]).mean()


class TestLoss:
    def test_by_hand(self) -> None:
        method, nets, batch, now = set_up()
        contrast, probe = by_hand(method, nets, batch)
        loss = method.loss(nets, batch, now)
        assert float(loss.value.detach()) == pytest.approx(contrast + probe, rel=1e-5)
        assert float(loss.log["contrast"]) == pytest.approx(contrast, rel=1e-5)
        assert float(loss.log["probe"]) == pytest.approx(probe, rel=1e-5)
        torch.testing.assert_close(loss.out, nets[0](batch.views[0]), msg="of the first view")

    def test_who_learns_from_what(self) -> None:
        """Features and projection from the views alone, the last layer from the labels alone."""
        grads = []
        for target in (torch.arange(6) % 3, torch.zeros(6, dtype=torch.int64)):
            method, nets, batch, now = set_up()
            method.loss(nets, batch._replace(target=target), now).value.backward()
            head = [p.grad for p in linear_head(nets[0]).parameters()]
            grads.append(([p.grad for p in body(nets[0]).values()] + [p.grad for p in method.g.parameters()], head))
        (features_, head), (features_too, other) = grads
        assert same(features_, features_too)
        assert not torch.equal(head[0], other[0])
        method, nets, batch, now = set_up()
        h = features(nets[0], batch.views[0]).detach()
        p = linear_head(nets[0])(h).softmax(1) - nn.functional.one_hot(batch.target, 3)
        torch.testing.assert_close(head[0], (p.T @ h / 6).detach())

    def test_the_projection_is_that_of_the_paper(self) -> None:
        method, nets, _, _ = set_up()
        shapes = {k: tuple(p.shape) for k, p in method.g.named_parameters() if p.requires_grad}
        assert shapes == {"0.weight": (7, 7), "1.weight": (7,), "1.bias": (7,), "3.weight": (4, 7), "4.weight": (4,)}
        assert not method.g[4].bias.any()
        del nets

    def test_optimisers_share_what_learns(self) -> None:
        method, nets, _, _ = set_up()
        made = method.optimizers(nets, lambda params: torch.optim.SGD(params, 0.1))
        held = {name: [id(p) for g in o.param_groups for p in g["params"]] for name, o in made.items()}
        assert held["probe"] == [id(p) for p in linear_head(nets[0]).parameters()]
        learning = [p for p in (*nets.parameters(), *method.g.parameters()) if p.requires_grad]
        assert sorted(held["nets"] + held["probe"]) == sorted(map(id, learning))
        assert type(made["probe"]) is torch.optim.Adam
        assert made["probe"].param_groups[0]["lr"] == 1e-3

    def test_targets_that_are_numbers(self) -> None:
        method, nets, batch, now = set_up(Regression(1))
        method.setup(Regression(1), 20, nets[0])
        nets.peers[0] = mlp(5, 1, width=7)
        loss = method.loss(nets, batch, now)
        expected = nn.functional.mse_loss(nets[0](batch.views[0]), batch.target)
        torch.testing.assert_close(loss.log["probe"], Regression(1).loss(loss.out, batch.target).mean())
        assert float(loss.log["probe"]) == pytest.approx(float(expected.detach()), rel=0.51)

    def test_statistics_move_once_per_step_over_both_views(self) -> None:
        net = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 3))
        method, _, batch, now = set_up()
        method.setup(Classification(3), 20, net)
        method.loss(Nets([net]).train(), batch, now)
        assert int(net[1].num_batches_tracked) == 1
        mean = net[0](torch.cat(batch.views)).mean(0)
        torch.testing.assert_close(net[1].running_mean, 0.1 * mean)


class TestLabels:
    @pytest.mark.parametrize(
        "how",
        [
            {},
            {"clip": 0.01},
            {"optimizer": "lars", "lr": 0.3},
            {"optimizer": "sgd", "lr": 0.1, "weight_decay": 0.1, "momentum_schedule": "multistep:1:0.5"},
            {"accumulate": 2, "clip": 0.1},
            {"precision": "bf16-mixed"},
            {"schedule": "warmup:1+cosine"},
        ],
        ids=str,
    )
    def test_they_do_not_touch_the_features(self, how: dict[str, Any]) -> None:
        a, b = trained(rows(), **how), trained(shuffled(rows()), **how)
        assert same(dict(a.encoder().weights), dict(b.encoder().weights))
        assert same(dict(a.method.state_dict()), dict(b.method.state_dict())), "nor the projection"
        assert not torch.equal(linear_head(a.nets[0]).weight, linear_head(b.nets[0]).weight)
        untouched = trained(rows(), epochs=1, lr=1e-12, **{k: v for k, v in how.items() if k == "precision"})
        assert not same(dict(a.encoder().weights), dict(untouched.encoder().weights)), "and the features did learn"

    @pytest.mark.parametrize("network", ["cnn", "resnet32"])
    def test_nor_those_of_images_with_batchnorm(self, network: str) -> None:
        data = pictures()
        a, b = trained(data, network), trained(shuffled(data), network)
        assert same(dict(a.encoder().weights), dict(b.encoder().weights))


class TestMonitors:
    def test_they_are_in_metrics(self, tmp_path: Path) -> None:
        r = trained(rows(), epochs=25, folder=tmp_path)
        table = list(csv.DictReader((tmp_path / "metrics.csv").open()))
        assert len(table) == 25
        for row in table:
            assert all(float(row[name]) > 0 for name in ("contrast", "probe", "agree"))
            assert float(row["loss"]) == pytest.approx(float(row["contrast"]) + float(row["probe"]), rel=1e-5)
        looked = [int(row["epoch"]) for row in table if row["knn_agreement"]]
        assert looked == [*range(2, 25, 2), 25], "about ten times, and in the end"
        assert r.history[-1]["knn_agreement"] == float(table[-1]["knn_agreement"])

    def test_neighbours_are_those_of_the_features_as_they_are(self) -> None:
        data = rows()
        r = trained(data, epochs=3)
        with torch.no_grad():
            x = r.standardise(torch.from_numpy(data.x))
            expected = knn_agreement(features(r.nets[0].eval(), x), torch.from_numpy(data.y))
        assert r.history[-1]["knn_agreement"] == pytest.approx(float(expected), abs=1e-6)

    def test_what_they_say_of_features_that_are_good(self) -> None:
        """Hidden numbers are found without labels, and labels half of which are wrong agree with them by half."""
        data = rows(400)
        r = trained(data, epochs=30)
        assert r.history[-1]["knn_agreement"] > 0.85
        assert r.history[-1]["agree"] > 0.8
        assert r.history[-1]["contrast"] < r.history[0]["contrast"] - 0.15
        noisy = data.y.copy()
        noisy[::2] = np.random.default_rng(0).integers(0, 4, 200)
        half = trained(data.relabelled(noisy), epochs=30).history[-1]
        assert 0.5 < half["knn_agreement"] < 0.75

    def test_predictions_are_the_probes(self) -> None:
        data = rows(400)
        r = trained(data, epochs=30)
        assert (r.predict(data.x).argmax(1) == data.y).mean() > 0.8

    def test_numbers_pre_train_too(self, tmp_path: Path) -> None:
        r = trained(line(), epochs=3, folder=tmp_path)
        assert "knn_agreement" not in r.history[-1]
        assert r.history[-1]["contrast"] < r.history[0]["contrast"]
        assert all(np.isfinite(v) for row in r.history for v in row.values())
        assert r.predict(line().x).shape == (97, 1)
        scrambled = replace(line(), y=line().y[::-1].copy(), truth=None)
        assert same(dict(r.encoder().weights), dict(trained(scrambled, epochs=3).encoder().weights))


class TestEncoder:
    def test_holds_the_features_and_their_scaling(self) -> None:
        data = pictures()
        made = trained(data, "cnn").encoder()
        net = networks.build("cnn", (3, 8, 8), 3)
        assert made.weights.keys() == body(net).keys()
        assert (made.top, made.about["in_shape"]) == (float(data.x.max()), (3, 8, 8))
        np.testing.assert_allclose(made.mean, data.x.mean((0, 2, 3)), rtol=1e-5)
        np.testing.assert_allclose(made.scale, 1 / data.x.std((0, 2, 3)), rtol=1e-5)

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("streamed", [False, True])
    def test_images_in_memory_or_streamed(self, channels: int, streamed: bool) -> None:
        data = pictures(channels=channels)
        x: Any = [torch.from_numpy(image) for image in data.x] if streamed else data.x
        make = as_factory("cnn", (channels, 8, 8), 3)
        how = settings(epochs=1, batch_size=32, lr=1e-3, optimizer="adamw")
        a, b = (fit(Contrast(), make, replace(data, x=each), how).encoder() for each in (x, data.x))
        assert same(dict(a.weights), dict(b.weights))

    def test_only_what_may_be_mirrored_is(self) -> None:
        """Photographs are, unless `augment` says otherwise; digits and letters, grey as they are, are not."""
        found = {
            (channels, augment): trained(pictures(channels=channels), "cnn", epochs=1, augment=augment).encoder().digest
            for channels in (1, 3)
            for augment in ("auto", "crop", "crop-flip")
        }
        for channels, like, other in ((1, "crop", "crop-flip"), (3, "crop-flip", "crop")):
            assert found[channels, "auto"] == found[channels, like]
            assert found[channels, "auto"] != found[channels, other]

    def test_seeds_decide(self) -> None:
        a, b, c = (trained(rows(), seed=s).encoder().digest for s in (0, 0, 1))
        assert a == b != c

    def test_rows_are_corrupted_in_the_second_view_alone(self) -> None:
        seen = []

        class Watched(Contrast):
            def loss(self, nets: Any, batch: Any, now: Any) -> Any:
                seen.append(batch)
                return super().loss(nets, batch, now)

        data = rows()
        r = trained(data, method=Watched(), epochs=1)
        for batch in seen:
            plain = r.standardise(torch.from_numpy(data.x)[batch.index])
            assert torch.equal(batch.views[0], plain)
            moved = (batch.views[1] != plain).float().mean()
            assert 0.4 < moved < 0.8


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"temperature": 0}, r"temperature=0 must lie in \(0, inf\)"),
            ({"temperature": -1.0}, r"temperature=-1\.0 must lie in"),
            ({"width": 0}, r"width=0 must lie in \[1, inf\)"),
            ({"probe_lr": 0.0}, r"probe_lr=0\.0 must lie in \(0, inf\)"),
        ],
    )
    def test_values(self, options: dict[str, Any], text: str) -> None:
        with pytest.raises(ValueError, match=text):
            Contrast(**options)

    def test_nothing_to_train(self) -> None:
        frozen = networks.build("mlp", (10,), 4)
        freeze(frozen)
        for net in (frozen, networks.build("linear", (10,), 4)):
            with pytest.raises(ValueError, match=r"simclr trains what comes before the last layer.*frozen"):
                fit(Contrast(), lambda k, net=net: net, rows(), settings())

    def test_a_last_layer_of_several(self) -> None:
        net = networks.build("mlp", (10,), 4)
        net.head = nn.Sequential(nn.Linear(256, 8), nn.Linear(8, 4))  # type: ignore[assignment]
        with pytest.raises(ValueError, match=r"the last layer of MLP is Sequential, and must be a Linear"):
            fit(Contrast(), lambda k: net, rows(), settings())

    def test_inputs_of_another_kind(self) -> None:
        with pytest.raises(ValueError, match=r"contrastive views need images of 1 or 3 channels, .* \(4, 8, 8\)"):
            trained(pictures(channels=4), "cnn")


class TestStage:
    def test_a_training_of_its_own_with_a_note(self, tmp_path: Path) -> None:
        data = rows()
        stages = Stages(
            factory=as_factory("mlp", (10,), 4),
            settings=settings(epochs=3, batch_size=32, lr=0.1, seed=3),
            stamp={"method": "x"},
            folder=tmp_path,
        )
        made = pretrain(stages, Contrast(width=8), data, length=2.0, optimizer="adamw", lr=1e-3, weight_decay=None)
        assert [p.name for p in tmp_path.iterdir()] == ["pretrain"]
        alone = trained(data, method=Contrast(width=8), epochs=6, seed=3)
        assert same(dict(made.weights), dict(alone.encoder().weights))
        last = alone.history[-1]
        [note] = stages.notes
        assert note.startswith("pre-trained without labels for 6 epochs: ")
        for name in ("contrast", "agree", "knn_agreement"):
            assert stages.figures["pretraining"][name] == last[name]
            assert f"{last[name]:.3f}" in note

    @pytest.mark.parametrize("steps", [1, 7, 12])  # in the first epoch, in the middle of the second, in the third
    def test_killed_and_resumed(self, steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data, how = rows(), {"epochs": 3, "checkpoint_every": 1, "schedule": "warmup:1+cosine", "clip": 1.0}
        whole = trained(data, folder=tmp_path / "whole", **how)
        plain, done = Training.run_batch, 0

        def mortal(*args: Any) -> Any:
            nonlocal done
            if done == steps:
                raise KeyboardInterrupt
            done += 1
            return plain(*args)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Training, "run_batch", mortal)
            trained(data, folder=tmp_path / "killed", **how)
        trained(data, folder=tmp_path / "killed", resume=True, **how)
        ends = [checkpoint.load(tmp_path / name) for name in ("whole", "killed")]
        assert same(ends[0]["training"], ends[1]["training"]), "networks, projection and both optimisers"
        assert same(ends[0]["evidence"], ends[1]["evidence"])
        assert whole.history[-1]["knn_agreement"] == ends[1]["history"][-1]["knn_agreement"]


def test_digits_are_told_apart_without_labels() -> None:
    """The real thing, small: 8x8 digits, a probe and neighbours far above those of a network that was drawn."""
    x, y = load_digits(return_X_y=True)
    data = Data((x.reshape(-1, 1, 8, 8) * 15).astype(np.uint8), y.astype(np.int64), classes=np.arange(10))
    r = trained(data, "cnn", Contrast(probe_lr=0.01), epochs=8, batch_size=256, lr=3e-3)
    assert r.history[-1]["contrast"] < r.history[0]["contrast"] - 0.2
    assert r.history[-1]["knn_agreement"] > 0.93
    assert r.history[-1]["agree"] > 0.4, "of crops"
    assert (r.predict(data.x).argmax(1) == y).mean() > r.history[-1]["agree"] + 0.1, "of whole digits"
