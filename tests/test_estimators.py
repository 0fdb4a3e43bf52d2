"""The scikit-learn face."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from loky import cpu_count
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

import labelproof as lp
from labelproof.engine.launchers import Processes, Ray
from tests.toy import blobs, line

DATA = blobs(200, flips=0.2)
X, Y = np.asarray(DATA.x), DATA.y
QUICK: dict[str, Any] = {"epochs": 3, "batch_size": 32, "lr": 0.1}

#: Checks of scikit-learn that fail, each with its reason.
EXCEPTIONS = {
    "check_methods_subset_invariance": "asks for 1e-7; the last bit in fp32 depends on the batch",
    "check_methods_sample_order_invariance": "asks for 1e-7, as above",
}


@parametrize_with_checks(
    [
        lp.NoisyLabelClassifier(epochs=20, batch_size=16, lr=0.1),
        lp.NoisyLabelRegressor(epochs=40, batch_size=16, lr=0.05),
    ],
    expected_failed_checks=lambda estimator: EXCEPTIONS,
)
@pytest.mark.filterwarnings("ignore:batch_size=")
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("method", ["ce", "elr", "co-teaching"])
def test_fit_predict_score_find(method: str) -> None:
    clf = lp.NoisyLabelClassifier(method=method, **{**QUICK, "epochs": 10}).fit(X, Y)
    assert clf.classes_.tolist() == [0, 1, 2]
    assert clf.predict_proba(X).shape == (200, 3)
    np.testing.assert_allclose(clf.predict_proba(X).sum(1), 1, atol=1e-5)
    assert clf.score(X, DATA.truth) > 0.85
    assert len(clf.history_) == 10
    issues = clf.find_issues()
    assert list(issues.columns[:6]) == ["id", "given", "suggested", "p_wrong", "rank", "flagged"]
    assert sorted(issues["id"]) == list(range(200))
    assert issues["rank"].tolist() == list(range(1, 201))
    assert issues["p_wrong"].is_monotonic_decreasing
    planted = (DATA.truth != Y)[issues["id"]]
    assert planted[: planted.sum()].mean() > 0.7


def test_labels_and_ids_are_the_users_own() -> None:
    names = np.array(["ant", "bee", "cat"])[Y]
    frame = pd.DataFrame(X, columns=[f"f{i}" for i in range(8)], index=[f"row-{i}" for i in range(200)])
    clf = lp.NoisyLabelClassifier(**QUICK).fit(frame, names)
    assert set(clf.predict(frame)) <= {"ant", "bee", "cat"}
    issues = clf.find_issues()
    assert set(issues["given"]) == {"ant", "bee", "cat"}
    given = dict(zip(frame.index, names, strict=True))
    assert all(given[i] == g for i, g in zip(issues["id"], issues["given"], strict=True))
    assert clf.feature_names_in_.tolist() == list(frame.columns)


def test_clone_pipeline_and_grid_search_reach_the_methods_options() -> None:
    clf = lp.NoisyLabelClassifier(method=lp.methods.ELR(lam=3, beta=0.7), **QUICK)
    twin = clone(clf)
    assert twin.get_params()["method__lam"] == 3
    assert twin.method is not clf.method
    search = GridSearchCV(make_pipeline(MinMaxScaler(), clf), {"noisylabelclassifier__method__lam": [0.0, 2.0]}, cv=2)
    search.fit(X, Y)
    assert search.best_params_.keys() == {"noisylabelclassifier__method__lam"}
    by_name = lp.NoisyLabelClassifier(method="elr", **QUICK).set_params(method__lam=5.0)
    assert by_name.method.lam == 5.0
    with pytest.raises(ValueError, match="ELR has no hyper-parameter 'lamb'; it has lam, beta"):
        by_name.set_params(method__lamb=1)


def test_networks_by_name_module_and_function() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    before = module[0].weight.clone()
    for network in (
        "mlp",
        module,
        lambda: nn.Linear(8, 3),
        lambda num_outputs: nn.Linear(8, num_outputs),
        lambda in_shape, num_outputs: nn.Linear(in_shape[0], num_outputs),
    ):
        clf = lp.NoisyLabelClassifier(method="co-teaching", network=network, **QUICK).fit(X, Y)
        assert clf.predict(X).shape == (200,)
    assert torch.equal(before, module[0].weight), "the user's module is never trained in place"
    with pytest.raises(ValueError, match=r"unknown network 'mpl': did you mean 'mlp'\?"):
        lp.NoisyLabelClassifier(network="mpl", **QUICK).fit(X, Y)


def test_a_module_with_unknown_weights_cannot_start_two_networks() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(8, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.w

    lp.NoisyLabelClassifier(network=Bare(), **QUICK).fit(X, Y)
    with pytest.raises(ValueError, match=r"part 'Bare' has weights but no reset_parameters\(\).* pass a function"):
        lp.NoisyLabelClassifier(method="co-teaching", network=Bare(), **QUICK).fit(X, Y)


def test_images_and_map_style_data_sets() -> None:
    digits = load_digits()
    images = (digits.images[:300, None] * 15).astype(np.uint8)
    data = torch.utils.data.TensorDataset(torch.from_numpy(images), torch.from_numpy(digits.target[:300]))
    a = lp.NoisyLabelClassifier(network="cnn", **QUICK).fit(images, digits.target[:300])
    b = lp.NoisyLabelClassifier(network="cnn", **QUICK).fit(data)
    np.testing.assert_allclose(a.predict_proba(images), b.predict_proba(data), atol=1e-5)
    assert a.find_issues().equals(b.find_issues())


def test_regression_finds_planted_errors() -> None:
    data = line(300, outliers=0.1)
    reg = lp.NoisyLabelRegressor(noise_rate=0.2, epochs=60, batch_size=32, lr=0.02).fit(data.x, data.y[:, 0])
    assert reg.predict(data.x).shape == (300,)
    assert reg.score(data.x, data.truth) > 0.9
    issues = reg.find_issues()
    planted = (data.y != data.truth)[:, 0]
    assert planted[issues["id"].head(30)].all()
    assert issues["flagged"].sum() == pytest.approx(30, abs=5)
    two = lp.NoisyLabelRegressor(method="mse", **QUICK).fit(data.x, np.hstack([data.y, data.y]))
    assert two.predict(data.x).shape == (300, 2)


def test_a_fitted_estimator_can_be_pickled() -> None:
    clf = lp.NoisyLabelClassifier(**QUICK).fit(X, Y)
    again = pickle.loads(pickle.dumps(clf))
    np.testing.assert_array_equal(clf.predict_proba(X), again.predict_proba(X))
    assert again.find_issues().equals(clf.find_issues())


def test_random_state() -> None:
    a, b, c = (lp.NoisyLabelClassifier(random_state=s, **QUICK).fit(X, Y).predict_proba(X) for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    lp.NoisyLabelClassifier(random_state=np.random.RandomState(0), **QUICK).fit(X, Y)


def test_silent_at_verbose_0(capfd: pytest.CaptureFixture[str]) -> None:
    lp.NoisyLabelClassifier(verbose=0, **QUICK).fit(X, Y).find_issues()
    assert capfd.readouterr() == ("", "")


def test_find_issues_before_fit() -> None:
    with pytest.raises(NotFittedError):
        lp.NoisyLabelClassifier().find_issues()


@pytest.mark.parametrize(
    ("change", "x", "y", "text"),
    [
        ({}, np.where(np.arange(200)[:, None] == 7, np.nan, X), Y, "Input X contains NaN"),
        ({}, np.where(np.arange(200)[:, None] == 7, np.inf, X), Y, "Input X contains infinity"),
        ({}, X, np.zeros(200, int), r"labels have one class only \(0\): at least two are needed"),
        ({}, X, Y[:-1], "inconsistent numbers of samples"),
        ({}, X, None, r"NoisyLabelClassifier.fit\(X, y\) needs the labels"),
        ({}, X, np.linspace(0, 1, 200), "Unknown label type: continuous"),
        ({"method": "erl"}, X, Y, r"unknown method 'erl': did you mean 'elr'\? There are: backward, bootstrap, c"),
        ({"method": 3}, X, Y, r"method=3 must be a name of lp.available_methods\(\) or a Method instance"),
        ({"method": "mse"}, X, Y, "method mse is for regression, but these labels make a classification task"),
        ({"method": "elr", "noise_rate": 0.2}, X, Y, "method='elr' has no use for noise_rate=0.2: leave it out"),
        ({"method": "co-teaching", "noise_rate": 1.0}, X, Y, r"noise_rate=1.0 must lie in \[0, 1\)"),
        ({"network": "cnn"}, X, Y, "network='cnn' takes images"),
        ({"network": 5}, X, Y, "network=5 must be the name of a built-in network, an nn.Module or a callable"),
        ({"epochs": 0}, X, Y, r"epochs=0 must lie in \[1, inf\)"),
        ({"lr": 0.0}, X, Y, r"lr=0.0 must lie in \(0, inf\)"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], x: Any, y: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        lp.NoisyLabelClassifier(**{**QUICK, **change}).fit(x, y)


def test_prediction_inputs_are_checked() -> None:
    images = np.zeros((40, 1, 8, 8), dtype=np.uint8)
    images[::2] = 200
    clf = lp.NoisyLabelClassifier(network="cnn", **QUICK).fit(images, np.arange(40) % 2)
    with pytest.raises(ValueError, match=r"inputs have shape \(1, 9, 8\), but training inputs had \(1, 8, 8\)"):
        clf.predict(np.zeros((2, 1, 9, 8), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"images go up to 0\.784, those trained on went up to 200: give them on that"):
        clf.predict(images / np.float32(255))
    unit = lp.NoisyLabelClassifier(network="cnn", **QUICK).fit(images / np.float32(255), np.arange(40) % 2)
    with pytest.raises(ValueError, match=r"images go up to 200, those trained on went up to 0\.784"):
        unit.predict(images)
    with pytest.raises(ValueError, match=r"look like \(N, H, W, C\): give X.transpose\(0, 3, 1, 2\)"):
        lp.NoisyLabelClassifier(network="cnn", **QUICK).fit(np.zeros((9, 28, 28, 3), np.uint8), np.arange(9) % 2)
    with pytest.raises(ValueError, match="X has 5 features, but NoisyLabelClassifier is expecting 8 features"):
        lp.NoisyLabelClassifier(**QUICK).fit(X, Y).predict(X[:, :5])


def test_a_data_set_without_labels_is_not_guessed_at() -> None:
    data = torch.utils.data.TensorDataset(torch.from_numpy(X))
    with pytest.raises(ValueError, match=r"inputs without labels: pass them, as in fit\(X, y\)"):
        lp.NoisyLabelClassifier(**QUICK).fit(data)
    assert lp.NoisyLabelClassifier(**QUICK).fit(data, Y).classes_.tolist() == [0, 1, 2]


def test_targets_are_listed_as_they_were_given() -> None:
    data = line(100)
    y = np.round(data.y[:, 0].astype(np.float64), 1) + 706.3
    issues = lp.NoisyLabelRegressor(method="mse", **QUICK).fit(data.x, y).find_issues()
    assert issues["given"].tolist() == y[issues["id"]].tolist()


@pytest.mark.parametrize(
    ("y", "text"),
    [
        (
            [1.0, 2.0, None, *range(17)],
            r"Input y contains NaN\. Of 20 targets 1 are missing or infinite, the first in row 2",
        ),
        ([*range(18), np.inf, -np.inf], r"Input y contains infinity .* Of 20 targets 2 .* the first in row 18: drop"),
        (
            pd.Series([*range(19), None], dtype="Float64"),
            r"Of 20 targets 1 are missing or infinite, the first in row 19",
        ),
        ([*range(19), "3 kg"], r"y holds '3 kg' in row 19, the first of 1 that are no numbers: regression needs plain"),
        (["cat"] * 20, r"y holds 'cat' in row 0, .* classes are for NoisyLabelClassifier"),
        ([10**400, *range(19)], r"Input y contains infinity .* Of 20 targets 1 are .* the first in row 0: drop"),
        ([*range(18), -(10**5000), "3 kg"], r"y holds '3 kg' in row 19, the first of 1 that are no numbers"),
        ([[1.0, 2.0], [3.0]] * 10, r"y has rows of different lengths: give each sample the same number of targets"),
        (np.zeros((20, 2, 2)), r"y has shape \(20, 2, 2\): targets must be \(N,\) or \(N, T\)"),
        (3.0, r"y has shape \(\): targets must be"),
        (np.arange(20) > 3, r"y holds bool values, and regression needs plain numbers: .* 1 and 0; classes are for"),
        (np.arange(20).astype("datetime64[D]"), r"y holds datetime64\[D\] values, .* give days since a date"),
        (np.full(20, 5.0), r"targets of data are constant \(5 in all 20 training rows\): there is nothing to learn"),
        (np.full((20, 2), 5.0), r"targets of data are constant \(5, 5 in all 20"),
        ([*range(19), 1e305], r"targets of data go up to 1e\+305 \(row 19\), and no further than 1e\+300"),
        (np.arange(19), "inconsistent numbers of samples"),
    ],
)
def test_bad_targets_are_named(y: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        lp.NoisyLabelRegressor(**QUICK).fit(X[:20], y)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, "abc", float("nan")])
def test_a_noise_rate_is_a_share(rate: Any) -> None:
    with pytest.raises(ValueError, match=r"noise_rate=\S+ must (lie in \[0, 1\)|be a number in \[0, 1\) or 'auto')"):
        lp.NoisyLabelRegressor(noise_rate=rate, **QUICK).fit(X, Y)


def test_two_rows_are_too_few() -> None:
    with pytest.raises(ValueError, match="n_samples=2, but regression needs at least 3"):
        lp.NoisyLabelRegressor(**QUICK).fit(X[:2], [1.0, 2.0])


def test_targets_of_any_size_are_learned_alike() -> None:
    """1e9 + 1 has no place in float32, nor has 1e200."""
    data = line(200)
    y = data.y[:, 0].astype(np.float64)
    how: dict[str, Any] = {"epochs": 30, "batch_size": 32, "lr": 0.02}
    plain = lp.NoisyLabelRegressor(**how).fit(data.x, y)
    for shift, unit in ((1e9, 1.0), (0.0, 1e200), (-1e-6, 1e-12)):
        reg = lp.NoisyLabelRegressor(**how).fit(data.x, y * unit + shift)
        np.testing.assert_allclose((reg.predict(data.x) - shift) / unit, plain.predict(data.x), atol=1e-4)
        assert reg.find_issues()["id"].tolist()[:5] == plain.find_issues()["id"].tolist()[:5]
    column = lp.NoisyLabelRegressor(**how).fit(data.x, y[:, None])
    np.testing.assert_array_equal(column.predict(data.x), plain.predict(data.x)[:, None])
    objects = lp.NoisyLabelRegressor(**how).fit(data.x, y.astype(object))
    np.testing.assert_array_equal(objects.predict(data.x), plain.predict(data.x))


def test_one_gross_error_does_not_matter() -> None:
    data = line(200)
    y = data.y[:, 0].astype(np.float64)
    y[7] = 1e300
    reg = lp.NoisyLabelRegressor(epochs=30, batch_size=32, lr=0.02).fit(data.x, y)
    assert reg.score(np.delete(data.x, 7, 0), np.delete(y, 7)) > 0.9
    issues = reg.find_issues()
    assert issues["id"].iloc[0] == 7
    assert issues["flagged"].iloc[0]
    assert np.isfinite(issues["p_wrong"]).all()


def test_half_of_the_targets_may_be_equal() -> None:
    """Rain: mostly none, and one reading is a typing error."""
    data = line(200)
    y = np.maximum(data.y[:, 0], 1.5).astype(np.float64)
    assert (y == np.median(y)).mean() > 0.5
    y[7] = 1e6
    reg = lp.NoisyLabelRegressor(epochs=60, batch_size=32, lr=0.02, noise_rate=0.05).fit(data.x, y)
    assert reg.score(np.delete(data.x, 7, 0), np.delete(y, 7)) > 0.7
    assert reg.find_issues()["id"].iloc[0] == 7


def test_diverged_training_says_so() -> None:
    data = line(200)
    with pytest.raises(ValueError, match=r"training diverged in epoch \d: the loss is .*; lower lr=1000000.0 or set"):
        lp.NoisyLabelRegressor(method="mse", epochs=5, lr=1e6).fit(data.x, data.y)


def test_a_pickle_does_not_carry_the_data() -> None:
    big = np.random.default_rng(0).normal(size=(500, 2000)).astype(np.float32)
    clf = lp.NoisyLabelClassifier(network=nn.Linear(2000, 2), epochs=1).fit(big, np.arange(500) % 2)
    assert len(pickle.dumps(clf)) < big.nbytes / 10


def test_a_function_that_returns_one_module_again_and_again() -> None:
    module = nn.Linear(8, 3)
    before = module.weight.clone()
    clf = lp.NoisyLabelClassifier(method="co-teaching", network=lambda: module, **QUICK).fit(X, Y)
    assert torch.equal(module.weight, before)
    assert not torch.equal(clf.run_.fitted.nets[0].weight, clf.run_.fitted.nets[1].weight)


def test_hyper_parameters_are_checked_when_set() -> None:
    with pytest.raises(ValueError, match=r"beta=1.5 must lie in \[0, 1\)"):
        lp.methods.ELR().set_params(beta=1.5)

    class Loose(lp.methods.CE):
        def __init__(self, lam: float = 1.0) -> None:
            super().__init__()

    with pytest.raises(TypeError, match=r"Loose.__init__: make 'lam' keyword-only"):
        Loose().get_params()


def test_the_drop_in_loss_is_the_method() -> None:
    loss, method = (
        lp.losses.ELRLoss(num_samples=200, num_classes=3, lam=2.0, beta=0.6),
        lp.methods.ELR(lam=2.0, beta=0.6),
    )
    from labelproof.core.nets import Nets
    from labelproof.core.task import Classification
    from labelproof.core.types import Batch, Clock

    method.setup(Classification(3), 200, nn.Identity())
    g = torch.Generator().manual_seed(0)
    for _ in range(3):
        z, y, i = (
            torch.randn(9, 3, generator=g),
            torch.randint(0, 3, (9,), generator=g),
            torch.randperm(200, generator=g)[:9],
        )
        want = method.loss(Nets([nn.Identity()]), Batch(i, (z,), y), Clock(0, 1, 0, 1, g)).value
        torch.testing.assert_close(loss(z, y, i), want)
    assert list(loss.state_dict()) == ["t.store.values"]


class Beside(Processes):
    """Keeps what it was asked to run."""

    asked: list[str] | None = None

    def run(self, calls: Any, names: Any, told: Any = None) -> Any:
        self.asked = list(names)
        return super().run(calls, names, told)


def test_folds_of_auto_in_two_processes_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Beside] = []
    monkeypatch.setattr(
        "labelproof.engine.launchers.make_launcher", lambda name, jobs, address: made.append(Beside(jobs)) or made[-1]
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as each worker has
    try:
        alone, beside = (
            lp.NoisyLabelClassifier(method="co-teaching", noise_rate="auto", n_jobs=jobs, **QUICK).fit(X, Y)
            for jobs in (None, 2)
        )
    finally:
        torch.set_num_threads(before)
    assert [(each.jobs, each.asked) for each in made] == [(2, [f"noise-rate-fold-{k}" for k in (1, 2, 3)])]
    assert alone.run_.fitted.method.noise_rate == beside.run_.fitted.method.noise_rate
    np.testing.assert_array_equal(alone.predict_proba(X), beside.predict_proba(X))
    pd.testing.assert_frame_equal(alone.find_issues(), beside.find_issues())


def test_a_launcher_is_no_setting_and_idle_where_there_is_one_training() -> None:
    launcher = Beside(2)
    clf = lp.NoisyLabelClassifier(method="ce", launcher=launcher, **QUICK)
    assert clf.get_params()["launcher"] is launcher
    again = pickle.loads(pickle.dumps(clone(clf).fit(X, Y)))
    assert again.launcher.jobs == 2
    assert again.launcher.asked is None
    assert not {"n_jobs", "launcher"} & set(again.run_.fitted.settings.asdict())
    plain = lp.NoisyLabelClassifier(method="ce", **QUICK).fit(X, Y)
    np.testing.assert_array_equal(plain.predict_proba(X), again.predict_proba(X))
    clf.set_params(method="self-paced", noise_rate="auto", launcher=Beside(1)).fit(X, Y)
    assert clf.launcher.asked == [f"noise-rate-fold-{k}" for k in (1, 2, 3)]


@pytest.mark.parametrize(
    ("how", "kind", "jobs"),
    [
        ({}, type(None), None),
        ({"n_jobs": 1}, type(None), None),
        ({"n_jobs": np.int64(3)}, Processes, 3),
        ({"n_jobs": -1}, Processes if cpu_count() > 1 else type(None), cpu_count()),
        ({"n_jobs": -1000}, type(None), None),
        ({"launcher": "processes", "n_jobs": 2}, Processes, 2),
        ({"launcher": "processes"}, type(None), None),
        ({"launcher": "ray"}, Ray, None),
        ({"launcher": "ray", "n_jobs": 1}, Ray, 1),
        ({"launcher": "ray", "n_jobs": -1}, Ray, None),
    ],
)
def test_where_trainings_run(how: dict[str, Any], kind: type, jobs: int | None) -> None:
    launcher = lp.NoisyLabelClassifier(**how)._launcher()
    assert type(launcher) is kind
    assert getattr(launcher, "jobs", None) == (jobs if launcher is not None else None)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"n_jobs": 0}, "n_jobs=0 must be a whole number other than 0, or None; -1 takes all cores"),
        ({"n_jobs": 1.5}, "n_jobs=1.5 must be a whole number other than 0"),
        ({"n_jobs": True}, "n_jobs=True must be a whole number other than 0"),
        ({"launcher": "rya"}, r"unknown launcher 'rya': did you mean 'ray'\? There are: processes, ray"),
        ({"launcher": 3}, "launcher=3 must be 'processes', 'ray', a launcher or None"),
        ({"launcher": Processes(2), "n_jobs": 2}, r"n_jobs=2 beside launcher=Processes\(...\), which has its own"),
    ],
)
def test_a_launcher_that_cannot_be_meant_is_named(how: dict[str, Any], text: str) -> None:
    for kind in (lp.NoisyLabelClassifier, lp.NoisyLabelRegressor):
        with pytest.raises(ValueError, match=text):
            kind(**how, **QUICK).fit(X, Y)
