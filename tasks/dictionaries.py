"""Dictionaries: the published one, one's own from a file, and Gaussian ones made to measure."""

import hashlib
import io
import math
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tasks.data_files import DataError, DataFile, data_folder, read_verified

PUBLISHED_SHAPE = (250, 500)
"""Of the published matrix."""
PUBLISHED_FILES = (
    DataFile("alista_A250x500.npz", 2000490, "2f110bf127aa953a4fe4e0c736126d3db4f0a61af04789d4c2bb0363227d9a18"),
    DataFile(
        "alista_xtest_n500_p10_coo.npz", 402264, "e54eaa7d94ef78a99d7a75fe0c361d84917bc956abc27af455d4bae35d95ffbd"
    ),
)
"""Matrix and test codes of VITA-Group/ALISTA at 23f3637f."""


def read_published() -> tuple[np.ndarray, np.ndarray]:
    """Return A (250, 500) in float64 and the test codes (1000, 500) in float32.

    Raises:
        DataError: if L2O_DATA is not set, or a file is missing or damaged.
    """
    folder = data_folder("sparse")
    wanted = " and ".join(file.name for file in PUBLISHED_FILES)
    if folder is None:
        raise DataError(f"the published dictionary needs L2O_DATA; set it to a folder with sparse/ holding {wanted}")
    for file in PUBLISHED_FILES:
        if not os.path.lexists(folder / file.name):
            raise DataError(f"the published dictionary needs {wanted} in {folder}, but {file.name} is not there")
    matrix, codes = (np.load(io.BytesIO(read_verified(folder / file.name, file))) for file in PUBLISHED_FILES)
    dense = np.zeros(codes["shape"][::-1], np.float32)
    dense[codes["cols"], codes["rows"]] = codes["vals"]
    return matrix["A"], dense


def read_matrix(path: str, sha256: str | None = None) -> tuple[np.ndarray, str]:
    """Return a matrix of one's own in float64, shape (rows, columns), and the SHA-256 of its file.

    Args:
        path: a .npy file, or an .npz file with the key A.
        sha256: what the file must have; None takes any.

    Raises:
        DataError: if the file cannot be read, has another sha256, or holds no finite floating-point matrix.
    """
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        where = "" if Path(path).is_absolute() else f", looked for in {Path.cwd()}"
        raise DataError(f"matrix {path} cannot be read ({error.strerror}{where}); give a .npy or .npz file") from error
    found = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, found):
        raise DataError(
            f"matrix {path} is not the one that this run was made with: its SHA-256 is {found}, expected {sha256}. "
            "Put the old file back, or start a new run (from Python: with matrix_sha256=None)"
        )
    A = _decode(content, path)
    if A.ndim != 2 or not A.size:
        raise DataError(f"matrix {path} must have two axes, (rows, columns), none of them empty; got shape {A.shape}")
    if not np.issubdtype(A.dtype, np.floating):
        raise DataError(f"matrix {path} must be of a floating type, got {A.dtype}; save A.astype(numpy.float64)")
    if bad := int((~np.isfinite(A)).sum()):
        raise DataError(f"matrix {path} must be finite, but {bad} of its {A.size} entries are not")
    if empty := int((~A.any(0)).sum()):
        raise DataError(f"matrix {path} has {empty} columns of zeros, which no measurement sees; leave them out")
    return np.ascontiguousarray(A, np.float64), found


def _decode(content: bytes, path: str) -> np.ndarray:
    try:
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        if "A" not in loaded:
            raise DataError(f"matrix {path} must hold the matrix under the key A; it holds {sorted(loaded)}")
        return loaded["A"]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"matrix {path} is neither a .npy file nor an .npz file with the key A ({error})") from error


def normalize_dictionary(gaussian: Tensor, condition: float | None) -> Tensor:
    """Return matrices with columns of unit norm, or with a geometric series of singular values.

    Args:
        gaussian: shape (…, rows, columns).
        condition: σ_max / σ_min, with Σ σ² = columns; None: the columns are scaled and the singular values follow.
    """
    if condition is None:
        return gaussian / gaussian.norm(dim=-2, keepdim=True)
    u, sigma, vh = torch.linalg.svd(gaussian, full_matrices=False)
    series = torch.logspace(0, -math.log10(condition), sigma.shape[-1], dtype=sigma.dtype, device=sigma.device)
    series = series * (gaussian.shape[-1] / series.square().sum()).sqrt()
    return (u * series) @ vh
