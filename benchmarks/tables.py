"""What the scripts behind the tables of docs/results.md share: runs that processes take in turns, blocks of a page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock, Timeout

from labelproof.bench.tables import spread
from labelproof.data.atomic import atomically

__all__ = ["REPO", "agrees", "commit", "processes", "save", "share", "spread", "write_block"]

REPO = Path(__file__).resolve().parents[1]
J = TypeVar("J")


def agrees(found: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a stored result was made as it would be made today.

    Options that came later have the value they have now: the result must differ in none that it knows.
    """
    known = {k: {**now[k], **found[k]} if isinstance(now[k], dict) else found[k] for k in now if k in found}
    return bool(known == json.loads(json.dumps(now)))


def share(
    todo: Iterable[J],
    locks: Path,
    *,
    name: Callable[[J], str],
    finished: Callable[[J], bool],
    make: Callable[[J], str],
) -> list[str]:
    """Make what is missing and nobody else is making; returns the names of what failed.

    Each run is locked while it is made; the system lets go of the lock of a process that dies. One that fails is told
    and left for the next time: a broken method must not cost a night's work.

    Args:
        todo: the runs.
        locks: folder for the locks.
        name: of a run, for its lock and for people.
        finished: asked under the lock.
        make: makes the run, writes its result, and says in a few words what came of it.
    """
    failed: list[str] = []
    torch.set_num_threads(1)
    locks.mkdir(parents=True, exist_ok=True)
    for job in todo:
        lock = FileLock(locks / f"{name(job)}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue  # another process is at it
        try:
            if not finished(job):
                print(f"{name(job)}: {make(job)}", flush=True)
        except Exception:
            traceback.print_exc()
            failed.append(name(job))
        finally:
            lock.release()
    return failed


def processes(script: str, words: Sequence[str], count: int) -> int:
    """Run a script in so many processes of one thread each; returns how many of them failed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen([sys.executable, script, *words], env=env) for _ in range(count)]
    return sum(p.wait() != 0 for p in started)


def write_block(page: Path, start: str, end: str, heading: str, lines: Iterable[str]) -> None:
    """Put the lines between two marks of a page, in place of what stands there; without marks, under a new heading."""
    body = "\n".join([start, *lines, end])
    text, marked = page.read_text(), re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if not marked.search(text):
        text = f"{text.rstrip()}\n\n## {heading}\n\n{start}{end}\n"
    new = marked.sub(lambda _: body, text)
    atomically(page, lambda partial: partial.write_text(new))


def commit() -> str:
    """The present commit; with "+" where tracked files differ from it."""
    words = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(words, cwd=REPO, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def save(found: dict[str, Any], out: Path | None) -> None:
    """Write what a benchmark found, if it was asked to."""
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n")
