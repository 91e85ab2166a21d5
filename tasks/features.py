"""Trained convolutional networks whose activations compare pictures: SqueezeNet 1.1, VGG16 and VGG19, frozen.

Modules and parameters have the names of torchvision, which is not needed. Pictures are RGB in [0, 1], and are
normalised inside with ImageNet's mean and standard deviation. A layer is its index in `features`. VGG has no classifier
here. Sources: Iandola et al. 2016, arXiv:1602.07360 (and its version 1.1); Simonyan & Zisserman 2015, arXiv:1409.1556.
"""

import functools
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from tasks.data_files import DataError, DataFile, data_folder, find_or_download, read_verified
from tasks.weight_files import read_npz, read_weights

Network = Literal["squeezenet1_1", "vgg16", "vgg16_hed", "vgg19"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of ImageNet's pixels, red, green, blue; torchvision's numbers."""

FILES: dict[Network, DataFile] = {
    "squeezenet1_1": DataFile(
        "squeezenet1_1_imagenet_tv.npz", 4956674, "a493904fc12f870cd076434ad14000d7d87bf6aba576db4c6587ff5b137c2c81"
    ),
    "vgg16_hed": DataFile(
        "vgg16_hed200_conv1_1to4_3_fp16_tv.npz",
        15281230,
        "3469bc8203a750a55926693576eafc4dfc37d27d84b57d828182ae3abb9e2d0d",
    ),
}
"""In `$L2O_DATA/nets`, whose SOURCES.md says where they come from. vgg16_hed is VGG16 up to conv4_3, fine-tuned to find
edges: no substitute for ImageNet's VGG16."""

URL = "https://download.pytorch.org/models"
DOWNLOADS: dict[Network, DataFile] = {
    "squeezenet1_1": DataFile("squeezenet1_1-b8a52dc0.pth", None, "b8a52dc0", packed=""),
    "vgg16": DataFile("vgg16-397923af.pth", None, "397923af", packed=""),
    "vgg19": DataFile("vgg19-dcbb9e9d.pth", None, "dcbb9e9d", packed=""),
}
"""torchvision's weights, whose names end in the first digits of their sha256; of VGG 0.5 GB each."""

_VGG_WIDTHS: dict[str, tuple[tuple[int, int], ...]] = {
    "vgg16": ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)),
    "vgg19": ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)),
}
"""Channels and convolutions of each block."""


class Fire(nn.Module):
    """1×1 convolutions to few channels, then 1×1 and 3×3 convolutions of these, side by side."""

    def __init__(self, channels: int, squeezed: int, expanded: int):
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return activations, shape (n, 2 · expanded, height, width)."""
        squeezed = self.squeeze(inputs).relu()
        return torch.cat([self.expand1x1(squeezed).relu(), self.expand3x3(squeezed).relu()], 1)


class Convnet(nn.Module):
    """A frozen network in evaluation mode; `features` and `classifier` are as torchvision names them."""

    mean: Tensor
    std: Tensor

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential | None = None):
        super().__init__()
        self.features, self.classifier = features, classifier
        self.register_buffer("mean", torch.tensor(MEAN, device="cpu").view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD, device="cpu").view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, layers: Iterable[int]) -> dict[int, Tensor]:
        """Return the activations after some modules of `features`; nothing behind the last of them is computed.

        Args:
            images: RGB in [0, 1], shape (n, 3, height, width).
            layers: indices in `features`.
        Returns: activations by layer, shape (n, channels, height', width').
        """
        wanted = set(layers)
        hidden, found = (images - self.mean) / self.std, {}
        for index, module in enumerate(self.features.children()):
            hidden = module(hidden)
            if index in wanted:
                found[index] = hidden
            if len(found) == len(wanted):
                break
        return found

    def logits(self, images: Tensor) -> Tensor:
        """Return the classifier's logits, shape (n, 1000).

        Raises:
            ValueError: if the network is here without its classifier.
        """
        if self.classifier is None:
            raise ValueError("this network has no classifier here; only squeezenet1_1 has")
        last = len(self.features) - 1
        return self.classifier(self(images, [last])[last]).flatten(1)


def build_network(name: Network) -> Convnet:
    """Return an architecture with fresh weights.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in get_args(Network):
        raise ValueError(f"network must be one of {', '.join(get_args(Network))}, got {name!r}")
    if name != "squeezenet1_1":
        modules = _vgg(_VGG_WIDTHS[name.removesuffix("_hed")])
        return Convnet(nn.Sequential(*modules[:23] if name == "vgg16_hed" else modules))
    classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return Convnet(nn.Sequential(*_squeezenet()), classifier)


@functools.lru_cache(maxsize=4)
def load_network(
    name: Network, weights: str | None = None, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Convnet:
    """Return a network with trained weights; shared by everyone who loads it: never change it.

    Args:
        weights: a file with torchvision's names, .pth or .pt (read as weights only), .safetensors or .npz, by which
            whoever gives it vouches for it; None: the one in `$L2O_DATA/nets`, else torchvision's in the cache
            (`$XDG_CACHE_HOME` or ~/.cache, l2o/nets), else downloaded to it; all are compared with their checksums.

    Raises:
        ValueError: if the name is unknown.
        DataError: if the file is missing and cannot be downloaded, damaged or not of this network; the message says
            where to get it.
    """
    with torch.inference_mode(False), torch.no_grad():  # what is kept must not be an inference tensor
        with torch.device("meta"):
            network = build_network(name)
        state, source = _published(name) if weights is None else (_given(name, Path(weights)), weights)
        fill(network, state, source)
        return network.to(device=device, dtype=dtype)


def fill(network: Convnet, state: Mapping[str, Tensor], source: str) -> None:
    """Set a network's weights; what a file holds of a classifier that the network here lacks is left out.

    Raises:
        DataError: if names are missing or unknown, or shapes differ.
    """
    expected = network.state_dict()
    if network.classifier is None:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unknown:
        raise DataError(f"{source} is not of this network: {len(missing)} names are missing {missing[:3]}, "
                        f"{len(unknown)} unknown {unknown[:3]}")  # fmt: skip
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise DataError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, this network {tuple(expected[name].shape)}"
            )
    network.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    network.requires_grad_(False)


def _squeezenet() -> list[nn.Module]:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return [
        *(nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(), Fire(64, 16, 64), Fire(128, 16, 64)),
        *(pool(), Fire(128, 32, 128), Fire(256, 32, 128)),
        *(pool(), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)),
    ]


def _vgg(blocks: Iterable[tuple[int, int]]) -> list[nn.Module]:
    modules, channels = [], 3
    for width, count in blocks:
        for _ in range(count):
            modules += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        modules.append(nn.MaxPool2d(2))
    return modules


def _published(name: Network) -> tuple[dict[str, Tensor], str]:
    """Return the weights of `$L2O_DATA/nets`, or torchvision's, and where they lie."""
    file, folder = FILES.get(name), data_folder("nets")
    if file is not None and folder is not None and os.path.lexists(folder / file.name):
        return read_npz(io.BytesIO(read_verified(folder / file.name, file))), str(folder / file.name)
    if name not in DOWNLOADS:
        place = "L2O_DATA is not set" if folder is None else f"{folder} has no {FILES[name].name}"
        raise DataError(f"the weights of {name} were not found: {place}; set L2O_DATA to a folder with "
                        f"nets/{FILES[name].name}, or give them: {_where(name)}")  # fmt: skip
    try:
        path = find_or_download(DOWNLOADS[name], "nets", [URL])
    except DataError as error:
        told = str(error).replace("\n", " ")
        raise DataError(f"the weights of {name} were not found: {told} Or give them: {_where(name)}") from error
    read_verified(path, DOWNLOADS[name])
    return read_weights(path), str(path)


def _where(name: Network) -> str:
    if name not in DOWNLOADS:
        return "weights=PATH of a .npz, .pth or .safetensors file"
    return f"download {URL}/{DOWNLOADS[name].name} and pass its path as weights"


def _given(name: Network, path: Path) -> dict[str, Tensor]:
    if not path.expanduser().is_file():
        raise DataError(f"{path} is not a file; for weights of {name}, {_where(name)}")
    return read_weights(path.expanduser())


@functools.lru_cache(maxsize=32)
def least_size(network: Network, layers: tuple[int, ...]) -> int:
    """Return the least height and width of a picture of which all layers have something left.

    Raises:
        ValueError: if the network has no such layer.
    """
    with torch.device("meta"):
        convnet = build_network(network)
    deepest = len(convnet.features) - 1
    if any(not isinstance(layer, int) or not 0 <= layer <= deepest for layer in layers):
        raise ValueError(f"layers must be indices from 0 to {deepest} in the features of {network}, got {layers}")
    size = 1
    for module in list(convnet.features.children())[max(layers) :: -1]:
        if isinstance(module, nn.MaxPool2d | nn.Conv2d) and module.stride not in (1, (1, 1)):
            kernel, stride = (int(torch.as_tensor(n).max()) for n in (module.kernel_size, module.stride))
            size = stride * (size - 1) + kernel  # exact but for ceil_mode, where a smaller one might do
    return size
