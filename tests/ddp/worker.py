"""Trains every registered method, and one with learned per-sample rows, on each process of a gloo group."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from labelproof.core.encoder import Encoder, Started, body
from labelproof.core.task import Task
from labelproof.engine.settings import Settings
from labelproof.engine.stages import fit
from labelproof.engine.training import Training
from labelproof.methods import METHODS
from labelproof.procedures.contrast import Contrast
from tests.toy import Offsets, blobs, factory, line, mlp, problem, same, settings, streams


class Unnormalised(Contrast):
    """Pre-training with a projection free of BatchNorm, which is of each process's part alone."""

    name = ""

    def setup(self, task: Task, num_samples: int, network: nn.Module) -> None:
        super().setup(task, num_samples, network)
        self.g = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))


CASES = {name: kind for name, kind in METHODS.items() if "devices" not in kind.forbids}
CASES |= {"offsets": Offsets, "contrast": Unnormalised}
#: Methods for both tasks are run on classes above; here on targets, as those for regression alone are already.
ON_TARGETS = {f"{name} on targets": METHODS[name] for name in ("prl-l", "trimmed")}
CASES |= ON_TARGETS
#: An estimated matrix is read at single samples, and the stage before it kept at the best epoch: a difference in the
#: seventh digit can choose another. With a given one two processes must do what one does; see also `estimated`.
GIVEN = {"transition": [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]}
#: Mixup pairs rows of the same rank, by position: two processes form other pairs than one.
UNMIXED = {"mixup": 0.0}
OPTIONS: dict[str, dict[str, Any]] = {"forward": GIVEN, "backward": GIVEN, "elr+": UNMIXED, "dividemix": {"alpha": 0.0}}
#: From an encoder, frozen or not.
STARTED = {f"{name} from {what}": METHODS[name] for name in ("ce", "co-teaching") for what in ("encoder", "frozen")}
CASES |= STARTED
DISPUTED = {"warmup": 1}  # two of three epochs on samples in dispute
OPTIONS |= {"co-teaching+": DISPUTED, "decoupling": DISPUTED}


def how(devices: int) -> Settings:
    return settings(epochs=3, batch_size=32, devices=devices, validation_fraction=0.25, schedule="constant")


def run(devices: int) -> dict[str, dict[str, torch.Tensor]]:
    """State at the end of training: networks, per-sample state, evidence, and the figures of the last epoch."""
    states = {}
    for name, kind in CASES.items():
        data, test = problem(kind, 128, noise=0.2), problem(kind, 51, seed=7)
        if name in ON_TARGETS:
            data, test = line(128, outliers=0.2), line(51, seed=7)
        method, make = kind(**OPTIONS.get(name, {})), factory(data)
        if name in STARTED:
            make = Started(make, encoder(frozen=name.endswith("frozen")))
        r = fit(method, make, data, how(devices), test=test, streams=streams(kind))
        states[name] = {
            **{f"nets.{k}": v for k, v in r.nets.state_dict().items()},
            **{f"method.{k}": v for k, v in r.method.state_dict().items()},
            **{f"evidence.{k}": v for k, v in r.evidence.state_dict().items()},
            **{k: torch.tensor(float(v)) for k, v in r.history[-1].items() if k != "seconds"},
        }
    return states


def encoder(*, frozen: bool) -> Encoder:
    """Of the toy network, the same on each process."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        weights = {name: t.detach().clone() for name, t in body(mlp(8, 3)).items()}
    return Encoder(weights, torch.zeros(8), torch.ones(8), frozen=frozen)


def drawn(devices: int) -> list[torch.Tensor]:
    """What this process is given of each batch, balanced: of class 2 there is little."""
    seen = []

    class Watched(METHODS["ce"]):  # type: ignore[misc]
        def loss(self, nets: Any, batch: Any, now: Any) -> Any:
            seen.append(batch.index.clone())
            return super().loss(nets, batch, now)

    data = blobs(128)
    few = np.sort(np.r_[np.flatnonzero(data.y != 2), np.flatnonzero(data.y == 2)[:5]])
    part = data.take(few)
    fit(Watched(), factory(part), part, settings(devices=devices, sampling="balanced", epoch_samples=64))
    return seen


def once(devices: int) -> bool:
    """A single epoch that leaves one sample out: it is believed to be something all the same."""
    data = blobs(97)
    belief = fit(METHODS["elr"](), factory(data), data, settings(devices=devices, epochs=1)).belief()
    return bool(torch.from_numpy(belief).isfinite().all())


def ragged(devices: int) -> int:
    """An odd number of samples: the ranks must take the same number of steps, or they wait for each other forever."""
    data = blobs(97)
    return int(fit(METHODS["elr"](), factory(data), data, settings(devices=devices)).evidence.visits.sum())


def estimated(devices: int) -> torch.Tensor:
    """Two trainings in sequence: each rank must arrive at the same matrix, close to the one that one process finds."""
    data = blobs(256, flips=0.2)
    method = METHODS["forward"]()
    return torch.tensor(fit(method, factory(data), data, settings(epochs=6, devices=devices)).method.transition)


def mixed(devices: int) -> list[float]:
    """PRL-L's mixup draws among the kept rows of each rank, whose number need not be the same: last losses."""
    options = {"noise_rate": 0.3, "num_gradual": 1, "mixup": 1.0}
    how = settings(epochs=3, devices=devices)
    return [
        fit(METHODS["prl-l"](**options), factory(data), data, how).history[-1]["loss"]
        for data in (blobs(97, flips=0.2), line(97, outliers=0.2))
    ]


class Killed(Exception):
    pass


def resumed(out: Path) -> dict[str, bool]:
    """Killed inside an epoch on both ranks and resumed, with BatchNorm and dropout: equal to the last bit?"""
    data = blobs(128, flips=0.2)
    options = settings(epochs=3, batch_size=32, devices=2, checkpoint_every=1, validation_fraction=0.25)

    def network(k: int) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))

    whole = fit(METHODS["elr"](), network, data, options, folder=out / "whole")
    plain, done = Training.run_batch, 0

    def mortal(*args: object) -> object:
        nonlocal done
        done += 1
        if done == 6:  # the third step of the second epoch
            raise Killed
        return plain(*args)  # type: ignore[arg-type]

    Training.run_batch = mortal  # type: ignore[method-assign,assignment]
    try:
        fit(METHODS["elr"](), network, data, options, folder=out / "killed")
    except Killed:
        Training.run_batch = plain  # type: ignore[method-assign]
    again = fit(METHODS["elr"](), network, data, options, folder=out / "killed", resume=True)
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in r.history] for r in (whole, again)]
    return {
        "nets": same(dict(whole.nets.state_dict()), dict(again.nets.state_dict())),
        "table": same(dict(whole.method.state_dict()), dict(again.method.state_dict())),
        "evidence": same(dict(whole.evidence.state_dict()), dict(again.evidence.state_dict())),
        "history": rows[0] == rows[1],
    }


def main(out: Path) -> None:
    torch.set_num_threads(1)
    found = {"states": run(2), "visits": ragged(2), "one_epoch": once(2), "resumed": resumed(out)}
    found["estimated"], found["mixed"], found["drawn"] = estimated(2), mixed(2), drawn(2)
    torch.save(found, out / f"rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
