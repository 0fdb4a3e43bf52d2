"""Columns that hold a vector per row: read, refused, copied, trained on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import labelproof as lp
from labelproof.data.readers import check_cells, read, write_table
from tests.data.samples import csv, png

N, D = 40, 5
VECTORS = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
LABELS = ["world", "sport"] * (N // 2)


def table(folder: Path, kind: pa.DataType | None = None, name: str = "news.parquet", **columns: object) -> Path:
    """A title, a text, vectors and labels."""
    vectors = pa.array(VECTORS.tolist(), type=pa.list_(pa.float32()) if kind is None else kind)
    titles = [f"title {i}" for i in range(N)]
    pq.write_table(pa.table({"title": titles, "embedding": vectors, "label": LABELS, **columns}), folder / name)
    return folder / name


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.float32()), pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float32(), D)],
    ids=str,
)
def test_lists_of_numbers_are_rows(tmp_path, kind):
    data = read(table(tmp_path, kind))
    assert (data.x.shape, data.x.dtype, list(data.columns)) == ((N, D), np.float32, [])
    np.testing.assert_array_equal(data.x, VECTORS)
    assert data.classes[data.y].tolist() == LABELS


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8])
def test_numpy_arrays_are_rows(tmp_path, dtype):
    x = (VECTORS * 10).astype(dtype)
    frame = pd.DataFrame({"v": list(x), "note": ["free text"] * N, "other": range(N), "label": LABELS})
    frame.to_parquet(tmp_path / "t.parquet")
    np.testing.assert_array_equal(read(tmp_path / "t.parquet").x, x.astype(np.float32))


def test_one_of_several_columns_is_chosen(tmp_path):
    path = table(tmp_path, small=pa.array(VECTORS[:, :2].tolist()), image=[png(0)] * N)
    message = (
        r"columns image, embedding, small of news.parquet each hold images or vectors: choose one with image_column="
    )
    with pytest.raises(ValueError, match=message + r" \(--image-column\) or embedding_column= \(--embedding-column\)"):
        read(path)
    with pytest.raises(
        ValueError, match=r"columns embedding, small of .* each hold vectors: choose one with embedding_c"
    ):
        read(path, drop=["image"])
    np.testing.assert_array_equal(read(path, embedding_column="small").x, VECTORS[:, :2])
    assert read(path, image_column="image").x.shape == (N, 3, 8, 8)
    np.testing.assert_array_equal(read(path, drop=["small", "image"]).x, VECTORS)
    with pytest.raises(ValueError, match=r"image_column='image' .* and embedding_column='small' .* only one column"):
        read(path, image_column="image", embedding_column="small")
    with pytest.raises(
        ValueError, match=r"embedding_column='smal' is not a column of news.parquet: did you mean 'small'"
    ):
        read(path, embedding_column="smal")


@pytest.mark.parametrize("values", [[["a"], ["b", "c"]], [[], ["b"]], [{"a": 1}, {"a": 2}]])
def test_lists_of_other_things_are_no_vectors(tmp_path, values):
    path = table(tmp_path, tags=pa.array((values * N)[:N]))
    np.testing.assert_array_equal(read(path).x, VECTORS)


def changed(row: int, value: object) -> list[object]:
    rows: list[object] = VECTORS.tolist()
    rows[row] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            changed(3, [1.0, 2.0]),
            r"holds vectors of different lengths: 5 numbers in row 0, 2 in row 3. One model makes",
        ),
        (
            changed(7, None),
            r"has 1 missing value, the first in row 7: every row needs a vector: compute those, or drop",
        ),
        (changed(9, [1.0, None, 0, 0, 0]), r"has 1 vector with numbers that are not finite .*, the first in row 9"),
        (
            changed(2, [1.0, float("nan"), 0, 0, 0]),
            r"has 1 vector with .* not finite \(missing, infinite or too .*in row 2: comp",
        ),
        (changed(2, [1e39, 0.0, 0, 0, 0]), r"has 1 vector with numbers that are not finite .*float32\), .* row 2"),
        (changed(4, []), r"holds an empty vector in row 4: put a vector of numbers there, or leave it out with drop="),
        ([[]] * N, r"holds an empty vector in row 0: put"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(tmp_path, rows, message):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"v": pa.array(rows, pa.list_(pa.float64())), "label": LABELS}), path)
    with pytest.raises(ValueError, match=f"column 'v' of t.parquet {message}"):
        read(path)


def test_matrices_per_row_are_refused(tmp_path):
    pq.write_table(pa.table({"v": [[[1.0, 2.0]]] * N, "label": LABELS}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"column 'v' of t.parquet must hold one flat vector of numbers per row"):
        read(tmp_path / "t.parquet", embedding_column="v")


@pytest.mark.parametrize(("name", "found"), [("title", "text"), ("n", "a int in row 0")])
def test_a_column_of_no_vectors_is_refused_if_asked_for(tmp_path, name, found):
    path = table(tmp_path, n=range(N))
    with pytest.raises(ValueError, match=rf"column '{name}' of news.parquet holds {found}"):
        read(path, embedding_column=name)


def test_cells_of_a_csv_may_spell_out_vectors(tmp_path):
    cells = [json.dumps(row) for row in VECTORS.tolist()]
    frame = pd.DataFrame({"embedding": cells, "title": [f"title {i}" for i in range(N)], "label": LABELS})
    frame.to_csv(tmp_path / "t.csv", index=False)
    np.testing.assert_array_equal(read(tmp_path / "t.csv").x, VECTORS)


@pytest.mark.parametrize("second", ["[0.1 0.2]", "[0.1, ... 0.2]", "[1],[2]", "0.1, 0.2", "x"])
def test_other_cells_of_a_csv_are_refused(tmp_path, second):
    path = csv(tmp_path, f'v,label\n"[0.1, 0.2]",a\n"{second}",b\n')
    with pytest.raises(ValueError, match=r"column 'v' of data.csv holds text, .*write the table to Parquet"):
        read(path)


def test_a_number_among_the_vectors_of_a_csv_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"column 'v' of data.csv holds a float in row 1: put a vector"):
        read(csv(tmp_path, 'v,label\n"[0.1, 0.2]",a\n0.5,b\n'))


def test_bracketed_words_of_a_csv_stay_categories(tmp_path):
    assert read(csv(tmp_path, "v,label\n[a],x\n[b],y\n")).columns == ["v=[a]", "v=[b]"]


def test_a_test_file_has_vectors_of_the_same_length(tmp_path):
    train = read(table(tmp_path))
    other = table(tmp_path, name="test.parquet")
    np.testing.assert_array_equal(read(other, like=train).x, VECTORS)
    pq.write_table(pa.table({"embedding": VECTORS[:, :3].tolist(), "label": LABELS}), other)
    with pytest.raises(
        ValueError, match=r"'embedding' of test.parquet holds vectors of 3 numbers, and .* shape \(5,\)"
    ):
        read(other, like=train)


@pytest.mark.parametrize(
    ("make", "source"), [(lambda folder: folder, "image folder"), (lambda folder: folder / "x.npz", "x.npz")]
)
def test_other_sources_have_no_such_column(tmp_path, make, source):
    np.savez(tmp_path / "x.npz", x=VECTORS, y=LABELS)
    with pytest.raises(
        ValueError, match=rf"embedding_column='v' means nothing for .*{source}.*--embedding-column\) out"
    ):
        read(make(tmp_path), embedding_column="v")
    with pytest.raises(ValueError, match=r"image_size=8 means nothing for news.parquet, which has no image column"):
        read(table(tmp_path), image_size=8)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), D)], ids=str)
def test_copies_keep_the_column_as_it_is(tmp_path, kind):
    path = table(tmp_path, kind)
    before = pq.read_table(path)
    data = read(path)
    whole = write_table(path, data.relabelled(1 - data.y), tmp_path / "noisy.parquet")
    after = pq.read_table(whole)
    assert after.schema.field("embedding") == before.schema.field("embedding")
    assert after.column("embedding").equals(before.column("embedding"))
    assert after.column("label_original").to_pylist() == LABELS
    np.testing.assert_array_equal(read(whole, truth="label_original").x, VECTORS)
    rows = np.array([7, 2, 30])
    part = write_table(path, data.take(rows), tmp_path / "part.parquet", original=None)
    assert pq.read_schema(part).field("embedding") == before.schema.field("embedding")
    np.testing.assert_array_equal(read(part).x, VECTORS[rows])
    with pytest.raises(
        ValueError, match=r"column 'embedding' of news.parquet \(.*\) does not fit into a CSV: write Parq"
    ):
        check_cells(path, data, tmp_path / "out.csv")


def labelproof(*words: str | Path) -> str:
    command = [sys.executable, "-m", "labelproof", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_inject_train_find_and_clean_from_the_command_line(tmp_path):
    x = VECTORS + 6 * (np.arange(N) % 2)[:, None]
    path = table(tmp_path, second=pa.array(x.tolist()))
    chosen = ("--embedding-column", "second")
    labelproof("inject", path, *chosen, "--noise", "symmetric:0.2", "--out", tmp_path / "noisy.parquet")
    noisy = pq.read_table(tmp_path / "noisy.parquet")
    for name in ("embedding", "second", "title"):
        assert noisy.column(name).equals(pq.read_table(path).column(name))
    how = (*chosen, "--epochs", "20", "--batch-size", "8", "--device", "cpu")
    shown = labelproof(
        "train",
        tmp_path / "noisy.parquet",
        *how,
        "--test",
        path,
        "--truth",
        "label_original",
        "--out",
        tmp_path / "run",
    )
    assert re.search(r"test accuracy after the last epoch +100.00%", shown)
    labelproof("find", tmp_path / "noisy.parquet", *how, "--out", tmp_path / "issues.csv")
    issues = pd.read_csv(tmp_path / "issues.csv")
    wrong = np.flatnonzero(np.array(noisy["label"].to_pylist()) != np.array(LABELS))
    assert set(issues["id"][: len(wrong)]) == set(wrong.tolist())
    few = (*chosen, "--epochs", "2", "--batch-size", "8", "--device", "cpu", "--run", tmp_path / "halves")
    labelproof("clean", tmp_path / "noisy.parquet", *few, "--out", tmp_path / "clean.parquet")
    kept = pq.read_table(tmp_path / "clean.parquet")
    rows = [int(title.split()[1]) for title in kept.column("title").to_pylist()]
    np.testing.assert_allclose(kept.column("second").to_pylist(), x[rows])


def test_training_from_python(tmp_path):
    data = read(table(tmp_path, pa.list_(pa.float32(), D)))
    clf = lp.NoisyLabelClassifier(method="ce", epochs=2, device="cpu").fit(data.x, data.classes[data.y])
    assert clf.predict_proba(data.x).shape == (N, 2)
