"""INCV beside the methods of its paper, on 10,000 images of MNIST and of CIFAR-10, in docs/results.md.

    python benchmarks/incv_table.py --jobs 2                  # run what is not finished, then rewrite the block
    python benchmarks/incv_table.py --only incv --seeds 1     # some rows, the first seed
    python benchmarks/incv_table.py --tables                  # only rewrite the block from the result files

Runs are those of benchmarks/mnist_table.py: the same rows, files and locks; on MNIST they are its very runs, and what
it has made is not made again. CIFAR-10 has settings and result files of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import incv_page as page
import mnist_table as mnist
from mnist_table import HUMAN, Bench, Job, Noise
from tables import REPO, processes, write_block

from labelproof.data import catalog
from labelproof.data.dataset import Data

RESULTS = REPO / "benchmarks" / "results" / "incv"
PAGE = REPO / "docs" / "results.md"
FIGURES = "figures"
#: What the tables of all methods show.
SHOWN = {
    "test_accuracy": "test accuracy, last epoch",
    "average_precision": "list of wrong labels, average precision",
    "noise_rate_estimate": "share of wrong labels, as the list of the whole run has it",
}
#: Figures of precision and recall, and the data sets in them.
DRAWN = {"mnist": ("mnist",), "cifar10": ("cifar10", "human")}
START, END = "<!-- incv: made by benchmarks/incv_table.py -->", "<!-- end incv -->"
SEEDS = 3

#: As in the paper: 20, 50 and 80 % symmetric noise, 40 % pair flips.
NOISES = (Noise("symmetric", 0.2), Noise("symmetric", 0.5), Noise("symmetric", 0.8), Noise("pairflip", 0.4))
ROWS = ("INCV", "Co-teaching", "self-paced", "Decoupling", "forward, estimated", "D2L", "cross-entropy")
FEWER = ("INCV", "Co-teaching", "cross-entropy")

CIFAR: dict[str, Any] = {
    "epochs": 20,
    "batch_size": 64,
    "optimizer": "adam",
    "lr": 0.003,
    "schedule": "cosine",
    "device": "cpu",
}
#: So many test images are looked at after each epoch, all 10,000 at the end.
WATCHED = 2_000


def load_cifar() -> tuple[Data, Data]:
    """The 10,000 training images of `--subset 10000`, and the test images."""
    return mnist.subset("cifar10"), catalog.load("cifar10", split="test")


def load_human() -> tuple[Data, Data]:
    """The same images with the worst of three labels that people gave."""
    return mnist.subset("cifar10n:worse"), catalog.load("cifar10", split="test")


class Part(NamedTuple):
    """A data set of the table.

    Attributes:
        title: for people.
        noises: as mnist_table has them.
        rows: of mnist_table.
        bench: data and settings; those of mnist_table if `None`.
    """

    title: str
    noises: Sequence[Noise]
    rows: Sequence[str]
    bench: Bench | None = None

    def jobs(self, seeds: int) -> list[Job]:
        return [Job(t, n, s, self.bench) for s in range(seeds) for n in self.noises for t in self.rows]


def parts() -> dict[str, Part]:
    """All data sets, by the name that `--data` takes."""
    return {
        "mnist": Part("MNIST", NOISES, ROWS),
        "cifar10": Part(
            "CIFAR-10", NOISES, ROWS, Bench(load_cifar, RESULTS / "cifar10", CIFAR, data="cifar10", watched=WATCHED)
        ),
        "human": Part(
            "CIFAR-10N worse",
            (Noise(HUMAN, 0.4),),
            FEWER,
            Bench(load_human, RESULTS / "cifar10n-worse", CIFAR, data="cifar10n:worse", watched=WATCHED),
        ),
    }


def chosen(only: str, seeds: int, data: Sequence[str]) -> list[Job]:
    """The runs that are asked for, seed by seed over all data sets: a table of the first seed is there early."""
    wanted = {j.title for j in mnist.jobs(only, 1)}
    found = [job for name in data for job in parts()[name].jobs(seeds) if job.title in wanted]
    return sorted(found, key=lambda job: job.seed)


def body(where: Path) -> Iterator[str]:
    """All that stands between the marks; the figures are written into a folder beside the page."""
    found = {name: {job: r for job in p.jobs(SEEDS) if (r := mnist.finished(job))} for name, p in parts().items()}
    made = {n: page.Shown(p.title, p.noises, p.rows, found[n]) for n, p in parts().items() if found[n]}
    if not made:
        raise SystemExit(f"no results of these settings in {RESULTS}: run python {Path(__file__).name} first")
    shown = list(made.values())
    for key, head in SHOWN.items():
        for part in shown:
            yield from page.scores(part, key, head, seconds=key == "test_accuracy")
            yield ""
    if page.longest(shown):
        yield from page.estimates(shown)
        yield ""
        yield from page.iterations(shown)
        yield ""
    for name, drawn in DRAWN.items():
        of = [made[n] for n in drawn if n in made]
        if page.draw_iterations(of, where / FIGURES / f"incv-{name}.svg"):
            yield (
                f"![{' and '.join(p.title for p in of)}: label precision and label recall of INCV's selected set after "
                "each iteration, a curve for each noise, mean over seeds; the table above has the numbers.]"
                f"({FIGURES}/incv-{name}.svg)"
            )
            yield ""
    panels = {title: panel for part in shown for title, panel in page.epochs(part).items()}
    if panels:
        page.draw_epochs(panels, where / FIGURES / "incv-epochs.svg")
        yield (
            f"![Test accuracy by epoch on {WATCHED:,} of the test images, a panel for each of {'; '.join(panels)}, a "
            f"line for each method, mean over seeds.]({FIGURES}/incv-epochs.svg)"
        )
        yield ""
    yield under([r for part in shown for r in part.found.values()])


def under(results: Sequence[dict[str, Any]]) -> str:
    """How the tables were made."""
    s, m = CIFAR, mnist.SETTINGS
    commits, machines = (sorted({r[key] for r in results}) for key in ("commit", "machine"))
    return (
        "Per cent, mean ± standard deviation over seeds (of noise, weights and order). Training: the "
        f"{mnist.SAMPLES:,} images of `--subset {mnist.SAMPLES}`; test: 10,000 images "
        f"with clean labels, which decide nothing. Small CNN, batches of {s['batch_size']}, {s['optimizer']}, learning "
        f"rate {s['lr']}, {s['schedule']} schedule; {m['epochs']} epochs on MNIST, {s['epochs']} on CIFAR-10, there "
        "with crops and flips. Self-paced learning and Co-teaching: **told the true noise rate** (0.4 for human "
        "labels); forward correction estimates its matrix; INCV, Decoupling, D2L and cross-entropy are told nothing. "
        "INCV trains up to eight networks for half of the epochs before its last training, which is as long as the "
        "others'. CPU seconds are those of all trainings of a run together.\n\n"
        f"Made by `python benchmarks/incv_table.py --jobs 2`; {'; '.join(machines)}; "
        f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}."
    )


def write_tables(target: Path) -> None:
    """From the result files alone."""
    write_block(target, START, END, "INCV", list(body(target.parent)))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="*", help="rows to run, by title or method; * and ? stand for anything")
    parser.add_argument("--seeds", type=int, default=SEEDS, choices=range(1, SEEDS + 1), help="the first so many")
    parser.add_argument("--data", nargs="+", default=list(parts()), choices=list(parts()), help="data sets to run on")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the work")
    parser.add_argument("--tables", action="store_true", help="only rewrite the block")
    parser.add_argument("--no-tables", action="store_true", help="only run")
    args = parser.parse_args(argv)
    failed = 0
    if args.jobs > 1 and not args.tables:
        words = ["--only", args.only, "--seeds", str(args.seeds), "--data", *args.data, "--no-tables"]
        failed = processes(__file__, words, args.jobs)
    elif not args.tables:
        failed = len(mnist.collect(chosen(args.only, args.seeds, args.data)))
    if not args.no_tables:
        write_tables(PAGE)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
