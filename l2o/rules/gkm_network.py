"""A learned D_net for the methods of multipliers: it moves the multiplier λ alone, whose part of H is Q⁻¹.

    D_net(z, e, λ) = (z, e, Q^{1/2} N(Q^{−1/2} λ)),      N(y) = (1 − γ) y + γ Wᵀ tanh(W y + c),    0 < γ < 1/2, ‖W‖ ≤ 1

From the paper (Liu et al. 2022, arXiv:2206.07875): D = D_num ∘ D_net with a network that is nonexpansive in H_ω. Ours:
this network. Wᵀ tanh(W · + c) is nonexpansive, so N is γ-averaged in the Euclidean norm; Q^{1/2} N Q^{−1/2} is so in
‖·‖_{Q⁻¹}, and D_net in H = diag(P, Q⁻¹). With the firm step of `LinearizedALM` (½-averaged) the composition is averaged
by (½ + γ − γ) / (1 − γ/2) ≤ 2/3 (Bauschke & Combettes 2017, proposition 4.44), so that every α < 3/2 is allowed. The
network moves the fixed points: use it in the first steps of a `GKM` only, and plain steps after them.
"""

import math

import torch
from torch import Tensor, nn

from l2o.constrained import ConstrainedProblem
from l2o.layer_norms import nonexpansive
from l2o.metric import Metric
from l2o.rules.gkm import NumericalPart
from l2o.rules.gkm_alm import ALMPoint, LinearizedALM


class DualNetwork(nn.Module):
    """y ↦ Wᵀ tanh(W y + c), nonexpansive; shape (items, rows) is kept. Weights: linear.weight (W) and linear.bias (c).

    Args:
        rows: of A.

    Raises:
        ValueError: if `rows` is below 1.
    """

    def __init__(self, rows: int):
        super().__init__()
        if rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}")
        self.linear = nn.Linear(rows, rows)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(rows))
            self.linear.bias.zero_()
        nonexpansive(self.linear)

    def forward(self, y: Tensor) -> Tensor:
        """See the class."""
        weight = self.linear.weight
        return torch.tanh(y @ weight.mT + self.linear.bias) @ weight


class NetworkedALM(NumericalPart):
    """D_num ∘ D_net of the module's equation; ω = {logit_share ()}, γ = sigmoid(logit_share) / 2, and those of both.

    Args:
        part: D_num.
        network: of y, shape (items, rows), nonexpansive; may be shared by many steps.
        share: γ that training starts with, in (0, 1/2).

    Raises:
        ValueError: if `share` is out of its range.
    """

    problem = ConstrainedProblem

    def __init__(self, part: LinearizedALM, network: nn.Module, share: float = 0.02):
        super().__init__()
        if not 0 < share < 0.5:
            raise ValueError(f"share must be in (0, 1/2), got {share}")
        self.part, self.network = part, network
        self.logit_share = nn.Parameter(torch.tensor(math.log(2 * share / (1 - 2 * share))))

    def start(self, problem: ConstrainedProblem, x: Tensor) -> ALMPoint:
        """As that of D_num."""
        return self.part.start(problem, x)

    def forward(self, problem: ConstrainedProblem, u: ALMPoint) -> ALMPoint:
        """See the module's equation; N is taken in the eigenvectors of Q."""
        share = self.logit_share.sigmoid().to(u.x.dtype) / 2
        vectors, root = self.part.spectrum.vectors.to(u.x.dtype), self.part.weights(problem).penalty.sqrt()
        y = u.multiplier @ vectors / root
        y = (1 - share) * y + share * self.network(y)
        return self.part(problem, ALMPoint(u.x, u.second, (y * root) @ vectors.mT))

    def metric(self, problem: ConstrainedProblem) -> Metric:
        """H of D_num."""
        return self.part.metric(problem)

    def averagedness(self, problem: ConstrainedProblem) -> float:
        """1 / (2 − γ)."""
        return 1 / (2 - float(self.logit_share.detach().sigmoid()) / 2)
