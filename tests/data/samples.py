"""Small files for the tests of readers and writers."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3) if mode == "RGB" else size, dtype=np.uint8)
    return Image.fromarray(pixels)


def png(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    picture(seed, size, mode).save(stream, format="PNG")
    return stream.getvalue()


def csv(folder: Path, text: str, name: str = "data.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def image_table(folder: Path, **columns: object) -> Path:
    path = folder / "images.parquet"
    table = {"image": [png(i) for i in range(6)], "label": list("abcabc"), **columns}
    pd.DataFrame(table).to_parquet(path)
    return path


def save(folder: Path, **arrays: object) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder / "data.npz"


def class_folder(parent: Path) -> Path:
    """A folder per class, with files to find at two depths and others to pass over."""
    root = parent / "animals"
    for name in ("dog", "cat"):
        (root / name / "more").mkdir(parents=True)
        picture(1).save(root / name / "b.png")
        picture(2).save(root / name / "more" / "a.PNG")
        picture(3).save(root / name / "c.jpg")
        (root / name / "notes.txt").write_text("not an image")
    (root / ".cache").mkdir()
    return root
