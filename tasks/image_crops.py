"""Small grey crops of photographs, to denoise.

"embedded": scikit-learn's two photographs, whose halves make four disjoint regions, one a split. "train400": the 400
grey images of Zhang et al. 2017 (DnCNN), of `$L2O_DATA/deblur/train400`; each image is in one split.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from tasks.patches import IMAGES
from tasks.photographs import photograph
from tasks.sparse_data import read_arrays
from tasks.task import SPLITS, Split

CropSource = Literal["embedded", "train400"]
_GREY = (0.299, 0.587, 0.114)
"""Luma of red, green and blue, ITU-R BT.601."""


def crops(source: CropSource, split: Split, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Return random crops, shape (count, size, size), float32 in [0, 1].

    Args:
        size: side, pixels.

    Raises:
        ValueError: if the source or the split is unknown, or the crop larger than an image.
        DataError: if L2O_DATA is not set, or the file is missing or damaged, for "train400".
    """
    if source not in get_args(CropSource):
        raise ValueError(f"source must be one of {', '.join(get_args(CropSource))}, got {source!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    images = _images(source, split)
    n, height, width = images.shape
    if not 1 <= size <= min(height, width):
        raise ValueError(f"size must be from 1 to {min(height, width)} for {source}, got {size}")
    which, top, left = (
        torch.randint(bound, (count,), generator=generator).tolist()
        for bound in (n, height - size + 1, width - size + 1)
    )
    parts = [images[i, y : y + size, x : x + size] for i, y, x in zip(which, top, left, strict=True)]
    return torch.stack(parts).float() / 255


def _images(source: CropSource, split: Split) -> Tensor:
    """Return the grey images of a split, shape (n, height, width), values from 0 to 255."""
    if source == "embedded":
        return (photograph("embedded", split, 0).float() * torch.tensor(_GREY).reshape(3, 1, 1)).sum(0, keepdim=True)
    images = torch.from_numpy(read_arrays("deblur", IMAGES, "train400")["images"])
    return images[SPLITS.index(split) :: len(SPLITS)]
