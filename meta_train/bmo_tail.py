"""Ten times the trained layers: the learned rule, then the plain step u ← D_num(u), whose drifts are skipped.

D_num is `LinearizedALM` with steps of its own (the *rest*), α = 1, in BMO too: (1 − μ)α = 1 is within its bound. It is
firmly nonexpansive, so u converges whatever was done before. What makes it slow on a linear program are *drifts*: a
code has an entry much smaller than the others, the step leaves z and e where they are, and moves the multiplier by the
same small vector again and again, until one more coordinate leaves its threshold. With v = D_num(u) − u, p the argument
of the soft thresholds in units of these, and v', p' those of the step before, a drift is

    ‖v − v'‖ ≤ 0.1 ‖v‖   →   u ← D_num(u) + m v,   m = largest integer with no p_i + (m + 1)(p − p')_i past ±1

and where v = v' that is exactly the point to which m more steps would come: inside the piece on which D_num is affine,
it moves by v every time. Skips are made up to the layer `until` only, so that the plain step has the last word.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2o.constrained import ConstrainedProblem
from l2o.proximal import L1
from l2o.rule import ModelBasedRule
from l2o.rules.gkm import GKM
from l2o.rules.gkm_alm import ALMPoint, LinearizedALM
from meta_train.bmo_rules import AggregatedGKM, iterates
from tasks.robust_sparse_coding import RobustSparseCoding

RESTS = ((0.013, 0.009), (0.02, 0.013), (0.03, 0.02))
"""(d_z, d_e) of the rest that are tried, in units of mean |b|."""
RATIO = 0.998
"""r of the rest: nearly an exact projection onto the constraint."""
_SAME, _LONGEST = 0.1, 1e4
"""Largest relative change of v in a drift, and the most steps skipped at once."""


class _Tail(NamedTuple):
    """u but for z, and what the last step did."""

    second: Tensor
    """e, shape (items, rows)."""
    multiplier: Tensor
    """λ, shape (items, rows)."""
    moved: ALMPoint
    """v'; 0 where there was no plain step before."""
    inputs: Tensor
    """p', shape (items, columns + rows)."""


class Continued(ModelBasedRule):
    """A learned rule for `after` steps, then D_num with α = 1, and skips of drifts in the steps before `until`.

    Args:
        rule: takes the first steps; its state is a point (z, e, λ).
        rest: D_num.
        after: number of steps of `rule`.
        until: first step without skips; `after` makes none at all.
    """

    def __init__(self, rule: GKM | AggregatedGKM, rest: LinearizedALM, after: int, until: int):
        super().__init__()
        self.rule, self.rest, self.after, self.until = rule, rest, after, until

    def init_problem(self, problem: ConstrainedProblem, x: Tensor) -> _Tail:
        """See `ModelBasedRule.init_problem`.

        Raises:
            TypeError: if g and h are not both ‖·‖₁ with strength 1, for which skips are derived.
        """
        for function in (problem.regularizer, problem.second):
            if not isinstance(function, L1) or float(function.strength) != 1:
                raise TypeError(f"Continued needs g = h = L1(), got {function!r}; use the rule itself")
        return _still(self.rule.init_problem(problem, x))

    def iterate(self, problem: ConstrainedProblem, x: Tensor, state: _Tail, step: int) -> tuple[Tensor, _Tail]:
        """See the module's equations."""
        u = ALMPoint(x, state.second, state.multiplier)
        if step < self.after:
            x, u = self.rule.iterate(problem, x, u, step)
            return x, _still(u)
        arguments = self.rest.inputs(problem, u)
        after = self.rest.after_inputs(problem, u, arguments)
        if step >= self.until:
            return after.x, _still(after)
        weights = self.rest.weights(problem)
        steps = weights.first * weights.scale, weights.second * weights.scale
        inputs = torch.cat([p / size for p, size in zip(arguments, steps, strict=True)], -1)
        moved = ALMPoint(*(new - old for new, old in zip(after, u, strict=True)))
        turned = ALMPoint(*(new - old for new, old in zip(moved, state.moved, strict=True)))
        drifts = _size(turned, steps) <= _SAME * _size(moved, steps)
        skipped = torch.where(drifts, _steps_inside(inputs, inputs - state.inputs), 0.0)
        u = ALMPoint(*(point + skipped * change for point, change in zip(after, moved, strict=True)))
        again = skipped == 0  # after a skip, v and p of this step are not those of the one before the next
        kept = ALMPoint(*(torch.where(again, change, 0.0) for change in moved))
        return u.x, _Tail(u.second, u.multiplier, kept, inputs)


def _still(u: Any) -> _Tail:
    zero = ALMPoint(*(torch.zeros_like(part) for part in u))
    return _Tail(u.second, u.multiplier, zero, torch.cat([zero.x, zero.second], -1))


def _size(v: ALMPoint, steps: tuple[Tensor, Tensor]) -> Tensor:
    """‖v‖ with the steps as weights, about ‖v‖_H without what couples z and e; shape (items, 1)."""
    first, second = steps
    squares = v.x.square() / first, v.second.square() / second, (2 * first + second) * v.multiplier.square()
    return sum((part.sum(-1, keepdim=True) for part in squares), torch.zeros(())).sqrt()


def _steps_inside(inputs: Tensor, change: Tensor) -> Tensor:
    """The m of the module's equation, at least 0, a whole number; shape (items, 1)."""
    outside = inputs.abs() > 1
    inward = inputs.sign() * change < 0
    leaving = torch.where(inward, inputs.abs() - 1, torch.inf)
    room = torch.where(outside, leaving, 1 - change.sign() * inputs)
    tiny = torch.finfo(change.dtype).tiny
    steps = (room / change.abs().clamp(min=tiny)).amin(-1, keepdim=True)
    return (steps - 1).floor().clamp(0, _LONGEST)


@torch.no_grad()
def settle(
    rule: GKM | AggregatedGKM,
    task: RobustSparseCoding,
    x: Tensor,
    steps: int,
    rests: Iterable[tuple[float, float]] | None = None,
) -> tuple[Continued, tuple[float, float]]:
    """Return the rule continued by that rest which leaves the least relative change of u after `steps`, and the rest.

    The rest follows twice the trained layers, all that training has seen; skips end at 0.8 `steps`.

    Args:
        x: tuning signals, shape (signals, rows).
        rests: pairs (d_z, d_e); None is `RESTS`.
    """
    gkm, found = rule if isinstance(rule, GKM) else rule.gkm, []
    trained = len(gkm.numerical) - 1
    for number, sizes in enumerate(RESTS if rests is None else rests):
        rest = LinearizedALM(gkm.part(trained).spectrum, *sizes, RATIO).to(gkm.logit_relaxation.dtype)  # pyright: ignore
        candidate = Continued(rule, rest, 2 * trained, round(0.8 * steps))
        before = now = torch.zeros(())
        for point in iterates(candidate, task, x, steps):
            before, now = now, torch.cat(point, -1)
        found.append((float((now - before).norm() / now.norm()), number, candidate, sizes))
    return min(found, key=lambda entry: entry[:2])[2:]
