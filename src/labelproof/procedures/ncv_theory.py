r"""What a network that memorised noisy labels says about labels it has not seen: the theory of noisy cross-validation.

Chen, Liao, Chen, Zhang, "Understanding and Utilizing Deep Neural Networks Trained with Noisy Labels", ICML 2019.

$T_{ij} = P(\tilde y = j \mid y = i)$ is the noise, rows = true class, and $\pi_i$ the share of true class $i$.
Assumed: a network that has memorised noisy labels $\tilde y$ predicts class $j$ for an *unseen* sample of true class
$i$ with probability $T_{ij}$, independently of that sample's own noisy label,

$$M_{ij} = P(f(x) = j \mid y = i) = T_{ij} . \tag{1}$$

Samples whose noisy label is predicted are selected. Accuracy $a$ (against *noisy* labels, which is the selected share),
label precision (clean among the selected) and label recall (selected among the clean) are then

$$a = \sum_i \pi_i \sum_j T_{ij}^2, \qquad
LP = \frac{1}{a} \sum_i \pi_i T_{ii}^2, \qquad
LR = \frac{\sum_i \pi_i T_{ii}^2}{\sum_i \pi_i T_{ii}} . \tag{2}$$

With $K$ classes and noise of rate $\varepsilon$, symmetric (any other class alike) or asymmetric (each class to one
other, as in "pairflip"), $LP = (1-\varepsilon)^2 / a$ and $LR = 1 - \varepsilon$, where

$$a_{sym} = (1-\varepsilon)^2 + \frac{\varepsilon^2}{K-1}, \qquad
a_{asym} = (1-\varepsilon)^2 + \varepsilon^2 , \tag{3}$$

so that accuracy alone tells the rate, up to where accuracy is smallest:

$$\varepsilon_{sym} = \frac{K-1}{K}\Bigl(1 - \sqrt{\frac{K a - 1}{K - 1}}\Bigr) \le \frac{K-1}{K} \quad (a \ge 1/K),
\qquad
\varepsilon_{asym} = \frac{1 - \sqrt{2 a - 1}}{2} \le \frac12 \quad (a \ge 1/2) . \tag{4}$$

A network that errs beyond the noise agrees less than this, one that resists it agrees more: docs/theory.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labelproof.core.method import Fit, Method, Planned
from labelproof.data import noise
from labelproof.data.dataset import Data
from labelproof.data.noise_models import KINDS, PRESETS
from labelproof.data.seeds import derive
from labelproof.data.split import hold_out
from labelproof.functional.transition import check_transition

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]

#: What the theory is about, as columns are called.
QUANTITIES = ("accuracy", "precision", "recall")
#: Rates of the paper's figure.
RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_GRID = np.arange(101) / 100  # rates at which theory is drawn
_ROUNDING = 1e-12  # an accuracy so little below chance is chance


class Theory(NamedTuple):
    """What is expected of a memorising network on unseen samples.

    Attributes:
        accuracy: share of them whose noisy label it predicts.
        precision: share of clean labels among these.
        recall: share of these among the clean labels; 0, its limit, where no label is clean.
        confusion: `(K, K)` float64, P(prediction | true class), rows = true class.
    """

    accuracy: float
    precision: float
    recall: float
    confusion: Floats


class Inverted(NamedTuple):
    """A noise rate, and whether the accuracy it was told from can occur at all under the theory."""

    rate: float
    valid: bool


def theory(transition: Any, prior: ArrayLike | None = None) -> Theory:
    """Accuracy, precision, recall and confusion under any noise that depends on the class alone.

    Args:
        transition: `(K, K)` T, rows = true class, as for `labelproof.functional.transition.check_transition`.
        prior: `(K,)` share of each true class, or their counts; by default all alike.

    Raises:
        ValueError: T is no matrix of transition probabilities, or the prior does not fit it.

    >>> theory([[0.8, 0.2], [0.2, 0.8]])[:3]
    (0.68..., 0.941..., 0.8...)
    """
    T = check_transition(transition).cpu().numpy()
    pi = _checked_prior(prior, len(T))
    stays = np.diag(T)
    clean, agree, both = float(pi @ stays), float(pi @ (T**2).sum(1)), float(pi @ stays**2)
    # Σ π T² <= (largest T_ii) Σ π T: as the clean labels vanish, so does the recall.
    return Theory(agree, both / agree, both / clean if clean > 0 else 0.0, T)


def symmetric(rate: float, num_classes: int) -> Theory:
    """The closed forms for symmetric noise: any other class alike.

    Args:
        rate: share of wrong labels, in [0, 1].
        num_classes: K, at least 2.

    Raises:
        ValueError: rate or number of classes out of range.

    >>> [round(value, 4) for value in symmetric(0.5, 10)[:3]]
    [0.2778, 0.9, 0.5]
    """
    _check(rate, num_classes)
    matrix = np.full((num_classes, num_classes), rate / (num_classes - 1))
    np.fill_diagonal(matrix, 1 - rate)
    return _closed(rate, rate**2 / (num_classes - 1), matrix)


def asymmetric(rate: float, num_classes: int) -> Theory:
    """The closed forms for asymmetric noise: each class to one other; the confusion is that of the next one, pairflip.

    Args:
        rate: share of wrong labels, the same in each class, in [0, 1].
        num_classes: K, at least 2; decides the size of the confusion alone.

    Raises:
        ValueError: rate or number of classes out of range.

    >>> [round(value, 4) for value in asymmetric(0.4, 10)[:3]]
    [0.52, 0.6923, 0.6]
    """
    _check(rate, num_classes)
    same = np.eye(num_classes)
    return _closed(rate, rate**2, (1 - rate) * same + rate * np.roll(same, 1, axis=1))


def symmetric_rate(accuracy: float, num_classes: int) -> Inverted:
    """The rate of symmetric noise that leads to this agreement; the smaller of the two there may be.

    Args:
        accuracy: agreement with noisy labels, in [0, 1].
        num_classes: K, at least 2.

    Returns:
        The rate, at most (K-1)/K. An accuracy below chance, 1/K, belongs to no rate: (K-1)/K, not valid.

    Raises:
        ValueError: accuracy or number of classes out of range.

    >>> symmetric_rate(0.625, 4)
    Inverted(rate=0.2..., valid=True)
    >>> symmetric_rate(0.05, 10)
    Inverted(rate=0.9, valid=False)
    """
    _check(0, num_classes)
    above = (num_classes * _share("accuracy", accuracy) - 1) / (num_classes - 1)
    return Inverted((num_classes - 1) / num_classes * (1 - math.sqrt(max(above, 0))), above >= -_ROUNDING)


def asymmetric_rate(accuracy: float) -> Inverted:
    """The rate of asymmetric noise that leads to this agreement; the smaller of the two there may be.

    Args:
        accuracy: agreement with noisy labels, in [0, 1].

    Returns:
        The rate, at most 1/2. An accuracy below 1/2 belongs to no rate: 1/2, not valid.

    Raises:
        ValueError: accuracy out of range.

    >>> asymmetric_rate(0.625)
    Inverted(rate=0.25, valid=True)
    >>> asymmetric_rate(0.4)
    Inverted(rate=0.5, valid=False)
    """
    return symmetric_rate(accuracy, 2)  # two classes: the other one is the only one there is


def selected_noise(transition: Any, prior: ArrayLike | None = None) -> float:
    """Share of wrong labels that is left among the selected samples, 1 - precision.

    Args:
        transition: as for `theory`.
        prior: as for `theory`.

    Raises:
        ValueError: see `theory`.

    >>> round(selected_noise(symmetric(0.2, 10).confusion), 4)
    0.0069
    """
    return 1 - theory(transition, prior).precision


@dataclass(frozen=True, eq=False)
class Verification:
    """Theory and measurement side by side. `print()` it for the table and the distances.

    Attributes:
        kind: of the noise.
        table: a row for each noise rate: `rate` as asked for, `realised`; `accuracy`, `precision` and `recall` as
            measured on the half not trained on, each with its `_theory`; `confusion`, the largest |M - T| of a cell;
            `memorised`, the share of the other half's noisy labels that the network reproduces after training on them.
            What is a share of nothing is NaN: recall where no label is clean, precision where nothing is selected.
        lines: `rate` 0, 0.01 ... 1 with `accuracy`, `precision` and `recall` by theory.
        measured: `(R, K, K)` M, P(prediction | true class) on the half not trained on; NaN for classes not in it.
        transition: `(R, K, K)` T as realised.
        classes: `(K,)` the labels that rows and columns stand for.
    """

    kind: str
    table: pd.DataFrame
    lines: pd.DataFrame
    measured: Floats
    transition: Floats
    classes: NDArray[Any]

    def distance(self) -> pd.DataFrame:
        """How far measurements lie from theory: mean and largest absolute difference over the rates, and where.

        Returns:
            Rows `accuracy`, `precision`, `recall` and `confusion` (of single cells); columns `mean`, `largest` and
            `rate`, the noise rate with the largest. NaN where nothing could be measured.
        """
        import pandas as pd

        off = (self.table[list(QUANTITIES)] - self.table[[f"{name}_theory" for name in QUANTITIES]].to_numpy()).abs()
        cells = np.abs(self.measured - self.transition)
        means = {**off.mean().to_dict(), "confusion": float(np.nanmean(cells))}
        off["confusion"] = self.table["confusion"]
        rates = self.table["rate"].to_numpy()[off.fillna(-1).to_numpy().argmax(0)]
        return pd.DataFrame({"mean": pd.Series(means), "largest": off.max(), "rate": rates})

    def __str__(self) -> str:
        return "\n\n".join(
            (
                f"noise {self.kind}: measured on the half not trained on, and by theory",
                self.table.to_string(index=False, float_format="{:.3f}".format),
                "distance between the two",
                self.distance().to_string(float_format="{:.3f}".format),
            )
        )


def verify(
    fit: Fit,
    method: Method,
    data: Data,
    *,
    kind: str = "symmetric",
    rates: Sequence[float] = RATES,
    seed: int = 0,
) -> Verification:
    """Put the theory to the test: noise into clean labels, train on one half, predict the other; for each rate anew.

    The halves hold each class alike and are the same for all rates. The trainings are stages `theory-KIND-RATE`.

    Args:
        fit: trains.
        method: what to train with; cross-entropy memorises, which the theory assumes.
        data: a classification data set whose labels are right.
        kind: a kind or preset of `labelproof.noise.kinds()` that depends on the class alone.
        rates: noise rates in [0, 1], each once.
        seed: of noise and halves.

    Raises:
        ValueError: labels that are known to be noisy, a regression, a kind of noise that depends on more than the
            class, or rates that are none, repeated or out of range.

    >>> from types import SimpleNamespace
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> class Neighbour(Fit):  # memorises to perfection
    ...     def __call__(self, method, data, /, **how):
    ...         return SimpleNamespace(predict=KNeighborsClassifier(1).fit(data.x, data.y).predict_proba)
    >>> x, y = load_digits(return_X_y=True)
    >>> found = verify(Neighbour(), Method(), Data(x, y, classes=np.arange(10)), rates=[0, 0.5])
    >>> found.table[["accuracy", "accuracy_theory"]].round(2).to_numpy().tolist()
    [[0.99, 1.0], [0.28, 0.29]]
    """
    import pandas as pd

    rates = check_asked(data, kind, rates)
    train, held = hold_out(data.y, 0.5, seed=derive(seed, "theory-halves"))
    noisy = [noise.inject(data.y, kind, rate, seed=seed, num_classes=data.num_classes) for rate in rates]
    clean = data.take(train), data.take(held)  # once: the inputs of all rates are the same arrays
    halves = [
        [part.relabelled(n.labels[rows], **n.record()) for part, rows in zip(clean, (train, held), strict=True)]
        for n in noisy
    ]
    fits = fit.all(
        [Planned(method, half, f"theory-{kind}-{rate:g}") for rate, (half, _) in zip(rates, halves, strict=True)]
    )
    prior = np.bincount(data.y, minlength=data.num_classes) / len(data)
    rows, matrices = [], []
    for rate, injected, (half, other), fitted in zip(rates, noisy, halves, fits, strict=True):
        expected = theory(injected.transition, prior)
        figures, M = _measured(fitted.predict(other.x).argmax(1), other)
        row = {"rate": rate, "realised": injected.rate}
        for name in QUANTITIES:
            row |= {name: figures[name], f"{name}_theory": getattr(expected, name)}
        row["confusion"] = float(np.nanmax(np.abs(M - expected.confusion)))
        row["memorised"] = float((fitted.predict(half.x).argmax(1) == half.y).mean())
        rows.append(row)
        matrices.append(M)
    return Verification(
        kind,
        pd.DataFrame(rows),
        _lines(data, kind, seed, prior),
        np.stack(matrices),
        np.stack([n.transition for n in noisy if n.transition is not None]),
        np.asarray(data.classes),
    )


def _measured(predicted: NDArray[np.int64], data: Data) -> tuple[dict[str, float], Floats]:
    """Agreement with the noisy labels and what it selects, and P(prediction | true class)."""
    truth = np.asarray(data.truth)
    selected, clean = predicted == data.y, truth == data.y
    found = float((selected & clean).sum())
    figures = {
        "accuracy": float(selected.mean()),
        "precision": found / selected.sum() if selected.any() else math.nan,
        "recall": found / clean.sum() if clean.any() else math.nan,
    }
    K = data.num_classes
    counts = np.bincount(truth * K + predicted, minlength=K * K).reshape(K, K).astype(np.float64)
    total = counts.sum(1, keepdims=True)
    return figures, np.divide(counts, total, out=np.full((K, K), math.nan), where=total > 0)


def _lines(data: Data, kind: str, seed: int, prior: Floats) -> pd.DataFrame:
    """Theory at each rate of the grid: T = (1 - ε) I + ε J, where J is T at rate 1."""
    import pandas as pd

    K = data.num_classes
    jump = noise.inject(data.y, kind, 1.0, seed=seed, num_classes=K).nominal
    found = [theory((1 - rate) * np.eye(K) + rate * np.asarray(jump), prior)[:3] for rate in _GRID]
    return pd.DataFrame(found, columns=list(QUANTITIES)).assign(rate=_GRID)[["rate", *QUANTITIES]]


def check_asked(data: Data, kind: str, rates: Sequence[float]) -> list[float]:
    """Refuse what `verify` cannot do, before any training; the rates as numbers."""
    if data.classes is None or data.num_classes < 2:
        raise ValueError(
            f"data {data.name!r} has {data.num_classes or 'no'} classes: the theory is about wrong classes, and needs "
            "two or more; for targets of a regression see lp.estimate_target_noise"
        )
    if data.truth is not None:
        raise ValueError(
            f"data {data.name!r} has given labels beside true ones: verify() puts noise of its own into clean labels; "
            "give the true ones as the labels, without noise= or a column of truth"
        )
    if len(data) < 4:
        raise ValueError(f"data {data.name!r} has {len(data)} samples: two halves need at least 4")
    if noise.of_targets(kind) or KINDS[PRESETS[kind].kind if kind in PRESETS else kind].family != "jump":
        fit = [name for name, known in KINDS.items() if known.family == "jump"]
        raise ValueError(
            f"kind={kind!r} is no noise with a rate that depends on the class alone, which the theory assumes; "
            f"there are: {', '.join(fit)}, and the presets of these"
        )
    checked = [_share("rates", rate) for rate in rates]
    if not checked:
        raise ValueError("rates is empty: give noise rates in [0, 1], such as [0, 0.2, 0.5]")
    names = [f"{rate:g}" for rate in checked]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"rates={list(rates)!r} holds {twice} more than once: each rate is trained once")
    return checked


def _closed(rate: float, wrong: float, matrix: Floats) -> Theory:
    """From the share of samples where prediction and label agree on a wrong class."""
    both = (1 - rate) ** 2
    return Theory(both + wrong, both / (both + wrong), 1 - rate, matrix)


def _check(rate: float, num_classes: int) -> None:
    _share("rate", rate)
    if num_classes != int(num_classes) or num_classes < 2:
        raise ValueError(f"num_classes={num_classes!r} must be a whole number, at least 2")


def _share(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r} must be in [0, 1], a share and not per cent")
    return float(value)


def _checked_prior(prior: ArrayLike | None, num_classes: int) -> Floats:
    if prior is None:
        return np.full(num_classes, 1 / num_classes)
    pi = np.asarray(prior, dtype=np.float64)
    if pi.shape != (num_classes,):
        raise ValueError(f"prior has shape {pi.shape} and must be ({num_classes},): a share for each row of transition")
    if not np.isfinite(pi).all() or (pi < 0).any() or pi.sum() <= 0:
        raise ValueError(f"prior={prior!r:.200} must hold shares or counts: finite, none below 0, not all of them 0")
    return np.asarray(pi / pi.sum())
