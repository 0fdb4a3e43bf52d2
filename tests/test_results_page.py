"""docs/results.md says what the committed result files say, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page as `make results` would write it now."""
    page = tmp_path_factory.mktemp("docs") / "results.md"
    readme = shutil.copy(REPO / "README.md", page.parent)
    words = ["benchmarks/results_page.py", "--page", str(page), "--readme", readme]
    subprocess.run([sys.executable, *words], cwd=REPO, check=True)
    return page


def test_the_committed_page_is_the_generated_one(made: Path) -> None:
    assert (REPO / "docs" / "results.md").read_text() == made.read_text(), "run make results"
    assert (REPO / "README.md").read_text() == (made.parent / "README.md").read_text(), "run make results"


def test_every_figure_of_the_page_is_committed(made: Path) -> None:
    figures = sorted(path.name for path in (made.parent / "figures").iterdir())
    assert {"cpu-1.svg", "cpu-2.svg"} <= set(figures)
    for name in figures:
        assert (REPO / "docs" / "figures" / name).exists(), "run make results"
        assert f"figures/{name}" in made.read_text()


def test_each_table_stands_beside_the_command_that_makes_it(made: Path) -> None:
    blocks = made.read_text().split("<!-- end")
    assert len(blocks) == 10, "nine blocks"
    for block in blocks[:-1]:
        assert "`python benchmarks/" in block or "labelproof bench run" in block or "labelproof train" in block
