"""The command line: `labelproof demo | train | find | inject | methods | recipes | data | report`.

Flags are made from signatures (`flags.py`): those of training from `Settings`, those of a method from its constructor.
So a flag, its type, its default and its help stand in one place, next to the code that uses it.
"""

from __future__ import annotations

import inspect
import logging
import math
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
from labelproof.core.registry import did_you_mean
from labelproof.engine.settings import Settings
from labelproof.flags import (
    DEFAULT_METHODS,
    Help,
    Parser,
    add_data,
    add_train,
    add_training,
    check_recipe,
    check_typed,
    dashes,
    of_recipe,
    stop,
    value_of,
    without,
)
from labelproof.methods import METHODS, available_methods, get_method, method_name
from labelproof.recipes import METRICS, Recipe, available_recipes, load_recipe

USAGE = {
    "demo": "labelproof demo [--out DIR] [--seeds N]",
    "train": "labelproof train DATA [--label COLUMN] [--method NAME] [--noise KIND:RATE] [--out DIR] [flags]\n"
    "       labelproof train [DATA] --recipe NAME [flags that differ]",
    "find": "labelproof find DATA [--label COLUMN] [--out FILE] [flags]",
    "inject": "labelproof inject DATA --noise KIND:RATE --out FILE [flags]",
    "methods": "labelproof methods",
    "recipes": "labelproof recipes",
    "data": "labelproof data [--data-dir DIR]",
    "report": "labelproof report RUN_DIR [RUN_DIR ...] [--out FILE]",
}
EXAMPLES = {
    "demo": "labelproof demo",
    "train": "labelproof train flowers.csv --label species --method co-teaching --noise-rate 0.2\n"
    "  labelproof train mnist --noise symmetric:0.5 --method elr --lam 3\n"
    "  labelproof train photos/ --epochs 20 --out runs/photos     # one folder per class\n"
    "  labelproof train --recipe elr-cifar10-sym40",
    "find": "labelproof find flowers.csv --label species --out issues.csv",
    "inject": "labelproof inject flowers.csv --label species --noise pairflip:0.45 --out noisy.parquet",
    "methods": "labelproof methods",
    "recipes": "labelproof recipes",
    "data": "labelproof data",
    "report": "labelproof report runs/mnist-elr-seed0",
}


#: Flags that do not change what a recipe trains.
_SAME = {
    "--checkpoint-every", "--data-dir", "--device", "--out", "--quiet", "--recipe", "--resident-bytes",
    "--resume", "--seed", "--tensorboard", "--workers",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    Args:
        argv: the words after `labelproof`; those of the process if `None`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    logging.getLogger("lightning_fabric").setLevel(logging.ERROR)
    warnings.showwarning = _show_warning
    if not words or words[0] in {"-h", "--help", "help"}:
        _overview()
        return 0
    if words[0] == "--version":
        Console().print(labelproof.__version__, highlight=False)
        return 0
    if words[0] not in COMMANDS:
        stop(f"unknown command {words[0]!r}{did_you_mean(words[0], COMMANDS)} See labelproof --help")
    build, run = COMMANDS[words[0]]
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
            words = [*_recipe_words(words), *words]
        build(parser, words)
        run(**vars(parser.parse_args(words)), words=words)
    except (ValueError, OSError, ImportError, MemoryError) as error:
        stop(str(error) or type(error).__name__)
    except KeyboardInterrupt:
        stop("stopped" + ("; from the first checkpoint on, --resume goes on" if run is train else ""))
    return 0


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    Console(stderr=True, soft_wrap=True).print(f"[yellow]warning:[/] {escape(str(message))}", highlight=False)


def _overview() -> None:
    console = Console()
    console.print(
        f"[bold]labelproof {labelproof.__version__}[/]  train models that survive wrong labels, and find them\n"
    )
    table = Table(box=None, show_header=False, padding=(0, 2))
    for name, (_, run) in COMMANDS.items():
        table.add_row(f"[bold]{name}[/]", (inspect.getdoc(run) or "").split("\n")[0])
    console.print(table)
    console.print("\nStart with [bold]labelproof demo[/]; [bold]labelproof COMMAND --help[/] explains each.")


def _build_find(parser: Any, words: Sequence[str]) -> None:
    add_data(parser)
    parser.add_argument("--out", type=str, default="issues.csv", help="where the list goes: .csv, .parquet or .json")
    parser.add_argument("--quiet", action="store_true", help="no progress, no table")
    add_training(parser, words, skip=("checkpoint_every",))


def _build_inject(parser: Any, words: Sequence[str]) -> None:
    add_data(parser)
    parser.add_argument("--noise", type=str, required=True, help="KIND:RATE, e.g. symmetric:0.4; kinds: docs/noise.md")
    parser.add_argument("--include-true-class", dest="include_true_class", action="store_true",
                        help="symmetric noise may draw the true class again, as ELR and DivideMix do")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--out", type=str, required=True, help="the new file: .csv, .parquet or .npz")


def train(**args: Any) -> None:
    """Train a network that survives wrong labels, and list which labels are wrong.

    Writes a run folder: report.html to look at, issues.csv with the list of wrong labels, metrics.csv with every
    epoch, and checkpoints to resume from.
    """
    from labelproof import runs

    command = shlex.join(["labelproof", "train", *args["words"]])
    if args["recipe"]:
        command = _follow(load_recipe(args["recipe"]), args)
    settings = _settings(args)
    data, test = _load(args)
    method = _method(args, data)
    if args["noise"]:
        data, _ = _inject(data, args["noise"], settings.seed)
    streams = _streams(args, data, method)
    name = f"{data.name}-{method_name(method)}-seed{settings.seed}".replace(":", "-").replace("/", "-")
    folder = Path(args["out"] or Path("runs", name))
    run = runs.train(
        data,
        method,
        _network(args, data, method),
        settings,
        test=test,
        streams=streams,
        folder=folder,
        resume=args["resume"],
        verbose=0 if args["quiet"] else 1,
        tensorboard=args["tensorboard"],
        command=command,
    )
    if not args["quiet"] and runs.is_first_process():
        _show_run(run, folder / "report.html")


def find(**args: Any) -> None:
    """List the wrong labels of a data set, worst first; trains what it needs to.

    Each sample gets a probability of being wrong, a suggested label and a flag. The data itself is not changed.
    """
    from labelproof import runs
    from labelproof.issues import save_issues

    settings, out = _settings(args), Path(args["out"])
    _check_target(out, Path(args["data"]))  # before hours of training, not after
    data, _ = _load(args, test=False)
    method = _method(args, data)
    network = _network(args, data, method)
    streams = _streams(args, data, method)
    run = runs.train(data, method, network, settings, streams=streams, verbose=0 if args["quiet"] else 1)
    if runs.is_first_process():
        save_issues(runs.with_truth(run.issues, data), out)
        if not args["quiet"]:
            _show_run(run, out)


def inject(**args: Any) -> None:
    """Write a copy of a data set with wrong labels put in on purpose.

    The input is not changed. The new file keeps the old labels beside the new ones; the realised noise rate, the
    transition matrix and a hash of the labels are printed.
    """
    from labelproof.data.readers import write_table

    data, _ = _load(args, test=False)
    options = {"include_true_class": True} if args["include_true_class"] else {}
    noisy, made = _inject(data, args["noise"], args["seed"], **options)
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


def _build_demo(parser: Any, words: Sequence[str]) -> None:
    parser.add_argument("--out", type=str, default="demo-out", help="folder of the results")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions, each with its own noise")


def _build_data(parser: Any, words: Sequence[str]) -> None:
    parser.add_argument("--data-dir", dest="data_dir", type=str | None, help="where to look")


def _build_report(parser: Any, words: Sequence[str]) -> None:
    parser.add_argument("run", nargs="+", help="run folders")
    parser.add_argument("--out", type=str | None, help="the page, an .html file; RUN/report.html if not given")


def _build_nothing(parser: Any, words: Sequence[str]) -> None:
    pass


COMMANDS: dict[str, tuple[Callable[[Any, Sequence[str]], None], Callable[..., None]]] = {
    "demo": (_build_demo, demo),
    "train": (add_train, train),
    "find": (_build_find, find),
    "inject": (_build_inject, inject),
    "methods": (_build_nothing, methods),
    "recipes": (_build_nothing, recipes),
    "data": (_build_data, data),
    "report": (_build_report, report),
}


def _settings(args: dict[str, Any]) -> Settings:
    return Settings(**{name: args[name] for name in Settings.__dataclass_fields__ if name in args})


def _method(args: dict[str, Any], data: Any) -> Any:
    task = "regression" if data.classes is None else "classification"
    kind = get_method(args["method"] or DEFAULT_METHODS[task])
    check_typed(args["words"], kind, task)
    return kind(**{name: args[name] for name in kind.param_names() if name in args})


def _network(args: dict[str, Any], data: Any, method: Any) -> str:
    if args["network"] != "auto":
        return str(args["network"])
    from labelproof.engine.inputs import input_shape

    if len(input_shape(data)) != 3:
        return "mlp"
    return "cnn-gn" if "batchnorm" in method.forbids else "cnn"


def _check_target(out: Path, source: Path) -> None:
    """Refuse an output file that could not be written, or would overwrite the data."""
    if out.suffix not in {".csv", ".parquet", ".json"}:
        raise ValueError(f"--out={out} must end in .csv, .parquet or .json")
    if out.is_dir() or not out.resolve().parent.is_dir():
        raise ValueError(f"--out={out} must be a file in a folder that exists")
    if out.exists() and source.exists() and out.samefile(source):
        raise ValueError(f"--out={out} is the data itself, which is never changed: choose another file")


def _reading(args: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `readers.read`."""
    names = ("label", "task", "id_column", "image_column", "image_size", "truth", "data_dir")
    options = {name: args[name] for name in names}
    if options["task"] == "auto" and args.get("method") and get_method(args["method"]).tasks == {"regression"}:
        options["task"] = "regression"
    return {**options, "drop": [name.strip() for name in (args["drop"] or "").split(",") if name.strip()]}


def _streams(args: dict[str, Any], data: Any, method: Any) -> dict[str, Any]:
    """Further data the method asks for, coded as the training data is."""
    from labelproof.data.readers import read

    if ("regression" if data.classes is None else "classification") not in method.tasks:
        return {}  # which is what will be said
    return {name: read(args[name], **_reading(args), like=data) for name in method.streams if name != "train"}


def _load(args: dict[str, Any], *, test: bool = True) -> tuple[Any, Any]:
    import numpy as np

    from labelproof.data import catalog
    from labelproof.data.readers import read

    options = _reading(args)
    train = read(args["data"], **options)
    if args["subset"] is not None:
        if not 2 <= args["subset"] <= len(train):
            raise ValueError(f"--subset={args['subset']} must lie between 2 and the {len(train)} samples there are")
        train = train.take(np.sort(np.random.default_rng(0).permutation(len(train))[: args["subset"]]))
    if not test:
        return train, None
    if args.get("test"):
        return train, read(args["test"], **options, like=train)  # coded by the training file's classes and columns
    if args["data"] in catalog.NAMES:
        return train, catalog.load(args["data"], split="test", data_dir=args["data_dir"])
    return train, None


def _inject(data: Any, text: str, seed: int, **options: Any) -> tuple[Any, Any]:
    """The data under injected noise, and what was injected."""
    import numpy as np

    from labelproof.data import noise
    from labelproof.data.noise_models import KINDS

    if data.truth is not None:
        raise ValueError(f"--noise {text}: the labels of {data.name} are noisy already; leave --noise out")
    spec = noise.parse(text)
    if noise.of_targets(spec.kind) != (data.classes is None):
        are, others = ("numbers", "classes") if data.classes is None else ("classes", "numbers")
        fitting = [k for k in KINDS if noise.of_targets(k) == (data.classes is None)]
        raise ValueError(
            f"--noise {text}: {spec.kind} is for {others}, and the labels of {data.name} are {are}, for which there "
            f"are {', '.join(fitting)} (or say --task)"
        )
    x = data.x if data.is_array else None
    if data.classes is None:
        made = noise.inject(data.y.squeeze(1) if data.y.shape[1] == 1 else data.y, spec.kind, spec.rate, seed=seed, x=x)
        return data.relabelled(made.labels.reshape(data.y.shape), **made.record()), made
    labels = data.classes[data.y]
    made = noise.inject(labels, spec.kind, spec.rate, seed=seed, x=x, classes=data.classes.tolist(), **options)
    codes = {label: code for code, label in enumerate(data.classes.tolist())}
    y = np.array([codes[label] for label in made.labels.tolist()], dtype=np.int64)
    return data.relabelled(y, **made.record()), made


def _recipe_words(words: list[str]) -> list[str]:
    """The flags of the recipe that is asked for, if one is."""
    name = value_of("--recipe", words)
    if name is None:
        return []
    recipe = load_recipe(name)
    check_recipe(recipe)
    return of_recipe(recipe, words)


def _follow(recipe: Recipe, args: dict[str, Any]) -> str:
    """Take the data from the recipe if none was typed, say what is expected, and return what repeats the run.

    The command is written out without the recipe, whose file may change.
    """
    from labelproof.runs import is_first_process

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


def _show_run(run: Any, written: Path) -> None:
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
    lines += [f"trained with {note}" for note in result.get("notes", [])]
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


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _decimals(scale: float) -> int:
    """Digits after the point that say something, where errors are of this size."""
    return min(9, max(0, 1 - math.floor(math.log10(scale)))) if 0 < scale < math.inf else 4
