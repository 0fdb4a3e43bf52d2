"""One JSON file per finished run: what was run, on what, and what came of it. Nothing else is ever put into a table."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import labelproof
from labelproof.data.atomic import atomically
from labelproof.recipes import Recipe

FORMAT = 1
_KINDS: dict[str, Any] = {
    "format": int,
    "recipe": str,
    "seed": int,
    "train": dict,
    "labelproof": str,
    "command": str,
    "settings": dict,
    "data": dict,
    "metrics": dict,
    "list": dict,
    "seconds": (int, float),
    "hardware": dict,
    "versions": dict,
}


@dataclass
class Found:
    """The results of a folder.

    Attributes:
        runs: by recipe and seed.
        refused: why a file is not among them, by its name.
    """

    runs: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def of(self, recipe: Recipe) -> list[dict[str, Any]]:
        """The runs of a recipe, by seed."""
        return [run for (name, _), run in sorted(self.runs.items()) if name == recipe.name]


def default_folder() -> Path:
    """Where results lie: those of the repository where this is a checkout of it, else `bench-results`."""
    inside = Path(labelproof.__file__).parents[2] / "benchmarks" / "results"
    return inside / "bench" if inside.is_dir() else Path("bench-results")


def path_of(folder: Path, recipe: Recipe, seed: int) -> Path:
    """The file of a run."""
    return folder / f"{recipe.name}-seed{seed}.json"


def read(folder: Path, recipes: Iterable[Recipe]) -> Found:
    """The results of some recipes that were made as they would be made today; others are refused, with the reason.

    Raises:
        ValueError: `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--results={folder} is a file: give the folder of the result files")
    found = Found()
    there = sorted(p.name for p in folder.glob("*-seed*.json")) if folder.is_dir() else []
    for recipe in recipes:
        start = f"{recipe.name}-seed"
        for name in (n for n in there if n.startswith(start) and n[len(start) : -5].isdigit()):
            try:
                run = check(_parsed(folder / name), recipe)
                if path_of(folder, recipe, run["seed"]).name != name:
                    raise ValueError(f"says it is of seed {run['seed']}, which is not its name")
            except OSError as error:
                found.refused[name] = f"cannot be read: {error.strerror or error}"
            except ValueError as error:
                found.refused[name] = str(error)
            else:
                found.runs[recipe.name, run["seed"]] = run
    return found


def _parsed(path: Path) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"holds {constant}, which is no figure")

    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError("is no text") from None
    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError:
        raise ValueError("half-written, or no JSON") from None


def check(run: Any, recipe: Recipe) -> dict[str, Any]:
    """The run, if it was made by this recipe as it is now, by this version.

    Raises:
        ValueError: says what differs.
    """
    kinds = {} if not isinstance(run, dict) else run
    wrong = [key for key, kind in _KINDS.items() if not isinstance(kinds.get(key), kind) or kinds[key] is True]
    if wrong:
        raise ValueError(f"no result of labelproof bench: {', '.join(wrong)} missing or of another kind")
    if run["format"] != FORMAT:
        raise ValueError(f"of format {run['format']}, not {FORMAT}")
    if run["recipe"] != recipe.name:
        raise ValueError(f"says it is of recipe {run['recipe']}, which is not its name")
    if run["labelproof"] != labelproof.__version__:
        raise ValueError(f"made by labelproof {run['labelproof']}, this is {labelproof.__version__}")
    for step, now in (("train", recipe.train), ("pretrain", recipe.pretrain or {})):
        then = run.get(step) or {}
        keys = sorted({*now, *then})
        differ = [f"{k}={then.get(k)!r} (now {now.get(k)!r})" for k in keys if now.get(k) != then.get(k)]
        if differ:
            raise ValueError(f"made with other settings: {step} {'; '.join(differ)}")
    for name, value in run["metrics"].items():
        high = 1.0 if "accuracy" in name else math.inf
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= high:
            raise ValueError(f"holds {name}={value!r}, which is no figure of a run")
    result: dict[str, Any] = run
    return result


def write(folder: Path, recipe: Recipe, seed: int, result: Mapping[str, Any]) -> Path:
    """Write the result of a run, whole or not at all."""
    path = path_of(folder, recipe, seed)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    return path


def collect(recipe: Recipe, seed: int, folder: Path, used: Mapping[str, Any]) -> dict[str, Any]:
    """The result out of a finished run's folder.

    Args:
        recipe: what was run.
        seed: of the run.
        folder: with its `run.json`, `metrics.csv` and `issues.csv`.
        used: CPU time, memory and whatever else the operating system said.

    Raises:
        ValueError: the run is not finished.
    """
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    if record.get("status") != "finished":
        raise ValueError(f"{folder} holds a run that is not finished")
    result, data, noise = record["result"], record["data"], record["data"]["noise"]
    kept = ("average_precision", "precision_at_wrong", "flagged_precision", "flagged_recall", "flagged", "wrong")
    rate = result.get("noise_rate", result.get("target_noise_rate"))
    return {
        "format": FORMAT,
        "recipe": recipe.name,
        "seed": seed,
        "train": dict(recipe.train),
        **({} if recipe.pretrain is None else {"pretrain": dict(recipe.pretrain)}),
        "labelproof": record["labelproof"],
        "command": record["command"],
        "created": record["created"],
        "method": record["method"],
        "network": record["network"],
        "settings": record["settings"],
        "data": {key: data[key] for key in ("name", "n", "n_test", "task")},
        "noise": {key: noise[key] for key in ("kind", "rate", "nominal_rate", "hash") if key in noise},
        "split": result.get("split"),
        "metrics": {**_metrics(folder / "metrics.csv"), **_at_best(result)},
        "list": {**{key: result[key] for key in kept if key in result}, "noise_rate": rate},
        "seconds": result["seconds"],
        "peak_memory_mb": result["peak_memory_mb"],
        **used,
        "hardware": record["hardware"],
        "versions": record["versions"],
    }


def _at_best(result: Mapping[str, Any]) -> dict[str, float]:
    return {key: result[key] for key in ("test_accuracy_at_best_val", "test_rmse_at_best_val") if key in result}


def _metrics(path: Path) -> dict[str, float]:
    """Of the test score of each epoch: the last, the mean of the last ten, and, as an oracle has it, the best."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found: dict[str, float] = {}
    for name, best in (("test_accuracy", max), ("test_rmse", min)):
        scores = [float(row[name]) for row in rows if row.get(name)]
        if scores:
            last = scores[-10:]
            found |= {name: scores[-1], f"{name}_last10": math.fsum(last) / len(last), f"{name}_best": best(scores)}
    return found
