"""Ten times the trained layers: the learned rule, then the plain step u ← D_num(u).

D_num is `LinearizedALM` with steps of its own (the *rest*), α = 1, in BMO too: (1 − μ)α = 1 is within its bound. It is
firmly nonexpansive, so u converges whatever was done before.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from l2o.constrained import ConstrainedProblem
from l2o.rule import ModelBasedRule
from l2o.rules.gkm import GKM
from l2o.rules.gkm_alm import ALMPoint, LinearizedALM
from meta_train.bmo_rules import AggregatedGKM, iterates
from tasks.robust_sparse_coding import RobustSparseCoding

RESTS = ((0.013, 0.009), (0.02, 0.013), (0.03, 0.02))
"""(d_z, d_e) of the rest that are tried, in units of mean |b|."""
RATIO = 0.998
"""r of the rest: nearly an exact projection onto the constraint."""


class Continued(ModelBasedRule):
    """A learned rule for `after` steps, then D_num with α = 1.

    Args:
        rule: takes the first steps; its state is a point (z, e, λ).
        rest: D_num.
        after: number of steps of `rule`.
    """

    def __init__(self, rule: GKM | AggregatedGKM, rest: LinearizedALM, after: int):
        super().__init__()
        self.rule, self.rest, self.after = rule, rest, after

    def init_problem(self, problem: ConstrainedProblem, x: Tensor) -> ALMPoint:
        """See `ModelBasedRule.init_problem`; the state is the point u."""
        return self.rule.init_problem(problem, x)

    def iterate(self, problem: ConstrainedProblem, x: Tensor, state: ALMPoint, step: int) -> tuple[Tensor, ALMPoint]:
        """See the module's equations."""
        if step < self.after:
            return self.rule.iterate(problem, x, state, step)
        u = self.rest(problem, ALMPoint(x, *state[1:]))
        return u.x, u


@torch.no_grad()
def settle(
    rule: GKM | AggregatedGKM,
    task: RobustSparseCoding,
    x: Tensor,
    steps: int,
    rests: Iterable[tuple[float, float]] | None = None,
) -> tuple[Continued, tuple[float, float]]:
    """Return the rule continued by that rest which leaves the least relative change of u after `steps`, and the rest.

    The rest follows twice the trained layers, all that training has seen.

    Args:
        x: tuning signals, shape (signals, rows).
        rests: pairs (d_z, d_e); None is `RESTS`.
    """
    gkm, found = rule if isinstance(rule, GKM) else rule.gkm, []
    trained = len(gkm.numerical) - 1
    for number, sizes in enumerate(RESTS if rests is None else rests):
        rest = LinearizedALM(gkm.part(trained).spectrum, *sizes, RATIO).to(gkm.logit_relaxation.dtype)  # pyright: ignore
        candidate = Continued(rule, rest, 2 * trained)
        before = now = torch.zeros(())
        for point in iterates(candidate, task, x, steps):
            before, now = now, torch.cat(point, -1)
        found.append((float((now - before).norm() / now.norm()), number, candidate, sizes))
    return min(found, key=lambda entry: entry[:2])[2:]
