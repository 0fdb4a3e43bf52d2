"""A LightningModule as people have it; run as a script, one of two processes of a data-parallel training."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, Sampler, TensorDataset

from labelproof.data.indexed import with_index
from labelproof.data.noise import inject
from labelproof.integrations.lightning import NoisyLabels
from tests.integrations.losses import REMEMBERING

N = 256


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Noisy training set, clean validation set."""
    X, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy(X / 16).float(), torch.from_numpy(y)
    noisy = torch.from_numpy(inject(y[:N].numpy(), kind="symmetric", rate=0.3, seed=0).labels)
    return TensorDataset(x[:N], noisy), TensorDataset(x[N : N + 128], y[N : N + 128])


class Net(pl.LightningModule):
    """Everything but the three marked lines is what it was with cross-entropy."""

    def __init__(self, criterion: nn.Module, optimizer: Any = torch.optim.SGD) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        self.criterion = criterion  # 1
        self.optimizer = optimizer
        self.met: dict[int, int] = {}

    def training_step(self, batch: Any, _: int) -> Tensor:
        x, y, index = batch  # 2
        self.met |= dict(zip(index.tolist(), y.tolist(), strict=True))
        return self.criterion(self.net(x), y, index)  # 3

    def validation_step(self, batch: Any, _: int) -> None:
        x, y = batch
        logits = self.net(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_acc", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters(), lr=0.1)


class EveryOther(Sampler[int]):
    """A sampler of the user's own: even rows first, then odd ones."""

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Any:
        return iter([*range(0, N, 2), *range(1, N, 2)])


def trainer(**kwargs: Any) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "barebones": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "devices": 1, "max_epochs": 2}
    return pl.Trainer(**{**quiet, "callbacks": [NoisyLabels()], **kwargs})


def loader(data: Any, batch_size: int = 32, **kwargs: Any) -> DataLoader[Any]:
    return DataLoader(with_index(data), batch_size=batch_size, **kwargs)


def run(name: str, seed: int, load: Any, **kwargs: Any) -> dict[str, Any]:
    torch.manual_seed(seed)
    net = Net(REMEMBERING[name](N, 10))
    t = trainer(**kwargs)
    t.fit(net, load)
    return {"state": dict(net.criterion.state_dict()), "net": dict(net.net.state_dict()), "met": net.met}


def main(out: Path, rank: int) -> None:
    torch.set_num_threads(1)
    train, _ = digits()
    two = {"strategy": "ddp", "devices": 2}
    in_order = loader(train, 16, sampler=DistributedSampler(train, 2, rank, shuffle=False))
    results = {name: run(name, rank, in_order, use_distributed_sampler=False, **two) for name in REMEMBERING}
    results["sampler"] = run("elr", 0, loader(train, 16, sampler=EveryOther()), **two)
    torch.save(results, out / f"rank{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(os.environ.get("LOCAL_RANK", "0")))
