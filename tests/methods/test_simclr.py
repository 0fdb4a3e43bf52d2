"""Contrastive initialisation: its loss by hand, its two trainings, and both faces of it."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

import labelproof as lp
from labelproof.core.encoder import Encoder, body
from labelproof.core.method import Planned
from labelproof.core.nets import Nets, linear_head
from labelproof.core.task import Classification
from labelproof.core.types import Batch, Clock
from labelproof.data.seeds import generator
from labelproof.engine import checkpoint
from labelproof.engine.stages import Stages, fit
from labelproof.methods import METHODS, SimCLR
from labelproof.networks.factory import as_factory
from labelproof.procedures.contrast import Contrast
from tests.procedures.stub import Stub
from tests.toy import blobs, factory, mlp, same, settings

CLOCK = Clock(0, 4, 0, 2, generator(0, "test", 0, 0))


def trained(data: Any = None, method: SimCLR | None = None, folder: Path | None = None, **options: Any) -> Any:
    data = blobs(160, flips=0.2) if data is None else data
    resume = options.pop("resume", False)
    how = settings(**{"epochs": 2, **options})
    make = as_factory("mlp", (8,), 3)
    return fit(method or SimCLR(), make, data, how, folder=folder, resume=resume)


class TestLoss:
    @pytest.mark.parametrize("q", [0.0, 0.01, 0.5, 0.66, 1.0])
    def test_by_hand(self, q: float) -> None:
        torch.manual_seed(0)
        nets, method = Nets([mlp(8, 3)]), SimCLR(q=q)
        method.setup(Classification(3), 32, nets[0])
        x, y = torch.randn(32, 8), torch.arange(32) % 3
        loss = method.loss(nets, Batch(torch.arange(32), (x,), y), CLOCK)
        out = nets[0](x).detach().double().numpy()
        p = (np.exp(out) / np.exp(out).sum(1, keepdims=True))[np.arange(32), y.numpy()]
        expected = -np.log(p).mean() if q == 0 else ((1 - p**q) / q).mean()
        assert float(loss.value.detach()) == pytest.approx(expected, rel=1e-4)
        assert loss.trust is None

    @pytest.mark.parametrize("q", [0.0, 0.5, 1.0])
    def test_gradients_are_finite_where_the_label_is_impossible(self, q: float) -> None:
        out = torch.tensor([[200.0, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
        method = SimCLR(q=q)
        method.setup(Classification(3), 2, mlp(3, 3))
        net = torch.nn.Identity()
        method.loss(Nets([net]), Batch(torch.arange(2), (out,), torch.tensor([1, 2])), CLOCK).value.backward()
        assert out.grad is not None
        assert torch.isfinite(out.grad).all()
        assert out.grad[1].abs().sum() > 0

    def test_close_to_zero_it_becomes_cross_entropy(self) -> None:
        torch.manual_seed(0)
        nets, y = Nets([mlp(8, 3)]), torch.arange(32) % 3
        batch = Batch(torch.arange(32), (torch.randn(32, 8),), y)
        values = []
        for q in (1e-4, 0.0):
            method = SimCLR(q=q)
            method.setup(Classification(3), 32, nets[0])
            values.append(float(method.loss(nets, batch, CLOCK).value.detach()))
        assert values[0] == pytest.approx(values[1], rel=1e-3)

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"q": -0.1}, r"q=-0\.1 must lie in \[0, 1\]"),
            ({"q": 1.5}, r"q=1\.5 must lie in \[0, 1\]"),
            ({"length": 0}, r"length=0 must lie in \(0, inf\)"),
            ({"temperature": 0.0}, r"temperature=0\.0 must lie in \(0, inf\)"),
            ({"pretrain_lr": -1}, r"pretrain_lr=-1 must lie in \(0, inf\)"),
            ({"pretrain_batch_size": 1}, r"pretrain_batch_size=1 must lie in \[2, inf\)"),
        ],
    )
    def test_values_out_of_range(self, options: dict[str, Any], text: str) -> None:
        with pytest.raises(ValueError, match=text):
            SimCLR(**options)


class Recorded(Stub):
    """Hands over an encoder of its own."""

    made = Encoder({"a": torch.ones(1)}, torch.zeros(1), torch.ones(1))

    def __call__(self, method: Any, data: Any, /, **options: Any) -> Any:
        trained = super().__call__(method, data, **options)
        trained.history = [{"epoch": 6, "contrast": 3.0, "agree": 0.5, "knn_agreement": 0.25}]
        trained.encoder = lambda: self.made
        return trained


class TestStages:
    def test_what_is_asked_for(self) -> None:
        stub, data = Recorded(lambda rows, number: rows), blobs(400)
        method = SimCLR(temperature=0.2, length=3.0, pretrain_lr=0.002, pretrain_batch_size=64)
        last = method.run(stub, data)
        first, second = stub.plans
        assert isinstance(first.method, Contrast)
        assert first.method.temperature == 0.2
        assert (first.stage, first.length) == ("pretrain", 3.0)
        assert {k: first.changes[k] for k in ("optimizer", "lr", "batch_size", "early_stopping")} == {
            "optimizer": "adamw", "lr": 0.002, "batch_size": 64, "early_stopping": False}  # fmt: skip
        assert (second.method, second.stage, second.length) == (method, "", 1.0)
        assert second.changes == {"encoder": stub.made}
        assert last.number == 1
        assert stub.figures == {"pretraining": {"contrast": 3.0, "agree": 0.5, "knn_agreement": 0.25}}
        assert first.data is second.data is data

    def test_a_folder_for_the_first_and_notes_of_both(self, tmp_path: Path) -> None:
        r = trained(folder=tmp_path, method=SimCLR(length=2.0))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["last.ckpt", "metrics.csv", "pretrain", "previous.ckpt"]
        before = checkpoint.load(tmp_path / "pretrain")
        assert len(before["history"]) == 4
        assert len(r.history) == 2
        assert "contrast" not in r.history[-1]
        assert r.notes[0].startswith("pre-trained without labels for 4 epochs: ")
        assert set(r.figures["pretraining"]) == {"contrast", "agree", "knn_agreement"}
        assert r.seconds_before > 0

    def test_the_second_starts_from_the_first_with_a_last_layer_of_zeros(self, tmp_path: Path) -> None:
        seen = []

        class Watched(SimCLR):
            def loss(self, nets: Any, batch: Any, now: Any) -> Any:
                if not seen:
                    seen.append({k: v.detach().clone() for k, v in nets[0].state_dict().items()})
                return super().loss(nets, batch, now)

        trained(folder=tmp_path, method=Watched())
        [start] = seen
        assert not start["head.weight"].any()
        assert not start["head.bias"].any()
        end = checkpoint.load(tmp_path / "pretrain")["training"]["step"]
        for name, value in start.items():
            if not name.startswith("head."):
                assert torch.equal(value, end[f"nets.peers.0.{name}"])

    def test_labels_change_the_second_alone(self, tmp_path: Path) -> None:
        data, folders = blobs(160), [tmp_path / "a", tmp_path / "b"]
        other = data.relabelled(np.random.default_rng(0).permutation(data.y))
        how = {"early_stopping": True, "validation_fraction": 0.25, "clip": 0.1}
        ends = [trained(d, folder=f, **how) for d, f in zip((data, other), folders, strict=True)]
        a, b = (checkpoint.load(f / "pretrain")["training"]["step"] for f in folders)
        names = [k for k in a if ".head." not in k]
        assert len(names) > 8
        for name in names:
            assert torch.equal(a[name], b[name]), name
        assert not same({k: v.data for k, v in body(ends[0].nets[0]).items()},
                        {k: v.data for k, v in body(ends[1].nets[0]).items()})  # fmt: skip

    def test_all_samples_are_pre_trained_on_and_the_best_epoch_is_of_the_second(self, tmp_path: Path) -> None:
        r = trained(folder=tmp_path, early_stopping=True, patience=1, epochs=8, validation_fraction=0.25)
        before = checkpoint.load(tmp_path / "pretrain")
        assert len(before["history"]) == 16
        assert "val_accuracy" not in before["history"][-1]
        assert (before["evidence"]["counts"][:, 0] == 16).all()
        assert r.best_epoch >= 1
        assert len(r.held) == 40

    def test_settings_of_each(self, tmp_path: Path) -> None:
        method = SimCLR(pretrain_lr=0.003, pretrain_batch_size=40)
        trained(folder=tmp_path, method=method, lr=0.07, weight_decay=0.5, batch_size=80, momentum=0.8)
        first, second = (checkpoint.load(f)["stamp"] for f in (tmp_path / "pretrain", tmp_path))
        names = ("optimizer", "lr", "weight_decay", "batch_size", "epochs", "momentum")
        assert [first[n] for n in names] == ["adamw", 0.003, 0.01, 40, 4, 0.8]
        assert [second[n] for n in names] == ["sgd", 0.07, 0.5, 80, 2, 0.8]

    def test_few_samples_are_no_reason_to_warn(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            trained(blobs(97), batch_size=32)

    def test_a_length_below_one_epoch_is_one(self, tmp_path: Path) -> None:
        trained(folder=tmp_path, method=SimCLR(length=0.01))
        assert len(checkpoint.load(tmp_path / "pretrain")["history"]) == 1

    def test_on_top_of_an_encoder_of_ones_own(self) -> None:
        data = blobs(160)
        users = fit(METHODS["ce"](), as_factory("mlp", (8,), 3), data, settings()).encoder()
        made = Encoder(users.weights, users.mean + 1, users.scale * 2, about={"network": "mlp"})
        r = fit(SimCLR(), as_factory(made, (8,), 3), data, settings(epochs=1))
        assert torch.equal(r.standardise.mean, made.mean)
        assert torch.equal(r.standardise.scale, made.scale)
        with pytest.raises(ValueError, match="frozen"):
            frozen = Encoder(users.weights, users.mean, users.scale, about={"network": "mlp"}, frozen=True)
            fit(SimCLR(), as_factory(frozen, (8,), 3), data, settings(epochs=1))

    def test_resuming_with_other_options_is_refused(self, tmp_path: Path) -> None:
        trained(folder=tmp_path)
        for method in (SimCLR(q=0.5), SimCLR(temperature=0.1), SimCLR(length=3.0)):
            with pytest.raises(ValueError, match="method"):
                trained(folder=tmp_path, method=method, resume=True)

    def test_precision_that_serves_one_optimiser_is_refused_before_training(self, tmp_path: Path) -> None:
        with pytest.raises(
            ValueError, match=r"precision='16-mixed' cannot serve several optimisers .* use 'bf16-mixed'"
        ):
            trained(folder=tmp_path / "run", precision="16-mixed")
        assert not checkpoint.found(tmp_path / "run")


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, y = load_digits(return_X_y=True)
    return x, lp.noise.inject(y, "symmetric", 0.6, seed=0).labels, y


class TestEstimator:
    def test_finds_wrong_labels(self, digits: Any) -> None:
        x, noisy, truth = digits
        clf = lp.NoisyLabelClassifier(method="simclr", epochs=6, lr=0.02).fit(x, noisy)
        issues = clf.find_issues()
        assert len(issues) == len(x)
        wrong = noisy != truth
        assert wrong[issues["id"].to_numpy()[:500]].mean() > 0.9
        assert clf.score(x, truth) > 0.7
        assert "pretraining" in clf.run_.result
        assert clf.run_.result["seconds"] > clf.history_[-1]["seconds"]

    def test_shields_from_noise_better_than_none(self) -> None:
        """What the paper is about: the same loss, the same epochs, features learned before or not."""
        x, y = load_digits(return_X_y=True)
        images = (x.reshape(-1, 1, 8, 8) * 15).astype(np.uint8)
        noisy = lp.noise.inject(y, "symmetric", 0.8, seed=0).labels
        scores = {
            str(method): lp.NoisyLabelClassifier(method=method, network="cnn", epochs=8)
            .fit(images, noisy)
            .score(images, y)
            for method in ("ce", SimCLR(length=1.5))
        }
        assert scores.pop("ce") + 0.02 < max(scores.values())

    def test_cloned_pickled_and_searched_over(self) -> None:
        data = blobs(160, flips=0.2)
        method = SimCLR(q=0.5, length=0.5)
        clf = lp.NoisyLabelClassifier(method=method, epochs=2, batch_size=32)
        twin = clone(clf)
        assert twin.get_params()["method__q"] == 0.5
        assert twin.method is not method
        a, b = clf.fit(data.x, data.y), twin.fit(data.x, data.y)
        np.testing.assert_array_equal(a.predict_proba(data.x), b.predict_proba(data.x))
        back = pickle.loads(pickle.dumps(a))
        np.testing.assert_array_equal(a.predict_proba(data.x), back.predict_proba(data.x))
        grid = {"method__q": [0.0, 0.66], "method__temperature": [0.2, 0.5]}
        base = lp.NoisyLabelClassifier(method="simclr", epochs=2, batch_size=32)
        found = GridSearchCV(base, grid, cv=2, error_score="raise").fit(data.x, data.y)
        assert len(found.cv_results_["params"]) == 4
        assert set(found.best_params_) == set(grid)

    def test_networks_of_ones_own(self) -> None:
        data = blobs(160)
        for network in (mlp(8, 3), lambda num_outputs: mlp(8, num_outputs)):
            clf = lp.NoisyLabelClassifier(method="simclr", network=network, epochs=3, batch_size=32, lr=0.1)
            assert clf.fit(data.x, data.y).score(data.x, data.y) > 0.6

    def test_targets_that_are_numbers_are_refused(self) -> None:
        x = np.random.default_rng(0).normal(size=(60, 4))
        with pytest.raises(ValueError, match="method simclr is for classification"):
            lp.NoisyLabelRegressor(method="simclr", epochs=1).fit(x, x[:, 0])


@pytest.mark.parametrize("devices", [2, 3])
def test_batches_of_pre_training_are_no_hindrance_to_several_devices(devices: int) -> None:
    """Neither 256 nor 97, which nobody asked for, is refused for not being a multiple of the processes.

    With one process there are no devices to start: what is checked is what the first training is asked for.
    """
    how = settings(epochs=1, batch_size=30, devices=devices)
    stages = Stages(factory=factory(blobs(97)), settings=how, stamp={"method": "x"})
    plans: list[Any] = []

    class Asked:
        def __call__(self, method: Any, data: Any, /, **options: Any) -> Any:
            changes = {k: v for k, v in options.items() if k in type(how).__dataclass_fields__}
            plans.append(stages._training(Planned(method, data, "pretrain", 1.0, changes)).keywords["settings"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SimCLR().run(Asked(), blobs(97))  # type: ignore[arg-type]
    assert plans[0].batch_size % devices == 0


def test_the_last_layer_is_the_networks_own() -> None:
    data = blobs(160)
    r = trained(data)
    assert linear_head(r.nets[0]).weight.shape == (3, 256)
