"""Suites: many recipes under one name. Published tables by the names of their recipes, and grids of small experiments.

```toml
title = "All methods on small data"
about = "what a reader should know"
seeds = 3                             # how many, from 0
recipes = ["elr-cifar10-sym*"]        # packaged recipes, by pattern

[train]                               # flags that all experiments of the grids share
device = "cpu"

[[grid]]                              # every row under every noise: recipes called ROW-NAME-NOISE-SUITE
name = "digits"
data = "digits"
noises = ["symmetric:0.4", "human"]   # human: the labels as they are
rate = 0.4                            # told where labels are as they are
rows = ["ce", "elr"]
train = { network = "cnn", epochs = 20 }

[rows.elr]                            # what a row is; one that is not listed is the method of that name
title = "ELR"
note = "λ as in the paper"
train = { method = "elr", lam = 3.0 }
pairflip = { lam = 1.0 }              # what differs under a kind of noise
digits = { epochs = 10 }              # or in a grid
```

`"{rate}"` as a value is the rate of the noise, for methods that are told it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from labelproof.core.registry import did_you_mean
from labelproof.recipes import Recipe, available_recipes, known_keys, load_recipe, read_toml

_FOLDER = Path(__file__).parent.parent / "suites"
_TOP = ("title", "about", "seeds", "recipes", "train", "grid", "rows")
_GRID = ("name", "data", "noises", "rate", "rows", "train")
_SHORT = {"symmetric": "sym", "pairflip": "pair", "instance-dependent": "inst", "asymmetric": "asym"}
_SAID = {str: "text", int: "a whole number", list: "a list", dict: "a table"}
_RATED = re.compile(r"[\w-]+:[\d.]+")
#: Labels as they are: nothing is injected.
HUMAN = "human"


@dataclass(frozen=True)
class Cell:
    """Where a recipe of a grid stands in the table.

    Attributes:
        row: its row, as in the file.
        grid: the data.
        noise: KIND:RATE, or "human".
    """

    row: str
    grid: str
    noise: str


@dataclass(frozen=True)
class Suite:
    """Recipes that are run and shown together.

    Attributes:
        name: of the file.
        title, about: for people.
        seeds: how many runs each recipe gets.
        recipes: in the order of the table.
        cells: of the recipes that a grid made, by name.
        titles: of the rows, for people.
        notes: what is told about a row, by row.
        path: the file.
    """

    name: str
    title: str
    about: str
    seeds: int
    recipes: tuple[Recipe, ...]
    cells: Mapping[str, Cell]
    titles: Mapping[str, str]
    notes: Mapping[str, str]
    path: Path


def available_suites() -> list[str]:
    """Names of the packaged suites."""
    return sorted(p.stem for p in _FOLDER.glob("*.toml"))


def packaged(path: Path) -> bool:
    """Whether a suite is one of those that are known by name."""
    return path.parent == _FOLDER


def load_suite(name: str) -> Suite:
    """Read and check a suite.

    Args:
        name: a packaged suite, or the path of a `.toml` file.

    Raises:
        ValueError: there is no such suite, or the file is not one; the message names file and key.
    """
    path = Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    if not name.endswith(".toml") and name not in available_suites():
        raise ValueError(
            f"unknown suite {name!r}{did_you_mean(name, available_suites())} There are: {', '.join(available_suites())}"
        )
    found = read_toml(path, "suite")
    known_keys(found, _TOP, f"suite {path}")
    _check(found, path)
    names = available_recipes()
    published: list[str] = []
    for pattern in found.get("recipes", []):
        fitting = [n for n in names if fnmatch(n, pattern)]
        if not fitting:
            raise ValueError(f"suite {path}: no recipe is called {pattern!r}{did_you_mean(pattern, names)}")
        published += [n for n in fitting if n not in published]
    made = [each for grid in found.get("grid", []) for each in _grid(grid, found, path)]
    return Suite(
        name=path.stem,
        title=found["title"],
        about=found.get("about", ""),
        seeds=int(found["seeds"]),
        recipes=(*map(load_recipe, published), *(recipe for recipe, _ in made)),
        cells={recipe.name: cell for recipe, cell in made},
        titles={row: spec["title"] for row, spec in found.get("rows", {}).items() if "title" in spec},
        notes={row: spec["note"] for row, spec in found.get("rows", {}).items() if "note" in spec},
        path=path,
    )


def _check(found: Mapping[str, Any], path: Path) -> None:
    """Refuse values of a wrong kind, and settings of rows that would never count."""
    kinds = {"title": str, "about": str, "seeds": int, "recipes": list, "train": dict, "grid": list, "rows": dict}
    for key, kind in kinds.items():
        if key in ("title", "seeds") and key not in found:
            raise ValueError(f"suite {path}: {key} is missing")
        if not isinstance(found.get(key, kind()), kind):
            raise ValueError(f"suite {path}: {key}={found[key]!r} must be {_SAID[kind]}")
    if found["seeds"] < 1 or isinstance(found["seeds"], bool):
        raise ValueError(f"suite {path}: seeds={found['seeds']} must be a whole number above 0")
    grids = found.get("grid", [])
    if not grids and not found.get("recipes"):
        raise ValueError(f"suite {path}: it names no recipes and has no [[grid]]")
    names = [grid.get("name") for grid in grids]
    spelt = [str(noise).partition(":")[0] for grid in grids for noise in grid.get("noises", [])]
    for row, spec in found.get("rows", {}).items():
        known_keys(
            spec, ("title", "note", "train", *dict.fromkeys((*_SHORT, *spelt, *names))), f"suite {path}", f"rows.{row}."
        )


def _grid(grid: Mapping[str, Any], suite: Mapping[str, Any], path: Path) -> list[tuple[Recipe, Cell]]:
    known_keys(grid, _GRID, f"suite {path}", "grid.")
    for key in ("name", "data", "noises", "rows"):
        if key not in grid:
            raise ValueError(f"suite {path}: grid.{key} is missing")
    if not isinstance(grid.get("train", {}), dict):
        raise ValueError(f"suite {path}: grid.train={grid['train']!r} must be a table")
    specs: Mapping[str, Any] = suite.get("rows", {})
    made = []
    for noise in grid["noises"]:
        if noise != HUMAN and not _RATED.fullmatch(noise):
            raise ValueError(f"suite {path}: noises of {grid['name']} has {noise!r}: it must be KIND:RATE or {HUMAN!r}")
        for row in grid["rows"]:
            spec = specs.get(row, {})
            own = spec.get("train", {"method": row})
            train = {"data": grid["data"], **suite.get("train", {}), **grid.get("train", {}), **own}
            kind, _, rate = noise.partition(":")
            train |= {**spec.get(kind, {}), **spec.get(grid["name"], {})}
            told = float(rate) if rate else grid.get("rate")
            if noise != HUMAN:
                train["noise"] = noise
            train = {key: told if value == "{rate}" else value for key, value in train.items()}
            if None in train.values():
                raise ValueError(f"suite {path}: row {row} is told the rate: grid.rate of {grid['name']} is missing")
            slug = HUMAN if noise == HUMAN else f"{_SHORT.get(kind, kind)}{round(100 * float(rate))}"
            recipe = Recipe(
                name=f"{row}-{grid['name']}-{slug}-{path.stem}",
                title=f"{spec.get('title', row)} on {grid['name']}, {noise}",
                citation="this project",
                source=f"suite {path.stem}",
                train=train,
                expected=None,
                deviations=("a small network, few samples and few epochs: not comparable with any publication",),
                path=path,
            )
            made.append((recipe, Cell(row, grid["name"], noise)))
    return made
