"""More of the papers' equations as plain NumPy loops."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tests.reference.oracles import Floats, cross_entropy, one_hot, softmax


def sop(z: Floats, y: NDArray[np.int64], u: Floats, v: Floats) -> tuple[Floats, Floats]:
    """Liu et al. 2022: per sample, (cross-entropy of the corrected prediction, squared error)."""
    p, labels = softmax(z), one_hot(y, z.shape[1])
    ce, mse = np.zeros(len(z)), np.zeros(len(z))
    for i in range(len(z)):
        big_u = np.clip(u[i] ** 2 * labels[i], 0, 1)
        big_v = np.clip(v[i] ** 2 * (1 - labels[i]), 0, 1)
        q = np.maximum(p[i] + big_u - big_v, 1e-4)
        q = np.clip(q / np.abs(q).sum(), 1e-4, 1)
        ce[i] = -(labels[i] * np.log(q)).sum()
        hard = np.eye(z.shape[1])[z[i].argmax()]
        mse[i] = ((hard + big_u - big_v - labels[i]) ** 2).sum()
    return ce, mse


def gce(z: Floats, y: NDArray[np.int64], q: float, k: float = 0.0) -> Floats:
    """Zhang & Sabuncu 2018, truncated for k > 0."""
    p = softmax(z)[np.arange(len(y)), y]
    return np.array([(1 - max(a, k) ** q) / q for a in p])


def mae(z: Floats, y: NDArray[np.int64]) -> Floats:
    return np.abs(softmax(z) - one_hot(y, z.shape[1])).sum(1)


def sce(z: Floats, y: NDArray[np.int64], alpha: float, beta: float, log_zero: float) -> Floats:
    """Wang et al. 2019: log 0 := log_zero, log 1 = 0."""
    labels = one_hot(y, z.shape[1])
    reverse = -(softmax(z) * np.where(labels > 0, 0.0, log_zero)).sum(1)
    return alpha * cross_entropy(z, labels) + beta * reverse


def bootstrap(z: Floats, y: NDArray[np.int64], beta: float, hard: bool) -> Floats:
    """Reed et al. 2015."""
    own = one_hot(z.argmax(1), z.shape[1]) if hard else softmax(z)
    return cross_entropy(z, beta * one_hot(y, z.shape[1]) + (1 - beta) * own)


def forward(z: Floats, y: NDArray[np.int64], transition: Floats) -> Floats:
    """Patrini et al. 2017."""
    return -np.log((softmax(z) @ transition)[np.arange(len(y)), y])


def backward(z: Floats, y: NDArray[np.int64], transition: Floats) -> Floats:
    """Patrini et al. 2017."""
    losses = -np.log(softmax(z))
    return (losses @ np.linalg.inv(transition).T)[np.arange(len(y)), y]
