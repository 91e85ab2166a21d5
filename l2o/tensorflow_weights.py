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


def load_tensorflow_lstm(path: str | os.PathLike) -> CoordinatewiseLSTM:
    """Return the rule of an npz file with lstm_l/w_gates, lstm_l/b_gates (l = 1, 2), linear/w and linear/b.

    Raises:
        CheckpointError: if the file is not such an npz, or its shapes are not those of a 2×20 LSTM on two features.
    """
    try:
        # Opened here, because np.load leaves a damaged file open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        state = {"output_weight": weights.pop("linear/w").T, "output_bias": weights.pop("linear/b")}
        for layer in (0, 1):
            state[f"weights.{layer}"] = _reorder(weights.pop(f"lstm_{layer + 1}/w_gates").T)
            state[f"biases.{layer}"] = _reorder(weights.pop(f"lstm_{layer + 1}/b_gates"))
        if weights:
            raise ValueError(f"unexpected arrays {sorted(weights)}; RNNprop weights are another rule")
        rule = CoordinatewiseLSTM(TENSORFLOW)
        rule.load_state_dict(state)
    except (
        OSError,
        ValueError,
        LookupError,
        EOFError,
        TypeError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise CheckpointError(
            f"{path} does not hold the weights of a TensorFlow coordinate-wise LSTM: {error}"
        ) from error
    return rule


def _reorder(gates: Tensor) -> Tensor:
    """Rows i, j, f, o -> i, f, o, j."""
    i, candidate, forget, output = gates.chunk(4)
    return torch.cat([i, forget, output, candidate])
