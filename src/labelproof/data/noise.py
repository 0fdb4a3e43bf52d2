"""Wrong labels on purpose: seeded noise whose true rate, matrix and hash are always reported.

"40 % symmetric" is 40 % wrong labels in one paper and 36 % in the next, and "asymmetric" has five meanings. So a kind
here is a definition, a preset (`"elr-sym"`, `"incv-asym"`, ...) is what one paper does, and every result says what it
came to. `docs/noise.md` has the table.

>>> import labelproof as lp
>>> noisy = lp.noise.inject(["cat", "dog", "cow"] * 400, "symmetric", 0.4)
>>> noisy.labels[:4].tolist(), round(noisy.rate, 3)
(['cat', 'cat', 'cat', 'dog'], 0.384)

Reproducible: class noise takes uniform numbers, integers and permutations from `np.random.default_rng(seed)` and comes
out the same on every system. Kinds that multiply matrices (instance-dependent, linear-adversarial, adversaries with
a model of their own) can differ in the last bit of a float between builds of NumPy. What a kind draws about *classes*
(flip, flip2, sop-c100-swap) it draws first, so that a training and a validation set of the same seed and classes get
the same class map.
"""

from __future__ import annotations

import difflib
import inspect
import operator
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from labelproof.data.noise_labels import (
    Codes,
    Floats,
    as_labels,
    coded,
    digest,
    digest_codes,
    digest_floats,
    refuse_missing,
)
from labelproof.data.noise_models import (
    KINDS,
    PRESETS,
    Kind,
    count,
    instance_dependent,
    jumped,
    touched,
    truncated_mean,
)

__all__ = ["Injected", "NoiseSpec", "digest", "inject", "kinds", "parse"]

_DEFAULT_RATE = 0.4
_EXACT = (False, True, "ceil", "floor", "per-class")
_PRINTED_CLASSES = 12


@dataclass(frozen=True, eq=False, repr=False)
class Injected:
    """Noisy labels and what became of the clean ones. `print()` it for a summary.

    Attributes:
        labels: like `y` in shape, dtype and values, with the wrong labels in; a new array.
        changed: `(N,)` bool, the rows where `labels != y`: never samples that were drawn but kept their label.
        rate: realised fraction of wrong labels.
        transition: `(K, K)` float64, realised fraction of each true class (row) given each label (column); a class
            with no sample has the row of the identity. `None` in regression.
        nominal: `(K, K)` float64, the expected matrix; `None` where the noise depends on x or on a model, and in
            regression.
        classes: `(K,)` the label values of rows and columns; `None` in regression.
        hash: SHA-256 of the noisy labels, see `digest`.
        kind: the kind or preset asked for.
        seed: the seed asked for.
        options: everything else that was in force, defaults, what a preset fixes and what an adversary chose included;
            of `pred_probs` the hash.
        nominal_rate: ε as asked for (for kind "transition": what the matrix implies).
        expected_rate: the fraction of wrong labels to expect of this kind, ε and balance of classes.
    """

    labels: NDArray[Any]
    changed: NDArray[np.bool_]
    rate: float
    transition: Floats | None
    nominal: Floats | None
    classes: NDArray[Any] | None
    hash: str
    kind: str
    seed: int
    options: Mapping[str, Any]
    nominal_rate: float
    expected_rate: float

    def summary(self) -> str:
        """Nominal and realised rate, options, hash and (up to 12 classes) the realised matrix, as text."""
        options = ", ".join(
            f"{key}={'a matrix' if key == 'transition' else value}" for key, value in self.options.items()
        )
        what = "targets" if self.classes is None else "labels"
        lines = [
            f"noise {self.kind}, nominal rate {self.nominal_rate:.4g}, seed {self.seed}"
            + f" ({options})" * bool(options),
            f"wrong {what}: {int(self.changed.sum()):,} of {len(self.changed):,}, "
            f"realised rate {self.rate:.4f} (expected {self.expected_rate:.4f})",
            f"sha256 {self.hash}",
        ]
        if self.transition is not None and self.classes is not None:
            lines += _matrix_lines(self.transition, self.classes)
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """What it takes to state this noise, or to make it again: plain values, ready for JSON.

        Example:
            >>> inject([0, 1, 2] * 10, "pairflip", 0.5, exact=True).record()["options"]
            {'exact': 'ceil'}
        """
        names = ("kind", "nominal_rate", "expected_rate", "rate", "seed", "options", "hash")
        return {name: _plain(getattr(self, name)) for name in names}

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return f"Injected(kind={self.kind!r}, rate={self.rate:.4f}, n={len(self.changed)}, hash={self.hash[:12]!r})"


class NoiseSpec(NamedTuple):
    """A kind (or preset) and its rate, as the command line gives them."""

    kind: str
    rate: float

    def __str__(self) -> str:
        return f"{self.kind}:{self.rate:g}"


class _Plan(NamedTuple):
    """What a call asks for, presets resolved and options checked."""

    name: str
    kind: Kind
    rate: float
    exact: str | bool
    options: dict[str, Any]


def inject(
    y: ArrayLike,
    kind: str = "symmetric",
    rate: float = _DEFAULT_RATE,
    *,
    include_true_class: bool = False,
    exact: bool | str | None = None,
    seed: int = 0,
    x: ArrayLike | None = None,
    num_classes: int | None = None,
    classes: Sequence[Any] | None = None,
    **kind_options: Any,
) -> Injected:
    """Put noise of a stated kind and rate into clean labels. `y` is never modified.

    Args:
        y: `(N,)` class labels (integers, consecutive or not, strings, booleans), or for the regression kinds
            `(N,)` or `(N, D)` float targets.
        kind: a kind or preset of `kinds()`.
        rate: ε in [0, 1], in the meaning of the kind; `Injected.rate` is the fraction really wrong. Leave it out for
            kind "transition": its matrix sets the rate.
        include_true_class: kind "symmetric" only. True: a touched sample draws from all K classes, so that
            ε(K−1)/K of the labels end up wrong.
        exact: False, each sample is touched with probability ε; True or "ceil", exactly ⌈εN⌉ samples are;
            "floor", ⌊εN⌋; "per-class", ⌊εn⌋ of the n samples of each class. Default: what the preset's paper does,
            else False for class kinds and "floor" for regression and adversaries (PRL's touches at most ε).
        seed: integer >= 0; the only source of randomness.
        x: `(N, ...)` features or images, for the kinds that depend on them: flattened, then standardised.
        num_classes: K, where integer labels are 0..K-1 and `y` may lack some.
        classes: `(K,)` all label values, where `y` may lack some; their order is the order of rows and columns
            (default: sorted, in which CIFAR's class names are in the order of their ids).
        **kind_options: `map=` (asymmetric), `transition=` (transition), `rate_sd=` (instance-dependent),
            `pred_probs=` (adversarial-loss, adversarial-targeted), `source=`, `target=` (adversarial-targeted),
            `center=` (sign-flip), `pairs=` (coordinate-swap), `kinds=` (mixture).

    Returns:
        The noisy labels with realised and nominal rate, matrix and hash.

    Raises:
        ValueError: an argument has a wrong value or does not fit the data or the kind; the text says what would.

    Example:
        >>> print(inject(["no", "yes"] * 50, "symmetric", 0.4, include_true_class=True, exact="per-class"))
        noise symmetric, nominal rate 0.4, seed 0 (include_true_class=True, exact=per-class)
        wrong labels: ... of 100, realised rate ... (expected 0.2000)
        sha256 ...
        rows: true class, columns: given label
               no   yes
         no  ...
        yes  ...
    """
    plan = _plan(kind, rate, include_true_class, exact, kind_options)
    seed = _checked_seed(seed)
    values = as_labels(y)
    used = plan.kind.uses_x and plan.options.get("pred_probs") is None
    inputs = None if x is None else _checked_x(x, len(values), used=used)
    if plan.kind.family == "target":
        if num_classes is not None or classes is not None:
            raise ValueError(f"kind {kind!r} is for regression: num_classes and classes do not go with it")
        return _inject_targets(values, inputs, plan, seed)
    table, codes = coded(values, num_classes, classes)
    return _inject_classes(table, codes, inputs, plan, seed)


def kinds() -> dict[str, str]:
    """Every name that `inject` and `--noise` take, with one line on it: the kinds first, then the papers' presets.

    Example:
        >>> kinds()["incv-asym"]
        'pairflip; wrong: ε (INCV, Chen et al., ICML 2019)'
    """
    lines = {name: kind.about for name, kind in KINDS.items()}
    for name, preset in PRESETS.items():
        fixed = [f"{key}={value}" for key, value in preset.options.items()]
        fixed += [f"exact={preset.exact}"] if preset.exact else []
        lines[name] = f"{' '.join([preset.kind, *fixed])}; wrong: {preset.wrong} ({preset.source})"
    return lines


def of_targets(kind: str) -> bool:
    """Whether a kind (or preset) is for the targets of a regression; the others are for classes.

    Raises:
        ValueError: unknown kind.

    Example:
        >>> of_targets("sign-flip"), of_targets("elr-sym")
        (True, False)
    """
    _check_known(kind)
    return KINDS[PRESETS[kind].kind if kind in PRESETS else kind].family == "target"


def parse(text: str) -> NoiseSpec:
    """Read `KIND:RATE`, as in `--noise symmetric:0.4`.

    Raises:
        ValueError: not of that form, an unknown kind, or a rate outside [0, 1].

    Example:
        >>> parse("pairflip:0.45")
        NoiseSpec(kind='pairflip', rate=0.45)
    """
    kind, colon, number = text.strip().rpartition(":")
    if not colon:
        _check_known(text.strip())
        raise ValueError(f"noise must be KIND:RATE, like symmetric:0.4, got {text!r}: the rate is missing")
    _check_known(kind)
    return NoiseSpec(kind, _checked_rate(number))


def _inject_classes(table: NDArray[Any], codes: Codes, x: NDArray[Any] | None, plan: _Plan, seed: int) -> Injected:
    rng = np.random.default_rng(seed)
    n, k, rate = len(codes), len(table), plan.rate
    counts = np.bincount(codes, minlength=k)
    nominal: Floats | None = None
    options = _options_in_force(plan)
    if plan.kind.family == "instance":
        if x is None:
            raise ValueError(f"kind {plan.name!r} needs the inputs: pass x=, one row per label")
        new = instance_dependent(codes, k, x, rate, rng, **plan.options)
        expected = truncated_mean(rate, plan.options["rate_sd"])
    elif plan.kind.family == "adversary":
        budget = count(n, rate, "floor")
        new, chosen = plan.kind.apply(table, codes, x, budget, rng, **plan.options)
        expected, options = budget / n, {**options, **chosen}
    else:
        jump = plan.kind.apply(table, rng, **plan.options)
        whole = plan.kind.family == "matrix"  # the user's T: every sample draws from it
        nominal = jump if whole else (1 - rate) * np.eye(k) + rate * jump
        expected = float(counts @ (1 - np.diag(nominal)) / n)
        if whole:
            if rate != _DEFAULT_RATE and abs(rate - expected) > 1e-6:
                raise ValueError(f"rate {rate:g} does not go with transition=: the matrix sets it, {expected:.4g} here")
            rate = expected
        rows = np.arange(n) if whole else touched(n, codes, rate, plan.exact, rng)
        new = jumped(codes, rows, jump, rng)
    changed = new != codes
    cells = np.bincount(codes * k + new, minlength=k * k).reshape(k, k).astype(np.float64)
    cells[counts == 0, counts == 0] = 1
    return Injected(
        labels=table[new],
        changed=changed,
        rate=float(changed.mean()),
        transition=cells / cells.sum(axis=1, keepdims=True),
        nominal=nominal,
        classes=table,
        hash=digest_codes(table, new),
        kind=plan.name,
        seed=seed,
        options=options,
        nominal_rate=rate,
        expected_rate=expected,
    )


def _inject_targets(values: NDArray[Any], x: NDArray[Any] | None, plan: _Plan, seed: int) -> Injected:
    if values.dtype.kind != "f":
        raise ValueError(
            f"kind {plan.name!r} is for regression and needs float targets, but y has dtype {values.dtype}: "
            "convert it with y.astype(float), or choose a kind for classes such as 'symmetric'"
        )
    if values.ndim > 2:
        raise ValueError(f"y must be (N,) or (N, D) targets, got shape {values.shape}")
    refuse_missing(values, "target")
    y = values.reshape(len(values), -1).astype(np.float64)
    if (y == y[0]).all():
        raise ValueError(f"y holds one value only ({y[0].tolist()}): noise of kind {plan.name!r} would change nothing")
    rng = np.random.default_rng(seed)
    rows = touched(len(y), None, plan.rate, plan.exact, rng)
    y[rows] = plan.kind.apply(y, rows, x, rng, **plan.options)
    labels = y.reshape(values.shape).astype(values.dtype)
    changed = (labels != values).reshape(len(y), -1).any(axis=1)
    return Injected(
        labels=labels,
        changed=changed,
        rate=float(changed.mean()),
        transition=None,
        nominal=None,
        classes=None,
        hash=digest_floats(labels),
        kind=plan.name,
        seed=seed,
        options=_options_in_force(plan),
        nominal_rate=plan.rate,
        expected_rate=plan.rate,
    )


def _plan(name: str, rate: float, include_true_class: bool, exact: bool | str | None, options: dict[str, Any]) -> _Plan:
    """Resolve the preset, and refuse options and counts that do not go with the kind."""
    _check_known(name)
    preset = PRESETS.get(name)
    kind = KINDS[preset.kind if preset else name]
    if include_true_class:
        options = {"include_true_class": True, **options}
    defaults = _checked_options(name, kind, options)
    if exact is not None and exact not in _EXACT:
        raise ValueError(f"exact must be None, True, False, 'ceil', 'floor' or 'per-class', got {exact!r}")
    exact = "ceil" if exact is True else exact
    if exact and kind.family in ("matrix", "instance"):
        raise ValueError(f"exact={exact!r} does not go with kind {name!r}: each sample draws with its own probability")
    if kind.family == "adversary" and exact not in (None, "floor"):
        raise ValueError(f"exact={exact!r} does not go with kind {name!r}: it never relabels more than ⌊εN⌋ samples")
    if exact == "per-class" and kind.family == "target":
        raise ValueError(f"exact='per-class' does not go with kind {name!r}: regression targets have no classes")
    if preset:
        fixed = {**preset.options, "exact": preset.exact}
        for option, value in {**options, **({} if exact is None else {"exact": exact})}.items():
            if option in fixed and value != fixed[option]:
                raise ValueError(
                    f"preset {name!r} fixes {option}={fixed[option]!r}, got {option}={value!r}: "
                    f"use kind {preset.kind!r} to choose it"
                )
        options, exact = {**options, **preset.options}, preset.exact
    options = {**defaults, **options}
    if exact is None:
        exact = "floor" if kind.family in ("target", "adversary") else False
    return _Plan(name, kind, _checked_rate(rate), exact, options)


def _options_in_force(plan: _Plan) -> dict[str, Any]:
    options = {
        k: f"sha256 {digest_floats(np.asarray(v))[:16]}" if k == "pred_probs" else v for k, v in plan.options.items()
    }
    how_many = {"exact": plan.exact} if plan.kind.family in ("jump", "target", "adversary") else {}
    return {**options, **how_many}


def _checked_options(name: str, kind: Kind, options: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse options that the kind lacks; return the defaults of those it has."""
    parameters = inspect.signature(kind.apply).parameters.values()
    allowed = {
        parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY
    }
    for option in options:
        if option not in allowed:
            guess = _did_you_mean(option, [*allowed, *list(inspect.signature(inject).parameters)[:-1]])
            takes = f"its options are {', '.join(allowed)}" if allowed else "it takes no options of its own"
            raise ValueError(f"noise kind {name!r} has no option {option!r}{guess}; {takes}")
    return {option: default for option, default in allowed.items() if default is not None}


def _check_known(name: str) -> None:
    names = [*KINDS, *PRESETS]
    if name not in names:
        guess = _did_you_mean(name, names)
        raise ValueError(f"unknown noise kind {name!r}{guess}; kinds and presets: {', '.join(names)}")


def _did_you_mean(name: Any, names: Iterable[str]) -> str:
    plain = {known.replace("_", "-"): known for known in names}
    close = difflib.get_close_matches(str(name).lower().replace("_", "-"), plain, n=1, cutoff=0.5)
    return f", did you mean {plain[close[0]]!r}?" if close and plain[close[0]] != name else ""


def _checked_rate(rate: float | str) -> float:
    try:
        number = float(rate)
    except (TypeError, ValueError):
        raise ValueError(f"rate must be a number from 0 to 1, got {rate!r}") from None
    if not 0 <= number <= 1:
        raise ValueError(f"rate must be from 0 to 1 (a fraction, not per cent), got {rate!r}")
    return number


def _checked_seed(seed: int) -> int:
    try:
        number = operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f"seed must be an integer >= 0, got {seed!r}")
    return number


def _checked_x(x: ArrayLike, n: int, *, used: bool) -> NDArray[Any] | None:
    length = len(x) if isinstance(x, Sized) else 0
    if length != n:
        raise ValueError(f"x has {length} rows but y has {n} labels: one row of x per label is needed")
    if not used:  # and so may be anything, a data set of image files say
        return None
    inputs = np.asarray(x)
    if inputs.dtype.kind not in "biuf" or inputs.size == 0:
        raise ValueError(f"x must hold numbers, got dtype {inputs.dtype} and shape {inputs.shape}: encode it first")
    return inputs


def _matrix_lines(matrix: Floats, classes: NDArray[Any]) -> list[str]:
    if len(classes) > _PRINTED_CLASSES:
        wrong = 1 - np.diag(matrix)
        return [
            f"wrong within a class ({len(classes)} classes): "
            f"lowest {wrong.min():.4f}, median {np.median(wrong):.4f}, highest {wrong.max():.4f}"
        ]
    names = [str(value)[:12] for value in classes.tolist()]
    first = max(len(name) for name in names)
    width = max(first, 4) + 2
    lines = ["rows: true class, columns: given label", " " * first + "".join(name.rjust(width) for name in names)]
    for name, row in zip(names, matrix.tolist(), strict=True):
        cells = [f"{cell:.3f}".removeprefix("0") if cell else "." for cell in row]
        lines.append(name.rjust(first) + "".join(cell.rjust(width) for cell in cells))
    return lines


def _plain(value: Any) -> Any:
    """Python's own numbers, strings, lists and dicts."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
