"""What the command line's parsers are made of: flags from signatures, flags from recipes, answers to typos."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jsonargparse
from docstring_parser import parse as parse_docstring
from rich.console import Console
from rich.markup import escape

from labelproof.core.method import STREAMS, Method
from labelproof.core.registry import did_you_mean
from labelproof.engine.settings import Settings
from labelproof.methods import METHODS, available_methods, get_method
from labelproof.procedures.contrast import Contrast
from labelproof.recipes import Recipe, load_recipe

#: The method for each kind of task, where none is asked for.
DEFAULT_METHODS = {"classification": "elr", "regression": "prl-l"}


class Help(jsonargparse.DefaultHelpFormatter):
    """Says the default where there is one, and leaves Python's types out."""

    def _get_help_string(self, action: Any) -> str:
        text = action.help or ""
        shown = action.default is not None and action.default is not False and action.option_strings
        return f"{text} (default: {action.default})" if shown and action.dest != "help" else text


#: What types are called in messages; nothing for what cannot be typed.
_KINDS = {"float": "a number", "int": "a whole number", "str": "text", "NoneType": ""}


class Parser(jsonargparse.ArgumentParser):
    """Answers a misspelt flag with the one that was probably meant.

    Attributes:
        origin: who wrote the words, for the message; nothing for the command line itself.
    """

    origin = ""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        unknown = re.search(r"unrecognized arguments:.*?(--[\w-]+)", message, re.IGNORECASE)
        if unknown:
            flags = [o for action in self._actions for o in action.option_strings if o.startswith("--")]
            word = unknown[1][2:].replace("-", "_")
            owners = owners_of(word)
            if unknown[1] == "--recipe":
                hint = ": recipes are for labelproof train;"
            elif owners:
                hint = f": it is an option of --method {any_of(owners)};"
            else:
                hint = did_you_mean(unknown[1], flags)
            message = f"unknown flag {unknown[1]}{hint} see {self.prog} --help"
        missing = re.search(r'Key "(\w+)" is required|arguments are required: (.+)', message)
        if missing:
            name = missing[1] or missing[2]
            asker = next((n for n, m in METHODS.items() if name in m.streams), None)
            what = (
                f"--{name} DATA, {STREAMS.get(name, 'further data')}, which --method {asker} needs" if asker else name
            )
            message = f"missing: {what}. See {self.prog}{f' --method {asker}' if asker else ''} --help"
        wrong = re.search(r'Parser key "(.+?)":\s*(.+)', message, re.DOTALL)
        if wrong:
            flag, why = wrong[1].replace("_", "-"), re.sub(r"<class '(\w+)'>", r"\1", " ".join(wrong[2].split()))
            union = re.search(r"Union subtypes Subtypes: \[(.+)\] Errors:.*Given value: ?(.*)$", why)
            if union:
                kinds = [_KINDS.get(k, k.removeprefix("typing.Literal[").rstrip("]")) for k in union[1].split(", ")]
                why = f"must be {' or '.join(filter(None, kinds))}. Got value: {union[2]}"
            choices = re.sub(
                r"Expected a typing\.Literal\[(.+?)\]", lambda m: "must be one of " + m[1].replace("'", ""), why
            )
            message = f"--{flag}: {choices}"
        stop(self.origin + message)


def owners_of(word: str) -> list[str]:
    """Names of the methods that have an option or a stream of that name."""
    return [n for n, m in METHODS.items() if word in {*m.param_names(), *m.streams, *m.optional}]


def any_of(names: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def stop(message: str) -> NoReturn:
    """Print an error and leave with status 2."""
    Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(message)}", highlight=False)
    raise SystemExit(2)


def dashes(word: str) -> str:
    """`--weight_decay=0` as `--weight-decay=0`."""
    flag, eq, value = word.partition("=")
    return flag.replace("_", "-") + eq + value if flag.startswith("--") else word


def value_of(flag: str, words: Sequence[str]) -> str | None:
    """What a flag is set to; the last one counts."""
    found = None
    for word, following in zip(words, [*words, ""][1:], strict=True):
        if word == flag:
            found = following
        elif word.startswith(f"{flag}="):
            found = word.partition("=")[2]
    return found


def without(flag: str, words: Sequence[str]) -> list[str]:
    """The words but for a flag and what it is set to.

    >>> without("--recipe", ["--recipe", "mine.toml", "--epochs", "3", "--recipe=yours.toml"])
    ['--epochs', '3']
    """
    before = ["", *words]
    return [w for w, b in zip(words, before, strict=False) if flag not in (w, b) and not w.startswith(f"{flag}=")]


def candidates(words: Sequence[str]) -> list[type[Method]]:
    """The methods that may be trained: the one asked for, or else the default of each task that the data may make.

    Raises:
        ValueError: the method is unknown.

    >>> [m.name for m in candidates(["--task", "regression"])], [m.name for m in candidates([])]
    (['prl-l'], ['elr', 'prl-l'])
    """
    named = value_of("--method", words) or DEFAULT_METHODS.get(value_of("--task", words) or "")
    return [get_method(name) for name in ([named] if named else DEFAULT_METHODS.values())]


def check_typed(words: Sequence[str], method: type[Method], task: str) -> None:
    """Refuse options of the default method of one kind of task where the data makes another.

    Args:
        words: of the command line and of a recipe.
        method: what will be trained.
        task: kind that the labels make.

    Raises:
        ValueError: an option was given that `method` lacks.
    """
    typed = {w.partition("=")[0].removeprefix("--").removeprefix("no-") for w in words if w.startswith("--")}
    for other in candidates(words):
        for name in other.param_names():
            flag = name.replace("_", "-")
            if name in method.param_names() or flag not in typed:
                continue
            fitting = [n for n in owners_of(name) if task in METHODS[n].tasks]
            remedies = ["leave it out"] + [f"ask for --method {any_of(fitting)}"] * bool(fitting)
            remedies += [f"say --task {kind} if that is what it is" for kind in DEFAULT_METHODS if kind != task]
            raise ValueError(
                f"--{flag} is an option of --method {other.name}, but these labels make a {task} task, which is for "
                f"--method {method.name} where none is given: {'; '.join(remedies[:-1])}; or {remedies[-1]}"
            )


def add_signature(parser: Any, source: Callable[..., Any], title: str, skip: Sequence[str] = ()) -> None:
    """One flag per keyword argument of a constructor, its help from the docstring."""
    classes = reversed(source.__mro__) if inspect.isclass(source) else [source]  # arguments may be a base's
    described = {p.arg_name: p.description for c in classes for p in parse_docstring(inspect.getdoc(c) or "").params}
    init = source.__init__ if inspect.isclass(source) else source
    hints = typing.get_type_hints(init)
    group = parser.add_argument_group(title)
    for name, p in inspect.signature(init).parameters.items():
        if name == "self" or name in skip:
            continue
        text = " ".join((described.get(name) or "").split()).replace("`", "")
        flag = "--" + name.replace("_", "-")
        if hints[name] is bool:
            yes_no = jsonargparse.ActionYesNo(no_prefix="no-")
            group.add_argument(flag, dest=name, action=yes_no, default=p.default, help=text)
        else:
            group.add_argument(flag, dest=name, type=hints[name], default=p.default, help=text)


def add_data(parser: Any, *, required: bool = True) -> None:
    """The data and how to read it."""
    parser.add_argument(
        "data",
        nargs=None if required else "?",
        help="a CSV or Parquet file, an .npz file, a folder with one folder per class, or a named data set "
        "(see: labelproof data)",
    )
    group = parser.add_argument_group("reading the data")
    group.add_argument("--label", type=str | None, help="the label column; found by itself if it is called label")
    group.add_argument("--task", type=str, default="auto", help="auto, classification or regression")
    group.add_argument("--id-column", dest="id_column", type=str | None, help="column that names each sample")
    group.add_argument("--image-column", dest="image_column", type=str | None, help="column of image bytes or paths")
    group.add_argument("--image-size", dest="image_size", type=int | None, help="resize images to this many pixels")
    group.add_argument(
        "--embedding-column", dest="embedding_column", type=str | None, help="column that holds a vector per row"
    )
    group.add_argument("--drop", type=str | None, help="columns to leave out, separated by commas")
    group.add_argument("--truth", type=str | None, help="column of true labels, if there is one: only measured with")
    group.add_argument(
        "--subset",
        type=int | None,
        help="train on that many samples only, a fixed random choice; test data stays whole",
    )
    group.add_argument("--data-dir", dest="data_dir", type=str | None, help="where named data sets lie")


def add_network(parser: Any) -> None:
    """The network."""
    parser.add_argument(
        "--network",
        type=str,
        default="auto",
        help="auto (cnn for images, cnn-gn for methods that need GroupNorm, linear for a column of vectors, else mlp), "
        "linear, mlp, cnn, cnn9, resnet18, resnet32, resnet32-keras, resnet34, preact-resnet18, resnet50, resnet110; "
        "for large images resnet18-imagenet, resnet34-imagenet, resnet50-imagenet, inception-resnet-v2; each with "
        "BatchNorm or, as in cnn-gn, with GroupNorm",
    )
    add_encoder(parser)


def add_encoder(parser: Any) -> None:
    """What the network starts from."""
    group = parser.add_argument_group("starting from an encoder")
    group.add_argument(
        "--encoder",
        type=str | None,
        help="file of a network trained before: of labelproof pretrain, of another SimCLR implementation or an "
        "ImageNet checkpoint; torchvision:NAME and timm:NAME with the extra labelproof[vision]",
    )
    group.add_argument("--freeze", action="store_true", help="leave the encoder as it is, train the last layer alone")
    group.add_argument(
        "--normalise",
        type=str | None,
        help="how inputs of somebody else's encoder were scaled: zero-one, minus-one-one, imagenet, cifar10, cifar100",
    )


def add_training(parser: Any, words: Sequence[str], skip: Sequence[str] = ()) -> None:
    """Method, network, the options of the method that `words` choose, or may choose, and the settings."""
    default, regression = DEFAULT_METHODS["classification"], DEFAULT_METHODS["regression"]
    names = ", ".join(available_methods())
    parser.add_argument(
        "--method", type=str | None, help=f"{names}; if not given, {default}, or {regression} for regression"
    )
    add_network(parser)
    methods = candidates(words)
    for method in methods:
        instead = value_of("--verified", words) is not None
        for name in dict.fromkeys((*method.streams[1:], *method.optional)):
            needed = name in method.streams and not instead
            what = STREAMS.get(name, "further data")
            parser.add_argument(f"--{name}", type=str if needed else str | None, required=needed, help=what)
            if name == "clean":
                parser.add_argument(
                    "--verified",
                    type=int | None,
                    help="for experiments, in place of --clean: the true labels of that many samples, of each class "
                    "alike, where they are known (injected noise, human labels of CIFAR)",
                )
        default_for = [f", for {task}" for task, name in DEFAULT_METHODS.items() if name == method.name]
        title = f"options of --method {method.name}" + "".join(default_for * (len(methods) > 1))
        add_signature(parser, method, title)
    add_settings(parser, skip)


def add_settings(parser: Any, skip: Sequence[str] = ()) -> None:
    """How to train, and where trainings that need nothing of each other run side by side."""
    add_signature(parser, Settings, "training", skip)
    _add_launcher(parser)


def _add_launcher(parser: Any) -> None:
    group = parser.add_argument_group("several trainings (cross-validation, INCV, noise rates, recipes)")
    group.add_argument(
        "--jobs", type=int | None, help="so many at a time; if not given 1, or what a Ray cluster has room for"
    )
    group.add_argument("--launcher", type=str, default="processes", help="processes of this machine, or ray")
    group.add_argument("--address", type=str | None, help="of a Ray cluster to join, e.g. auto (with --launcher ray)")


def _train(parser: Any, words: Sequence[str]) -> None:
    """All flags of `labelproof train`."""
    add_data(parser, required=value_of("--recipe", words) is None)
    parser.add_argument("--test", type=str | None, help="test data, if not a named set; never used for a choice")
    parser.add_argument("--noise", type=str | None, help="make labels wrong first, e.g. symmetric:0.4 or pairflip:0.45")
    parser.add_argument(
        "--recipe", type=str | None, help="flags from a recipe (see: labelproof recipes) or a TOML file"
    )
    parser.add_argument("--out", type=str | None, help="folder of the run; runs/DATA-METHOD-seedS if not given")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events")
    parser.add_argument("--quiet", action="store_true", help="no progress, no table")
    add_training(parser, words)


def _find(parser: Any, words: Sequence[str]) -> None:
    """All flags of `labelproof find`."""
    add_data(parser)
    parser.add_argument("--out", type=str, default="issues.csv", help="where the list goes: .csv, .parquet or .json")
    parser.add_argument(
        "--folds",
        type=int,
        default=0,
        help="2 or more: that many trainings, each judging samples it has not seen; 0: the record of a single one",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress, no table")
    add_training(parser, words, skip=("checkpoint_every",))


def _pretrain(parser: Any, words: Sequence[str]) -> None:
    """All flags of `labelproof pretrain`."""
    add_data(parser)
    parser.add_argument("--test", type=str | None, help="test data for the linear probe, if not a named set")
    parser.add_argument("--out", type=str, required=True, help="the encoder: a .safetensors file")
    parser.add_argument("--run", type=str | None, help="folder of the training; runs/DATA-pretrain-seedS if not given")
    parser.add_argument("--resume", action="store_true", help="go on with the training in --run")
    parser.add_argument("--quiet", action="store_true", help="no progress, no summary")
    add_network(parser)
    add_signature(parser, Contrast, "features")
    add_settings(parser, ("early_stopping", "patience", "validation_fraction"))
    parser.set_defaults(epochs=100, batch_size=256, optimizer="adamw")


def _clean(parser: Any, words: Sequence[str]) -> None:
    """All flags of `labelproof clean`."""
    add_data(parser)
    parser.add_argument("--out", type=str, required=True, help="the new file: .csv, .parquet or .npz")
    parser.add_argument("--selection", type=str | None, help="what became of each sample: .csv, .parquet or .json")
    parser.add_argument("--run", type=str | None, help="folder of the trainings; runs/DATA-clean-seedS if not given")
    parser.add_argument("--resume", action="store_true", help="go on with the trainings in --run")
    parser.add_argument("--quiet", action="store_true", help="no progress, no summary")
    add_network(parser)
    add_signature(parser, METHODS["incv"], "selection", ("selected_noise", "warmup", "num_gradual"))
    add_settings(parser, ("early_stopping", "validation_fraction"))


def _theory(parser: Any, words: Sequence[str]) -> None:
    """All flags of `labelproof theory`."""
    add_data(parser)
    parser.add_argument("--noise", type=str, default="symmetric", help="kinds of noise, separated by commas")
    parser.add_argument(
        "--rates", type=str, default="0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1", help="noise rates, separated by commas"
    )
    parser.add_argument("--out", type=str | None, help="folder of the results; runs/DATA-theory-seedS if not given")
    parser.add_argument("--resume", action="store_true", help="go on with the trainings in --out")
    parser.add_argument("--quiet", action="store_true", help="no progress, no table")
    add_network(parser)
    add_settings(parser)


def _inject(parser: Any, words: Sequence[str]) -> None:
    """All flags of `labelproof inject`."""
    add_data(parser)
    parser.add_argument("--noise", type=str, required=True, help="KIND:RATE, e.g. symmetric:0.4; kinds: docs/noise.md")
    parser.add_argument("--include-true-class", dest="include_true_class", action="store_true",
                        help="symmetric noise may draw the true class again, as ELR and DivideMix do")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--out", type=str, required=True, help="the new file: .csv, .parquet or .npz")


def _demo(parser: Any, words: Sequence[str]) -> None:
    """All flags of `labelproof demo`."""
    parser.add_argument("--out", type=str, default="demo-out", help="folder of the results")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions, each with its own noise")


def _bench(parser: Any, words: Sequence[str]) -> None:
    """All flags of `labelproof bench`."""
    parser.add_argument("what", type=str, nargs="?", default="", help="list, run or table")
    parser.add_argument("name", type=str, nargs="?", help="a suite, a recipe, or a pattern such as 'elr-*'")
    parser.add_argument("--results", type=str | None, help="folder of the result files, one per run")
    group = parser.add_argument_group("bench run")
    group.add_argument("--seeds", type=int | None, help="runs of each recipe; as many as the suite says, else 3")
    group.add_argument("--dry", action="store_true", help="only print the commands")
    group.add_argument("--quiet", action="store_true", help="print only what went wrong")
    group.add_argument("--encoder", type=str | None, help="for recipes that need one that you have")
    group.add_argument("--normalise", type=str | None, help="how its inputs were scaled, if its file does not say so")
    group.add_argument("--data-dir", dest="data_dir", type=str | None, help="where named data sets lie")
    group.add_argument("--device", type=str | None, help="auto, cpu or cuda; what the recipe says if not given")
    _add_launcher(parser)
    group = parser.add_argument_group("bench table")
    group.add_argument("--out", type=str | None, help="a page, .md or .html; the screen if not given")


def _data(parser: Any, words: Sequence[str]) -> None:
    """All flags of `labelproof data`."""
    parser.add_argument("--data-dir", dest="data_dir", type=str | None, help="where to look")


def _report(parser: Any, words: Sequence[str]) -> None:
    """All flags of `labelproof report`."""
    parser.add_argument("run", nargs="+", help="run folders")
    parser.add_argument("--out", type=str | None, help="the page, an .html file; RUN/report.html if not given")


def of_recipe(recipe: Recipe, words: Sequence[str] = ()) -> list[str]:
    """A recipe's flags as words, to stand before the words that were typed: the last one counts.

    A method among `words` takes the options of the recipe's own method away.

    Raises:
        ValueError: a method is unknown.
    """
    own = candidates([f"--{key}={recipe.train[key]}" for key in ("method", "task") if key in recipe.train])
    typed = value_of("--method", words)
    others = [method for method in own if method is not get_method(typed)] if typed is not None else []
    gone = {name for method in others for name in method.param_names()}
    return words_of({k: v for k, v in recipe.train.items() if k != "data" and k.replace("-", "_") not in gone})


def words_of(given: Mapping[str, Any]) -> list[str]:
    """Flags by name, underscores for dashes, as words of the command line.

    >>> words_of({"batch_size": 64, "last_layer": False})
    ['--batch-size=64', '--no-last-layer']
    """
    words = []
    for key, value in given.items():
        flag = key.replace("_", "-")
        words.append((f"--{flag}" if value else f"--no-{flag}") if isinstance(value, bool) else f"--{flag}={value}")
    return words


def recipe_words(words: Sequence[str]) -> list[str]:
    """The flags of the recipe that is asked for, if one is."""
    name = value_of("--recipe", words)
    if name is None:
        return []
    recipe = load_recipe(name)
    check_recipe(recipe)
    return of_recipe(recipe, words)


def check_recipe(recipe: Recipe) -> None:
    """Refuse flags that do not exist, and values that they do not take, as if they had been typed.

    Raises:
        ValueError: the recipe's method is unknown, a switch is neither true nor false, or method or settings refuse a
            value.
        SystemExit: a flag is unknown or has a value of a wrong type; file and flag have been printed.
    """
    try:
        words = ["--recipe", str(recipe.path), *of_recipe(recipe)]
        _check_table("train", recipe.train, words, candidates(words), recipe)
        if recipe.pretrain is not None:
            flags = {key: value for key, value in recipe.pretrain.items() if key != "data"}
            words = ["DATA", "--out=encoder.safetensors", *words_of(flags)]
            _check_table("pretrain", recipe.pretrain, words, [Contrast], recipe)
    except ValueError as error:
        raise ValueError(f"recipe {recipe.path}: {error}") from error


def _check_table(
    command: str, flags: Mapping[str, Any], words: list[str], methods: Sequence[type[Method]], recipe: Recipe
) -> None:
    """Parse a table of a recipe as words of the command of its name, and make what they are the arguments of."""
    parser = Parser(prog=f"labelproof {command}", allow_abbrev=False)
    parser.origin = f"recipe {recipe.path}: "
    FLAGS[command](parser, words)
    switches = {a.dest: isinstance(a, jsonargparse.ActionYesNo) for a in parser._actions}
    for key, value in flags.items():
        switch = switches.get(key.replace("-", "_"))
        if switch and not isinstance(value, bool):
            raise ValueError(f"{command}.{key}={value!r} must be true or false")
        if switch is False and isinstance(value, bool):
            raise ValueError(f"{command}.{key} takes a value, not true or false")
    given = vars(parser.parse_args(words))
    for method in methods:
        method(**{name: given[name] for name in method.param_names()})
    Settings(**{name: given[name] for name in inspect.signature(Settings).parameters if name in given})


#: Makes the parser of each command that has flags, out of the words that follow it.
FLAGS: dict[str, Callable[[Any, Sequence[str]], None]] = {
    "demo": _demo,
    "train": _train,
    "pretrain": _pretrain,
    "find": _find,
    "clean": _clean,
    "theory": _theory,
    "inject": _inject,
    "bench": _bench,
    "data": _data,
    "report": _report,
}
