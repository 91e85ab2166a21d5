"""Photographs to paint and paintings to paint like: checksummed files, decoded, and crops of them.

Two sets. "art": the photographs of `$L2O_DATA/art/content` and `$L2O_DATA/derain/gt`, each of them in one split. Which
one is fixed below by file name; the two of polar bears are in the same. "embedded": scikit-learn's two photographs,
whose left and right halves make four disjoint regions, for trying things out.
"""

import functools
import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.data_files import DataError, DataFile, data_folder, read_verified
from tasks.task import SPLITS, Split

if TYPE_CHECKING:
    from PIL.Image import Image

PhotographSet = Literal["embedded", "art"]


def _files(table: str) -> tuple[DataFile, ...]:
    """Read a table of names, bytes and SHA-256."""
    return tuple(DataFile(name, int(size), sha256) for name, size, sha256 in map(str.split, table.strip().splitlines()))


_TRAIN = _files("""
china.jpg            196653  8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29
coffee.png           466706  cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7
001.png              280080  05fa12c5ba5f51b8577579f1d79614bd3b140d3003c9d3ecc27112ebfee246a5
002.png              238250  686ea26fea76ce3c08a777eeb6dab851abb35c5b936dbbe3d7020055aafe484d
004.png              250804  a9453a115a8ddc7c2ad966a75be4797cc07a739c9eee27fcb45d041c686eb99c
005.png              206433  edbb2256347b1aaa1fb583fad7e168aa90ba424bff15562a09c197b6c1e4cdfc
009.png              313269  6fa77de41816e5df881f5586dd45b62ad9e18b95faa8f98db5e93e40d73f2e14
012.png              235021  7edc2abc24535f940f58c00c1d0110b92afc3b2145b58ffcd284326aa07b7a7b
013.png              203279  f59317d942fbdcc67b9b332a4f06e9edb8376fd768911d53930b0d895dc72f98
015.png              144274  17438ba19622b273f46d7deef092c23a7dfc9ba554e651df7c526ac2624eca25
016.png              280813  44a28c540be5f5e862709503ee18ed11b001aab4f755047fd3f7ce745571c92e
017.png              221381  ae9456936b4bcb768ecafad423a0174e3e90ed3f783e53b883ac631fc7e2a7c9
019.png              291743  91973eafe4eb82db6f118784cb3517a41df4fb4655379b6f7217df69f8f1facd
020.png              249691  bdeb7f829f716edf96122e8bf2e99a29265f8be79c9068911411f03e703eaf3c
021.png              253367  fb61e40e5c820c1a02dc3a0ddb62de3da276e06f2946d089c4de6e7eda13c03e
022.png              268788  2912db782ef8f923452f035710ee680b9bb77579305742ce6f04627752e00827
025.png              263814  9fd6220134c1ed637b1810a6bc88a36668afefb917b877b5c34ed05bbede66f9
""")
_INNER_VALID = _files("""
flower.jpg           142987  a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638
028.png              376796  9c14f9459994f298e31ddcd0935a63932ab2314b5ef1d9d986f0e7d260481115
029.png              275695  659def57e74f2f6a5b6ae0fee6d0b4bd3a2ce6df91aeae2e9e6d362404a94e80
""")
_OUTER_VALID = _files("""
astronaut.png        791555  88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5
rocket.jpg           112525  c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c
031.png              259383  669e2ce1f7de86fe46b63dea83eb81428165e7c2ae9637609092b3a12add99f6
032.png              188473  c5a7df2aa21f8caec9b2f72723f200f354abcae057911f512c0c1e4585b059ec
034.png              256878  2c329070e0c7dd4d908469d1cb6dd35a7315e7508bbc7c22328091c105171b86
035.png              273207  df13179102b99203c6de73a0e8af27f0d6608a72ad229c6517386e4d817f880b
""")
_TEST = _files("""
chelsea.png          240512  596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb
chicago.jpg          219977  a1e8bf5a5ffec464ee1bb4c1dd6662e5b83a905a64ae10755e5801c3343cebe9
golden_gate.jpg      102100  f8476ac216e0d409af2e52bf82ad2cdc3433e23d7895e6f9b2048fc014ed57ba
hoovertowernight.jpg 216598  8852910ed1594af535c3dee012b020b9ee4045798645885d20a9445d12e98093
036.png              284295  7914bfee4bc1824ee05e0c8933778b40a3d7d8d815add26c61db026dd6bdcd23
037.png              251167  fb54a59d514e03e9fa57ef9e57da3621df141cc794cd542a0a8403a65fcc00be
038.png              282217  38bc77625f7b095206774993294051c8fb656dd914e68dfb229e6e5d92a5584d
039.png              286409  f742b730442469e38c11c4de77379c3aabe95af3b541faa8dfc7a8760ee431af
040.png              231017  24bf656d6a3a9528ff1e943ec3f4f312141d00c6907562307b17230131ed1693
041.png              250499  97b552dd486be2c35be2931dbb59bf739892bd4badffc66d7c47acfa0471a310
043.png              194645  9d51dc805b628fe3ba16cf0d850c1680b27e2c4807bf90205d197ceb5325e1e7
""")

PHOTOGRAPHS: dict[Split, tuple[DataFile, ...]] = dict(
    zip(SPLITS, (_TRAIN, _INNER_VALID, _OUTER_VALID, _TEST), strict=True)
)
"""Which photographs of "art" each split has; names of digits lie in derain/gt, the others in art/content."""

STYLES: dict[str, DataFile] = {
    "starry_night_google": DataFile(
        "starry_night_google.jpg", 613337, "c31741a09141c2e2d07fc7aa6bdf135c369b804f9433e43fa3ceac19386d1ee6"
    ),
    "the_scream": DataFile(
        "the_scream.jpg", 216723, "f3075cddeb974a9ee1d6418f7f33fd05185a7ac7dcb4288bd2805d499a9dcaee"
    ),
    "composition_vii": DataFile(
        "composition_vii.jpg", 202426, "8f992ed4aecd6dd56972d7bc8166761de7c94e670ee6effa8fd05f3daeb33409"
    ),
}
"""Paintings in `$L2O_DATA/art/style`: Van Gogh 1889, Munch 1893, Kandinsky 1913."""

EMBEDDED_STYLES = ("china", "flower")
"""scikit-learn's photographs, which can serve as styles without L2O_DATA."""


def n_photographs(photographs: PhotographSet, split: Split) -> int:
    """Return how many photographs, or regions of one, a split has.

    Raises:
        ValueError: if the set or the split is unknown.
    """
    if photographs not in get_args(PhotographSet):
        raise ValueError(f"photographs must be one of {', '.join(get_args(PhotographSet))}, got {photographs!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    return len(PHOTOGRAPHS[split]) if photographs == "art" else 1


def photograph(photographs: PhotographSet, split: Split, index: int) -> Tensor:
    """Return a photograph of a split, shape (3, height, width), uint8; shared, never write into it.

    Raises:
        ValueError: if the set or the split is unknown.
        DataError: if L2O_DATA is not set or the file is missing or damaged, for "art".
    """
    assert 0 <= index < n_photographs(photographs, split)
    if photographs == "art":
        file = PHOTOGRAPHS[split][index]
        try:
            return _published("derain/gt" if file.name[0].isdigit() else "art/content", file)
        except DataError as error:
            styles = ", ".join(EMBEDDED_STYLES)
            raise DataError(f'{error}; photographs "embedded" with styles of {styles} need no file') from error
    whole = _embedded(EMBEDDED_STYLES[SPLITS.index(split) // 2])
    half = whole.shape[-1] // 2
    return whole[..., :half] if SPLITS.index(split) % 2 == 0 else whole[..., half:]


def style_picture(style: str, largest: int | None = None) -> Tensor:
    """Return a painting by its name or the path of an image, shape (3, height, width), uint8.

    Args:
        style: a name in `STYLES` or `EMBEDDED_STYLES`, or a path.
        largest: scale an image from a path down, if need be, until its longer side has as many pixels.

    Raises:
        DataError: if it is neither a known name nor an image that can be read.
    """
    if style in STYLES:
        return _published("art/style", STYLES[style])
    if style in EMBEDDED_STYLES:
        return _embedded(style)
    path = Path(style).expanduser()
    if path.is_dir():
        raise DataError(f"{style} is a folder, not an image")
    if not path.is_file():
        raise DataError(f"{style!r} is neither one of {', '.join((*STYLES, *EMBEDDED_STYLES))} nor a file")
    try:
        return decode(path.read_bytes(), style, largest)
    except OSError as error:
        raise DataError(f"{style} cannot be read: {error.strerror}") from error


def decode(content: bytes, source: str, largest: int | None = None) -> Tensor:
    """Return an image, or its first frame, upright and on white where it is transparent, (3, height, width), uint8.

    Args:
        content: a file in any format that Pillow reads, with any kind of pixels.
        source: names it in messages.
        largest: scale it down, if need be, until its longer side has as many pixels.

    Raises:
        DataError: if Pillow cannot read it, or it has so many pixels that Pillow refuses.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content)) as image:
            if largest is not None:
                image.draft(None, (largest, largest))  # spares decoding all of a large JPEG
            flat = _on_white(ImageOps.exif_transpose(image))
            if largest is not None:
                flat.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{source} is not an image that Pillow reads") from error
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise DataError(f"{source} has more than {most:.0f} million pixels; scale it down before") from error
    except Exception as error:  # a damaged file makes Pillow's readers raise nearly anything
        raise DataError(f"{source} is a damaged image, or of a kind that Pillow does not read: {error}") from error
    return torch.from_numpy(np.array(flat)).permute(2, 0, 1).contiguous()


def crop(picture: Tensor, size: int, position: tuple[float, float, float]) -> Tensor:
    """Return a square part of a picture, scaled to size² pixels, (3, size, size), float32 in [0, 1].

    Args:
        picture: shape (3, height, width), uint8.
        position: top, left and side, each a fraction in [0, 1) of what is possible; the side is between half and all
            of the shorter side.
    """
    top, left, zoom = position
    height, width = picture.shape[-2:]
    side = max(1, round(min(height, width) * (0.5 + 0.5 * zoom)))
    y, x = round(top * (height - side)), round(left * (width - side))
    return resize(picture[:, y : y + side, x : x + side], size, size)


def resize(picture: Tensor, height: int, width: int) -> Tensor:
    """Return a picture of uint8 at another size, low-pass filtered, float32 in [0, 1]."""
    scaled = picture[None].float() / 255
    return F.interpolate(scaled, (height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)


@functools.lru_cache(maxsize=64)
def _published(folder: str, file: DataFile) -> Tensor:
    root = data_folder(folder)
    if root is None:
        raise DataError(f"{file.name} is needed; set L2O_DATA to a folder that holds it in {folder}")
    if not os.path.lexists(root / file.name):
        raise DataError(f"{file.name} is needed, but it is not in {root}")
    with torch.inference_mode(False):
        return decode(read_verified(root / file.name, file), file.name)


@functools.lru_cache(maxsize=2)
def _embedded(name: str) -> Tensor:
    from sklearn.datasets import load_sample_image

    with torch.inference_mode(False):
        return torch.from_numpy(load_sample_image(f"{name}.jpg").copy()).permute(2, 0, 1).contiguous()


def _on_white(image: "Image") -> "Image":
    """Return an image of any mode as RGB, put on white where it has an alpha channel or a transparent colour."""
    from PIL import Image

    if image.mode.startswith(("I", "F")):  # wider than a byte, which Pillow's own conversion would cut off at 255
        image = Image.fromarray(_to_bytes(np.array(image), image.mode))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _to_bytes(grey: np.ndarray, mode: str) -> np.ndarray:
    """Return pixels of mode I or F as bytes: of 16 bits, or fractions, or bytes; stretched where they are none."""
    grey = np.nan_to_num(grey.astype(np.float64))
    low, high = 0.0, float(grey.max())
    usual = (1.0, 255.0) if mode == "F" else (65535.0,)
    high = min((top for top in usual if high <= top), default=high)
    if grey.min() < 0:
        low, high = float(grey.min()), float(grey.max())
    return np.round(255 * (grey - low) / max(high - low, 1e-300)).astype(np.uint8)
