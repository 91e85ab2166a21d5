"""Import published weights of the coordinate-wise LSTM in the naming of the authors' TensorFlow code (Sonnet 1).

Sonnet's LSTM computes z = [x, h] @ w_gates + b_gates with gates in the order i, j (candidate), f, o; ours is W [x; h]
with rows in the order i, f, o, g.
"""

import os
import zipfile
import zlib

import numpy as np
import torch
from torch import Tensor

from l2o.checkpoint import CheckpointError
from l2o.rules.lstm import TENSORFLOW, CoordinatewiseLSTM

_SHAPES = {
    "lstm_1/w_gates": (22, 80), "lstm_1/b_gates": (80,), "lstm_2/w_gates": (40, 80), "lstm_2/b_gates": (80,),
    "linear/w": (20, 1), "linear/b": (1,),
}  # fmt: skip
"""The arrays of a 2×20 LSTM on two features."""


def load_tensorflow_lstm(path: str | os.PathLike) -> CoordinatewiseLSTM:
    """Return the rule of an npz file with lstm_l/w_gates, lstm_l/b_gates (l = 1, 2), linear/w and linear/b.

    Raises:
        CheckpointError: if the file is not such an npz, its shapes are not those of a 2×20 LSTM on two features, or its
            numbers are not finite.
    """
    try:
        arrays = _read(path)
        _check(arrays)
    except (OSError, ValueError, LookupError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(
            f"{path} does not hold the weights of a TensorFlow coordinate-wise LSTM: {error}"
        ) from error
    weights = {name: torch.from_numpy(np.asarray(array, np.float64)) for name, array in arrays.items()}
    state = {"output_weight": weights["linear/w"].T, "output_bias": weights["linear/b"]}
    for layer in (0, 1):
        state[f"weights.{layer}"] = _reorder(weights[f"lstm_{layer + 1}/w_gates"].T)
        state[f"biases.{layer}"] = _reorder(weights[f"lstm_{layer + 1}/b_gates"])
    rule = CoordinatewiseLSTM(TENSORFLOW)
    rule.load_state_dict(state)
    return rule


def _read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    # Opened here, because np.load leaves a damaged file open.
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _check(arrays: dict[str, np.ndarray]) -> None:
    """Compare with what is expected.

    Raises:
        ValueError: with all arrays that do not fit.
    """
    found = {name: np.shape(array) for name, array in arrays.items()}
    names = sorted(found.keys() | _SHAPES.keys())
    if wrong := {name: (_SHAPES.get(name), found.get(name)) for name in names if _SHAPES.get(name) != found.get(name)}:
        raise ValueError(f"(expected, found) shapes: {wrong}; RNNprop weights are another rule")
    if wrong := {name: array.dtype.name for name, array in arrays.items() if array.dtype.kind != "f"}:
        raise ValueError(f"expected floating-point numbers, found {wrong}")
    if wrong := [name for name, array in arrays.items() if not (np.abs(array) <= np.finfo(np.float32).max).all()]:
        raise ValueError(f"{wrong} has numbers that are not finite in float32")


def _reorder(gates: Tensor) -> Tensor:
    """Rows i, j, f, o -> i, f, o, j."""
    i, candidate, forget, output = gates.chunk(4)
    return torch.cat([i, forget, output, candidate])
