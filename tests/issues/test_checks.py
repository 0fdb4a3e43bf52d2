"""Bad input: each kind has its own error or warning, with the remedy; none gives numbers silently (need 10)."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import labelproof.issues as li

N, K = 120, 3
RNG = np.random.default_rng(0)
TRUTH = np.arange(N) % K
P = RNG.dirichlet(np.ones(K), N) * 0.4 + np.eye(K)[TRUTH] * 0.6
LABELS = np.where(np.arange(N) % 10 == 0, (TRUTH + 1) % K, TRUTH)
NAMES = np.array(["ant", "bee", "cat"])


def changed(array, rows, value):
    array = np.array(array)
    array[rows] = value
    return array


class Elsewhere:
    """A tensor on another device, or one that needs a gradient: NumPy cannot read it."""

    def __array__(self, *_, **__):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


ERRORS = {
    "NaN rows": (LABELS, changed(P, [5, 9], np.nan), {}, "NaN or infinite values in 2 of 120 rows, the first is row 5"),
    "infinite values": (
        LABELS,
        changed(P, 7, np.inf),
        {},
        "NaN or infinite values in 1 of 120 rows, the first is row 7",
    ),
    "text as probabilities": (LABELS, P.astype(str).astype(object) + "%", {}, "pred_probs must hold numbers"),
    "logits": (LABELS, np.log(P) * 3, {}, "look like logits, pass their softmax"),
    "percent": (LABELS, P * 100, {}, r"must lie in [0, 1], but ranges from"),
    "rows that do not sum to one": (LABELS, P * 0.8, {}, "must sum to 1, but 120 of 120 do not, the first is row 0"),
    "too few rows": (LABELS, P[:-1], {}, "pred_probs has 119 rows for 120 labels"),
    "too many rows": (LABELS, np.concatenate([P, P[:5]]), {}, "pred_probs has 125 rows for 120 labels"),
    "binary positive column": (LABELS % 2, P[:, 0], {}, "np.column_stack([1 - pred_probs, pred_probs])"),
    "one column": (LABELS, P[:, :1], {}, "pred_probs has 1 column: at least two classes"),
    "three dimensions": (LABELS, P[:, :, None], {}, "pred_probs must have shape (N, K)"),
    "one class": (np.zeros(N, dtype=int), P, {}, "labels holds one class only (0)"),
    "one-hot labels": (np.eye(K)[LABELS], P, {}, "for one-hot rows pass labels.argmax(axis=1)"),
    "no labels": ([], P[:0], {}, "labels is empty"),
    "missing label": (changed(NAMES[LABELS].astype(object), 4, None), P, {}, "1 missing values, the first in row 4"),
    "NaN label": (changed(LABELS.astype(float), 4, np.nan), P, {}, "1 missing values, the first in row 4"),
    "label outside classes": (
        changed(NAMES[LABELS].astype(object), [3, 8], "dgo"),
        P,
        {"classes": NAMES},
        "labels has 2 labels that are not in classes: dgo; classes are ant, bee, cat",
    ),
    "code outside classes": (
        changed(LABELS, 3, 7),
        P,
        {"classes": NAMES},
        "labels has 1 labels that are not in classes: 7; classes are ant, bee, cat (codes 0 to 2)",
    ),
    "more labels than columns": (
        changed(NAMES[LABELS].astype(object), 3, "dog"),
        P,
        {},
        "labels has 4 different values (bee, cat, dog, ant) but pred_probs has 3 columns: pass classes=",
    ),
    "fewer labels than columns": (NAMES[LABELS % 2], P, {}, "labels has 2 different values"),
    "labels from 1, one class unseen": (LABELS[LABELS < 2] + 2, P[LABELS < 2], {}, "2 different values"),
    "labels of mixed types": (
        changed(NAMES[LABELS].astype(object), LABELS == 0, 3),
        P,
        {},
        "labels mixes types that have no order",
    ),
    "classes too short": (LABELS, P, {"classes": NAMES[:2]}, "classes must name the 3 columns of pred_probs in order"),
    "class named twice": (LABELS, P, {"classes": ["ant", "bee", "bee"]}, "classes names a class twice: bee"),
    "tensor elsewhere": (LABELS, Elsewhere(), {}, "pass pred_probs.detach().cpu().float().numpy()"),
    "labels elsewhere": (Elsewhere(), P, {}, "pass labels.detach().cpu().float().numpy()"),
    "gradient": (LABELS, torch.tensor(P, requires_grad=True), {}, "pred_probs.detach()"),
}

TABLE_ERRORS = {
    "id twice": ({"ids": changed(np.arange(N), 3, 5)}, "ids must be unique, but 5 stands 2 times"),
    "ids too short": ({"ids": np.arange(5)}, "ids must have shape (120,), one per label, but has shape (5,)"),
    "suspicion too short": ({"suspicion": np.zeros(7)}, "suspicion must have shape (120,)"),
    "suspicion NaN": (
        {"suspicion": changed(np.zeros(N), 6, np.nan)},
        "suspicion has NaN or infinite values in 1 of 120",
    ),
    "evidence too short": ({"evidence": {"loss": [1.0]}}, "evidence['loss'] must have shape (120,)"),
    "evidence matrix": ({"evidence": {"probs": P}}, "evidence['probs'] must have shape (120,)"),
}

WARNINGS = {
    "labels are the predictions": (P.argmax(axis=1), P, {}, "use out-of-sample probabilities"),
    "memorised to the last label": (LABELS, np.eye(K)[LABELS] * 0.97 + 0.01, {}, "use out-of-sample probabilities"),
    "columns permuted": (NAMES[LABELS], P[:, [1, 2, 0]], {}, "labels ant match the column of cat"),
    "two columns swapped": (NAMES[LABELS], P[:, [0, 2, 1]], {}, "labels bee match the column of cat"),
    "rows shuffled": (LABELS, P[np.random.default_rng(1).permutation(N)], {}, "rows are in the order of the labels"),
    "class without labels": (LABELS % 2, P, {"classes": NAMES}, "no label is of class cat"),
    "predicted classes": (LABELS, np.eye(K)[TRUTH], {}, "pass predict_proba, not predicted classes"),
}


@pytest.mark.parametrize("function", [li.find_issues, li.estimate_noise])
@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_to_do(case, function):
    labels, p, options, message = ERRORS[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        function(labels, p, **options)


@pytest.mark.parametrize("case", TABLE_ERRORS)
def test_errors_of_the_table(case):
    options, message = TABLE_ERRORS[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        li.find_issues(LABELS, P, **options)


@pytest.mark.parametrize("function", [li.find_issues, li.estimate_noise])
@pytest.mark.parametrize("case", WARNINGS)
def test_warnings_say_what_to_do_and_point_here(case, function):
    labels, p, options, message = WARNINGS[case]
    with pytest.warns(UserWarning, match=re.escape(message)) as caught:
        function(labels, p, **options)
    assert all(warning.filename == __file__ for warning in caught)


@pytest.mark.parametrize(
    ("labels", "p", "classes"),
    [
        (LABELS, P, None),
        (LABELS, np.roll(P, 1, axis=0) * 0.5 + P * 0.5, None),  # a weak model
        (LABELS[:10], P[:10], None),  # few labels agree or not by chance
        (NAMES[LABELS], pd.DataFrame(P, columns=NAMES), None),
        (np.r_[LABELS[:-1] * 0, 1], np.r_[P * 0 + [0.98, 0.01, 0.01]], [0, 1, 2]),  # hardly anything of class 1
    ],
)
def test_good_input_is_not_complained_about(labels, p, classes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if classes is not None:
            warnings.filterwarnings("ignore", message="no label is of class")
        li.find_issues(labels, p, classes=classes)


def test_forty_percent_into_the_next_class_is_no_permutation():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 2000)
    labels = np.where(rng.random(2000) < 0.4, (truth + 1) % 5, truth)
    flips = 0.6 * np.eye(5) + 0.4 * np.roll(np.eye(5), 1, axis=1)
    p = (rng.dirichlet(np.ones(5), 2000) * 0.1 + np.eye(5)[truth] * 0.9) @ flips
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        li.find_issues(labels, p)
