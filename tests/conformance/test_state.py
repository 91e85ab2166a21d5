"""Clauses on state_dict, copies and hooks."""

import copy
import pickle

import pytest
import torch

from conformance.contract import Net, backward, parameter, through_a_file, train, values

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def test_state_dict_has_the_common_form(make):
    """`state_dict()` is {"state": {number: memory}, "param_groups": [...]}, with numbers in place of parameters."""
    model = Net()
    optimizer = make([{"params": [model.first]}, {"params": [model.bias, model.second, model.offset]}])
    train(model, optimizer, 2)
    saved = optimizer.state_dict()
    assert {"state", "param_groups"} <= set(saved)
    assert [group["params"] for group in saved["param_groups"]] == [[0], [1, 2, 3]]
    assert set(saved["state"]) <= {0, 1, 2, 3}
    assert all("lr" in group for group in saved["param_groups"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loading_a_saved_state_continues_bit_for_bit(make, dtype):
    """Training goes on from `torch.save`d model and optimizer as if it had not stopped, bit for bit."""
    model = Net(dtype)
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    saved = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    train(model, optimizer, range(3, 6))

    resumed = Net(dtype, seed=1)
    resumed.load_state_dict(saved["model"])
    again = make(resumed.parameters())
    again.load_state_dict(saved["optimizer"])
    train(resumed, again, range(3, 6))
    # NaN equals NaN here: whether training in float16 goes well is another question
    torch.testing.assert_close(values(resumed), values(model), rtol=0, atol=0, equal_nan=True)


def test_loading_replaces_the_state_of_a_used_optimizer(make):
    """`load_state_dict` forgets what the optimizer has seen before: training can be rolled back."""
    model = Net()
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    saved, start = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    train(model, optimizer, range(3, 6))
    expected = values(model)
    train(model, optimizer, range(6, 9))
    model.load_state_dict(start)
    optimizer.load_state_dict(saved)
    train(model, optimizer, range(3, 6))
    assert torch.equal(values(model), expected)


def test_loading_an_unused_state_resets(make):
    """The state_dict of an optimizer that has made no step makes another start over."""
    fresh, used = Net(), Net()
    optimizer = make(used.parameters())
    start = make(fresh.parameters()).state_dict()
    train(used, optimizer, 3)
    used.load_state_dict(fresh.state_dict())
    optimizer.load_state_dict(start)
    train(used, optimizer, 3)
    train(fresh, make(fresh.parameters()), 3)
    assert torch.equal(values(used), values(fresh))


def test_loading_restores_the_options_of_groups(make):
    """`load_state_dict` brings back each group's lr."""
    optimizer, other = (make([{"params": [parameter(2)]}, {"params": [parameter(2)]}]) for _ in range(2))
    optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.25, 0.125
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert [group["lr"] for group in other.param_groups] == [0.25, 0.125]


def test_groups_may_change_after_loading(make):
    """A loaded optimizer is a full one: options can be changed and groups added."""
    param, new = parameter(3), parameter(3)
    optimizer = make([param])
    optimizer.step()
    other = make([param])
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    other.add_param_group({"params": [new]})
    other.param_groups[0]["lr"], before = 0.0, param.detach().clone()
    other.step()
    assert torch.equal(param.detach(), before)
    assert (new != 1).all()


def test_a_state_of_other_groups_is_refused(make):
    """A state_dict with other groups or group sizes is a ValueError; the optimizer goes on as before."""
    left, right = Net(), Net()
    optimizer, other = make(left.parameters()), make(right.parameters())
    train(left, optimizer, 2)
    train(right, other, 2)
    for wrong in ([{"params": [parameter(2)]}, {"params": [parameter(2)]}], [parameter(2)]):
        with pytest.raises(ValueError):
            optimizer.load_state_dict(make(wrong).state_dict())
    train(left, optimizer, range(2, 4))
    train(right, other, range(2, 4))
    assert torch.equal(values(left), values(right))


def deepcopied(thing):
    return copy.deepcopy(thing)


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


@pytest.mark.parametrize("duplicate", [deepcopied, pickled])
def test_copies_continue_independently(make, duplicate):
    """A deep copy or pickle of model and optimizer continues as the original, and does not touch it."""
    model = Net()
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    twin, twin_optimizer = duplicate((model, optimizer))
    before = values(model)
    train(twin, twin_optimizer, range(3, 6))
    assert torch.equal(values(model), before)
    train(model, optimizer, range(3, 6))
    assert torch.equal(values(twin), values(model))
    assert not torch.equal(values(model), before)


def test_repr_shows_the_groups(make):
    """`repr` names the class and shows each group's lr."""
    text = repr(make([{"params": [parameter(2)], "lr": 0.0625}, {"params": [parameter(2)], "lr": 0.375}]))
    assert "0.0625" in text and "0.375" in text


def test_step_hooks_are_called(make):
    """Hooks registered for before and after `step` run there, with the optimizer."""
    param, seen = parameter(3), []
    optimizer = make([param])

    def note(self, *_):
        seen.append((self is optimizer, bool((param == 1).all())))

    hooks = [optimizer.register_step_pre_hook(note), optimizer.register_step_post_hook(note)]
    optimizer.step()
    assert seen == [(True, True), (True, False)]
    for hook in hooks:
        hook.remove()
    optimizer.step()
    assert len(seen) == 2


def test_state_dict_hooks_are_called(make):
    """Hooks registered for saving and loading run; they may replace the state_dict."""
    optimizer, seen = make([parameter(3)]), []
    optimizer.step()
    optimizer.register_state_dict_pre_hook(lambda self: seen.append("before saving"))
    optimizer.register_state_dict_post_hook(lambda self, saved: {"wrapped": saved})
    optimizer.register_load_state_dict_pre_hook(lambda self, saved: saved["wrapped"])
    optimizer.register_load_state_dict_post_hook(lambda self: seen.append("after loading"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["before saving", "after loading"]


def test_state_belongs_to_parameters(make):
    """`optimizer.state` maps parameters to dicts; there is nothing else in it."""
    model = Net()
    model.bias.requires_grad_(False)
    optimizer = make(model.parameters())
    backward(model, 0)
    optimizer.step()
    assert set(optimizer.state) <= set(model.parameters())
    assert all(isinstance(memory, dict) for memory in optimizer.state.values())


@pytest.mark.gpu
def test_a_state_saved_on_the_cpu_continues_on_a_gpu(make):
    """A state_dict is loaded onto the parameters' device, wherever it was saved."""
    model = Net()
    optimizer = make(model.parameters())
    train(model, optimizer, 3)
    moved = copy.deepcopy(model).cuda()
    other = make(moved.parameters())
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    for step in range(3, 6):
        backward(model, step)
        for param, mine in zip(moved.parameters(), model.parameters(), strict=True):
            param.grad = mine.grad.cuda()
        for each in (optimizer, other):
            each.step()
            each.zero_grad()
    torch.testing.assert_close(values(moved).cpu(), values(model), rtol=1e-4, atol=1e-5)
