"""What a launcher is put through. The same for all of them; as a program, on a Ray cluster that it joins."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import torch

from labelproof.engine import launchers
from labelproof.engine.launchers import Launcher, Ray


class Awkward(Exception):
    """Cannot be unpickled: its constructor takes more than its message."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(f"{text} {code}")


def until(path: Path, seconds: float = 60) -> None:
    """Wait for a file."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} did not come about"
        time.sleep(0.02)


def caught(run: Callable[[], Any]) -> tuple[Any, str, str, list[tuple[str, str, str]]]:
    """What it gave; the error's type and text; its cause; its warnings."""
    out, error, cause = None, "", ""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        try:
            out = run()
        except Exception as e:
            error, cause = f"{type(e).__name__}: {e}", str(e.__cause__)
    return out, error, cause, [(w.category.__name__, str(w.message), Path(w.filename).name) for w in shown]


def plain(launcher: Launcher, folder: Path) -> Any:
    told: list[str] = []

    def job(i: int) -> Callable[[int], tuple[int, int, int, int]]:
        return lambda attempt: (10 * i, attempt, os.getpid(), torch.get_num_threads())

    return launcher.run([job(i) for i in range(5)], list("abcde"), told.append), told, os.getpid()


def killed(launcher: Launcher, folder: Path) -> Any:
    """Job 1 is killed once, while job 0 runs beside it."""

    def job(i: int) -> Callable[[int], str]:
        def call(attempt: int) -> str:
            (folder / f"{i}-{attempt}-{os.getpid()}").touch()
            if (i, attempt) == (1, 0):
                until(folder / "0 runs")
                os.kill(os.getpid(), signal.SIGKILL)
            if i == 0:
                (folder / "0 runs").touch()
                until(folder / "1 came back")
            if (i, attempt) == (1, 1):
                (folder / "1 came back").touch()
            return f"{i} at {attempt}"

        return call

    result = caught(lambda: launcher.run([job(i) for i in range(4)], [f"half-{i}" for i in range(4)]))
    return result, sorted(p.name.rsplit("-", 1)[0] for p in folder.iterdir() if "-" in p.name)


def gives_up(launcher: Launcher, folder: Path) -> Any:
    def victim(attempt: int) -> None:
        (folder / str(attempt)).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    return caught(lambda: launcher.run([victim], ["fold-3"])), sorted(p.name for p in folder.iterdir())


def raises(launcher: Launcher, folder: Path) -> Any:
    """Job 1 raises first, job 0 raises while it is let finish, the others are never begun."""

    def job(i: int) -> Callable[[int], None]:
        def call(attempt: int) -> None:
            (folder / f"begun-{i}").touch()
            if i == 1:
                until(folder / "begun-0")
                raise ValueError("the second")
            if i == 0:
                until(folder / "begun-1")
                time.sleep(0.5)
                raise KeyError("the first")

        return call

    told: list[str] = []
    result = caught(lambda: launcher.run([job(i) for i in range(5)], list("abcde"), told.append))
    return result, sorted(p.name for p in folder.iterdir()), told


def awkward(launcher: Launcher, folder: Path) -> Any:
    def stubborn(attempt: int) -> None:
        raise Awkward("no", 7)

    lock = threading.Lock()
    return {
        "error": caught(lambda: launcher.run([stubborn], ["a"])),
        "result": caught(lambda: launcher.run([lambda attempt: threading.Lock()], ["b"])),
        "call": caught(lambda: launcher.run([lambda attempt: lock.locked()], ["c"])),
    }


def warned(launcher: Launcher, folder: Path) -> Any:
    def job(i: int) -> Callable[[int], int]:
        def call(attempt: int) -> int:
            for _ in range(3):
                warnings.warn("few samples", UserWarning, stacklevel=1)
            warnings.warn(f"odd job {i}", DeprecationWarning, stacklevel=1)
            return i

        return call

    jobs, names = [job(i) for i in range(3)], list("abc")

    def strict() -> None:
        warnings.simplefilter("error", DeprecationWarning)
        launcher.run(jobs, names)

    return {"always": caught(lambda: launcher.run(jobs, names)), "error": caught(strict)}


def trains(launcher: Launcher, folder: Path) -> Any:
    """Two trainings on one thread: what their networks and records came to."""
    from labelproof.engine.fitted import Fitted  # here, because each worker of the other scenarios would load it too
    from labelproof.engine.stages import fit
    from labelproof.methods import METHODS
    from tests.toy import blobs, factory, settings

    data = blobs(97, flips=0.3)

    def training(seed: int) -> Callable[[int], Fitted]:
        def call(attempt: int) -> Fitted:
            torch.set_num_threads(1)
            return fit(METHODS["elr"](), factory(data, dropout=0.2), data, settings(seed=seed))

        return call

    fitted = launcher.run([training(0), training(1)], ["seed-0", "seed-1"])
    return [
        {
            "nets": f.nets.state_dict(),
            "method": f.method.state_dict(),
            "predicted": torch.from_numpy(f.predict(data.x)),
            "shared": any(p.is_shared() for p in f.nets.parameters()),
        }
        for f in fitted
    ]


SCENARIOS = {f.__name__: f for f in (plain, killed, gives_up, raises, awkward, warned, trains)}


def everything(launcher: Launcher, folder: Path) -> dict[str, Any]:
    """What came of each scenario."""
    came = {}
    for name, scenario in SCENARIOS.items():
        (folder / name).mkdir(parents=True)
        came[name] = scenario(launcher, folder / name)
    return came


def main(address: str, other: str, folder: Path) -> None:
    import ray

    begun = time.perf_counter()
    came: dict[str, Any] = {"default jobs": Ray(address).run([lambda attempt: torch.get_num_threads()], ["a"])}
    came["seconds"] = time.perf_counter() - begun
    came["connected after"] = ray.is_initialized()
    begun = time.perf_counter()
    came["nobody there"] = caught(lambda: Ray(other).run([lambda attempt: 0], ["a"]))[1]
    came["seconds until refused"] = time.perf_counter() - begun
    token, launchers.PATIENCE = os.environ["RAY_AUTH_TOKEN"], 5
    os.environ["RAY_AUTH_TOKEN"] = "0" * 64
    came["another token"] = caught(lambda: Ray(address).run([lambda attempt: 0], ["a"]))[1]
    os.environ["RAY_AUTH_TOKEN"], launchers.PATIENCE = token, 60
    print("quiet", flush=True)  # until here: of workers that die Ray itself writes a line
    ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    came["one job"] = Ray(address, jobs=1).run([lambda attempt: torch.get_num_threads()], ["a"])
    came["scenarios"] = everything(Ray(address, jobs=2), folder / "ray")
    came["still connected"] = ray.is_initialized()
    (folder / "came").write_bytes(cloudpickle.dumps(came))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
