"""benchmarks/uci_table.py: nothing is run twice or lost, nothing of other settings is shown, figures are right."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from labelproof.data import noise

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "uci_table.py"

#: The script on 80 made-up rows, one epoch, two kinds at one rate and two splits, in a folder of its own.
SMALL = """
def small(table, folder):
    import numpy as np
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 3)).astype(np.float32)
    y = {"one": 50 + 10 * x[:, :1] + x[:, 1:2], "two": x[:, :2] * 5}
    settings = {"epochs": EPOCHS, "batch_size": 16, "lr": 0.01}
    changes = {
        "RESULTS": folder / "results", "LOCKS": folder / "locks", "PAGE": folder / "docs" / "results.md",
        "KINDS": ("sign-flip", "uniform"), "RATES": (0.25,), "SPLITS": 2,
        "ROWS": {t: table.ROWS[t] for t in ("mse", "co-teaching")},
        "PROBLEMS": {
            "one": table.Problem("made up", settings, "km", 2, kinds=("sign-flip", "uniform")),
            "two": table.Problem("made up", settings, "kg", 1, ("a", "b"), ("coordinate-swap",)),
        },
        "load": lambda problem: (x, y[problem].astype(np.float32)),
    }
    for name, value in changes.items():
        setattr(table, name, value)
"""
DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {benchmarks!r})
import uci_table
{small}
if __name__ == "__main__":
    uci_table.__file__ = __file__  # what --jobs starts
    small(uci_table, Path({folder!r}))
    sys.exit(uci_table.main(sys.argv[1:]))
"""
MARKED = "# Results\n\nbefore\n\n<!-- uci: made by benchmarks/uci_table.py -->\nSTALE\n<!-- end uci -->\n\nafter\n"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = whole(monkeypatch)
    shrink(module, tmp_path, epochs=1)
    return module


def shrink(module: ModuleType, folder: Path, *, epochs: int) -> None:
    names: dict[str, Any] = {"EPOCHS": epochs}
    exec(SMALL, names)
    names["small"](module, folder)
    module.PAGE.parent.mkdir(exist_ok=True)
    module.PAGE.write_text(MARKED)


def whole(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as it stands."""
    spec = importlib.util.spec_from_file_location("uci_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    monkeypatch.syspath_prepend(str(SCRIPT.parent))  # a script finds its neighbours
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "uci_table", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def stored(table: ModuleType, problem: str) -> list[dict[str, Any]]:
    return json.loads((table.RESULTS / f"{problem}.json").read_text())["runs"]


def driver(folder: Path, *, epochs: int) -> list[str]:
    """A command that runs the small table in processes of its own."""
    script = folder / "driver.py"
    small = SMALL.replace("EPOCHS", str(epochs))
    script.write_text(DRIVER.format(benchmarks=str(SCRIPT.parent), small=small, folder=str(folder)))
    return [sys.executable, str(script)]


def test_the_table_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    table = whole(monkeypatch)
    assert {"mse", "huber", "cauchy", "trimmed", "co-teaching", "prl-l", "co-prl-l", "prl-g"} <= set(table.ROWS)
    todo = table.jobs("*", "*", 5, extra=False)
    of = [job for job in todo if job.problem != "aggregates"]
    assert len(of) == 4 * 5 * 8 * (1 + 4 * 4)
    assert {job.rate for job in of} == {0, 0.1, 0.2, 0.3, 0.4}
    assert {k for k, _ in table.levels("protein")} == {"clean", "linear-adversarial", "sign-flip", "uniform", "mixture"}
    assert {k for k, _ in table.levels("aggregates")} == {"clean", "coordinate-swap"}
    assert len({job.name for job in todo}) == len(todo)
    assert not [job for job in todo if "estimated" in job.title]
    assert len(table.jobs("*", "*", 1, extra=True)) > len(todo) / 5
    for row in table.ROWS.values():
        told = table.get_method(row.method)(**row.options(0.3)).get_params().get("noise_rate", None)
        assert told == (None if "true rate" not in row.note and not row.extra else "auto" if row.extra else 0.3)


def test_the_real_sets(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    monkeypatch.setenv("LABELPROOF_DATA", str(data_dir))
    table = whole(monkeypatch)
    shapes = {p: tuple(a.shape for a in table.load(p)) for p in table.PROBLEMS}
    assert shapes == {
        "concrete": ((1030, 8), (1030, 1)),
        "energy": ((768, 8), (768, 1)),
        "kin8nm": ((8192, 8), (8192, 1)),
        "protein": ((45730, 9), (45730, 1)),
        "aggregates": ((1030, 7), (1030, 2)),
    }
    first = np.loadtxt(data_dir / "uci" / "concrete.csv", delimiter=",", skiprows=1, max_rows=1)
    x, y = table.load("concrete")
    np.testing.assert_allclose(np.append(x[0], y[0]), first, rtol=1e-6)
    x, y = table.load("aggregates")
    np.testing.assert_allclose(y[0], first[5:7], rtol=1e-6)
    np.testing.assert_allclose(x[0], np.delete(first, [5, 6]), rtol=1e-6)
    train, test = table.divide(45730, 3)
    assert (len(train), len(test)) == (10_000, 4_573)
    assert not set(train) & set(test)


def test_targets_are_corrupted_in_training_only(table: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """RMSE and R² against NumPy; what is trained on and told."""
    seen: list[Any] = []

    def train(data: Any, method: Any, network: str, settings: Any) -> Any:
        seen.append((data, method, settings))
        fitted = SimpleNamespace(predict=lambda x: np.full((len(x), 2), [1.0, -2.0], np.float32))
        return SimpleNamespace(fitted=fitted, result={"average_precision": 0.5})

    monkeypatch.setattr(table.runs, "train", train)
    found = table.run(table.Job("co-teaching", "two", "coordinate-swap", 0.25, 1))
    x, y = table.load("two")
    rows, test = table.divide(80, 1)
    data, method, settings = seen[0]
    assert (len(rows), len(test)) == (72, 8)
    np.testing.assert_array_equal(data.x, x[rows])
    np.testing.assert_array_equal(data.truth, y[rows])
    expected = noise.inject(y[rows], "coordinate-swap", 0.25, seed=1)
    np.testing.assert_array_equal(data.y, expected.labels)
    assert data.y.dtype == data.truth.dtype, "in two precisions nearly every target would count as wrong"
    assert found["wrong"] == expected.changed.sum() == 18
    assert method.noise_rate == 0.25
    assert settings.seed == 1
    errors = y[test] - np.array([1.0, -2.0])
    assert found["rmse"] == pytest.approx(np.sqrt((errors**2).mean()), abs=1e-5)
    r2 = 1 - (errors**2).sum(0) / ((y[test] - y[test].mean(0)) ** 2).sum(0)
    assert found["r2"] == pytest.approx(r2.mean(), abs=1e-5)
    assert found["average_precision"] == 0.5
    found = table.run(table.Job("mse", "two", "clean", 0.0, 1))
    np.testing.assert_array_equal(seen[1][0].y, y[rows])
    assert "average_precision" not in found, "nothing is wrong"


def test_a_finished_run_is_not_run_again(table: ModuleType) -> None:
    assert table.main(["--only", "mse"]) == 0
    files = {p.name: p.read_text() for p in table.RESULTS.iterdir()}
    assert set(files) == {"one.json", "two.json"}
    assert len(stored(table, "one")) == 6
    assert len(stored(table, "two")) == 4
    page = table.PAGE.read_text()
    assert page.startswith("# Results\n\nbefore\n\n<!-- uci: ")
    assert page.endswith("<!-- end uci -->\n\nafter\n")
    assert "STALE" not in page
    assert table.main(["--only", "MSE".lower()]) == 0
    assert {p.name: p.read_text() for p in table.RESULTS.iterdir()} == files
    values = [r["rmse"] for r in stored(table, "one") if r["kind"] == "uniform"]
    assert f"| uniform 25 % | **{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}** |" in page
    assert page.index("### one (km)") < page.index("### two (kg)")
    assert "figures/uci.svg" in page
    figure = (table.PAGE.parent / "figures" / "uci.svg").read_bytes()
    table.main(["--tables"])
    assert table.PAGE.read_text() == page
    assert (table.PAGE.parent / "figures" / "uci.svg").read_bytes() == figure
    assert table.main(["--only", "co-teaching", "--problem", "two", "--splits", "1"]) == 0
    assert "(1 of 2)" in table.PAGE.read_text()
    assert (table.RESULTS / "one.json").read_text() == files["one.json"]


def test_results_of_other_settings_are_made_again(table: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    job = table.Job("co-teaching", "one", "uniform", 0.25, 0)
    table.main(["--only", "co-teaching", "--problem", "one", "--no-tables"])
    good, path = table.read("one"), table.path("one")
    text = path.read_text()
    key = good.runs[job]["made"]
    how = good.made[key]
    for name, value in (
        ("settings", {**how["settings"], "lr": 0.5}),
        ("params", {**how["params"], "num_gradual": 3}),
        ("params", {**how["params"], "gone": 1}),
        ("labelproof", "0.0.0"),
        ("data", {**how["data"], "most_rows": 5}),
    ):
        bad = json.loads(text)
        bad["made"][key] = {**how, name: value}
        path.write_text(json.dumps(bad))
        assert table.read("one").finished(job) is None
    old = json.loads(text)
    del old["made"][key]["settings"]["workers"]
    path.write_text(json.dumps(old))
    assert table.read("one").finished(job), "an option that came later has its default"
    path.write_text(json.dumps(bad))
    table.main(["--only", "co-teaching", "--problem", "one", "--no-tables"])
    again = table.read("one")
    assert again.runs[job]["rmse"] == good.runs[job]["rmse"], "the same seed, the same figures"
    assert again.made == good.made, "what nothing was made with is gone"


def test_again_forgets_what_it_names_only(table: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    table.main(["--no-tables"])
    before = {p: table.read(p).runs for p in ("one", "two")}
    monkeypatch.setattr(table, "run", lambda job: {"rmse": -1.0, "cpu_seconds": 0.0, "seconds": 0.0})
    table.main(["--only", "mse", "--problem", "one", "--again", "--no-tables"])
    assert table.read("two").runs == before["two"]
    for job, found in table.read("one").runs.items():
        assert (found["rmse"] == -1.0) == (job.title == "mse")


def test_a_run_that_another_process_makes_is_left_to_it(table: ModuleType) -> None:
    job = table.Job("mse", "one", "clean", 0.0, 0)
    table.LOCKS.mkdir()
    with FileLock(table.LOCKS / f"{job.name}.lock"):
        assert table.collect([job]) == []
        assert not table.read("one").runs
    table.collect([job])
    assert list(table.read("one").runs) == [job]


def test_a_damaged_file_is_not_written_over(table: ModuleType) -> None:
    table.main(["--only", "mse", "--no-tables"])
    text = table.path("one").read_text()
    table.path("one").write_text(text[:-100])
    with pytest.raises(SystemExit, match=r"one.json is damaged \(.*restore it, or delete it to run all anew"):
        table.main(["--only", "co-teaching"])
    assert table.path("one").read_text() == text[:-100]


def test_failures_are_told_and_divergence_is_a_result(
    table: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(text: str) -> None:
        def train(*_: object, **__: object) -> None:
            raise ValueError(text)

        monkeypatch.setattr(table.runs, "train", train)

    fails("a bug")
    assert table.main(["--only", "mse", "--no-tables"]) == 1
    assert "a bug" in capsys.readouterr().err
    assert not table.read("one").runs
    fails("training diverged in epoch 1: the loss is nan")
    assert table.main(["--only", "mse"]) == 0
    assert "| uniform 25 % | – (2 diverged) |" in table.PAGE.read_text()


def test_killed_in_the_middle_it_goes_on(table: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """kill -9 to both processes: what was finished stays, the next command makes the rest."""
    shrink(table, tmp_path, epochs=40)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*driver(tmp_path, epochs=40), "--jobs", "2"]
    group = subprocess.Popen(command, env=env, start_new_session=True, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(table.read("one").runs) < 3:
        assert group.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(group.pid, signal.SIGKILL)
    told = group.communicate()[0].count("RMSE")
    before = {problem: table.read(problem) for problem in ("one", "two")}
    made = sum(len(store.runs) for store in before.values())
    assert 3 <= made < 20
    assert made - 2 <= told <= made, "nothing twice, and all that was told is there"
    assert table.main([]) == 0
    assert capsys.readouterr().out.count("RMSE") == 20 - made
    for problem, store in before.items():
        after = table.read(problem).runs
        assert len(after) == {"one": 12, "two": 8}[problem]
        assert {job: after[job] for job in store.runs} == store.runs, "with the seconds they took"
    page = table.PAGE.read_text()
    assert "20 runs of" in page
    assert " of 2)" not in page


def test_what_is_bold(table: ModuleType) -> None:
    page = sys.modules["uci_page"]
    row = [page.Level(v, d) for v, d in (([1.0, 3.0], 0), ([2.0, 4.5], 0), ([3.0, 4.0], 0), ([0.1], 1), ([], 0))]
    assert page.bold(row, least=True) == [True, True, False, False, False]
    assert page.bold(row, least=False) == [False, True, True, False, False]
    assert page.bold(row[4:], least=True) == [False]
    assert page.cell(row[1], 5, 1, strong=True) == "**3.2 ± 1.8** (2 of 5)"
    assert page.cell(row[3], 2, 0, strong=False, scale=100) == "10 (1 diverged)"
    assert page.cell(row[4], 2, 0, strong=False) == "–"


def test_the_overview_is_relative_to_the_baseline_on_clean_targets(table: ModuleType) -> None:
    page = sys.modules["uci_page"]
    rmse = {"a": {"clean": {"mse": 2.0, "x": 2.0}, "uniform": {"mse": 8.0, "x": 4.0}},
            "b": {"clean": {"mse": 30.0, "x": 60.0}, "uniform": {"mse": 30.0, "x": 60.0}}}  # fmt: skip
    found = {
        table.Job(t, p, k, 0.2 * (k != "clean"), 0): {"rmse": v}
        for p, kinds in rmse.items()
        for k, titles in kinds.items()
        for t, v in titles.items()
    }
    lines = list(page.overview(page.Grid(found, ["mse", "x", "none"]), ["a", "b"], ("clean", "uniform"), "mse"))
    assert lines[0] == "| RMSE, 1 = mse on clean targets | mse | x |"
    assert lines[2:] == ["| clean | **1.00** | 1.41 |", "| uniform 20 % | **2.00** | **2.00** |"]
    del found[table.Job("x", "b", "uniform", 0.2, 0)]
    lines = list(page.overview(page.Grid(found, ["mse", "x"]), ["a", "b"], ("clean", "uniform"), "mse"))
    assert lines[3] == "| uniform 20 % | **2.00** | – |"


def test_settings_of_a_problem_are_part_of_what_a_result_must_share(
    table: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = table.Job("mse", "one", "clean", 0.0, 0)
    table.collect([job])
    assert table.read("one").finished(job)
    other = replace(table.PROBLEMS["one"], settings={**table.PROBLEMS["one"].settings, "batch_size": 32})
    monkeypatch.setitem(table.PROBLEMS, "one", other)
    assert table.read("one").finished(job) is None


def test_unknown_rows_and_problems(table: ModuleType) -> None:
    with pytest.raises(SystemExit, match="--only msy: nothing of that name; there are mse, co-teaching"):
        table.main(["--only", "msy"])
    with pytest.raises(SystemExit, match="--problem three: nothing of that name; there are one, two"):
        table.main(["--problem", "three"])
    with pytest.raises(SystemExit, match="no results of these settings"):
        table.main(["--tables"])
