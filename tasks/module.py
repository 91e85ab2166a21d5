"""Any torch.nn.Module with a loss function and data as a family of tasks.

    f(θ) = loss_fn(module_θ(inputs), targets),   θ = the module's trainable parameters (torch.func.functional_call)

A task is a fresh module from the factory and a sequence of independent minibatches. The loss is a pure function of θ
and the minibatch, which three kinds of layers are not, as torch writes them:

- BatchNorm and InstanceNorm in training mode use the statistics of the minibatch and keep no running ones; in eval
  mode they use their stored statistics, as constants.
- Active dropout is refused: randomness comes from explicit generators only.
- A layer that writes into its buffers while it runs (spectral normalisation in training mode) is refused.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from tasks.data import Minibatches, Samples
from tasks.task import SPLITS, Data, Params, Split, TaskFamily

Pairs = tuple[Tensor, Tensor] | Dataset
"""Inputs (n, …) and targets (n, …), or a Dataset whose items are such pairs without the axis n."""


class ModuleTask(TaskFamily):
    """Training a module of the user's own.

    Args:
        module: makes a fresh module on the CPU, without arguments, such as `lambda: nn.Linear(8, 1)`. Parameters with
            `requires_grad=False` and buffers are constants shared by all tasks, with the values of the first module.
        loss_fn: (output, targets) -> loss, shape (), such as `nn.functional.cross_entropy`.
        data: inputs and targets of each split ("train" at least), or of all samples, which are then dealt out to the
            splits by a fixed permutation.
        batch_size: samples in a minibatch, drawn with replacement.
        fractions: of train, inner_valid, outer_valid and test when `data` is not split yet; 0 leaves a split out.
        vectorized: whether to run all tasks at once under `torch.func.vmap`; False runs them one by one and works for
            modules that vmap refuses, such as those with `if` or `.item()` on computed values.

    Raises:
        TypeError: if `module` makes no nn.Module, or `data` is none of the above.
        ValueError: if the module has nothing to train, is random or writes into its buffers, if the loss is no scalar,
            if vmap refuses the module, or if sizes, fractions and splits do not fit.

    Example:
        >>> data = torch.randn(100, 3), torch.randn(100, 1)
        >>> family = ModuleTask(lambda: torch.nn.Linear(3, 1), torch.nn.functional.mse_loss, data, batch_size=16)
        >>> {name: tuple(p.shape) for name, p in family.init_params({}, 5, torch.Generator()).items()}
        {'weight': (5, 1, 3), 'bias': (5, 1)}
    """

    def __init__(
        self,
        module: Callable[[], nn.Module],
        loss_fn: Callable[[Tensor, Tensor], Tensor],
        data: Mapping[Split, Pairs] | Pairs,
        *,
        batch_size: int = 128,
        fractions: Sequence[float] = (0.7, 0.1, 0.1, 0.1),
        vectorized: bool = True,
    ):
        """Build the module once and try the loss on one minibatch."""
        if isinstance(module, nn.Module) or not callable(module):
            raise TypeError(f"module must be a function that makes one, such as `lambda: Net()`, got {module!r:.80}")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size}")
        self.factory, self.loss_fn, self.batch_size = module, loss_fn, batch_size
        self.vectorized = "vmap" if vectorized else "loop"
        self.data = Minibatches(_splits(data, fractions))
        self._module = _pure(self._make_modules(1, seed=0)[0])
        self._names = _trainable(self._module)
        self._constants = {
            name: tensor.detach()
            for name, tensor in (*self._module.named_parameters(), *self._module.named_buffers())
            if name not in self._names
        }
        self._try_loss()

    def init_params(self, tasks: Data, n_tasks: int, generator: torch.Generator) -> Params:
        """Return the parameters of n_tasks fresh modules, stacked; torch's global random state stays as it was."""
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        modules = [dict(module.named_parameters()) for module in self._make_modules(n_tasks, seed)]
        return {
            name: torch.stack([module[name].detach() for module in modules]).to(generator.device)
            for name in self._names
        }

    def sample_batch(self, tasks: Data, n_tasks: int, split: Split, generator: torch.Generator) -> Data:
        """Return inputs and targets, (n_tasks, batch_size, …), in the dtypes they were given in."""
        return self.data.draw(split, n_tasks, self.batch_size, generator)

    def sample_share(
        self, tasks: Data, n_tasks: int, split: Split, generator: torch.Generator, part: slice | Tensor
    ) -> Data:
        """See `TaskFamily.sample_share`."""
        return self.data.draw(split, n_tasks, self.batch_size, generator, part)

    def loss(self, params: Params, task: Data, batch: Data) -> Tensor:
        """Return loss_fn(module(inputs), targets), shape ()."""
        device = batch["inputs"].device
        if any(tensor.device != device for tensor in self._constants.values()):
            self._constants = {name: tensor.to(device) for name, tensor in self._constants.items()}
        output = torch.func.functional_call(self._module, {**self._constants, **params}, (batch["inputs"],))
        return self.loss_fn(output, batch["targets"])

    def describe(self) -> dict[str, Any]:
        """See `TaskFamily.describe`: sizes, the data's checksum, and a loss, which knows the module and loss_fn."""
        return self._description

    @cached_property
    def _description(self) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)
        params, batch = self.init_params({}, 1, generator), self.sample_batch({}, 1, "train", generator)
        with torch.no_grad():
            probe = self.loss({name: p[0] for name, p in params.items()}, {}, {name: b[0] for name, b in batch.items()})
        return {
            "parameters": {name: list(p.shape[1:]) for name, p in params.items()},
            "batch_size": self.batch_size,
            "data": self.data.checksum(),
            "loss": f"{probe.item():.3g}",
        }

    def _make_modules(self, n_modules: int, seed: int) -> list[nn.Module]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators too
            modules = [self.factory() for _ in range(n_modules)]
        if not all(isinstance(module, nn.Module) for module in modules):
            raise TypeError(f"module must make a torch.nn.Module, it made {modules[0]!r:.80}")
        return modules

    def _try_loss(self) -> None:
        """Refuse, before any training, what a pure and possibly vectorised loss cannot be."""
        generator = torch.Generator().manual_seed(0)
        params, batch = self.init_params({}, 2, generator), self.sample_batch({}, 2, "train", generator)
        first = {name: p[0] for name, p in params.items()}, {}, {name: b[0] for name, b in batch.items()}
        before = copy.deepcopy(self._constants)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            losses = [self.loss(*first) for _ in range(2)]
        written = [name for name, value in before.items() if not _same(value, self._constants[name])]
        if written:
            raise ValueError(f"the module writes into its buffers {written}; call .eval() on the layers which own them")
        if losses[0].shape != ():
            raise ValueError(f"loss_fn must return a loss of shape (), got {tuple(losses[0].shape)}; take the mean")
        if not _same(*losses):
            raise ValueError("the module gives another loss each time; randomness must come from explicit generators")
        if self.vectorized == "vmap":
            self._try_vmap(params, batch)

    def _try_vmap(self, params: Params, batch: Data) -> None:
        gradient = torch.func.vmap(torch.func.grad(lambda params, batch: self.loss(params, {}, batch)))
        try:
            gradient(params, batch)
        except RuntimeError as error:
            raise ValueError(f"torch.func.vmap refuses the module: {error}\nPass vectorized=False.") from error


def _pure(module: nn.Module) -> nn.Module:
    """Return a copy without running statistics and without dropout (the factory may hand out one shared module)."""
    module = copy.deepcopy(module)
    for name, layer in module.named_modules():
        if not layer.training:
            continue
        # nn.Dropout has p; nn.LSTM and nn.MultiheadAttention have a number called dropout.
        rate = layer.p if isinstance(layer, nn.modules.dropout._DropoutNd) else getattr(layer, "dropout", 0.0)
        if isinstance(rate, float | int) and rate > 0:
            raise ValueError(
                f"layer {name or 'module'!r} ({type(layer).__name__}) drops out at random (p = {rate}), but randomness "
                f"must come from explicit generators; set its probability to 0 or call .eval() on it in the factory"
            )
        if isinstance(layer, nn.modules.batchnorm._NormBase):
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
            layer.track_running_stats = False
    return module


def _trainable(module: nn.Module) -> list[str]:
    """Return the names of the parameters to train; tied ones count once, under their first name."""
    names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not names:
        raise ValueError(f"{type(module).__name__} has no parameter with requires_grad=True: nothing to optimise")
    return names


def _splits(data: Mapping[Split, Pairs] | Pairs, fractions: Sequence[float]) -> dict[Split, Samples]:
    if isinstance(data, Mapping):
        if "train" not in data or not set(data) <= set(SPLITS):
            raise ValueError(f"data must have the split train and no others than {SPLITS}, got {tuple(data)}")
        return {split: _samples(pairs, f"split {split}") for split, pairs in data.items()}
    samples = _samples(data, "data")
    if len(fractions) != 4 or min(fractions) < 0 or not fractions[0] > 0 or not math.isclose(sum(fractions), 1):
        raise ValueError(f"fractions must be four shares of {SPLITS} with sum 1 and train above 0, got {fractions}")
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(samples.inputs)))
    ends = [round(share * len(order)) for share in np.cumsum(fractions)[:-1]]
    pieces = dict(zip(SPLITS, order.tensor_split(ends), strict=True))
    for (split, piece), fraction in zip(pieces.items(), fractions, strict=True):
        if fraction > 0 and len(piece) == 0:
            raise ValueError(f"{len(order)} samples leave none for {split}; give more, or set its fraction to 0")
    return {split: Samples(*(values[piece] for values in samples)) for split, piece in pieces.items() if len(piece)}


def _samples(pairs: Pairs, source: str) -> Samples:
    columns: object = pairs
    if isinstance(pairs, TensorDataset):
        columns = pairs.tensors
    elif isinstance(pairs, Dataset):
        items = [pairs[i] for i in range(len(pairs))]  # type: ignore[arg-type]
        columns = [torch.stack([torch.as_tensor(value) for value in column]) for column in zip(*items, strict=True)]
    if not isinstance(columns, tuple | list) or len(columns) != 2:
        raise TypeError(f"{source} must be a pair (inputs, targets) or a Dataset of such pairs, got {columns!r:.80}")
    samples = Samples(*(torch.as_tensor(column).detach() for column in columns))
    if len(samples.inputs) != len(samples.targets) or len(samples.inputs) == 0:
        raise ValueError(
            f"{source} needs as many targets as inputs and at least one, got shapes "
            f"{tuple(samples.inputs.shape)} and {tuple(samples.targets.shape)}"
        )
    return samples


def _same(left: Tensor, right: Tensor) -> bool:
    return bool(torch.equal(left.nan_to_num(), right.nan_to_num()))
