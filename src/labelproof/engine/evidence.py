"""What training says about each label, gathered on the device from the forward passes that happen anyway.

`Evidence` keeps one row per sample over all epochs; `Tally` counts over one epoch. Neither waits for the device: the
numbers are read once per epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from labelproof.core.state import SampleTable
from labelproof.core.task import Task
from labelproof.engine.paths import Paths
from labelproof.functional.ranks import gather_rows, rank, sum_over_ranks


class Evidence(nn.Module):
    """Per-sample record, a part of every checkpoint.

    Args:
        task: what is learned.
        given: `(N,)` or `(N, D)` the given labels, as the feeds carry them.
        memory: form of the table of mean predictions, see `labelproof.core.storage`.

    After training: `prob()` is each sample's mean prediction over its visits. Wrong labels are learned late, so the
    average over epochs ranks them far better than the last epoch, when they may all be memorised.
    """

    counts: Tensor
    given: Tensor

    def __init__(self, task: Task, given: Tensor, memory: str = "dense") -> None:
        super().__init__()
        self.task = task
        self.register_buffer("given", given, persistent=False)
        self.register_buffer("counts", torch.zeros(len(given), 4))  # visits, agreement, trust, visits with trust
        shares = task.kind == "classification" or not memory.startswith("topk")  # targets are no shares of a whole
        self.mean = SampleTable(len(given), task.num_outputs, memory=memory if shares else "dense")

    @property
    def nbytes(self) -> int:
        """Bytes of the record."""
        return self.mean.nbytes + self.counts.numel() * self.counts.element_size()

    @torch.no_grad()
    def record(self, index: Tensor, prob: Tensor, trust: Tensor | None = None, *, joint: bool = False) -> None:
        """Add one visit of each sample of a batch.

        Args:
            index: `(B,)` ids.
            prob: `(B, O)` predictions.
            trust: `(B,)` or `(peers, B)` from the method.
            joint: whether every rank holds the whole batch already; else it is this rank's part of it.
        """
        visits, before = self.counts[index, :1], self.mean.rows(index)
        self.mean.write(index, before + (prob.float() - before) / (visits + 1), joint=joint)
        agree = self.task.score(prob, self.given[index])
        one = torch.ones_like(agree)
        seen = (_per_sample(trust).float(), one) if trust is not None else (torch.zeros_like(one),) * 2
        new = torch.stack([one, agree, *seen], dim=1)
        if not joint:
            index, new = gather_rows(index), gather_rows(new)
        self.counts.index_add_(0, index, new)

    @property
    def visits(self) -> Tensor:
        """`(N,)` how often each sample was seen."""
        return self.counts[:, 0]

    def prob(self) -> Tensor:
        """`(N, O)` mean prediction of each sample, on the host; NaN for a sample that was never visited."""
        return self.mean.dense().masked_fill_(self.visits[:, None].cpu() == 0, torch.nan)

    def columns(self) -> dict[str, Tensor]:
        """Evidence columns of the list of wrong labels, each `(N,)`."""
        columns = {}
        if self.task.kind == "classification":  # share of visits at which it was predicted as labelled
            columns["agreement"] = self.counts[:, 1] / self.visits
        if bool((self.counts[:, 3] > 0).any()):
            columns["trust"] = self.counts[:, 2] / self.counts[:, 3]  # NaN for held-out samples
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
        self.paths = Paths(truth, task.num_outputs) if truth is not None and task.kind == "classification" else None

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
            if self.paths is not None:
                self.paths.add(prob, truth, given)
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
        if self.paths is not None:
            self.paths.end_epoch()
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

    def state_dict(self) -> dict[str, Any]:
        """The counts of all ranks so far (a checkpoint may fall inside an epoch). A collective call."""
        sums = {names: sum_over_ranks(values) for names, values in self.sums.items()}
        return {"sums": sums, "paths": None if self.paths is None else self.paths.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore `state_dict`: on the first rank, to which the others add."""
        sums = state["sums"] if rank() == 0 else {}
        self.sums = {names: values.to(device) for names, values in sums.items()}
        if self.paths is not None:
            self.paths.load_state_dict(state["paths"])
