"""The adversaries against brute force and against their definitions written as loops; budget, refusals, real files."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge

import labelproof as lp
from labelproof.data import adversary
from labelproof.data.adversary import own_model

inject = lp.noise.inject
KINDS = ("adversarial-loss", "adversarial-targeted")


def problem(seed: int, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels with every class in them, and probabilities that rather agree."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.concatenate([np.arange(k), rng.integers(k, size=n - k)]))
    return y, rng.dirichlet(np.ones(k), size=n) * 0.6 + 0.4 * np.eye(k)[y]


def summed_loss(p: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(p[np.arange(len(p)), labels]).sum())


# ---- what they maximise ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(6, 3), (7, 2), (5, 4)])
@pytest.mark.parametrize("rate", [0.2, 0.5, 1.0])
def test_no_choice_within_the_budget_has_more_loss(n: int, k: int, rate: float) -> None:
    """All label vectors that differ in at most ⌊εn⌋ places, one by one."""
    for seed in range(5):
        y, p = problem(seed, n, k)
        rng = np.random.default_rng(seed)
        y[: n // 2] = rng.integers(
            k, size=n // 2
        )  # labels of little probability too: there relabelling lowers the loss
        if len(np.unique(y)) < k:
            continue
        budget = int(rate * n + 1e-9)
        others = (np.array(labels) for labels in product(range(k), repeat=n))
        best = max(summed_loss(p, labels) for labels in others if (labels != y).sum() <= budget)
        noisy = inject(y, "adversarial-loss", rate, pred_probs=p)
        assert noisy.changed.sum() <= budget
        assert summed_loss(p, noisy.labels) == pytest.approx(best, abs=1e-9)


def test_rows_whose_loss_would_fall_keep_their_label() -> None:
    p = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.5, 0.5]])
    noisy = inject([0, 0, 1, 0], "adversarial-loss", 1.0, pred_probs=p)
    assert noisy.labels.tolist() == [
        0,
        1,
        0,
        1,
    ]  # row 0 is as wrong as it can be; row 3, where nothing changes, is used
    assert (noisy.rate, noisy.expected_rate) == (0.75, 1.0)


@pytest.mark.parametrize("budget", [1, 3, 4])
def test_targeted_rows_are_those_of_least_loss(budget: int) -> None:
    """Of all ways to relabel so many rows of the source as the target, the one with the smallest loss."""
    for seed in range(5):
        y, p = problem(seed, 12, 3)
        source = np.flatnonzero(y == 1)
        if len(source) < budget:
            continue
        noisy = inject(y, "adversarial-targeted", budget / 12, source=1, target=2, pred_probs=p)
        best = np.inf
        for mask in product([False, True], repeat=len(source)):
            if sum(mask) == budget:
                labels = y.copy()
                labels[source[list(mask)]] = 2
                best = min(best, summed_loss(p, labels))
        assert noisy.changed.sum() == budget
        assert set(noisy.labels[noisy.changed]) == {2}
        assert set(y[noisy.changed]) == {1}
        assert summed_loss(p, noisy.labels) == pytest.approx(best)


def loop(y: np.ndarray, p: np.ndarray, budget: int, source: int | None, target: int | None) -> np.ndarray:
    """The targeted adversary, pair by pair, row by row."""
    new, used, k = y.copy(), set(), p.shape[1]
    while budget > 0 and len(used) < len(set(y.tolist())):
        best, pair = -1.0, (-1, -1)
        for s in sorted(set(y.tolist()) - used):
            for t in range(k):
                if s == t or (source is not None and s != source) or (target is not None and t != target):
                    continue
                values = sorted((p[i, t] for i in range(len(y)) if y[i] == s), reverse=True)
                score = sum(values[:budget]) / len(values)
                if score > best:
                    best, pair = score, (s, t)
        s, t = pair
        rows = sorted((i for i in range(len(y)) if y[i] == s), key=lambda i: -p[i, t])[:budget]
        new[rows] = t
        budget -= len(rows)
        used.add(s)
        source = target = None
    return new


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000), n=st.integers(6, 60), k=st.integers(2, 5), rate=st.floats(0, 1),
    asked=st.sampled_from(["", "s", "t", "st"]),
)  # fmt: skip
def test_targeted_against_a_loop(seed: int, n: int, k: int, rate: float, asked: str) -> None:
    y, p = problem(seed, n, k)
    source, target = (seed % k if "s" in asked else None), ((seed + 1) % k if "t" in asked else None)
    noisy = inject(y, "adversarial-targeted", rate, source=source, target=target, pred_probs=p, seed=seed)
    budget = int(np.floor(rate * n + 1e-9))
    np.testing.assert_array_equal(noisy.labels, loop(y, p, budget, source, target))
    assert noisy.changed.sum() == budget  # never more, and all of it is used
    for name, value in (("source", source), ("target", target)):
        assert value is None or noisy.options[name] == value


def test_the_pair_is_the_class_that_the_budget_covers_and_the_model_confuses() -> None:
    y = np.repeat([0, 1, 2], [4, 4, 2])
    p = np.full((10, 3), 0.1)
    p[np.arange(10), y] = 0.8
    p[:4] = [0.55, 0.25, 0.2]  # class 0 is the most confused, with 1; but one row covers half of class 2
    told = [inject(y, "adversarial-targeted", r, pred_probs=p).options for r in (0.1, 0.4)]
    assert (told[0]["source"], told[0]["target"]) == (0, 1)  # 0.25/4 > 0.1/2
    assert (told[1]["source"], told[1]["target"]) == (0, 1)
    p[8:, 1] = 0.15
    p[8:, 0] = 0.05
    small = inject(y, "adversarial-targeted", 0.1, pred_probs=p).options
    assert (small["source"], small["target"]) == (2, 1)  # 0.15/2 > 0.25/4
    assert inject(y, "adversarial-targeted", 0.4, pred_probs=p).options["source"] == 0  # 0.15 < 0.25


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(KINDS), seed=st.integers(0, 10_000), n=st.integers(8, 200), k=st.integers(2, 6),
    rate=st.floats(0, 1), own=st.booleans(),
)  # fmt: skip
def test_budget_and_report(kind: str, seed: int, n: int, k: int, rate: float, own: bool) -> None:
    y, p = problem(seed, n, k)
    x = np.random.default_rng(seed).normal(size=(n, 3)) + np.eye(k)[y][:, :1]
    before = y.copy()
    noisy = inject(y, kind, rate, seed=seed, **({"x": x} if own else {"pred_probs": p}))
    np.testing.assert_array_equal(y, before)
    np.testing.assert_array_equal(noisy.changed, noisy.labels != y)
    assert noisy.changed.sum() <= rate * n + 1e-9
    assert noisy.rate == noisy.changed.mean()
    assert noisy.expected_rate == int(rate * n + 1e-9) / n
    assert noisy.nominal is None
    assert set(noisy.labels.tolist()) <= set(range(k))
    np.testing.assert_allclose(noisy.transition.sum(axis=1), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_only_equals_are_decided_by_the_seed(kind: str) -> None:
    y, p = problem(3, 200, 4)
    assert len({inject(y, kind, 0.3, pred_probs=p, seed=s).hash for s in range(5)}) == 1
    flat = np.full((200, 4), 0.25)
    tied = [inject(y, kind, 0.1, pred_probs=flat, seed=s) for s in (0, 0, 1)]
    assert tied[0].hash == tied[1].hash != tied[2].hash
    assert [t.changed.sum() for t in tied] == [20] * 3


def test_probabilities_of_nought() -> None:
    y = np.array([0, 1, 2, 0])
    hard = np.eye(3)[[0, 1, 2, 1]]  # the last one is wrong already
    with np.errstate(all="raise"):
        noisy = inject(y, "adversarial-loss", 1.0, pred_probs=hard)
    assert noisy.labels[3] == 2  # its label 0 and 2 have the same loss
    assert noisy.changed.all()


# ---- their own model -------------------------------------------------------------------------------------------------


def test_own_model_against_scikit_learn() -> None:
    x, y = load_digits(return_X_y=True)
    z = (x - x.mean(axis=0)) / np.where(x.std(axis=0) > 0, x.std(axis=0), np.inf)
    scores = Ridge(alpha=0.01 * len(y)).fit(z, np.eye(10)[y]).predict(z)
    losses = {}
    for tau in np.geomspace(0.01, 1, 25):
        e = np.exp((scores - scores.max(axis=1, keepdims=True)) / tau)
        p = e / e.sum(axis=1, keepdims=True)
        losses[-np.log(np.maximum(p[np.arange(len(y)), y], 1e-300)).mean()] = p
    found = own_model(x, y, 10)
    np.testing.assert_allclose(found, losses[min(losses)], atol=1e-6)
    np.testing.assert_allclose(own_model(x * 1000 + 5, y, 10), found, atol=1e-6)  # units do not matter
    np.testing.assert_allclose(own_model(x.reshape(-1, 8, 8), y, 10), found)


def test_own_model_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = load_digits(return_X_y=True)
    whole = own_model(x, y, 10)
    monkeypatch.setattr(adversary.Features, "_CELLS", 64 * 100)
    np.testing.assert_allclose(own_model(x, y, 10), whole, atol=1e-9)


def test_on_digits_the_own_model_hurts_more_than_chance() -> None:
    """A model that saw neither: the loss of the corrupted labels is largest for one kind, smallest for the other."""
    x, y = load_digits(return_X_y=True)
    p = own_model(x[::2], y[::2], 10)
    loss = {kind: summed_loss(p, inject(y[::2], kind, 0.1, x=x[::2]).labels) for kind in (*KINDS, "symmetric")}
    assert loss["adversarial-loss"] > 1.2 * loss["symmetric"]
    assert loss["adversarial-targeted"] < 0.8 * loss["symmetric"]


# ---- labels as users have them, and refusals -------------------------------------------------------------------------


def test_classes_by_name_and_the_record() -> None:
    y, p = problem(0, 60, 3)
    names = np.array(["ant", "bee", "cow"], dtype=object)
    noisy = inject(names[y], "adversarial-targeted", 0.1, source="cow", pred_probs=p)
    assert set(names[y][noisy.changed]) == {"cow"}
    record = noisy.record()
    assert json.loads(json.dumps(record)) == record
    assert record["options"] | {"target": ""} == {
        "source": "cow", "target": "", "exact": "floor", "pred_probs": record["options"]["pred_probs"],
    }  # fmt: skip
    assert re.fullmatch("sha256 [0-9a-f]{16}", record["options"]["pred_probs"])
    assert "source=cow" in noisy.summary()
    again = inject(
        names[y], "adversarial-targeted", 0.1, source="cow", target=record["options"]["target"], pred_probs=p
    )
    assert again.hash == noisy.hash
    swapped = inject(names[y], "adversarial-targeted", 0.1, source="cow", pred_probs=p, classes=["cow", "bee", "ant"])
    assert swapped.hash != noisy.hash  # columns are in the order of the classes given


Y, P = [0, 1, 2, 0], np.full((4, 3), 1 / 3)
REFUSED = [
    ({}, "kind '{kind}' needs a model to attack: pass the inputs, x=, one row per label, and it fits its own, or pred"),
    ({"pred_probs": P[:2]}, "pred_probs must hold (4, 3) numbers, a row for each label and a column for each class of"),
    ({"pred_probs": P[:, :2]}, "got shape (4, 2), dtype float64"),
    ({"pred_probs": P.astype(str)}, "got shape (4, 3), dtype <U"),
    (
        {"pred_probs": 2 * P},
        "pred_probs must be probabilities, each row at least 0 and of sum 1: row 0 is not; give sc",
    ),
    ({"pred_probs": P * [[1], [1], [np.nan], [1]]}, "row 2 is not"),
    ({"pred_probs": [[1, 0, 0], [2, -1, 0], [1, 0, 0], [1, 0, 0]]}, "row 1 is not"),
    (
        {"x": np.ones((4, 8193))},
        "x has 8,193 features, and the adversary's own model takes at most 8,192: pass pred_pro",
    ),
    ({"x": np.ones((4, 2))}, "x has no feature that varies"),
    ({"x": [["a"]] * 4}, "x must hold numbers, got dtype <U1"),
    ({"x": np.ones((3, 2)), "pred_probs": P}, "x has 3 rows but y has 4 labels"),
    (
        {"pred_probs": P, "exact": "ceil"},
        "exact='ceil' does not go with kind '{kind}': it never relabels more than ⌊εN⌋",
    ),
    ({"pred_probs": P, "exact": False}, "exact=False does not go with kind '{kind}'"),
    ({"pred_probs": P, "probs": P}, "noise kind '{kind}' has no option 'probs', did you mean 'pred_probs'?"),
]
TARGETED = [
    ({"source": 1, "target": 1}, "source and target are both 1: name two classes of 0, 1, 2, or only one"),
    ({"source": 7}, "source 7 is not a label of y (0, 1, 2)"),
    ({"target": [1]}, "target [1] is not a label of y (0, 1, 2)"),
    ({"source": 3, "num_classes": 4, "pred_probs": np.full((4, 4), 0.25)}, "source 3 has no rows in y: name a class"),
    (
        {"target": 3, "classes": [1, 2, 3], "y": [3, 3, 3, 3]},
        "target 3 is the label of every row of y: name another class, or leave target= out",
    ),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("options", "message"), REFUSED, ids=range(len(REFUSED)))
def test_refusals(kind: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message.replace("{kind}", kind))):
        inject(Y, kind, 0.5, **options)


@pytest.mark.parametrize(("options", "message"), TARGETED, ids=range(len(TARGETED)))
def test_targeted_refusals(options: dict[str, object], message: str) -> None:
    options = dict(options)
    with pytest.raises(ValueError, match=re.escape(message)):
        inject(options.pop("y", Y), "adversarial-targeted", 0.5, **{"pred_probs": P, **options})
    with pytest.raises(ValueError, match="'adversarial-loss' has no option"):
        inject(Y, "adversarial-loss", 0.5, source=1, pred_probs=P)


def test_inputs_of_any_sort_where_probabilities_are_given() -> None:
    assert inject(Y, "adversarial-loss", 0.5, x=["0.png"] * 4, pred_probs=P).changed.sum() == 2


def test_classes_without_rows() -> None:
    p = np.full((4, 5), 0.2)
    for kind in KINDS:
        assert inject(Y, kind, 1.0, num_classes=5, pred_probs=p).changed.all()
        assert inject(Y, kind, 0.5, num_classes=5, x=np.arange(8.0).reshape(4, 2)).changed.sum() == 2


# ---- from the command line, on a real file ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_command_line(kind: str, tmp_path: Path) -> None:
    x, y = load_digits(return_X_y=True)
    names = np.array([f"digit {i}" for i in range(10)])
    source, out = tmp_path / "digits.csv", tmp_path / "noisy.csv"
    pd.DataFrame(x, columns=[f"p{i}" for i in range(64)]).assign(digit=names[y]).to_csv(source, index=False)
    words = ["inject", str(source), "--label", "digit", "--noise", f"{kind}:0.2", "--out", str(out)]
    done = subprocess.run([sys.executable, "-m", "labelproof", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    noisy = pd.read_csv(out)["digit"].to_numpy()
    assert (noisy != names[y]).sum() == int(0.2 * len(y))
    assert "realised rate 0.1998" in done.stdout
    assert lp.noise.digest(noisy) in done.stdout
    expected = inject(names[y], kind, 0.2, x=x.astype(np.float32))
    np.testing.assert_array_equal(noisy, expected.labels)


def test_numpy_only() -> None:
    for name in ("adversary.py", "noise_features.py"):
        for node in ast.walk(ast.parse((Path(adversary.__file__).parent / name).read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {module.split(".")[0] for module in modules} & {"torch", "pandas", "scipy", "sklearn"}, name
