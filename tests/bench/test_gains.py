"""The figure of gains over the baseline: what is drawn, in which colour, and where it goes."""

from __future__ import annotations

import base64
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from labelproof.bench import results, tables
from labelproof.bench.command import show_table
from labelproof.bench.figures import gains_figure
from labelproof.bench.verdict import Gain
from labelproof.recipes.suites import Suite
from labelproof.report.figures import COLOURS
from tests.bench.made import small
from tests.bench.test_tables import full

GAIN, LOSS, LEVEL = Gain(3.0, 1.0, 5.0, 3), Gain(-2.0, -3.0, -1.0, 3), Gain(1.0, -40.0, 42.0, 3)
ALONE = Gain(1.5, -math.inf, math.inf, 1)


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return small(tmp_path)


def texts(svg: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def markers(svg: str, colour: str) -> int:
    """Points of a colour: matplotlib draws each as a use of one shape."""
    return len(re.findall(rf"<use [^>]*{COLOURS[colour]}", svg))


def test_each_row_has_a_line_and_each_column_a_panel() -> None:
    svg = gains_figure({"digits one": {"a": GAIN, "b": LOSS}, "two": {"a": LEVEL}}, ["a", "b"], xlabel="points")
    found = texts(svg)
    assert [found.count(each) for each in ("a", "b", "digits", "one", "two", "points")] == [1] * 6
    assert (markers(svg, "green"), markers(svg, "red")) == (1, 1)


@pytest.mark.parametrize(("gain", "colour"), [(GAIN, "green"), (LOSS, "red"), (LEVEL, "ink"), (ALONE, "ink")])
def test_colours_say_what_may_be_said(gain: Gain, colour: str) -> None:
    svg = gains_figure({"x": {"a": gain}}, ["a"], xlabel="points")
    for each in ("green", "red"):
        assert (markers(svg, each) == 1) == (each == colour)


def test_one_wild_interval_does_not_hide_the_others() -> None:
    """The scale is that of the means: a row that failed on one seed of three has an interval of hundreds of points."""
    svg = gains_figure({"x": {"a": GAIN, "wild": Gain(2.0, -900.0, 904.0, 3)}}, ["a", "wild"], xlabel="points")
    ticks = [abs(float(t.replace("\N{MINUS SIGN}", "-"))) for t in texts(svg) if re.fullmatch(r"\W?[\d.]+", t)]
    assert ticks
    assert max(ticks) <= 4


def test_hostile_names() -> None:
    names = ["$x^", "<script>alert(1)</script>", "a & b"]
    svg = gains_figure({"$y_ <b>": dict.fromkeys(names, GAIN)}, names, xlabel="points")
    assert set(names) <= set(texts(svg))
    assert "<script" not in svg


def test_same_results_same_figure(suite: Suite, tmp_path: Path) -> None:
    full(tmp_path / "results", suite)
    drawn = [
        [s.figure for s in tables.sections(suite, results.read(tmp_path / "results", suite.recipes)) if s.figure]
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 2, "classification, regression"
    assert "elr" in texts(drawn[0][0])
    assert "huber" in texts(drawn[0][1])


def test_regression_is_compared_with_squared_errors(suite: Suite, tmp_path: Path) -> None:
    full(tmp_path / "results", suite)
    made = {s.title: s for s in tables.sections(suite, results.read(tmp_path / "results", suite.recipes))}
    rows = {row[0]: row[1:] for row in made["Which method helps in regression"].rows}
    assert rows["huber"] == ["1.0 (1.0 to 1.0)", "1", "0", "0", "+0.93", "helps here"]
    assert rows["mse"] == ["2.0 (2.0 to 2.0)", *["–"] * 5]


def test_figures_lie_beside_the_page(suite: Suite, tmp_path: Path) -> None:
    full(tmp_path / "results", suite)
    show_table(str(suite.path), tmp_path / "results", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert re.findall(r"!\[gain over [^]]+\]\(([^)]+)\)", page) == ["page-1.svg", "page-2.svg"]
    assert "elr" in texts((tmp_path / "page-1.svg").read_text())

    show_table(str(suite.path), tmp_path / "results", tmp_path / "page.html")
    inside = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', (tmp_path / "page.html").read_text())
    assert [base64.b64decode(each).decode() for each in inside] == [
        (tmp_path / f"page-{k}.svg").read_text() for k in (1, 2)
    ]
    assert sorted(p.name for p in tmp_path.glob("page*")) == ["page-1.svg", "page-2.svg", "page.html", "page.md"]


def test_nothing_is_drawn_of_one_seed(suite: Suite, tmp_path: Path) -> None:
    full(tmp_path / "results", suite)
    for path in (tmp_path / "results").glob("*seed[12].json"):
        path.unlink()
    made = tables.sections(suite, results.read(tmp_path / "results", suite.recipes))
    assert not [s for s in made if s.figure or s.title.startswith("Which method")]
