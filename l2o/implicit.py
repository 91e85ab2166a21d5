"""The gradient of a fixed point u = T(u) without the iterations that led to it.

    ∂ℓ = wᵀ ∂T|_u,   (I − J)ᵀ w = ∂ℓ/∂u,   J = ∂T/∂u

by the implicit function theorem: one linear system for each backward pass, by vector–Jacobian products, and one step
in the graph, whatever the number of iterations was. Source: Christianson 1994, Optim. Methods Softw. 3(4); Bai, Kolter
& Koltun 2019, Deep equilibrium models, NeurIPS, theorem 1. It holds at a fixed point alone: callers check that first.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from l2o.linear_solvers import LinearReport, LinearSolver, MatrixProduct, solve_linear

functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]  # what torch.func tracks; not public

Policy = Literal["raise", "warn", "ignore"]
"""What to do where a gradient is not valid."""


class NotConvergedError(RuntimeError):
    """A lower level, or the linear system of its gradient, did not converge: there is no valid implicit gradient."""


class NotConvergedWarning(UserWarning):
    """As `NotConvergedError`, where the caller has asked to go on."""


@dataclass(frozen=True, eq=False)
class Adjoint:
    """How the linear system of an implicit gradient is solved, and how that went."""

    solver: LinearSolver
    """The method."""
    on_failure: Policy = "raise"
    """What to do if it fails."""
    report: LinearReport = field(default_factory=LinearReport)
    """Written by every backward pass."""

    def solve(self, product: MatrixProduct, b: Tensor) -> Tensor:
        """Return w with A w = b.

        Raises:
            NotConvergedError: if the solution is not accurate, unless `on_failure` says otherwise.
        """
        w, report = solve_linear(self.solver, product, b)
        vars(self.report).update(vars(report))
        if not report.converged:
            refuse(
                f"the linear system of the implicit gradient was not solved: {report.failure()}. Where the fixed point "
                "or root is not unique or not isolated its matrix is singular, and there is no implicit gradient",
                self.on_failure,
            )
        return w


def refuse(message: str, policy: Policy) -> None:
    """Raise, warn or do nothing.

    Raises:
        NotConvergedError: if the policy is "raise".
        ValueError: if it is none.
    """
    if policy == "raise":
        raise NotConvergedError(message)
    if policy == "warn":
        warnings.warn(message, NotConvergedWarning, stacklevel=3)
    check_policy(policy)


@contextmanager
def explained(cure: str) -> Iterator[None]:
    """Say what to do where torch.vmap refuses to look at values.

    Raises:
        TypeError: with the cure as its message, in place of the RuntimeError of vmap.
    """
    try:
        yield
    except RuntimeError as error:
        if "data-dependent control flow" not in str(error):
            raise
        raise TypeError(cure) from error


def check_policy(policy: str) -> None:
    """Check the name of a policy.

    Raises:
        ValueError: if it is none.
    """
    if policy not in get_args(Policy):
        raise ValueError(f"on_failure must be one of {', '.join(get_args(Policy))}, got {policy!r}")


def attach(point: Tensor, image: Tensor, adjoint: Adjoint, is_root: bool = False) -> Tensor:
    """Return the values of `point` with the gradient of the fixed point, to everything that the step closed over.

    Args:
        point: u, shape (items, n), a leaf that requires grad.
        image: T(u) with its graph; for a root g(u), whose system is (∂g/∂u)ᵀ w = −∂ℓ/∂u.

    Raises:
        NotImplementedError: if it is differentiated twice.
    """
    return _Attach.apply(point, image, adjoint, is_root)  # pyright: ignore[reportReturnType]


def requires_grad(image: Tensor) -> bool:
    """Whether a step, T(u) = image from a u that is no variable, closes over what autograd differentiates.

    Raises:
        TypeError: if a transform of torch.func differentiates or batches it.
    """
    wrapped, tracked = functorch.is_functorch_wrapped_tensor(image), False
    while functorch.is_functorch_wrapped_tensor(image):
        tracked = tracked or image.requires_grad or functorch.is_batchedtensor(image)
        image = functorch.get_unwrapped(image)
    if wrapped and (tracked or image.requires_grad):
        raise TypeError(
            "inside torch.func (grad, vmap, …) the step cannot close over what is differentiated or batched: "
            "give it as params, with fixed_point(step, start, params) and step(u, params)"
        )
    return image.requires_grad


def refuse_forward_mode(ctx: Any, *tangents: Any) -> None:
    """The `jvp` of all functions with an implicit gradient.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        "an implicit gradient has no forward mode (jvp, jacfwd): use reverse mode (grad, jacrev), or a fixed point "
        'with gradient="unrolled"'
    )


class _Attach(torch.autograd.Function):
    """The point forward; backward, what arrives at T(u) is w instead of v."""

    jvp = staticmethod(refuse_forward_mode)

    @staticmethod
    def forward(ctx: Any, point: Tensor, image: Tensor, adjoint: Adjoint, is_root: bool) -> Tensor:
        ctx.point, ctx.image, ctx.adjoint, ctx.is_root = point, image, adjoint, is_root
        return point.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None]:  # pyright: ignore
        (v,) = grads

        def product(w: Tensor) -> Tensor:
            pulled = vjp(ctx.image, ctx.point, w)
            return pulled if ctx.is_root else w - pulled

        with torch.no_grad():
            w = ctx.adjoint.solve(product, -v if ctx.is_root else v)
        return None, _Once.apply(w, v, ctx.image) if torch.is_grad_enabled() else w, None, None


class _Once(torch.autograd.Function):
    """The identity, which cannot be differentiated: the point in the graph of T(u) does not know how it moves."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, *causes: Tensor) -> Tensor:
        return w.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:  # pyright: ignore
        raise NotImplementedError(
            "second derivatives of an implicit fixed point need what the step depends on as params: "
            "fixed_point(step, start, params) with step(u, params)"
        )


def vjp(image: Tensor, point: Tensor, w: Tensor) -> Tensor:
    """Return Jᵀ w, where image = T(point) has its graph; 0 where it does not depend on the point."""
    return torch.autograd.grad(image, point, w, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
