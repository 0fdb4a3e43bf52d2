"""Cross-validation: what each sample is predicted to be by a model that was not trained on it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from labelproof.data.dataset import Data, MapStyle

Rows = NDArray[np.int64]
#: What a fold is trained on and what it leaves out.
Part = tuple[Rows, Rows]


class Launcher(Protocol):
    """What is used of `labelproof.engine.launchers.Launcher`."""

    def run(
        self,
        calls: Sequence[Callable[[int], NDArray[Any]]],
        names: Sequence[str],
        told: Callable[[str], None] | None = None,
    ) -> list[NDArray[Any]]: ...


def cross_val_probs(
    fit: Any,
    data: Data | tuple[Any, Any],
    folds: int = 5,
    *,
    seed: int = 0,
    launcher: Launcher | None = None,
    told: Callable[[str], None] | None = None,
) -> NDArray[np.float32]:
    """Class probabilities of each sample from the training that left its fold out.

    Folds hold each class in the same proportion (scikit-learn's `StratifiedKFold`, shuffled). The result is what
    `lp.find_issues` and `lp.estimate_noise` ask for.

    Args:
        fit: a classifier with `fit(X, y)` and `predict_proba(X)`, as in scikit-learn; a copy is trained for each fold.
            Or a function from a part of the data (a `Data`) and the fold's name to something with `predict_proba(x)`
            or else `predict(x)`, which must return probabilities. Columns follow the `classes_` of what was trained,
            labels or codes, and 0 stands where it has not seen a class; without `classes_` there must be a column for
            each class.
        data: a pair `(X, y)`: X an array, a data frame, a sparse matrix, a list or a map-style data set, y `(N,)`
            labels of any kind. Or a `Data` of a classification. A function gets the rows of a pair as float32.
        folds: at least 2; as many trainings, each on the share 1 - 1 / folds of the samples.
        seed: of the folds.
        launcher: where the folds are trained side by side, e.g. `labelproof.engine.launchers.Processes(2)`; one after
            another here if `None`. The result is the same, for trainings that give the same on as many threads.
        told: is called with the name of each fold that is finished; `print` shows progress.

    Returns:
        `(N, K)`, rows in the order of the data, columns in that of the sorted labels; of a `Data` in that of
        its `classes`.

    Raises:
        ValueError: an argument is unusable, no class has as many samples as there are folds, or what a fold predicted
            has another shape, NaN or infinite values.

    >>> import labelproof as lp
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> X, y = load_digits(return_X_y=True)
    >>> noisy = lp.noise.inject(y, "symmetric", 0.2, seed=0)
    >>> probs = lp.cross_val_probs(KNeighborsClassifier(20), (X, noisy.labels))
    >>> bool(noisy.changed[lp.find_issues(noisy.labels, probs)["id"].head(300)].mean() > 0.98)
    True
    """
    samples = _labelled(data)
    classes = np.asarray(samples.classes)
    parts = class_folds(samples.y, folds, seed)
    _warn_of_rare(samples.y, classes, folds)
    found = _left_out(fit, "predict_proba", data, samples, parts, launcher, told)
    return _joined(found, parts, np.empty((len(samples.y), len(classes)), dtype=np.float32))


def cross_val_targets(
    fit: Any,
    data: Data | tuple[Any, Any],
    folds: int = 5,
    *,
    seed: int = 0,
    launcher: Launcher | None = None,
    told: Callable[[str], None] | None = None,
) -> NDArray[np.float64]:
    """Predicted targets of each sample from the training that left its fold out, for `lp.find_target_issues`.

    Args:
        fit: a regressor with `fit(X, y)` and `predict(X)`, as in scikit-learn; a copy is trained for each fold. Or a
            function from a part of the data (a `Data`) and the fold's name to something with `predict(x)`.
        data: a pair `(X, y)` with `(N,)` or `(N, D)` targets, or a `Data` of a regression; see `cross_val_probs`.
        folds: at least 2, at most N.
        seed: of the folds.
        launcher: see `cross_val_probs`.
        told: see `cross_val_probs`.

    Returns:
        Predictions of the shape of the targets, `(N, D)` for a `Data`, in their units.

    Raises:
        ValueError: an argument is unusable, there are fewer samples than folds, or what a fold predicted has another
            shape, NaN or infinite values.

    >>> import labelproof as lp
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import LinearRegression
    >>> X, y = load_diabetes(return_X_y=True)
    >>> y[:10] *= 10
    >>> predicted = lp.cross_val_targets(LinearRegression(), (X, y))
    >>> set(lp.find_target_issues(y, predicted)["id"].head(6)) <= set(range(10))
    True
    """
    samples = _measured(data)
    parts = sample_folds(len(samples.y), folds, seed)
    found = _left_out(fit, "predict", data, samples, parts, launcher, told)
    return _joined(found, parts, np.empty(samples.y.shape))


def class_folds(y: NDArray[np.int64], folds: int, seed: int = 0) -> list[Part]:
    """Folds that hold each class in the same proportion.

    Args:
        y: `(N,)` class codes.
        folds: how many.
        seed: of the shuffle.

    Returns:
        For each fold the rows to train on and those left out.

    Raises:
        ValueError: fewer than 2 folds, or no class has as many samples.
    """
    from sklearn.model_selection import StratifiedKFold  # half a second to import

    _check_folds(folds)
    most = int(np.bincount(y).max(initial=0))
    if most < folds:
        remedy = f"give folds={most} or fewer" if most > 1 else "give more samples of each class"
        raise ValueError(f"folds={folds}, but the largest class has {most} sample{'s' * (most != 1)}: {remedy}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # told in other words, where it matters
        return list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(y, y))


def sample_folds(n: int, folds: int, seed: int = 0) -> list[Part]:
    """Folds of `n` samples; see `class_folds`."""
    from sklearn.model_selection import KFold

    _check_folds(folds)
    if n < folds:
        raise ValueError(f"folds={folds}, but there are {n} samples: give as many folds or fewer")
    return list(KFold(folds, shuffle=True, random_state=seed).split(np.empty(n)))


class _Samples(NamedTuple):
    """Inputs as they were given, `(N,)` codes or `(N,)` or `(N, D)` targets, and the label of each code."""

    x: Any
    y: NDArray[Any]
    classes: NDArray[Any] | None = None


class _Said(NamedTuple):
    """What a trained model answered to which question, and the codes of the columns, where it tells."""

    out: Any
    asked: str
    codes: NDArray[np.int64] | None = None


#: Trains on the first rows and says what it predicts for the second; gets the fold's name, too.
_Answer = Callable[[Rows, Rows, str], _Said]


@dataclass(frozen=True)
class _Fold:
    """One training. Called, perhaps in another process, it gives the predictions for the rows left out, checked."""

    answer: _Answer
    classes: NDArray[Any] | None
    shape: tuple[int, ...]
    train: Rows
    held: Rows
    name: str

    def __call__(self, attempt: int) -> NDArray[Any]:
        said = self.answer(self.train, self.held, self.name)
        what = f"{self.name}: what {said.asked} returned"
        try:
            out = np.asarray(said.out, dtype=np.float64)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{what} is no array of numbers ({error})") from error
        if self.classes is None:
            if out.size != np.prod(self.shape) or out.shape[:1] != self.shape[:1]:  # (n,) and (n, 1) are the same
                raise ValueError(f"{what} has shape {out.shape}, and {self.shape} is needed, that of the targets")
            out = out.reshape(self.shape)
        elif out.ndim != 2 or len(out) != len(self.held):
            raise ValueError(
                f"{what} has shape {out.shape}, and ({len(self.held)}, {len(self.classes)}) is needed: the probability "
                "of each class for each sample, not the predicted class"
            )
        bad = ~np.isfinite(out).reshape(len(out), -1).all(1)
        if bad.any():
            raise ValueError(
                f"{what} is NaN or infinite for {bad.sum()} of {len(out)} samples, the first is row "
                f"{self.held[bad.argmax()]} of the data: did the training diverge, or has the row missing inputs?"
            )
        return out if self.classes is None else self._columns(out, said.codes, what)

    def _columns(self, prob: NDArray[Any], codes: NDArray[np.int64] | None, what: str) -> NDArray[Any]:
        """A column for each class; 0 where the model has not seen it."""
        width = len(self.classes) if self.classes is not None else 0
        if prob.shape[1] != (width if codes is None else len(codes)):
            raise ValueError(
                f"{what} has {prob.shape[1]} columns, and "
                + (f"the data has {width} classes" if codes is None else f"its classes_ has {len(codes)} entries")
                + ": each class needs a column; a model that saw fewer must name them in classes_"
            )
        if codes is None:
            return prob
        out = np.zeros((len(prob), width))
        out[:, codes] = prob
        return out


def _by_estimator(fit: Any, asked: str, samples: _Samples, train: Rows, held: Rows, name: str) -> _Said:
    """The answer of a copy of a scikit-learn-like estimator, trained on labels as the user gave them."""
    from sklearn.base import clone

    y = samples.y if samples.classes is None else samples.classes[samples.y]
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    model = clone(fit, safe=False)
    model.fit(_rows(samples.x, train), y[train])
    out = getattr(model, asked)(_rows(samples.x, held))
    own = getattr(model, "classes_", None) if samples.classes is not None else None
    return _Said(out, f"{asked} of {type(model).__name__}", None if own is None else _codes(own, samples.classes, name))


def _by_function(fit: Callable[[Data, str], Any], data: Data, train: Rows, held: Rows, name: str) -> _Said:
    """The answer of what the user's function returns."""
    part = data.take(train)
    model = fit(part, name)
    kinds = ("predict",) if data.classes is None else ("predict_proba", "predict")
    asked = next((kind for kind in kinds if hasattr(model, kind)), None)
    if asked is None:
        raise ValueError(
            f"{name}: fit returned {type(model).__name__}, which has no {' and no '.join(kinds)}: return the model it "
            "trained"
        )
    out = getattr(model, asked)(data.take(held).x)
    own = getattr(model, "classes_", None) if data.classes is not None else None
    if own is not None:  # codes, if it was trained on those of the part
        own = np.asarray(own)
        own = own if np.array_equal(np.unique(own), np.unique(part.y)) else _codes(own, data.classes, name)
    return _Said(out, f"{asked} of {type(model).__name__}", own)


def _codes(own: Any, classes: Any, name: str) -> NDArray[np.int64]:
    """Where a model's classes stand among those of the data."""
    import pandas as pd

    own = np.asarray(own)
    codes = np.asarray(pd.Index(classes).get_indexer(pd.Index(own)), dtype=np.int64)
    if (codes < 0).any():
        raise ValueError(
            f"{name}: classes_ has {own[codes < 0].tolist()[0]!r}, which is no label of the data: those are "
            f"{', '.join(map(repr, classes[:5].tolist()))}{' ...' * (len(classes) > 5)}"
        )
    return codes


def _left_out(
    fit: Any,
    asked: str,
    data: Any,
    samples: _Samples,
    parts: Sequence[Part],
    launcher: Launcher | None,
    told: Callable[[str], None] | None,
) -> list[NDArray[Any]]:
    """For each fold the predictions for the rows left out."""
    if launcher is not None and not hasattr(launcher, "run"):
        raise ValueError(
            f"launcher={launcher!r} must be a launcher, e.g. labelproof.engine.launchers.Processes(2), or None"
        )
    answer: _Answer
    if _is_estimator(fit, asked):
        answer = partial(_by_estimator, fit, asked, samples)
    else:
        answer = partial(_by_function, fit, data if isinstance(data, Data) else _as_data(samples))
    names = [f"fold-{k}" for k in range(1, len(parts) + 1)]
    calls = [
        _Fold(answer, samples.classes, (len(held), *samples.y.shape[1:]), train, held, name)
        for (train, held), name in zip(parts, names, strict=True)
    ]
    if launcher is not None:
        return launcher.run(calls, names, told)
    found = []
    for call in calls:
        found.append(call(0))
        if told is not None:
            told(call.name)
    return found


def _joined(found: Sequence[NDArray[Any]], parts: Sequence[Part], out: NDArray[Any]) -> NDArray[Any]:
    """Predictions of all folds in the order of the data, written to `out`."""
    for predicted, (_, held) in zip(found, parts, strict=True):
        out[held] = predicted
    return out


def _is_estimator(fit: Any, asked: str) -> bool:
    """Whether `fit` is to be copied and trained, rather than called."""
    if isinstance(fit, type):
        raise ValueError(f"fit={fit.__name__} is a class: give one made of it, {fit.__name__}(...)")
    if hasattr(fit, "fit"):
        if not hasattr(fit, asked):
            remedy = (
                "give a classifier that has (of an SVC: SVC(probability=True)); for numbers there is cross_val_targets"
                if asked == "predict_proba"
                else "give a regressor"
            )
            raise ValueError(f"fit={type(fit).__name__} has no {asked}: {remedy}")
        return True
    if not callable(fit):
        raise ValueError(
            f"fit={fit!r:.80} must be an estimator with fit(X, y) and {asked}(X), or a function of a part of the data "
            "and a name"
        )
    return False


def _pair(data: Any) -> tuple[Any, Any]:
    """Inputs and labels as they were given, of one length."""
    if not (isinstance(data, tuple | list) and len(data) == 2):
        raise ValueError(f"data={type(data).__name__} must be a pair (X, y) or a labelproof.data.dataset.Data")
    x, y = (part.numpy(force=True) if isinstance(part, Tensor) else part for part in data)
    if not hasattr(x, "__len__"):
        raise ValueError(f"X={x!r:.80} has no length: give an array, a table, a list or a map-style data set")
    n = x.shape[0] if hasattr(x, "shape") else len(x)
    y = np.asarray(y)
    if y.ndim == 0 or len(y) != n:
        raise ValueError(f"X has {n} samples and y has shape {y.shape}: one label per sample is needed")
    return x, y


def _whole(data: Data) -> Data:
    if data.rows is not None:
        raise ValueError("data is trained on in part (Data.rows): give data.take(data.rows), whose samples are listed")
    return data


def _labelled(data: Any) -> _Samples:
    """Inputs, codes and classes."""
    if isinstance(data, Data):
        if data.classes is None:
            raise ValueError("data has targets and no classes: for those there is cross_val_targets")
        return _Samples(_whole(data).x, data.y, np.asarray(data.classes))
    import pandas as pd

    x, y = _pair(data)
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    if y.ndim != 1:
        raise ValueError(f"y has shape {y.shape}: labels must be (N,); of one-hot rows give y.argmax(axis=1)")
    missing = pd.isna(y)
    if missing.any():
        raise ValueError(
            f"y has {missing.sum()} missing labels, the first in row {missing.argmax()}: drop those samples"
        )
    if y.dtype == object:  # numbers among objects (nullable columns) as numbers, which scikit-learn asks for
        y = pd.Series(y).infer_objects().to_numpy()
    if y.dtype.kind == "f" and (y != np.floor(y)).any():
        raise ValueError(
            f"y holds fractions such as {y[y != np.floor(y)][0]:g}: for targets there is cross_val_targets"
        )
    try:
        classes, codes = np.unique(y, return_inverse=True)
    except TypeError as error:
        raise ValueError(f"y mixes types that have no order ({error}): give labels of one type") from error
    if len(classes) < 2:
        raise ValueError(f"y has one class only ({', '.join(map(repr, classes.tolist()))}): at least two are needed")
    return _Samples(x, codes.astype(np.int64), classes)


def _measured(data: Any) -> _Samples:
    """Inputs and targets, of float64."""
    if isinstance(data, Data):
        if data.classes is not None:
            raise ValueError("data has classes and no targets: for those there is cross_val_probs")
        return _Samples(_whole(data).x, data.y)
    x, y = _pair(data)
    try:
        y = y.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"y has targets that are no numbers ({error}): for classes there is cross_val_probs"
        ) from error
    bad = ~np.isfinite(y).reshape(len(y), -1).all(1)
    if y.ndim > 2 or bad.any():
        raise ValueError(
            f"y has shape {y.shape}: targets must be (N,) or (N, D)"
            if y.ndim > 2
            else f"y has {bad.sum()} missing or infinite targets, the first in row {bad.argmax()}: drop those samples"
        )
    return _Samples(x, y)


def _as_data(samples: _Samples) -> Data:
    """A pair as what functions are given."""
    x = samples.x
    if not _is_dataset(x) and getattr(x, "dtype", None) != np.uint8:  # images stay bytes
        try:
            x = np.asarray(x, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"X cannot be given to a function as an array of numbers ({error}): give numbers (a sparse matrix as "
                "X.toarray()), a map-style data set, or a scikit-learn pipeline as fit"
            ) from error
    y = samples.y if samples.classes is not None else samples.y.reshape(len(samples.y), -1)
    return Data(x, y, classes=samples.classes)


def _is_dataset(x: Any) -> bool:
    """A map-style data set, rather than an array, a table or a list."""
    from scipy.sparse import issparse

    return isinstance(x, MapStyle) and not (hasattr(x, "__array__") or issparse(x) or isinstance(x, list | tuple | str))


def _rows(x: Any, rows: Rows) -> Any:
    """Some of the inputs, in the type they were given."""
    from sklearn.utils import _safe_indexing

    return Data(x, np.empty(len(x))).take(rows).x if _is_dataset(x) else _safe_indexing(x, rows)


def _check_folds(folds: int) -> None:
    if not isinstance(folds, int | np.integer) or isinstance(folds, bool) or folds < 2:
        raise ValueError(f"folds={folds!r} must be a whole number of at least 2")


def _warn_of_rare(y: NDArray[np.int64], classes: NDArray[Any], folds: int) -> None:
    """Say which classes are too small for these folds."""
    counts = np.bincount(y, minlength=len(classes))
    few = (counts > 0) & (counts < folds)
    if few.any():
        named = ", ".join(f"{classes.tolist()[k]!r} {counts[k]}" for k in np.flatnonzero(few)[:5])
        more = ", ..." if few.sum() > 5 else ""
        alone = ", and a sample alone in its class gets probability 0 for it" if (counts == 1).any() else ""
        warnings.warn(
            f"{few.sum()} of {len(classes)} classes have fewer samples than folds={folds} ({named}{more}): what is "
            f"predicted for them rests on very few samples{alone}; give fewer folds or leave them out",
            stacklevel=3,
        )
