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
gets no other for 16, 32, 64, … steps, so that a useless rule costs a logarithmic number of trials.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2o.problem import Problem
from l2o.rule import ModelBasedRule, State, UpdateRule
from l2o.rules.safeguarded_items import Rows, flat_items, flatten, merge, rows_of, take
from l2o.rules.safeguarded_steps import Descent, change, fall_back, gradient_at, look_ahead, start_descent
from l2o.rules.support_newton import SupportNewton, SupportNewtonConfig
from l2o.solve import init_state, make_step


class SafeguardedState(NamedTuple):
    """What a safeguarded run remembers; shapes (items,), with all batch axes made one."""

    descent: Descent
    """Of FISTA."""
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


class Candidate(NamedTuple):
    """What is proposed instead of a FISTA step."""

    rows: Rows
    """Which items it is for."""
    y: Tensor
    """The proposed iterate of each of them."""
    gradient: Tensor
    """∇f(y)."""
    counts: Tensor
    """Whether the item was due for one, and one could be made."""
    inner: Any
    """The next state of the inner rule."""


@dataclass(frozen=True)
class SafeguardedConfig:
    """Options of `Safeguarded`."""

    decrease: float = 0.01
    """σ of (★), in (0, 1); small, for a step of FISTA may fall less than one of ISTA and lead further."""
    block: int | None = None
    """Inner steps that make one candidate; None: all layers of a rule that has layers, else 1."""
    polish: SupportNewtonConfig | None = SupportNewtonConfig()
    """Newton steps on the support, in the place of the inner rule after its layers; None: the inner rule throughout."""
    pause: int = 16
    """Steps for which an item whose candidate was refused gets no other; doubled by every further refusal in a row."""
    scouts: int | None = 32
    """With Newton steps, a batch of 8 times as many items or more lets so many try the inner rule's candidate first,
    and the others only if half of these can keep theirs; None: all try. Nothing else lets items see one another."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if decrease is outside (0, 1), or block, pause or scouts is below 1.
        """
        if not 0 < self.decrease < 1:
            raise ValueError(f"decrease must lie strictly between 0 and 1, got {self.decrease}")
        for name in ("block", "pause", "scouts"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class Safeguarded(ModelBasedRule):
    """A rule for `l2o.solve` that converges whatever the inner rule does. Not for training: no gradient passes.

    A step is one candidate: the first is all layers of the inner rule. θ is the inner rule's; save that one.

    Args:
        inner: model-based or a gradient rule; None leaves FISTA and the Newton step.
    """

    differentiable = False
    """`solve` refuses a gradient mode: steps are chosen by comparison, and none is recorded."""

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
            ValueError: if there are Newton steps, and the operator is no matrix or the regularizer not ‖·‖₁; or there
                is a second term h(Kx).
        """
        if problem.composite is not None:
            raise ValueError("Safeguarded is for one regularizer, but there is a second term h(Kx); use CondatVu")
        flat, x_flat = flatten(problem), flat_items(problem, x)
        polish = self._start_polish(flat, x_flat)
        counts = torch.zeros(len(x_flat), dtype=torch.int32, device=x.device)
        return SafeguardedState(
            start_descent(flat, x_flat, None if polish is None else polish.correlation),
            *(counts, counts + self.config.pause, counts, counts),
            inner=None if self.inner is None else init_state(self.inner, problem, x),
            polish=polish,
        )

    def _start_polish(self, flat: Problem, x: Tensor) -> State:
        if self.polish is None:
            return None
        try:
            return self.polish.init_problem(flat, x)
        except ValueError as error:
            cure = "leave the Newton steps out: Safeguarded(rule, SafeguardedConfig(polish=None))"
            raise ValueError(f"the Newton steps of Safeguarded do not fit the problem: {error}; {cure}") from error

    @torch.no_grad()
    def iterate(
        self, problem: Problem, x: Tensor, state: SafeguardedState, step: int
    ) -> tuple[Tensor, SafeguardedState]:
        """See the module's equations."""
        flat, shape, x = flatten(problem), x.shape, flat_items(problem, x)
        before = state.descent
        ahead, following = look_ahead(flat, x, before)
        needed = self.config.decrease / 2 * ahead.residual / before.step_size
        # Beyond rounding there is nothing to gain; such items cost nothing more.
        open_ = ~(ahead.residual <= (2 * torch.finfo(x.dtype).eps) ** 2 * ahead.size)
        due = open_ & (state.wait == 0)
        candidate = self._propose(problem, flat, x, shape, due, state, step) if due.any() else None
        descent = before._replace(previous=x, previous_gradient=before.gradient)
        new, left, after = x, open_, state._replace(wait=(state.wait - 1).clamp(min=0))
        if candidate is not None:
            new, descent, kept = _accept(flat, x, needed, before, descent, candidate)
            after, left = self._count(after, candidate, due, kept), open_ & ~kept
        if left.any():
            rows, z, gradient, momentum = fall_back(flat, x, ahead, following, needed, left, before)
            mask = left[rows]
            new = merge(new, rows, mask, z, fresh=True)
            descent = descent._replace(
                gradient=merge(descent.gradient, rows, mask, gradient, fresh=True),
                momentum=merge(descent.momentum, rows, mask, momentum),
            )
        return new.reshape(shape), after._replace(descent=descent)

    def _propose(
        self, problem: Problem, flat: Problem, x: Tensor, shape, due: Tensor, state: SafeguardedState, step: int
    ) -> Candidate | None:
        """Return a candidate for the items that are due, None where there is none."""
        if self.inner is not None and self.polish is None:
            return self._run_inner(problem, flat, x, shape, due, state, step)
        if self.inner is not None and step == 0:
            found = (
                self._run_inner(problem, flat, x, shape, due, state, step)
                if self._scouts_agree(flat, x, state)
                else None
            )
            return found or Candidate(slice(None), x, state.descent.gradient, torch.zeros_like(due), None)
        if self.polish is None:
            return None
        rows = rows_of(flat, due)
        found = self.polish.propose(x[rows], state.descent.gradient[rows], state.polish.take(rows))
        return Candidate(rows, *found[:2], found[2] & due[rows], None)

    def _run_inner(
        self, problem: Problem, flat: Problem, x: Tensor, shape, due: Tensor, state: SafeguardedState, step: int
    ) -> Candidate:
        y, inner = x.reshape(shape), state.inner
        for k in range(self.block):
            y, inner = make_step(self.inner, problem, y, inner, step * self.block + k)  # pyright: ignore
        y = flat_items(problem, y.to(x.dtype))
        return Candidate(slice(None), y, gradient_at(flat, y, state.descent), due, inner)

    def _scouts_agree(self, flat: Problem, x: Tensor, state: SafeguardedState) -> bool:
        """Tell whether half of the scouts, spread over the batch, would go down with the inner rule."""
        scouts = self.config.scouts
        if scouts is None or len(x) < 8 * scouts:
            return True
        rows = torch.arange(0, len(x), len(x) // scouts, device=x.device)[:scouts]
        part, its, at = take(flat, rows), state.descent.take(rows), x[rows]
        few = state._replace(descent=its, inner=init_state(self.inner, part, at))  # pyright: ignore
        y = self._run_inner(part, part, at, at.shape, rows, few, 0)
        return bool((change(part, at, y.y, y.gradient, its) < 0).sum() * 2 >= scouts)

    def _count(self, state: SafeguardedState, candidate: Candidate, due: Tensor, kept: Tensor) -> SafeguardedState:
        """Note who tried and who was refused; these wait, for longer every time."""
        tried = torch.zeros_like(due)
        tried[candidate.rows] = candidate.counts
        refused, longer = due & ~kept, (state.pause * 2).clamp(max=1 << 20)
        return state._replace(
            wait=torch.where(refused, state.pause, state.wait),
            pause=torch.where(refused, longer, torch.where(kept, self.config.pause, state.pause)),
            tried=state.tried + tried,
            accepted=state.accepted + kept,
            inner=candidate.inner,
        )


def acceptance_rate(state: SafeguardedState) -> Tensor:
    """Return the fraction of an item's candidates that were kept, shape (items,); NaN where there was none."""
    return state.accepted / state.tried


def _accept(
    problem: Problem, x: Tensor, needed: Tensor, before: Descent, after: Descent, candidate: Candidate
) -> tuple[Tensor, Descent, Tensor]:
    """Return x and FISTA's state with the candidates that pass (★), and for which items they did."""
    rows, y, gradient, counts, _ = candidate
    moved = change(take(problem, rows), x[rows], y, gradient, before.take(rows))
    fits = counts & moved.isfinite() & (moved <= -needed[rows])
    kept = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    kept[rows] = fits
    after = after._replace(
        gradient=merge(after.gradient, rows, fits, gradient), momentum=torch.where(kept, 1.0, after.momentum)
    )
    return merge(x, rows, fits, y), after, kept
