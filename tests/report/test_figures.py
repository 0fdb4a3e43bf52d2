"""The figures: self-contained, independent of the user's style, and true to the numbers."""

from __future__ import annotations

import base64
import io
import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest

from labelproof.report import charts, figures, text
from labelproof.report.figures import Series, line_chart, style
from labelproof.report.record import RunRecord


def chart(y: list[float]) -> str:
    x = np.arange(1.0, len(y) + 1)
    return line_chart([Series("a", x, np.array(y), style(0), mark=2.0)], xlabel="epoch", ylabel="share")


def drawn(svg: str, colour: str) -> np.ndarray:
    """The vertices `(P, 2)` of the line drawn in a colour, in units of the view box."""
    path = re.search(rf'<path d="([^"]+)"[^>]*style="[^"]*stroke: var\(--{colour}\)', svg)
    assert path, f"no {colour} line"
    return np.array(re.findall(r"[ML] (\S+) (\S+)", path.group(1)), dtype=float)


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


def test_an_svg_refers_to_nothing_outside_and_brings_no_colours_of_its_own() -> None:
    svg = chart([0.1, 0.5, 0.4])
    assert "http" not in svg
    assert "<metadata" not in svg
    assert "#0072b2" not in svg
    assert "var(--blue)" in svg
    assert "currentColor" in svg
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    assert used
    assert used == set(re.findall(r'\sid="([^"]+)"', svg))


def test_the_users_matplotlib_style_neither_matters_nor_changes() -> None:
    plain = chart([0.1, 0.5, 0.4])
    assert chart([0.1, 0.5, 0.4]) == plain
    with matplotlib.rc_context():
        matplotlib.style.use("dark_background")
        matplotlib.rcParams["font.size"] = 30
        before = dict(matplotlib.rcParams)
        assert chart([0.1, 0.5, 0.4]) == plain
        assert dict(matplotlib.rcParams) == before


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=30))
def test_any_finite_curve_becomes_well_formed_svg(y: list[float]) -> None:
    assert ElementTree.fromstring(chart(y)).tag == "svg"


def test_the_curves_of_the_elr_figure_add_up_to_one(digits, tmp_path) -> None:
    run = RunRecord.load(digits("ce").write(tmp_path))
    made = charts.memorisation([run], ["CE"])
    assert [panel.title for panel in made.panels] == ["CE: clean labels", "CE: wrong labels"]
    # y in the view box is a + b·fraction: were the three fractions not to sum to 1, nor would the heights be constant.
    heights = np.stack([drawn(made.panels[1].svg, colour)[:, 1] for colour in ("green", "red", "blue")])
    np.testing.assert_allclose(heights.sum(0), heights.sum(0)[0], atol=1e-3)
    memorised = run.curve("wrong_memorised")[1]
    slope, offset = np.polyfit(memorised, heights[1], 1)
    np.testing.assert_allclose(heights[1], slope * memorised + offset, atol=1e-3)
    assert slope < 0  # up in the picture is a larger fraction
    assert memorised[-1] > 0.3
    assert f"{text.percent(memorised[-1])} memorised" in made.panels[1].alt


def test_several_runs_give_a_row_of_the_elr_figure_each(digits, tmp_path) -> None:
    runs = [RunRecord.load(digits(name).write(tmp_path / name)) for name in ("ce", "elr")]
    made = charts.memorisation(runs, ["CE", "ELR"])
    assert [p.title for p in made.panels] == [
        "CE: clean labels",
        "CE: wrong labels",
        "ELR: clean labels",
        "ELR: wrong labels",
    ]
    assert [name for name, _ in made.legend] == ["correct", "memorised", "other"]
    looks = [look for _, look in made.legend]
    assert len({look.colour for look in looks}) == len({look.dash for look in looks}) == 3


def test_a_run_without_wrong_labels_has_no_row_in_the_elr_figure(digits, tmp_path) -> None:
    clean = digits("ce")
    clean.metrics[["wrong_correct", "wrong_memorised", "wrong_other"]] = np.nan
    runs = [RunRecord.load(run.write(tmp_path / name)) for name, run in (("ce", clean), ("elr", digits("elr")))]
    assert [p.title for p in charts.memorisation(runs, ["CE", "ELR"]).panels] == [
        "ELR: clean labels",
        "ELR: wrong labels",
    ]
    assert charts.memorisation(runs[:1], ["CE"]) is None


def test_the_elr_figure_stands_alone_as_a_file(digits, tmp_path) -> None:
    runs = [RunRecord.load(digits(name).write(tmp_path / name)) for name in ("ce", "elr")]
    made = charts.memorisation(runs, ["<CE> & \x00", "ELR"])
    file = figures.standalone([(panel.title, panel.svg) for panel in made.panels], made.legend)
    root = ElementTree.fromstring(file)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert (root.get("width"), root.get("height")) == ("984", "724")
    assert "var(" not in file
    assert "currentColor" not in file
    assert file.count(f"stroke: {figures.COLOURS['green']}") >= 4
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"<CE> & ?: clean labels", "ELR: wrong labels", "correct", "memorised", "other", "epoch"} <= set(texts)
    ids = re.findall(r' id="([^"]+)"', file)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'xlink:href="#([^"]+)"', file)) <= set(ids)
    assert ' href="' not in file


def test_the_review_curve_counts_what_is_found(digits, tmp_path) -> None:
    run = RunRecord.load(digits("elr").write(tmp_path))
    found = charts._cumulative("x", run.really_wrong().astype(float), style(0), mark=571)
    assert 571 in found.x
    for k, total in zip(found.x.astype(int), found.y, strict=True):
        assert total == sum(run.really_wrong()[:k])
    made = charts.review_curve([run], ["ELR"], 0)
    assert [name for name, _ in made.legend] == ["wrong labels found", "expected from p_wrong", "a perfect list"]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_small_pictures_are_lossless(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (28, 20, channels), dtype=np.uint8)
    uri = figures.picture(image)
    assert uri.startswith("data:image/png;base64,")
    np.testing.assert_array_equal(np.asarray(decoded(uri)).reshape(image.shape), image)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_large_pictures_become_small_files(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (300, 500, channels), dtype=np.uint8)
    uri = figures.picture(image)
    assert max(decoded(uri).size) == 128
    assert len(uri) < 25_000


def test_a_large_matrix_is_pooled_by_its_largest_entries() -> None:
    matrix = np.random.default_rng(1).random((7, 7)) ** 4
    matrix[2, 3] = np.nan
    uri, block = figures.matrix_picture(matrix, limit=4)
    alpha = np.asarray(decoded(uri))[..., 3]
    assert block == 2
    assert alpha.shape == (4, 4)
    clean = np.nan_to_num(matrix)
    for i in range(4):
        for j in range(4):
            largest = max(clean[a, b] for a in range(2 * i, min(2 * i + 2, 7)) for b in range(2 * j, min(2 * j + 2, 7)))
            assert alpha[i, j] == round(255 * largest**0.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval(hits: tuple[int, int]) -> None:
    k, n = hits
    expected = binomtest(k, n).proportion_ci(method="wilson")
    np.testing.assert_allclose(text.wilson(k / n, n), expected, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.floats(), st.integers(), st.booleans(), st.none(), st.text(max_size=50)), max_size=20))
def test_a_column_of_anything_can_be_written(values: list) -> None:
    told = text.aligned(values)
    assert len(told) == len(values)
    assert all(isinstance(cell, str) and cell and len(cell) <= 60 for cell in told)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.5", True, [1]])
def test_what_is_no_number_is_a_dash(value: object) -> None:
    for write in (text.percent, text.count, text.number, text.probability, text.duration, text.memory):
        assert write(value) == "–"
