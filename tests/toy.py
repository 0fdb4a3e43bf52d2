"""Small problems and a small network, shared by the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from labelproof.core.method import Method
from labelproof.core.state import SampleParameter
from labelproof.core.types import Loss
from labelproof.data.dataset import Data
from labelproof.engine.settings import Settings
from labelproof.methods import METHODS


def mlp(inputs: int, outputs: int, width: int = 64, dropout: float = 0.0) -> nn.Module:
    """BatchNorm-free, so that the joint batch of several processes is the batch of one."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, outputs)
    )


def blobs(
    n: int = 97, classes: int = 3, *, flips: float = 0.0, spread: float = 0.6, seed: int = 0, dims: int = 8
) -> Data:
    """Gaussian blobs, `flips` of whose labels are moved to another class; the truth is kept."""
    centres = np.random.default_rng(1).normal(size=(classes, dims))
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.arange(n) % classes)
    x = (centres[truth] + spread * rng.normal(size=(n, dims))).astype(np.float32)
    y = truth.copy()
    wrong = rng.permutation(n)[: round(flips * n)]
    y[wrong] = (truth[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return Data(x, y, classes=np.arange(classes), truth=truth)


def line(n: int = 97, *, outliers: float = 0.0, seed: int = 0, dims: int = 6) -> Data:
    """A linear map with Gaussian errors, `outliers` of whose targets are thrown far off."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dims)).astype(np.float32)
    truth = (x @ np.linspace(1, 2, dims)[:, None] + 0.1 * rng.normal(size=(n, 1))).astype(np.float32)
    y = truth.copy()
    wrong = rng.permutation(n)[: round(outliers * n)]
    y[wrong] += 30 + 10 * rng.random((len(wrong), 1)).astype(np.float32)
    return Data(x, y, truth=truth)


def problem(method: type[Method], n: int = 97, noise: float = 0.0, seed: int = 0) -> Data:
    """A problem the method can learn."""
    if "classification" in method.tasks:
        return blobs(n, flips=noise, seed=seed)
    return line(n, outliers=noise, seed=seed)


#: Options that end warm-ups after one epoch, so that a few epochs show the method itself.
EAGER: dict[str, dict[str, Any]] = {
    **{name: {"warmup": 1} for name in ("co-teaching+", "decoupling", "dividemix")},
    "incv": {"warmup": 1, "selected_noise": 0.2, "iterations": 1},
}


def eager(name: str, **options: Any) -> Method:
    """A method that does in its second epoch what it is there for."""
    return METHODS[name](**{**EAGER.get(name, {}), **options})


def streams(method: type[Method], classes: int = 3) -> dict[str, Data]:
    """A small clean set for each stream a method asks for, or makes do without, beside that of training."""
    classification = "classification" in method.tasks
    names = (*method.streams, *method.optional)
    made = {name: blobs(24, classes, seed=77) if classification else line(24, seed=77) for name in names}
    return {name: data for name, data in made.items() if name != "train"}


def factory(data: Data, width: int = 64, dropout: float = 0.0) -> Any:
    inputs = int(np.prod(np.asarray(data.x).shape[1:]))
    outputs = data.num_classes or data.y.shape[1]
    return lambda k: mlp(inputs, outputs, width, dropout)


def settings(**changes: Any) -> Settings:
    return Settings(**{"epochs": 3, "batch_size": 32, "lr": 0.1, "device": "cpu", **changes})


def same(a: Any, b: Any) -> bool:
    """Whether two nested states are equal to the last bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


class Offsets(Method):
    """A learned offset per sample: the smallest method with a `SampleParameter`, in SOP's pattern."""

    title = "offset per sample"

    def setup(self, task: Any, num_samples: int, network: nn.Module) -> None:
        super().setup(task, num_samples, network)
        self.u = SampleParameter(num_samples, task.num_outputs, std=0.01)

    def loss(self, nets: Any, batch: Any, now: Any) -> Loss:
        out = nets[0](batch.x)
        return Loss(self.task.loss(out + self.u.rows(batch.index), batch.target).mean(), out=out)

    def optimizers(self, nets: Any, make: Any) -> dict[str, torch.optim.Optimizer]:
        return {**super().optimizers(nets, make), "u": torch.optim.SGD(self.u.parameters(), lr=1.0)}
