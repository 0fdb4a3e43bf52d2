r"""Forward correction: the prediction is passed through the noise before it meets the label.

Patrini, Rozza, Menon, Nock, Qu: "Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach",
CVPR 2017.

    (1)  T_ij = P(ỹ = j | y = i)                           noise that depends on the class alone
    (2)  L = −(1/B) Σ_i log (Tᵀ p_i)_ỹi                    its minimiser is that of clean cross-entropy
    (3)  T̂_i· = p(x̄_i),   x̄_i = argmax_x p_i(x)            row i, read at the anchor of class i

Without a matrix, two trainings: cross-entropy on the noisy labels, stopped early on a held-out tenth of them; (3) from
its predictions on all samples; then a fresh network with (2) and T̂.

Symbols: `transition` = T as given, `matrix` = T as trained with, `percentile` bounds the p_i of an anchor.
Shapes: p (B, K); T (K, K), rows = true class.
Deviations: (2) is taken in log space, without the released code's floor of 1e-7 under p. The first training is stopped
by accuracy, not by the lowest validation loss as in that code. (3) is read from calibrated predictions: a network that
memorises is too sure of P(ỹ | x), and T̂ would show less noise than there is.

T̂ is the weak part: each row is one sample's prediction. On scikit-learn's 10 digits (1257 training images, a small MLP,
means of 5 runs) rows are off by 0.3 in L1 at 50 % symmetric noise, by 0.6 at 45 % pair flips, where anchors come from
the wrong class. Test accuracy there, cross-entropy / T̂ / true T: 91 / 83 / 90 % and 62 / 57 / 96 %; at 20 % pair flips
92 / 95 / 96 %. Calibration more than halves the error of T̂ where a network has learned its labels by heart, and changes
little here. Give T where you know it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from labelproof.core.method import Fit, Method, in_range
from labelproof.core.nets import Nets
from labelproof.core.task import Task
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.losses import cross_entropy, forward_corrected
from labelproof.functional.transition import check_transition
from labelproof.procedures.transition import with_estimated_transition


class Forward(Method):
    """Passes the prediction through the noise before it meets the label.

    Args:
        transition: T, K rows of K probabilities, row i those of each given label for the true class i; or the path of
            a .csv or .npy file that holds it (`lp.estimate_noise` gives one). `None` estimates it by a first training;
            the result is `clf.run_.fitted.method.transition`. Rows and columns are in the sorted order of the classes.
            `loss` itself, without a matrix, is plain cross-entropy.
        percentile: of the estimate, in (0, 100]: the outlier filter of `anchor_transition`; 100 filters nothing.
            `None` is the paper's, 97 for up to 16 classes and 100 for more.
        calibrated: of the estimate, whether the predictions are calibrated first; `False` is the paper's.

    Raises:
        ValueError: the percentile is out of range; at training, the matrix is not one of probabilities.
    """

    title = "Forward correction"
    paper = "Patrini et al., CVPR 2017"
    cost = "1 network, 1 forward pass; 2 trainings where T is estimated"

    matrix: Tensor

    def __init__(
        self,
        *,
        transition: Sequence[Sequence[float]] | str | None = None,
        percentile: float | None = None,
        calibrated: bool = True,
    ) -> None:
        super().__init__()
        self.transition = transition
        self.percentile = None if percentile is None else in_range("percentile", percentile, 0, 100, closed="right")
        self.calibrated = calibrated

    def run(self, fit: Fit, data: Any) -> Any:
        return with_estimated_transition(fit, self, data)  # (3)

    def setup(self, task: Task, num_samples: int, network: nn.Module) -> None:
        super().setup(task, num_samples, network)
        if self.transition is not None:
            self.register_buffer("matrix", check_transition(self.transition, task.num_outputs).float())

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        out = nets[0](batch.x)
        if self.transition is None:
            return Loss(cross_entropy(out, batch.target).mean(), out=out)
        return Loss(forward_corrected(out, batch.target, self.matrix).mean(), out=out)  # (2)
