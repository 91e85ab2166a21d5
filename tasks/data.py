"""Data sets as four disjoint splits of compact tensors, and minibatches drawn from them.

digits: scikit-learn's embedded 8×8 scans. MNIST: the four IDX files (LeCun, Cortes & Burges 1998), gzipped or not, in
`$L2O_DATA/mnist`, else in the cache, else downloaded. CIFAR-10 (Krizhevsky 2009): the JPEG copies in
`$L2O_DATA/cifar10`, whose training part is the first 25,000 images and whose pixels are lossy (median PSNR 30.5 dB).
Every file is compared with its published sha256 before it is used. With the files there, no network is.
"""

import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from tasks.data_files import DataError, DataFile, data_folder, decode_jpegs, find_or_download, parse_idx, read_verified
from tasks.task import SPLITS, Data, Split

DatasetName = Literal["digits", "mnist", "cifar10"]
DATASETS: tuple[DatasetName, ...] = get_args(DatasetName)

IMAGE_SHAPE: dict[DatasetName, tuple[int, int, int]] = {
    "digits": (1, 8, 8),
    "mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
}
"""Channels, height, width."""

PIXEL_MAX: dict[DatasetName, float] = {"digits": 16.0, "mnist": 255.0, "cifar10": 255.0}
"""White; minibatches hold pixels divided by it, hence in [0, 1]."""

SPLIT_SIZES: dict[DatasetName, tuple[int, ...]] = {
    "digits": (1_000, 150, 250, 397),
    "mnist": (50_000, 5_000, 5_000, 10_000),
    "cifar10": (20_000, 2_500, 2_500, 10_000),
}
"""Samples in train, inner_valid, outer_valid, test."""


class Samples(NamedTuple):
    """The samples of one split. Shared by everyone who loads the data set: never write into them."""

    inputs: Tensor
    """Images as loaded: (n, channels, height, width), uint8."""
    targets: Tensor
    """Classes, (n,), int64."""


# Train images, train labels, test images, test labels.
MNIST_FILES = (
    DataFile("train-images-idx3-ubyte", 47040016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    DataFile("train-labels-idx1-ubyte", 60008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    DataFile("t10k-images-idx3-ubyte", 7840016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    DataFile("t10k-labels-idx1-ubyte", 10008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
)
"""What torchvision's and TensorFlow's .gz files contain."""
MNIST_URLS = ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist")
"""Mirrors, tried in this order."""

CIFAR10_FILES = (
    DataFile(
        "train_first25000_jpegq75.npz", 23251219, "53759e0e3d0065321de39fd66db61df5d86b81a3901d376136d8858017c1465f"
    ),
    DataFile("test10000_jpegq75.npz", 9301068, "200c01132c38f63d03640614d6e9976f48d2f25e3b5d6d7c382f2d5ccb1292b6"),
)


def load_dataset(name: DatasetName) -> dict[Split, Samples]:
    """Return a data set as disjoint splits, always the same ones; test is the official test set where there is one.

    Raises:
        ValueError: if the name is unknown.
        DataError: if a file is missing, damaged or cannot be downloaded.
    """
    if name == "digits":
        return load_digits()
    if name == "mnist":
        return load_mnist()
    if name == "cifar10":
        return load_cifar10()
    raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, got {name!r}")


@functools.cache
def load_digits() -> dict[Split, Samples]:
    """Return scikit-learn's 1,797 handwritten digits, all four splits from one fixed permutation."""
    from sklearn.datasets import load_digits as load_sklearn_digits

    pixels, labels = load_sklearn_digits(return_X_y=True)
    images = np.asarray(pixels, np.uint8).reshape(-1, 1, 8, 8)
    return _partition(images, np.asarray(labels), SPLIT_SIZES["digits"])


def load_mnist(base_urls: Sequence[str] = MNIST_URLS, files: Sequence[DataFile] = MNIST_FILES) -> dict[Split, Samples]:
    """Return MNIST from `$L2O_DATA/mnist`, else the cache (`$XDG_CACHE_HOME` or ~/.cache, l2o/mnist), else the net.

    Args:
        base_urls: folders to download from, tried in order.
        files: train images, train labels, test images, test labels.

    Raises:
        DataError: if a file is damaged, or missing and none of the URLs delivers it.
    """
    paths = tuple(find_or_download(file, "mnist", base_urls) for file in files)
    return _read_mnist(paths, tuple(files))


def load_cifar10() -> dict[Split, Samples]:
    """Return CIFAR-10 from the JPEG copies in `$L2O_DATA/cifar10`.

    Raises:
        DataError: if L2O_DATA is not set, or a file is missing or damaged.
    """
    folder = data_folder("cifar10")
    wanted = " and ".join(file.name for file in CIFAR10_FILES)
    if folder is None:
        raise DataError(f"CIFAR-10 needs L2O_DATA, which is not set; set it to a folder with cifar10/ holding {wanted}")
    for file in CIFAR10_FILES:
        if not os.path.lexists(folder / file.name):
            raise DataError(f"CIFAR-10 needs {wanted} in {folder}, but {file.name} is not there; correct L2O_DATA")
    return _read_cifar10(tuple(folder / file.name for file in CIFAR10_FILES))


class Pools(NamedTuple):
    """A part of every split for each task: `size` samples in a row, cyclically, of the split's random order."""

    start: Tensor
    """Where it begins, as a fraction of the split, shape (n_tasks,)."""
    size: int


class Minibatches:
    """Draws minibatches with replacement, one for each task; keeps a copy of the splits on each device it served."""

    def __init__(self, splits: Mapping[Split, Samples], pixel_max: float | None = None):
        """Keep the splits; inputs are divided by pixel_max into the default dtype, or handed out as they are."""
        self._splits = dict(splits)
        self._pixel_max = pixel_max
        self._copies: dict[tuple[Split, torch.device], Samples] = {}

    def draw(
        self,
        split: Split,
        n_tasks: int,
        batch_size: int,
        generator: torch.Generator,
        part: slice | Tensor = slice(None),
        pools: "Pools | None" = None,
    ) -> Data:
        """Return inputs (n_tasks, batch_size, …) and targets (n_tasks, batch_size, …) on the generator's device.

        Args:
            part: tasks to return; the numbers drawn do not depend on it.
            pools: the samples that each task has; None: all of the split.

        Raises:
            ValueError: if there is no such split.
        """
        samples = self._on(split, generator.device)
        n_samples = len(samples.inputs)
        size = n_samples if pools is None else min(pools.size, n_samples)
        index = torch.randint(size, (n_tasks * batch_size,), generator=generator, device=generator.device)
        index = index.view(n_tasks, batch_size)
        if pools is not None:
            index = (index + (pools.start * n_samples).long().unsqueeze(-1)) % n_samples
        index = index[part]
        inputs, targets = (
            values.index_select(0, index.flatten()).reshape(*index.shape, *values.shape[1:]) for values in samples
        )
        if self._pixel_max is not None:
            inputs = inputs.to(torch.get_default_dtype()).div_(self._pixel_max)  # they are a copy already
        return {"inputs": inputs, "targets": targets}

    def checksum(self) -> str:
        """Return the sha256 of all samples, as hexadecimal digits."""
        content = hashlib.sha256()
        for split, samples in sorted(self._splits.items()):
            content.update(split.encode())
            for values in samples:
                content.update(values.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return content.hexdigest()

    def _on(self, split: Split, device: torch.device) -> Samples:
        if split not in self._splits:
            raise ValueError(f"split must be one of {', '.join(self._splits)}, got {split!r}")
        if (split, device) not in self._copies:
            samples = self._splits[split]
            self._copies[split, device] = Samples(samples.inputs.to(device), samples.targets.to(device))
        return self._copies[split, device]


@functools.cache
def _read_mnist(paths: tuple[Path, ...], files: tuple[DataFile, ...]) -> dict[Split, Samples]:
    arrays = [parse_idx(read_verified(path, file), str(path)) for path, file in zip(paths, files, strict=True)]
    *sizes, n_test = SPLIT_SIZES["mnist"]
    expected = [(sum(sizes), 28, 28), (sum(sizes),), (n_test, 28, 28), (n_test,)]
    if [array.shape for array in arrays] != expected:
        raise DataError(f"MNIST: expected shapes {expected}, found {[array.shape for array in arrays]} in {paths}")
    images, labels, test_images, test_labels = arrays
    return {**_partition(images[:, None], labels, sizes), "test": _samples(test_images[:, None], test_labels)}


@functools.cache
def _read_cifar10(paths: tuple[Path, ...]) -> dict[Split, Samples]:
    (images, labels), test = (
        decode_jpegs(read_verified(path, file)) for path, file in zip(paths, CIFAR10_FILES, strict=True)
    )
    return {**_partition(images, labels, SPLIT_SIZES["cifar10"][:3]), "test": _samples(*test)}


def _samples(images: np.ndarray, labels: np.ndarray) -> Samples:
    return Samples(torch.from_numpy(np.array(images, order="C")), torch.from_numpy(labels.astype(np.int64)))


def _partition(images: np.ndarray, labels: np.ndarray, sizes: Sequence[int]) -> dict[Split, Samples]:
    """Deal out a fixed permutation. RandomState, because NumPy promises never to change its stream."""
    order = np.random.RandomState(0).permutation(len(images))
    pieces = np.split(order, np.cumsum(sizes)[:-1])
    return {split: _samples(images[piece], labels[piece]) for split, piece in zip(SPLITS, pieces, strict=False)}
