"""Figures as text: SVG that takes its colours from the page's style sheet, and pictures as data URIs.

No text of the user's enters an SVG, so a class called `$x^` or `<b>` cannot upset one; names stand in the page.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe & Ito's palette (told apart by every kind of colour vision); the page has lighter ones for dark mode.
COLOURS = {
    "ink": "#24292f",
    "rule": "#d8dee4",
    "blue": "#0072b2",
    "red": "#d55e00",
    "green": "#009e73",
    "purple": "#b0558f",
    "sky": "#3d9bd6",
    "orange": "#c98500",
}
WIDTH, HEIGHT = 480, 290  # viewBox units of one panel: at 13 units, type stays readable on a phone
_DPI = 72  # one viewBox unit is one point
_THUMBNAIL, _LOSSLESS = 128, 64  # pixels
_LARGEST_TICK = 1e12  # from here on ticks have powers of ten


class Style(NamedTuple):
    """How a line is drawn: a colour of `COLOURS` and a dash pattern in viewBox units (empty = solid).

    `mark` is `"dot"` or `"cross"` for points, and empty for lines.
    """

    colour: str
    dash: tuple[float, ...] = ()
    mark: str = ""


class Series(NamedTuple):
    """A line of a chart.

    Attributes:
        name: for the legend and the alternative text.
        x: `(P,)` abscissae.
        y: `(P,)` finite ordinates.
        style: colour and dashes.
        mark: abscissa of the point to ring, if any.
    """

    name: str
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    style: Style
    mark: float | None = None


CORRECT, MEMORISED, OTHERWISE = Style("green"), Style("red", (7, 3)), Style("blue", (2, 2.5))
PLAIN = Style("ink", (12, 4))
_HUES = ("blue", "red", "green", "purple", "sky", "orange")
_DASHES: tuple[tuple[float, ...], ...] = ((), (7, 3), (2, 2.5), (9, 3, 2, 3))


def style(position: int) -> Style:
    """The n-th style for lines that must be told apart; neighbours differ in colour and in dashes.

    >>> style(0), style(1)
    (Style(colour='blue', dash=(), mark=''), Style(colour='red', dash=(7, 3), mark=''))
    """
    return Style(_HUES[position % len(_HUES)], _DASHES[position % len(_DASHES)])


def line_chart(
    series: Sequence[Series], *, xlabel: str, ylabel: str, percent: bool = False, unit_range: bool = False
) -> str:
    """Lines as inline SVG.

    Args:
        series: what to draw, in the order of the legend.
        xlabel: fixed text.
        ylabel: fixed text.
        percent: write the ticks of y as percentages.
        unit_range: let y run over the whole of [0, 1].

    Returns:
        An `<svg>` element without size, namespace or reference to anything outside.
    """

    def draw(ax: Axes) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        for line in series:
            few = "o" if line.x.size <= 2 else ""
            dashes = (0, line.style.dash) if line.style.dash else "-"
            ax.plot(line.x, line.y, color=COLOURS[line.style.colour], linestyle=dashes, marker=few, markersize=5)
            at = np.flatnonzero(line.x == line.mark)
            edge = COLOURS[line.style.colour]
            ax.scatter(line.x[at], line.y[at], s=80, facecolors="none", edgecolors=edge, linewidths=1.8, zorder=3)
        whole = xlabel == "epoch"
        ax.xaxis.set_major_locator(MaxNLocator(7, integer=whole, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        if all(line.x.size <= 1 for line in series):
            ax.set_xlim(0, 2)
        else:
            ax.margins(x=0.015)
        if unit_range:
            ax.set_ylim(-0.02, 1.02)
        if percent:
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        else:
            _write_ticks(ax.yaxis)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))

    return _chart(draw, xlabel=xlabel, ylabel=ylabel)


def tick(value: float, others: Sequence[float] | NDArray[np.float64]) -> str:
    """What stands at a tick: on axes that reach 100,000 in thousands (k), millions (M) or billions (bn).

    Args:
        value: where the tick is.
        others: all ticks of the axis.

    >>> [tick(x, [-2e5, 0, 1.2e6]) for x in (-2e5, 0, 1.2e6)], tick(2e4, [0, 2e4]), tick(0.5, [0, 0.5])
    (['−200k', '0', '1.2M'], '20,000', '0.5')
    """
    top, gap = float(np.abs(others).max()), float(np.ptp(others)) / max(len(others) - 1, 1)
    if abs(value) < 1e-9 * top:
        return "0"
    units = [(1e9, "bn"), (1e6, "M"), (1e3, "k")] if 1e5 <= top < _LARGEST_TICK else []
    # Far from zero and close together, all digits are needed to tell ticks apart.
    size, unit = next(((size, unit) for size, unit in units if size <= min(abs(value), 10 * gap)), (1.0, ""))
    scaled = value / size
    text = f"{scaled:,.10g}" if 1e3 <= abs(scaled) < 1e10 else f"{scaled:.6g}"
    return text.replace("-", "−") + unit


def _write_ticks(axis: Axis) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, axis.get_majorticklocs())))


def histogram(parts: Sequence[tuple[NDArray[np.float64], Style]], *, xlabel: str, ylabel: str) -> str:
    """Histograms over one another, counts on a logarithmic axis, as inline SVG.

    Args:
        parts: values `(N_i,)` and the style of their outline, one pair for each group; all finite, not all empty.
        xlabel: fixed text.
        ylabel: fixed text.
    """

    def draw(ax: Axes) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

        everything = np.concatenate([values for values, _ in parts])
        low, high = np.quantile(everything, [0.002, 0.998])
        edges = np.linspace(low, high if high > low else low + 1, 51)
        for values, look in parts:
            counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
            dashes = (0, look.dash) if look.dash else "-"
            colour = COLOURS[look.colour]
            ax.stairs(counts, edges, color=colour, fill=True, alpha=0.18, linewidth=0, baseline=0.5)
            ax.stairs(counts, edges, color=colour, linestyle=dashes, linewidth=1.6, baseline=0.5)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else ""))
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_ylim(bottom=0.6)
        ax.margins(x=0.015)
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        _write_ticks(ax.xaxis)

    return _chart(draw, xlabel=xlabel, ylabel=ylabel)


def scatter(
    parts: Sequence[tuple[NDArray[np.float64], Style]],
    *,
    frame: tuple[tuple[float, float], tuple[float, float]],
    band: NDArray[np.float64],
    xlabel: str,
    ylabel: str,
) -> str:
    """Points about the diagonal as inline SVG; those beyond the frame are drawn on its edge.

    Args:
        parts: points `(N_i, 2)` and their style, one pair for each group; all finite.
        frame: lower and upper end of the horizontal and of the vertical axis.
        band: `(P, 3)` abscissae, rising, with the lower and upper end of a band; P may be 0.
        xlabel: fixed text.
        ylabel: fixed text.
    """

    def draw(ax: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        low, high = zip(*frame, strict=True)
        ax.fill_between(band[:, 0], band[:, 1], band[:, 2], color=COLOURS["blue"], alpha=0.18, linewidth=0)
        for points, look in parts:
            shape: dict[str, Any] = {"marker": "x", "markersize": 6.5, "markeredgewidth": 1.8}
            if look.mark == "dot":
                shape = {"marker": "o", "markersize": 4, "markeredgewidth": 0, "alpha": 0.55}
            x, y = np.clip(points, low, high).T
            ax.plot(x, y, linestyle="none", color=COLOURS[look.colour], clip_on=False, **shape)
        ax.axline((low[0], low[0]), slope=1, color=COLOURS[PLAIN.colour], dashes=PLAIN.dash, linewidth=1.4)
        ax.set_xlim(frame[0])
        ax.set_ylim(frame[1])
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
            _write_ticks(axis)

    return _chart(draw, xlabel=xlabel, ylabel=ylabel)


@contextmanager
def own_style(more: Mapping[str, Any]) -> Iterator[None]:
    """Matplotlib in our style. The user's own (a notebook in dark mode, say) must not leak in, nor ours out.

    Args:
        more: further parameters of matplotlib.
    """
    import matplotlib

    ink, rule = COLOURS["ink"], COLOURS["rule"]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        look: Any = {
            "svg.fonttype": "none",
            "svg.hashsalt": "labelproof",
            "lines.scale_dashes": False,
            "text.color": ink,
            "axes.labelcolor": ink,
            "axes.edgecolor": rule,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": rule,
            "xtick.color": rule,
            "ytick.color": rule,
            "xtick.labelcolor": ink,
            "ytick.labelcolor": ink,
            **more,
        }
        matplotlib.rcParams.update(look)
        yield


def _chart(draw: Any, *, xlabel: str, ylabel: str) -> str:
    from matplotlib.figure import Figure

    with own_style({"font.size": 13, "lines.linewidth": 2.2, "axes.grid.axis": "y"}):
        figure = Figure(figsize=(WIDTH / _DPI, HEIGHT / _DPI), dpi=_DPI)
        figure.patch.set_visible(False)
        # Fixed margins keep the axes of neighbouring panels in line; what y is stands level above its axis.
        top = 36 if ylabel else 12
        ax = figure.add_axes((66 / WIDTH, 48 / HEIGHT, 1 - 78 / WIDTH, 1 - (48 + top) / HEIGHT))
        figure.text(4 / WIDTH, 1 - 4 / HEIGHT, ylabel, va="top")
        ax.patch.set_visible(False)
        ax.set_xlabel(xlabel)
        draw(ax)
        return _svg(figure)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<svg[^>]*>", f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">', text, count=1)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda found: found.group(0) if found.group(1) in used else "", text)
    text = text.replace("xlink:href", "href")
    for name, colour in COLOURS.items():
        text = re.sub(rf": {colour}\b", ": currentColor" if name == "ink" else f": var(--{name})", text)
    return re.sub(r"\s*\n\s*", "\n", text).strip()


def with_prefix(svg: str, prefix: str) -> str:
    """A figure with a prefix before each of its ids, so that several can share a page.

    >>> with_prefix('<g id="a"/><use href="#a"/>', "f1-")
    '<g id="f1-a"/><use href="#f1-a"/>'
    """
    return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}", svg)


def standalone(panels: Sequence[tuple[str, str]], legend: Sequence[tuple[str, Style]]) -> str:
    """Panels in two columns under one legend, as an SVG file that needs no style sheet.

    Args:
        panels: title and SVG of each, row by row.
        legend: name and style of each line.

    >>> made = standalone([("<b>", '<svg viewBox="0 0 480 290"><path style="stroke: var(--green)"/></svg>')], [])
    >>> "&lt;b&gt;" in made, 'stroke: #009e73' in made
    (True, True)
    """
    head, gap, top = 26, 24, 44
    parts = []
    for i, (name, look) in enumerate(legend):
        dashes = f' stroke-dasharray="{" ".join(map(str, look.dash))}"' if look.dash else ""
        line = f'<path d="M0 -5H34" fill="none" stroke="{COLOURS[look.colour]}" stroke-width="2.6"{dashes}/>'
        parts.append(f'<g transform="translate({66 + 170 * i} 24)">{line}<text x="42">{_escaped(name)}</text></g>')
    for i, (title, svg) in enumerate(panels):
        x, y = i % 2 * (WIDTH + gap), top + i // 2 * (HEIGHT + head + gap)
        drawing = re.sub(r"^<svg[^>]*>|</svg>$", "", with_prefix(svg, f"p{i}-"))
        heading = f'<text x="4" y="14" font-weight="bold">{_escaped(title)}</text>'
        parts.append(f'<g transform="translate({x} {y})">{heading}<g transform="translate(0 {head})">{drawing}</g></g>')
    body = re.sub(r"var\(--(\w+)\)", lambda found: COLOURS[found.group(1)], "\n".join(parts))
    body = body.replace("currentColor", COLOURS["ink"]).replace(' href="', ' xlink:href="')
    width, height = 2 * WIDTH + gap, top + -(-len(panels) // 2) * (HEIGHT + head + gap)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="DejaVu Sans, sans-serif" '
        f'font-size="14" fill="{COLOURS["ink"]}">\n<path d="M0 0H{width}V{height}H0Z" fill="#ffffff"/>\n'
        f"{body}\n</svg>\n"
    )


def _escaped(text: str) -> str:
    # XML has no way to write control characters.
    return html.escape(re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "?", text), quote=False)


def picture(image: NDArray[np.uint8]) -> str:
    """A picture as a data URI: small ones lossless, large ones as a thumbnail.

    Args:
        image: `(H, W, C)` uint8, C = 1, 3 or 4.

    >>> picture(np.zeros((8, 8, 1), dtype=np.uint8))[:22]
    'data:image/png;base64,'
    """
    from PIL import Image

    shown = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    buffer = io.BytesIO()
    if max(shown.size) <= _LOSSLESS:
        shown.save(buffer, "PNG", optimize=True)
        return data_uri("png", buffer.getvalue())
    shown.thumbnail((_THUMBNAIL, _THUMBNAIL))
    if shown.mode == "RGBA":  # JPEG has no transparency
        shown = Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")
    shown.save(buffer, "JPEG", quality=85)
    return data_uri("jpeg", buffer.getvalue())


def matrix_picture(matrix: NDArray[np.float64], *, limit: int = 250) -> tuple[str, int]:
    """A large matrix of fractions as a picture whose opacity follows the value, so that it suits any background.

    Args:
        matrix: `(K, K)` in [0, 1]; NaN is drawn as 0.
        limit: above so many rows, each pixel shows the largest value of a block.

    Returns:
        The data URI, and the side of the block that one pixel stands for.

    >>> matrix_picture(np.eye(600))[1]
    3
    """
    from PIL import Image

    size = len(matrix)
    block = -(-size // limit)
    padded = np.zeros((-(-size // block) * block,) * 2)
    padded[:size, :size] = np.nan_to_num(matrix)
    pooled = padded.reshape(len(padded) // block, block, -1, block).max(axis=(1, 3))
    red, green, blue = bytes.fromhex(COLOURS["blue"][1:])
    rgba = np.full((*pooled.shape, 4), (red, green, blue, 0), dtype=np.uint8)
    rgba[..., 3] = np.rint(255 * opacity(pooled))
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, "PNG", optimize=True)
    return data_uri("png", buffer.getvalue()), block


def opacity(fraction: NDArray[np.float64]) -> NDArray[np.float64]:
    """How strongly to shade a fraction: the square root, since most entries of a transition matrix are small."""
    return np.sqrt(np.clip(fraction, 0.0, 1.0))


def data_uri(kind: str, content: bytes) -> str:
    """A picture file as an address that holds all of it.

    Args:
        kind: `"png"`, `"jpeg"`, `"gif"` or `"svg+xml"`.
        content: the file.

    >>> data_uri("gif", b"GIF89a")
    'data:image/gif;base64,R0lGODlh'
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
