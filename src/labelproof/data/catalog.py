"""Named data sets: found among official files or Parquet files, or downloaded.

`docs/data.md` says where each is looked for and how to get it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from labelproof.core.registry import lookup
from labelproof.data.dataset import Data
from labelproof.data.official import (
    Pair,
    cached,
    read_cifar_binary,
    read_cifar_python,
    read_human_labels,
    read_image_table,
    read_mnist,
)

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
"""CIFAR-10's classes, in the order of their codes."""

CIFAR100 = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
    forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
    mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
    sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
    willow_tree wolf woman worm""".split()
)
"""CIFAR-100's fine classes, in the order of their codes (alphabetical: neighbours are not of one superclass)."""

REMOTE: dict[str, tuple[str, str]] = {
    name: (f"{base}/{name}", known_hash)
    for base, name, known_hash in (
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "train-images-idx3-ubyte.gz",
            "sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "train-labels-idx1-ubyte.gz",
            "sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "t10k-images-idx3-ubyte.gz",
            "sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist",
            "t10k-labels-idx1-ubyte.gz",
            "sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
        (
            "https://www.cs.toronto.edu/~kriz",
            "cifar-10-binary.tar.gz",
            "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
        (
            "https://www.cs.toronto.edu/~kriz",
            "cifar-100-binary.tar.gz",
            "sha256:58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
        # No SHA-256 of the human labels is published; they are also checked against the labels of the images.
        (
            "https://github.com/UCSC-REAL/cifar-10-100n/raw/main/data",
            "CIFAR-10_human.pt",
            "md5:96644db5574813cae939af5f7f2a0aec",
        ),
        (
            "https://github.com/UCSC-REAL/cifar-10-100n/raw/main/data",
            "CIFAR-100_human.pt",
            "md5:a67b45c1d7992051865b5c755bd68bb1",
        ),
    )
}
"""What can be downloaded: file name to address and checksum."""


class Found(NamedTuple):
    """A part of a data set that was found, not yet read."""

    files: tuple[Path, ...]
    read: Callable[[], Pair]
    slow: bool  # to decode: worth keeping


class _Entry(NamedTuple):
    kind: str
    train: int
    test: int
    classes: int
    load: Callable[[str, "_Places"], Data]
    where: Callable[["_Places"], str]


class _Places(NamedTuple):
    """Folders to look in, in order; the last one is the cache, which downloads go to unless `target` says otherwise."""

    folders: tuple[Path, ...]
    cache: Path
    target: Path
    download: bool

    def find(self, locate: Callable[[Path], Found | None]) -> Found | None:
        return next((found for folder in self.folders if (found := locate(folder)) is not None), None)
