"""INCV with a stub `fit`: the paper's sets from a NumPy oracle, and each slip of the released code."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from labelproof.core.method import Planned
from labelproof.data.dataset import Data
from labelproof.procedures import incv as module
from labelproof.procedures.incv import Plain, Selection, incv
from labelproof.procedures.ncv_theory import asymmetric, symmetric, theory
from labelproof.procedures.noise_model import noise_model
from tests.procedures.stub import Stub, memorised, problem, quiet, soft


def oracle(fit: Stub, data: Data, discard: Sequence[float]) -> list[tuple[set[int], set[int]]]:
    """S and C after each iteration, by methods.md 6a: steps 3 to 7 in plain loops over sets.

    The halves are taken from what was asked of the stub; `discard` holds d of each iteration.
    """
    S: set[int] = set()
    C = set(data.trained.tolist())
    found = []
    for number, d in enumerate(discard):
        gone: set[int] = set()
        new: set[int] = set()
        for half in (0, 1):  # the network of half 0 is asked about half 1
            i = 2 * number + half
            rows, p = fit.asked[i], fit.answer(fit.asked[i], i)
            agree = [int(r) for r, each in zip(rows, p, strict=True) if int(np.argmax(each)) == data.y[r]]
            loss = {int(r): -math.log(float(each[data.y[r]]) + 1e-30) for r, each in zip(rows, p, strict=True)}
            count = math.floor(d * len(agree) + 1e-9)
            worst = sorted(loss, key=lambda r: (-loss[r], r))[:count] if count > 0 else []  # [-0:] would be all
            new |= set(agree)
            gone |= set(worst)
        S |= new
        C -= new | gone
        found.append((set(S), set(C)))
    return found


def sets(s: Selection) -> tuple[set[int], set[int]]:
    return set(s.selected.tolist()), set(s.candidates.tolist())


@pytest.mark.parametrize("iterations", [1, 2, 3, 4])
@pytest.mark.parametrize("discard", ["never", "always"])
@pytest.mark.parametrize("answer", ["soft", "hard"])
def test_selected_and_candidates_are_those_of_the_paper(iterations: int, discard: str, answer: str) -> None:
    T = symmetric(0.3, 4).confusion
    data = problem(301, noise=T)  # an odd number: halves differ by one
    fit = Stub(soft(data) if answer == "soft" else memorised(data, T))
    found = quiet(fit, data, iterations=iterations, discard=discard, noise_rate=0.3)
    d = min(2, 0.3 / 0.7) if discard == "always" else 0.0
    steps = oracle(fit, data, [d] * iterations)
    assert sets(found) == steps[-1]
    assert [(r["selected"], r["candidates"]) for r in found.iterations] == [(len(S), len(C)) for S, C in steps]
    assert (discard == "always") == (len(steps[-1][0] | steps[-1][1]) < len(data))
    clean = set(np.flatnonzero(data.y == data.truth).tolist())
    for row, (S, _) in zip(found.iterations, steps, strict=True):
        assert row["label_precision"] == pytest.approx(len(S & clean) / len(S))
        assert row["label_recall"] == pytest.approx(len(S & clean) / len(clean))
    assert not set(found.selected.tolist()) & set(found.candidates.tolist())


@pytest.mark.parametrize(("rate", "ratio"), [(0.2, 0.25), (0.5, 1.0), (0.6, 1.5), (0.8, 2.0), (0.9, 2.0)])
def test_the_largest_losses_are_discarded_and_no_more_than_twice_the_selected(rate: float, ratio: float) -> None:
    """Per half, d |T| with d = min(2, eps / (1 - eps)), rounded down."""
    data = problem(400, noise=symmetric(0.4, 4).confusion)
    fit = Stub(soft(data))
    found = quiet(fit, data, iterations=1, discard="always", noise_rate=rate)
    for i, rows in enumerate(fit.asked):
        p, y = fit.answer(rows, i), data.y[rows]
        agree = p.argmax(1) == y
        given = p[np.arange(len(rows)), y]
        worst = set(rows[np.argsort(given)[: int(ratio * agree.sum() + 1e-9)]].tolist())
        gone = set(rows.tolist()) - set(found.selected.tolist()) - set(found.candidates.tolist())
        assert gone == worst - set(found.selected.tolist())
        assert set(rows[agree].tolist()) <= set(found.selected.tolist())


@pytest.mark.parametrize(
    ("rate", "agreeing", "gone"),
    [(0.9, 20, 40), (0.75, 20, 40), (0.6, 40, 60), (0.2, 20, 5), (0.2, 19, 4), (0.0, 50, 0)],
)
def test_how_many_are_discarded(rate: float, agreeing: int, gone: int) -> None:
    """min(eps / (1 - eps), 2) for each agreeing sample of a half, rounded down."""
    data = problem(200, 2)
    right = np.zeros(200, dtype=bool)
    fit = Stub(lambda rows, number: np.eye(2)[data.y[rows] ^ ~right[rows]] * 0.8 + 0.1)
    parts = halves(data)
    for rows in parts:
        right[rows[:agreeing]] = True
    found = quiet(fit, data, iterations=1, discard="always", noise_rate=rate)
    assert sorted(map(sorted, fit.asked)) == sorted(map(sorted, parts))
    assert len(found.selected) == 2 * agreeing
    for rows in parts:
        assert np.isin(rows, found.candidates).sum() == 100 - agreeing - gone


def halves(data: Data) -> list[np.ndarray]:
    """The first two halves of a data set: they depend on labels and seed alone."""
    fit = Stub(lambda rows, number: np.eye(data.num_classes)[data.y[rows]])
    quiet(fit, data, iterations=1)
    return fit.asked


def test_what_agrees_stays_selected_though_its_loss_is_among_the_largest() -> None:
    """Twenty unsure agreements and ten sure disagreements: twenty of these thirty are to go, ten are left to go."""
    data = problem(60, 2)
    other = np.arange(60) % 3 == 0
    p = np.full((60, 2), 0.5, dtype=np.float32)
    p[np.arange(60), data.y] = np.where(other, 0.01, 0.51)
    p[np.arange(60), 1 - data.y] = np.where(other, 0.99, 0.49)
    fit = Stub(lambda rows, number: p[rows])
    found = quiet(fit, data, iterations=1, discard="always", noise_rate=0.5)
    assert sets(found) == (set(np.flatnonzero(~other).tolist()), set())


def test_where_nothing_is_to_be_discarded_nothing_is() -> None:
    """Slip I2: `[-0:]` of the released code takes the whole half."""
    data = problem(200, noise=symmetric(0.3, 4).confusion)
    right = soft(data, sure=9)
    fit = Stub(right)
    found = quiet(fit, data, iterations=1, discard="always", noise_rate=0.004)  # .00402 of some 70
    assert len(found.selected) + len(found.candidates) == 200
    assert len(found.candidates) > 0, "there is something that could be discarded"
    exact = quiet(Stub(right), data, iterations=1, discard="always", noise_rate=0.0)
    assert sets(exact) == sets(found)
    some = quiet(Stub(right), data, iterations=1, discard="always", noise_rate=0.02)
    assert len(some.selected) + len(some.candidates) == 198, "one of each half"


def test_only_symmetric_noise_discards_by_itself() -> None:
    """Slip I7: the kind is found from the predictions, not told."""
    n, gone = 6000, {}
    for name, T in (("symmetric", symmetric(0.4, 10).confusion), ("pairflip", asymmetric(0.3, 10).confusion)):
        data = problem(n, 10, T)
        for how in ("auto", "always", "never"):
            found = quiet(Stub(memorised(data, T)), data, iterations=1, discard=how)
            assert found.noise.kind == name
            gone[name, how] = n - len(found.selected) - len(found.candidates)
    assert gone["symmetric", "auto"] == gone["symmetric", "always"] > 0
    assert gone["pairflip", "auto"] == 0 < gone["pairflip", "always"]
    assert gone["symmetric", "never"] == gone["pairflip", "never"] == 0


def test_no_network_is_asked_about_what_it_has_seen() -> None:
    """Slip I5, and the roles of the halves: f1 sees S + C1 and is asked about C2, f2 the other way round."""
    data = problem(302, noise=symmetric(0.3, 4).confusion)
    fit = Stub(soft(data))
    quiet(fit, data, iterations=4)
    S: set[int] = set()
    C = set(range(302))
    for number in range(4):
        (seen1, seen2), (out1, out2) = (
            [set(a.tolist()) for a in each[2 * number : 2 * number + 2]] for each in (fit.trained, fit.asked)
        )
        assert out1 | out2 == C
        assert not out1 & out2
        assert seen1 == S | out2
        assert seen2 == S | out1
        assert not seen1 & out1
        assert not seen2 & out2
        steps = oracle(fit, data, [0.0] * (number + 1))
        S, C = steps[-1]
        gone = C - (set(np.concatenate(fit.asked[2 * number + 2 : 2 * number + 4]).tolist()) if number < 3 else C)
        C -= gone
    ids = [set(p.data.ids.tolist()) for p in fit.plans]
    assert all(i == {r + 1000 for r in rows.tolist()} for i, rows in zip(ids, fit.trained, strict=True))


def test_halves_hold_each_class_alike_and_are_random() -> None:
    data = problem(3000, 3, prior=[0.9, 0.09, 0.01])
    fit = Stub(soft(data))
    quiet(fit, data, iterations=1, seed=5)
    one, two = (np.bincount(data.y[rows], minlength=3) for rows in fit.trained)
    assert (abs(one - two) <= 1).all()
    first = np.isin(np.arange(3000), fit.trained[0])
    together = (first[:-1] == first[1:]).mean()
    assert 0.45 < together < 0.55, "neighbours are together by chance alone"


@pytest.mark.parametrize("choose", ["validation", "last"])
def test_the_epoch_is_chosen_on_a_part_of_the_training_samples(choose: str) -> None:
    """Slip I5: never on the half that is filtered. A tenth of few samples chooses nothing."""
    for n in (398, 402):  # halves of 199 and 201 in the first iteration
        data = problem(n)
        fit = Stub(soft(data, sure=0.5))
        quiet(fit, data, iterations=2, choose=choose)
        for plan in fit.plans:
            chosen = choose == "validation" and len(plan.data) >= 200
            assert plan.changes == {"early_stopping": chosen, "validation_fraction": 0.1 if chosen else 0.0}
        assert any(len(plan.data) < 200 for plan in fit.plans) == (n == 398)


def test_each_half_is_a_training_of_its_own() -> None:
    """Slip I6: optimisers begin anew, which separate stages are; they may run side by side."""
    batches: list[int] = []

    class Beside(Stub):
        def all(self, plans: Sequence[Planned]) -> list[Any]:
            batches.append(len(plans))
            return super().all(plans)

    data = problem(400, noise=symmetric(0.3, 4).confusion)
    fit, method = Beside(soft(data)), Plain()
    quiet(fit, data, iterations=3, length=0.25, method=method)
    assert batches == [2, 2, 2]
    assert [p.stage for p in fit.plans] == [f"iteration-{i}-half-{k}" for i in (1, 2, 3) for k in (1, 2)]
    assert {p.length for p in fit.plans} == {0.25}
    assert all(p.method is method for p in fit.plans)


def test_plain_is_the_mean_cross_entropy() -> None:
    import torch

    from labelproof.core.nets import Nets
    from labelproof.core.task import Classification
    from labelproof.core.types import Batch, Clock

    torch.manual_seed(0)
    net, x, y = torch.nn.Linear(5, 3), torch.randn(8, 5), torch.arange(8) % 3
    method = Plain()
    method.setup(Classification(3), 8, net)
    loss = method.loss(Nets([net]), Batch(torch.arange(8), (x,), y), Clock(0, 1, 0, 1, torch.Generator()))
    z = (x @ net.weight.T + net.bias).detach().double().numpy()
    want = np.mean([np.log(np.exp(row).sum()) - row[c] for row, c in zip(z, y.numpy(), strict=True)])
    assert float(loss.value.detach()) == pytest.approx(want, rel=1e-6)
    assert loss.out is not None


def test_it_stops_where_another_iteration_would_say_the_same() -> None:
    data = problem(200, noise=symmetric(0.3, 4).confusion)
    p = soft(data, sure=4)
    same = Stub(lambda rows, number: p(rows, 0))  # whoever is asked
    found = quiet(same, data, iterations=9, discard="never")
    assert [r["selected"] for r in found.iterations] == [len(found.selected)] * 2
    assert len(same.plans) == 4
    everything = Stub(lambda rows, number: np.eye(4)[data.y[rows]])
    assert len(quiet(everything, data, iterations=9).selected) == 200
    assert len(everything.plans) == 2, "no candidate is left"
    but_one_class = Stub(lambda rows, number: np.eye(4)[np.where(data.y[rows] == 2, 0, data.y[rows])])
    found = quiet(but_one_class, data, iterations=9, discard="never")
    assert len(but_one_class.plans) == 2, "candidates of one class have no two halves to compare"


def test_it_is_reproducible_and_leaves_the_global_generator_alone() -> None:
    """Slip I8: the released code shuffles with NumPy's global generator."""
    data, T = problem(400, noise=symmetric(0.3, 4).confusion), symmetric(0.3, 4).confusion
    found = []
    for state in (1, 2):
        np.random.seed(state)  # noqa: NPY002
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        fit = Stub(memorised(data, T))
        found.append((sets(quiet(fit, data, seed=7)), [rows.tolist() for rows in fit.trained]))
        assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert found[0] == found[1]
    fit = Stub(memorised(data, T))
    quiet(fit, data, seed=8)
    assert [rows.tolist() for rows in fit.trained] != found[0][1], "another seed, other halves"
    assert fit.trained[0].tolist() != fit.trained[2].tolist()


THEORY = {
    **{f"symmetric {e}": (symmetric(e, 10).confusion, "symmetric", e) for e in (0.05, 0.2, 0.5, 0.8)},
    **{f"pairflip {e}": (asymmetric(e, 10).confusion, "pairflip", e) for e in (0.1, 0.2, 0.4)},
}


@pytest.mark.parametrize("name", THEORY)
def test_noise_of_the_theory_is_estimated(name: str) -> None:
    """Slip I3: pairs of .4 are not taken for symmetric noise of .286; 6e."""
    T, kind, rate = THEORY[name]
    n = 40_000
    data = problem(n, 10, T)
    fit = Stub(memorised(data, T))
    found = quiet(fit, data, iterations=1)
    # the inverse of an agreement that is counted: its error by how steep it is, four standard errors
    a = theory(T).accuracy
    steep = 2 * (1 - rate) - 2 * rate / (9 if kind == "symmetric" else 1)
    tolerance = 4 * math.sqrt(a * (1 - a) / n) / steep + 0.002
    assert found.noise.kind == kind
    assert found.noise.rate == pytest.approx(rate, abs=tolerance)
    assert found.noise.rate == pytest.approx(rate, abs=0.05)
    assert found.noise.agreement == pytest.approx(a, abs=4 * math.sqrt(a * (1 - a) / n))
    precision = theory(T).precision
    assert 1 - found.selected_noise == pytest.approx(precision, abs=max(0.01, 4 * tolerance))
    assert found.iterations[0]["label_precision"] == pytest.approx(precision, abs=0.02)
    assert found.iterations[0]["estimated_precision"] == pytest.approx(1 - found.selected_noise)
    assert not found.noise.doubt
    assert fit.figures["incv_noise"] == {"kind": kind, "rate": found.noise.rate, "doubt": ""}


def test_noise_of_what_is_selected_is_that_of_each_iteration_by_its_size() -> None:
    T = symmetric(0.4, 10).confusion
    data = problem(20_000, 10, T)
    found = quiet(Stub(memorised(data, T)), data, iterations=3, discard="never")
    wrong = float((data.y != data.truth)[found.selected].mean())
    assert len(found.iterations) == 3
    assert found.iterations[2]["label_precision"] < found.iterations[0]["label_precision"]
    assert found.selected_noise == pytest.approx(wrong, abs=0.04)


@pytest.mark.parametrize("told", ["auto", 0.2])
def test_the_noise_of_later_candidates_is_their_own(told: Any) -> None:
    """A told rate is that of all samples; what is left after an iteration is noisier."""
    T = symmetric(0.4, 10).confusion
    data = problem(5000, 10, T)
    fit = Stub(memorised(data, T))
    found = quiet(fit, data, iterations=2, discard="never", noise_rate=told)
    right, taken = [], []
    for i in (0, 2):
        rows = np.concatenate(fit.asked[i : i + 2])
        p = np.concatenate([fit.answer(fit.asked[j], j) for j in (i, i + 1)])
        model = noise_model(data.y[rows], p, told if i == 0 and told != "auto" else None)
        taken.append((p.argmax(1) == data.y[rows]).sum())
        right.append(model.precision * taken[-1])
    assert found.selected_noise == pytest.approx(1 - sum(right) / sum(taken))


@pytest.mark.parametrize("told", [0.0, 0.1, 0.95, 0.99])
def test_a_told_rate_is_kept(told: float) -> None:
    T = symmetric(0.3, 10).confusion
    data = problem(2000, 10, T)
    found = quiet(Stub(memorised(data, T)), data, iterations=2, noise_rate=told)
    assert found.noise.rate == min(told, 0.95)
    assert 0 <= found.selected_noise < 1
    assert set(found.columns["eval_ratio"]) == {found.noise.rate}


@pytest.mark.parametrize("kind", ["opposed", "chance", "one class", "uniform"])
@pytest.mark.parametrize("discard", ["auto", "always"])
def test_agreement_below_chance_is_told_and_nothing_explodes(kind: str, discard: str) -> None:
    """Slip I3: there the rate goes past 1 and the discard ratio far below 0."""
    data, rng = problem(1000, 10), np.random.default_rng(3)

    def answer(rows: np.ndarray, number: int) -> np.ndarray:
        if kind == "uniform":
            return np.full((len(rows), 10), 0.1, dtype=np.float32)
        if kind == "one class":
            return np.eye(10, dtype=np.float32)[np.zeros(len(rows), int)]
        guess = rng.integers(0, 10, len(rows))
        off = (data.y[rows] + rng.integers(1, 10, len(rows))) % 10
        return np.eye(10, dtype=np.float32)[np.where(rng.random(len(rows)) < 0.03, guess, off) * (kind == "opposed")
                                            + guess * (kind == "chance")]  # fmt: skip

    fit = Stub(answer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = incv(fit, data, iterations=3, discard=discard)
    said = [str(w.message) for w in caught]
    if kind != "chance":  # by chance predictions may agree a little more often than the most frequent label
        assert any("no more than the most frequent label would; give noise_rate if you know it" in s for s in said), (
            said
        )
    assert 0 <= found.noise.rate <= 0.95
    assert 0 <= found.selected_noise < 1
    assert len(found.selected) + len(found.candidates) <= 1000
    assert len(np.unique(np.r_[found.selected, found.candidates])) == len(found.selected) + len(found.candidates)
    assert np.isfinite(found.columns["eval_ratio"]).all()


def test_the_table_has_a_row_for_each_sample() -> None:
    data = problem(300, noise=symmetric(0.3, 4).confusion)
    data = Data(data.x, data.y, classes=np.array(["ant", "bee", "cat", "dog"]), ids=data.ids, truth=data.truth)
    fit = Stub(soft(data))
    found = quiet(fit, data, iterations=2)
    t = fit.tables["selection"]
    assert t is found.columns
    assert list(t) == ["id", "y_noisy", "select", "candidate", "eval_ratio", "y"]
    assert (t["id"] == data.ids).all()
    assert t["y_noisy"].tolist() == data.classes[data.y].tolist()
    assert t["y"].tolist() == data.classes[data.truth].tolist()
    assert set(np.flatnonzero(t["select"]).tolist()) == set(found.selected.tolist())
    assert set(np.flatnonzero(t["candidate"]).tolist()) == set(found.candidates.tolist())
    assert not (t["select"] & t["candidate"]).any()
    unknown = Stub(soft(data))
    quiet(unknown, Data(data.x, data.y, classes=data.classes), iterations=1)
    assert list(unknown.tables["selection"]) == ["id", "y_noisy", "select", "candidate", "eval_ratio"]
    assert fit.figures["incv"] == found.iterations
    assert f"{len(found.selected):,} selected (label precision" in fit.lines[-1]
    assert "; noise " in fit.lines[0]
    assert "; noise " not in fit.lines[1]
    assert "precision" not in unknown.lines[0]


def test_each_sample_keeps_its_last_prediction_from_outside() -> None:
    data = problem(300, noise=symmetric(0.3, 4).confusion)
    fit = Stub(soft(data))
    found = quiet(fit, data, iterations=3, discard="never")
    want = np.full((300, 4), np.nan, dtype=np.float32)
    for i, rows in enumerate(fit.asked):
        want[rows] = fit.answer(rows, i)
    np.testing.assert_array_equal(found.prob, want)


def test_only_the_rows_trained_on_are_halved() -> None:
    data = problem(300, noise=symmetric(0.3, 4).confusion)
    some = np.arange(0, 300, 2)
    fit = Stub(soft(data))
    found = quiet(fit, data.only(some), iterations=2)
    assert set(np.concatenate(fit.trained).tolist()) == set(some.tolist())
    assert set(found.selected.tolist()) | set(found.candidates.tolist()) <= set(some.tolist())
    assert len(found.columns["id"]) == 300
    clean = (data.y == data.truth)[some].sum()
    right = (data.y == data.truth)[found.selected].sum()
    assert found.iterations[-1]["label_recall"] == pytest.approx(right / clean)


def test_a_regression_is_refused() -> None:
    data = Data(np.zeros((20, 1), np.float32), np.zeros((20, 1)))
    with pytest.raises(ValueError, match="INCV compares predicted with given classes: it has nothing to say of numb"):
        incv(Stub(lambda rows, number: np.zeros((len(rows), 1))), data)


@pytest.mark.parametrize("y", [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]])
def test_too_few_samples_for_two_halves_are_refused_before_training(y: list[int]) -> None:
    data = Data(np.arange(5, dtype=np.float32)[:, None], np.array(y), classes=np.arange(max(y) + 1))
    fit = Stub(lambda rows, number: np.eye(max(y) + 1)[data.y[rows]])
    counts = ", ".join(map(str, np.bincount(y)))
    with pytest.raises(
        ValueError, match=rf"two classes of at least two samples each, and the classes have {counts}: label more"
    ):
        incv(fit, data)
    assert not fit.plans


def test_the_smallest_data_set_that_has_two_halves() -> None:
    data = Data(np.arange(4, dtype=np.float32)[:, None], np.array([0, 1, 0, 1]), classes=np.arange(2))
    fit = Stub(lambda rows, number: np.eye(2)[data.y[rows]])
    found = quiet(fit, data)
    assert sets(found) == ({0, 1, 2, 3}, set())
    assert [sorted(data.y[rows].tolist()) for rows in fit.trained] == [[0, 1], [0, 1]]


def test_a_class_of_one_sample_is_told_and_kept() -> None:
    y = np.r_[np.arange(100) % 2, 2]
    data = Data(np.arange(101, dtype=np.float32)[:, None], y, classes=np.array(["cat", "dog", "emu"]))
    fit = Stub(lambda rows, number: np.eye(3)[np.minimum(y[rows], 1)])  # who has not seen an emu says something else
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = incv(fit, data)
    said = [str(w.message) for w in caught]
    assert any(
        "one sample each has the label 'emu': no network that has seen the class is asked about it" in s for s in said
    )
    assert any("INCV selected no sample of the class 'emu': its 1 samples are kept as they are" in s for s in said)
    assert 100 in found.selected
    assert len(found.candidates) == 0


def test_a_class_that_would_be_lost_is_kept_whole() -> None:
    """Rare classes are not wrong for being rare."""
    data = problem(300, 3, prior=[0.5, 0.4, 0.1])
    fit = Stub(lambda rows, number: np.eye(3)[data.y[rows] % 2])  # never says 2
    with pytest.warns(UserWarning, match=r"no sample of the class 2: its \d+ samples are kept as they are, unchecked"):
        found = incv(fit, data, discard="always", noise_rate=0.9)
    assert set(np.flatnonzero(data.y == 2).tolist()) <= set(found.selected.tolist())
    assert not (data.y[found.candidates] == 2).any()
    assert (np.diff(found.selected) > 0).all()
    t = fit.tables["selection"]
    assert t["select"].sum() == len(found.selected) == 300
    assert not (t["select"] & t["candidate"]).any()
    last = found.iterations[-1]
    assert (last["selected"], last["candidates"]) == (300, 0), "what is told counts them"
    assert last["estimated_precision"] == pytest.approx(1 - found.selected_noise)
    assert "300 selected" in fit.lines[-1]


def test_labels_kept_unchecked_count_as_wrong_as_all() -> None:
    data = problem(300, 3, prior=[0.5, 0.4, 0.1])
    kept = int((data.y == 2).sum())
    found = quiet(Stub(lambda rows, number: np.eye(3)[data.y[rows] % 2]), data, noise_rate=0.3, iterations=1)
    expected = (found.noise.precision * (300 - kept) + (1 - 0.3) * kept) / 300
    assert 1 - found.selected_noise == pytest.approx(expected)


def test_an_empty_selection_is_an_error() -> None:
    data = problem(100)
    fit = Stub(lambda rows, number: np.eye(4)[(data.y[rows] + 1) % 4])
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match=r"INCV selected nothing: no prediction agreed .*: train for more epochs, with"),
    ):
        warnings.simplefilter("error")
        incv(fit, data)
    assert "selection" not in fit.tables


def test_an_iteration_that_selects_nothing_new_is_no_error() -> None:
    data = problem(400, noise=symmetric(0.3, 4).confusion)
    p = soft(data)

    def answer(rows: np.ndarray, number: int) -> np.ndarray:
        return p(rows, number) if number < 2 else np.eye(4, dtype=np.float32)[(data.y[rows] + 1) % 4]

    found = quiet(Stub(answer), data, iterations=4)
    assert [r["selected"] for r in found.iterations] == [len(found.selected)] * 2
    assert 0 <= found.selected_noise < 1
    assert found.selected_noise == pytest.approx(1 - found.iterations[0]["estimated_precision"])


def test_repeated_ids_are_refused_by_the_data() -> None:
    with pytest.raises(ValueError, match="ids must be unique, but 3 stands 2 times: drop the repeated rows, or leave"):
        Data(np.zeros((4, 1)), np.arange(4), classes=np.arange(4), ids=np.array([1, 3, 3, 4]))


def test_what_is_documented_is_what_there_is() -> None:
    assert list(inspect.signature(incv).parameters) == [
        "fit", "data", "method", "iterations", "length", "discard", "choose", "noise_rate", "seed"
    ]  # fmt: skip
    assert (module.HELD, module.LEAST_HELD) == (0.1, 200)
