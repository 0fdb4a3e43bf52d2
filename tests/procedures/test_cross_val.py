"""Cross-validated probabilities and targets."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_diabetes, load_digits
from sklearn.ensemble import RandomForestRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

import labelproof as lp
from labelproof.data.dataset import Data
from labelproof.engine.launchers import Processes
from labelproof.engine.stages import fit as train
from labelproof.methods import METHODS
from labelproof.procedures.cross_val import cross_val_probs, cross_val_targets
from tests.toy import blobs, factory, line, settings

DATA = blobs(150, flips=0.2)
X, Y = np.asarray(DATA.x), DATA.y
NAMES = np.array(["wasp", "ant", "bee"])[Y]  # sorted otherwise than coded


def thirds(x: Any) -> Any:
    return np.full((len(x), 3), 1 / 3)


class Prior(ClassifierMixin, BaseEstimator):
    """Says the share of each class among what it was trained on, and keeps what that was."""

    seen: ClassVar[list[Any]] = []

    def fit(self, X: Any, y: Any) -> Any:
        self.classes_, counts = np.unique(y, return_counts=True)
        self.share_ = counts / counts.sum()
        self.seen.append((self, X, y))
        return self

    def predict_proba(self, X: Any) -> Any:
        return np.tile(self.share_, (len(X), 1))


class Beside:
    """Two worker processes; keeps what they were asked to run."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def run(self, calls: Any, names: Any, told: Any = None) -> Any:
        self.asked += names
        return Processes(2).run(calls, names, told)


def test_each_sample_is_predicted_by_the_training_that_left_it_out() -> None:
    data, seen, told = blobs(97), [], []

    def by_fold(part: Data, name: str) -> Any:
        seen.append((name, part))
        number = len(seen)
        return SimpleNamespace(predict=lambda x: np.full((len(x), 3), number))

    fold = cross_val_probs(by_fold, data, 4, told=told.append)[:, 0].astype(int)
    assert [name for name, _ in seen] == told == ["fold-1", "fold-2", "fold-3", "fold-4"]
    assert set(fold) == {1, 2, 3, 4}
    for k, (_, part) in enumerate(seen, 1):
        assert set(part.ids) == set(data.ids[fold != k])
        np.testing.assert_array_equal(part.y, data.y[fold != k])
        assert np.ptp(np.bincount(data.y[fold == k])) <= 1, "each class in the same proportion"


def test_each_target_is_predicted_by_the_training_that_left_it_out() -> None:
    data, seen = line(97), []

    def by_fold(part: Data, name: str) -> Any:
        seen.append((name, part))
        number = len(seen)
        return SimpleNamespace(predict=lambda x: np.full((len(x), 1), number))

    fold = cross_val_targets(by_fold, data, folds=4)[:, 0].astype(int)
    assert [name for name, _ in seen] == ["fold-1", "fold-2", "fold-3", "fold-4"]
    assert sorted(np.bincount(fold)) == [0, 24, 24, 24, 25]
    for k, (_, part) in enumerate(seen, 1):
        assert set(part.ids) == set(data.ids[fold != k])
        np.testing.assert_array_equal(part.y, data.y[fold != k])


@pytest.mark.parametrize("seed", [0, 3])
def test_a_classifier_gives_what_scikit_learn_gives(seed: int) -> None:
    """Same folds, string labels, columns in sorted order; and a model of one's own that is not to be touched."""
    model = GaussianNB()
    probs = lp.cross_val_probs(model, (X, NAMES), seed=seed)
    want = cross_val_predict(
        model, X, NAMES, cv=StratifiedKFold(5, shuffle=True, random_state=seed), method="predict_proba"
    )
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs, want, atol=1e-6)
    assert not hasattr(model, "classes_")
    assert not np.array_equal(probs, lp.cross_val_probs(model, (X, NAMES), seed=seed + 1))


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (pd.DataFrame(X, index=np.arange(150)[::-1]), pd.Series(NAMES, index=np.arange(1000, 1150))),
        (csr_matrix(X), NAMES.tolist()),
        (X.tolist(), NAMES.astype(object)),
        (torch.from_numpy(X), NAMES[:, None]),
    ],
    ids=["frame", "sparse", "lists", "tensor"],
)
def test_inputs_of_many_types_give_the_same(x: Any, y: Any) -> None:
    model = LogisticRegression()
    np.testing.assert_allclose(lp.cross_val_probs(model, (x, y)), lp.cross_val_probs(model, (X, NAMES)), atol=1e-5)


def test_numbers_among_objects_are_numbers() -> None:
    want = lp.cross_val_probs(GaussianNB(), (X, Y))
    np.testing.assert_array_equal(lp.cross_val_probs(GaussianNB(), (X, pd.Series(Y, dtype="Int64"))), want)
    np.testing.assert_array_equal(lp.cross_val_probs(GaussianNB(), (X, Y.astype(object))), want)


def test_texts_and_data_of_ours() -> None:
    words = [f"{'good fine' if k % 2 else 'bad poor'} word{k % 7}" for k in range(60)]
    probs = lp.cross_val_probs(make_pipeline(TfidfVectorizer(), LogisticRegression()), (words, np.arange(60) % 2 > 0))
    assert (probs.argmax(1) == np.arange(60) % 2).all()
    coded = Data(X, Y, classes=np.array(["wasp", "ant", "bee"]))
    ours, sorted_ = lp.cross_val_probs(GaussianNB(), coded), lp.cross_val_probs(GaussianNB(), (X, NAMES))
    assert (ours.argmax(1) == Y).mean() > 0.7
    assert np.abs(ours - sorted_[:, [2, 0, 1]]).mean() < 0.03, "columns are those of Data.classes; folds differ"


@pytest.mark.parametrize("labels", [Y + 3, Y - 1, NAMES, Y.astype(float)], ids=["3-5", "-1-1", "names", "float"])
def test_the_list_is_right_as_it_stands(labels: Any) -> None:
    probs = lp.cross_val_probs(GaussianNB(), (X, labels))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        issues = lp.find_issues(labels, probs)
    wrong = DATA.truth != Y
    assert wrong[issues["id"].head(wrong.sum())].mean() > 0.9
    assert abs(lp.estimate_noise(labels, probs).rate - wrong.mean()) < 0.08


def test_every_fold_trains_a_copy_on_labels_as_given() -> None:
    Prior.seen.clear()
    model = Prior()
    lp.cross_val_probs(model, (X, NAMES), 3)
    copies = [copy for copy, _, _ in Prior.seen]
    assert len({id(copy) for copy in copies}) == 3
    assert model not in copies
    assert all(set(y) == {"ant", "bee", "wasp"} for _, _, y in Prior.seen)


def test_our_own_estimators_on_arrays_and_map_style_data_sets() -> None:
    images = (load_digits().images[:300, None] * 15).astype(np.uint8)
    labels = load_digits().target[:300]
    data = torch.utils.data.TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
    clf = lp.NoisyLabelClassifier(method="ce", epochs=8, batch_size=16, lr=0.05)
    probs = lp.cross_val_probs(clf, (images, labels), 2)
    np.testing.assert_allclose(probs, lp.cross_val_probs(clf, (data, labels), 2), atol=1e-4)
    assert (probs.argmax(1) == labels).mean() > 0.8
    assert not hasattr(clf, "run_")


def test_a_function_of_a_pair_gets_data() -> None:
    kinds = []

    def fit(part: Data, name: str) -> Any:
        kinds.append((part.x.dtype, part.classes.tolist(), len(part)))
        return train(METHODS["ce"](), factory(part), part, settings(epochs=8))

    probs = lp.cross_val_probs(fit, (X.astype(np.float64), NAMES), 3)
    assert kinds == [(np.float32, ["ant", "bee", "wasp"], 100)] * 3
    assert (np.array(["ant", "bee", "wasp"])[probs.argmax(1)] == NAMES).mean() > 0.6
    pixels = np.zeros((30, 1, 4, 4), dtype=np.uint8)
    lp.cross_val_probs(
        lambda part, name: kinds.append(part.x.dtype) or SimpleNamespace(predict=thirds), (pixels, np.arange(30) % 3)
    )
    assert kinds[-1] == np.uint8


@pytest.mark.parametrize("given", ["codes", "labels"])
def test_columns_follow_the_classes_of_what_a_function_trained(given: str) -> None:
    """Class 0 is a single sample: the fold without it has two columns for three classes."""
    y = np.where(np.arange(150) == 7, 0, 1 + Y % 2)
    data = Data(X, y, classes=np.array(["ant", "bee", "wasp"]))

    def fit(part: Data, name: str) -> Any:
        return Prior().fit(part.x, part.y if given == "codes" else part.classes[part.y])

    with pytest.warns(UserWarning, match="1 of 3 classes"):
        probs = cross_val_probs(fit, data, 5)
    assert probs[7, 0] == 0
    assert (np.delete(probs[:, 0], 7) > 0).sum() == 120, "the folds that saw it"
    np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-6)
    assert (probs[:, 1] > probs[:, 2]).all() == ((y == 1).sum() > (y == 2).sum())


def test_a_class_that_a_fold_has_not_seen_gets_zero() -> None:
    labels = np.where(np.arange(150) == 7, "alone", NAMES)
    labels[[3, 9]] = "pair"
    with pytest.warns(
        UserWarning,
        match=r"2 of 5 classes have fewer samples than folds=5 \('alone' 1, 'pair' 2\): .* alone in its class gets",
    ) as told:
        probs = lp.cross_val_probs(Prior(), (X, labels))
    assert told[0].filename == __file__
    assert probs[7, 0] == 0
    assert (probs[:, 3] > 0).all()
    with pytest.warns(UserWarning, match="very few samples; give fewer folds"):
        lp.cross_val_probs(Prior(), (X, np.where(labels == "alone", "ant", labels)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lp.cross_val_probs(Prior(), (X, NAMES))
        lp.cross_val_probs(Prior(), Data(X, Y, classes=np.arange(4)))  # a class of no samples is no small class


def test_targets_have_the_shape_they_were_given_in() -> None:
    x, y = load_diabetes(return_X_y=True)
    flat = lp.cross_val_targets(LinearRegression(), (x, y))
    assert flat.shape == y.shape
    assert np.corrcoef(flat, y)[0, 1] > 0.6
    np.testing.assert_allclose(lp.cross_val_targets(LinearRegression(), (x, y[:, None])), flat[:, None])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # forests warn of targets in a column
        lp.cross_val_targets(RandomForestRegressor(2, random_state=0), Data(x, y[:, None]), 2)
    two = lp.cross_val_targets(LinearRegression(), (x, np.column_stack([y, -y])))
    np.testing.assert_allclose(two, np.column_stack([flat, -flat]))
    np.testing.assert_allclose(lp.cross_val_targets(LinearRegression(), Data(x, y[:, None])), flat[:, None])
    ours = lp.cross_val_targets(lp.NoisyLabelRegressor(epochs=20, lr=0.02, batch_size=32), (x[:200], y[:200]), 2)
    assert np.corrcoef(ours, y[:200])[0, 1] > 0.5
    by_function = lp.cross_val_targets(lambda part, name: LinearRegression().fit(part.x, part.y), (x, y))
    np.testing.assert_allclose(by_function, flat, rtol=1e-3)


def test_folds_run_side_by_side_with_the_same_result() -> None:
    told: list[str] = []
    launcher = Beside()
    clf = lp.NoisyLabelClassifier(method="elr", epochs=4, batch_size=32, lr=0.1, network=lambda: torch.nn.Linear(8, 3))
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as many as each of two workers has here
    try:
        alone = lp.cross_val_probs(clf, (X, NAMES), 2)
        beside = lp.cross_val_probs(clf, (X, NAMES), 2, launcher=launcher, told=told.append)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(alone, beside)
    assert launcher.asked == sorted(told) == ["fold-1", "fold-2"]


def returning(**answers: Any) -> Any:
    """A fit whose model answers that."""
    return lambda part, name: SimpleNamespace(**answers)


@pytest.mark.parametrize(
    ("fit", "data", "how", "text"),
    [
        (GaussianNB(), (X, Y), {"folds": 1}, r"folds=1 must be a whole number of at least 2"),
        (GaussianNB(), (X, Y), {"folds": 2.5}, r"folds=2.5 must be a whole number of at least 2"),
        (GaussianNB(), (X[:6], [0, 0, 0, 1, 1, 2]), {}, r"folds=5, but the largest class has 3 samples: give folds=3"),
        (GaussianNB(), (X[:3], [0, 1, 2]), {}, r"folds=5, but the largest class has 1 sample: give more"),
        (GaussianNB(), (X, Y[:-1]), {}, r"X has 150 samples and y has shape \(149,\): one label per sample"),
        (GaussianNB(), (X, np.eye(3)[Y]), {}, r"y has shape \(150, 3\): labels must be \(N,\); of one-hot rows give"),
        (GaussianNB(), (X, [None, *NAMES[1:]]), {}, r"y has 1 missing labels, the first in row 0: drop"),
        (GaussianNB(), (X, np.array([1, *NAMES[1:]], dtype=object)), {}, r"y mixes types that have no order"),
        (GaussianNB(), (X, np.zeros(150)), {}, r"y has one class only \(0.0\): at least two"),
        (GaussianNB(), (X, np.linspace(0, 1, 150)), {}, r"y holds fractions such as 0.00671\d+: for targets there is"),
        (GaussianNB(), X, {}, r"data=ndarray must be a pair \(X, y\) or a labelproof.data.dataset.Data"),
        (GaussianNB(), (None, Y), {}, r"X=None has no length"),
        (GaussianNB(), line(20), {}, r"data has targets and no classes: for those there is cross_val_targets"),
        (GaussianNB(), DATA.only(np.arange(9)), {}, r"in part \(Data.rows\): give data.take\(data.rows\)"),
        (GaussianNB, (X, Y), {}, r"fit=GaussianNB is a class: give one made of it, GaussianNB\(...\)"),
        (SVC(), (X, Y), {}, r"fit=SVC has no predict_proba: .*SVC\(probability=True\)"),
        (lp.NoisyLabelRegressor(), (X, Y), {}, r"fit=NoisyLabelRegressor has no predict_proba: .* cross_val_targets"),
        (3, (X, Y), {}, r"fit=3 must be an estimator with fit\(X, y\) and predict_proba\(X\), or a function"),
        (GaussianNB(), (X, Y), {"launcher": "processes"}, r"launcher='processes' must be a launcher, e.g"),
        (returning(), (X, Y), {}, r"fold-1: fit returned SimpleNamespace, which has no predict_proba and no predict"),
        (returning(predict=lambda x: Y[: len(x)]), (X, Y), {}, r"fold-1: what predict of SimpleNamespace returned has "
         r"shape \(30,\), and \(30, 3\) is needed: the probability of each class"),
        (returning(predict=lambda x: np.ones((7, 3))), (X, Y), {}, r"has shape \(7, 3\), and \(30, 3\) is needed"),
        (returning(predict=lambda x: thirds(x)[:, :2]), (X, Y), {}, r"has 2 columns, and the data has 3 classes: each"),
        (returning(predict=thirds, classes_=[0, 1]), (X, Y), {}, r"has 3 columns, and its classes_ has 2 entries"),
        (returning(predict=thirds, classes_=[0, 1, 7]), (X, Y), {}, r"classes_ has 7, which is no label .* are 0, 1"),
        (returning(predict=lambda x: thirds(x) * np.nan), (X, Y), {}, r"fold-1: .* is NaN or infinite for 30 of 30 "
         r"samples, the first is row \d+ of the data"),
        (returning(predict=lambda x: [["a"] * 3] * len(x)), (X, Y), {}, r"returned is no array of numbers"),
        (returning(predict=thirds), (csr_matrix(X), Y), {}, r"X cannot be given to a function .*as X.toarray\(\)"),
        (returning(predict=thirds), (pd.DataFrame({"a": NAMES}), Y), {}, r"X cannot be given to a function"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(fit: Any, data: Any, how: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        lp.cross_val_probs(fit, data, **how)


@pytest.mark.parametrize(
    ("fit", "data", "how", "text"),
    [
        (LinearRegression(), (X, Y), {"folds": 0}, r"folds=0 must be a whole number of at least 2"),
        (LinearRegression(), (X[:3], [1, 2, 3]), {}, r"folds=5, but there are 3 samples: give as many folds or fewer"),
        (
            LinearRegression(),
            (X, NAMES),
            {},
            r"y has targets that are no numbers .* is cross_val_probs",
        ),
        (
            LinearRegression(),
            (X, [np.nan, *range(149)]),
            {},
            r"y has 1 missing or infinite targets, the first in row",
        ),
        (LinearRegression(), (X, np.zeros((150, 1, 1))), {}, r"y has shape \(150, 1, 1\): targets must be"),
        (LinearRegression(), DATA, {}, r"data has classes and no targets: for those there is cross_val_probs"),
        (returning(fit=None), (X, Y), {}, r"fold-1: fit returned SimpleNamespace, which has no predict: return"),
        (returning(predict=lambda x: x[:, :2]), (X, Y), {}, r"has shape \(30, 2\), and \(30,\) is needed"),
        (returning(predict=lambda x: np.inf * x[:, 0]), (X, Y), {}, r"is NaN or infinite for 30 of 30"),
    ],
)
def test_what_is_wrong_with_targets_is_named(fit: Any, data: Any, how: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        lp.cross_val_targets(fit, data, **how)


def test_a_wrong_answer_ends_it_after_the_first_fold() -> None:
    told: list[str] = []
    with pytest.raises(ValueError, match="fold-2: what predict"):
        lp.cross_val_probs(
            lambda part, name: SimpleNamespace(predict=thirds if name == "fold-1" else len), (X, Y), told=told.append
        )
    assert told == ["fold-1"]


def test_neighbours_find_planted_errors_in_digits() -> None:
    x, y = load_digits(return_X_y=True)
    made = lp.noise.inject(y, "symmetric", 0.3, seed=0)
    probs = lp.cross_val_probs(KNeighborsClassifier(30), (x, made.labels), 3)
    assert made.changed[lp.find_issues(made.labels, probs)["id"].head(500)].mean() > 0.97
