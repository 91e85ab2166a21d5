"""Random quadratics f(θ) = ‖Wθ − y‖² (Andrychowicz et al. 2016, arXiv:1606.04474, §3.1)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from l2o.kernels.least_squares import squared_residual
from tasks.task import Data, Params, TaskFamily


@dataclass(frozen=True)
class Quadratic(TaskFamily):
    """f(θ) = ‖Wθ − y‖², W of shape (dim, dim), y and θ of shape (dim,), deterministic: no minibatches, no splits."""

    vectorized = "axes"

    dim: int = 10
    """Number of variables."""
    distribution: Literal["normal", "uniform"] = "normal"
    """Entries of W and y: N(0, 1), or U(0, 1) as in later ports."""
    start: Literal["zero", "normal"] = "zero"
    """θ_0 = 0 or θ_0 ~ N(0, 1)."""

    def __post_init__(self):
        """Check the options.

        Raises:
            ValueError: if dim is below one or an option is unknown.
        """
        if self.dim < 1:
            raise ValueError(f"dim must be at least 1, got {self.dim}")
        if self.distribution not in ("normal", "uniform") or self.start not in ("zero", "normal"):
            raise ValueError(f"distribution is normal or uniform and start zero or normal, got {self}")

    def sample_tasks(self, n_tasks: int, generator: torch.Generator) -> Data:
        """Return W (n_tasks, dim, dim) and y (n_tasks, dim)."""
        draw = torch.randn if self.distribution == "normal" else torch.rand
        shape = (n_tasks, self.dim)
        return {
            "W": draw(*shape, self.dim, generator=generator, device=generator.device),
            "y": draw(*shape, generator=generator, device=generator.device),
        }

    def init_params(self, tasks: Data, n_tasks: int, generator: torch.Generator) -> Params:
        """Return theta (n_tasks, dim)."""
        theta = torch.randn(n_tasks, self.dim, generator=generator, device=generator.device)
        return {"theta": theta if self.start == "normal" else torch.zeros_like(theta)}

    def loss(self, params: Params, task: Data, batch: Data) -> Tensor:
        """‖Wθ − y‖², shape (), or (n_tasks,) with a leading task axis."""
        theta, y = params["theta"].unsqueeze(-1), task["y"].unsqueeze(-1)
        fused = torch.addmm if theta.ndim == 2 else torch.baddbmm  # `@` and `-` would be six nodes of the graph
        return fused(y, task["W"], theta, beta=-1).square().sum((-2, -1))

    def evaluator(self, params: Params, tasks: Data) -> Callable[[Data, Tensor], Tensor] | None:
        """‖Wθ − y‖² and 2 Wᵀ (Wθ − y), fused; see `TaskFamily.evaluator`."""
        evaluate = squared_residual(tasks["W"], tasks["y"], params["theta"])
        return None if evaluate is None else lambda batch, out: evaluate(out)
