"""Reading tables of features and .npz files, and refusing what does not fit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labelproof.data.readers import read
from tests.data.samples import csv, save


def test_feature_columns_become_float32(tmp_path):
    path = csv(tmp_path, "age,member,colour,id,species\n1,True,red,n1,cat\n2.5,False,blue,n2,dog\n3,True,red,n3,cat\n")
    data = read(path, label="species")
    assert data.x.dtype == np.float32
    assert data.x.flags.c_contiguous
    np.testing.assert_array_equal(data.x, [[1, 1, 0, 1], [2.5, 0, 1, 0], [3, 1, 0, 1]])
    assert data.columns == ["age", "member", "colour=blue", "colour=red"]
    assert data.classes.tolist() == ["cat", "dog"]
    assert data.y.dtype == np.int64
    assert data.classes[data.y].tolist() == ["cat", "dog", "cat"]
    assert data.ids.tolist() == ["n1", "n2", "n3"]
    assert (data.name, data.target_name, data.truth) == ("data", "species", None)


@pytest.mark.parametrize("name", ["label", "Label", "TARGET", "class", "y"])
def test_the_label_column_is_found_by_its_name(tmp_path, name):
    assert read(csv(tmp_path, f"a,{name}\n1,0\n2,1\n")).target_name == name


def test_parquet_and_csv_of_the_same_table_read_alike(tmp_path):
    frame = pd.DataFrame(
        {
            "whole": pd.array([1, 2, 3], dtype="Int32"),
            "yes": [True, False, True],
            "grade": pd.Categorical(["low", "high", "low"], categories=["high", "low", "unused"]),
            "label": [2, 1, 2],
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    one, other = read(tmp_path / "t.parquet"), read(tmp_path / "t.csv")
    np.testing.assert_array_equal(one.x, other.x)
    assert one.columns == other.columns == ["whole", "yes", "grade=high", "grade=low"]
    assert one.classes.tolist() == other.classes.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([3, 1, 1], [1, 3]),
        ([True, False, True], [False, True]),
        (["b", "a", "b"], ["a", "b"]),
        ([1.5, 0.5, 1.5], [0.5, 1.5]),
        (pd.Categorical(["z", "k", "z"], categories=["z", "k", "unused"]), ["k", "z"]),
    ],
)
def test_classes_keep_the_users_values_sorted(tmp_path, values, classes):
    pd.DataFrame({"a": [1, 2, 3], "label": values}).to_parquet(tmp_path / "t.parquet")
    data = read(tmp_path / "t.parquet", task="classification")
    assert data.classes.tolist() == classes
    assert data.classes[data.y].tolist() == list(values)


def test_the_truth_is_coded_with_the_same_classes(tmp_path):
    data = read(csv(tmp_path, "a,label,real\n1,cat,cow\n2,dog,dog\n3,cat,cat\n"), truth="real")
    assert data.classes.tolist() == ["cat", "cow", "dog"]
    assert data.classes[data.truth].tolist() == ["cow", "dog", "cat"]
    assert data.columns == ["a"]


def test_the_label_is_not_its_own_truth(tmp_path):
    text = r"label='label' \(--label\) and truth='label' \(--truth\) are the same column"
    with pytest.raises(ValueError, match=text):
        read(csv(tmp_path, "a,label\n1,0\n2,1\n"), truth="label")
    np.savez(tmp_path / "a.npz", x=np.eye(2), y=[0, 1])
    with pytest.raises(ValueError, match=text.replace("'label'", "'y'")):
        read(tmp_path / "a.npz", truth="y")


def test_truth_of_another_kind_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"columns 'label' and 'real' of data.csv hold labels of different kinds \(0"):
        read(csv(tmp_path, "a,label,real\n1,0,cow\n2,1,dog\n"), truth="real")


def test_an_index_that_pandas_wrote_names_the_samples(tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2.0], "label": ["x", "y"]}, index=[7, 9])
    frame.to_csv(tmp_path / "t.csv")
    assert read(tmp_path / "t.csv").columns == ["a"]
    assert read(tmp_path / "t.csv").ids.tolist() == [7, 9]
    frame.rename_axis("id").to_parquet(tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet").ids.tolist() == [7, 9]


@pytest.mark.parametrize("times", [1, 2])
def test_an_index_that_pandas_wrote_never_is_a_feature(tmp_path, times):
    frame = pd.DataFrame({"a": [5.0, 6.0, 7.0], "id": ["p", "q", "r"], "label": ["x", "x", "y"]})
    for _ in range(times):
        frame.to_csv(tmp_path / "t.csv")
        frame = pd.read_csv(tmp_path / "t.csv")
    data = read(tmp_path / "t.csv")
    assert (data.columns, data.ids.tolist()) == (["a"], ["p", "q", "r"])
    frame.to_parquet(tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet").columns == ["a"]
    path = csv(tmp_path, ",a,id,label\n0,5,p,x\n1,6,q,x\n0,7,r,y\n")  # of two tables set one under the other
    assert read(path).columns == ["a"]
    assert read(csv(tmp_path, "a,,label\n5,0,x\n6,1,y\n")).columns == ["a", "Unnamed: 1"]


def test_codes_with_leading_zeros_are_kept(tmp_path):
    rows = "0092,04,007,010\n0093,5,008,008\n0100,06,010,010\n"
    data = read(csv(tmp_path, f"id,a,label,real\n{rows}"), truth="real")
    assert data.classes.tolist() == ["007", "008", "010"]
    assert data.classes[data.truth].tolist() == ["010", "008", "010"]
    assert data.ids.tolist() == ["0092", "0093", "0100"]
    np.testing.assert_array_equal(data.x, [[4], [5], [6]])
    one = read(csv(tmp_path, "id,a,label,real\n7,1,10,09\n8,2,11,11\n"), truth="real")  # labels are text as its truth
    assert (one.classes.tolist(), one.ids.tolist()) == (["09", "10", "11"], [7, 8])
    target = read(csv(tmp_path, "a,y\n1,0900\n2,1000\n"), task="regression")
    assert target.y[:, 0].tolist() == [900, 1000]
    duplicate = csv(tmp_path, 'note,note,,label\n1,2,3,"01"\n\n4,5,6,10\n')  # columns that pandas renames, a blank line
    assert read(duplicate).classes.tolist() == ["01", "10"]


@pytest.mark.parametrize("values", [["0", "1", "0"], ["0.5", "1.5", "0.5"], ["-0", "3", "0"], ["100", "20", "3"]])
def test_numbers_without_leading_zeros_stay_numbers(tmp_path, values):
    rows = "".join(f"{i},{value}\n" for i, value in enumerate(values))
    assert read(csv(tmp_path, f"a,label\n{rows}")).classes.tolist() == sorted({float(value) for value in values})


def test_the_name_is_the_file_name_without_its_ending(tmp_path):
    for name in ("a.v1.csv", "a.v2.csv"):
        assert read(csv(tmp_path, "a,label\n1,0\n2,1\n", name)).name == name[:4]
    pd.DataFrame({"a": [1, 2], "label": [0, 1]}).to_csv(tmp_path / "B.2.CSV.gz", index=False, compression="gzip")
    assert read(tmp_path / "B.2.CSV.gz").name == "B.2"
    pd.DataFrame({"a": [1, 2], "label": [0, 1]}).to_parquet(tmp_path / "c.d.pq")
    assert read(tmp_path / "c.d.pq").name == "c.d"
    np.savez(tmp_path / "e.f.npz", x=[[1.0], [2.0]], y=[0, 1])
    assert read(tmp_path / "e.f.npz").name == "e.f"


def test_columns_can_be_dropped_and_old_labels_never_are_features(tmp_path):
    path = csv(tmp_path, "a,text,label,label_original\n1,hello,0,1\n2,world,1,1\n")
    assert read(path, drop=["text"]).columns == ["a"]


def test_fractional_labels_make_a_regression(tmp_path):
    rows = "\n".join(f"{i},{i / 7}" for i in range(40))
    data = read(csv(tmp_path, f"a,y\n{rows}\n"))
    assert data.classes is None
    assert data.y.shape == (40, 1)
    assert data.y.dtype == np.float64
    np.testing.assert_allclose(data.y[:, 0], np.arange(40) / 7, rtol=1e-14)
    assert (data.given.shape, data.given.dtype) == ((40,), np.float64)
    np.testing.assert_allclose(data.given, np.arange(40) / 7, rtol=1e-14)  # pandas 2 reads not every last bit


@pytest.mark.parametrize("kind", ["int64", "uint8", "float32", "float64", "Int32", "Float64"])
def test_targets_are_given_in_their_own_type(tmp_path, kind):
    frame = pd.DataFrame({"a": [1, 2], "y": pd.array([1, 250], dtype=kind)})
    frame.to_parquet(tmp_path / "t.parquet")
    data = read(tmp_path / "t.parquet", task="regression")
    assert (data.given.dtype, data.given.tolist()) == (np.dtype(kind.lower()), [1, 250])
    assert data.take(np.array([1])).given.tolist() == [250]
    assert read(tmp_path / "t.parquet", task="classification").given is None


def test_targets_keep_the_digits_that_float32_has_no_place_for(tmp_path):
    exact = 1e9 + np.arange(40) / 8
    pd.DataFrame({"a": range(40), "y": exact}).to_csv(tmp_path / "t.csv", index=False)
    pd.DataFrame({"a": range(40), "y": exact}).to_parquet(tmp_path / "t.parquet")
    save(tmp_path, x=np.ones((40, 1)), y=exact)
    for name in ("t.csv", "t.parquet", "data.npz"):
        data = read(tmp_path / name, task="regression")
        np.testing.assert_array_equal(data.y[:, 0], exact)
        assert data.y.flags.writeable, "torch warns of arrays that are not"


def test_numbers_kept_as_text_are_refused_with_the_remedy(tmp_path):
    pd.DataFrame({"a": [1, 2], "y": ["0.5", "1.5"]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"holds its numbers as text \('0.5'\): convert it with pandas.to_numeric"):
        read(tmp_path / "t.parquet", task="regression")


def test_few_fractional_labels_and_whole_ones_make_a_classification(tmp_path):
    stars = "\n".join(f"{i},{i % 9 / 2}" for i in range(40))
    assert read(csv(tmp_path, f"a,y\n{stars}\n")).num_classes == 9
    whole = "\n".join(f"{i},{i % 15}.0" for i in range(60))
    assert read(csv(tmp_path, f"a,y\n{whole}\n")).num_classes == 15
    assert read(csv(tmp_path, f"a,y\n{stars}\n"), task="regression").classes is None


def test_a_test_file_is_coded_like_the_training_file(tmp_path):
    train = read(csv(tmp_path, "a,colour,label\n1,red,cat\n2,blue,dog\n3,red,cow\n", "train.csv"))
    test = read(csv(tmp_path, "colour,a,label\nblue,5,dog\nblue,6,cat\n", "test.csv"), like=train)
    assert test.classes.tolist() == train.classes.tolist()
    assert test.y.tolist() == [2, 0]
    assert test.columns == train.columns
    np.testing.assert_array_equal(test.x, [[5, 1, 0], [6, 1, 0]])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_text_stays_text_in_a_test_file_of_numbers(tmp_path, kind):
    train = read(csv(tmp_path, "c,flag,label\n1,True,1\n02,maybe,2\nz,False,x\n", "train.csv"))
    test = csv(tmp_path, "flag,c,label,real\nTrue,1,2,1\nFalse,1,1,1\n", "test.csv")
    if kind == "parquet":
        pd.read_csv(test).to_parquet(tmp_path / "test.parquet")
        test = tmp_path / "test.parquet"
    data = read(test, like=train, truth="real")
    assert data.classes[data.y].tolist() == ["2", "1"]
    assert data.classes[data.truth].tolist() == ["1", "1"]
    assert data.columns == ["c=02", "c=1", "c=z", "flag=False", "flag=True", "flag=maybe"]
    np.testing.assert_array_equal(data.x, [[0, 1, 0, 0, 1, 0], [0, 1, 0, 1, 0, 0]])
    padded = read(csv(tmp_path, "c,flag,label\n02,maybe,2\n", "test.csv"), like=train)
    assert padded.x.tolist() == [[1, 0, 0, 0, 0, 1]]


def test_number_classes_stay_numbers_in_a_test_file(tmp_path):
    train = read(csv(tmp_path, "a,label\n1,1\n2,2\n3,3\n", "train.csv"))
    assert read(csv(tmp_path, "a,label\n1,02\n2,3.0\n"), like=train).y.tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"label 'x' \(row 1 of data.csv\) is not a class of the training data"):
        read(csv(tmp_path, "a,label\n1,1\n2,x\n"), like=train)
    coded = read(save(tmp_path, x=[[1.0], [2.0]], y=["1", "x"]))
    assert read(save(tmp_path, x=[[1.0]], y=[1]), like=coded).y.tolist() == [0]


def test_a_test_file_need_not_have_what_is_no_feature(tmp_path):
    options = {"truth": "real", "id_column": "key", "drop": ["note"]}
    train = read(csv(tmp_path, "key,a,note,label,real\nk1,1,x,0,1\nk2,2,y,1,1\n", "train.csv"), **options)
    test = csv(tmp_path, "a,label,new\n2,1,\n", "test.csv")
    data = read(test, like=train, **options)
    assert (data.columns, data.truth, data.ids.tolist(), data.x.tolist()) == (["a"], None, [0], [[2.0]])
    for name, value in options.items():
        with pytest.raises(ValueError, match=rf"{name}='\w+' is not a column of test.csv"):
            read(test, **{name: value})
    full = csv(tmp_path, "key,a,note,label,real\nk9,1,x,0,1\n", "test.csv")
    data = read(full, like=train, **options)
    assert (data.ids.tolist(), data.truth.tolist()) == (["k9"], [1])
    assert read(save(tmp_path, x=[[1.0]], y=[0]), like=train, **options).truth is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,colour,label\nbig,red,cat\n", r"column 'a' of test.csv holds text, where the training data holds numbers"),
        (
            "a,colour,label\n1,red,bird\n",
            r"label 'bird' \(row 0 of test.csv\) is not a class of the training data, which",
        ),
        ("a,label\n1,cat\n", r"test.csv lacks the column 'colour=blue' of the training data"),
        ("a,colour,label\n1,green,cat\n", r"test.csv has values that the training data has not: colour=green"),
    ],
)
def test_a_test_file_that_differs_is_refused(tmp_path, text, message):
    train = read(csv(tmp_path, "a,colour,label\n1,red,cat\n2,blue,dog\n3,red,cow\n", "train.csv"))
    with pytest.raises(ValueError, match=message):
        read(csv(tmp_path, text, "test.csv"), like=train)


MANY = "\n".join(f"{i},word{i},{i % 2}" for i in range(60))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a,label\n1,0\n", {"label": "lable"}, r"label='lable' is not a column of data.csv: did you mean 'label'\? T"),
        ("a,label\n1,0\n", {"label": "zzz"}, r"label='zzz' is not a column of data.csv; There are: a, label"),
        (
            "a,b\n1,0\n",
            {},
            r"which column of data.csv holds the labels\? none is called .* label= \(--label\). Its columns: a, b",
        ),
        ("label,class\n1,0\n", {}, r"label and class could each be taken for it"),
        ("a,label\n1,0\n", {"id_column": "key"}, r"id_column='key' is not a column of data.csv; There are: a, label"),
        ("a,label\n1,0\n", {"truth": "rael"}, r"truth='rael' is not a column"),
        ("a,label\n1,0\n", {"drop": ["b"]}, r"drop='b' is not a column"),
        ("a,label\n1,0\n", {"image_column": "picture"}, r"image_column='picture' is not a column"),
        (
            "a,b,label\n1,2,0\n,2,1\nNA,2,1\n",
            {},
            r"column 'a' of data.csv has 2 missing values, the first in row 1: fill",
        ),
        ("a,b,label\n1,2,0\n,2,1\n3,2,0\n", {}, r"1 missing value, .*or leave it out with drop=\['a'\] \(--drop a\)"),
        ("a,label\n1,0\ninf,1\n", {}, r"column 'a' of data.csv has 1 infinite value, the first in row 1"),
        ("a,label\n1,0\n1e300,1\n", {}, r"column 'a' of data.csv holds 1e\+300 \(row 1\), too large for float32"),
        ("a,label\n1,x\n2,\n3,x\n", {}, r"column 'label' of data.csv has 1 missing value, the first in row 1: drop"),
        ("a,y\n1,0.5\n2,inf\n", {"task": "regression"}, r"column 'y' of data.csv has 1 infinite value"),
        (
            "a,label\n1,x\n",
            {"task": "regression"},
            r"'label' of data.csv holds 'x' in row 0, the first of 1 in 1 rows that are no numbers",
        ),
        (
            "a,label\n1,x\n",
            {"task": "clustering"},
            r"task='clustering' must be one of auto, classification, regression",
        ),
        (f"a,text,label\n{MANY}\n", {}, r"column 'text' of data.csv holds 60 distinct texts \(the first is 'word0'\)"),
        (f"a,text,label\n{MANY}\n", {}, r"drop=\['text'\] \(--drop text\), .*id_column='text' \(--id-column text\)"),
        (
            f"label,text,a\n{MANY}\n",
            {},
            r"label column 'label' .* 60 distinct values in 60 rows.*task='regression' \(--task r",
        ),
        ("a,my text,label\n1,x,0\n2,,1\n", {}, r"drop=\['my text'\] \(--drop 'my text'\)"),
        ("id,label\nk,0\nk,1\n", {}, r"no feature columns"),
        ("id,a,label\nk,1,0\nk,2,1\n", {}, r"ids must be unique, but .*'k'.* stands 2 times"),
        ("id,a,label\nk,1,0\n,2,1\n", {}, r"column 'id' of data.csv has 1 missing value.*every sample needs an id"),
        ("a;label\n1;0\n", {}, r"data.csv is separated by ';', but only commas are read"),
        ("a,label\n", {}, r"data.csv has no rows"),
        ("", {}, r"data.csv cannot be read as CSV"),
        ("a,label\n1,0\n2,1,7\n", {}, r"data.csv cannot be read as CSV.*line 3"),
        ("a,label\n1,0,5\n2,1,7\n", {}, r"data.csv cannot be read as CSV: its rows have more fields than its header"),
        ("a,label\n1,0\n", {"image_size": 8}, r"image_size=8 means nothing for data.csv, .*\(--image-size\) out"),
    ],
)
def test_unfit_tables_are_refused(tmp_path, text, options, message):
    with pytest.raises(ValueError, match=message):
        read(csv(tmp_path, text), **options)


def test_columns_that_make_no_features_are_refused(tmp_path):
    table = pa.table({"when": pa.array([0, 1], pa.timestamp("s")), "label": ["a", "b"]})
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(
        ValueError, match=r"column 'when' of t.parquet holds Timestamp values.*drop=\['when'\] \(--drop when\)"
    ):
        read(tmp_path / "t.parquet")
    pq.write_table(pa.table({"v": [["a"], ["b"]], "label": ["a", "b"]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"column 'v' of t.parquet holds ndarray values"):
        read(tmp_path / "t.parquet")


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_a_damaged_file_is_named(tmp_path, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"PK\x03\x04 this is not what it says")
    with pytest.raises(ValueError, match=rf"broken{suffix} cannot be read as"):
        read(path)


def test_sources_that_are_nothing_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.csv does not exist"):
        read(tmp_path / "nowhere.csv")
    with pytest.raises(
        ValueError, match=r"'mnits' is neither a file.* did you mean 'mnist'\? There are: digits, mnist"
    ):
        read("mnits")
    csv(tmp_path, "x", "data.xlsx")
    with pytest.raises(ValueError, match=r"data.xlsx: files are read by their ending, and '.xlsx' is not among .csv"):
        read(tmp_path / "data.xlsx")


def test_named_data_sets_are_read_by_name():
    data = read("digits")
    assert (data.name, len(data)) == ("digits", 1438)
    with pytest.raises(ValueError, match=r"label='digit' means nothing for the named data set digits"):
        read("digits", label="digit")
    with pytest.raises(
        ValueError, match=r"task='regression' does not fit the named data set digits, which is a classif"
    ):
        read("digits", task="regression")


def test_npz_rows_labels_and_ids(tmp_path):
    x = np.arange(6.0).reshape(3, 2)
    data = read(save(tmp_path, X=x, y=np.array(["b", "a", "b"]), ids=np.array([5, 6, 7])))
    np.testing.assert_array_equal(data.x, x.astype(np.float32))
    assert data.x.dtype == np.float32
    assert (data.classes.tolist(), data.y.tolist(), data.ids.tolist()) == (["a", "b"], [1, 0, 1], [5, 6, 7])


@pytest.mark.parametrize("shape", [(4, 9, 7), (4, 1, 9, 7), (4, 9, 7, 1), (4, 3, 9, 7), (4, 9, 7, 3)])
def test_npz_images_come_out_channels_first(tmp_path, shape):
    x = np.random.default_rng(0).integers(0, 256, shape)
    data = read(save(tmp_path, x=x, y=[0, 1, 0, 1]))
    assert data.x.dtype == np.uint8
    assert data.x.shape == (4, 3 if 3 in shape else 1, 9, 7)
    expected = x.transpose(0, 3, 1, 2) if shape[-1] in (1, 3) else x.reshape(data.x.shape)
    np.testing.assert_array_equal(data.x, expected)


def test_npz_regression_with_several_targets(tmp_path):
    y = np.random.default_rng(0).normal(size=(30, 2))
    data = read(save(tmp_path, x=np.ones((30, 3)), y=y))
    assert data.classes is None
    np.testing.assert_array_equal(data.y, y)
    np.testing.assert_array_equal(data.given, y)
    known = read(save(tmp_path, x=np.ones((30, 3)), y=y, clean=y + 1), truth="clean")
    np.testing.assert_array_equal(known.truth, y + 1)
    assert read(save(tmp_path, x=np.ones((30, 3)), y=y[:, :1])).y.shape == (30, 1)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"inputs": [[1.0]], "y": [0]}, {}, r"data.npz has no array 'x'; It has: inputs, y. Save it with np.savez"),
        ({"x": [[1.0]], "labels": [0]}, {"label": "label"}, r"has no array 'label': did you mean 'labels'\?"),
        ({"x": [[1.0], [np.nan]], "y": [0, 1]}, {}, r"x of data.npz has 1 values that are not finite .* at \[1, 0\]"),
        (
            {"x": np.zeros((2, 3, 4)) + 0.5, "y": [0, 1]},
            {},
            r"x of data.npz has shape \(2, 3, 4\).*x.reshape\(len\(x\), -1\)",
        ),
        ({"x": [[1.0], [2.0]], "y": [0, 1, 2]}, {}, r"x has 2 samples but y has 3 labels"),
        ({"x": [[1.0], [2.0]], "y": np.eye(2)}, {}, r"one-hot rows take y.argmax\(1\).*\(--task regression\)"),
        ({"x": [[1.0], [2.0]], "y": np.eye(2, dtype=int)}, {}, r"one-hot rows take y.argmax\(1\)"),
        ({"x": [["a"], ["b"]], "y": [0, 1]}, {}, r"x of data.npz holds <U1 values: inputs must be numbers"),
        ({"x": np.array([[1], [None]], dtype=object), "y": [0, 1]}, {}, r"cannot be read as .npz.*[Oo]bject arrays"),
        ({"x": np.zeros((0, 2)), "y": []}, {}, r"data.npz has no rows"),
        ({"x": [[1.0]], "y": [[0.5, np.inf]]}, {}, r"y of data.npz has 1 values that are not finite .* at \[0, 1\]"),
        ({"x": [[1.0]], "y": [0]}, {"drop": ["a"]}, r"drop=\('a',\) means nothing for data.npz"),
    ],
)
def test_unfit_npz_files_are_refused(tmp_path, arrays, options, message):
    with pytest.raises(ValueError, match=message):
        read(save(tmp_path, **arrays), **options)


def test_real_rows(data_dir):
    data = read(data_dir / "uci" / "concrete.csv", label="strength")
    assert (data.x.shape, data.y.shape, data.classes) == ((1030, 8), (1030, 1), None)
    assert data.columns[0] == "cement"
    np.testing.assert_allclose(data.y[:2, 0], [79.99, 61.89])
    assert data.given[:2].tolist() == [79.99, 61.89]


def test_real_text_is_refused_with_the_remedy(data_dir):
    with pytest.raises(ValueError, match=r"column 'title' of test.csv holds 7569 distinct texts"):
        read(data_dir / "ag_news" / "test.csv")
