"""Circular convolution of signals and images through the FFT.

    y_i = Σ_j k_j x_{i − j + c mod n},   c = ⌊size / 2⌋ the centre of the kernel

Its eigenvectors are the Fourier modes, hence norm and inverse are exact. A kernel is at most as large as the signal.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from l2o.proximal.function import Scalar
from l2o.proximal.operator import LinearOperator, check_item, check_rho, rho_per_item


def transfer_function(kernel: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the Fourier transform of a kernel, its centre at the origin, padded to the size of the signal.

    Args:
        kernel: shape (…, *sizes), as many sizes as `shape`.
        shape: size of the signal, (n,) or (height, width).

    Returns: shape (…, height, width // 2 + 1), complex.

    Raises:
        ValueError: if the kernel has fewer axes than the signal or is larger.
    """
    axes = tuple(range(-len(shape), 0))
    if kernel.dim() < len(shape) or any(k > n for k, n in zip(kernel.shape[-len(shape) :], shape, strict=False)):
        raise ValueError(f"a kernel of shape {tuple(kernel.shape)} does not fit a signal of shape {tuple(shape)}")
    padding = [pad for axis in reversed(axes) for pad in (0, shape[axis] - kernel.shape[axis])]
    padded = torch.nn.functional.pad(kernel, padding)
    return torch.fft.rfftn(padded.roll([-(kernel.shape[axis] // 2) for axis in axes], axes), dim=axes)


@dataclass(frozen=True, eq=False)
class CircularConvolution(LinearOperator):
    """x ↦ k ∗ x for each channel by itself; the norm is exact.

    Channels are batch axes: a kernel of shape (h, w) blurs images of any shape (…, height, width), and one of shape
    (batch, 1, h, w) blurs all channels of each image (batch, channels, height, width) by its own kernel.
    """

    transfer: Tensor
    """Fourier transform of the kernel, shape (batch…, height, width // 2 + 1); `from_kernel` computes it."""
    shape: tuple[int, ...]
    """Size of a signal (n,) or of an image (height, width)."""

    @classmethod
    def from_kernel(cls, kernel: Tensor, shape: tuple[int, ...]) -> "CircularConvolution":
        """Return the convolution with a kernel of shape (batch…, h, w); see `transfer_function`."""
        return cls(transfer_function(kernel, shape), tuple(shape))

    @property
    def in_shape(self) -> tuple[int, ...]:
        """The size of the signal."""
        return self.shape

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The size of the signal."""
        return self.shape

    def forward(self, x: Tensor) -> Tensor:
        """The convolution k ∗ x."""
        return self._filter(x, self.transfer)

    def adjoint(self, y: Tensor) -> Tensor:
        """The correlation with k."""
        return self._filter(y, self.transfer.conj())

    def norm(self) -> Tensor:
        """The largest |transfer|."""
        return self.transfer.abs().flatten(-len(self.shape)).amax(-1)

    def solver(self, rho: Scalar) -> Callable[[Tensor], Tensor]:
        """Division by |transfer|² + ρ in the Fourier domain."""
        check_rho(rho)
        factor = 1 / (self.transfer.abs().square() + rho_per_item(rho, len(self.shape)))
        return lambda b: self._filter(b, factor)

    def _filter(self, x: Tensor, factor: Tensor) -> Tensor:
        check_item(x, self.shape)
        return _inverse_transform(factor * _transform(x, self.shape), self.shape)


@dataclass(frozen=True, eq=False)
class ChannelConvolution(LinearOperator):
    """y_o = Σ_i k_{oi} ∗ x_i, a convolution that mixes channels; the norm is exact.

    Per frequency ω it is a matrix of shape (out_channels, in_channels): ‖A‖ = max_ω σ_max.
    Source: Sedghi, Gupta & Long 2019, The singular values of convolutional layers, ICLR.
    """

    transfer: Tensor
    """Shape (batch…, out_channels, in_channels, height, width // 2 + 1), complex; `from_kernel` computes it."""
    shape: tuple[int, ...]
    """Size of a signal (n,) or of an image (height, width)."""

    @classmethod
    def from_kernel(cls, kernel: Tensor, shape: tuple[int, ...]) -> "ChannelConvolution":
        """Return the convolution with a kernel of shape (batch…, out_channels, in_channels, h, w).

        Raises:
            ValueError: if the kernel does not fit the signal or has no channel axes.
        """
        if kernel.dim() < 2 + len(shape):
            raise ValueError(f"expected a kernel (…, out_channels, in_channels, *sizes), got {tuple(kernel.shape)}")
        return cls(transfer_function(kernel, shape), tuple(shape))

    @property
    def in_shape(self) -> tuple[int, ...]:
        """(in_channels, *shape)."""
        return (self.transfer.shape[-len(self.shape) - 1], *self.shape)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """(out_channels, *shape)."""
        return (self.transfer.shape[-len(self.shape) - 2], *self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Sum of the convolutions of all input channels."""
        check_item(x, self.in_shape)
        return self._inverse(self._matrices() @ self._fourier(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Sum of the correlations of all output channels."""
        check_item(y, self.out_shape)
        return self._inverse(self._matrices().mH @ self._fourier(y))

    def norm(self) -> Tensor:
        """The largest singular value over all frequencies."""
        return torch.linalg.svdvals(self._matrices()).flatten(-2).amax(-1)

    def solver(self, rho: Scalar) -> Callable[[Tensor], Tensor]:
        """A Cholesky factor per frequency."""
        check_rho(rho)
        matrices = self._matrices()
        identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
        factor = torch.linalg.cholesky(matrices.mH @ matrices + rho_per_item(rho, 3) * identity)

        def inverse(b: Tensor) -> Tensor:
            check_item(b, self.in_shape)
            return self._inverse(torch.cholesky_solve(self._fourier(b), factor))

        return inverse

    def _matrices(self) -> Tensor:
        """The transfer function as one matrix per frequency, shape (…, frequencies, out_channels, in_channels)."""
        return self.transfer.flatten(-len(self.shape)).movedim(-1, -3)

    def _fourier(self, x: Tensor) -> Tensor:
        """Shape (…, channels, *shape) to (…, frequencies, channels, 1)."""
        return _transform(x, self.shape).flatten(-len(self.shape)).mT.unsqueeze(-1)

    def _inverse(self, spectrum: Tensor) -> Tensor:
        frequencies = (*self.shape[:-1], self.shape[-1] // 2 + 1)
        spectrum = spectrum.squeeze(-1).mT.unflatten(-1, frequencies)
        return _inverse_transform(spectrum, self.shape)


def _transform(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    if x.numel() == 0:  # MKL refuses an empty batch
        return torch.zeros(*x.shape[:-1], shape[-1] // 2 + 1, dtype=x.dtype.to_complex(), device=x.device)
    return torch.fft.rfftn(x, dim=tuple(range(-len(shape), 0)))


def _inverse_transform(spectrum: Tensor, shape: tuple[int, ...]) -> Tensor:
    if spectrum.numel() == 0:
        return torch.zeros(*spectrum.shape[:-1], shape[-1], dtype=spectrum.dtype.to_real(), device=spectrum.device)
    return torch.fft.irfftn(spectrum, s=shape, dim=tuple(range(-len(shape), 0)))
