"""Two problems on which short truncations are known to fail, both from the paper of PES (Vicol et al. 2021, §5).

*Toy regression*: two learning rates in one schedule. Gradient descent on two variables,

    f(x) = √(x₁² + 5) − √5 + sin²(x₂) exp(−5 x₁²) + |x₂ − 100| / 4,   x_0 = (1, 1),
    x_{t+1} = x_t − a_t ∇f(x_t),   a_t = (1 − t/T) e^{θ₁} + (t/T) e^{θ₂},

learns slowly at first and far from its minimum, so that a short window sees next to nothing of what θ brings about; for
large θ the trajectory is chaotic. Source: arXiv:2112.13835, §5.1, T = 100, start at θ = log (0.01, 0.01), Adam(0.99,
0.999) with step size 0.01 at K = 10. Differs from it: the mean of the losses, not their sum.

*Influence balancing*: a linear system is driven by one weight θ, which pushes the first p units up, the others down:

    s_{t+1} = A s_t + θ (1, …, 1, −1, …, −1),   A_ii = A_{i,i+1} = 1/2,   s_0 = 1,   f(s) = ½ (s¹ − 1)².

A unit reaches s¹ only through those before it, so over a few steps θ raises s¹, and over many it lowers it: the
gradient of a short window has the wrong sign. Source: Tallec & Ollivier 2017, arXiv:1702.05043, §5 (n = 23 units,
p = 10, start at θ = 0.5). Differs from it: the mean of the losses over a horizon with resets, not one endless sequence.
That meta-loss is a quadratic function of θ, which smoothing does not tilt: every unbiased estimator has the exact
gradient as expectation, at any σ.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.rule import Observation, Params, UpdateRule
from tasks.task import Data, TaskFamily

UNITS, POSITIVE = 23, 10


class NoState(NamedTuple):
    """Neither rule remembers anything."""


class LinearSystem(UpdateRule):
    """One step of influence balancing as an update rule, θ = {theta (1,)}; its optimizee's params are the units."""

    config = None

    def __init__(self, theta: float = 0.5):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([theta], dtype=torch.float64))
        self.signs = torch.ones(UNITS, dtype=torch.float64)
        self.signs[POSITIVE:] = -1

    def init_state(self, params: Params) -> NoState:
        """Return the empty state."""
        return NoState()

    def forward(self, observation: Observation, state: NoState) -> tuple[Params, NoState]:
        """See the module's equation."""
        units = observation.params["units"]
        next_units = nn.functional.pad(units[..., 1:], (0, 1))
        return {"units": 0.5 * units + 0.5 * next_units + self.theta * self.signs}, state


class InfluenceBalancing(TaskFamily):
    """f(s) = ½ (s¹ − 1)² from s_0 = 1; all tasks are the same, there are no minibatches."""

    vectorized = "axes"

    def init_params(self, tasks: Data, n_tasks: int, generator: torch.Generator) -> Params:
        """Return units (n_tasks, 23)."""
        return {"units": torch.ones(n_tasks, UNITS, dtype=torch.float64, device=generator.device)}

    def loss(self, params: Params, task: Data, batch: Data) -> Tensor:
        """½ (s¹ − 1)², shape (), or (n_tasks,) with a leading task axis."""
        return 0.5 * (params["units"][..., 0] - 1).square()


class Schedule(UpdateRule):
    """Gradient descent whose step size moves linearly between two learned ones, θ = {theta (2,)}, their logarithms."""

    config = None

    def __init__(self, horizon: int, theta: tuple[float, float] = (math.log(0.01), math.log(0.01))):
        super().__init__()
        self.horizon = horizon
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def init_state(self, params: Params) -> NoState:
        """Return the empty state."""
        return NoState()

    def forward(self, observation: Observation, state: NoState) -> tuple[Params, NoState]:
        """See the module's equation."""
        assert observation.grads is not None
        passed = observation.step / self.horizon
        first, last = self.theta.exp().unbind(-1)
        rate = (1 - passed) * first + passed * last
        return {name: x - rate * observation.grads[name] for name, x in observation.params.items()}, state


class ToyRegression(TaskFamily):
    """The module's f(x) from x_0 = (1, 1); all tasks are the same, there are no minibatches."""

    vectorized = "axes"

    def init_params(self, tasks: Data, n_tasks: int, generator: torch.Generator) -> Params:
        """Return x (n_tasks, 2)."""
        return {"x": torch.ones(n_tasks, 2, dtype=torch.float64, device=generator.device)}

    def loss(self, params: Params, task: Data, batch: Data) -> Tensor:
        """f(x), shape (), or (n_tasks,) with a leading task axis."""
        first, second = params["x"].unbind(-1)
        valley = (first.square() + 5).sqrt() - math.sqrt(5)
        return valley + second.sin().square() * (-5 * first.square()).exp() + (second - 100).abs() / 4


@dataclass(frozen=True)
class Training:
    """How a problem is trained on with every estimator."""

    truncations: dict[str, tuple[int, ...]]
    """Truncations K of each estimator."""
    optimizer: Callable[[list[nn.Parameter], int], torch.optim.Optimizer]
    """From the parameters and K; its step size is proportional to K, so that θ moves as far in a trajectory whatever
    K is."""
    sigma: float
    trajectories: int
    seeds: int
    near: float
    """Training has succeeded when the meta-loss stays within this factor of its minimum."""


@dataclass(frozen=True)
class Problem:
    """A problem of the study."""

    name: str
    family: TaskFamily
    rule: Callable[[], UpdateRule]
    """Makes the rule, whose θ stands where the estimators are compared and from where they train."""
    horizon: int
    """Inner steps T."""
    truncations: tuple[int, ...]
    """Truncations K whose bias and variance are measured."""
    sigma: float
    grid: tuple[tuple[float, float, int], ...]
    """First, last and number of values of each component of θ, among which the least meta-loss is looked for."""
    training: Training


TOY_REGRESSION = Problem(
    "toy regression",
    ToyRegression(),
    lambda: Schedule(100),
    horizon=100,
    truncations=(1, 5, 10, 20, 50, 100),
    sigma=0.1,
    grid=((-6, 4, 81), (-6, 4, 81)),
    training=Training(
        truncations={"truncated": (10, 100), "es": (10, 100), "pes": (10,), "nres": (10,)},
        optimizer=lambda theta, length: torch.optim.Adam(theta, lr=1e-3 * length, betas=(0.99, 0.999)),
        sigma=1.0,
        trajectories=300,
        seeds=3,
        near=1.5,
    ),
)
"""θ has two components. Training takes the paper's σ = 1, which smooths the chaos away."""

INFLUENCE_BALANCING = Problem(
    "influence balancing",
    InfluenceBalancing(),
    LinearSystem,
    horizon=200,
    truncations=(1, 5, 10, 20, 50, 100, 200),
    sigma=0.1,
    grid=((-0.5, 0.5, 201),),
    training=Training(
        truncations={"truncated": (20, 200), "es": (20, 200), "pes": (1, 20), "nres": (1, 20)},
        optimizer=lambda theta, length: torch.optim.SGD(theta, lr=2.5e-5 * length),
        sigma=0.1,
        trajectories=40,
        seeds=3,
        near=1.1,
    ),
)
"""The influence of θ on s¹ is +16 after 20 steps, negative from step 41 on, −6 after 70. With the curvature of 50 that
the meta-loss has, a trajectory of plain gradient descent takes θ a quarter of the way to its minimum."""

PROBLEMS = (TOY_REGRESSION, INFLUENCE_BALANCING)
