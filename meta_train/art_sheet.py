"""The contact sheet of the neural-art benchmark: photograph, painting, and what every optimizer made of them."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from meta_train import art_settings as chosen
from meta_train.art_race import as_bytes
from tasks.photographs import resize, style_picture

_CELL, _GAP, _HEAD = 128, 4, 16
"""Pixels of a picture, between pictures, and of a line of text."""
_LIMIT = 400_000
"""Bytes of the file."""


def write_sheet(path: Path, pictures: dict[str, dict[str, Tensor]]) -> None:
    """Write a PNG of few colours with a row for each of the first pairs of every setting.

    Args:
        pictures: setting -> method -> (pairs, 3, size, size), uint8; a method may be missing in a setting.
    """
    methods = list(dict.fromkeys(method for found in pictures.values() for method in found))
    rows = [(name, pair) for name in pictures for pair in range(chosen.SETTINGS[name].shown)]
    width, height = (2 + len(methods)) * (_CELL + _GAP), _HEAD + sum(_row_height(pair) for _, pair in rows)
    sheet = Image.new("RGB", (width, height), "white")
    pen, top = ImageDraw.Draw(sheet), _HEAD
    for column, text in enumerate(("photograph", "painting", *methods)):
        pen.text((column * (_CELL + _GAP), 2), text.removesuffix("-neural-art"), fill="black")
    for name, pair in rows:
        if pair == 0:
            text = f"{name}, after {chosen.SHOWN_STEP} steps (L-BFGS: evaluations)".replace(
                "×", "x"
            )  # the font has none
            pen.text((0, top + 2), text, fill="black")
            top += _HEAD
        shown = [*_targets(name, pair), *(pictures[name].get(method) for method in methods)]
        for column, picture in enumerate(shown):
            if picture is not None:
                whole = picture if column < 2 else picture[pair]
                sheet.paste(_cell(whole), (column * (_CELL + _GAP), top))
        top += _CELL + _GAP
    for colours in (256, 128, 64, 32, 16):
        sheet.quantize(colours).save(path, optimize=True)
        if path.stat().st_size <= _LIMIT:
            return


def _row_height(pair: int) -> int:
    return _CELL + _GAP + (_HEAD if pair == 0 else 0)


def _targets(name: str, pair: int) -> tuple[Tensor, Tensor]:
    """Return photograph and painting of a pair, uint8; the painting's middle square."""
    setting = chosen.SETTINGS[name]
    task = {key: tensor[pair : pair + 1] for key, tensor in setting.tasks("test").items()}
    start = setting.family.sample_batch(task, 1, "test", torch.Generator())["start"][0]
    painting = style_picture(setting.family.styles[int(task["style"][0])])
    side = min(painting.shape[-2:])
    y, x = (painting.shape[-2] - side) // 2, (painting.shape[-1] - side) // 2
    return as_bytes(start), painting[:, y : y + side, x : x + side]


def _cell(picture: Tensor) -> Image.Image:
    scaled = picture if picture.shape[-1] == _CELL else as_bytes(resize(picture, _CELL, _CELL))
    return Image.fromarray(scaled.permute(1, 2, 0).contiguous().numpy())
