"""Progress for people (rich) and metrics for programs (CSV, TensorBoard)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from labelproof.data.atomic import atomically

#: What an epoch's line shows, in this order, where it is known.
SHOWN = {
    "loss": "loss",
    "agree": "agrees with labels",
    "val_accuracy": "noisy val",
    "test_accuracy": "test",
    "val_rmse": "noisy val rmse",
    "test_rmse": "test rmse",
}


def write_text(path: Path, text: str) -> None:
    """Write a file in one step: a reader, or a kill, never meets half of it."""
    atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_metrics(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """`metrics.csv`: one row per epoch, one column per figure; empty where an epoch has none."""
    names = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_text(path, text.getvalue())


def say(text: str) -> None:
    """One line for people, where the progress of training is shown."""
    from rich.console import Console

    Console(stderr=True, soft_wrap=True).print(text, highlight=False, markup=False)


class Progress:
    """A bar on a terminal, a line every few epochs elsewhere, nothing at `verbose=0`.

    Args:
        verbose: 0 for silence.
        title: what is being trained.
        epochs: epochs in all.
        steps: steps per epoch.
        done: epochs finished already (a resumed run).
    """

    def __init__(self, verbose: int, title: str, epochs: int, steps: int, done: int = 0) -> None:
        self.epochs, self.title, self.bar = epochs, title, None
        if not verbose:
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.console = Console(stderr=True)
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task(title, total=epochs * steps, completed=done * steps, figures="")
        self.bar.start()

    def note(self, memory: str, **sizes: int) -> None:
        """Say how many bytes the state per sample takes, before training."""
        if self.bar is not None:
            parts = ", ".join(f"{name} {_bytes(size)}" for name, size in sizes.items() if size)
            self.console.print(f"state per sample ({memory}): {parts}", highlight=False)

    def step(self) -> None:
        """One step done."""
        if self.bar is not None:
            self.bar.advance(self.task)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """One epoch done."""
        if self.bar is None:
            return
        figures = "  ".join(f"{label} {row[name]:.4g}" for name, label in SHOWN.items() if name in row)
        self.bar.update(self.task, figures=figures)
        every = max(1, self.epochs // 10)
        if not self.console.is_terminal and (row["epoch"] % every == 0 or row["epoch"] == self.epochs):
            self.console.print(
                f"{self.title}  epoch {row['epoch']}/{self.epochs}  {figures}", highlight=False, soft_wrap=True
            )

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.bar is not None:
            self.bar.stop()


def _bytes(size: int) -> str:
    value, units = float(size), iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    while value >= 1000 and unit != "GB":
        value, unit = value / 1000, next(units)
    return f"{value:.3g} {unit}"


def tensorboard_writer(folder: Path) -> Any:
    """A TensorBoard writer for the folder.

    Raises:
        ImportError: TensorBoard is not installed; says how to install it.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("tensorboard=True needs TensorBoard: pip install 'labelproof[tensorboard]'") from error
    return SummaryWriter(folder)
