"""What is trained for an answer and not for a model: which samples to keep, whether the theory of INCV holds."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd

from labelproof.data.dataset import Data
from labelproof.engine import checkpoint
from labelproof.engine.inputs import input_shape
from labelproof.engine.launchers import Launcher
from labelproof.engine.logs import write_text
from labelproof.engine.settings import Settings
from labelproof.engine.stages import Stages
from labelproof.folders import as_json, is_first_process, opened
from labelproof.issues import save_issues
from labelproof.methods import INCV
from labelproof.networks.factory import NetworkLike, as_factory, network_name
from labelproof.procedures.incv import Selection
from labelproof.runs import describe


def clean(
    data: Data,
    method: INCV,
    network: NetworkLike,
    settings: Settings,
    *,
    folder: Path | None = None,
    resume: bool = False,
    verbose: int = 0,
    command: str = "",
    launcher: Launcher | None = None,
) -> Selection:
    """The samples whose labels can be trusted, by INCV's first stage alone.

    Args:
        data: a classification data set.
        method: INCV; options of its second stage are not used.
        network: as for `labelproof.runs.train`.
        settings: how to train; each half is trained for `method.length` of the epochs.
        folder: gets `run.json`, `selection.csv` and the checkpoints of each half.
        resume: go on from what is finished there.
        verbose: 0 is silent.
        command: how to repeat it, for the record.
        launcher: where the two halves run side by side.

    Raises:
        ValueError: see `labelproof.procedures.incv.incv`.
        FileExistsError: the folder holds another run already.
    """
    record = {**describe(data, method, network, settings, None, command), "what": "selection"}
    began = time.perf_counter()
    with opened(folder, record, resume):
        stages = Stages(
            factory=as_factory(network, input_shape(data), data.num_classes),
            settings=settings,
            stamp={"method": repr(method), "network": network_name(network)},
            folder=folder,
            resume=resume and folder is not None and checkpoint.begun(folder),
            verbose=verbose,
            launcher=launcher,
        )
        found = method.select(stages, data)
    if folder is not None and is_first_process():
        for name, columns in stages.tables.items():
            save_issues(pd.DataFrame(columns), folder / f"{name}.csv")
        result = {**stages.figures, "selected": len(found.selected), "selected_noise": found.selected_noise}
        result["seconds"] = round(time.perf_counter() - began, 2)
        write_text(folder / "run.json", as_json({**record, "status": "finished", "result": result}))
    return found
