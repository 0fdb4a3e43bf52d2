"""Runs recipes, each in a process of its own, by the very command that stands beside its row in a table."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

import labelproof
from labelproof.bench import results
from labelproof.engine import checkpoint
from labelproof.engine.launchers import Launcher, Processes
from labelproof.recipes import Recipe


@dataclass(frozen=True)
class Job:
    """One run of a recipe.

    Attributes:
        recipe: what is run.
        seed: of everything random.
        words: further words of the command line, which change nothing that is learned (device, data folder).
        encoder: what it starts from, where the recipe says that the user brings one.
    """

    recipe: Recipe
    seed: int
    words: tuple[str, ...] = ()
    encoder: str = ""

    @property
    def name(self) -> str:
        return f"{self.recipe.name}-seed{self.seed}"

    @property
    def made(self) -> str:
        """The file of the encoder that is made first, the same for all recipes that pre-train alike; none if empty."""
        if self.recipe.pretrain is None:
            return ""
        said = json.dumps({**self.recipe.pretrain, "seed": self.seed, "by": labelproof.__version__}, sort_keys=True)
        return f"encoder-{hashlib.blake2b(said.encode(), digest_size=6).hexdigest()}.safetensors"


#: What the entry point `labelproof` runs; files of the present folder must not stand in for modules.
_ENTRY = "import sys; sys.path.pop(0); from labelproof.cli import main; sys.exit(main())"
_LIBC: Any = ctypes.CDLL(None) if sys.platform == "linux" else None


class Failure(NamedTuple):
    """What went wrong; `busy` where another process is making that very run."""

    why: str
    busy: bool = False


#: From flags by name to words of the command line.
Words = Callable[[Mapping[str, Any]], list[str]]


def todo(
    recipes: Sequence[Recipe], seeds: int, folder: Path, words: Sequence[str] = (), encoder: str = ""
) -> list[Job]:
    """The runs that have no result yet, seed by seed, so that tables of the first seed are there early."""
    done = results.read(folder, recipes).runs
    wanted = [(r, s) for s in range(seeds) for r in recipes if (r.name, s) not in done]
    return [Job(r, s, tuple(words), encoder if r.needs else "") for r, s in wanted]


def commands(job: Job, words: Words) -> list[str]:
    """What makes the run, as it would be typed."""
    first = [["pretrain", *_pretraining(job, words), f"--out={job.made}"]] if job.made else []
    return [shlex.join(["labelproof", *typed]) for typed in (*first, ["train", *_training(job, words, job.made)])]


def _pretraining(job: Job, words: Words) -> list[str]:
    given = dict(job.recipe.pretrain or {})
    return [str(given.pop("data")), *words(given), f"--seed={job.seed}", *job.words]


def _training(job: Job, words: Words, encoder: str) -> list[str]:
    given, start = dict(job.recipe.train), encoder or job.encoder or ("FILE" if job.recipe.needs else "")
    typed = [str(given.pop("data")), *words(given), f"--seed={job.seed}", *job.words]
    return [*typed, f"--encoder={start}"] if start else typed


def perform(
    jobs: Sequence[Job],
    folder: Path,
    work: Path,
    *,
    words: Words,
    launcher: Launcher | None = None,
    told: Callable[[str, bool], None] | None = None,
) -> dict[str, Failure]:
    """Run jobs; each that finishes leaves its result at once.

    A run that fails is left for the next time and does not stop the others. One that is killed goes on from its last
    checkpoint the next time.

    Args:
        jobs: what to run.
        folder: of the results.
        work: of the runs while they last.
        words: from flags to words.
        launcher: where several run side by side.
        told: is called with the name of each job that ends, and whether its result is there.

    Returns:
        What went wrong, by name of the job.

    Raises:
        OSError: nothing can be written to one of the folders.
    """
    for place in (folder, work):
        place.mkdir(parents=True, exist_ok=True)
        trial = place / f".trial-{os.getpid()}"
        trial.write_text("")
        trial.unlink()
    one = partial(_perform, words=words, folder=folder.absolute(), work=work.absolute())
    paths = {j.name: results.path_of(folder, j.recipe, j.seed) for j in jobs}
    tell = None if told is None else lambda name: told(name, paths[name].exists())
    said = (launcher or Processes(1)).run([partial(one, job=j) for j in jobs], list(paths), told=tell)
    return {job.name: failure for job, failure in zip(jobs, said, strict=True) if failure is not None}


def _perform(attempt: int, *, job: Job, words: Words, folder: Path, work: Path) -> Failure | None:
    """Run one job, or go on with it; returns what went wrong."""
    if job.recipe.needs and not job.encoder:
        return Failure(f"needs {job.recipe.needs}: give --encoder FILE")
    try:
        with FileLock(work / f"{job.name}.lock", timeout=0):
            if (job.recipe.name, job.seed) in results.read(folder, [job.recipe]).runs:
                return None  # another process has made it meanwhile
            return _made(job, words, folder, work)
    except Timeout:
        return Failure("another process is making it", busy=True)


def _made(job: Job, words: Words, folder: Path, work: Path) -> Failure | None:
    encoder = work / job.made if job.made else None
    if encoder is not None:
        with FileLock(f"{encoder}.lock"):  # runs that start from the same encoder wait for it
            if not encoder.exists():
                run = work / encoder.stem
                ended = _call(["pretrain", *_pretraining(job, words), f"--out={encoder}"], "--run", run, work)
                if isinstance(ended, Failure):
                    return ended
                shutil.rmtree(run, ignore_errors=True)
    run = work / job.name
    used = _call(["train", *_training(job, words, "" if encoder is None else str(encoder))], "--out", run, work)
    if isinstance(used, Failure):
        return used
    try:
        found = {**results.collect(job.recipe, job.seed, run, used), "command": commands(job, words)[-1]}
        results.check(found, job.recipe)
    except ValueError as error:  # it has no test data, say
        shutil.rmtree(run, ignore_errors=True)
        return Failure(str(error))
    results.write(folder, job.recipe, job.seed, found)
    shutil.rmtree(run, ignore_errors=True)
    return None


def _call(typed: Sequence[str], flag: str, run: Path, work: Path) -> dict[str, Any] | Failure:
    """Run a command of ours in a process of its own, from its last checkpoint on if it has one."""
    resumed = checkpoint.begun(run) and _begun_so(run, typed)
    if not resumed:
        shutil.rmtree(run, ignore_errors=True)
    log = work / f"{run.name}.log"
    again = ["--resume"] * resumed
    with log.open("wb") as file:
        call = [sys.executable, "-c", _ENTRY, *typed, f"{flag}={run}", "--quiet", *again]
        status, used = _measured(call, file)
    if status < 0:
        return Failure(f"was killed (signal {-status}), for want of memory perhaps; the next time it goes on")
    if status:
        lines = log.read_text(errors="replace").strip().splitlines()
        return Failure(lines[-1] if lines else f"ended with status {status}")
    log.unlink()
    return {**used, "resumed": resumed}


def _begun_so(run: Path, typed: Sequence[str]) -> bool:
    """Whether what was begun there is what is to be made now: a recipe may have changed, or labelproof."""
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        begun = shlex.split(record["command"])[1:]
    except (OSError, ValueError, KeyError):
        return False
    kept = [word for word in begun if not word.startswith(("--out=", "--run=", "--quiet", "--resume"))]
    return record.get("labelproof") == labelproof.__version__ and kept == [
        word for word in typed if not word.startswith("--out=")
    ]


def _measured(command: list[str], log: Any) -> tuple[int, dict[str, Any]]:
    """Run a command; its status and CPU seconds (where the system says)."""
    # last digits depend on the number of threads: one, however many runs go on side by side
    threads = {"OMP_NUM_THREADS": "1"} if "--device=cpu" in command else {}
    env = {**threads, **os.environ, "PYTHONUNBUFFERED": "1"}
    dies = None if _LIBC is None else partial(_with_parent, os.getpid())
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env, preexec_fn=dies)  # noqa: PLW1509
    try:
        if not hasattr(os, "wait4"):  # Windows
            return process.wait(), {}
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()  # it goes on from its checkpoint the next time
        process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, {"cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2)}


def _with_parent(parent: int) -> None:
    """Let the system end this process when the one that started it is killed: no training goes on unwatched."""
    _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it was killed before that
        os._exit(1)
