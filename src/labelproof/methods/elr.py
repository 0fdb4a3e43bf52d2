r"""ELR: early-learning regularisation.

Liu, Niles-Weed, Razavian, Fernandez-Granda: "Early-Learning Regularization Prevents Memorization of Noisy Labels",
NeurIPS 2020.

    (1)  p_i = clamp(softmax(f(x_i)), ε, 1 − ε),   ε = 1e-4
    (2)  t_i ← β t_i + (1 − β) p_i / Σ_k p_ik      temporal ensembling, no gradient, before t is used; t_i = 0 at first
    (3)  L = (1/B) Σ_i [ CE(f(x_i), ỹ_i) + λ log(1 − ⟨p_i, t_i⟩) ]

Networks learn the clean labels first. The targets t remember what was predicted then, and the gradient of the second
term keeps pulling p towards t once cross-entropy starts to pull towards the wrong label.

Symbols: `lam` = λ, `beta` = β, `t` = t. Shapes: f(x), p, t (B, K); the table t (N, K). The equations are written out in
`functional.regularisers.elr_terms`; what runs is its faster twin in `functional.fused`.
Deviations: from the paper none. From the released code: the table is saved in checkpoints and shared between ranks;
everything after the logits is fp32 (in fp16 the clamp bound rounds to 1 and the logarithm is −inf). The loss is
negative late in training, down to λ log ε, by design.
"""

from __future__ import annotations

from torch import Tensor, nn

from labelproof.core.method import Method, in_range
from labelproof.core.nets import Nets
from labelproof.core.state import SampleTable
from labelproof.core.task import Task
from labelproof.core.types import Batch, Clock, Loss
from labelproof.functional.fused import elr_terms


class ELR(Method):
    """Pulls each prediction towards what was predicted for the sample early on, before wrong labels are memorised.

    Args:
        lam: weight λ of the regulariser. The paper searches 1, 3, 5, 7, 10 and uses 3 for CIFAR-10, 7 for CIFAR-100.
        beta: momentum β of the targets, in [0, 1). The paper searches .5, .7, .9, .99 and uses .7 (.9 for CIFAR-100
            and asymmetric noise).

    Raises:
        ValueError: a value is out of range.
    """

    title = "Early-learning regularisation (ELR)"
    paper = "Liu et al., NeurIPS 2020"
    cost = "1 network, 1 forward pass, N x K table"

    def __init__(self, *, lam: float = 3.0, beta: float = 0.7) -> None:
        super().__init__()
        self.lam = in_range("lam", lam, 0, float("inf"), closed="left")
        self.beta = in_range("beta", beta, 0, 1, closed="left")

    def setup(self, task: Task, num_samples: int, network: nn.Module) -> None:
        super().setup(task, num_samples, network)
        self.t = SampleTable(num_samples, task.num_outputs)

    def loss(self, nets: Nets, batch: Batch, now: Clock) -> Loss:
        out = nets[0](batch.x)
        t = self.t.rows(batch.index, scale=self.beta)
        terms = elr_terms(out, batch.target, t, lam=self.lam, beta=self.beta, faded=True)  # (1), (2), (3)
        self.t.write(batch.index, terms.t)
        return Loss(terms.loss.mean(), out=out, log={"ce": terms.ce.mean(), "elr": terms.reg.mean()})

    def belief(self) -> Tensor:
        t = self.t.dense()
        return t.div_(t.sum(1, keepdim=True))  # it summed to 1 − β^k after k visits
