"""`fit`: what a method does from beginning to end. For most that is one training; a few need several in sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelproof.core.encoder import Encoder, Started
from labelproof.core.method import Fit, Method, Planned
from labelproof.data.dataset import Data
from labelproof.engine import checkpoint
from labelproof.engine.fitted import Fitted
from labelproof.engine.guards import name_of
from labelproof.engine.logs import say
from labelproof.engine.loop import Factory, fit_once
from labelproof.engine.settings import Settings
from labelproof.functional.ranks import rank

if TYPE_CHECKING:
    from labelproof.engine.launchers import Launcher


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
    launcher: Launcher | None = None,
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
        launcher: where trainings that need nothing of each other run side by side; one after another here if `None`.

    Returns:
        The trained networks with their record.

    Raises:
        ValueError: method, task, network and data do not fit together; the message says what to change.
        FileNotFoundError: `resume` without a checkpoint.
        OSError: a checkpoint cannot be written, or a worker process dies again and again.
    """
    # of the method as it was asked for: what an earlier stage estimated may differ in the last digit elsewhere
    stages = Stages(
        factory=factory,
        settings=settings,
        test=test,
        streams=streams,
        folder=folder,
        resume=resume,
        verbose=verbose,
        tensorboard=tensorboard,
        stamp={"method": repr(method), **(stamp or {})},
        launcher=launcher,
    )
    fitted: Fitted = method.run(stages, data)
    last = fitted.history[-1]["seconds"]
    if isinstance(factory, Started) and factory.match is not None:
        stages.note(f"started from {factory.encoder.about.get('name', 'an encoder')}: {factory.match}")
    return replace(
        fitted,
        notes=stages.notes,
        figures=stages.figures,
        tables=stages.tables,
        seconds_before=sum(stages.seconds.values()) - last,
    )


@dataclass(frozen=True, kw_only=True)
class Stages(Fit):
    """`labelproof.core.method.Fit` for a run; attributes are the arguments of `fit`, and what the procedure told.

    Attributes:
        notes, figures, tables: what the procedure left beside its trainings.
        seconds: what each training took, by stage.

    Raises:
        ValueError: other settings than those of the run to resume; or a launcher beside several devices.
        FileNotFoundError: `resume` without a checkpoint.
    """

    factory: Factory
    settings: Settings
    stamp: Mapping[str, Any]
    test: Data | None = None
    streams: Mapping[str, Data] | None = None
    folder: Path | None = None
    resume: bool = False
    verbose: int = 0
    tensorboard: bool = False
    launcher: Launcher | None = None
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.launcher is not None and self.settings.devices > 1:
            raise ValueError(
                f"devices={self.settings.devices} trains each network on several devices, and a launcher trains "
                "several networks at a time: leave one of both out"
            )
        if self.resume and self.folder is not None:
            if not checkpoint.begun(self.folder):
                checkpoint.load(self.folder)  # raises: there is nothing to resume
            self._check_same(self.folder)

    def _check_same(self, folder: Path) -> None:
        """Refuse to go on under other settings with a run that was killed before its last training had a checkpoint."""
        stage = next((p for p in sorted(folder.iterdir()) if p.is_dir() and checkpoint.found(p)), None)
        if stage is not None and not checkpoint.found(folder):
            stored = checkpoint.load(stage)["stamp"]
            now = {"method": self.stamp["method"], "asked": self.settings.asdict()}
            checkpoint.check_same({k: stored[k] for k in now if k in stored}, {k: now[k] for k in now if k in stored})

    def __call__(
        self,
        method: Method,
        data: Data,
        /,
        *,
        stage: str = "",
        length: float = 1.0,
        streams: Mapping[str, Data] | None = None,
        encoder: Encoder | None = None,
        **changes: Any,
    ) -> Fitted:
        training = self._training(Planned(method, data, stage, length, changes), streams, encoder)
        fitted: Fitted = training(0, verbose=self.verbose, tensorboard=self.tensorboard)
        self.seconds[stage] = fitted.history[-1]["seconds"]
        return fitted

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def given(self) -> frozenset[str]:
        return frozenset(self.streams or {})

    def all(self, plans: Sequence[Planned]) -> list[Fitted]:
        if self.launcher is None or len(plans) < 2:
            return super().all(plans)
        told = (lambda name: say(f"{name} finished")) if self.verbose and rank() == 0 else None
        trainings = [self._training(p) for p in plans]
        done: list[Fitted] = self.launcher.run(trainings, [p.stage for p in plans], told=told)
        # what comes from another process comes without its inputs
        found = [replace(f, data=p.data) for p, f in zip(plans, done, strict=True)]
        self.seconds.update({p.stage: f.history[-1]["seconds"] for p, f in zip(plans, found, strict=True)})
        return found

    def _training(
        self, p: Planned, streams: Mapping[str, Data] | None = None, encoder: Encoder | None = None
    ) -> Callable[..., Fitted]:
        """The training as a function of how often it was tried before, to be called here or in another process."""
        changes = dict(p.changes)
        if "batch_size" in changes:  # a procedure knows nothing of devices, which each take a part
            changes["batch_size"] -= changes["batch_size"] % self.settings.devices
        return partial(
            _train,
            method=p.method,
            factory=self.factory if encoder is None else Started(self.factory, encoder),
            data=p.data,
            settings=replace(self.settings, **{"epochs": max(1, round(p.length * self.settings.epochs)), **changes}),
            test=None if p.stage else self.test,
            streams={**(self.streams or {}), **(streams or {})},
            folder=None if self.folder is None else (self.folder / p.stage).absolute(),  # workers may be elsewhere
            resume=self.resume,
            stamp={"stage": p.stage, "asked": self.settings.asdict(), **self.stamp},
            title=f"{name_of(p.method)} {p.stage}".strip(),
        )

    def note(self, text: str, **figures: Any) -> None:
        self.notes.append(text)
        self.figures.update(figures)
        if self.verbose and rank() == 0:
            say(text)

    def table(self, name: str, columns: Mapping[str, Any]) -> None:
        self.tables[name] = columns


def _train(attempt: int, *, folder: Path | None, resume: bool, **arguments: Any) -> Fitted:
    """`fit_once`, from the last checkpoint on where the run is resumed or a worker died over an earlier attempt."""
    resume = resume or (attempt > 0 and folder is not None)
    return fit_once(folder=folder, resume=resume and (folder is None or bool(checkpoint.found(folder))), **arguments)
