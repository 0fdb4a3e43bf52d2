"""What a reader sees: the page in headless Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelproof.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install it with `apt-get install chromium`")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


def chromium(page: Path, profile: Path, *flags: str) -> str:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def screenshot(page: Path, tmp_path: Path, name: str, width: int, height: int, *flags: str) -> np.ndarray:
    file = tmp_path / f"{name}.png"
    chromium(page, tmp_path / f"profile-{name}", f"--window-size={width},{height}", f"--screenshot={file}", *flags)
    return np.asarray(Image.open(file).convert("RGB"))


def visible(dom: str) -> str:
    body = dom[dom.index("<body") :]
    return " ".join(re.sub(r"<[^>]+>", " ", body).replace("&nbsp;", " ").split())


def test_what_the_browser_makes_of_the_page(digits_runs: dict, tmp_path: Path) -> None:
    page = write_report([run.copy().write(tmp_path / name) for name, run in digits_runs.items()])
    dom = chromium(page, tmp_path / "profile", "--dump-dom")
    told = visible(dom)
    for name, title in (("ce", "Cross-entropy"), ("elr", "ELR"), ("co-teaching", "Co-teaching")):
        accuracy = digits_runs[name].info["result"]["test_accuracy"]
        assert f"{title} {100 * accuracy:.1f} %" in told
    assert "Learnt or memorised?" in told
    assert dom.count("<tr>") > 100
    assert dom.count('<svg viewBox="0 0 480') == 6 + 6 + 1  # curves, figure of the ELR paper, review
    assert dom.count("<img") == 60


def test_the_picture_is_there_in_light_and_dark(digits: Callable, tmp_path: Path) -> None:
    page = write_report(digits("elr").write(tmp_path))
    light = screenshot(page, tmp_path, "light", 1200, 3000)
    assert light.shape == (3000, 1200, 3)
    assert tuple(light[2, 2]) == (255, 255, 255)
    # Every band of the page shows something: headline, curves, figure, matrices, pictures.
    assert all(band.std() > 10 for band in np.split(light, 6))
    green, blue = np.array([0, 158, 115]), np.array([0, 114, 178])
    for colour in (green, blue):
        assert (np.abs(light.astype(int) - colour).max(-1) < 12).sum() > 300
    dark = screenshot(page, tmp_path, "dark", 1200, 3000, "--blink-settings=preferredColorScheme=0")
    assert dark.mean() < 80 < 180 < light.mean()


def test_the_animation_moves_and_holds_still_when_asked(digits: Callable, tmp_path: Path) -> None:
    cells = [(10, 10), (30, 0), (0, 30)]
    density = np.zeros((3, 2, 31, 31), dtype=np.uint32)
    for epoch, cell in enumerate(cells):
        density[(epoch, slice(None), *cell)] = 100
    folder = digits("elr").write(tmp_path / "run")
    np.savez_compressed(folder / "simplex.npz", density=density)
    page = write_report(folder)
    # Only what is looked for: the section alone, under the page's own style.
    html = page.read_text(encoding="utf-8")
    head, section = html[: html.index("<body>")], html[html.index("<h2>The path of the outputs") :]
    alone = tmp_path / "alone.html"
    alone.write_text(f"{head}<body><section>{section[: section.index('</section>')]}</section></body></html>")
    purple, yellow = np.array([68, 1, 84]), np.array([253, 231, 37])

    def area(pixels: np.ndarray, colour: np.ndarray) -> int:
        return int((np.abs(pixels.astype(int) - colour).max(-1) < 12).sum())

    moving = screenshot(alone, tmp_path, "moving", 1200, 1400)
    still = screenshot(alone, tmp_path, "still", 1200, 1400, "--force-prefers-reduced-motion")
    cell = 3**0.5 / 2 / 30**2  # a hexagon's area in a triangle with side 1; 495 of the 496 are empty
    strip = 6 * 495 * cell * 232**2  # three epochs of clean and of wrong labels at natural size
    assert area(still, purple) == pytest.approx(strip, rel=0.02)
    assert area(moving, purple) - area(still, purple) == pytest.approx(2 * 495 * cell * 264**2, rel=0.02)
    assert area(still, yellow) > 6 * 0.8 * cell * 232**2
    assert "simplex.gif" in visible(chromium(alone, tmp_path / "profile", "--dump-dom"))


def test_a_phone_needs_no_sideways_scrolling(digits: Callable, tmp_path: Path) -> None:
    """Were anything wider than the screen, the page would be laid out wider than 390 pixels."""
    page = write_report(digits("elr").write(tmp_path))
    phone = screenshot(page, tmp_path, "phone", 390, 2500)
    assert phone.shape[1] == 390
    assert (phone[:, -8:] == 255).all()  # the margin at the right is empty: nothing sticks out
    assert (phone[:, :390] != 255).any()


def test_hostile_names_do_nothing(digits: Callable, tmp_path: Path) -> None:
    run = digits("elr")
    names = [
        f"<img src=x onerror=\"document.title='broken {k}'\"><script>document.title='broken'</script>"
        for k in range(10)
    ]
    for column in ("given", "suggested", "truth"):
        run.issues[column] = [names[k] for k in run.issues[column]]
    run.info["data"] |= {"classes": names, "name": "</title></style><script>document.title='broken'</script>"}
    dom = chromium(write_report(run.write(tmp_path)), tmp_path / "profile", "--dump-dom")
    assert re.search(r"<title>[^<]*labelproof report</title>", dom)
    assert "<script" not in dom
    assert dom.count("<img") == 60
