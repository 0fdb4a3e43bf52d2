"""Features as noise that depends on them sees them: flattened, standardised, a block of rows at a time. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelproof.data.noise_labels import Codes, Floats


class Features:
    """Flattened, standardised features, made a block of rows at a time: images stay uint8 in memory."""

    _CELLS = 1 << 22

    def __init__(self, x: NDArray[Any]) -> None:
        self._x = x.reshape(len(x), -1)
        self.width = self._x.shape[1]
        pieces = list(self.blocks(np.arange(len(x))))
        with np.errstate(invalid="ignore", over="ignore"):
            self._mean: Floats = sum(self._x[rows].sum(axis=0, dtype=np.float64) for rows in pieces) / len(x)
            square: Floats = sum(((self._x[rows] - self._mean) ** 2).sum(axis=0) for rows in pieces) / len(x)
        if not np.isfinite(square).all():
            raise ValueError("x must be finite, but holds NaN or infinite (or far too large) values: fill or drop them")
        sd = np.sqrt(square)
        constant = sd <= 1e-12 * np.abs(self._mean)
        if constant.all():
            raise ValueError("x has no feature that varies: noise cannot depend on it")
        self._inverse_sd = np.divide(1.0, sd, out=np.zeros_like(sd), where=~constant)

    def blocks(self, rows: Codes) -> Iterator[Codes]:
        """`rows` in pieces of some 32 MB of features."""
        step = max(1, self._CELLS // max(1, self.width))
        for start in range(0, len(rows), step):
            yield rows[start : start + step]

    def standardised(self, rows: Codes) -> Floats:
        """`(M, d)` features of these rows with mean 0 and sd 1 over the whole data set."""
        return np.asarray((self._x[rows] - self._mean) * self._inverse_sd)
