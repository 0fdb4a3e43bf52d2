"""The simplex pictures: each sample at its corner, epoch by epoch, in files that any viewer can show."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st
from PIL import Image

from labelproof.methods import METHODS
from labelproof.report import RunRecord, simplex, write_report
from labelproof.runs import train
from tests.report.test_html import page
from tests.toy import problem, settings

R = 30
TRUE, SECOND, REST, MIDDLE = (R, 0), (0, R), (0, 0), (R // 3, R // 3)
DARKEST = 255 * np.array(matplotlib.colormaps["viridis"](0.0)[:3])


def density(*epochs: tuple[tuple[int, int], tuple[int, int]], n: int = 100) -> np.ndarray:
    """All samples of a group in one cell: for each epoch the cell of the clean and that of the wrong labels."""
    counts = np.zeros((len(epochs), 2, R + 1, R + 1), dtype=np.uint32)
    for e, cells in enumerate(epochs):
        for group, (i, j) in enumerate(cells):
            counts[e, group, i, j] = n
    return counts


def frames(gif: bytes) -> list[np.ndarray]:
    image = Image.open(io.BytesIO(gif))
    found = []
    for k in range(image.n_frames):
        image.seek(k)
        found.append(np.asarray(image.convert("RGB")).astype(float))
    return found


def brightest(frame: np.ndarray) -> list[tuple[float, float]]:
    """Where the yellow of viridis is in the left and in the right triangle, as (true, second) of the simplex."""
    found = []
    yellow = 255 * np.array(matplotlib.colormaps["viridis"](1.0)[:3])
    for left in (48, 408):
        part = frame[:360, left - 20 : left + 264 + 20]
        row, column = np.argwhere(np.abs(part - yellow).max(-1) < 2).mean(0)
        second = (336 - row) / (264 * 3**0.5 / 2)
        found.append(((column - 20) / 264 - second / 2, second))
    return found


@pytest.mark.parametrize("cell", [TRUE, SECOND, REST, MIDDLE, (R // 2, R // 2), (20, 4)])
def test_samples_are_drawn_where_they_are(cell: tuple[int, int]) -> None:
    [frame] = frames(simplex.animation(density((cell, TRUE)), 3))
    clean, wrong = brightest(frame)
    np.testing.assert_allclose(clean, np.array(cell) / R, atol=0.01)
    np.testing.assert_allclose(wrong, (1, 0), atol=0.01)


def test_the_groups_are_not_mixed_up_and_epochs_follow_one_another() -> None:
    first, second = frames(simplex.animation(density((MIDDLE, MIDDLE), (TRUE, SECOND)), 3))
    np.testing.assert_allclose(brightest(first), np.full((2, 2), 1 / 3), atol=0.01)
    np.testing.assert_allclose(brightest(second), [(1, 0), (0, 1)], atol=0.01)


def test_empty_cells_are_darkest_and_denser_ones_brighter() -> None:
    counts = density((TRUE, TRUE))
    counts[0, 0, 10, 10], counts[0, 0, 5, 20] = 1, 10
    shades = simplex._shades(counts)[0, 0]
    assert 0 == shades[0, 0] < shades[10, 10] < shades[5, 20] < shades[TRUE] < simplex._SHADES
    frame = frames(simplex.animation(counts, 3))[0]
    assert np.abs(frame[300, 100] - DARKEST).max() < 2  # inside, where nobody is


@pytest.mark.parametrize("side", [64, 264])
@pytest.mark.parametrize("resolution", [2, 7, 30])
def test_each_pixel_belongs_to_the_nearest_cell(resolution: int, side: int) -> None:
    """Hexagons: the cell of a pixel is the lattice point nearest to it, found here by trying all."""
    lookup = simplex._lookup(resolution, side)
    margin = (lookup.shape[1] - side - 1) // 2
    i, j = np.array([(i, j) for i in range(resolution + 1) for j in range(resolution + 1 - i)]).T
    x, y = (i + j / 2) / resolution * side, j / resolution * side * 3**0.5 / 2
    base = round(side * 3**0.5 / 2) + margin
    rng = np.random.default_rng(0)
    for row, column in zip(rng.integers(0, lookup.shape[0], 300), rng.integers(0, lookup.shape[1], 300), strict=True):
        if lookup[row, column] < 0:
            continue
        away = np.hypot(x - (column - margin), y - (base - row))
        drawn = np.flatnonzero(i * (resolution + 1) + j == lookup[row, column])[0]
        assert away[drawn] <= away.min() + 1e-6 * side
    assert set(np.unique(lookup)) == {-1, *(i * (resolution + 1) + j)}


def test_rounding_beyond_the_edge_is_moved_onto_it() -> None:
    counts = np.zeros((1, 2, R + 1, R + 1), dtype=np.int32)
    counts[0, 0, 15, 16], counts[0, 0, 15, 15], counts[0, 1, R, 1], counts[0, 1, R, R] = 3, 2, 5, 7
    folded = simplex._folded(counts)
    assert folded[0, 0, 14, 16] == 3
    assert folded[0, 0, 15, 15] == 2
    assert folded[0, 1, R - 1, 1] == 5
    assert folded[0, 1, 15, 15] == 7
    assert folded.sum() == 17


@trials(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_no_sample_is_lost(resolution: int, seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 5, (2, 2, resolution + 1, resolution + 1))
    folded = simplex._folded(counts)
    np.testing.assert_array_equal(folded.sum((2, 3)), counts.sum((2, 3)))
    true, second = np.nonzero(folded.any((0, 1)))
    assert (true + second <= resolution).all()


@pytest.mark.parametrize(
    ("epochs", "shown", "milliseconds"), [(1, 1, 1500), (2, 2, 370), (30, 30, 370), (120, 60, 180)]
)
def test_it_loops_and_a_long_run_keeps_sixty_frames(epochs: int, shown: int, milliseconds: int) -> None:
    gif = Image.open(io.BytesIO(simplex.animation(density(*[(MIDDLE, TRUE)] * epochs), 3)))
    assert (gif.format, gif.n_frames, gif.size) == ("GIF", shown, (720, 408))
    assert gif.info["loop"] == 0  # for ever
    assert gif.info["duration"] == milliseconds
    gif.seek(shown - 1)
    assert gif.info["duration"] == 1500


def test_first_and_last_epoch_are_always_among_the_frames() -> None:
    path = [((round(R * e / 99), 0), TRUE) for e in range(100)]
    made = frames(simplex.animation(density(*path), 3))
    along = [brightest(frame)[0][0] for frame in made]
    assert along[0] == pytest.approx(0, abs=0.01)
    assert along[-1] == pytest.approx(1, abs=0.01)
    assert (np.diff(along) > -0.01).all()


def test_epochs_that_were_never_recorded_are_left_out() -> None:
    counts = density((MIDDLE, MIDDLE), (TRUE, TRUE), (REST, REST))
    counts[1] = 0
    made = frames(simplex.animation(counts, 3))
    assert len(made) == 2
    np.testing.assert_allclose(brightest(made[1])[0], (0, 0), atol=0.01)


@pytest.mark.parametrize("classes", [0, 2, 3, 10])
def test_the_words_follow_the_number_of_classes(classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    sheet = simplex._sheet
    monkeypatch.setattr(
        simplex, "_sheet", lambda w, h, texts: [written.extend(t.words for t in texts), sheet(w, h, texts)][1]
    )
    simplex.animation(density((MIDDLE, MIDDLE), (TRUE, SECOND)), classes)
    third = {2: {""}, 3: {"Other 1", "Other 2", "Other"}}.get(classes, {"Next class", "All others"})
    assert {"Clean labels", "Wrong labels", "True", "Wrong", "Epoch 1 of 2", "Epoch 2 of 2", "100 %"} | third <= set(
        written
    )
    written.clear()
    simplex.stills(density((MIDDLE, MIDDLE), (TRUE, SECOND)), classes)
    assert {"Clean labels", "Wrong labels", "True", "Wrong", "Epoch 1", "Epoch 2"} | third <= set(written)


def test_words_and_corners_agree() -> None:
    """Ink stands beside the corner that a word names, and beside an unnamed corner there is none."""

    def ink(classes: int) -> list[bool]:
        frame = frames(simplex.animation(density((MIDDLE, MIDDLE)), classes))[0]
        bottom_left, bottom_right, top = frame[348:366, 10:90], frame[348:366, 280:345], frame[82:100, 130:230]
        return [bool((part.max(-1) < 128).any()) for part in (bottom_left, bottom_right, top)]

    assert ink(3) == ink(10) == [True, True, True]
    assert ink(2) == [False, True, True]


@pytest.mark.parametrize(("epochs", "shown"), [(1, 1), (3, 3), (5, 5), (120, 5)])
def test_stills(epochs: int, shown: int) -> None:
    image = Image.open(io.BytesIO(simplex.stills(density(*[(MIDDLE, TRUE)] * epochs), 10)))
    assert image.format == "PNG"
    assert image.width == max(320 * shown, 600)
    # The last column's lower triangle is bright bottom right.
    pixels = np.asarray(image.convert("RGB")).astype(int)
    yellow = np.argwhere((pixels[:, :, 0] > 240) & (pixels[:, :, 2] < 60))
    yellow = yellow[yellow[:, 0] < 660]  # above the colour bar
    row, column = yellow[yellow[:, 0] > 500].mean(0)
    assert (row, column % 320) == pytest.approx((634, 276), abs=2)


def test_a_big_and_busy_record_is_fast_and_small() -> None:
    rng = np.random.default_rng(0)
    true = np.linspace(1, 12, 100)[:, None, None]
    p = rng.gamma(np.stack([true, np.full_like(true, 0.6), np.full_like(true, 0.9)], -1) * np.ones((2, 2000, 1)))
    p /= p.sum(-1, keepdims=True)
    counts = np.zeros((100, 2, R + 1, R + 1), dtype=np.uint32)
    e, g, _ = np.indices(p.shape[:3])
    np.add.at(counts, (e, g, np.rint(R * p[..., 0]).astype(int), np.rint(R * p[..., 1]).astype(int)), 1)
    began = os.times().user
    gif = simplex.animation(counts, 10)
    assert os.times().user - began < 1.5
    assert len(gif) < 1_500_000


def with_simplex(run, folder: Path, counts: np.ndarray) -> Path:
    run.write(folder)
    np.savez_compressed(folder / "simplex.npz", density=counts)
    return folder


def test_the_pictures_are_on_the_page_and_beside_it(digits: Callable, tmp_path: Path) -> None:
    folder = with_simplex(digits("ce"), tmp_path, density((MIDDLE, MIDDLE), (TRUE, TRUE), (TRUE, SECOND)))
    written = write_report(folder)
    read, html = page(written), written.read_text(encoding="utf-8")
    assert "The path of the outputs" in read.inside("h2")
    assert html.count("data:image/gif;base64,") == 1
    assert (
        "at most 100.0\u00a0% nearest to True (epoch 2), 0.0\u00a0% at epoch 3; 100.0\u00a0% nearest to Wrong" in html
    )
    assert Image.open(folder / "simplex.gif").n_frames == 3
    assert Image.open(folder / "simplex.png").format == "PNG"
    assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]
    before = (folder / "simplex.gif").read_bytes()
    write_report(folder)
    assert (folder / "simplex.gif").read_bytes() == before


def test_each_of_several_runs_has_its_animation(digits: Callable, tmp_path: Path) -> None:
    ends = {"a": TRUE, "b": SECOND, "c": REST, "d": MIDDLE, "e": TRUE}
    folders = [
        with_simplex(digits("ce"), tmp_path / name, density((MIDDLE, MIDDLE), (TRUE, end)))
        for name, end in ends.items()
    ]
    html = write_report(folders[:2]).read_text(encoding="utf-8")
    assert html.count("data:image/gif;base64,") == 2
    assert html.index("<h3>Cross-entropy [a]</h3>") < html.index("<h3>Cross-entropy [b]</h3>")
    np.testing.assert_allclose(
        brightest(frames((tmp_path / "b" / "simplex.gif").read_bytes())[1])[1], (0, 1), atol=0.01
    )
    html = write_report(folders).read_text(encoding="utf-8")
    assert html.count("data:image/gif;base64,") == 4
    assert "Of 5 runs, the first 4 are shown." in html


def test_without_known_truth_there_is_no_such_section(tabular, tmp_path: Path) -> None:
    folder = tabular.write(tmp_path)
    assert RunRecord.load(folder).simplex is None
    html = write_report(folder).read_text(encoding="utf-8")
    assert "The path of the outputs" not in html
    assert not {"simplex.gif", "simplex.png", "report-memorisation.svg"} & set(os.listdir(folder))


@pytest.mark.parametrize("group", [0, 1])
def test_without_wrong_labels_there_is_no_path_to_show(digits: Callable, tmp_path: Path, group: int) -> None:
    counts = density((MIDDLE, MIDDLE), (TRUE, TRUE))
    counts[:, group] = 0
    html = write_report(with_simplex(digits("ce"), tmp_path, counts)).read_text(encoding="utf-8")
    assert "The path of the outputs" not in html


def test_a_real_run_records_every_sample_once_an_epoch(tmp_path: Path) -> None:
    data = problem(METHODS["ce"], 120, noise=0.3)
    train(data, METHODS["ce"](), "mlp", settings(epochs=4), folder=tmp_path)
    run = RunRecord.load(tmp_path)
    assert run.simplex.sum((2, 3)).tolist() == [[(data.y == data.truth).sum(), (data.y != data.truth).sum()]] * 4
    assert Image.open(tmp_path / "simplex.gif").n_frames == 4
    assert "<h2>The path of the outputs</h2>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_record_without_epochs_shows_nothing(digits: Callable, tmp_path: Path) -> None:
    folder = with_simplex(digits("ce"), tmp_path, density())
    assert RunRecord.load(folder).simplex.shape == (0, 2, R + 1, R + 1)
    assert "The path of the outputs" not in write_report(folder).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": np.zeros(3)}, "density"),
        ({"density": np.zeros((2, 2, 5, 5))}, r"must be \(E, 2, R \+ 1, R \+ 1\) integers, not \(2, 2, 5, 5\) float64"),
        ({"density": np.zeros((2, 3, 5, 5), np.uint32)}, r"not \(2, 3, 5, 5\) uint32"),
        ({"density": np.zeros((2, 2, 5, 6), np.uint32)}, r"not \(2, 2, 5, 6\) uint32"),
        ({"density": np.zeros((2, 2, 1, 1), np.uint32)}, r"not \(2, 2, 1, 1\) uint32"),
        ({"density": np.full((1, 2, 5, 5), -1)}, "must count samples, and has -1"),
        ({"density": np.array([{}], dtype=object)}, "simplex.npz is not a record of training outputs"),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, arrays: dict, message: str) -> None:
    (tmp_path / "run.json").write_text("{}")
    np.savez(tmp_path / "simplex.npz", **arrays)
    with pytest.raises(
        ValueError, match=rf"simplex\.npz is not a record of training outputs .*{message}|{message}"
    ) as e:
        RunRecord.load(tmp_path)
    assert str(e.value).endswith("delete it, and the report does without")


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    np.savez_compressed(tmp_path / "simplex.npz", density=density((MIDDLE, TRUE)))
    whole = (tmp_path / "simplex.npz").read_bytes()
    for content in (b"", b"PK\x03\x04", whole[: len(whole) // 2], whole[:60] + bytes(40) + whole[100:]):
        (tmp_path / "simplex.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"simplex\.npz is not a record of training outputs .*delete it"):
            RunRecord.load(tmp_path)


def test_a_run_that_may_not_be_written_to_still_gets_its_page(
    digits: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_simplex(digits("ce"), tmp_path / "archive", density((MIDDLE, TRUE)))
    replace = os.replace

    def guarded(source: Path, target: Path) -> None:
        if Path(target).parent == folder:
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", guarded)
    html = write_report(folder, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "data:image/gif;base64," in html
    assert sorted(os.listdir(tmp_path)) == ["archive", "page-memorisation.svg", "page.html"]
    assert not {"simplex.gif", "simplex.png"} & set(os.listdir(folder))
