"""Trains INCV on a toy problem, slowly: a process to be killed."""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import torch

from labelproof.core.types import Loss
from labelproof.engine.fitted import Fitted
from labelproof.engine.stages import fit
from labelproof.engine.training import Training
from labelproof.methods import INCV
from tests.toy import blobs, factory, settings

#: Of each half.
EPOCHS = 4


def train(folder: Path, *, resume: bool = False) -> Fitted:
    """The run, in this process."""
    warnings.simplefilter("ignore")
    data = blobs(160, 4, flips=0.3)
    how = settings(epochs=2 * EPOCHS, batch_size=32, checkpoint_every=2)
    method = INCV(iterations=2, warmup=1, num_gradual=2)
    return fit(method, factory(data, dropout=0.2), data, how, folder=folder, resume=resume)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    plain = Training.run_batch

    def slow(*args: object) -> Loss:
        time.sleep(0.02)  # leaves time to be killed inside an epoch
        return plain(*args)  # type: ignore[arg-type]

    Training.run_batch = slow  # type: ignore[method-assign]
    train(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
