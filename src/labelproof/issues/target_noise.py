"""`estimate_target_noise`: how many regression targets are wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from labelproof.issues.regression import Mixture, as_table, residuals, warn_of_limit

# Standard deviation of the estimate beyond sampling error, as measured (docs/finding-wrong-labels.md): the mixture is
# none of real residuals, and the more targets are wrong, the more it matters how.
MISFIT, MISFIT_SHARE = 0.02, 0.1


@dataclass(frozen=True)
class TargetNoiseEstimate:
    """How wrong the targets are. `str()` gives the summary in words.

    Attributes:
        rate: share of wrong targets, in [0, 0.5]: of more the estimate cannot tell.
        interval: (low, high), 95 %: sampling error, and how far the estimate was off in the measurements of
            docs/finding-wrong-labels.md. It knows nothing of errors that are no larger than the model's own.
    """

    rate: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.rate:.1%} of the targets are wrong (95 % interval {low:.1%} to {high:.1%})"


def estimate_target_noise(
    targets: ArrayLike, predictions: ArrayLike, *, features: ArrayLike | None = None
) -> TargetNoiseEstimate:
    """Estimate the share of wrong regression targets.

    The share is the weight of the broad component of the mixture in `labelproof.issues.regression`, so it counts
    targets that are further off than a model's errors usually are. Wrong targets whose error is no larger than the
    residuals of this model on correct ones cannot be seen and are not counted: where the model explains little, or the
    errors are small, the true share is higher, and the interval does not say so. Nor does it where more than half of
    the targets are wrong: the estimate is 50 % at most.

    Args:
        targets: `(N,)` or `(N, D)` given targets, in any units.
        predictions: of the same shape, best out-of-sample.
        features: `(N, F)` rows of a table, as for `find_target_issues`.

    Returns:
        The estimate.

    Raises:
        ValueError: as `find_target_issues`.

    Warns:
        UserWarning: the estimate came to 50 %.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> predictions = rng.normal(0, 5, 2000)
        >>> targets = predictions + rng.normal(0, 1, 2000)
        >>> targets[:200] += 30
        >>> print(estimate_target_noise(targets, predictions))
        11.3% of the targets are wrong (95 % interval 5.0% to 17.7%)
    """
    found = residuals(targets, predictions, features)
    warn_of_limit(found.mixture)
    return _estimate(found.mixture)


def examine_targets(
    targets: ArrayLike,
    predictions: ArrayLike,
    *,
    features: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    evidence: Mapping[str, ArrayLike] | None = None,
) -> tuple[pd.DataFrame, TargetNoiseEstimate]:
    """`find_target_issues` and `estimate_target_noise` of the same targets, for the time of one."""
    found = residuals(targets, predictions, features)
    table = as_table(found, ids, evidence)
    warn_of_limit(found.mixture)
    return table, _estimate(found.mixture)


def _estimate(mixture: Mixture) -> TargetNoiseEstimate:
    reach = 1.96 * float(np.hypot(mixture.deviation, MISFIT + MISFIT_SHARE * mixture.share))
    return TargetNoiseEstimate(mixture.share, (max(mixture.share - reach, 0.0), min(mixture.share + reach, 1.0)))
