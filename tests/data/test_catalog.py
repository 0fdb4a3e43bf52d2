"""Named data sets: where they are looked for, the cache, downloads, and the real ones."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest
import torch

from labelproof.data import catalog
from tests.data.official_files import (
    N,
    archive,
    human_labels,
    offline,
    together,
    write_cifar_binary,
    write_idx,
    write_mnist,
    write_table,
)

pytestmark = pytest.mark.usefixtures("own_places")


def test_digits_are_split_by_class_in_a_fixed_way():
    train, test = catalog.load("digits"), catalog.load("digits", split="test")
    assert train.x.shape == (1438, 1, 8, 8)
    assert test.x.shape == (359, 1, 8, 8)
    assert train.x.dtype == np.uint8
    assert (train.x.min(), train.x.max()) == (0, 255)
    assert sorted([*train.ids, *test.ids]) == list(range(1797))
    np.testing.assert_allclose(np.bincount(test.y) / (np.bincount(test.y) + np.bincount(train.y)), 0.2, atol=0.003)
    assert train.classes.tolist() == list(range(10))
    assert hashlib.sha256(test.ids.tobytes()).hexdigest()[:8] == "f71c9ddf"


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    digits, data = load_digits(), catalog.load("digits", split="test")
    np.testing.assert_array_equal(np.rint(data.x[:, 0] * (16 / 255)), digits.images[data.ids])
    np.testing.assert_array_equal(data.y, digits.target[data.ids])


def test_class_names_are_the_official_ones():
    assert len(catalog.CIFAR100) == 100
    assert list(catalog.CIFAR100) == sorted(catalog.CIFAR100)
    assert catalog.CIFAR10[:4] == ("airplane", "automobile", "bird", "cat")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mnits", {}, r"unknown data set 'mnits': did you mean 'mnist'\? There are: cifar10, cifar100"),
        ("cifar10n:worst", {}, r"did you mean 'cifar10n:worse'\?"),
        ("digits", {"split": "val"}, r"split='val' must be 'train' or 'test'"),
    ],
)
def test_unknown_names_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        catalog.load(name, **options)


def test_parquet_is_decoded_once(folder, tmp_path, monkeypatch):
    x, y = together(10, "train")
    write_table(folder / "cifar10" / "train.parquet", x, y)
    first = offline("cifar10", folder)
    np.testing.assert_array_equal(first.x, x)

    def decode(path):
        raise AssertionError("decoded again")

    monkeypatch.setattr(catalog, "read_image_table", decode)
    again = offline("cifar10", folder)
    np.testing.assert_array_equal(again.x, x)
    assert again.y.tolist() == y.tolist()
    monkeypatch.undo()


def test_the_cache_follows_the_file(folder, tmp_path):
    x, y = together(10, "train")
    path = folder / "cifar10" / "train.parquet"
    write_table(path, x, y)
    offline("cifar10", folder)
    write_table(path, x[::-1], y[::-1])
    np.testing.assert_array_equal(offline("cifar10", folder).x, x[::-1])


@pytest.mark.parametrize("harm", ["truncated", "read-only", "a file"])
def test_a_broken_cache_is_passed_over(folder, tmp_path, monkeypatch, harm):
    x, y = together(10, "train")
    write_table(folder / "cifar10" / "train.parquet", x, y)
    kept = tmp_path / "cache" / "decoded"
    if harm == "truncated":
        offline("cifar10", folder)
        [path] = kept.iterdir()
        path.write_bytes(path.read_bytes()[:100])
    elif harm == "a file":
        kept.parent.mkdir()
        kept.write_text("in the way")
    else:
        monkeypatch.setattr(np, "savez", functools.partial(_refuse))
    np.testing.assert_array_equal(offline("cifar10", folder).x, x)


def _refuse(*args, **kwargs):
    raise OSError("No space left on device")


def test_rows_are_split_in_a_fixed_way(folder):
    (folder / "uci").mkdir()
    frame = pd.DataFrame({"a": np.arange(40.0), "strength": np.arange(40.0) * 2, "b": 1.0})
    frame.to_csv(folder / "uci" / "concrete.csv", index=False)
    train, test = offline("uci/concrete", folder), offline("uci/concrete", folder, split="test")
    assert (len(train), len(test), train.columns, train.target_name) == (36, 4, ["a", "b"], "strength")
    assert sorted([*train.ids, *test.ids]) == list(range(40))
    np.testing.assert_array_equal(test.y[:, 0], test.x[:, 0] * 2)
    np.testing.assert_array_equal(test.given, test.ids * 2.0)
    assert test.given.dtype == np.float64
    with pytest.raises(
        FileNotFoundError, match=r"uci/energy was not found \(looked for .*energy.csv.*it cannot be downl"
    ):
        offline("uci/energy", folder)
    frame.rename(columns={"strength": "s"}).to_csv(folder / "uci" / "concrete.csv", index=False)
    with pytest.raises(ValueError, match=r"concrete.csv does not hold uci/concrete: it must have a column 'strength'"):
        offline("uci/concrete", folder)


def test_the_folder_is_argument_then_environment_then_shared_then_cache(tmp_path, monkeypatch):
    def found() -> str:
        return str(catalog.load("mnist", download=False).x[0, 0, 0, 0])

    for value, place in enumerate(("cache", "shared/data", "env", "arg")):
        x = np.full((2, 28, 28), value, dtype=np.uint8)
        write_idx(tmp_path / place / "train-images-idx3-ubyte", x)
        write_idx(tmp_path / place / "train-labels-idx1-ubyte", np.array([0, 1], dtype=np.uint8))
        if place == "env":
            monkeypatch.setenv("LABELPROOF_DATA", str(tmp_path / "env"))
        if place != "arg":
            assert found() == str(value)
    assert catalog.load("mnist", data_dir=tmp_path / "arg").x[0, 0, 0, 0] == 3
    assert catalog.load("mnist", data_dir=tmp_path / "here", download=False).x[0, 0, 0, 0] == 0  # from the cache


def test_missing_data_names_the_folders_and_the_remedy(folder, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        offline("mnist", folder)
    for part in (str(folder), str(tmp_path / "cache"), "--data-dir", "LABELPROOF_DATA", "train-images-idx3-ubyte.gz"):
        assert part in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"data_dir='nowhere' is not a folder"):
        catalog.load("mnist", data_dir="nowhere")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine in place of the official ones; yields its folder."""
    root = tmp_path / "web"
    root.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root)))
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield root, f"http://127.0.0.1:{httpd.server_port}/"
    httpd.shutdown()
    httpd.server_close()


def publish(monkeypatch, server, *, checksum: str | None = None) -> None:
    root, url = server
    for path in root.iterdir():
        known = checksum or f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
        monkeypatch.setitem(catalog.REMOTE, path.name, (url, known))


def test_what_is_missing_is_downloaded_once(server, folder, tmp_path, monkeypatch):
    x, _ = write_mnist(server[0])
    publish(monkeypatch, server)
    np.testing.assert_array_equal(catalog.load("mnist", data_dir=folder).x[:, 0], x)
    assert sorted(p.name for p in folder.iterdir()) == ["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"]
    for path in server[0].iterdir():
        path.unlink()
    assert len(catalog.load("mnist", data_dir=folder)) == N
    with pytest.raises(FileNotFoundError, match=r"mnist was not found .* the download failed .*404"):
        catalog.load("mnist", split="train")


def test_downloads_go_to_the_cache_unless_a_folder_is_given(server, folder, tmp_path, monkeypatch):
    write_cifar_binary(tmp_path / "cifar-10-batches-bin", 10)
    archive(tmp_path / "cifar-10-batches-bin", server[0] / "cifar-10-binary.tar.gz")
    _, y = together(10, "train")
    torch.save({"clean_label": y.astype(np.int64), "aggre_label": human_labels(y)}, server[0] / "CIFAR-10_human.pt")
    publish(monkeypatch, server)
    monkeypatch.setenv("LABELPROOF_DATA", str(folder))
    assert catalog.load("cifar10n:aggre").truth.tolist() == y.tolist()
    assert not list(folder.iterdir())
    assert (tmp_path / "cache" / "cifar-10-binary.tar.gz").is_file()


def test_a_download_with_another_checksum_is_refused(server, folder, monkeypatch):
    write_mnist(server[0])
    publish(monkeypatch, server, checksum="sha256:" + "0" * 64)
    with pytest.raises(
        FileNotFoundError, match=r"mnist was not found in .* the download failed \(ValueError: SHA256 hash"
    ):
        catalog.load("mnist", data_dir=folder)
    assert not list(folder.iterdir())


def test_every_download_has_an_https_address_and_a_checksum():
    for name, (url, known) in catalog.REMOTE.items():
        assert url.startswith("https://"), name
        assert url.endswith("/"), name
        algorithm, _, digest = known.partition(":")
        assert len(digest) == {"sha256": 64, "md5": 32}[algorithm], name
        assert (algorithm == "md5") == name.endswith("_human.pt")


def test_available_lists_every_name_and_where_it_is(folder):
    write_mnist(folder)
    table = catalog.available(data_dir=folder).set_index("name")
    assert tuple(table.index) == catalog.NAMES
    assert table.loc["mnist", "where"] == str(folder / "train-images-idx3-ubyte.gz")
    assert table.loc["cifar100", "where"] == "images not found: downloaded when first used"
    assert table.loc["uci/energy", "where"].startswith("not found: put energy.csv into a folder uci/")
    assert not (folder.parent / "cache").exists()


@pytest.fixture(scope="module")
def real(data_dir, tmp_path_factory):
    """Loads from the shared folder, with one cache for the tests below."""
    cache = tmp_path_factory.mktemp("cache")

    def load(name, **options):
        os.environ["LABELPROOF_CACHE"] = str(cache)  # `_own_places` restores it
        return catalog.load(name, data_dir=data_dir, download=False, **options)

    return load


def test_real_mnist(real):
    train, test = real("mnist"), real("mnist", split="test")
    assert train.x.shape == (60_000, 1, 28, 28)
    assert test.x.shape == (10_000, 1, 28, 28)
    assert np.bincount(train.y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(test.y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert round(float(train.x.mean()) / 255, 4) == 0.1307  # the mean everyone normalises MNIST with


@pytest.mark.parametrize(("name", "rate"), [("aggre", 0.0901), ("worse", 0.4021)])
def test_real_human_labels_are_as_wrong_as_published(real, name, rate):
    data = real(f"cifar10n:{name}")
    assert data.x.shape == (50_000, 3, 32, 32)
    assert np.bincount(data.truth).tolist() == [5000] * 10
    assert (data.y != data.truth).mean() == pytest.approx(rate, abs=5e-5)
    assert data.classes[data.truth[:3]].tolist() == ["frog", "truck", "truck"]


def test_real_cifar10_loads_from_the_cache_in_under_a_second(real):
    real("cifar10")
    began = time.perf_counter()
    data = real("cifar10")
    assert time.perf_counter() - began < 1
    np.testing.assert_allclose(data.x.mean((0, 2, 3)) / 255, [0.4914, 0.4822, 0.4465], atol=2e-3)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("concrete", (927, 8)), ("energy", (691, 8)), ("kin8nm", (7373, 8)), ("protein", (41_157, 9))],
)
def test_real_rows(real, name, shape):
    train, test = real(f"uci/{name}"), real(f"uci/{name}", split="test")
    assert train.x.shape == shape
    assert train.y.shape == (shape[0], 1)
    assert np.intersect1d(train.ids, test.ids).size == 0
    table = catalog.available().set_index("name").loc[f"uci/{name}"]
    assert (len(train), len(test)) == (table["train"], table["test"])
