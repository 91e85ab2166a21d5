"""Any rule, made to converge: a candidate is kept, item by item, where F falls enough, else a FISTA step is taken.

    T(x) = prox_{g/L}(x − ∇f(x)/L)                                       the ISTA step, L ≥ ‖A‖²
    y ← inner rule, or Newton step on the support
    keep y   if   F(y) ≤ F(x_k) − σ (L/2) ‖x_k − T(x_k)‖²,   0 < σ < 1    (★)
    else     x_{k+1} = the FISTA step if (★) holds for it, else T(x_k), for which (★) always holds

Theorem. If F is coercive (LASSO with λ > 0 is), then for every inner rule and every input ‖x_k − T(x_k)‖ → 0, F(x_k)
falls to min F, and every limit point of x_k is a minimiser. Proof: T satisfies (★) with σ = 1 (Beck 2017, First-Order
Methods in Optimization, Lemma 10.4), so (★) holds at every step; the sum of σ (L/2) ‖x_k − T(x_k)‖² is at most
F(x_0) − min F, and T is continuous. Where F is piecewise quadratic, as here, an error bound makes convergence linear
(Luo & Tseng 1992, SIAM J. Control and Optimization 30(2); Tseng & Yun 2009, Math. Programming 117).

Source: Heaton, Chen, Wang & Yin 2023, Safeguarded learned convex optimization, AAAI, arXiv:2003.01880, whose safeguard
is the fixed-point residual; here it is sufficient decrease, with the monotone FISTA of Beck & Teboulle 2009b, IEEE
Trans. Image Processing 18(11), §V.A, restarted as by O'Donoghue & Candès 2015. F(y) − F(x) is computed without
cancellation, as ½⟨∇f(x) + ∇f(y), y − x⟩ + g(y) − g(x), exact for a quadratic f. An item whose candidate was refused
gets no other for 4, 8, 16, … steps, so that a useless rule costs a logarithmic number of trials.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2o.problem import Problem
from l2o.proximal import L1, Dictionary, Matrix
from l2o.proximal.function import item_sum, per_item
from l2o.rule import ModelBasedRule, State, UpdateRule
from l2o.rules.support_newton import SupportNewton, SupportNewtonConfig
from l2o.solve import init_state, make_step

Rows = Tensor | slice


class SafeguardedState(NamedTuple):
    """What a safeguarded run remembers; shapes (items, item…) or (items,), with all batch axes made one."""

    step_size: Tensor
    """1/L."""
    gradient: Tensor
    """∇f(x_k)."""
    previous: Tensor
    """x_{k−1}."""
    previous_gradient: Tensor
    """∇f(x_{k−1})."""
    momentum: Tensor
    """t_k of FISTA."""
    wait: Tensor
    """Steps until the item's next candidate."""
    pause: Tensor
    """How long it waits after the next refusal."""
    tried: Tensor
    """Candidates so far."""
    accepted: Tensor
    """Candidates kept."""
    inner: State
    """Of the inner rule; None once a Newton step has taken its place."""
    polish: State
    """Of the Newton step; None without one."""


@dataclass(frozen=True)
class SafeguardedConfig:
    """Options of `Safeguarded`."""

    decrease: float = 0.01
    """σ of (★), in (0, 1); small, for a step of FISTA may fall less than one of ISTA and lead further."""
    block: int | None = None
    """Inner steps that make one candidate; None: all layers of a rule that has layers, else 1."""
    polish: SupportNewtonConfig | None = SupportNewtonConfig()
    """Newton steps on the support, in the place of the inner rule after its layers; None: the inner rule throughout."""
    pause: int = 4
    """Steps for which an item whose candidate was refused gets no other; doubled by every further refusal in a row."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if decrease is outside (0, 1), or block or pause is below 1.
        """
        if not 0 < self.decrease < 1:
            raise ValueError(f"decrease must lie strictly between 0 and 1, got {self.decrease}")
        for name in ("block", "pause"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class Safeguarded(ModelBasedRule):
    """A rule for `l2o.solve` that converges whatever the inner rule does. Not for training: no gradient passes.

    A step is one candidate: the first is all layers of the inner rule. θ is the inner rule's; save that one.

    Args:
        inner: model-based or a gradient rule; None leaves FISTA and the Newton step.
    """

    def __init__(self, inner: UpdateRule | None, config: SafeguardedConfig | None = None):
        super().__init__()
        self.config = config or SafeguardedConfig()
        self.inner = inner
        self.polish = SupportNewton(self.config.polish) if self.config.polish else None
        self.block = self.config.block or getattr(inner, "layers", None) or 1

    @torch.no_grad()
    def init_problem(self, problem: Problem, x: Tensor) -> SafeguardedState:
        """See `ModelBasedRule.init_problem`.

        Raises:
            ValueError: if there are Newton steps, and the operator is no matrix or the regularizer not ‖·‖₁.
        """
        flat, x_flat = _flatten(problem), _items(problem, x)
        polish = None if self.polish is None else self.polish.init_problem(flat, x_flat)
        known = polish is not None and not x.any()
        gradient = -polish.correlation if known else flat.smooth_grad(x_flat)  # pyright: ignore
        ones = x.new_ones(len(x_flat))
        counts = torch.zeros(len(x_flat), dtype=torch.int32, device=x.device)
        return SafeguardedState(
            *(ones / flat.lipschitz.to(x.dtype), gradient, x_flat, gradient),
            *(ones, counts, counts + self.config.pause, counts, counts),
            inner=None if self.inner is None else init_state(self.inner, problem, x),
            polish=polish,
        )

    @torch.no_grad()
    def iterate(
        self, problem: Problem, x: Tensor, state: SafeguardedState, step: int
    ) -> tuple[Tensor, SafeguardedState]:
        """See the module's equations."""
        flat, shape, x = _flatten(problem), x.shape, _items(problem, x)
        mapped = _prox_step(flat, x, state.gradient, state.step_size)
        residual = item_sum((x - mapped).square(), flat.ndim)
        needed = self.config.decrease / 2 * residual / state.step_size
        # Beyond rounding there is nothing to gain; such items cost nothing more.
        open_ = ~(residual <= (32 * torch.finfo(x.dtype).eps) ** 2 * item_sum(x.square(), flat.ndim))
        due = open_ & (state.wait == 0)
        new, after, kept = self._try_candidate(problem, flat, x, shape, due, needed, state, step)
        left = open_ & ~kept
        if left.any():
            new, after = _fall_back(flat, x, mapped, needed, left, state, new, after)
        return new.reshape(shape), after

    def _try_candidate(
        self,
        problem: Problem,
        flat: Problem,
        x: Tensor,
        shape,
        due: Tensor,
        needed: Tensor,
        state: SafeguardedState,
        step,
    ) -> tuple[Tensor, SafeguardedState, Tensor]:
        """Return x and the state with the candidates that pass (★), and for which items they did."""
        found = self._propose(problem, flat, x.reshape(shape), x, due, state, step)
        after = state._replace(previous=x, previous_gradient=state.gradient, wait=(state.wait - 1).clamp(min=0))
        if found is None:
            return x, after, torch.zeros_like(due)
        rows, y, y_gradient, made, inner = found
        change = _change(_take(flat, rows), x[rows], state.gradient[rows], y, y_gradient)
        fits = made & change.isfinite() & (change <= -needed[rows])
        kept, tried = torch.zeros_like(due), torch.zeros_like(due)
        kept[rows], tried[rows] = fits, made
        refused, longer = due & ~kept, (state.pause * 2).clamp(max=1 << 20)
        after = after._replace(
            gradient=_merge(state.gradient, rows, fits, y_gradient),
            momentum=torch.where(kept, 1.0, state.momentum),
            wait=torch.where(refused, state.pause, after.wait),
            pause=torch.where(refused, longer, torch.where(kept, self.config.pause, state.pause)),
            tried=state.tried + tried,
            accepted=state.accepted + kept,
            inner=inner,
        )
        return _merge(x, rows, fits, y), after, kept

    def _propose(
        self,
        problem: Problem,
        flat: Problem,
        x: Tensor,
        rows_x: Tensor,
        due: Tensor,
        state: SafeguardedState,
        step: int,
    ) -> tuple[Rows, Tensor, Tensor, Tensor, Any] | None:
        """Return which items have a candidate, it, its gradient, for which of them it counts, and the inner state.

        None where there is no candidate.
        """
        if self.inner is not None and (self.polish is None or step == 0):
            y, inner = x, state.inner
            for k in range(self.block):
                y, inner = make_step(self.inner, problem, y, inner, step * self.block + k)
            y = _items(problem, y.to(x.dtype))
            return slice(None), y, flat.smooth_grad(y), due, inner
        if self.polish is None or not due.any():
            return None
        rows = _rows(flat, due)
        y, y_gradient, made = self.polish.propose(rows_x[rows], state.gradient[rows], state.polish.take(rows))
        return rows, y, y_gradient, made & due[rows], None


def acceptance_rate(state: SafeguardedState) -> Tensor:
    """Return the fraction of an item's candidates that were kept, shape (items,); NaN where there was none."""
    return state.accepted / state.tried


def _fall_back(
    problem: Problem,
    x: Tensor,
    mapped: Tensor,
    needed: Tensor,
    left: Tensor,
    state: SafeguardedState,
    new: Tensor,
    after,
) -> tuple[Tensor, SafeguardedState]:
    """Take FISTA's step for the items that are left, T(x) where it does not go down enough."""
    rows = _rows(problem, left, most=0.7)  # to gather and to scatter costs as much as a third of a step
    own, now, gradient = _take(problem, rows), x[rows], state.gradient[rows]
    following = (1 + (1 + 4 * state.momentum[rows].square()).sqrt()) / 2
    weight = per_item((state.momentum[rows] - 1) / following, now, own.ndim)
    v = now + weight * (now - state.previous[rows])
    z = _prox_step(own, v, gradient + weight * (gradient - state.previous_gradient[rows]), state.step_size[rows])
    z_gradient = own.smooth_grad(z)
    change = _change(own, now, gradient, z, z_gradient)
    fits = change.isfinite() & (change <= -needed[rows])
    uphill = item_sum((v - z) * (z - now), own.ndim) > 0
    bad = left[rows] & ~fits
    if bad.any():
        z = torch.where(_broadcast(bad, z), mapped[rows], z)
        again = _rows(own, bad)
        z_gradient = _merge(z_gradient, again, bad[again], _take(own, again).smooth_grad(z[again]))
    momentum = after.momentum.clone()
    momentum[rows] = torch.where(left[rows], torch.where(fits & ~uphill, following, 1.0), momentum[rows])
    gradient = _merge(after.gradient, rows, left[rows], z_gradient)
    return _merge(new, rows, left[rows], z), after._replace(gradient=gradient, momentum=momentum)


def _prox_step(problem: Problem, v: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
    """prox_{sg}(v − s∇f)."""
    return problem.prox(v - per_item(step, v, problem.ndim) * gradient, step)


def _change(problem: Problem, x: Tensor, gradient: Tensor, y: Tensor, y_gradient: Tensor) -> Tensor:
    """F(y) − F(x), with a relative error even where F(y) is close to F(x)."""
    smooth = 0.5 * item_sum((gradient + y_gradient) * (y - x), problem.ndim)
    g = problem.regularizer
    if isinstance(g, L1):
        return smooth + g.strength * item_sum(y.abs() - x.abs(), problem.ndim)
    return smooth + g.value(y) - g.value(x)


def _items(problem: Problem, x: Tensor) -> Tensor:
    """Make all batch axes one."""
    return x.reshape(-1, *problem.operator.in_shape)


def _flatten(problem: Problem) -> Problem:
    """Return the problem with one batch axis."""
    axes, shape = len(problem.batch_shape), problem.batch_shape
    if axes == 1:
        return problem
    operator, g = problem.operator, problem.regularizer
    if isinstance(operator, Dictionary | Matrix) and operator.matrix.dim() > 2:
        operator = replace(operator, matrix=operator.matrix.reshape(-1, *operator.matrix.shape[-2:]))
    if isinstance(strength := getattr(g, "strength", None), Tensor) and strength.dim():
        g = replace(g, strength=strength.expand(shape).reshape(-1))  # pyright: ignore
    return Problem(operator, problem.b.reshape(-1, *problem.operator.out_shape), g, problem.composite)


def _rows(problem: Problem, mask: Tensor, most: float = 1.0) -> Rows:
    """Return the items of a mask, or all where a problem of some cannot be made or they are at least a share `most`."""
    separable = isinstance(problem.operator, Dictionary | Matrix) and isinstance(problem.regularizer, L1)
    return slice(None) if not separable or bool(mask.sum() >= most * len(mask)) else mask.nonzero().squeeze(-1)


def _take(problem: Problem, rows: Rows) -> Problem:
    """Return the problem of some items."""
    if _is_whole(rows):
        return problem
    operator, g = problem.operator, problem.regularizer
    if isinstance(operator, Dictionary | Matrix) and operator.matrix.dim() > 2:
        operator = Matrix(operator.matrix[rows])
    if isinstance(strength := getattr(g, "strength", None), Tensor) and strength.dim():
        g = replace(g, strength=strength[rows])  # pyright: ignore
    return Problem(operator, problem.b[rows], g)


def _broadcast(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(-1, *(1,) * (like.dim() - 1))


def _is_whole(rows: Rows) -> bool:
    return isinstance(rows, slice) and rows == slice(None)


def _merge(into: Tensor, rows: Rows, mask: Tensor, values: Tensor) -> Tensor:
    """Return `into` with the rows of a mask replaced."""
    mask = _broadcast(mask, values)
    if _is_whole(rows):
        return torch.where(mask, values, into)
    result = into.clone()
    result[rows] = torch.where(mask, values, into[rows])
    return result
