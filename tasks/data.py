"""Data sets as four disjoint splits of compact tensors, and minibatches drawn from them.

digits: scikit-learn's embedded 8×8 scans. MNIST: the four IDX files (LeCun, Cortes & Burges 1998) in `$L2O_DATA/mnist`,
else in the cache, else downloaded. CIFAR-10 (Krizhevsky 2009): the JPEG copies in `$L2O_DATA/cifar10`, whose training
part is the first 25,000 images and whose pixels are lossy (median PSNR 30.5 dB). Every file is compared with its
published sha256 before it is read: a damaged file is an error and never data. With the files there, no network is used.
"""

import functools
import gzip
import hashlib
import io
import math
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

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


class DataError(ValueError):
    """A data file is missing, damaged or cannot be downloaded; the message names it and the fix."""


class Samples(NamedTuple):
    """The samples of one split. Shared by everyone who loads the data set: never write into them."""

    inputs: Tensor
    """Images as loaded: (n, channels, height, width), uint8."""
    targets: Tensor
    """Classes, (n,), int64."""


class DataFile(NamedTuple):
    """A file with its published size in bytes and checksum."""

    name: str
    size: int
    sha256: str


# Train images, train labels, test images, test labels; the checksums torchvision and TensorFlow know as well.
MNIST_FILES = (
    DataFile("train-images-idx3-ubyte.gz", 9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    DataFile("train-labels-idx1-ubyte.gz", 28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    DataFile("t10k-images-idx3-ubyte.gz", 1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    DataFile("t10k-labels-idx1-ubyte.gz", 4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
)
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
    return _partition(pixels.astype(np.uint8).reshape(-1, 1, 8, 8), labels, SPLIT_SIZES["digits"])


def load_mnist(base_urls: Sequence[str] = MNIST_URLS, files: Sequence[DataFile] = MNIST_FILES) -> dict[Split, Samples]:
    """Return MNIST from `$L2O_DATA/mnist`, else the cache (`$XDG_CACHE_HOME` or ~/.cache, l2o/mnist), else the net.

    Args:
        base_urls: folders to download from, tried in order.
        files: train images, train labels, test images, test labels.

    Raises:
        DataError: if a file is damaged, or missing and none of the URLs delivers it.
    """
    paths = tuple(_find_or_download(file, "mnist", base_urls) for file in files)
    return _read_mnist(paths, tuple(files))


def load_cifar10() -> dict[Split, Samples]:
    """Return CIFAR-10 from the JPEG copies in `$L2O_DATA/cifar10`.

    Raises:
        DataError: if L2O_DATA is not set, or a file is missing or damaged.
    """
    folder = _data_folder("cifar10")
    wanted = " and ".join(file.name for file in CIFAR10_FILES)
    if folder is None:
        raise DataError(f"CIFAR-10 needs L2O_DATA, which is not set; set it to a folder with cifar10/ holding {wanted}")
    for file in CIFAR10_FILES:
        if not os.path.lexists(folder / file.name):
            raise DataError(f"CIFAR-10 needs {wanted} in {folder}, but {file.name} is not there; correct L2O_DATA")
    return _read_cifar10(tuple(folder / file.name for file in CIFAR10_FILES))


def read_verified(path: Path, file: DataFile) -> bytes:
    """Return the bytes of a file that is exactly the published one.

    Raises:
        DataError: if size or sha256 differ, or the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); make it readable or remove it") from error
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise DataError(
            f"{path} is damaged or not the published file, and was not used: expected {file.size} bytes with sha256 "
            f"{file.sha256}, found {len(content)} bytes with sha256 {found}. Delete it or replace it by an intact copy."
        )
    return content


def parse_idx(content: bytes, source: str) -> np.ndarray:
    """Return the array of an uncompressed IDX file of unsigned bytes: 0, 0, 8, n_dims, sizes (big-endian), values.

    Raises:
        DataError: if the magic number is another one or the values do not fill the shape.
    """
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise DataError(f"{source}: an IDX file of unsigned bytes starts with 00 00 08, found {content[:4].hex(' ')!r}")
    header = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:header].ljust(header - 4, b"\0"))
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise DataError(f"{source}: its header says shape {shape}, {expected} bytes in all; found {len(content)} bytes")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)


class Minibatches:
    """Draws minibatches with replacement, one for each task; keeps a copy of the splits on each device it served."""

    def __init__(self, splits: Mapping[Split, Samples], pixel_max: float | None = None):
        """Keep the splits; inputs are divided by pixel_max into the default dtype, or handed out as they are."""
        self._splits = dict(splits)
        self._pixel_max = pixel_max
        self._copies: dict[tuple[Split, torch.device], Samples] = {}

    def draw(
        self, split: Split, n_tasks: int, batch_size: int, generator: torch.Generator, part: slice = slice(None)
    ) -> Data:
        """Return inputs (n_tasks, batch_size, …) and targets (n_tasks, batch_size, …) on the generator's device.

        Args:
            part: tasks to return; the numbers drawn do not depend on it.

        Raises:
            ValueError: if there is no such split.
        """
        samples = self._on(split, generator.device)
        n_samples = len(samples.inputs)
        index = torch.randint(n_samples, (n_tasks * batch_size,), generator=generator, device=generator.device)
        index = index.view(n_tasks, batch_size)[part]
        inputs, targets = (
            values.index_select(0, index.flatten()).reshape(*index.shape, *values.shape[1:]) for values in samples
        )
        if self._pixel_max is not None:
            inputs = inputs.to(torch.get_default_dtype()) / self._pixel_max
        return {"inputs": inputs, "targets": targets}

    def _on(self, split: Split, device: torch.device) -> Samples:
        if split not in self._splits:
            raise ValueError(f"split must be one of {', '.join(self._splits)}, got {split!r}")
        if (split, device) not in self._copies:
            samples = self._splits[split]
            self._copies[split, device] = Samples(samples.inputs.to(device), samples.targets.to(device))
        return self._copies[split, device]


@functools.cache
def _read_mnist(paths: tuple[Path, ...], files: tuple[DataFile, ...]) -> dict[Split, Samples]:
    arrays = [
        parse_idx(gzip.decompress(read_verified(path, file)), str(path))
        for path, file in zip(paths, files, strict=True)
    ]
    *sizes, n_test = SPLIT_SIZES["mnist"]
    expected = [(sum(sizes), 28, 28), (sum(sizes),), (n_test, 28, 28), (n_test,)]
    if [array.shape for array in arrays] != expected:
        raise DataError(f"MNIST: expected shapes {expected}, found {[array.shape for array in arrays]} in {paths}")
    images, labels, test_images, test_labels = arrays
    return {**_partition(images[:, None], labels, sizes), "test": _samples(test_images[:, None], test_labels)}


@functools.cache
def _read_cifar10(paths: tuple[Path, ...]) -> dict[Split, Samples]:
    (images, labels), test = (
        _decode_jpegs(read_verified(path, file)) for path, file in zip(paths, CIFAR10_FILES, strict=True)
    )
    return {**_partition(images, labels, SPLIT_SIZES["cifar10"][:3]), "test": _samples(*test)}


def _decode_jpegs(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 3, 32, 32), uint8, and labels (n,) of an npz with concatenated JPEG streams."""
    from PIL import Image

    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        stream, offsets, labels = archive["jpeg"].tobytes(), archive["offsets"], archive["labels"]
    images = np.empty((len(labels), 32, 32, 3), dtype=np.uint8)
    for i in range(len(labels)):
        images[i] = np.asarray(Image.open(io.BytesIO(stream[offsets[i] : offsets[i + 1]])).convert("RGB"))
    return images.transpose(0, 3, 1, 2), labels


def _samples(images: np.ndarray, labels: np.ndarray) -> Samples:
    return Samples(torch.from_numpy(np.array(images, order="C")), torch.from_numpy(labels.astype(np.int64)))


def _partition(images: np.ndarray, labels: np.ndarray, sizes: Sequence[int]) -> dict[Split, Samples]:
    """Deal out a fixed permutation. RandomState, because NumPy promises never to change its stream."""
    order = np.random.RandomState(0).permutation(len(images))
    pieces = np.split(order, np.cumsum(sizes)[:-1])
    return {split: _samples(images[piece], labels[piece]) for split, piece in zip(SPLITS, pieces, strict=False)}


def _data_folder(dataset: str) -> Path | None:
    root = os.environ.get("L2O_DATA")
    return Path(root).expanduser().absolute() / dataset if root else None


def _find_or_download(file: DataFile, dataset: str, base_urls: Sequence[str]) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "l2o" / dataset
    folders = [folder for folder in (_data_folder(dataset), cache) if folder is not None]
    for folder in folders:
        if os.path.lexists(folder / file.name):  # a dangling link is a damaged file, not an absent one
            return folder / file.name
    return _download(file, cache, base_urls)


def _download(file: DataFile, folder: Path, base_urls: Sequence[str]) -> Path:
    """Download into a folder; pooch renames its temporary file only after the checksum has matched."""
    import pooch

    failures = []
    for base_url in base_urls:
        url = f"{base_url.rstrip('/')}/{file.name}"
        try:
            return Path(pooch.retrieve(url, known_hash=f"sha256:{file.sha256}", fname=file.name, path=folder))
        except (OSError, ValueError) as error:  # requests' exceptions are OSErrors; a wrong checksum is a ValueError
            failures.append(f"{url}: {error}")
    raise DataError(
        f"{file.name} is neither in $L2O_DATA/{folder.name} (L2O_DATA={os.environ.get('L2O_DATA')!r}) nor in {folder}, "
        f"and could not be downloaded:\n  " + "\n  ".join(failures) + f"\nPut the file ({file.size} bytes, sha256 "
        f"{file.sha256}) into one of the two folders, or correct L2O_DATA."
    )
