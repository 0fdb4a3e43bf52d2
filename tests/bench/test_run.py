"""Runs in processes of their own: killed, stopped, two at a time, failing, in folders that cannot be written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from loky import cpu_count

import labelproof
from labelproof.bench import results, run
from labelproof.recipes.suites import Suite, load_suite
from tests.bench.made import leave, small

LABELPROOF = [sys.executable, "-m", "labelproof"]
#: Long enough to be killed in the middle, short enough to wait for.
LONG = """
title = "long"
seeds = 1

[[grid]]
name = "digits"
data = "digits"
noises = ["symmetric:0.4"]
rows = ["ce", "elr"]
train = { network = "mlp", epochs = 12, batch_size = 8, lr = 0.01, device = "cpu", early_stopping = true }
"""
CE = "ce-digits-sym40-long"


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own; runs lie in runs/bench below it."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def long(tmp_path: Path) -> Suite:
    return small(tmp_path, LONG, "long")


def begin(*words: str, **env: str) -> subprocess.Popen[str]:
    """`labelproof bench run WORDS`, in a session of its own."""
    return subprocess.Popen(
        [*LABELPROOF, "bench", "run", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, **env},
    )


def said(process: subprocess.Popen[str], code: int = 0) -> str:
    out = process.communicate(timeout=180)[0]
    assert process.returncode == code, out
    return " ".join(out.split())


def bench(*words: str, code: int = 0, **env: str) -> str:
    return said(begin(*words, **env), code)


def trainings(folder: Path) -> list[int]:
    """Processes that train below a folder."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = each.read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if b"train" in words and any(w.startswith(f"--out={folder}".encode()) for w in words):
            found.append(int(each.parent.name))
    return found


def until(what: Any, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def figures(path: Path) -> dict[str, Any]:
    made = json.loads(path.read_text())
    return {key: made[key] for key in ("metrics", "list", "split", "noise", "settings", "train")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "long.toml").write_text(LONG)
    words = ["bench", "run", "long.toml", "--results", "results"]
    subprocess.run([*LABELPROOF, *words], cwd=folder, check=True, capture_output=True)
    assert sorted(p.name for p in (folder / "runs" / "bench").glob("*") if p.suffix != ".lock") == []
    return {p.name: json.loads(p.read_text()) for p in (folder / "results").iterdir()}


def test_what_a_run_leaves(undisturbed: dict[str, Any]) -> None:
    assert set(undisturbed) == {f"{CE}-seed0.json", "elr-digits-sym40-long-seed0.json"}
    made, other = undisturbed.values()
    assert made["noise"] == other["noise"]
    assert made["noise"]["kind"] == "symmetric"
    assert len(made["noise"]["hash"]) == 64
    assert made["split"] == other["split"]
    assert made["labelproof"] == labelproof.__version__
    assert made["settings"]["epochs"] == 12
    assert made["hardware"]["cores"] == os.cpu_count()
    assert {"python", "torch", "numpy"} <= made["versions"].keys()
    assert made["resumed"] is False
    assert 0.5 < made["metrics"]["test_accuracy"] <= made["metrics"]["test_accuracy_best"] <= 1
    assert 0.5 < made["metrics"]["test_accuracy_at_best_val"] <= made["metrics"]["test_accuracy_best"]
    assert {"average_precision", "precision_at_wrong", "noise_rate", "wrong"} <= made["list"].keys()
    threads = made["hardware"]["threads"]
    assert 1 < made["cpu_seconds"] < 60
    assert made["seconds"] * 0.2 < made["cpu_seconds"] + 1  # whole process beside training alone
    assert made["cpu_seconds"] < threads * 120
    assert 150 < made["peak_memory_mb"] < 3000  # torch alone takes the first


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize(("how", "jobs"), [("kill", 2), ("child", 1), ("ctrl-c", 2)])
def test_killed_runs_go_on(how: str, jobs: int, long: Suite, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    work = tmp_path / "runs" / "bench"
    words = ("long.toml", "--results", "results", "--jobs", str(jobs))
    first = begin(*words)
    until(lambda: list(work.glob("*/last.ckpt")))
    children = trainings(tmp_path)
    assert len(children) == jobs
    if how == "child":
        os.kill(children[0], signal.SIGKILL)
        told = said(first, code=1)
        assert "1 of 2 runs failed" in told
        assert re.search(rf"{CE}-seed0\W.*(-9|signal 9|SIGKILL)", told)
        assert not (tmp_path / "results" / f"{CE}-seed0.json").exists()
        assert (tmp_path / "results" / "elr-digits-sym40-long-seed0.json").exists()
    else:
        signals = {"kill": signal.SIGKILL, "ctrl-c": signal.SIGINT}
        if how == "ctrl-c":  # a terminal tells the whole group
            os.killpg(first.pid, signals[how])
        else:
            os.kill(first.pid, signals[how])
        told = first.communicate(timeout=60)[0]
        assert first.returncode != 0
        assert "Traceback" not in told
        if how == "ctrl-c":
            assert "stopped" in told
        until(lambda: not trainings(tmp_path), 5)  # nothing goes on unwatched
        assert not list((tmp_path / "results").glob("*.json"))
    begun = [p.parent.name for p in work.glob("*/last.ckpt")]
    assert begun
    bench(*words)
    for name, whole in undisturbed.items():
        path = tmp_path / "results" / name
        made = json.loads(path.read_text())
        assert made["resumed"] is (path.stem in begun)
        assert made["hardware"]["threads"] <= max(1, cpu_count() // jobs)
        made_anew = figures(path)
        assert made_anew.pop("list") == pytest.approx(whole["list"], rel=1e-12)  # the noise rate's last bit may differ
        assert made_anew == {key: whole[key] for key in made_anew}
        assert "--resume" not in made["command"], "the command beside a result can be typed anywhere"
    assert not [p for p in work.iterdir() if p.suffix != ".lock"]


@pytest.mark.slow
def test_two_at_once_share_the_work(long: Suite, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    words = ("long.toml", "--results", "results")
    both = [begin(*words), begin(*words)]
    told = [said(each) for each in both]
    assert any("another process is making it" in each or "0 of 2" in each for each in told) or all(told)
    found = results.read(tmp_path / "results", long.recipes)
    assert not found.refused
    assert len(found.runs) == 2
    for name, whole in undisturbed.items():
        assert figures(tmp_path / "results" / name)["metrics"] == whole["metrics"]


def test_what_was_begun_under_other_settings_is_begun_anew(long: Suite, tmp_path: Path) -> None:
    """A run was killed, then its recipe was changed."""
    small(tmp_path, LONG.replace("epochs = 12", "epochs = 1").replace('"ce", "elr"', '"ce"'), "short")
    words = [
        "train",
        "digits",
        "--network=mlp",
        "--epochs=2",
        "--batch-size=8",
        "--device=cpu",
        "--method=ce",
        "--quiet",
    ]
    begun = tmp_path / "runs" / "bench" / "ce-digits-sym40-short-seed0"
    subprocess.run([*LABELPROOF, *words, "--noise=symmetric:0.4", "--out", begun], check=True, capture_output=True)
    assert (begun / "last.ckpt").exists()
    bench("short.toml", "--results", "results")
    made = json.loads((tmp_path / "results" / "ce-digits-sym40-short-seed0.json").read_text())
    assert (made["settings"]["epochs"], made["resumed"]) == (1, False)


FAILING = """
title = "failing"
seeds = 1

[[grid]]
name = "gone"
data = "gone.csv"
noises = ["symmetric:0.4"]
rows = ["ce"]
train = { network = "mlp", epochs = 1, device = "cpu" }

[[grid]]
name = "image"
data = "mnist"
noises = ["human"]
rows = ["ce"]
train = { network = "mlp", epochs = 1, device = "cpu" }

[[grid]]
name = "digits"
data = "digits"
noises = ["symmetric:0.4"]
rows = ["ce"]
train = { network = "mlp", epochs = 1, device = "cpu" }
"""


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_what_fails_does_not_stop_the_others(jobs: str, tmp_path: Path) -> None:
    small(tmp_path, FAILING, "failing")
    (tmp_path / "empty").mkdir()
    told = bench("failing.toml", "--results", "results", "--data-dir", "empty", "--jobs", jobs, code=1)
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["ce-digits-sym40-failing-seed0.json"]
    assert "2 of 3 runs failed" in told
    at_once = re.findall(r"\[\d/3\] (\S+?)(: no result, see \S+\.log)?, \d+ minutes left", told)
    assert sorted(at_once) == [
        ("ce-digits-sym40-failing-seed0", ""),
        ("ce-gone-sym40-failing-seed0", ": no result, see runs/bench/ce-gone-sym40-failing-seed0.log"),
        ("ce-image-human-failing-seed0", ": no result, see runs/bench/ce-image-human-failing-seed0.log"),
    ]
    assert re.search(r"ce-gone-sym40-failing-seed0\W.*gone\.csv", told)
    assert re.search(r"ce-image-human-failing-seed0\W.*(--data-dir|LABELPROOF_DATA)", told), "how to get it"
    assert "Traceback" not in told
    log = tmp_path / "runs" / "bench" / "ce-gone-sym40-failing-seed0.log"
    assert "gone.csv" in log.read_text()
    assert not (tmp_path / "runs" / "bench" / "ce-gone-sym40-failing-seed0").exists()


def test_a_folder_that_cannot_be_written_is_told_first(long: Suite, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in ("file/results", "/proc/results"):
        told = bench("long.toml", "--results", place, code=2)
        assert place in told
        assert "error" in told
        assert "Traceback" not in told
    (tmp_path / "runs").write_text("mine")
    assert "runs" in bench("long.toml", "--results", "results", code=2)
    assert (tmp_path / "runs").read_text() == "mine"


def test_a_recipe_without_its_encoder_is_not_trained_from_scratch(tmp_path: Path) -> None:
    text = """
title = "needs one"
citation = "ourselves"
source = "none"
needs = "an encoder of ours"
[expected]
mean = 90.0
metric = "test_accuracy"
evidence = "P"
[train]
data = "digits"
method = "ce"
network = "mlp"
epochs = 1
device = "cpu"
"""
    (tmp_path / "needy.toml").write_text(text)
    told = bench("needy.toml", "--results", "results", "--seeds", "1", code=1)
    assert "needs an encoder of ours: give --encoder FILE" in told
    assert not list((tmp_path / "results").glob("*.json"))


def test_features_are_learned_first_and_once(tmp_path: Path) -> None:
    text = """
title = "features first"
citation = "ourselves"
source = "none"
[pretrain]
network = "mlp"
epochs = 1
batch_size = 256
device = "cpu"
[train]
data = "digits"
method = "{method}"
network = "mlp"
epochs = 1
device = "cpu"
"""
    for method in ("ce", "gce"):
        (tmp_path / f"{method}-first.toml").write_text(text.replace("{method}", method))
    bench("ce-first.toml", "--results", "results", "--seeds", "1")
    encoders = list((tmp_path / "runs" / "bench").glob("encoder-*.safetensors"))
    assert len(encoders) == 1
    made = encoders[0].stat().st_mtime_ns
    bench("gce-first.toml", "--results", "results", "--seeds", "1")
    assert [p.stat().st_mtime_ns for p in (tmp_path / "runs" / "bench").glob("encoder-*.safetensors")] == [made]
    for method in ("ce", "gce"):
        result = json.loads((tmp_path / "results" / f"{method}-first-seed0.json").read_text())
        assert result["pretrain"]["epochs"] == 1
        assert "--encoder" in result["command"]


def test_dry_prints_what_can_be_typed(long: Suite, tmp_path: Path) -> None:
    leave(tmp_path / "results", long, "elr-digits-sym40-long", 0)
    told = subprocess.run(
        [*LABELPROOF, "bench", "run", "long.toml", "--results", "results", "--dry"],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    lines = [line for line in told if line.startswith("labelproof train ")]
    assert len(lines) == 1  # the other is there
    assert not (tmp_path / "runs").exists()
    words = lines[0].replace("--epochs=12", "--epochs=1").split()[1:]
    subprocess.run([*LABELPROOF, *words, "--out", "mine", "--quiet"], check=True, capture_output=True)
    record = json.loads((tmp_path / "mine" / "run.json").read_text())
    assert record["data"]["noise"]["kind"] == "symmetric"
    assert record["method"]["name"] == "ce"


def test_the_child_is_the_same_labelproof(long: Suite, tmp_path: Path) -> None:
    """A file of that name where the command is typed is not taken for the library."""
    (tmp_path / "labelproof.py").write_text("raise SystemExit('another labelproof')")
    (tmp_path / "json.py").write_text("raise SystemExit('another json')")
    text = LONG.replace("epochs = 12", "epochs = 1").replace('"ce", "elr"', '"ce"')
    small(tmp_path, text, "short")
    script = Path(sys.executable).parent / "labelproof"
    if not script.exists():
        pytest.skip("the command is not installed beside this interpreter")
    done = subprocess.run(
        [script, "bench", "run", "short.toml", "--results", "results"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = json.loads((tmp_path / "results" / "ce-digits-sym40-short-seed0.json").read_text())
    assert made["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))


def test_time_is_the_childs(tmp_path: Path) -> None:
    script = "import time\nend = time.process_time() + 0.7\nwhile time.process_time() < end: pass\ntime.sleep(0.5)"
    with (tmp_path / "log").open("wb") as log:
        status, used = run._measured([sys.executable, "-c", script], log)
    assert status == 0
    assert 0.7 <= used["cpu_seconds"] < 1.1  # sleeping costs nothing
    with (tmp_path / "log").open("wb") as log:
        assert run._measured([sys.executable, "-c", "import sys; print('x'); sys.exit(3)"], log)[0] == 3
    assert (tmp_path / "log").read_text() == "x\n"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_parent_does_not_count() -> None:
    """Linux hands the peak of a parent down to what it starts; a run is told for its own."""
    child = (
        "from labelproof.engine.settings import Settings\n"
        "from labelproof.runs import _peak_memory\n"
        "before = _peak_memory(Settings(device='cpu'))\n"
        "kept = bytearray(b'x') * (300 * 2**20)\n"
        "print(before, _peak_memory(Settings(device='cpu')))\n"
    )
    parent = (
        "import subprocess, sys\n"
        "kept = bytearray(b'x') * (1500 * 2**20)\n"
        f"subprocess.run([sys.executable, '-c', {child!r}], check=True)\n"
    )
    out = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True).stdout
    before, after = map(float, out.split())
    assert 100 < before < 1000
    assert 250 < after - before < 350


def test_where_the_system_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no wait4."""
    monkeypatch.delattr(os, "wait4")
    with (tmp_path / "log").open("wb") as log:
        assert run._measured([sys.executable, "-c", "raise SystemExit(3)"], log) == (3, {})


def test_seeds_come_one_after_another(tmp_path: Path) -> None:
    suite = load_suite("cpu")
    jobs = run.todo(suite.recipes, 2, tmp_path)
    assert [job.seed for job in jobs] == [0] * len(suite.recipes) + [1] * len(suite.recipes)
    assert len({job.name for job in jobs}) == len(jobs)


@pytest.mark.slow
def test_ray_runs_them_too(long: Suite, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    small(tmp_path, LONG.replace("epochs = 12", "epochs = 1"), "short")
    bench("short.toml", "--results", "results", "--launcher", "ray", "--jobs", "2")
    assert len(list((tmp_path / "results").glob("*.json"))) == 2
