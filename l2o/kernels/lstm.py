"""The coordinate-wise LSTM as `torch.library` operators, and the functions that choose between kernel and reference.

`step` composes with autograd, `torch.func`, `torch.compile` and fake tensors through the operators
`l2o::lstm_step` and `l2o::lstm_step_backward`. Where none of these is at work it calls the kernel directly.
"""

import functools
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack, is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from l2o.kernels import lstm_cpu, reference
from l2o.kernels.network import Network

_PLAIN = frozenset((Tensor, torch.nn.Parameter))


def _named(constants: Sequence[float | None]) -> dict[str, Any]:
    return dict(zip(("p", "log_eps", "scale", "forget_bias"), constants, strict=True))


def _kernel(grads: Tensor) -> ModuleType | None:
    """Return the module whose `step` and `sequence_vjp` are for tensors like this one; None is the reference."""
    if lstm_cpu.supports(grads):
        return lstm_cpu
    triton = _triton() if grads.is_cuda else None
    return triton if triton is not None and triton.supports(grads) else None


@functools.cache
def _triton() -> ModuleType | None:
    """Import Triton at the first CUDA tensor: it comes with torch's CUDA builds, and takes a while."""
    try:
        from l2o.kernels import lstm_triton
    except ImportError as error:
        warnings.warn(f"l2o's fused GPU kernels need triton, so plain torch is used. Cause: {error}", stacklevel=2)
        return None
    return lstm_triton


def step(
    grads: Tensor,
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
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of the coordinate-wise LSTM of `l2o.kernels.reference`, fused.

    Differentiable in all tensors, any number of times (the second derivative goes through the reference). float32 and
    float64 use the kernels for CPUs and NVIDIA GPUs, everything else the reference. Two layers of 20 units take 0.08 µs
    per coordinate and CPU thread in float32, a quarter of the time of plain torch.

    Args:
        grads: gradients g, shape (n,).
        hidden, cell: h and c, shape (layers, H, n); bfloat16 halves the memory of a float32 network, whose arithmetic
            stays float32 (each step rounds the state to nearest; a layer above the first reads rounded h).
        weights: W_l, layers of shape (4H, in + H), with in = 1 (p None) or 2 for the first layer and H for the others.
        biases: b_l, layers of shape (4H,).
        output_weight: w, shape (1, H).
        output_bias: b_out, shape (1,).
        p: exponent of the features; None feeds the plain gradient.
        log_eps: ε inside the logarithm, gradient units.
        scale: factor on the output, parameter units.
        forget_bias: added to the forget gate.
        out: contiguous tensors to write the results into, for a loop without autograd: allocating tens of megabytes
            anew in each step costs more than the step. hidden and cell may be the inputs themselves.

    Returns: updates u, shape (n,), and the next hidden and cell, shape (layers, H, n).

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together, or `out` is given where a gradient is asked for.
    """
    tensors = (grads, hidden, cell, *weights, *biases, output_weight, output_bias)
    constants = (p, log_eps, scale, forget_bias)
    direct = is_plain_call(tensors)
    if out is not None and not direct:
        raise ValueError("out= is for loops without autograd and torch.func: call step under torch.no_grad()")
    kernel = _kernel(grads) if direct else None
    if kernel is not None:
        return kernel.step(grads, hidden, cell, Network(weights, biases, output_weight, output_bias, *constants), out)
    arguments = (grads, hidden, cell, list(weights), list(biases), output_weight, output_bias)
    if direct or not _operator_composes():
        results = reference.step(*arguments, **_named(constants))
        if out is None:
            return results
        return out[0].copy_(results[0]), out[1].copy_(results[1]), out[2].copy_(results[2])
    return _step(*arguments, *constants)


def sequence_vjp(
    grads: Tensor,
    cotangents: Tensor,
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
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Gradients of Σ_t ⟨c_t, u_t⟩ with respect to the LSTM's weights, where u_t are the updates of K steps.

    The forward pass is replayed block by block of coordinates. The result is the same bit for bit in every run and for
    every number of threads. Memory beyond the arguments: 0.8 MB per thread for K = 20 and two layers of 20 units, about
    16 MB for long sequences, whatever n is. The result itself is not differentiable.

    Args:
        grads: gradients g_t, shape (K, n).
        cotangents: c_t, shape (K, n).
        hidden, cell: state before the first step, shape (layers, H, n). The replay carries it in grads' dtype.
        weights, biases, output_weight, output_bias, p, log_eps, scale, forget_bias: as for `step`.

    Returns: gradients of weights, biases, output_weight and output_bias, each of its argument's shape.

    Raises:
        ValueError: if shapes, dtypes or devices do not fit together.
    """
    arguments = (grads.detach(), cotangents.detach(), hidden.detach(), cell.detach())
    network = Network(weights, biases, output_weight, output_bias, p, log_eps, scale, forget_bias)
    kernel = _kernel(grads)
    if kernel is None:
        return reference.sequence_vjp(*arguments, *network[:4], **_named(network[4:]))
    with torch.no_grad():
        return kernel.sequence_vjp(*arguments, network)[:4]


def is_plain_call(tensors: Sequence[Tensor]) -> bool:
    """Whether nothing stands between the caller and the numbers: no autograd, transform, tracing or tensor subclass."""
    return not torch._C._are_functorch_transforms_active() and _are_numbers(tensors)


def _are_numbers(tensors: Sequence[Tensor]) -> bool:
    """`is_plain_call` in a vmap rule, where the transforms are active and have taken their wrappers off."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or forward_ad._current_level >= 0:
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return _PLAIN.issuperset(map(type, tensors))


def _operator_composes() -> bool:
    """Whether the operator does what the reference would: `torch.func` takes no derivatives of custom operators."""
    if forward_ad._current_level >= 0:
        return False
    stack = get_interpreter_stack() or ()  # None outside of torch.func
    return all(interpreter.key() == TransformType.Vmap for interpreter in stack)


# torch.compiler.assume_constant_result does just this, but imports the compiler: 1.2 s of every `import l2o`.
# The function is asked while tracing, when the transforms of the traced code are in force.
_operator_composes._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


@torch.library.custom_op("l2o::lstm_step", mutates_args=())
def _step(
    grads: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    output_weight: Tensor,
    output_bias: Tensor,
    p: float | None,
    log_eps: float,
    scale: float,
    forget_bias: float,
) -> tuple[Tensor, Tensor, Tensor]:
    constants = (p, log_eps, scale, forget_bias)
    kernel = _kernel(grads)
    if kernel is not None:
        return kernel.step(grads, hidden, cell, Network(weights, biases, output_weight, output_bias, *constants))
    theta = (weights, biases, output_weight, output_bias)
    return reference.step(grads, hidden, cell, *theta, **_named(constants))


@torch.library.custom_op("l2o::lstm_step_backward", mutates_args=())
def _step_backward(
    d_updates: Tensor,
    d_next_hidden: Tensor,
    d_next_cell: Tensor,
    grads: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    output_weight: Tensor,
    output_bias: Tensor,
    p: float | None,
    log_eps: float,
    scale: float,
    forget_bias: float,
) -> list[Tensor]:
    """Gradients of (grads, hidden, cell, *weights, *biases, output_weight, output_bias)."""
    constants = (p, log_eps, scale, forget_bias)
    kernel = _kernel(grads)
    if kernel is None:
        primals = [grads, hidden, cell, *weights, *biases, output_weight, output_bias]
        return _reference_backward((d_updates, d_next_hidden, d_next_cell), primals, constants)
    network = Network(weights, biases, output_weight, output_bias, *constants)
    state_cotangents = (d_next_hidden, d_next_cell)
    result = kernel.sequence_vjp(grads[None], d_updates[None], hidden, cell, network, state_cotangents, inputs=True)
    flat = [*result.weights, *result.biases, result.output_weight, result.output_bias]
    d_grads, *d_state = [tensor for tensor in (result.grads, result.hidden, result.cell) if tensor is not None]
    return [d_grads[0], *d_state, *flat]


def _reference_backward(cotangents: tuple[Tensor, ...], primals: Sequence[Tensor], constants: tuple) -> list[Tensor]:
    """The same as `_step_backward`, differentiable in everything."""
    layers = (len(primals) - 5) // 2

    def run(grads, hidden, cell, *theta):
        theta = (theta[:layers], theta[layers:-2], *theta[-2:])
        return reference.step(grads, hidden, cell, *theta, **_named(constants))

    return list(torch.func.vjp(run, *primals)[1](cotangents))


@_step.register_fake
def _(grads, hidden, cell, *_):
    return torch.empty_like(grads), torch.empty_like(hidden), torch.empty_like(cell)


@_step_backward.register_fake
def _(d_updates, d_hidden, d_cell, grads, hidden, cell, weights, biases, output_weight, output_bias, *_):
    tensors = (grads, hidden, cell, *weights, *biases, output_weight, output_bias)
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in tensors]


def _setup_context(ctx, inputs, output):
    grads, hidden, cell, weights, biases, output_weight, output_bias, *ctx.constants = inputs
    ctx.layers = len(weights)
    ctx.save_for_backward(grads, hidden, cell, *weights, *biases, output_weight, output_bias)


def _backward(ctx, *cotangents):
    primals, layers = ctx.saved_tensors, ctx.layers
    if torch.is_grad_enabled():  # create_graph=True: the gradients are to be differentiated again
        gradients = _reference_backward(cotangents, primals, tuple(ctx.constants))
    else:
        theta = (list(primals[3 : 3 + layers]), list(primals[3 + layers : -2]), *primals[-2:])
        gradients = _step_backward(*cotangents, *primals[:3], *theta, *ctx.constants)
    weights, biases = gradients[3 : 3 + layers], gradients[3 + layers : -2]
    return *gradients[:3], weights, biases, *gradients[-2:], None, None, None, None


_step.register_autograd(_backward, setup_context=_setup_context)


@_step.register_vmap
def _(info, in_dims, *arguments):
    """Batched coordinates with common weights are more coordinates; batched weights are a loop, in C++ if possible."""
    if any(dim is not None for dims in in_dims[3:7] for dim in (dims if isinstance(dims, (list, tuple)) else [dims])):
        grads, hidden, cell, weights, biases, output_weight, output_bias, *constants = arguments
        tensors = (grads, hidden, cell, *weights, *biases, output_weight, output_bias)
        wrapped = any(map(is_functorch_wrapped_tensor, tensors))  # by an outer transform
        if not wrapped and _are_numbers(tensors) and lstm_cpu.supports(grads):
            network = Network(weights, biases, output_weight, output_bias, *constants)
            return lstm_cpu.step_batch(info.batch_size, grads, hidden, cell, network, in_dims[:7]), (0, 0, 0)
        return _vmap_loop(_step, info, in_dims, arguments)
    size, n = info.batch_size, arguments[0].numel() // (1 if in_dims[0] is None else info.batch_size)
    pieces = []
    for tensor, dim in zip(arguments[:3], in_dims[:3], strict=True):
        batched = tensor.unsqueeze(-2).expand(*tensor.shape[:-1], size, n) if dim is None else tensor.movedim(dim, -2)
        pieces.append(batched.reshape(*batched.shape[:-2], size * n))
    updates, hidden, cell = _step(*pieces, *arguments[3:])
    shape = (*hidden.shape[:2], size, n)
    return (updates.reshape(size, n), hidden.reshape(shape), cell.reshape(shape)), (0, 2, 2)


@_step_backward.register_vmap
def _(info, in_dims, *arguments):
    return _vmap_loop(_step_backward, info, in_dims, arguments)


def _vmap_loop(operator, info, in_dims, arguments):
    def select(value, dim, index):
        if isinstance(value, (list, tuple)):
            dims = dim if isinstance(dim, (list, tuple)) else [dim] * len(value)
            return [select(item, item_dim, index) for item, item_dim in zip(value, dims, strict=True)]
        return value if dim is None else value.select(dim, index)

    results = [
        operator(*(select(value, dim, index) for value, dim in zip(arguments, in_dims, strict=True)))
        for index in range(info.batch_size)
    ]
    stacked = [torch.stack(parts) for parts in zip(*results, strict=True)]
    return (stacked, [0] * len(stacked)) if operator is _step_backward else (tuple(stacked), (0, 0, 0))
