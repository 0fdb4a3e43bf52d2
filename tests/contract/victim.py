"""Trains a method on its toy problem, slowly, printing a line per step: a process to be killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from labelproof.core.types import Loss
from labelproof.engine.stages import fit
from labelproof.engine.training import Training
from labelproof.methods import METHODS
from tests.toy import eager, factory, problem, settings, streams


def main(name: str, folder: Path) -> None:
    torch.set_num_threads(1)
    plain = Training.run_batch

    def slow(*args: object) -> Loss:
        loss = plain(*args)  # type: ignore[arg-type]
        print("step", flush=True)
        time.sleep(0.02)  # leaves time to be killed inside an epoch
        return loss

    Training.run_batch = slow  # type: ignore[method-assign]
    data = problem(METHODS[name])
    how = settings(epochs=6, batch_size=16, checkpoint_every=2, validation_fraction=0.2)
    fit(eager(name), factory(data, dropout=0.2), data, how, folder=folder, streams=streams(METHODS[name]))
    (folder / "done").touch()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
