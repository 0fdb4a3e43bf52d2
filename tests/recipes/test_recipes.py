"""Every packaged recipe is one that can be run; a file of one's own is checked to the last key."""

from __future__ import annotations

import inspect
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from labelproof.core.schedule import parse_schedule
from labelproof.core.types import Clock
from labelproof.data import catalog, noise
from labelproof.engine.settings import Settings
from labelproof.flags import FLAGS, Parser, check_recipe, of_recipe
from labelproof.methods import METHODS
from labelproof.networks import build
from labelproof.procedures.contrast import Contrast
from labelproof.recipes import Recipe, available_recipes, load_recipe

RECIPES = available_recipes()
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "cifar100": (3, 32, 32)}
#: Whose noise a recipe's labels get, by the first pattern that its name has: that of the paper its number stands in.
NOISE_OF = {
    r"-(simclr|imagenet32)-": "ghosh",
    r"-resnet32-|^incv-": "incv",
    r"-cnn9-|^(decoupling|mentornet|co-teaching)-(?!plus)": "coteaching",
    r"-preact18-|^ce-mixup-|^co-teaching-plus-|^dividemix-": "dividemix",
    r"-resnet34-|^elr-": "elr",
    r"^sop-": "sop",
}
#: Test accuracies of Co-teaching's paper: Decoupling, MentorNet, Co-teaching.
HAN = {
    "mnist-pair45": (58.03, 80.88, 87.63),
    "mnist-sym50": (81.15, 90.05, 91.32),
    "mnist-sym20": (95.70, 96.70, 97.25),
    "cifar10-pair45": (48.80, 58.14, 72.62),
    "cifar10-sym50": (51.49, 71.10, 74.02),
    "cifar10-sym20": (80.44, 80.76, 82.32),
    "cifar100-pair45": (26.05, 31.60, 34.81),
    "cifar100-sym50": (25.80, 39.00, 41.37),
    "cifar100-sym20": (44.52, 52.13, 54.23),
}

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
    data = str(flags.pop("data"))
    assert data in catalog.NAMES
    if "noise" in flags:
        spec = noise.parse(str(flags.pop("noise")))
        whose = next(noise for pattern, noise in NOISE_OF.items() if re.search(pattern, name))
        assert spec.kind.startswith(f"{whose}-"), "the noise model of the paper that the number stands in"
        assert ("c100" in spec.kind) == (data == "cifar100" and spec.kind.endswith("asym")), "the map of these classes"
        assert f"{round(100 * spec.rate)} %" in recipe.title
    kind = METHODS[str(flags.pop("method"))]
    kind(**{key: flags.pop(key) for key in kind.param_names() if key in flags})
    verified = int(flags.pop("verified", 0))
    assert verified % (100 if "cifar100" in data else 10) == 0, "of each class alike"
    assert can_be_built(str(flags.pop("network")), SHAPES[data.partition(":")[0].removesuffix("n")])
    Settings(**flags)
    if recipe.pretrain is not None:
        can_be_pretrained(recipe)


@cache
def can_be_built(network: str, shape: tuple[int, ...]) -> bool:
    with torch.device("meta"):
        build(network, shape, 10)
    return True


def can_be_pretrained(recipe: Recipe) -> None:
    """As if the table had been typed after `labelproof pretrain`."""
    assert recipe.pretrain is not None
    flags = dict(recipe.pretrain)
    data = str(flags.pop("data"))
    assert (data, flags["network"]) == (recipe.train["data"], recipe.train["network"]), "what fits the training"
    words = [data, "--out=x.safetensors", *(f"--{key.replace('_', '-')}={value}" for key, value in flags.items())]
    parser = Parser(prog="labelproof pretrain", allow_abbrev=False)
    FLAGS["pretrain"](parser, words)
    given = vars(parser.parse_args(words))
    for made in (Contrast, Settings):
        names = [name for name in inspect.signature(made).parameters if name in given]
        made(**{name: given[name] for name in names})


@pytest.mark.parametrize("name", RECIPES)
def test_each_says_what_is_expected_and_where_that_is_from(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.expected is not None
    assert 0 < recipe.expected.mean < 100
    assert recipe.expected.sd is None or recipe.expected.sd < 15
    assert re.search(r"\b20[012]\d\b", recipe.citation)
    assert len(recipe.title) <= 58, "one line of labelproof recipes"
    assert recipe.deviations
    assert len(set(recipe.deviations)) == len(recipe.deviations)
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


@pytest.mark.parametrize("where", HAN)
def test_the_published_settings_of_co_teaching(where: str) -> None:
    rate, start = int(where[-2:]) / 100, 100 if "cifar100" in where else 80
    for name, method, mean in zip(
        ("decoupling", "mentornet", "co-teaching"), ("decoupling", "self-paced", "co-teaching"), HAN[where], strict=True
    ):
        recipe = load_recipe(f"{name}-{where}")
        flags = recipe.train
        assert (flags["method"], recipe.expected and recipe.expected.mean) == (method, mean)
        assert flags.get("noise_rate", rate) == rate
        assert flags["noise"] == f"coteaching-{'pair' if 'pair' in where else 'sym'}:{rate:g}"
        assert (flags["network"], flags["augment"], flags["batch_size"], flags["epochs"]) == ("cnn9", "none", 128, 200)
        assert (flags["optimizer"], flags["lr"], flags["schedule"]) == ("adam", 0.001, f"linear:{start}")
        beta = parse_schedule(str(flags["momentum_schedule"]), "momentum_schedule")
        plan = [0.9 * beta(Clock(e, 200, 0, 1, torch.Generator())) for e in (0, start - 1, start, 199)]
        assert plan == pytest.approx([0.9, 0.9, 0.1, 0.1], abs=1e-4)


def test_drop_rates_around_the_noise_rate() -> None:
    """Co-teaching's study on MNIST: only the drop rate differs from the recipe of the table."""
    for kind in ("pair45", "sym50", "sym20"):
        table = load_recipe(f"co-teaching-mnist-{kind}").train
        for share in (50, 75, 125, 150):
            flags = load_recipe(f"co-teaching-tau{share}-mnist-{kind}").train
            assert flags == {**table, "noise_rate": pytest.approx(float(table["noise_rate"]) * share / 100)}


@pytest.mark.parametrize(
    ("name", "mean", "options"),
    [
        ("elr-plus-cifar10-sym90", 75.2, {"lam": 3, "beta": 0.7, "twin_ramp": 40000, "schedule": "multistep:150:0.1"}),
        ("elr-plus-cifar10-asym40", 92.7, {"lam": 1, "beta": 0.9, "twin_decay": 0.997, "epochs": 200}),
        ("elr-plus-cifar100-sym20", 77.5, {"lam": 7, "beta": 0.9, "lam_ramp": 40000, "reweight": True, "epochs": 250}),
        ("elr-plus-cifar10n-worse", 91.09, {"network": "preact-resnet18", "weight_decay": 5e-4}),
        ("dividemix-cifar10-sym80", 93.2, {"lambda_u": 25, "warmup": 10, "alpha": 4, "temperature": 0.5}),
        ("dividemix-cifar10-sym90", 76.0, {"lambda_u": 50, "uniform_prior": True}),
        ("dividemix-cifar10-asym40", 93.4, {"confidence_penalty": 1, "noise": "dividemix-asym:0.4"}),
        ("dividemix-cifar100-sym80", 60.2, {"lambda_u": 150, "warmup": 30}),
        ("dividemix-rescience-cifar100n", 70.91, {"lambda_u": 0, "warmup": 30, "data": "cifar100n"}),
        ("co-teaching-plus-cifar100-sym20", 65.6, {"noise": "dividemix-sym:0.2", "network": "preact-resnet18"}),
        ("co-teaching-rescience-cifar10n-worse", 80.92, {"noise_rate": 0.2, "data": "cifar10n:worse"}),
    ],
)
def test_the_published_settings_of_other_pairs(name: str, mean: float, options: dict[str, Any]) -> None:
    recipe = load_recipe(name)
    assert recipe.expected is not None
    assert recipe.expected.mean == mean
    assert {key: recipe.train[key] for key in options} == options


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
        (("[expected]", "[pretrian]\n[expected]"), "unknown key pretrian: did you mean 'pretrain'?"),
        (("[expected]", "[pretrain]\nepochs = [3]\n[expected]"), "pretrain.epochs=[3] must be text or a whole number"),
        (("[expected]", '[pretrain]\nout = "x"\n[expected]'), "pretrain.out belongs on the command line"),
        (("[expected]", "[pretrain]\nseed = 1\n[expected]"), "pretrain.seed follows that of the training"),
        (("[expected]", "pretrain = 3\n[expected]"), "pretrain=3 must be a table"),
        (("[expected]", "needs = 3\n[expected]"), "needs=3 must be text"),
        (("epochs = 3", "encoder = 'x'\n[pretrain]"), "pretrain and train.encoder each say where the encoder is from"),
        (("[expected]", "needs = 'x'\n[pretrain]\n[expected]"), "pretrain and needs each say where the encoder is"),
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


def test_an_encoder_that_is_made_first(mine: Path) -> None:
    recipe = load_recipe(str(mine))
    assert (recipe.pretrain, recipe.needs) == (None, "")
    mine.write_text(GOOD + "[pretrain]\nepochs = 5\n")
    assert load_recipe(str(mine)).pretrain == {"data": "digits", "epochs": 5}
    mine.write_text(GOOD + '[pretrain]\ndata = "mnist"\n')
    assert load_recipe(str(mine)).pretrain == {"data": "mnist"}


def test_an_encoder_that_is_brought_along(mine: Path) -> None:
    mine.write_text('needs = "a ResNet-50"' + GOOD)
    recipe = load_recipe(str(mine))
    assert (recipe.pretrain, recipe.needs) == (None, "a ResNet-50")


def test_contrastive_initialisation_says_where_its_encoder_is_from() -> None:
    """SimCLR's settings, section 7c of the sheet; ImageNet32's features are not ours to make."""
    settings = {"network": "resnet50", "temperature": 0.5, "epochs": 1000, "batch_size": 1024, "optimizer": "lars"}
    settings |= {"lr": 4.0, "momentum": 0.9, "weight_decay": 1e-6, "schedule": "warmup:10+cosine", "width": 128}
    for name in RECIPES:
        recipe = load_recipe(name)
        assert (recipe.pretrain is not None) == ("-simclr-" in name)
        assert recipe.needs.startswith("an ImageNet32 ResNet-50: --encoder FILE") == ("-imagenet32-" in name)
        if recipe.pretrain is not None:
            assert recipe.pretrain == {"data": recipe.train["data"], **settings}
        if recipe.pretrain is not None or recipe.needs:
            flags = {key: recipe.train[key] for key in ("epochs", "batch_size", "lr", "weight_decay", "schedule")}
            assert tuple(flags.values()) == (120, 100, 0.01, 1e-4, "warmup:1.2+cosine")


def test_recipes_of_suites_have_names_too() -> None:
    recipe = load_recipe("elr-digits-pair35-cpu")
    assert (recipe.name, recipe.train["beta"], recipe.expected) == ("elr-digits-pair35-cpu", 0.9, None)
    check_recipe(recipe)
    assert recipe.name not in RECIPES
    with pytest.raises(ValueError, match="'erl-digits-pair35-cpu': did you mean 'elr-digits-pair35-cpu'"):
        load_recipe("erl-digits-pair35-cpu")


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown recipe 'elr-cifar10-sym4': did you mean 'elr-cifar10-sym40'"):
        load_recipe("elr-cifar10-sym4")
    with pytest.raises(ValueError, match=r"nowhere\.toml cannot be read: No such file"):
        load_recipe(str(tmp_path / "nowhere.toml"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("epochs", "epoch"), "unknown flag --epoch: did you mean '--epochs'?"),
        (("lam = 2", "q = 0.7"), "unknown flag --q: it is an option of --method gce or simclr;"),
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


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("epoch = 3", "unknown flag --epoch: did you mean '--epochs'"),
        ("epochs = 0", "epochs=0 must lie in"),
        ("temperature = 0.0", "temperature=0.0 must lie in"),
        ("epochs = true", "pretrain.epochs takes a value, not true or false"),
        ("lam = 3.0", "unknown flag --lam"),
    ],
)
def test_flags_of_pretraining_are_checked_as_if_typed(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'title = "t"\ncitation = "c"\nsource = "s"\n[pretrain]\n' + line + '\n[train]\ndata = "digits"\nmethod = "ce"\n'
    )
    with pytest.raises((ValueError, SystemExit)) as caught:
        check_recipe(load_recipe(str(file)))
    told = f"{caught.value}{capsys.readouterr().err}"
    assert said in told
    assert "mine.toml" in told
