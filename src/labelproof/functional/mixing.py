"""Mixup (Zhang et al., ICLR 2018)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Mixup(NamedTuple):
    r"""One draw of mixup, to be applied to whatever belongs together: $\tilde a = \ell a + (1-\ell) a_\pi$.

    Attributes:
        lam: $\ell$ in [0.5, 1] for `draw`, where the un-permuted sample always weighs more.
        perm: `(B,)` int64, the permutation $\pi$.
    """

    lam: float
    perm: Tensor

    @classmethod
    def draw(cls, alpha: float, like: Tensor, rng: torch.Generator) -> Mixup:
        r"""$\ell \sim \mathrm{Beta}(\alpha,\alpha)$, $\ell \leftarrow \max(\ell, 1-\ell)$, and a permutation $\pi$.

        Args:
            alpha: both parameters of the Beta distribution; 0 mixes nothing.
            like: a tensor with the batch's rows, on its device.
            rng: a CPU generator; drawing never waits for the device.
        """
        if alpha == 0:
            return cls(1.0, torch.arange(len(like), device=like.device))
        a, b = torch._standard_gamma(torch.tensor([alpha, alpha], dtype=torch.float64), generator=rng).tolist()
        lam = a / (a + b) if a + b > 0 else 1.0
        return cls(max(lam, 1 - lam), torch.randperm(len(like), generator=rng).to(like.device, non_blocking=True))

    def __call__(self, rows: Tensor) -> Tensor:
        """Mix the rows of `(B, ...)`."""
        if self.lam == 1:
            return rows
        return self.lam * rows + (1 - self.lam) * rows[self.perm]
