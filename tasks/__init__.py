"""What is optimised: distributions of optimizees with data splits.

`TaskFamily` is the contract; each family is one file. A new family joins by adding one line to `TASKS`, which the
command line and the conformance tests read.
"""

from tasks.data import DataError, Samples, load_dataset
from tasks.lasso import Lasso
from tasks.mlp import MLP
from tasks.module import ModuleTask
from tasks.neural_art import NeuralArt
from tasks.patches import ImagePatches
from tasks.quadratic import Quadratic
from tasks.sparse_data import real_problem
from tasks.task import SPLITS, Data, Params, Split, TaskFamily
from tasks.unmixing import Unmixing

TASKS: dict[str, type[TaskFamily]] = {
    "quadratic": Quadratic,
    "mlp": MLP,
    "lasso": Lasso,
    "unmixing": Unmixing,
    "neural-art": NeuralArt,
}
"""Families that a frozen configuration describes, by name; a new one joins by adding one line."""

__all__ = [
    "MLP",
    "SPLITS",
    "TASKS",
    "Data",
    "DataError",
    "ImagePatches",
    "Lasso",
    "ModuleTask",
    "NeuralArt",
    "Params",
    "Quadratic",
    "Samples",
    "Split",
    "TaskFamily",
    "Unmixing",
    "load_dataset",
    "real_problem",
]
