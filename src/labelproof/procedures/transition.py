"""Estimating the noise transition matrix by a first training."""

from __future__ import annotations

from typing import Any

from labelproof.core.method import Fit
from labelproof.data.dataset import Data
from labelproof.functional.transition import anchor_transition, calibrate


def with_estimated_transition(fit: Fit, method: Any, data: Data) -> Any:
    """The procedure of Patrini et al. (2017): estimate T by a first training, then train with it.

    Args:
        fit: trains once.
        method: has `transition` (if given, one training is all there is), `percentile` and `calibrated`; without a
            matrix its loss is cross-entropy.
        data: the training data.

    Returns:
        What the last call of `fit` returned.
    """
    if method.transition is not None:
        return fit(method, data)
    first = fit(method, data, stage="transition", early_stopping=True, validation_fraction=0.1)
    prob = first.predict(data.x)
    if method.calibrated:
        prob = calibrate(prob, first.held, data.y[first.held])
    estimate = anchor_transition(prob, method.percentile).tolist()
    return fit(type(method)(**{**method.get_params(), "transition": estimate}), data)
