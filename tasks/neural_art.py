"""Paintings by optimisation: a photograph's content in a painting's style (Gatys, Ecker & Bethge 2016, CVPR).

    f(x) = α ‖F_c(x) − F_c(p)‖² / ‖F_c(p)‖²  +  β mean over l of ‖G_l(x) − G_l(s)‖² / ‖G_l(s)‖²  +  γ V(x)
    G_l(x) = F_l(x) F_l(x)ᵀ / (h_l w_l),   V(x) = mean (x_{i+1,j} − x_{i,j})² + mean (x_{i,j+1} − x_{i,j})²

F_l(x): activations (channels, h_l w_l) of a trained network after layer l; p: photograph; s: painting. Differs from
Gatys et al.: each term is relative to its own target, so that one choice of α and β serves every network, layer,
painting and resolution; V is the smoothness term of later practice.
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from tasks.features import Convnet, Network, least_size, load_network
from tasks.photographs import PhotographSet, crop, n_photographs, photograph, resize, style_picture
from tasks.task import Data, Params, Split, TaskFamily

Initial = Literal["content", "noise"]

CONTENT_LAYER: dict[Network, int] = {"squeezenet1_1": 4, "vgg16": 20, "vgg16_hed": 20, "vgg19": 22}
"""Where the content is compared: VGG's relu4_2, as Gatys et al., and SqueezeNet's second Fire module."""
STYLE_LAYERS: dict[Network, tuple[int, ...]] = {
    "squeezenet1_1": (1, 3, 4, 6, 7),
    "vgg16": (1, 6, 11, 18, 25),
    "vgg16_hed": (1, 6, 11, 18),
    "vgg19": (1, 6, 11, 20, 29),
}
"""VGG's first ReLU of every block, as Gatys et al., and SqueezeNet's first ReLU and first four Fire modules."""


class Parts(NamedTuple):
    """The three terms of the loss with their weights, each of shape (n_tasks,) or (); the loss is their sum."""

    content: Tensor
    style: Tensor
    variation: Tensor


@dataclass(frozen=True)
class NeuralArt(TaskFamily):
    """A square picture that is to show a crop of a photograph in the style of a painting.

    The optimizee "image" (3, size, size) is the picture minus its start, in units of the grey scale from 0 to 1;
    `picture` adds the start. A rule that sees gradients alone cannot tell the difference. The reason is the splits:
    each has its own photographs, but a task is drawn without knowing the split, which only minibatches know. So a task
    is *where* to crop and which of its split's photographs, as a fraction; the minibatch holds the start and the
    targets of that crop, the same at every step. It follows that a meta-loss on another split than the rule's own would
    be about another photograph.
    """

    vectorized = "axes"

    size: int = 64
    """Height and width of the picture, pixels; a painting's shorter side has as many."""
    styles: tuple[str, ...] = ("flower",)
    """Paintings that tasks draw from: starry_night_google, the_scream, composition_vii (all need L2O_DATA), china,
    flower, or paths of images."""
    photographs: PhotographSet = "embedded"
    """art: the 37 photographs of L2O_DATA; embedded: scikit-learn's two, whose halves are the splits."""
    initial: Initial = "content"
    """What the picture starts from: the photograph, or noise around grey."""
    noise: float = 0.2
    """Standard deviation of the noise, grey scale from 0 to 1."""
    content_weight: float = 1.0
    """α."""
    style_weight: float = 10.0
    """β."""
    variation_weight: float = 20.0
    """γ."""
    network: Network = "squeezenet1_1"
    """Whose activations are compared."""
    weights: str | None = None
    """File with the network's weights, .npz, .pth or .safetensors; None: the one in `$L2O_DATA/nets`."""
    content_layer: int | None = None
    """Index in the network's `features`; None: that in `CONTENT_LAYER`."""
    style_layers: tuple[int, ...] | None = None
    """Indices in the network's `features`; None: those in `STYLE_LAYERS`."""

    def __post_init__(self):
        """Check the options.

        Raises:
            ValueError: if a name is unknown, a number is out of its range or the picture too small for the layers.
        """
        if self.network not in get_args(Network):
            raise ValueError(f"network must be one of {', '.join(get_args(Network))}, got {self.network!r}")
        if self.initial not in get_args(Initial):
            raise ValueError(f"initial must be one of {', '.join(get_args(Initial))}, got {self.initial!r}")
        n_photographs(self.photographs, "train")
        if not isinstance(self.styles, tuple) or not self.styles:
            raise ValueError(
                f'styles must be a tuple of at least one name or path, such as ("flower",), got {self.styles}'
            )
        for name in ("content_weight", "style_weight", "variation_weight", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, got {getattr(self, name)}")
        if self.style_layers is not None and (not isinstance(self.style_layers, tuple) or not self.style_layers):
            raise ValueError(f"style_layers must be a tuple of indices, such as (1, 3), got {self.style_layers}")
        least = least_size(self.network, self.layers)
        if not isinstance(self.size, int) or self.size < least:
            raise ValueError(f"size must be an integer of at least {least} for layers {self.layers}, got {self.size}")

    @property
    def layers(self) -> tuple[int, ...]:
        """The content layer and the style layers."""
        content = CONTENT_LAYER[self.network] if self.content_layer is None else self.content_layer
        return (content, *(STYLE_LAYERS[self.network] if self.style_layers is None else self.style_layers))

    def sample_tasks(self, n_tasks: int, generator: torch.Generator) -> Data:
        """Return "position" (n_tasks, 4): photograph, top, left, side, fractions; and "style" (n_tasks,), an index."""
        position = torch.rand(n_tasks, 4, generator=generator, device=generator.device)
        style = torch.randint(len(self.styles), (n_tasks,), generator=generator, device=generator.device)
        return {"position": position, "style": style}

    def init_params(self, tasks: Data, n_tasks: int, generator: torch.Generator) -> Params:
        """Return "image" (n_tasks, 3, size, size): 0, or noise."""
        shape = (n_tasks, 3, self.size, self.size)
        if self.initial == "content":
            return {"image": torch.zeros(shape, device=generator.device)}
        return {"image": self.noise * torch.randn(shape, generator=generator, device=generator.device)}

    def sample_batch(self, tasks: Data, n_tasks: int, split: Split, generator: torch.Generator) -> Data:
        """Return the start and the targets of each task, computed once; draws nothing.

        Returns: "start" (n_tasks, 3, size, size), "content" (n_tasks, channels, height, width) and for each style
            layer l "style.l" (n_tasks, channels, channels).

        Raises:
            DataError: if a photograph, a painting or the network's weights are missing or damaged.
        """
        return self.sample_share(tasks, n_tasks, split, generator, slice(None))

    def sample_share(
        self, tasks: Data, n_tasks: int, split: Split, generator: torch.Generator, part: slice | Tensor
    ) -> Data:
        """See `TaskFamily.sample_share`."""
        position, style = tasks["position"][part], tasks["style"][part]
        chosen = tuple(map(tuple, position.tolist())), tuple(style.tolist())
        return dict(_minibatch(self, split, chosen, position.dtype, position.device))

    def loss(self, params: Params, task: Data, batch: Data) -> Tensor:
        """f, shape (), or (n_tasks,) with a leading task axis."""
        parts = self.parts(params, batch)
        return parts.content + parts.style + parts.variation

    def parts(self, params: Params, batch: Data) -> Parts:
        """Return the three terms of the loss; pictures may have any height and width that the batch has."""
        picture = self.picture(params, batch)
        leading, network = picture.shape[:-3], self.convnet(picture)
        found = network(picture.reshape(-1, *picture.shape[-3:]), self.layers)
        found = {layer: tensor.reshape(*leading, *tensor.shape[1:]) for layer, tensor in found.items()}
        content, *styles = self.layers
        gaps = [_relative_error(gram(found[layer]), batch[f"style.{layer}"], 2) for layer in styles]
        return Parts(
            self.content_weight * _relative_error(found[content], batch["content"], 3),
            self.style_weight * torch.stack(gaps).mean(0),
            self.variation_weight * variation(picture),
        )

    def picture(self, params: Params, batch: Data) -> Tensor:
        """Return start + image, (…, 3, height, width); clamp it to [0, 1] to look at it."""
        return batch["start"] + params["image"]

    def targets(self, content: Tensor, grams: dict[int, Tensor]) -> Data:
        """Return a minibatch for pictures of one's own, to be optimised from params "image" of the contents' shape.

        Args:
            content: RGB in [0, 1], shape (n, 3, height, width).
            grams: as `style_grams` gives them, shape (channels, channels), with or without a leading axis of n.
        """
        start, first = content if self.initial == "content" else torch.full_like(content, 0.5), self.layers[0]
        activations = self.convnet(content)(content, [first])
        styles = {f"style.{k}": matrix.expand(len(content), *matrix.shape[-2:]) for k, matrix in grams.items()}
        return {"start": start, "content": activations[first], **styles}

    def style_grams(self, painting: Tensor) -> dict[int, Tensor]:
        """Return the Gram matrix of a painting (3, height, width), RGB in [0, 1], after every style layer."""
        activations = self.convnet(painting)(painting[None], self.layers[1:])
        return {layer: gram(activations[layer][0]) for layer in self.layers[1:]}

    def convnet(self, like: Tensor) -> Convnet:
        """Return the network in the dtype and on the device of a tensor; loaded once in a process."""
        key = like.dtype, like.device
        if key not in self._networks:  # never so in a loss that is being compiled, where a file cannot be read
            self._networks[key] = load_network(self.network, self.weights, *key)
        return self._networks[key]

    @functools.cached_property
    def _networks(self) -> dict[tuple[torch.dtype, torch.device], Convnet]:
        return {}


def gram(activations: Tensor) -> Tensor:
    """Return G = F Fᵀ / (h w) of activations (…, channels, h, w), shape (…, channels, channels)."""
    F = activations.flatten(-2)
    return F @ F.mT / F.shape[-1]


def variation(picture: Tensor) -> Tensor:
    """Return V, the mean squares of vertical and of horizontal differences of (…, 3, height, width), shape (…)."""
    return sum(picture.diff(dim=axis).square().mean((-3, -2, -1)) for axis in (-2, -1))  # pyright: ignore (a tensor)


def _relative_error(found: Tensor, target: Tensor, n_axes: int) -> Tensor:
    """‖found − target‖² / ‖target‖² over the last axes; a target of zeros, which has no scale, counts as tiny."""
    axes = tuple(range(-n_axes, 0))
    return (found - target).square().mean(axes) / target.square().mean(axes).clamp(min=1e-8)


@functools.lru_cache(maxsize=8)
def _minibatch(
    family: NeuralArt, split: Split, tasks: tuple[tuple, tuple], dtype: torch.dtype, device: torch.device
) -> Data:
    positions, styles = tasks
    n, shape = n_photographs(family.photographs, split), (len(positions), 3, family.size, family.size)
    with torch.inference_mode(False), torch.no_grad():  # what is kept must not be an inference tensor
        content = torch.empty(shape, dtype=dtype, device=device)
        for i, (which, top, left, side) in enumerate(positions):
            whole = photograph(family.photographs, split, int(which * n))
            content[i] = crop(whole, family.size, (top, left, side)).to(device, dtype)
        known = [_painting_grams(family, style, dtype, device) for style in styles]
        grams = (
            {layer: torch.stack([matrices[layer] for matrices in known]) for layer in family.layers[1:]}
            if known
            else {}
        )
        return family.targets(content, grams)


@functools.lru_cache(maxsize=16)
def _painting_grams(family: NeuralArt, style: int, dtype: torch.dtype, device: torch.device) -> dict[int, Tensor]:
    with torch.inference_mode(False), torch.no_grad():
        painting = style_picture(family.styles[style])
        height, width = painting.shape[-2:]
        scale = family.size / min(height, width)
        return family.style_grams(resize(painting, round(height * scale), round(width * scale)).to(device, dtype))
