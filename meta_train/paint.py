"""Paint one picture: minimise `tasks.neural_art`'s loss over its pixels with a learned rule, Adam or L-BFGS.

All three run through the same closure, and a step is one computation of loss and gradient. Adam and learned rules move
once in each; the line search of L-BFGS takes what it needs, so that equal steps are equal work. The result is the
picture with the least loss of all that were computed, because a line search ends anywhere.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

import l2o
from tasks.features import least_size
from tasks.neural_art import NeuralArt, Parts
from tasks.photographs import resize
from tasks.task import Data

Optimizer = Literal["learned", "lstm", "adam", "lbfgs"]

LR: dict[Optimizer, float] = {"learned": 1.0, "lstm": 1.0, "adam": 0.02, "lbfgs": 1.0}
"""Default learning rates: as trained, twice; grey scale from 0 to 1 per step; whole quasi-Newton steps."""
SHIPPED_RULES: dict[Optimizer, str] = {"learned": "sobolev-adam-neural-art", "lstm": "sobolev-lstm-neural-art"}
"""What the learned optimizers are unless another checkpoint is given."""
TRAINED_SIZE = 64
"""Height and width on which the shipped rules were trained, pixels."""
LARGEST = 2048
"""Most pixels on the longer side of what is painted: SqueezeNet's activations take 1 GB by then, VGG's 8 GB."""


class Look(NamedTuple):
    """A picture on its way."""

    step: int
    """How often loss and gradient had been computed, with this time."""
    image: Tensor
    """The picture minus its start, shape (1, 3, height, width)."""
    parts: Parts
    """The terms of its loss, with their weights, shapes ()."""

    @property
    def loss(self) -> float:
        """Their sum."""
        return float(sum(self.parts))


class Album:
    """What is kept of a painting: the best picture so far, and the last at each of some steps.

    Args:
        steps: at which to keep a picture.
    """

    def __init__(self, steps: Sequence[int] = ()):
        self.wanted = frozenset(steps)
        self.best: Look | None = None
        self.strip: list[Look] = []
        self.step = 0
        self.ended = ""
        """Why the painting ended before its time."""

    def add(self, look: Look) -> None:
        """Look at the next picture; one that is not finite is only counted."""
        self.step = look.step
        if math.isfinite(look.loss) and (self.best is None or look.loss < self.best.loss):
            self.best = look
        if look.step in self.wanted and self.best is not None:
            self.strip.append(self.best)


class _Enough(Exception):
    """Ends a line search, which asks for no leave."""


def paint(
    family: NeuralArt,
    batch: Data,
    image: Tensor,
    optimizer: torch.optim.Optimizer,
    steps: int,
    album: Album,
    watch: Callable[[Look], None] = lambda look: None,
) -> None:
    """Improve a picture until loss and gradient have been computed `steps` times, or nothing moves any more.

    The loss is a mean over pixels, so that a pixel's gradient shrinks as they become more. What the optimizer sees is
    multiplied by their number over that of `TRAINED_SIZE`: a learned rule meets gradients as in its training.

    Args:
        batch: what `family.targets` gives for one content.
        image: the parameter of the optimizer, shape (1, 3, height, width), in units of the grey scale from 0 to 1.
        album: keeps the pictures; it is complete at every moment, so an interruption loses nothing.
        watch: sees every picture.
    """
    factor = image[0, 0].numel() / TRAINED_SIZE**2

    def closure() -> Tensor:
        if album.step == steps:
            raise _Enough
        optimizer.zero_grad()
        parts = Parts(*(part.sum() for part in family.parts({"image": image}, batch)))
        loss = factor * (parts.content + parts.style + parts.variation)
        look = Look(album.step + 1, image.detach().clone(), Parts(*(part.detach() for part in parts)))
        album.add(look)
        watch(look)
        if not math.isfinite(look.loss):
            album.ended = "the loss is no longer finite; a lower --lr may help"
            raise _Enough
        loss.backward()
        return loss

    try:
        while True:
            before = image.detach().clone()
            optimizer.step(closure)  # pyright: ignore (any closure that returns a loss)
            if torch.equal(before, image):
                album.ended = "the optimizer does not move the picture any more"
                return
    except _Enough:
        return


def start(family: NeuralArt, content: Tensor, painting: Tensor, generator: torch.Generator) -> tuple[Data, Tensor]:
    """Return the minibatch of a content and a painting, each (3, height, width) in [0, 1], and the parameter.

    Raises:
        DataError: if the network's weights are missing or damaged.
    """
    with torch.no_grad():
        batch = family.targets(content[None], family.style_grams(painting))
    image = torch.zeros_like(content)[None]
    if family.initial == "noise":
        image = family.noise * torch.randn(image.shape, generator=generator)
    return batch, image.requires_grad_()


def build_optimizer(name: Optimizer, image: Tensor, lr: float | None = None, checkpoint: str | None = None):
    """Return an optimizer of one picture.

    Args:
        lr: learning rate; None takes the one in `LR`.
        checkpoint: the learned rule, as for `l2o.load`; None takes that in `SHIPPED_RULES`.

    Raises:
        ValueError: if the name is unknown, lr is not positive, a checkpoint is given but no learned rule asked
            for, or it holds no rule that steps on gradients.
        CheckpointError: if there is no such checkpoint.
    """
    if name not in get_args(Optimizer):
        raise ValueError(f"optimizer must be one of {', '.join(get_args(Optimizer))}, got {name!r}")
    lr = LR[name] if lr is None else lr
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be a positive number, got {lr}")
    if checkpoint is not None and name not in SHIPPED_RULES:
        raise ValueError(f"checkpoint is for --optimizer learned, got it with {name}")
    if name in SHIPPED_RULES:
        try:
            return l2o.load(SHIPPED_RULES[name] if checkpoint is None else checkpoint, [image], lr=lr)
        except TypeError as error:  # a rule for sparse codes
            raise ValueError(str(error)) from error
    if name == "adam":
        return torch.optim.Adam([image], lr=lr)
    # `paint` counts and ends; tolerances of 0 leave that to it.
    return torch.optim.LBFGS([image], lr, 10**9, 10**9, 0, 0, history_size=20, line_search_fn="strong_wolfe")


def painted_size(picture: Tensor, size: int, largest: int = LARGEST) -> tuple[int, int]:
    """Return height and width at which a picture (…, height, width) is painted: its shape, the shorter side `size`.

    The longer side has at most `largest` pixels, at the cost of the shorter one, and each side at least one.

    >>> painted_size(torch.empty(3, 300, 400), 256), painted_size(torch.empty(3, 1, 1000), 256)
    ((256, 341), (2, 2048))
    """
    height, width = picture.shape[-2:]
    scale = min(size / min(height, width), largest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def scaled(picture: Tensor, size: int, family: NeuralArt, source: str, option: str = "--size") -> Tensor:
    """Return a picture (3, height, width), uint8, at `painted_size`, float32 in [0, 1].

    Args:
        source: names it in messages.
        option: of the command line that asks for the size.

    Raises:
        ValueError: if it becomes too narrow for the layers of the family.
    """
    height, width = painted_size(picture, size)
    least = least_size(family.network, family.layers)
    if min(height, width) < least:
        advice = "crop the picture" if max(height, width) == LARGEST else f"take a larger {option}"
        raise ValueError(
            f"{source} would be painted at {width}×{height} pixels; {family.network} needs {least} on the shorter side "
            f"and {LARGEST} on the longer one are the most: {advice}"
        )
    return resize(picture, height, width)
