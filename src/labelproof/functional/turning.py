"""When early learning ends and memorisation begins, read off a training curve."""

from __future__ import annotations

import torch
from torch import Tensor

_EXPONENTS = torch.linspace(0.1, 3, 30, dtype=torch.float64)
_SCALES = torch.logspace(-2, 3, 51, dtype=torch.float64)


def slowdown(curve: Tensor) -> float:
    r"""How far the curve's slope has fallen since the first epoch, $|f'(1) - f'(t)| / |f'(1)|$ at its last epoch t.

    $f(x) = a (1 - e^{-x^b / c})$ is fitted to the curve by least squares, a in closed form and b, c on a grid. The
    criterion is that of Liu et al. (ADELE, CVPR 2022), who take a value above 0.9 as the end of early learning.

    Args:
        curve: `(t,)` agreement of predictions with the given labels after epochs 1 to t, at least 0.

    Returns:
        About 0 while the curve rises as in the beginning, towards 1 where it is flat; 0 for fewer than three epochs.

    >>> t = torch.arange(1.0, 31)
    >>> curve = 0.6 * (1 - torch.exp(-t / 4))
    >>> round(slowdown(curve[:3]), 1), round(slowdown(curve), 2)
    (0.4, 1.0)
    """
    y = curve.double().cpu()
    if len(y) < 3:
        return 0.0
    x = torch.arange(1, len(y) + 1, dtype=torch.float64)
    b, c = _EXPONENTS[:, None, None], _SCALES[None, :, None]
    g = -torch.expm1(-(x**b) / c)  # (b, c, t)
    a = (g * y).sum(2, keepdim=True) / g.square().sum(2, keepdim=True).clamp(min=1e-300)
    best = int((a * g - y).square().sum(2).argmin())
    b, c = _EXPONENTS[best // len(_SCALES)], _SCALES[best % len(_SCALES)]
    ends = torch.tensor([1.0, len(y)], dtype=torch.float64)
    first, last = (b / c * ends ** (b - 1) * torch.exp(-(ends**b) / c)).tolist()
    return abs(first - last) / first if first > 0 else 0.0
