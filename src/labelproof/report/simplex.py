"""The simplex figure of the ELR paper (Liu et al. 2020): where the network's outputs lie, epoch by epoch.

A softmax output over (true class, second class, the rest) is a point of a triangle. A run folder holds how many samples
lie at each point of the lattice with step 1/R; barycentric coordinates make that lattice triangular, so its cells are
hexagons. Which cell a pixel belongs to is worked out once, and each frame is one lookup.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from labelproof.report.figures import COLOURS
from labelproof.report.record import RunRecord
from labelproof.report.text import percent

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

FRAMES = 60  # at most; longer runs show every second, third ... epoch
_MILLISECONDS, _SECONDS = 370, 11.1  # a frame of a short run; all frames of a long one
_PAUSE = 1500  # milliseconds at the end, before it starts again
_STILLS = 5
_TITLES = ("Clean labels", "Wrong labels")
_RUNS = 4  # on one page
_SHADES, _GREYS = 208, 32  # entries of the palette: viridis, then ink to white
_KNEE = 1000.0  # shade ~ log(1 + 1000·share): a thousandth of a group shows, and everything in one cell is brightest
_HEIGHT = math.sqrt(3) / 2  # of a triangle with side 1


class SimplexPictures(NamedTuple):
    """The pictures of one run.

    Attributes:
        run: whose they are.
        label: what to call it.
        gif: the animation, a file.
        png: a few epochs side by side, a file.
        alt: what they show, in words.
    """

    run: RunRecord
    label: str
    gif: bytes
    png: bytes
    alt: str


class _Text(NamedTuple):
    x: float
    y: float
    words: str
    size: int
    anchor: str = "mm"  # as in Pillow: horizontally l, m or r; vertically a(scender), m(iddle) or s (baseline)


class _Triangle(NamedTuple):
    left: int  # of the corner bottom left, pixels
    base: int
    side: int


def pictures(runs: Sequence[RunRecord], labels: Sequence[str]) -> tuple[list[SimplexPictures], int]:
    """The pictures of the runs that recorded clean and wrong labels: of four at most, and how many there are."""
    found: list[SimplexPictures] = []
    total = 0
    for run, label in zip(runs, labels, strict=True):
        density, classes = run.simplex, len(run.classes)
        if density is None or not (density[:, 0].any() and density[:, 1].any()):
            continue
        total += 1
        if total <= _RUNS:
            made = animation(density, classes), stills(density, classes)
            found.append(SimplexPictures(run, label, *made, described(density)))
    return found, total


def corners(num_classes: int) -> tuple[tuple[str, str, str], tuple[str, str, str]]:
    """What the corners stand for, (bottom left, bottom right, top), for clean and for wrong labels.

    Args:
        num_classes: 0 if it is not known.

    >>> corners(3)
    (('Other 2', 'True', 'Other 1'), ('Other', 'True', 'Wrong'))
    >>> corners(10)
    (('All others', 'True', 'Next class'), ('All others', 'True', 'Wrong'))
    >>> corners(2)
    (('', 'True', 'Other'), ('', 'True', 'Wrong'))
    """
    if num_classes == 2:
        return ("", "True", "Other"), ("", "True", "Wrong")
    if num_classes == 3:
        return ("Other 2", "True", "Other 1"), ("Other", "True", "Wrong")
    return ("All others", "True", "Next class"), ("All others", "True", "Wrong")


def animation(density: NDArray[np.integer], num_classes: int = 0) -> bytes:
    """The path of the outputs through training, as an animated GIF that starts again at its end.

    Args:
        density: `(E, 2, R + 1, R + 1)` counts as in `RunRecord.simplex`, not all of them zero.
        num_classes: decides how the corners are called; 0 if it is not known.

    Returns:
        The file: at most `FRAMES` frames of 720 × 408 pixels, clean labels on the left, wrong ones on the right.
    """
    epochs = _recorded(density)
    epochs = epochs[np.unique(np.linspace(0, len(epochs) - 1, min(len(epochs), FRAMES)).round().astype(int))]
    shades = _shades(density[epochs])
    places = [_Triangle(48, 336, 264), _Triangle(408, 336, 264)]
    still = [_Text(place.left + place.side / 2, 52, title, 15) for place, title in zip(places, _TITLES, strict=True)]
    for place, names in zip(places, corners(num_classes), strict=True):
        still += _corner_texts(place, names, 13)
    sheet = _sheet(720, 408, still)
    _colour_bar(sheet, 420, 376, 240, 12)
    lookup = _lookup(density.shape[-1] - 1, places[0].side)
    frames = []
    for epoch, both in zip(epochs, shades, strict=True):
        pixels = sheet.copy()
        pixels[:40] = _sheet(720, 40, [_Text(360, 22, f"Epoch {epoch + 1} of {len(density)}", 20)])
        for place, cells in zip(places, both, strict=True):
            _paint(pixels, place, lookup, cells)
        frames.append(_picture(pixels))
    each = min(_MILLISECONDS, round(1000 * _SECONDS / len(frames), -1))
    lasting = [int(each)] * (len(frames) - 1) + [_PAUSE]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=lasting, loop=0, optimize=False)
    return file.getvalue()


def stills(density: NDArray[np.integer], num_classes: int = 0) -> bytes:
    """A few epochs side by side, clean labels above wrong ones, as a PNG; the early ones lie closer together.

    Args:
        density: as for `animation`.
        num_classes: as for `animation`.
    """
    epochs = _recorded(density)
    if len(epochs) > _STILLS:
        epochs = epochs[((len(epochs) - 1) * np.linspace(0, 1, _STILLS) ** 1.5).round().astype(int)]
    side, wide, high = 232, 320, 316
    lookup, shades = _lookup(density.shape[-1] - 1, side), _shades(density[epochs])
    width, height = max(wide * len(epochs), 600), 48 + 2 * high + 52
    places = [[_Triangle(c * wide + 44, 48 + g * high + 270, side) for c in range(len(epochs))] for g in (0, 1)]
    still = [_Text((c + 0.5) * wide, 26, f"Epoch {epoch + 1}", 20) for c, epoch in enumerate(epochs)]
    for g, (row, title, names) in enumerate(zip(places, _TITLES, corners(num_classes), strict=True)):
        still.append(_Text(12, 48 + g * high + 18, title, 19, "lm"))
        still += [text for place in row for text in _corner_texts(place, names, 16)]
    pixels = _sheet(width, height, still)
    for g, row in enumerate(places):
        for place, both in zip(row, shades, strict=True):
            _paint(pixels, place, lookup, both[g])
    _colour_bar(pixels, width - 300, height - 46, 250, 15)
    file = io.BytesIO()
    _picture(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


def described(density: NDArray[np.integer]) -> str:
    """What the pictures show, in words: how many outputs lie nearest to the corners that matter.

    Args:
        density: as for `animation`.

    >>> density = np.zeros((2, 2, 4, 4), dtype=np.uint32)
    >>> density[0, :, 1, 1] = density[1, 0, 3, 0] = density[1, 1, 0, 3] = 10
    >>> print(" ".join(described(density).split()))
    Training outputs in a triangle, by epoch. Clean labels: 100.0 % nearest to True at epoch 2.
    Wrong labels: at most 0.0 % nearest to True (epoch 1), 0.0 % at epoch 2; 100.0 % nearest to Wrong at epoch 2.
    """
    epochs, R = _recorded(density), density.shape[-1] - 1
    counts = _folded(density[epochs])
    true, second = np.mgrid[: R + 1, : R + 1]
    rest = R - true - second
    share = counts / np.maximum(counts.sum((2, 3), keepdims=True), 1)
    at_true = share[..., (true > second) & (true > rest)].sum(-1)
    at_wrong = share[:, 1][..., (second > true) & (second > rest)].sum(-1)
    last, best = f"at epoch {epochs[-1] + 1}", int(at_true[:, 1].argmax())
    told = f"Training outputs in a triangle, by epoch. Clean labels: {percent(at_true[-1, 0])} nearest to True {last}."
    return told + (
        f" Wrong labels: at most {percent(at_true[best, 1])} nearest to True (epoch {epochs[best] + 1}), "
        f"{percent(at_true[-1, 1])} {last}; {percent(at_wrong[-1])} nearest to Wrong {last}."
    )


def _recorded(density: NDArray[np.integer]) -> NDArray[np.intp]:
    return np.flatnonzero(density.any((1, 2, 3)))  # an epoch that was never recorded is no picture


def _folded(density: NDArray[np.integer]) -> NDArray[np.float64]:
    """The counts with what rounding put beyond the edge p_rest = 0 moved onto it."""
    counts, R = density.astype(np.float64), density.shape[-1] - 1
    for i, j in np.argwhere(density.any((0, 1))):
        if (over := i + j - R) > 0:
            counts[..., i - (over + 1) // 2, j - over // 2] += counts[..., i, j]
            counts[..., i, j] = 0
    return counts


def _shade(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """How bright, from 0 to 1."""
    shade: NDArray[np.float64] = np.log1p(_KNEE * share) / math.log1p(_KNEE)
    return shade


def _shades(density: NDArray[np.integer]) -> NDArray[np.uint8]:
    """The entry of the palette for each cell; `(E, 2, R + 1, R + 1)`."""
    counts = _folded(density)
    share = counts / np.maximum(counts.sum((2, 3), keepdims=True), 1)
    return np.rint((_SHADES - 1) * _shade(share)).astype(np.uint8)


def _lookup(resolution: int, side: int) -> NDArray[np.intp]:
    """For each pixel of a triangle and its rim, its cell i·(R + 1) + j; -1 outside of the hexagons."""
    margin = _margin(resolution, side)
    high = round(side * _HEIGHT)
    row, column = np.mgrid[: high + 2 * margin + 1, : side + 2 * margin + 1]
    second = (high + margin - row) / (side * _HEIGHT)
    true = (column - margin) / side - second / 2
    point = resolution * np.stack([1 - true - second, true, second])
    cell = np.rint(point)
    # Rounded one by one, the three need not add up to R: the one that was moved furthest gives way.
    furthest = np.abs(cell - point).argmax(0)[None]
    rest = np.take_along_axis(cell, furthest, 0) + resolution - cell.sum(0)
    np.put_along_axis(cell, furthest, rest, 0)
    inside = (cell >= 0).all(0)
    return np.where(inside, cell[1] * (resolution + 1) + cell[2], -1).astype(np.intp)


def _margin(resolution: int, side: int) -> int:
    return min(math.ceil(side / resolution / math.sqrt(3)), 12)  # the hexagons on the edges stick out


def _paint(pixels: NDArray[np.uint8], at: _Triangle, lookup: NDArray[np.intp], cells: NDArray[np.uint8]) -> None:
    margin = (lookup.shape[1] - at.side) // 2
    high, wide = lookup.shape
    window = pixels[at.base + margin + 1 - high : at.base + margin + 1, at.left - margin : at.left - margin + wide]
    inside = lookup >= 0
    window[inside] = cells.ravel()[lookup[inside]]


def _corner_texts(at: _Triangle, names: tuple[str, str, str], size: int) -> list[_Text]:
    below, above = at.base + 0.6 * size + 12, at.base - at.side * _HEIGHT - 0.6 * size - 9
    places = (at.left, below), (at.left + at.side, below), (at.left + at.side / 2, above)
    return [_Text(*place, name, size) for place, name in zip(places, names, strict=True)]


def _colour_bar(pixels: NDArray[np.uint8], left: int, top: int, width: int, height: int) -> None:
    ticks = np.array([0.001, 0.01, 0.1, 1.0])
    places = left + _shade(ticks) * width
    texts = [_Text(x, top + 1.7 * height, f"{100 * share:g} %", height) for x, share in zip(places, ticks, strict=True)]
    words = _Text(left - 14, top + height / 2, "share of these samples in a cell", height, "rm")
    band = pixels[top - height // 2 : top + 5 * height // 2]
    band[:] = _sheet(pixels.shape[1], len(band), [t._replace(y=t.y - top + height // 2) for t in (*texts, words)])
    pixels[top : top + height, left : left + width] = np.linspace(0, _SHADES - 1, width).round()


def _sheet(width: int, height: int, texts: Sequence[_Text]) -> NDArray[np.uint8]:
    """White, with words on it, as entries of the palette."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    font = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")  # the same on every machine
    sheet = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(sheet)
    for text in texts:
        draw.text((text.x, text.y), text.words, 0, ImageFont.truetype(str(font), text.size), text.anchor)
    return (_SHADES + np.rint(np.asarray(sheet) / 255 * (_GREYS - 1))).astype(np.uint8)


def _picture(pixels: NDArray[np.uint8]) -> Picture:
    import matplotlib
    from PIL import Image

    viridis = 255 * matplotlib.colormaps["viridis"](np.linspace(0, 1, _SHADES))[:, :3]
    ink = np.frombuffer(bytes.fromhex(COLOURS["ink"][1:]), dtype=np.uint8)
    palette = np.concatenate([viridis, np.linspace(ink, 255, _GREYS)]).round().astype(np.uint8)
    picture = Image.fromarray(pixels)
    picture.putpalette(palette.tobytes())  # from greys to entries of this palette
    return picture
