"""How long trajectories (T) and windows (K) are, drawn anew whenever a batch of trajectories starts.

Short trajectories are cheap and their gradients tame, long ones are what a rule is for. Drawing T from a log-uniform
distribution trains on all scales at once (as learned_optimization does); letting both grow during the run starts where
gradients are tame (Chen et al. 2020, arXiv:2010.09089, §3: curriculum over unrolled steps). A rule with weights for
each layer is trained layer by layer, then as a whole (Chen et al. 2018, arXiv:1808.10038, §4: stage-wise training).
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

Schedule = Literal["fixed", "log-uniform", "growing", "layerwise"]


@dataclass(frozen=True)
class Lengths:
    """Which T and K, at most those of the run."""

    schedule: Schedule = "fixed"
    """fixed; log-uniform: drawn for every batch of trajectories; growing: geometrically, from least to most, over the
    first half of the run; layerwise: 1, 2, …, T steps in equal parts of the first half, each in one window."""
    min_horizon: int | None = None
    """Least T; None keeps it at the run's horizon."""
    min_truncation: int | None = None
    """Least K; None keeps it at the run's truncation."""
    layer_lr: float = 1.0
    """layerwise, while T grows: factor of outer_lr for the weights of all layers but the newest."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if a length is below one or the schedule unknown, or if it has no use for the lengths given.
        """
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule is one of {', '.join(get_args(Schedule))}, got {self.schedule!r}")
        for name in ("min_horizon", "min_truncation"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be an integer of at least 1, got {value}")
        if not 0 < self.layer_lr <= 1:
            raise ValueError(f"layer_lr is a factor in (0, 1], got {self.layer_lr}")
        if self.layer_lr != 1 and self.schedule != "layerwise":
            raise ValueError("layer_lr goes with schedule layerwise")
        if (self.schedule in ("fixed", "layerwise")) != (self.min_horizon is None and self.min_truncation is None):
            raise ValueError(
                "min_horizon and min_truncation go with schedule log-uniform or growing, which needs one of them; "
                "for another schedule set both to None"
            )

    def draw(self, horizon: int, truncation: int, progress: float, generator: torch.Generator) -> tuple[int, int]:
        """Return T and K of the next trajectories.

        Args:
            horizon, truncation: the most.
            progress: fraction of the run's outer steps made.
        """
        if self.schedule == "fixed":
            return horizon, truncation
        if self.schedule == "layerwise":
            depth = self.depth(horizon, progress)
            return depth, depth
        length = self._between(self.min_horizon, horizon, progress, generator)
        return length, min(length, self._between(self.min_truncation, truncation, progress, generator))

    def depth(self, horizon: int, progress: float) -> int:
        """Return the T of schedule layerwise; arguments as for `draw`."""
        return min(horizon, 1 + int(2 * progress * horizon))

    def lr_factor(self, layer: int | None, horizon: int, progress: float) -> float:
        """Return the factor of the outer learning rate for the weights of a layer, or of all layers (None)."""
        depth = self.depth(horizon, progress)
        growing = self.schedule == "layerwise" and 2 * progress < 1
        return self.layer_lr if growing and layer is not None and layer < depth - 1 else 1.0

    def _between(self, least: int | None, most: int, progress: float, generator: torch.Generator) -> int:
        if least is None:
            return most
        if self.schedule == "growing":
            return round(least * (most / least) ** min(2 * progress, 1.0))
        # Every integer n gets the probability of [n, n + 1): log-uniform on [least, most + 1), rounded down.
        u = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64).item()
        return min(int(least * math.exp(u * math.log((most + 1) / least))), most)
