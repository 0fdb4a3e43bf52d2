"""`lp.noise` as users meet it: properties, hashes, texts and refusals."""

from __future__ import annotations

import ast
import json
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import labelproof as lp
from labelproof.data import noise_models
from labelproof.data.noise_models import KINDS, PRESETS

inject = lp.noise.inject


def balanced(k: int, per_class: int = 2000) -> np.ndarray:
    """Every class equally often, in a scrambled but fixed order."""
    y = np.tile(np.arange(k), per_class)
    return np.random.default_rng(99).permutation(y)


# ---- properties ------------------------------------------------------------------------------------------------------

LABELS = {
    "int": np.arange(6),
    "gaps": np.array([-7, 3, 10, 200, 1000, 4_000_000_000]),
    "uint8": np.array([0, 1, 5, 80, 200, 255], dtype=np.uint8),
    "str": np.array(["ant", "bee", "cat", "dog", "eel", "a much longer name"]),
    "object": np.array(["ä", "b", "c c", "d", "", "ef"], dtype=object),
    "bool": np.array([False, True]),
    "float": np.array([0.0, 1.0, 2.0, 7.0]),
}


@settings(max_examples=150, deadline=None)
@given(
    flavour=st.sampled_from(sorted(LABELS)),
    kind=st.sampled_from(["symmetric", "inclusive", "pairflip", "flip", "flip2", "transition"]),
    rate=st.floats(0, 1),
    exact=st.sampled_from([None, False, True, "floor", "per-class"]),
    seed=st.integers(0, 2**63),
    n=st.integers(10, 400),
)
def test_properties(flavour: str, kind: str, rate: float, exact: bool | str | None, seed: int, n: int) -> None:
    values = LABELS[flavour]
    k = len(values)
    rng = np.random.default_rng(seed)
    y = values[np.concatenate([np.arange(k), rng.integers(k, size=n)])]
    before = y.copy()
    options: dict[str, object] = {"exact": exact}
    if kind == "transition":
        options = {"transition": rng.dirichlet(np.ones(k), size=k)}
    elif kind == "inclusive":
        options["include_true_class"] = True
    else:
        assume(kind != "flip2" or k > 2)
    name = "symmetric" if kind == "inclusive" else kind
    noisy = inject(y, name, *([] if kind == "transition" else [rate]), seed=seed, **options)

    np.testing.assert_array_equal(y, before)
    assert noisy.labels.dtype == y.dtype
    assert noisy.labels.shape == y.shape
    assert set(noisy.labels.tolist()) <= set(values.tolist())
    np.testing.assert_array_equal(noisy.changed, noisy.labels != y)
    assert noisy.rate == noisy.changed.mean()
    np.testing.assert_allclose(noisy.transition.sum(axis=1), 1)
    np.testing.assert_allclose(noisy.nominal.sum(axis=1), 1)
    assert (noisy.transition >= 0).all()
    wrong = noisy.expected_rate
    assert abs(noisy.rate - wrong) <= 6 * np.sqrt(wrong * (1 - wrong) / len(y)) + (k + 1) / len(y)
    assert lp.noise.digest(noisy.labels) == noisy.hash
    again = inject(list(y), name, *([] if kind == "transition" else [rate]), seed=seed, **options)
    np.testing.assert_array_equal(again.labels, noisy.labels)

    counted = np.zeros((k, k))  # the realised matrix by a loop
    for true, given_label in zip(y.tolist(), noisy.labels.tolist(), strict=True):
        counted[noisy.classes.tolist().index(true), noisy.classes.tolist().index(given_label)] += 1
    np.testing.assert_allclose(noisy.transition, counted / counted.sum(axis=1, keepdims=True))


def test_classes_that_y_lacks() -> None:
    noisy = inject(np.array([0, 2] * 3000), "symmetric", 0.6, num_classes=4)
    assert noisy.classes.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(noisy.nominal[2], [0.2, 0.2, 0.4, 0.2])
    np.testing.assert_allclose(noisy.transition[[0, 2]], noisy.nominal[[0, 2]], atol=0.05)
    np.testing.assert_array_equal(noisy.transition[[1, 3]], np.eye(4)[[1, 3]])
    named = inject(["no", "no"], "pairflip", 1.0, classes=["yes", "no", "perhaps"])
    assert named.labels.tolist() == ["perhaps", "perhaps"]  # the order given is the order of "next"
    assert inject([False] * 4, "pairflip", 1.0, num_classes=2).labels.tolist() == [True] * 4
    assert inject(np.array([10, 20], dtype=np.int16), num_classes=2).labels.dtype == np.int16
    few = inject(np.array(["a", "b"], dtype=object), "pairflip", 1.0, classes=("a", "b", "c"))
    assert few.labels.tolist() == ["b", "c"]


def test_inputs_of_any_sort_where_the_kind_does_not_read_them() -> None:
    files = ["0.png", "1.png", "2.png"]
    assert inject([0, 1, 2], "pairflip", 1.0, x=files).labels.tolist() == [1, 2, 0]
    assert inject([0.0, 1.0, 5.0], "sign-flip", 1.0, x=files).labels.tolist() == [2, 1, -3]


def test_pandas_labels_and_lists() -> None:
    expected = inject(np.array(["a", "b", "c"] * 20)).labels.tolist()
    for y in (
        pd.Series(["a", "b", "c"] * 20, index=range(60, 0, -1)),
        pd.Series(["a", "b", "c"] * 20, dtype="category"),
        ["a", "b", "c"] * 20,
        tuple(["a", "b", "c"] * 20),
    ):
        assert inject(y).labels.tolist() == expected


# ---- the same vector everywhere --------------------------------------------------------------------------------------


PINNED_LABELS = [0, 1, 2, 8, 8, 5, 5, 7, 8, 9, 5, 2, 5, 3, 4, 5, 6, 7, 8, 9]
PINNED = {
    "symmetric": "f6bc7b4a5c0de89551a161ab57dce3c919f107ab34b762bcc08c68a907e1edda",
    "elr-sym": "c9a76a591a5985ce3b83741e85eb84484380808440cf4dfe964d2ecca128c401",
    "d2l-sym": "6cf21d241c76aec66fc9ff102f6d861e2c8603628cd94bbaaff51bc537a4a9b8",
    "pairflip": "93be59a333196248303965384ec804c8af6dd442e3aba4ef2099a522fd7a9288",
    "elr-asym": "83a298e3e861baa2521eaf76cdc9b26d5abfd85b785d8f00b558243e82eefb32",
    "flip2": "9e25cad7e0ded27f763b33b3bf7660102ef7cd52899224f9535bd5c9d3173178",
}


def test_pinned_vectors() -> None:
    """Literal results: a change of NumPy, system or code that alters published noise must not go unnoticed."""
    y = np.arange(1000) % 10
    assert inject(y, "symmetric", 0.4, seed=7).labels[:20].tolist() == PINNED_LABELS
    assert {name: inject(y, name, 0.4, seed=7).hash for name in PINNED} == PINNED


def test_seeds() -> None:
    y = balanced(10, 100)
    assert inject(y, seed=1).hash == inject(y, seed=1).hash == inject(y, seed=np.int32(1)).hash
    assert inject(y, seed=1).hash != inject(y, seed=2).hash


def test_hash_is_of_values_not_of_storage() -> None:
    y = inject(balanced(10, 20)).labels
    digest = lp.noise.digest
    assert (
        digest(y) == digest(y.astype(np.int8)) == digest(y.astype(">i4")) == digest(y.astype(object)) == digest(list(y))
    )
    text = y.astype(str)
    assert digest(text) == digest(text.astype(object)) == digest(pd.Series(text)) == digest(text.astype("U99"))
    assert len({digest(y), digest(text), digest(y[::-1]), digest(y + 1), digest(y % 2 == 0), digest(y % 2)}) == 6
    assert digest(["ab", "c"]) != digest(["a", "bc"])
    assert inject(y, num_classes=30).hash == digest(inject(y, num_classes=30).labels)
    reverse = list(range(9, -1, -1))
    assert inject(y, rate=0, classes=reverse).hash == digest(y)
    targets = np.array([0.0, 1.5, -2.25])
    assert digest(targets) == digest(targets.astype(np.float32)) == digest(targets * np.array([-1, 1, 1]))
    assert digest(targets) != digest(targets[:, None])
    assert re.fullmatch("[0-9a-f]{64}", digest(targets))


# ---- what it says ----------------------------------------------------------------------------------------------------


def test_summary_and_record() -> None:
    noisy = inject(["cat", "dog"] * 50, "elr-sym", 0.4, seed=3)
    text = str(noisy)
    assert text == noisy.summary()
    assert "noise elr-sym, nominal rate 0.4, seed 3 (include_true_class=True, exact=ceil)" in text
    assert f"wrong labels: {noisy.changed.sum()} of 100, realised rate {noisy.rate:.4f} (expected 0.2000)" in text
    assert noisy.hash in text
    assert "rows: true class, columns: given label\n      cat   dog\ncat  ." in text
    assert repr(noisy).startswith("Injected(kind='elr-sym', rate=0.")
    assert "lowest 0." in str(inject(balanced(100, 50)))
    assert "wrong targets: 4 of 8" in str(inject(np.arange(8.0), "uniform", 0.5))
    record = inject([0, 1, 2], "transition", transition=np.eye(3)).record()
    assert json.loads(json.dumps(record)) == record
    assert record["options"] == {"transition": np.eye(3).tolist()}
    again = inject(["cat", "dog"] * 50, noisy.record()["kind"], noisy.record()["nominal_rate"], seed=noisy.seed)
    assert again.hash == noisy.hash
    assert inject([1, 2, 3], "asymmetric", 1.0, map={1: 2}).record()["options"] == {"map": {"1": 2}, "exact": False}


def test_kinds_lists_kinds_and_presets() -> None:
    names = lp.noise.kinds()
    assert list(names) == [*KINDS, *PRESETS]
    assert names["elr-sym"] == (
        "symmetric include_true_class=True exact=ceil; wrong: ε(C−1)/C (ELR, Liu et al., NeurIPS 2020)"
    )
    assert all(line and "\n" not in line for line in names.values())


def test_parse() -> None:
    assert lp.noise.parse("symmetric:0.4") == ("symmetric", 0.4)
    assert lp.noise.parse(" elr-sym:1 ").rate == 1
    assert str(lp.noise.parse("pairflip:0.45")) == "pairflip:0.45"
    for text, message in {
        "symetric:0.4": "unknown noise kind 'symetric', did you mean 'symmetric'?; kinds and presets: symmetric, ",
        "pair_flip:0.4": "unknown noise kind 'pair_flip', did you mean 'pairflip'?",
        "symmetric": "noise must be KIND:RATE, like symmetric:0.4, got 'symmetric': the rate is missing",
        "symmetrc": "unknown noise kind 'symmetrc', did you mean 'symmetric'?",
        "symmetric:": "rate must be a number from 0 to 1, got ''",
        "symmetric:40%": "rate must be a number from 0 to 1, got '40%'",
        "symmetric:40": "rate must be from 0 to 1 (a fraction, not per cent), got '40'",
        "symmetric:nan": "rate must be from 0 to 1 (a fraction, not per cent), got 'nan'",
        ":0.4": "unknown noise kind ''",
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            lp.noise.parse(text)


# ---- what it refuses -------------------------------------------------------------------------------------------------

ABC = ["a", "b", "c"]
X = np.arange(6.0).reshape(3, 2)
FLOATS = np.array([1.5, 2.5, 4.0])
REFUSED = [
    (ABC, "symmetric", {"rate": 1.2}, "rate must be from 0 to 1 (a fraction, not per cent), got 1.2"),
    (ABC, "symmetric", {"rate": -0.1}, "rate must be from 0 to 1"),
    (ABC, "symmetric", {"rate": float("nan")}, "rate must be from 0 to 1"),
    (ABC, "symmetric", {"rate": None}, "rate must be a number from 0 to 1, got None"),
    (ABC, "Symetric", {}, "unknown noise kind 'Symetric', did you mean 'symmetric'?"),
    (ABC, "elr_sym", {}, "did you mean 'elr-sym'?"),
    (ABC, "zzz", {}, "unknown noise kind 'zzz'; kinds and presets: symmetric, pairflip"),
    (ABC, 3, {}, "unknown noise kind 3"),
    (ABC, "symmetric", {"seed": None}, "seed must be an integer >= 0, got None"),
    (ABC, "symmetric", {"seed": -1}, "seed must be an integer >= 0, got -1"),
    (
        ABC,
        "symmetric",
        {"exact": "round"},
        "exact must be None, True, False, 'ceil', 'floor' or 'per-class', got 'round'",
    ),
    ([], "symmetric", {}, "y is empty (shape (0,))"),
    (3, "symmetric", {}, "y must be a vector of labels, got the single value 3"),
    (np.array(["2020"], dtype="M8[Y]"), "symmetric", {}, "y has dtype datetime64[Y]: labels are integers, strings"),
    (np.eye(3, dtype=int), "symmetric", {}, "y must be a vector (N,) of class labels, got shape (3, 3): ravel"),
    (["a", "a"], "symmetric", {}, "y holds one class only ('a'): noise needs two or more"),
    ([0, 0], "symmetric", {"num_classes": 1}, "y holds one class only (0)"),
    ([0, 1, np.nan], "symmetric", {}, "y has 1 missing or infinite labels (rows 2): drop or fill"),
    (["a", None, "b", None], "symmetric", {}, "y has 2 missing or infinite labels (rows 1, 3)"),
    (["a", float("nan"), "b"], "symmetric", {}, "y has 1 missing or infinite labels (rows 1)"),
    (pd.Series(["a", None, "b"]), "symmetric", {}, "y has 1 missing or infinite labels (rows 1)"),
    (pd.array([1, None, 2]), "symmetric", {}, "y has 1 missing or infinite labels (rows 1)"),
    ([1, "a", 2], "symmetric", {}, "y must hold labels of one simple type, got int, str"),
    (
        FLOATS,
        "symmetric",
        {},
        "y holds fractions, so it looks like regression targets: choose a regression kind (uniform",
    ),
    (ABC, "pairflip", {"ofset": 2}, "noise kind 'pairflip' has no option 'ofset'; it takes no options of its own"),
    (ABC, "pairflip", {"sed": 2}, "has no option 'sed', did you mean 'seed'?"),
    (
        ABC,
        "pairflip",
        {"include_true_class": True},
        "noise kind 'pairflip' has no option 'include_true_class'; it takes no",
    ),
    (ABC, "asymmetric", {"maps": {}}, "no option 'maps', did you mean 'map'?; its options are map"),
    (
        ABC,
        "coteaching-sym",
        {"include_true_class": True},
        "preset 'coteaching-sym' fixes include_true_class=False, got",
    ),
    (
        ABC,
        "elr-sym",
        {"exact": "floor"},
        "preset 'elr-sym' fixes exact='ceil', got exact='floor': use kind 'symmetric'",
    ),
    (range(10), "elr-asym", {"map": {1: 2}}, "preset 'elr-asym' fixes map='cifar10', got map={1: 2}"),
    (ABC, "asymmetric", {}, "map 'cifar10' is for data of 10 classes in the data set's own order, but y has 3 classes"),
    (
        ABC,
        "elr-asym",
        {},
        "give your own in your label values, e.g. map={'a': 'b'}; or pass num_classes=10 if y only lacks",
    ),
    (ABC, "c100-superclass", {}, "map 'c100-superclass' is for data of 100 classes"),
    (
        ABC,
        "asymmetric",
        {"map": "cifar"},
        "map must be one of cifar10, c100-superclass, c100-block, sop-c100-swap or your",
    ),
    (ABC, "asymmetric", {"map": {"a": "z"}}, "map names 'z', which is not a label of y ('a', 'b', 'c')"),
    (ABC, "asymmetric", {"map": {"a": ["b"]}}, "map names ['b'], which is not a label of y"),
    (ABC, "asymmetric", {"map": {}}, "map must name at least one {from: to} pair"),
    (["a", "b"], "flip2", {}, "kind 'flip2' needs two other classes for each class, but y has 2 classes: use 'flip'"),
    (ABC, "transition", {}, "kind 'transition' needs transition=, a (K, K) matrix"),
    (ABC, "transition", {"transition": np.eye(2)}, "transition has shape (2, 2), but y has 3 classes ('a', 'b', 'c')"),
    (ABC, "transition", {"transition": np.ones((3, 3))}, "row 0 (true class 'a') sums to 3; rows are the true class"),
    (ABC, "transition", {"transition": np.eye(3) * 2 - 1 / 3}, "finite numbers, none below 0"),
    (
        ABC,
        "transition",
        {"transition": np.eye(3), "rate": 0.2},
        "rate 0.2 does not go with transition=: the matrix sets it",
    ),
    (ABC, "transition", {"transition": np.eye(3), "exact": True}, "exact='ceil' does not go with kind 'transition'"),
    (ABC, "instance-dependent", {}, "kind 'instance-dependent' needs the inputs: pass x=, one row per label"),
    (ABC, "pdn-instance", {"x": X[:2]}, "x has 2 rows but y has 3 labels: one row of x per label is needed"),
    (ABC, "symmetric", {"x": X[:2]}, "x has 2 rows but y has 3 labels"),
    (ABC, "symmetric", {"x": 3}, "x has 0 rows but y has 3 labels"),
    (ABC, "pdn-instance", {"x": [["u"], ["v"], ["w"]]}, "x must hold numbers, got dtype <U1"),
    (ABC, "pdn-instance", {"x": X * np.nan}, "x must be finite, but holds NaN"),
    (ABC, "pdn-instance", {"x": [[1.0], [np.inf], [2.0]]}, "x must be finite, but holds NaN or infinite"),
    (ABC, "pdn-instance", {"x": np.ones((3, 2))}, "x has no feature that varies"),
    (ABC, "pdn-instance", {"x": X, "rate_sd": 3}, "rate_sd must be between 0 and 0.5, got 3"),
    ([0, 5], "symmetric", {"num_classes": 4}, "num_classes=4 does not fit the 2 labels of y (0, 5)"),
    (ABC, "symmetric", {"num_classes": 5}, "num_classes=5 does not fit the 3 labels of y ('a', 'b', 'c')"),
    (ABC, "symmetric", {"num_classes": 3.0}, "num_classes must be an integer, got 3.0"),
    (ABC, "symmetric", {"classes": ["a", "b"]}, "y holds label 'c', which is not among the classes given ('a', 'b')"),
    ([1, 2], "symmetric", {"classes": ["1", "2"]}, "y holds label 1, which is not among the classes given ('1', '2')"),
    (ABC, "symmetric", {"classes": ["a", "b", "c", "a"]}, "classes must name each label once"),
    (ABC, "symmetric", {"classes": ABC, "num_classes": 4}, "num_classes=4, but classes names 3: give one of the two"),
    ([0, 1, 2], "uniform", {}, "kind 'uniform' is for regression and needs float targets, but y has dtype int"),
    (ABC, "sign-flip", {}, "needs float targets, but y has dtype <U1: convert it with y.astype(float)"),
    (
        FLOATS,
        "uniform",
        {"num_classes": 3},
        "kind 'uniform' is for regression: num_classes and classes do not go with it",
    ),
    (FLOATS, "uniform", {"exact": "per-class"}, "exact='per-class' does not go with kind 'uniform'"),
    (np.zeros((2, 2, 2)), "uniform", {}, "y must be (N,) or (N, D) targets, got shape (2, 2, 2)"),
    ([1.0, np.nan, np.inf], "uniform", {}, "y has 2 missing or infinite targets (rows 1, 2)"),
    ([1.0, 1.0], "uniform", {}, "y holds one value only ([1.0])"),
    (FLOATS, "sign-flip", {"center": [1, 2]}, "center must be one finite number, or one per target (1), got [1, 2]"),
    (FLOATS, "linear-adversarial", {}, "kind 'linear-adversarial' needs the inputs: pass x=, one row per target"),
    (FLOATS, "coordinate-swap", {}, "kind 'coordinate-swap' needs two or more targets per row"),
    (X, "coordinate-swap", {"pairs": [(0, 2)]}, "pairs must be pairs of column numbers from 0 to 1, none used twice"),
    (X, "coordinate-swap", {"pairs": [(0, 0)]}, "none used twice, like [(0, 1)], got [(0, 0)]"),
    (
        X,
        "mixture",
        {"kinds": ["uniform", "huber"]},
        "kinds must be a list of some of uniform, sign-flip, linear-adversarial",
    ),
    (X, "mixture", {"kinds": []}, "kinds must be a list of some of"),
    (FLOATS, "mixture", {"kinds": ["linear-adversarial"]}, "kind 'linear-adversarial' needs the inputs"),
]


@pytest.mark.parametrize(("y", "kind", "options", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refusals(y: object, kind: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        inject(y, kind, **options)


def test_digest_refuses_what_is_no_label_vector() -> None:
    with pytest.raises(ValueError, match=r"labels must be a vector \(N,\), or float targets"):
        lp.noise.digest(np.zeros((2, 2), dtype=int))


def test_a_million_labels_in_half_a_second() -> None:
    y = balanced(10, 100_000)
    start = time.perf_counter()
    noisy = inject(y)
    assert time.perf_counter() - start < 1.0  # measured 0.07 s; the slack is for a busy machine
    assert noisy.rate == pytest.approx(0.4, abs=0.005)


def test_numpy_only() -> None:
    folder = Path(noise_models.__file__).parent
    for name in ("noise.py", "noise_models.py", "noise_labels.py"):
        for node in ast.walk(ast.parse((folder / name).read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {module.split(".")[0] for module in modules} & {"torch", "pandas", "scipy", "sklearn"}, name


def test_the_documentation_names_every_kind_and_preset() -> None:
    text = (Path(__file__).parents[2] / "docs" / "noise.md").read_text(encoding="utf-8")
    assert [name for name in lp.noise.kinds() if f"`{name}`" not in text] == []
