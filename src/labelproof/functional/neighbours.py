"""How far nearest neighbours agree on labels: a monitor of representations that needs no training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_ENTRIES = 2**24  # of the largest intermediate tensor, 64 MB


def knn_agreement(features: Tensor, labels: Tensor, k: int = 20, temperature: float = 0.07) -> Tensor:
    r"""Share of samples whose label is the class that their nearest neighbours among the others vote for.

    The weighted vote of Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR
    2018, section 3.4, leaving each sample itself out: a neighbour at cosine similarity s adds $\exp(s / \tau)$ to its
    class. Classes that tie go to the one of the nearer neighbour.

    With noisy labels this is agreement with what was given, not accuracy.

    Args:
        features: `(n, F)`, any float type, computed in fp32 (fp64 in fp64); scaled to length 1 here.
        labels: `(n,)` integers, any values, on the same device.
        k: neighbours that vote; at most n - 1 do.
        temperature: $\tau$, positive; small values let the nearest decide.

    Returns:
        Scalar of the features' type in [0, 1], on their device, without gradient.

    Raises:
        ValueError: fewer than two samples, other shapes, k below 1 or a temperature that is not positive.

    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> knn_agreement(x, torch.tensor([0, 0, 1, 0]), k=1)
    tensor(0.5000)
    """
    n = len(features)
    if features.ndim != 2 or labels.shape != (n,) or n < 2:
        shapes = f"{tuple(features.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"features and labels have shapes {shapes}: they must be (n, F) and (n,) with n at least 2")
    if k < 1 or not temperature > 0:
        raise ValueError(f"k={k} must be at least 1 and temperature={temperature} above 0; 20 and 0.07 are usual")
    k = min(k, n - 1)
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        x = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)
        chunk = max(1, _ENTRIES // max(n, k * k))
        right = [_votes_right(x, labels, lo, min(lo + chunk, n), k, temperature) for lo in range(0, n, chunk)]
        return torch.cat(right).to(x.dtype).mean()


def _votes_right(x: Tensor, labels: Tensor, lo: int, hi: int, k: int, temperature: float) -> Tensor:
    """`(hi - lo,)` bool."""
    cosine = x[lo:hi] @ x.T
    cosine[:, lo:hi].fill_diagonal_(-torch.inf)
    near, which = cosine.topk(k)
    classes = labels[which]
    weight = ((near - near[:, :1]) / temperature).exp()  # relative to the nearest: nothing overflows
    # what each neighbour's class collects in all; the number of classes need not be known
    votes = ((classes[:, :, None] == classes[:, None, :]) * weight[:, None, :]).sum(2)
    winner = classes.gather(1, votes.argmax(1, keepdim=True)).squeeze(1)
    return winner == labels[lo:hi]
