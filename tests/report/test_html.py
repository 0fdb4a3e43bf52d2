"""The page: complete, escaped, self-contained, and honest about what it does not know."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from labelproof.report import write_report

VOID = {"meta", "link", "img", "br", "path", "use"}


class Page(HTMLParser):
    """A strict little reader: tags must nest, and everything is kept for questions."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and "style" not in self.open:
            self.pieces.append((self.open[-1] if self.open else "", " ".join(data.split())))

    @property
    def text(self) -> str:
        return " ".join(piece for _, piece in self.pieces)

    def of(self, *names: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag in names]

    def inside(self, *names: str) -> list[str]:
        return [piece for tag, piece in self.pieces if tag in names]


def page(path: Path) -> Page:
    html = path.read_text(encoding="utf-8")
    read = Page(html)
    check_is_self_contained(html, read)
    check_is_accessible(read)
    return read


def check_is_self_contained(html: str, read: Page) -> None:
    assert not read.of("script", "iframe", "object", "embed", "form", "base")
    assert not re.search(r"@import|url\((?!#)", html)
    for tag, attrs in read.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), f"<{tag} {name}>"
            if name in {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}:
                assert value.startswith(("data:", "#")), f"<{tag} {name}={value[:80]!r}>"
    policy = next(meta["content"] for meta in read.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")


def check_is_accessible(read: Page) -> None:
    assert read.of("html")[0]["lang"] == "en"
    assert len(read.of("h1")) == 1
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(attrs.get("alt") for attrs in read.of("img"))
    assert all(attrs.get("aria-label") for _, attrs in read.tags if attrs.get("role") == "img")
    assert all(attrs.get("scope") in {"col", "row"} for attrs in read.of("th"))
    assert len(read.of("table")) == len(read.of("caption"))
    assert len(read.of("figure")) == len(read.of("figcaption"))
    ids = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_one_run(digits: Callable, tmp_path: Path) -> None:
    run = digits("elr")
    folder = run.write(tmp_path / "run")
    path = write_report(folder)
    assert path == folder / "report.html"
    read, result = page(path), run.info["result"]
    accuracy = f"{100 * result['test_accuracy']:.1f}\u00a0%".replace("\u00a0", " ")
    assert f"ELR reached {accuracy} test accuracy after 40 epochs on digits" in read.text
    assert f"{result['flagged']} of 1,437 labels are flagged as wrong" in read.text
    assert f"{100 * result['noise_rate']:.1f} % are estimated to be wrong (95 % interval" in read.text
    assert "40.0 % really are." in read.text
    assert read.inside("h1") == ["Early-learning regularisation (ELR) on"]
    assert read.inside("h2") == [
        "Learning curves",
        "Learnt or memorised?",
        "Which class is mistaken for which",
        "The most suspicious samples",
        "Labels to look at",
        "How to read this",
        "How it was made",
    ]
    assert len(read.of("img")) == 60
    assert run.info["command"] in read.text
    assert "5f2c9a" in read.text
    assert "train the same data with cross-entropy too" in read.text
    assert "--method ce" in read.inside("code")
    assert path.stat().st_size < 400_000


@pytest.mark.parametrize("known", [True, False])
def test_what_incv_selected(digits: Callable, tmp_path: Path, known: bool) -> None:
    run = digits("ce").copy()
    rows = [
        {"iteration": 1, "selected": 700, "candidates": 300, "agreement": 0.5, "estimated_precision": 0.99},
        {"iteration": 2, "selected": 812, "candidates": 41, "agreement": 0.4, "estimated_precision": 0.975},
    ]
    if known:
        rows = [{**row, "label_precision": 0.98, "label_recall": 0.9} for row in rows]
    run.info["result"] |= {"incv": rows, "incv_noise": {"kind": "pairflip", "rate": 0.382, "doubt": ""}}
    read = page(write_report(run.write(tmp_path / "run")))
    assert read.inside("h2")[1] == "Which samples were selected"
    assert "Samples selected 812 2.5 % of them estimated wrong" + (", 2.0 % in truth" if known else "") in read.text
    assert "38.2 % of the labels are wrong (pairflip noise)" in read.text
    assert ("of the right, selected" in read.text) == known
    alt = [attrs.get("aria-label") or "" for attrs in read.of("div")]
    assert any("selected goes from 700 to 812 and undecided goes from 300 to 41" in text for text in alt), alt


def test_the_rows_of_the_list_are_those_of_the_file(digits: Callable, tmp_path: Path) -> None:
    run = digits("elr")
    html = write_report(run.write(tmp_path)).read_text(encoding="utf-8")
    table = html[html.index("The list of wrong labels, most suspicious first</caption>") :]
    rows = re.findall(r'<tr><th scope="row">(\d+)</th>(.*?)</tr>', table[: table.index("</table>")])
    assert len(rows) == 100
    for i, (rank, cells) in enumerate(rows):
        row = run.issues.iloc[i]
        told = re.findall(r"<td[^>]*>(.*?)</td>", cells)
        wrong = "yes" if row["given"] != row["truth"] else "no"
        flagged = "yes" if row["flagged"] else "no"
        assert rank == str(i + 1)
        assert told[:7] == [
            *(str(row[name]) for name in ("id", "given", "suggested")),
            f"{row['p_wrong']:.3f}",
            flagged,
            str(row["truth"]),
            wrong,
        ]


def test_several_runs_are_compared(digits_runs: dict, tmp_path: Path) -> None:
    folders = [run.copy().write(tmp_path / name) for name, run in digits_runs.items()]
    path = write_report(folders)
    assert path == tmp_path / "report.html"
    read = page(path)
    assert read.inside("h1") == ["Cross-entropy, ELR and Co-teaching on"]
    accuracy = {name: run.info["result"]["test_accuracy"] for name, run in digits_runs.items()}
    assert all(f"{100 * value:.1f} %" in read.text.replace("\u00a0", " ") for value in accuracy.values())
    assert f"+{100 * (accuracy['elr'] - accuracy['ce']):.1f} points" in read.text
    assert "Share of trusted labels that are right" in read.inside("h3")  # only Co-teaching has it
    assert "From the list of ELR" in read.text
    assert "cannot be compared" not in read.text
    assert path.stat().st_size < 600_000


@pytest.mark.parametrize(
    ("ce", "elr", "verdict"),
    [
        (0.90, 0.92, "no gain over cross-entropy within noise (+2.0 points)"),
        (0.92, 0.90, "no gain over cross-entropy within noise (−2.0 points)"),
        (0.92, 0.60, "no gain over cross-entropy (−32.0 points)"),
        (0.60, 0.92, "+32.0 points"),
    ],
)
def test_the_verdict_against_cross_entropy(
    digits: Callable, tmp_path: Path, ce: float, elr: float, verdict: str
) -> None:
    folders = []
    for name, accuracy in (("ce", ce), ("elr", elr)):
        run = digits(name)
        run.info["result"]["test_accuracy"] = accuracy
        folders.append(run.write(tmp_path / name))
    cells = page(write_report(folders)).inside("td")
    assert verdict in cells
    assert "baseline" in cells


def test_the_test_set_does_not_choose_whose_list_is_shown(digits: Callable, tmp_path: Path) -> None:
    folders = []
    for name, accuracy in (("ce", 1.0), ("elr", 0.0)):
        run = digits(name)
        run.info["result"] |= {"test_accuracy": accuracy, "test_accuracy_at_best_val": accuracy}
        run.metrics["test_accuracy"] = accuracy
        folders.append(run.write(tmp_path / name))
    assert (
        "From the list of ELR, the best of these runs at the last epoch on held-out" in page(write_report(folders)).text
    )


def test_without_held_out_labels_the_first_method_is_shown(digits: Callable, tmp_path: Path) -> None:
    folders = []
    for name in ("ce", "elr", "co-teaching"):
        run = digits(name)
        run.metrics = run.metrics.drop(columns="val_accuracy")
        folders.append(run.write(tmp_path / name))
    read = page(write_report(folders))
    assert "From the list of ELR, the first of these runs that is not the baseline" in read.text


def test_runs_on_other_labels_are_not_like_with_like(digits: Callable, tmp_path: Path) -> None:
    ce, elr = digits("ce"), digits("elr")
    elr.info["data"]["noise"] |= {"hash": "other", "realised": 0.2}
    read = page(write_report([ce.write(tmp_path / "ce"), elr.write(tmp_path / "elr")]))
    assert "These runs did not see the same labels" in read.text
    assert "cannot be compared like with like" in read.text


def test_runs_on_other_data_name_theirs(digits: Callable, tmp_path: Path) -> None:
    ce, elr, third = digits("ce"), digits("elr"), digits("co-teaching")
    for run, accuracy in ((ce, 0.5), (elr, 0.75)):
        run.info["result"]["test_accuracy"] = accuracy
    elr.info["data"] |= {"name": "flowers", "noise": None, "n": 90}
    third.info["data"]["name"] = "trees"
    third.info["result"].pop("test_accuracy")
    third.metrics = third.metrics.drop(columns="test_accuracy")
    folders = [run.write(tmp_path / f"{i}") for i, run in enumerate((ce, elr, third))]
    html = write_report(folders).read_text(encoding="utf-8")
    read = Page(html).text.replace("\u00a0", " ")
    assert "Cross-entropy, ELR and Co-teaching on digits, flowers and trees · labelproof report" in read
    assert ", flowers (90 labelled samples) and trees (1,437 labelled samples; label noise" in read
    assert "Test accuracy at the last epoch: Cross-entropy 50.0 % on digits and ELR 75.0 % on flowers." in read
    folders = [folders[2], third.write(tmp_path / "3")]
    assert "). There is no test score." in Page(write_report(folders).read_text(encoding="utf-8")).text


def test_two_runs_of_one_method_are_told_apart(digits: Callable, tmp_path: Path) -> None:
    folders = [digits("elr").write(tmp_path / name) for name in ("seed-0", "seed-1")]
    read = page(write_report(folders))
    assert "ELR [seed-0]" in read.text
    assert "ELR [seed-1]" in read.text
    assert "No run with cross-entropy ( --method ce ) is among these" in read.text


NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "$\\frac{$ {{ 7*7 }} & 'co'",
    "日本 \u202e עברית",
]


def test_everything_from_data_is_escaped(digits: Callable, tmp_path: Path) -> None:
    run = digits("elr")
    names = NASTY + [f"class {k}" for k in range(4, 10)]
    for column in ("given", "suggested", "truth"):
        run.issues[column] = [names[k] for k in run.issues[column]]
    run.issues["id"] = [f"a'b\"c<{i}>&amp;.jpg" for i in run.issues["id"]]
    run.issues = run.issues.rename(columns={"evidence_agreement": "evidence_<b>agree</b>"})
    run.info["data"] |= {"name": "<data> & 'co'", "classes": names}
    run.info["method"] |= {"title": "<i>ELR</i>", "paper": "<u>paper</u>"}
    run.info["command"] = 'labelproof train "<x>&y" --method elr'
    run.info["settings"] = {"<key>": "<value onclick=1>"}
    html_file = write_report(run.write(tmp_path))
    html, read = html_file.read_text(encoding="utf-8"), page(html_file)
    assert not re.search(r"<(script|b>agree|i>|u>|x>|key>|value|data>)", html)
    for name in NASTY:
        assert any(name in piece for _, piece in read.pieces), name
    assert any(tag["alt"].startswith("Sample a'b\"c<") for tag in read.of("img"))
    for told in ("<data> & 'co'", "<u>paper</u>", run.info["command"], "<value onclick=1>", "<b>agree</b>"):
        assert told in read.text


def test_feature_names_and_values_are_escaped(tabular, tmp_path: Path) -> None:
    tabular.info["data"]["columns"][0] = "<script>x</script>"
    read = page(write_report(tabular.write(tmp_path)))
    assert "<script>x</script>" in read.inside("th")


def test_names_that_are_not_unicode_do_not_cost_the_report(digits: Callable, tmp_path: Path) -> None:
    run = digits("elr")
    run.info["data"]["name"] = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert "caf? (" in page(write_report(run.write(tmp_path))).text


def test_somebodys_own_table(tabular, tmp_path: Path) -> None:
    read = page(write_report(tabular.write(tmp_path)))
    assert "there is no test score" in read.text
    assert "Accuracy on held-out labels" in read.text
    assert "The first 12 of 30 feature columns." in read.text
    assert "mean radius" in read.inside("th")
    assert "patient-108" in read.inside("th")
    assert "The truth" in read.text
    assert "is not known here" in read.text
    assert "Learnt or memorised?" not in read.inside("h2")
    assert "Really wrong" not in read.inside("th")
    assert not read.of("img")


def test_regression(regression, tmp_path: Path) -> None:
    read = page(write_report(regression.write(tmp_path)))
    rmse = regression.info["result"]["test_rmse"]
    assert f"Huber loss reached a test RMSE of {rmse:.4g} for progression after 25 epochs on diabetes" in read.text
    assert {"What was given and what the model says", "Learning curves"} <= set(read.inside("h2"))
    assert "Which class is mistaken for which" not in read.inside("h2")
    assert "accuracy" not in " ".join(read.inside("h3", "th", "dt")).lower()


def test_regression_runs_are_compared_with_the_squared_error(regression, tmp_path: Path) -> None:
    huber, mse = regression, regression.copy()
    mse.info["method"] = {"name": "mse", "title": "Squared error"}
    mse.info["result"]["test_rmse"] = huber.info["result"]["test_rmse"] * 2
    cells = page(write_report([huber.write(tmp_path / "h"), mse.write(tmp_path / "m")])).inside("td")
    assert "−50.0 % error" in cells


def test_a_run_that_is_still_going(digits: Callable, tmp_path: Path) -> None:
    run = digits("elr")
    run.info |= {"status": "running", "result": {}}
    run.metrics = run.metrics.head(12)
    folder = run.write(tmp_path)
    (folder / "issues.csv").unlink()
    read = page(write_report(folder))
    assert "this run is not finished. The page shows 12 of 40 epochs." in read.text
    assert f"{100 * run.metrics['test_accuracy'].iloc[-1]:.1f} % test accuracy after 12 epochs" in read.text
    assert "0.6 s" in read.inside("b")  # the seconds of metrics.csv count from the start of training
    assert "Labels to look at" not in read.inside("h2")


@pytest.mark.parametrize("epochs", [0, 1, 2])
def test_hardly_any_epochs(digits: Callable, tmp_path: Path, epochs: int) -> None:
    run = digits("ce")
    run.metrics = run.metrics.head(epochs)
    read = page(write_report(run.write(tmp_path)))
    assert ("Learning curves" in read.inside("h2")) == (epochs > 0)


def test_the_barest_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    read = page(write_report(tmp_path))
    assert "this run is not finished" in read.text


def test_nothing_flagged(digits: Callable, tmp_path: Path) -> None:
    run = digits("elr")
    run.issues["flagged"] = False
    run.issues["truth"] = run.issues["given"]
    run.info["result"] |= {"flagged": 0, "flagged_precision": None, "noise_rate": 0.0}
    read = page(write_report(run.write(tmp_path)))
    assert "None of 1,437 labels are flagged as wrong" in read.text
    assert "No label is flagged as wrong." in read.text
    assert "Most frequent corrections" not in read.text


def test_a_thousand_classes(digits: Callable, tmp_path: Path) -> None:
    run, K = digits("elr"), 1000
    matrix = 0.6 * np.eye(K) + 0.4 * np.random.default_rng(0).dirichlet(np.full(K, 0.01), K)
    run.info["data"]["classes"] = [f"a class with quite a long name, number {k}" for k in range(K)]
    run.info["result"] |= {"noise_transition": matrix.round(6).tolist(), "true_transition": None}
    path = write_report(run.write(tmp_path))
    read = page(path)
    assert "1000 classes, in the order of their codes; each point is the largest of 4 × 4 entries" in read.text
    assert any("transition matrix of 1000 classes" in attrs["alt"] for attrs in read.of("img"))
    assert path.stat().st_size < 1_000_000


def test_sixty_large_pictures_stay_under_two_megabytes(digits: Callable, tmp_path: Path) -> None:
    run = digits("elr")
    run.gallery["image"] = np.random.default_rng(0).integers(
        0, 256, (60, 224, 224, 3), dtype=np.uint8
    )  # the worst case
    assert write_report(run.write(tmp_path)).stat().st_size < 2_000_000


def test_the_gallery_follows_the_ranks(digits: Callable, tmp_path: Path) -> None:
    run = digits("elr")
    run.gallery = {"rank": np.array([5, 2, 9999]), "image": run.gallery["image"][:3]}
    alts = [attrs["alt"] for attrs in page(write_report(run.write(tmp_path))).of("img")]
    rows = run.issues.iloc[[1, 4]]
    assert alts == [f"Sample {row.id}, labelled {row.given}" for row in rows.itertuples()]


def test_the_same_run_gives_the_same_bytes(digits: Callable, tmp_path: Path) -> None:
    folder = digits("elr").write(tmp_path)
    assert (
        write_report(folder, tmp_path / "a.html").read_bytes() == write_report(folder, tmp_path / "b.html").read_bytes()
    )


def test_a_failed_write_leaves_the_old_report(
    digits: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = digits("elr").write(tmp_path)
    (folder / "report.html").write_text("the old one")
    before = sorted(os.listdir(folder))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(folder)
    assert (folder / "report.html").read_text() == "the old one"
    assert sorted(os.listdir(folder)) == before


def test_bad_arguments(digits: Callable, regression, tmp_path: Path) -> None:
    folder = digits("elr").write(tmp_path / "elr")
    with pytest.raises(ValueError, match="run_dirs is empty: give at least one run folder"):
        write_report([])
    with pytest.raises(ValueError, match=r"out='.*' is a folder: give the file to write, e\.g\. .*report\.html"):
        write_report(folder, tmp_path)
    with pytest.raises(ValueError, match=r"run_dirs mixes tasks.*\(classification\).*\(regression\)"):
        write_report([folder, regression.write(tmp_path / "reg")])
    with pytest.raises(ValueError, match="out is needed"):
        write_report([folder, digits("ce").write(tmp_path / "deeper" / "ce")])
    assert write_report(str(folder), tmp_path / "new" / "page.html") == tmp_path / "new" / "page.html"


def test_an_empty_list_of_issues(digits: Callable, tmp_path: Path) -> None:
    run = digits("elr")
    run.issues = pd.DataFrame(columns=run.issues.columns)
    assert "Labels to look at" not in page(write_report(run.write(tmp_path))).inside("h2")
