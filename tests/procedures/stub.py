"""A stub of `fit` that trains nothing: it notes what it is asked for, and answers as it is told to."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from labelproof.core.method import Fit, Planned
from labelproof.data.dataset import Data
from labelproof.procedures.incv import Selection, incv

#: From the rows of the data set that are asked for, and the number of the training, to probabilities.
Answer = Callable[[np.ndarray, int], np.ndarray]


class Trained:
    def __init__(self, fit: Stub, number: int) -> None:
        self.fit, self.number = fit, number

    def predict(self, x: np.ndarray) -> np.ndarray:
        rows = np.asarray(x)[:, 0].astype(int)  # the only feature of these data sets is the row number
        self.fit.asked.append(rows)
        return self.fit.answer(rows, self.number)


class Stub(Fit):
    """Trains nothing: notes what it is asked for, and answers as it is told to."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.plans: list[Planned] = []
        self.asked: list[np.ndarray] = []
        self.figures: dict[str, Any] = {}
        self.lines: list[str] = []
        self.tables: dict[str, Mapping[str, np.ndarray]] = {}

    def __call__(self, method: Any, data: Any, /, *, stage: str = "", length: float = 1.0, **changes: Any) -> Trained:
        self.plans.append(Planned(method, data, stage, length, changes))
        return Trained(self, len(self.plans) - 1)

    def note(self, text: str, **figures: Any) -> None:
        self.lines.append(text)
        self.figures |= figures

    def table(self, name: str, columns: Mapping[str, Any]) -> None:
        self.tables[name] = columns

    @property
    def trained(self) -> list[np.ndarray]:
        """Rows of the whole data set that each training was given."""
        return [p.data.x[:, 0].astype(int) for p in self.plans]


def problem(
    n: int = 400, k: int = 4, noise: Any = None, *, seed: int = 0, truth: bool = True, prior: Any = None
) -> Data:
    """A data set whose inputs are row numbers, under noise with this transition matrix."""
    rng = np.random.default_rng(seed)
    true = rng.permutation(np.arange(n) % k) if prior is None else rng.choice(k, n, p=prior)
    y = true if noise is None else draw(noise, true, rng)
    x = np.arange(n, dtype=np.float32)[:, None]
    return Data(x, y, classes=np.arange(k), truth=true if truth else None, ids=np.arange(n) + 1000)


def draw(noise: np.ndarray, true: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    edges = noise.cumsum(1)
    edges[:, -1] = 1
    return (rng.random(len(true))[:, None] >= edges[true]).sum(1)


def memorised(data: Data, noise: np.ndarray, seed: int = 1) -> Answer:
    """The network of the theory: hard predictions, drawn from T of the true class, of an unseen sample anew."""
    eye = np.eye(data.num_classes, dtype=np.float32)
    return lambda rows, number: eye[draw(noise, data.truth, np.random.default_rng((seed, number)))[rows]]


def soft(data: Data, seed: int = 1, sure: float = 2.0) -> Answer:
    """A weak network: soft probabilities that favour the true class, other ones in each training."""
    z = np.random.default_rng(seed).normal(size=(20, len(data), data.num_classes))
    z += sure * np.eye(data.num_classes)[data.truth]
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    return lambda rows, number: p[number][rows].astype(np.float32)


def quiet(fit: Stub, data: Data, **options: Any) -> Selection:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return incv(fit, data, **options)
