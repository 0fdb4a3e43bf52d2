"""What training says about each label, gathered on the device from the forward passes that happen anyway.

`Evidence` keeps one row per sample over all epochs; `Tally` counts over one epoch. Neither waits for the device: the
numbers are read once per epoch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from labelproof.core.task import Task
from labelproof.functional.ranks import gather_rows, sum_over_ranks


class Evidence(nn.Module):
    """Per-sample record, a part of every checkpoint.

    Args:
        task: what is learned.
        given: `(N,)` or `(N, D)` the given labels, as the feeds carry them.

    After training: `prob()` is each sample's mean prediction over its visits. Wrong labels are learned late, so the
    average over epochs ranks them far better than the last epoch, when they may all be memorised.
    """

    prob_sum: Tensor
    visits: Tensor
    agree_sum: Tensor
    trust_sum: Tensor
    trust_visits: Tensor

    def __init__(self, task: Task, given: Tensor) -> None:
        super().__init__()
        self.task = task
        n = len(given)
        self.register_buffer("prob_sum", torch.zeros(n, task.num_outputs))
        for name in ("visits", "agree_sum", "trust_sum", "trust_visits"):
            self.register_buffer(name, torch.zeros(n))

    def record(self, index: Tensor, prob: Tensor, given: Tensor, trust: Tensor | None = None) -> None:
        """Add one visit of each sample of this rank's part of a batch; arguments as for `record_joint`."""
        trust = None if trust is None else gather_rows(_per_sample(trust))
        self.record_joint(gather_rows(index), gather_rows(prob), gather_rows(given), trust)

    @torch.no_grad()
    def record_joint(self, index: Tensor, prob: Tensor, given: Tensor, trust: Tensor | None = None) -> None:
        """Add one visit of each sample of a batch that every rank holds in full.

        Args:
            index: `(B,)` ids.
            prob: `(B, O)` predictions.
            given: `(B,)` or `(B, D)` given labels.
            trust: `(B,)` from the method, averaged over peers.
        """
        agree = self.task.score(prob, given)
        ones = torch.ones_like(agree)
        self.prob_sum.index_add_(0, index, prob)
        self.visits.index_add_(0, index, ones)
        self.agree_sum.index_add_(0, index, agree)
        if trust is not None:
            self.trust_sum.index_add_(0, index, trust.float())
            self.trust_visits.index_add_(0, index, ones)

    def prob(self) -> Tensor:
        """`(N, O)` mean prediction of each sample; NaN for a sample that was never visited."""
        return self.prob_sum / self.visits[:, None]

    def columns(self) -> dict[str, Tensor]:
        """Evidence columns of the list of wrong labels, each `(N,)`."""
        columns = {}
        if self.task.kind == "classification":
            columns["agreement"] = self.agree_sum / self.visits  # share of visits at which it was predicted as labelled
        if bool((self.trust_visits > 0).any()):
            columns["trust"] = self.trust_sum / self.trust_visits  # NaN for held-out samples
        return columns


def _per_sample(trust: Tensor) -> Tensor:
    return trust.mean(0) if trust.ndim == 2 else trust


class Tally:
    """Counts over one epoch of training, read once at its end.

    Args:
        task: what is learned.
        truth: `(N,)` true labels where they are known, else `None`. They are only counted, never trained on.
    """

    def __init__(self, task: Task, truth: Tensor | None) -> None:
        self.task, self.truth = task, truth
        self.sums: dict[str, Tensor] = {}

    def _add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    @torch.no_grad()
    def loss(self, value: Tensor, log: Mapping[str, Tensor]) -> None:
        """Add one batch's loss and the method's own scalars."""
        self._add(steps=torch.ones_like(value), loss=value.detach(), **{f"log_{k}": v.detach() for k, v in log.items()})

    @torch.no_grad()
    def predictions(self, index: Tensor, prob: Tensor, given: Tensor, trust: Tensor | None = None) -> None:
        """Add one batch's predictions: correct, memorised (the wrong given label) or otherwise."""
        self._add(seen=torch.ones_like(index).sum(), agree=self.task.score(prob, given).sum())
        if self.truth is None or self.task.kind != "classification":
            return
        truth, predicted = self.truth[index], prob.argmax(1)
        clean, correct = truth == given, predicted == truth
        self._add(
            clean=clean.sum(),
            clean_correct=(clean & correct).sum(),
            wrong=(~clean).sum(),
            wrong_correct=(~clean & correct).sum(),
            wrong_memorised=(~clean & (predicted == given)).sum(),
        )
        if trust is not None:
            t = _per_sample(trust).float()
            self._add(trusted=t.sum(), trusted_clean=(t * clean).sum())

    def read(self) -> dict[str, float]:
        """The epoch's figures; one transfer from the device, then the tally starts anew."""
        names = list(self.sums)
        stacked = torch.stack([self.sums[n].double() for n in names]) if names else torch.zeros(0)
        s = dict(zip(names, sum_over_ranks(stacked).tolist(), strict=True))
        self.sums = {}
        row = {k.removeprefix("log_"): v / s["steps"] for k, v in s.items() if k == "loss" or k.startswith("log_")}
        if "seen" in s:
            mean = s["agree"] / s["seen"]
            row.update({"agree": mean} if self.task.kind == "classification" else {"train_rmse_scaled": mean**0.5})
        if s.get("clean"):
            row["clean_correct"] = s["clean_correct"] / s["clean"]
            row["clean_other"] = 1 - row["clean_correct"]
        if s.get("wrong"):
            row["wrong_correct"] = s["wrong_correct"] / s["wrong"]
            row["wrong_memorised"] = s["wrong_memorised"] / s["wrong"]
            row["wrong_other"] = 1 - row["wrong_correct"] - row["wrong_memorised"]
        if s.get("trusted") and s.get("clean"):
            row["label_precision"] = s["trusted_clean"] / s["trusted"]
            row["label_recall"] = s["trusted_clean"] / s["clean"]
        return row

    def state_dict(self) -> dict[str, Tensor]:
        """The counts so far (a checkpoint may fall inside an epoch)."""
        return dict(self.sums)

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Restore `state_dict`."""
        self.sums = {k: v.to(device) for k, v in state.items()}
