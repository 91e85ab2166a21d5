"""Doctest collection must not import the GPU kernels where triton is not installed; `-m gpu` skips without a GPU."""

import importlib.util

import pytest
import torch

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["l2o/kernels/lstm_triton*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is none; without `-m gpu` it is not chosen at all."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
