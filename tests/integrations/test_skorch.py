"""skorch: the loss is told which samples it sees, whatever skorch does with them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from labelproof.data.noise import inject
from labelproof.losses import ELRLoss

pytest.importorskip("skorch", reason="skorch is not installed: pip install 'labelproof[skorch]'")

from skorch.callbacks import Callback, EpochScoring
from skorch.dataset import ValidSplit
from skorch.helper import predefined_split

from labelproof.integrations.skorch import NoisyLabelNet
from tests.integrations.losses import BoldSOP

N = 300


class Spy(ELRLoss):
    """Remembers which label it met under which id."""

    def __init__(self, num_samples: int, num_classes: int, **kwargs: Any) -> None:
        super().__init__(num_samples, num_classes, **kwargs)
        self.register_buffer("met", torch.full((num_samples,), -1))
        self.register_buffer("visits", torch.zeros(num_samples, dtype=torch.int64))

    def forward(self, logits: Tensor, target: Tensor, index: Tensor) -> Tensor:
        self.met[index] = target
        self.visits[index] += 1
        return super().forward(logits, target, index)


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any, Any]:
    X, y = load_digits(return_X_y=True)
    X, y = (X[:N] / 16).astype("float32"), y[:N].astype("int64")
    return X, inject(y, kind="symmetric", rate=0.3, seed=0).labels, y


def net(criterion: Any = Spy, module: Any = None, **kwargs: Any) -> NoisyLabelNet:
    torch.manual_seed(0)
    given = {"criterion__num_classes": 10} if criterion in {Spy, ELRLoss, Seeded} else {}
    module = module or nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    common = {"lr": 0.1, "batch_size": 32, "max_epochs": 2, "verbose": 0, "iterator_train__shuffle": True}
    return NoisyLabelNet(module, criterion=criterion, **{**common, **given, **kwargs})


def test_fit_gives_each_label_its_row(digits: Any) -> None:
    X, noisy, _ = digits
    fitted = net(train_split=None).fit(X, noisy)
    assert fitted.criterion_.met.tolist() == noisy.tolist()
    assert fitted.criterion_.visits.tolist() == [2] * N
    proba = fitted.predict_proba(X)
    np.testing.assert_allclose(proba.sum(1), 1, rtol=1e-5)
    assert fitted.criterion_.visits.tolist() == [2] * N  # prediction asks for no ids and leaves no trace


@pytest.mark.parametrize("split", [ValidSplit(5, stratified=True), ValidSplit(0.3, random_state=1)])
def test_rows_survive_train_split(digits: Any, split: ValidSplit) -> None:
    X, noisy, _ = digits
    scores = [EpochScoring("accuracy", name="trained", on_train=True, use_caching=False)]
    fitted = net(train_split=split, callbacks=scores).fit(X, noisy)
    met, visits = fitted.criterion_.met.numpy(), fitted.criterion_.visits.numpy()
    assert 0 < (visits == 0).sum() < N / 2
    assert set(visits[visits > 0]) == {2}
    assert (met[visits > 0] == noisy[visits > 0]).all()
    assert {"valid_loss", "valid_acc", "trained"} <= fitted.history[-1].keys()


def test_predefined_validation_set(digits: Any) -> None:
    X, noisy, y = digits
    valid = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    fitted = net(train_split=predefined_split(valid)).fit(X, noisy)
    assert fitted.criterion_.visits.tolist() == [2] * N
    logits = fitted.forward(X)
    want = nn.functional.cross_entropy(logits, torch.from_numpy(y)).item()
    assert fitted.history[-1, "valid_loss"] == pytest.approx(want, rel=1e-4)


def test_any_dataset_that_skorch_takes(digits: Any) -> None:
    X, noisy, _ = digits
    dataset = TensorDataset(torch.from_numpy(X), torch.from_numpy(noisy))
    fitted = net(train_split=None, classes=list(range(10))).fit(dataset, None)
    assert fitted.criterion_.met.tolist() == noisy.tolist()
    named = net(train_split=None, module=Named).fit({"pixels": X}, noisy)
    assert named.criterion_.met.tolist() == noisy.tolist()
    assert named.predict({"pixels": X}).shape == (N,)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.linear(pixels)


def test_partial_fit_goes_on_with_the_same_rows(digits: Any) -> None:
    X, noisy, _ = digits
    part = net(train_split=None, max_epochs=1)
    for _ in range(3):
        part.partial_fit(X, noisy)
    assert part.criterion_.visits.tolist() == [3] * N
    assert part.criterion_.met.tolist() == noisy.tolist()


def test_partial_fit_on_parts_needs_their_rows(digits: Any) -> None:
    X, noisy, _ = digits
    part = net(train_split=None, max_epochs=1, criterion__num_samples=N)
    with pytest.raises(ValueError, match=rf"X has 100 samples, but the loss was made for {N}.*index="):
        part.partial_fit(X[:100], noisy[:100])
    for rows in np.array_split(np.random.default_rng(0).permutation(N), 4):
        part.partial_fit(X[rows], noisy[rows], index=rows)
    assert part.criterion_.met.tolist() == noisy.tolist()
    assert part.criterion_.visits.tolist() == [1] * N
    with pytest.raises(ValueError, match=r"index has shape \(2,\), but X has 3 samples"):
        part.partial_fit(X[:3], noisy[:3], index=[0, 1])
    with pytest.raises(ValueError, match=r"from 1 to 300.*num_samples=300.*criterion__num_samples"):
        part.partial_fit(X[:2], noisy[:2], index=[1, N])


def test_training_set_larger_than_the_loss(digits: Any) -> None:
    X, noisy, _ = digits
    with pytest.raises(ValueError, match=r"num_samples=32.*criterion__num_samples to the size of the whole"):
        net(criterion__num_samples=32).fit(X, noisy)


def test_grid_search_and_clone(digits: Any) -> None:
    X, noisy, _ = digits
    base = net(train_split=None)
    search = GridSearchCV(base, {"criterion__lam": [0.0, 3.0], "lr": [0.1]}, cv=3, error_score="raise")
    search.fit(X, noisy)
    assert search.best_estimator_.num_samples_ == N
    assert not hasattr(base, "num_samples_")
    copy = clone(search.best_estimator_)
    assert copy.get_params()["criterion__lam"] == search.best_params_["criterion__lam"]
    assert not copy.initialized_
    search.fit(X, noisy, index=np.arange(N) + 5)  # scikit-learn cuts ids into folds as it does labels
    assert search.best_estimator_.num_samples_ == N + 5


def test_files_and_pickles_hold_the_state(digits: Any, tmp_path: Path) -> None:
    X, noisy, _ = digits
    fitted = net(train_split=None).fit(X, noisy)
    fitted.save_params(f_params=tmp_path / "net.pt", f_criterion=tmp_path / "loss.pt")
    other = net(criterion__num_samples=N).initialize()
    other.load_params(f_params=tmp_path / "net.pt", f_criterion=tmp_path / "loss.pt")
    for copy in (other, pickle.loads(pickle.dumps(fitted))):
        assert torch.equal(copy.criterion_.t.values, fitted.criterion_.t.values)
        np.testing.assert_array_equal(copy.predict(X), fitted.predict(X))
    with pytest.raises(ValueError, match="set criterion__num_samples"):
        net().initialize()


def test_stopped_and_continued_is_uninterrupted(digits: Any) -> None:
    X, noisy, _ = digits
    whole = net(ELRLoss, train_split=None, iterator_train__shuffle=False, max_epochs=4).fit(X, noisy)
    half = net(ELRLoss, train_split=None, iterator_train__shuffle=False, max_epochs=2).fit(X, noisy)
    again = pickle.loads(pickle.dumps(half)).partial_fit(X, noisy)
    for a, b in zip(again.module_.parameters(), whole.module_.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(again.criterion_.t.values, whole.criterion_.t.values)


def test_equals_a_loop_of_ones_own(digits: Any) -> None:
    X, noisy, _ = digits
    fitted = net(ELRLoss, train_split=None, iterator_train__shuffle=False).fit(X, noisy)
    own = net(ELRLoss).module
    criterion, sgd = ELRLoss(N, 10), torch.optim.SGD(own.parameters(), 0.1)
    for _ in range(2):
        for rows in torch.arange(N).split(32):
            sgd.zero_grad()
            criterion(own(torch.from_numpy(X)[rows]), torch.from_numpy(noisy)[rows], rows).backward()
            sgd.step()
    for a, b in zip(fitted.module_.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(a, b)


class Seeded(BoldSOP):
    """Starts from the same u and v each time."""

    def __init__(self, num_samples: int, num_classes: int) -> None:
        torch.manual_seed(1)
        super().__init__(num_samples, num_classes)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_sop_has_its_own_sgd(digits: Any, optimizer: Any) -> None:
    X, noisy, _ = digits
    common = {"train_split": None, "iterator_train__shuffle": False, "optimizer": optimizer, "lr": 0.01}
    fitted = net(Seeded, **common, errors__lr_u=1.0, errors__lr_v=100.0).fit(X, noisy)
    own, criterion = net(Seeded).module, Seeded(N, 10)
    start = criterion.u.weight.detach().clone()
    optimizers = [optimizer(own.parameters(), lr=0.01), criterion.optimizer(lr_u=1.0, lr_v=100.0)]
    for _ in range(2):
        for rows in torch.arange(N).split(32):
            criterion(own(torch.from_numpy(X)[rows]), torch.from_numpy(noisy)[rows], rows).backward()
            for o in optimizers:
                o.step()
                o.zero_grad()
    for a, b in zip(fitted.module_.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert (fitted.criterion_.u.weight - start).abs().mean() > 1e-3
    torch.testing.assert_close(fitted.criterion_.u.weight, criterion.u.weight)
    torch.testing.assert_close(fitted.criterion_.v.weight, criterion.v.weight)
    again = pickle.loads(pickle.dumps(fitted)).partial_fit(X, noisy)
    assert (again.criterion_.u.weight != fitted.criterion_.u.weight).any()


def test_learning_rates_of_rows_can_be_set_later(digits: Any) -> None:
    X, noisy, _ = digits
    fitted = net(Seeded, train_split=None, max_epochs=1).fit(X, noisy)
    u, weights = fitted.criterion_.u.weight.detach().clone(), fitted.module_[0].weight.detach().clone()
    assert fitted.set_params(errors__lr_u=1e-30, errors__lr_v=1.0, lr=0.05) is fitted
    assert fitted.get_params()["errors__lr_u"] == 1e-30
    assert torch.equal(fitted.criterion_.u.weight, u)  # nothing was started anew
    assert torch.equal(fitted.module_[0].weight, weights)
    fitted.partial_fit(X, noisy)
    assert torch.equal(fitted.criterion_.u.weight, u)
    assert not torch.equal(fitted.module_[0].weight, weights)
    search = GridSearchCV(fitted, {"errors__lr_u": [1.0, 5.0]}, cv=2, error_score="raise").fit(X, noisy)
    assert search.best_params_["errors__lr_u"] in {1.0, 5.0}


class Slower(Callback):
    """Sets a learning rate of the rows after the first epoch."""

    def on_epoch_end(self, net: NoisyLabelNet, **_: Any) -> None:
        self.rates = [g["lr"] for g in net._row_optimizers[0].param_groups]
        net.set_params(errors__lr_u=0.5)


def test_learning_rates_of_rows_can_be_set_by_a_callback(digits: Any) -> None:
    X, noisy, _ = digits
    slower = Slower()
    net(Seeded, callbacks=[slower], errors__lr_v=3.0).fit(X, noisy)
    assert slower.rates == [0.5, 3.0]


def test_errors_must_fit_the_loss(digits: Any) -> None:
    X, noisy, _ = digits
    with pytest.raises(ValueError, match=r"unknown key 'lru': did you mean 'lr_u'\? allowed are: lr_u, lr_v"):
        net(Seeded, errors__lru=1.0).fit(X, noisy)
    with pytest.raises(ValueError, match=r"errors has lr_u, but only a loss with learned rows"):
        net(errors__lr_u=1.0).fit(X, noisy)
    with pytest.raises(ValueError, match=r"errors=\{'lru': 1\}: in skorch's way, write errors__lr_u="):
        net(Seeded).fit(X, noisy).set_params(errors={"lru": 1}).partial_fit(X, noisy)


def test_losses_without_ids(digits: Any) -> None:
    X, noisy, _ = digits
    fitted = net(nn.CrossEntropyLoss).fit(X, noisy)
    assert fitted.history[-1, "train_loss"] < fitted.history[0, "train_loss"]


def test_a_batch_without_ids(digits: Any) -> None:
    X, noisy, _ = digits
    fitted = net(train_split=None).fit(X, noisy)
    batch = torch.from_numpy(X[:4]), torch.from_numpy(noisy[:4])
    with pytest.raises(ValueError, match=r"Spy needs the id of each sample.*fit or partial_fit"):
        fitted.train_step(batch)
