"""Images of every kind become upright RGB, with white behind them; what is no image is one clear error."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from tasks import DataError
from tasks.photographs import decode, style_picture

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = RGB[..., 0]


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(content: bytes, largest: int | None = None) -> np.ndarray:
    picture = decode(content, "x", largest)
    assert picture.dtype == torch.uint8 and picture.is_contiguous()
    return picture.permute(1, 2, 0).numpy()


def thrice(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, 2)


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "ppm", "tga"])
def test_lossless_formats_are_read_to_the_byte(kind):
    assert np.array_equal(decoded(encoded(Image.fromarray(RGB), kind)), RGB)


def test_alpha_is_put_on_white():
    alpha = np.random.default_rng(1).integers(0, 256, (6, 9, 1), dtype=np.uint8)
    alpha[0] = 0
    found = decoded(encoded(Image.fromarray(np.concatenate([RGB, alpha], 2))))
    expected = (RGB * (alpha / 255) + 255 * (1 - alpha / 255)).round()
    assert np.abs(found - expected).max() <= 1  # Pillow blends in integers
    assert (found[0] == 255).all()
    found = decoded(encoded(Image.fromarray(np.stack([GREY, alpha[..., 0]], 2))))
    assert np.abs(found - (thrice(GREY) * (alpha / 255) + 255 * (1 - alpha / 255)).round()).max() <= 1


def test_a_transparent_colour_of_a_palette_is_white():
    image = Image.fromarray(GREY // 200).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    colours = np.array([[255, 255, 255], [40, 50, 60]], np.uint8)
    for kind in ("png", "gif"):
        assert np.array_equal(decoded(encoded(image, kind, transparency=0)), colours[GREY // 200])


def test_grey_images_have_three_equal_channels():
    assert np.array_equal(decoded(encoded(Image.fromarray(GREY))), thrice(GREY))
    assert np.array_equal(decoded(encoded(Image.fromarray(GREY > 99))), 255 * thrice(GREY > 99))


def test_sixteen_bits_are_scaled_to_eight_and_not_cut_off():
    deep = np.random.default_rng(2).integers(0, 2**16, (6, 9), dtype=np.uint16)
    for kind in ("png", "tiff", "ppm"):
        assert np.array_equal(decoded(encoded(Image.fromarray(deep), kind)), thrice((deep / 257).round()))


def test_numbers_are_fractions_or_bytes_or_stretched():
    numbers = np.random.default_rng(3).random((6, 9), dtype=np.float32)
    numbers[0, :2] = 0, 1
    for image in (numbers, 255 * numbers, 1000 * numbers, 8 * numbers - 4):
        found = decoded(encoded(Image.fromarray(image), "tiff"))
        assert np.abs(found - thrice(255.0 * numbers)).max() <= 0.51
    counts = (100_000 * numbers).astype(np.int32)
    assert np.abs(decoded(encoded(Image.fromarray(counts), "tiff")) - thrice(255.0 * numbers)).max() <= 0.51
    assert (decoded(encoded(Image.fromarray(np.full((6, 9), np.nan, np.float32)), "tiff")) == 0).all()


def test_cmyk_is_read_in_its_colours():
    content = encoded(Image.new("CMYK", (9, 6), (0, 255, 255, 0)), "jpeg", quality=95)
    assert np.abs(decoded(content).astype(int) - (255, 0, 0)).max() <= 3  # JPEG


@pytest.mark.parametrize("orientation, undo", [(3, lambda x: x[::-1, ::-1]), (6, lambda x: np.rot90(x, -1))])
def test_photographs_are_turned_upright(orientation, undo):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(decoded(encoded(Image.fromarray(RGB), exif=exif)), undo(RGB))


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (9, 6), colour) for colour in ("red", "blue", "green")]
    for kind in ("gif", "png"):
        found = decoded(encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50))
        assert (found == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_large_images_are_scaled_down_with_their_shape(kind):
    content = encoded(Image.new("RGB", (600, 200), "red"), kind)
    found = decoded(content, largest=90)
    assert found.shape == (30, 90, 3) and np.abs(found.astype(int) - (255, 0, 0)).max() <= 3
    assert decoded(content, largest=1000).shape == (200, 600, 3)


def test_too_many_pixels_are_a_clear_error_and_many_no_warning(monkeypatch):
    content = encoded(Image.new("L", (100, 90)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(DataError, match="huge.png has more than 0 million pixels; scale it down before"):
        decode(content, "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8000)  # between once and twice Pillow only warns
    assert decoded(content).shape == (90, 100, 3)


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "tiff", "webp"])
def test_damaged_images_are_one_kind_of_error(kind):
    intact, generator, failures = encoded(Image.fromarray(RGB), kind), random.Random(0), 0
    for attempt in range(150):
        content = bytearray(intact)
        if attempt % 2:
            content = content[: generator.randrange(len(content))]
        else:
            for _ in range(4):
                content[generator.randrange(len(content))] = generator.randrange(256)
        try:
            decode(bytes(content), "x.png", 4096)
        except DataError as error:
            failures += 1
            assert str(error).startswith("x.png ") and "BytesIO" not in str(error)
    assert failures > 20


@pytest.mark.parametrize("content", [b"", b"hello", b"%PDF-1.4", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_what_is_not_an_image_is_said_in_one_line(content, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x.png is not an image that Pillow reads$"):
        style_picture(str(path))


def test_paths_that_hold_no_file_are_refused(tmp_path):
    with pytest.raises(DataError, match="is a folder, not an image"):
        style_picture(str(tmp_path))
    with pytest.raises(DataError, match="'no.png' is neither one of starry_night_google, .* nor a file"):
        style_picture("no.png")
