"""The noise models against their definitions, written once more as loops, and against the papers' presets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import labelproof as lp
from labelproof.data import noise_models
from labelproof.data.noise_models import CIFAR100_SUPERCLASSES, KINDS, PRESETS

inject = lp.noise.inject
TARGET_KINDS = [name for name, kind in KINDS.items() if kind.family == "target"]
CLASS_PRESETS = [name for name, preset in PRESETS.items() if preset.kind != "instance-dependent"]


def balanced(k: int, per_class: int = 2000) -> np.ndarray:
    """Every class equally often, in a scrambled but fixed order."""
    y = np.tile(np.arange(k), per_class)
    return np.random.default_rng(99).permutation(y)


def assert_near(realised: np.ndarray, expected: np.ndarray, per_class: int) -> None:
    """Each cell within six binomial standard deviations (and exact where nothing is random)."""
    slack = 6 * np.sqrt(expected * (1 - expected) / per_class) + 1e-12
    worst = np.unravel_index(np.argmax(np.abs(realised - expected) - slack), realised.shape)
    assert (np.abs(realised - expected) <= slack).all(), (worst, realised[worst], expected[worst])


# ---- the definitions, written once more as loops ---------------------------------------------------------------------

# CIFAR-100's fine classes by superclass, by name: ids follow from the alphabet.
SUPERCLASS_NAMES = """
aquatic mammals: beaver dolphin otter seal whale
fish: aquarium_fish flatfish ray shark trout
flowers: orchid poppy rose sunflower tulip
food containers: bottle bowl can cup plate
fruit and vegetables: apple mushroom orange pear sweet_pepper
household electrical devices: clock keyboard lamp telephone television
household furniture: bed chair couch table wardrobe
insects: bee beetle butterfly caterpillar cockroach
large carnivores: bear leopard lion tiger wolf
large man-made outdoor things: bridge castle house road skyscraper
large natural outdoor scenes: cloud forest mountain plain sea
large omnivores and herbivores: camel cattle chimpanzee elephant kangaroo
medium-sized mammals: fox porcupine possum raccoon skunk
non-insect invertebrates: crab lobster snail spider worm
people: baby boy girl man woman
reptiles: crocodile dinosaur lizard snake turtle
small mammals: hamster mouse rabbit shrew squirrel
trees: maple_tree oak_tree palm_tree pine_tree willow_tree
vehicles 1: bicycle bus motorcycle pickup_truck train
vehicles 2: lawn_mower rocket streetcar tank tractor
"""
SUPERCLASSES = {
    name: members.split() for name, members in (line.split(":") for line in SUPERCLASS_NAMES.strip().splitlines())
}
FINE = sorted(name for members in SUPERCLASSES.values() for name in members)
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def oracle(definition: str, k: int, e: float) -> np.ndarray:
    """T of one definition, cell by cell."""
    matrix = np.zeros((k, k))
    for i in range(k):
        for j in range(k):
            if definition == "inclusive":
                matrix[i, j] = (1 - e) * (i == j) + e / k
            elif definition == "exclusive":
                matrix[i, j] = 1 - e if i == j else e / (k - 1)
            elif definition == "next":
                matrix[i, j] = (1 - e) * (i == j) + e * (j == (i + 1) % k)
            elif definition == "c10":
                moves = {"truck": "automobile", "bird": "airplane", "cat": "dog", "dog": "cat", "deer": "horse"}
                to = CIFAR10.index(moves.get(CIFAR10[i], CIFAR10[i]))
                matrix[i, j] = (1 - e) * (i == j) + e * (j == to)
            elif definition == "block":
                to = i + 1 if i % 5 < 4 else i - 4
                matrix[i, j] = (1 - e) * (i == j) + e * (j == to)
            elif definition == "superclass":
                family = next(members for members in SUPERCLASSES.values() if FINE[i] in members)
                to = FINE.index(family[(family.index(FINE[i]) + 1) % 5])
                matrix[i, j] = (1 - e) * (i == j) + e * (j == to)
    return matrix


PAPERS = {  # preset: definition, classes, exact, wrong labels at ε on K balanced classes
    "elr-sym": ("inclusive", 10, "ceil", lambda e, k: e * (k - 1) / k),
    "sop-sym": ("inclusive", 10, "ceil", lambda e, k: e * (k - 1) / k),
    "dividemix-sym": ("inclusive", 10, "floor", lambda e, k: e * (k - 1) / k),
    "ghosh-unif": ("inclusive", 10, False, lambda e, k: e * (k - 1) / k),
    "mwnet-unif": ("inclusive", 10, False, lambda e, k: e * (k - 1) / k),
    "coteaching-sym": ("exclusive", 10, False, lambda e, k: e),
    "prl-sym": ("exclusive", 10, False, lambda e, k: e),
    "incv-sym": ("exclusive", 10, False, lambda e, k: e),
    "fcorrection-sym": ("exclusive", 10, False, lambda e, k: e),
    "d2l-sym": ("exclusive", 10, "per-class", lambda e, k: e),
    "coteaching-pair": ("next", 10, False, lambda e, k: e),
    "prl-pair": ("next", 10, False, lambda e, k: e),
    "incv-asym": ("next", 10, False, lambda e, k: e),
    "elr-asym": ("c10", 10, False, lambda e, k: e / 2),
    "sop-asym": ("c10", 10, False, lambda e, k: e / 2),
    "fcorrection-asym": ("c10", 10, False, lambda e, k: e / 2),
    "ghosh-asym": ("c10", 10, False, lambda e, k: e / 2),
    "gce-asym": ("c10", 10, False, lambda e, k: e / 2),
    "dividemix-asym": ("c10", 10, "floor", lambda e, k: e / 2),
    "c100-block": ("block", 100, False, lambda e, k: e),
    "elr-c100-asym": ("block", 100, False, lambda e, k: e),
    "fcorrection-c100-asym": ("block", 100, False, lambda e, k: e),
    "c100-superclass": ("superclass", 100, False, lambda e, k: e),
    "ghosh-c100-asym": ("superclass", 100, False, lambda e, k: e),
    "sop-c100-swap": ("swap", 100, False, lambda e, k: 2 * e / 5),
    "ghosh-flip": ("flip", 10, False, lambda e, k: e),
    "mwnet-flip": ("flip", 10, False, lambda e, k: e),
    "ghosh-flip2": ("flip2", 10, False, lambda e, k: e),
    "mwnet-flip2": ("flip2", 10, False, lambda e, k: e),
}
FORMULAS: dict[str, Callable[[float, int], float]] = {
    "ε": lambda e, k: e,
    "ε(C−1)/C": lambda e, k: e * (k - 1) / k,
    "ε/2": lambda e, k: e / 2,
    "2ε/5": lambda e, k: 2 * e / 5,
}


def test_every_class_preset_has_its_row_in_this_file() -> None:
    assert sorted(PAPERS) == sorted(CLASS_PRESETS)


@pytest.mark.parametrize("rate", [0.2, 0.45])
@pytest.mark.parametrize("name", sorted(PAPERS))
def test_presets_match_the_papers(name: str, rate: float) -> None:
    definition, k, exact, wrong = PAPERS[name]
    per_class = 2000 if k == 10 else 500
    noisy = inject(balanced(k, per_class), name, rate, seed=3)
    if definition not in ("flip", "flip2", "swap"):
        np.testing.assert_allclose(noisy.nominal, oracle(definition, k, rate), atol=1e-12)
    assert_near(noisy.transition, noisy.nominal, per_class)
    assert noisy.expected_rate == pytest.approx(wrong(rate, k))
    assert FORMULAS[PRESETS[name].wrong](rate, k) == pytest.approx(wrong(rate, k))
    assert noisy.rate == pytest.approx(wrong(rate, k), abs=6 * np.sqrt(0.25 / (k * per_class)))
    assert noisy.options["exact"] == exact
    assert noisy.nominal_rate == rate


def test_flip_sends_each_class_to_one_other_and_flip2_to_two() -> None:
    one = inject(balanced(10), "flip", 0.4, seed=5).nominal
    two = inject(balanced(10), "flip2", 0.4, seed=5).nominal
    for i in range(10):
        assert sorted(one[i][one[i] > 0].tolist()) == pytest.approx([0.4, 0.6])
        assert sorted(two[i][two[i] > 0].tolist()) == pytest.approx([0.2, 0.2, 0.6])
        assert one[i, i] == pytest.approx(0.6)
        assert two[i, i] == pytest.approx(0.6)


def test_flip_reaches_every_other_class_over_seeds() -> None:
    targets = {int(np.argmax(inject(np.arange(4), "flip", 1.0, seed=seed).nominal[2])) for seed in range(60)}
    assert targets == {0, 1, 3}


def test_sop_swap_exchanges_two_classes_in_each_block() -> None:
    matrix = inject(balanced(100, 50), "sop-c100-swap", 0.4, seed=1).nominal
    for first in range(0, 100, 5):
        block = matrix[first : first + 5, first : first + 5]
        np.testing.assert_allclose(block.sum(axis=1), 1)
        np.testing.assert_allclose(block, block.T)
        assert sorted(np.diag(block).tolist()) == pytest.approx([0.6, 0.6, 1, 1, 1])


@pytest.mark.parametrize("name", ["flip", "flip2", "sop-c100-swap"])
def test_train_and_validation_of_one_seed_share_the_class_map(name: str) -> None:
    """SOP draws the pair anew for the validation labels (methods.md, section 1)."""
    train, val = balanced(100, 30), balanced(100, 7)
    a, b = inject(train, name, 0.3, seed=4), inject(val, name, 0.3, seed=4)
    np.testing.assert_array_equal(a.nominal, b.nominal)
    assert not np.array_equal(a.nominal, inject(train, name, 0.3, seed=5).nominal)


def test_superclasses_partition_the_fine_classes() -> None:
    assert len(CIFAR100_SUPERCLASSES) == 20
    assert all(len(members) == 5 for members in CIFAR100_SUPERCLASSES.values())
    assert sorted(i for members in CIFAR100_SUPERCLASSES.values() for i in members) == list(range(100))
    by_name = {name: [FINE[i] for i in members] for name, members in CIFAR100_SUPERCLASSES.items()}
    assert by_name == SUPERCLASSES
    assert (FINE[0], FINE[1], FINE[23], FINE[52], FINE[99]) == ("apple", "aquarium_fish", "cloud", "oak_tree", "worm")


def test_alphabetical_blocks_are_not_superclasses() -> None:
    block = inject(np.arange(100), "c100-block", 1.0)
    true = inject(np.arange(100), "c100-superclass", 1.0)
    assert FINE[block.labels[FINE.index("apple")]] == "aquarium_fish"
    assert FINE[true.labels[FINE.index("apple")]] == "mushroom"
    assert FINE[true.labels[FINE.index("tractor")]] == "lawn_mower"


@pytest.mark.parametrize("k", [2, 3, 7])
def test_any_transition_matrix(k: int) -> None:
    matrix = np.random.default_rng(k).dirichlet(np.full(k, 0.5), size=k)
    matrix[0] = np.eye(k)[k - 1]  # zeros around a one
    noisy = inject(balanced(k, 20000), "transition", transition=matrix.tolist())
    np.testing.assert_allclose(noisy.nominal, matrix)
    assert_near(noisy.transition, matrix, 20000)
    assert noisy.nominal_rate == noisy.expected_rate == pytest.approx(float(np.mean(1 - np.diag(matrix))))
    assert inject(balanced(k, 10), "transition", transition=np.eye(k)).rate == 0


def test_own_map_in_own_labels() -> None:
    y = np.array(["cat", "dog", "cow", "owl"] * 500)
    noisy = inject(y, "asymmetric", 0.3, map={"cat": "dog", "dog": "cow"})
    moved = set(zip(y[noisy.changed].tolist(), noisy.labels[noisy.changed].tolist(), strict=True))
    assert moved == {("cat", "dog"), ("dog", "cow")}
    assert noisy.expected_rate == pytest.approx(0.15)
    assert inject(np.array([10, 20, 30]), "asymmetric", 1.0, map={10: np.int64(30)}).labels.tolist() == [30, 20, 30]


# ---- slips of released code that must not come back ------------------------------------------------------------------


def test_flips_start_from_the_clean_labels() -> None:
    """Applied class by class to labels already moved, cat -> dog comes to .24 instead of .4 (methods.md, trap 1)."""
    for name in ("elr-asym", "asymmetric", "dividemix-asym"):
        matrix = inject(balanced(10, 20000), name, 0.4).transition
        assert matrix[3, 5] == pytest.approx(0.4, abs=0.02)
        assert matrix[5, 3] == pytest.approx(0.4, abs=0.02)
    swapped = inject(np.array([3, 5, 3, 5]), "asymmetric", 1.0, num_classes=10)
    assert swapped.labels.tolist() == [5, 3, 5, 3]


def test_changed_leaves_out_samples_that_drew_their_own_label() -> None:
    """ELR's `noise_indx` lists them as wrong (trap 2); Co-teaching's `noise_or_not` is inverted (trap 4)."""
    y = balanced(10)
    noisy = inject(y, "elr-sym", 0.5)
    np.testing.assert_array_equal(noisy.changed, noisy.labels != y)
    assert 0.43 < noisy.changed.mean() < 0.47


def test_real_cifar10_rates(data_dir: Path) -> None:
    y = pd.read_parquet(data_dir / "cifar10" / "train.parquet", columns=["label"])["label"]
    rates = {name: inject(y, name, 0.4).rate for name in ("elr-sym", "dividemix-asym", "coteaching-sym", "incv-asym")}
    assert rates == pytest.approx(
        {"elr-sym": 0.36, "dividemix-asym": 0.2, "coteaching-sym": 0.4, "incv-asym": 0.4}, abs=0.01
    )
    names = np.array(CIFAR10)[y]
    assert set(zip(names, inject(names, "elr-asym", 1.0).labels, strict=True)) >= {
        ("truck", "automobile"),
        ("bird", "airplane"),
        ("cat", "dog"),
        ("dog", "cat"),
        ("deer", "horse"),
        ("ship", "ship"),
    }


# ---- how many are touched --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exact", "rate", "n", "wrong"),
    [
        (True, 0.25, 10, 3),
        ("ceil", 0.25, 10, 3),
        ("floor", 0.25, 10, 2),
        (True, 0.07, 100, 7),  # 0.07 * 100 is 7.000000000000001
        ("floor", 0.29, 100, 29),  # 0.29 * 100 is 28.999999999999996
        (True, 0.0, 10, 0),
        (True, 1.0, 10, 10),
        (False, 1.0, 10, 10),
        (False, 0.0, 10, 0),
    ],
)
def test_exact_counts(exact: bool | str, rate: float, n: int, wrong: int) -> None:
    y = np.arange(n) % 5
    for seed in range(5):
        assert inject(y, "pairflip", rate, exact=exact, seed=seed).changed.sum() == wrong


def test_exact_count_per_class() -> None:
    y = np.array([0] * 50 + [1] * 30 + [2] * 9)
    for noisy in (inject(y, "d2l-sym", 0.25), inject(y, "pairflip", 0.25, exact="per-class")):
        assert [int(noisy.changed[y == c].sum()) for c in range(3)] == [12, 7, 2]
    assert inject([0, 0, 2, 2], "d2l-sym", 0.5, num_classes=4).changed.sum() == 2


def test_default_is_iid() -> None:
    counts = {int(inject(balanced(3, 30), "pairflip", 0.4, seed=seed).changed.sum()) for seed in range(20)}
    assert len(counts) > 3


# ---- noise that depends on the sample --------------------------------------------------------------------------------


def instance_oracle(y: np.ndarray, x: np.ndarray, rate: float, seed: int, sd: float = 0.1) -> np.ndarray:
    """Xia et al. 2020, one sample at a time, with the generator read in the documented order."""
    k, n = y.max() + 1, len(y)
    flat = x.reshape(n, -1).astype(float)
    spread = flat.std(axis=0)
    z = np.where(spread > 0, (flat - flat.mean(axis=0)) / np.where(spread > 0, spread, 1), 0)
    rng = np.random.default_rng(seed)
    q = rng.normal(rate, sd, n)
    while ((q < 0) | (q > 1)).any():
        for i in np.flatnonzero((q < 0) | (q > 1)):
            q[i] = rng.normal(rate, sd)
    moves = [i for i, u in enumerate(rng.random(n)) if u < q[i]]
    u = dict(zip(moves, rng.random(len(moves)), strict=True))
    weights = [rng.standard_normal((z.shape[1], k)) for _ in range(k)]
    new = y.copy()
    for i in moves:
        score = z[i] @ weights[y[i]]
        p = np.array([0.0 if j == y[i] else np.exp(score[j]) for j in range(k)])
        p /= p.sum()
        below = 0.0
        for j in range(k):
            below += p[j]
            if u[i] < below:
                new[i] = j
                break
    return new


@pytest.mark.parametrize("rate", [0.05, 0.4, 0.97])
def test_instance_dependent_against_a_loop(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_models.Features, "_CELLS", 700)  # several blocks, ragged ends
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (500, 3, 4, 2), dtype=np.uint8), rng.integers(0, 5, 500)
    x[:, 0, 0, 0] = 17  # a constant feature
    noisy = inject(y, "instance-dependent", rate, x=x, seed=8)
    np.testing.assert_array_equal(noisy.labels, instance_oracle(y, x, rate, 8))
    assert noisy.nominal is None


def test_instance_dependent_rate_and_dependence() -> None:
    rng = np.random.default_rng(1)
    y, x = balanced(4, 10000), rng.normal(size=(40000, 6))
    noisy = inject(y, "pdn-instance", 0.1, x=x)
    assert noisy.expected_rate > 0.11  # truncation at 0 lifts the mean of q
    assert noisy.rate == pytest.approx(noisy.expected_rate, abs=0.01)
    assert inject(y, "instance-dependent", 0.3, x=x, rate_sd=0).rate == pytest.approx(0.3, abs=0.015)
    assert inject(y, "instance-dependent", 0, x=x).rate == 0
    # the same features always say the same: two copies of one sample that both move go to the same class far more
    # often than the 1/3 of symmetric noise
    twice = inject(np.tile(y, 2), "instance-dependent", 0.5, x=np.tile(x, (2, 1)))
    both = twice.changed[:40000] & twice.changed[40000:]
    assert (twice.labels[:40000] == twice.labels[40000:])[both].mean() > 0.6


def test_instance_dependent_does_not_mind_units() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 256, (400, 8, 8), dtype=np.uint8), rng.integers(0, 3, 400)
    pixels = inject(y, "instance-dependent", 0.4, x=x)
    assert pixels.hash == inject(y, "instance-dependent", 0.4, x=x / 255.0).hash
    assert pixels.hash == inject(y, "instance-dependent", 0.4, x=pd.DataFrame(x.reshape(400, -1))).hash


# ---- regression ------------------------------------------------------------------------------------------------------


def targets(n: int = 400, d: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.gamma(2.0, 3.0, n if d is None else (n, d)), rng.normal(size=(n, 5)) * [1, 10, 0.1, 5, 0] + 100


@pytest.mark.parametrize(
    ("kind", "shape"), [(k, d) for k in TARGET_KINDS for d in (None, 1, 3) if k != "coordinate-swap" or d == 3]
)
def test_regression_kinds_corrupt_an_exact_fraction(kind: str, shape: int | None) -> None:
    y, x = targets(402, shape)
    before = y.copy()
    noisy = inject(y, kind, 0.3, x=x, seed=2)
    np.testing.assert_array_equal(y, before)
    assert noisy.changed.sum() == 120  # ⌊0.3 · 402⌋: the adversary has at most ε
    assert noisy.labels.shape == y.shape
    assert (noisy.transition, noisy.nominal, noisy.classes) == (None, None, None)
    np.testing.assert_array_equal(noisy.changed, (noisy.labels != y).reshape(402, -1).any(axis=1))
    np.testing.assert_array_equal(noisy.labels[~noisy.changed], y[~noisy.changed])
    assert noisy.hash == inject(y, kind, 0.3, x=x, seed=2).hash != inject(y, kind, 0.3, x=x, seed=3).hash
    assert noisy.hash == lp.noise.digest(noisy.labels)
    assert inject(y.astype(np.float32), kind, 0.3, x=x).labels.dtype == np.float32
    assert inject(y, kind, 0.3, x=x, exact=True).changed.sum() == 121
    assert inject(y, kind, 0, x=x).rate == 0


def test_uniform_fills_the_box() -> None:
    y, _ = targets(5000, 2)
    wrong = inject(y, "uniform", 1.0).labels
    assert (wrong >= y.min(axis=0)).all()
    assert (wrong <= y.max(axis=0)).all()
    np.testing.assert_allclose(wrong.mean(axis=0), (y.min(axis=0) + y.max(axis=0)) / 2, rtol=0.05)


def test_sign_flip_mirrors() -> None:
    y, _ = targets(300, 2)
    np.testing.assert_allclose(inject(y, "sign-flip", 1.0).labels, 2 * np.median(y, axis=0) - y)
    np.testing.assert_allclose(inject(y, "sign-flip", 1.0, center=0).labels, -y)
    np.testing.assert_allclose(inject(y, "sign-flip", 1.0, center=[1, 2]).labels, np.array([2, 4]) - y)
    odd = inject(np.array([1.0, 2.0, 3.0]), "sign-flip", 1.0)  # the median mirrors onto itself: not changed
    assert odd.labels.tolist() == [3, 2, 1]
    assert odd.changed.tolist() == [True, False, True]


def test_linear_adversarial_is_linear_in_the_features() -> None:
    y, x = targets(1000, 2)
    lie = inject(y, "linear-adversarial", 1.0, x=x, seed=6).labels
    design = np.column_stack([x[:, :4], np.ones(len(x))])
    residual = lie - design @ np.linalg.lstsq(design, lie, rcond=None)[0]
    assert np.abs(residual).max() < 1e-9
    np.testing.assert_allclose(lie.mean(axis=0), y.mean(axis=0))
    np.testing.assert_allclose(lie.std(axis=0), y.std(axis=0))
    weight = np.random.default_rng(6)  # by hand: a permutation chooses the rows, then the map is drawn
    weight.permutation(1000)
    w = weight.standard_normal((5, 2))
    z = (x - x.mean(axis=0)) / np.where(x.std(axis=0) > 1e-9, x.std(axis=0), np.inf)
    raw = z @ w
    np.testing.assert_allclose(lie, y.mean(axis=0) + (raw - raw.mean(axis=0)) / raw.std(axis=0) * y.std(axis=0))


def test_linear_adversarial_on_real_data(data_dir: Path) -> None:
    table = pd.read_csv(data_dir / "uci" / "energy.csv")
    y, x = table.pop("heating_load").to_numpy(), table.to_numpy()
    noisy = inject(y, "linear-adversarial", 0.4, x=x)
    assert noisy.changed.sum() == 307  # ⌊0.4 · 768⌋
    assert np.corrcoef(noisy.labels[noisy.changed], y[noisy.changed])[0, 1] < 0.99


def test_coordinate_swap() -> None:
    y = np.arange(12.0).reshape(3, 4)
    assert inject(y, "coordinate-swap", 1.0).labels[0].tolist() == [1, 0, 3, 2]
    assert inject(y, "coordinate-swap", 1.0, pairs=[(0, 3)]).labels[0].tolist() == [3, 1, 2, 0]
    assert inject(y[:, :3], "coordinate-swap", 1.0).labels[0].tolist() == [1, 0, 2]


def test_mixture_uses_each_kind() -> None:
    y, x = targets(3000, 2)
    flipped = 2 * np.median(y, axis=0) - y

    def share(noisy: lp.noise.Injected, other: np.ndarray) -> float:
        return float(np.isclose(noisy.labels, other).all(axis=1).mean())

    full = inject(y, "mixture", 1.0, x=x)
    assert share(full, flipped) == pytest.approx(1 / 4, abs=0.04)
    assert share(full, y[:, ::-1]) == pytest.approx(1 / 4, abs=0.04)
    without_x = inject(y, "mixture", 1.0)
    assert share(without_x, flipped) == pytest.approx(1 / 3, abs=0.05)
    assert share(inject(y[:, :1], "mixture", 1.0), flipped[:, :1]) == pytest.approx(1 / 2, abs=0.05)
    two = inject(y, "mixture", 1.0, kinds=["sign-flip", "coordinate-swap"])
    assert share(two, flipped) + share(two, y[:, ::-1]) == pytest.approx(1)
