"""Unknowns of any structure as one matrix, one row per item: what the loops and linear solvers compute on.

An unknown u is a tensor, or a (named) tuple, list or dict of tensors, each of shape (batch…, own axes…) with the same
batch axes. Packed it has shape (items, coordinates).
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

Unknown = Any
"""A tensor, or a (named) tuple, list or dict of tensors."""


class Packing:
    """The structure of an unknown: u ↔ matrix of shape (items, coordinates); both ways carry gradients.

    Args:
        like: an unknown.
        batch_axes: leading axes that number the items, the same for all its tensors; 0: everything is one item.

    Raises:
        TypeError: if it holds something else than real floating-point tensors.
        ValueError: if it holds no tensor, or its tensors differ in dtype, device or batch axes.
    """

    def __init__(self, like: Unknown, batch_axes: int = 0):
        leaves, self._structure = tree_flatten(like)
        _check_leaves(leaves, batch_axes)
        self._shapes = [tuple(leaf.shape) for leaf in leaves]
        self._sizes = [torch.Size(shape[batch_axes:]).numel() for shape in self._shapes]
        self.batch_shape = self._shapes[0][:batch_axes]
        self.dtype = leaves[0].dtype

    def pack(self, u: Unknown) -> Tensor:
        """Return u as a matrix.

        Raises:
            ValueError: if it has another structure, other shapes, or a wider dtype than the unknown this was made for.
        """
        leaves, structure = tree_flatten(u)
        shapes = [tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in leaves]
        if structure != self._structure or shapes != self._shapes:
            raise ValueError(f"the step must give what it takes, tensors of shapes {self._shapes}; it gave {shapes}")
        wide = [leaf.dtype for leaf in leaves if torch.promote_types(leaf.dtype, self.dtype) != self.dtype]
        if wide:
            raise ValueError(f"the step takes {self.dtype} and gives {wide[0]}; give the start as {wide[0]} too")
        items = torch.Size(self.batch_shape).numel()
        rows = [leaf.to(self.dtype).reshape(items, size) for leaf, size in zip(leaves, self._sizes, strict=True)]
        return rows[0] if len(rows) == 1 else torch.cat(rows, 1)

    def unpack(self, matrix: Tensor) -> Unknown:
        """Return the unknown of a matrix."""
        columns = matrix.split(self._sizes, 1) if len(self._sizes) > 1 else [matrix]
        leaves = [column.reshape(shape) for column, shape in zip(columns, self._shapes, strict=True)]
        return tree_unflatten(leaves, self._structure)


def _check_leaves(leaves: list[Any], batch_axes: int) -> None:
    if not leaves:
        raise ValueError("the start holds no tensor")
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            got = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
            raise TypeError(f"the start must hold real floating-point tensors only, got {got}")
    if len({(leaf.dtype, leaf.device) for leaf in leaves}) > 1:
        raise ValueError(f"all tensors of the start must share dtype and device, got {[leaf.dtype for leaf in leaves]}")
    shapes = [tuple(leaf.shape) for leaf in leaves]
    if any(len(shape) < batch_axes for shape in shapes) or len({shape[:batch_axes] for shape in shapes}) > 1:
        raise ValueError(f"all tensors of the start must share their first batch_axes={batch_axes} axes, got {shapes}")
