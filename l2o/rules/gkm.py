"""GKM, the generalised Krasnoselskii–Mann iteration: a splitting method, a learned network, and an average.

    u_{k+1} = T(u_k, ω),   T = (1 − α) Id + α D,   D = D_num ∘ D_net

D_num is a step of a splitting method, nonexpansive in the norm of its metric H_ω; D_net is a learned map that is
nonexpansive in the same norm, or the identity. Then T is α-averaged in ‖·‖_{H_ω} and u_k converges to a fixed point,
wherever one exists (Krasnoselskii–Mann).

From the paper: T, D and the list of D_num with their H_ω (Liu, Liu, Zeng, Zhang & Zhang 2022, Optimization-Derived
Learning with Essential Convergence Analysis of Training and Hyper-training, ICML, arXiv:2206.07875, §2).
Ours, where its text is silent: (1) every D_num here is even firmly nonexpansive or a₀-averaged, so that with D_net = Id
any α < 1/a₀ keeps T averaged; with a network α < 1. The derivations stand with the methods. (2) Weights may differ from
step to step: a map that stays the same from some step on converges whatever was done before, and the fixed points of
all methods here but `ProximalADMM` do not depend on ω. (3) A network moves the fixed points, unless it fixes the
solutions.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from l2o.metric import Metric
from l2o.rule import ModelBasedRule

Point = Any
"""u: a NamedTuple of tensors, each of shape (items, own axes…), the first of which is the primal variable x."""


_KINDS = {"Problem": "½‖Ax − b‖² + g(x) + h(Kx)", "ConstrainedProblem": "g(z) + h(e) subject to Az + e = b"}


class NumericalPart(nn.Module, ABC):
    """D_num(·, ω): a step of a splitting method whose parameters ω keep it averaged in the metric H_ω.

    A subclass is final, names the `problem` that it takes, and implements `start`, `forward`, `metric` and
    `averagedness`.
    """

    problem: type = object
    """Class of the problems that it solves; `GKM` refuses all others."""

    @abstractmethod
    def start(self, problem: Any, x: Tensor) -> Point:
        """Return the point u_0 with primal variable x."""

    @abstractmethod
    def forward(self, problem: Any, u: Point) -> Point:
        """Return D_num(u)."""

    @abstractmethod
    def metric(self, problem: Any) -> Metric:
        """Return H_ω."""

    @abstractmethod
    def averagedness(self, problem: Any) -> float:
        """Return the a₀ in (0, 1) with which D_num is averaged in H_ω; 1/2 is firmly nonexpansive."""

    def dual_variable(self, problem: Any, u: Point) -> Tensor | None:
        """Return the dual variable at u, for a certificate: its entry `multiplier` or `dual`, unless overridden."""
        return getattr(u, "multiplier", getattr(u, "dual", None))


@dataclass(frozen=True)
class GKMConfig:
    """Options of `GKM`."""

    relaxation: float = 1.0
    """α that training starts with, in (0, `most_relaxation`)."""
    most_relaxation: float = 2.0
    """α stays below this: 1/a₀ without a network, 2 for a firmly nonexpansive D_num; 1 with a network."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if not 0 < relaxation < most_relaxation ≤ 2.
        """
        if not 0 < self.relaxation < self.most_relaxation <= 2:
            raise ValueError(
                f"expected 0 < relaxation < most_relaxation <= 2, got {self.relaxation} and {self.most_relaxation}"
            )


class GKM(ModelBasedRule):
    """u ← (1 − α) u + α D_num(D_net(u)); ω = {logit_relaxation (layers,), those of D_num, those of D_net}.

    Args:
        numerical: D_num; a sequence has one for each of the first steps, and the last one for all later steps.
        network: D_net, of points, nonexpansive in the metric of D_num: `l2o.metric.in_metric` makes one of a
            nonexpansive module. None is the identity.

    Raises:
        ValueError: if `numerical` is empty, or a network comes with an α that may exceed 1.
    """

    iterated = None

    def __init__(
        self,
        numerical: NumericalPart | Sequence[NumericalPart],
        network: Callable[[Point], Point] | None = None,
        config: GKMConfig | None = None,
    ):
        super().__init__()
        self.config = config = config or GKMConfig()
        parts = [numerical] if isinstance(numerical, NumericalPart) else list(numerical)
        if not parts:
            raise ValueError("GKM needs at least one D_num")
        if network is not None and config.most_relaxation > 1:
            raise ValueError(f"with a network α must stay below 1: set most_relaxation=1, not {config.most_relaxation}")
        self.layers = len(parts)
        self.numerical = nn.ModuleList(parts)
        self.network = network
        ratio = config.relaxation / config.most_relaxation
        self.logit_relaxation = nn.Parameter(torch.full((len(parts),), math.log(ratio / (1 - ratio))))

    def part(self, step: int) -> NumericalPart:
        """Return the D_num of a step."""
        part = self.numerical[min(step, len(self.numerical) - 1)]
        assert isinstance(part, NumericalPart)
        return part

    def relaxation(self, step: int) -> Tensor:
        """Return the α of a step, shape ()."""
        return self.config.most_relaxation * self.logit_relaxation[min(step, len(self.numerical) - 1)].sigmoid()

    def check(self, problem: Any) -> None:
        """Check that all steps are averaged: α a₀ < 1. `init_problem` does it, so that `solve` runs no other rule.

        Where `most_relaxation` · a₀ ≤ 1 every α is allowed, also one that is rounded up to `most_relaxation`.

        Raises:
            TypeError: if a D_num takes another kind of problem.
            ValueError: naming the first step where they are not.
        """
        self._check_kind(problem)
        for step in range(len(self.numerical)):
            most = self.part(step).averagedness(problem)
            product = float(self.relaxation(step).detach()) * most
            if not product < 1 and not self.config.most_relaxation * most <= 1:
                raise ValueError(
                    f"step {step} is not averaged: α a₀ = {product:.4g} is not below 1; lower relaxation, and "
                    f"most_relaxation to 1/a₀ = {1 / most:.4g} if it is trained"
                )

    def _check_kind(self, problem: Any) -> None:
        for part in self.numerical:
            assert isinstance(part, NumericalPart)
            if not isinstance(problem, part.problem):
                raise TypeError(
                    f"{type(part).__name__} needs a {part.problem.__module__}.{part.problem.__name__}, "
                    f"{_KINDS.get(part.problem.__name__, 'its own kind')}; got a {type(problem).__name__}"
                )

    def map(self, problem: Any, u: Point, step: int = 10**9) -> Point:
        """Return T(u, ω) of a step; unless told, the one of all late steps."""
        moved = self.part(step)(problem, u if self.network is None else self.network(u))
        alpha = self.relaxation(step)
        return type(u)(*(old + alpha.to(old.dtype) * (new - old) for old, new in zip(u, moved, strict=True)))

    def metric(self, problem: Any, step: int = 10**9) -> Metric:
        """Return H_ω of a step; unless told, the one of all late steps."""
        return self.part(step).metric(problem)

    def dual_variable(self, problem: Any, u: Point) -> Tensor | None:
        """Return the dual variable at u of the D_num of late steps, for the certificate of `l2o.solve`."""
        return self.part(10**9).dual_variable(problem, u)

    def start(self, problem: Any, x: Tensor | None = None) -> Point:
        """Return u_0; unless told, with x = 0.

        Raises:
            TypeError: if a D_num takes another kind of problem.
        """
        self._check_kind(problem)
        return self.part(0).start(problem, problem.zeros() if x is None else x)

    def init_problem(self, problem: Any, x: Tensor) -> Point:
        """See `ModelBasedRule.init_problem`; the state is the point u.

        Raises:
            TypeError: if a D_num takes another kind of problem.
            ValueError: if a step is not averaged, see `check`.
        """
        self.check(problem)
        return self.start(problem, x)

    def iterate(self, problem: Any, x: Tensor, state: Point, step: int) -> tuple[Tensor, Point]:
        """One step of T from the point whose primal variable is x."""
        u = self.map(problem, type(state)(x, *state[1:]), step)
        return u[0], u
