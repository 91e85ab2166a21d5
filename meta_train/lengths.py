"""How long trajectories (T) and windows (K) are, drawn anew whenever a batch of trajectories starts.

Short trajectories are cheap and their gradients tame, long ones are what a rule is for. Drawing T from a log-uniform
distribution trains on all scales at once (as learned_optimization does); letting both grow during the run starts where
gradients are tame (Chen et al. 2020, arXiv:2010.09089, §3: curriculum over unrolled steps).
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

Schedule = Literal["fixed", "log-uniform", "growing"]


@dataclass(frozen=True)
class Lengths:
    """Which T and K, at most those of the run."""

    schedule: Schedule = "fixed"
    """fixed; log-uniform: drawn for every batch of trajectories; growing: geometrically, from least to most, over the
    first half of the run."""
    min_horizon: int | None = None
    """Least T; None keeps it at the run's horizon."""
    min_truncation: int | None = None
    """Least K; None keeps it at the run's truncation."""

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
        if (self.schedule == "fixed") != (self.min_horizon is None and self.min_truncation is None):
            raise ValueError(
                "min_horizon and min_truncation go with schedule log-uniform or growing, which needs one of them"
            )

    def draw(self, horizon: int, truncation: int, progress: float, generator: torch.Generator) -> tuple[int, int]:
        """Return T and K of the next trajectories.

        Args:
            horizon, truncation: the most.
            progress: fraction of the run's outer steps made.
        """
        if self.schedule == "fixed":
            return horizon, truncation
        length = self._between(self.min_horizon, horizon, progress, generator)
        return length, min(length, self._between(self.min_truncation, truncation, progress, generator))

    def _between(self, least: int | None, most: int, progress: float, generator: torch.Generator) -> int:
        if least is None:
            return most
        if self.schedule == "growing":
            return round(least * (most / least) ** min(2 * progress, 1.0))
        # Every integer n gets the probability of [n, n + 1): log-uniform on [least, most + 1), rounded down.
        u = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64).item()
        return min(int(least * math.exp(u * math.log((most + 1) / least))), most)
