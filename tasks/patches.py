"""Patches of natural images, as sparse codes in a dictionary that was learned on other images.

    f(x) = ½‖Dx − s‖² + λ‖x‖₁,   s a patch without its mean, scaled to unit norm

Images: the 400 grey images of 180×180 pixels of Zhang et al. 2017 (DnCNN), made from the Berkeley segmentation data
set, in `$L2O_DATA/deblur/train400`. The first half of them makes the dictionary, the second half the tasks.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from l2o.problem import Problem
from l2o.proximal import L1, Dictionary
from tasks.data_files import DataFile
from tasks.dictionary_learning import learn_dictionary
from tasks.sparse_data import read_arrays
from tasks.task import Data, Params, TaskFamily

IMAGES = DataFile("train400_gray180.npz", 10523977, "7ef8ab28de05ac9e00b796e0ecbc905536e9e61a0c76dfa0b0ba1a2adbe4a885")
_SIGNALS = 20_000
"""Patches from which a dictionary is learned."""
_MIN_CONTRAST = 0.02
"""Least standard deviation of a patch, in units of the grey scale from 0 to 1: flat sky has no structure to code."""


@dataclass(frozen=True)
class ImagePatches(TaskFamily):
    """f(x) = ½‖Dx − s‖² + λ‖x‖₁ from x = 0; a task is the patch, "b" (size²,). Needs L2O_DATA."""

    vectorized = "axes"

    size: int = 8
    """Side of a patch, pixels."""
    atoms: int = 128
    """Columns of D."""
    strength: float = 0.1
    """λ, for patches of unit norm; in learning D as well."""
    dictionary_seed: int = 0
    """Draws the start and the order of learning."""

    def __post_init__(self):
        """Check the options.

        Raises:
            ValueError: if a number is out of its range.
        """
        if not 2 <= self.size <= 32:
            raise ValueError(f"size must be from 2 to 32, got {self.size}")
        if not 1 <= self.atoms <= _SIGNALS:
            raise ValueError(f"atoms must be from 1 to {_SIGNALS}, got {self.atoms}")
        if not 0 < self.strength < math.inf:
            raise ValueError(f"strength must be positive, got {self.strength}")

    def sample_tasks(self, n_tasks: int, generator: torch.Generator) -> Data:
        """Return b (n_tasks, size²), patches of the second half of the images.

        Raises:
            DataError: if L2O_DATA is not set, or the file is missing or damaged.
        """
        pool = patches(self.size, learning=False).to(generator.device, torch.get_default_dtype())
        return {"b": pool[torch.randint(len(pool), (n_tasks,), generator=generator, device=generator.device)]}

    def init_params(self, tasks: Data, n_tasks: int, generator: torch.Generator) -> Params:
        """Return x = 0, shape (n_tasks, atoms)."""
        return {"x": torch.zeros(n_tasks, self.atoms, device=generator.device)}

    def loss(self, params: Params, task: Data, batch: Data) -> Tensor:
        """½‖Dx − s‖² + λ‖x‖₁, shape (), or (n_tasks,) with a leading task axis."""
        x = params["x"]
        residual = x @ self.shared_dictionary(x).mT - task["b"]
        return 0.5 * residual.square().sum(-1) + self.strength * x.abs().sum(-1)

    def problem(self, tasks: Data) -> Problem:
        """All patches as one `l2o.Problem`."""
        return Problem(_operator(self, tasks["b"].dtype, tasks["b"].device), tasks["b"], L1(self.strength))

    def shared_dictionary(self, like: Tensor) -> Tensor:
        """Return D, shape (size², atoms), in the dtype and on the device of `like`; learned once in a process."""
        return _operator(self, like.dtype, like.device).matrix


@functools.lru_cache(maxsize=4)
def patches(size: int, learning: bool) -> Tensor:
    """Return the patches on a grid with enough contrast, without their means, of unit norm, (count, size²), float32.

    Args:
        size: side, pixels.
        learning: those of the images for the dictionary, else those for the tasks.

    Raises:
        DataError: if L2O_DATA is not set, or the file is missing or damaged.
    """
    with torch.inference_mode(False), torch.no_grad():
        images = torch.from_numpy(read_arrays("deblur", IMAGES, "train400")["images"])
        half = len(images) // 2
        images = (images[:half] if learning else images[half:]).float() / 255
        cells = images.unfold(1, size, size).unfold(2, size, size).reshape(-1, size * size)
        cells = cells - cells.mean(1, keepdim=True)
        norm = cells.norm(dim=1, keepdim=True)
        return (cells / norm.clamp(min=1e-12))[norm[:, 0] >= _MIN_CONTRAST * size]


@functools.lru_cache(maxsize=8)
def _operator(family: ImagePatches, dtype: torch.dtype, device: torch.device) -> Dictionary:
    with torch.inference_mode(False), torch.no_grad():
        return Dictionary(_learned(family).to(device=device, dtype=dtype))


@functools.lru_cache(maxsize=4)
def _learned(family: ImagePatches) -> Tensor:
    generator = torch.Generator().manual_seed(family.dictionary_seed)
    pool = patches(family.size, learning=True)
    chosen = pool[torch.randperm(len(pool), generator=generator)[:_SIGNALS]]
    return learn_dictionary(chosen.double(), family.atoms, family.strength, generator)
