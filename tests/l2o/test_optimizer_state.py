"""Saving, loading and copying a learned optimizer, what it remembers, and in how many bytes."""

import copy
import io
import pickle

import pytest
import torch
from small_models import assert_same, mlp, parameter, train

import l2o
from l2o import LearnedOptimizer
from l2o.rule import Observation
from l2o.rules import SGD, Adam, AdamConfig, CoordinatewiseLSTM, LSTMConfig, Momentum, RMSprop, RMSpropConfig


def lstm(generator, **options):
    return CoordinatewiseLSTM(LSTMConfig(**{"hidden_size": 4} | options), generator)


# ---------------------------------------------------------------- saving and copying


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
def test_resuming_from_a_state_dict_is_bit_for_bit(make_rule, dtype, state_dtype):
    model, inputs, targets = mlp(dtype=dtype)
    optimizer = LearnedOptimizer(model.parameters(), make_rule(), lr=0.5, weight_decay=0.01, state_dtype=state_dtype)
    train(model, inputs, targets, optimizer, 4)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, inputs, targets, optimizer, 4)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, _, _ = mlp(seed=9, dtype=dtype)
    resumed.load_state_dict(saved["model"])
    again = LearnedOptimizer(resumed.parameters(), make_rule(), state_dtype=state_dtype)
    again.load_state_dict(saved["optimizer"])
    assert (again.param_groups[0]["lr"], again.param_groups[0]["weight_decay"]) == (0.5, 0.01)
    train(resumed, inputs, targets, again, 4)
    assert_same(resumed, model)
    for left, right in zip(resumed.parameters(), model.parameters(), strict=True):
        state = optimizer.state[right]
        assert state["step"] == 8
        for name, value in again.state[left].items():
            assert value.dtype == state[name].dtype
            assert torch.equal(value, state[name])


def test_state_dict_holds_numbers_and_tensors_of_the_parameters_shape(generator):
    param = parameter(torch.ones(3, 2), torch.ones(3, 2))
    optimizer = LearnedOptimizer([param], lstm(generator))
    optimizer.step()
    saved = optimizer.state_dict()
    assert saved["param_groups"] == [{"lr": 1.0, "weight_decay": 0.0, "maximize": False, "rule": 0, "params": [0]}]
    assert {name: tuple(value.shape) for name, value in saved["state"][0].items()} == {
        "step": (), "hidden": (2, 4, 3, 2), "cell": (2, 4, 3, 2)
    }  # fmt: skip


@pytest.mark.parametrize(("before", "after"), [(None, torch.bfloat16), (torch.bfloat16, None)])
def test_loading_keeps_the_precision_of_the_optimizer_that_loads(before, after):
    saved, param = LearnedOptimizer([parameter([1.0], [1 / 3])], Momentum(), state_dtype=before), parameter([1.0])
    saved.step()
    optimizer = LearnedOptimizer([param], Momentum(), state_dtype=after)
    optimizer.load_state_dict(saved.state_dict())
    momentum = optimizer.state[param]["momentum"]
    assert momentum.dtype == (after or torch.float32)
    assert momentum.item() == torch.tensor(1 / 3).bfloat16().item()


def test_loading_copies_the_state_dict():
    param = parameter([1.0], [1.0])
    optimizer = LearnedOptimizer([param], Momentum())
    optimizer.step()
    other = LearnedOptimizer([parameter([1.0], [1.0])], Momentum())
    other.load_state_dict(optimizer.state_dict())
    other.step()
    assert (optimizer.state[param]["momentum"].item(), optimizer.state[param]["step"].item()) == (1.0, 1)


def test_state_dict_of_other_parameters_is_refused():
    optimizer = LearnedOptimizer([parameter([1.0])], SGD())
    two = LearnedOptimizer([parameter([1.0]), parameter([1.0])], SGD())
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(two.state_dict())


def test_hooks_see_what_is_saved_and_loaded():
    optimizer, seen = LearnedOptimizer([parameter([1.0], [1.0])], Momentum()), []
    optimizer.step()
    optimizer.register_state_dict_post_hook(lambda _, saved: saved | {"extra": 1})
    optimizer.register_load_state_dict_pre_hook(lambda _, saved: seen.append(saved.pop("extra")))
    optimizer.register_load_state_dict_post_hook(lambda self: seen.append(list(self.state.values())[0]["step"]))
    saved = optimizer.state_dict()
    optimizer.step()
    for _ in range(2):
        optimizer.load_state_dict(dict(saved))
    assert seen == [1, 2, 1, 2]  # the step is counted in place: `saved` refers to it, as with torch's optimizers
    assert len(optimizer._optimizer_load_state_dict_pre_hooks) == 1


# ---------------------------------------------------------------- states that do not fit


def used(optimizer):
    """The state of an optimizer that has made a step, with one parameter of two coordinates."""
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    optimizer.step()
    return optimizer.state_dict()


def ones(n=2):
    return [parameter(torch.ones(n), torch.ones(n))]


def damaged(name, value):
    saved = used(LearnedOptimizer(ones(), lstm(None)))
    saved["state"][0][name] = value
    return saved


FOREIGN = {
    "torch's Adam": (lambda: used(torch.optim.Adam(ones())), "lacks .*'rule'.*: not saved by a LearnedOptimizer"),
    "torch's SGD, unused": (lambda: torch.optim.SGD(ones()).state_dict(), "lacks .*: not saved by a LearnedOptimizer"),
    "another rule": (
        lambda: used(LearnedOptimizer(ones(), RMSprop())),
        r"of group 0\[0\] holds \['second_moment', 'step'\], but CoordinatewiseLSTM keeps \['cell', 'hidden', 'step'\]",
    ),
    "another hidden size": (
        lambda: used(LearnedOptimizer(ones(), lstm(None, hidden_size=3))),
        r"'hidden' in .* should be a tensor of shape \(2, 4, 2\), but is \(2, 3, 2\)",
    ),
    "a damaged step": (lambda: damaged("step", 3), r"'step' in .* should be a tensor of shape \(\), but is 3"),
    "a damaged entry": (lambda: damaged("cell", None), r"'cell' in .* should be a tensor of shape .*, but is None"),
    "no entries": (lambda: used(LearnedOptimizer(ones(), lstm(None))) | {"state": {0: []}}, r"holds \[\], but"),
    "more groups": (lambda: LearnedOptimizer([{"params": []}] * 2, SGD()).state_dict(), "number of parameter groups"),
    "more parameters": (lambda: LearnedOptimizer(ones() + ones(), lstm(None)).state_dict(), "doesn't match the size"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_state_is_refused_and_changes_nothing(name, generator):
    make, message = FOREIGN[name]
    (param,) = ones()
    optimizer = LearnedOptimizer([param], lstm(generator), lr=0.5)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(make())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(torch.equal(value, before["state"][0][name]) for name, value in after["state"][0].items())
    optimizer.step()
    assert optimizer.state[param]["step"] == 2


def test_groups_with_rules_in_another_order_are_refused():
    def make(*rules):
        return LearnedOptimizer([{"params": ones(), "rule": rule} for rule in rules], SGD())

    with pytest.raises(ValueError, match="group 0 was saved with rule 0 but has rule 1 here: give the groups their"):
        make(Adam(), RMSprop()).load_state_dict(make(SGD(), Adam()).state_dict())


# ---------------------------------------------------------------- copies and descriptions


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_copy_of_model_and_optimizer_continues_like_the_original(make_rule, duplicate):
    model, inputs, targets = mlp()
    optimizer = LearnedOptimizer(model.parameters(), make_rule())
    train(model, inputs, targets, optimizer, 3)
    twin, twin_optimizer = duplicate((model, optimizer))
    untouched = [p.detach().clone() for p in model.parameters()]
    train(twin, inputs, targets, twin_optimizer, 3)
    assert all(torch.equal(left, right) for left, right in zip(model.parameters(), untouched, strict=True))
    train(model, inputs, targets, optimizer, 3)
    assert all(torch.equal(left, right) for left, right in zip(model.parameters(), twin.parameters(), strict=True))
    assert not torch.equal(next(model.parameters()), untouched[0])


def test_copies_keep_options_rules_and_the_count(generator):
    params = [parameter([1.0], [float("nan")])]
    optimizer = LearnedOptimizer(params, lstm(generator), state_dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="not finite"):
        optimizer.step()
    for twin in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert (twin.skipped, twin.nonfinite, twin.state_dtype) == (1, "skip", torch.bfloat16)
        twin.add_param_group({"params": [parameter([1.0], [1.0])], "rule": Adam()})
        twin.step()
        assert [group["rule"] for group in twin.param_groups] == [0, 1]
        assert [set(memory) for memory in twin.state.values()] == [{"step", "first_moment", "second_moment"}]
    assert len(optimizer.rules) == 1


def test_repr_shows_rules_with_their_options_and_groups(generator):
    config = "hidden_size=4, layers=2, p=7.0, log_eps=0.0, scale=0.1, forget_bias=0.0"
    groups = [{"params": [parameter([1.0])]}, {"params": [parameter([1.0])], "rule": Adam(), "lr": 0.5}]
    text = repr(LearnedOptimizer(groups, lstm(generator, p=7.0)))
    assert text.splitlines()[:4] == [
        "LearnedOptimizer (",
        f"Rule 0: CoordinatewiseLSTM LSTMConfig({config})",
        "Rule 1: Adam AdamConfig(lr=0.001, beta1=0.9, beta2=0.999, eps=1e-08)",
        "Parameter Group 0",
    ]
    assert "    lr: 0.5\n    maximize: False\n    rule: 1\n" in text


# ---------------------------------------------------------------- memory in bfloat16, and its size


def test_bfloat16_state_rounds_the_rules_state_after_each_step(rule, generator):
    values, grads = torch.randn(30, generator=generator), torch.randn(5, 30, generator=generator)
    param, expected, state = parameter(values), values.clone(), None
    optimizer = LearnedOptimizer([param], rule, state_dtype=torch.bfloat16)
    for step, grad in enumerate(grads):
        param.grad = grad
        optimizer.step()
        before = rule.init_coordinates(grad) if state is None else state
        moved, after = rule(Observation({"x": expected}, {"x": grad}, None, torch.tensor(step)), before)
        expected = moved["x"].detach()
        state = type(after)(*(tensor.detach().bfloat16().double() for tensor in after))
    torch.testing.assert_close(param.detach(), expected, rtol=1e-9, atol=1e-12)
    for name, value in optimizer.state[param].items():
        assert value.dtype == (torch.int64 if name == "step" else torch.bfloat16)


def test_lstm_with_bfloat16_state_trains_as_with_float32_state():
    losses = []
    for state_dtype in (None, torch.bfloat16):
        model, inputs, targets = mlp()
        optimizer = l2o.load("lstm-digits", model.parameters(), lr=0.1, state_dtype=state_dtype)
        losses.append(train(model, inputs, targets, optimizer, 30))
    assert losses[0][-1] < 0.9 * losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)  # eight bits of mantissa
    assert losses[1] != losses[0]


def test_slow_running_averages_stall_in_bfloat16():
    """The limit that the documentation names."""
    falls = []
    for state_dtype in (None, torch.bfloat16):
        param = parameter([0.0], [1.0])
        optimizer = LearnedOptimizer([param], RMSprop(RMSpropConfig(decay=0.999)), state_dtype=state_dtype)
        optimizer.step()
        before = optimizer.state[param]["second_moment"].item()
        param.grad.zero_()
        for _ in range(100):
            optimizer.step()
        falls.append(optimizer.state[param]["second_moment"].item() / before)
    assert falls == [pytest.approx(0.999**100, rel=1e-4), 1.0]


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_memory_tells_the_bytes_that_a_step_leaves(make_rule, dtype, state_dtype):
    def params():
        return [parameter(torch.ones(size, dtype=dtype), torch.ones(size)) for size in [(), (3, 2), (0,), (1030,)]]

    optimizer = LearnedOptimizer(params(), make_rule(), state_dtype=state_dtype)
    frozen = parameter(torch.ones(9)).requires_grad_(False)
    told = l2o.memory(make_rule(), [*params(), frozen], state_dtype)
    optimizer.step()
    held = [value for memory in optimizer.state.values() for value in memory.values()]
    assert told.total == sum(value.numel() * value.element_size() for value in held)
    assert told.total == sum(value.untyped_storage().nbytes() for value in held)
    assert told.per_parameter == told.total / 1037


def test_memory_of_a_shipped_rule_and_of_groups_is_told_without_allocating():
    with torch.device("meta"):
        model = torch.nn.Linear(100_000, 100_000, bias=False)
    assert l2o.memory("lstm-mnist", model.parameters()).total == 320 * 10**10 + 8
    assert l2o.memory("lstm-mnist", model.named_parameters(), torch.bfloat16).total == 160 * 10**10 + 8
    group = {"params": model.parameters(), "rule": Adam(AdamConfig())}
    told = l2o.memory("lstm-mnist", [group])
    assert told.total == 8 * 10**10 + 8
    assert str(told) == "8.0 bytes per parameter, 80,000.0 MB in total"


def test_load_passes_options_on():
    optimizer = l2o.load("lstm-digits", [parameter([1.0])], 0.5, weight_decay=0.1, maximize=True, nonfinite="raise")
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["maximize"], optimizer.nonfinite) == (0.5, 0.1, True, "raise")
    with pytest.raises(ValueError, match="nonfinite must be"):
        l2o.load("lstm-digits", [parameter([1.0])], nonfinite="sometimes")


def test_memory_refuses_what_the_optimizer_refuses():
    with pytest.raises(ValueError, match="state_dtype must be"):
        l2o.memory(SGD(), [parameter([1.0])], torch.float16)
    with pytest.raises(l2o.CheckpointError, match="no checkpoint at nowhere"):
        l2o.memory("nowhere", [parameter([1.0])])
