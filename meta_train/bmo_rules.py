"""The learned rules of the sparse-coding study: unrolled GKM, GKM with a network, and GKM inside BMO's inner loop.

All take steps of `LinearizedALM` with weights of their own in each layer. The first step past the layers (the *tail*)
is trained as well, through some of its applications, and stays the same from there on, so that it converges.
`meta_train/bmo_tail.py` has what is quicker later on.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from l2o.rule import ModelBasedRule
from l2o.rules.gkm import GKM, GKMConfig
from l2o.rules.gkm_alm import ALMPoint, LinearizedALM, Spectrum
from l2o.rules.gkm_network import DualNetwork, NetworkedALM
from meta_train.bilevel import aggregate
from tasks.robust_sparse_coding import RobustSparseCoding

_SMOOTHING = 0.1
"""δ of the upper loss, in units of mean |b|."""


def gkm_rule(task: RobustSparseCoding, layers: int, network: bool = False, size: float = 0.4) -> GKM:
    """Return an untrained GKM with `layers` steps and a tail.

    Args:
        network: whether the layers, not the tail, have a learned D_net, one for all; then α < 3/2.
        size: d_z = d_e that training starts with, in units of mean |b|.
    """
    spectrum = Spectrum(task.dictionary)
    parts: list = [LinearizedALM(spectrum, size, size) for _ in range(layers + 1)]
    if network:
        shared = DualNetwork(task.rows)
        parts[:-1] = [NetworkedALM(part, shared) for part in parts[:-1]]
    return GKM(parts, config=GKMConfig(1.2, 1.5 if network else 2.0))


class AggregatedGKM(ModelBasedRule):
    """BMO's inner loop on a GKM: u ← μ (u − s_k H⁻¹ ∂ℓ(u)) + (1 − μ) T(u), s_k = s / (k + 1) in the trained layers.

    ℓ(u) = Σ h_δ(z_i) + Σ h_δ((x − Az)_j), h_δ(t) = √(t² + δ²): the objective, smoothed. Past the layers s_k = 0, where
    the step is (1 − μ)α-relaxed and goes on converging. ω = {log_descent ()} and the weights of the GKM.

    Args:
        gkm: T.
        layers: number of steps with s_k > 0.
        weight: μ in (0, 1).
        descent: s that training starts with, positive.

    Raises:
        ValueError: if μ or s is out of its range.
    """

    def __init__(self, gkm: GKM, layers: int, weight: float = 0.1, descent: float = 0.02):
        super().__init__()
        if not 0 < weight < 1 or not descent > 0:
            raise ValueError(f"expected 0 < weight < 1 and descent > 0, got {weight} and {descent}")
        self.gkm, self.aggregated, self.weight, self.config = gkm, layers, weight, gkm.config
        self.log_descent = nn.Parameter(torch.tensor(math.log(descent)))

    def init_problem(self, problem, x: Tensor) -> ALMPoint:
        """See `ModelBasedRule.init_problem`; the state is the point u."""
        return self.gkm.init_problem(problem, x)

    def iterate(self, problem, x: Tensor, state: ALMPoint, step: int) -> tuple[Tensor, ALMPoint]:
        """See the class."""
        u = ALMPoint(x, *state[1:])
        size = self.log_descent.exp().to(x.dtype) / (step + 1) if step < self.aggregated else 0.0
        scale = problem.b.abs().mean(-1, keepdim=True)
        smoothing = _SMOOTHING * torch.where(scale > 0, scale, 1.0)  # a signal may be 0

        def upper(point: ALMPoint) -> Tensor:
            both = torch.cat([point.x, problem.residual(point.x)], -1)
            return (both.square() + smoothing.square()).sqrt().sum(-1)

        u = aggregate(u, self.gkm.map(problem, u, step), upper, self.weight, size, self.gkm.metric(problem, step))
        return u[0], u


def iterates(rule: ModelBasedRule, task: RobustSparseCoding, x: Tensor, steps: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield (z, e, λ) after every step from 0, each of shape (signals, …)."""
    problem = task.problem(x)
    z = problem.zeros()
    state = rule.init_problem(problem, z)
    for step in range(steps):
        z, state = rule.iterate(problem, z, state, step)
        yield z, state.second, state.multiplier
