"""benchmarks/suite_lists.py: the very labels of the suite's runs, nothing twice, a table from result files."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from labelproof import cli
from labelproof.bench import results
from labelproof.recipes.suites import Suite
from tests.bench.made import SUITE, leave, recipe, small

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
COLUMN = "digits, symmetric:0.4"


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return small(tmp_path)


@pytest.fixture
def script(tmp_path: Path, suite: Suite, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("cleanlab")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("suite_lists")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "lists.json")
    monkeypatch.setattr(module, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(module, "load_suite", lambda _: suite)
    monkeypatch.setattr(results, "default_folder", lambda: tmp_path / "results")
    return module


def hashes(script: ModuleType, suite: Suite, seed: int) -> str:
    return str(script.noisy(recipe(suite, "ce-digits-sym40-small"), seed).noise["hash"])


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["suite_lists.py", *words])
    script.main()


def rows(text: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {first: rest for first, *rest in lines}


def test_columns_are_those_of_cross_entropy(script: ModuleType, suite: Suite) -> None:
    assert {title: r.name for title, r in script.columns(suite).items()} == {
        COLUMN: "ce-digits-sym40-small",
        "digits, pairflip:0.35": "ce-digits-pair35-small",
    }


def test_labels_are_those_of_the_runs(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real runs of a suite, and what this script ranks."""
    text = SUITE.replace('recipes = ["elr-cifar10-sym40"]', "").replace('["ce", "stopped", "elr"]', '["ce", "elr"]')
    grid, _, rest = text.partition('[[grid]]\nname = "energy"')
    suite = small(tmp_path, grid.replace(', "pairflip:0.35"', "") + rest[rest.index("[rows.ce]") :])
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "run", str(suite.path), "--results", "made", "--seeds", "1", "--quiet"]) == 0
    found = results.read(tmp_path / "made", suite.recipes).runs
    assert found["elr-digits-sym40-small", 0]["noise"]["hash"] == hashes(script, suite, 0) != hashes(script, suite, 1)


def test_measures_once_ranks_anew_if_asked(
    script: ModuleType, suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(script, monkeypatch, "--seeds", "1")
    found = rows(capsys.readouterr().out)
    assert next(iter(found)) == "list of"
    assert found["list of"] == [COLUMN, "digits, pairflip:0.35"]
    assert all(title in found for title in script.TITLES.values())
    made = json.loads(script.RESULTS.read_text())
    assert made[f"{COLUMN}, seed 0"]["hash"] == hashes(script, suite, 0)
    assert 0.3 < made[f"{COLUMN}, seed 0"]["wrong"] < 0.45

    monkeypatch.setattr(script.lp, "cross_val_probs", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(script.detection, "quality", lambda *_: pytest.fail("ranked again"))
    run(script, monkeypatch, "--seeds", "1")
    each = dict.fromkeys(("average_precision", "precision_at_wrong"), 0.125)
    monkeypatch.setattr(script.detection, "quality", lambda *_: dict.fromkeys(script.TITLES, each))
    run(script, monkeypatch, "--seeds", "1", "--again")
    assert rows(capsys.readouterr().out)["`lp.find_issues`, cross-validated"] == ["**0.125** / 0.125"] * 2


def test_lists_of_the_suite_stand_below(
    script: ModuleType,
    suite: Suite,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "results"
    given: dict[str, Any] = {"noise": {"kind": "symmetric", "hash": hashes(script, suite, 0)}}
    for seed, ap in enumerate((0.90, 0.94)):
        given["noise"] = {"kind": "symmetric", "hash": hashes(script, suite, seed)}
        listed = {"average_precision": ap, "precision_at_wrong": ap - 0.1}
        leave(folder, suite, "elr-digits-sym40-small", seed, {"test_accuracy": 0.5}, list=listed, **given)
    run(script, monkeypatch, "--table")
    found = rows(capsys.readouterr().out)
    assert found["elr"] == ["**0.920** / 0.820", "–"]
    assert "mse" not in found


def test_other_labels_are_not_put_beside(
    script: ModuleType, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = dict.fromkeys(("average_precision", "precision_at_wrong"), 0.5)
    made = {f"{COLUMN}, seed 0": {"hash": "else", "wrong": 0.4, "commit": "x", **dict.fromkeys(script.TITLES, each)}}
    script.RESULTS.write_text(json.dumps(made))
    leave(tmp_path / "results", suite, "elr-digits-sym40-small", 0, {"test_accuracy": 0.5})
    with pytest.raises(SystemExit, match="elr-digits-sym40-small, seed 0: other noisy labels"):
        run(script, monkeypatch, "--table")


def test_kept_probabilities_are_whole(script: ModuleType, suite: Suite) -> None:
    made = recipe(suite, "ce-digits-sym40-small")
    p = script.probabilities(made, script.noisy(made, 0), 0)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(np.load(script.KEPT / "ce-digits-sym40-small-seed0.npy"), p)
