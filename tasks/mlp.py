"""Multilayer perceptrons that classify images (Andrychowicz et al. 2016, arXiv:1606.04474, §3.2).

    f(θ) = mean over a minibatch of −log softmax(h_L)[target],   h_0 = pixels in [0, 1],
    h_{l+1} = φ(W_l h_l + b_l) for l < L − 1,   h_L = W_{L−1} h_{L−1} + b_{L−1}

The paper's base network is MNIST 784-20-10 with sigmoids and minibatches of 128. As in its published code, weights
*and* biases start from N(0, 0.01²).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from tasks.data import DATASETS, IMAGE_SHAPE, PIXEL_MAX, DatasetName, Minibatches, Pools, load_dataset
from tasks.task import Data, Params, Split, TaskFamily

N_CLASSES = 10
"""Of all three data sets."""

Activation = Literal["sigmoid", "relu", "tanh", "elu"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
    "tanh": torch.tanh,
    "elu": F.elu,
}
_BACKWARD: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigmoid": torch.ops.aten.sigmoid_backward.default,
    "tanh": torch.ops.aten.tanh_backward.default,
    "relu": lambda cotangent, result: torch.ops.aten.threshold_backward.default(cotangent, result, 0),
}
"""Name -> function of φ's cotangent and result; those that autograd takes."""
_LOG_SOFTMAX_BACKWARD = torch.ops.aten._log_softmax_backward_data.default


@dataclass(frozen=True)
class MLP(TaskFamily):
    """Image classification by an MLP: a task is a random start and a sequence of independent minibatches, drawn from
    the whole split or from a part of it that is the task's own.

    Parameters of layer l are "l.weight" (out, in) and "l.bias" (out,). The data set is loaded on first use.
    """

    vectorized = "axes"

    dataset: DatasetName = "digits"
    """digits (8×8, embedded), mnist (28×28) or cifar10 (3×32×32, needs L2O_DATA)."""
    hidden: tuple[int, ...] = (20,)
    """Units of each hidden layer; empty for softmax regression."""
    activation: Activation = "sigmoid"
    """φ, after each hidden layer."""
    batch_size: int = 128
    """Samples in a minibatch, drawn with replacement."""
    init_scale: float | None = 0.01
    """Standard deviation of all initial parameters; None: torch.nn.Linear's U(±1/√fan_in)."""
    samples: int | None = None
    """Samples of a split that a task has, a random part of it, or all if it has no more; None: all. A task with few
    samples sees each of them several times."""

    def __post_init__(self):
        """Check the options.

        Raises:
            ValueError: if a name is unknown, a size is below one or init_scale is not positive.
        """
        if self.dataset not in DATASETS:
            raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, got {self.dataset!r}")
        if self.activation not in get_args(Activation):
            raise ValueError(f"activation must be one of {', '.join(get_args(Activation))}, got {self.activation!r}")
        if not isinstance(self.hidden, tuple) or not all(isinstance(n, int) and n >= 1 for n in self.hidden):
            raise ValueError(f"hidden must be a tuple of sizes of at least 1, such as (20,), got {self.hidden}")
        for name, count in (("batch_size", self.batch_size), ("samples", self.samples)):
            if not (name == "samples" and count is None) and (not isinstance(count, int) or count < 1):
                raise ValueError(f"{name} must be an integer of at least 1, got {count}")
        if self.init_scale is not None and not 0 < self.init_scale < math.inf:
            raise ValueError(f"init_scale must be positive, or None for torch.nn.Linear's start, got {self.init_scale}")

    @property
    def layer_sizes(self) -> tuple[int, ...]:
        """Width of every layer from the pixels to the classes."""
        return (math.prod(IMAGE_SHAPE[self.dataset]), *self.hidden, N_CLASSES)

    @cached_property
    def data(self) -> Minibatches:
        """The splits, loaded on first use."""
        return Minibatches(load_dataset(self.dataset), PIXEL_MAX[self.dataset])

    def sample_tasks(self, n_tasks: int, generator: torch.Generator) -> Data:
        """Return where each task's own samples begin, a fraction of the split, shape (n_tasks,); or nothing."""
        if self.samples is None:
            return {}
        return {"pool_start": torch.rand(n_tasks, generator=generator, device=generator.device)}

    def init_params(self, tasks: Data, n_tasks: int, generator: torch.Generator) -> Params:
        """Return l.weight (n_tasks, out, in) and l.bias (n_tasks, out) for every layer l."""
        params = {}
        for layer, (n_in, n_out) in enumerate(zip(self.layer_sizes, self.layer_sizes[1:], strict=False)):
            params[f"{layer}.weight"] = self._draw((n_tasks, n_out, n_in), n_in, generator)
            params[f"{layer}.bias"] = self._draw((n_tasks, n_out), n_in, generator)
        return params

    def sample_batch(self, tasks: Data, n_tasks: int, split: Split, generator: torch.Generator) -> Data:
        """Return inputs (n_tasks, batch_size, n_pixels) in [0, 1] and targets (n_tasks, batch_size), int64."""
        return self.sample_share(tasks, n_tasks, split, generator, slice(None))

    def sample_share(
        self, tasks: Data, n_tasks: int, split: Split, generator: torch.Generator, part: slice | Tensor
    ) -> Data:
        """See `TaskFamily.sample_share`."""
        pools = None if self.samples is None else Pools(tasks["pool_start"], self.samples)
        batch = self.data.draw(split, n_tasks, self.batch_size, generator, part, pools)
        return {"inputs": batch["inputs"].flatten(2), "targets": batch["targets"]}

    def logits(self, params: Params, inputs: Tensor) -> Tensor:
        """Return h_L, shape (…, batch_size, 10), of inputs (…, batch_size, n_pixels)."""
        return self._columns(params, inputs).mT

    def loss(self, params: Params, task: Data, batch: Data) -> Tensor:
        """Mean cross-entropy in nats, shape (); with a leading task axis on everything, without vmap, (n_tasks,)."""
        log_probability = torch.log_softmax(self._columns(params, batch["inputs"]), -2)
        # gather: a tenth faster under vmap than torch.nn.functional.cross_entropy
        return -log_probability.gather(-2, batch["targets"].unsqueeze(-2)).mean((-2, -1))

    def evaluator(self, params: Params, tasks: Data) -> Callable[[Data, Tensor], Tensor] | None:
        """Backpropagation by hand: the operations that autograd takes, and its bits; see `TaskFamily.evaluator`.

        On MNIST two thirds of autograd's time.
        """
        if self.activation not in _BACKWARD:
            return None
        weights, biases = ([params[f"{i}.{name}"] for i in range(len(self.hidden) + 1)] for name in ("weight", "bias"))
        shapes = [tensor.shape for tensor in params.values()]
        sizes = [tensor.numel() for tensor in params.values()]

        def evaluate(batch: Data, out: Tensor) -> Tensor:
            d_params = [piece.view(shape) for piece, shape in zip(out.split(sizes), shapes, strict=True)]
            return self._backpropagate(weights, biases, batch, d_params[::2], d_params[1::2])

        return evaluate

    @torch.no_grad()
    def _backpropagate(
        self, weights: list[Tensor], biases: list[Tensor], batch: Data, d_weights: list[Tensor], d_biases: list[Tensor]
    ) -> Tensor:
        """Return the losses, shape (n_tasks,), and write their gradients."""
        layers = [batch["inputs"].mT]
        for weight, bias in zip(weights, biases, strict=True):
            if len(layers) > 1:
                layers[-1] = _ACTIVATIONS[self.activation](layers[-1])
            layers.append(torch.bmm(weight, layers[-1]).add_(bias.unsqueeze(-1)))
        targets, log_probability = batch["targets"].unsqueeze(-2), torch.log_softmax(layers.pop(), -2)
        losses = -log_probability.gather(-2, targets).mean((-2, -1))
        cotangent = torch.zeros_like(log_probability).scatter_(-2, targets, -1 / targets.shape[-1])
        cotangent = _LOG_SOFTMAX_BACKWARD(cotangent, log_probability, -2, cotangent.dtype)
        for i in reversed(range(len(weights))):
            torch.bmm(cotangent, layers[i].mT, out=d_weights[i])
            torch.sum(cotangent, -1, out=d_biases[i])
            if i > 0:
                cotangent = _BACKWARD[self.activation](torch.bmm(weights[i].mT, cotangent), layers[i])
        return losses

    def accuracy(self, params: Params, batch: Data) -> Tensor:
        """Fraction of the minibatch classified correctly, shape (); axes as in `loss`."""
        predicted = self.logits(params, batch["inputs"]).argmax(-1)
        return (predicted == batch["targets"]).to(batch["inputs"].dtype).mean(-1)

    def _columns(self, params: Params, inputs: Tensor) -> Tensor:
        """Return h_L with a column per sample, shape (…, 10, batch_size).

        Layers are narrow and minibatches wide: BLAS takes three quarters of the time of h Wᵀ for W h, for its gradient
        and for the gradient of that.
        """
        hidden = inputs.mT
        for layer in range(len(self.hidden) + 1):
            if layer > 0:
                hidden = _ACTIVATIONS[self.activation](hidden)
            hidden = params[f"{layer}.weight"] @ hidden + params[f"{layer}.bias"].unsqueeze(-1)
        return hidden

    def _draw(self, shape: tuple[int, ...], n_in: int, generator: torch.Generator) -> Tensor:
        if self.init_scale is not None:
            return self.init_scale * torch.randn(shape, generator=generator, device=generator.device)
        uniform = torch.rand(shape, generator=generator, device=generator.device)
        return (2 * uniform - 1) / math.sqrt(n_in)
