"""What the command line was asked for, as objects: settings, method, network, data, launcher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from labelproof.data.files import CSV, NPZ, PARQUET, has_ending
from labelproof.engine.settings import Settings
from labelproof.flags import DEFAULT_METHODS, check_typed
from labelproof.methods import get_method


def settings_of(args: dict[str, Any]) -> Settings:
    """How to train."""
    return Settings(**{name: args[name] for name in Settings.__dataclass_fields__ if name in args})


def method_of(args: dict[str, Any], data: Any) -> Any:
    """The method, with its options."""
    task = "regression" if data.classes is None else "classification"
    kind = get_method(args["method"] or DEFAULT_METHODS[task])
    check_typed(args["words"], kind, task)
    return kind(**{name: args[name] for name in kind.param_names() if name in args})


def pretraining_of(args: dict[str, Any]) -> Any:
    """How features are learned without labels."""
    from labelproof.procedures.contrast import Contrast

    return Contrast(**{name: args[name] for name in Contrast.param_names()})


def network_of(args: dict[str, Any], data: Any, method: Any) -> Any:
    """The name of the network, `auto` chosen by data and method; or the encoder it starts from."""
    if args["encoder"] is not None:
        from labelproof.networks.encoders import load_encoder

        asked = None if args["network"] == "auto" else args["network"]
        return load_encoder(args["encoder"], freeze=args["freeze"], normalise=args["normalise"], network=asked)
    for name in ("freeze", "normalise"):
        if args[name]:
            raise ValueError(f"--{name} is about an encoder: give --encoder FILE as well")
    if args["network"] != "auto":
        return str(args["network"])
    from labelproof.engine.inputs import input_shape

    if len(input_shape(data)) != 3:
        # a table without named columns is one column of vectors: an mlp would memorise embeddings
        vectors = has_ending(Path(args["data"]), CSV + PARQUET) and not data.columns
        return "linear" if vectors else "mlp"
    return "cnn-gn" if "batchnorm" in method.forbids else "cnn"


def check_target(
    out: Path, source: Path, endings: tuple[str, ...] = (".csv", ".parquet", ".json"), flag: str = "--out"
) -> None:
    """Refuse, before any training, an output file that could not be written, or would overwrite the data."""
    if not has_ending(out, endings):
        raise ValueError(
            f"{flag}={out} must end in {' or '.join(filter(None, [', '.join(endings[:-1]), endings[-1]]))}"
        )
    if out.is_dir() or not out.resolve().parent.is_dir():
        raise ValueError(f"{flag}={out} must be a file in a folder that exists")
    if out.exists() and source.exists() and out.samefile(source):
        raise ValueError(f"{flag}={out} is the data itself, which is never changed: choose another file")


def encoder_file(out: str, source: Path) -> Path:
    """Where an encoder goes."""
    path = Path(out) if Path(out).suffix else Path(f"{out}.safetensors")
    check_target(path, source, (".safetensors",))
    return path


def page_of(out: str) -> Path:
    """Where a page of tables goes."""
    check_target(Path(out), Path(), (".md", ".html"))
    return Path(out)


def check_copy(out: Path, source: Path) -> None:
    """The same for a copy of the data."""
    check_target(out, source, CSV + PARQUET + NPZ)
    if has_ending(source, NPZ) != has_ending(out, NPZ):
        raise ValueError(f"--out={out}: a copy of an .npz is one, a copy of anything else is a table")


def reading(args: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `readers.read`."""
    names = ("label", "task", "id_column", "image_column", "embedding_column", "image_size", "truth", "data_dir")
    options = {name: args[name] for name in names}
    if options["task"] == "auto" and args.get("method") and get_method(args["method"]).tasks == {"regression"}:
        options["task"] = "regression"
    return {**options, "drop": [name.strip() for name in (args["drop"] or "").split(",") if name.strip()]}


def streams_of(args: dict[str, Any], data: Any, method: Any) -> dict[str, Any]:
    """Further data the method asks for, coded as the training data is."""
    from labelproof.data.readers import read

    if ("regression" if data.classes is None else "classification") not in method.tasks:
        return {}  # which is what will be said
    if args.get("verified") is not None:
        if args["clean"] is not None:
            raise ValueError(f"--verified={args['verified']} is in place of --clean: give one of them")
        return {"clean": verified(data, args["verified"], args["seed"])}
    wanted = [name for name in (*method.streams, *method.optional) if name != "train" and args.get(name) is not None]
    return {name: read(args[name], **reading(args), like=data) for name in wanted}


def verified(data: Any, count: int, seed: int) -> Any:
    """So many samples of a data set with their true labels, of each class alike.

    Raises:
        ValueError: the truth is not known, or there are too few samples of a class.
    """
    import numpy as np

    if data.truth is None or data.classes is None:
        raise ValueError(f"--verified={count}: the true labels of {data.name} are not known; give --clean DATA")
    share, rng = count // data.num_classes, np.random.default_rng(seed)
    there = np.bincount(data.truth, minlength=data.num_classes)
    if not 1 <= share <= there.min():
        raise ValueError(
            f"--verified={count} must be {data.num_classes} (one of each class) to {data.num_classes * there.min()}"
        )
    mixed = rng.permutation(len(data))
    of_class = [mixed[data.truth[mixed] == label][:share] for label in range(data.num_classes)]
    rows = np.sort(np.concatenate(of_class))
    taken = data.take(rows)
    return replace(taken, y=taken.truth, name=f"{len(rows)} verified samples of {data.name}")


def load(args: dict[str, Any], *, test: bool = True) -> tuple[Any, Any]:
    """Training data, and test data if there is some."""
    import numpy as np

    from labelproof.data import catalog
    from labelproof.data.readers import read

    options = reading(args)
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
        return train, catalog.load(args["data"], split="test", data_dir=args["data_dir"], image_size=args["image_size"])
    return train, None


def inject_noise(data: Any, text: str, seed: int, **options: Any) -> tuple[Any, Any]:
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


def launcher_of(args: dict[str, Any]) -> Any:
    """Where trainings run side by side, as `--jobs`, `--launcher` and `--address` say; None: one after another here."""
    from labelproof.engine.launchers import launcher_for

    return launcher_for(args["launcher"], args["jobs"], args["address"])


def folder_of(given: str | None, *parts: str) -> Path:
    """The folder of a run: the one that was asked for, or one in `runs` named after what is run."""
    return Path(given or Path("runs", "-".join(parts).replace(":", "-").replace("/", "-")))
