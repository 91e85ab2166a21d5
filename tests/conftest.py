"""The lists that feed the conformance suites, and fixtures that several test files share."""

import os
import shutil
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from l2o.rule import CoordinatewiseRule, UpdateRule
from l2o.rules import (
    SGD,
    TENSORFLOW,
    Adam,
    AdamConfig,
    CoordinatewiseLSTM,
    LSTMConfig,
    Momentum,
    MomentumConfig,
    RMSprop,
    RMSpropConfig,
    ScheduledAdam,
    ScheduledAdamConfig,
    SGDConfig,
    SobolevAdam,
    SobolevAdamConfig,
    SobolevLSTM,
    SobolevLSTMConfig,
)
from tasks import MLP, Lasso, ModuleTask, NeuralArt, Quadratic, Unmixing
from tasks.task import TaskFamily

Generator = torch.Generator

if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++").split()[0], "g++", "c++", "clang++")):
    os.environ["L2O_KERNELS"] = "off"  # no compiler: everything but the kernels' own tests runs on plain torch
    collect_ignore = ["kernels", "benchmarks"]

# Name -> a function that builds the rule in the default dtype. A new rule joins by adding one line.
ALL_RULES: dict[str, Callable[[Generator], UpdateRule]] = {
    "sgd": lambda _: SGD(SGDConfig(lr=0.02)),
    "heavy-ball": lambda _: Momentum(MomentumConfig(lr=0.01, momentum=0.8)),
    "nesterov": lambda _: Momentum(MomentumConfig(lr=0.01, momentum=0.8, nesterov=True)),
    "rmsprop": lambda _: RMSprop(RMSpropConfig(lr=0.02, decay=0.9)),
    "adam": lambda _: Adam(AdamConfig(lr=0.05, beta1=0.8, beta2=0.95)),
    "scheduled-adam": lambda _: ScheduledAdam(ScheduledAdamConfig(0.05, 0.4, 0.2, 0.8, 0.6, 0.1, 0.95)),
    "sobolev-adam": lambda _: SobolevAdam(SobolevAdamConfig(0.05, cutoff=0.1, order=1.2, cutoff_power=0.3)),
    "lstm": lambda generator: CoordinatewiseLSTM(LSTMConfig(hidden_size=4), generator),
    "lstm-plain": lambda generator: CoordinatewiseLSTM(LSTMConfig(hidden_size=3, layers=1, p=None), generator),
    "sobolev-lstm": lambda generator: SobolevLSTM(SobolevLSTMConfig(3, 1, p=None, cutoff=0.2), generator),
    "lstm-tensorflow": lambda generator: CoordinatewiseLSTM(TENSORFLOW, generator),
}

# Name -> a function that builds the family in the default dtype. A new family joins by adding one line.
ALL_TASKS: dict[str, Callable[[], TaskFamily]] = {
    "quadratic": lambda: Quadratic(dim=5, start="normal"),
    "mlp": lambda: MLP("digits", hidden=(4,), batch_size=16, init_scale=0.3),
    "module": lambda: _module_task(),
    "lasso": lambda: Lasso(rows=4, columns=6, dictionary="sampled", density=0.5),
    "unmixing": lambda: Unmixing(bands=7, endmembers=4),
    "neural-art": lambda: NeuralArt(size=9, content_layer=0, style_layers=(0,)),  # before the first ReLU: smooth
}


def _module_task() -> ModuleTask:
    generator = Generator().manual_seed(3)
    inputs = torch.randn(60, 3, generator=generator)
    targets = torch.sin(inputs).sum(1, keepdim=True)
    return ModuleTask(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)),
        nn.functional.mse_loss,
        (inputs, targets),
        batch_size=8,
    )


class NormState(NamedTuple):
    """Memory of `NormalizedSGD`."""

    mean_norm: Tensor
    """Running mean of the gradient's norm, shape ()."""


class NormalizedSGD(UpdateRule):
    """Gradient descent divided by a running mean of the global gradient norm: a simple rule that mixes coordinates."""

    config = None

    def __init__(self, lr: float = 0.1, decay: float = 0.5):
        super().__init__()
        self.log_lr = nn.Parameter(torch.tensor(lr).log())
        self.logit_decay = nn.Parameter(torch.tensor(decay).logit())

    def init_state(self, params):
        return NormState(next(iter(params.values())).new_zeros(()))

    def forward(self, observation, state):
        norm = sum(grad.square().sum() for grad in observation.grads.values()).sqrt()
        decay = self.logit_decay.sigmoid()
        mean_norm = decay * state.mean_norm + (1 - decay) * norm
        factor = self.log_lr.exp() / (mean_norm + 1e-3)
        params = {name: p - factor * observation.grads[name] for name, p in observation.params.items()}
        return params, NormState(mean_norm)


@pytest.fixture
def float64():
    """Compute in float64, and go back to float32."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def generator() -> Generator:
    """A freshly seeded source of random numbers."""
    return Generator().manual_seed(1)


@pytest.fixture(params=ALL_RULES)
def make_rule(request) -> Callable[[], UpdateRule]:
    """Every rule, as a function that builds it with the same weights each time."""
    return lambda: ALL_RULES[request.param](Generator().manual_seed(2))


@pytest.fixture
def rule(float64, make_rule) -> UpdateRule:
    """Every rule, in float64."""
    return make_rule()


@pytest.fixture(params=[name for name in ALL_RULES if not name.startswith("sobolev")])
def make_coordinatewise_rule(request) -> Callable[[], CoordinatewiseRule]:
    """Every coordinate-wise rule, as `make_rule`: those that have recorded gradients."""
    rule = ALL_RULES[request.param](Generator().manual_seed(2))
    assert isinstance(rule, CoordinatewiseRule)
    return lambda: ALL_RULES[request.param](Generator().manual_seed(2))


@pytest.fixture
def coordinatewise_rule(float64, make_coordinatewise_rule) -> CoordinatewiseRule:
    """Every coordinate-wise rule, in float64."""
    return make_coordinatewise_rule()


@pytest.fixture(params=ALL_TASKS)
def family(request, float64) -> TaskFamily:
    """Every task family, in float64; neural-art where its network's weights are."""
    if request.param == "neural-art" and not os.path.isdir(os.path.join(os.environ.get("L2O_DATA", ""), "nets")):
        pytest.skip("needs L2O_DATA/nets")
    return ALL_TASKS[request.param]()


@pytest.fixture
def normalized_sgd(float64) -> UpdateRule:
    """A rule that is not coordinate-wise, in float64."""
    return NormalizedSGD()


@pytest.fixture(scope="session")
def all_rules():
    """The list itself, for tests of its completeness."""
    return ALL_RULES


@pytest.fixture(scope="session")
def all_tasks():
    """The list itself, for tests of its completeness."""
    return ALL_TASKS
