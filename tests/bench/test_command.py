"""What `labelproof bench` says to somebody who has never seen it, and to somebody who mistypes."""

from __future__ import annotations

from pathlib import Path

import pytest

from labelproof import cli
from labelproof.bench.command import SEEDS, chosen
from labelproof.recipes.suites import Suite, available_suites
from tests.bench.made import SUITE, accuracies, leave, small


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return small(tmp_path)


def shows(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert cli.main(["bench", *map(str, words)]) == 0
    return " ".join(capsys.readouterr().out.split())


def fails(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", *map(str, words)])
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def test_without_a_word_it_shows_what_there_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    told = shows(capsys, "--results", tmp_path / "none")
    assert all(name in told for name in available_suites())
    assert "0 of" in told
    assert "which is not there yet" in told
    assert "labelproof bench run cpu" in told
    assert "labelproof bench table cpu" in told
    assert told == shows(capsys, "list", "--results", tmp_path / "none")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("lst", "did you mean 'list'"),
        ("run", "bench run NAME"),
        ("table", "bench table NAME"),
        ("run cp", "did you mean 'cpu'"),
        ("table cp", "did you mean 'cpu'"),
        ("list elr-cifar10-sym4", "did you mean 'elr-cifar10-sym40'"),
        ("run elr-digits-sym40-cpo", "did you mean 'elr-digits-sym40-cpu'"),
        ("run zzz-*", "no recipe or suite is called 'zzz-*'. labelproof bench list"),
        ("list nowhere.toml", "suite nowhere.toml cannot be read"),
        ("run cpu --seeds 0", "--seeds=0 must be a whole number above 0"),
        ("run cpu --seeds=-1", "--seeds=-1 must be a whole number above 0"),
        ("run cpu --seeds 1.5", "--seeds: must be a whole number"),
        ("run cpu --jobs 0 --dry", "jobs=0 must lie in [1, inf)"),
        ("run cpu --launcher rya --dry", "unknown launcher 'rya': did you mean 'ray'"),
        ("run cpu --address auto --dry", "address='auto' belongs to launcher='ray'"),
        ("run cpu --resume", "unknown flag --resume"),
        ("run cpu --out page.html", "--out is for labelproof bench table"),
        ("table cpu --seeds 2", "--seeds is for labelproof bench run"),
        ("list cpu --dry", "--dry is for labelproof bench run"),
    ],
)
def test_mistakes_are_answered(words: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert why in fails(capsys, *words.split())


def test_a_list_of_recipes(suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "results"
    accuracies(folder, suite, {"elr-cifar10-sym40": [0.8, 0.9]}, "test_accuracy_at_best_val")
    told = shows(capsys, "list", suite.path, "--results", folder)
    assert "elr-cifar10-sym40 89.15 ± 0.17 85.00 (2) below: 4.15 below, beyond 2 sd and 1 point" in told
    assert "ce-digits-sym40-small – – not comparable: because nothing was published" in told


def test_dry_counts_what_is_there(suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "results"
    leave(folder, suite, "ce-digits-sym40-small", 0)
    assert "26 of 27 runs to make" in shows(capsys, "run", suite.path, "--results", folder, "--dry")
    told = shows(capsys, "run", suite.path, "--results", folder, "--dry", "--seeds", "1")
    assert "8 of 9 runs to make" in told
    assert told.count("labelproof train ") == 8
    told = shows(capsys, "run", suite.path, "--results", folder, "--dry", "--seeds", "1", "--device", "cuda")
    assert told.count("--device=cuda") == 8


def test_flags_of_ones_own_are_checked_before_anything_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {
        "unknown flag --epoch": SUITE.replace("epochs = 2, device", "epoch = 2, device"),
        "unknown method 'elt': did you mean 'elr'": SUITE.replace('"stopped", "elr"', '"stopped", "elt"'),
        "unknown key grid.noise": SUITE.replace("noises = [", "noise = [", 1),
    }
    for why, text in wrong.items():
        assert why in fails(capsys, "run", small_path(tmp_path, text), "--dry")


def small_path(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "wrong.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_patterns() -> None:
    assert {r.name for r in chosen("elr-digits-*-cpu")[0]} == {
        f"elr-digits-{noise}-cpu" for noise in ("sym40", "pair35", "inst30")
    }
    recipes, seeds = chosen("elr-cifar10-sym40")
    assert ([r.name for r in recipes], seeds) == (["elr-cifar10-sym40"], SEEDS)
    names = [r.name for r in chosen("*")[0]]
    assert len(names) == len(set(names)) > 500
