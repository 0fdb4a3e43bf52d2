"""What the terminal shows: a finished run, warnings."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def show_warning(message: Any, *_: Any, **__: Any) -> None:
    """In place of `warnings.showwarning`: no file and line, which say nothing to users."""
    Console(stderr=True, soft_wrap=True).print(f"[yellow]warning:[/] {escape(str(message))}", highlight=False)


def show_run(run: Any, written: Any) -> None:
    """What a run came to, the most suspicious labels, and where all of it was written."""
    console, result, issues = Console(), run.result, run.issues
    lines = []
    if "test_accuracy" in result:
        lines.append(f"test accuracy after the last epoch  [bold]{result['test_accuracy']:.2%}[/]")
    if "test_rmse" in result:
        lines.append(f"test RMSE after the last epoch  [bold]{_number(result['test_rmse'])}[/]")
    if "test_rmse_at_best_val" in result:
        best = _number(result["test_rmse_at_best_val"])
        lines.append(f"at the best noisy validation (epoch {result['best_val_epoch']})  {best}")
    if "test_accuracy_at_best_val" in result:
        best = f"{result['test_accuracy_at_best_val']:.2%}"
        lines.append(f"at the best noisy validation (epoch {result['best_val_epoch']})  {best}")
    (low, high), what = run.noise.interval, "labels" if "noise_rate" in result else "targets"
    lines.append(f"{what} estimated wrong  [bold]{run.noise.rate:.1%}[/]  (95 % interval {low:.1%} to {high:.1%})")
    lines += result.get("notes", [])
    lines.append(f"{what} flagged  [bold]{int(issues['flagged'].sum()):,}[/] of {len(issues):,}")
    if "average_precision" in result:
        lines.append(f"average precision of the list  {result['average_precision']:.3f}")
    console.print("\n".join(lines), highlight=False)
    table = Table(box=None, padding=(0, 2), title="most suspicious", title_justify="left")
    for column in ("rank", "id", "given", "suggested", "p_wrong"):
        table.add_column(column)
    for row in issues.head(10).itertuples():
        suggested = f"{row.suggested_value:.{_decimals(row.scale)}f}" if "scale" in issues else row.suggested
        values = (row.rank, row.id, row.given, suggested)
        shown = [f"{v:.10g}" if isinstance(v, float) else str(v) for v in values]
        table.add_row(*map(escape, shown), f"{row.p_wrong:.3f}")
    console.print(table, highlight=False)
    console.print(f"written to {escape(str(written))}", highlight=False, soft_wrap=True)


def show_encoder(found: Any, written: Any) -> None:
    """What features learned without labels are worth, and where they were written."""
    says = {
        "agree": "a linear probe agrees with the labels as given for",
        "knn_agreement": "nearest neighbours agree with them for",
        "test_accuracy": "test accuracy of the probe",
    }
    lines = [f"{text}  [bold]{found.result[key]:.1%}[/]" for key, text in says.items() if found.result.get(key)]
    lines += [f"written to {escape(str(written))}", f"next: labelproof train DATA --encoder {escape(str(written))}"]
    Console(soft_wrap=True).print("\n".join(lines), highlight=False)


def show_selection(found: Any, samples: int, written: Any, table: Any) -> None:
    """How many samples a selection kept, and how far their labels can be trusted."""
    kept, noise = len(found.selected), found.noise
    lines = [
        f"labels estimated wrong  [bold]{noise.rate:.1%}[/]  ({noise.kind})",
        f"samples kept  [bold]{kept:,}[/] of {samples:,}, of whose labels [bold]{found.selected_noise:.1%}[/] are "
        "estimated wrong",
    ]
    if "label_precision" in found.iterations[-1]:
        last = found.iterations[-1]
        lines.append(f"by the truth  {last['label_precision']:.1%} right; {last['label_recall']:.1%} of all right ones")
    lines += [f"written to {escape(str(written))}", f"what became of each sample: {escape(str(table))}"]
    Console(soft_wrap=True).print("\n".join(lines), highlight=False)


def show_theory(found: Any, written: Any) -> None:
    """What was measured beside what theory expects, and where the figures are."""
    text = "\n\n".join(map(str, found))
    Console(soft_wrap=True).print(f"{escape(text)}\n\nwritten to {escape(str(written))}", highlight=False)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _decimals(scale: float) -> int:
    """Digits after the point that say something, where errors are of this size."""
    return min(9, max(0, 1 - math.floor(math.log10(scale)))) if 0 < scale < math.inf else 4
