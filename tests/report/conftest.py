"""Run folders as the engine leaves them, from small but real trainings on the data inside scikit-learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import LogisticRegression, Ridge, SGDRegressor
from sklearn.metrics import average_precision_score
from sklearn.model_selection import cross_val_predict
from torch.nn import functional as F

TITLES = {
    "ce": ("Cross-entropy", ""),
    "elr": ("Early-learning regularisation (ELR)", "Liu et al., NeurIPS 2020"),
    "co-teaching": ("Co-teaching", "Han et al., NeurIPS 2018"),
}


@dataclass
class Run:
    """The files of a run, to be changed at will before they are written."""

    info: dict[str, Any]
    metrics: pd.DataFrame
    issues: pd.DataFrame
    gallery: dict[str, NDArray[Any]] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "run.json").write_text(json.dumps(self.info), encoding="utf-8")
        self.metrics.to_csv(folder / "metrics.csv", index=False)
        self.issues.to_csv(folder / "issues.csv", index=False)
        if self.gallery:
            np.savez_compressed(folder / "gallery.npz", **self.gallery)
        return folder

    def copy(self) -> Run:
        return Run(json.loads(json.dumps(self.info)), self.metrics.copy(), self.issues.copy(), dict(self.gallery))


def symmetric(y: NDArray[np.int64], classes: int, rate: float, seed: int) -> NDArray[np.int64]:
    """Exactly `rate` of the labels moved to another class."""
    rng = np.random.default_rng(seed)
    noisy = y.copy()
    rows = rng.permutation(len(y))[: round(rate * len(y))]
    noisy[rows] = (y[rows] + rng.integers(1, classes, len(rows))) % classes
    return noisy


def ranked(p_wrong: NDArray[np.float64], flagged: NDArray[np.bool_], **columns: Any) -> tuple[pd.DataFrame, Any]:
    order = np.argsort(-p_wrong, kind="stable")
    table = pd.DataFrame({"p_wrong": p_wrong, "flagged": flagged, **columns}).iloc[order].reset_index(drop=True)
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    return table, order


def measured(issues: pd.DataFrame) -> dict[str, float]:
    wrong, flagged = issues["given"] != issues["truth"], issues["flagged"]
    return {
        "flagged": int(flagged.sum()),
        "flagged_precision": float(wrong[flagged].mean()),
        "flagged_recall": float(flagged[wrong].mean()),
        "average_precision": float(average_precision_score(wrong, issues["p_wrong"])),
        "true_rate": float(wrong.mean()),
    }


def split_by_truth(pred: NDArray[np.int64], given: NDArray[np.int64], truth: NDArray[np.int64]) -> dict[str, float]:
    clean, wrong = given == truth, given != truth
    right, memorised = pred == truth, pred == given
    return {
        "clean_correct": right[clean].mean(),
        "clean_other": 1 - right[clean].mean(),
        "wrong_correct": right[wrong].mean(),
        "wrong_memorised": memorised[wrong].mean(),
        "wrong_other": 1 - right[wrong].mean() - memorised[wrong].mean(),
    }


def train_digits(name: str, epochs: int = 40, rate: float = 0.4) -> Run:
    """Cross-entropy, ELR or Co-teaching on digits with symmetric noise; the maths straight from the papers."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images, truth = load_digits(return_X_y=True)
    x_all, n = torch.tensor(images / 16, dtype=torch.float32), 1437
    x, y_true, y_test = x_all[:n], truth[:n], truth[n:]
    given = symmetric(y_true, 10, rate, seed=1)
    target = torch.tensor(given)
    val, fit = torch.arange(n - 144, n), torch.arange(n - 144)
    peers = 2 if name == "co-teaching" else 1
    nets = [
        torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10)) for _ in range(peers)
    ]
    optimiser = torch.optim.Adam([p for net in nets for p in net.parameters()], lr=8e-3)
    memory = torch.zeros(n, 10)
    average = np.zeros((n, 10))
    rows = []
    for epoch in range(1, epochs + 1):
        keep = 1 - rate * min(epoch / 8, 1.0)
        losses, trusted = [], []
        for batch in fit[torch.randperm(len(fit))].split(64):
            out = [net(x[batch]) for net in nets]
            each = [F.cross_entropy(o, target[batch], reduction="none") for o in out]
            if name == "co-teaching":
                chosen = [loss.detach().argsort()[: int(keep * len(batch))] for loss in each]
                loss = each[0][chosen[1]].mean() + each[1][chosen[0]].mean()
                trusted.append(batch[chosen[0]])
            else:
                loss = each[0].mean()
            if name == "elr":
                p = out[0].softmax(1).clamp(1e-4, 1 - 1e-4)
                memory[batch] = 0.7 * memory[batch] + 0.3 * (p / p.sum(1, keepdim=True)).detach()
                loss = loss + 3 * torch.log1p(-(memory[batch] * p).sum(1)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        with torch.no_grad():
            prob = torch.stack([net(x_all).softmax(1) for net in nets]).mean(0).numpy()
        average += prob[:n] / epochs
        pred, f = prob.argmax(1), fit.numpy()
        row = {
            "epoch": epoch,
            "lr": 8e-3,
            "loss": float(np.mean(losses)),
            "agree": (pred[f] == given[f]).mean(),
            "val_accuracy": (pred[val.numpy()] == given[val.numpy()]).mean(),
            "test_accuracy": (pred[n:] == y_test).mean(),
            "seconds": 0.05 * peers * epoch,
            **split_by_truth(pred[f], given[f], y_true[f]),
        }
        if trusted:
            kept, clean = torch.cat(trusted).numpy(), given == y_true
            row |= {"label_precision": clean[kept].mean(), "label_recall": clean[kept].sum() / clean[f].sum()}
        rows.append(row)
    metrics = pd.DataFrame(rows)
    own = average[np.arange(n), given]
    suggested = average.argmax(1)
    p_wrong = 1 - own / np.maximum(own + np.where(suggested == given, np.sort(average, 1)[:, -2], average.max(1)), 1e-9)
    issues, order = ranked(
        p_wrong,
        (p_wrong > 0.5) & (suggested != given),
        id=np.arange(n),
        given=given,
        suggested=suggested,
        truth=y_true,
        evidence_probability_of_given=own,
        evidence_agreement=(average.argmax(1) == given).astype(float),
    )
    return Run(_digits_info(name, metrics, issues, n, rate), metrics, issues, _digits_gallery(images[:n], order))


def _digits_gallery(images: NDArray[np.float64], order: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    pictures = (images[order[:60]] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return {"rank": np.arange(1, 61), "image": pictures}


def _digits_info(name: str, metrics: pd.DataFrame, issues: pd.DataFrame, n: int, rate: float) -> dict[str, Any]:
    def transition(rows: pd.Series, columns: pd.Series) -> list[list[float]]:
        return (
            pd.crosstab(rows, columns, normalize="index")
            .reindex(index=range(10), columns=range(10), fill_value=0)
            .to_numpy()
            .tolist()
        )

    best = int(metrics["val_accuracy"].argmax())
    estimate = float(issues["flagged"].mean())
    half = 1.96 * (estimate * (1 - estimate) / n) ** 0.5
    title, paper = TITLES[name]
    return {
        "labelproof": "0.1.0",
        "created": "2025-01-31T12:00:00+00:00",
        "command": f"labelproof train digits --noise symmetric:{rate} --method {name} --epochs {len(metrics)}",
        "status": "finished",
        "data": {
            "name": "digits",
            "n": n,
            "n_test": 1797 - n,
            "task": "classification",
            "kind": "image",
            "classes": [str(k) for k in range(10)],
            "truth_known": True,
            "noise": {
                "kind": "symmetric",
                "rate": rate,
                "realised": float((issues["given"] != issues["truth"]).mean()),
                "hash": "5f2c9a",
            },
        },
        "method": {
            "name": name,
            "title": title,
            "paper": paper,
            "params": {"lam": 3, "beta": 0.7} if name == "elr" else {},
        },
        "network": {"name": "mlp", "parameters": 19210 * (2 if name == "co-teaching" else 1)},
        "settings": {"epochs": len(metrics), "batch_size": 64, "lr": 0.008, "optimizer": "adam", "seed": 0},
        "hardware": {"device": "cpu", "threads": 1},
        "versions": {"python": "3.11", "torch": torch.__version__, "numpy": np.__version__},
        "result": {
            "test_accuracy": float(metrics["test_accuracy"].iloc[-1]),
            "best_val_epoch": best + 1,
            "test_accuracy_at_best_val": float(metrics["test_accuracy"][best]),
            "val_accuracy_best": float(metrics["val_accuracy"][best]),
            **measured(issues),
            "noise_rate": estimate,
            "noise_interval": [estimate - half, estimate + half],
            "noise_transition": transition(issues["suggested"], issues["given"]),
            "true_transition": transition(issues["truth"], issues["given"]),
            "seconds": float(metrics["seconds"].iloc[-1]),
            "peak_memory_mb": 312.0,
        },
    }


@pytest.fixture(scope="session")
def digits_runs() -> dict[str, Run]:
    return {name: train_digits(name) for name in TITLES}


@pytest.fixture
def digits(digits_runs: dict[str, Run]) -> Callable[[str], Run]:
    """A run on digits by the name of its method, safe to change."""
    return lambda name: digits_runs[name].copy()


@pytest.fixture
def tabular() -> Run:
    """Thirty named columns, string classes, truth not told, no test set: somebody's own CSV."""
    source = load_breast_cancer()
    x = (source.data - source.data.mean(0)) / source.data.std(0)
    given = symmetric(source.target, 2, 0.1, seed=3)
    prob = cross_val_predict(LogisticRegression(C=0.1), x, given, cv=4, method="predict_proba")
    p_wrong = 1 - prob[np.arange(len(given)), given]
    names = np.array([str(name) for name in source.target_names])
    issues, order = ranked(
        p_wrong,
        p_wrong > 0.6,
        id=[f"patient-{i}" for i in range(len(x))],
        given=names[given],
        suggested=names[prob.argmax(1)],
    )
    info = {
        "status": "finished",
        "data": {
            "name": "biopsies.csv",
            "n": len(x),
            "task": "classification",
            "kind": "rows",
            "classes": names.tolist(),
            "columns": [str(c) for c in source.feature_names],
            "truth_known": False,
            "noise": {},
        },
        "method": {"name": "elr", "title": "ELR", "params": {}},
        "result": {"flagged": int(issues["flagged"].sum()), "noise_rate": float(p_wrong.mean()), "seconds": 1.5},
    }
    metrics = pd.DataFrame({"epoch": [1, 2, 3], "loss": [0.6, 0.4, np.nan], "val_accuracy": [0.8, 0.86, 0.87]})
    return Run(info, metrics, issues, {"rank": np.arange(1, 61), "rows": source.data[order[:60]]})


@pytest.fixture
def regression() -> Run:
    """Diabetes progression with a tenth of the targets corrupted."""
    x, y = load_diabetes(return_X_y=True, scaled=False)
    x = (x - x.mean(0)) / x.std(0)
    rng = np.random.default_rng(5)
    given, n = y.copy(), 342
    bad = rng.permutation(n)[:34]
    given[bad] += rng.choice([-1, 1], 34) * rng.uniform(250, 500, 34)
    model, rows = SGDRegressor(eta0=0.002, random_state=0), []
    for epoch in range(1, 26):
        model.partial_fit(x[:300], given[:300])
        error = model.predict(x) - np.where(np.arange(len(y)) < n, given, y)
        parts = {"train": error[:300], "val": error[300:n], "test": error[n:]}
        rows.append(
            {
                "epoch": epoch,
                "lr": 0.002 / epoch**0.25,
                "loss": (error[:300] ** 2).mean(),
                "train_rmse_scaled": (parts["train"] ** 2).mean() ** 0.5 / given.std(),
                **{f"{k}_rmse": (parts[k] ** 2).mean() ** 0.5 for k in ("val", "test")},
            }
        )
    modelled = cross_val_predict(Ridge(), x[:n], given[:n], cv=5)
    size = np.abs(given[:n] - modelled)
    issues, order = ranked(
        size / (size + 120),
        size > 200,
        id=np.arange(n),
        given=given[:n],
        suggested=np.where(size > 200, modelled, given[:n]),
        suggested_value=modelled,
        suggested_low=modelled - 110,
        suggested_high=modelled + 110,
        scale=55.0,
        truth=y[:n],
        evidence_trust=1 / (1 + size),
    )
    last, found = rows[-1], measured(issues)
    del found["true_rate"]  # the engine leaves that to the list
    info = {
        "status": "finished",
        "command": "labelproof train diabetes.csv --label progression --method huber",
        "data": {
            "name": "diabetes",
            "n": n,
            "n_test": 100,
            "task": "regression",
            "kind": "rows",
            "columns": [f"c{i}" for i in range(10)],
            "target": "progression",
            "truth_known": True,
            "noise": {"kind": "outliers", "rate": 0.1},
        },
        "method": {"name": "huber", "title": "Huber loss", "params": {"delta": 1.0}},
        "settings": {"epochs": 25},
        "result": {"test_rmse": last["test_rmse"], "test_r2": 0.41, "seconds": 0.4, **found},
    }
    info["result"] |= {"target_noise_rate": 0.093, "target_noise_interval": [0.06, 0.13]}
    return Run(info, pd.DataFrame(rows), issues, {"rank": np.arange(1, 41), "rows": x[order[:40]]})
