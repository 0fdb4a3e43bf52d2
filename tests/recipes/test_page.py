"""docs/recipes.md: its files load, and its table names what there is."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from labelproof.flags import check_recipe
from labelproof.recipes import METRICS, available_recipes, load_recipe
from labelproof.recipes.suites import load_suite

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
FILES = re.findall(r"```toml\n(.+?)```", PAGE, re.DOTALL)


def patterns(text: str) -> list[str]:
    """`{a,b}-*` as a-*, b-*."""
    found = re.search(r"\{([^{}]*)\}", text)
    if found is None:
        return [text]
    ways = [text[: found.start()] + way + text[found.end() :] for way in found[1].split(",")]
    return [each for way in ways for each in patterns(way)]


def by_suite() -> dict[str, list[str]]:
    """Patterns of the table by suite; a row without one belongs to the suite above."""
    found: dict[str, list[str]] = {}
    suite = ""
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if len(cells) == 4 and cells[1].startswith("`"):
            suite = cells[0].strip("`") or suite
            found.setdefault(suite, []).extend(p for each in re.findall("`(.+?)`", cells[1]) for p in patterns(each))
    return found


def test_a_pattern_in_braces() -> None:
    assert patterns("{a,b}-{c-*,d}") == ["a-c-*", "a-d", "b-c-*", "b-d"]


@pytest.mark.parametrize("suite", by_suite())
def test_the_table_names_what_there_is(suite: str) -> None:
    named, there = by_suite()[suite], [recipe.name for recipe in load_suite(suite).recipes]
    assert [n for n in available_recipes() if n in there and not any(fnmatch(n, p) for p in named)] in (
        [],
        [n for n in there if suite == "dividemix" and n.startswith("elr-plus-")],  # which stand in the table of elr
    )
    assert not [p for p in named if not any(fnmatch(n, p) for n in there)], "names that nothing has"


def test_the_table_has_all_suites_and_all_metrics() -> None:
    assert set(by_suite()) == {"elr", "sop", "co-teaching", "dividemix", "incv", "contrast", "cifar-n"}
    for metric in METRICS:
        assert f"| `{metric}` |" in PAGE


def test_its_files_load(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(FILES[0])
    recipe = load_recipe(str(tmp_path / "mine.toml"))
    check_recipe(recipe)
    assert recipe.pretrain == {"data": "photos/", "network": "resnet18", "epochs": 200}
    (tmp_path / "mine.toml").write_text(FILES[1])
    suite = load_suite(str(tmp_path / "mine.toml"))
    assert len(suite.cells) == 6
    for recipe in suite.recipes:
        check_recipe(recipe)
    assert len(FILES) == 2
