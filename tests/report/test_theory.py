"""The figures of noisy cross-validation: true to the numbers, whole files, whatever the names and the user's style."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from labelproof.report.figures import COLOURS
from labelproof.report.theory import (
    Agreement,
    Confusion,
    Selection,
    draw_agreement,
    draw_confusion,
    draw_selection,
)

SVG = "{http://www.w3.org/2000/svg}"
RATES = np.linspace(0, 1, 11)
LINE = pd.DataFrame({"rate": RATES, "accuracy": (1 - RATES) ** 2, "precision": 1 - RATES**2, "recall": 1 - RATES})
DOTS = pd.DataFrame({"rate": [0, 0.25, 1], "accuracy": [1, 0.6, 0.1], "precision": [1, 0.9, 0], "recall": [1, 0.5, 0]})
NASTY = "$x^$ <b> & \x00"


def texts(path: Path) -> list[str]:
    return [element.text or "" for element in ElementTree.parse(path).getroot().iter(f"{SVG}text")]


def lines(path: Path, colour: str) -> list[np.ndarray]:
    """The vertices `(P, 2)` of each line of a colour, in the order they are drawn; lines of the legend left out."""
    found = re.findall(rf'<path d="([^"]+)"[^>]*style="fill: none; [^"]*stroke: {colour}', path.read_text())
    vertices = [np.array(re.findall(r"[ML] (\S+) (\S+)", d), dtype=float) for d in found]
    return [v for v in vertices if np.ptp(v[:, 1]) > 0]


def marks(path: Path, colour: str) -> list[np.ndarray]:
    """Where the markers of each line of a colour stand, `(P, 2)`."""
    groups = re.findall(r"<g clip-path[^>]*>(?:\s*<use [^>]*/>)+|<g>(?:\s*<use [^>]*/>)+", path.read_text())
    found = []
    for group in groups:
        uses = re.findall(r'<use [^>]*x="([^"]+)" y="([^"]+)"[^>]*style="fill: (#\w+)', group)
        if uses and uses[0][2] == colour:
            found.append(np.array([use[:2] for use in uses], dtype=float))
    return found


def affine(a: Any, b: Any) -> tuple[float, float]:
    """Slope and offset of the one straight line through the points."""
    slope, offset = np.polyfit(np.asarray(a, dtype=float), np.asarray(b, dtype=float), 1)
    np.testing.assert_allclose(slope * np.asarray(a) + offset, b, atol=1e-3)
    return float(slope), float(offset)


def test_lines_and_dots_are_where_the_numbers_say(tmp_path: Path) -> None:
    file = draw_agreement([Agreement("symmetric", LINE, DOTS)], tmp_path / "a.svg")
    drawn, dotted = lines(file, COLOURS["blue"]), marks(file, COLOURS["red"])
    assert len(drawn) == 3
    assert len(dotted) == 4  # and the one of the legend
    heights = set()
    for key, line, dots in zip(("accuracy", "precision", "recall"), drawn, dotted[:3], strict=True):
        slope, offset = affine(LINE[key], line[:, 1])
        assert slope < 0  # up in the picture is more
        np.testing.assert_allclose(dots[:, 1], slope * DOTS[key] + offset, atol=1e-3)
        heights.add((round(slope, 3), round(offset, 3)))
        slope, offset = affine(LINE["rate"], line[:, 0])
        assert slope > 0
        np.testing.assert_allclose(dots[:, 0], slope * DOTS["rate"] + offset, atol=1e-3)
    assert len(heights) == 1  # the three panels have one scale
    assert drawn[0][0, 0] < drawn[1][0, 0] < drawn[2][0, 0]
    said = texts(file)
    assert {"Test accuracy (noisy labels)", "Label precision", "Label recall", "symmetric", "theory"} <= set(said)
    assert said.count("noise rate") == 3


def test_each_kind_of_noise_has_a_row(tmp_path: Path) -> None:
    other = LINE.assign(accuracy=0.5 + LINE["accuracy"] / 2)
    rows = [Agreement("symmetric", LINE, DOTS), Agreement("pairflip", other, DOTS)]
    file = draw_agreement(rows, tmp_path / "a.svg")
    drawn, said = lines(file, COLOURS["blue"]), texts(file)
    assert len(drawn) == 6
    assert said.index("symmetric") < said.index("pairflip")
    assert said.count("Label recall") == 1
    assert said.count("noise rate") == 3
    assert drawn[3][:, 1].min() > drawn[0][:, 1].max()  # below the first row
    assert np.ptp(drawn[3][:, 1]) == pytest.approx(np.ptp(drawn[0][:, 1]) / 2, rel=1e-3)


def test_what_could_not_be_measured_has_no_dot(tmp_path: Path) -> None:
    partly = DOTS.assign(recall=[1, np.nan, np.nan])
    dotted = marks(draw_agreement([Agreement("x", LINE, partly)], tmp_path / "a.svg"), COLOURS["red"])
    assert [len(dots) for dots in dotted[:3]] == [3, 3, 1]


def heat_maps(path: Path) -> list[np.ndarray]:
    """How dark each pixel of each heat map is, in reading order; the last is the colour bar."""
    images = [
        (float(e.get("y") or 0), float(e.get("x") or 0), e.get("{http://www.w3.org/1999/xlink}href") or "", e)
        for e in ElementTree.parse(path).getroot().iter(f"{SVG}image")
    ]
    found = []
    for _, _, uri, element in images:
        image = Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2]))).convert("RGB")
        pixels = 255 - np.asarray(image, dtype=float).mean(-1)
        # Images are stored bottom up and mirrored back by their transform.
        found.append(pixels[::-1] if "scale(1 -1)" in (element.get("transform") or "") else pixels)
    return found


def at_centres(pixels: np.ndarray, size: int) -> np.ndarray:
    at = ((np.arange(size) + 0.5) * len(pixels) / size).astype(int)
    return pixels[np.ix_(at, at)]


def test_the_network_stands_above_the_noise_and_dark_is_much(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    M, T = (rng.dirichlet(np.full(4, 0.5), 4) for _ in range(2))
    file = draw_confusion([Confusion("asym 0.4", M, T)], tmp_path / "c.svg", classes=["a", "b", "c", "d"])
    maps = heat_maps(file)[:2]
    for matrix, pixels in zip((M, T), maps, strict=True):
        shade = at_centres(pixels, 4)
        order = matrix.ravel().argsort()
        assert (np.diff(shade.ravel()[order]) >= 0).all()
        assert np.corrcoef(shade.ravel(), matrix.ravel())[0, 1] > 0.97
    said = texts(file)
    cells = [f"{value:.2f}".removeprefix("0") for value in np.concatenate([M.ravel(), T.ravel()])]
    written = [text for text in said if re.fullmatch(r"\.\d\d|1", text)]
    assert written == [{"1.00": "1"}.get(cell, cell) for cell in cells if cell != ".00"]
    assert {"asym 0.4", "a", "d"} <= set(said)
    above = said.index("predicted class"), said.index("M, the network")
    below = said.index("given label"), said.index("T, the noise")
    assert max(above) < min(below)


def test_columns_stand_side_by_side(tmp_path: Path) -> None:
    eye, back = np.eye(3), np.eye(3)[::-1]
    file = draw_confusion([Confusion("one", eye, eye), Confusion("two", eye, back)], tmp_path / "c.svg")
    maps = [at_centres(pixels, 3) > 100 for pixels in heat_maps(file)[:4]]
    assert sorted(m.tolist() for m in maps) == sorted(m.astype(bool).tolist() for m in (eye, eye, eye, back))
    said = texts(file)
    assert said.index("one") < said.index("two")
    assert said.count("true class") == 2
    assert {"0", "2"} <= set(said)


def test_classes_without_samples_are_grey_and_many_classes_have_no_numbers(tmp_path: Path) -> None:
    M = np.eye(3)
    M[1] = np.nan
    file = draw_confusion([Confusion("x", M, np.eye(3))], tmp_path / "c.svg", classes=["a", "b", "c"])
    written = [text for text in texts(file) if text in {"1", "nan"}]
    assert written == ["1"] * 5
    assert len(re.findall(r'<text style="[^"]*fill: #ffffff[^"]*"[^>]*>1</text>', file.read_text())) == 5
    many = np.random.default_rng(0).dirichlet(np.full(11, 0.3), 11)
    said = texts(draw_confusion([Confusion("x", many, many)], tmp_path / "m.svg"))
    assert not [text for text in said if text.startswith(".")]


@pytest.mark.parametrize("classes", [1, 25, 100])
def test_of_many_classes_some_are_named(tmp_path: Path, classes: int) -> None:
    said = texts(draw_confusion([Confusion("x", np.eye(classes), np.eye(classes))], tmp_path / "c.svg"))
    assert 2 <= sum(text.isdigit() for text in said) <= 30


def test_the_curves_of_the_selected_set(tmp_path: Path) -> None:
    curves = [
        Selection("symmetric 0.2", [0.995, 0.99, 0.98, 0.97], [0.8, 0.88, 0.91, 0.937]),
        Selection("symmetric 0.8", [0.55, 0.5], [0.355, 0.667]),
    ]
    file = draw_selection(curves, tmp_path / "s.svg")
    first, second = marks(file, COLOURS["blue"])[:2], marks(file, COLOURS["red"])[:2]
    slope, offset = affine(curves[0].precision, first[0][:, 1])
    assert slope < 0
    for places, values in zip((first[1], second[0], second[1]), (curves[0][2], *curves[1][1:]), strict=True):
        np.testing.assert_allclose(places[:, 1], slope * np.asarray(values) + offset, atol=1e-3)
    across, start = affine([1, 2, 3, 4], first[0][:, 0])
    np.testing.assert_allclose(second[0][:, 0], across * np.array([1, 2]) + start, atol=1e-3)
    said = texts(file)
    assert {"symmetric 0.2", "symmetric 0.8", "Label precision", "Label recall", "iteration"} <= set(said)
    assert [text for text in said if text in {"1", "2", "3", "4"}] == ["1", "2", "3", "4"] * 2


def every_figure(folder: Path, ending: str) -> list[Path]:
    return [
        draw_agreement([Agreement(NASTY, LINE, DOTS)], folder / f"a{ending}"),
        draw_confusion([Confusion(NASTY, np.eye(2), np.eye(2))], folder / f"c{ending}", classes=[NASTY, "ok"]),
        draw_selection([Selection(NASTY, [0.5], [0.5])], folder / f"s{ending}"),
    ]


def test_names_of_any_kind_are_written_as_they_are(tmp_path: Path) -> None:
    for file in every_figure(tmp_path, ".svg"):
        assert "$x^$ <b> & ?" in texts(file)
    long = draw_selection([Selection("x" * 200, [0.5], [0.5])], tmp_path / "l.svg")
    assert "x" * 23 + "…" in texts(long)


def test_the_same_file_every_time_whatever_the_users_style(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    plain = every_figure(tmp_path / "one", ".svg")
    with matplotlib.rc_context():
        matplotlib.style.use("dark_background")
        matplotlib.rcParams["font.size"] = 30
        before = dict(matplotlib.rcParams)
        again = every_figure(tmp_path / "two", ".svg")
        assert dict(matplotlib.rcParams) == before
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in plain]
    for file in plain:
        title = ElementTree.parse(file).getroot().find(f"{SVG}title")
        assert title is not None
        assert title.text


@pytest.mark.parametrize(("ending", "begins"), [(".png", b"\x89PNG"), (".pdf", b"%PDF"), (".PNG", b"\x89PNG")])
def test_the_ending_is_the_format(tmp_path: Path, ending: str, begins: bytes) -> None:
    one, two = (draw_selection([Selection("x", [0.5], [0.5])], tmp_path / f"{n}{ending}") for n in "ab")
    assert one.read_bytes().startswith(begins)
    assert one.read_bytes() == two.read_bytes()
    assert b"CreationDate" not in one.read_bytes()


def test_a_figure_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.svg"
    target.write_text("before")

    def full(self: Figure, path: Path, **how: Any) -> None:
        Path(path).write_text("half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="no space left"):
        draw_agreement([Agreement("x", LINE, DOTS)], target)
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.svg"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda out: draw_agreement([], out / "a.svg"), "rows is empty: there is nothing to draw"),
        (lambda out: draw_confusion([], out / "a.svg"), "columns is empty"),
        (lambda out: draw_selection([], out / "a.svg"), "curves is empty"),
        (lambda out: draw_selection([Selection("x", [1], [1])], out / "a.gif"), r"must end in one of .svg, .png, .pdf"),
        (
            lambda out: draw_confusion([Confusion("x", np.eye(3), np.eye(2))], out / "a.svg"),
            r"column 'x' has matrices of shapes \(3, 3\) and \(2, 2\), and there are 3 classes: all must be of one",
        ),
        (
            lambda out: draw_confusion([Confusion("x", np.eye(3), np.eye(3))], out / "a.svg", classes="ab"),
            "and there are 2 classes",
        ),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call(tmp_path)
    assert not list(tmp_path.iterdir())
