"""Clauses on what is built upon optimizers: schedulers, gradient scaling and clipping, averaging, compilation."""

import copy

import pytest
import torch
from torch.optim import lr_scheduler, swa_utils

from conformance.contract import Net, backward, parameter, train, values

SCHEDULERS = {
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(opt, 0.5, 2), lr_scheduler.ExponentialLR(opt, 0.5)]
    ),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, 0.5, 2),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 4),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.1, 2, cycle_momentum=False),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.5),
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 1 / (1 + epoch)),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, 0.25, 1.0, 3),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda epoch: 0.5),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [1, 3], 0.5),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.2, total_steps=10, cycle_momentum=False),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, 5, 2.0),
    "ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, factor=0.5, patience=1),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.ConstantLR(opt, 0.5, 2), lr_scheduler.ExponentialLR(opt, 0.5)], [2]
    ),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 2, 0.5),
    "SWALR": lambda opt: swa_utils.SWALR(opt, 0.01, 3),
}


def test_every_scheduler_of_torch_is_tried():
    """The list above is complete; one that torch adds later joins it."""
    known = {name for name in lr_scheduler.__all__ if name not in ("LRScheduler",)}
    assert known - set(SCHEDULERS) == set()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_set_the_lr(make, name):
    """A scheduler's lr is that of the steps: it equals setting the same values by hand."""
    scheduled, by_hand = Net(), Net()
    optimizer, other = make(scheduled.parameters()), make(by_hand.parameters())
    scheduler = SCHEDULERS[name](optimizer)
    rates = []
    for step in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        train(scheduled, optimizer, [step])
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
    for step, rate in enumerate(rates):
        other.param_groups[0]["lr"] = rate
        train(by_hand, other, [step])
    assert len(set(rates)) > 1
    assert torch.equal(values(scheduled), values(by_hand))


def test_a_scheduler_resumes_with_its_optimizer(make):
    """Optimizer and scheduler are restored together."""
    model = Net()
    optimizer = make(model.parameters())
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 6)
    train(model, optimizer, 3, scheduler.step)
    saved = copy.deepcopy([thing.state_dict() for thing in (model, optimizer, scheduler)])
    train(model, optimizer, range(3, 6), scheduler.step)

    resumed = Net(seed=1)
    again = make(resumed.parameters())
    new_scheduler = lr_scheduler.CosineAnnealingLR(again, 6)
    for thing, state in zip((resumed, again, new_scheduler), saved, strict=True):
        thing.load_state_dict(state)
    train(resumed, again, range(3, 6), new_scheduler.step)
    assert torch.equal(values(resumed), values(model))


def test_a_grad_scaler_changes_nothing_while_gradients_are_finite(make):
    """`GradScaler` unscales before the step: with a power of two as scale the result is the same."""
    plain, scaled = Net(), Net()
    train(plain, make(plain.parameters()), 3)
    optimizer, scaler = make(scaled.parameters()), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        optimizer.zero_grad()
        backward(scaled, step, scaler.scale)
        scaler.step(optimizer)
        scaler.update()
    torch.testing.assert_close(values(scaled), values(plain))


def test_a_grad_scaler_skips_the_step_at_infinite_gradients(make):
    """`GradScaler` leaves out a step with infinite gradients and lowers its scale; nothing moves or breaks."""
    param = parameter(3, 1e38)
    optimizer, scaler = make([param]), torch.amp.GradScaler("cpu", init_scale=4.0)
    param.grad = scaler.scale(param.grad)
    assert not param.grad.isfinite().any()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(param.detach(), torch.ones(3))
    assert scaler.get_scale() == 2.0
    param.grad = scaler.scale(torch.ones(3))
    scaler.step(optimizer)
    assert param.isfinite().all() and (param != 1).all()


def test_clipped_gradients_are_what_moves(make):
    """`clip_grad_norm_` between backward and step counts: the step is that of the clipped gradients."""
    clipped, by_hand = Net(), Net()
    optimizer, other = make(clipped.parameters()), make(by_hand.parameters())
    for step in range(3):
        backward(clipped, step)
        torch.nn.utils.clip_grad_norm_(clipped.parameters(), 0.01)
        for param, mine in zip(by_hand.parameters(), clipped.parameters(), strict=True):
            param.grad = mine.grad.clone()
        optimizer.step()
        other.step()
        optimizer.zero_grad()
    assert torch.equal(values(clipped), values(by_hand))


@pytest.mark.parametrize("average", [None, swa_utils.get_ema_multi_avg_fn(0.5)], ids=["SWA", "EMA"])
def test_averaged_models_follow(make, average):
    """`swa_utils.AveragedModel` averages the iterates, and does not disturb training."""
    model, alone = Net(), Net()
    averaged, sums = swa_utils.AveragedModel(model, multi_avg_fn=average), []
    optimizer = make(model.parameters())

    def advance():
        averaged.update_parameters(model)
        sums.append(values(model))

    train(model, optimizer, 4, advance)
    train(alone, make(alone.parameters()), 4)
    assert torch.equal(values(model), values(alone))
    expected = torch.stack(sums).mean(0) if average is None else sums[0]
    for iterate in sums[1:] if average is not None else []:
        expected = 0.5 * expected + 0.5 * iterate
    torch.testing.assert_close(values(averaged.module), expected)


# importing the compiler makes torch warn about itself
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_trains(make):
    """The parameters of a model under `torch.compile` are optimised as those of the model itself."""
    model, plain = Net(), Net()
    compiled = torch.compile(model, backend="eager")
    train(compiled, make(compiled.parameters()), 2)
    train(plain, make(plain.parameters()), 2)
    assert torch.equal(values(model), values(plain))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_step_may_be_compiled(make):
    """`torch.compile` around `step` leaves its results as they are."""
    torch.compiler.reset()
    compiled, plain = Net(), Net()
    optimizer = make(compiled.parameters())
    optimizer_step = torch.compile(lambda: optimizer.step(), backend="eager")
    other = make(plain.parameters())
    for step in range(3):
        for model, mine, advance in ((compiled, optimizer, optimizer_step), (plain, other, other.step)):
            mine.zero_grad()
            backward(model, step)
            advance()
    torch.testing.assert_close(values(compiled), values(plain))
    torch.compiler.reset()
