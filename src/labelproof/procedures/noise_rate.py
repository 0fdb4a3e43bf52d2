"""`noise_rate="auto"`: the share of wrong labels, estimated before training by a quick cross-validation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labelproof.core.method import Fit, Planned
from labelproof.data.dataset import Data
from labelproof.functional.ranks import of_first_rank
from labelproof.procedures.cross_val import Part, class_folds, sample_folds
from labelproof.procedures.noise_model import HIGHEST

#: Folds, and the share of the run's epochs that each is trained for: together they cost what one whole training does.
#: At a quarter of the epochs small data sets were underfitted; with all of them wrong labels are memorised.
FOLDS, LENGTH = 3, 0.5
#: In regression the folds are told a rate and trained for all epochs, two trainings' cost: gross errors would bend
#: networks that are told 0, and those of half the epochs err so much that wrong targets do not show.
FOLDS_TOLD, FOLDS_LENGTH = 0.4, 1.0
#: An interval wider than this says that the networks had learned too little.
WIDE = 0.35
#: Predictions that explain less of the spread of most targets than this (1 - MAD² / MAD²) are little to go by.
LEAST_EXPLAINED = 0.9


class Estimate(NamedTuple):
    """A share of wrong labels: the same on every rank, its 95 % interval, and why it is to be doubted, if it is."""

    rate: float
    interval: tuple[float, float]
    doubt: str


def with_noise_rate(fit: Fit, method: Any, data: Data) -> Any:
    """Train with the noise rate that was given; or estimate it first, and tell.

    The method itself is trained on each part of a cross-validation; the rate is `lp.estimate_noise` of the predictions
    for the samples left out, in regression `lp.estimate_target_noise`. The folds are told that no label is wrong, in
    regression that `FOLDS_TOLD` of the targets are. They are planned together, so that a run's launcher trains them
    side by side. Classes of fewer samples than there are folds take no part, nor do rows that are not trained on.

    Args:
        fit: trains once.
        method: has `noise_rate`, a number or `"auto"`.
        data: the training data.

    Returns:
        What the last call of `fit` returned. Its method holds the estimate.

    Raises:
        ValueError: `"auto"` without two classes of three samples each, with fewer than nine targets, or with targets
            that are equal in all but one fold.
    """
    if method.noise_rate != "auto":
        return fit(method, data)
    known = data if data.rows is None else data.take(data.rows)
    rate, (low, high), doubt = (of_targets if data.classes is None else of_labels)(fit, method, known)
    fit.note(
        f"noise_rate={rate:.3g}, estimated by cross-validation (95 % interval {low:.3g} to {high:.3g})",
        cv_noise_rate=rate,
        cv_noise_interval=[low, high],
    )
    if doubt:
        warnings.warn(
            f"noise_rate='auto' came to {rate:.2g} (95 % interval {low:.2g} to {high:.2g}), which is little to go by: "
            f"{doubt}; give a number, or have networks that predict better: more epochs, more informative inputs",
            stacklevel=2,
        )
    return fit(told(method, rate), data)


def of_labels(fit: Fit, method: Any, data: Data) -> Estimate:
    """The share of wrong classes."""
    from labelproof.issues import estimate_noise  # pandas, only where it is needed

    classes = np.asarray(data.classes)
    counts = np.bincount(data.y, minlength=data.num_classes)
    frequent = counts >= FOLDS
    if frequent.sum() < 2:
        raise ValueError(
            f"noise_rate='auto' needs two classes of at least {FOLDS} samples each, and the classes have "
            f"{', '.join(map(str, counts[:10]))}: give a number"
        )
    part, plain = data.take(np.flatnonzero(frequent[data.y])), told(method, 0.0)
    with warnings.catch_warnings():  # what is said of folds is not true of the data
        warnings.filterwarnings("ignore", "no training sample has the label")
        warnings.filterwarnings("ignore", "batch_size=|warmup=")
        prob = np.empty((len(part), part.num_classes), dtype=np.float32)
        _predict_left_out(fit, plain, part, class_folds(part.y, FOLDS), LENGTH, prob)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")  # of probabilities the user never saw: told in other words
        kept = prob[:, frequent] / prob[:, frequent].sum(1, keepdims=True)
        estimate = estimate_noise(classes[part.y], kept, classes=classes[frequent])
    low, high = estimate.interval
    doubtful = high - low > WIDE or any("says nothing about the labels" in str(w.message) for w in said)
    doubt = f"networks trained for {LENGTH:g} of the epochs hardly tell the classes apart" if doubtful else ""
    return Estimate(_shared(estimate.rate), (low, high), doubt)


def of_targets(fit: Fit, method: Any, data: Data) -> Estimate:
    """The share of wrong targets of a regression."""
    from labelproof.issues import estimate_target_noise

    if len(data) < FOLDS**2:
        raise ValueError(
            f"noise_rate='auto' needs at least {FOLDS**2} samples, and there are {len(data)}: give a number"
        )
    _check_folds(data)
    careful = told(method, FOLDS_TOLD)
    with warnings.catch_warnings():  # as above; of far and equal targets the last training tells
        warnings.filterwarnings("ignore", "batch_size=|warmup=")
        warnings.filterwarnings("ignore", ".* targets (lie more|are )")
        predicted = np.empty(data.y.shape)
        _predict_left_out(fit, careful, data, sample_folds(len(data), FOLDS), FOLDS_LENGTH, predicted)
        warnings.filterwarnings("ignore", "the share of wrong targets")  # told below, as a doubt
        estimate = estimate_target_noise(data.y, predicted)
    low, high = estimate.interval
    explained = 1 - float(np.mean((_spread(data.y - predicted) / _spread(data.y)) ** 2))
    doubt = ""
    if explained < LEAST_EXPLAINED:
        doubt = (
            f"the networks explain {max(explained, 0):.0%} of the spread of the targets, and wrong targets hide among "
            "their errors"
        )
    elif high - low > WIDE:
        doubt = "the networks' errors on wrong targets and on correct ones are much alike"
    return Estimate(_shared(estimate.rate), (low, high), doubt)


def _predict_left_out(
    fit: Fit, method: Any, data: Data, parts: Sequence[Part], length: float, out: NDArray[Any]
) -> None:
    """Train on each fold's part and write what is predicted for the rows left out to `out`."""
    plans = [Planned(method, data.take(p), f"noise-rate-fold-{k}", length) for k, (p, _) in enumerate(parts, 1)]
    for fitted, (_, held) in zip(fit.all(plans), parts, strict=True):
        out[held] = fitted.predict(data.take(held).x)


def _check_folds(data: Data) -> None:
    """Refuse targets that are equal in all but one fold: a network would have nothing to learn there."""
    if (data.y == data.y[0]).all():
        return  # refused as such
    for train, _ in sample_folds(len(data), FOLDS):
        y = data.y[train]
        if (y == y[0]).all():
            raise ValueError(
                f"noise_rate='auto' trains on {FOLDS - 1} of {FOLDS} parts of the data, and of {len(data)} targets "
                f"{(data.y != y[0]).any(1).sum()} differ from the others, all in the same part: give a number"
            )


def _spread(values: Any) -> Any:
    """The robust spread of each column, never 0."""
    from labelproof.issues.regression import robust_spread

    return np.maximum(robust_spread(values), np.finfo(float).tiny)


def _shared(rate: float) -> float:
    return of_first_rank(round(min(rate, HIGHEST), 4))


def told(method: Any, rate: float) -> Any:
    """The method with another noise rate."""
    return type(method)(**{**method.get_params(), "noise_rate": rate})
