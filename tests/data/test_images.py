"""Reading images out of tables and folders, and refusing what does not fit."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from labelproof.data.images import ImageFiles, load_images, to_png
from labelproof.data.readers import read
from tests.data.samples import class_folder, csv, image_table, picture, png


@pytest.fixture
def animals(tmp_path):
    return class_folder(tmp_path)


def test_image_bytes_are_decoded_in_order(tmp_path):
    data = read(image_table(tmp_path, other_label=list("xxxyyy"), note=["free text"] * 6))
    assert data.x.shape == (6, 3, 8, 8)
    assert data.x.dtype == np.uint8
    for row in range(6):
        np.testing.assert_array_equal(data.x[row], np.asarray(picture(row)).transpose(2, 0, 1))
    assert (data.columns, data.classes[data.y].tolist()) == ([], list("abcabc"))


def test_pairs_of_bytes_and_path_are_images(tmp_path):
    pairs = [{"bytes": png(i), "path": f"{i}.png"} for i in range(3)]
    pd.DataFrame({"img": pairs, "label": [0, 1, 0]}).to_parquet(tmp_path / "hf.parquet")
    np.testing.assert_array_equal(read(tmp_path / "hf.parquet").x[2], np.asarray(picture(2)).transpose(2, 0, 1))


def test_image_paths_are_relative_to_the_table(tmp_path, monkeypatch):
    (tmp_path / "img").mkdir()
    for i in range(3):
        picture(i).save(tmp_path / "img" / f"{i}.png")
    path = csv(tmp_path, f"file,label\nimg/0.png,a\nimg/1.png,b\n{tmp_path}/img/2.png,a\n")
    monkeypatch.chdir("/")
    data = read(path)
    np.testing.assert_array_equal(data.x[2], np.asarray(picture(2)).transpose(2, 0, 1))
    assert data.ids.tolist() == [0, 1, 2]


def test_grey_images_stay_grey_and_one_colour_image_makes_all_rgb(tmp_path):
    grey = [png(i, mode="L") for i in range(3)]
    assert read(image_table(tmp_path, image=[*grey, *grey])).x.shape == (6, 1, 8, 8)
    mixed = read(image_table(tmp_path, image=[*grey, png(0), *grey[:2]])).x
    assert mixed.shape == (6, 3, 8, 8)
    np.testing.assert_array_equal(mixed[0, 0], mixed[0, 2])


def test_images_of_several_sizes_need_a_size(tmp_path):
    path = image_table(tmp_path, image=[png(0, (8, 8)), *[png(i, (9, 5)) for i in range(5)]])
    message = r"row 0 of images.parquet is 8x8 and row 1 of images.parquet is 9x5.*image_size=8 \(--image-size 8\)"
    with pytest.raises(ValueError, match=message):
        read(path)
    assert read(path, image_size=6).x.shape == (6, 3, 6, 6)
    assert read(path, image_size=(4, 7)).x.shape == (6, 3, 4, 7)
    with pytest.raises(ValueError, match=r"image_size=0 \(--image-size\) must be pixels a side"):
        read(path, image_size=0)


def test_a_large_jpeg_is_made_small(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (640, 480), (200, 100, 50)).save(stream, format="JPEG")
    x = load_images([stream.getvalue()], image_size=16)
    np.testing.assert_allclose(x[0].mean((1, 2)), [200, 100, 50], atol=3)


@pytest.mark.parametrize("broken", [b"not an image", b"", png(0)[:60]])
def test_an_unreadable_image_is_named(tmp_path, broken):
    path = image_table(tmp_path, image=[png(0), png(1), broken, png(3), png(4), png(5)])
    with pytest.raises(ValueError, match=r"cannot (read|decode) image row 2 of images.parquet"):
        read(path)
    (tmp_path / "bad.png").write_bytes(broken)
    with pytest.raises(ValueError, match=r"cannot (read|decode) image .*bad.png"):
        read(csv(tmp_path, "file,label\nbad.png,a\n"))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"thumb": [png(i) for i in range(6)]},
            r"columns image, thumb of images.parquet each hold images.*image_column= \(--image-column\)",
        ),
        ({"image": [png(0), None, *[png(i) for i in range(4)]]}, r"column 'image' .* has 1 missing value, .* row 1"),
        ({"image": ["nowhere.png"] * 6}, r"nowhere.png \(row 0 of images.parquet\) does not exist: put it there, or"),
    ],
)
def test_unfit_image_tables_are_refused(tmp_path, columns, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(image_table(tmp_path, **columns))


def test_a_column_asked_for_must_hold_images(tmp_path):
    with pytest.raises(ValueError, match=r"image_column='n' of images.parquet holds a int in row 0, neither"):
        read(image_table(tmp_path, n=range(6)), image_column="n")


def test_deep_images_are_refused_rather_than_clipped(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep.png has more than 8 bits per channel \(mode I"):
        read(csv(tmp_path, "file,label\ndeep.png,a\n"))


def test_images_too_large_for_memory_are_decoded_as_they_are_used(tmp_path):
    path = image_table(tmp_path)
    held, lazy = read(path), read(path, max_bytes=6 * 3 * 64 - 1)
    assert isinstance(lazy.x, ImageFiles)
    copy = pickle.loads(pickle.dumps(lazy.x))
    assert (len(copy), copy.shape, copy.nbytes) == (6, (3, 8, 8), 6 * 3 * 64)
    for row in range(6):
        np.testing.assert_array_equal(copy[row], held.x[row])
        assert copy[row].flags.writeable  # torch warns about arrays that are not
    with pytest.raises(IndexError):
        copy[6]


def test_images_of_a_declared_mode_are_not_opened_first(tmp_path):
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    paths = [tmp_path / name for name in ("nowhere.jpg", "broken.jpg", "deep.png")]
    files = ImageFiles([*paths, png(1, mode="L")], origin="list.txt", image_size=(4, 6), mode="RGB")
    assert (files.shape, files[3].shape) == ((3, 4, 6), (3, 4, 6))
    with pytest.raises(FileNotFoundError, match=r"nowhere.jpg \(row 0 of list.txt\) does not exist: put it there"):
        files[0]
    with pytest.raises(ValueError, match=r"cannot read image .*broken.jpg: not an image"):
        files[1]
    with pytest.raises(ValueError, match=r"deep.png has more than 8 bits per channel"):
        files[2]


@pytest.mark.parametrize(("mode", "size"), [("RGB", None), ("CMYK", 8)])
def test_a_declared_mode_takes_a_size(mode, size):
    with pytest.raises(ValueError, match=rf"mode='{mode}' must be 'L' or 'RGB', with an image_size \(now {size}\)"):
        ImageFiles([png(1)], mode=mode, image_size=size)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.integers(0, 2**16))
def test_png_is_lossless(height, width, channels, seed):
    x = np.random.default_rng(seed).integers(0, 256, (1, channels, height, width), dtype=np.uint8)
    if channels == 1 or (x[0, 0] != x[0, 1]).any():
        np.testing.assert_array_equal(load_images([to_png(x[0])]), x)


def test_a_folder_per_class(animals):
    data = read(animals)
    assert data.classes.tolist() == ["cat", "dog"]
    assert data.ids.tolist() == [f"{c}/{f}" for c in ("cat", "dog") for f in ("b.png", "c.jpg", "more/a.PNG")]
    assert data.y.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.x.shape == (6, 3, 8, 8)
    np.testing.assert_array_equal(data.x[3], np.asarray(picture(1)).transpose(2, 0, 1))
    assert data.name == "animals"


def test_unfit_folders_are_refused(animals, tmp_path):
    (animals / "emu").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*emu has no images .*remove it or fill it"):
        read(animals)
    with pytest.raises(ValueError, match=r"label='x' means nothing for the image folder"):
        read(animals, label="x")
    with pytest.raises(ValueError, match=r"task='regression' does not fit"):
        read(animals, task="regression")
    (tmp_path / "split" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "split" / "test" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds the folders test, train, which are no classes"):
        read(tmp_path / "split")
    (tmp_path / "flat").mkdir()
    csv(tmp_path / "flat", "a,label\n1,2\n")
    with pytest.raises(ValueError, match=r"has no folders in it, one per class, but: data.csv"):
        read(tmp_path / "flat")


def test_real_images_with_a_label_column_of_choice(data_dir, tmp_path):
    table = pq.read_table(data_dir / "cifar10" / "train.parquet").slice(0, 2000)
    pq.write_table(table, tmp_path / "part.parquet")
    data = read(tmp_path / "part.parquet", label="worse_label", truth="label")
    assert data.x.shape == (2000, 3, 32, 32)
    assert data.y[:3].tolist() == [4, 9, 0]
    assert data.truth[:3].tolist() == [6, 9, 9]
    assert 0.35 < (data.y != data.truth).mean() < 0.45
