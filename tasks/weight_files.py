"""Tensors by name from files in three formats, none of which can run code: .npz, .safetensors and torch.save's."""

import io
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from tasks.data_files import DataError


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .npz or .safetensors file, or of one that torch.save wrote, by their names.

    Raises:
        DataError: if it cannot be read or holds anything but tensors by name.
    """
    try:
        if path.suffix == ".npz":
            return read_npz(path)
        if path.suffix == ".safetensors":
            return load_safetensors(path.read_bytes())
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message tells how to run what the file holds
        raise DataError(f"{path} cannot be read as weights (damaged, or more than tensors by name)") from error
    except Exception as error:  # the readers raise whatever the bytes of a damaged file lead them to
        raise DataError(f"{path} cannot be read as weights ({type(error).__name__}: {error!s:.200})") from error
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise DataError(f"{path} holds no state dict, a mapping of names to tensors, but a {type(state).__name__}")
    return dict(state)


def read_npz(source: Path | io.BytesIO) -> dict[str, Tensor]:
    """Return the arrays of a .npz file, float32."""
    with np.load(source, allow_pickle=False) as archive:
        return {name: torch.from_numpy(archive[name]).float() for name in archive}
