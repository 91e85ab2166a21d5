"""Clauses on construction and parameter groups."""

import pytest
import torch

from conformance.contract import Net, parameter, train, values


def test_generators_lists_and_groups_are_accepted(make):
    """`params` is an iterable of parameters or of groups; a group's "params" may be a single tensor."""
    for params in (Net().parameters(), list(Net().parameters()), [{"params": Net().parameters()}]):
        assert sum(len(group["params"]) for group in make(params).param_groups) == 4
    assert len(make([{"params": parameter(2)}]).param_groups[0]["params"]) == 1


def test_named_parameters_are_accepted_and_saved(make):
    """`params` may be `named_parameters()`; the names appear as "param_names" in groups and state_dict."""
    model = Net()
    optimizer = make(model.named_parameters())
    train(model, optimizer, 2)
    names = [name for name, _ in model.named_parameters()]
    assert optimizer.param_groups[0]["param_names"] == names
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names


def test_no_parameters_are_refused(make):
    """An empty parameter list is a ValueError."""
    with pytest.raises(ValueError):
        make([])


def test_what_is_no_parameter_is_refused(make):
    """A tensor instead of an iterable, and an entry that is no tensor, are TypeErrors."""
    with pytest.raises(TypeError):
        make(parameter(2))
    with pytest.raises(TypeError):
        make([1.0])


def test_a_tensor_that_is_no_leaf_is_refused(make):
    """An intermediate result cannot be optimised: a ValueError."""
    with pytest.raises(ValueError):
        make([parameter(2) * 2])


def test_a_parameter_in_two_groups_is_refused(make):
    """A parameter belongs to one group: a second is a ValueError."""
    shared = parameter(2)
    with pytest.raises(ValueError):
        make([{"params": [shared]}, {"params": [shared]}])


def test_groups_have_their_own_lr(make):
    """Each group's own "lr" counts: one of zero stops that group alone."""
    still, moving = parameter(3), parameter(3)
    optimizer = make([{"params": [still], "lr": 0.0}, {"params": [moving]}])
    for _ in range(2):
        optimizer.step()
    assert torch.equal(still.detach(), torch.ones(3))
    assert (moving != 1).all()


def test_a_changed_lr_takes_effect(make):
    """A new value of `param_groups[i]["lr"]` counts from the next step on; this is how schedulers work."""
    param = parameter(3)
    optimizer = make([param])
    optimizer.step()
    before = param.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert torch.equal(param.detach(), before)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert (param.detach() != before).all()


def test_groups_are_added_at_any_time(make):
    """`add_param_group` works after steps; the new parameters move, options not given take the defaults."""
    old, new = parameter(3), parameter(3)
    optimizer = make([old])
    optimizer.step()
    optimizer.add_param_group({"params": [new]})
    optimizer.step()
    assert (new != 1).all()
    assert optimizer.param_groups[1].keys() == optimizer.param_groups[0].keys()
    assert optimizer.param_groups[1]["lr"] == optimizer.param_groups[0]["lr"]


def test_an_added_group_moves_as_a_fresh_optimizer_would_move_it(make):
    """A parameter added later starts fresh, with its own options."""
    old, new, alone = parameter(3), parameter(3), parameter(3)
    optimizer, other = make([old]), make([{"params": [alone], "lr": 0.05}])
    optimizer.step()
    optimizer.add_param_group({"params": [new], "lr": 0.05})
    for _ in range(2):
        optimizer.step()
        other.step()
    torch.testing.assert_close(new.detach(), alone.detach())


def test_adding_a_known_parameter_is_refused(make):
    """`add_param_group` refuses a parameter that the optimizer has: a ValueError that changes nothing."""
    param = parameter(3)
    optimizer = make([param])
    with pytest.raises(ValueError):
        optimizer.add_param_group({"params": [param]})
    assert len(optimizer.param_groups) == 1


def test_groups_move_as_one_group_would(make):
    """Splitting parameters into groups with equal options changes nothing."""
    together, apart = Net(), Net()
    optimizer = make(together.parameters())
    other = make([{"params": [param]} for param in apart.parameters()])
    train(together, optimizer, 3)
    train(apart, other, 3)
    torch.testing.assert_close(values(together), values(apart))


def test_keys_of_the_user_stay_in_the_group(make):
    """Groups keep keys that the optimizer does not know, also through state_dict: trainers store theirs there."""
    optimizer = make([{"params": [parameter(2)], "name": "head"}])
    optimizer.step()
    assert optimizer.param_groups[0]["name"] == "head"
    assert optimizer.state_dict()["param_groups"][0]["name"] == "head"
