"""`save_issues`: files that read back as they were, or no file."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

import labelproof.issues as li


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    p = rng.dirichlet(np.ones(3), 60) * 0.6 + np.eye(3)[labels] * 0.4
    names = np.array(["ant", 'bée, "quoted"', "猫"])
    return li.find_issues(
        names[labels], p, ids=[f"{i:03}" for i in range(60)], evidence={"loss": rng.normal(size=60), "epoch": labels}
    )


READERS = {
    ".csv": lambda path: pd.read_csv(path, dtype={"id": str}),
    ".parquet": pd.read_parquet,
    ".json": lambda path: pd.read_json(path, dtype={"id": str}),
}


@pytest.mark.parametrize("suffix", READERS)
def test_round_trip(table, tmp_path, suffix):
    path = li.save_issues(table, tmp_path / f"issues{suffix}")
    assert path == tmp_path / f"issues{suffix}"
    back = READERS[suffix](path)
    pd.testing.assert_frame_equal(back, table.reset_index(drop=True), check_dtype=suffix == ".parquet", rtol=1e-12)
    assert [p.name for p in tmp_path.iterdir()] == [f"issues{suffix}"]


def test_suffix_in_capitals_and_text_paths(table, tmp_path):
    path = li.save_issues(table[table["flagged"]], str(tmp_path / "ISSUES.CSV"))
    assert len(pd.read_csv(path)) == table["flagged"].sum()


@pytest.mark.parametrize("name", ["issues.xlsx", "issues", "issues.csv.gz"])
def test_other_suffixes(table, tmp_path, name):
    with pytest.raises(ValueError, match=re.escape(f"path must end in .csv, .parquet, .json, but is '{name}'")):
        li.save_issues(table, tmp_path / name)


def test_missing_folder(table, tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(f"there is no folder {tmp_path / 'none'}, create it first")):
        li.save_issues(table, tmp_path / "none" / "issues.csv")


def test_folder_that_may_not_be_written(table, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pd.DataFrame, "to_csv", refuse)
    with pytest.raises(PermissionError, match=re.escape("issues.csv: Permission denied; choose another folder")):
        li.save_issues(table, tmp_path / "issues.csv")


def test_a_crash_while_writing_leaves_the_old_file(table, tmp_path, monkeypatch):
    path = li.save_issues(table, tmp_path / "issues.csv")
    before = path.read_bytes()

    def crash(_, target, **__):
        target.write_text("half a fi")
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_csv", crash)
    with pytest.raises(KeyboardInterrupt):
        li.save_issues(table, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["issues.csv"]
