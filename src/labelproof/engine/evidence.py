"""What training says about each label, gathered on the device from the forward passes that happen anyway.

`Evidence` keeps one row per sample over all epochs; `Tally` counts over one epoch. Neither waits for the device: the
numbers are read once per epoch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from labelproof.core.task import Task
from labelproof.functional.ranks import gather_rows, rank, sum_over_ranks


class Evidence(nn.Module):
    """Per-sample record, a part of every checkpoint.

    Args:
        task: what is learned.
        given: `(N,)` or `(N, D)` the given labels, as the feeds carry them.

    After training: `prob()` is each sample's mean prediction over its visits. Wrong labels are learned late, so the
    average over epochs ranks them far better than the last epoch, when they may all be memorised.
    """

    sums: Tensor
    given: Tensor

    def __init__(self, task: Task, given: Tensor) -> None:
        super().__init__()
        self.task = task
        self.register_buffer("given", given, persistent=False)
        # columns: O predictions, visits, agreement, trust, visits with trust; one table, so one write per step
        self.register_buffer("sums", torch.zeros(len(given), task.num_outputs + 4))

    def record(self, index: Tensor, prob: Tensor, trust: Tensor | None = None) -> None:
        """Add one visit of each sample of this rank's part of a batch; arguments as for `record_joint`."""
        trust = None if trust is None else gather_rows(_per_sample(trust))
        self.record_joint(gather_rows(index), gather_rows(prob), trust)

    @torch.no_grad()
    def record_joint(self, index: Tensor, prob: Tensor, trust: Tensor | None = None) -> None:
        """Add one visit of each sample of a batch that every rank holds in full.

        Args:
            index: `(B,)` ids.
            prob: `(B, O)` predictions.
            trust: `(B,)` from the method, averaged over peers.
        """
        agree = self.task.score(prob, self.given[index])
        one = torch.ones_like(agree)
        seen = (trust.float(), one) if trust is not None else (torch.zeros_like(one), torch.zeros_like(one))
        self.sums.index_add_(0, index, torch.cat([prob, torch.stack([one, agree, *seen], dim=1)], dim=1))

    @property
    def visits(self) -> Tensor:
        """`(N,)` how often each sample was seen."""
        return self.sums[:, -4]

    def prob(self) -> Tensor:
        """`(N, O)` mean prediction of each sample; NaN for a sample that was never visited."""
        return self.sums[:, :-4] / self.visits[:, None]

    def columns(self) -> dict[str, Tensor]:
        """Evidence columns of the list of wrong labels, each `(N,)`."""
        columns = {}
        if self.task.kind == "classification":
            columns["agreement"] = (
                self.sums[:, -3] / self.visits
            )  # share of visits at which it was predicted as labelled
        if bool((self.sums[:, -1] > 0).any()):
            columns["trust"] = self.sums[:, -2] / self.sums[:, -1]  # NaN for held-out samples
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
        self.sums: dict[tuple[str, ...], Tensor] = {}  # figures that arrive together are added up as one vector

    def _add(self, names: tuple[str, ...], values: Tensor) -> None:
        precise = values if values.device.type == "mps" else values.double()  # Apple's GPUs have no fp64
        self.sums[names] = self.sums[names] + precise if names in self.sums else precise

    @torch.no_grad()
    def loss(self, value: Tensor, log: Mapping[str, Tensor]) -> None:
        """Add one batch's loss and the method's own scalars."""
        one = torch.ones_like(value)
        self._add(("steps", "loss"), torch.stack([one, value]))
        for name, scalar in log.items():  # each with a count of its own: a method may log it at some steps only
            self._add((f"count_{name}", f"log_{name}"), torch.stack([one, scalar]))

    @torch.no_grad()
    def predictions(self, index: Tensor, prob: Tensor, given: Tensor, trust: Tensor | None = None) -> None:
        """Add one batch's predictions: correct, memorised (the wrong given label) or otherwise."""
        score = self.task.score(prob, given)
        counts = {"seen": torch.ones_like(score), "agree": score}
        if self.truth is not None and self.task.kind == "classification":
            truth, predicted = self.truth[index], prob.argmax(1)
            clean, correct = truth == given, predicted == truth
            counts |= {
                "clean": clean,
                "clean_correct": clean & correct,
                "wrong": ~clean,
                "wrong_correct": ~clean & correct,
                "wrong_memorised": ~clean & (predicted == given),
            }
            if trust is not None:
                t = _per_sample(trust).float()
                counts |= {"trusted": t, "trusted_clean": t * clean}
        self._add(tuple(counts), torch.stack([c.float() for c in counts.values()]).sum(1))

    def read(self) -> dict[str, float]:
        """The epoch's figures; one transfer from the device, then the tally starts anew."""
        names = [name for group in self.sums for name in group]
        stacked = torch.cat(list(self.sums.values()))
        s: dict[str, float] = {}
        for name, value in zip(names, sum_over_ranks(stacked).tolist(), strict=True):
            s[name] = s.get(name, 0.0) + value
        self.sums = {}
        row = {"loss": s["loss"] / s["steps"]}
        row |= {k.removeprefix("log_"): v / s[f"count_{k[4:]}"] for k, v in s.items() if k.startswith("log_")}
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

    def state_dict(self) -> dict[tuple[str, ...], Tensor]:
        """The counts of all ranks so far (a checkpoint may fall inside an epoch). A collective call."""
        return {names: sum_over_ranks(values) for names, values in self.sums.items()}

    def load_state_dict(self, state: Mapping[tuple[str, ...], Tensor], device: torch.device) -> None:
        """Restore `state_dict`: on the first rank, to which the others add."""
        state = state if rank() == 0 else {}
        self.sums = {names: values.to(device) for names, values in state.items()}
