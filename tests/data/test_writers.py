"""Writing copies with other labels: nothing else changes, and the original is never touched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelproof.data.dataset import Data
from labelproof.data.readers import check_cells, read, write_table
from tests.data.samples import class_folder, csv, image_table, save


@pytest.fixture
def animals(tmp_path):
    return class_folder(tmp_path)


def relabelled(data: Data, *changes: tuple[int, int]) -> Data:
    y = data.y.copy()
    for row, code in changes:
        y[row] = code
    return data.relabelled(y)


def test_a_csv_copy_keeps_every_other_cell_as_text(tmp_path):
    text = 'id,weight,,note,note,label\n007,1.50,x,"a, ""b""",NA,01\n8,1e3,,,  s ,2\n9,-0,z,é,,01\n'
    path = csv(tmp_path, text)
    data = read(path, drop=["Unnamed: 2", "note", "note.1"])
    out = write_table(path, relabelled(data, (1, 0), (2, 1)), tmp_path / "out.csv")
    assert out.read_text() == (
        'id,weight,,note,note,label,label_original\n007,1.50,x,"a, ""b""",NA,01,01\n8,1e3,,,  s ,01,2\n9,-0,z,é,,2,01\n'
    )
    assert path.read_text() == text
    assert [entry.name for entry in sorted(tmp_path.iterdir())] == ["data.csv", "out.csv"]


cells = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=6)
tables = st.lists(st.tuples(cells, st.sampled_from(["ant", "bee", "01"])), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(tables, st.data())
def test_what_a_csv_copy_says_is_what_was_asked_for(tmp_path_factory, rows, draw):
    folder = tmp_path_factory.mktemp("csv")
    frame = pd.DataFrame({"a": range(len(rows)), "note": [n for n, _ in rows], "label": [f"{c}!" for _, c in rows]})
    frame.to_csv(folder / "data.csv", index=False)
    data = read(folder / "data.csv", drop=["note"])
    y = np.array([draw.draw(st.integers(0, data.num_classes - 1)) for _ in rows])
    out = write_table(folder / "data.csv", data.relabelled(y), folder / "out.csv")
    again = pd.read_csv(out, keep_default_na=False, dtype=str)
    assert again["label"].tolist() == data.classes[y].tolist()
    assert again["label_original"].tolist() == frame["label"].tolist()
    assert again["note"].tolist() == frame["note"].tolist()


def test_a_parquet_copy_keeps_types_and_order(tmp_path):
    table = pa.table(
        {
            "f": pa.array([0.1, 0.2, None], pa.float32()),
            "label": pa.array(["b", "a", "b"]).dictionary_encode(),
            "when": pa.array([1, 2, 3], pa.timestamp("ms")),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    data = _labels_only(tmp_path / "in.parquet")
    out = pq.read_table(write_table(tmp_path / "in.parquet", relabelled(data, (0, 0)), tmp_path / "out.parquet"))
    assert out.column_names == ["f", "label", "when", "label_original"]
    assert out.schema.field("label").type == out.schema.field("label_original").type == table.schema.field("label").type
    assert out.select(["f", "when"]).equals(table.select(["f", "when"]))
    assert out["label"].to_pylist() == ["a", "a", "b"]
    assert out["label_original"].to_pylist() == ["b", "a", "b"]


def _labels_only(path: Path) -> Data:
    labels = pq.read_table(path)["label"].to_pylist()
    classes, y = np.unique(labels, return_inverse=True)
    return Data(x=np.zeros((len(y), 1), np.float32), y=y, classes=classes)


def test_tables_turn_into_each_other(tmp_path):
    path = csv(tmp_path, "a,label\n1,0\n2,1\n3,0\n")
    noisy = relabelled(read(path), (0, 1))
    parquet = write_table(path, noisy, tmp_path / "out.parquet")
    assert read(parquet, truth="label_original").truth.tolist() == [0, 1, 0]
    back = write_table(parquet, read(parquet), tmp_path / "back.csv", original="before")
    assert back.read_text() == "a,label,label_original,before\n1,1,0,1\n2,1,1,1\n3,0,0,0\n"


def test_leading_zeros_are_kept(tmp_path):
    path = csv(tmp_path, "id,a,label\n0092,1,007\n0100,2,010\n0101,3,007\n")
    noisy = relabelled(read(path), (0, 1))
    out = write_table(path, noisy, tmp_path / "out.csv")
    assert out.read_text() == "id,a,label,label_original\n0092,1,010,007\n0100,2,010,010\n0101,3,007,007\n"
    parquet = pq.read_table(write_table(path, noisy, tmp_path / "out.parquet"))
    assert parquet["id"].to_pylist() == ["0092", "0100", "0101"]
    assert parquet["label_original"].to_pylist() == ["007", "010", "007"]
    again = read(tmp_path / "out.parquet", truth="label_original")
    assert again.classes[again.y].tolist() == ["010", "010", "007"]
    test = read(
        csv(tmp_path, "a,label\n5,10\n6,11\n", "test.csv"), like=read(csv(tmp_path, "a,label\n5,10\n6,11\n7,x\n"))
    )
    out = write_table(tmp_path / "test.csv", relabelled(test, (0, 2)), tmp_path / "out2.csv")
    assert out.read_text() == "a,label,label_original\n5,x,10\n6,11,11\n"


def test_only_the_samples_of_the_data_are_written(tmp_path):
    path = csv(tmp_path, "key,a,label\nk1,1,x\nk2,2,y\nk3,3,x\nk4,4,y\n")
    part = read(path, id_column="key").take(np.array([1, 2]))
    out = write_table(path, relabelled(part, (0, 0)), tmp_path / "out.csv", id_column="key")
    assert out.read_text() == "key,a,label,label_original\nk2,2,x,y\nk3,3,x,x\n"
    with pytest.raises(ValueError, match=r"sample '?k2'? is not in data.csv: data must .* id_column= \(--id-column\)"):
        write_table(path, part, tmp_path / "out.csv")


def test_targets_that_did_not_change_keep_all_their_digits(tmp_path):
    rows = "".join(f"{i},{i / 7!r}\n" for i in range(30))
    path = csv(tmp_path, f"a,y\n{rows}")
    data = read(path)
    noisy = data.relabelled(np.where(np.arange(30)[:, None] == 4, 0.1, data.y))
    lines = write_table(path, noisy, tmp_path / "out.csv").read_text().splitlines()
    assert lines[4] == f"3,{3 / 7!r},{3 / 7!r}"
    assert lines[5] == f"4,0.1,{4 / 7!r}"
    table = pa.table({"a": range(30), "y": [i / 7 for i in range(30)]})
    pq.write_table(table, tmp_path / "in.parquet")
    copy = pq.read_table(write_table(tmp_path / "in.parquet", noisy, tmp_path / "out.parquet"))
    assert copy["y"].to_pylist()[3:6] == [3 / 7, 0.1, 5 / 7]


def test_an_npz_copy_keeps_the_other_arrays(tmp_path):
    path = save(tmp_path, x=np.ones((3, 2)), y=np.array(["b", "a", "b"]), extra=np.arange(7))
    with np.load(write_table(path, relabelled(read(path), (0, 0)), tmp_path / "out.npz")) as out:
        assert sorted(out.files) == ["extra", "label_original", "x", "y"]
        assert out["y"].tolist() == ["a", "a", "b"]
        assert out["label_original"].tolist() == ["b", "a", "b"]
        assert out["extra"].tolist() == list(range(7))
    y = np.linspace(0, 1, 30)
    path = save(tmp_path, x=np.ones((30, 2)), y=y)
    data = read(path)
    with np.load(write_table(path, data.relabelled(data.y + (np.arange(30) == 2)[:, None]), tmp_path / "o.npz")) as out:
        assert np.flatnonzero(out["y"] != y).tolist() == [2]
        assert out["y"].dtype == np.float64


def test_an_image_folder_becomes_parquet_with_the_very_files(animals, tmp_path):
    data = read(animals)
    out = write_table(animals, relabelled(data, (0, 1)), tmp_path / "out.parquet")
    frame = pd.read_parquet(out)
    assert frame.columns.tolist() == ["image", "label", "label_original", "id"]
    assert frame["image"][1] == (animals / "cat" / "c.jpg").read_bytes()
    again = read(out, truth="label_original")
    np.testing.assert_array_equal(again.x, data.x)
    assert again.ids.tolist() == data.ids.tolist()
    assert again.classes[again.y].tolist() == ["dog", "cat", "cat", "dog", "dog", "dog"]
    assert again.truth.tolist() == data.y.tolist()


def test_a_named_data_set_becomes_parquet(tmp_path):
    data = read("digits").take(np.arange(20))
    out = write_table("digits", relabelled(data, (0, 5)), tmp_path / "out.parquet")
    again = read(out, truth="label_original")
    np.testing.assert_array_equal(again.x, data.x)
    assert again.ids.tolist() == data.ids.tolist()
    assert np.flatnonzero(again.y != again.truth).tolist() == [0]


def test_unfit_targets_of_writing_are_refused(tmp_path, animals):
    path = csv(tmp_path, "a,label\n1,0\n2,1\n")
    data = read(path)
    for target, message in (
        (path, r"is the input itself, which stays as it is"),
        (tmp_path / "out.txt", r"out.txt' \(--out\) must end in one of .csv, .csv.gz, .parquet"),
        (tmp_path / "out.npz", r"data.csv cannot be written as out.npz"),
    ):
        with pytest.raises(ValueError, match=message):
            write_table(path, data, target)
    assert path.read_text() == "a,label\n1,0\n2,1\n"
    with pytest.raises(ValueError, match=r"out.csv does not fit this data set: it is written to Parquet"):
        write_table("digits", read("digits"), tmp_path / "out.csv")
    with pytest.raises(ValueError, match=r"column 'image' of images.parquet \(binary\) does not fit into a CSV"):
        write_table(image_table(tmp_path), read(image_table(tmp_path)), tmp_path / "out.csv")
    again = csv(tmp_path, "a,label,label_original\n1,0,0\n2,1,1\n", "again.csv")
    with pytest.raises(
        ValueError, match=r"again.csv has a column 'label_original' already: rename it first.*original="
    ):
        write_table(again, read(again), tmp_path / "out.csv")
    with pytest.raises(OSError, match=r"cannot write .*nowhere.*out.csv"):
        write_table(path, data, tmp_path / "nowhere" / "out.csv")


def test_a_copy_without_a_column_of_the_old_labels(tmp_path, animals):
    """For copies that leave out samples and change nothing."""
    rows = np.array([0, 2])
    text = 'id,weight,note,label\n007,1.50,"a, ""b""",01\n8,1e3,  s ,2\n9,-0,é,01\n'
    path = csv(tmp_path, text)
    part = read(path, drop=["note"]).take(rows)
    out = write_table(path, part, tmp_path / "out.csv", original=None)
    assert out.read_text() == 'id,weight,note,label\n007,1.50,"a, ""b""",01\n9,-0,é,01\n'
    assert pq.read_table(write_table(path, part, tmp_path / "out.parquet", original=None)).column_names == [
        "id", "weight", "note", "label"
    ]  # fmt: skip
    npz = save(tmp_path, x=np.arange(6).reshape(3, 2) / 2, y=np.array(["b", "a", "b"]), extra=np.arange(7))
    with np.load(write_table(npz, read(npz).take(rows), tmp_path / "out.npz", original=None)) as arrays:
        assert {name: arrays[name].tolist() for name in arrays.files} == {
            "x": [[0, 0.5], [2, 2.5]], "y": ["b", "b"], "extra": list(range(7))
        }  # fmt: skip
    images = pd.read_parquet(write_table(animals, read(animals).take(rows), tmp_path / "i.parquet", original=None))
    assert images.columns.tolist() == ["image", "label", "id"]
    digits = pd.read_parquet(write_table("digits", read("digits").take(rows), tmp_path / "d.parquet", original=None))
    assert digits.columns.tolist() == ["image", "label", "id"]
    assert digits["id"].tolist() == [0, 2]


def test_a_copy_may_hold_a_column_of_old_labels_of_its_own(tmp_path):
    text = "a,label,label_original\n1,0,0\n2,1,0\n3,1,1\n"
    path = csv(tmp_path, text)
    out = write_table(path, read(path).take(np.array([1, 2])), tmp_path / "out.csv", original=None)
    assert out.read_text() == "a,label,label_original\n2,1,0\n3,1,1\n"


def test_labels_that_did_not_change_keep_the_order_of_their_categories(tmp_path):
    kinds = pd.Categorical(["b", "c", "a", "b"], ["c", "a", "b", "unused"], ordered=True)
    pd.DataFrame({"f": range(4), "label": kinds}).to_parquet(tmp_path / "in.parquet")
    data = read(tmp_path / "in.parquet")
    part = data.take(np.array([0, 2, 3]))
    copy = pd.read_parquet(write_table(tmp_path / "in.parquet", part, tmp_path / "out.parquet", original=None))
    assert copy["label"].cat.categories.tolist() == ["c", "a", "b", "unused"]
    assert copy["label"].cat.ordered
    assert copy["label"].tolist() == ["b", "a", "b"]
    noisy = pd.read_parquet(write_table(tmp_path / "in.parquet", relabelled(data, (0, 0)), tmp_path / "n.parquet"))
    assert noisy["label"].tolist() == ["a", "c", "a", "b"]
    assert noisy["label_original"].tolist() == ["b", "c", "a", "b"]


def test_what_fits_into_no_csv_is_told_beforehand(tmp_path, animals):
    check_cells(animals, read(animals), tmp_path / "out.parquet")
    text = r"out.csv does not fit this data set: it is written to Parquet"
    for source in (animals, "digits"):
        with pytest.raises(ValueError, match=text):
            check_cells(source, read(source), tmp_path / "out.csv")
    images = image_table(tmp_path)
    with pytest.raises(ValueError, match=r"column 'image' of images.parquet \(binary\) does not fit into a CSV"):
        check_cells(images, read(images), tmp_path / "out.csv")
    check_cells(images, read(images), tmp_path / "out.pq")
    path = csv(tmp_path, "a,label\n1,0\n2,1\n")
    check_cells(path, read(path), tmp_path / "out.csv")
    check_cells(write_table(path, read(path), tmp_path / "plain.parquet"), read(path), tmp_path / "out.csv")
