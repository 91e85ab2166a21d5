"""Proximal operators against a search over the plane that knows nothing but the definition of the function."""

import numpy as np
import pytest
import torch

from l2o.proximal import (
    L1,
    L2,
    Box,
    ElasticNet,
    HalfSpace,
    L1Ball,
    L2Ball,
    Linf,
    LinfBall,
    Nonnegative,
    NonnegativeL1,
    SquaredL2,
    TotalVariation,
)

DEFINITIONS = {
    "l1": (L1(0.6), lambda x, y: 0.6 * (abs(x) + abs(y))),
    "nonnegative-l1": (NonnegativeL1(0.6), lambda x, y: where((x >= 0) & (y >= 0), 0.6 * (x + y))),
    "l2": (L2(0.8), lambda x, y: 0.8 * np.sqrt(x**2 + y**2)),
    "squared-l2": (SquaredL2(0.8), lambda x, y: 0.4 * (x**2 + y**2)),
    "elastic-net": (ElasticNet(0.5, 0.3), lambda x, y: 0.5 * (abs(x) + abs(y)) + 0.15 * (x**2 + y**2)),
    "linf": (Linf(0.7), lambda x, y: 0.7 * np.maximum(abs(x), abs(y))),
    "total-variation": (TotalVariation(0.4, ndim=1, steps=300), lambda x, y: 0.4 * abs(x - y)),
    "nonnegative": (Nonnegative(), lambda x, y: where((x >= 0) & (y >= 0))),
    "box": (Box(-0.3, 0.5), lambda x, y: where((x >= -0.3) & (x <= 0.5) & (y >= -0.3) & (y <= 0.5))),
    "l1-ball": (L1Ball(1.2), lambda x, y: where(abs(x) + abs(y) <= 1.2)),
    "l2-ball": (L2Ball(0.9), lambda x, y: where(x**2 + y**2 <= 0.81)),
    "linf-ball": (LinfBall(0.4), lambda x, y: where((abs(x) <= 0.4) & (abs(y) <= 0.4))),
    "half-space": (
        HalfSpace(torch.tensor([1.0, 2.0], dtype=torch.float64), -0.4),
        lambda x, y: where(x + 2 * y <= -0.4),
    ),
}


def where(inside, value=0.0):
    return np.where(inside, value, np.inf)


def search(definition, v, step: float) -> tuple[np.ndarray, float]:
    """The best point of a grid, and its objective; then of a finer one around it, until the grid is 1e-6 wide."""
    center, least = np.zeros(2), np.inf
    for width in 4.0 * 0.5 ** np.arange(22):
        axis = np.linspace(-width, width, 81)
        x, y = center[0] + axis[:, None], center[1] + axis[None, :]
        objective = definition(x, y) + ((x - v[0]) ** 2 + (y - v[1]) ** 2) / (2 * step)
        best = np.unravel_index(objective.argmin(), objective.shape)
        center, least = np.array([x[best[0], 0], y[0, best[1]]]), objective[best]
    return center, least


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize(("v", "step"), [((1.3, -0.7), 0.9), ((0.2, 0.35), 0.5), ((-2.1, -1.9), 1.6)])
def test_no_point_of_the_plane_is_better_than_the_prox(name, v, step):
    function, definition = DEFINITIONS[name]
    ours = function.prox(torch.tensor(v, dtype=torch.float64), step).numpy()
    found, best = search(definition, v, step)
    # the boundary of a set falls between the points of the grid, along which the objective is flat to first order
    np.testing.assert_allclose(ours, found, atol=2e-3)
    if np.isinf(definition(*ours)):
        ours = ours + 1e-12 * (ours - v)  # rounding may leave a set by an ulp; away from v lies its inside
    assert definition(*ours) + ((ours - v) ** 2).sum() / (2 * step) <= best + 1e-9
