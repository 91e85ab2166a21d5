"""ALISTA with firm thresholding and momentum: four scalars a layer are learned, no selection of the largest entries.

    v_k     = x_k + β_k (x_k − x_{k−1})
    x_{k+1} = φ(v_k − γ_k Wᵀ(A v_k − b)),   φ(u) = s + clip(g_k s, θ_k),   s = η_{θ_k}(u)

φ shrinks what is just above θ and leaves what is above (1 + 1/g) θ as it is: firm thresholding. It does what support
selection does for the p largest, without a selection, which takes as long as the rest of a layer.

Source: Liu, Chen, Wang & Yin 2019, ALISTA, ICLR (the step and W, `Dictionary.analytic_weights`); Gao & Bruce 1997,
WaveShrink with firm shrinkage, Statistica Sinica 7, eq. 2.3, where the two thresholds are θ and (1 + 1/g) θ.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from l2o.problem import Problem
from l2o.proximal.norms import soft_threshold
from l2o.rule import ModelBasedRule
from l2o.rules.checks import check_positive
from l2o.rules.support import check_layers, dictionary_of, multiply, per_layer, positive, shared


class FirmALISTAState(NamedTuple):
    """What is computed once, and remembered."""

    weights: Tensor
    """Wᵀ, shape (1, n, m), or (batch…, n, m) where each item has its own A."""
    previous: Tensor
    """x_{k−1}, the shape of x."""


@dataclass(frozen=True)
class FirmALISTAConfig:
    """Shape and initial values of `FirmALISTA`."""

    layers: int = 8
    """Steps with weights of their own."""
    step_size: float = 1.0
    """γ_k to begin with, dimensionless."""
    threshold: float = 0.6
    """θ_0 to begin with, units of x."""
    threshold_decay: float = 0.7
    """θ_{k+1} / θ_k to begin with."""
    gain: float = 0.14
    """g_k to begin with; towards 0, soft thresholding, towards infinity, hard."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if layers is below 1, or a number is not positive.
        """
        check_layers(self.layers)
        check_positive(
            step_size=self.step_size, threshold=self.threshold, threshold_decay=self.threshold_decay, gain=self.gain
        )


class FirmALISTA(ModelBasedRule):
    """θ = {log_step_size, log_threshold, log_gain, momentum: a scalar a layer}; for any matrix.

    To begin with there is no momentum, and layer 0 is an ISTA step with Wᵀ in the place of Aᵀ and firm thresholding.
    """

    def __init__(self, config: FirmALISTAConfig | None = None):
        super().__init__()
        self.config = config = config or FirmALISTAConfig()
        self.layers = config.layers
        self.log_step_size = per_layer(config.step_size for _ in range(config.layers))
        self.log_threshold = per_layer(
            config.threshold * config.threshold_decay**layer for layer in range(config.layers)
        )
        self.log_gain = per_layer(config.gain for _ in range(config.layers))
        self.momentum = nn.ParameterList(torch.tensor(0.0) for _ in range(config.layers))

    def init_problem(self, problem: Problem, x: Tensor) -> FirmALISTAState:
        """See `ModelBasedRule.init_problem`."""
        return FirmALISTAState(shared(dictionary_of(problem, "FirmALISTA").analytic_weights.mT), x)

    def iterate(self, problem: Problem, x: Tensor, state: FirmALISTAState, step: int) -> tuple[Tensor, FirmALISTAState]:
        """See the module's equations."""
        weight = 1 + self.momentum[min(step, self.config.layers - 1)].to(x.dtype)
        v = x if step == 0 else torch.lerp(state.previous, x, weight)
        descent = v - positive(self.log_step_size, step, x) * multiply(state.weights, problem.residual(v))
        threshold, gain = positive(self.log_threshold, step, x), positive(self.log_gain, step, x)
        shrunk = soft_threshold(descent, threshold)
        return shrunk + (gain * shrunk).clamp(-threshold, threshold), state._replace(previous=x)
