"""Real data with planted noise, and the two kinds of probabilities that `labelproof.issues` has to work on."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.neural_network import MLPClassifier

Arrays = tuple[NDArray[np.float32], NDArray[np.int64]]

MODELS: dict[str, Callable[[], ClassifierMixin]] = {
    "logistic": lambda: LogisticRegression(max_iter=200),
    "mlp": lambda: MLPClassifier((64,), max_iter=30, random_state=0),
    "trees": lambda: HistGradientBoostingClassifier(max_iter=30, max_leaf_nodes=15, random_state=0),
}


def plant_noise(y: NDArray[np.int64], kind: str, rate: float, seed: int) -> NDArray[np.int64]:
    """Wrong labels at the given rate: "symmetric" into any other class, "pairflip" into the next one."""
    rng = np.random.default_rng(seed)
    num_classes = int(y.max()) + 1
    shift = rng.integers(1, num_classes, len(y)) if kind == "symmetric" else np.ones(len(y), dtype=np.int64)
    return np.where(rng.random(len(y)) < rate, (y + shift) % num_classes, y)


def held_out(x: NDArray[np.float32], given: NDArray[np.int64], model: str, folds: int = 5) -> NDArray[np.float64]:
    """Out-of-sample probabilities of a scikit-learn model trained on the given labels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # models as users leave them
        return cross_val_predict(MODELS[model](), x, given, cv=folds, method="predict_proba")


def time_averaged(
    x: NDArray[np.float32], given: NDArray[np.int64], *, epochs: int = 40, seed: int = 0
) -> NDArray[np.float64]:
    """Mean over epochs of what a network that memorises its labels said about each sample when it was visited."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    inputs, targets = torch.tensor(x), torch.tensor(given)
    num_classes = int(given.max()) + 1
    net = torch.nn.Sequential(
        torch.nn.Linear(x.shape[1], 256),
        torch.nn.ReLU(),
        torch.nn.Linear(256, 256),
        torch.nn.ReLU(),
        torch.nn.Linear(256, num_classes),
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    total = torch.zeros(len(x), num_classes)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(128):
            logits = net(inputs[rows])
            total[rows] += logits.detach().softmax(dim=1)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, targets[rows]).backward()
            optimizer.step()
    return (total / epochs).double().numpy()


@pytest.fixture(scope="session")
def digits() -> Arrays:
    """1,797 images of 8 x 8, ten classes."""
    x, y = load_digits(return_X_y=True)
    return (x / 16).astype(np.float32), y.astype(np.int64)


@pytest.fixture(scope="session")
def mnist(data_dir: Path) -> Arrays:
    """The first 10,000 training images, as rows of pixels."""
    table = pd.read_parquet(data_dir / "mnist" / "train.parquet").iloc[:10_000]
    images = [image["bytes"] if isinstance(image, dict) else image for image in table["image"]]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image))).ravel() for image in images])
    return (pixels / 255).astype(np.float32), table["label"].to_numpy(dtype=np.int64)


@pytest.fixture(scope="session")
def plant() -> Callable[[NDArray[np.int64], str, float, int], NDArray[np.int64]]:
    return plant_noise


@pytest.fixture(scope="session")
def probabilities() -> Callable[..., NDArray[np.float64]]:
    """`probabilities(source, x, given, seed)`: source is "memorising network" or a key of MODELS."""

    def make(source: str, x: NDArray[np.float32], given: NDArray[np.int64], seed: int = 0) -> NDArray[np.float64]:
        if source == "memorising network":
            return time_averaged(x, given, epochs=40 if len(x) < 5000 else 20, seed=seed)
        return held_out(x, given, source, folds=5 if len(x) < 5000 else 3)

    return make
