"""Classic rules against torch.optim, and the laws that every rule obeys."""

import dataclasses
import math

import pytest
import torch
from torch.func import functional_call, vmap

from l2o.rule import CoordinatewiseRule, Observation, UpdateRule
from l2o.rules import RULES, SGD, Adam, AdamConfig, Momentum, MomentumConfig, RMSprop, RMSpropConfig, SGDConfig

SHAPES = {"scalar": (), "bias": (3,), "weight": (2, 3), "filter": (2, 1, 3, 2)}

CLASSICS = {
    "sgd": (SGD(SGDConfig(0.03)), lambda params: torch.optim.SGD(params, 0.03)),
    "heavy-ball": (Momentum(MomentumConfig(0.02, 0.9)), lambda params: torch.optim.SGD(params, 0.02, momentum=0.9)),
    "nesterov": (
        Momentum(MomentumConfig(0.02, 0.8, nesterov=True)),
        lambda params: torch.optim.SGD(params, 0.02, momentum=0.8, nesterov=True),
    ),
    "rmsprop": (
        RMSprop(RMSpropConfig(0.01, 0.95, 1e-6)),
        lambda params: torch.optim.RMSprop(params, 0.01, alpha=0.95, eps=1e-6),
    ),
    "adam": (
        Adam(AdamConfig(0.02, 0.9, 0.999, 1e-7)),
        lambda params: torch.optim.Adam(params, 0.02, betas=(0.9, 0.999), eps=1e-7),
    ),
}


def random_like(shapes, generator, leading=(), dtype=None):
    return {name: torch.randn((*leading, *shape), generator=generator, dtype=dtype) for name, shape in shapes.items()}


def observe(params, grads, step=0):
    return Observation(params, grads, torch.zeros(()), torch.tensor(step))


def run(rule, params, sequence, state=None):
    """Apply the rule to a sequence of gradients."""
    state = rule.init_state(params) if state is None else state
    for step, grads in enumerate(sequence):
        params, state = rule(observe(params, grads, step), state)
    return params, state


def one(data, i):
    return {name: value[i] for name, value in data.items()}


def assert_same(left, right):
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def nonconvex_loss(params, noise):
    """Coupled over all tensors, with curvatures between 0.1 and 3 and gradients that change with the noise."""
    total = sum((p - noise[name]).square().sum() * (0.1 + i) for i, (name, p) in enumerate(params.items()))
    return (
        total / 2
        + torch.sin(sum(p.sum() for p in params.values()) / 3)
        + sum((p**4).sum() / 4 for p in params.values())
    )


@pytest.mark.parametrize("name", CLASSICS)
def test_classic_rule_equals_torch_optim_over_100_steps(name, float64, generator):
    rule, make_optimizer = CLASSICS[name]
    rule = type(rule)(rule.config)  # in float64
    params = random_like(SHAPES, generator)
    theirs = {name: p.clone().requires_grad_() for name, p in params.items()}
    optimizer, state, start = make_optimizer(list(theirs.values())), rule.init_state(params), params
    for step in range(100):
        noise = random_like(SHAPES, generator)
        grads = torch.func.grad(nonconvex_loss)(params, noise)
        params, state = rule(observe(params, grads, step), state)
        optimizer.zero_grad()
        nonconvex_loss(theirs, noise).backward()
        optimizer.step()
    for key, p in params.items():
        torch.testing.assert_close(p, theirs[key].detach(), rtol=1e-9, atol=1e-9)
        assert (p - start[key]).abs().min() > 1e-4  # every coordinate has moved


def test_every_rule_of_the_library_is_in_the_conformance_suite(all_rules, generator):
    assert {type(build(generator)) for build in all_rules.values()} == {rule_type for rule_type, _ in RULES.values()}


def test_every_rule_is_rebuilt_from_its_frozen_config(rule):
    twin = type(rule)(rule.config)
    shapes = {name: p.shape for name, p in rule.named_parameters()}
    assert {name: p.shape for name, p in twin.named_parameters()} == shapes and shapes
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.config.lr = 1.0


def test_state_is_a_named_tuple_of_tensors_with_the_coordinates_last(rule, generator):
    params = random_like(SHAPES, generator)
    for state in (rule.init_state(params), run(rule, params, [params] * 2)[1]):
        assert isinstance(state, tuple) and hasattr(state, "_asdict")
        assert [tensor.shape[-1] for tensor in state] == [sum(p.numel() for p in params.values())] * len(state)


def test_rule_is_pure(rule, generator):
    params, grads = random_like(SHAPES, generator), random_like(SHAPES, generator)
    _, state = run(rule, params, [random_like(SHAPES, generator)])
    inputs = [*params.values(), *grads.values(), *state, *rule.parameters(), *rule.buffers()]
    copies, versions = [tensor.detach().clone() for tensor in inputs], [tensor._version for tensor in inputs]
    first = rule(observe(params, grads, 1), state)
    second = rule(observe(params, grads, 1), state)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, copies, strict=True))
    assert [tensor._version for tensor in inputs] == versions
    assert all(torch.equal(first[0][name], second[0][name]) for name in params)
    assert all(torch.equal(left, right) for left, right in zip(first[1], second[1], strict=True))
    assert all(not torch.equal(first[0][name], params[name]) for name in params)


def test_vmap_over_tasks_equals_loop(rule, generator):
    tasks = random_like(SHAPES, generator, leading=(4,))
    sequence = [random_like(SHAPES, generator, leading=(4,)) for _ in range(3)]
    loop = [run(rule, one(tasks, i), [one(grads, i) for grads in sequence]) for i in range(4)]
    params, state = tasks, vmap(rule.init_state)(tasks)
    for step, grads in enumerate(sequence):
        params, state = vmap(lambda p, g, s, step=step: rule(observe(p, g, step), s))(params, grads, state)
    for i, (expected, expected_state) in enumerate(loop):
        assert_same(one(params, i), expected)
        assert_same([tensor[i] for tensor in state], list(expected_state))
        if isinstance(rule, CoordinatewiseRule):  # takes leading task axes as they are
            assert_same(one(run(rule, tasks, sequence)[0], i), expected)


def test_permuting_coordinates_permutes_the_updates(rule, generator):
    params, sequence = torch.randn(9, generator=generator), torch.randn(4, 9, generator=generator)
    order = torch.randperm(9, generator=generator)
    straight, state = run(rule, {"x": params}, [{"x": grads} for grads in sequence])
    permuted, permuted_state = run(rule, {"x": params[order]}, [{"x": grads[order]} for grads in sequence])
    assert_same(permuted["x"], straight["x"][order])
    assert_same(list(permuted_state), [tensor[..., order] for tensor in state])


def test_concatenated_tensors_move_as_separate_ones(rule, generator):
    params, sequence = torch.randn(9, generator=generator), torch.randn(4, 9, generator=generator)
    shape = (2, 2) if isinstance(rule, CoordinatewiseRule) else (4,)  # a picture has neighbours
    whole, _ = run(rule, {"x": params}, [{"x": grads} for grads in sequence])
    together, _ = run(
        rule,
        {"a": params[:4].reshape(shape), "b": params[4:]},
        [{"a": g[:4].reshape(shape), "b": g[4:]} for g in sequence],
    )
    assert_same(torch.cat([together["a"].flatten(), together["b"]]), whole["x"])
    alone, _ = run(rule, {"b": params[4:]}, [{"b": grads[4:]} for grads in sequence])
    assert_same(alone["b"], whole["x"][4:])


def test_zero_dimensional_and_empty_tensors_are_updated_like_others(rule, generator):
    scalar, sequence = torch.randn((), generator=generator), torch.randn(3, generator=generator)
    params = {"empty": torch.zeros(0, 3), "scalar": scalar}
    moved, _ = run(rule, params, [{"empty": torch.zeros(0, 3), "scalar": grad} for grad in sequence])
    expected, _ = run(rule, {"x": scalar[None]}, [{"x": grad[None]} for grad in sequence])
    assert moved["empty"].shape == (0, 3)
    assert moved["scalar"].shape == ()
    assert_same(moved["scalar"], expected["x"][0])
    nothing, _ = run(rule, {"empty": torch.zeros(0)}, [{"empty": torch.zeros(0)}] * 2)
    assert nothing["empty"].shape == (0,)


def test_zero_gradients_leave_updates_finite_and_classics_still(rule):
    moved, _ = run(rule, {"x": torch.ones(3)}, [{"x": torch.zeros(3)}] * 3)
    weights = dict(getattr(rule, "coordinates", rule).named_parameters())
    if "log_lr" in weights:
        assert torch.equal(moved["x"], torch.ones(3))
    else:
        # |u| ≤ scale (|w|₁ + |b|) because |h| ≤ 1
        bound = rule.config.scale * (weights["output_weight"].abs().sum() + weights["output_bias"].abs().sum())
        assert (moved["x"] - 1).abs().max() <= 3 * bound


def test_bfloat16_params_come_back_in_bfloat16_with_float32_memory(make_rule, generator):
    rule = make_rule()
    params = random_like(SHAPES, generator, dtype=torch.bfloat16)
    sequence = [random_like(SHAPES, generator, dtype=torch.bfloat16) for _ in range(3)]
    moved, state = run(rule, params, sequence)
    assert {p.dtype for p in moved.values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in state} <= {torch.float32}
    # One step equals the float32 step rounded once.
    wide, _ = run(rule, {n: p.float() for n, p in params.items()}, [{n: g.float() for n, g in sequence[0].items()}])
    narrow, _ = run(rule, params, sequence[:1])
    assert all(torch.equal(narrow[name], wide[name].bfloat16()) for name in params)


def test_each_tensor_keeps_its_own_dtype(make_rule, generator):
    rule = make_rule()
    dtypes = {"half": torch.float16, "brain": torch.bfloat16, "single": torch.float32, "double": torch.float64}
    params = {name: torch.randn(3, generator=generator).to(dtype) for name, dtype in dtypes.items()}
    moved, _ = run(rule, params, [params] * 2)
    assert {name: p.dtype for name, p in moved.items()} == dtypes


def test_forward_without_gradients_raises(rule):
    params = {"x": torch.zeros(2)}
    with pytest.raises(ValueError, match=f"{type(rule).__name__} needs gradients"):
        rule(Observation(params, None, None, torch.tensor(0)), rule.init_state(params))


def test_functional_call_with_perturbed_weights_equals_a_rule_that_has_them(rule, generator):
    params, grads = random_like(SHAPES, generator), random_like(SHAPES, generator)
    theta = {n: torch.stack([p.detach() + 0.1 * torch.randn(p.shape, generator=generator) for _ in range(3)])
             for n, p in rule.named_parameters()}  # fmt: skip
    state = rule.init_state(params)

    def step(theta):
        return functional_call(rule, theta, (observe(params, grads), state))

    expected, _ = rule(observe(params, grads), state)
    together, _ = vmap(step)(theta)  # as evolution strategies do
    for i in range(3):
        alone, _ = step(one(theta, i))
        twin = type(rule)(rule.config)
        twin.load_state_dict(one(theta, i))
        assert_same(alone, twin(observe(params, grads), state)[0])
        assert_same(one(together, i), alone)
        assert not torch.allclose(alone["weight"], expected["weight"])


def test_every_weight_has_a_gradient(rule, generator):
    params, sequence = random_like(SHAPES, generator), [random_like(SHAPES, generator) for _ in range(3)]
    moved, _ = run(rule, params, sequence)
    loss = sum(p.square().sum() for p in moved.values())
    for gradient in torch.autograd.grad(loss, list(rule.parameters())):
        assert gradient.abs().max() > 0
        assert gradient.isfinite().all()


def test_second_order_gradient_at_zero_gradient_is_finite(rule):
    grads = torch.tensor([0.0, 1e-30, 0.3], requires_grad=True)
    moved, _ = run(rule, {"x": torch.zeros(3)}, [{"x": grads}, {"x": grads}])
    gradients = torch.autograd.grad(moved["x"].sum(), [grads, *rule.parameters()], materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_contracts_are_abstract():
    with pytest.raises(TypeError, match="abstract"):
        UpdateRule()
    with pytest.raises(TypeError, match="abstract"):
        CoordinatewiseRule()


def test_learned_hyperparameters_start_at_the_config(float64):
    rule = Adam(AdamConfig(lr=0.02, beta1=0.8, beta2=0.99))
    values = rule.log_lr.exp(), rule.logit_beta1.sigmoid(), rule.logit_beta2.sigmoid()
    assert [value.item() for value in values] == pytest.approx([0.02, 0.8, 0.99], rel=1e-12)


def test_adams_bias_correction_keeps_its_digits_in_float32_when_beta_is_near_one():
    rule = Adam(AdamConfig(lr=1.0, beta2=0.99999))
    moved, _ = run(rule, {"x": torch.zeros(2)}, [{"x": torch.tensor([1e-3, -2.0])}])
    # The first step is −lr · sign(g): 1 − β₂ has 7 digits of its own; computed as 1 − 0.99999f it would have two.
    # 1e-5 because ε = 1e-8 is 1e-5 of the first gradient.
    assert moved["x"].tolist() == pytest.approx([-1.0, 1.0], rel=1.1e-5)


def test_lr_outside_its_range_is_refused_by_every_classic():
    for rule_type, config_type in (
        (SGD, SGDConfig),
        (Momentum, MomentumConfig),
        (RMSprop, RMSpropConfig),
        (Adam, AdamConfig),
    ):
        with pytest.raises(ValueError, match="math domain|positive"):
            rule_type(config_type(lr=-math.pi))


@pytest.mark.parametrize(
    ("config_type", "options", "name"),
    [
        (SGDConfig, {"lr": 0.0}, "lr"),
        (SGDConfig, {"lr": float("nan")}, "lr"),
        (MomentumConfig, {"lr": -1.0}, "lr"),
        (MomentumConfig, {"momentum": 1.0}, "momentum"),
        (RMSpropConfig, {"lr": float("inf")}, "lr"),
        (RMSpropConfig, {"eps": 0.0}, "eps"),
        (RMSpropConfig, {"decay": 0.0}, "decay"),
        (AdamConfig, {"eps": -1.0}, "eps"),
        (AdamConfig, {"beta1": 1.5}, "beta1"),
        (AdamConfig, {"beta2": float("nan")}, "beta2"),
    ],
)
def test_configs_refuse_what_has_no_logarithm_or_logit(config_type, options, name):
    with pytest.raises(ValueError, match=f"{name} must"):
        config_type(**options)
