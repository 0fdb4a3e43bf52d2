"""`fit`: what a method does from beginning to end. For most that is one training; a few need several in sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from labelproof.core.method import Method
from labelproof.data.dataset import Data
from labelproof.engine import checkpoint
from labelproof.engine.fitted import Fitted
from labelproof.engine.guards import name_of
from labelproof.engine.logs import say
from labelproof.engine.loop import Factory, fit_once
from labelproof.engine.settings import Settings
from labelproof.functional.ranks import rank


def fit(
    method: Method,
    factory: Factory,
    data: Data,
    settings: Settings,
    *,
    test: Data | None = None,
    streams: Mapping[str, Data] | None = None,
    folder: Path | None = None,
    resume: bool = False,
    verbose: int = 0,
    tensorboard: bool = False,
    stamp: Mapping[str, Any] | None = None,
) -> Fitted:
    """Train `method` on `data`, in as many trainings as it takes (`Method.run`).

    Each training before the last has its checkpoints in a folder of its own inside `folder`. A resumed run goes
    through the same sequence: what is finished is read back, what was killed goes on.

    Args:
        method: hyper-parameters; a copy is trained, this object stays as it is.
        factory: makes the network of each peer, called under that peer's own seed.
        data: training data; its labels may be wrong.
        settings: how to train.
        test: evaluated after each epoch of the last training and never used for a choice.
        streams: data for the side streams a method asks for, by name.
        folder: where checkpoints and `metrics.csv` go; nothing is written if `None`.
        resume: go on from the last checkpoint in `folder`.
        verbose: 0 is silent.
        tensorboard: also write TensorBoard events to `folder`.
        stamp: further settings (the network's name, say) that a resumed run must share.

    Returns:
        The trained networks with their record.

    Raises:
        ValueError: method, task, network and data do not fit together; the message says what to change.
        FileNotFoundError: `resume` without a checkpoint.
        OSError: a checkpoint cannot be written.
    """
    if resume and folder is not None and not checkpoint.begun(folder):
        checkpoint.load(folder)  # raises: there is nothing to resume

    stages = _Stages(
        factory=factory,
        settings=settings,
        test=test,
        streams=streams,
        folder=folder,
        resume=resume,
        verbose=verbose,
        tensorboard=tensorboard,
        # of the method as it was asked for: what an earlier stage estimated may differ in the last digit elsewhere
        stamp={"method": repr(method), **(stamp or {})},
    )
    if resume and folder is not None:
        stages.check_same(folder)
    fitted: Fitted = method.run(stages, data)
    last = fitted.history[-1]["seconds"]
    return replace(
        fitted, notes=stages.notes, figures=stages.figures, seconds_before=sum(stages.seconds.values()) - last
    )


@dataclass(frozen=True)
class _Stages:
    """Implements `labelproof.core.method.Fit`; attributes are the arguments of `fit`."""

    factory: Factory
    settings: Settings
    test: Data | None
    streams: Mapping[str, Data] | None
    folder: Path | None
    resume: bool
    verbose: int
    tensorboard: bool
    stamp: Mapping[str, Any]
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def check_same(self, folder: Path) -> None:
        """Refuse to go on under other settings with a run that was killed before its last training had a checkpoint."""
        stage = next((p for p in sorted(folder.iterdir()) if p.is_dir() and checkpoint.found(p)), None)
        if stage is not None and not checkpoint.found(folder):
            stored = checkpoint.load(stage)["stamp"]
            now = {"method": self.stamp["method"], "asked": self.settings.asdict()}
            checkpoint.check_same({k: stored[k] for k in now if k in stored}, {k: now[k] for k in now if k in stored})

    def __call__(
        self, method: Method, data: Data, /, *, stage: str = "", length: float = 1.0, **changes: Any
    ) -> Fitted:
        inside = self.folder / stage if self.folder is not None and stage else self.folder
        epochs = max(1, round(length * self.settings.epochs))
        fitted = fit_once(
            method,
            self.factory,
            data,
            replace(self.settings, **{"epochs": epochs, **changes}),
            test=None if stage else self.test,
            streams=self.streams,
            folder=inside,
            resume=self.resume and (inside is None or bool(checkpoint.found(inside))),
            verbose=self.verbose,
            tensorboard=self.tensorboard,
            stamp={"stage": stage, "asked": self.settings.asdict(), **self.stamp},
            title=f"{name_of(method)} {stage}".strip(),
        )
        self.seconds[stage] = fitted.history[-1]["seconds"]
        return fitted

    def note(self, text: str, **figures: Any) -> None:
        self.notes.append(text)
        self.figures.update(figures)
        if self.verbose and rank() == 0:
            say(text)
