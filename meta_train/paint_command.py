"""The command `l2o paint`: a photograph in the style of a painting."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from meta_train.paint import LARGEST, Album, Look, Optimizer, build_optimizer, paint, painted_size, scaled, start
from meta_train.picture_files import check_output, join, write_picture
from meta_train.threads import set_threads
from tasks.data_files import DataError
from tasks.features import Network
from tasks.neural_art import Initial, NeuralArt, Parts
from tasks.photographs import STYLES, resize, style_picture

CONTENT_WEIGHT: dict[Initial, float] = {"content": 0.2, "noise": 2.0}
"""Defaults, beside a style weight of 10: chosen by looking at pictures."""
_READ_AT = 2 * LARGEST
"""Pixels on the longer side to which pictures are reduced when they are read."""
_STRIP_SIZE = 256
"""Most pixels on the shorter side of the pictures in a strip."""


def add_paint_command(app: tyro.extras.SubcommandApp, postponed: Callable) -> None:
    """Add `paint`.

    Args:
        postponed: makes a function one that returns what it would do.
    """
    app.command(name="paint")(postponed(paint_command))


def paint_command(
    content: tyro.conf.Positional[str],
    style: tyro.conf.Positional[str],
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    optimizer: Optimizer = "learned",
    size: int = 256,
    steps: int = 200,
    style_weight: float = 10.0,
    content_weight: float | None = None,
    variation_weight: float = 10.0,
    initial: Initial = "content",
    lr: float | None = None,
    checkpoint: str | None = None,
    network: Network = "squeezenet1_1",
    weights: Path | None = None,
    style_size: int | None = None,
    strip: Path | None = None,
    seed: int = 0,
    threads: int | None = None,
) -> None:
    """Paint a photograph in the style of a painting: minimise content + style + variation over its pixels.

    Args:
        content: Image to paint, of any kind that Pillow reads; or china, flower.
        style: Image to paint like; or starry_night_google, the_scream, composition_vii (of L2O_DATA), china, flower.
        out: Image to write; its ending says of what kind.
        optimizer: learned and lstm are sobolev-adam-neural-art and sobolev-lstm-neural-art; adam and lbfgs torch's.
        size: Shorter side of the painting, pixels; the longer one follows from the content, up to 2048.
        steps: How often loss and gradient are computed; the line search of lbfgs spends its tries from them too.
        style_weight: More for more of the painting, less for more of the photograph.
        content_weight: Weight of what the photograph shows; None is 0.2, and 2 from noise, where it is easily lost.
        variation_weight: Weight of smoothness; more where the result is noisy.
        initial: Start from the content, or from noise.
        lr: Learning rate; None is 1 for learned rules (a factor of their steps) and lbfgs, 0.02 for adam (grey scale).
        checkpoint: Another learned rule: shipped name, checkpoint or run directory, hf://owner/name.
        network: Whose activations are compared.
        weights: File with the network's weights, .npz, .pth or .safetensors; None is the one in $L2O_DATA/nets.
        style_size: Shorter side at which the style is seen, pixels; larger for larger strokes. None is that of size.
        strip: Also write the start and the best pictures at some steps, side by side, to this image.
        seed: Of the noise to start from.
        threads: CPU threads; None takes all cores.
    """
    _check_files(content, style, out, strip)
    for name, number in (("steps", steps), ("style_size", 1 if style_size is None else style_size)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be at least 0 and below 2^63, got {seed}")
    set_threads(threads)
    family = NeuralArt(
        size=size, initial=initial, network=network, weights=None if weights is None else str(weights),
        content_weight=CONTENT_WEIGHT[initial] if content_weight is None else content_weight,
        style_weight=style_weight, variation_weight=variation_weight,
    )  # fmt: skip
    photograph = _read(content, "content", size, family)
    painting = _read(style, "style", size if style_size is None else style_size, family)
    try:
        batch, image = start(family, photograph, painting, torch.Generator().manual_seed(seed))
    except DataError as error:
        raise DataError(f"{error} (--weights FILE)") from error
    rule = build_optimizer(optimizer, image, lr, checkpoint)
    album = Album(strip_steps(steps) if strip else ())
    heeded = None
    with tqdm(total=steps, unit="step", dynamic_ncols=True, disable=None) as bar:
        try:
            paint(family, batch, image, rule, steps, album, lambda look: _advance(bar, look))
        except KeyboardInterrupt:  # the album is complete at every moment
            heeded = signal.signal(signal.SIGINT, signal.SIG_IGN)  # another one must not cost the picture
    try:
        _write(family, batch["start"], album, out, strip, interrupted=heeded is not None)
    finally:
        if heeded is not None:
            signal.signal(signal.SIGINT, heeded)
    _say(album, steps, out, interrupted=heeded is not None)


def strip_steps(steps: int) -> tuple[int, ...]:
    """Return the steps whose pictures a strip shows: the start, and up to six, each twice as far as the one before.

    >>> strip_steps(200)
    (1, 6, 12, 25, 50, 100, 200)
    """
    return tuple(sorted({1, *(max(1, steps >> k) for k in range(6))}))


def _check_files(content: str, style: str, out: Path, strip: Path | None) -> None:
    """Raise ValueError if a result could not be written, or would replace one of the other files."""
    outputs = [path for path in (out, strip) if path is not None]
    for path in outputs:
        check_output(path)
        for source in (content, style):
            if path.exists() and os.path.exists(source) and os.path.samefile(path, source):
                raise ValueError(f"{path} is one of the images to read and would be replaced; choose another file")
    if len({path.absolute() for path in outputs}) < len(outputs):
        raise ValueError(f"{out} cannot be both the painting and the strip; choose another --strip")


def _read(source: str, role: str, size: int, family: NeuralArt) -> Tensor:
    """Return an image in [0, 1] at the size for the work, and say which that is."""
    try:
        picture = style_picture(source, _READ_AT)
    except DataError as error:
        hint = "; any image file will do in its place" if source in STYLES else ""
        raise DataError(f"{error}{hint}") from error
    option = "--style-size" if role == "style" else "--size"
    found = scaled(picture, size, family, f"the {role} {source}", option)
    height, width = found.shape[-2:]
    cut = painted_size(picture, size, sys.maxsize) != (height, width)
    note = f" (reduced: the longer side has at most {LARGEST})" if cut else ""
    print(f"{role}: {source}, seen at {width}×{height} pixels{note}")
    return found


def _advance(bar: tqdm, look: Look) -> None:
    bar.set_postfix_str(_parts(look.parts), refresh=False)
    bar.update()


def _parts(parts: Parts) -> str:
    return ", ".join(f"{name} {float(part):.3g}" for name, part in parts._asdict().items())


def _write(family: NeuralArt, origin: Tensor, album: Album, out: Path, strip: Path | None, interrupted: bool) -> None:
    def shown(look: Look) -> Tensor:
        return family.picture({"image": look.image}, {"start": origin})[0].clamp(0, 1)

    if album.best is None:
        if interrupted:
            raise KeyboardInterrupt("interrupted before the first step; nothing was written")
        raise ValueError("the loss is not finite at the start; are the network's weights those of this network?")
    write_picture(shown(album.best), out)
    if strip is not None:
        pictures = [shown(look) for look in album.strip]
        height, width = painted_size(pictures[0], min(_STRIP_SIZE, *pictures[0].shape[-2:]))
        write_picture(join([resize(255 * picture, height, width) for picture in pictures]), strip)


def _say(album: Album, steps: int, out: Path, interrupted: bool) -> None:
    assert album.best is not None
    best = album.best
    if interrupted:
        raise KeyboardInterrupt(
            f"interrupted at step {album.step} of {steps}; {out} holds the best picture so far ({_parts(best.parts)})"
        )
    if album.ended:
        print(f"l2o: ended at step {album.step} of {steps}: {album.ended}", file=sys.stderr)
    if best.step == 1 and steps > 1 and best.loss > 0 and not album.ended:
        print("l2o: no picture was better than the start; another --lr may help", file=sys.stderr)
    count = f"{album.step} computations of loss and gradient"
    print(f"{out}: loss {best.loss:.4g} ({_parts(best.parts)}), the least of {count}")
