"""Suites hold what their tables hold, and a file of one's own is checked before anything runs."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from labelproof.flags import check_recipe
from labelproof.recipes import available_recipes, load_recipe
from labelproof.recipes.suites import Cell, available_suites, load_suite

#: Published tables: recipes and seeds.
TABLES = {
    "elr": (2 * 8 * 7 + 6, 5),
    "sop": (6, 3),
    "co-teaching": (9 * 6 + 4 * 3, 5),
    "dividemix": (9 + 2 + 5 + 8 + 6 + 9 + 6 - 1, 3),
    "incv": (6 * 4, 5),
    "contrast": (2 * 2 * (6 + 5 + 5) + 2, 5),
    "cifar-n": (3 + 3 + 3 + 6 + 3 + 3 + 4 + 8 * 8, 3),
}
#: Names that must not be in a suite although a careless pattern would take them.
STRAYS = {
    "elr": "rescience|cifar100?n|clean|preact18",
    "sop": "rescience",
    "co-teaching": "plus|resnet32|rescience|cifar100?n",
    "dividemix": "rescience|cifar100?n|resnet34",
    "incv": "cnn9|resnet34",
    "contrast": "-a?sym|preact18",
    "cifar-n": "cnn9|-a?sym|pair|unif",
}
MINE = """
title = "mine"
seeds = 2
recipes = ["elr-cifar10-sym*"]

[train]
device = "cpu"

[[grid]]
name = "small"
data = "digits"
noises = ["symmetric:0.4", "pairflip:0.35"]
rows = ["ce", "told"]
train = { epochs = 2 }

[rows.told]
title = "told the rate"
note = "a note"
train = { method = "self-paced", noise_rate = "{rate}" }
pairflip = { epochs = 3 }
small = { lr = 0.5 }
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return path


@pytest.mark.parametrize("name", TABLES)
def test_a_published_table_is_whole(name: str) -> None:
    suite, (count, seeds) = load_suite(name), TABLES[name]
    assert (len(suite.recipes), suite.seeds) == (count, seeds)
    assert not suite.cells
    assert re.search(r"\b20[12]\d\b", suite.about), "which paper"
    names = [recipe.name for recipe in suite.recipes]
    assert max(Counter(names).values()) == 1
    assert not [n for n in names if re.search(STRAYS[name], n)]


def test_every_recipe_stands_in_a_table() -> None:
    assert set(TABLES) <= set(available_suites())
    shown = {recipe.name for name in TABLES for recipe in load_suite(name).recipes}
    assert shown == set(available_recipes())


def test_names_are_names_once() -> None:
    """`labelproof bench run NAME` would not know which is meant; `load_recipe` finds each one."""
    suites = [load_suite(name) for name in available_suites()]
    grids = [recipe for suite in suites for recipe in suite.recipes if recipe.name in suite.cells]
    names = [*available_recipes(), *available_suites(), *(recipe.name for recipe in grids)]
    assert len(set(names)) == len(names)
    assert len(grids) > 200
    for recipe in (grids[0], grids[-1]):
        assert load_recipe(recipe.name) == recipe


def test_a_suite_of_ones_own(mine: Path) -> None:
    suite = load_suite(str(mine))
    assert (suite.name, suite.title, suite.seeds, suite.about) == ("mine", "mine", 2, "")
    made = {recipe.name: recipe for recipe in suite.recipes}
    assert list(made)[:4] == [f"elr-cifar10-sym{rate}" for rate in (20, 40, 60, 80)]
    assert suite.cells["told-small-pair35-mine"] == Cell("told", "small", "pairflip:0.35")
    assert made["told-small-pair35-mine"].train == {
        "data": "digits", "device": "cpu", "epochs": 3, "lr": 0.5, "method": "self-paced", "noise_rate": 0.35,
        "noise": "pairflip:0.35",
    }  # fmt: skip
    assert made["ce-small-sym40-mine"].train["method"] == "ce"
    assert made["ce-small-sym40-mine"].train["epochs"] == 2
    assert (suite.titles, suite.notes) == ({"told": "told the rate"}, {"told": "a note"})
    for recipe in suite.recipes:
        check_recipe(recipe)


def test_the_rate_of_labels_as_they_are(mine: Path) -> None:
    mine.write_text(MINE.replace('"pairflip:0.35"', '"human"').replace("rows =", "rate = 0.2\nrows ="))
    train = {recipe.name: recipe.train for recipe in load_suite(str(mine)).recipes}["told-small-human-mine"]
    assert train["noise_rate"] == 0.2
    assert "noise" not in train


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("title = \"mine\"", "titel = \"mine\""), "unknown key titel: did you mean 'title'?"),
        (("seeds = 2", ""), "seeds is missing"),
        (("title = \"mine\"", ""), "title is missing"),
        (("elr-cifar10-sym*", "elr-cifar11-sym40"), "'elr-cifar11-sym40': did you mean 'elr-cifar10-sym40'?"),
        (("elr-cifar10-sym*", "nothing-*"), "no recipe is called 'nothing-*'"),
        (("noises =", "noise ="), "unknown key grid.noise: did you mean 'noises'?"),
        (('data = "digits"', ""), "grid.data is missing"),
        (('"pairflip:0.35"', '"human"'), "row told is told the rate: grid.rate of small is missing"),
        (("seeds = 2", "seeds = "), "is not a TOML file"),
    ],
)  # fmt: skip
def test_mistakes_name_the_file_and_the_key(mine: Path, change: tuple[str, str], says: str) -> None:
    assert MINE.count(change[0]) == 1
    mine.write_text(MINE.replace(*change))
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the text follows)
        load_suite(str(mine))
    assert str(error.value).startswith(f"suite {mine}")
    assert says in str(error.value)


def test_a_suite_of_nothing(mine: Path) -> None:
    mine.write_text('title = "mine"\nseeds = 2\n')
    with pytest.raises(ValueError, match=r"mine\.toml: it names no recipes and has no \[\[grid\]\]"):
        load_suite(str(mine))


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown suite 'co-teachin': did you mean 'co-teaching'"):
        load_suite("co-teachin")
    with pytest.raises(ValueError, match=r"suite .*nowhere\.toml cannot be read: No such file"):
        load_suite(str(tmp_path / "nowhere.toml"))
