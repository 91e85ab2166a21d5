"""Write pictures: what can be wrong with the name of a file is found before the work, and no half file is left."""

import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

_GAP = 4
"""Pixels between the pictures of a strip."""
_ICONS = ("ICO", "ICNS")
"""Kinds that Pillow writes in sizes of its own."""


def check_output(path: Path) -> None:
    """Find out whether a picture can be written to a file.

    Raises:
        ValueError: if Pillow writes no colour pictures of its kind, it is a folder, or its folder cannot be written.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it, such as {path / 'painting.png'}")
    encode(torch.zeros(3, 8, 8), path)
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent}, where {path.name} is to be written, is no folder; make it, or choose another")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"{path.parent}, where {path.name} is to be written, refuses files: {error.strerror}"
        ) from error


def write_picture(picture: Tensor, path: Path) -> None:
    """Write a picture (3, height, width), RGB in [0, 1]; an existing file is replaced when the new one is complete."""
    content, part = encode(picture, path), path.with_name(f".{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def encode(picture: Tensor, path: Path) -> bytes:
    """Return a picture (3, height, width), RGB in [0, 1], as a file of the kind that the path's ending names.

    Raises:
        ValueError: if Pillow writes no colour pictures of this kind.
    """
    from PIL import Image

    kind = Image.registered_extensions().get(path.suffix.lower())
    buffer = io.BytesIO()
    try:
        if kind is None or kind in _ICONS:
            raise KeyError(path.suffix)
        to_image(picture).save(buffer, format=kind, quality=95)
    except (KeyError, OSError, ValueError) as error:  # Pillow has no writer, or none for RGB
        raise ValueError(
            f"{path}: Pillow writes no colour pictures of any size as {path.suffix or 'files without an ending'}; "
            "take .png, .jpg, .webp or .tif"
        ) from error
    return buffer.getvalue()


def to_image(picture: Tensor) -> "Image":
    """Return a picture (3, height, width), RGB in [0, 1], as Pillow has it."""
    from PIL import Image

    return Image.fromarray((255 * picture).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy())


def join(pictures: Sequence[Tensor]) -> Tensor:
    """Return pictures (3, height, width) of one size side by side, with white between them."""
    white = torch.ones(3, pictures[0].shape[1], _GAP)
    return torch.cat([piece for picture in pictures for piece in (white, picture)][1:], 2)
