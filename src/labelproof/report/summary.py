"""The run as a whole: headline figures, runs beside one another, how they were made, what to mind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from labelproof.report.record import RunRecord
from labelproof.report.tables import Table
from labelproof.report.text import (
    NOTHING,
    count,
    duration,
    interval,
    listing,
    memory,
    noise_words,
    num_flagged,
    number,
    percent,
    short,
    target_name,
    wilson,
    words,
)

BASELINES = {"ce": "cross-entropy", "mse": "the squared error"}

_SECTIONS = ("data", "method", "network", "settings", "hardware", "versions")


class Card(NamedTuple):
    """One headline figure."""

    title: str
    value: str
    note: str = ""


def cards(run: RunRecord) -> list[Card]:
    """The headline figures of one run; those it does not have are left out."""
    found = [_score_card(run)]
    flagged, total = num_flagged(run), run.num_samples
    if flagged is not None:
        notes = [f"of {count(total)} ({percent(flagged / total)})"] if total else []
        precision = run.number("flagged_precision")
        notes += [f"{percent(precision)} of them really are"] if precision is not None and flagged else []
        found.append(Card(f"{words(run).many.capitalize()} that look wrong", count(flagged), ", ".join(notes)))
    kind = "target_noise" if run.regression else "noise"
    if (rate := run.number(f"{kind}_rate")) is not None:
        bounds = interval(run.section("result").get(f"{kind}_interval"))
        notes = [f"95\u00a0% interval {bounds}"] if bounds else []
        true_rate = run.true_rate
        notes += [f"in truth {percent(true_rate)}"] if true_rate is not None else []
        found.append(Card(f"Estimated share of wrong {words(run).many}", percent(rate), ", ".join(notes)))
    if (told := run.number("cv_noise_rate")) is not None:
        bounds = interval(run.section("result").get("cv_noise_interval"))
        note = "estimated by cross-validation before training" + (f", 95\u00a0% interval {bounds}" if bounds else "")
        found.append(Card("Noise rate trained with", percent(told), note))
    iterations = run.section("result").get("incv")
    if isinstance(iterations, list) and iterations:
        chosen = iterations[-1]
        note = f"{percent(1 - chosen['estimated_precision'])} of them estimated wrong"
        right = f", {percent(1 - chosen['label_precision'])} in truth" if "label_precision" in chosen else ""
        found.append(Card("Samples selected", count(chosen["selected"]), note + right))
    if (precision := run.number("average_precision")) is not None:
        true_rate = run.true_rate
        chance = f"; a random order would give {percent(true_rate)}" if true_rate is not None else ""
        note = f"100\u00a0% is a perfect order{chance}"
        found.append(Card("Average precision of the list", percent(precision), note))
    if (seconds := run.number("seconds") or run.last("seconds")) is not None:
        peak = run.number("peak_memory_mb")
        note = f"peak memory {memory(peak)}" if peak is not None else ""
        found.append(Card("Training time", duration(seconds), note))
    return [card for card in found if card is not None]


def _score_card(run: RunRecord) -> Card | None:
    if run.regression:
        rmse, r2 = run.last("test_rmse"), run.last("test_r2")
        fit = f", R² {number(r2)}" if r2 is not None else ""
        if rmse is not None:
            return Card(f"Test RMSE{_of_target(run)}", number(rmse), f"last epoch{fit}")
        rmse = run.last("val_rmse")
        note = "against given targets, wrong ones included"
        return None if rmse is None else Card("RMSE on held-out targets", number(rmse), note)
    accuracy, best = run.last("test_accuracy"), run.number("test_accuracy_at_best_val")
    epoch = run.number("best_val_epoch")
    if accuracy is not None:
        chosen = f"; {percent(best)} at epoch {count(epoch)}, which the held-out given labels would choose"
        return Card("Test accuracy", percent(accuracy), "last epoch" + (chosen if best is not None and epoch else ""))
    accuracy = run.last("val_accuracy")
    if accuracy is None:
        return None
    return Card("Accuracy on held-out labels", percent(accuracy), "against given labels, wrong ones included")


def _of_target(run: RunRecord) -> str:
    return f" of {target_name(run)}" if target_name(run) else ""


def run_cards(runs: Sequence[RunRecord], labels: Sequence[str]) -> list[Card]:
    """One card for each of several runs."""
    found = []
    for run, label in zip(runs, labels, strict=True):
        rmse, accuracy = run.last("test_rmse"), run.last("test_accuracy")
        value = number(rmse) if run.regression else percent(accuracy)
        note = f"test {'RMSE' if run.regression else 'accuracy'}, last epoch"
        if (precision := run.number("average_precision")) is not None:
            note += f"; average precision of the list {percent(precision)}"
        found.append(Card(label, value, note))
    return found


def comparison(runs: Sequence[RunRecord], labels: Sequence[str]) -> Table:
    """Runs beside one another; columns that no run can fill are left out."""
    baseline = next((run for run in runs if run.method in BASELINES), None)
    if runs[0].regression:
        columns: list[tuple[str, Callable[[RunRecord], str]]] = [
            (f"Test RMSE{_of_target(runs[0])}, last epoch", lambda run: number(run.last("test_rmse"))),
            ("Test R²", lambda run: number(run.last("test_r2"))),
        ]
    else:
        columns = [
            ("Test accuracy, last epoch", _accuracy),
            ("At the epoch chosen on given labels", _at_best),
        ]
    against = len(columns) + 1
    name = BASELINES[baseline.method] if baseline else "baseline"
    columns += [
        (f"Against {name}", lambda run: _against(run, baseline)),
        ("Average precision of the list", lambda run: percent(run.number("average_precision"))),
        ("Flagged", lambda run: count(num_flagged(run))),
        ("Precision of flagged", lambda run: percent(run.number("flagged_precision"))),
        ("Recall of flagged", lambda run: percent(run.number("flagged_recall"))),
        ("Parameters", lambda run: count(run.number("parameters", "network"))),
        ("Time", lambda run: duration(run.last("seconds"))),
        ("Peak memory", lambda run: memory(run.number("peak_memory_mb"))),
    ]
    rows = [[label, *(cell(run) for _, cell in columns)] for run, label in zip(runs, labels, strict=True)]
    kept = [0, *(i for i in range(1, len(columns) + 1) if any(row[i] != NOTHING for row in rows))]
    heads = ["Method", *(head for head, _ in columns)]
    words = frozenset({0} | ({kept.index(against)} if against in kept else set()))
    return Table([heads[i] for i in kept], [[row[i] for i in kept] for row in rows], words)


def _accuracy(run: RunRecord) -> str:
    accuracy, n = run.last("test_accuracy"), run.number("n_test", "data")
    if accuracy is None or not n:
        return percent(accuracy)
    low, high = wilson(accuracy, n)
    return f"{percent(accuracy)} ({100 * low:.1f} to {100 * high:.1f})"


def _at_best(run: RunRecord) -> str:
    best, epoch = run.number("test_accuracy_at_best_val"), run.number("best_val_epoch")
    return percent(best) + (f" (epoch {count(epoch)})" if best is not None and epoch is not None else "")


def _against(run: RunRecord, baseline: RunRecord | None) -> str:
    if baseline is None:
        return NOTHING
    if run is baseline:
        return "baseline"
    key = "test_rmse" if run.regression else "test_accuracy"
    mine, other = run.last(key), baseline.last(key)
    if mine is None or other is None:
        return NOTHING
    name = BASELINES[baseline.method]
    if run.regression:
        change = f"{100 * (mine / other - 1):+.1f}\u00a0% error".replace("-", "−") if other else NOTHING
        return change if mine < other else f"no gain over {name}"
    points = f"{100 * (mine - other):+.1f} points".replace("-", "−").replace(" ", "\u00a0")
    n, m = run.number("n_test", "data"), baseline.number("n_test", "data")
    if n and m:
        (low, high), (low_other, high_other) = wilson(mine, n), wilson(other, m)
        if low <= high_other and low_other <= high:
            return f"no gain over {name} within noise ({points})"
    return points if mine > other else f"no gain over {name} ({points})"


def making(runs: Sequence[RunRecord], labels: Sequence[str]) -> Table:
    """Everything that is needed to make the runs again: one row for each setting, one column for each run."""
    described = [dict(_settings(run)) for run in runs]
    keys = list(dict.fromkeys(key for one in described for key in one))
    keys.sort(key=lambda key: _SECTIONS.index(key.partition(":")[0]) if ":" in key else -1)
    rows = [[key, *(one.get(key, NOTHING) for one in described)] for key in keys]
    return Table(["", *labels], rows, frozenset(range(len(runs) + 1)))


def _settings(run: RunRecord) -> Iterator[tuple[str, str]]:
    for key in ("created", "status", "labelproof"):
        if key in run.info:
            yield key, short(run.info[key])
    yield "run folder", run.path.name or str(run.path)
    for section in _SECTIONS:
        for key, value in _flat(run.section(section)):
            if key in ("title", "classes", "columns"):
                if isinstance(value, list) and value:
                    yield f"{section}: {key}", f"{len(value)}: {short(', '.join(map(str, value)), 120)}"
            else:
                yield f"{section}: {key}", _setting(value)


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key} ")
        else:
            yield f"{above}{key}", value


def _setting(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value in (None, "", []):
        return NOTHING
    if isinstance(value, float):
        return f"{value:g}" if abs(value) < 1e5 else number(value)
    return short(", ".join(map(_setting, value)) if isinstance(value, list) else value)


def caveats(runs: Sequence[RunRecord], labels: Sequence[str]) -> list[str]:
    """What a reader must know before believing the page."""
    found = []
    for run, label in zip(runs, labels, strict=True):
        if not run.finished:
            planned = run.number("epochs", "settings")
            done = f"{len(run.metrics)} of {count(planned)} epochs" if planned else f"{len(run.metrics)} epochs"
            found.append(f"{label}: this run is not finished. The page shows {done}.")
    seen = [(run.section("data").get("name"), run.num_samples, run.noise.get("hash")) for run in runs]
    if any(labels != seen[0] for labels in seen):
        told = sorted({noise_words(run.noise, words(run).one) or "as given" for run in runs})
        found.append(
            f"These runs did not see the same {words(runs[0]).many} (data set, size or noise hash differ"
            f"{': ' + listing(told) if len(told) > 1 else ''}): they cannot be compared like with like."
        )
    return found
