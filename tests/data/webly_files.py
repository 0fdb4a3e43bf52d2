"""Tiny data sets in exactly the formats of Clothing1M and mini-WebVision: JPEGs of mixed sizes under lists."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

CLOTHES = (
    "T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker", "Jacket", "Downcoat", "Suit",
    "Shawl", "Dress", "Vest", "Underwear",
)  # fmt: skip


def jpeg(path: Path, label: int, side: int, mode: str = "RGB") -> None:
    """A photograph that gets brighter with its label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((side, side + 7), 10 + 17 * label, dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, quality=95)


def listing(path: Path, lines: list[str], newline: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + newline for line in lines), newline="")
    return path


def pairs(labels: Mapping[str, int]) -> list[str]:
    return [f"{key} {label}" for key, label in labels.items()]


def clothing1m(root: Path, inside: str = "annotations", n: int = 28) -> dict[str, dict[str, int]]:
    """The label of each key, by list. Every third noisy label is wrong."""
    made: dict[str, dict[str, int]] = {}
    for part, count in (("noisy_train", n), ("clean_train", 14), ("clean_val", 14), ("clean_test", 14)):
        true = {f"images/{i % 10}/{i % 7}/{part} {i},{i * 31}.jpg": i % 14 for i in range(count)}
        for i, (key, label) in enumerate(true.items()):
            jpeg(root / key, label, 12 + i % 5, "L" if i == 3 else "RGB")  # some of the real ones are grey
        wrong = part == "noisy_train"
        made[part] = {key: (k + 1) % 14 if wrong and k % 3 == 0 else k for key, k in true.items()}
        listing(root / inside / f"{part}_key_list.txt", list(made[part]))
    noisy = {**made["noisy_train"], **dict.fromkeys(made["clean_train"], 5)}  # some have both labels
    clean = {key: k for part, labels in made.items() if part != "noisy_train" for key, k in labels.items()}
    listing(root / inside / "noisy_label_kv.txt", pairs(dict(reversed(noisy.items()))))
    listing(root / inside / "clean_label_kv.txt", pairs(clean))
    listing(root / inside / "category_names_eng.txt", list(CLOTHES))
    return made


def webvision(root: Path, images: str = "val_images_256") -> tuple[dict[str, int], dict[str, int]]:
    """The label of each image of the training and the validation list, those beyond the first 50 classes included."""
    train = {f"google/q{q:04d}/a {q}.jpg": q * 7 % 60 for q in range(60)}
    test = {f"val{i:06d}.jpg": i * 11 % 60 for i in range(30)}
    for folder, labels in ((root, train), (root / images, test)):
        for i, (key, label) in enumerate(labels.items()):
            if label < 50:  # the others are not there, and must not be missed
                jpeg(folder / key, label % 14, 12 + i % 5)
    listing(root / "info" / "train_filelist_google.txt", pairs(train))
    listing(root / "info" / "val_filelist.txt", pairs(test))
    listing(root / "info" / "synsets.txt", [f"n{i:08d} thing {i}, and so on" for i in range(1000)])
    return train, test
