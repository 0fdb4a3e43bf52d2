"""The command line: `labelproof demo | train | pretrain | find | clean | theory | inject | methods | ...`.

Flags are made from signatures (`flags.py`): those of training from `Settings`, those of a method from its constructor.
So a flag, its type, its default and its help stand in one place, next to the code that uses it.
"""

from __future__ import annotations

import inspect
import logging
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import labelproof
from labelproof.asked import (
    check_copy,
    check_target,
    encoder_file,
    folder_of,
    inject_noise,
    launcher_of,
    load,
    method_of,
    network_of,
    page_of,
    pretraining_of,
    settings_of,
    streams_of,
)
from labelproof.core.registry import did_you_mean
from labelproof.flags import (
    FLAGS,
    Help,
    Parser,
    check_recipe,
    dashes,
    of_recipe,
    recipe_words,
    stop,
    without,
    words_of,
)
from labelproof.folders import is_first_process
from labelproof.methods import METHODS, available_methods, method_name
from labelproof.recipes import METRICS, Recipe, available_recipes, load_recipe
from labelproof.screens import show_encoder, show_run, show_selection, show_theory, show_warning

USAGE = {
    "demo": "labelproof demo [--out DIR] [--seeds N]",
    "train": "labelproof train DATA [--label COLUMN] [--method NAME] [--noise KIND:RATE] [--out DIR] [flags]\n"
    "       labelproof train [DATA] --recipe NAME [flags that differ]",
    "pretrain": "labelproof pretrain DATA --out FILE [flags]",
    "find": "labelproof find DATA [--label COLUMN] [--out FILE] [flags]",
    "clean": "labelproof clean DATA [--label COLUMN] --out FILE [flags]",
    "theory": "labelproof theory DATA [--noise KIND,...] [--rates RATE,...] [--out DIR] [flags]",
    "inject": "labelproof inject DATA --noise KIND:RATE --out FILE [flags]",
    "methods": "labelproof methods",
    "recipes": "labelproof recipes",
    "bench": "labelproof bench list [PATTERN]\n"
    "       labelproof bench run NAME [--seeds N] [--jobs N] [flags]\n"
    "       labelproof bench table NAME [--out PAGE]",
    "data": "labelproof data [--data-dir DIR]",
    "report": "labelproof report RUN_DIR [RUN_DIR ...] [--out FILE]",
}
EXAMPLES = {
    "demo": "labelproof demo",
    "train": "labelproof train flowers.csv --label species --method co-teaching --noise-rate 0.2\n"
    "  labelproof train mnist --noise symmetric:0.5 --method elr --lam 3\n"
    "  labelproof train photos/ --epochs 20 --out runs/photos     # one folder per class\n"
    "  labelproof train --recipe elr-cifar10-sym40",
    "pretrain": "labelproof pretrain photos/ --network resnet18 --epochs 200 --out encoder.safetensors\n"
    "  labelproof train photos/ --encoder encoder.safetensors --method gce",
    "find": "labelproof find flowers.csv --label species --out issues.csv",
    "clean": "labelproof clean flowers.csv --label species --out clean.csv",
    "theory": "labelproof theory digits --noise symmetric,pairflip --rates 0,0.2,0.4,0.6 --network cnn --epochs 60",
    "inject": "labelproof inject flowers.csv --label species --noise pairflip:0.45 --out noisy.parquet",
    "methods": "labelproof methods",
    "recipes": "labelproof recipes",
    "bench": "labelproof bench run 'elr-*-digits-*-cpu' --jobs 2\n  labelproof bench table cpu --out cpu.html",
    "data": "labelproof data",
    "report": "labelproof report runs/mnist-elr-seed0",
}


#: Flags that do not change what a recipe trains.
_SAME = {
    "--address", "--checkpoint-every", "--data-dir", "--device", "--encoder", "--jobs", "--launcher", "--normalise",
    "--out", "--quiet", "--recipe", "--resident-bytes", "--resume", "--seed", "--tensorboard", "--workers",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    Args:
        argv: the words after `labelproof`; those of the process if `None`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    warnings.showwarning = show_warning
    if not words or words[0] in {"-h", "--help", "help"}:
        _overview()
        return 0
    if words[0] == "--version":
        Console().print(labelproof.__version__, highlight=False)
        return 0
    if words[0] not in COMMANDS:
        stop(f"unknown command {words[0]!r}{did_you_mean(words[0], COMMANDS)} See labelproof --help")
    run, build = COMMANDS[words[0]], FLAGS.get(words[0])
    parser = Parser(
        prog=f"labelproof {words[0]}",
        usage=USAGE[words[0]],
        description=inspect.getdoc(run),
        epilog=f"example:\n  {EXAMPLES[words[0]]}",
        formatter_class=Help,
        default_meta=False,
        allow_abbrev=False,
    )
    words = [dashes(w) for w in words[1:]]
    try:
        if run is train:
            words = [*recipe_words(words), *words]
        if build is not None:
            build(parser, words)
        run(**vars(parser.parse_args(words)), words=words)
    except (ValueError, OSError, ImportError, MemoryError) as error:
        stop(str(error) or type(error).__name__)
    except KeyboardInterrupt:
        resumed = run in (train, pretrain, clean, theory)
        again = "; the same command goes on where it was" if run is bench else ""
        stop("stopped" + ("; from the first checkpoint on, --resume goes on" if resumed else again))
    return 0


def _overview() -> None:
    console = Console()
    console.print(
        f"[bold]labelproof {labelproof.__version__}[/]  train models that survive wrong labels, and find them\n"
    )
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, run in COMMANDS.items():
        table.add_row(f"[bold]{name}[/]", (inspect.getdoc(run) or "").split("\n")[0])
    console.print(table)
    console.print("\nStart with [bold]labelproof demo[/]; [bold]labelproof COMMAND --help[/] explains each.")


def train(**args: Any) -> None:
    """Train a network that survives wrong labels, and list which labels are wrong.

    Writes a run folder: report.html to look at, issues.csv with the list of wrong labels, metrics.csv with every
    epoch, and checkpoints to resume from.
    """
    from labelproof import runs

    command = shlex.join(["labelproof", "train", *args["words"]])
    if args["recipe"]:
        command = _follow(load_recipe(args["recipe"]), args)
    settings = settings_of(args)
    data, test = load(args)
    method = method_of(args, data)
    if args["noise"]:
        data, _ = inject_noise(data, args["noise"], settings.seed)
    streams = streams_of(args, data, method)
    folder = folder_of(args["out"], data.name, method_name(method), f"seed{settings.seed}")
    run = runs.train(
        data,
        method,
        network_of(args, data, method),
        settings,
        test=test,
        streams=streams,
        folder=folder,
        resume=args["resume"],
        verbose=0 if args["quiet"] else 1,
        tensorboard=args["tensorboard"],
        command=command,
        launcher=launcher_of(args),
    )
    if not args["quiet"] and is_first_process():
        show_run(run, folder / "report.html")


def pretrain(**args: Any) -> None:
    """Learn features without labels (SimCLR), for labelproof train --encoder to start from.

    The encoder is saved with the scaling of its inputs. Labels are only used to follow progress: metrics.csv, in the
    folder of the training, has the agreement of a linear probe and of nearest neighbours with them.
    """
    from labelproof import studies

    settings, out = settings_of(args), encoder_file(args["out"], Path(args["data"]))
    data, test = load(args)
    method = pretraining_of(args)
    folder = folder_of(args["run"], data.name, "pretrain", f"seed{settings.seed}")
    found = studies.pretrain(
        data,
        method,
        network_of(args, data, method),
        settings,
        out,
        test=test,
        folder=folder,
        resume=args["resume"],
        verbose=0 if args["quiet"] else 1,
        command=shlex.join(["labelproof", "pretrain", *args["words"]]),
    )
    if is_first_process() and not args["quiet"]:
        show_encoder(found, out)


def find(**args: Any) -> None:
    """List the wrong labels of a data set, worst first; trains what it needs to.

    Each sample gets a probability of being wrong, a suggested label and a flag. The data itself is not changed.
    """
    from labelproof import runs, studies
    from labelproof.issues import save_issues

    settings, out = settings_of(args), Path(args["out"])
    check_target(out, Path(args["data"]))  # before hours of training, not after
    data, _ = load(args, test=False)
    method = method_of(args, data)
    network = network_of(args, data, method)
    streams = streams_of(args, data, method)
    how: dict[str, Any] = {
        "streams": streams,
        "verbose": 0 if args["quiet"] else 1,
        "launcher": launcher_of(args),
    }
    run: Any
    if args["folds"]:
        run = studies.held_out(data, method, network, settings, args["folds"], **how)
    else:
        run = runs.train(data, method, network, settings, **how)
    if is_first_process():
        save_issues(runs.with_truth(run.issues, data), out)
        if not args["quiet"]:
            show_run(run, out)


def clean(**args: Any) -> None:
    """Write a copy of a data set without the samples whose labels cannot be trusted.

    Networks trained on one half say what the labels of the other half should be, several times over (INCV). The copy
    has the samples whose labels they agree with; selection.csv, in the folder of the trainings, says what became of
    each. The input is not changed.
    """
    import pandas as pd

    from labelproof import studies
    from labelproof.data.readers import check_cells, write_table
    from labelproof.issues import save_issues

    settings, out = settings_of(args), Path(args["out"])
    check_copy(out, Path(args["data"]))
    table = None if args["selection"] is None else Path(args["selection"])
    if table is not None:
        check_target(table, Path(args["data"]), flag="--selection")
        if table.resolve() == out.resolve():
            raise ValueError(f"--selection={table} is where the copy goes: choose another file")
    data, _ = load(args, test=False)
    check_cells(args["data"], data, out)
    method = method_of({**args, "method": "incv"}, data)
    folder = folder_of(args["run"], data.name, "clean", f"seed{settings.seed}")
    found = studies.clean(
        data,
        method,
        network_of(args, data, method),
        settings,
        folder=folder,
        resume=args["resume"],
        verbose=0 if args["quiet"] else 1,
        command=shlex.join(["labelproof", "clean", *args["words"]]),
        launcher=launcher_of(args),
    )
    if not is_first_process():
        return
    kept = data.take(found.selected)
    write_table(args["data"], kept, out, id_column=args["id_column"], original=None, data_dir=args["data_dir"])
    if table is not None:
        save_issues(pd.DataFrame(found.columns), table)
    if not args["quiet"]:
        show_selection(found, len(data), out, table or folder / "selection.csv")


def theory(**args: Any) -> None:
    """Put the theory of INCV to the test on data whose labels are right.

    For each noise rate, noise goes into the labels, a network learns one half of them and predicts the other.
    theory.csv and theory.svg have test accuracy, label precision and label recall beside what theory expects,
    theory-confusion.svg the confusion of the network above the matrix of the noise. --jobs 2 trains two at a time.
    """
    from labelproof import studies
    from labelproof.methods import CE
    from labelproof.report.theory import Agreement, Confusion, draw_agreement, draw_confusion

    settings, (data, _) = settings_of(args), load(args, test=False)
    kinds = [kind.strip() for kind in args["noise"].split(",")]
    try:
        rates = [float(rate) for rate in args["rates"].split(",")]
    except ValueError:
        raise ValueError(f"--rates={args['rates']} must be numbers in [0, 1], separated by commas") from None
    folder = folder_of(args["out"], data.name, "theory", f"seed{settings.seed}")
    found = studies.theory(
        data,
        network_of(args, data, CE()),
        settings,
        kinds,
        rates,
        folder=folder,
        resume=args["resume"],
        verbose=0 if args["quiet"] else 1,
        command=shlex.join(["labelproof", "theory", *args["words"]]),
        launcher=launcher_of(args),
    )
    if not is_first_process():
        return
    draw_agreement([Agreement(v.kind, v.lines, v.table) for v in found], folder / "theory.svg")
    each = max(1, 4 // len(found))  # columns: more are too small to read
    shown = [(v, len(rates) - 1 - k * max(1, len(rates) // each)) for v in found for k in reversed(range(each))]
    draw_confusion(
        [Confusion(f"{v.kind} {rates[i]:g}", v.measured[i], v.transition[i]) for v, i in shown if i >= 0],
        folder / "theory-confusion.svg",
        classes=data.classes,
    )
    if not args["quiet"]:
        show_theory(found, folder)


def inject(**args: Any) -> None:
    """Write a copy of a data set with wrong labels put in on purpose.

    The input is not changed. The new file keeps the old labels beside the new ones; the realised noise rate, the
    transition matrix and a hash of the labels are printed.
    """
    from labelproof.data.readers import write_table

    data, _ = load(args, test=False)
    options = {"include_true_class": True} if args["include_true_class"] else {}
    noisy, made = inject_noise(data, args["noise"], args["seed"], **options)
    write_table(args["data"], noisy, args["out"], id_column=args["id_column"], data_dir=args["data_dir"])
    console = Console(soft_wrap=True)
    console.print(str(made), highlight=False, markup=False)
    console.print(f"written to {escape(args['out'])}", highlight=False)


def methods(**_: Any) -> None:
    """List the training methods: what each does, where it comes from, what it costs."""
    console = Console(highlight=False, soft_wrap=True)
    for name in available_methods():
        m = METHODS[name]
        options = ", ".join(f"{k}={v}" for k, v in m().get_params().items()) or "none"
        console.print(f"[bold]{name}[/]  {m.title}, for {' and '.join(sorted(m.tasks))}")
        console.print(f"    {(inspect.getdoc(m) or '').splitlines()[0]}")
        console.print(f"    {m.paper}\n    cost: {m.cost}\n    options: {options}\n")


def recipes(**_: Any) -> None:
    """List the recipes: settings of published numbers, for `labelproof train --recipe NAME`."""
    table = Table(box=None, padding=(0, 1), title="published accuracy in per cent", title_justify="left")
    for column in ("name", "published", "what"):
        table.add_column(column, no_wrap=True)
    for recipe in map(load_recipe, available_recipes()):
        table.add_row(recipe.name, str(recipe.expected or ""), recipe.title)
    Console(width=120).print(table, highlight=False)


def data(**args: Any) -> None:
    """List the named data sets and where each was found."""
    from labelproof.data import catalog

    found = catalog.available(data_dir=args["data_dir"])
    table = Table(box=None, padding=(0, 2))
    for column in found.columns:
        table.add_column(str(column), overflow="fold")
    for row in found.itertuples(index=False):
        table.add_row(*map(str, row))
    Console().print(table)


def bench(**args: Any) -> None:
    """Run published tables and suites of experiments again, and show ours beside theirs.

    list shows suites and recipes with what was published and what ours came to. run makes the results that are missing,
    each by the command that labelproof bench run --dry prints, and goes on where it was killed. table shows a suite.
    """
    from labelproof.bench import command
    from labelproof.bench.results import default_folder

    folder, what, name = Path(args["results"] or default_folder()), args["what"], args["name"]
    known = ("list", "run", "table")
    if what not in ("", *known):
        raise ValueError(f"labelproof bench {what}{did_you_mean(what, known)} There are {', '.join(known)}")
    for flag, of in {"out": "table", "seeds": "run", "dry": "run", "jobs": "run", "encoder": "run"}.items():
        if args[flag] and what != of:
            raise ValueError(f"--{flag} is for labelproof bench {of}: leave it out")
    if what in ("", "list"):
        command.show_list(name, folder)
    elif name is None:
        raise ValueError(f"labelproof bench {what} NAME: a suite, a recipe or a pattern; see labelproof bench list")
    elif what == "table":
        command.show_table(name, folder, None if args["out"] is None else page_of(args["out"]))
    else:
        same = [
            f"--{flag.replace('_', '-')}={args[flag]}"
            for flag in ("data_dir", "device", "normalise")
            if args[flag] is not None
        ]
        failed = command.run_all(
            name,
            args["seeds"],
            folder,
            words=words_of,
            check=check_recipe,
            same=same,
            encoder=args["encoder"] or "",
            launcher=launcher_of(args),
            dry=args["dry"],
            quiet=args["quiet"],
        )
        if failed:
            raise SystemExit(1)


def report(**args: Any) -> None:
    """Make the HTML report of one run, or of several side by side."""
    from labelproof.report import write_report

    path = write_report([Path(p) for p in args["run"]], Path(args["out"]) if args["out"] else None)
    Console().print(f"written to {escape(str(path))}", highlight=False, soft_wrap=True)


def demo(**args: Any) -> None:
    """See it work: three methods on handwritten digits of which 40 % carry a wrong label.

    Needs no download. Prints a table and writes a report with the list of wrong labels and pictures of them.
    """
    from labelproof.demo import run_demo

    run_demo(Path(args["out"]), seeds=args["seeds"])


COMMANDS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "train": train,
    "pretrain": pretrain,
    "find": find,
    "clean": clean,
    "theory": theory,
    "inject": inject,
    "methods": methods,
    "recipes": recipes,
    "bench": bench,
    "data": data,
    "report": report,
}


def _follow(recipe: Recipe, args: dict[str, Any]) -> str:
    """Take the data from the recipe if none was typed, say what is expected, and return what repeats the run.

    The command is written out without the recipe, whose file may change.
    """
    if args["encoder"] is None and (recipe.needs or recipe.pretrain is not None):
        what = recipe.needs or "the encoder that labelproof bench run makes first (--dry shows how)"
        raise ValueError(f"the recipe {args['recipe']} starts from {what}: give --encoder FILE")
    words, typed = args["words"], args["words"][len(of_recipe(recipe, args["words"])) :]
    changed = [flag for flag in (w.partition("=")[0] for w in typed) if flag.startswith("--") and flag not in _SAME]
    if args["data"] is None:
        if "data" not in recipe.train:
            raise ValueError(f"missing: data, which the recipe {args['recipe']} does not name either")
        args["data"] = str(recipe.train["data"])
        words = [args["data"], *words]
    elif args["data"] != recipe.train.get("data", args["data"]):
        changed = ["the data", *changed]
    if not args["quiet"] and is_first_process():
        lines = [f"recipe {recipe.name}: {recipe.title}", f"  {recipe.citation}; {recipe.source}"]
        if recipe.expected:
            lines.append(f"  published: {recipe.expected} % ({METRICS[recipe.expected.metric]})")
        lines += [f"  differs: {text}" for text in recipe.deviations]
        lines += [f"  changed here, so not comparable: {', '.join(changed)}"] * bool(changed)
        Console(soft_wrap=True).print("\n".join(lines), highlight=False, markup=False)
    return shlex.join(["labelproof", "train", *without("--recipe", words)])
