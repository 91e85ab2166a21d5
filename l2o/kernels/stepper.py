"""Many steps of the coordinate-wise LSTM with the same weights: what stays the same is checked once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from l2o.kernels import lstm, lstm_cpu
from l2o.kernels.network import Network


def stepper(
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    output_weight: Tensor,
    output_bias: Tensor,
    *,
    p: float | None,
    log_eps: float,
    scale: float,
    forget_bias: float,
) -> Callable[[Tensor], Tensor]:
    """`l2o.kernels.step` for a loop without autograd that advances one state in place.

    On a CPU a step starts 10 to 25 µs sooner than that of `step(…, out=…)`: as much as 150 to 300 coordinates take.

    Args:
        hidden, cell: contiguous, shape (layers, H, n).
        weights, biases, output_weight, output_bias, p, log_eps, scale, forget_bias: as for `step`; they must not be
            written to while the loop runs.

    Returns: a function that takes gradients, shape (n,), of the weights' dtype, writes the next state into hidden and
        cell, and returns the updates, shape (n,).

    Raises:
        ValueError: as `step` does, here or at the first step.
    """
    network = Network(weights, biases, output_weight, output_bias, p, log_eps, scale, forget_bias)
    tensors = (hidden, cell, *weights, *biases, output_weight, output_bias)
    if lstm.is_plain_call(tensors) and lstm_cpu.supports(output_bias):
        return lstm_cpu.Stepper(hidden, cell, network)

    def advance(grads: Tensor) -> Tensor:
        out = (torch.empty_like(grads), hidden, cell)
        constants = {"p": p, "log_eps": log_eps, "scale": scale, "forget_bias": forget_bias}
        return lstm.step(grads, hidden, cell, *network[:4], **constants, out=out)[0]

    return advance
