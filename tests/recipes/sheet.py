"""Reads published numbers out of the reference sheet, and says which of them each packaged recipe expects.

The recipes were not made from this: it is the other side of the comparison.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

#: Facts beside the checkout; tests that need it are skipped where it is not.
SHEET = Path(__file__).resolve().parents[3] / "shared" / "reference" / "methods.md"


class Place(NamedTuple):
    """A cell: the section, which of its tables, row and column by their labels there."""

    section: str
    table: int
    row: str
    column: str


class Number(NamedTuple):
    """What stands in a cell, per cent."""

    mean: float
    sd: float | None


def number(cell: str) -> Number | None:
    """The number in a cell; nothing where it is missing or unverified.

    `60.37 (one copy 60.30)±.27` is 60.37 ± 0.27.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\*?(?: \([^)]*\))?(?:±(\d*\.\d+))?", cell.strip())
    return found and Number(float(found[1]), None if found[2] is None else float(found[2]))


@cache
def section(name: str) -> str:
    """The text of a section, such as 9.1."""
    text = SHEET.read_text(encoding="utf-8")
    start = text.index(f"### {name} ")
    return text[start : re.compile(r"\n(###? |---)").search(text, start).start()]  # type: ignore[union-attr]


def _lines(table: list[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in table]


def _tables(name: str) -> Iterator[list[list[str]]]:
    block: list[str] = []
    for line in [*section(name).splitlines(), ""]:
        if line.startswith("|"):
            block.append(line)
        elif block:
            yield _lines(block)
            block = []


@cache
def cells(name: str) -> dict[Place, str]:
    """All cells of a section's tables.

    A header of `sym 20 | 40` means `sym 20 | sym 40`; a row of `〃 Lq` has the first words of the row before.
    """
    found = {}
    for k, (header, _, *rows) in enumerate(_tables(name)):
        kind, columns = "", []
        for label in header[1:]:
            kind = kind if re.fullmatch(r"\.?\d+", label) else label.rpartition(" ")[0]
            columns.append(f"{kind} {label}" if re.fullmatch(r"\.?\d+", label) and kind else label)
        before = ""
        for row, *values in rows:
            before = before if row.startswith("〃") else row.rpartition(" ")[0]
            label = row.replace("〃", before)
            found |= {Place(name, k, label, c): v for c, v in zip(columns, values, strict=True)}
    return found


def at(place: Place) -> Number | None:
    """The number at a place: of a table, or one of those that stand in the text below it (table -1)."""
    if place.table >= 0:
        several = cells(place.section)[place].split(" / ")
        return number(several[len(several) > 1])  # of three methods in one cell F-correction is the second
    text = section(place.section)
    if place.section == "9.3":
        found = re.search(rf"{re.escape(place.row)} {re.escape(place.column)} (\d+\.\d+)[ ,;]", text)
        return found and Number(float(found[1]), None)
    if place.section == "9.5":
        line = next(line for line in text.splitlines() if line.startswith("τ/ε"))
        shares = re.search(r"\(([\d.,]+)\)", line)[1].split(",")  # type: ignore[index]
        values = re.search(rf"{place.row} ([\d., ]+)", line)[1].rstrip(". ").split(", ")  # type: ignore[index]
        return Number(float(dict(zip(shares, values, strict=True))[place.column]), None)
    if place.section == "9.8":
        found = re.search(r"Best: C10 ([\d./]+), asym40 ([\d.]+); C100 ([\d./]+);", text)
        tens, asym, hundreds = found.groups()  # type: ignore[union-attr]
        values = (tens if place.row == "C10" else hundreds).split("/")
        best = dict(zip(("sym20", "sym50", "sym80", "sym90"), values, strict=True))
        return Number(float({"asym40": asym, **best}[place.column]), None)
    found = re.search(rf"\({place.row} .*?{place.column} (\d+\.\d+)", text)  # the other two sets of random labels
    return found and Number(float(found[1]), None)


def _block(data: str) -> int:
    return int(data == "cifar100")


def _table_1(name: str) -> Place | None:
    found = re.fullmatch(r"((ce|bootstrap|forward|gce|sce)-resnet34|elr|elr-cosine)-(cifar100?)-(a?sym)(\d+)", name)
    if found is None:
        return None
    rows = {"ce": "CE", "bootstrap": "Bootstrap", "forward": "Forward", "gce": "GCE", "sce": "SL"}
    row = rows[found[2]] if found[2] else found[1].replace("elr", "ELR").replace("-", " ")
    return Place("9.1", _block(found[3]), row, f"{found[4]} {found[5]}")


def _comparison(name: str) -> Place | None:
    """Rows beside DivideMix: in ELR's paper, where that has the cell, else in Ghosh & Lan's table."""
    found = re.fullmatch(
        r"(ce-preact18|ce-mixup|co-teaching-plus|elr-plus|forward-preact18)-(cifar100?)-([a-z]+)(\d*)", name
    )
    if found is None:
        return None
    method, data, kind, rate = found.groups()
    if method != "forward-preact18" and rate and (data == "cifar10" or rate == "20"):
        rows = {"ce-preact18": "CE", "ce-mixup": "Mixup", "co-teaching-plus": "Co-teaching+", "elr-plus": "ELR+"}
        column = "C100 sym 20" if data == "cifar100" else "asym 40" if kind == "asym" else rate
        return Place("9.2", 0, rows[method], column)
    elsewhere = {
        "ce-preact18": "none PRN18 CCE",
        "forward-preact18": "MLNT / F-corr / M-corr" + " (PRN18)" * (data == "cifar10"),
    }
    return Place("9.7", _block(data), elsewhere[method], rate or "clean") if method in elsewhere else None


def _dividemix(name: str) -> Place | None:
    found = re.fullmatch(r"dividemix-cifar(100?)-(a?sym\d+)", name)
    return found and Place("9.8", -1, f"C{found[1]}", found[2])


def _co_teaching(name: str) -> Place | None:
    found = re.fullmatch(
        r"(ce-cnn9|bootstrap-cnn9|forward-cnn9|decoupling|mentornet|co-teaching)(-tau(\d+))?"
        r"-(mnist|cifar10|cifar100)-(pair|sym)(\d+)",
        name,
    )
    if found is None:
        return None
    if found[3]:
        return Place("9.5", -1, found[5] + found[6], f"{int(found[3]) / 100:g}".removeprefix("0"))
    columns = {"ce-cnn9": "Standard", "bootstrap-cnn9": "Bootstrap", "forward-cnn9": "F-corr", "mentornet": "MentorNet"}
    data = {"mnist": "MNIST", "cifar10": "C10", "cifar100": "C100"}[found[4]]
    return Place("9.5", 0, f"{data} {found[5]}{found[6]}", columns.get(found[1], found[1].capitalize()))


def _incv(name: str) -> Place | None:
    found = re.fullmatch(r"(forward|decoupling|co-teaching|mentornet|d2l|incv)(-resnet32)?-cifar10-(a?sym)(\d)0", name)
    if found is None or (found[1] != "incv") != bool(found[2]):
        return None
    rows = {"forward": "F-correction", "mentornet": "MentorNet", "d2l": "D2L", "incv": "Ours (INCV)"}
    return Place("9.6", 0, rows.get(found[1], found[1].capitalize()), f"{found[3]} .{found[4]}")


def _contrast(name: str) -> Place | None:
    found = re.fullmatch(r"(ce|gce|mw-net)-(simclr|imagenet32|resnet34)-(cifar100?)-(?:unif(\d+)|clean)", name)
    if found is None:
        return None
    loss = {"ce": "CCE", "gce": "Lq", "mw-net": "MWNet"}[found[1]]
    start = {"simclr": "SimCLR RN50", "imagenet32": "ImageNet32 RN50"}.get(found[2])
    return Place("9.7", _block(found[3]), f"{start} {loss}" if start else f"{loss} RN34", found[4] or "clean")


def _human(name: str) -> Place | None:
    found = re.fullmatch(r"(.+?)(-rescience)?-(cifar100?-clean|cifar100n|cifar10n-\w+)", name)
    if found is None or (found[3].endswith("-clean") and not found[2]):
        return None
    rows = {"co-teaching": "Co-teaching", "co-teaching-plus": "Co-teaching+", "dividemix": "DivideMix"}
    row, part = rows.get(found[1], found[1].upper().replace("-PLUS", "+")), found[3].removeprefix("cifar10n-")
    if found[2]:
        names = {"aggre": "Agg", "worse": "Worst", "cifar100n": "C100N", "cifar10-clean": "C10 clean"}
        names |= {"cifar100-clean": "C100 clean"}
        return Place("9.9", 1, row, names.get(part, part.replace("random", "R")))
    if part in {"random2", "random3"}:
        return Place("9.9", -1, row, part.capitalize())
    names = {"aggre": "Aggregate", "worse": "Worst", "cifar100n": "C100N"}
    return Place("9.9", 0, row, names.get(part, part.capitalize()))


def _sop(name: str) -> Place | None:
    rows = {"sop-cifar10-sym80": "SOP", "sop-plus-cifar10-sym80": "SOP+"}
    return Place("9.3", -1, f"{rows[name]} C10", "sym 80 %") if name in rows else None


def place(name: str) -> Place | None:
    """Where the number stands that a packaged recipe expects, by the recipe's name alone."""
    for find in (_sop, _table_1, _contrast, _human, _incv, _co_teaching, _comparison, _dividemix):
        if found := find(name):
            return found
    return None
