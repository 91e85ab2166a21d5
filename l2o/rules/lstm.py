"""The coordinate-wise LSTM of Andrychowicz et al. 2016, arXiv:1606.04474.

One small LSTM, shared by all coordinates, reads a coordinate's gradient and writes its update (§2.1):

    z      = W [x; h] + b,  rows in the order i, f, o, g
    c'     = σ(f + forget_bias) c + σ(i) tanh(g)
    h'     = σ(o) tanh(c')
    u_t    = scale · (w h'_last + b_out)

The input x is the gradient itself, or its logarithm and sign (appendix A, with p = 10 there):

    (log|g| / p, sgn g)   where |g| ≥ e^{−p},        (−1, e^p g)   elsewhere.

The TensorFlow reference of the paper's authors is the config `TENSORFLOW`: p = 5, log(|g| + ε) with ε = 2⁻²³, scale
0.01, forget bias 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from l2o import kernels
from l2o.rule import CoordinatewiseRule


@dataclass(frozen=True)
class LSTMConfig:
    """Shape and constants of `CoordinatewiseLSTM`."""

    hidden_size: int = 20
    """Units per layer."""
    layers: int = 2
    """Stacked LSTM layers."""
    p: float | None = 10.0
    """Log-and-sign preprocessing exponent (paper: 10, TensorFlow reference: 5); None feeds the plain gradient."""
    log_eps: float = 0.0
    """ε added to |g| inside the logarithm, gradient units (TensorFlow reference: 2^-23)."""
    scale: float = 0.1
    """Factor on the output, parameter units (TensorFlow reference: 0.01)."""
    forget_bias: float = 0.0
    """Constant added to the forget gate (TensorFlow reference: 1)."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if a size is below one, p is not in (0, 80], scale is not positive and finite, log_eps is
                negative, or log_eps or forget_bias is not finite.
        """
        if self.hidden_size < 1 or self.layers < 1:
            raise ValueError(f"hidden_size and layers must be at least 1, got {self.hidden_size} and {self.layers}")
        if self.p is not None and not 0 < self.p <= 80:  # e^-80 is the last that float32 holds with all its digits
            raise ValueError(f"p must be in (0, 80], or None for no preprocessing, got {self.p}")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {self.scale}")
        if not 0 <= self.log_eps < math.inf or not math.isfinite(self.forget_bias):
            raise ValueError(
                f"log_eps must be finite and at least 0, got {self.log_eps}; forget_bias {self.forget_bias}"
            )


TENSORFLOW = LSTMConfig(p=5.0, log_eps=2.0**-23, scale=0.01, forget_bias=1.0)
"""The constants of the paper's TensorFlow code, for which the published weights were trained."""


class LSTMState(NamedTuple):
    """Memory of `CoordinatewiseLSTM`: two floats per unit and coordinate."""

    hidden: Tensor
    """h, shape (layers, hidden_size, n)."""
    cell: Tensor
    """c, shape (layers, hidden_size, n)."""


class CoordinatewiseLSTM(CoordinatewiseRule):
    """Coordinate-wise LSTM, θ = {weights.l (4H, in + H), biases.l (4H,), output_weight (1, H), output_bias (1,)}.

    Raises:
        ValueError: from `LSTMConfig`, if the config is out of range.
    """

    least_coordinates = 64  # two blocks of the kernels, which hold a segment of their steps

    def __init__(self, config: LSTMConfig | None = None, generator: torch.Generator | None = None):
        """Draw LSTM weights from U(±1/√H) and output weights from N(0, 0.1²/H), so that first updates are small."""
        super().__init__()
        self.config = config or LSTMConfig()
        size = self.config.hidden_size
        inputs = [1 if self.config.p is None else 2] + [size] * (self.config.layers - 1)

        def uniform(*shape):
            return nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) / size**0.5)

        self.weights = nn.ParameterList(uniform(4 * size, width + size) for width in inputs)
        self.biases = nn.ParameterList(uniform(4 * size) for _ in inputs)
        self.output_weight = nn.Parameter(0.1 * torch.randn(1, size, generator=generator) / size**0.5)
        self.output_bias = nn.Parameter(torch.zeros(1))

    def init_coordinates(self, like: Tensor) -> LSTMState:
        """h_0 = c_0 = 0, in the precision of the weights."""
        shape = (self.config.layers, self.config.hidden_size, like.numel())
        zeros = torch.zeros(shape, device=like.device, dtype=self.output_bias.dtype)
        return LSTMState(zeros, zeros.clone())

    def update(self, grads: Tensor, state: LSTMState, step: Tensor) -> tuple[Tensor, LSTMState]:
        """See the module's equations; computed in the precision of the weights."""
        updates, hidden, cell = kernels.step(grads.to(self.output_bias.dtype), *state, self._network())
        return updates, LSTMState(hidden, cell)

    def update_(self, grads: Tensor, state: LSTMState, step: Tensor) -> tuple[Tensor, LSTMState]:
        """See `CoordinatewiseRule.update_`; fresh memory for 80 floats a coordinate would cost more than the step."""
        grads = grads.to(self.output_bias.dtype)
        if state.hidden.dtype is torch.bfloat16 and grads.dtype is not torch.float32:  # only float32 has such a kernel
            return self.update(grads, LSTMState(*(tensor.to(grads.dtype) for tensor in state)), step)
        if torch.compiler.is_compiling():  # which reuses memory by itself
            return self.update(grads, state, step)
        out = (torch.empty_like(grads), state.hidden, state.cell)
        updates, _, _ = kernels.step(grads, *state, self._network(), out=out)
        return updates, state

    def stepper(self, state: LSTMState) -> Callable[[Tensor, Tensor], tuple[Tensor, LSTMState]]:
        """See `CoordinatewiseRule.stepper`."""
        dtype = self.output_bias.dtype
        if state.hidden.dtype is not dtype:
            return super().stepper(state)
        advance = kernels.stepper(*state, self._network())
        return lambda grads, step: (advance(grads.to(dtype)), state)

    def update_vjp(self, grads: Tensor, cotangents: Tensor, state: LSTMState, step: Tensor) -> dict[str, Tensor]:
        """See `CoordinatewiseRule.update_vjp`; fused, blocks of coordinates at a time."""
        dtype = self.output_bias.dtype
        pieces = kernels.sequence_vjp(grads.to(dtype), cotangents.to(dtype), *state, self._network())
        weights, biases, output_weight, output_bias = pieces
        return {
            **{f"weights.{layer}": weight for layer, weight in enumerate(weights)},
            **{f"biases.{layer}": bias for layer, bias in enumerate(biases)},
            "output_weight": output_weight,
            "output_bias": output_bias,
        }

    def preprocess(self, grads: Tensor) -> Tensor:
        """Return the LSTM's input, shape (1 or 2, n), for gradients of shape (n,)."""
        return kernels.preprocess(grads, self.config.p, self.config.log_eps)

    def _network(self) -> kernels.Network:
        # Iterating over a ParameterList costs as much as 100 coordinates; its dict has what functional_call put there.
        weights: list[Any] = list(self.weights._parameters.values())
        biases: list[Any] = list(self.biases._parameters.values())
        config = self.config
        theta = (weights, biases, self.output_weight, self.output_bias)
        return kernels.Network(*theta, config.p, config.log_eps, config.scale, config.forget_bias)
