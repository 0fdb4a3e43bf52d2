"""Pieces of DivideMix (Li, Socher, Hoi, ICLR 2020): who is probably labelled correctly, and targets made sharper."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from labelproof.functional.losses import cross_entropy
from labelproof.functional.ranks import joint_mean
from labelproof.functional.select import weighted_mean

EPS = 1e-8  # of a mean probability, below its logarithm


def sharpen(p: Tensor, temperature: float) -> Tensor:
    r"""$p_k^{1/T} / \sum_j p_j^{1/T}$, taken in log space so that many classes do not underflow.

    Args:
        p: `(..., K)` probabilities.
        temperature: T > 0; 1 changes nothing, towards 0 the largest takes all.

    >>> sharpen(torch.tensor([0.8, 0.2]), 0.5)
    tensor([0.9412, 0.0588])
    """
    return (p.float().log() / temperature).softmax(-1)


def min_max(losses: Tensor) -> Tensor:
    """Each column of `(N, M)` moved and scaled to [0, 1].

    What is not finite counts as the largest finite value of its column; a column of equal values becomes zeros.

    >>> min_max(torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0]])).T
    tensor([[0.0000, 1.0000, 0.5000],
            [0.0000, 0.0000, 0.0000]])
    """
    finite = losses.isfinite()
    low = losses.masked_fill(~finite, torch.inf).amin(0)
    high = losses.masked_fill(~finite, -torch.inf).amax(0)
    return torch.where(high > low, (torch.where(finite, losses, high) - low) / (high - low), torch.zeros_like(losses))


def clean_probability(losses: Tensor, seed: int) -> Tensor:
    """Posterior of the component of the lower mean, in a mixture of two Gaussians fitted to losses.

    Args:
        losses: `(N,)` in [0, 1], finite. If all are equal there is nothing to divide, and every sample gets 1.
        seed: of the mixture's initialisation by 2-means.

    Returns:
        `(N,)` fp32, on the device of `losses`.

    >>> clean_probability(torch.tensor([0.0, 0.01, 0.02, 0.9, 0.95, 1.0]), seed=0).round()
    tensor([1., 1., 1., 0., 0., 0.])
    """
    if losses.amin() == losses.amax():
        return torch.ones_like(losses, dtype=torch.float32)
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    x = losses.detach().cpu().double().numpy()[:, None]
    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # ten iterations are what the paper takes
        posterior = mixture.fit(x).predict_proba(x)
    return torch.from_numpy(posterior[:, mixture.means_.argmin()]).float().to(losses.device)


def divide(losses: Tensor, threshold: float, seed: int) -> Tensor:
    """For each column of `(N, M)` losses in [0, 1], one per network, the probability that labels are right.

    Where no probability of a network exceeds the threshold, nothing would be left to learn from: its labels are all
    believed, with probability 1.
    """
    w = torch.stack([clean_probability(column, seed) for column in losses.unbind(1)], dim=1)
    return torch.where((w > threshold).any(0), w, torch.ones_like(w))


def class_shares(target: Tensor, classes: int) -> Tensor:
    """Share of each class among `(N,)` int64 labels, `(classes,)`, with one added to each count.

    >>> class_shares(torch.tensor([0, 0, 1]), 2)
    tensor([0.6000, 0.4000])
    """
    return (torch.bincount(target, minlength=classes) + 1) / (len(target) + classes)


def co_targets(p: Tensor, label: Tensor, w: Tensor, threshold: float, temperature: float) -> tuple[Tensor, Tensor]:
    """Targets of M networks, and which of them rest on labels.

    Args:
        p: `(M, B, K)` each network's probabilities, without gradient.
        label: `(B, K)` given labels, one-hot.
        w: `(M, B)` probability that the label is right, as each network is told.
        threshold: a label takes part where w exceeds it: sharpen(w label + (1 - w) p); else the target is
            sharpen(mean of p over networks).
        temperature: of `sharpen`.

    Returns:
        `(M, B, K)` targets; `(M, B)` 1 where labelled, else 0.
    """
    labelled = w > threshold
    q = torch.where(labelled[..., None], torch.lerp(p, label.expand_as(p), w[..., None]), p.mean(0))
    return sharpen(q, temperature), labelled.float()


def mixmatch_terms(logits: Tensor, q: Tensor, labelled: Tensor, prior: Tensor) -> Tensor:
    r"""The three terms of DivideMix's loss, `(3,)`, over the joint batch, summed over networks, without their weights.

    Cross-entropy over labelled rows, squared error of probabilities over the others (mean over classes), and
    $\sum_c \pi_c \log(\pi_c / \bar p_c)$ over all. A term without rows is 0, attached to the graph.

    Args:
        logits: `(M, B, K)` of M networks.
        q: `(M, B, K)` targets.
        labelled: `(M, B)` 1 or 0.
        prior: `(K,)` $\pi$.

    >>> mixmatch_terms(torch.zeros(1, 2, 2), torch.eye(2)[None], torch.tensor([[1.0, 0.0]]), torch.tensor([0.5, 0.5]))
    tensor([0.6931, 0.2500, 0.0000])
    """
    terms = []
    for z, target, kept in zip(logits, q, labelled, strict=True):
        p = z.float().softmax(1)
        supervised = weighted_mean(cross_entropy(z, target), kept)
        guessed = weighted_mean((p - target).square().mean(1), 1 - kept)
        balance = (prior * (prior / joint_mean(p).clamp(min=EPS)).log()).sum()
        terms.append(torch.stack([supervised, guessed, balance]))
    return torch.stack(terms).sum(0)


def negative_entropy(logits: Tensor) -> Tensor:
    r"""$\sum_k p_k \log p_k$ of softmax probabilities, `(..., K)` to `(...)`, fp32: a penalty on confidence.

    >>> negative_entropy(torch.zeros(1, 4)).exp()
    tensor([0.2500])
    """
    log_p = logits.float().log_softmax(-1)
    return (log_p.exp() * log_p).sum(-1)
