"""Tiny files in every format MNIST, CIFAR and CIFAR-N are published in."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from labelproof.data import catalog
from labelproof.data.dataset import Data

N = 6


def offline(name: str, folder: Path, **options: Any) -> Data:
    return catalog.load(name, data_dir=folder, download=False, **options)


def pixels(n: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def write_idx(path: Path, array: np.ndarray) -> None:
    raw = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_mnist(folder: Path, ending: str = ".gz", stem: str = "train") -> tuple[np.ndarray, np.ndarray]:
    x, y = pixels(N, (28, 28)), np.arange(N, dtype=np.uint8)
    write_idx(folder / f"{stem}-images-idx3-ubyte{ending}", x)
    write_idx(folder / f"{stem}-labels-idx1-ubyte{ending}", y)
    return x, y


def cifar_batches(classes: int, split: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    names = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]} if classes == 10 else {}
    return {
        name: (pixels(N, (3, 32, 32), seed), np.random.default_rng(seed).integers(0, classes, N, dtype=np.uint8))
        for seed, name in enumerate(names.get(split, [split]))
    }


def write_cifar_binary(folder: Path, classes: int) -> None:
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        for name, (x, y) in cifar_batches(classes, split).items():
            labels = y[:, None] if classes == 10 else np.stack([y // 5, y], axis=1)
            (folder / f"{name}.bin").write_bytes(np.hstack([labels, x.reshape(N, -1)]).tobytes())


def write_cifar_python(folder: Path, classes: int, *, numpy1: bool = False) -> None:
    folder.mkdir(parents=True)
    key = b"labels" if classes == 10 else b"fine_labels"
    for split in ("train", "test"):
        for name, (x, y) in cifar_batches(classes, split).items():
            batch = {b"data": x.reshape(N, -1), key: y.tolist(), b"filenames": [b"a.png"] * N, b"batch_label": b"one"}
            raw = pickle.dumps(batch, protocol=2)
            (folder / name).write_bytes(raw.replace(b"numpy._core", b"numpy.core") if numpy1 else raw)


def archive(folder: Path, path: Path) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for file in sorted(folder.iterdir(), reverse=True):  # order in the archive must not matter
            tar.add(file, f"{folder.name}/{file.name}")


def write_table(path: Path, x: np.ndarray, y: np.ndarray, **columns: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = []
    for image in x:
        stream = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(stream, format="PNG")
        images.append(stream.getvalue())
    pd.DataFrame({"image": images, "label": y.astype(np.int64), **columns}).to_parquet(path)


def together(classes: int, split: str) -> tuple[np.ndarray, np.ndarray]:
    parts = cifar_batches(classes, split).values()
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def human_labels(y: np.ndarray, wrong: int = 3) -> np.ndarray:
    noisy = y.astype(np.int64)
    noisy[:wrong] = (noisy[:wrong] + 1) % 10
    return noisy
