"""The coordinate-wise LSTM as `torch.library` operators, `l2o::lstm_step` and `l2o::lstm_step_backward`.

Through them `l2o.kernels.step` composes with autograd, `torch.func.vmap`, `torch.compile` and fake tensors. An operator
takes tensors, lists of them and numbers: the fields of `Network` one by one, in its order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from l2o.kernels import lstm_cpu, reference
from l2o.kernels.dispatch import are_numbers, kernel_for
from l2o.kernels.network import Network


@torch.library.custom_op("l2o::lstm_step", mutates_args=())
def step(
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
    """See `l2o.kernels.step`."""
    network = Network(weights, biases, output_weight, output_bias, p, log_eps, scale, forget_bias)
    return (kernel_for(grads) or reference).step(grads, hidden, cell, network)


@torch.library.custom_op("l2o::lstm_step_backward", mutates_args=())
def step_backward(
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
    network = Network(weights, biases, output_weight, output_bias, p, log_eps, scale, forget_bias)
    kernel = kernel_for(grads)
    if kernel is None:
        primals = [grads, hidden, cell, *weights, *biases, output_weight, output_bias]
        return _reference_backward((d_updates, d_next_hidden, d_next_cell), primals, network[4:])
    state_cotangents = (d_next_hidden, d_next_cell)
    result = kernel.sequence_vjp(grads[None], d_updates[None], hidden, cell, network, state_cotangents, inputs=True)
    flat = [*result.weights, *result.biases, result.output_weight, result.output_bias]
    d_grads, *d_state = [tensor for tensor in (result.grads, result.hidden, result.cell) if tensor is not None]
    return [d_grads[0], *d_state, *flat]


def _reference_backward(cotangents: tuple[Tensor, ...], primals: Sequence[Tensor], constants: tuple) -> list[Tensor]:
    """The same as `step_backward`, differentiable in everything."""
    layers = (len(primals) - 5) // 2

    def run(grads, hidden, cell, *theta):
        return reference.step(grads, hidden, cell, Network(*_by_layers(theta, layers), *constants))

    return list(torch.func.vjp(run, *primals)[1](cotangents))


def _by_layers(theta: Sequence, layers: int) -> tuple:
    """(*weights, *biases, output_weight, output_bias) as the four arguments."""
    return list(theta[:layers]), list(theta[layers : 2 * layers]), *theta[2 * layers :]


@step.register_fake
def _(grads, hidden, cell, *_):
    return torch.empty_like(grads), torch.empty_like(hidden), torch.empty_like(cell)


@step_backward.register_fake
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
        gradients = step_backward(*cotangents, *primals[:3], *_by_layers(primals[3:], layers), *ctx.constants)
    return *gradients[:3], *_by_layers(gradients[3:], layers), None, None, None, None


step.register_autograd(_backward, setup_context=_setup_context)


@step.register_vmap
def _(info, in_dims, *arguments):
    dims_of_networks = (dim for dims in in_dims[3:7] for dim in (dims if isinstance(dims, (list, tuple)) else [dims]))
    if any(dim is not None for dim in dims_of_networks):
        return _vmap_networks(info, in_dims, arguments)
    return _vmap_coordinates(info, in_dims, arguments)


def _vmap_networks(info, in_dims, arguments):
    """A network for each item of the batch is a loop, in C++ if possible."""
    grads, hidden, cell, *rest = arguments
    network = Network(*rest)
    tensors = (grads, hidden, cell, *network.weights, *network.biases, network.output_weight, network.output_bias)
    wrapped = any(map(is_functorch_wrapped_tensor, tensors))  # by an outer transform
    if not wrapped and are_numbers(tensors) and lstm_cpu.supports(grads):
        return lstm_cpu.step_batch(info.batch_size, grads, hidden, cell, network, in_dims[:7]), (0, 0, 0)
    return _vmap_loop(step, info, in_dims, arguments)


def _vmap_coordinates(info, in_dims, arguments):
    """Batched coordinates of one network are more coordinates."""
    size, n = info.batch_size, arguments[0].numel() // (1 if in_dims[0] is None else info.batch_size)
    pieces = []
    for tensor, dim in zip(arguments[:3], in_dims[:3], strict=True):
        batched = tensor.unsqueeze(-2).expand(*tensor.shape[:-1], size, n) if dim is None else tensor.movedim(dim, -2)
        pieces.append(batched.reshape(*batched.shape[:-2], size * n))
    updates, hidden, cell = step(*pieces, *arguments[3:])
    shape = (*hidden.shape[:2], size, n)
    return (updates.reshape(size, n), hidden.reshape(shape), cell.reshape(shape)), (0, 2, 2)


@step_backward.register_vmap
def _(info, in_dims, *arguments):
    return _vmap_loop(step_backward, info, in_dims, arguments)


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
    return (stacked, [0] * len(stacked)) if operator is step_backward else (tuple(stacked), (0, 0, 0))
