"""Fused coordinate-wise cells: C++ for CPUs, Triton for NVIDIA GPUs, and the plain torch that both are tested against.

The C++ is compiled at first use and cached (see `build`). Without a compiler, or with L2O_KERNELS=off in the
environment, the reference runs in its place; so it does for CUDA tensors where triton cannot be imported.
"""

from l2o.kernels.lstm import sequence_vjp, step
from l2o.kernels.network import Network
from l2o.kernels.reference import preprocess
from l2o.kernels.stepper import stepper

__all__ = ["Network", "preprocess", "sequence_vjp", "step", "stepper"]
