r"""Transition matrices of label noise, $T_{ij} = P(\tilde y = j \mid y = i)$: rows = true class, columns = given."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_CONDITION = 1e4  # beyond it, fp32 losses times the inverse are rounding error


def check_transition(transition: Any, num_classes: int | None = None) -> Tensor:
    """The matrix as a tensor, if it is one of transition probabilities.

    Args:
        transition: nested sequences, a NumPy array, a tensor, or the path of a .npy or .csv file (no header).
        num_classes: K; `None` takes it from the matrix.

    Returns:
        `(K, K)` fp64, a copy on the same device, its rows summing to 1 exactly (up to rounding).

    Raises:
        ValueError: it is no table of numbers, not K x K, not finite, negative somewhere, or its rows do not sum to 1.
        ValueError: there is no such file, or a data frame is not in the order of its sorted classes.

    >>> check_transition([[0.9, 0.1], [0.0, 1.0]], 2)
    tensor([[0.9000, 0.1000],
            [0.0000, 1.0000]], dtype=torch.float64)
    """
    matrix = _as_tensor(transition, num_classes)
    shape = tuple(matrix.shape)
    if num_classes is None:
        num_classes = shape[0] if shape else 0
    if num_classes < 1 or shape != (num_classes, num_classes):
        raise ValueError(
            f"transition has shape {shape} and must be ({num_classes or 'K'}, {num_classes or 'K'}): a row for each "
            "true class, a column for each given label"
        )
    if not bool(torch.isfinite(matrix).all()) or bool((matrix < 0).any()):
        i, j = (~torch.isfinite(matrix) | (matrix < 0)).nonzero()[0].tolist()
        raise ValueError(
            f"transition[{i}][{j}]={matrix[i, j].item():.6g} must be a probability, in [0, 1]; where it was estimated, "
            "set negative entries to 0 and divide each row by its sum"
        )
    sums = matrix.sum(1)
    off = (sums - 1).abs()
    if float(off.max()) > 1e-3:
        i = int(off.argmax())
        columns = " (its columns do: transpose it, rows are true classes)" if _sums_to_one(matrix.T) else ""
        raise ValueError(f"row {i} of transition sums to {sums[i].item():.6g} and must sum to 1{columns}")
    return matrix / sums[:, None]


def _as_tensor(transition: Any, num_classes: int | None) -> Tensor:
    if isinstance(transition, Tensor):
        return transition.detach().to(torch.float64, copy=True)
    if hasattr(transition, "columns"):  # a data frame says whose rows these are
        rows, columns = list(transition.index), list(transition.columns)
        if rows != columns or rows != sorted(rows):
            raise ValueError(
                f"transition has the rows {rows} and the columns {columns}; both must be the classes in sorted order: "
                "transition.loc[classes, classes] with classes = sorted(transition.index)"
            )
    try:
        if isinstance(transition, str | Path):
            npy = Path(transition).suffix == ".npy"
            transition = np.load(transition) if npy else np.loadtxt(transition, delimiter=",", ndmin=2)
        return torch.from_numpy(np.array(transition, dtype=np.float64))
    except OSError as error:
        raise ValueError(f"transition={str(transition)!r} cannot be read: {error}") from error
    except (TypeError, ValueError):
        raise ValueError(
            f"transition={transition!r:.200} is not a table of numbers; give {num_classes or 'K'} rows of "
            f"{num_classes or 'K'}, or the path of a .npy or .csv file that holds them"
        ) from None


def _sums_to_one(matrix: Tensor) -> bool:
    return bool(((matrix.sum(1) - 1).abs() <= 1e-3).all())


def invert_transition(transition: Tensor) -> Tensor:
    """The inverse, in fp32, made in fp64.

    Args:
        transition: `(K, K)`, as `check_transition` returns it.

    Raises:
        ValueError: the matrix is singular, or its condition number is above `MAX_CONDITION`.

    >>> invert_transition(torch.tensor([[0.8, 0.2], [0.4, 0.6]]))
    tensor([[ 1.5000, -0.5000],
            [-1.0000,  2.0000]])
    """
    matrix = transition.detach().double()
    condition = float(torch.linalg.cond(matrix))
    if not condition <= MAX_CONDITION:
        size = f"{condition:.3g}" if math.isfinite(condition) else "infinite"
        raise ValueError(
            f"transition cannot be inverted: its condition number is {size}, allowed up to {MAX_CONDITION:g}, as two "
            "or more classes have (nearly) the same given labels; use method 'forward', which needs no inverse"
        )
    inverse: Tensor = torch.linalg.inv(matrix)
    return inverse.float()


def calibrate(prob: Any, held: Any, given: Any) -> Tensor:
    r"""Probabilities brought to the confidence that held-out labels bear out: temperature scaling, $p^{1/\tau}$ anew.

    Guo, Pleiss, Sun, Weinberger (ICML 2017). A network that has begun to memorise is surer of the given labels than it
    should be, and an anchor then shows less noise than there is. The temperature minimises the mean negative log
    likelihood of the held-out labels, which is convex in $1/\tau$: its slope is bisected, $1/32 \le 1/\tau \le 4$.

    Args:
        prob: `(n, K)` predicted probabilities of the given labels.
        held: `(h,)` rows that the network was not trained on.
        given: `(h,)` class codes, their labels as given.

    Returns:
        `(n, K)` fp64, rows summing to 1.

    Raises:
        ValueError: `held` is empty.

    >>> sure = [[0.99, 0.01]] * 4  # of labels of which one in four is another
    >>> calibrate(sure, [0, 1, 2, 3], [0, 0, 0, 1])[0]
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    log_p = torch.as_tensor(prob).detach().double().clamp(min=1e-30).log()
    some, labels = log_p[torch.as_tensor(held).long()], torch.as_tensor(given).long()
    if not len(labels):
        raise ValueError(
            "held is empty: calibration needs labels the network was not trained on; pass calibrated=False"
        )
    low, high = 1 / 32, 4.0
    for _ in range(40):
        sharpness = math.sqrt(low * high)
        slope = ((sharpness * some).softmax(1) * some).sum(1) - some.gather(1, labels[:, None])[:, 0]
        low, high = (sharpness, high) if float(slope.sum()) < 0 else (low, sharpness)
    return (low * log_p).softmax(1)


def anchor_transition(prob: Any, percentile: float | None = None) -> Tensor:
    r"""T estimated from anchor points (Patrini et al., CVPR 2017).

    A sample that certainly belongs to class i shows row i, $T_{ij} = P(\tilde y = j \mid x)$. The anchor of class i is
    taken to be the sample with the largest $p_i$ of those not above a percentile of $p_i$, as the largest of all are
    often outliers. The percentile is over all samples, so it must leave some of each class: 97 drops all of a class
    that has fewer than 3 % of the samples.

    Args:
        prob: `(n, K)` predicted probabilities of the *given* labels, from a network trained on these.
        percentile: in (0, 100], 100 filters nothing. `None` takes the paper's: 97 for few classes (up to 16, where it
            drops at most half of an average class), 100 for many.

    Returns:
        `(K, K)` fp64, rows summing to 1. Among equally large $p_i$ the first sample is taken.

    Raises:
        ValueError: `prob` is empty, no table, or has a row that is not of probabilities; or the percentile is out of
            range.

    >>> anchor_transition([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.5, 0.5]], percentile=100)
    tensor([[0.9000, 0.1000],
            [0.3000, 0.7000]], dtype=torch.float64)
    """
    p = (prob if isinstance(prob, Tensor) else torch.from_numpy(np.asarray(prob, dtype=np.float64))).detach().double()
    if p.ndim != 2 or 0 in p.shape:
        raise ValueError(f"prob has shape {tuple(p.shape)} and must be (n, K) with at least one sample")
    bad = ~(torch.isfinite(p) & (p >= 0)).all(1) | (p.sum(1) <= 0)
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        raise ValueError(
            f"prob[{i}]={p[i].tolist()!r:.200} is not a row of probabilities; if the network diverged, lower its lr"
        )
    if percentile is None:
        percentile = 97.0 if p.shape[1] <= 16 else 100.0
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile={percentile!r} must lie in (0, 100]; 100 filters nothing")
    # rounded down to a sample's own value, so that every class has an anchor however few the samples
    bound = p.kthvalue(1 + int(percentile / 100 * (len(p) - 1) + 1e-9), dim=0).values
    rows = p[p.masked_fill(p > bound, -1).argmax(0)]
    return rows / rows.sum(1, keepdim=True)
