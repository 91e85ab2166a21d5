"""An implicit layer: its output is a fixed point, its backward pass one linear system, whatever the number of steps.

Source: Bai, Kolter & Koltun 2019, Deep equilibrium models, NeurIPS.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from l2o.anderson import Anderson
from l2o.fixed_point import FixedPointResult, GradientMode, check_options, fixed_point
from l2o.implicit import Policy
from l2o.linear_solvers import LinearSolver
from l2o.packing import Unknown
from l2o.problem import Problem
from l2o.rule import UpdateRule
from l2o.solve import solve


class FixedPoint(nn.Module):
    """z = cell(z, x) as a layer x ↦ z, or the solution of a problem by a rule as a layer problem ↦ x.

    Its weights, and its `state_dict`, are those of `cell`. A forward pass keeps the graph of one step.

    >>> class Cell(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.inner, self.outer = nn.Linear(8, 8), nn.Linear(8, 8)
    ...     def forward(self, z, x):
    ...         return torch.tanh(0.5 * self.inner(z) + self.outer(x))
    >>> layer = FixedPoint(Cell(), acceleration=Anderson())
    >>> layer(torch.ones(4, 8)).shape
    torch.Size([4, 8])

    Args:
        cell: a module (z, x) ↦ z, or an `UpdateRule`.
        start: x ↦ z_0; None: zeros of the shape of x. Not for a rule, which starts at 0.
        steps, tol, max_steps, gradient, last, acceleration, adjoint, on_failure: see `fixed_point`, and for a rule
            `solve`.
        batch_axes: leading axes of z that number items; the cell must not mix them, else give 0. Not for a rule.

    Raises:
        TypeError: if `acceleration` is no Anderson, or `adjoint` no linear solver.
        ValueError: if a rule is given an option that only modules have, or an option is out of its range.
    """

    def __init__(
        self,
        cell: nn.Module,
        start: Callable[[Any], Unknown] | None = None,
        *,
        gradient: GradientMode = "implicit",
        steps: int | None = None,
        tol: float | None = None,
        max_steps: int = 1000,
        last: int = 1,
        batch_axes: int = 1,
        acceleration: Anderson | None = None,
        adjoint: LinearSolver | None = None,
        on_failure: Policy = "raise",
    ):
        super().__init__()
        check_options(gradient, steps, tol, max_steps, last, acceleration, adjoint, on_failure)
        self.cell, self.start, self.batch_axes, self.acceleration = cell, start, batch_axes, acceleration
        self.options: dict[str, Any] = {
            "gradient": gradient,
            "steps": steps,
            "tol": tol,
            "max_steps": max_steps,
            "last": last,
            "adjoint": adjoint,
            "on_failure": on_failure,
        }
        if isinstance(cell, UpdateRule) and not (start is None and acceleration is None):
            raise ValueError(
                "start and acceleration are for modules (z, x) ↦ z; a rule starts at 0 and has its own steps"
            )

    def find(self, x: Any) -> FixedPointResult:
        """Return the fixed point with its residual, steps and report; x is the input, not a problem.

        Raises:
            NotConvergedError: see `fixed_point`.
        """
        start = torch.zeros_like(x) if self.start is None else self.start(x)
        options = {"batch_axes": self.batch_axes, "acceleration": self.acceleration, **self.options}
        return fixed_point(lambda z: self.cell(z, x), start, **options)

    def forward(self, x: Any) -> Unknown:
        """Return the fixed point for an input; for a rule, the solution of a `Problem`.

        Raises:
            NotConvergedError: see `fixed_point`.
        """
        if isinstance(self.cell, UpdateRule):
            return self._solve(x)
        return self.find(x).u

    def _solve(self, problem: Problem) -> Tensor:
        assert isinstance(self.cell, UpdateRule)
        return solve(self.cell, problem, history=False, **self.options).x

    def extra_repr(self) -> str:
        """The options that are not the defaults of `fixed_point`."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items() if value is not None)
