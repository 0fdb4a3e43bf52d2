"""Curricula: how much of each batch is easy, and how much each sample counts."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from labelproof.functional.ranks import gather_rows


def kept_share(noise_rate: float | str, epoch: int, num_gradual: int, exponent: float = 1.0) -> float:
    r"""Share of each batch kept, $R(T) = 1 - \tau \min(T^c / T_k, 1)$ in epoch T = 1, 2, ... (Co-teaching).

    Args:
        noise_rate: tau.
        epoch: T - 1, epochs finished.
        num_gradual: T_k.
        exponent: c.

    Raises:
        ValueError: the noise rate is still to be estimated.

    >>> [round(kept_share(0.4, epoch, 4), 2) for epoch in range(6)]
    [0.9, 0.8, 0.7, 0.6, 0.6, 0.6]
    """
    rising: float = min((epoch + 1) ** exponent / num_gradual, 1)
    return 1 - known(noise_rate) * rising


def known(noise_rate: float | str) -> float:
    """The noise rate, or a `ValueError` where it is `"auto"` still."""
    if isinstance(noise_rate, str):
        raise ValueError(
            f"noise_rate={noise_rate!r} is estimated by Method.run, as lp.train and the estimators call it"
        )
    return noise_rate


def percentile(score: Tensor, share: float) -> Tensor:
    """The smallest score that at least `share` of the joint batch of all ranks do not exceed, a scalar.

    One of the scores, never between two: a batch written twice has the percentile of the batch. NaN ranks last.

    Args:
        score: `(B,)`, e.g. per-sample losses.
        share: in (0, 1].

    >>> percentile(torch.tensor([0.3, 9.0, 0.1, 0.2]), 0.75)
    tensor(0.3000)
    """
    joint = gather_rows(score.detach())
    return joint.kthvalue(max(1, math.ceil(share * len(joint) - 1e-6))).values  # 0.7 * 10 is a little more than 7


def threshold(before: Tensor, new: Tensor) -> Tensor:
    """The mean of both: a moving average of decay 1/2. `new` where that is not finite: NaN marks one not begun.

    >>> threshold(torch.tensor(torch.nan), torch.tensor(2.0))
    tensor(2.)
    """
    mean = (before + new) / 2
    return torch.where(mean.isfinite(), mean, new)


def self_paced_weights(each: Tensor, threshold: Tensor, width: float) -> Tensor:
    r"""$v_i = \mathrm{clip}(1 - (\ell_i - \lambda_1) / \lambda_2, 0, 1)$, or $1[\ell_i \le \lambda_1]$ at width 0.

    The v in $[0, 1]$ that minimise $\sum_i v_i \ell_i + \tfrac12 \lambda_2 \sum_i v_i^2 - (\lambda_1 + \lambda_2)
    \sum_i v_i$. NaN gets 0.

    Args:
        each: `(B,)` losses.
        threshold: lambda_1, a scalar: losses up to it get weight 1.
        width: lambda_2, at least 0: losses from lambda_1 + lambda_2 on get weight 0.

    Returns:
        `(B,)` weights without gradient.

    >>> self_paced_weights(torch.tensor([0.5, 1.5, 4.0]), torch.tensor(1.0), 2.0)
    tensor([1.0000, 0.7500, 0.0000])
    """
    beyond = each.detach() - threshold
    return (beyond <= 0).float() if width == 0 else (1 - beyond / width).clamp(0, 1).nan_to_num(0)


def right_or_wrong(score: Tensor, log_p: Tensor, target: Tensor) -> Tensor:
    r"""How well scores tell right labels from wrong ones, as binary cross-entropy.

    Each sample is one right label and one wrong, label j with probability $q_j = p_j / (1 - p_y)$: the mean over them,
    $\tfrac12 \log(1 + e^{-s_y}) + \tfrac12 \sum_{j \ne y} q_j \log(1 + e^{s_j})$.

    Args:
        score: `(B, K)` s, of each label; large says right.
        log_p: `(B, K)` log-probabilities of the labels, to a constant.
        target: `(B,)` y, the right one.

    Returns:
        The mean over the batch, a scalar; log 2 for scores of 0.

    >>> right_or_wrong(torch.tensor([[9.0, 9.0, -9.0]]), torch.tensor([[0.5, 0.0, 0.5]]).log(), torch.tensor([0]))
    tensor(0.0001)
    """
    right = F.one_hot(target, score.shape[1]).to(score.dtype)
    q = log_p.scatter(1, target[:, None], -torch.inf).softmax(1)
    return F.binary_cross_entropy_with_logits(score, right, (right + q) / 2, reduction="sum") / len(score)
