"""LASSO and sparse recovery: a sparse code x seen through a dictionary A.

    f(x) = ½‖Ax − b‖² + λ‖x‖₁,   b = Ax* + ε,   x*_i = Bernoulli(density) · N(0, 1),   ε white at a given SNR

Columns of A have unit norm; with a condition number κ its singular values are a geometric series instead, scaled to
‖A‖_F² = columns. Source: Gregor & LeCun 2010, ICML; the settings are those of Chen et al. 2018, arXiv:1808.10038, §4,
and Liu et al. 2019, ALISTA, ICLR, whose published matrix and 1,000 test codes can be used.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from l2o.problem import Problem
from l2o.proximal import L1, Dictionary
from tasks.dictionaries import PUBLISHED_SHAPE, normalize_dictionary, read_matrix, read_published
from tasks.task import Data, Params, TaskFamily

DictionaryKind = Literal["sampled", "fixed", "published", "file"]


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
    """One A for each task (sampled), one Gaussian A for all (fixed), the 250×500 matrix of ALISTA (published, needs
    L2O_DATA), or that of `matrix` (file)."""
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
    matrix: str | None = None
    """Path of one's own A, used as it is: a .npy file, or an .npz file with the key A. It sets dictionary, rows and
    columns."""
    matrix_sha256: str | None = None
    """SHA-256 of that file; None takes any and notes it, so that a run goes on with the same matrix alone."""

    def __post_init__(self):
        """Check the options.

        Raises:
            ValueError: if a number is out of its range, the published matrix is asked for in another size or
                conditioning, or `matrix` cannot be used.
        """
        self._take_matrix()
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

    def _take_matrix(self) -> None:
        """Note kind, size and checksum of a matrix that is given, once; who knows them need not have the file."""
        if self.matrix is None:
            if self.dictionary == "file" or self.matrix_sha256 is not None:
                raise ValueError("dictionary 'file' and matrix_sha256 go with matrix, the path of a .npy or .npz file")
            return
        if self.condition is not None:
            raise ValueError(f"the matrix of a file has its own conditioning, got condition {self.condition}")
        if self.dictionary != "file" or self.matrix_sha256 is None:
            A, sha256 = read_matrix(self.matrix, self.matrix_sha256)
            facts = {"dictionary": "file", "matrix_sha256": sha256, "rows": A.shape[0], "columns": A.shape[1]}
            for name, value in facts.items():
                object.__setattr__(self, name, value)  # frozen for all others

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
        codes = torch.from_numpy(read_published()[1])
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
            DataError: if a file is missing, damaged or another, or L2O_DATA is not set for the published one.
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
        TypeError: if A or b is no dense array of numbers.
        ValueError: if the shapes do not fit, A has no columns, an entry is complex or not finite, or λ is not positive
            or no number.
    """
    A, b, strength = _tensor("A", A), _tensor("b", b), _readable(strength)
    dtype = functools.reduce(torch.promote_types, (A.dtype, b.dtype, torch.float32))
    if dtype.is_complex:
        raise ValueError(f"A and b must be real, got {A.dtype} and {b.dtype}")
    if A.dim() > 1 and not A.shape[-1]:
        raise ValueError(f"A must have at least one column, got shape {tuple(A.shape)}")
    A, b, strength = A.to(dtype), b.to(dtype), _number(strength, dtype, b.device)
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


def _tensor(name: str, data: Any) -> Tensor:
    """Return A or b as a tensor; what is no array of numbers is none."""
    try:
        tensor = torch.as_tensor(_readable(data))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a tensor or an array of numbers, got {_kind(data)}: {error}") from error
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got a sparse tensor; use {name}.to_dense()")
    return tensor


def _kind(data: Any) -> str:
    return repr(data) if data is None or isinstance(data, str) else f"a {type(data).__name__}"


def _number(strength: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return λ as a tensor; a text or nothing is none."""
    try:
        kind = torch.as_tensor(strength).dtype
        if kind is torch.bool or kind.is_complex:
            raise TypeError(f"{kind} is no real number")
        return torch.as_tensor(strength, dtype=dtype, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"strength (λ) must be a positive number, or one per item, got {strength!r}") from error


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
            A = torch.from_numpy(read_published()[0])
        elif family.matrix is not None:
            A = torch.from_numpy(_read_matrix_of(family))
        else:
            gaussian = np.random.RandomState(family.dictionary_seed).standard_normal((family.rows, family.columns))
            A = normalize_dictionary(torch.from_numpy(gaussian), family.condition)
        return Dictionary(A.to(device=device, dtype=dtype))


def _read_matrix_of(family: Lasso) -> np.ndarray:
    A = read_matrix(family.matrix or "", family.matrix_sha256)[0]
    if A.shape != (family.rows, family.columns):
        raise ValueError(f"{family.matrix} holds a matrix of shape {A.shape}, not {(family.rows, family.columns)}")
    return A
