"""The contrastive loss of SimCLR.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, eq. 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labelproof.functional.ranks import gather_rows_with_gradient, rank


def nt_xent(z1: Tensor, z2: Tensor, temperature: float = 0.5) -> Tensor:
    r"""NT-Xent, the mean over all anchors i of $-\log\frac{\exp(s_{ij} / \tau)}{\sum_{k \ne i} \exp(s_{ik} / \tau)}$.

    Every row of both views is an anchor i, the other view of the same sample is its partner j, and every row but the
    anchor itself is a candidate k, on all ranks; s is the cosine of two rows, in fp32 under autocast too.

    Each rank returns the mean over its own anchors. With the gradient through the gathered rows, gradients averaged
    over ranks, as data-parallel wrappers do, are those of the joint batch.

    Args:
        z1: `(B, P)` projections of the first view.
        z2: `(B, P)` projections of the second view, row by row of the same samples.
        temperature: $\tau$, positive.

    Returns:
        Scalar, fp32 (fp64 if both are).

    Raises:
        ValueError: the shapes differ or have other than two dimensions, or the temperature is not positive.

    >>> z = torch.eye(3)  # partners agree, all others are orthogonal: log(1 + 4 exp(-1 / 0.5))
    >>> nt_xent(z, z)
    tensor(0.4327)
    """
    if z1.ndim != 2 or z1.shape != z2.shape:
        shapes = f"{tuple(z1.shape)} and {tuple(z2.shape)}"
        raise ValueError(f"z1 and z2 have shapes {shapes}: both must be (B, P), one row per sample")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0; 0.5 is usual")
    with torch.autocast(z1.device.type, enabled=False):
        both = torch.cat([z1, z2])
        z = F.normalize(both.to(torch.promote_types(both.dtype, torch.float32)), dim=1)
        n = len(z)
        first = rank() * n
        logits = (z / temperature) @ gather_rows_with_gradient(z).T
        logits[:, first : first + n].fill_diagonal_(-torch.inf)
        partner = torch.arange(first, first + n, device=z.device).roll(n // 2)
        return F.cross_entropy(logits, partner)
