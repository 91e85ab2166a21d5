"""The learned rules of the sparse-coding study: unrolled GKM, GKM with a network, and GKM inside BMO's inner loop.

All take steps of `LinearizedALM` with weights of their own in each layer. The first step past the layers (the *tail*)
is trained as well, through some of its applications; the last one (the *rest*) is the tail with longer steps, chosen on
tuning signals. From there on the map stays the same, and converges.
"""

import copy
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

RESTS = tuple((after, factor) for after in (60, 90) for factor in (10.0, 30.0, 100.0))
"""(first layer, factor on d_z and d_e) of the rest, for 15 trained layers; with others the first number is scaled."""
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

    def around(self, gkm: GKM) -> "AggregatedGKM":
        """The same inner loop around another T."""
        out = AggregatedGKM(gkm, self.aggregated, self.weight)
        out.log_descent.data = self.log_descent.detach().clone()
        return out

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


@torch.no_grad()
def settle(
    rule: GKM | AggregatedGKM,
    task: RobustSparseCoding,
    x: Tensor,
    steps: int,
    rests: tuple[tuple[int, float], ...] = RESTS,
) -> tuple[GKM | AggregatedGKM, tuple[int, float]]:
    """Return the rule with that rest which leaves the least relative change of u after `steps`, and the rest.

    Args:
        x: tuning signals, shape (signals, rows).
        rests: as `RESTS`.
    """
    gkm, found = rule if isinstance(rule, GKM) else rule.gkm, []
    for number, (after, factor) in enumerate(rests):
        after = round(after * (len(gkm.numerical) - 1) / 15)
        rested = _rested(gkm, after, factor)
        candidate = rested if isinstance(rule, GKM) else rule.around(rested)
        before = now = torch.zeros(())
        for point in iterates(candidate, task, x, steps):
            before, now = now, torch.cat(point, -1)
        found.append((float((now - before).norm() / now.norm()), number, candidate, (after, factor)))
    return min(found, key=lambda entry: entry[:2])[2:]


def _rested(gkm: GKM, after: int, factor: float) -> GKM:
    """The GKM with its tail up to step `after`, and from there on the tail with steps `factor` times as long, α = 1."""
    layers = len(gkm.numerical) - 1
    tail = gkm.part(layers)
    rest = copy.deepcopy(tail)
    assert isinstance(rest, LinearizedALM)
    rest.spectrum = tail.spectrum  # pyright: ignore[reportAttributeAccessIssue]
    for log in (rest.log_first, rest.log_second):
        log += math.log(factor)
    parts = [gkm.part(k) for k in range(layers)] + [tail] * (after - layers) + [rest]
    out = GKM(parts, config=gkm.config)
    out.logit_relaxation[:layers] = gkm.logit_relaxation[:layers]
    out.logit_relaxation[layers:-1] = gkm.logit_relaxation[-1]
    out.logit_relaxation[-1] = -math.log(gkm.config.most_relaxation - 1)
    return out.to(gkm.logit_relaxation.dtype)
