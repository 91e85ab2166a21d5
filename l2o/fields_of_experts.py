"""Fields of experts: a regulariser of images made of small filters and a learned potential for each.

    R(x) = Σ_k Σ_pixels ρ_k(K_k x),   ∇R(x) = Σ_k K_kᵀ ρ_k'(K_k x)

ρ_k' is linear between the knots μ_j, where its values are learned, and constant beyond them; ρ_k is its integral from
μ_0. Source: Roth & Black 2009, Int. J. Comput. Vis. 82(2); learned potentials: Chen & Pock 2017, IEEE TPAMI 39(6);
Kobler et al. 2017, Variational networks, GCPR. Differs from them: linear interpolation, not radial basis functions,
which take ten times as long; filters act where they fit inside the image alone, so that K_kᵀ is the exact adjoint, and
have mean 0 and norm 1 by construction.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class FieldsOfExpertsConfig:
    """Options of `FieldsOfExperts`."""

    size: int = 3
    """Side of a filter, pixels."""
    filters: int = 8
    """At most size² − 1: they start as the cosine transform without its mean, low frequencies first."""
    reach: float = 0.8
    """Greatest |μ_j|, in units of the filtered image."""
    knots: int = 33
    """Knots of each ρ', evenly spaced."""
    strength: float = 0.05
    """Greatest ρ' at the start, in units of the image."""

    def __post_init__(self):
        """Check the options.

        Raises:
            ValueError: if a number is out of its range.
        """
        if self.size < 2 or not 1 <= self.filters <= self.size**2 - 1:
            raise ValueError(f"need size ≥ 2 and 1 ≤ filters ≤ size² − 1, got {self.size} and {self.filters}")
        if self.knots < 2 or not self.reach > 0:
            raise ValueError(f"need knots ≥ 2 and reach above 0, got {self.knots} and {self.reach}")


class FieldsOfExperts(nn.Module):
    """R and its gradient; learned are the filters and the values of ρ' at the knots."""

    def __init__(self, config: FieldsOfExpertsConfig | None = None):
        super().__init__()
        self.config = config or FieldsOfExpertsConfig()
        self.spacing = 2 * self.config.reach / (self.config.knots - 1)
        self.raw_filters = nn.Parameter(cosine_filters(self.config.size)[: self.config.filters])
        z = torch.linspace(-4, 4, self.config.knots)
        start = 2 * self.config.strength * z / (1 + z.square())  # of Student's t potential, log(1 + z²)
        self.slopes = nn.Parameter(start.repeat(self.config.filters, 1))
        """ρ_k'(μ_j), shape (filters, knots)."""

    def filters(self) -> Tensor:
        """Return the filters with mean 0 and norm 1, shape (filters, 1, size, size)."""
        centred = self.raw_filters - self.raw_filters.mean((-2, -1), keepdim=True)
        return (centred / torch.linalg.vector_norm(centred, dim=(-2, -1), keepdim=True)).unsqueeze(1)

    def forward(self, x: Tensor) -> Tensor:
        """Return R(x) of each image, shape (batch,); x of shape (batch, height, width)."""
        z = F.conv2d(x.unsqueeze(1), self.filters())
        cells = 0.5 * (self.slopes[:, 1:] + self.slopes[:, :-1]) * self.spacing
        below = F.pad(cells.cumsum(1), (1, 0))  # ρ at the knots
        index, fraction, beyond = self._locate(z)
        left, right = self._at(self.slopes, index), self._at(self.slopes, index + 1)
        inside = self.spacing * fraction * (left + 0.5 * fraction * (right - left))
        ends = beyond * (left + fraction * (right - left))
        return (self._at(below, index) + inside + ends).sum((1, 2, 3))

    def gradient(self, x: Tensor) -> Tensor:
        """Return ∇R(x), the shape of x, (batch, height, width)."""
        filters = self.filters()
        index, fraction, _ = self._locate(F.conv2d(x.unsqueeze(1), filters))
        slopes = torch.lerp(self._at(self.slopes, index), self._at(self.slopes, index + 1), fraction)
        return F.conv_transpose2d(slopes, filters).squeeze(1)

    def _locate(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the knot to the left, the fraction of the cell, and how far z lies beyond the last knot, with sign."""
        reach = self.config.reach
        within = z.clamp(-reach, reach)
        position = (within + reach) / self.spacing
        index = position.detach().floor().long().clamp(0, self.config.knots - 2)
        return index, position - index, z - within

    def _at(self, table: Tensor, index: Tensor) -> Tensor:
        """Return table[k, index[:, k]], the shape of the index, (batch, filters, height, width)."""
        rows = torch.arange(len(table), device=index.device).reshape(-1, 1, 1) * table.shape[1]
        return F.embedding(index + rows, table.reshape(-1, 1)).squeeze(-1)


def cosine_filters(size: int) -> Tensor:
    """Return the two-dimensional cosine basis but for its constant, shape (size² − 1, size, size), norms 1."""
    frequencies = torch.arange(size, dtype=torch.get_default_dtype())
    waves = torch.cos(math.pi * (frequencies + 0.5) * frequencies.unsqueeze(1) / size)
    waves = waves / torch.linalg.vector_norm(waves, dim=1, keepdim=True)
    order = sorted(((i, j) for i in range(size) for j in range(size) if i + j), key=lambda pair: (sum(pair), pair))
    return torch.stack([torch.outer(waves[i], waves[j]) for i, j in order])
