"""MLP classification against nn.Sequential and torch's cross-entropy, and its gradient against central differences."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tasks import MLP, load_dataset
from tasks.task import SPLITS

MODULES = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU}


@pytest.fixture(autouse=True)
def float64():
    """Compute in float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def sample(family, n_tasks=3, split="train", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return family.init_params({}, n_tasks, generator), family.sample_batch({}, n_tasks, split, generator)


def one(data, i=0):
    return {name: value[i] for name, value in data.items()}


def images_with_labels(inputs, targets):
    return {(*pixels, label) for pixels, label in zip(inputs.tolist(), targets.tolist(), strict=True)}


def as_sequential(family, params):
    layers = []
    for layer, (n_in, n_out) in enumerate(zip(family.layer_sizes, family.layer_sizes[1:], strict=False)):
        linear = nn.Linear(n_in, n_out)
        linear.load_state_dict({"weight": params[f"{layer}.weight"], "bias": params[f"{layer}.bias"]})
        layers += [linear, MODULES[family.activation]()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("activation", MODULES)
@pytest.mark.parametrize("hidden", [(), (20,), (7, 5)])
def test_loss_gradient_and_accuracy_equal_a_sequential_module(activation, hidden):
    family = MLP(hidden=hidden, activation=activation, batch_size=32, init_scale=0.5)
    params, batch = (one(data) for data in sample(family))
    model = as_sequential(family, params)
    output = model(batch["inputs"])
    expected = F.cross_entropy(output, batch["targets"])
    expected.backward()
    gradients, loss = torch.func.grad_and_value(family.loss)(params, {}, batch)
    torch.testing.assert_close(loss, expected.detach())
    for gradient, parameter in zip(gradients.values(), model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
    assert family.accuracy(params, batch).item() == (output.argmax(1) == batch["targets"]).double().mean().item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hidden", [(), (20,), (7, 5)])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu"])
def test_own_evaluation_has_the_bits_of_autograd_wherever_the_params_have_moved(activation, hidden, dtype):
    torch.set_default_dtype(dtype)
    family = MLP(hidden=hidden, activation=activation, batch_size=50, init_scale=0.5)
    params, batch = sample(family)
    out = torch.full((sum(tensor.numel() for tensor in params.values()),), torch.nan)
    evaluate = family.evaluator(params, {})
    assert evaluate is not None
    for _ in range(2):
        variables = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
        losses = family.loss(variables, {}, batch)
        grads = torch.autograd.grad(losses.sum(), list(variables.values()))
        assert torch.equal(evaluate(batch, out), losses.detach())
        assert torch.equal(out, torch.cat([grad.flatten() for grad in grads]))
        for tensor in params.values():
            tensor += 0.1


def test_activation_whose_slope_its_result_does_not_give_is_left_to_autograd():
    family = MLP(activation="elu")
    assert family.evaluator(sample(family)[0], {}) is None


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "elu"])
def test_gradient_equals_central_differences(activation):
    family = MLP(hidden=(4,), activation=activation, batch_size=8, init_scale=0.5)
    params, batch = (one(data) for data in sample(family))
    gradients = torch.func.grad(family.loss)(params, {}, batch)
    step, generator = 1e-5, torch.Generator().manual_seed(1)
    for name, value in params.items():
        direction = torch.randn(value.shape, generator=generator)
        ends = [family.loss({**params, name: value + sign * step * direction}, {}, batch) for sign in (1, -1)]
        difference = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close((gradients[name] * direction).sum(), difference, rtol=1e-6, atol=1e-9)


def test_vmap_over_tasks_equals_loop_and_leading_axes():
    family = MLP(hidden=(6, 5), batch_size=16, init_scale=None)
    params, batch = sample(family, n_tasks=4)
    value_and_gradient = torch.func.grad_and_value(lambda params, batch: family.loss(params, {}, batch))
    gradients, losses = torch.func.vmap(value_and_gradient)(params, batch)
    assert losses.shape == (4,)
    torch.testing.assert_close(family.loss(params, {}, batch), losses)
    for i in range(4):
        gradient, loss = value_and_gradient(one(params, i), one(batch, i))
        torch.testing.assert_close(losses[i], loss)
        for name, expected in gradient.items():
            torch.testing.assert_close(gradients[name][i], expected)


def test_parameters_have_the_shapes_of_linear_layers():
    params = MLP(dataset="mnist", hidden=(20, 30)).init_params({}, 2, torch.Generator())
    assert {name: tuple(value.shape) for name, value in params.items()} == {
        "0.weight": (2, 20, 784), "0.bias": (2, 20), "1.weight": (2, 30, 20), "1.bias": (2, 30),
        "2.weight": (2, 10, 30), "2.bias": (2, 10),
    }  # fmt: skip


def test_initial_parameters_including_biases_are_normal_with_the_stated_scale():
    params, _ = sample(MLP(init_scale=0.01), n_tasks=500)
    for value in params.values():
        n = value.numel()
        assert abs(value.mean()) < 5 * 0.01 / n**0.5
        assert abs(value.std() / 0.01 - 1) < 5 / (2 * n) ** 0.5


def test_default_start_of_linear_layers_is_uniform_with_their_bound():
    params, _ = sample(MLP(init_scale=None), n_tasks=500)
    for layer, fan_in in ((0, 64), (1, 20)):
        for name in (f"{layer}.weight", f"{layer}.bias"):
            value, bound = params[name], 1 / math.sqrt(fan_in)
            assert 0.99 * bound < value.abs().max() <= bound
            # variance of U(−b, b) is b²/3, its squared deviation has variance 4b⁴/45
            assert abs(value.square().mean() - bound**2 / 3) < 5 * bound**2 * (4 / 45 / value.numel()) ** 0.5


def test_initial_loss_is_near_log_ten():
    family = MLP()
    params, batch = sample(family)
    torch.testing.assert_close(family.loss(params, {}, batch), torch.full((3,), math.log(10)), rtol=0, atol=0.02)


def test_batches_are_pixels_of_the_requested_split_only():
    family, splits = MLP(batch_size=300), load_dataset("digits")
    for split in SPLITS:
        _, batch = sample(family, split=split)
        assert batch["inputs"].shape == (3, 300, 64) and batch["inputs"].dtype == torch.float64
        assert batch["inputs"].min() == 0 and batch["inputs"].max() == 1
        drawn = images_with_labels((16 * batch["inputs"]).long().flatten(0, 1), batch["targets"].flatten())
        assert len(drawn) > 100 and drawn <= images_with_labels(splits[split].inputs.flatten(1), splits[split].targets)


def test_batches_follow_the_default_dtype():
    torch.set_default_dtype(torch.float32)
    params, batch = sample(MLP())
    assert batch["inputs"].dtype == params["0.weight"].dtype == torch.float32


def test_same_seed_gives_the_same_start_and_batch():
    (params, batch), (params_again, batch_again) = sample(MLP()), sample(MLP())
    assert all(torch.equal(params[name], params_again[name]) for name in params)
    assert all(torch.equal(batch[name], batch_again[name]) for name in batch)
    assert not torch.equal(sample(MLP(), seed=1)[1]["inputs"], batch["inputs"])


def test_families_with_loaded_data_are_equal_and_hashable():
    loaded, fresh = MLP(), MLP()
    assert len(loaded.data.draw("test", 1, 2, torch.Generator())["targets"][0]) == 2
    assert loaded == fresh and hash(loaded) == hash(fresh)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"dataset": "svhn"}, "dataset must be one of digits, mnist, cifar10, got 'svhn'"),
        ({"activation": "gelu"}, "activation must be one of sigmoid, relu, tanh, elu, got 'gelu'"),
        ({"hidden": (20, 0)}, r"hidden must be a tuple of sizes of at least 1, such as \(20,\), got \(20, 0\)"),
        ({"hidden": 20}, "hidden must be a tuple of sizes of at least 1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"init_scale": 0.0}, "init_scale must be positive, or None"),
        ({"init_scale": math.nan}, "init_scale must be positive, or None"),
    ],
)
def test_nonsense_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        MLP(**options)


@pytest.mark.parametrize("split", SPLITS)
def test_a_task_with_samples_of_its_own_sees_these_alone_and_all_of_them(split):
    family, n_tasks, generator = MLP("digits", samples=20, batch_size=500), 6, torch.Generator().manual_seed(0)
    tasks = family.sample_tasks(n_tasks, generator)
    batches = [family.sample_batch(tasks, n_tasks, split, generator) for _ in range(2)]
    everything = load_dataset("digits")[split]
    known = images_with_labels(everything.inputs.flatten(1) / 16, everything.targets)
    pools = [[images_with_labels(batch["inputs"][i], batch["targets"][i]) for i in range(n_tasks)] for batch in batches]
    assert pools[0] == pools[1]  # 500 draws out of 20 see all of them, but for one time in 10^10
    assert all(len(pool) == 20 and pool <= known for pool in pools[0])
    assert len(set.union(*pools[0])) > 60  # other tasks, other samples


def test_more_samples_than_a_split_has_are_all_of_it():
    family, generator = MLP("digits", samples=10**6, batch_size=20_000), torch.Generator().manual_seed(0)
    tasks = family.sample_tasks(1, generator)
    batch = family.sample_batch(tasks, 1, "test", generator)
    everything = load_dataset("digits")["test"]
    assert images_with_labels(batch["inputs"][0], batch["targets"][0]) == images_with_labels(
        everything.inputs.flatten(1) / 16, everything.targets
    )


def test_a_share_of_tasks_with_samples_of_their_own_is_a_part_of_all():
    family, generator = MLP("digits", samples=20, batch_size=8), torch.Generator().manual_seed(0)
    tasks = family.sample_tasks(5, generator)
    whole = family.sample_batch(tasks, 5, "train", generator.manual_seed(1))
    part = family.sample_share(tasks, 5, "train", generator.manual_seed(1), slice(1, 3))
    assert all(torch.equal(part[name], whole[name][1:3]) for name in whole)


@pytest.mark.parametrize("value", [0, 1.5])
def test_samples_out_of_range_are_a_value_error(value):
    with pytest.raises(ValueError, match=f"samples must be an integer of at least 1, got {value}"):
        MLP("digits", samples=value)
