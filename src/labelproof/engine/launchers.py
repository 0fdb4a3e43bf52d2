"""Launchers: where independent trainings run. In this process, in processes beside it, or on a Ray cluster.

Both back ends know only how to run one call in one worker. What happens when a worker dies, a call raises or somebody
presses Ctrl-C is decided once, in `_supervise`.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

import cloudpickle
import torch
from loky import ProcessPoolExecutor, cpu_count

from labelproof.core.method import in_range
from labelproof.core.registry import lookup

T = TypeVar("T")
#: What is told of each job that finishes: its name.
Told = Callable[[str], None]

#: How often a call is begun before its dying workers are an error.
ATTEMPTS = 3
#: Seconds in which a Ray cluster must answer.
PATIENCE = 60


class Launcher(Protocol):
    """Runs independent calls, some of them at the same time."""

    def run(self, calls: Sequence[Callable[[int], T]], names: Sequence[str], told: Told | None = None) -> list[T]:
        """The results of all calls, in their order.

        A call that raises ends the run: no more calls are begun, those that run are let finish, and the first error in
        the order of the calls is raised as it is. Warnings of a call are issued in this process.

        Args:
            calls: each is given its attempt: 0, or more where the worker of an earlier attempt died. With more than
                one worker, calls and results travel by pickle (closures and lambdas too).
            names: one for each call, for messages.
            told: is called with the name of each call that finishes.

        Raises:
            ValueError: as many names as calls are needed.
            TypeError: a call or its result cannot be pickled.
            OSError: a call's worker died in each of its attempts.
        """


class Processes:
    """Calls run in this process, one after another, or in worker processes on this machine.

    Each worker uses `max(1, cores // jobs)` threads, and never more than this process does. A worker ends with this
    process, however that ends.

    Args:
        jobs: calls at a time; 1 runs them in this process.

    Raises:
        ValueError: `jobs` is no whole number above 0.

    >>> Processes(jobs=1).run([lambda attempt: "a", lambda attempt: attempt], ["first", "second"])
    ['a', 0]
    """

    def __init__(self, jobs: int = 1) -> None:
        self.jobs = _whole(jobs)

    def run(self, calls: Sequence[Callable[[int], T]], names: Sequence[str], told: Told | None = None) -> list[T]:
        """See `Launcher.run`."""
        _check_names(calls, names)
        if self.jobs > 1:
            return _supervise(_LocalPool(self.jobs), calls, names, told)
        results = []
        for call, name in zip(calls, names, strict=True):
            results.append(call(0))
            if told is not None:
                told(name)
        return results


class Ray:
    """Calls run as tasks of a Ray cluster; needs `pip install 'labelproof[ray]'`.

    A cluster that is joined keeps running afterwards, one that was started here does not: this process stays connected
    as long as this object lives. Where it was connected to a cluster before, that one is used, and stays connected.
    Cores, and GPUs where the cluster has some, are shared out equally among the jobs; Ray's own retries are off.

    Args:
        address: `"auto"`, `"HOST:PORT"` or `"ray://HOST:PORT"` of a cluster to join; None starts one on this machine.
        jobs: calls at a time; by default one per GPU of the cluster, or one per core where it has none.

    Raises:
        ValueError: `jobs` is no whole number above 0, or `address` is of no known form.

    >>> Ray("auto", jobs=0)
    Traceback (most recent call last):
    ...
    ValueError: jobs=0 must lie in [1, inf)
    """

    def __init__(self, address: str | None = None, jobs: int | None = None) -> None:
        self.address = address
        self.jobs = None if jobs is None else _whole(jobs)
        if address not in {None, "auto"} and _host_port(str(address)) is None:
            raise ValueError(f"address={address!r} must be 'auto', 'HOST:PORT' or 'ray://HOST:PORT'")

    def run(self, calls: Sequence[Callable[[int], T]], names: Sequence[str], told: Told | None = None) -> list[T]:
        """See `Launcher.run`.

        Raises:
            ImportError: Ray is not installed.
            ConnectionError: no cluster answers at `address`.
        """
        _check_names(calls, names)
        try:
            import ray
        except ImportError as error:
            raise ImportError("the launcher 'ray' needs Ray: pip install 'labelproof[ray]'") from error
        if not ray.is_initialized():
            _connect(ray, self.address)
            weakref.finalize(self, ray.shutdown)  # a procedure asks several times, and connecting takes seconds
        return _supervise(_RayPool(ray, self.jobs), calls, names, told)


def make_launcher(name: str = "processes", jobs: int | None = None, address: str | None = None) -> Launcher:
    """The launcher of that name.

    Args:
        name: `"processes"` or `"ray"`.
        jobs: calls at a time; by default 1 for processes, and for Ray what its cluster has room for.
        address: of a Ray cluster to join.

    Raises:
        ValueError: an unknown name, fewer jobs than 1, or an address without Ray.

    >>> make_launcher("process")
    Traceback (most recent call last):
    ...
    ValueError: unknown launcher 'process': did you mean 'processes'? There are: processes, ray
    """
    kind = lookup("launcher", name, {"processes": "processes", "ray": "ray"})
    if kind == "ray":
        return Ray(address, jobs)
    if address is not None:
        raise ValueError(f"address={address!r} belongs to launcher='ray': give that, or leave the address out")
    return Processes(1 if jobs is None else jobs)


def launcher_for(name: str = "processes", jobs: int | None = None, address: str | None = None) -> Launcher | None:
    """`make_launcher`, or None where its calls would run in this process one after another, as they do without one."""
    here = name == "processes" and jobs in {None, 1} and address is None
    return None if here else make_launcher(name, jobs, address)


def _whole(jobs: int) -> int:
    in_range("jobs", jobs, 1, float("inf"), closed="left")
    if int(jobs) != jobs:
        raise ValueError(f"jobs={jobs!r} must be a whole number")
    return int(jobs)


def _check_names(calls: Sequence[Any], names: Sequence[str]) -> None:
    if len(calls) != len(names):
        raise ValueError(f"names has {len(names)} entries for {len(calls)} calls: each call needs one")


class _Warned(NamedTuple):
    category: type[Warning]
    text: str
    filename: str
    lineno: int
    module: str


@dataclass
class _Outcome:
    """What comes back from a worker."""

    value: Any = None
    error: BaseException | None = None
    trace: str = ""
    warned: list[_Warned] = field(default_factory=list)


class _WorkerError(Exception):
    """Stands as the cause of an error that was raised in a worker, whose own traceback stayed there."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _work(work: bytes, threads: int) -> bytes:
    """Run one pickled call; runs in the worker.

    Bytes go in and out, so that nobody's own way of handing over tensors (file descriptors, shared memory) comes in.
    """
    torch.set_num_threads(threads)
    outcome = _Outcome()
    seen: dict[tuple[type[Warning], str], tuple[str, int]] = {}

    def keep(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
        seen.setdefault((category, str(message)), (filename, lineno))

    with warnings.catch_warnings():
        warnings.simplefilter("always")  # whether one is shown is for the filters of the process that asked
        warnings.showwarning = keep
        try:
            call, attempt = pickle.loads(work)
            outcome.value = call(attempt)
        except BaseException as error:
            outcome.error, outcome.trace = _portable(error), traceback.format_exc()
    outcome.warned = [_Warned(c, text, file, line, _module(file)) for (c, text), (file, line) in seen.items()]
    try:
        return cloudpickle.dumps(outcome)  # type: ignore[no-any-return]
    except Exception as error:
        refused = TypeError(f"its result cannot be sent back from the worker: {error}; run it with jobs=1")
        return cloudpickle.dumps(_Outcome(error=refused))  # type: ignore[no-any-return]


def _module(file: str) -> str:
    """What filters know the file by; without a name of the module, Python would drop the warning."""
    loaded = list(sys.modules.items())
    return next((name for name, m in loaded if getattr(m, "__file__", None) == file), Path(file).stem)


def _portable(error: BaseException) -> BaseException:
    """The error, or its text where it does not survive pickling (constructors of several arguments)."""
    try:
        pickle.loads(cloudpickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _enter(parent: int) -> None:
    """Prepare a worker process: the parent alone hears Ctrl-C, and no worker outlives it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: int) -> None:
    # a parent that was killed cannot stop its workers, and a resumed run would train in the same folders beside them
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


class _DeadWorkerError(Exception):
    """The worker of a call is gone; the argument says what is known of the reason, in a few words."""


class _Pool(Protocol):
    """A back end: runs pickled calls, `jobs` at a time."""

    jobs: int

    def begin(self, work: bytes, name: str) -> Any:
        """Begin a call; what is returned stands for it."""

    def first(self, running: list[Any]) -> Any:
        """Wait until one of them has ended."""

    def outcome(self, ended: Any) -> bytes:
        """What it came to; raises `_DeadWorkerError`."""

    def stop(self) -> None:
        """Kill what still runs and let the workers go."""


def _supervise(
    pool: _Pool, calls: Sequence[Callable[[int], T]], names: Sequence[str], told: Told | None = None
) -> list[T]:
    """Run the calls on a back end; see `Launcher.run`."""
    results: dict[int, T] = {}
    errors: dict[int, BaseException] = {}
    shown: set[tuple[type[Warning], str]] = set()
    waiting = deque((i, 0) for i in range(len(calls)))
    running: dict[Any, tuple[int, int]] = {}
    try:
        while True:
            while waiting and not errors and len(running) < pool.jobs:
                i, attempt = waiting.popleft()
                try:
                    work = cloudpickle.dumps((calls[i], attempt))
                except Exception as error:
                    errors[i] = TypeError(f"{names[i]} cannot be sent to a worker: {error}; run it with jobs=1")
                    continue
                running[pool.begin(work, names[i])] = i, attempt
            if not running:
                break
            ended = pool.first(list(running))
            i, attempt = running.pop(ended)
            try:
                results[i] = _unpack(pool.outcome(ended), shown, errors, i)
            except _DeadWorkerError as death:
                if attempt + 1 == ATTEMPTS:
                    errors[i] = OSError(
                        f"{names[i]}: its worker died {ATTEMPTS} times ({death}). Most often the machine had too "
                        f"little memory for {pool.jobs} at a time: try fewer jobs"
                    )
                elif not errors:
                    again = f"trying again (attempt {attempt + 2} of {ATTEMPTS})"
                    warnings.warn(f"{names[i]}: its worker died ({death}); {again}", RuntimeWarning, stacklevel=3)
                    waiting.appendleft((i, attempt + 1))
                continue
            if i not in errors and told is not None:
                told(names[i])
    finally:
        pool.stop()
    if errors:
        raise errors[min(errors)]
    return [results[i] for i in range(len(calls))]


def _unpack(work: bytes, shown: set[tuple[type[Warning], str]], errors: dict[int, BaseException], i: int) -> Any:
    """The value in an outcome; its error goes to `errors`, its warnings to this process, each once in a run."""
    try:
        outcome: _Outcome = pickle.loads(work)
        for category, text, filename, lineno, module in outcome.warned:
            if (category, text) not in shown:
                shown.add((category, text))
                warnings.warn_explicit(text, category, filename, lineno, module)
    except Exception as error:  # a filter that makes errors of warnings; a class that is not to be found here
        errors[i] = error
        return None
    if outcome.error is not None:
        outcome.error.__cause__ = _WorkerError(outcome.trace) if outcome.trace else None
        errors[i] = outcome.error
    return outcome.value


class _LocalPool:
    """A pool of one process for each job: loky kills all workers of a pool of which one dies."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.threads = max(1, min(cpu_count() // jobs, torch.get_num_threads()))
        self.idle: list[ProcessPoolExecutor] = []
        self.busy: dict[Future[bytes], ProcessPoolExecutor] = {}

    def begin(self, work: bytes, name: str) -> Future[bytes]:
        while True:
            worker = self.idle.pop() if self.idle else self._new()
            try:
                future: Future[bytes] = worker.submit(_work, work, self.threads)
            except BrokenProcessPool:  # it died while it had nothing to do
                continue
            self.busy[future] = worker
            return future

    def _new(self) -> ProcessPoolExecutor:
        # loky replaces workers that have grown, with a warning; those that train grow
        env = {"OMP_NUM_THREADS": str(self.threads), "LOKY_MAX_MEMORY_LEAK_SIZE": "1e18"}
        return ProcessPoolExecutor(1, initializer=_enter, initargs=(os.getpid(),), env=env)

    def first(self, running: list[Future[bytes]]) -> Future[bytes]:
        return next(iter(wait(running, return_when=FIRST_COMPLETED).done))

    def outcome(self, ended: Future[bytes]) -> bytes:
        worker = self.busy.pop(ended)
        try:
            outcome = ended.result()
        except BrokenProcessPool as error:
            worker.shutdown(kill_workers=True)
            code = re.search(r"SIG\w+\(-?\d+\)|EXIT\(\d+\)", str(error))
            raise _DeadWorkerError(code.group() if code else "for an unknown reason") from error
        self.idle.append(worker)
        return outcome

    def stop(self) -> None:
        for worker in (*self.busy.values(), *self.idle):
            worker.shutdown(kill_workers=True)


def _host_port(address: str) -> tuple[str, int] | None:
    try:
        parts = urlsplit(f"//{address.removeprefix('ray://')}")
        return (parts.hostname, parts.port) if parts.hostname and parts.port and not parts.path else None
    except ValueError:  # a port that is no number
        return None


def _connect(ray: ModuleType, address: str | None) -> None:
    """Start or join a cluster, with as little on the terminal as Ray allows."""
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", include_dashboard=False, **quiet)
        return
    asked = (os.environ.get("RAY_ADDRESS") or address) if address == "auto" else address
    where = _host_port(asked)
    try:
        if where is not None:
            _reach(ray, *where)
        # where nobody answers, Ray tries for ten minutes and then ends the process: let that be another one
        probe = [sys.executable, "-c", f"import ray; ray.init({asked!r}, logging_level='ERROR', log_to_driver=False)"]
        subprocess.run(probe, capture_output=True, text=True, timeout=PATIENCE, check=True)
        ray.init(address=asked, **quiet)
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        remedy = "start one with `ray start --head`, or give the address of one that runs"
        why = said[said.rfind("\n") + 1 :]
        raise ConnectionError(f"no Ray cluster answers at address={asked!r}: {remedy} ({why})") from error


def _reach(ray: ModuleType, host: str, port: int) -> None:
    """Raise OSError where nothing listens there. Ray takes this machine's loopback names for its address outside."""
    if host in {"localhost", "127.0.0.1", "::1"}:
        host = ray.util.get_node_ip_address()
    socket.create_connection((host, port), timeout=5).close()


class _RayPool:
    """Ray tasks that share the cluster's cores and GPUs equally."""

    def __init__(self, ray: ModuleType, jobs: int | None) -> None:
        self.ray = ray
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        nodes = [n for n in nodes if n.get("GPU", 0)] or nodes
        cores, gpus = ([float(n.get(kind, 0)) for n in nodes] for kind in ("CPU", "GPU"))
        self.jobs = jobs or max(1, int(sum(gpus) or sum(cores)))
        per_gpu = _share(gpus, [float("inf")] * len(nodes), self.jobs)
        room = [g / per_gpu if per_gpu else float("inf") for g in gpus]
        per_core = _share(cores, room, self.jobs)
        self.task = partial(ray.remote(_work).options, num_cpus=per_core, num_gpus=per_gpu, max_retries=0)
        self.threads = max(1, int(per_core))
        self.running: set[Any] = set()

    def begin(self, work: bytes, name: str) -> Any:
        ref = self.task(name=name).remote(work, self.threads)
        self.running.add(ref)
        return ref

    def first(self, running: list[Any]) -> Any:
        return self.ray.wait(running, num_returns=1)[0][0]

    def outcome(self, ended: Any) -> bytes:
        errors = self.ray.exceptions
        dead = (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError, errors.LocalRayletDiedError)
        self.running.discard(ended)
        try:
            out: bytes = self.ray.get(ended)
        except (*dead, errors.ObjectLostError) as error:
            raise _DeadWorkerError(f"{type(error).__name__}: {str(error).split('. ')[0].strip()}") from error
        except errors.RayTaskError as error:  # raised outside the call: all errors of the call come as an outcome
            need = "the same labelproof and Python must be installed on every machine of the cluster"
            return cloudpickle.dumps(_Outcome(error=RuntimeError(f"Ray could not run it: {need}\n{error}")))  # type: ignore[no-any-return]
        return out

    def stop(self) -> None:
        for ref in self.running:
            self.ray.cancel(ref, force=True)


def _share(have: Sequence[float], room: Sequence[float], jobs: int) -> float:
    """The largest equal share of which as many as `jobs` fit on the machines.

    A job must fit on one machine, and Ray gives out whole cores and GPUs or parts of one.

    Args:
        have: cores or GPUs of each machine.
        room: how many jobs each machine can take for other reasons.
        jobs: at a time.

    Returns:
        A whole number, or 1/k in Ray's resolution of 0.0001; 0 where there is nothing to share.

    >>> _share([8, 4], [9, 9], 3), _share([2], [9], 3), _share([0, 0], [9, 9], 3)
    (4, 0.5, 0.0)
    """
    for share in range(int(max(have, default=0)), 0, -1):
        if sum(min(r, h // share) for h, r in zip(have, room, strict=True)) >= jobs:
            return share
    for k in range(2, jobs + 1):
        if sum(min(r, h * k) for h, r in zip(have, room, strict=True)) >= jobs:
            return 10_000 // k / 10_000
    return 0.0
