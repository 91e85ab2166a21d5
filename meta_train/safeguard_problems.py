"""Twenty optimizees that no shipped rule was trained on, on which the guard is judged.

All have torch's default initialisation and minibatches from the test split. None is among those that chose the guard's
options, `meta_train.safeguard_seen`. Images of MNIST and CIFAR-10 are averaged over 2 × 2 pixels except where 28² is
said, so that the study takes minutes.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tasks.data import load_dataset, load_digits
from tasks.task import Split

Norm = Callable[[int], nn.Module] | None
Loss = Callable[[Tensor, Tensor], Tensor]


class Optimizee(NamedTuple):
    """A network and its data."""

    data: str
    """digits, mnist (14 × 14), mnist-28, cifar10 (16 × 16) or diabetes; digits-itself has the pixels as targets,
    digits-mislabelled other classes for a fifth of the images."""
    build: Callable[[], nn.Module]
    """Draws from torch's global generator."""
    loss: Loss = F.cross_entropy
    """Of outputs and targets, the mean over a minibatch."""


@functools.cache
def samples(data: str, split: Split) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of a split."""
    if data == "diabetes":
        return _diabetes(split)
    if data.startswith("digits-"):
        inputs, classes = samples("digits", split)
        return inputs, inputs.flatten(1) if data == "digits-itself" else _mislabelled(classes)
    name = data.removesuffix("-28")
    found = (load_digits() if name == "digits" else load_dataset("mnist" if name == "mnist" else "cifar10"))[split]
    inputs = found.inputs.float() / (16 if name == "digits" else 255)
    return inputs if data in ("digits", "mnist-28") else F.avg_pool2d(inputs, 2), found.targets


def _diabetes(split: Split) -> tuple[Tensor, Tensor]:
    """Return scikit-learn's embedded regression (442 patients, 10 numbers each), standardised."""
    from sklearn.datasets import load_diabetes

    table, progression = load_diabetes(return_X_y=True)
    inputs, targets = torch.tensor(table).float(), torch.tensor(progression).float()[:, None]
    inputs, targets = ((values - values.mean(0)) / values.std(0) for values in (inputs, targets))
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    half = order[:221] if split == "test" else order[221:]
    return inputs[half], targets[half]


def _mislabelled(classes: Tensor) -> Tensor:
    """Return the classes, a fifth of them drawn anew."""
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(classes), generator=generator) < 0.2
    return torch.where(wrong, torch.randint(10, classes.shape, generator=generator), classes)


def mlp(sizes: list[int], activation: type[nn.Module], norm: Norm = None) -> nn.Module:
    """A fully connected network of these widths, inputs and outputs included; the norm before the activation."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in zip(sizes[:-2], sizes[1:-1], strict=True):
        layers += [nn.Linear(inputs, outputs), *([norm(outputs)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


class Block(nn.Module):
    """x + W₂ φ(W₁ norm(x))."""

    def __init__(self, width: int, activation: type[nn.Module], norm: Callable[[int], nn.Module]):
        super().__init__()
        self.inner = nn.Sequential(norm(width), nn.Linear(width, width), activation(), nn.Linear(width, width))

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the block."""
        return inputs + self.inner(inputs)


def residual(sizes: tuple[int, int], blocks: int, activation: type[nn.Module], norm: Callable[[int], nn.Module]):
    """A linear layer to the width, residual blocks, a linear layer to ten classes."""
    inner = [Block(sizes[1], activation, norm) for _ in range(blocks)]
    return nn.Sequential(nn.Flatten(), nn.Linear(*sizes), *inner, nn.Linear(sizes[1], 10))


def conv(shape: tuple[int, int], widths: list[int], activation: type[nn.Module], norm: Norm = None) -> nn.Module:
    """3 × 3 convolutions, each followed by 2 × 2 maxima, and a linear layer to ten classes; shape: channels, side."""
    (channels, side), layers = shape, []
    for width in widths:
        layers.append(nn.Conv2d(channels, width, 3, padding=1))
        layers += [*([norm(width)] if norm else []), activation(), nn.MaxPool2d(2)]
        channels, side = width, side // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side * side, 10))


class Rows(nn.Module):
    """A network over the rows of an image, and a linear layer to ten classes from the mean of what it returns."""

    def __init__(self, inner: nn.Module, width: int):
        super().__init__()
        self.inner, self.head = inner, nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, shape (batch, 10), of images of shape (batch, 1, side, side)."""
        found = self.inner(images[:, 0])
        return self.head((found[0] if isinstance(found, tuple) else found).mean(1))


def _one_hot(outputs: Tensor, classes: Tensor) -> Tensor:
    return F.one_hot(classes, outputs.shape[1]).to(outputs.dtype)


def squares(outputs: Tensor, classes: Tensor) -> Tensor:
    """The mean squared distance from the one-hot classes."""
    return F.mse_loss(outputs, _one_hot(outputs, classes))


def one_against_the_rest(outputs: Tensor, classes: Tensor) -> Tensor:
    """The mean of ten binary cross-entropies."""
    return F.binary_cross_entropy_with_logits(outputs, _one_hot(outputs, classes))


_smoothed = functools.partial(F.cross_entropy, label_smoothing=0.2)

_BATCH, _LAYER, _ROOT = nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm


def _one_group(width: int) -> nn.Module:
    return nn.GroupNorm(1, width)


def _attention() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True))


HELD_OUT: dict[str, Optimizee] = {
    "MNIST, softmax": Optimizee("mnist", lambda: mlp([196, 10], nn.Identity)),
    "MNIST, sigmoid 64": Optimizee("mnist", lambda: mlp([196, 64, 10], nn.Sigmoid)),
    "MNIST 28², hard tanh 20": Optimizee("mnist-28", lambda: mlp([784, 20, 10], nn.Hardtanh)),
    "MNIST, softsign 2 × 18": Optimizee("mnist", lambda: mlp([196, 18, 18, 10], nn.Softsign)),
    "MNIST, sigmoid 2 × 26, smoothed labels": Optimizee("mnist", lambda: mlp([196, 26, 26, 10], nn.Sigmoid), _smoothed),
    "digits, sigmoid 36, mislabelled": Optimizee("digits-mislabelled", lambda: mlp([64, 36, 10], nn.Sigmoid)),
    "digits, hard sigmoid 2 × 20": Optimizee("digits", lambda: mlp([64, 20, 20, 10], nn.Hardsigmoid)),
    "MNIST, tanhshrink 24": Optimizee("mnist", lambda: mlp([196, 24, 10], nn.Tanhshrink)),
    "MNIST, SELU 4 × 18": Optimizee("mnist", lambda: mlp([196, *[18] * 4, 10], nn.SELU)),
    "MNIST, PReLU 3 × 20, BatchNorm": Optimizee("mnist", lambda: mlp([196, *[20] * 3, 10], nn.PReLU, _BATCH)),
    "MNIST, hard swish 6 × 14, LayerNorm": Optimizee("mnist", lambda: mlp([196, *[14] * 6, 10], nn.Hardswish, _LAYER)),
    "MNIST, residual 5 × 14, SiLU, RMSNorm": Optimizee("mnist", lambda: residual((196, 14), 5, nn.SiLU, _ROOT)),
    "MNIST, conv 4-8-8, GELU, BatchNorm": Optimizee("mnist", lambda: conv((1, 14), [4, 8, 8], nn.GELU, nn.BatchNorm2d)),
    "MNIST, conv 6-6, sigmoid, GroupNorm": Optimizee("mnist", lambda: conv((1, 14), [6, 6], nn.Sigmoid, _one_group)),
    "digits, conv 6-12, ReLU, squares": Optimizee("digits", lambda: conv((1, 8), [6, 12], nn.ReLU), squares),
    "digits, autoencoder 32-8-32, tanh": Optimizee(
        "digits-itself", lambda: mlp([64, 32, 8, 32, 64], nn.Tanh), F.mse_loss
    ),
    "digits, GRU 16 over rows": Optimizee("digits", lambda: Rows(nn.GRU(8, 16, batch_first=True), 16)),
    "digits, attention over rows": Optimizee("digits", lambda: Rows(_attention(), 16)),
    "CIFAR-10, residual 2 × 24, GELU, LayerNorm": Optimizee("cifar10", lambda: residual((768, 24), 2, nn.GELU, _LAYER)),
    "diabetes, SiLU 2 × 14, Huber": Optimizee("diabetes", lambda: mlp([10, 14, 14, 1], nn.SiLU), F.smooth_l1_loss),
}
"""The first seven are like those of `lstm-mnist`, whose plain form may do well on them; the others are foreign."""
