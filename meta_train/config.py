"""What a training run is: a frozen dataclass, and the presets of the command line."""

import dataclasses
import functools
import inspect
import operator
import warnings
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from l2o.checkpoint import load_rule
from l2o.rule import CoordinatewiseRule, UpdateRule
from l2o.rules import MODEL_BASED, RULES, ALISTAConfig, LSTMConfig, SobolevRule
from meta_train.config_checks import check_estimator, check_ranges, check_rule, rule_type
from meta_train.estimators import ESTIMATORS, Estimator, MetaLoss
from meta_train.estimators.recorded import RecordDtype
from meta_train.lengths import Lengths
from tasks import MLP, Lasso, NeuralArt, Quadratic
from tasks.task import TaskFamily

RuleConfig = functools.reduce(
    operator.or_,
    (Annotated[config, tyro.conf.subcommand(name)] for name, (_, config) in (RULES | MODEL_BASED).items()),
)
"""Any config in `RULES` or `MODEL_BASED`; a subcommand each on the command line."""

EstimatorName = Literal[("auto", *ESTIMATORS)]  # pyright: ignore (the names are in a table)


@dataclass(frozen=True)
class TrainConfig:
    """A meta-training run: which tasks, which rule, how the loop is differentiated, how long."""

    task: TaskFamily
    """Distribution of optimizees."""
    rule: RuleConfig = field(default_factory=LSTMConfig)  # pyright: ignore (a union made from a table)
    """Config of the update rule."""
    meta_loss: MetaLoss = field(default_factory=MetaLoss)
    """What the meta-loss counts and on which data."""
    estimator: EstimatorName = "auto"  # pyright: ignore (see above)
    """Meta-gradient estimator; auto takes recorded for first order and coordinate-wise rules, else truncated, which is
    autograd. Evolution strategies need no derivatives of the loop: es (biased if truncation < horizon), pes and nres
    (unbiased)."""
    order: Literal[1, 2] = 1
    """1: inner gradients detached, as in the paper; 2: differentiate through them. Of no meaning to es, pes, nres."""
    sigma: float = 0.01
    """Scale of the perturbations of es, pes and nres, units of the rule's weights."""
    checkpoint_steps: int | None = None
    """Inner steps whose graph is held at a time, by the truncated estimator; None holds the whole window's."""
    compile_steps: int | None = None
    """Inner steps, at most, that become one compiled graph; for the truncated estimator of order 2. None: eager."""
    record_dtype: RecordDtype | None = None
    """How recorded gradients are stored; None keeps their precision. bfloat16 halves the memory."""
    horizon: int = 100
    """Inner steps T of a trajectory."""
    truncation: int = 20
    """Inner steps K between two outer steps; the last window of a trajectory may be shorter."""
    lengths: Lengths = field(default_factory=Lengths)
    """Whether horizon and truncation are fixed, or the most of a schedule."""
    n_tasks: int = 8
    """Trajectories unrolled side by side."""
    stagger: int = 1
    """Batches that the tasks are split into, evenly spread over the horizon: an outer step then sees windows from all
    parts of a trajectory."""
    outer_steps: int = 1000
    """Updates of the rule's weights."""
    outer_lr: float = 0.003
    """Adam's step size for the rule's weights."""
    matrix_lr: float = 1.0
    """Factor of outer_lr for weights that are matrices; below 1 where a rule has matrices and scalars."""
    final_outer_lr: float = 0.01
    """Fraction of outer_lr reached at the end of a cosine decay; 1 keeps it constant."""
    average: float = 0.0
    """Decay per outer step of a moving average of the rule's weights, which is then validated and kept: it evens out
    the noise of the meta-gradients. 0 keeps the weights themselves."""
    clip: float | None = 1.0
    """Largest norm of the meta-gradient; None for no clipping."""
    divergence: float = 1e4
    """A trajectory whose loss exceeds this many times its first one is left out."""
    validate_every: int = 100
    """Outer steps between validations on the fixed outer_valid problems."""
    valid_tasks: int = 64
    """Problems in the validation."""
    checkpoint_every: int = 100
    """Outer steps between checkpoints; an interruption loses at most these."""
    start_from: str | None = None
    """Shipped name, checkpoint or run directory whose weights to start from; None draws fresh ones. Sizes must
    be the same, constants such as an LSTM's scale need not; a Sobolev rule may start from the rule that it filters."""
    learn: Literal["weights", "gains"] = "weights"
    """gains: factors and shifts of an LSTM's gates alone, some two dozen numbers, for which evolution strategies need
    few tasks; they refine the LSTM of start_from, and end up in its weights."""
    seed: int = 0
    """Seed of everything that is drawn."""

    def __post_init__(self):
        """Check the ranges.

        Raises:
            ValueError: if a count is below one, a size is not positive, the options contradict each other, the rule
                has no weights or no gains to learn, or it steps on a structure that the tasks have not.
        """
        check_ranges(self)
        check_estimator(self)
        check_rule(self)

    def build_estimator(self) -> Estimator:
        """Return the meta-gradient estimator."""
        name = self.estimator
        if name == "auto":
            rule = rule_type(self.rule)
            coordinatewise = rule is not None and issubclass(rule, CoordinatewiseRule)
            name = "recorded" if self.order == 1 and coordinatewise else "truncated"
        chosen = ESTIMATORS[name]
        return chosen(**{field.name: getattr(self, field.name) for field in dataclasses.fields(chosen)})

    def build_rule(self, generator) -> UpdateRule:
        """Return the rule with fresh weights, or with those of `start_from`; if its config was another, a warning.

        Raises:
            ValueError: if `start_from` cannot be loaded or holds a rule of another kind or weights of other shapes, or
                if the config's type is not in `RULES`.
        """
        if self.start_from is None:
            return self._fresh_rule(generator)
        rule = load_rule(self.start_from)
        if rule.config == self.rule:
            return rule
        told = f"{self.start_from} holds a rule with {rule.config}; this run asks for {self.rule}"
        again = self._fresh_rule(generator)
        part: UpdateRule = again
        if isinstance(again, SobolevRule) and type(again.coordinates) is type(rule):
            part = again.coordinates
        if type(part) is not type(rule) or _shapes(part) != _shapes(rule):
            raise ValueError(f"{told}; ask for its kind and sizes (rule:…), or start from another")
        part.load_state_dict(rule.state_dict())
        warnings.warn(f"{told}: its weights go on with these constants", stacklevel=1)  # once, though built twice
        return again

    def _fresh_rule(self, generator) -> UpdateRule:
        make = rule_type(self.rule)
        if make is None:
            raise ValueError(f"{type(self.rule).__name__} has no name in l2o.rules.RULES, which lists {sorted(RULES)}")
        # A rule that starts from random weights takes a generator, one with weights for a matrix the matrix.
        wanted = inspect.signature(make).parameters
        options: dict[str, Any] = {"generator": generator} if "generator" in wanted else {}
        if "dictionary" in wanted:
            options["dictionary"] = self._dictionary()
        return make(self.rule, **options)  # pyright: ignore (the contract says nothing of how a rule is built)

    def _dictionary(self) -> Tensor:
        """Return the matrix that all tasks share."""
        if not isinstance(self.task, Lasso):
            raise ValueError(f"{type(self.rule).__name__} starts from the matrix of Lasso tasks, got {self.task}")
        return self.task.shared_dictionary(torch.empty(0))


def _shapes(rule: UpdateRule) -> dict[str, torch.Size]:
    """Return the shape of every tensor of a rule by its name."""
    return {name: tensor.shape for name, tensor in rule.state_dict().items()}


_SPARSE = TrainConfig(
    Lasso(dictionary="published", supervision=1.0),
    ALISTAConfig(),
    meta_loss=MetaLoss("final"),
    horizon=16,
    truncation=16,
    lengths=Lengths("layerwise"),
    n_tasks=128,
    outer_steps=1000,
    outer_lr=0.02,
    valid_tasks=1000,
    validate_every=50,
    checkpoint_every=250,
)
_CLASSIFIER_LSTM = LSTMConfig(p=10.0, scale=0.1, forget_bias=1.0)

PRESETS: dict[str, TrainConfig] = {
    "quadratic": TrainConfig(
        Quadratic(),
        LSTMConfig(p=None, scale=0.1),
        n_tasks=128,
        outer_steps=20_000,
        valid_tasks=4096,
        validate_every=500,
        checkpoint_every=500,
    ),
    "mnist": TrainConfig(MLP("mnist"), _CLASSIFIER_LSTM, n_tasks=1, outer_steps=6000, outer_lr=0.01, valid_tasks=24),
    "digits": TrainConfig(MLP("digits"), _CLASSIFIER_LSTM, n_tasks=4, outer_steps=800, outer_lr=0.005, valid_tasks=32),
    "lasso": TrainConfig(
        Lasso(25, 50, strength=0.005, dictionary="sampled"),
        LSTMConfig(p=10.0, scale=0.1, forget_bias=1.0),
        meta_loss=MetaLoss(measure="log"),
        horizon=400,
        n_tasks=64,
        stagger=4,
        outer_steps=8000,
        valid_tasks=128,
        validate_every=500,
        checkpoint_every=500,
    ),
    "neural-art": TrainConfig(
        NeuralArt(styles=("starry_night_google",), photographs="art"),
        LSTMConfig(p=4.0, scale=0.1, forget_bias=1.0),  # most gradients lie below e⁻⁴, where the input is linear
        meta_loss=MetaLoss(measure="log"),
        horizon=128,
        truncation=32,
        lengths=Lengths("growing", min_horizon=32, min_truncation=16),
        n_tasks=2,
        stagger=2,
        outer_steps=600,
        outer_lr=0.01,
        average=0.9,
        valid_tasks=8,
        validate_every=100,
        checkpoint_every=50,
    ),
    "sparse": _SPARSE,
    "sparse-snr20": dataclasses.replace(_SPARSE, task=dataclasses.replace(_SPARSE.task, snr_db=20.0)),  # pyright: ignore
}
"""Starting points of `l2o train`; every field can be overridden."""
