"""What engine, methods and losses cost, as tables of a page, from the JSON files that `make bench` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import meta
import two_networks
from passes import words
from tables import REPO, write_block

RESULTS = REPO / "benchmarks" / "results"
START, END = "<!-- speed: made by benchmarks/speed_page.py -->", "<!-- end speed -->"
#: Largest ratios that are allowed, by what stands in overhead.json and gradnorm.json.
ENGINE = {"ce / plain": 1.05, "elr / ce": 1.10}
METHODS, PRL_L = 1.10, 1.15


def ratio(found: Mapping[str, Any], digits: int = 2) -> str:
    """Median and quartiles.

    >>> ratio({"median": 1.0412, "quartiles": [1.02, 1.06]})
    '1.04 (1.02 to 1.06)'
    """
    low, high = found["quartiles"]
    return f"{found['median']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table whose first column is text."""
    yield f"| {' | '.join(header)} |"
    yield "|---" + "|---:" * (len(header) - 1) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def engine(found: Mapping[str, Any], methods: Mapping[str, Any]) -> Iterator[str]:
    """What the engine adds to a hand-written loop, and each method to cross-entropy."""
    s = found["settings"]
    yield f"An epoch of `{s['data']}`, network `{s['network']}`, batches of {s['batch_size']}, one thread;"
    yield f"ratios within each of {found['ce / plain']['rounds']} rounds, torch {found['torch']}:"
    yield "`python benchmarks/overhead.py`."
    yield ""
    names = {
        "ce / plain": "engine with cross-entropy / hand-written loop",
        "elr / ce": "ELR / engine with cross-entropy",
    }
    yield from table(
        ["ratio", "bound", "median (quartiles)"],
        [[names[key], f"{bound:.2f}", ratio(found[key], 3)] for key, bound in ENGINE.items()],
    )
    told = ", ".join(f"{name} {mb:.0f}" for name, mb in found["peak_memory_mb"].items())
    yield f"Peak memory of a process of its own, MB: {told}."
    yield ""
    yield "Methods of one network, `--methods` (several views: over as many epochs of cross-entropy):"
    yield ""
    rows = [[key, f"{METHODS:.2f}", ratio(each)] for key, each in methods.items() if " / " in key and key != "ce / ce"]
    yield from table(["ratio", "bound", "median (quartiles)"], rows)


def networks(found: Mapping[str, Any]) -> Iterator[str]:
    """Steps of two networks."""
    yield "A training step over one of cross-entropy with one network, CPU time, one thread; passes are rows that"
    yield "entered a network per row of the batch, with gradient + without: `python benchmarks/two_networks.py`."
    yield ""
    parts = found["ratios"]
    titles = [f"{p['case']['network']}, {p['case']['data']}" for p in parts.values()]
    names = dict.fromkeys(name for part in parts.values() for name in part["contenders"])
    rows = []
    for name in names:
        cells = []
        for part in parts.values():
            row = part["contenders"].get(name)
            if row is None:
                cells += ["–", "–"]
                continue
            end = row["passes_at_end_of_epoch"]
            passes = words(row["passes_per_step"]) + (f", and {words(end)} per epoch" if any(end) else "")
            cells += [ratio(row["ratio"]), passes]
        bound = two_networks.BOUNDS.get(name)
        rows.append([name, "" if bound is None else str(bound), *cells])
    yield from table(["step", "bound", *(cell for title in titles for cell in (title, "passes"))], rows)


def gradient_norms(found: Mapping[str, Any]) -> Iterator[str]:
    """Per-sample gradient norms and PRL."""
    yield f"Norms of the gradients of a batch of {found['batch']}, one thread, and what a process of its own grows by:"
    yield "`python benchmarks/gradnorm.py`."
    yield ""
    parts = found["norms"]
    names = dict.fromkeys(name for part in parts.values() for name in part["milliseconds"])
    rows = [
        [name, *(f"{part[key][name]:.1f}" for part in parts.values() for key in ("milliseconds", "memory_mb"))]
        for name in names
    ]
    yield from table(["", *(cell for name in parts for cell in (f"{name}, ms", "MB"))], rows)
    rows = [
        ["time to the fastest other", "0.8", *(ratio(p["time_to_fastest_other"]) for p in parts.values())],
        ["memory to a plain pass", "1.3", *(f"{p['memory_to_plain_backward']:.2f}" for p in parts.values())],
        ["time to a plain pass", "", *(ratio(p["time_to_plain_backward"]) for p in parts.values())],
    ]
    yield from table(["ratio", "bound", *parts], rows)
    steps = found["steps"]
    names = dict.fromkeys(name for part in steps.values() for name in part["ratio_to_cross_entropy"])
    rows = [
        [name, f"{PRL_L}" * name.startswith("prl-l"), *(_step(part, name) for part in steps.values())]
        for name in names
        if name != "cross-entropy"
    ]
    yield from table(["step / step of cross-entropy", "bound", *steps], rows)


def _step(part: Mapping[str, Any], name: str) -> str:
    found = part["ratio_to_cross_entropy"].get(name)
    return ratio(found) if found else "–"


def losses(found: Mapping[str, Any]) -> Iterator[str]:
    """Losses in a loop of one's own."""
    s = found["settings"]
    yield f"Forward and backward pass of each `lp.losses` module over `F.cross_entropy`, {s['rounds']} rounds, one"
    yield f"thread; ELR and SOP over a table of {s['samples']:,} rows, bound 2.5: `python benchmarks/losses.py`."
    yield ""
    sizes = [name for name in found if name != "settings"]
    names = dict.fromkeys(name for size in sizes for name in found[size])
    rows = []
    for name in names:
        each = [found[size].get(name) for size in sizes]
        cells = [ratio({"median": e["ratio"], "quartiles": e["quartiles"]}) if e else "–" for e in each]
        rows.append([name, *cells])
    yield from table(["loss", *sizes], rows)


def meta_weights(found: Mapping[str, Any]) -> Iterator[str]:
    """Steps of Meta-Weight-Net."""
    yield "A step of Meta-Weight-Net over one of cross-entropy: `python benchmarks/meta.py`."
    yield ""
    names = dict.fromkeys(name for part in found.values() for name in part["contenders"])
    rows = []
    for name in names:
        bound = meta.BOUNDS.get(name)
        cells = [ratio(p["contenders"][name]["ratio"]) if name in p["contenders"] else "–" for p in found.values()]
        rows.append([name, "" if bound is None else str(bound), *cells])
    yield from table(["step", "bound", *found], rows)


def contrast(found: Mapping[str, Any]) -> Iterator[str]:
    """Steps of SimCLR, and two views alone."""
    v = found["versions"]
    yield f"A step of SimCLR, ours over others' (lightly {v['lightly']}, kornia {v['kornia']}, torch {v['torch']}, no"
    yield "GPU), and two views of a batch alone; bound 0.7 of lightly's step with the small CNN:"
    yield "`python benchmarks/contrast.py`."
    yield ""
    parts = {**{f"a step, {name}": part for name, part in found["steps"].items()}, "two views": found["augmentation"]}
    rows = [
        [title, f"{part['case']['batch']}", name, f"{part['milliseconds'][name]:.1f}", ratio(r)]
        for title, part in parts.items()
        for name, r in part["ours_over"].items()
    ]
    yield from table(["", "images", "other", "other's ms", "ours / other"], rows)


def body() -> Iterator[str]:
    """All sections, from the files."""

    def read(name: str) -> Any:
        return json.loads((RESULTS / f"{name}.json").read_text())

    parts = {
        "Engine and methods of one network": engine(read("overhead"), read("methods")),
        "Two networks": networks(read("two_networks")),
        "Per-sample gradient norms, and PRL": gradient_norms(read("gradnorm")),
        "Losses in one's own loop": losses(read("losses")),
        "Meta-Weight-Net": meta_weights(read("meta")),
        "Contrastive pre-training": contrast(read("contrast")),
    }
    for title, lines in parts.items():
        yield from (f"### {title}", "", *lines)


def write_tables(page: Path) -> None:
    """From the result files alone."""
    write_block(page, START, END, "Speed", list(body())[:-1])
