"""The papers' equations as plain NumPy loops: slow, literal, and written without looking at the library."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def softmax(z: Floats) -> Floats:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def cross_entropy(z: Floats, q: Floats) -> Floats:
    """Per sample, for soft labels q."""
    out = np.zeros(len(z))
    for i in range(len(z)):
        log_p = z[i] - z[i].max() - np.log(np.exp(z[i] - z[i].max()).sum())
        for k in range(z.shape[1]):
            out[i] -= q[i, k] * log_p[k]
    return out


def one_hot(y: NDArray[np.int64], classes: int) -> Floats:
    return np.eye(classes)[y]


def elr(z: Floats, y: NDArray[np.int64], t: Floats, lam: float, beta: float) -> tuple[float, Floats]:
    """Liu et al. 2020: (loss, new targets of the batch). `t` holds the rows of the batch before the visit."""
    p = np.clip(softmax(z), 1e-4, 1 - 1e-4)
    new, total = np.zeros_like(t), 0.0
    ce = cross_entropy(z, one_hot(y, z.shape[1]))
    for i in range(len(z)):
        for k in range(z.shape[1]):
            new[i, k] = beta * t[i, k] + (1 - beta) * p[i, k] / p[i].sum()
        total += ce[i] + lam * np.log(1 - np.dot(p[i], new[i]))
    return total / len(z), new


def elr_gradient(z: Floats, y: NDArray[np.int64], t: Floats, lam: float) -> Floats:
    """Gradient of ELR's mean loss in the logits, for given targets t, where no clamp is active (Lemma 1)."""
    p, n = softmax(z), len(z)
    g = np.zeros_like(z)
    for i in range(n):
        inner = np.dot(p[i], t[i])
        for c in range(z.shape[1]):
            reg = p[i, c] / (1 - inner) * sum((t[i, k] - t[i, c]) * p[i, k] for k in range(z.shape[1]))
            g[i, c] = (p[i, c] - (y[i] == c) + lam * reg) / n
    return g


def co_teaching(
    l1: Floats, l2: Floats, epoch: int, rate: float, gradual: int, exponent: float
) -> tuple[float, set[int], set[int]]:
    """Han et al. 2018 for per-sample losses of both networks in epoch T = 1, 2, ...: (loss, D1, D2)."""
    keep = 1 - rate * min(epoch**exponent / gradual, 1)
    count = max(1, int(np.floor(keep * len(l1) + 1e-9)))
    d1, d2 = (set(np.argsort(each, kind="stable")[:count].tolist()) for each in (l1, l2))
    return sum(l1[i] for i in d2) / count + sum(l2[i] for i in d1) / count, d1, d2
