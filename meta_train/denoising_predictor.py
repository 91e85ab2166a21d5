"""A small network that looks at a noisy image and says with which λ to denoise it, trained through the denoiser.

Its features are means of absolute responses of learned filters, in logarithm: noise and edges scale them, and λ with
them. It has no other input, so it has to find the noise level by itself. All its training is by hypergradients of total
variation: minus the mean PSNR of the denoised crops is differentiated to log λ of each, and from there to the weights.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from meta_train.denoising_learning import Lower, denoise
from tasks.denoising import psnr

_SMALLEST = 1e-6
"""Mean response of a filter that an image without any contrast is given."""


class StrengthPredictor(nn.Module):
    """Two layers of 3×3 filters, the means of their responses, and an MLP.

    Args:
        log_strength: log λ that the untrained network predicts for all images.
        generator: draws the weights.
    """

    def __init__(self, log_strength: float, generator: torch.Generator, channels: int = 8, hidden: int = 16):
        super().__init__()
        self.first = _drawn(channels, 1, 3, 3, fan_in=9, generator=generator)
        self.second = _drawn(channels, channels, 3, 3, fan_in=9 * channels, generator=generator)
        self.hidden_weight = _drawn(hidden, 2 * channels, fan_in=2 * channels, generator=generator)
        self.hidden_bias = nn.Parameter(torch.zeros(hidden))
        self.out_weight = nn.Parameter(torch.zeros(hidden))
        self.out_bias = nn.Parameter(torch.tensor(float(log_strength)))

    def forward(self, noisy: Tensor) -> Tensor:
        """Return log λ of each image, shape (n,), for images of shape (n, height, width), at least 5×5 pixels."""
        fine = F.conv2d(noisy.unsqueeze(1), self.first).abs()
        coarse = F.conv2d(fine, self.second, stride=2).abs()
        means = torch.cat([fine.mean((-2, -1)), coarse.mean((-2, -1))], 1)
        features = (means + _SMALLEST).log() + 2  # of noisy images in [0, 1] they are near −2
        hidden = torch.tanh(features @ self.hidden_weight.mT + self.hidden_bias)
        return hidden @ self.out_weight + self.out_bias


class ConstantStrength(nn.Module):
    """One λ for all images, trained like the network."""

    def __init__(self, log_strength: float):
        super().__init__()
        self.out_bias = nn.Parameter(torch.tensor(float(log_strength)))

    def forward(self, noisy: Tensor) -> Tensor:
        """Return log λ of each image, shape (n,)."""
        return self.out_bias.expand(len(noisy))


@dataclass(frozen=True)
class PredictorTraining:
    """How a predictor is trained."""

    steps: int = 400
    """Outer steps."""
    batch: int = 8
    """Crops of each."""
    lr: float = 0.02
    """Adam's, at first; it falls to 0 as a cosine."""
    lower: Lower = Lower(steps=10, last=8)
    """Each crop starts from where its last visit has left it."""


class Trained(NamedTuple):
    """What training has seen."""

    psnr: list[float]
    """Mean over the batch before each step, dB."""


def train_predictor(
    predictor: nn.Module, noisy: Tensor, truth: Tensor, options: PredictorTraining, generator: torch.Generator
) -> Trained:
    """Train a predictor of log λ in place, on crops of one size, each with a noise level of its own.

    Args:
        noisy, truth: shape (n, height, width).
        generator: draws the batches.
    """
    adam, qualities = torch.optim.Adam(predictor.parameters(), options.lr), []
    duals = noisy.new_zeros((len(noisy), 2, *noisy.shape[1:]))
    for step in range(options.steps):
        chosen = torch.randperm(len(noisy), generator=generator)[: options.batch]
        x, dual = denoise("tv", noisy[chosen], predictor(noisy[chosen]), duals[chosen], options.lower)
        assert dual is not None
        duals[chosen] = dual
        quality = psnr(x, truth[chosen]).mean()
        qualities.append(quality.item())
        adam.param_groups[0]["lr"] = options.lr * (1 + math.cos(math.pi * step / options.steps)) / 2
        adam.zero_grad()
        (-quality).backward()
        adam.step()
    return Trained(qualities)


def n_weights(module: nn.Module) -> int:
    """Return how many numbers a module has learned."""
    return sum(parameter.numel() for parameter in module.parameters())


def _drawn(*shape: int, fan_in: int, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=generator) / math.sqrt(fan_in))
