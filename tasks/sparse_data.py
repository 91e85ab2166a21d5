"""Sparse regression on published data: leukemia (72×7129) and diabetes (442×10), as `l2o.Problem`s.

    minimise over x   ½‖Ax − b‖² + λ‖x‖₁,   λ = fraction · λ_max,   λ_max = ‖Aᵀb‖∞

Columns of A are centred and have unit norm, b is centred; for leukemia b is −1 for AML and 1 for ALL before that. From
λ_max on, x = 0 is optimal. Data: Golub et al. 1999, Science 286 (ALLAML of scikit-feature); Efron et al. 2004, Least
angle regression, Ann. Statist. 32(2).
"""

import functools
import io
import os
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from l2o.problem import Problem
from l2o.proximal import L1, Dictionary
from tasks.data_files import DataError, DataFile, data_folder, read_verified

SparseData = Literal["leukemia", "diabetes"]

FILES: dict[SparseData, DataFile] = {
    "leukemia": DataFile(
        "leukemia_allaml_72x7129.npz", 1832368, "6cf2a39ee1fd270031575bee1d12a58420941883d360221b210dfae7160d3556"
    ),
    "diabetes": DataFile(
        "diabetes_442x10.npz", 39386, "b8e124bb039160dcc72132a2f6ae73207f04f29e56aa293de6b83616e3ed18b2"
    ),
}
"""In `$L2O_DATA/sparse`; SOURCES.md there says where they come from."""


def real_problem(name: SparseData, fraction: float, dtype: torch.dtype = torch.float64) -> Problem:
    """Return the LASSO of a data set at λ = fraction · λ_max; one item, without a batch axis.

    Problems of the same data share one `Dictionary`, and so compute its norm once.

    Args:
        name: the data set.
        fraction: λ / λ_max, above 0.
        dtype: of A and b.

    Raises:
        ValueError: if there is no such data set, or the fraction is not positive.
        DataError: if L2O_DATA is not set, or the file is missing or damaged.
    """
    if name not in get_args(SparseData):
        raise ValueError(f"name must be one of {', '.join(get_args(SparseData))}, got {name!r}")
    if not 0 < fraction < float("inf"):
        raise ValueError(f"fraction (λ / λ_max) must be positive, got {fraction}")
    operator, b = _standardised(name, dtype)
    return Problem(operator, b, L1(fraction * float(operator.adjoint(b).abs().max())))


@functools.lru_cache(maxsize=4)
def _standardised(name: SparseData, dtype: torch.dtype) -> tuple[Dictionary, Tensor]:
    """A and b, standardised in float64."""
    arrays = read_arrays("sparse", FILES[name])
    X, y = arrays["X"].astype(np.float64), arrays["y"].astype(np.float64)
    if name == "leukemia":
        y = np.where(y == 1, 1.0, -1.0)  # the file's 1 is ALL, 2 is AML
    X, y = X - X.mean(0), y - y.mean()
    A = X / np.linalg.norm(X, axis=0)
    with torch.inference_mode(False):  # what is kept must not be an inference tensor
        return Dictionary(torch.from_numpy(A).to(dtype)), torch.from_numpy(y).to(dtype)


def read_arrays(dataset: str, file: DataFile, subfolder: str = "") -> dict[str, Any]:
    """Return the arrays of a published npz file in `$L2O_DATA/dataset`.

    Raises:
        DataError: if L2O_DATA is not set, or the file is missing or damaged.
    """
    folder = data_folder(dataset)
    if folder is None:
        raise DataError(f"{file.name} is needed; set L2O_DATA to a folder that holds it in {dataset}/{subfolder}")
    path = folder / subfolder / file.name
    if not os.path.lexists(path):
        raise DataError(f"{file.name} is needed, but it is not in {path.parent}")
    with np.load(io.BytesIO(read_verified(path, file)), allow_pickle=False) as archive:
        return dict(archive)
