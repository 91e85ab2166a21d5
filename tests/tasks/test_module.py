"""ModuleTask against running the modules themselves, with the layers that are awkward to make pure."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from tasks import ModuleTask
from tasks.task import SPLITS


def images(n=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 2, 6, 6, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (n,), generator=generator)


def vectors(n=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return inputs, inputs.square().sum(1, keepdim=True)


def conv_net():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    ).double()  # fmt: skip


class Tied(nn.Module):
    """Wᵀ tanh(W x): one weight used twice, under two names."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 4, bias=False, dtype=torch.float64)
        self.decoder = nn.Linear(4, 1, dtype=torch.float64)
        self.again = nn.Linear(4, 4, bias=False, dtype=torch.float64)
        self.again.weight = self.encoder.weight

    def forward(self, x):
        return self.decoder(self.again(torch.tanh(self.encoder(x))))


class Scalar(nn.Module):
    """exp(s) times a frozen linear layer plus a buffer; s has shape ()."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.randn((), dtype=torch.float64))
        self.frozen = nn.Linear(4, 1, dtype=torch.float64).requires_grad_(False)
        self.register_buffer("shift", torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x):
        return self.log_scale.exp() * self.frozen(x) + self.shift


class Branching(nn.Module):
    """Branches on a computed value, which vmap refuses."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1, dtype=torch.float64)

    def forward(self, x):
        y = self.linear(x)
        return y if y.sum() > 0 else -y


CASES = {
    "conv net with BatchNorm": (conv_net, F.cross_entropy, images()),
    "tied weights": (Tied, F.mse_loss, vectors()),
    "scalar parameter, frozen layer, buffer": (Scalar, F.mse_loss, vectors()),
}


def one(data, i):
    return {name: value[i] for name, value in data.items()}


def modules_of(family, factory, params, n_tasks):
    """Modules with the parameters of each task, and the constants of the family."""
    modules = [factory() for _ in range(n_tasks)]
    for i, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            parameter.data = params[name][i].clone() if name in params else family._constants[name]
    return modules


@pytest.mark.parametrize("case", CASES)
def test_vmapped_losses_and_gradients_equal_the_modules_themselves(case):
    factory, loss_fn, data = CASES[case]
    family, generator = ModuleTask(factory, loss_fn, data, batch_size=8), torch.Generator().manual_seed(0)
    params = family.init_params({}, 3, generator)
    batch = family.sample_batch({}, 3, "train", generator)
    value_and_gradient = torch.func.grad_and_value(lambda params, batch: family.loss(params, {}, batch))
    gradients, losses = torch.func.vmap(value_and_gradient)(params, batch)
    for i, module in enumerate(modules_of(family, factory, params, 3)):
        loss = loss_fn(module(batch["inputs"][i]), batch["targets"][i])
        loss.backward()
        torch.testing.assert_close(losses[i], loss.detach())
        torch.testing.assert_close(family.loss(one(params, i), {}, one(batch, i)), loss.detach())
        trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        assert trainable.keys() == params.keys()
        for name, parameter in trainable.items():
            torch.testing.assert_close(gradients[name][i], parameter.grad)


def test_ten_gradient_steps_equal_a_manual_training_loop():
    family, generator = ModuleTask(conv_net, F.cross_entropy, images(), batch_size=8), torch.Generator().manual_seed(1)
    params = family.init_params({}, 2, generator)
    modules = modules_of(family, conv_net, params, 2)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in modules]
    gradient = torch.func.vmap(torch.func.grad(lambda params, batch: family.loss(params, {}, batch)))
    for _ in range(10):
        batch = family.sample_batch({}, 2, "train", generator)
        params = {name: params[name] - 0.1 * g for name, g in gradient(params, batch).items()}
        for i, (module, optimizer) in enumerate(zip(modules, optimizers, strict=True)):
            optimizer.zero_grad()
            F.cross_entropy(module(batch["inputs"][i]), batch["targets"][i]).backward()
            optimizer.step()
    for i, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(params[name][i], parameter.detach())


def test_tied_weights_count_once():
    params = ModuleTask(Tied, F.mse_loss, vectors()).init_params({}, 2, torch.Generator())
    assert list(params) == ["encoder.weight", "decoder.weight", "decoder.bias"]


def test_scalar_parameter_keeps_its_shape_and_frozen_ones_are_no_parameters():
    params = ModuleTask(Scalar, F.mse_loss, vectors()).init_params({}, 5, torch.Generator())
    assert list(params) == ["log_scale"] and params["log_scale"].shape == (5,)


def test_normalisation_in_eval_mode_uses_its_stored_statistics():
    def factory():
        module = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
        module[0].running_mean.fill_(3.0)
        return module.eval()

    family = ModuleTask(factory, F.mse_loss, vectors())
    params, (inputs, targets) = one(family.init_params({}, 1, torch.Generator()), 0), vectors()
    scaled = (inputs - 3) / (1 + 1e-5) ** 0.5
    expected = F.mse_loss(scaled @ params["1.weight"].T + params["1.bias"], targets)
    torch.testing.assert_close(family.loss(params, {}, {"inputs": inputs, "targets": targets}), expected)


def test_users_own_module_is_not_changed_by_a_factory_that_hands_it_out():
    module = conv_net()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    family = ModuleTask(lambda: module, F.cross_entropy, images())
    params = family.init_params({}, 2, torch.Generator())
    assert module[1].track_running_stats
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(params["0.weight"][1], before["0.weight"])


def test_same_generator_gives_the_same_start_and_the_global_state_is_untouched():
    torch.manual_seed(123)
    state = torch.get_rng_state()
    family = ModuleTask(conv_net, F.cross_entropy, images())
    first, again, other = (
        family.init_params({}, 2, torch.Generator().manual_seed(seed))["4.weight"] for seed in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first[0], first[1])


@pytest.mark.parametrize("form", [tuple, lambda pair: TensorDataset(*pair), lambda pair: Pairwise(*pair)])
def test_unsplit_data_is_dealt_out_once_and_always_alike(form):
    data = form((torch.arange(100.0)[:, None], torch.arange(100.0)[:, None]))
    drawn = {}
    for split in SPLITS:
        family = ModuleTask(
            lambda: nn.Linear(1, 1), F.mse_loss, data, batch_size=2000, fractions=(0.5, 0.25, 0.15, 0.1)
        )
        batch = family.sample_batch({}, 1, split, torch.Generator().manual_seed(0))
        assert torch.equal(batch["inputs"], batch["targets"])
        drawn[split] = set(batch["inputs"].flatten().tolist())  # 2,000 draws miss none of 50 samples
    assert [len(values) for values in drawn.values()] == [50, 25, 15, 10]
    assert set.union(*drawn.values()) == set(range(100))


class Pairwise(Dataset):
    """A map-style data set of pairs."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, i):
        return self.inputs[i], self.targets[i]


def test_given_splits_are_kept_and_a_missing_one_is_refused():
    data = {"train": vectors(seed=0), "test": vectors(n=1, seed=1)}
    family = ModuleTask(lambda: nn.Linear(4, 1).double(), F.mse_loss, data, batch_size=3)
    batch = family.sample_batch({}, 2, "test", torch.Generator())
    assert torch.equal(batch["inputs"], data["test"][0].expand(2, 3, 4))
    with pytest.raises(ValueError, match="split must be one of train, test, got 'outer_valid'"):
        family.sample_batch({}, 2, "outer_valid", torch.Generator())


def test_module_that_vmap_refuses_runs_task_by_task():
    with pytest.raises(ValueError, match=r"(?s)torch.func.vmap refuses the module.*Pass vectorized=False"):
        ModuleTask(Branching, F.mse_loss, vectors())
    family = ModuleTask(Branching, F.mse_loss, vectors(), vectorized=False)
    params, (inputs, targets) = one(family.init_params({}, 1, torch.Generator()), 0), vectors()
    module = modules_of(family, Branching, {name: value[None] for name, value in params.items()}, 1)[0]
    assert family.vectorized == "loop"
    loss = family.loss(params, {}, {"inputs": inputs, "targets": targets})
    assert loss.item() == F.mse_loss(module(inputs), targets).item()


class FunctionalDropout(nn.Linear):
    """Random without a dropout layer."""

    def forward(self, x):
        return F.dropout(super().forward(x), 0.5)


def attention():
    return nn.ModuleList([nn.MultiheadAttention(4, 2, dropout=0.1)])


@pytest.mark.parametrize(
    ("factory", "match"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 1), nn.Dropout(0.3)), r"layer '1' \(Dropout\) drops out .*p = 0.3.*eval"),
        (attention, r"layer '0' \(MultiheadAttention\) drops out at random \(p = 0.1\)"),
        (lambda: FunctionalDropout(4, 1).double(), "another loss each time; randomness must come from explicit gen"),
        (lambda: nn.ReLU(), "ReLU has no parameter with requires_grad=True: nothing to optimise"),
        (lambda: nn.Linear(4, 1).requires_grad_(False), "Linear has no parameter with requires_grad=True"),
        (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 1).double()), r"into its buffers \['param.*eval"),
    ],
)
def test_modules_that_cannot_be_pure_or_trained_are_refused(factory, match):
    with pytest.raises(ValueError, match=match):
        ModuleTask(factory, F.mse_loss, vectors())


@pytest.mark.parametrize("dropout", [lambda: nn.Dropout(0.0), lambda: nn.Dropout(0.5).eval()])
def test_inactive_dropout_is_the_identity(dropout):
    plain, inactive = (
        ModuleTask(lambda layers=layers: nn.Sequential(nn.Linear(4, 1), *layers()).double(), F.mse_loss, vectors())
        for layers in (list, lambda: [dropout()])
    )
    params = one(plain.init_params({}, 1, torch.Generator()), 0)
    batch = dict(zip(("inputs", "targets"), vectors(), strict=True))
    assert inactive.loss(params, {}, batch).item() == plain.loss(params, {}, batch).item()


def linear():
    return nn.Linear(4, 1).double()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"fractions": (0.5, 0.5)}, "fractions must be four shares"),
        ({"fractions": (0.5, 0.1, 0.1, 0.1)}, "fractions must be four shares"),
        ({"data": vectors(n=3)}, "3 samples leave none for .*set its fraction to 0"),
        ({"data": {"test": vectors()}}, r"data must have the split train .*got \('test',\)"),
        ({"data": {"train": vectors(), "valid": vectors()}}, r"no others than .*got \('train', 'valid'\)"),
        ({"data": (vectors()[0], vectors(n=2)[1])}, r"as many targets as inputs .* \(60, 4\) and \(2, 1\)"),
        ({"data": {"train": (vectors()[0][:0], vectors()[1][:0])}}, "split train needs .*at least one"),
        ({"loss_fn": lambda output, target: (output - target).square()}, r"shape \(\), got \(128, 1\); take the mean"),
    ],
)
def test_nonsense_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        ModuleTask(**{"module": linear, "loss_fn": F.mse_loss, "data": vectors(), **options})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"module": linear()}, "module must be a function that makes one, such as `lambda: Net.*got Linear"),
        ({"module": lambda: None}, "module must make a torch.nn.Module, it made None"),
        ({"data": vectors()[0]}, r"data must be a pair \(inputs, targets\) or a Dataset"),
        ({"data": TensorDataset(vectors()[0])}, r"data must be a pair \(inputs, targets\) or a Dataset"),
    ],
)
def test_things_of_the_wrong_kind_are_refused(options, match):
    with pytest.raises(TypeError, match=match):
        ModuleTask(**{"module": linear, "loss_fn": F.mse_loss, "data": vectors(), **options})
