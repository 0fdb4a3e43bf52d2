"""The lists of wrong labels that every method of the CPU suite ends in, beside cleanlab's on the same noisy labels.

    python benchmarks/suite_lists.py           # cross-validate what is missing (10 minutes), print the table
    python benchmarks/suite_lists.py --again   # rank anew, by probabilities that are kept in runs/suite_lists
    python benchmarks/suite_lists.py --table   # only print it

Each column is a data set with its noise, each seed the very labels of that seed's runs (their hash is compared). The
first rows rank by the same cross-validated probabilities: three folds of the suite's own cross-entropy. The others are
what `labelproof bench run cpu` left. A part of docs/results.md. Needs cleanlab (`pip install labelproof[bench]`).
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import detection
import numpy as np
from tables import REPO, commit, write_block

import labelproof as lp
from labelproof import asked
from labelproof.bench import results
from labelproof.data import catalog
from labelproof.data.atomic import atomically
from labelproof.recipes import Recipe
from labelproof.recipes.suites import HUMAN, Suite, load_suite

RESULTS = REPO / "benchmarks" / "results" / "suite_lists.json"
KEPT = REPO / "runs" / "suite_lists"
START, END = "<!-- lists: made by benchmarks/suite_lists.py -->", "<!-- end lists -->"
FOLDS = 3
TITLES = {
    "ours": "`lp.find_issues`, cross-validated",
    "self_confidence": "cleanlab, self-confidence, cross-validated",
    "normalized_margin": "cleanlab, normalised margin, cross-validated",
    "confidence_weighted_entropy": "cleanlab, confidence-weighted entropy, cross-validated",
}
KEYS = ("average_precision", "precision_at_wrong")


def columns(suite: Suite) -> dict[str, Recipe]:
    """Cross-entropy's recipe in each column of the suite, by title of the column."""
    chosen = [(suite.cells[r.name], r) for r in suite.recipes if r.name in suite.cells]
    return {
        f"{cell.grid}, {'human labels' if cell.noise == HUMAN else cell.noise}": recipe
        for cell, recipe in chosen
        if cell.row == "ce"
    }


def noisy(recipe: Recipe, seed: int) -> Any:
    """The training data of a run: the same labels, to the bit."""
    train = recipe.train
    data = catalog.load(train["data"])
    if "subset" in train:
        data = data.take(np.sort(np.random.default_rng(0).permutation(len(data))[: train["subset"]]))
    return asked.inject_noise(data, train["noise"], seed)[0] if "noise" in train else data


def probabilities(recipe: Recipe, data: Any, seed: int) -> Any:
    """Out-of-sample ones, of the suite's own cross-entropy; they are kept."""
    kept = KEPT / f"{recipe.name}-seed{seed}.npy"
    if not kept.exists():
        how = {k: v for k, v in recipe.train.items() if k not in ("data", "noise", "subset")}
        model = lp.NoisyLabelClassifier(random_state=seed, **how)
        p = lp.cross_val_probs(model, (np.asarray(data.x), data.y), FOLDS, seed=seed)
        KEPT.mkdir(parents=True, exist_ok=True)
        atomically(kept, lambda partial: _save(partial, p))
    return np.load(kept)


def _save(path: Path, array: Any) -> None:
    with path.open("wb") as file:  # a path of another ending would get one more
        np.save(file, array)


def measure(recipe: Recipe, seed: int) -> dict[str, Any]:
    """All rankings, from one set of cross-validated probabilities."""
    data = noisy(recipe, seed)
    p = probabilities(recipe, data, seed)
    wrong = data.y != data.truth
    found = detection.quality(data.y, p, wrong)
    return {"hash": data.noise.get("hash"), "wrong": float(wrong.mean()), "commit": commit(), **found}


def collect(suite: Suite, seeds: int, *, again: bool) -> None:
    """What is missing, or all; what is finished is written at once."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for seed in range(seeds):
        for title, recipe in columns(suite).items():
            name = f"{title}, seed {seed}"
            if not again and found.get(name, {}).get("train") == recipe.train:
                continue
            found[name] = {"train": dict(recipe.train), **measure(recipe, seed)}
            text = json.dumps(found, indent=1) + "\n"
            atomically(RESULTS, lambda partial, text=text: partial.write_text(text))
            print(name, *(f"{k} {found[name][k][KEYS[0]]:.3f}" for k in TITLES), flush=True)


def cells(
    suite: Suite, found: Mapping[str, Any], runs: results.Found
) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Average precision and precision among as many as are wrong of each row, by column, over seeds.

    Raises:
        SystemExit: a run of the suite had other labels than those that were cross-validated.
    """
    made: dict[str, dict[str, list[tuple[float, float]]]] = {}
    where = {(r.train["data"], r.train.get("noise")): title for title, r in columns(suite).items()}
    hashes = {}
    for name, each in found.items():
        title, _, seed = name.rpartition(", seed ")
        hashes[title, int(seed)] = each["hash"]
        for ranking, told in TITLES.items():
            made.setdefault(told, {}).setdefault(title, []).append(tuple(each[ranking][k] for k in KEYS))
    for recipe in suite.recipes:
        title = where.get((recipe.train["data"], recipe.train.get("noise")))
        for run in runs.of(recipe) if title else []:
            if hashes.get((title, run["seed"])) not in (None, run["noise"].get("hash")):
                raise SystemExit(f"{recipe.name}, seed {run['seed']}: other noisy labels than those cross-validated")
            if all(run["list"].get(k) is not None for k in KEYS):
                row = suite.titles.get(suite.cells[recipe.name].row, suite.cells[recipe.name].row)
                made.setdefault(row, {}).setdefault(title, []).append(tuple(run["list"][k] for k in KEYS))
    return made


def table(suite: Suite, made: Mapping[str, Mapping[str, list[tuple[float, float]]]]) -> Iterator[str]:
    """Means over seeds; the best average precision of each column in bold."""
    titles = list(columns(suite))
    means = {
        row: {title: [statistics.mean(v) for v in zip(*each, strict=True)] for title, each in by_title.items()}
        for row, by_title in made.items()
    }
    best = {t: max((round(m[t][0], 3) for m in means.values() if t in m), default=0.0) for t in titles}
    yield f"| list of | {' | '.join(titles)} |"
    yield f"|---|{'---|' * len(titles)}"
    for row, by_title in means.items():
        texts = []
        for t in titles:
            if t not in by_title:
                texts.append("–")
                continue
            ap, at = by_title[t]
            strong = "**" if round(ap, 3) == best[t] else ""
            texts.append(f"{strong}{ap:.3f}{strong} / {at:.3f}")
        yield f"| {row} | {' | '.join(texts)} |"


def lines() -> Iterator[str]:
    """The section, from the result files alone."""
    suite = load_suite("cpu")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    made = cells(suite, found, results.read(results.default_folder(), suite.recipes))
    commits = dict.fromkeys(each["commit"] for each in found.values())
    yield "Average precision / precision among as many as are wrong, means over seeds, best in bold. First, rankings of"
    yield f"the same probabilities, of {FOLDS} folds of cross-entropy (`python benchmarks/suite_lists.py`, commit"
    yield f"{', '.join(commits)}); then the list in which each method's own training ends (`labelproof bench run cpu`)."
    yield ""
    yield from table(suite, made)


def write_tables(page: Path) -> None:
    """From the result files alone."""
    write_block(page, START, END, "The list of every method, beside cleanlab", lines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--again", action="store_true", help="rank anew")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    if not args.table:
        collect(load_suite("cpu"), args.seeds, again=args.again)
    print("\n".join(lines()))


if __name__ == "__main__":
    main()
