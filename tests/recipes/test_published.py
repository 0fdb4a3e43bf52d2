"""What packaged recipes expect is what was published, cell by cell, and nothing that could not be verified."""

from __future__ import annotations

import re

import pytest

from labelproof.recipes import available_recipes, load_recipe
from tests.recipes import sheet
from tests.recipes.sheet import Number, Place

RECIPES = available_recipes()
with_sheet = pytest.mark.skipif(not sheet.SHEET.is_file(), reason=f"no published numbers: {sheet.SHEET} is not there")
#: Where numbers of a table were read; ELR's own rows stand in its repository too.
EVIDENCE = {"9.1": "S", "9.2": "S", "9.3": "S", "9.5": "P", "9.6": "R", "9.7": "P", "9.8": "S", "9.9": "S"}
#: Rows (of 9.5 columns) whose every verified number has a recipe: those of methods and networks that are here.
OURS = {
    ("9.1", 0): ("CE", "Bootstrap", "Forward", "GCE", "SL", "ELR", "ELR cosine"),
    ("9.1", 1): ("CE", "Bootstrap", "Forward", "GCE", "SL", "ELR", "ELR cosine"),
    ("9.2", 0): ("CE", "Co-teaching+", "Mixup", "ELR+"),
    ("9.5", 0): ("Standard", "Bootstrap", "F-corr", "Decoupling", "MentorNet", "Co-teaching"),
    ("9.6", 0): ("F-correction", "Decoupling", "Co-teaching", "MentorNet", "D2L", "Ours (INCV)"),
    ("9.7", 0): ("MLNT / F-corr / M-corr (PRN18)",),
    ("9.7", 1): ("none PRN18 CCE", "MLNT / F-corr / M-corr"),
    ("9.9", 0): ("CE", "Co-teaching", "Co-teaching+", "ELR", "ELR+", "DivideMix", "SOP+"),
    ("9.9", 1): ("CE", "Co-teaching", "Co-teaching+", "ELR", "ELR+", "DivideMix", "SOP", "SOP+"),
}
STARTS = ("ImageNet32 RN50", "SimCLR RN50")


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("91.16±.08", Number(91.16, 0.08)),
        ("53.82±1.04", Number(53.82, 1.04)),
        ("60.37 (one copy 60.30)±.27", Number(60.37, 0.27)),
        ("95.8*", Number(95.8, None)),
        ("58.27", Number(58.27, None)),
        ("–", None),
        ("unverified", None),
        ("[S]", None),
    ],
)
def test_reading_a_cell(cell: str, number: Number | None) -> None:
    assert sheet.number(cell) == number


@with_sheet
def test_reading_the_sheet() -> None:
    """Cells of each kind of table, against what the eye reads there."""
    for place, number in {
        Place("9.1", 1, "ELR cosine", "asym 30"): Number(74.02, 0.33),
        Place("9.2", 0, "ELR+*", "C100 sym 20"): Number(77.6, None),
        Place("9.3", -1, "SOP+ C10", "sym 80 %"): Number(94.0, None),
        Place("9.5", 0, "C100 sym50", "Bootstrap"): Number(21.98, 6.36),
        Place("9.5", -1, "sym50", "1.25"): Number(98.62, None),
        Place("9.6", 0, "D2L", "sym .5"): Number(67.39, 13.62),
        Place("9.7", 0, "SimCLR RN50 MWNet", "95"): Number(87.23, None),
        Place("9.7", 1, "MLNT / F-corr / M-corr", "90"): Number(10.2, None),
        Place("9.9", 0, "ELR", "Random1"): None,
        Place("9.9", 1, "SOP", "C100 clean"): Number(72.97, 1.15),
        Place("9.9", -1, "Co-teaching", "Random3"): Number(90.15, None),
    }.items():
        assert sheet.at(place) == number, place


@with_sheet
@pytest.mark.parametrize("name", RECIPES)
def test_each_number_stands_in_the_sheet(name: str) -> None:
    expected, place = load_recipe(name).expected, sheet.place(name)
    assert expected is not None
    assert place is not None, "no table is known for recipes of this name"
    assert sheet.at(place) == Number(expected.mean, expected.sd), place
    tag = "R" if "-rescience-" in name else EVIDENCE[place.section]
    assert expected.evidence == tag or (place.row.startswith("ELR") and expected.evidence == "R")


@with_sheet
def test_each_verified_number_of_what_is_here_has_one_recipe() -> None:
    places = [sheet.place(name) for name in RECIPES]
    assert len(set(places)) == len(places), "two recipes for one number"
    wanted = set()
    for section in dict.fromkeys(s for s, _ in OURS):
        for place, cell in sheet.cells(section).items():
            ours = OURS.get((place.section, place.table), ())
            read = sheet.at(place) if place.row.startswith("MLNT") else sheet.number(cell)
            there = place.column if section == "9.5" else place.row
            if read and (there in ours or (section == "9.7" and place.row.startswith(STARTS))):
                wanted.add(place)
    assert wanted - set(places) == {Place("9.7", 1, "none PRN18 CCE", "20")}, "but for what 9.2 has as well"
    assert {Place("9.8", -1, "C10", "asym40"), Place("9.8", -1, "C100", "sym90")} <= set(places)
    assert len(wanted) > 350


def test_unverified_numbers_have_no_recipe() -> None:
    """Section 14 of the sheet: by what a recipe for them would be called, or would say."""
    for name in RECIPES:
        recipe = load_recipe(name)
        assert recipe.expected is not None
        assert not str(recipe.train["method"]).startswith(("prl", "co-prl"))  # 14.1
        assert not re.match(r"sop(-plus)?-cifar100?-(?!sym80$)", name) or name == "sop-plus-cifar10-sym80"  # 14.2
        assert not re.match(r"elr-plus-cifar100-sym(50|80|90)", name)  # 14.3
        assert name.rpartition("-")[2] != "asym40" or "simclr" not in name  # 14.5
        if name.startswith("dividemix-cifar"):
            assert recipe.expected.metric == "test_accuracy_best"  # 14.6: means over ten epochs
        assert name not in {f"{m}-cifar10n-random1" for m in ("ce", "elr", "elr-plus", "dividemix")}  # 14.7
        if name.startswith("sop-plus-cifar") and name != "sop-plus-cifar10n-aggre":
            assert recipe.expected.sd is None  # 14.2 and 14.7
        if recipe.train["method"] in {"d2l", "gce", "decoupling", "forward", "mw-net"}:  # 14.8: as re-reported only
            assert re.search("Han et al|Liu et al|Chen et al|Ghosh", recipe.source + recipe.citation)


@pytest.mark.parametrize("name", RECIPES)
def test_the_metric_is_that_of_the_table(name: str) -> None:
    """Section 10 of the sheet: which epoch a paper reports."""
    recipe = load_recipe(name)
    ten, best, held = "test_accuracy_last10", "test_accuracy_best", "test_accuracy_at_best_val"
    oracle = r"dividemix|co-teaching-plus|ce-mixup|forward-preact18|ce-preact18-.*sym|.*-rescience-|.*-cifar100?n"
    metric = recipe.expected and recipe.expected.metric
    if "cnn9" in str(recipe.train["network"]):
        assert metric == ten
    elif re.match(oracle, name):
        assert metric == best
    elif re.match(r"elr|.*-resnet34-.*sym", name):
        assert metric == held
    else:
        assert metric == "test_accuracy"
    assert not any("this is the last epoch's" in text for text in recipe.deviations)


@pytest.mark.parametrize("name", RECIPES)
def test_names_say_method_data_and_noise(name: str) -> None:
    flags = load_recipe(name).train
    method = str(flags["method"]).replace("+", "-plus").replace("self-paced", "mentornet")
    data, _, human = str(flags["data"]).partition(":")
    kind, _, rate = str(flags.get("noise", "")).rpartition("-")[2].partition(":")
    noise = human or (f"{kind}{round(100 * float(rate))}" if rate else "clean" if not data.endswith("n") else "")
    start, end = f"{method}-", "-".join(filter(None, [data, noise]))
    assert name.startswith(start)
    assert name.endswith(f"-{end}")
    variant = name[len(start) : -len(end)].rstrip("-")
    networks = {"cnn9": "cnn9", "resnet34": "resnet34", "preact18": "preact-resnet18", "resnet32": "resnet32-keras"}
    networks |= {"simclr": "resnet50", "imagenet32": "resnet50", "mixup": "preact-resnet18"}
    assert flags["network"] == networks.get(variant, flags["network"])
    assert variant in {*networks, "", "rescience", "cosine", "tau50", "tau75", "tau125", "tau150"}
