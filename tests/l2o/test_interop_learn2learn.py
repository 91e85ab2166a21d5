"""Rules inside learn2learn: its meta-gradients are this library's own, and clones remember what they should."""

import copy
import warnings

import pytest
import torch
from interop_oracle import (
    N_TASKS,
    STEPS,
    Regression,
    assert_same,
    grads_of,
    module_and_loss,
    our_meta_gradient,
    problems,
    weights,
)
from torch import nn

with warnings.catch_warnings():  # of gym and torchvision, which learn2learn imports
    warnings.simplefilter("ignore")
    l2l = pytest.importorskip("learn2learn", reason="learn2learn is not installed: make interop")

from l2o import LearnedOptimizer  # noqa: E402  (after the skip)
from l2o.interop.learn2learn import RuleTransform, RuleUpdate, detach_memory, reset  # noqa: E402
from l2o.rule import CoordinatewiseRule  # noqa: E402
from l2o.rules import SGD, Adam, AdamConfig, Momentum, MomentumConfig  # noqa: E402
from meta_train.estimators import MetaLoss, Truncated  # noqa: E402


@pytest.fixture
def rule(rule) -> CoordinatewiseRule:
    """Every rule that learn2learn takes."""
    if not isinstance(rule, CoordinatewiseRule):
        pytest.skip("learn2learn takes coordinate-wise rules")
    return rule


def gbml_and_loss(rule, task=0, **options):
    module, loss = module_and_loss(rule, task)
    return l2l.algorithms.GBML(module, RuleTransform(rule), **options), loss


def adapt(learner, loss, steps=STEPS, **options):
    for _ in range(steps):
        learner.adapt(loss(learner), **options)
    return learner


def values(module):
    return [parameter.detach().clone() for parameter in module.parameters()]


# ---------------------------------------------------------------- meta-gradients


def test_gbml_has_the_meta_gradient_of_our_second_order_unrolling(rule):
    for task in range(N_TASKS):
        gbml, loss = gbml_and_loss(rule, task)
        learner, total = gbml.clone(), torch.zeros(())
        for weight in weights("mean"):
            learner.adapt(loss(learner))
            total = total + weight * loss(learner)
        (total / N_TASKS).backward()
    assert_same(grads_of(rule), our_meta_gradient(rule, order=2))


def test_first_order_gbml_has_the_meta_gradient_of_our_first_order_unrolling(rule):
    for task in range(N_TASKS):
        gbml, loss = gbml_and_loss(rule, task, first_order=True)
        learner = adapt(gbml.clone(), loss)
        (loss(learner) / N_TASKS).backward()  # first order frees the graphs of the losses before
    assert_same(grads_of(rule), our_meta_gradient(rule, order=1, weighting="final"))


def test_parameter_update_has_the_meta_gradient_of_our_second_order_unrolling(rule):
    for task in range(N_TASKS):
        module, loss = module_and_loss(rule, task)
        update = l2l.optim.ParameterUpdate(module.parameters(), RuleTransform(rule))
        apply, total = l2l.optim.DifferentiableSGD(lr=1.0), torch.zeros(())
        for weight in weights("mean"):
            # It passes retain_graph on to autograd, whose default create_graph would be.
            apply(module, update(loss(module), list(module.parameters()), create_graph=True, retain_graph=True))
            total = total + weight * loss(module)
        (total / N_TASKS).backward()
    assert_same(grads_of(rule), our_meta_gradient(rule, order=2))


def test_learnable_optimizer_has_the_first_order_meta_gradient_of_windows_of_one_step(rule):
    module, loss = module_and_loss(rule, 0)
    optimizer = l2l.optim.LearnableOptimizer(module, RuleTransform(rule, carry_graph=False))
    start = problems(rule)
    state = type(start.state)(*(value.reshape(*value.shape[:-1], N_TASKS, -1)[..., 0, :] for value in start.state))
    trajectories = start._replace(
        tasks={name: value[:1] for name, value in start.tasks.items()},
        params={name: value[:1] for name, value in start.params.items()},
        state=state,
    )
    loss(module).backward()
    for _ in range(3):
        rule.zero_grad()
        optimizer.step()
        optimizer.zero_grad()
        loss(module).backward()
        expected = Truncated(1).estimate(rule, Regression(), trajectories, MetaLoss(), torch.ones(1), torch.Generator())
        assert_same(grads_of(rule), expected.grads)
        trajectories = expected.trajectories


def test_gradient_reaches_the_initial_weights_of_the_network(float64):
    gbml, loss = gbml_and_loss(Momentum(MomentumConfig(0.1)))
    loss(adapt(gbml.clone(), loss)).backward()
    weight, ends = gbml.module[0].weight, []
    for shift in (1e-5, -2e-5):
        with torch.no_grad():
            weight[1, 2] += shift
        ends.append(loss(adapt(gbml.clone(), loss)).item())
    assert weight.grad[1, 2].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


# ---------------------------------------------------------------- steps and memory


def test_steps_are_those_of_the_shell(rule):
    gbml, loss = gbml_and_loss(rule, lr=0.5)
    module, _ = module_and_loss(rule, 0)
    optimizer = LearnedOptimizer(module.parameters(), rule, lr=0.5)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(module).backward()
        optimizer.step()
    torch.testing.assert_close(values(adapt(gbml.clone(), loss).module), values(module), rtol=1e-12, atol=1e-13)


def test_clones_start_from_the_memory_of_their_original_and_leave_it_alone(rule):
    gbml, loss = gbml_and_loss(rule)
    first, again = (values(adapt(gbml.clone(), loss).module) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert all(update.memory is None for update in gbml.modules() if isinstance(update, RuleUpdate))
    halfway = adapt(gbml.clone(), loss, 2)
    ends = [values(adapt(halfway.clone(), loss, STEPS - 2).module) for _ in range(2)]
    assert all(torch.equal(*pair) for end in ends for pair in zip(first, end, strict=True))


def test_reset_forgets_and_detach_cuts(float64):
    rule = Adam(AdamConfig(0.1))
    module, loss = module_and_loss(rule, 0)
    update = l2l.optim.ParameterUpdate(module.parameters(), RuleTransform(rule))

    def ask():
        return update(loss(module), list(module.parameters()), create_graph=True)

    first, second = ask(), ask()
    detach_memory(update)
    third = ask()
    assert not torch.equal(first[0], second[0] * 0.9)  # it remembers
    # Behind the third update lie the memories of the first two, unless they are cut off.
    (through,) = torch.autograd.grad(third[0].sum(), rule.logit_beta1, retain_graph=True)
    reset(update)
    ask(), ask()
    (whole,) = torch.autograd.grad(ask()[0].sum(), rule.logit_beta1)
    assert not torch.isclose(through, whole)
    reset(update)
    assert all(torch.equal(*pair) for pair in zip(first, ask(), strict=True))


def test_the_rule_is_shared_and_its_parameters_count_once(rule):
    gbml, _ = gbml_and_loss(rule)
    found = list(gbml.compute_update.parameters())
    assert {id(parameter) for parameter in found} == {id(parameter) for parameter in rule.parameters()}
    assert len(found) == len(list(rule.parameters()))


def test_the_rule_itself_may_adapt_in_the_inner_loop(float64):
    rule = SGD()
    gbml, loss = gbml_and_loss(rule, adapt_transform=True)
    learner = adapt(gbml.clone(), loss, 3)
    adapted = {parameter.item() for parameter in learner.compute_update.parameters()}
    assert len(adapted) == 1 and adapted != {rule.log_lr.item()}


def test_parameters_without_a_gradient_stay(float64):
    rule = Adam(AdamConfig(0.1))
    module, loss = module_and_loss(rule, 0)
    module.register_parameter("unused", nn.Parameter(torch.ones(2)))
    module[0].bias.requires_grad_(False)
    gbml = l2l.algorithms.GBML(module, RuleTransform(rule), allow_unused=True, allow_nograd=True)
    learner = adapt(gbml.clone(), loss)
    assert torch.equal(learner.module.unused, module.unused)
    assert torch.equal(learner.module[0].bias, module[0].bias)
    assert not torch.equal(learner.module[0].weight, module[0].weight)


def test_low_precision_gradients_keep_their_precision_and_a_float32_memory():
    update = RuleTransform(Adam())(torch.ones(2, 3, dtype=torch.bfloat16))
    result = update(torch.ones(2, 3, dtype=torch.bfloat16))
    assert (result.dtype, result.shape) == (torch.bfloat16, (2, 3))
    assert update.memory.first_moment.dtype == torch.float32


def test_a_fresh_module_can_be_copied_and_has_only_the_rule_in_its_state_dict():
    update = copy.deepcopy(RuleTransform(SGD())(torch.ones(2)))
    assert list(update.state_dict()) == ["rule.log_lr"]


# ---------------------------------------------------------------- errors


def test_what_is_no_gradient_rule_is_refused():
    with pytest.raises(TypeError, match="Linear is not coordinate-wise; RuleTransform needs a CoordinatewiseRule"):
        RuleTransform(nn.Linear(1, 1))


def test_sparse_and_complex_gradients_are_refused():
    for grad in (torch.ones(2).to_sparse(), torch.ones(2, dtype=torch.complex64)):
        with pytest.raises(RuntimeError, match="need dense real gradients"):
            RuleTransform(SGD())(torch.ones(2))(grad)
