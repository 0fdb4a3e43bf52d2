"""`noise_rate="auto"`: the share of wrong labels, estimated before training by a quick cross-validation."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from labelproof.core.method import Fit
from labelproof.data.dataset import Data
from labelproof.functional.ranks import of_first_rank
from labelproof.procedures.cross_val import cross_val_probs

#: Folds, and the share of the run's epochs that each is trained for: together they cost what one whole training does.
#: At a quarter of the epochs small data sets were underfitted; with all of them wrong labels are memorised.
FOLDS, LENGTH = 3, 0.5
#: A rate told to methods stays below 1; an interval wider than this says that the networks had learned too little.
HIGHEST, WIDE = 0.95, 0.35


def with_noise_rate(fit: Fit, method: Any, data: Data) -> Any:
    """Train with the noise rate that was given; or estimate it first, and tell.

    The method itself, told that no label is wrong, is trained on each part of a cross-validation; the rate is
    `lp.estimate_noise` of the predictions for the samples left out. Classes of fewer samples than there are folds
    take no part in the estimate.

    Args:
        fit: trains once.
        method: has `noise_rate`, a number or `"auto"`.
        data: the training data.

    Returns:
        What the last call of `fit` returned. Its method holds the estimate.

    Raises:
        ValueError: `"auto"` in regression, or without two classes of three samples each.
    """
    if method.noise_rate != "auto":
        return fit(method, data)
    rate, (low, high), doubtful = estimated(fit, method, data)
    fit.note(
        f"noise_rate={rate:.3g}, estimated by cross-validation (95 % interval {low:.3g} to {high:.3g})",
        cv_noise_rate=rate,
        cv_noise_interval=[low, high],
    )
    if doubtful:
        warnings.warn(
            f"noise_rate='auto' came to {rate:.2g} (95 % interval {low:.2g} to {high:.2g}), which is little to go by: "
            f"networks trained for {LENGTH:g} of the epochs hardly tell the classes apart; train for longer, or give a "
            "number",
            stacklevel=2,
        )
    return fit(told(method, rate), data)


def estimated(fit: Fit, method: Any, data: Data) -> tuple[float, tuple[float, float], bool]:
    """The share of wrong labels (the same on every rank), its 95 % interval, and whether it is to be doubted."""
    if data.classes is None:
        raise ValueError("noise_rate='auto' is for classification: give the share of corrupted targets as a number")
    from labelproof.issues import estimate_noise  # pandas, only where it is needed

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
        prob = cross_val_probs(
            lambda fold, name: fit(plain, fold, stage=f"noise-rate-{name}", length=LENGTH), part, folds=FOLDS
        )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")  # of probabilities the user never saw: told in other words
        kept = prob[:, frequent] / prob[:, frequent].sum(1, keepdims=True)
        estimate = estimate_noise(data.classes[part.y], kept, classes=data.classes[frequent])
    low, high = estimate.interval
    doubtful = high - low > WIDE or any("says nothing about the labels" in str(w.message) for w in said)
    return of_first_rank(round(min(estimate.rate, HIGHEST), 4)), (low, high), doubtful


def told(method: Any, rate: float) -> Any:
    """The method with another noise rate."""
    return type(method)(**{**method.get_params(), "noise_rate": rate})
