"""Gradient flows with a stopping time: x' = −∇F(x) from x_0 until T, by explicit Euler, differentiable in T and F.

    x_{k+1} = x_k − (T / K) ∇F(x_k),   k = 0 … K − 1
    dℓ(x_T)/dT = ⟨ℓ'(x_T), x'(T)⟩ = −⟨∇F(x_T), ∇ℓ(x_T)⟩

The derivative is that of the flow; that of the K steps comes to it as 1/K. Where it vanishes T is optimal: the flow is
stopped before it reaches the minimum of F. Source: Effland, Kobler, Kunisch & Pock 2020, Variational networks: an
optimal control approach to early stopping variational methods for image restoration, J. Math. Imaging Vis. 62.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

TimeGradient = Literal["steps", "adjoint"]


def gradient_flow(
    gradient: Callable[[Tensor], Tensor],
    start: Tensor,
    time: Tensor | float,
    steps: int,
    time_gradient: TimeGradient = "steps",
) -> Tensor:
    """Return x_K, which carries gradients to the start, to T and to all that ∇F closes over.

    Args:
        gradient: x ↦ ∇F(x).
        start: x_0, any shape, real floating point; T and x_K have its dtype.
        time: T, not negative, in units of 1 / (the unit of ∇F per unit of x); a tensor of shape (), or one that
            broadcasts against x. Below 2 K / L the steps are stable, with L the Lipschitz bound of ∇F.
        steps: K.
        time_gradient: of T. "steps": through all K steps, exact for what was computed. "adjoint": the formula above, at
            the cost of one product, without the steps.

    Raises:
        TypeError: if the start is not a real floating-point tensor.
        ValueError: if there is no step, T is negative or nan, or the kind of gradient is unknown.
    """
    if not start.is_floating_point():
        raise TypeError(f"the start must be real floating point, got {start.dtype}, in which T would be rounded too")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if time_gradient not in get_args(TimeGradient):
        raise ValueError(f"time_gradient must be one of {', '.join(get_args(TimeGradient))}, got {time_gradient!r}")
    time = torch.as_tensor(time, dtype=start.dtype, device=start.device)
    if not bool((time >= 0).all()):
        raise ValueError(f"T must be at least 0, got {float(time.detach().amin()):g}; a flow does not run backwards")
    fixed = time.detach() if time_gradient == "adjoint" else time
    x = start
    for _ in range(steps):
        x = x - fixed / steps * gradient(x)
    if time_gradient == "adjoint" and time.requires_grad:
        x = x - (time - fixed) * gradient(x.detach()).detach()  # 0, with the derivative x'(T) = −∇F(x_T)
    return x


def stopping_time_gradient(flow_gradient: Tensor, outer_gradient: Tensor) -> Tensor:
    """Return dℓ/dT = −⟨∇F(x_T), ∇ℓ(x_T)⟩, shape ().

    Args:
        flow_gradient: ∇F(x_T).
        outer_gradient: ∇ℓ(x_T), the same shape.
    """
    return -(flow_gradient * outer_gradient).sum()
