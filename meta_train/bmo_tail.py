"""Ten times the trained layers: a rule, then the linearised method of multipliers to the last digit.

Training sees twice the trained layers; from there on `AcceleratedALM` goes on, whose fixed points are those of the
layers: the solutions. Nothing in it is learned.
"""

import torch
from torch import Tensor

from l2o.constrained import ConstrainedProblem
from l2o.rule import ModelBasedRule, State
from l2o.rules.gkm_accelerated import AcceleratedALM, AccelerationConfig
from l2o.rules.gkm_alm import ALMPoint, LinearizedALM, Spectrum
from tasks.robust_sparse_coding import RobustSparseCoding

SIZES = (0.02, 0.013)
"""(d_z, d_e) in units of mean |b|, the same for all rules; chosen on other signals than those of the tests."""
RATIO = 0.998
"""r: nearly an exact projection onto the constraint."""
LAST_DIGITS = AccelerationConfig(turns=10)
"""Leaps and balance."""
PLAIN = AccelerationConfig(memory=0)
"""u ← T(u) and nothing else."""


class Continued(ModelBasedRule):
    """A rule for `after` steps, then another.

    Args:
        rule: takes the first steps; its state has e and λ as `second` and `multiplier`.
        end: takes the others.
        after: number of steps of `rule`.
    """

    def __init__(self, rule: ModelBasedRule, end: AcceleratedALM, after: int):
        super().__init__()
        self.rule, self.end, self.after = rule, end, after

    def init_problem(self, problem: ConstrainedProblem, x: Tensor) -> State:
        """See `ModelBasedRule.init_problem`; the state is that of the rule."""
        return self.rule.init_problem(problem, x)

    def iterate(self, problem: ConstrainedProblem, x: Tensor, state: State, step: int) -> tuple[Tensor, State]:
        """One step of the rule, or of the end."""
        if step < self.after:
            return self.rule.iterate(problem, x, state, step)
        if step == self.after:
            state = self.end.begin(ALMPoint(x, state.second, state.multiplier))
        return self.end.iterate(problem, x, state, step - self.after)


def continued(
    rule: ModelBasedRule, task: RobustSparseCoding, after: int, config: AccelerationConfig = LAST_DIGITS
) -> Continued:
    """Return a rule of the task that goes on from step `after` with `AcceleratedALM`, all in float64."""
    step = LinearizedALM(Spectrum(task.dictionary.to(torch.float64)), *SIZES, RATIO)
    return Continued(rule, AcceleratedALM(step, config), after).double()
