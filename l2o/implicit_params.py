"""The implicit gradient as a function of explicit parameters: for second derivatives, and inside torch.func.

Both the fixed point and the linear system of its gradient are autograd functions with a rule for `vmap`: batched
parameters become more items of one loop. The gradient of the system is the transposed system, so that derivatives of
any order are right.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from l2o.fixed_point_distance import require_nearness
from l2o.fixed_point_loop import Run, require_convergence
from l2o.implicit import Adjoint, functorch, refuse_forward_mode, requires_grad
from l2o.linear_solvers import MatrixProduct

Leaves = tuple[Any, ...]
"""The entries of the params: tensors, and whatever else the step takes."""


@dataclass(frozen=True, eq=False)
class Explicit:
    """A fixed-point problem whose gradient flows to explicit parameters."""

    step: Callable[..., Tensor]
    """T: (u, *params) ↦ T(u), u of shape (items, n); or g, of which a root is sought."""
    find: Callable[[Callable[[Tensor], Tensor], Tensor], Run]
    """(T or g of u alone, u_0) ↦ the fixed point or root, with its residual measured there."""
    tol: float
    """Largest residual of a fixed point."""
    adjoint: Adjoint
    """How the linear system is solved."""
    is_root: bool = False
    """Whether `step` is g."""
    recorded: bool = False
    """Whether a gradient is wanted, so that the distance to the fixed point is looked at."""

    def guarded(self) -> "Explicit":
        """Return it with a step that explains what torch.func says of tensors of transforms that are not running."""

        def step(u: Tensor, *params: Any) -> Tensor:
            try:
                return self.step(u, *params)
            except RuntimeError as error:
                if "escaped" not in str(error):
                    raise
                raise TypeError(
                    "inside torch.func (grad, vmap, …) the step cannot close over a tensor that was made there: make "
                    "it in the step, outside the transform, or give it in params"
                ) from error

        return replace(self, step=step)


def solve_explicit(task: Explicit, start: Tensor, params: list[Any]) -> Run:
    """Iterate to the fixed point and return it with the gradient to the parameters.

    Raises:
        NotConvergedError: if the loop does not converge, or not near enough.
        TypeError: if the step closes over what a transform of torch.func differentiates or batches.
        ValueError: if the step closes over tensors that require grad, which would get none.
    """
    with torch.enable_grad():
        image = task.step(_bare(start), *map(_bare, params))
    if requires_grad(image):
        raise ValueError(
            "the step closes over tensors that require grad: give them in params too, which alone get a gradient, "
            "or detach them"
        )
    task = replace(task.guarded(), recorded=torch.is_grad_enabled())
    return Run(*_FixedPoint.apply(task, start.detach(), *params))  # pyright: ignore[reportArgumentType]


class _FixedPoint(torch.autograd.Function):
    """(u_0, *params) ↦ (u, steps, residual, scale)."""

    jvp = staticmethod(refuse_forward_mode)

    @staticmethod
    def forward(task: Explicit, start: Tensor, *params: Any) -> Run:  # pyright: ignore
        end = task.find(lambda u: task.step(u, *params), start)
        require_convergence(end, task.tol, task.adjoint.on_failure, task.is_root)
        if task.recorded:
            with torch.enable_grad():
                point = end.u.detach().requires_grad_()
                image = task.step(point, *params)
            require_nearness(end, point, image, task.tol, task.adjoint.on_failure, task.is_root)
        return Run(*(field.clone() for field in end))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Run) -> None:
        task, _, *params = inputs
        ctx.task = task
        ctx.others = _save(ctx, [output[0], *params])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        task, (u, *params) = ctx.task, _restore(ctx)
        wanted = ctx.needs_input_grad[2:]

        def linearize(u: Tensor, *params: Any) -> MatrixProduct:
            pull = torch.func.vjp(lambda u: task.step(u, *params), u)[1]
            return lambda w: pull(w)[0] if task.is_root else w - pull(w)[0]

        v = -grads[0] if task.is_root else grads[0]
        w = _Linear.apply(_System(linearize, task.adjoint), v, u, *params)
        return None, None, *_pull_back(lambda *params: task.step(u, *params), params, wanted, w)

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any, in_dims: tuple[Any, ...], task: Explicit, start: Tensor, *params: Any
    ) -> tuple[Run, Run]:
        lanes = info.batch_size
        step = _over_lanes(task.step, in_dims[2:], lanes, info.randomness)
        end = Run(*_FixedPoint.apply(replace(task, step=step), _rows(start, in_dims[1], lanes), *params))
        return Run(*(field.unflatten(0, (lanes, -1)) for field in end)), Run(0, 0, 0, 0)  # pyright: ignore


class _System(NamedTuple):
    """The matrix A(*context) of a linear system."""

    linearize: Callable[..., MatrixProduct]
    """(*context) ↦ (x ↦ A x), x of shape (items, n)."""
    adjoint: Adjoint
    """How it is solved."""


class _Linear(torch.autograd.Function):
    """(b, *context) ↦ x with A(*context) x = b."""

    jvp = staticmethod(refuse_forward_mode)

    @staticmethod
    def forward(system: _System, b: Tensor, *context: Any) -> Tensor:  # pyright: ignore
        return system.adjoint.solve(system.linearize(*context), b).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.system = inputs[0]
        ctx.others = _save(ctx, [output, *inputs[2:]])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:  # pyright: ignore
        system, (x, *context) = ctx.system, _restore(ctx)

        def transposed(*context: Any) -> MatrixProduct:
            pull = torch.func.vjp(system.linearize(*context), torch.zeros_like(x))[1]
            return lambda z: pull(z)[0]

        z = _Linear.apply(_System(transposed, system.adjoint), grads[0], *context)
        pulled = _pull_back(lambda *context: system.linearize(*context)(x), context, ctx.needs_input_grad[2:], -z)
        return None, z, *pulled

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any, in_dims: tuple[Any, ...], system: _System, b: Tensor, *context: Any
    ) -> tuple[Tensor, int]:
        lanes, dims = info.batch_size, in_dims[2:]

        def linearize(*context: Any) -> MatrixProduct:
            one = torch.vmap(lambda x, *context: system.linearize(*context)(x), (0, *dims), randomness=info.randomness)
            return lambda x: one(x.unflatten(0, (lanes, -1)), *context).flatten(0, 1)

        x = _Linear.apply(_System(linearize, system.adjoint), _rows(b, in_dims[1], lanes), *context)
        return x.unflatten(0, (lanes, -1)), 0


def _over_lanes(step: Callable[..., Tensor], dims: Any, lanes: int, randomness: str) -> Callable[..., Tensor]:
    """Return the step of (lanes · items, n) from that of (items, n)."""

    def wide(u: Tensor, *params: Any) -> Tensor:
        mapped = torch.vmap(step, (0, *dims), randomness=randomness)
        return mapped(u.unflatten(0, (lanes, -1)), *params).flatten(0, 1)

    return wide


def _rows(x: Tensor, dim: int | None, lanes: int) -> Tensor:
    """Put the lanes of a vmap in front of the items, shape (lanes · items, n)."""
    return (x.expand(lanes, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)


def _pull_back(function: Callable[..., Tensor], inputs: list[Any], wanted: Any, cotangent: Tensor) -> list[Any]:
    """Return the vector–Jacobian products of the wanted inputs, None for the others."""
    places = [place for place, want in enumerate(wanted) if want]

    def of_wanted(*values: Tensor) -> Tensor:
        full = list(inputs)
        for place, value in zip(places, values, strict=True):
            full[place] = value
        return function(*full)

    grads: list[Any] = [None] * len(inputs)
    if places:
        pulled = torch.func.vjp(of_wanted, *(inputs[place] for place in places))[1](cotangent)
        for place, grad in zip(places, pulled, strict=True):
            grads[place] = grad
    return grads


def _save(ctx: Any, values: list[Any]) -> list[Any]:
    """Save the tensors among the values for the backward pass; return the others, with None for each tensor."""
    ctx.save_for_backward(*(value for value in values if isinstance(value, Tensor)))
    return [None if isinstance(value, Tensor) else (value,) for value in values]


def _restore(ctx: Any) -> list[Any]:
    tensors = iter(ctx.saved_tensors)
    return [next(tensors) if other is None else other[0] for other in ctx.others]


def _bare(value: Any) -> Any:
    """Return a tensor without its graph and without the wrappers of torch.func; of a batch the first entry."""
    if not isinstance(value, Tensor):
        return value
    while functorch.is_functorch_wrapped_tensor(value):
        dim = functorch.maybe_get_bdim(value)
        value = functorch.get_unwrapped(value)
        value = value if dim < 0 else value.select(dim, 0)
    return value.detach()
