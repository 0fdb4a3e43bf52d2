"""`estimate_noise`: how many labels are wrong, and which class is taken for which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from labelproof.issues.checks import check
from labelproof.issues.posterior import Posterior, infer, soft_confusion
from labelproof.issues.verdict import fitted


@dataclass(frozen=True, eq=False)
class NoiseEstimate:
    """How wrong the labels are. `str()` gives the summary in words.

    Attributes:
        rate: share of wrong labels, in [0, 1].
        interval: (low, high), 95 %: sampling error, and how far the estimate was off in the measurements of
            docs/finding-wrong-labels.md for a model as unsure as this one. It is wider for a weaker model.
        transition: `(K, K)` float64, P(given j | true k), rows = true class, each sums to one.
        joint: `(K, K)` float64, share of samples of true class k (rows) with label j (columns); sums to one.
        prior: `(K,)` float64, share of each true class.
        classes: `(K,)` the labels that rows and columns stand for.
        memorised: whether the probabilities were taken for those of a network that has fitted these very labels, or
            of any model as seldom in doubt (`labelproof.issues.posterior` says how, and what changes).
    """

    rate: float
    interval: tuple[float, float]
    transition: NDArray[np.float64]
    joint: NDArray[np.float64]
    prior: NDArray[np.float64]
    classes: NDArray[Any]
    memorised: bool

    def __str__(self) -> str:
        low, high = self.interval
        off = self.joint - np.diag(np.diag(self.joint))
        worst = [divmod(int(cell), len(off)) for cell in off.argsort(axis=None, kind="stable")[::-1][:3]]
        named = [
            f"{self.classes[k]!s} labelled {self.classes[j]!s} ({self.transition[k, j]:.1%} of {self.classes[k]!s})"
            for k, j in worst
            if off[k, j] > 0.001
        ]
        return f"{self.rate:.1%} of the labels are wrong (95 % interval {low:.1%} to {high:.1%})" + (
            f"; most often {', '.join(named)}" if named else ""
        )


def estimate_noise(labels: ArrayLike, pred_probs: ArrayLike, *, classes: ArrayLike | None = None) -> NoiseEstimate:
    """Estimate the share of wrong labels and the noise transition matrix.

    Args:
        labels: `(N,)` given labels: values of `classes`, or codes 0..K-1.
        pred_probs: `(N, K)` probabilities of each class, best out-of-sample (cross-validation); the time average of a
            network's outputs on its own training samples will do. Arrays, CPU tensors or a DataFrame.
        classes: `(K,)` the class of each column. None: the columns of a DataFrame, else the sorted labels.

    Returns:
        The estimate; equations in `labelproof.issues.posterior`.

    Raises:
        ValueError: labels, probabilities or classes that do not fit together.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> true = rng.integers(0, 3, 3000)
        >>> given = np.where(rng.random(3000) < 0.2, (true + 1) % 3, true)  # 20 % into the next class
        >>> probs = rng.dirichlet([0.3, 0.3, 0.3], 3000) * 0.4 + np.eye(3)[true] * 0.6
        >>> noise = estimate_noise(given, probs, classes=["ant", "bee", "cat"])
        >>> print(noise)
        21.5% of the labels are wrong (95 % interval 19.0% to 24.0%); most often ant labelled bee ...
        >>> noise.transition.round(1)
        array([[0.8, 0.2, 0. ],
               [0. , 0.8, 0.2],
               [0.2, 0. , 0.8]])
    """
    with threadpool_limits(1, user_api="blas"):  # small products: threads take longer to meet than to multiply
        checked = check(labels, pred_probs, classes)
        posterior = infer(checked.given, checked.rows(slice(None), np.float64), fitted(checked))
    return summary(checked.given, checked.classes, posterior)


def summary(given: NDArray[np.int64], classes: NDArray[Any], posterior: Posterior) -> NoiseEstimate:
    """What a posterior over true classes says about the labels as a whole."""
    n = len(given)
    joint = soft_confusion(given, posterior.proba) / n
    rate = float(min(max(1 - np.trace(joint), 0.0), 1.0))
    # The second and third term are measured: see `NoiseEstimate.interval`.
    deviation = float(np.sqrt(rate * (1 - rate) / n + (0.2 * posterior.errors) ** 2 + 0.01**2))
    interval = (max(rate - 1.96 * deviation, 0.0), min(rate + 1.96 * deviation, 1.0))
    return NoiseEstimate(
        rate, interval, posterior.transition, joint, joint.sum(axis=1), classes, memorised=posterior.memorised
    )
