"""benchmarks/incv_table.py: runs on MNIST are those of mnist_table.py, people's labels stay, files make the page."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from labelproof.data import catalog, noise

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
EPOCHS = 4


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script on 400 digits in place of each data set, four epochs and one seed, in a folder of its own."""
    monkeypatch.syspath_prepend(str(FOLDER))  # a script finds its neighbours
    for name in ("mnist_table", "incv_page", "incv_table"):  # new ones, in the order of their imports
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    clean, test = catalog.load("digits").take(np.arange(400)), catalog.load("digits", split="test")
    people = clean.relabelled(np.where(np.arange(400) % 4 == 0, (clean.y + 1) % 10, clean.y))
    mnist, settings = module.mnist, {**module.CIFAR, "epochs": EPOCHS}
    common = {"SEEDS": 1, "load": lambda: (clean, test)}
    for name, value in {**common, "RESULTS": tmp_path / "mnist", "LOCKS": tmp_path / "locks"}.items():
        monkeypatch.setattr(mnist, name, value)
    monkeypatch.setattr(mnist, "SETTINGS", settings)
    changes = {
        "SEEDS": 1,
        "RESULTS": tmp_path / "results",
        "PAGE": tmp_path / "docs" / "results.md",
        "CIFAR": settings,
        "NOISES": module.NOISES[1::2],
        "WATCHED": 10_000,  # all there are
        "load_cifar": lambda: (clean, test),
        "load_human": lambda: (people, test),
    }
    for name, value in changes.items():
        monkeypatch.setattr(module, name, value)
    module.PAGE.parent.mkdir()
    module.PAGE.write_text(f"# Results\n\nbefore\n\n{module.START}\nformerly\n{module.END}\n\nafter\n")
    return module


def made(table: ModuleType) -> dict[str, dict[str, Any]]:
    files = [*table.RESULTS.rglob("*.json"), *table.mnist.RESULTS.rglob("*.json")]
    return {f"{p.parent.name}/{p.stem}": json.loads(p.read_text()) for p in files}


def test_runs_on_mnist_are_those_of_its_table(table: ModuleType) -> None:
    parts = table.parts()
    for job in parts["mnist"].jobs(2):
        assert job == table.mnist.Job(job.title, job.noise, job.seed)
    paths = [job.path for part in parts.values() for job in part.jobs(3)]
    assert len(set(paths)) == len(paths)
    assert {t for part in parts.values() for t in part.rows} <= set(table.mnist.ROWS)
    seeds = [job.seed for job in table.chosen("*", 3, list(parts))]
    assert seeds == sorted(seeds), "a table of the first seed is there early"
    assert len(seeds) == len(paths)
    assert {job.title for job in table.chosen("co-*", 1, list(parts))} == {"Co-teaching"}


def test_runs_and_their_page(table: ModuleType) -> None:
    assert table.main(["--only", "incv"]) == 0
    found = made(table)
    assert set(found) == {
        "mnist/incv-symmetric0-5-seed0",
        "mnist/incv-pairflip0-4-seed0",
        "cifar10/incv-symmetric0-5-seed0",
        "cifar10/incv-pairflip0-4-seed0",
        "cifar10n-worse/incv-human0-4-seed0",
    }
    run = found["cifar10/incv-symmetric0-5-seed0"]
    assert run["params"]["noise_rate"] == "auto", "it is told nothing"
    assert run["data"] == "cifar10"
    result = run["result"]
    assert len(result["test_curve"]) == EPOCHS
    assert result["test_curve"][-1] == pytest.approx(result["test_accuracy"], abs=1e-4)
    assert [row["iteration"] for row in result["incv"]] == list(range(1, len(result["incv"]) + 1))
    assert {"kind", "rate", "doubt"} <= set(result["incv_noise"])
    other = found["mnist/incv-symmetric0-5-seed0"]["result"]
    assert other["passes"][0] > 1
    assert "test_curve" not in other
    page = table.PAGE.read_text()
    assert page.startswith("# Results\n\nbefore\n\n<!-- incv: made by")
    assert page.endswith("<!-- end incv -->\n\nafter\n")
    assert "formerly" not in page
    assert f"| INCV | {100 * other['test_accuracy']:.1f} | " in page
    last = result["incv"][-1]
    assert "| label precision and recall, iteration | precision 1 |" in page
    end = f" {last['selected']:,.0f} | {last['candidates']:,.0f} |"
    shares = next(x for x in page.splitlines() if x.startswith("| CIFAR-10, symmetric 50 %") and x.endswith(end))
    assert f" {100 * last['label_precision']:.1f} |" in shares
    drawn = {p.name: p.read_text() for p in (table.PAGE.parent / "figures").iterdir()}
    assert set(drawn) == {"incv-mnist.svg", "incv-cifar10.svg", "incv-epochs.svg"}
    assert ">human labels<" in drawn["incv-cifar10.svg"]
    assert ">human labels<" not in drawn["incv-mnist.svg"]
    assert all(f"(figures/{name})" in page for name in drawn)
    before = {p: p.stat().st_mtime_ns for p in table.RESULTS.rglob("*.json")}
    assert table.main(["--only", "INCV"]) == 0
    assert {p: p.stat().st_mtime_ns for p in table.RESULTS.rglob("*.json")} == before
    assert table.PAGE.read_text() == page


def test_labels_of_people_stay_as_they_are(table: ModuleType) -> None:
    assert table.main(["--only", "c*-*", "--data", "human", "--no-tables"]) == 0
    found = made(table)
    assert set(found) == {f"cifar10n-worse/{t}-human0-4-seed0" for t in ("co-teaching", "cross-entropy")}
    assert found["cifar10n-worse/co-teaching-human0-4-seed0"]["params"]["noise_rate"] == 0.4
    people, _ = table.load_human()
    for run in found.values():
        assert run["noise_realised"] == {"rate": 0.25, "hash": noise.digest(people.y)}
    (job,) = (j for j in table.parts()["human"].jobs(1) if j.title == "INCV")
    data, _ = table.mnist.corrupt(people, job)
    assert data is people


def test_results_of_other_settings_are_not_shown(table: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="no results of these settings"):
        table.main(["--tables"])
    table.main(["--only", "ce", "--data", "cifar10", "--no-tables"])
    job = table.parts()["cifar10"].jobs(1)[table.ROWS.index("cross-entropy")]
    good = json.loads(job.path.read_text())
    assert table.mnist.finished(job)
    for name, value in (("data", "cifar10n:worse"), ("watched", 5), ("settings", {**good["settings"], "epochs": 3})):
        job.path.write_text(json.dumps({**good, name: value}))
        assert table.mnist.finished(job) is None, name
    with pytest.raises(SystemExit, match="--only incvv: no row or method of that name"):
        table.main(["--only", "incvv"])


def fake(rate: float, true: float, kind: str = "symmetric", doubt: str = "", rows: int = 2) -> dict[str, Any]:
    """A result of INCV: the selected set of iteration i has precision 0.9 - i / 10 and recall i / 4."""
    iterations = [
        {
            "iteration": i,
            "selected": 1000 * i,
            "candidates": 500 - 100 * i,
            "estimated_precision": 0.75,
            "label_precision": 0.9 - i / 10,
            "label_recall": i / 4,
        }
        for i in range(1, rows + 1)
    ]
    model = {"kind": kind, "rate": rate, "doubt": doubt}
    return {
        "result": {"test_accuracy": 0.5, "incv": iterations, "incv_noise": model},
        "noise_realised": {"rate": true},
        "cpu_seconds": 10.0,
    }


def test_estimates_and_their_distance(table: ModuleType) -> None:
    page, noises = table.page, (table.Noise("symmetric", 0.2), table.Noise("pairflip", 0.4))
    found = {
        table.Job("INCV", noises[0], 0): fake(0.22, 0.2),
        table.Job("INCV", noises[0], 1): fake(0.12, 0.2, rows=3),
        table.Job("INCV", noises[1], 0): fake(0.34, 0.4, kind="transition", doubt="too weak"),
        table.Job("cross-entropy", noises[0], 0): {"result": {"test_accuracy": 0.25}, "cpu_seconds": 4.0},
    }
    part = page.Shown("Digits", noises, ("INCV", "D2L", "cross-entropy"), found)
    lines = list(page.estimates([part]))[2:]
    assert lines == [
        "| Digits, symmetric 20 % | symmetric | 17.0 ± 7.1 | 20.0 ± 0.0 | -3.0 ± 7.1 | in part (1 of 2) | 25.0 ± 0.0 | "
        "35.0 ± 7.1 |",
        "| Digits, pairflip 40 % | transition (doubt: too weak) | 34.0 | 40.0 | -6.0 | no (0 of 1) | 25.0 | 30.0 |",
    ]
    assert page.longest([part]) == 3
    rows = list(page.iterations([part]))[2:]
    assert rows[0] == "| Digits, symmetric 20 % | 80.0 | 70.0 | 65.0 | 25.0 | 50.0 | 62.5 | 2,500 | 250 |"
    assert rows[1].endswith(" 25.0 | 50.0 | 50.0 | 2,000 | 300 |"), "the last selection stays"
    assert list(page.scores(part, "test_accuracy", "test", seconds=True)) == [
        "| Digits: test (2 seeds) | symmetric 20 % | pairflip 40 % | CPU seconds per run |",
        "|---|---:|---:|---:|",
        "| INCV | 50.0 ± 0.0 | 50.0 (1 of 2 seeds) | 10 ± 0 |",
        "| cross-entropy | 25.0 (1 of 2 seeds) | – | 4 |",
    ]
    assert list(page.scores(part, "test_accuracy", "test"))[-1] == "| cross-entropy | 25.0 (1 of 2 seeds) | – |"
    assert page.epochs(part) == {}
