"""Checkpoints that survive a kill, a full disk and a truncated file.

A checkpoint is written beside the last one and takes its place in one rename; the one before it is kept. Files hold
tensors and plain values only and are read with `weights_only=True`, so that opening one can run no code.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

#: Settings that came later, and what runs did before: checkpoints from then do not name them.
LATER = {"momentum_schedule": "constant"}
#: Settings that change how fast a run is, and nothing of what is in its checkpoints.
FREE = ("compile",)
LAST, BEFORE = "last.ckpt", "previous.ckpt"


def save(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `state` as the folder's last checkpoint.

    Raises:
        OSError: it cannot be written (full disk, read-only folder). What was there before is untouched.
    """
    partial, last = folder / f".{LAST}.partial", folder / LAST
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save(dict(state), file)
            file.flush()
            os.fsync(file.fileno())
        if last.exists():
            os.replace(last, folder / BEFORE)
        os.replace(partial, last)
    except (OSError, RuntimeError) as error:  # torch.save reports a failed write as RuntimeError
        with suppress(OSError):  # a read-only folder: there is nothing to remove
            partial.unlink(missing_ok=True)
        raise OSError(
            f"cannot write a checkpoint to {folder} ({error}). Checkpoints already there are untouched: "
            "make room or choose another folder, then continue with --resume"
        ) from error


def found(folder: Path) -> list[Path]:
    """The folder's checkpoints, the last one first."""
    return [p for p in (folder / LAST, folder / BEFORE) if p.exists()]


def begun(folder: Path) -> bool:
    """Whether the folder, or that of an earlier stage inside it, holds a checkpoint."""
    stages = [p for p in folder.glob("*") if p.is_dir() and not (p / "run.json").exists()]  # not another run
    return any(found(p) for p in (folder, *stages))


def load(folder: Path) -> dict[str, Any]:
    """The last checkpoint that can be read: the one before it, with a warning, if the last is damaged.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: none of those there can be read.
    """
    paths = found(folder)
    if not paths:
        raise FileNotFoundError(f"no checkpoint in {folder}: nothing to resume; start without --resume")
    for path in paths:
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state
        except Exception as error:  # a damaged file fails in many ways
            reason = str(error).split("\n")[0]
            warnings.warn(f"{path} cannot be read ({reason}); trying the checkpoint before it", stacklevel=2)
    raise ValueError(f"no readable checkpoint in {folder} ({', '.join(p.name for p in paths)}): train anew")


def check_same(stored: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to resume a run under other settings.

    Raises:
        ValueError: names each setting that differs, with both values.
    """
    stored, now = dict(stored), dict(now)
    before, asked = stored.pop("asked", None), now.pop("asked", None)  # the run's, of which a stage's may be made
    if before is not None and asked is not None:
        check_same({"method": stored.get("method"), **before}, {"method": now.get("method"), **asked})
    stored = {**{k: v for k, v in LATER.items() if k in now}, **stored}
    names = [k for k in {**stored, **now} if k not in FREE]
    differ = [f"{k}={now.get(k)!r} (was {stored.get(k)!r})" for k in names if stored.get(k) != now.get(k)]
    if differ:
        raise ValueError(f"cannot resume: the run was started with other settings: {'; '.join(sorted(differ))}")
