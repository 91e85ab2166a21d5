"""Coordinate-wise rules whose updates pass a learned low-pass filter over each picture.

û_t = F⁻¹ [ κ_t · F u_t ],   κ_t(f) = (1 + (f / f_t)²)^(−p/2),   f_t = f_0 (1 + t / τ)^q

u_t: update of a coordinate-wise rule; f: spatial frequency, cycles per pixel; f_0, p: learned. q is learned where the
rule has schedules anyway, and 0 for the LSTM, which had learned a cutoff that grows within the steps of its training
and disturbed the picture in later ones. F is the Fourier transform of the picture continued by reflection, so that
opposite edges do not leak into each other. With p = 2s the filter turns a gradient into that of the Sobolev space H^s
(Neuberger 1997, Sobolev Gradients and Differential Equations). Here it is applied to updates, which no theorem covers;
what it brings on pictures is in results/neural-art. A shape that spans many pixels then moves as one, where Adam gives
every pixel a step of its own.

The filter acts on the last two axes of a tensor, height and width: these rules are for pictures. A tensor with fewer
axes is left alone.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from l2o.rule import CoordinatewiseRule, Observation, Params, State, UpdateRule, add_flat, flatten
from l2o.rules.checks import check_positive
from l2o.rules.lstm import CoordinatewiseLSTM, LSTMConfig
from l2o.rules.scheduled_adam import ScheduledAdam, ScheduledAdamConfig

_TIMESCALE = 16.0
"""τ, steps: the default of `ScheduledAdam`."""
_LARGEST_LOG = 30.0
"""Of |log f_t|: beyond, every frequency but 0 is cut, or none is, and the square of f_t leaves float32."""


@dataclass(frozen=True)
class FilterConfig:
    """Initial filter of a Sobolev rule; the default was chosen by hand on photographs of the train split."""

    cutoff: float = 0.05
    """f_0 > 0, cycles per pixel."""
    order: float = 1.5
    """p, dimensionless; 0 filters nothing, below 0 fine detail is enhanced."""

    def __post_init__(self):
        """Check the ranges, after those of the rule that is filtered.

        Raises:
            ValueError: if cutoff is not positive and finite, or order not finite.
        """
        super().__post_init__()  # pyright: ignore[reportAttributeAccessIssue] (of the rule's config, next in line)
        check_positive(cutoff=self.cutoff)
        if not math.isfinite(self.order):
            raise ValueError(f"order must be finite, got {self.order}")


@dataclass(frozen=True)
class SobolevAdamConfig(FilterConfig, ScheduledAdamConfig):
    """Initial schedule and filter of `SobolevAdam`."""

    cutoff_power: float = 0.0
    """q, dimensionless: the cutoff grows as (1 + t / 16)^q."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: from `FilterConfig`, or if cutoff_power is not finite.
        """
        super().__post_init__()
        if not math.isfinite(self.cutoff_power):
            raise ValueError(f"cutoff_power must be finite, got {self.cutoff_power}")


@dataclass(frozen=True)
class SobolevLSTMConfig(FilterConfig, LSTMConfig):
    """Shape and constants of the LSTM and initial filter of `SobolevLSTM`."""


class SobolevRule(UpdateRule):
    """What `SobolevAdam` and `SobolevLSTM` share: a coordinate-wise rule followed by a filter.

    θ = {coordinates.…, log_cutoff, order}.

    State and cost per coordinate are those of `coordinates`; the filter adds two Fourier transforms of four times the
    picture's size.
    """

    def __init__(self, coordinates: CoordinatewiseRule):
        """Take the part that is coordinate-wise, whose config holds the filter's start as well."""
        super().__init__()
        self.coordinates, self.config = coordinates, coordinates.config
        self.log_cutoff = nn.Parameter(torch.tensor(math.log(self.config.cutoff)))
        self.order = nn.Parameter(torch.tensor(float(self.config.order)))

    def init_state(self, params: Params) -> State:
        """See `UpdateRule.init_state`."""
        return self.coordinates.init_state(params)

    def init_coordinates(self, like: Tensor) -> State:
        """See `CoordinatewiseRule.init_coordinates`."""
        return self.coordinates.init_coordinates(like)

    def forward(self, observation: Observation, state: State) -> tuple[Params, State]:
        """θ_{t+1} = θ_t + û_t.

        Raises:
            ValueError: if the observation has no gradients.
        """
        params, grads, step = observation.params, observation.grads, observation.step
        if grads is None:
            raise ValueError(f"{type(self).__name__} needs gradients, but observation.grads is None")
        updates, state = self.coordinates.update(flatten(grads), state, step)
        pieces = updates.split([tensor.numel() for tensor in params.values()])
        filtered = [
            self.filtered(piece.reshape(tensor.shape), step).reshape(-1)
            for piece, tensor in zip(pieces, params.values(), strict=True)
        ]
        return add_flat(params, torch.cat(filtered)), state

    def log_cutoff_at(self, step: Tensor) -> Tensor:
        """Return log f_t, shape ()."""
        return self.log_cutoff

    def filtered(self, updates: Tensor, step: Tensor) -> Tensor:
        """Return û_t for the update u_t of one tensor, shape (…, height, width), at least float32."""
        if updates.dim() < 2 or not updates.numel():
            return updates
        height, width = updates.shape[-2:]
        squares = _frequencies(2 * height, updates)[:, None] ** 2 + _frequencies(2 * width, updates)[: width + 1] ** 2
        log_cutoff = self.log_cutoff_at(step).clamp(-_LARGEST_LOG, _LARGEST_LOG)
        gain = (1 + squares / (2 * log_cutoff).exp()) ** (-self.order / 2)
        continued = torch.cat((updates, updates.flip(-1)), -1)
        continued = torch.cat((continued, continued.flip(-2)), -2)
        spectrum = torch.fft.rfft2(continued)
        return torch.fft.irfft2(gain * spectrum, s=continued.shape[-2:])[..., :height, :width]


GradientRule = CoordinatewiseRule | SobolevRule
"""A rule that needs gradients and no more: what `LearnedOptimizer` takes."""


class SobolevAdam(SobolevRule):
    """`ScheduledAdam` followed by a filter whose cutoff has a schedule as well: θ has cutoff_power in addition.

    Raises:
        ValueError: from `SobolevAdamConfig`, if the config is out of range.
    """

    def __init__(self, config: SobolevAdamConfig | None = None):
        """Begin with the numbers of the config."""
        config = config or SobolevAdamConfig()
        super().__init__(ScheduledAdam(config))
        self.cutoff_power = nn.Parameter(torch.tensor(float(config.cutoff_power)))

    def log_cutoff_at(self, step: Tensor) -> Tensor:
        """Return log f_t, shape ()."""
        return self.log_cutoff + self.cutoff_power * (step / _TIMESCALE).log1p().to(self.log_cutoff.dtype)


class SobolevLSTM(SobolevRule):
    """`CoordinatewiseLSTM` followed by a filter.

    Raises:
        ValueError: from `SobolevLSTMConfig`, if the config is out of range.
    """

    def __init__(self, config: SobolevLSTMConfig | None = None, generator: torch.Generator | None = None):
        """Draw the LSTM's weights; the filter begins with the numbers of the config."""
        super().__init__(CoordinatewiseLSTM(config or SobolevLSTMConfig(), generator))


def _frequencies(length: int, like: Tensor) -> Tensor:
    """Return |f| of a transform of this length, cycles per pixel, shape (length,)."""
    return torch.fft.fftfreq(length, device=like.device, dtype=like.dtype).abs()
