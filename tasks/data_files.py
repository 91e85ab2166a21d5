"""Published data files: found on disk or downloaded, compared with their checksum, decoded into arrays.

A file counts by its content: gzip is undone before size and sha256 are compared, so an uncompressed or recompressed
copy is as good as the original. What does not match is an error and never data.
"""

import contextlib
import gzip
import hashlib
import io
import math
import os
import struct
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

_TIMEOUT_S = (10.0, 60.0)
"""Longest waits for a connection and for the next bytes of a download."""


class DataError(ValueError):
    """A data file is missing, damaged or cannot be downloaded; the message names it and the fix."""


class DataFile(NamedTuple):
    """A file by its content, without compression."""

    name: str
    size: int | None
    """Bytes; None where it is not known."""
    sha256: str
    """As many of its digits as are published."""
    packed: str = ".gz"
    """What the name of the published file has at its end besides."""


def data_folder(dataset: str) -> Path | None:
    """Return `$L2O_DATA/dataset`, or None if L2O_DATA is not set."""
    root = os.environ.get("L2O_DATA")
    return Path(root).expanduser().absolute() / dataset if root else None


def find_or_download(file: DataFile, dataset: str, base_urls: Sequence[str]) -> Path:
    """Return where a file lies, with or without .gz: in `$L2O_DATA/dataset`, else in the cache, else downloaded to it.

    Raises:
        DataError: if it is nowhere and none of the URLs delivers it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "l2o" / dataset
    folders = [folder for folder in (data_folder(dataset), cache) if folder is not None]
    for path in (folder / name for folder in folders for name in (file.name + file.packed, file.name)):
        if os.path.lexists(path):  # a dangling link is a damaged file, not an absent one
            return path
    return _download(file, cache, base_urls)


def read_verified(path: Path, file: DataFile) -> bytes:
    """Return the content of a file, uncompressed, which is exactly the published one.

    Raises:
        DataError: if size or sha256 differ, or the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); make it readable or remove it") from error
    content = _uncompressed(content, file.size)
    if difference := _difference(content, file):
        raise DataError(
            f"{path} is damaged or not the published file, and was not used: {difference}. "
            "Delete it or replace it by an intact copy."
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


def decode_jpegs(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 3, 32, 32), uint8, and labels (n,) of an npz with concatenated JPEG streams."""
    from PIL import Image

    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        stream, offsets, labels = archive["jpeg"].tobytes(), archive["offsets"], archive["labels"]
    images = np.empty((len(labels), 32, 32, 3), dtype=np.uint8)
    for i in range(len(labels)):
        images[i] = np.asarray(Image.open(io.BytesIO(stream[offsets[i] : offsets[i + 1]])).convert("RGB"))
    return images.transpose(0, 3, 1, 2), labels


def _uncompressed(content: bytes, size: int | None) -> bytes:
    """Undo gzip, but for no more than one byte over the expected size; what is not intact gzip stays as it is."""
    if size is None:
        return content
    with contextlib.suppress(OSError, EOFError, zlib.error):
        return gzip.GzipFile(fileobj=io.BytesIO(content)).read(size + 1)
    return content


def _difference(content: bytes, file: DataFile) -> str | None:
    found = hashlib.sha256(content).hexdigest()
    if found.startswith(file.sha256):
        return None
    if content.startswith(b"\x1f\x8b"):
        return f"its {len(content)} bytes of gzip are damaged or cut short"
    size = "a file" if file.size is None else f"{file.size} bytes"
    return f"expected {size} with sha256 {file.sha256}, found {len(content)} bytes with sha256 {found}"


def _download(file: DataFile, folder: Path, base_urls: Sequence[str]) -> Path:
    import requests

    failures = []
    for base_url in base_urls:
        try:
            return _retrieve(f"{base_url.rstrip('/')}/{file.name}{file.packed}", file, folder)
        except DataError:
            failures.append(f"{urlsplit(base_url).netloc}: another file than the published one")
        except requests.RequestException as error:  # its text repeats the URL and a stack of causes
            status = f"HTTP {error.response.status_code}" if error.response is not None else type(error).__name__
            failures.append(f"{urlsplit(base_url).netloc}: {status}")
        except OSError as error:
            raise DataError(
                f"{folder} cannot be written ({error}); set L2O_DATA or XDG_CACHE_HOME to another folder"
            ) from error
    root = os.environ.get("L2O_DATA")
    raise DataError(
        f"{file.name} is neither in $L2O_DATA/{folder.name} (L2O_DATA {'is ' + root if root else 'is not set'}) nor in "
        f"{folder}, and could not be downloaded ({', '.join(failures) or 'from nowhere'}).\n"
        f"Set L2O_DATA to a folder with the {folder.name}/ files, with or without .gz, or connect to the network."
    )


def _retrieve(url: str, file: DataFile, folder: Path) -> Path:
    """Download beside the cache and move into it what is the published file, so that nothing else ever lies there."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        downloader = pooch.HTTPDownloader(timeout=_TIMEOUT_S, progressbar=sys.stderr.isatty())
        found = Path(pooch.retrieve(url, None, path=scratch, downloader=downloader))  # pyright: ignore (any callable)
        read_verified(found, file)
        return found.replace(folder / f"{file.name}{file.packed}")
