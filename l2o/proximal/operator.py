"""The contract of a linear operator A, and what is made of operators: adjoint and composition.

An operator maps the last axes of a tensor, of shape `in_shape`, to `out_shape`; axes before them are batch axes. What
is expensive, a factorisation, is returned to the caller as a function and never kept.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from l2o.proximal.function import Scalar


class LinearOperator(ABC):
    """A linear map of items, batched, differentiable in its input and in the tensors that define it.

    A subclass is a frozen dataclass, final. Functions that need to be implemented: `in_shape`, `out_shape`, `forward`,
    `adjoint`, `norm`, and `solver` where AᵀA + ρI is cheap to invert.
    """

    @property
    @abstractmethod
    def in_shape(self) -> tuple[int, ...]:
        """Shape of one input, without batch axes."""

    @property
    @abstractmethod
    def out_shape(self) -> tuple[int, ...]:
        """Shape of one output, without batch axes."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return Ax, shape (batch…, *out_shape), for x of shape (batch…, *in_shape)."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Return Aᵀy, shape (batch…, *in_shape), for y of shape (batch…, *out_shape)."""

    @abstractmethod
    def norm(self) -> Tensor:
        """Return ‖A‖ = σ_max(A) or an upper bound of it, shape () or one entry per item; the class says which."""

    def solver(self, rho: Scalar) -> Callable[[Tensor], Tensor]:
        """Return the function b ↦ (AᵀA + ρI)⁻¹ b, factorised once, for b of shape (batch…, *in_shape).

        Args:
            rho: ρ > 0, a number or one entry per item.

        Raises:
            NotImplementedError: if the operator has no fast inverse.
            ValueError: if ρ is a number that is not positive.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no fast inverse; use an iteration, e.g. conjugate gradients"
        )

    def solve(self, b: Tensor, rho: Scalar) -> Tensor:
        """Return x with (AᵀA + ρI) x = b; see `solver`."""
        return self.solver(rho)(b)

    def __call__(self, x: Tensor) -> Tensor:
        """Ax."""
        return self.forward(x)

    @property
    def T(self) -> "LinearOperator":
        """Aᵀ."""
        return Adjoint(self)

    def __matmul__(self, inner: "LinearOperator") -> "LinearOperator":
        """The composition x ↦ A(Bx)."""
        return Composition(self, inner)


@dataclass(frozen=True, eq=False)
class Adjoint(LinearOperator):
    """Aᵀ; its norm is that of A."""

    operator: LinearOperator
    """A."""

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of an output of A."""
        return self.operator.out_shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of an input of A."""
        return self.operator.in_shape

    def forward(self, x: Tensor) -> Tensor:
        """Aᵀx."""
        return self.operator.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Ay."""
        return self.operator.forward(y)

    def norm(self) -> Tensor:
        """‖Aᵀ‖ = ‖A‖."""
        return self.operator.norm()

    def solver(self, rho: Scalar) -> Callable[[Tensor], Tensor]:
        """(AAᵀ + ρI)⁻¹ = (I − A (AᵀA + ρI)⁻¹ Aᵀ) / ρ, the Woodbury identity."""
        check_rho(rho)
        inner = self.operator.solver(rho)
        ndim = len(self.operator.out_shape)
        return lambda b: (b - self.operator.forward(inner(self.operator.adjoint(b)))) / rho_per_item(rho, ndim)

    @property
    def T(self) -> LinearOperator:
        """A."""
        return self.operator


@dataclass(frozen=True, eq=False)
class Composition(LinearOperator):
    """AB; the norm is the bound ‖A‖‖B‖."""

    outer: LinearOperator
    """A."""
    inner: LinearOperator
    """B."""

    def __post_init__(self):
        """Check the shapes.

        Raises:
            ValueError: if A does not take what B gives.
        """
        if self.outer.in_shape != self.inner.out_shape:
            raise ValueError(f"the outer operator takes {self.outer.in_shape}, the inner gives {self.inner.out_shape}")

    @property
    def in_shape(self) -> tuple[int, ...]:
        """Shape of an input of B."""
        return self.inner.in_shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of an output of A."""
        return self.outer.out_shape

    def forward(self, x: Tensor) -> Tensor:
        """ABx."""
        return self.outer.forward(self.inner.forward(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """BᵀAᵀy."""
        return self.inner.adjoint(self.outer.adjoint(y))

    def norm(self) -> Tensor:
        """‖A‖‖B‖ ≥ ‖AB‖."""
        return self.outer.norm() * self.inner.norm()


def check_item(x: Tensor, shape: tuple[int, ...]) -> None:
    """Check the last axes of a tensor.

    Raises:
        ValueError: if they are not `shape`.
    """
    if tuple(x.shape[-len(shape) :]) != tuple(shape):
        raise ValueError(f"expected a tensor of shape (…, {', '.join(map(str, shape))}), got {tuple(x.shape)}")


def check_rho(rho: Scalar) -> None:
    """Check ρ.

    Raises:
        ValueError: if it is a number that is not positive.
    """
    if not isinstance(rho, Tensor) and not rho > 0:
        raise ValueError(f"rho must be above 0, got {rho}")


def rho_per_item(rho: Scalar, ndim: int) -> Scalar:
    """Give ρ, one entry per item, the trailing axes of an item."""
    return rho.reshape(rho.shape + (1,) * ndim) if isinstance(rho, Tensor) and rho.dim() else rho
