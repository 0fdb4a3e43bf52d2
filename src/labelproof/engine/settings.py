"""`Settings`: everything about a run that is not the method, the network or the data. One definition for both faces."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from labelproof.core.method import in_range
from labelproof.core.registry import lookup
from labelproof.core.schedule import parse_schedule
from labelproof.core.storage import parse_memory
from labelproof.core.types import Clock

#: Default learning rate and weight decay of each optimiser.
OPTIMIZERS = {"sgd": (0.02, 5e-4), "adam": (1e-3, 0.0), "adamw": (1e-3, 1e-2), "lars": (1.0, 1e-6)}
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
AUGMENTATIONS = ("auto", "none", "crop", "crop-flip")
SAMPLINGS = ("all", "balanced")


@dataclass(frozen=True)
class Settings:
    """How to train.

    Args:
        epochs: passes over the training data.
        batch_size: samples per step, over all devices; at most the number of training samples.
        lr: learning rate; by default 0.02 for sgd, 0.001 for adam and adamw, and 1 for lars.
        optimizer: sgd, adam, adamw, or lars (made for large batches).
        momentum: of sgd and lars; of adam and adamw the first beta.
        weight_decay: by default 0.0005 for sgd, 0 for adam, 0.01 for adamw and 0.000001 for lars.
        schedule: of the learning rate: constant; cosine; linear:80 (full until epoch 80, then down to 0);
            multistep:40,80:0.01 (times 0.01 after epochs 40 and 80); restarts:10; each also after warmup:5+. cosine:0.1
            and restarts:10:0.1 end at that share.
        momentum_schedule: of the momentum, in the same words; multistep:80:0.1111 takes 0.9 to 0.1 after 80 epochs.
        clip: largest gradient norm of each network; none by default.
        accumulate: batches whose gradients are added up before a step.
        precision: 32-true, bf16-mixed or 16-mixed.
        device: auto, cpu or cuda.
        devices: how many of them, each a process that takes its share of every batch.
        seed: of everything random: initial weights, order, augmentation, the method's own draws.
        validation_fraction: share of the training data held out, its noisy labels left as they are, to follow
            progress and to choose the best epoch; 0.1 with early stopping, else 0.
        early_stopping: stop when the noisy validation score has not improved for `patience` epochs, and keep the
            weights of its best epoch.
        patience: epochs to wait for an improvement.
        augment: auto (crop and flip for colour images, none otherwise), none, crop or crop-flip.
        sampling: all (each sample once per epoch), or balanced (the same number of each class, chosen anew in each
            epoch; of rare classes samples repeat).
        epoch_samples: with balanced sampling, how many samples make an epoch; by default as many as there are.
        workers: processes that load streamed data; 0 loads in the training process.
        memory: how the rows of per-sample state (ELR's targets, the record of predictions) are kept: dense, fp16,
            bf16, cpu, mmap (a file in the run's folder), mmap:DIR, or topk:50 (the 50 largest of many classes).
        resident_bytes: data up to this size is kept on the device, larger data is streamed.
        checkpoint_every: steps between checkpoints within an epoch; 0 writes one at the end of each epoch only.
        compile: compile the networks with torch.compile; on a GPU it pays after the first minute. A run may be resumed
            with or without it.

    Raises:
        ValueError: a value is out of range or unknown; the message says what is allowed.
    """

    epochs: int = 30
    batch_size: int = 128
    lr: float | None = None
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float | None = None
    schedule: str = "cosine"
    momentum_schedule: str = "constant"
    clip: float | None = None
    accumulate: int = 1
    precision: str = "32-true"
    device: str = "auto"
    devices: int = 1
    seed: int = 0
    validation_fraction: float | None = None
    early_stopping: bool = False
    patience: int = 10
    augment: str = "auto"
    sampling: str = "all"
    epoch_samples: int | None = None
    workers: int = 0
    memory: str = "dense"
    resident_bytes: int = 2 * 1024**3
    checkpoint_every: int = 0
    compile: bool = False

    def __post_init__(self) -> None:
        for f in fields(self):  # NumPy's scalars would make checkpoints that weights_only cannot read
            value = getattr(self, f.name)
            object.__setattr__(self, f.name, value.item() if isinstance(value, np.generic) else value)
            if f.type == "int" and not isinstance(getattr(self, f.name), int):
                raise ValueError(f"{f.name}={value!r} must be a whole number")
        for name in ("epochs", "batch_size", "accumulate", "devices", "patience"):
            in_range(name, getattr(self, name), 1, float("inf"), closed="left")
        if self.epoch_samples is not None:
            in_range("epoch_samples", self.epoch_samples, 2, float("inf"), closed="left")
            if self.sampling != "balanced":
                raise ValueError(f"epoch_samples={self.epoch_samples} is for sampling='balanced': give that as well")
        for name in ("lr", "clip"):
            if getattr(self, name) is not None:
                in_range(name, getattr(self, name), 0, float("inf"), closed="neither")
        for name in ("workers", "resident_bytes", "checkpoint_every"):
            in_range(name, getattr(self, name), 0, float("inf"), closed="left")
        in_range("momentum", self.momentum, 0, 1, closed="left")
        in_range("weight_decay", self.weight_decay or 0.0, 0, float("inf"), closed="left")
        in_range("validation_fraction", self.validation_fraction or 0.0, 0, 1, closed="left")
        lr, decay = lookup("optimizer", self.optimizer, OPTIMIZERS)
        for name, table in (
            ("precision", PRECISIONS),
            ("augment", AUGMENTATIONS),
            ("sampling", SAMPLINGS),
            ("device", ("auto", "cpu", "cuda")),
        ):
            lookup(name, getattr(self, name), dict.fromkeys(table))
        parse_schedule(self.schedule)
        self._check_momentum()
        parse_memory(self.memory)
        if self.batch_size % self.devices:
            raise ValueError(
                f"batch_size={self.batch_size} must be a multiple of devices={self.devices}: each takes a part"
            )
        filled = {
            "lr": lr if self.lr is None else self.lr,
            "weight_decay": decay if self.weight_decay is None else self.weight_decay,
            "validation_fraction": (0.1 if self.early_stopping else 0.0)
            if self.validation_fraction is None
            else self.validation_fraction,
        }
        for name, value in filled.items():
            object.__setattr__(self, name, value)
        if self.early_stopping and self.validation_fraction == 0:
            raise ValueError("early_stopping=True needs validation_fraction > 0: there is nothing to watch otherwise")

    def _check_momentum(self) -> None:
        factor = parse_schedule(self.momentum_schedule, "momentum_schedule")
        if self.momentum_schedule == "constant":
            return
        if self.momentum == 0:
            raise ValueError(f"momentum_schedule={self.momentum_schedule!r} has nothing to change: momentum is 0")
        rng = torch.Generator()  # a clock has one; schedules do not draw from it
        highest = self.momentum * max(factor(Clock(e, self.epochs, 0, 1, rng)) for e in range(self.epochs))
        if highest >= 1:
            raise ValueError(
                f"momentum_schedule={self.momentum_schedule!r} takes momentum={self.momentum:g} to {highest:g}: "
                "it must stay below 1"
            )

    def asdict(self) -> dict[str, Any]:
        """Plain values by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
