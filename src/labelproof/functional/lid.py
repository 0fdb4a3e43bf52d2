"""Local intrinsic dimensionality."""

from __future__ import annotations

import torch
from torch import Tensor


def local_intrinsic_dimensionality(features: Tensor, neighbours: int = 20) -> Tensor:
    r"""Maximum-likelihood estimate $-\bigl(\tfrac1k \sum_{j \le k} \log \tfrac{r_j}{r_k}\bigr)^{-1}$ per row.

    $r_1 \le \dots \le r_k$ are the distances to the k nearest other rows (Amsaleg et al., KDD 2015; used on minibatches
    by Ma et al., ICML 2018).

    Args:
        features: `(B, F)`, any float type; computed in fp32.
        neighbours: k; at most B − 1 are used.

    Returns:
        `(B,)` fp32; infinite where the k nearest rows are equally far away.

    Raises:
        ValueError: fewer than three rows, or k below 2.

    >>> x = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))  # a cube: dimension 3
    >>> round(float(local_intrinsic_dimensionality(x).median()))
    3
    """
    b = len(features)
    if b < 3 or neighbours < 2:
        shape = tuple(features.shape)
        raise ValueError(f"features of shape {shape} and neighbours={neighbours}: at least 3 rows and k = 2 are needed")
    k = min(neighbours, b - 1)
    x = features.float()
    # not by matrix products, whose rounding would let equal rows seem apart
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    nearest = distance.topk(k, largest=False).values.clamp(min=torch.finfo(torch.float32).tiny)
    return -1 / (nearest / nearest[:, -1:]).log().mean(1)
