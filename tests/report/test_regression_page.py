"""The page of a regression: in its own words, with its own picture, and numbers as people write them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from labelproof.report import RunRecord, charts, figures, text, write_report
from labelproof.report.figures import Style
from tests.report.test_html import Page, page

LISTED = "The list of wrong targets, most suspicious first"


def prose(read: Page) -> str:
    """All that is read or read out, but for commands."""
    told = [piece for tag, piece in read.pieces if tag != "code"]
    told += [str(attrs[name]) for _, attrs in read.tags for name in ("alt", "aria-label") if attrs.get(name)]
    return " ".join(told)


def written(svg: str) -> list[str]:
    return [re.sub("<[^>]+>", "", found) for found in re.findall(r"<text[^>]*>(.*?)</text>", svg, re.DOTALL)]


def dots(svg: str, colour: str) -> np.ndarray:
    """Where the points of a colour are drawn, `(P, 2)` in units of the view box."""
    uses = re.findall(r'<use href="#[^"]+" x="(\S+)" y="(\S+)"([^>]*)>', svg)
    band = ("0", str(figures.HEIGHT))  # a shape of its own, moved to the lower edge
    return np.array([(x, y) for x, y, rest in uses if f"var(--{colour})" in rest and (x, y) != band], dtype=float)


def rows_of(path: Path, caption: str) -> list[list[str]]:
    html = path.read_text(encoding="utf-8")
    table = html[html.index(f"{caption}</caption>") :]
    table = table[: table.index("</table>")]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]


def plain(run, **changes) -> None:
    """Somebody's own table: no truth, no test data, nothing held out."""
    run.issues = run.issues.drop(columns="truth")
    run.metrics = run.metrics.drop(columns=["val_rmse", "test_rmse"])
    run.info["data"] |= {"n_test": 0, "truth_known": False, "noise": {}}
    for name in ("test_rmse", "test_r2", "flagged_precision", "flagged_recall", "average_precision"):
        run.info["result"].pop(name)
    run.info["result"] |= changes


def with_pictures(run) -> None:
    run.gallery = {"rank": run.gallery["rank"], "image": np.zeros((len(run.gallery["rank"]), 8, 8, 1), dtype=np.uint8)}


def selecting(run) -> None:
    run.metrics["label_precision"] = run.metrics["label_recall"] = 0.9
    run.info["result"]["best_val_epoch"] = 3


def nothing_flagged(run) -> None:
    run.issues["flagged"] = False
    run.info["result"]["flagged"] = 0


@pytest.mark.parametrize("change", [lambda run: None, plain, with_pictures, selecting, nothing_flagged])
def test_a_regression_speaks_of_targets(regression, tmp_path: Path, change: Callable) -> None:
    change(regression)
    told = prose(page(write_report(regression.write(tmp_path))))
    assert "342 targets are flagged as wrong" in told
    assert "Targets to look at" in told
    assert not re.findall(r".{30}(?:label(?!proof)|\bclass).{30}", told, re.IGNORECASE)


def test_regressions_beside_one_another_speak_of_targets(regression, tmp_path: Path) -> None:
    other = regression.copy()
    other.info["method"] = {"name": "prl-l", "title": "PRL-L"}
    other.info["data"]["noise"] = {"hash": "5f2c9a"}
    told = prose(page(write_report([regression.write(tmp_path / "a"), other.write(tmp_path / "b")])))
    assert "These runs did not see the same targets" in told
    assert "on held-out given targets; folder" in told
    assert "The model of Huber loss, the best of these runs at the last epoch on held-out given targets." in told
    assert "Test RMSE of progression at the last epoch" in told
    assert not re.findall(r".{30}(?:label(?!proof)|\bclass).{30}", told, re.IGNORECASE)


def test_classification_keeps_its_labels(digits: Callable, tmp_path: Path) -> None:
    told = prose(page(write_report(digits("elr").write(tmp_path))))
    assert "target" not in told.lower()
    assert "1,437 labelled samples; label noise" in told


def test_the_target_goes_by_its_name(regression, tmp_path: Path) -> None:
    regression.info["data"]["target"] = "price <EUR>"
    read = page(write_report(regression.write(tmp_path / "a")))
    assert "Test RMSE of price <EUR>" in read.inside("dt")
    assert "for price <EUR> after 25 epochs on diabetes (342 samples; target: price <EUR>; target noise" in read.text
    assert {"Given price <EUR> against the model's value", "Given price <EUR> minus the model's value"} <= set(
        read.inside("h3")
    )
    regression.info["data"]["target"] = "target"  # a name that says nothing
    assert "Test RMSE" in page(write_report(regression.write(tmp_path / "b"))).inside("dt")


def test_how_to_train_the_baseline(regression, tmp_path: Path) -> None:
    read = page(write_report(regression.write(tmp_path)))
    assert "--method mse" in read.inside("code")
    assert "with the squared error too ( --method mse , without the options of Huber loss" in read.text


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_held_out_rows_are_explained_where_there_are_some(request, tmp_path: Path, task: str) -> None:
    run = request.getfixturevalue("regression" if task == "regression" else "tabular")
    told = "Held-out given targets" if task == "regression" else "Held-out given labels"
    assert told in page(write_report(run.write(tmp_path / "a"))).inside("b")
    run.metrics = run.metrics.drop(columns=[name for name in run.metrics if name.startswith("val_")])
    assert told not in page(write_report(run.write(tmp_path / "b"))).inside("b")


def test_the_true_share_stands_beside_the_estimate(regression, tmp_path: Path) -> None:
    wrong = (regression.issues["given"] != regression.issues["truth"]).mean()
    assert 0.09 < wrong < 0.11
    read = page(write_report(regression.write(tmp_path / "a")))
    share = f"{100 * wrong:.1f} %"
    assert f"9.3 % are estimated to be wrong (95 % interval 6.0 % to 13.0 %), {share} really are." in read.text
    assert f"95 % interval 6.0 % to 13.0 %, in truth {share}" in read.text
    plain(regression)
    assert "really are" not in page(write_report(regression.write(tmp_path / "b"))).text


def test_a_held_out_error_stands_in_for_a_test_error(regression, tmp_path: Path) -> None:
    error = regression.metrics["val_rmse"].iloc[-1]
    regression.metrics = regression.metrics.drop(columns="test_rmse")
    del regression.info["result"]["test_rmse"]
    read = page(write_report(regression.write(tmp_path)))
    assert read.inside("dt")[0] == "RMSE on held-out targets"
    assert f"{error:.4g}" in read.inside("b")


SPREAD = "Training RMSE, in units of the targets' spread"


def test_the_training_error_is_drawn_without_test_data(regression, tmp_path: Path) -> None:
    assert SPREAD not in page(write_report(regression.write(tmp_path / "a"))).inside("h3")
    plain(regression)
    folder = regression.write(tmp_path / "b")
    read = page(write_report(folder))
    assert read.inside("h3")[:2] == [SPREAD, "Training loss"]
    y = regression.metrics["train_rmse_scaled"]
    told = next(str(attrs["aria-label"]) for attrs in read.of("div") if str(attrs.get("aria-label")).startswith(SPREAD))
    assert f"goes from {y.iloc[0]:.4g} to {y.iloc[-1]:.4g}" in told


def test_the_list_tells_the_range_of_right_targets(regression, tmp_path: Path) -> None:
    path = write_report(regression.write(tmp_path))
    page(path)
    head, *rows = rows_of(path, LISTED)
    assert head[2:5] == ["Given", "Model&#39;s value", "p_wrong"]
    assert len(rows) == 100
    for row, at in zip(rows, regression.issues.itertuples(), strict=False):
        given, value, low, high = (
            f"{x:.1f}".replace("-", "−") for x in (at.given, at.suggested_value, at.suggested_low, at.suggested_high)
        )
        assert row[2] == given
        assert row[3] == f"{value} ({low} to {high})"


def test_lists_of_older_versions_still_make_a_page(regression, tmp_path: Path) -> None:
    regression.issues["suggested"] = regression.issues["suggested_value"]
    new = ["suggested_value", "suggested_low", "suggested_high", "scale"]
    regression.issues = regression.issues.drop(columns=new)
    path = write_report(regression.write(tmp_path))
    read = page(path)
    assert all(" to " not in row[3] for row in rows_of(path, LISTED)[1:])
    assert "range in brackets" not in read.text
    assert "should lie in the band" not in read.text
    made = charts.against_model(RunRecord.load(tmp_path))
    assert len(dots(made.panels[0].svg, "blue")) == (~regression.issues["flagged"]).sum()


def test_every_row_is_in_the_picture_where_it_belongs(regression, tmp_path: Path) -> None:
    made = charts.against_model(RunRecord.load(regression.write(tmp_path)))
    table = regression.issues
    shown, drawn = made.panels[0], {}
    for colour, part in (("blue", table[~table["flagged"]]), ("red", table[table["flagged"]])):
        at = dots(shown.svg, colour)
        assert len(at) == len(part) > 10
        drawn[colour] = at, part[["suggested_value", "given"]].to_numpy()
    at, values = drawn["blue"]
    for axis, up in ((0, 1), (1, -1)):
        slope, offset = np.polyfit(values[:, axis], at[:, axis], 1)
        assert slope * up > 0
        np.testing.assert_allclose(at[:, axis], slope * values[:, axis] + offset, atol=1e-3)
    # Flagged targets may be beyond the frame, but then on its edge, above or below the others.
    x, y = drawn["red"][0].T
    assert ((x > 0) & (x < figures.WIDTH) & (y > 0) & (y < figures.HEIGHT)).all()
    high = drawn["red"][1][:, 1] > drawn["red"][1][:, 0]
    assert y[high].max() < y[~high].min()
    assert f"{table['flagged'].sum()} targets flagged, half of them within" in shown.alt
    assert [name for name, _ in shown.legend] == ["not flagged", "flagged", "as the model says"]
    assert "given" in written(shown.svg)
    assert "model's value" in [told.replace("&#39;", "'") for told in written(shown.svg)]


def test_a_target_a_thousand_times_too_large_does_not_squeeze_the_picture(regression, tmp_path: Path) -> None:
    regression.issues.loc[0, "given"] *= 1000
    made = charts.against_model(RunRecord.load(regression.write(tmp_path)))
    spread = np.ptp(dots(made.panels[0].svg, "blue"), axis=0)
    assert spread[0] > 250
    assert spread[1] > 50
    assert "Points beyond the frame are drawn on its edge." in made.caption


def test_at_most_five_thousand_points_are_drawn(regression, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    value = rng.normal(size=12_000)
    flagged = np.arange(12_000) < 700
    regression.issues = pd.DataFrame(
        {"given": value + 9 * flagged, "suggested": value, "p_wrong": np.linspace(1, 0, 12_000), "flagged": flagged}
    )
    made = charts.against_model(RunRecord.load(regression.write(tmp_path)))
    assert len(dots(made.panels[0].svg, "red")) == 700
    assert len(dots(made.panels[0].svg, "blue")) == 4300
    assert "Drawn are 5,000 of 12,000 rows, evenly chosen down the list: all of the flagged, 4,300" in made.caption
    regression.issues["flagged"] = np.arange(12_000) < 9000
    made = charts.against_model(RunRecord.load(regression.write(tmp_path)))
    assert len(dots(made.panels[0].svg, "red")) == 2500
    assert "2,500 of the flagged, 2,500 of the others" in made.caption


def test_the_band_follows_the_ranges(regression, tmp_path: Path) -> None:
    table = regression.issues
    half = 5 + 0.3 * (table["suggested_value"] - table["suggested_value"].min())
    table["suggested_low"], table["suggested_high"] = table["suggested_value"] - half, table["suggested_value"] + half
    run = RunRecord.load(regression.write(tmp_path))
    at, low, high = charts._band(run, np.arange(len(table))).T
    assert (np.diff(at) >= 0).all()
    assert (at[0], at[-1]) == (table["suggested_value"].min(), table["suggested_value"].max())
    np.testing.assert_allclose((low + high) / 2, at)
    np.testing.assert_allclose((high - low)[1:-1] / 2, 5 + 0.3 * (at[1:-1] - at[0]), rtol=1e-6)


def test_targets_with_several_columns_are_drawn_column_by_column(regression, tmp_path: Path) -> None:
    regression.issues["evidence_column"] = np.arange(len(regression.issues)) % 6
    made = charts.against_model(RunRecord.load(regression.write(tmp_path)))
    assert [panel.title for panel in made.panels][::2] == [
        f"Given progression against the model's value (column {k})" for k in range(4)
    ]
    points = [len(dots(panel.svg, "blue")) + len(dots(panel.svg, "red")) for panel in made.panels[::2]]
    assert points == [57] * 4
    assert "Of 6 columns the first 4 are drawn." in made.caption


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [0.0], [1e300, -1e300], [5.0, np.nan]])
def test_hardly_anything_to_draw(regression, tmp_path: Path, values: list[float]) -> None:
    regression.issues = pd.DataFrame({"given": values, "suggested": 1.0, "p_wrong": 0.5})
    regression.gallery = {}
    page(write_report(regression.write(tmp_path)))
    made = charts.against_model(RunRecord.load(tmp_path))
    assert len(dots(made.panels[0].svg, "blue")) == np.isfinite(values).sum()
    regression.issues["suggested"] = np.nan
    assert charts.against_model(RunRecord.load(regression.write(tmp_path))) is None
    regression.issues = regression.issues.assign(given="?", suggested=1.0)
    assert charts.against_model(RunRecord.load(regression.write(tmp_path))) is None


def test_ticks_of_large_values_do_not_run_together() -> None:
    values = np.random.default_rng(0).normal(0, 150_000, 5000)
    told = written(figures.histogram([(values, Style("blue"))], xlabel="given", ylabel="targets"))
    assert told[:5] == ["−400k", "−200k", "0", "200k", "400k"]
    ticks = [-1.5e9, -5e8, 0, 2e6, 2.5e9]
    assert [figures.tick(x, ticks) for x in ticks] == ["−1.5bn", "−500M", "0", "2M", "2.5bn"]
    close = [1_600_000, 1_600_020, 1_600_040]  # k would make these all the same
    assert [figures.tick(x, close) for x in close] == ["1,600,000", "1,600,020", "1,600,040"]


@pytest.mark.parametrize(
    ("value", "told"),
    [(17941.23, "17,941"), (9999.7, "10,000"), (1234.56, "1,235"), (1.6e9 + 0.4, "1,600,000,000"), (999.96, "1,000")],
)
def test_numbers_are_written_as_people_do(value: float, told: str) -> None:
    assert text.number(value) == told
    assert text.number(-value) == f"−{told}"


def test_what_was_given_and_what_the_model_says_can_be_told_apart(regression, tmp_path: Path) -> None:
    """In thousands of millions, and where they differ in the fifth digit only."""
    base = regression.issues[["given", "suggested_value", "suggested_low", "suggested_high"]]
    for name, unit, shift in (("large", 1e6, 1e9), ("close", 1e-4, 20.0)):
        run = regression.copy()
        run.issues[base.columns] = base * unit + shift
        path = write_report(run.write(tmp_path / name))
        for row, at in zip(rows_of(path, LISTED)[1:], run.issues.itertuples(), strict=False):
            given, value = (float(cell.split(" (")[0].replace(",", "").replace("−", "-")) for cell in row[2:4])
            assert given == pytest.approx(at.given, abs=6 * unit)
            assert given - value == pytest.approx(at.given - at.suggested_value, abs=11 * unit)
            assert "e+" not in "".join(row)
            assert all(len(cell.split(" (")[0]) <= 14 for cell in row)


def test_settings_are_written_short(regression, tmp_path: Path) -> None:
    regression.info["settings"] |= {"scale": 1_612_345_678.912, "box": [0.12345678901234, 17941.2345678]}
    cells = page(write_report(regression.write(tmp_path))).inside("td")
    assert {"1,612,345,679", "0.123457, 17941.2"} <= set(cells)
