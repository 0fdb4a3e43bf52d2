"""benchmarks/gpu.sh and pack_wheels.sh, on a CPU and with tiny settings: what they ask of a GPU machine is in place."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from labelproof.bench import results
from labelproof.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[1]
SUITE, PACK = (str(ROOT / "benchmarks" / name) for name in ("gpu.sh", "pack_wheels.sh"))
#: What the machine has by itself.
GIVEN = ("torch", "lightning", "numpy", "pandas", "pyarrow", "scikit-learn")
#: What is packed to run the tests there.
TESTING = ("pytest", "pytest-timeout", "hypothesis")

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")

TINY = """
title = "tiny"
citation = "none"
source = "none"

[train]
data = "digits"
method = "elr"
noise = "symmetric:0.4"
network = "mlp"
epochs = {epochs}
"""


class Suite:
    """Calls of gpu.sh that leave everything in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.work = folder, folder / "out", folder / "work"
        self.env = {
            **{k: v for k, v in os.environ.items() if k not in ("OUT", "PYTHONPATH")},
            "PYTHON": sys.executable,
            "WHEELS": str(folder / "wheels"),
            "SITE": str(folder / "site"),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
            "OMP_NUM_THREADS": "1",
        }

    def recipe(self, epochs: int = 2) -> Path:
        path = self.folder / "tiny.toml"
        path.write_text(TINY.format(epochs=epochs))
        return path

    def words(self, part: str, *flags: str) -> list[str]:
        return ["bash", SUITE, part, str(self.out), "--device=cpu", f"--work={self.work}", *flags]

    def call(self, part: str, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(part, *flags), capture_output=True, text=True, env={**self.env, **env}, check=False
        )

    def record(self, part: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / f"{part}.json").read_text())
        return found


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return Suite(tmp_path)


def test_a_recipe_leaves_the_result_of_a_benchmark(suite: Suite) -> None:
    path = suite.recipe()
    done = suite.call("elr", f"--recipe={path}")
    assert done.returncode == 0, done.stderr
    record = suite.record("elr")
    assert record["status"] == "finished"
    assert record["target_seconds"] == 360
    assert record["within_target"] is True
    assert "--device=cpu" in record["commands"][-1]
    assert "bf16" not in record["commands"][-1], "on a GPU alone"
    [made] = results.read(suite.out, [load_recipe(str(path))]).runs.values()
    assert made["metrics"] == record["metrics"]


@pytest.mark.slow
def test_a_part_that_is_stopped_says_what_comes_next_and_that_goes_on(suite: Suite) -> None:
    flags = (f"--recipe={suite.recipe(epochs=80)}",)
    process = subprocess.Popen(suite.words("elr-plus-1", *flags), env=suite.env, stdout=subprocess.PIPE, text=True)
    metrics, began = suite.work / "tiny-seed0" / "metrics.csv", time.monotonic()
    while not (metrics.exists() and len(metrics.read_text().splitlines()) > 3):
        assert process.poll() is None
        assert time.monotonic() - began < 120
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "goes on with: benchmarks/gpu.sh elr-plus-2" in told
    record = suite.record("elr-plus-1")
    assert (record["status"], record["next"], record["epochs"]) == ("out of time", "elr-plus-2", 80)
    assert 3 <= record["epoch"] < 80
    assert not list(suite.out.glob("*-seed0.json"))
    done = suite.call("elr-plus-2", *flags)
    assert done.returncode == 0, done.stderr
    assert suite.record("elr-plus-2")["status"] == "finished"
    before = (suite.out / "tiny-seed0.json").read_text()
    assert json.loads(before)["resumed"] is True
    (suite.out / "tiny-seed0.json").unlink()
    again = suite.call("elr-plus-3", *flags)
    assert again.returncode == 0, again.stderr
    assert (suite.out / "tiny-seed0.json").read_text() == before, "kept on the machine, not trained anew"


@pytest.mark.slow
def test_a_part_stops_itself(suite: Suite) -> None:
    done = suite.call("elr", f"--recipe={suite.recipe()}", "--seconds=0.5")
    assert done.returncode == 0, done.stderr
    assert suite.record("elr")["status"] == "out of time"
    assert suite.record("elr")["next"] == "elr"


@pytest.mark.slow
def test_a_failing_run_is_told(suite: Suite) -> None:
    path = suite.recipe()
    path.write_text(path.read_text().replace('"mlp"', '"mlpp"'))
    done = suite.call("elr", f"--recipe={path}")
    assert done.returncode == 1
    assert "unknown network 'mlpp'" in suite.record("elr")["wrong"]


@pytest.mark.slow
def test_speed(suite: Suite) -> None:
    done = suite.call("speed", "--quick")
    assert done.returncode == 0, done.stderr
    rows = suite.record("speed")["milliseconds"]
    ways = {(r["method"], r["precision"], r["channels_last"]) for r in rows}
    methods = {"ce", "elr", "elr+", "co-teaching"}
    assert ways == {(m, p, c) for m in methods for p in ("bf16-mixed", "32-true") for c in (True, False)}
    assert all(0 < r["quartiles"][0] <= r["median"] <= r["quartiles"][1] for r in rows)


@pytest.mark.slow
def test_check(suite: Suite) -> None:
    done = suite.call("check")
    assert done.returncode == 0, done.stdout + done.stderr
    record = suite.record("check")
    assert record["tests"]["tests"] > 100
    assert record["tests"]["failures"] == record["tests"]["errors"] == 0
    for how in ("32-true", "bf16-mixed"):
        assert record["resume"][how]["bit_identical"] is True, "on a CPU"
        assert record["resume"][how]["state_on"] == "cpu"


@pytest.mark.slow
def test_simclr(suite: Suite, data_dir: Path) -> None:
    done = suite.call("simclr", "--quick", "--network=cnn", LABELPROOF_DATA=str(data_dir))
    assert done.returncode == 0, done.stderr
    record = suite.record("simclr")
    assert record["status"] == "finished"
    assert record["seconds_per_epoch"] > 0
    assert "knn_agreement" in record["features"]
    assert 0 < record["result"]["test_accuracy"] < 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(suite: Suite) -> None:
    done = suite.call("elr", "--device=cuda")
    assert done.returncode == 2
    assert "there is no CUDA device here: give --device=cpu to try a part out" in done.stderr


def test_what_may_be_asked_for(suite: Suite) -> None:
    done = subprocess.run(["bash", SUITE], capture_output=True, text=True, env=suite.env, check=False)
    assert done.returncode == 2
    assert "benchmarks/gpu.sh PART" in done.stdout
    assert "set -euo" not in done.stdout
    wrong = suite.call("elr-plus")
    assert wrong.returncode == 2
    assert "invalid choice: 'elr-plus'" in wrong.stderr


def test_missing_packages_are_named_with_the_remedy(suite: Suite) -> None:
    bare = suite.folder / "bare"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    done = suite.call("elr", PYTHON=str(bare))
    assert done.returncode == 2
    assert "missing: torch lightning_fabric numpy" in done.stderr
    assert "Run benchmarks/pack_wheels.sh where there is a network, and take benchmarks/wheels along" in done.stderr


def test_wheels_are_installed_once(suite: Suite) -> None:
    pytest.importorskip("pip", reason="pip installs them")
    wheels, site, python = (suite.folder / name for name in ("wheels", "site", "python"))
    python.write_text(f'#!/bin/sh\n[ "$1" = -m ] || exit 0\nexec "{sys.executable}" "$@"\n')  # pip, and nothing else
    python.chmod(0o755)

    def wheel(version: str) -> None:
        shutil.rmtree(wheels, ignore_errors=True)
        wheels.mkdir()
        info = f"packed_thing-{version}.dist-info"
        with zipfile.ZipFile(wheels / f"packed_thing-{version}-py3-none-any.whl", "w") as file:
            file.writestr("packed_thing.py", f"version = {version!r}\n")
            file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: packed-thing\nVersion: {version}\n")
            file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            file.writestr(f"{info}/RECORD", "")

    wheel("1.0")
    assert suite.call("elr", PYTHON=str(python)).returncode == 0
    assert "1.0" in (site / "packed_thing.py").read_text()
    (site / "packed_thing.py").write_text("touched")
    assert suite.call("elr", PYTHON=str(python)).returncode == 0
    assert (site / "packed_thing.py").read_text() == "touched", "not a second time"
    wheel("2.0")
    assert suite.call("elr", PYTHON=str(python)).returncode == 0
    assert "2.0" in (site / "packed_thing.py").read_text(), "others, again"


def closure(names: tuple[str, ...], extras: dict[str, set[str]] | None = None) -> set[str]:
    """What packages need, themselves included, as installed here."""
    todo = [(name, (extras or {}).get(name, set())) for name in names]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        name, more = todo.pop()
        key = (canonicalize_name(name), frozenset(more))
        if key in seen:
            continue
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # for another Python or system
        seen.add(key)
        for need in map(Requirement, needs):
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *more)):
                todo.append((need.name, need.extras))
    return {name for name, _ in seen}


def ours() -> tuple[tuple[str, ...], dict[str, set[str]]]:
    """What pyproject.toml asks for: names, and extras of them."""
    import tomllib

    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    needs = [need for need in map(Requirement, asked) if need.marker is None or need.marker.evaluate()]
    return tuple(need.name for need in needs), {need.name: need.extras for need in needs}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_everything_that_is_needed_is_packed() -> None:
    """And nothing that the machine has, nor what nobody needs."""
    listed = subprocess.run(["bash", PACK, "--list"], capture_output=True, text=True, check=True).stdout.split()
    packed, given = {canonicalize_name(name) for name in listed}, closure(GIVEN)
    needed, testing = closure(*ours()), closure(TESTING)
    assert needed | testing <= packed | given
    assert packed <= needed | testing
    pinned = {canonicalize_name(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert packed <= pinned


def test_the_wheels_themselves(suite: Suite) -> None:
    """Where there are some for this Python: installed, and enough beside what the machine has."""
    wheels = Path(os.environ.get("WHEELS") or ROOT / "benchmarks" / "wheels")
    tag = f"-cp{sys.version_info.major}{sys.version_info.minor}-"
    if not any(tag in path.name for path in wheels.glob("kornia_rs-*.whl")):
        pytest.skip(f"no wheels for {tag[1:-1]}: PYTHON_VERSION=3.{tag[4:-1]} benchmarks/pack_wheels.sh packs some")
    machine = suite.folder / "machine"
    machine.mkdir()
    for name in closure(GIVEN):
        files = distribution(name).files or []
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            place = Path(str(distribution(name).locate_file(top)))
            if place.exists() and not (machine / top).is_symlink():
                (machine / top).symlink_to(place)
    pip = Path(str(distribution("pip").locate_file("pip")))
    (machine / "pip").symlink_to(pip)
    python = suite.folder / "python"
    # no site-packages but what the machine has, and what gpu.sh puts on PYTHONPATH
    python.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{machine}" exec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    code = "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]; import labelproof.cli, pytest"
    assert suite.call("elr", f"--recipe={suite.recipe()}", "--seconds=0.1", WHEELS=str(wheels)).returncode == 0
    site = suite.folder / "site"
    env = {**suite.env, "PYTHONPATH": f"{ROOT / 'src'}:{site}"}
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr


def test_the_documentation_names_every_part() -> None:
    """docs/gpu.md shows the command of each part and its target."""
    text = (ROOT / "docs" / "gpu.md").read_text()
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import gpu
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
    missing = [part for part in gpu.PARTS if not re.search(rf"gpu\.sh {re.escape(part)}\b", text)]
    assert not missing
    for name, seconds, following in gpu.RECIPES.values():
        assert load_recipe(name).train["network"] in ("resnet34", "preact-resnet18")
        assert f"{seconds // 60} minutes" in text
        assert following in gpu.PARTS
