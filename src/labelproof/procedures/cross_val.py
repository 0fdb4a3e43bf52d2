"""Cross-validation: what each sample is predicted to be by networks that were not trained on it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelproof.data.dataset import Data

FitPart = Callable[[Data, str], Any]


def cross_val_probs(fit: FitPart, data: Data, *, folds: int = 5, seed: int = 0) -> NDArray[np.float32]:
    """Class probabilities of each sample from the training that left its fold out.

    Folds hold each class in the same proportion (scikit-learn's `StratifiedKFold`).

    Args:
        fit: from a part of the data and a name, unique per fold, to something with `predict(x)`.
        data: a classification data set.
        folds: at least 2.
        seed: of the folds.

    Returns:
        `(N, K)`.

    Raises:
        ValueError: there are not as many samples as folds, or no class has as many.

    >>> from types import SimpleNamespace
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> x, y = load_digits(return_X_y=True)
    >>> def fit(part, name):
    ...     return SimpleNamespace(predict=KNeighborsClassifier().fit(part.x, part.y).predict_proba)
    >>> probs = cross_val_probs(fit, Data(x, y, classes=np.arange(10)), folds=3)
    >>> bool((probs.argmax(1) == y).mean() > 0.98)
    True
    """
    from sklearn.model_selection import StratifiedKFold  # half a second to import

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class")  # rare classes miss from some folds
        parts = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(data.y, data.y))
    return _left_out(fit, data, parts, np.empty((len(data), data.num_classes), dtype=np.float32))


def cross_val_targets(fit: FitPart, data: Data, *, folds: int = 5, seed: int = 0) -> NDArray[np.float64]:
    """Predicted targets of each sample from the training that left its fold out.

    Args:
        fit: from a part of the data and a name, unique per fold, to something with `predict(x)`.
        data: a regression data set.
        folds: at least 2.
        seed: of the folds.

    Returns:
        `(N, D)` in the units of `data.y`.

    Raises:
        ValueError: there are not as many samples as folds.

    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import LinearRegression
    >>> x, y = load_diabetes(return_X_y=True)
    >>> predicted = cross_val_targets(lambda part, name: LinearRegression().fit(part.x, part.y), Data(x, y[:, None]))
    >>> bool(np.corrcoef(predicted[:, 0], y)[0, 1] > 0.6)
    True
    """
    from sklearn.model_selection import KFold

    parts = KFold(folds, shuffle=True, random_state=seed).split(data.y)
    return _left_out(fit, data, parts, np.empty(data.y.shape))


def _left_out(fit: FitPart, data: Data, parts: Iterable[tuple[Any, Any]], out: NDArray[Any]) -> NDArray[Any]:
    """Fill each row of `out` from the training without it."""
    for k, (train, held) in enumerate(parts, 1):
        out[held] = fit(data.take(train), f"fold-{k}").predict(data.take(held).x)
    return out
