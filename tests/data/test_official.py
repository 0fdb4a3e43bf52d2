"""MNIST, CIFAR and CIFAR-N out of their official files, and what is refused there."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from labelproof.data import catalog
from tests.data.official_files import (
    N,
    archive,
    human_labels,
    offline,
    pixels,
    together,
    write_cifar_binary,
    write_cifar_python,
    write_idx,
    write_mnist,
    write_table,
)

pytestmark = pytest.mark.usefixtures("own_places")


@pytest.mark.parametrize("inside", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_mnist_from_idx_files(folder, inside, ending):
    x, y = write_mnist(folder / inside, ending)
    data = offline("mnist", folder)
    np.testing.assert_array_equal(data.x[:, 0], x)
    assert data.x.flags.writeable  # torch warns about arrays that are not
    assert data.y.tolist() == y.tolist()
    assert data.y.dtype == np.int64
    assert data.classes.tolist() == list(range(10))
    write_mnist(folder / inside, ending, stem="t10k")
    assert len(offline("mnist", folder, split="test")) == N


@pytest.mark.parametrize("raw", [b"", b"\0\0\x08", b"\0\0\x08\x03" + b"\0\0\0\x09" * 3, b"\0\0\x0d\x01\0\0\0\0"])
def test_damaged_idx_files_are_named(folder, raw):
    write_mnist(folder, "")
    (folder / "train-images-idx3-ubyte").write_bytes(raw)
    with pytest.raises(
        ValueError, match=r"train-images-idx3-ubyte is not a whole IDX file of bytes: download it again"
    ):
        offline("mnist", folder)


def test_a_truncated_gz_file_is_named(folder):
    write_mnist(folder)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz cannot be unpacked .* download it again"):
        offline("mnist", folder)


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("version", ["binary", "binary archive", "python", "python numpy1", "python archive"])
def test_cifar_from_official_files(folder, tmp_path, classes, split, version):
    stem = {"binary": "-batches-bin", "python": "-batches-py"} if classes == 10 else {}
    kind = version.split()[0]
    name = f"cifar-{classes}{stem.get(kind, f'-{kind}')}"
    packed = version.endswith("archive")
    base = tmp_path / "unpacked" if packed else folder / f"cifar{classes}"
    if kind == "binary":
        write_cifar_binary(base / name, classes)
    else:
        write_cifar_python(base / name, classes, numpy1=version.endswith("numpy1"))
    if packed:
        archive(base / name, folder / f"cifar-{classes}-{kind}.tar.gz")
    x, y = together(classes, split)
    data = offline(f"cifar{classes}", folder, split=split)
    np.testing.assert_array_equal(data.x, x)
    assert data.y.tolist() == y.tolist()
    assert data.classes.tolist() == list(catalog.CIFAR10 if classes == 10 else catalog.CIFAR100)


def test_a_pickle_that_would_run_code_is_refused(folder):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(folder / "owned"),)

    write_cifar_python(folder / "cifar-10-batches-py", 10)
    (folder / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps({b"data": Evil(), b"labels": []}))
    with pytest.raises(ValueError, match=r"data_batch_3 in .* is not a CIFAR batch .*mkdir, which no data file needs"):
        offline("cifar10", folder)
    assert not (folder / "owned").exists()


def test_damaged_cifar_files_are_named(folder):
    write_cifar_binary(folder / "cifar-10-batches-bin", 10)
    (folder / "cifar-10-batches-bin" / "data_batch_2.bin").write_bytes(b"\0" * 3072)
    with pytest.raises(ValueError, match=r"data_batch_2.bin in .* is not a whole number of CIFAR records"):
        offline("cifar10", folder)
    (folder / "cifar-10-batches-bin" / "data_batch_2.bin").unlink()
    with pytest.raises(ValueError, match=r"cifar-10-batches-bin lacks data_batch_2.bin: download it again"):
        offline("cifar10", folder)
    (folder / "cifar-100-binary.tar.gz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"cifar-100-binary.tar.gz cannot be unpacked"):
        offline("cifar100", folder)


def test_labels_out_of_range_are_refused(folder):
    write_idx(folder / "train-images-idx3-ubyte", pixels(2, (28, 28)))
    write_idx(folder / "train-labels-idx1-ubyte", np.array([3, 10], dtype=np.uint8))
    with pytest.raises(ValueError, match=r"does not hold mnist: .* lie between 0 and 9"):
        offline("mnist", folder)


@pytest.mark.parametrize(
    ("name", "key"),
    [("aggre", "aggre_label"), ("worse", "worse_label"), *[(f"random{i}", f"random_label{i}") for i in (1, 2, 3)]],
)
def test_human_labels_from_the_official_file(folder, name, key):
    write_cifar_binary(folder / "cifar-10-batches-bin", 10)
    _, y = together(10, "train")
    torch.save({"clean_label": y.astype(np.int64), key: human_labels(y)}, folder / "CIFAR-10_human.pt")
    data = offline(f"cifar10n:{name}", folder)
    assert data.y.tolist() == human_labels(y).tolist()
    assert data.truth.tolist() == y.tolist()
    assert data.noise["rate"] == pytest.approx(3 / len(y))
    assert data.name == f"cifar10n:{name}"
    test = offline(f"cifar10n:{name}", folder, split="test")
    assert (len(test), test.truth, test.noise) == (N, None, {})


@pytest.mark.parametrize("form", ["numpy1", "legacy"])
def test_human_labels_saved_by_old_versions(folder, tmp_path, form):
    """The published files are from the days of NumPy 1, which called its modules otherwise."""
    write_cifar_binary(folder / "cifar-10-batches-bin", 10)
    _, y = together(10, "train")
    path, labels = folder / "CIFAR-10_human.pt", {"clean_label": y.astype(np.int64), "aggre_label": human_labels(y)}
    torch.save(labels, tmp_path / "new.pt", _use_new_zipfile_serialization=form != "legacy")
    if form == "legacy":
        path.write_bytes((tmp_path / "new.pt").read_bytes())
    else:
        with zipfile.ZipFile(tmp_path / "new.pt") as new, zipfile.ZipFile(path, "w") as old:
            for name in new.namelist():
                old.writestr(name, new.read(name).replace(b"numpy._core", b"numpy.core"))
    assert offline("cifar10n:aggre", folder).y.tolist() == human_labels(y).tolist()


def test_cifar100n_has_the_clean_labels_as_truth(folder):
    write_cifar_python(folder / "cifar-100-python", 100)
    _, y = together(100, "train")
    noisy = (y.astype(np.int64) + np.arange(len(y)) % 2) % 100
    (folder / "cifar100").mkdir()
    torch.save(
        {"clean_label": y.tolist(), "noisy_label": torch.tensor(noisy)}, folder / "cifar100" / "CIFAR-100_human.pt"
    )
    data = offline("cifar100n", folder)
    assert data.y.tolist() == noisy.tolist()
    assert data.truth.tolist() == y.tolist()


def test_human_labels_from_columns_of_the_parquet_file(folder):
    x, y = together(10, "train")
    write_table(folder / "cifar10" / "train.parquet", x, y, worse_label=human_labels(y))
    assert offline("cifar10n:worse", folder).y.tolist() == human_labels(y).tolist()
    with pytest.raises(FileNotFoundError, match=r"cifar10n:random1 was not found .*CIFAR-10_human.pt"):
        offline("cifar10n:random1", folder)


def test_human_labels_in_another_order_are_refused(folder):
    write_cifar_binary(folder / "cifar-10-batches-bin", 10)
    _, y = together(10, "train")
    path = folder / "CIFAR-10_human.pt"
    torch.save({"clean_label": y[::-1].astype(np.int64), "worse_label": human_labels(y)}, path)
    with pytest.raises(
        ValueError, match=r"CIFAR-10_human.pt does not belong to .*cifar-10-batches-bin: .* in another order"
    ):
        offline("cifar10n:worse", folder)
    torch.save({"clean_label": y[:-1].astype(np.int64), "worse_label": human_labels(y)[:-1]}, path)
    with pytest.raises(ValueError, match=r"has 29 labels for the 30 images .*cut short"):
        offline("cifar10n:worse", folder)
    torch.save({"clean_label": y.astype(np.int64)}, path)
    with pytest.raises(ValueError, match=r"CIFAR-10_human.pt has no 'worse_label', only clean_label"):
        offline("cifar10n:worse", folder)
    torch.save({"clean_label": y.astype(np.int64), "worse_label": Path("/")}, path)
    with pytest.raises(ValueError, match=r"CIFAR-10_human.pt is not a file of human labels"):
        offline("cifar10n:worse", folder)
