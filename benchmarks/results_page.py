"""docs/results.md, whole, and the table of README.md, from the committed result files: `make results`.

    python benchmarks/results_page.py                            # write docs/results.md, its figures, and the table
    python benchmarks/results_page.py --page FILE --readme FILE  # elsewhere; the second file must be there

Nothing of the page is typed, so it cannot say what was not run; tests/test_results_page.py holds it to the files. What
the figures mean, and where they fall short of a paper, is docs/findings.md's.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import contrast_table
import detection
import incv_table
import mnist_table
import real_data
import speed_page
import suite_lists
import uci_table
from tables import REPO, write_block

from labelproof.bench import results, tables
from labelproof.bench.command import write_figures
from labelproof.recipes.suites import load_suite

PAGE = REPO / "docs" / "results.md"
START, END = "<!-- cpu: made by labelproof bench table cpu -->", "<!-- end cpu -->"
HEAD_START, HEAD_END = "<!-- headline: made by make results -->", "<!-- end headline -->"
#: Rows of the README's table: the baseline, and what the papers that this library began with are about.
HEADLINE = (
    "cross-entropy", "cross-entropy, mixup", "GCE, truncated", "Co-teaching", "DivideMix", "ELR", "ELR+", "SOP", "SOP+",
    "PRL-L", "co-PRL-L", "INCV", "SimCLR, then GCE", "Meta-Weight-Net",
)  # fmt: skip
INTRO = """# Results

Only what was run here, each table with the command that makes it again, all made by `make results` from the files in
`benchmarks/results`. Accuracies are those of the last epoch unless a column says otherwise; test labels were never used
for a choice. What the figures say, and where they fall short of a paper: [findings.md](findings.md).
"""


def suite_sections() -> list[tables.Section]:
    """The CPU suite, as `labelproof bench table cpu` has it."""
    suite = load_suite("cpu")
    return tables.sections(suite, results.read(results.default_folder(), suite.recipes))


def write_suite(page: Path, made: Sequence[tables.Section]) -> None:
    """The tables of the CPU suite, and its figures."""
    folder = page.parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"figures/{path.name}" for path in write_figures(made, folder, "cpu")]
    title, *rest = tables.markdown(made, level=2, figures=names).rstrip().split("\n")
    write_block(page, START, END, title.removeprefix("## "), rest[1:])


def headline(made: Sequence[tables.Section]) -> Iterator[str]:
    """Some rows of the CPU suite, all columns of accuracies side by side."""
    grids = {s.title.removesuffix(": accuracy"): s for s in made if s.title.endswith(": accuracy")}
    header = [f"{grid}, {noise}" for grid, section in grids.items() for noise in section.header[1:]]
    yield f"| test accuracy, % | {' | '.join(header)} |"
    yield f"|---|{'---|' * len(header)}"
    for title in HEADLINE:
        cells = [next(row[1:] for row in section.rows if row[0] == title) for section in grids.values()]
        yield f"| {title} | {' | '.join(cell for each in cells for cell in each)} |"


def write(page: Path, readme: Path) -> None:
    """The whole page, and the block of the other."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(INTRO)
    made = suite_sections()
    write_block(readme, HEAD_START, HEAD_END, "How much it helps", headline(made))
    write_suite(page, made)
    for each in (suite_lists, real_data, mnist_table, incv_table, contrast_table, uci_table, detection, speed_page):
        each.write_tables(page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--readme", type=Path, default=REPO / "README.md")
    args = parser.parse_args()
    write(args.page, args.readme)


if __name__ == "__main__":
    main()
