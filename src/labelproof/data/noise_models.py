"""The noise models behind `labelproof.noise`: who moves where, on class codes and on float targets.

Nearly every published label noise is one of two steps apart from identical: *which* samples are touched (each with
probability ε, or an exact count), and *where* a touched sample goes (row `y` of a jump matrix J). The matrix of the
noise is then T = (1 − ε) I + ε J; J may have mass on its diagonal ("the true class included", classes that stay).
Jumps always start from the clean labels, never from labels already moved.

NumPy only. Users call `labelproof.noise.inject`, which checks what they give; the functions here trust their input
except for the options of their own kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from labelproof.data.adversary import adversarial_loss, adversarial_targeted
from labelproof.data.noise_features import Features
from labelproof.data.noise_labels import Codes, Floats, show

CIFAR10_MAP: Mapping[int, int] = {9: 1, 2: 0, 3: 5, 5: 3, 4: 7}
"""truck → automobile, bird → airplane, cat ↔ dog, deer → horse (Patrini et al. 2017); the other five stay."""

CIFAR100_SUPERCLASSES: Mapping[str, tuple[int, ...]] = {
    "aquatic mammals": (4, 30, 55, 72, 95),
    "fish": (1, 32, 67, 73, 91),
    "flowers": (54, 62, 70, 82, 92),
    "food containers": (9, 10, 16, 28, 61),
    "fruit and vegetables": (0, 51, 53, 57, 83),
    "household electrical devices": (22, 39, 40, 86, 87),
    "household furniture": (5, 20, 25, 84, 94),
    "insects": (6, 7, 14, 18, 24),
    "large carnivores": (3, 42, 43, 88, 97),
    "large man-made outdoor things": (12, 17, 37, 68, 76),
    "large natural outdoor scenes": (23, 33, 49, 60, 71),
    "large omnivores and herbivores": (15, 19, 21, 31, 38),
    "medium-sized mammals": (34, 63, 64, 66, 75),
    "non-insect invertebrates": (26, 45, 77, 79, 99),
    "people": (2, 11, 35, 46, 98),
    "reptiles": (27, 29, 44, 78, 93),
    "small mammals": (36, 50, 65, 74, 80),
    "trees": (47, 52, 56, 59, 96),
    "vehicles 1": (8, 13, 48, 58, 90),
    "vehicles 2": (41, 69, 81, 85, 89),
}
"""Fine class ids (alphabetical, as in the data set) of each of the 20 superclasses of CIFAR-100."""

NAMED_MAPS: Mapping[str, int] = {"cifar10": 10, "c100-superclass": 100, "c100-block": 100, "sop-c100-swap": 100}


# ---- where a touched sample goes: jump matrices (K, K), rows = true class ------------------------------------------


def symmetric(classes: NDArray[Any], rng: np.random.Generator, *, include_true_class: bool = False) -> Floats:
    """Any class with equal chance: all of them, or all but the true one."""
    k = len(classes)
    if include_true_class:
        return np.full((k, k), 1 / k)
    return (1 - np.eye(k)) / (k - 1)


def pairflip(classes: NDArray[Any], rng: np.random.Generator) -> Floats:
    """Every class moves to the next one, y → y + 1 mod K."""
    return _permutation(np.roll(np.arange(len(classes)), -1))


def asymmetric(classes: NDArray[Any], rng: np.random.Generator, *, map: str | Mapping[Any, Any] = "cifar10") -> Floats:
    """One fixed target per mapped class; classes outside the map stay."""
    k = len(classes)
    if isinstance(map, Mapping):
        return _permutation(_own_map(classes, map))
    if not isinstance(map, str) or map not in NAMED_MAPS:
        raise ValueError(f"map must be one of {', '.join(NAMED_MAPS)} or your own {{from: to}}, got {map!r}")
    if NAMED_MAPS[map] != k:
        a, b = classes[:2].tolist()
        raise ValueError(
            f"map {map!r} is for data of {NAMED_MAPS[map]} classes in the data set's own order, but y has {k} classes "
            f"({show(classes)}): give your own in your label values, e.g. map={{{a!r}: {b!r}}}; "
            f"or pass num_classes={NAMED_MAPS[map]} if y only lacks some of them"
        )
    target = np.arange(k)
    if map == "cifar10":
        target[list(CIFAR10_MAP)] = list(CIFAR10_MAP.values())
    elif map == "c100-superclass":
        for members in CIFAR100_SUPERCLASSES.values():
            target[list(members)] = np.roll(members, -1)
    elif map == "c100-block":
        target = target // 5 * 5 + (target + 1) % 5
    else:
        for first in range(0, k, 5):
            a, b = first + rng.choice(5, size=2, replace=False)
            target[[a, b]] = b, a
    return _permutation(target)


def flip(classes: NDArray[Any], rng: np.random.Generator) -> Floats:
    """One other class per class, drawn once."""
    k = len(classes)
    target = rng.integers(k - 1, size=k)
    return _permutation(target + (target >= np.arange(k)))


def flip2(classes: NDArray[Any], rng: np.random.Generator) -> Floats:
    """Two distinct other classes per class, drawn once, half the mass each."""
    k = len(classes)
    if k < 3:
        raise ValueError(f"kind 'flip2' needs two other classes for each class, but y has {k} classes: use 'flip'")
    jump = np.zeros((k, k))
    for true in range(k):
        two = rng.choice(k - 1, size=2, replace=False)
        jump[true, two + (two >= true)] = 0.5
    return jump


def given(classes: NDArray[Any], rng: np.random.Generator, *, transition: Any = None) -> Floats:
    """The user's own T, checked."""
    k = len(classes)
    if transition is None:
        raise ValueError(
            "kind 'transition' needs transition=, a (K, K) matrix whose row k says where true class k goes"
        )
    matrix = np.asarray(transition, dtype=np.float64)
    if matrix.shape != (k, k):
        raise ValueError(
            f"transition has shape {matrix.shape}, but y has {k} classes ({show(classes)}): "
            f"give ({k}, {k}), rows = true class in this order, or name all classes by classes="
        )
    if not np.isfinite(matrix).all() or (matrix < 0).any():
        raise ValueError("transition must hold probabilities: finite numbers, none below 0")
    sums = matrix.sum(axis=1)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > 1e-6:
        raise ValueError(
            f"transition must have rows that sum to 1, but row {worst} (true class {classes.tolist()[worst]!r}) "
            f"sums to {sums[worst]:.6g}; rows are the true class, columns the given label"
        )
    return np.asarray(matrix / sums[:, None])


def _permutation(target: Codes) -> Floats:
    jump = np.zeros((len(target), len(target)))
    jump[np.arange(len(target)), target] = 1
    return jump


def _own_map(classes: NDArray[Any], pairs: Mapping[Any, Any]) -> Codes:
    code = {value: i for i, value in enumerate(classes.tolist())}
    if not pairs:
        raise ValueError("map must name at least one {from: to} pair, got an empty one")
    target = np.arange(len(classes))
    for source, to in pairs.items():
        for value in (source, to):
            try:
                code[value]
            except (KeyError, TypeError):  # TypeError: a list of targets, say
                raise ValueError(f"map names {value!r}, which is not a label of y ({show(classes)})") from None
        target[code[source]] = code[to]
    return target


# ---- which samples are touched, and the draw -------------------------------------------------------------------------


def touched(n: int, codes: Codes | None, rate: float, exact: str | bool, rng: np.random.Generator) -> Codes:
    """Rows to corrupt, `(M,)`: iid with probability `rate`, or an exact count ("ceil", "floor", "per-class")."""
    if not exact:
        return np.flatnonzero(rng.random(n) < rate)
    order = rng.permutation(n).astype(np.int64, copy=False)
    if exact == "per-class" and codes is not None:
        order = order[np.argsort(codes[order], kind="stable")]
        sizes = np.bincount(codes)
        parts = np.split(order, np.cumsum(sizes)[:-1])
        return np.sort(np.concatenate([part[: count(len(part), rate, "floor")] for part in parts]))
    return np.sort(order[: count(n, rate, exact)])


def count(n: int, rate: float, exact: str | bool) -> int:
    """⌈rate·n⌉, or ⌊rate·n⌋ for "floor"; in floats 0.07 · 100 is 7.000000000000001, and 7 is meant."""
    return math.floor(rate * n + 1e-9) if exact == "floor" else math.ceil(rate * n - 1e-9)


def jumped(codes: Codes, rows: Codes, jump: Floats, rng: np.random.Generator) -> Codes:
    """A copy of `codes` in which each of `rows` is redrawn from the row of `jump` of its clean class."""
    cdf = np.cumsum(jump, axis=1)
    cdf /= cdf[:, -1:]  # ends at exactly 1 > u, from the last class that has mass on
    u = rng.random(len(rows))
    new = codes.copy()
    for true, part in enumerate(_by_class(codes[rows], len(jump))):
        new[rows[part]] = np.searchsorted(cdf[true], u[part], side="right")
    return new


def _by_class(codes: Codes, k: int) -> list[Codes]:
    """Positions of each class, in order."""
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.cumsum(np.bincount(codes, minlength=k))[:-1])


def instance_dependent(
    codes: Codes, k: int, x: NDArray[Any], rate: float, rng: np.random.Generator, *, rate_sd: float = 0.1
) -> Codes:
    """Xia et al. 2020: sample i moves with its own probability qᵢ, and its features say where to.

    qᵢ ~ Normal(ε, `rate_sd`) truncated to [0, 1]; W_c ~ N(0, 1) of shape (d, K) for each true class c;
    P(moves to j) = qᵢ · softmax over j ≠ c of (xᵢᵀ W_c)_j. Features are standardised first (mean 0, sd 1 over the
    data set, constant ones dropped to 0), so that uint8 pixels and the same pixels in [0, 1] get the same noise.
    """
    if not 0 <= rate_sd <= 0.5:
        raise ValueError(f"rate_sd must be between 0 and 0.5, got {rate_sd!r}")
    q = _truncated_normal(rate, rate_sd, len(codes), rng)
    rows = np.flatnonzero(rng.random(len(codes)) < q)
    u = rng.random(len(rows))
    features = Features(x)
    new = codes.copy()
    for true, part in enumerate(_by_class(codes[rows], k)):
        weight = rng.standard_normal((features.width, k))
        for block in features.blocks(part):
            score = features.standardised(rows[block]) @ weight
            score[:, true] = -np.inf
            cdf = np.cumsum(np.exp(score - score.max(axis=1, keepdims=True)), axis=1)
            new[rows[block]] = (cdf > u[block, None] * cdf[:, -1:]).argmax(axis=1)
    return new


def _truncated_normal(mean: float, sd: float, n: int, rng: np.random.Generator) -> Floats:
    if mean == 0:
        return np.zeros(n)  # a rate of 0 means untouched labels, though the truncated normal has mean 0.8 sd there
    q = rng.normal(mean, sd, n)
    while (outside := np.flatnonzero((q < 0) | (q > 1))).size:
        q[outside] = rng.normal(mean, sd, outside.size)
    return q


def truncated_mean(mean: float, sd: float) -> float:
    """Mean of Normal(mean, sd) truncated to [0, 1]: the rate that instance-dependent noise really has."""
    if sd == 0 or mean == 0:
        return mean
    a, b = -mean / sd, (1 - mean) / sd
    density = [math.exp(-z * z / 2) / math.sqrt(2 * math.pi) for z in (a, b)]
    mass = [(1 + math.erf(z / math.sqrt(2))) / 2 for z in (a, b)]
    return mean + sd * (density[0] - density[1]) / (mass[1] - mass[0])


# ---- regression: new targets (M, D) for the touched rows -------------------------------------------------------------
# Our own definitions: the PRL paper names families of corruption, its code and text do not define them.


def uniform(y: Floats, rows: Codes, x: NDArray[Any] | None, rng: np.random.Generator) -> Floats:
    """Uniform in the box that the observed targets span."""
    return rng.uniform(y.min(axis=0), y.max(axis=0), (len(rows), y.shape[1]))


def sign_flip(
    y: Floats, rows: Codes, x: NDArray[Any] | None, rng: np.random.Generator, *, center: Any = None
) -> Floats:
    """−(y − c) + c, mirrored about `center` (default the median of each target; 0 gives −y)."""
    if center is None:
        middle = np.median(y, axis=0)
    else:
        middle = np.asarray(center, dtype=np.float64)
        if middle.shape not in ((), (1,), (y.shape[1],)) or not np.isfinite(middle).all():
            raise ValueError(f"center must be one finite number, or one per target ({y.shape[1]}), got {center!r}")
    return np.asarray(middle - (y[rows] - middle))


def linear_adversarial(y: Floats, rows: Codes, x: NDArray[Any] | None, rng: np.random.Generator) -> Floats:
    """A consistent lie: one random linear map of the standardised features, at the mean and sd of the targets."""
    if x is None:
        raise ValueError("kind 'linear-adversarial' needs the inputs: pass x=, one row per target")
    features = Features(x)
    weight = rng.standard_normal((features.width, y.shape[1]))
    lie = np.concatenate([features.standardised(b) @ weight for b in features.blocks(np.arange(len(y)))])
    spread = lie.std(axis=0)
    scale = np.divide(y.std(axis=0), spread, out=np.zeros_like(spread), where=spread > 0)
    return np.asarray(y.mean(axis=0) + (lie[rows] - lie.mean(axis=0)) * scale)


def coordinate_swap(
    y: Floats,
    rows: Codes,
    x: NDArray[Any] | None,
    rng: np.random.Generator,
    *,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> Floats:
    """Targets trade places within each pair of columns (default 0↔1, 2↔3, ...; an odd last one stays)."""
    width = y.shape[1]
    if width < 2:
        raise ValueError("kind 'coordinate-swap' needs two or more targets per row, (N, D) with D >= 2, but y has one")
    chosen = np.asarray([(i, i + 1) for i in range(0, width - 1, 2)] if pairs is None else pairs)
    fits = chosen.ndim == 2 and chosen.shape[1] == 2 and chosen.dtype.kind in "iu"
    if not fits or chosen.min() < 0 or chosen.max() >= width or len(np.unique(chosen)) != chosen.size:
        raise ValueError(
            f"pairs must be pairs of column numbers from 0 to {width - 1}, none used twice, "
            f"like [(0, 1)], got {pairs!r}"
        )
    order = np.arange(width)
    order[chosen] = chosen[:, ::-1]
    return y[np.ix_(rows, order)]


def mixture(
    y: Floats,
    rows: Codes,
    x: NDArray[Any] | None,
    rng: np.random.Generator,
    *,
    kinds: Sequence[str] | None = None,
) -> Floats:
    """Each corrupted row picks one of `kinds` with equal chance (default: all that the data allow)."""
    if kinds is None:
        kinds = ["uniform", "sign-flip"]
        kinds += ["linear-adversarial"] if x is not None else []
        kinds += ["coordinate-swap"] if y.shape[1] > 1 else []
    allowed = [name for name, kind in KINDS.items() if kind.family == "target" and name != "mixture"]
    if isinstance(kinds, str) or len(kinds) == 0 or not set(kinds) <= set(allowed):
        raise ValueError(f"kinds must be a list of some of {', '.join(allowed)}, got {kinds!r}")
    pick = rng.integers(len(kinds), size=len(rows))
    new = np.empty((len(rows), y.shape[1]))
    for i, name in enumerate(kinds):
        new[pick == i] = KINDS[name].apply(y, rows[pick == i], x, rng)
    return new


# ---- the two tables --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """One noise model.

    Attributes:
        apply: the function; its keyword-only parameters are the options users may give.
        about: one line for users.
        family: "jump" (J, touched samples chosen apart), "matrix" (T itself), "instance", "adversary" (chooses rows
            and labels) or "target" (regression).
        uses_x: whether it reads the features.
    """

    apply: Callable[..., Any]
    about: str
    family: Literal["jump", "matrix", "instance", "adversary", "target"] = "jump"
    uses_x: bool = False


KINDS: Mapping[str, Kind] = {
    "symmetric": Kind(symmetric, "any other class with equal chance; with include_true_class=True any class at all"),
    "pairflip": Kind(pairflip, "the next class, y -> y + 1 mod K, for every class"),
    "asymmetric": Kind(asymmetric, "map={from: to} or a named map: " + ", ".join(NAMED_MAPS)),
    "flip": Kind(flip, "for each class one other class, drawn from the seed"),
    "flip2": Kind(flip2, "for each class two other classes, drawn from the seed, half the rate each"),
    "transition": Kind(given, "your own row-stochastic matrix, transition=; it sets the rate too", "matrix"),
    "instance-dependent": Kind(
        instance_dependent, "rate and target depend on the features x (Xia 2020)", "instance", uses_x=True
    ),
    "adversarial-loss": Kind(
        adversarial_loss, "agnostic: the rows and labels that raise a model's loss most", "adversary", uses_x=True
    ),
    "adversarial-targeted": Kind(
        adversarial_targeted,
        "agnostic: rows of class source= that a model finds most like class target=, given that label",
        "adversary",
        uses_x=True,
    ),
    "uniform": Kind(uniform, "regression: uniform in the box of the observed targets", "target"),
    "sign-flip": Kind(sign_flip, "regression: mirrored about the median, or about center=", "target"),
    "linear-adversarial": Kind(
        linear_adversarial, "regression: a random linear map of the features x", "target", uses_x=True
    ),
    "coordinate-swap": Kind(coordinate_swap, "regression: columns trade places, pairs=[(0, 1), ...]", "target"),
    "mixture": Kind(mixture, "regression: each corrupted row picks one of the kinds above", "target", uses_x=True),
}


@dataclass(frozen=True)
class Preset:
    """A noise as one paper, or its released code, makes it.

    Attributes:
        kind: name in `KINDS`.
        wrong: the fraction of labels that end up wrong on balanced classes; C = number of classes.
        source: citation.
        options: what the preset fixes.
        exact: how samples are picked: False (iid), "ceil", "floor" or "per-class".
    """

    kind: str
    wrong: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    exact: str | bool = False


_ELR = "ELR, Liu et al., NeurIPS 2020"
_SOP = "SOP, Liu et al., ICML 2022"
_DIVIDEMIX = "DivideMix, Li et al., ICLR 2020"
_GHOSH = "Ghosh & Lan, CVPRW 2021"
_MWNET = "Meta-Weight-Net, Shu et al., NeurIPS 2019"
_COTEACHING = "Co-teaching, Han et al., NeurIPS 2018"
_PRL = "PRL, Liu et al., ICML 2021"
_INCV = "INCV, Chen et al., ICML 2019"
_FCORRECTION = "F-correction, Patrini et al., CVPR 2017"
_D2L = "D2L, Ma et al., ICML 2018"
_GCE = "GCE, Zhang & Sabuncu, NeurIPS 2018"
_PDN = "PDN, Xia et al., NeurIPS 2020"

_ANY = {"include_true_class": True}
_OTHER = {"include_true_class": False}
_C10, _BLOCK, _SUPER, _SWAP = ({"map": name} for name in ("cifar10", "c100-block", "c100-superclass", "sop-c100-swap"))

PRESETS: Mapping[str, Preset] = {
    "elr-sym": Preset("symmetric", "ε(C−1)/C", _ELR, _ANY, "ceil"),
    "sop-sym": Preset("symmetric", "ε(C−1)/C", _SOP, _ANY, "ceil"),
    "dividemix-sym": Preset("symmetric", "ε(C−1)/C", _DIVIDEMIX, _ANY, "floor"),
    "ghosh-unif": Preset("symmetric", "ε(C−1)/C", _GHOSH, _ANY),
    "mwnet-unif": Preset("symmetric", "ε(C−1)/C", _MWNET, _ANY),
    "coteaching-sym": Preset("symmetric", "ε", _COTEACHING, _OTHER),
    "prl-sym": Preset("symmetric", "ε", _PRL, _OTHER),
    "incv-sym": Preset("symmetric", "ε", _INCV, _OTHER),
    "fcorrection-sym": Preset("symmetric", "ε", _FCORRECTION, _OTHER),
    "d2l-sym": Preset("symmetric", "ε", _D2L, _OTHER, "per-class"),
    "coteaching-pair": Preset("pairflip", "ε", _COTEACHING),
    "prl-pair": Preset("pairflip", "ε", _PRL),
    "incv-asym": Preset("pairflip", "ε", _INCV),
    "elr-asym": Preset("asymmetric", "ε/2", _ELR, _C10),
    "sop-asym": Preset("asymmetric", "ε/2", _SOP, _C10),
    "fcorrection-asym": Preset("asymmetric", "ε/2", _FCORRECTION, _C10),
    "ghosh-asym": Preset("asymmetric", "ε/2", _GHOSH, _C10),
    "gce-asym": Preset("asymmetric", "ε/2", _GCE, _C10),
    "dividemix-asym": Preset("asymmetric", "ε/2", _DIVIDEMIX, _C10, "floor"),
    "c100-block": Preset("asymmetric", "ε", "ELR, F-correction, UNICON: next class in ids 5i...5i+4", _BLOCK),
    "elr-c100-asym": Preset("asymmetric", "ε", _ELR, _BLOCK),
    "fcorrection-c100-asym": Preset("asymmetric", "ε", _FCORRECTION, _BLOCK),
    "c100-superclass": Preset("asymmetric", "ε", "next class in the true superclass, as Ghosh & Lan", _SUPER),
    "ghosh-c100-asym": Preset("asymmetric", "ε", _GHOSH, _SUPER),
    "sop-c100-swap": Preset("asymmetric", "2ε/5", _SOP, _SWAP),
    "ghosh-flip": Preset("flip", "ε", _GHOSH),
    "mwnet-flip": Preset("flip", "ε", _MWNET),
    "ghosh-flip2": Preset("flip2", "ε", _GHOSH),
    "mwnet-flip2": Preset("flip2", "ε", _MWNET),
    "pdn-instance": Preset("instance-dependent", "≈ε", _PDN),
    "sop-instance": Preset("instance-dependent", "≈ε", _SOP),
}
