"""ImageNet32 out of its official batches, pickles and .npz, and what is refused there."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelproof.data import catalog
from tests.data.official_files import offline, pixels

pytestmark = pytest.mark.usefixtures("own_places")

SIZES = [3, 5, 4, 1, 2, 6, 3, 3, 3, 2]


def batch(n: int, seed: int) -> dict[str, Any]:
    """As published: pixels of a row are all red, then green, then blue; labels count from 1."""
    labels = np.random.default_rng(seed).integers(1, 1001, n)
    return {"data": pixels(n, (3072,), seed), "labels": labels.tolist(), "mean": np.zeros(3072)}


def write(path: Path, what: Any, *, protocol: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **what)
    else:
        path.write_bytes(pickle.dumps(what, protocol=protocol))


def write_all(folder: Path, ending: str = "", train: str = "", val: str = "") -> dict[str, np.ndarray]:
    batches = [batch(n, seed) for seed, n in enumerate(SIZES)]
    for i, made in enumerate(batches, 1):
        write(folder / train / f"train_data_batch_{i}{ending}", made)
    test = {key: value for key, value in batch(7, 99).items() if key != "mean"}
    write(folder / val / f"val_data{ending}", test)
    both = {"train": batches, "test": [test]}
    return {
        **{f"x_{split}": np.concatenate([b["data"] for b in parts]) for split, parts in both.items()},
        **{f"y_{split}": np.concatenate([b["labels"] for b in parts]) - 1 for split, parts in both.items()},
    }


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("", ""),
        ("imagenet32", "imagenet32"),
        ("Imagenet32_train", "Imagenet32_val"),
        ("imagenet32/Imagenet32_train_npz", "imagenet32/Imagenet32_val_npz"),
    ],
)
@pytest.mark.parametrize("ending", ["", ".npz"])
def test_images_and_labels_in_order(folder, ending, train, val):
    made = write_all(folder, ending, train, val)
    for split in ("train", "test"):
        data = offline("imagenet32", folder, split=split)
        np.testing.assert_array_equal(data.x.reshape(len(data), 3072), made[f"x_{split}"])
        assert data.x.shape == (len(made[f"y_{split}"]), 3, 32, 32)
        assert (data.x.dtype, data.y.dtype, data.x.flags.writeable) == (np.uint8, np.int64, True)
        assert data.y.tolist() == made[f"y_{split}"].tolist()
        assert data.classes.tolist() == list(range(1000))


@pytest.mark.parametrize("ending", ["", ".npz"])
def test_batches_are_read_into_one_place(folder, ending):
    n, ones = 300, np.ones(3072 * 300, dtype=np.uint8).reshape(300, 3072)
    for i in range(1, 11):
        write(folder / f"train_data_batch_{i}{ending}", {"data": ones, "labels": [1] * n, "mean": np.zeros(3072)})
    tracemalloc.start()
    data = offline("imagenet32", folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data.x.nbytes == 10 * ones.nbytes
    assert peak < 1.5 * data.x.nbytes  # all of it and, for a moment, one batch as bytes and as an array


def test_keys_of_python_2_are_known(folder):
    made = {key.encode(): value for key, value in batch(4, 0).items()}
    write(folder / "val_data", made, protocol=2)
    data = offline("imagenet32", folder, split="test")
    np.testing.assert_array_equal(data.x.reshape(4, -1), made[b"data"])


class Foreign:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({**batch(2, 0), "mean": Foreign()}, r"it asks for (posix|nt).system, which no data file needs"),
        ({**batch(2, 0), "labels": [0, 1]}, r"label 0 in row 0 is not within 1 and 1000"),
        ({**batch(2, 0), "labels": [1, 1001]}, r"label 1001 in row 1 is not within 1 and 1000"),
        ({**batch(2, 0), "labels": [1]}, r"data uint8 \(2, 3072\) and 1 labels, not uint8 \(n, 3072\) and n"),
        ({**batch(2, 0), "data": pixels(2, (12_288,))}, r"data uint8 \(2, 12288\)"),
        ({**batch(2, 0), "data": np.zeros((2, 3072), np.int16)}, r"data int16 \(2, 3072\)"),
        ({"data": pixels(2, (3072,))}, r"'labels'"),
        ([1, 2], r"has no attribute 'items'"),
    ],
)
def test_what_is_no_batch_is_refused_by_name(folder, what, message):
    write(folder / "val_data", what)
    with pytest.raises(ValueError, match=rf"val_data is not a batch of ImageNet32 \(.*{message}.*download it again"):
        offline("imagenet32", folder, split="test")
    assert not Path("ran").exists()


@pytest.mark.parametrize("ending", ["", ".npz"])
def test_a_batch_cut_short_is_named(folder, ending):
    write_all(folder, ending)
    path = folder / f"train_data_batch_4{ending}"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"train_data_batch_4{ending} is not a batch of ImageNet32"):
        offline("imagenet32", folder)


def test_arrays_of_objects_in_an_npz_are_refused(folder):
    write(folder / "val_data.npz", {"data": pixels(1, (3072,)), "labels": np.array([Foreign()], dtype=object)})
    with pytest.raises(ValueError, match=r"val_data.npz is not a batch of ImageNet32 .*allow_pickle"):
        offline("imagenet32", folder, split="test")


def test_a_missing_batch_is_named(folder):
    write_all(folder)
    for i in (1, 7):
        (folder / f"train_data_batch_{i}").unlink()
    with pytest.raises(ValueError, match=r"lacks train_data_batch_1, train_data_batch_7: download it again"):
        offline("imagenet32", folder)


def test_it_is_not_downloaded(folder):
    message = r"imagenet32 was not found in .*nothing was downloaded.*--data-dir.*image-net.org/download-images"
    with pytest.raises(FileNotFoundError, match=message):
        catalog.load("imagenet32", data_dir=folder)
    table = catalog.available(data_dir=folder).set_index("name")
    assert table.loc["imagenet32"].tolist()[:4] == ["32x32 colour images", 1_281_167, 50_000, 1000]
    assert table.loc["imagenet32", "where"] == "images not found: unpack them into --data-dir"
    write_all(folder)
    table = catalog.available(data_dir=folder).set_index("name")
    assert table.loc["imagenet32", "where"] == str(folder / "train_data_batch_1")
