"""Fused coordinate-wise cells: C++ for CPUs, and the plain torch reference that they are tested against.

The C++ is compiled at first use and cached (see `build`). Without a compiler, or with L2O_KERNELS=off in the
environment, the reference runs in its place.
"""

from l2o.kernels.lstm import sequence_vjp, step
from l2o.kernels.reference import preprocess

__all__ = ["preprocess", "sequence_vjp", "step"]
