r"""Backward correction: the losses of all labels are combined so that the noise averages out.

Patrini, Rozza, Menon, Nock, Qu: "Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach",
CVPR 2017.

    (1)  T_ij = P(ỹ = j | y = i)                                      noise that depends on the class alone
    (2)  L = (1/B) Σ_i Σ_j (T⁻¹)_ỹi,j ℓ_ij,   ℓ_ij = −log p_ij          its mean over ỹ is the clean loss: T T⁻¹ ℓ = ℓ
    (3)  T̂_i· = p(x̄_i),   x̄_i = argmax_x p_i(x)                       row i, read at the anchor of class i

Without a matrix, two trainings: cross-entropy on the noisy labels, stopped early on a held-out tenth of them; (3) from
its predictions on all samples; then a fresh network with (2) and T̂.

Unbiased, but of large variance where T is near singular; and as T⁻¹ has negative entries, the loss has no lower bound:
a network that memorises drives it down without end. Forward correction is the better choice for most uses.

Symbols: `transition` = T as given, `inverse` = T⁻¹, `percentile` bounds the p_i of an anchor.
Shapes: p, ℓ (B, K); T (K, K), rows = true class.
Deviations: ℓ = −log max(p, `floor` / K), which (2) allows as it holds for any ℓ. The paper has no floor, its code has
one of 1e-7. On scikit-learn's 10 digits with T known (a small MLP, means of 5 runs) no floor ends at chance both for
45 % pair flips and 50 % symmetric noise, 1e-7 at 60 and 74 %, ours at 67 and 86 %; cross-entropy at 62 and 91 %. The
first training is stopped by accuracy, not by the lowest validation loss as in that code, and (3) is read from
calibrated predictions; on its quality see `forward.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from labelproof.core.method import Fit, Method, in_range
from labelproof.core.nets import Nets
from labelproof.core.task import Task
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.losses import bounded_cross_entropy, cross_entropy
from labelproof.functional.transition import check_transition, invert_transition
from labelproof.procedures.transition import with_estimated_transition


class Backward(Method):
    """Weighs the losses of all classes by the inverted noise, so that the wrong labels cancel on average.

    Args:
        transition: T, K rows of K probabilities, row i those of each given label for the true class i; or the path of
            a .csv or .npy file that holds it (`lp.estimate_noise` gives one). `None` estimates it by a first training;
            the result is `clf.run_.fitted.method.transition`. Rows and columns are in the sorted order of the classes.
            `loss` itself, without a matrix, is plain cross-entropy.
        percentile: of the estimate, in (0, 100]: the outlier filter of `anchor_transition`; 100 filters nothing.
            `None` is the paper's, 97 for up to 16 classes and 100 for more.
        calibrated: of the estimate, whether the predictions are calibrated first; `False` is the paper's.
        floor: lower bound of each p, in [0, 1), in units of 1/K; 0 sets none.

    Raises:
        ValueError: the percentile is out of range; at training, the matrix is not one of probabilities or has no
            inverse.
    """

    title = "Backward correction"
    paper = "Patrini et al., CVPR 2017"
    cost = "1 network, 1 forward pass; 2 trainings where T is estimated"

    inverse: Tensor

    def __init__(
        self,
        *,
        transition: Sequence[Sequence[float]] | str | None = None,
        percentile: float | None = None,
        calibrated: bool = True,
        floor: float = 0.1,
    ) -> None:
        super().__init__()
        self.transition = transition
        self.percentile = None if percentile is None else in_range("percentile", percentile, 0, 100, closed="right")
        self.calibrated = calibrated
        self.floor = in_range("floor", floor, 0, 1, closed="left")

    def run(self, fit: Fit, data: Any) -> Any:
        return with_estimated_transition(fit, self, data)  # (3)

    def setup(self, task: Task, num_samples: int, network: nn.Module) -> None:
        super().setup(task, num_samples, network)
        if self.transition is not None:
            self.register_buffer("inverse", invert_transition(check_transition(self.transition, task.num_outputs)))

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        out = nets[0](batch.x)
        if self.transition is None:
            return Loss(cross_entropy(out, batch.target).mean(), out=out)
        each = bounded_cross_entropy(out, self.inverse[batch.target], floor=self.floor)  # (2)
        return Loss(each.mean(), out=out)
