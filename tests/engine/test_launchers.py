"""Launchers with real processes and a real Ray cluster: order, deaths, errors, warnings, threads, the same bits."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from labelproof.engine import launchers
from labelproof.engine.launchers import Processes, Ray, _share, make_launcher
from tests.engine import launched
from tests.toy import same

REPO = Path(__file__).resolve().parents[2]
BACK_ENDS = ["processes", "ray"]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return launched.everything(Processes(2), tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A head that listens on loopback alone and asks for a token; what the program `launched` found on it."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'labelproof[ray]'")
    psutil = pytest.importorskip("psutil", reason="psutil, with which the cluster is stopped, is not installed")
    folder, short = tmp_path_factory.mktemp("ray"), Path(tempfile.mkdtemp(prefix="lp", dir="/tmp"))  # for socket names
    env = {
        **os.environ,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray puts the address outside in the place of 127.0.0.1
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPO),
    }
    env.pop("RAY_ADDRESS", None)
    port, log = free_port(), folder / "head.log"
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus", "2"]
    command += ["--node-ip-address", "127.0.0.1", "--port", str(port), "--include-dashboard=false"]
    command += ["--ray-client-server-port", str(free_port()), "--dashboard-agent-listen-port", str(free_port())]
    command += ["--temp-dir", str(short), "--object-store-memory", str(100 * 2**20)]
    with log.open("w") as out:
        head = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT)
    family = []
    try:
        end = time.monotonic() + 60
        while "Ray runtime started" not in log.read_text():
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        program = [sys.executable, "-m", "tests.engine.launched", f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}"]
        done = subprocess.run(
            [*program, str(folder)], env=env, cwd=REPO, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        family = psutil.Process(head.pid).children(recursive=True)
        listening = {c.laddr.ip for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
        yield {
            **pickle.loads((folder / "came").read_bytes()),
            "alive after": head.poll() is None,
            "listening": listening,
            "output": done.stderr + done.stdout,
        }
    finally:
        family = family or (psutil.Process(head.pid).children(recursive=True) if head.poll() is None else [])
        head.kill()
        head.wait()
        for process in family:
            if process.is_running():
                process.kill()
        psutil.wait_procs(family, timeout=30)
        shutil.rmtree(short, ignore_errors=True)


@pytest.fixture(params=BACK_ENDS)
def came(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "processes":
        return request.getfixturevalue("processes")
    return request.getfixturevalue("cluster")["scenarios"]


def test_results_in_order_from_other_processes_on_their_share_of_the_cores(came: dict[str, Any]) -> None:
    results, told, parent = came["plain"]
    assert [r[0] for r in results] == [0, 10, 20, 30, 40]
    assert [r[1] for r in results] == [0] * 5
    assert parent not in {r[2] for r in results}
    assert [r[3] for r in results] == [1] * 5
    assert sorted(told) == list("abcde")


def test_a_killed_worker_is_replaced_and_nothing_else_runs_again(came: dict[str, Any]) -> None:
    (results, error, _, warned), runs = came["killed"]
    assert not error
    assert results == ["0 at 0", "1 at 1", "2 at 0", "3 at 0"]
    assert runs == ["0-0", "1-0", "1-1", "2-0", "3-0"]
    assert [w[0] for w in warned] == ["RuntimeWarning"]
    assert re.fullmatch(r"half-1: its worker died \(.+\); trying again \(attempt 2 of 3\)", warned[0][1])


def test_after_three_attempts_it_is_an_error_with_a_remedy(came: dict[str, Any]) -> None:
    (_, error, _, warned), attempts = came["gives_up"]
    assert re.match(
        r"OSError: fold-3: its worker died 3 times \(.+\).*little memory for 2 at a time: try fewer jobs", error
    )
    assert attempts == ["0", "1", "2"]
    assert [w[1][-16:] for w in warned] == ["(attempt 2 of 3)", "(attempt 3 of 3)"]


def test_the_first_error_in_order_once_those_that_run_have_ended(came: dict[str, Any]) -> None:
    (_, error, cause, _), begun, told = came["raises"]
    assert error == "KeyError: 'the first'"
    assert 'raise KeyError("the first")' in cause
    assert begun == ["begun-0", "begun-1"]
    assert not told


def test_what_cannot_travel_is_said(came: dict[str, Any]) -> None:
    awkward = came["awkward"]
    assert awkward["error"][1] == "RuntimeError: Awkward: no 7"
    assert re.match(r"TypeError: its result cannot be sent back from the worker: .*lock.*jobs=1", awkward["result"][1])
    assert re.match(r"TypeError: c cannot be sent to a worker: .*lock.*jobs=1", awkward["call"][1])


def test_warnings_of_workers_arrive_once_and_obey_the_filters_here(came: dict[str, Any]) -> None:
    _, error, _, warned = came["warned"]["always"]
    assert not error
    odd = [("DeprecationWarning", f"odd job {i}", "launched.py") for i in range(3)]
    assert sorted(warned) == [*odd, ("UserWarning", "few samples", "launched.py")]
    assert came["warned"]["error"][1].startswith("DeprecationWarning: odd job")


def test_the_same_bits_as_in_this_process(came: dict[str, Any], tmp_path: Path) -> None:
    here = launched.trains(Processes(1), tmp_path)
    for one, other in zip(here, came["trains"], strict=True):
        assert same(one, other)
        assert not other["shared"]  # nothing in /dev/shm that a worker could take with it
    assert not same(here[0]["nets"], here[1]["nets"])


def test_a_cluster_that_was_joined_goes_on(cluster: dict[str, Any]) -> None:
    assert not cluster["connected after"]
    assert cluster["still connected"]  # to the one that this process was connected to before
    assert cluster["alive after"]
    assert cluster["listening"] <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert cluster["output"].startswith("quiet")


def test_jobs_share_the_cores_of_the_cluster(cluster: dict[str, Any]) -> None:
    assert cluster["default jobs"] == [1]
    assert cluster["one job"] == [2]


def test_no_cluster_is_said_at_once(cluster: dict[str, Any]) -> None:
    assert re.match(
        r"ConnectionError: no Ray cluster answers at address='127.0.0.1:\d+': start one with `ray start --head`",
        cluster["nobody there"],
    )
    assert cluster["seconds until refused"] < 10


def test_a_cluster_that_does_not_let_us_in_is_said_too(cluster: dict[str, Any]) -> None:
    assert re.match(r"ConnectionError: no Ray cluster answers at .*ray start --head", cluster["another token"])


def test_one_job_at_a_time_stays_in_this_process() -> None:
    threads, seen, told = torch.get_num_threads(), [], []

    def note(attempt: int) -> int:  # what it writes to is here: it did not travel
        seen.append((attempt, os.getpid(), torch.get_num_threads()))
        return len(seen)

    assert Processes().run([note, note], ["a", "b"], told.append) == [1, 2]
    assert seen == [(0, os.getpid(), threads)] * 2
    assert told == ["a", "b"]

    def fail(attempt: int) -> int:
        raise KeyError("here")

    with pytest.raises(KeyError, match="here"):
        Processes().run([note, fail, note], ["a", "b", "c"], told.append)
    assert len(seen) == 3


@pytest.mark.parametrize(("cores", "own", "threads"), [(8, 8, 4), (8, 3, 3), (1, 4, 1)])
def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch, cores: int, own: int, threads: int) -> None:
    monkeypatch.setattr(launchers, "cpu_count", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: own)
    pool = launchers._LocalPool(2)
    monkeypatch.undo()
    assert pool.threads == threads
    asked = launchers.cloudpickle.dumps((lambda attempt: (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]), 0))
    try:
        run = pool.begin(asked, "a")
        assert pickle.loads(pool.outcome(pool.first([run]))).value == (threads, str(threads))
    finally:
        pool.stop()


VICTIM = """
import os, sys, time
from pathlib import Path
from labelproof.engine.launchers import Processes

folder = Path(sys.argv[1])

def endless(attempt):
    (folder / str(os.getpid())).touch()
    time.sleep(120)

Processes(2).run([endless, endless], ["a", "b"])
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_no_worker_outlives_its_parent(tmp_path: Path, sent: signal.Signals) -> None:
    folder = tmp_path / "pids"
    folder.mkdir()
    command = [sys.executable, "-c", VICTIM, str(folder)]
    parent = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        end = time.monotonic() + 60
        while len(pids := [int(p.name) for p in folder.iterdir()]) < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
        if sent == signal.SIGINT:
            os.killpg(parent.pid, sent)  # a terminal sends it to all of them
        else:
            parent.send_signal(sent)
        _, errors = parent.communicate(timeout=20)
        if sent == signal.SIGINT:
            assert errors.count("Traceback") == 1
            assert errors.rstrip().endswith("KeyboardInterrupt")
        end = time.monotonic() + 10
        while any(alive(pid) for pid in pids):
            assert time.monotonic() < end, "a worker is still there"
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)  # what a failure leaves behind


CALM = """
import os, signal, time
from labelproof.engine.launchers import Processes

signal.signal(signal.SIGINT, lambda *_: print("heard", flush=True))

def begun(attempt):
    print("begun", flush=True)
    time.sleep(2)
    return "done"

print(Processes(2).run([begun], ["a"]))
"""


def test_the_parent_alone_decides_what_ctrl_c_means() -> None:
    command = [sys.executable, "-c", CALM]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "begun\n"
    os.killpg(parent.pid, signal.SIGINT)
    out, _ = parent.communicate(timeout=60)
    assert out.split("\n")[:2] == ["heard", "['done']"]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("have", "room", "jobs", "share"),
    [
        ([8], [99], 2, 4),
        ([8, 8, 8, 8], [99] * 4, 3, 8),  # never more than one machine has
        ([8, 4], [99, 99], 3, 4),
        ([2], [99], 3, 0.5),  # a third of two GPUs would leave one job without
        ([1, 1, 1], [99] * 3, 4, 0.5),
        ([1], [99], 3, 0.3333),
        ([8, 2], [1, 3], 4, 0.5),  # the GPUs are on the second machine
        ([0], [99], 2, 0.0),
    ],
)
def test_equal_shares_that_fit(have: list[float], room: list[float], jobs: int, share: float) -> None:
    assert _share(have, room, jobs) == share


def test_make_launcher() -> None:
    default = make_launcher()
    assert isinstance(default, Processes)
    assert default.jobs == 1
    ray = make_launcher("ray", 3, "auto")
    assert isinstance(ray, Ray)
    assert (ray.jobs, ray.address) == (3, "auto")
    assert make_launcher("ray").jobs is None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "rey"}, r"unknown launcher 'rey': did you mean 'ray'\? There are: processes, ray"),
        ({"jobs": 0}, r"jobs=0 must lie in \[1, inf\)"),
        ({"name": "ray", "jobs": -1}, r"jobs=-1 must lie in \[1, inf\)"),
        ({"jobs": 1.5}, r"jobs=1\.5 must be a whole number"),
        ({"address": "auto"}, r"address='auto' belongs to launcher='ray'"),
        ({"name": "ray", "address": "here"}, r"address='here' must be 'auto', 'HOST:PORT' or 'ray://HOST:PORT'"),
        ({"name": "ray", "address": "here:x"}, r"address='here:x' must be 'auto'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_launcher(**options)


def test_each_call_needs_a_name() -> None:
    with pytest.raises(ValueError, match="names has 1 entries for 2 calls"):
        Processes(2).run([lambda attempt: 0] * 2, ["a"])
    with pytest.raises(ValueError, match="names has 1 entries for 0 calls"):
        Ray().run([], ["a"])
    assert Processes(2).run([], []) == []


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'labelproof\[ray\]'"):
        Ray().run([lambda attempt: 0], ["a"])
