"""Result files: those that cannot be trusted are in no table, with a reason, and are made again."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labelproof import cli
from labelproof.bench import results, run
from labelproof.recipes import load_recipe
from labelproof.recipes.suites import Suite
from tests.bench.made import leave, recipe, result, small

CE = "ce-digits-sym40-small"
FILE = f"{CE}-seed0.json"


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return small(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results"


def changed(key: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda made: {**made, key: value}


def lacking(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda made: {k: v for k, v in made.items() if k != key}


#: What is wrong with a file, and what is said of it.
WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "format": (changed("format", 2), "of format 2, not 1"),
    "other version": (changed("labelproof", "9.9"), "made by labelproof 9.9, this is "),
    "other recipe": (changed("recipe", "elr-digits-sym40-small"), "of recipe elr-digits-sym40-small, which is not its"),
    "other seed": (changed("seed", 1), "of seed 1, which is not its name"),
    "seed of text": (changed("seed", "0"), "seed missing or of another kind"),
    "seed true": (changed("seed", True), "seed missing or of another kind"),
    "other settings": (
        lambda made: {**made, "train": {**made["train"], "epochs": 7, "lr": 0.5}},
        r"epochs=7 \(now 2\); lr=0.5 \(now None\)",
    ),
    "fewer settings": (
        lambda made: {**made, "train": {k: v for k, v in made["train"].items() if k != "noise"}},
        r"noise=None \(now 'symmetric:0.4'\)",
    ),
    "another encoder": (changed("pretrain", {"epochs": 9}), r"pretrain epochs=9 \(now None\)"),
    "NaN": (changed("metrics", {"test_accuracy": math.nan}), "holds NaN, which is no figure"),
    "NaN elsewhere": (changed("seconds", math.nan), "holds NaN"),
    "infinite": (changed("metrics", {"test_rmse": math.inf}), "holds Infinity"),
    "per cent": (changed("metrics", {"test_accuracy": 90.1}), "test_accuracy=90.1, which is no figure"),
    "negative": (changed("metrics", {"test_rmse": -1.0}), "test_rmse=-1.0, which is no figure"),
    "text": (changed("metrics", {"test_accuracy": "0.9"}), "test_accuracy='0.9', which is no figure"),
    "null": (changed("metrics", {"test_accuracy": None}), "test_accuracy=None, which is no figure"),
    "switch": (changed("metrics", {"test_accuracy": True}), "test_accuracy=True, which is no figure"),
    "metrics a list": (changed("metrics", [0.9]), "metrics missing or of another kind"),
    "train null": (changed("train", None), "train missing or of another kind"),
    "a list": (lambda made: [made], "no result of labelproof bench"),
    "nothing": (lambda made: {}, "no result of labelproof bench: format, recipe, seed"),
    **{
        f"without {key}": (lacking(key), f"no result of labelproof bench: {key} missing")
        for key in ("format", "settings", "data", "metrics", "list", "seconds", "hardware", "versions")
    },
}


def shown(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert cli.main([str(w) for w in words]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_and_made_again(
    case: str, suite: Suite, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, why = WRONG[case]
    made = result(recipe(suite, CE), 0, {"test_accuracy": 0.7113})
    leave(folder, suite, CE, 0).write_text(json.dumps(change(made)))
    found = results.read(folder, suite.recipes)
    assert not found.runs
    assert re.search(why, found.refused[FILE])
    for command in ("list", "table"):
        told = shown(capsys, "bench", command, suite.path, "--results", folder)
        assert re.search(rf"{FILE}.*{why}", told), command
        assert "71.1" not in told
    told = shown(capsys, "bench", "run", suite.path, "--results", folder, "--dry", "--seeds", "1")
    assert re.search(rf"refused {FILE}.*{why}", told)
    assert (CE, 0) in [(job.recipe.name, job.seed) for job in run.todo(suite.recipes, 1, folder)]


@pytest.mark.parametrize("contents", [b"", b'{"format": 1, "rec', b"\xff\xfe\x00", b"not json"])
def test_half_a_file(contents: bytes, suite: Suite, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave(folder, suite, CE, 0).write_bytes(contents)
    why = results.read(folder, suite.recipes).refused[FILE]
    assert re.fullmatch(r"half-written, or no JSON|is no text", why)
    assert why in shown(capsys, "bench", "table", suite.path, "--results", folder)


def test_a_good_file_is_taken_whatever_else_it_says(suite: Suite, folder: Path) -> None:
    path = leave(folder, suite, CE, 0, {"test_accuracy": 0.75, "my own": 3}, remark="kept by hand")
    found = results.read(folder, suite.recipes)
    assert not found.refused
    assert found.runs[CE, 0]["remark"] == "kept by hand"
    assert [r["seed"] for r in found.of(recipe(suite, CE))] == [0]
    assert (CE, 0) not in [(job.recipe.name, job.seed) for job in run.todo(suite.recipes, 1, folder)]
    assert path.is_file()


def test_a_copy_under_another_seed_replaces_nothing(suite: Suite, folder: Path) -> None:
    good = leave(folder, suite, CE, 0, {"test_accuracy": 0.75})
    claims = {**result(recipe(suite, CE), 1, {"test_accuracy": 0.25}), "seed": 0}
    (folder / f"{CE}-seed1.json").write_text(json.dumps(claims))
    shutil.copy(good, folder / f"{CE}-seed007.json")
    shutil.copy(good, folder / f"{CE}-seed0-copy.json")
    shutil.copy(good, folder / f"{CE}-seed-1.json")
    found = results.read(folder, suite.recipes)
    assert list(found.runs) == [(CE, 0)]
    assert found.runs[CE, 0]["metrics"] == {"test_accuracy": 0.75}
    assert set(found.refused) == {f"{CE}-seed1.json", f"{CE}-seed007.json"}


def test_names_that_begin_alike(suite: Suite, folder: Path) -> None:
    """A recipe `ce` and another `ce-seed0` would share the beginning of their files."""
    leave(folder, suite, CE, 0)
    (folder / f"{CE}-seed0-seed0.json").write_text("{}")
    (folder / "other-seed0.json").write_text("{}")
    found = results.read(folder, suite.recipes)
    assert (list(found.runs), found.refused) == ([(CE, 0)], {})


def test_a_folder_where_a_file_should_be(suite: Suite, folder: Path) -> None:
    (folder / FILE).mkdir(parents=True)
    assert results.read(folder, suite.recipes).refused[FILE] == "cannot be read: Is a directory"


def test_no_results_yet(suite: Suite, tmp_path: Path) -> None:
    found = results.read(tmp_path / "nowhere", suite.recipes)
    assert (found.runs, found.refused) == ({}, {})


@pytest.mark.parametrize("command", ["list", "table", "run"])
def test_a_file_in_place_of_the_folder(command: str, suite: Suite, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", command, str(suite.path), "--results", str(suite.path)])
    assert f"--results={suite.path} is a file" in capsys.readouterr().err.replace("\n", "")


def test_a_link_that_leads_nowhere(suite: Suite, folder: Path) -> None:
    folder.mkdir()
    (folder / FILE).symlink_to(folder / "gone")
    assert results.read(folder, suite.recipes).refused[FILE] == "cannot be read: No such file or directory"


def test_results_are_written_whole(suite: Suite, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = recipe(suite, CE)
    path = results.write(folder, made, 0, result(made, 0))
    assert path == folder / FILE
    before = path.read_bytes()

    def cut(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(OSError, match="No space left"):
        results.write(folder, made, 0, result(made, 0, {"test_accuracy": 0.1}))
    assert path.read_bytes() == before
    assert [p.name for p in folder.iterdir()] == [FILE]


def test_a_figure_that_is_none_is_not_written(suite: Suite, folder: Path) -> None:
    made = recipe(suite, CE)
    with pytest.raises(ValueError, match="JSON"):
        results.write(folder, made, 0, result(made, 0, {"test_accuracy": math.nan}))
    assert not list(folder.iterdir())


def test_settings_of_packaged_recipes_survive_their_file(folder: Path) -> None:
    """Numbers are compared as they come out of JSON: 3.0 and 1e-06 are what they were."""
    for name in ("elr-cifar10-sym40", "co-teaching-cifar10-sym50", "ce-simclr-cifar10-unif20", "incv-cifar10-sym20"):
        made = load_recipe(name)
        results.write(folder, made, 0, result(made, 0, pretrain=dict(made.pretrain or {})))
        found = results.read(folder, [made])
        assert (list(found.runs), found.refused) == ([(name, 0)], {})


def ended(tmp_path: Path, rows: list[dict[str, Any]], **record: Any) -> Path:
    """A run's folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    told = {
        "labelproof": "1",
        "command": "labelproof train digits",
        "created": "now",
        "status": "finished",
        "data": {"name": "digits", "n": 3, "n_test": 2, "task": "classification", "noise": {"kind": "symmetric"}},
        "method": {"name": "ce"},
        "network": {"name": "mlp"},
        "settings": {"early_stopping": False},
        "hardware": {},
        "versions": {},
        "result": {
            "seconds": 1.0,
            "peak_memory_mb": 500.0,
            "split": "abc",
            "average_precision": 0.5,
            "wrong": 3,
            "noise_rate": 0.25,
        },
        **record,
    }
    (folder / "run.json").write_text(json.dumps(told))
    with (folder / "metrics.csv").open("w", newline="") as file:
        names = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_three_ways_to_read_a_curve(suite: Suite, tmp_path: Path) -> None:
    accuracies = [0.1, 0.9, *(0.5 + k / 100 for k in range(9)), 0.4]
    folder = ended(tmp_path, [{"epoch": k + 1, "test_accuracy": a} for k, a in enumerate(accuracies)])
    metrics = results.collect(recipe(suite, CE), 0, folder, {})["metrics"]
    assert metrics["test_accuracy"] == 0.4
    assert metrics["test_accuracy_best"] == 0.9
    assert metrics["test_accuracy_last10"] == pytest.approx(sum(accuracies[-10:]) / 10)


def test_of_errors_the_smallest_is_the_best(suite: Suite, tmp_path: Path) -> None:
    rows = [{"epoch": k, "test_rmse": v} for k, v in enumerate([3.0, 1.0, 2.0], start=1)]
    metrics = results.collect(recipe(suite, "mse-energy-uniform30-small"), 0, ended(tmp_path, rows), {})["metrics"]
    assert metrics == {"test_rmse": 2.0, "test_rmse_best": 1.0, "test_rmse_last10": 2.0}


def test_epochs_that_were_not_tested_are_left_out(suite: Suite, tmp_path: Path) -> None:
    rows = [{"epoch": 1, "test_accuracy": 0.5}, {"epoch": 2, "test_accuracy": ""}, {"epoch": 3, "test_accuracy": 0.75}]
    metrics = results.collect(recipe(suite, CE), 0, ended(tmp_path, rows), {})["metrics"]
    assert metrics == {"test_accuracy": 0.75, "test_accuracy_best": 0.75, "test_accuracy_last10": 0.625}


def test_a_run_that_is_not_finished_is_no_result(suite: Suite, tmp_path: Path) -> None:
    folder = ended(tmp_path, [{"test_accuracy": 0.5}], status="running")
    with pytest.raises(ValueError, match="holds a run that is not finished"):
        results.collect(recipe(suite, CE), 0, folder, {})
