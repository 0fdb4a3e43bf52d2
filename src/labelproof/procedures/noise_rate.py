"""`noise_rate="auto"`: the share of wrong labels, estimated before training by a quick cross-validation."""

from __future__ import annotations

from typing import Any

from labelproof.core.method import Fit
from labelproof.data.dataset import Data
from labelproof.procedures.cross_val import cross_val_probs

#: Folds, and the share of the run's epochs that each is trained for: together they cost what one whole training does.
#: At a quarter of the epochs small data sets were underfitted; with all of them wrong labels are memorised.
FOLDS, LENGTH = 3, 0.5


def with_noise_rate(fit: Fit, method: Any, data: Data) -> Any:
    """Train with the noise rate that was given; or estimate it first, and tell.

    The method itself, told that no label is wrong, is trained on each part of a cross-validation; the rate is
    `lp.estimate_noise` of the predictions for the samples left out.

    Args:
        fit: trains once.
        method: has `noise_rate`, a number or `"auto"`.
        data: the training data.

    Returns:
        What the last call of `fit` returned. Its method holds the estimate.

    Raises:
        ValueError: `"auto"` in regression, or on fewer samples than there are folds.
    """
    if method.noise_rate != "auto":
        return fit(method, data)
    if data.classes is None:
        raise ValueError("noise_rate='auto' is for classification: give the share of corrupted targets as a number")
    from labelproof.issues import estimate_noise  # pandas, only where it is needed

    plain = told(method, 0.0)

    def once(part: Data, name: str) -> Any:
        return fit(plain, part, stage=f"noise-rate-{name}", length=LENGTH)

    prob = cross_val_probs(once, data, folds=FOLDS)
    estimate = estimate_noise(data.classes[data.y], prob, classes=data.classes)
    low, high = estimate.interval
    rate = round(min(estimate.rate, 0.95), 4)
    fit.note(f"noise_rate={rate:.3g}, estimated by cross-validation (95 % interval {low:.3g} to {high:.3g})")
    return fit(told(method, rate), data)


def told(method: Any, rate: float) -> Any:
    """The method with another noise rate."""
    return type(method)(**{**method.get_params(), "noise_rate": rate})
