"""Every packaged recipe is one that can be run; a file of one's own is checked to the last key."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from labelproof.data import catalog, noise
from labelproof.engine.settings import Settings
from labelproof.flags import check_recipe, of_recipe
from labelproof.methods import METHODS
from labelproof.networks import build
from labelproof.recipes import Recipe, available_recipes, load_recipe

RECIPES = available_recipes()

GOOD = """
title = "mine"
citation = "me, 2026"
source = "my notebook"

[expected]
mean = 97
metric = "test_accuracy"
evidence = "P"

[train]
data = "digits"
method = "elr"
lam = 2
epochs = 3
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize("name", RECIPES)
def test_each_can_be_run(name: str) -> None:
    recipe = load_recipe(name)
    check_recipe(recipe)  # flags and their types
    flags = dict(recipe.train)
    assert flags.pop("data") in catalog.NAMES
    if "noise" in flags:
        spec = noise.parse(str(flags.pop("noise")))
        assert spec.kind.startswith(name[:3]), "the noise model of the recipe's own paper"
        assert f"{round(100 * spec.rate)} %" in recipe.title
        assert name.endswith(f"sym{round(100 * spec.rate)}")
    kind = METHODS[str(flags.pop("method"))]
    kind(**{key: flags.pop(key) for key in kind.param_names() if key in flags})
    with torch.device("meta"):
        build(str(flags.pop("network")), (3, 32, 32), 10)
    Settings(**flags)


@pytest.mark.parametrize("name", RECIPES)
def test_each_says_what_is_expected_and_where_that_is_from(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.expected is not None
    assert 0 < recipe.expected.mean < 100
    assert recipe.expected.sd is None or recipe.expected.sd < 2
    assert "20" in recipe.citation
    assert recipe.deviations
    if recipe.expected.metric == "test_accuracy_at_best_val":
        assert float(recipe.train["validation_fraction"]) > 0, "no best epoch without held-out labels"


def test_the_published_schedules_of_elr() -> None:
    paper, cosine = load_recipe("elr-cifar10-sym40").train, load_recipe("elr-cosine-cifar10-sym40").train
    assert (paper["schedule"], paper["epochs"]) == ("multistep:40,80:0.01", 120)
    assert (cosine["schedule"], cosine["epochs"]) == ("restarts:10:0.05", 150)
    assert load_recipe("elr-cifar100-asym20").train["schedule"] == "multistep:80,120:0.01"
    for name, lam, beta in (("cifar10-sym80", 3, 0.7), ("cifar10-asym40", 1, 0.9), ("cifar100-sym20", 7, 0.9)):
        flags = load_recipe(f"elr-{name}").train
        assert (flags["lam"], flags["beta"], flags["weight_decay"]) == (lam, beta, 1e-3)


def test_a_file_of_ones_own(mine: Path) -> None:
    recipe = load_recipe(str(mine))
    assert (recipe.name, recipe.title, str(recipe.expected), recipe.deviations) == ("mine", "mine", "97.00", ())
    assert of_recipe(recipe) == ["--method=elr", "--lam=2", "--epochs=3"]
    assert of_recipe(recipe, ["--method", "ce"]) == ["--method=elr", "--epochs=3"]


def test_switches(mine: Path) -> None:
    mine.write_text(GOOD + "early_stopping = true\nweight_decay = 0.0\n")
    assert of_recipe(load_recipe(str(mine)))[-2:] == ["--early-stopping", "--weight-decay=0.0"]
    mine.write_text(GOOD + "early_stopping = false\n")
    assert of_recipe(load_recipe(str(mine)))[-1] == "--no-early-stopping"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("title", "titel"), "unknown key titel: did you mean 'title'? There are: title, citation"),
        (('citation = "me, 2026"', ""), "citation is missing"),
        (('source = "my notebook"', "source = 7"), "source=7 must be text"),
        (("[train]", "[training]"), "unknown key training: did you mean 'train'?"),
        (("mean = 97", "mean = 970"), "expected.mean=970 must lie in [0, 100]"),
        (("mean = 97", "maen = 97"), "unknown key expected.maen: did you mean 'mean'?"),
        (("mean = 97", "mean = true"), "expected.mean=True must be a whole number or a number"),
        (("mean = 97\n", ""), "expected.mean is missing"),
        (('"P"', '"hearsay"'), "expected.evidence='hearsay' must be one of R, P, S"),
        (('"test_accuracy"', '"test"'), "expected.metric='test' must be one of test_accuracy, "),
        (("epochs = 3", 'out = "x"'), "train.out belongs on the command line"),
        (("epochs = 3", "help = true"), "train.help belongs on the command line"),
        (("epochs = 3", "epochs = [3]"), "train.epochs=[3] must be text or a whole number or a number or"),
        (("epochs = 3", "epochs = "), "is not a TOML file: Invalid value"),
    ],
)  # fmt: skip
def test_mistakes_name_the_file_and_the_key(mine: Path, change: tuple[str, str], says: str) -> None:
    mine.write_text(GOOD.replace(*change))
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the text follows)
        load_recipe(str(mine))
    assert str(error.value).startswith(f"recipe {mine}")
    assert says in str(error.value)


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown recipe 'elr-cifar10-sym4': did you mean 'elr-cifar10-sym40'"):
        load_recipe("elr-cifar10-sym4")
    with pytest.raises(ValueError, match=r"nowhere\.toml cannot be read: No such file"):
        load_recipe(str(tmp_path / "nowhere.toml"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("epochs", "epoch"), "unknown flag --epoch: did you mean '--epochs'?"),
        (("lam = 2", "q = 0.7"), "unknown flag --q: it is an option of --method gce;"),
        (("epochs = 3", 'epochs = "many"'), "--epochs: "),
    ],
)
def test_flags_are_checked_as_if_typed(
    mine: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], says: str
) -> None:
    mine.write_text(GOOD.replace(*change))
    with pytest.raises(SystemExit):
        check_recipe(load_recipe(str(mine)))
    assert f"recipe {mine}: {says}" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("epochs = 3", 'early_stopping = "yes"'), "train.early_stopping='yes' must be true or false"),
        (("lam = 2", "lam = true"), "train.lam takes a value, not true or false"),
        (("lam = 2", "lam = -3.0"), "lam=-3.0 must lie in [0, inf)"),
        (("epochs = 3", "epochs = 0"), "epochs=0 must lie in [1, inf)"),
    ],
)
def test_values_are_checked_before_anything_is_read(mine: Path, change: tuple[str, str], says: str) -> None:
    mine.write_text(GOOD.replace(*change))
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the text follows)
        check_recipe(load_recipe(str(mine)))
    assert str(error.value).startswith(f"recipe {mine}: {says}")


def test_an_unknown_method(mine: Path) -> None:
    mine.write_text(GOOD.replace('"elr"', '"erl"'))
    recipe: Recipe = load_recipe(str(mine))
    with pytest.raises(ValueError, match=f"recipe {mine}: unknown method 'erl': did you mean 'elr'"):
        check_recipe(recipe)
