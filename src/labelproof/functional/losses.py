"""Per-sample losses. All return `(B,)`, never reduced, and are computed in fp32 whatever the inputs are."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from labelproof.functional.device import argmax, host
from labelproof.functional.transition import invert_transition

_UNDERFLOW = 1e-30  # of a probability: below it too few digits, or none, are left
_LOG_ZERO = -1e4  # of a transition matrix: its exponential is 0 in fp32, and it can be added


def cross_entropy(logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    r"""$-\sum_k q_k \log p_k$ with $p = \mathrm{softmax}(z)$.

    Args:
        logits: `(B, K)`.
        target: `(B,)` int64 classes, or `(B, K)` float probabilities q.
        label_smoothing: share s of q that is spread evenly, $q \leftarrow (1-s)\,q + s/K$.

    Returns:
        `(B,)` fp32.

    >>> cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).exp()
    tensor([4., 4.])
    """
    if target.is_floating_point():
        target = target.float()
    return F.cross_entropy(logits.float(), target, reduction="none", label_smoothing=label_smoothing)


def squared_error(out: Tensor, target: Tensor) -> Tensor:
    r"""$\tfrac12 \lVert f - y \rVert^2$ over the targets, `(B, D)` and `(B, D)` to `(B,)`, fp32.

    The half makes the gradient with respect to f the residual itself.

    >>> squared_error(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
    tensor([12.5000])
    """
    return 0.5 * (out.float() - target.float()).square().flatten(1).sum(1)


def huber(residual: Tensor, bound: Tensor) -> Tensor:
    r"""$\tfrac12 \lVert r \rVert^2$ up to $\lVert r \rVert = k$, $k (\lVert r \rVert - k/2)$ beyond (Huber, 1964).

    The gradient with respect to r is r itself up to k, and of length k beyond.

    Args:
        residual: `(B, D)` r.
        bound: k, a positive scalar.

    Returns:
        `(B,)` fp32.

    >>> huber(torch.tensor([[0.6, 0.8], [3.0, 4.0]]), torch.tensor(2.0))
    tensor([0.5000, 8.0000])
    """
    square, bound = residual.float().square().sum(1), bound.float()
    norm = square.clamp(min=bound**2).sqrt()  # only beyond k: the gradient of a root at 0 would be NaN
    return torch.where(square <= bound**2, square / 2, bound * (norm - bound / 2))


def cauchy(residual: Tensor, width: Tensor) -> Tensor:
    r"""$\tfrac12 k^2 \log(1 + \lVert r \rVert^2 / k^2)$: squared error for small residuals, nearly flat for large ones.

    The gradient with respect to r is $r / (1 + \lVert r \rVert^2 / k^2)$: at most k / 2 long, and falling beyond k.

    Args:
        residual: `(B, D)` r.
        width: k, a positive scalar.

    Returns:
        `(B,)` fp32.

    >>> cauchy(torch.tensor([[0.6, 0.8], [3e3, 4e3]]), torch.tensor(2.0))
    tensor([ 0.4463, 31.2962])
    """
    square = width.float() ** 2
    return square / 2 * torch.log1p(residual.float().square().sum(1) / square)


def generalised_cross_entropy(logits: Tensor, target: Tensor, q: float) -> Tensor:
    r"""$L_q = \sum_k y_k (1 - p_k^q) / q$ of Zhang & Sabuncu (2018), from cross-entropy (q to 0) to MAE / 2 (q = 1).

    Taken in log space, $p_k^q = e^{q \log p_k}$: its gradient is finite where $p_k$ underflows, that of a power is not.

    Args:
        logits: `(B, K)`.
        target: `(B,)` int64 classes, or `(B, K)` float probabilities y.
        q: in (0, 1].

    Returns:
        `(B,)` fp32, at most 1 / q.

    >>> generalised_cross_entropy(torch.zeros(1, 4), torch.tensor([0]), q=1.0)
    tensor([0.7500])
    """
    if target.is_floating_point():
        return -(target.float() * torch.expm1(q * logits.float().log_softmax(1))).sum(1) / q
    return -torch.expm1(-q * cross_entropy(logits, target)) / q


def mean_absolute_error(logits: Tensor, target: Tensor) -> Tensor:
    r"""$\lVert p - y \rVert_1$ of Ghosh et al. (2017), which is $2 (1 - p_y)$ for a single class y.

    Args:
        logits: `(B, K)`.
        target: `(B,)` int64 classes, or `(B, K)` float probabilities y.

    Returns:
        `(B,)` fp32 in [0, 2].

    >>> mean_absolute_error(torch.zeros(1, 4), torch.tensor([0]))
    tensor([1.5000])
    """
    if target.is_floating_point():
        return (logits.float().softmax(1) - target.float()).abs().sum(1)
    return -2 * torch.expm1(-cross_entropy(logits, target))


def bootstrapped_cross_entropy(logits: Tensor, target: Tensor, *, beta: float | Tensor, hard: bool) -> Tensor:
    r"""$-\sum_k [\beta y_k + (1 - \beta) b_k] \log p_k$ of Reed et al. (2015): the label mixed with the prediction.

    Hard: $b = \mathrm{onehot}(\arg\max p)$, without gradient. Soft: $b = p$, with gradient, so that the second term is
    $(1 - \beta)$ times the entropy of p.

    Args:
        logits: `(B, K)`.
        target: `(B,)` int64 classes, or `(B, K)` float probabilities y.
        beta: weight of the given label, in [0, 1]; a number or a scalar tensor.
        hard: which b.

    Returns:
        `(B,)` fp32.

    >>> z = torch.tensor([[1.0, 3.0]]).log()  # p = (1/4, 3/4)
    >>> bootstrapped_cross_entropy(z, torch.tensor([0]), beta=0.5, hard=True)  # (log 4 + log 4/3) / 2
    tensor([0.8370])
    """
    log_p = logits.float().log_softmax(1)
    soft = target.is_floating_point()
    if hard and not soft:
        picked = log_p.gather(1, torch.cat([target.unsqueeze(1), argmax(log_p)], 1))
        return -(beta * picked[:, 0] + (1 - beta) * picked[:, 1])
    own = log_p.gather(1, argmax(log_p)).squeeze(1) if hard else (log_p.exp() * log_p).sum(1)
    given = (target.float() * log_p).sum(1) if soft else log_p.gather(1, target.unsqueeze(1)).squeeze(1)
    return -(beta * given + (1 - beta) * own)


def forward_corrected(logits: Tensor, target: Tensor, transition: Tensor) -> Tensor:
    r"""$-\sum_k y_k \log (T^\top p)_k$ of Patrini et al. (2017): the prediction passed through the noise.

    Where p underflows it is taken in log space, $\log\sum_i e^{\log p_i + \log T_{ik}}$, so that no gradient is lost
    (and on other devices than a CPU always, as looking would mean waiting). A zero of T counts as $e^{-10^4}$ there: a
    label that T rules out has a large loss and no gradient, rather than inf and NaN.

    Args:
        logits: `(B, K)`, of the *clean* class.
        target: `(B,)` int64 classes, or `(B, K)` float probabilities y (which takes `(B, K, K)` of memory).
        transition: `(K, K)` T, rows = true class: the probability of each given label (see `check_transition`).

    Returns:
        `(B,)` fp32; cross-entropy where T is the identity.

    >>> T = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
    >>> forward_corrected(torch.zeros(2, 2), torch.tensor([0, 1]), T).neg().exp()
    tensor([0.6000, 0.4000])
    """
    if not target.is_floating_point():
        likely = (logits.float().softmax(1) * transition.float().T.index_select(0, target)).sum(1)
        if host(likely) and likely.detach().numpy().min(initial=1) > _UNDERFLOW:
            return -likely.log()
    log_p = logits.float().log_softmax(1)
    log_t = transition.float().log().clamp(min=_LOG_ZERO)
    if target.is_floating_point():
        return -(target.float() * torch.logsumexp(log_p[:, :, None] + log_t, 1)).sum(1)
    return -torch.logsumexp(log_p + log_t.T[target], 1)


def bounded_cross_entropy(logits: Tensor, weight: Tensor, *, floor: float) -> Tensor:
    r"""$\sum_k w_k \ell_k$ with $\ell_k = -\log\max(p_k, \mathrm{floor} / K)$, for weights of either sign.

    A negative weight pushes $p_k$ towards 0 and the loss towards $-\infty$; where $p_k$ has come to the floor, the push
    ends.

    Args:
        logits: `(B, K)`.
        weight: `(B, K)` w.
        floor: in [0, 1), in units of 1/K, the probability of a guess; 0 sets no bound.

    Returns:
        `(B,)` fp32.

    >>> bounded_cross_entropy(torch.tensor([[0.0, 50.0]]), torch.tensor([[-1.0, 2.0]]), floor=0.1).exp()
    tensor([0.0500])
    """
    log_p = logits.float().log_softmax(1)
    if floor > 0:
        log_p = log_p.clamp(min=math.log(floor / logits.shape[1]))
    return -(weight.float() * log_p).sum(1)


def backward_corrected(logits: Tensor, target: Tensor, transition: Tensor, *, floor: float = 0.1) -> Tensor:
    r"""$\sum_k y_k \sum_j (T^{-1})_{kj} \ell_j$ with $\ell_j = -\log p_j$, of Patrini et al. (2017).

    Its mean over the noise is the clean $\ell$ exactly, as $T\,T^{-1}\ell = \ell$, with or without a floor under p.
    Without one the loss has no lower bound, as $T^{-1}$ has negative entries, and training mostly ends in chaos.

    `transition` is inverted in each call. A loop that inverts once, by `invert_transition`, takes
    `bounded_cross_entropy(logits, inverse[target], floor=floor)`.

    Args:
        logits: `(B, K)`.
        target: `(B,)` int64 classes, or `(B, K)` float probabilities y.
        transition: `(K, K)` T, rows = true class.
        floor: lower bound of p, in [0, 1), in units of 1/K; 0 sets none.

    Returns:
        `(B,)` fp32; cross-entropy where T is the identity and p above the floor.

    Raises:
        ValueError: T is singular, or so nearly that the loss would be rounding error.

    >>> T, z = torch.tensor([[0.8, 0.2], [0.4, 0.6]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    >>> T @ backward_corrected(z, torch.tensor([0, 1]), T), cross_entropy(z, torch.tensor([0, 1]))
    (tensor([1.3133, 0.3133]), tensor([1.3133, 0.3133]))
    """
    inverse = invert_transition(transition)
    if not target.is_floating_point():
        return bounded_cross_entropy(logits, inverse[target], floor=floor)
    with torch.autocast(logits.device.type, enabled=False):  # a product in half precision would cost three digits
        return bounded_cross_entropy(logits, target.float() @ inverse, floor=floor)
