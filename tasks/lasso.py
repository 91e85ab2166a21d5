"""LASSO and sparse recovery: a sparse code x seen through a dictionary A.

    f(x) = ½‖Ax − b‖² + λ‖x‖₁,   b = Ax* + ε,   x*_i = Bernoulli(density) · N(0, 1),   ε white at a given SNR

Columns of A have unit norm; with a condition number κ its singular values are a geometric series instead, scaled to
‖A‖_F² = columns. Source: Gregor & LeCun 2010, ICML; the settings are those of Chen et al. 2018, arXiv:1808.10038, §4,
and Liu et al. 2019, ALISTA, ICLR, whose published matrix and 1,000 test codes can be used.
"""

import functools
import io
import math
import os
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from l2o.problem import Problem
from l2o.proximal import L1, Dictionary
from tasks.data_files import DataError, DataFile, data_folder, read_verified
from tasks.task import Data, Params, TaskFamily

DictionaryKind = Literal["sampled", "fixed", "published"]

PUBLISHED_SHAPE = (250, 500)
"""Of the published matrix."""
PUBLISHED_FILES = (
    DataFile("alista_A250x500.npz", 2000490, "2f110bf127aa953a4fe4e0c736126d3db4f0a61af04789d4c2bb0363227d9a18"),
    DataFile(
        "alista_xtest_n500_p10_coo.npz", 402264, "e54eaa7d94ef78a99d7a75fe0c361d84917bc956abc27af455d4bae35d95ffbd"
    ),
)
"""Matrix and test codes of VITA-Group/ALISTA at 23f3637f."""


@dataclass(frozen=True)
class Lasso(TaskFamily):
    """f(x) = ½‖Ax − b‖² + λ‖x‖₁ from x = 0, deterministic: no minibatches, no splits.

    A task is "b" (rows,) and the code behind it, "x_star" (columns,), which no loss sees without
    supervision; where each task has its own dictionary, "A" (rows, columns) too. A shared one is `shared_dictionary`.
    """

    vectorized = "axes"

    rows: int = 250
    """Measurements."""
    columns: int = 500
    """Length of x."""
    strength: float = 0.1
    """λ."""
    dictionary: DictionaryKind = "fixed"
    """One A for each task (sampled), one Gaussian A for all (fixed), or the 250×500 matrix of ALISTA (published, needs
    L2O_DATA)."""
    dictionary_seed: int = 0
    """Which fixed A."""
    condition: float | None = None
    """Condition number of A; None: that of a Gaussian matrix."""
    density: float = 0.1
    """Probability that an entry of x* is not 0."""
    snr_db: float | None = None
    """10 log₁₀(‖Ax*‖² / E‖ε‖²) of each task, in dB; None: no noise."""
    supervision: float = 0.0
    """Weight s of the distance to x* in the loss, (1 − s) f(x) + s ½‖x − x*‖²: 0 is unsupervised, 1 supervised."""

    def __post_init__(self):
        """Check the options.

        Raises:
            ValueError: if a number is out of its range, or the published matrix is asked for in another size or
                conditioning.
        """
        if min(self.rows, self.columns) < 1:
            raise ValueError(f"rows and columns must be at least 1, got {self.rows} and {self.columns}")
        if not 0 < self.strength < math.inf:
            raise ValueError(f"strength must be positive, got {self.strength}")
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be above 0 and at most 1, got {self.density}")
        if self.dictionary not in get_args(DictionaryKind):
            raise ValueError(
                f"dictionary must be one of {', '.join(get_args(DictionaryKind))}, got {self.dictionary!r}"
            )
        if self.condition is not None and not 1 <= self.condition < math.inf:
            raise ValueError(f"condition must be at least 1, or None for a Gaussian matrix, got {self.condition}")
        if self.snr_db is not None and not math.isfinite(self.snr_db):
            raise ValueError(f"snr_db must be finite, or None for no noise, got {self.snr_db}")
        if not 0 <= self.supervision <= 1:
            raise ValueError(f"supervision is a weight in [0, 1], got {self.supervision}")
        shape = (self.rows, self.columns)
        if self.dictionary == "published" and (shape != PUBLISHED_SHAPE or self.condition is not None):
            raise ValueError(f"the published matrix is {PUBLISHED_SHAPE} and has its own conditioning, got {self}")

    def sample_tasks(self, n_tasks: int, generator: torch.Generator) -> Data:
        """Return b (n_tasks, rows), x_star (n_tasks, columns), and A (n_tasks, rows, columns) if it is sampled."""
        tasks = {}
        if self.dictionary == "sampled":
            gaussian = torch.randn(n_tasks, self.rows, self.columns, generator=generator, device=generator.device)
            tasks["A"] = normalize_dictionary(gaussian, self.condition)
        shape = (n_tasks, self.columns)
        present = torch.rand(shape, generator=generator, device=generator.device) < self.density
        tasks["x_star"] = present * torch.randn(shape, generator=generator, device=generator.device)
        tasks["b"] = self._measure(tasks, generator)
        return tasks

    def published_tasks(self, generator: torch.Generator) -> Data:
        """Return the 1,000 published test codes as tasks; the generator draws the noise, if there is any.

        Raises:
            ValueError: if the dictionary is not the published one.
            DataError: if L2O_DATA is not set, or a file is missing or damaged.
        """
        if self.dictionary != "published":
            raise ValueError(f"the published codes belong to dictionary='published', got {self.dictionary!r}")
        codes = torch.from_numpy(_published()[1])
        tasks = {"x_star": codes.to(device=generator.device, dtype=torch.get_default_dtype())}
        return {**tasks, "b": self._measure(tasks, generator)}

    def init_params(self, tasks: Data, n_tasks: int, generator: torch.Generator) -> Params:
        """Return x = 0, shape (n_tasks, columns)."""
        return {"x": torch.zeros(n_tasks, self.columns, device=generator.device)}

    def loss(self, params: Params, task: Data, batch: Data) -> Tensor:
        """(1 − s) (½‖Ax − b‖² + λ‖x‖₁) + s ½‖x − x*‖², shape (), or (n_tasks,) with a leading task axis."""
        x, weight = params["x"], self.supervision
        if weight == 0:
            return self._objective(x, task)
        distance = 0.5 * (x - task["x_star"]).square().sum(-1)
        return distance if weight == 1 else (1 - weight) * self._objective(x, task) + weight * distance

    def problem(self, tasks: Data) -> Problem:
        """All tasks as one `l2o.Problem`; a shared dictionary is the same object, and so computes its norm once."""
        operator = (
            Dictionary(tasks["A"]) if "A" in tasks else _shared_operator(self, tasks["b"].dtype, tasks["b"].device)
        )
        return Problem(operator, tasks["b"], L1(self.strength))

    def shared_dictionary(self, like: Tensor) -> Tensor:
        """Return the A that all tasks share, shape (rows, columns), in the dtype and on the device of `like`.

        Raises:
            ValueError: if each task has its own.
            DataError: if it is the published one, and L2O_DATA is not set or a file is missing or damaged.
        """
        return _shared_operator(self, like.dtype, like.device).matrix

    def _objective(self, x: Tensor, task: Data) -> Tensor:
        residual = self._multiply(task, x) - task["b"]
        return 0.5 * residual.square().sum(-1) + self.strength * x.abs().sum(-1)

    def _multiply(self, task: Data, x: Tensor) -> Tensor:
        if "A" in task:
            return (task["A"] @ x.unsqueeze(-1)).squeeze(-1)
        return x @ self.shared_dictionary(x).mT

    def _measure(self, tasks: Data, generator: torch.Generator) -> Tensor:
        """Ax* + ε."""
        clean = self._multiply(tasks, tasks["x_star"])
        if self.snr_db is None:
            return clean
        noise = torch.randn(clean.shape, generator=generator, device=generator.device)
        return clean + noise * clean.square().mean(-1, keepdim=True).sqrt() * 10 ** (-self.snr_db / 20)


def problem(A: Tensor | np.ndarray, b: Tensor | np.ndarray, strength: float | Tensor) -> Problem:
    """Return the LASSO ½‖Ax − b‖² + λ‖x‖₁ of one's own data, for `l2o.solve`.

    Args:
        A: shape (m, n), or (batch, m, n) with a matrix for each item.
        b: shape (m,) or (batch, m); float16 and bfloat16 become float32.
        strength: λ > 0, a number or one entry per item, shape (batch,).

    Raises:
        ValueError: if the shapes do not fit, A has no columns, an entry is complex or not finite, or λ is not positive.
    """
    A, b, strength = (_readable(data) for data in (A, b, strength))
    A, b = torch.as_tensor(A), torch.as_tensor(b)
    dtype = functools.reduce(torch.promote_types, (A.dtype, b.dtype, torch.float32))
    if dtype.is_complex:
        raise ValueError(f"A and b must be real, got {A.dtype} and {b.dtype}")
    if A.dim() > 1 and not A.shape[-1]:
        raise ValueError(f"A must have at least one column, got shape {tuple(A.shape)}")
    A, b, strength = A.to(dtype), b.to(dtype), torch.as_tensor(strength, dtype=dtype, device=b.device)
    for name, tensor in (("A", A), ("b", b), ("strength", strength)):
        if not tensor.isfinite().all():
            raise ValueError(f"{name} must be finite, but {int((~tensor.isfinite()).sum())} of its entries are not")
    if not (strength > 0).all():
        raise ValueError(f"strength (λ) must be positive, got {float(strength.min())}")
    made = Problem(Dictionary(A), b, L1(strength))
    if strength.dim() and strength.shape != made.batch_shape:
        raise ValueError(
            f"strength must be a number or have one entry per item, {made.batch_shape}; got {tuple(strength.shape)}"
        )
    return made


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


def _readable(data: Any) -> Any:
    """What torch can take: a copy of an array that is read-only, reversed, or in another machine's byte order."""
    if not isinstance(data, np.ndarray):
        return data
    return np.require(data, data.dtype.newbyteorder("="), ["C", "W"])


@functools.lru_cache(maxsize=8)
def _shared_operator(family: Lasso, dtype: torch.dtype, device: torch.device) -> Dictionary:
    if family.dictionary == "sampled":
        raise ValueError("with dictionary='sampled' each task has its own dictionary: tasks['A']")
    # What is kept must not be an inference tensor. NumPy draws: the same numbers on every device and in every dtype,
    # and allowed inside vmap; RandomState promises never to change its stream.
    with torch.inference_mode(False), torch.no_grad():
        if family.dictionary == "published":
            A = torch.from_numpy(_published()[0])
        else:
            gaussian = np.random.RandomState(family.dictionary_seed).standard_normal((family.rows, family.columns))
            A = normalize_dictionary(torch.from_numpy(gaussian), family.condition)
        return Dictionary(A.to(device=device, dtype=dtype))


def _published() -> tuple[np.ndarray, np.ndarray]:
    """A (250, 500) in float64 and the test codes (1000, 500) in float32."""
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
