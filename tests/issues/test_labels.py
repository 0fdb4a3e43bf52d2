"""Labels and classes given together."""

from __future__ import annotations

import numpy as np
import pytest

import labelproof as lp


def test_one_label_outside_the_classes_does_not_turn_all_labels_into_positions() -> None:
    p = np.full((60, 3), 0.1) + 0.7 * np.eye(3)[np.arange(60) % 3]
    with pytest.raises(ValueError, match=r"20 labels that are not in classes: 0"):
        lp.find_issues(np.arange(60) % 3, p, classes=[1, 2, 3])
