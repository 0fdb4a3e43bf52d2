r"""INCV: cross-validate to find labels that can be trusted, then Co-teaching on these.

Chen, Liao, Chen, Zhang: "Understanding and Utilizing Deep Neural Networks Trained with Noisy Labels", ICML 2019.

    (1)  S, C = INCV(samples)                            selected and candidates: `labelproof.procedures.incv`
    (2)  n(e) = |B_S| (1 − ε_S min((e + 1) / T_k, 1))    kept in epoch e, ε_S = share of wrong labels in S
    (3)  D = B_S for e < E, then B_S ∪ B_C               batches of S and of C
    (4)  D̄_1 = the n(e) samples of D with the smallest ℓ_1,  D̄_2 likewise
    (5)  L = mean_{i∈D̄_2} ℓ_1i + mean_{i∈D̄_1} ℓ_2i       the exchange of Co-teaching

Networks are warmed up on S alone; then C, in which right labels are rarer, may fill the places of S that are dropped.
Symbols: `selected_noise` = ε_S, `num_gradual` = T_k, `warmup` = E, `batch.side["pool"]` = B_C. Shapes: ℓ (B,).
Deviations. ε_S is estimated from what each iteration selected; the paper inverts a theory that is told the kind. E is
two fifths of the epochs where ε_S > 0.2, as for 80 % symmetric and 40 % pairwise noise in the paper, else a fifth; the
released code asks for the kind. n falls from the first epoch on, there from the second. Samples are scored without
gradient, normalised by the batch (there with running statistics), and the kept rows passed again.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from labelproof.core.chosen import by_loss, loss_of_smallest
from labelproof.core.method import Fit, Method, NoiseRate, check_noise_rate, check_warmup, in_range, one_of
from labelproof.core.nets import Nets
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.curriculum import kept_share, known
from labelproof.functional.ranks import world_size
from labelproof.procedures.incv import Selection, incv

#: E as a share of all epochs, where ε_S is at most MUCH and where it is more.
WARMUP, LONG_WARMUP, MUCH = 0.2, 0.4, 0.2


class INCV(Method):
    """Cross-validate on the noisy labels, select those that agree, train two networks on them by Co-teaching.

    Args:
        noise_rate: ε, share of wrong labels in the data, in [0, 1). `"auto"` estimates it from the cross-validation.
        iterations: of cross-validation, each of two trainings on half of the candidates and all selected.
        length: share of the epochs for each of these trainings. The paper: 50 of 200.
        discard: drop candidates with very large loss: `"always"`, `"never"`, or `"auto"`, where noise is symmetric.
        choose: `"validation"` takes each network's best epoch on a tenth of its training samples, `"last"` the last.
        selected_noise: ε_S, share of wrong labels among the selected, in [0, 1); `"auto"` estimates it.
        warmup: E, epochs on the selected samples alone; `"auto"`: a fifth of all, two fifths if ε_S is above 0.2.
        num_gradual: T_k, epochs over which the drop rate rises to ε_S. The paper: 10.

    Raises:
        ValueError: a value is out of range.
    """

    title = "INCV with Co-teaching"
    paper = "Chen et al., ICML 2019"
    cost = "8 trainings of 1 network on part of the samples, then 2 networks on the selected, 2 forward passes each"
    peers = 2
    own_streams = ("pool",)

    def __init__(
        self,
        *,
        noise_rate: NoiseRate = "auto",
        iterations: int = 4,
        length: float = 0.5,
        discard: Literal["auto", "always", "never"] = "auto",
        choose: Literal["validation", "last"] = "validation",
        selected_noise: NoiseRate = "auto",
        warmup: int | Literal["auto"] = "auto",
        num_gradual: int = 10,
    ) -> None:
        super().__init__()
        self.noise_rate = check_noise_rate(noise_rate)
        self.iterations = int(in_range("iterations", iterations, 1, float("inf"), closed="left"))
        self.length = in_range("length", length, 0, 1, closed="right")
        self.discard = one_of("discard", discard, ("auto", "always", "never"))
        self.choose = one_of("choose", choose, ("validation", "last"))
        self.selected_noise = check_noise_rate(selected_noise, "selected_noise")
        self.warmup = warmup
        if isinstance(warmup, str):
            one_of("warmup", warmup, ("auto",))
        else:
            in_range("warmup", warmup, 0, float("inf"), closed="left")
        self.num_gradual = int(in_range("num_gradual", num_gradual, 1, float("inf"), closed="left"))

    def run(self, fit: Fit, data: Any) -> Any:
        found = self.select(fit, data)  # (1)
        estimated = {"noise_rate": round(found.noise.rate, 4), "selected_noise": round(found.selected_noise, 4)}
        told = {k: v if v != "auto" else estimated.get(k, v) for k, v in self.get_params().items()}
        pool = {"pool": data.only(found.candidates)} if len(found.candidates) >= 2 * world_size() else {}
        last = type(self)(**told)
        last.register_buffer("prob", torch.from_numpy(found.prob))
        return fit(last, data.only(found.selected), streams=pool)

    def select(self, fit: Fit, data: Any) -> Selection:
        """The first stage alone."""
        first = {name: getattr(self, name) for name in ("noise_rate", "iterations", "length", "discard", "choose")}
        return incv(fit, data, **first, seed=fit.seed)

    def belief(self) -> Tensor | None:
        """What networks that had not seen a sample said of it in the last iteration that asked them."""
        return getattr(self, "prob", None)

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        rows = len(batch.x)
        keep = rows * kept_share(self.selected_noise, now.epoch, self.num_gradual)  # (2)
        check_warmup(end := self.end_of_warmup(now.epochs), now)
        if "pool" in batch.side and now.epoch >= end:
            batch = batch.joined(batch.side["pool"])  # (3)
        loss = loss_of_smallest(self.task, nets, batch, keep / len(batch.x), by_loss(self.task), first=True)  # (4), (5)
        return loss.of_first(rows)

    def end_of_warmup(self, epochs: int) -> int:
        """E."""
        share = LONG_WARMUP if known(self.selected_noise) > MUCH else WARMUP
        return round(share * epochs) if isinstance(self.warmup, str) else self.warmup

    def side_batch_size(self, stream: str, batch_size: int, rows: int, side_rows: int) -> int:
        return max(1, min(batch_size * side_rows // rows, batch_size // 2))
