"""Which implementation a call of the LSTM takes: C++, Triton, the registered operator, or plain torch."""

import functools
import warnings
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

from l2o.kernels import lstm_cpu

_PLAIN = frozenset((Tensor, torch.nn.Parameter))


def kernel_for(grads: Tensor) -> ModuleType | None:
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


def is_plain_call(tensors: Sequence[Tensor]) -> bool:
    """Whether nothing stands between the caller and the numbers: no autograd, transform, tracing or tensor subclass."""
    return not torch._C._are_functorch_transforms_active() and are_numbers(tensors)


def are_numbers(tensors: Sequence[Tensor]) -> bool:
    """`is_plain_call` in a vmap rule, where the transforms are active and have taken their wrappers off."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or forward_ad._current_level >= 0:
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return _PLAIN.issuperset(map(type, tensors))


def operator_composes() -> bool:
    """Whether the operator does what the reference would: `torch.func` takes no derivatives of custom operators."""
    if forward_ad._current_level >= 0:
        return False
    stack = get_interpreter_stack() or ()  # None outside of torch.func
    return all(interpreter.key() == TransformType.Vmap for interpreter in stack)


# torch.compiler.assume_constant_result does just this, but imports the compiler: 1.2 s of every `import l2o`.
# The function is asked while tracing, when the transforms of the traced code are in force.
operator_composes._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
