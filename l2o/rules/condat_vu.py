"""The primal–dual splitting of Condat and Vũ for ½‖Ax − b‖² + g(x) + h(Kx): no inner loop, no inverse.

    x_{t+1} = prox_{τ g}(x_t − τ (∇f(x_t) + Kᵀy_t))
    y_{t+1} = prox_{σ h*}(y_t + σ K(2x_{t+1} − x_t)),          1/τ − σ‖K‖² ≥ L/2

Without a second term it is the proximal gradient step with τ = 1/L.

Source: Condat 2013, J. Optim. Theory Appl. 158(2), algorithm 3.1 with ρ = 1; Vũ 2013, Adv. Comput. Math. 38(3). Step
sizes: σ‖K‖² = balance · L/2 and τ = 1 / (L/2 + σ‖K‖²).
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from l2o.problem import Composite, Problem
from l2o.rule import ModelBasedRule


class CondatVuState(NamedTuple):
    """What Condat–Vũ remembers; without a second term only τ has elements."""

    dual: Tensor
    """y_t, shape (batch…, *K.out_shape)."""
    primal_step: Tensor
    """τ, shape () or one per item."""
    dual_step: Tensor
    """σ, shape () or one per item."""


@dataclass(frozen=True)
class CondatVuConfig:
    """Options of `CondatVu`."""

    balance: float = 1.0
    """σ‖K‖² in units of L/2, above 0: larger takes longer dual and shorter primal steps."""

    def __post_init__(self):
        """Check the range.

        Raises:
            ValueError: if the balance is not positive.
        """
        if not 0 < self.balance < float("inf"):
            raise ValueError(f"balance must be positive, got {self.balance}")


class CondatVu(ModelBasedRule):
    """A proximal gradient step on x, then a proximal step on the dual variable of h; nothing is learned."""

    iterated = ("dual",)

    def __init__(self, config: CondatVuConfig | None = None):
        super().__init__()
        self.config = config or CondatVuConfig()

    def init_problem(self, problem: Problem, x: Tensor) -> CondatVuState:
        """See `ModelBasedRule.init_problem`."""
        lipschitz = problem.lipschitz.to(x.dtype)
        if problem.composite is None:
            return CondatVuState(x.new_empty(0), 1 / lipschitz, x.new_empty(0))
        operator = problem.composite.operator
        norm = operator.norm().to(x.dtype).square().clamp(min=1e-12)  # K = 0 on a single pixel
        dual_step = self.config.balance * lipschitz / (2 * norm)
        primal_step = 2 / ((1 + self.config.balance) * lipschitz)
        dual = x.new_zeros((*problem.batch_shape, *operator.out_shape))
        return CondatVuState(dual, primal_step, dual_step)

    def iterate(self, problem: Problem, x: Tensor, state: CondatVuState, step: int) -> tuple[Tensor, CondatVuState]:
        """One step of x and one of the dual variable."""
        gradient = problem.smooth_grad(x)
        if problem.composite is not None:
            gradient = gradient + problem.composite.operator.adjoint(state.dual)
        new = problem.regularizer.prox(x - problem.per_item(state.primal_step) * gradient, state.primal_step)
        if problem.composite is not None:
            state = state._replace(dual=_ascend(problem.composite, 2 * new - x, state))
        return new, state


def _ascend(term: Composite, x: Tensor, state: CondatVuState) -> Tensor:
    """prox_{σ h*}(y + σ Kx)."""
    step = state.dual_step
    scale = step.reshape(step.shape + (1,) * len(term.operator.out_shape)) if step.dim() else step
    return term.function.conjugate().prox(state.dual + scale * term.operator.forward(x), step)
