"""`noise_rate="auto"` in regression: how near the estimate comes. The second tables of docs/noise-rate.md.

    python benchmarks/target_noise_rate.py            # measure what is missing, then rewrite the tables
    python benchmarks/target_noise_rate.py --tables   # only rewrite them from benchmarks/results/target_noise_rate.json

Three UCI sets (`LABELPROOF_DATA`/uci), a tenth held out with clean targets, the default network and settings of the
estimator but for the epochs, one seed of split, corruption and weights. Half an hour on one core; what is measured
already is kept when it is stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sklearn.metrics import root_mean_squared_error
from sklearn.model_selection import train_test_split

import labelproof as lp
from labelproof.data.atomic import atomically

REPO = Path(__file__).resolve().parents[1]
RESULTS, PAGE = REPO / "benchmarks" / "results" / "target_noise_rate.json", REPO / "docs" / "noise-rate.md"
DATA = Path(os.environ.get("LABELPROOF_DATA") or REPO.parent / "shared" / "data") / "uci"
SETS = {"concrete": (30, 100), "energy": (30, 100), "kin8nm": (30,)}  # and for how many epochs
KINDS = ("uniform", "sign-flip", "linear-adversarial", "mixture")
RATES = (0.0, 0.1, 0.2, 0.3, 0.4)


def score(name: str, epochs: int, kind: str, rate: float, seed: int = 0) -> dict[str, float]:
    """Truth, estimate, and the test RMSE with the estimate, with the true rate and with plain least squares."""
    table = pd.read_csv(DATA / f"{name}.csv").to_numpy()
    x, x_test, y, y_test = train_test_split(table[:, :-1], table[:, -1], test_size=0.1, random_state=seed)
    given = lp.noise.inject(y, kind, rate, seed=seed, x=x).labels if rate else y
    row = {"truth": float((given != y).mean())}
    for told, options in {
        "auto": {"method": "prl-l", "noise_rate": "auto"},
        "true": {"method": "prl-l", "noise_rate": rate},
        "mse": {"method": "mse"},
    }.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            reg = lp.NoisyLabelRegressor(**options, epochs=epochs, random_state=seed, device="cpu").fit(x, given)
        row[told] = float(root_mean_squared_error(y_test, reg.predict(x_test)))
        if told == "auto":
            row["estimate"] = float(reg.run_.fitted.method.noise_rate)
            row["doubted"] = float(any("little to go by" in str(w.message) for w in said))
    return row


def measure(results: dict[str, Any]) -> None:
    """Fill in what is missing, and save after each."""
    for name, lengths in SETS.items():
        for epochs in lengths:
            for rate in RATES:
                for kind in KINDS if rate else ("none",):
                    key = f"{name} {epochs} {kind} {rate:g}"
                    if key not in results:
                        results[key] = score(name, epochs, kind, rate)
                        print(key, results[key], flush=True)
                        atomically(RESULTS, lambda partial: partial.write_text(json.dumps(results, indent=1)))


def tables(results: dict[str, Any]) -> str:
    """The estimates, a star where the run warned of them; and what the errors are."""
    heads = [f"{name}, {epochs}" for name, lengths in SETS.items() for epochs in lengths]
    lines = ["| corrupted | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    errors = ["| test RMSE: least squares, true rate, auto | " + " | ".join(heads) + " |", lines[1]]
    for rate in RATES:
        for kind in KINDS if rate else ("none",):
            found = [results.get(f"{h.replace(',', '')} {kind} {rate:g}") for h in heads]
            what = f"| {kind} {rate:.0%} | ".replace("none 0%", "nothing")
            lines.append(what + " | ".join(_estimate(r) for r in found) + " |")
            errors.append(what + " | ".join(_errors(r) for r in found) + " |")
    return "\n".join([*lines, "", *errors])


def _estimate(row: dict[str, float] | None) -> str:
    return "" if row is None else f"{100 * row['estimate']:.0f} %{' *' * bool(row['doubted'])}"


def _errors(row: dict[str, float] | None) -> str:
    return "" if row is None else " ".join(f"{row[told]:.3g}" for told in ("mse", "true", "auto"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not parser.parse_args().tables:
        torch.set_num_threads(1)
        measure(results)
    start, end = "<!-- target_noise_rate: made by benchmarks/target_noise_rate.py -->", "<!-- end target_noise_rate -->"
    page, n = re.subn(f"{start}.*?{end}", f"{start}\n{tables(results)}\n{end}", PAGE.read_text(), flags=re.DOTALL)
    if n != 1:
        raise SystemExit(f"{PAGE} must have the marks {start} and {end} once")
    atomically(PAGE, lambda partial: partial.write_text(page))


if __name__ == "__main__":
    main()
