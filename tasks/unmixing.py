"""Spectral unmixing: how much of each material there is in a pixel, from its spectrum.

    minimise over a on the simplex   ½‖Ea − b‖²,   b = E a* + ε,   a ≥ 0,  Σ a = 1

Columns of E, the endmembers, are smooth positive spectra: a slope minus absorption lines. Abundances a* are uniform on
the simplex of the materials that are present. Source: the linear mixing model of Keshava & Mustard 2002, Spectral
unmixing, IEEE Signal Process. Mag. 19(1); here with synthetic endmembers.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from l2o.problem import Problem
from l2o.proximal import Dictionary, Simplex
from tasks.task import Data, Params, TaskFamily

_LINES = 4
"""Absorption lines of each endmember."""


@dataclass(frozen=True)
class Unmixing(TaskFamily):
    """½‖Ea − b‖² from a = 1/n: a task is the spectrum of a pixel, "b" (bands,), and its abundances, "x_star".

    The constraint is in `problem`, not in `loss`: gradient rules see the least-squares part alone.
    """

    vectorized = "axes"

    bands: int = 100
    """Wavelengths, m."""
    endmembers: int = 10
    """Materials, n."""
    density: float = 0.3
    """Probability that a material is present in a pixel; at least one is."""
    snr_db: float | None = 30.0
    """10 log₁₀(‖Ea*‖² / E‖ε‖²) of each pixel, in dB; None: no noise."""
    spectra_seed: int = 0
    """Which endmembers."""

    def __post_init__(self):
        """Check the options.

        Raises:
            ValueError: if a number is out of its range.
        """
        if min(self.bands, self.endmembers) < 1:
            raise ValueError(f"bands and endmembers must be at least 1, got {self.bands} and {self.endmembers}")
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be above 0 and at most 1, got {self.density}")
        if self.snr_db is not None and not math.isfinite(self.snr_db):
            raise ValueError(f"snr_db must be finite, or None for no noise, got {self.snr_db}")

    def sample_tasks(self, n_tasks: int, generator: torch.Generator) -> Data:
        """Return b (n_tasks, bands) and the abundances x_star (n_tasks, endmembers)."""
        shape, device = (n_tasks, self.endmembers), generator.device
        draws = torch.rand(shape, generator=generator, device=device)
        first = draws == draws.amin(-1, keepdim=True)
        present = (draws < self.density) | first
        # Exponentials over their sum are uniform on the simplex; 1 − u, because log 0 is not finite.
        weights = -torch.log1p(-torch.rand(shape, generator=generator, device=device)) * present
        weights = weights + torch.finfo(weights.dtype).tiny * first
        x_star = weights / weights.sum(-1, keepdim=True)
        clean = x_star @ self.spectra(x_star).mT
        if self.snr_db is None:
            return {"x_star": x_star, "b": clean}
        noise = torch.randn(clean.shape, generator=generator, device=device)
        scale = clean.square().mean(-1, keepdim=True).sqrt() * 10 ** (-self.snr_db / 20)
        return {"x_star": x_star, "b": clean + noise * scale}

    def init_params(self, tasks: Data, n_tasks: int, generator: torch.Generator) -> Params:
        """Return a = 1/n, shape (n_tasks, endmembers)."""
        return {"x": torch.full((n_tasks, self.endmembers), 1 / self.endmembers, device=generator.device)}

    def loss(self, params: Params, task: Data, batch: Data) -> Tensor:
        """½‖Ea − b‖², shape (), or (n_tasks,) with a leading task axis."""
        residual = params["x"] @ self.spectra(params["x"]).mT - task["b"]
        return 0.5 * residual.square().sum(-1)

    def problem(self, tasks: Data) -> Problem:
        """All pixels as one `l2o.Problem` on the simplex."""
        return Problem(self._operator(tasks["b"]), tasks["b"], Simplex())

    def spectra(self, like: Tensor) -> Tensor:
        """Return E, shape (bands, endmembers), with entries in (0, 1), in the dtype and on the device of `like`."""
        return self._operator(like).matrix

    def _operator(self, like: Tensor) -> Dictionary:
        key = like.dtype, like.device
        if key not in self._operators:  # never so in a loss that is being compiled, where NumPy cannot draw
            self._operators[key] = _endmembers(self, *key)
        return self._operators[key]

    @functools.cached_property
    def _operators(self) -> dict[tuple[torch.dtype, torch.device], Dictionary]:
        return {}


def _endmembers(family: Unmixing, dtype: torch.dtype, device: torch.device) -> Dictionary:
    # NumPy draws: the same numbers on every device and in every dtype, and allowed inside vmap.
    random = np.random.RandomState(family.spectra_seed)
    wavelength = np.linspace(0, 1, family.bands)[:, None, None]
    centers = random.uniform(0, 1, (family.endmembers, _LINES))
    widths = random.uniform(0.02, 0.15, (family.endmembers, _LINES))
    depths = random.uniform(0.05, 0.8 / _LINES, (family.endmembers, _LINES))
    ends = random.uniform(0.85, 0.95, (2, family.endmembers))
    slope = ends[0] + (ends[1] - ends[0]) * wavelength[..., 0]
    E = slope - (depths * np.exp(-0.5 * ((wavelength - centers) / widths) ** 2)).sum(-1)
    with torch.inference_mode(False), torch.no_grad():  # what is kept must not be an inference tensor
        return Dictionary(torch.from_numpy(E).to(device=device, dtype=dtype))
