"""Recipes: one TOML file per published number, with the flags of `labelproof train` that are meant to reach it.

```toml
title = "ELR, CIFAR-10, 40 % symmetric noise"
citation = "Liu et al., NeurIPS 2020"
source = "Table 1, row ELR"
deviations = ["what is known to differ from the paper"]

[expected]                # left out where there is nothing to expect
mean = 89.15              # per cent
sd = 0.17                 # left out where unknown
runs = 5
metric = "test_accuracy_at_best_val"
evidence = "R"            # where the number was read, see EVIDENCE

[train]                   # flags by their names, underscores for dashes
data = "cifar10"
method = "elr"
noise = "elr-sym:0.4"
```

A training that starts from an encoder says where that is from. Either it is made first,

```toml
[pretrain]                # flags of `labelproof pretrain`; data is that of [train] if left out
network = "resnet50"
epochs = 1000
```

or it is brought along: `needs = "an ImageNet32 ResNet-50"`, beside the title, says what `--encoder FILE` has to be.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelproof.core.registry import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

#: Where a published number was read.
EVIDENCE = {
    "R": "the repository of those who report it",
    "P": "the paper itself",
    "S": "a transcription of the paper's table",
}
METRICS = {
    "test_accuracy": "test accuracy, last epoch",
    "test_accuracy_last10": "mean test accuracy of the last 10 epochs",
    "test_accuracy_at_best_val": "test accuracy at the best epoch on noisy validation labels",
    "test_accuracy_best": "test accuracy at the epoch that was best on the test labels: an oracle's",
}
_TEXTS = ("title", "citation", "source")
_TOP = (*_TEXTS, "needs", "deviations", "expected", "pretrain", "train")
_EXPECTED = ("mean", "sd", "runs", "metric", "evidence")
#: Flags of a call, not of an experiment.
_NEVER = {
    "train": ("help", "recipe", "out", "resume", "quiet", "tensorboard"),
    "pretrain": ("help", "out", "run", "resume", "quiet", "seed"),
}


@dataclass(frozen=True)
class Expected:
    """A published number.

    Attributes:
        mean: per cent.
        sd: standard deviation over `runs`, in percentage points; `None` if unknown.
        runs: how many the mean is over; `None` if unknown.
        metric: key of a run's result that it is comparable with, one of `METRICS`.
        evidence: where the number was read, one of `EVIDENCE`.
    """

    mean: float
    metric: str
    evidence: str
    sd: float | None = None
    runs: int | None = None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.sd is None else f" ± {self.sd:.2f}")


@dataclass(frozen=True)
class Recipe:
    """An experiment, ready to run.

    Attributes:
        name: of the file, without its ending.
        title: one line.
        citation: of the paper.
        source: the table of the number, and where the settings are from.
        train: flags of `labelproof train` by name, underscores for dashes.
        expected: the published number, if there is one.
        deviations: what is known to differ from the publication.
        path: the file.
        pretrain: flags of `labelproof pretrain`, which makes the encoder that training starts from, with its `data`;
            `None` if there is nothing to make.
        needs: what encoder the user has to bring along; empty if none.
    """

    name: str
    title: str
    citation: str
    source: str
    train: Mapping[str, str | int | float | bool]
    expected: Expected | None
    deviations: tuple[str, ...]
    path: Path
    pretrain: Mapping[str, str | int | float | bool] | None = None
    needs: str = ""


def available_recipes() -> list[str]:
    """Names of the packaged recipes that are files; those of the grids of suites stand in `load_suite(name).cells`.

    >>> "elr-cifar10-sym40" in available_recipes()
    True
    """
    return sorted(p.stem for p in Path(__file__).parent.glob("*.toml"))


def load_recipe(name: str) -> Recipe:
    """Read and check a recipe; its flags themselves are checked by the command line.

    Args:
        name: a packaged recipe, one of a packaged suite, or the path of a `.toml` file.

    Raises:
        ValueError: there is no such recipe, or the file is not one; the message names file and key.

    >>> recipe = load_recipe("elr-cifar10-sym40")
    >>> str(recipe.expected), recipe.train["lam"]
    ('89.15 ± 0.17', 3.0)
    """
    if name.endswith(".toml"):
        return _recipe(read_toml(Path(name), "recipe"), Path(name))
    names = available_recipes()
    if name in names:
        path = Path(__file__).parent / f"{name}.toml"
        return _recipe(read_toml(path, "recipe"), path)
    grids = _of_grids(name)
    if name in grids:
        return grids[name]
    hint = did_you_mean(name, [*names, *grids])
    raise ValueError(f"unknown recipe {name!r}{hint} see labelproof recipes, or give a .toml file of your own")


def _of_grids(name: str) -> dict[str, Recipe]:
    """The recipes that grids of packaged suites make, by name: of the suite that a name ends in, else of all."""
    from labelproof.recipes.suites import available_suites, load_suite  # which imports this module

    ending = [suite for suite in available_suites() if name.endswith(f"-{suite}")]
    suites = [load_suite(suite) for suite in ending or available_suites()]
    return {recipe.name: recipe for suite in suites for recipe in suite.recipes if recipe.name in suite.cells}


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The contents of a TOML file.

    Raises:
        ValueError: it cannot be read, or is none.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{what} {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise ValueError(f"{what} {path} is not a TOML file: {error}") from error


def _recipe(found: Mapping[str, Any], path: Path) -> Recipe:
    known_keys(found, _TOP, f"recipe {path}")
    for key in (*_TEXTS, "train"):
        if not found.get(key):
            raise ValueError(f"recipe {path}: {key} is missing")
    for key in _TEXTS:
        _typed(found[key], str, key, path)
    deviations = _typed(found.get("deviations", []), list, "deviations", path)
    train = _flags(found["train"], "train", path)
    return Recipe(
        name=path.stem,
        **{key: found[key] for key in _TEXTS},
        train=train,
        expected=_expected(_typed(found["expected"], dict, "expected", path), path) if "expected" in found else None,
        deviations=tuple(_typed(d, str, "deviations", path) for d in deviations),
        path=path,
        pretrain=_pretrain(found, train, path),
        needs=_typed(found.get("needs", ""), str, "needs", path),
    )


def _flags(found: Any, table: str, path: Path) -> dict[str, Any]:
    flags: dict[str, Any] = _typed(found, dict, table, path)
    for key, value in flags.items():
        if key.replace("-", "_") in _NEVER[table]:
            why = "follows that of the training" if key == "seed" else "belongs on the command line"
            raise ValueError(f"recipe {path}: {table}.{key} {why}")
        _typed(value, (str, int, float, bool), f"{table}.{key}", path)
    return flags


def _pretrain(found: Mapping[str, Any], train: Mapping[str, Any], path: Path) -> dict[str, Any] | None:
    """The table [pretrain] with its data; refused where an encoder is said to come from two places."""
    there = [key for key in ("pretrain", "needs") if key in found] + ["train.encoder"] * ("encoder" in train)
    if len(there) > 1:
        raise ValueError(
            f"recipe {path}: {' and '.join(there)} each say where the encoder is from: leave all but one out"
        )
    if "pretrain" not in found:
        return None
    data = {"data": train["data"]} if "data" in train else {}
    return {**data, **_flags(found["pretrain"], "pretrain", path)}


def _expected(found: Mapping[str, Any], path: Path) -> Expected:
    known_keys(found, _EXPECTED, f"recipe {path}", "expected.")
    for key in ("mean", "metric", "evidence"):
        if key not in found:
            raise ValueError(f"recipe {path}: expected.{key} is missing")
    for key, table in (("metric", METRICS), ("evidence", EVIDENCE)):
        if found[key] not in table:
            raise ValueError(f"recipe {path}: expected.{key}={found[key]!r} must be one of {', '.join(table)}")
    for key, kinds, high in (("mean", (int, float), 100), ("sd", (int, float), 100), ("runs", int, 10**6)):
        if key in found and not 0 <= _typed(found[key], kinds, f"expected.{key}", path) <= high:
            raise ValueError(f"recipe {path}: expected.{key}={found[key]!r} must lie in [0, {high}]")
    return Expected(**found)


def known_keys(found: Iterable[str], known: Iterable[str], origin: str, inside: str = "") -> None:
    """Refuse a key that is none of those known."""
    for key in found:
        if key not in known:
            hint = did_you_mean(key, known)
            raise ValueError(f"{origin}: unknown key {inside}{key}{hint} There are: {', '.join(known)}")


def _typed(value: Any, kinds: type | tuple[type, ...], key: str, path: Path) -> Any:
    allowed = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        names = {str: "text", int: "a whole number", float: "a number", bool: "true or false", dict: "a table"}
        wanted = " or ".join(names.get(kind, "a list of texts") for kind in allowed)
        raise ValueError(f"recipe {path}: {key}={value!r} must be {wanted}")
    return value
