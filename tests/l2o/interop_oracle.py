"""A small deterministic family, its meta-gradient by this library's engine, and the same family for other libraries."""

import torch
from torch import Tensor, nn

from l2o.rule import CoordinatewiseRule
from meta_train.estimators import MetaLoss, Truncated
from meta_train.unroll import Trajectories, start
from tasks.task import TaskFamily

N_TASKS, STEPS = 2, 5


def make_module() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


class Regression(TaskFamily):
    """A 3-4-1 network on eight samples, all of them in every step."""

    def sample_tasks(self, n_tasks, generator):
        inputs = torch.randn(n_tasks, 8, 3, generator=generator)
        return {"inputs": inputs, "targets": torch.sin(inputs).sum(2, keepdim=True)}

    def init_params(self, tasks, n_tasks, generator):
        shapes = {name: tensor.shape for name, tensor in make_module().named_parameters()}
        return {name: 0.5 * torch.randn(n_tasks, *shape, generator=generator) for name, shape in shapes.items()}

    def loss(self, params, task, batch):
        hidden = torch.tanh(nn.functional.linear(task["inputs"], params["0.weight"], params["0.bias"]))
        outputs = nn.functional.linear(hidden, params["2.weight"], params["2.bias"])
        return (outputs - task["targets"]).square().mean()


def problems(rule: CoordinatewiseRule) -> Trajectories:
    """The problems that every library solves."""
    return start(rule, Regression(), N_TASKS, torch.Generator().manual_seed(7))


def weights(weighting: str) -> Tensor:
    return MetaLoss(weighting).weights(0, STEPS, STEPS)  # pyright: ignore


def our_meta_gradient(rule: CoordinatewiseRule, order: int, weighting: str = "mean") -> dict[str, Tensor]:
    estimator, meta_loss = Truncated(order), MetaLoss(weighting)  # pyright: ignore
    arguments = (rule, Regression(), problems(rule), meta_loss, weights(weighting), torch.Generator())
    return estimator.estimate(*arguments).grads


def module_and_loss(rule: CoordinatewiseRule, task: int):
    """Return a network at one problem's start and its loss as a function of the network."""
    trajectories, module = problems(rule), make_module()
    module.load_state_dict({name: tensor[task] for name, tensor in trajectories.params.items()})
    data = {name: tensor[task] for name, tensor in trajectories.tasks.items()}
    return module, lambda network: (network(data["inputs"]) - data["targets"]).square().mean()


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To 1e-12 of the largest entry: only the order of sums differs."""
    scale = max(tensor.abs().max().item() for tensor in expected.values())
    assert scale > 0 and found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-12 * scale)


def grads_of(rule: nn.Module) -> dict[str, Tensor]:
    """The gradients that backward left in a rule."""
    zero = {name: torch.zeros_like(parameter) for name, parameter in rule.named_parameters()}
    return zero | {name: p.grad for name, p in rule.named_parameters() if p.grad is not None}
