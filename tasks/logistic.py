"""Logistic regression with a weight decay for every feature: the lower level of a hyperparameter problem.

    L(W; λ) = mean_i CE(Wᵀx_i, y_i) + ½ Σ_j exp(λ_j) ‖W_j‖²,   0 = ∇L = Xᵀ(P − Y) C / n + diag(exp λ) W

λ_j is learned so that the loss on the validation rows, at the W that minimises L, is least. Source: Foo, Do & Ng 2007,
Efficient multiple hyperparameter learning for log-linear models, NeurIPS; Bengio 2000, Neural Computation 12(8).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

RealRows = Literal["breast_cancer", "digits"]


class Rows(NamedTuple):
    """Labelled rows."""

    inputs: Tensor
    """Features, shape (n, features + 1), float64; the last column is 1."""
    labels: Tensor
    """Classes, shape (n,), int64."""


@dataclass(frozen=True, eq=False)
class LogisticRegression:
    """Rows to train on, to learn hyperparameters with, to stop that, and to judge the outcome.

    Logits are X W Cᵀ. With two classes C = (0, 1)ᵀ, the usual form; with more, C is an orthonormal basis of the vectors
    with sum 0, where the minimum of the symmetric softmax lies, so that the bias too is unique without a decay.
    """

    train: Rows
    """L is the mean over these."""
    valid: Rows
    """The upper level is the mean over these."""
    stop: Rows
    """These tell when many hyperparameters begin to fit the noise of the validation rows."""
    test: Rows
    """Never looked at before the end."""
    classes: int
    """Number of classes, at least 2."""

    @property
    def features(self) -> int:
        """Number of features, without the bias."""
        return self.train.inputs.shape[1] - 1

    def zero_weights(self) -> Tensor:
        """Return W = 0, shape (features + 1, classes − 1)."""
        return self.train.inputs.new_zeros(self.features + 1, self.classes - 1)

    def logits(self, weights: Tensor, rows: Rows) -> Tensor:
        """Return X W Cᵀ, shape (n, classes)."""
        return rows.inputs @ weights @ contrasts(self.classes).to(weights).mT

    def loss(self, weights: Tensor, rows: Rows) -> Tensor:
        """Return the mean cross-entropy, in nats, shape ()."""
        return F.cross_entropy(self.logits(weights, rows), rows.labels)

    def accuracy(self, weights: Tensor, rows: Rows) -> float:
        """Return the share of rows whose class is the most probable one."""
        return float((self.logits(weights, rows).argmax(1) == rows.labels).double().mean())

    def objective(self, weights: Tensor, log_decay: Tensor) -> Tensor:
        """Return L(W; λ), shape (); λ of shape () or (features,)."""
        return self.loss(weights, self.train) + 0.5 * (self.decays(log_decay) * weights.square()).sum()

    def gradient(self, weights: Tensor, log_decay: Tensor) -> Tensor:
        """Return ∇L(W; λ), the shape of W; written out, so that its derivatives need no second differentiation."""
        inputs, labels = self.train
        surprise = self.logits(weights, self.train).softmax(1) - F.one_hot(labels, self.classes)
        data = inputs.mT @ (surprise @ contrasts(self.classes).to(weights)) / len(inputs)
        return data + self.decays(log_decay) * weights

    def decays(self, log_decay: Tensor) -> Tensor:
        """Return exp λ of every row of W, shape (features + 1, 1); 0 for the bias.

        Raises:
            ValueError: if λ is neither one number nor one for each feature.
        """
        if log_decay.shape not in ((), (self.features,)):
            raise ValueError(f"log_decay must have shape () or ({self.features},), got {tuple(log_decay.shape)}")
        return F.pad(log_decay.exp().expand(self.features), (0, 1)).unsqueeze(1)


def contrasts(classes: int) -> Tensor:
    """Return C, shape (classes, classes − 1), float64.

    Raises:
        ValueError: if there are fewer than two classes.
    """
    if classes < 2:
        raise ValueError(f"classes must be at least 2, got {classes}")
    if classes == 2:
        return torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    rows = torch.arange(classes, dtype=torch.float64).unsqueeze(1)
    columns = rows[1:].mT
    helmert = torch.where(rows < columns, 1.0, torch.where(rows == columns, -columns, 0.0))
    return helmert / (columns * (columns + 1)).sqrt()


def mostly_noise(
    sizes: tuple[int, int, int, int],
    informative: int,
    noise: int,
    generator: torch.Generator,
    classes: int = 2,
    correlation: float = 0.0,
    strength: float = 2.0,
) -> LogisticRegression:
    """Draw labels from a logistic model of the first few features; the others say nothing.

    Args:
        sizes: rows to train, to validate, to stop and to test.
        informative, noise: how many features of each kind; all are Gaussian of variance 1.
        correlation: ρ in [0, 1) of neighbouring features; that of features j and k is ρ^|j − k|. The condition number
            of their covariance comes near ((1 + ρ) / (1 − ρ))².
        strength: standard deviation of the logits, but for the correlation.

    Raises:
        ValueError: if there is no feature with information, or ρ is outside [0, 1).
    """
    if informative < 1 or noise < 0:
        raise ValueError(f"need informative ≥ 1 and noise ≥ 0, got {informative} and {noise}")
    if not 0 <= correlation < 1:
        raise ValueError(f"correlation must be in [0, 1), got {correlation}")
    n, features = sum(sizes), informative + noise
    inputs = torch.randn(n, features, generator=generator, dtype=torch.float64)
    for j in range(1, features if correlation else 0):
        inputs[:, j] = correlation * inputs[:, j - 1] + (1 - correlation**2) ** 0.5 * inputs[:, j]
    truth = torch.randn(informative, classes, generator=generator, dtype=torch.float64) * strength / informative**0.5
    chances = (inputs[:, :informative] @ truth).softmax(1)
    labels = torch.multinomial(chances, 1, generator=generator).squeeze(1)
    return _split(inputs, labels, sizes, classes)


def real_rows(name: RealRows, sizes: tuple[int, int, int], generator: torch.Generator) -> LogisticRegression:
    """Split one of scikit-learn's data sets at random; the rows that are left are those of the test.

    Args:
        name: "breast_cancer", 569 rows of 30 features in 2 classes, or "digits", 1,797 of 64 in 10.
        sizes: rows to train, to validate and to stop.

    Raises:
        ValueError: if the name is unknown, or no row is left for the test.
    """
    if name not in get_args(RealRows):
        raise ValueError(f"name must be one of {', '.join(get_args(RealRows))}, got {name!r}")
    import sklearn.datasets

    inputs, labels = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    if not (min(sizes) > 0 and sum(sizes) < len(labels)):
        raise ValueError(f"sizes must be positive and their sum below the {len(labels)} rows of {name}, got {sizes}")
    order = torch.randperm(len(labels), generator=generator)
    inputs, labels = torch.from_numpy(inputs).double()[order], torch.from_numpy(labels).long()[order]
    return _split(inputs, labels, (*sizes, len(labels) - sum(sizes)), int(labels.max()) + 1)


def _split(inputs: Tensor, labels: Tensor, sizes: tuple[int, ...], classes: int) -> LogisticRegression:
    """Cut rows into four parts, standardised by mean and deviation of the first; a constant feature becomes 0."""
    mean, deviation = inputs[: sizes[0]].mean(0), inputs[: sizes[0]].std(0)
    inputs = torch.where(deviation > 0, (inputs - mean) / torch.where(deviation > 0, deviation, 1), 0.0)
    inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)
    parts = zip(inputs.split(list(sizes)), labels.split(list(sizes)), strict=True)
    train, valid, stop, test = (Rows(x.contiguous(), y) for x, y in parts)
    return LogisticRegression(train, valid, stop, test, classes)
