"""Trains every registered method, and one with learned per-sample rows, on each process of a gloo group."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from labelproof.engine.loop import fit
from labelproof.engine.settings import Settings
from labelproof.methods import METHODS
from tests.toy import Offsets, blobs, factory, problem, settings

CASES = {**METHODS, "offsets": Offsets}


def how(devices: int) -> Settings:
    return settings(epochs=3, batch_size=32, devices=devices, validation_fraction=0.25, schedule="constant")


def run(devices: int) -> dict[str, dict[str, torch.Tensor]]:
    """State at the end of training: networks, per-sample state, evidence, and the figures of the last epoch."""
    states = {}
    for name, kind in CASES.items():
        data, test = problem(kind, 128, noise=0.2), problem(kind, 51, seed=7)
        r = fit(kind(), factory(data), data, how(devices), test=test)
        states[name] = {
            **{f"nets.{k}": v for k, v in r.nets.state_dict().items()},
            **{f"method.{k}": v for k, v in r.method.state_dict().items()},
            **{f"evidence.{k}": v for k, v in r.evidence.state_dict().items()},
            **{k: torch.tensor(float(v)) for k, v in r.history[-1].items() if k not in {"seconds", "loss", "lr"}},
        }
    return states


def ragged(devices: int) -> int:
    """An odd number of samples: the ranks must take the same number of steps, or they wait for each other forever."""
    data = blobs(97)
    return int(fit(METHODS["elr"](), factory(data), data, settings(devices=devices)).evidence.visits.sum())


def main(out: Path) -> None:
    torch.set_num_threads(1)
    states, visits = run(2), ragged(2)
    rank = torch.distributed.get_rank()
    torch.save({"states": states, "visits": visits}, out / f"rank{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
