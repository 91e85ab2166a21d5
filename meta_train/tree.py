"""Nested dicts and NamedTuples of tensors as one flat dict of names, which is what safetensors can hold."""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def flatten_tree(tree: Any, prefix: str) -> dict[str, Tensor]:
    """Return the tensors of a tree by path, such as "trajectories/params/0.weight"."""
    if isinstance(tree, Tensor):
        return {prefix: tree}
    flat: dict[str, Tensor] = {}
    for name, branch in _branches(tree).items():
        flat |= flatten_tree(branch, f"{prefix}/{name}")
    return flat


def rebuild_tree(template: Any, flat: dict[str, Tensor], prefix: str) -> Any:
    """Return a tree of the template's form with the tensors that `flatten_tree` listed.

    The template gives the order of names too: a coordinate-wise rule's memory is laid out in the order of the params,
    while a file may sort them.

    Raises:
        KeyError: if a tensor is missing.
        ValueError: if a tensor's shape is not the template's.
    """
    if isinstance(template, Tensor):
        if flat[prefix].shape != template.shape:
            raise ValueError(f"{prefix} has shape {tuple(flat[prefix].shape)}, expected {tuple(template.shape)}")
        return flat[prefix]
    branches = {name: rebuild_tree(branch, flat, f"{prefix}/{name}") for name, branch in _branches(template).items()}
    return branches if isinstance(template, dict) else type(template)(**branches)


def map_tree(function: Callable[..., Tensor], tree: Any, prefix: str, *others: Any) -> Any:
    """Return a tree of function(path, tensor, …), applied to a tree and others of its form."""
    if isinstance(tree, Tensor):
        return function(prefix, tree, *others)
    rest = [_branches(other) for other in others]
    branches = {
        name: map_tree(function, branch, f"{prefix}/{name}", *(other[name] for other in rest))
        for name, branch in _branches(tree).items()
    }
    return branches if isinstance(tree, dict) else type(tree)(**branches)


def _branches(tree: Any) -> dict[str, Any]:
    return tree if isinstance(tree, dict) else tree._asdict()
