"""The folder of a run: locked while it trains, refused if it holds something else, gone if training never began."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from labelproof.engine import checkpoint
from labelproof.engine.logs import write_text

_FILES = (
    *("run.json", "metrics.csv", "issues.csv", "gallery.npz", "simplex.npz"),
    *("report.html", "report-memorisation.svg", "simplex.gif", "simplex.png"),
    *("selection.csv", "theory.csv", "theory.svg", "theory-confusion.svg"),
)


@contextmanager
def opened(folder: Path | None, record: Mapping[str, Any], resume: bool, flag: str = "--out") -> Iterator[None]:
    """The run's folder while it trains, locked; refused if it holds something else, gone if training never began."""
    if folder is None or not is_first_process():
        yield
        return
    _check_folder(folder, record.get("what"), resume, flag)
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(f"another process is training in {folder}: wait for it, or choose another folder") from None
    except OSError as error:
        raise OSError(f"cannot write to the output folder {folder} ({error}): choose another with {flag}") from error
    try:
        if not checkpoint.begun(folder):
            write_text(folder / "run.json", as_json(record))
        yield
    except Exception:
        if not checkpoint.begun(folder):
            (folder / "run.json").unlink(missing_ok=True)
        raise
    finally:
        lock.release()
        (folder / ".lock").unlink(missing_ok=True)
        if new:
            with suppress(OSError):  # there is something in it: it stays
                folder.rmdir()


def _check_folder(folder: Path, what: str | None, resume: bool, flag: str) -> None:
    """Nothing that is not a run begun and never checkpointed may be overwritten."""
    known = folder / "run.json"
    try:
        ours = json.loads(known.read_text())
        ours = ours if "labelproof" in ours else None
    except (OSError, ValueError, TypeError):
        ours = None
    if resume:
        if ours is None:
            raise FileNotFoundError(f"no run in {folder}: nothing to resume; start without --resume")
        if ours.get("what") != what:
            raise FileExistsError(
                f"{folder} holds a run of another command ({ours.get('command')}): give another folder with {flag}"
            )
        return
    if checkpoint.begun(folder) or (ours is not None and ours.get("status") == "finished"):
        raise FileExistsError(
            f"{folder} holds a run already: give --resume to go on with it, or another folder with {flag}"
        )
    there = [name for name in _FILES if (folder / name).exists()]
    if there and ours is None:
        raise FileExistsError(
            f"{folder} holds {there[0]}, which a run would overwrite: choose another folder with {flag}"
        )


def is_first_process() -> bool:
    """Whether this process writes and prints; known from the environment before a process group exists."""
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def as_json(record: Mapping[str, Any]) -> str:
    return json.dumps(finite(record), indent=1, allow_nan=False)


def finite(value: Any) -> Any:
    """JSON has no NaN: what is undefined (precision with nothing flagged) is null, at any depth."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
