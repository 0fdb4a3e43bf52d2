"""Tables from result files: what stands in each cell, what hostile names do, what a browser makes of the page."""

from __future__ import annotations

import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelproof import cli
from labelproof.bench import results, tables
from labelproof.bench.command import show_table
from labelproof.recipes import suites
from labelproof.recipes.suites import Suite
from tests.bench.made import SUITE, accuracies, leave, small
from tests.report.test_browser import CHROMIUM, chromium, screenshot, visible

SYM, PAIR = "digits-sym40-small", "digits-pair35-small"
PUBLISHED = "elr-cifar10-sym40"
HOSTILE = "<script>document.title='broken'</script> a|b"


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return small(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results"


def made(suite: Suite, folder: Path) -> dict[str, tables.Section]:
    return {s.title: s for s in tables.sections(suite, results.read(folder, suite.recipes))}


def rows(section: tables.Section) -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in section.rows}


def full(folder: Path, suite: Suite) -> None:
    """All results of the small suite."""
    scores: dict[str, list[float | None]] = {
        f"ce-{SYM}": [0.50, 0.52, 0.54],
        f"elr-{SYM}": [0.70, 0.71, 0.75],
        f"ce-{PAIR}": [0.60, 0.62, 0.64],
        f"elr-{PAIR}": [0.61, 0.60, 0.65],
    }
    accuracies(folder, suite, scores)
    stopped = {f"stopped-{SYM}": [0.40, 0.41, 0.43], f"stopped-{PAIR}": [0.3, 0.31, 0.32]}
    for name, values in stopped.items():
        for seed, value in enumerate(values):
            leave(folder, suite, name, seed, {"test_accuracy": 0.99, "test_accuracy_at_best_val": value})
    accuracies(folder, suite, {"mse-energy-uniform30-small": [3.0, 3.2, 3.1]}, "test_rmse")
    accuracies(folder, suite, {"huber-energy-uniform30-small": [2.0, 2.3, 2.2]}, "test_rmse")
    accuracies(folder, suite, {PUBLISHED: [0.88, 0.89]}, "test_accuracy_at_best_val")


def test_cells(suite: Suite, folder: Path) -> None:
    full(folder, suite)
    section = made(suite, folder)["digits: accuracy"]
    assert section.header == ["", "symmetric:0.4", "pairflip:0.35"]
    assert section.rows == [
        ["cross-entropy", "52.0 ± 2.0", "62.0 ± 2.0"],
        ["stopped early", "41.3 ± 1.5 ▼", "31.0 ± 1.0 ▼"],  # of the epoch that was kept, not of the last
        ["elr", "72.0 ± 2.6 ▲", "62.0 ± 2.6 ="],
    ]
    assert "cross-entropy" in section.text[0]


def test_lower_errors_are_better(suite: Suite, folder: Path) -> None:
    full(folder, suite)
    section = made(suite, folder)["energy: error"]
    assert section.rows == [["mse", "3.10 ± 0.10"], ["huber", "2.17 ± 0.15 ▲"]]
    accuracies(folder, suite, {"huber-energy-uniform30-small": [4.0, 4.3, 4.2]}, "test_rmse")
    assert made(suite, folder)["energy: error"].rows[1] == ["huber", "4.17 ± 0.15 ▼"]
    assert "lower is better" in section.text[0]


def test_a_grid_of_errors_is_one_before_anything_was_run(suite: Suite, folder: Path) -> None:
    empty = made(suite, folder)
    assert "energy: error" in empty
    assert "lower is better" in empty["energy: error"].text[0]
    assert all(cell == "–" for row in empty["digits: accuracy"].rows for cell in row[1:])
    assert "0 of" in empty[suite.title].text[-1]


def test_beside_published_numbers(suite: Suite, folder: Path) -> None:
    full(folder, suite)
    section = made(suite, folder)["Beside published numbers"]
    (row,) = section.rows
    assert row[0] == PUBLISHED
    assert row[1].startswith("89.15 ± 0.17")
    assert row[2] == "88.5 ± 0.7"
    assert re.match(r"reproduced: 0\.65? below, within 2 sd and 1 point; 2 of \d runs|reproduced: 0\.[67]", row[3])
    assert row[4] == f"labelproof bench run {PUBLISHED}"


def test_lists_of_wrong_labels_are_means(suite: Suite, folder: Path) -> None:
    for seed, (ap, at) in enumerate([(0.5, 0.25), (0.6, 0.35), (0.7, 0.75)]):
        leave(folder, suite, f"ce-{SYM}", seed, list={"average_precision": ap, "precision_at_wrong": at})
    leave(folder, suite, f"elr-{SYM}", 0, list={})
    found = rows(made(suite, folder)["digits: the list of wrong labels"])
    assert found["cross-entropy"][:2] == ["0.600 / 0.450", "–"]
    assert found["elr"][:2] == ["–", "–"]


def test_how_noisy_it_is_said_to_be(suite: Suite, folder: Path) -> None:
    rates, flagged = [0.30, 0.34, 0.38], [(None, 0.0), (0.5, 0.1), (1.0, 0.2)]  # nothing flagged has no precision
    for seed, (rate, (precision, recall)) in enumerate(zip(rates, flagged, strict=True)):
        listed = {"noise_rate": rate, "flagged_precision": precision, "flagged_recall": recall, "wrong": 719}
        leave(folder, suite, f"ce-{SYM}", seed, {"test_accuracy": 0.5}, list=listed)
    section = made(suite, folder)["digits: how noisy it is said to be"]
    assert section.header == ["", "symmetric:0.4, 50.0 %", "pairflip:0.35"]  # 719 of 1,438
    assert rows(section)["cross-entropy"] == ["34.0 ± 4.0, 0.75 / 0.10", "–"]
    assert rows(section)["elr"] == ["–", "–"]


def test_time_of_a_run_that_was_resumed_is_not_that_of_a_whole_one(suite: Suite, folder: Path) -> None:
    leave(folder, suite, f"ce-{SYM}", 0, cpu_seconds=100.0)
    leave(folder, suite, f"ce-{SYM}", 1, cpu_seconds=2.0, resumed=True)
    section = made(suite, folder)["digits: the list of wrong labels"]
    seconds = section.header.index("CPU seconds")
    assert section.rows[0][seconds] == "100"


def test_missing_seeds_are_not_paired(suite: Suite, folder: Path) -> None:
    accuracies(folder, suite, {f"ce-{SYM}": [0.5, None, 0.5], f"elr-{SYM}": [None, 0.9, 0.9]})
    found = rows(made(suite, folder)["digits: accuracy"])
    assert found["elr"][0] == "90.0 ± 0.0"  # one pair: nothing can be said
    assert "1 of" not in found["elr"][0]
    accuracies(folder, suite, {f"elr-{PAIR}": [0.9, 0.9]})
    assert rows(made(suite, folder)["digits: accuracy"])["elr"][1] == "90.0 ± 0.0"  # nothing to compare with


def test_which_method_helps(suite: Suite, folder: Path) -> None:
    full(folder, suite)
    section = made(suite, folder)["Which method helps"]
    found = rows(section)
    gains = statistics.mean([20.0, 0.0])
    assert found["elr"][1:5] == ["1", "0", "1", f"{gains:+.1f}"]
    assert found["stopped early"][1:4] == ["0", "2", "0"]
    assert found["stopped early"][-1] == "no gain over cross-entropy in most columns"
    assert found["elr"][-1] == "no gain over cross-entropy in most columns"
    assert found["stopped early"][0].startswith("3.0 ")
    assert found["elr"][0].startswith(("1.0 ", "1.2 "))  # ahead on one column, even with cross-entropy on the other
    assert "mse" not in found
    assert "huber" not in found


def test_more_seeds_of_one_row_make_no_other_incomplete(suite: Suite, folder: Path) -> None:
    full(folder, suite)
    before = rows(made(suite, folder)["Which method helps"])
    assert not [row for row in before.values() if row[0] == "incomplete"]
    for seed in range(3, 6):
        leave(folder, suite, f"ce-{SYM}", seed, {"test_accuracy": 0.5})
    after = rows(made(suite, folder)["Which method helps"])
    assert not [row for row in after.values() if row[0] == "incomplete"]


def test_a_row_that_lacks_a_column_is_not_ranked(suite: Suite, folder: Path) -> None:
    full(folder, suite)
    for path in folder.glob(f"elr-{PAIR}-seed*.json"):
        path.unlink()
    assert rows(made(suite, folder)["Which method helps"])["elr"][0] == "incomplete"


def test_a_suite_that_is_not_finished(suite: Suite, folder: Path) -> None:
    leave(folder, suite, f"ce-{SYM}", 0)
    leave(folder, suite, f"ce-{SYM}", 1).write_text("{")
    sections = made(suite, folder)
    assert f"1 of {3 * len(suite.recipes)} runs" in sections[suite.title].text[-1]
    assert f"`ce-{SYM}-seed1.json`: half-written, or no JSON" in sections["Refused"].text
    assert "Which method helps" not in sections


def test_the_command_of_a_row_makes_that_row_alone(suite: Suite) -> None:
    """Each command that stands beside a row, typed in full."""
    cpu = suites.load_suite("cpu")
    sections = made(cpu, Path("nowhere"))
    from labelproof.bench.command import chosen

    seen = 0
    for title, section in sections.items():
        if not section.code or not title.endswith("the list of wrong labels"):
            continue
        grid = title.partition(":")[0]
        for row in section.rows:
            pattern = re.fullmatch(r"labelproof bench run '(.+)'", row[section.code[0]])
            assert pattern, row
            names = {r.name for r in chosen(pattern[1])[0]}
            wanted = {n for n, c in cpu.cells.items() if c.grid == grid and cpu.titles.get(c.row, c.row) == row[0]}
            assert names == wanted, row
            seen += 1
    assert seen == len({(c.row, c.grid) for c in cpu.cells.values()})


def test_a_suite_of_ones_own_is_run_by_its_file(suite: Suite, folder: Path) -> None:
    commands = [row[-1] for row in made(suite, folder)["digits: the list of wrong labels"].rows]
    assert all(command == f"labelproof bench run {suite.path}" for command in commands)


def test_markdown(suite: Suite, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full(folder, suite)
    assert cli.main(["bench", "table", str(suite.path), "--results", str(folder)]) == 0
    shown = capsys.readouterr().out
    out = tmp_path / "page.md"
    assert cli.main(["bench", "table", str(suite.path), "--results", str(folder), "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    assert page.startswith("# Small things\n")
    assert "| elr | 72.0 ± 2.6 ▲ | 62.0 ± 2.6 = |" in page
    assert "| elr | 72.0 ± 2.6 ▲ | 62.0 ± 2.6 = |" in shown  # lines are not folded
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block


def hostile(tmp_path: Path, folder: Path) -> Suite:
    text = SUITE.replace('"cross-entropy"', f'"{HOSTILE}"').replace('"by noisy labels"', f'"{HOSTILE}\\nline"')
    suite = small(tmp_path, text.replace('"Small things"', f'"{HOSTILE}"').replace('"For tests."', f'"{HOSTILE}"'))
    full(folder, suite)
    leave(folder, suite, f"ce-{SYM}", 2, labelproof=HOSTILE)
    return suite


def test_hostile_names_in_markdown(tmp_path: Path, folder: Path) -> None:
    suite = hostile(tmp_path, folder)
    page = tables.markdown(tables.sections(suite, results.read(folder, suite.recipes)), level=1)
    outside = re.sub(r"`[^`\n]*`", "", page)
    assert "<script" not in outside
    assert "a\\|b" in page
    for block in re.findall(r"(?:^\|.*\n?)+", page, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1, block
    assert "\nline" not in page.replace("\n\n", "")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_hostile_names_do_nothing_in_a_browser(tmp_path: Path, folder: Path) -> None:
    suite = hostile(tmp_path, folder)
    page = tmp_path / "page.html"
    show_table(str(suite.path), folder, page)
    dom = chromium(page, tmp_path / "profile", "--dump-dom")
    assert "<script" not in dom
    assert "<title>broken" not in dom
    assert "document.title='broken'" in visible(dom).replace("&#39;", "'")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_fits_the_window(width: int, folder: Path, tmp_path: Path) -> None:
    """Wide tables scroll inside the page; the page itself does not."""
    cpu = suites.load_suite("cpu")
    for recipe in cpu.recipes:
        for seed in range(2):
            key = "test_rmse" if recipe.train["data"] == "uci/energy" else "test_accuracy"
            leave(folder, cpu, recipe.name, seed, {key: 0.5 + seed / 10, "test_accuracy_at_best_val": 0.5})
    page = tmp_path / "page.html"
    show_table("cpu", folder, page)
    probe = page.with_name("probe.html")
    script = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script>"
    probe.write_text(page.read_text(encoding="utf-8").replace("</html>", script + "</html>"), encoding="utf-8")
    dom = chromium(probe, tmp_path / "profile", "--dump-dom", f"--window-size={width},900")
    found = re.search(r"<title>(\d+) of (\d+)</title>", dom)
    assert found
    assert int(found[1]) <= int(found[2]) == width
    picture = screenshot(page, tmp_path, "page", width, 2000)
    assert (picture[:, -4:] == 255).all()
    assert all(band.std() > 5 for band in np.split(picture, 4))


def test_two_suites_with_grids_of_one_name_are_kept_apart(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packaged = tmp_path / "suites"
    packaged.mkdir()
    text = SUITE.replace('recipes = ["elr-cifar10-sym40"]', "")
    (packaged / "one.toml").write_text(text)
    (packaged / "two.toml").write_text(text.replace("epochs = 2", "epochs = 9"))
    monkeypatch.setattr(suites, "_FOLDER", packaged)
    for name, score in (("one", 0.25), ("two", 0.75)):
        suite = suites.load_suite(name)
        for seed in range(3):
            leave(folder, suite, f"elr-digits-sym40-{name}", seed, {"test_accuracy": score + seed / 100})
            leave(folder, suite, f"ce-digits-sym40-{name}", seed, {"test_accuracy": 0.1})
    cli.main(["bench", "table", "elr-digits-*", "--results", str(folder)])
    told = capsys.readouterr().out
    assert "26.0 ± 1.0" in told
    assert "76.0 ± 1.0" in told
    assert "cross-entropy" in told  # what they are compared with comes along


def test_a_pattern_is_compared_with_cross_entropy_or_with_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu = suites.load_suite("cpu")
    for seed in range(3):
        leave(folder, cpu, "gce-digits-sym40-cpu", seed, {"test_accuracy": 0.8 + seed / 100})
        leave(folder, cpu, "gce-truncated-digits-sym40-cpu", seed, {"test_accuracy": 0.5 + seed / 100})
        leave(folder, cpu, "ce-digits-sym40-cpu", seed, {"test_accuracy": 0.6 + seed / 100})
    cli.main(["bench", "table", "gce*-digits-*-cpu", "--results", str(folder)])
    told = capsys.readouterr().out
    lines = {line.split("|")[1].strip(): line for line in told.splitlines() if re.match(r"\|.*± .* [▲▼=] ", line)}
    assert "▲" in lines["GCE"]
    assert "▼" in lines["GCE, truncated"], "worse than cross-entropy, which the pattern does not name"


@pytest.mark.parametrize("out", ["page.pdf", "page", "nowhere/page.html"])
def test_pages_that_cannot_be_written(
    out: str, suite: Suite, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["bench", "table", str(suite.path), "--results", str(folder), "--out", str(tmp_path / out)])
    told = " ".join(capsys.readouterr().err.split())
    assert "--out=" in told
    assert ".md" in told or "must be a file in a folder that exists" in told
    assert not (tmp_path / "nowhere").exists()


def test_nothing_but_figures_is_read_of_results(suite: Suite, folder: Path) -> None:
    """Tables do not change when files get more keys."""
    full(folder, suite)
    before: Any = tables.html(tables.sections(suite, results.read(folder, suite.recipes)))
    for path in folder.iterdir():
        path.write_text(path.read_text().replace('{"format"', '{"extra": [1, 2], "format"'))
    assert tables.html(tables.sections(suite, results.read(folder, suite.recipes))) == before
    shutil.rmtree(folder)
