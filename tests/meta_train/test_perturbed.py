"""Evolution strategies: which are unbiased, which are shown not to be, and with how much noise."""

import copy
import dataclasses
import math

import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from l2o.rule import UpdateRule
from l2o.rules import SGD, Adam, AdamConfig, LSTMConfig, Momentum, MomentumConfig, SGDConfig
from meta_train.config import TrainConfig
from meta_train.estimator_problems import InfluenceBalancing, LinearSystem, NoState
from meta_train.estimators import ES, NRES, PES, MetaLoss, Truncated
from meta_train.estimators.perturbed import draw_noise, pick, repeat, start_particles, unroll_particles
from meta_train.run_directory import RunDirectory
from meta_train.tracking import Progress
from meta_train.trainer import Trainer
from meta_train.unroll import apply_rule, evaluate, start, value_and_grad
from tasks import Quadratic
from tasks.task import TaskFamily

HORIZON, WINDOW, REPEATS, PAIRS = 20, 5, 40, 250
"""40 estimates from 250 pairs each: 20,000 particles."""
MEAN = MetaLoss("mean")
STRATEGIES = {"es": ES, "pes": PES, "nres": NRES}


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


class Bowl(TaskFamily):
    """f(x) = ½ Σ h_i (x_i − b_i)² from x = 1, the same for all tasks; b = noise · N(0, 1) is the minibatch."""

    vectorized = "axes"

    def __init__(self, noise=0.0):
        self.noise = noise
        self.curvature = torch.tensor([1.0, 0.3, 0.05])

    def init_params(self, tasks, n_tasks, generator):
        return {"x": torch.ones(n_tasks, 3)}

    def sample_batch(self, tasks, n_tasks, split, generator):
        return {"b": self.noise * torch.randn(n_tasks, 3, generator=generator)} if self.noise else {}

    def loss(self, params, task, batch):
        error = params["x"] - batch["b"] if self.noise else params["x"]
        return 0.5 * (self.curvature * error.square()).sum(-1)


def vector(rule, grads):
    return torch.cat([grads[name].flatten() for name, _ in rule.named_parameters()])


def window_estimates(estimator, rule, family, window, n_tasks, generator, horizon=HORIZON):
    """Return the meta-gradients of a trajectory's windows, shape (T / K, |θ|)."""
    trajectories, estimates = estimator.start(rule, family, n_tasks, generator), []
    for begun in range(0, horizon, window):
        weights = MEAN.weights(begun, window, horizon)
        result = estimator.estimate(rule, family, trajectories, MEAN, weights, generator)
        trajectories = result.trajectories
        estimates.append(vector(rule, result.grads))
    return torch.stack(estimates)


def trajectory_estimate(*arguments):
    """Return the mean over a trajectory's windows: an estimate of the gradient of the horizon's mean loss."""
    return window_estimates(*arguments).mean(0)


def sample(estimator, rule, family, window, seed=0, repeats=REPEATS, pairs=PAIRS, horizon=HORIZON):
    """Return mean, standard error and standard deviation of many estimates."""
    generator = seeded(seed)
    estimates = torch.stack(
        [trajectory_estimate(estimator, rule, family, window, pairs, generator, horizon) for _ in range(repeats)]
    )
    spread = estimates.std(0)
    return estimates.mean(0), spread / math.sqrt(repeats), spread


def full_gradient(rule, family, window=HORIZON, horizon=HORIZON):
    """Return what autograd through windows of a length gives; by default through the whole horizon."""
    return trajectory_estimate(Truncated(2), rule, family, window, 1, seeded(), horizon)


BIAS_CASES = {
    "sgd": (lambda: SGD(SGDConfig(0.05)), Bowl, HORIZON, WINDOW),
    "momentum": (lambda: Momentum(MomentumConfig(0.1, 0.8)), Bowl, HORIZON, WINDOW),
    "adam": (lambda: Adam(AdamConfig(0.1, 0.8, 0.9)), Bowl, HORIZON, WINDOW),
    # its θ changes the sign of its influence after some 40 steps
    "influence balancing": (LinearSystem, InfluenceBalancing, 100, 25),
}


@pytest.fixture(params=BIAS_CASES)
def bias_case(request, float64):
    make_rule, make_family, horizon, window = BIAS_CASES[request.param]
    return make_rule(), make_family(), horizon, window


# ---------------------------------------------------------------- bias


@pytest.mark.parametrize("strategy", [PES, NRES])
def test_pes_and_nres_are_unbiased_over_windows(bias_case, strategy):
    # smoothing at σ = 0.001 moves the gradient by some σ² = 1e-6 of itself; a standard error is 1e-2 of it
    rule, family, horizon, window = bias_case
    mean, error, _ = sample(strategy(1e-3), rule, family, window, horizon=horizon)
    assert ((mean - full_gradient(rule, family, horizon, horizon)).abs() < 5 * error).all()


def test_full_es_is_unbiased(bias_case):
    rule, family, horizon, _ = bias_case
    mean, error, _ = sample(ES(1e-3), rule, family, horizon, horizon=horizon)
    assert ((mean - full_gradient(rule, family, horizon, horizon)).abs() < 5 * error).all()


def test_truncated_es_and_truncated_backpropagation_are_biased_alike(bias_case):
    rule, family, horizon, window = bias_case
    full, truncated = full_gradient(rule, family, horizon, horizon), full_gradient(rule, family, window, horizon)
    mean, error, _ = sample(ES(1e-3), rule, family, window, horizon=horizon)
    assert ((mean - full) / error).abs().max() > 20
    assert ((truncated - full) / error).abs().max() > 20
    assert ((mean - truncated).abs() < 5 * error).all()


def test_short_windows_have_the_wrong_sign_in_influence_balancing(float64):
    rule, family = LinearSystem(), InfluenceBalancing()
    full, truncated = full_gradient(rule, family, 100, 100), full_gradient(rule, family, 25, 100)
    assert full > 0 > truncated


class Drift(UpdateRule):
    """x ← x + sin(2θ), whatever the gradient."""

    config = None

    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor(0.2))

    def init_state(self, params):
        return NoState()

    def forward(self, observation, state):
        return {name: x + torch.sin(2 * self.theta) for name, x in observation.params.items()}, state


class Height(Bowl):
    """f(x) = x."""

    def loss(self, params, task, batch):
        return params["x"][..., 0]


@pytest.mark.parametrize(("strategy", "window"), [(ES, HORIZON), (PES, WINDOW), (NRES, WINDOW), (NRES, 1)])
def test_a_wide_perturbation_estimates_the_gradient_of_the_smoothed_loss(strategy, window, float64):
    """x_k = 1 + k sin 2θ has the mean 1 + (T + 1)/2 · sin 2θ, and smoothing multiplies sin 2θ with exp(−2σ²)."""
    plain = (HORIZON + 1) * math.cos(0.4)
    torch.testing.assert_close(full_gradient(Drift(), Height()).item(), plain)
    mean, error, _ = sample(strategy(0.5), Drift(), Height(), window)
    assert (mean - plain * math.exp(-0.5)).abs() < 5 * error
    assert (mean - plain).abs() > 20 * error


# ---------------------------------------------------------------- equalities


@pytest.mark.parametrize("window", [1, WINDOW, HORIZON])
def test_nres_summed_over_windows_is_full_es_with_the_same_noise(window, float64):
    rule, family = Momentum(MomentumConfig(0.1, 0.8)), Bowl()
    full = trajectory_estimate(ES(0.1), rule, family, HORIZON, 6, seeded())
    reused = trajectory_estimate(NRES(0.1), rule, family, window, 6, seeded())
    torch.testing.assert_close(reused, full, rtol=1e-11, atol=0)


def test_pes_over_one_window_is_full_es(float64):
    rule, family = Momentum(MomentumConfig(0.1, 0.8)), Bowl(noise=0.3)
    full = trajectory_estimate(ES(0.1), rule, family, HORIZON, 6, seeded())
    assert torch.equal(trajectory_estimate(PES(0.1), rule, family, HORIZON, 6, seeded()), full)


def test_pes_of_a_linear_system_by_hand(float64):
    """Two windows of one step each; s¹_1 = 1 + θ_1 and s¹_2 = 1 + θ_1 + θ_2, as the first unit and its next push alike.

    With θ_w = θ ± σ ε_w and f = ½ (s¹ − 1)², (L⁺ − L⁻) / (2σ) is θ ε_1 in the first window, and in the second
    2θ (ε_1 + ε_2), which is multiplied with ξ = ε_1 + ε_2.
    """
    rule, family, estimator, generator = LinearSystem(0.3), InfluenceBalancing(), PES(0.1), seeded()
    trajectories, epsilons, grads = estimator.start(rule, family, 3, generator), [], []
    for _ in range(2):
        following = torch.Generator().set_state(generator.get_state())
        epsilons.append(draw_noise(rule, family, 3, following)["theta"])
        result = estimator.estimate(rule, family, trajectories, MEAN, torch.ones(1), generator)
        trajectories = result.trajectories
        grads.append(result.grads["theta"])
    first, second = epsilons
    torch.testing.assert_close(grads[0], (0.3 * first**2).mean(0))
    torch.testing.assert_close(grads[1], (0.6 * (first + second) ** 2).mean(0))
    torch.testing.assert_close(trajectories.state.noise["theta"], first + second)


def plain_loop(name, sigma, rule, family, meta_loss, windows, n_tasks):
    """Yield the gradient, the losses and the params of every window, by one unperturbed-looking run per particle."""
    generator = seeded()
    noise = draw_noise(rule, family, n_tasks, generator) if name == "nres" else None
    center = parameters_to_vector(rule.parameters()).detach()
    begin = start(rule, family, n_tasks, generator)
    signs = (1, -1, 0)
    standing = {(i, sign): begin for i in range(n_tasks) for sign in signs}
    summed, begun = torch.zeros(n_tasks, len(center)), 0
    for length in windows:
        if name != "nres":
            noise = draw_noise(rule, family, n_tasks, generator)
        epsilon = torch.cat([noise[key].reshape(n_tasks, -1) for key, _ in rule.named_parameters()], 1)
        summed = summed + epsilon if name == "pes" else epsilon
        weights, state = meta_loss.weights(begun, length, sum(windows)), generator.get_state()
        totals, curves, begun = {}, {}, begun + length
        for i, sign in standing:
            # every task runs with the θ of particle i; only task i is read
            moved, generator = copy.deepcopy(rule), seeded()
            generator.set_state(state)
            vector_to_parameters(center + sign * sigma * epsilon[i], moved.parameters())
            total, curve, standing[i, sign] = run_window(
                moved, family, standing[i, sign], meta_loss, weights, generator
            )
            totals[i, sign], curves[i, sign] = total[i], curve[:, i]
        slopes = torch.stack([(totals[i, 1] - totals[i, -1]) / (2 * sigma) for i in range(n_tasks)])
        if name == "es":
            standing = {(i, sign): standing[i, 0] for i, sign in standing}
        seen = {"es": (0,), "pes": (1, -1), "nres": (1, -1)}[name]
        losses = torch.stack([sum(curves[i, sign] for sign in seen) / len(seen) for i in range(n_tasks)], 1)
        params = [
            {key: torch.stack([standing[i, sign].params[key][i] for i in range(n_tasks)]) for key in begin.params}
            for sign in seen
        ]
        yield slopes @ summed / n_tasks, losses, params


def measured(losses, meta_loss):
    return losses.clamp(min=1e-300).log() if meta_loss.measure == "log" else losses


@torch.no_grad()
def run_window(rule, family, trajectories, meta_loss, weights, generator):
    own, total, curve = meta_loss.split != meta_loss.inner_split, 0.0, []
    for k, weight in enumerate(weights):
        losses, grads = value_and_grad(family, trajectories, meta_loss.inner_split, generator)
        curve.append(losses)
        if k > 0 and not own:
            total = total + weights[k - 1] * measured(losses, meta_loss)
        trajectories = apply_rule(rule, trajectories, losses, grads)
        if own or k == len(weights) - 1:
            last = value_and_grad(family, trajectories, meta_loss.split, generator)[0]
            total = total + weight * measured(last, meta_loss)
    return total, torch.stack([*curve, last]), trajectories


def assert_equals_plain_loop(name, rule, family, meta_loss):
    windows, sigma, n_tasks, generator = (2, 1), 0.05, 2, seeded()
    estimator, begun = STRATEGIES[name](sigma), 0
    trajectories = estimator.start(rule, family, n_tasks, generator)
    for length, (grad, losses, params) in zip(
        windows, plain_loop(name, sigma, rule, family, meta_loss, windows, n_tasks), strict=True
    ):
        weights = meta_loss.weights(begun, length, sum(windows))
        result = estimator.estimate(rule, family, trajectories, meta_loss, weights, generator)
        trajectories, begun = result.trajectories, begun + length
        assert trajectories.n_tasks == n_tasks and trajectories.step == begun
        # differences of losses of size 1, divided by σ, carry rounding of some 1e-14
        torch.testing.assert_close(vector(rule, result.grads), grad, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(result.losses, losses, rtol=1e-12, atol=1e-14)
        for index, expected in enumerate(params):
            found = trajectories.params if name == "es" else pick(trajectories.params, index)
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize(
    "meta_loss",
    [MetaLoss("linear"), MetaLoss(split="inner_valid"), MetaLoss(measure="log")],
    ids=["same", "own split", "log"],
)
def test_particles_equal_a_plain_loop_over_perturbed_rules(name, rule, family, meta_loss):
    assert_equals_plain_loop(name, rule, family, meta_loss)


@pytest.mark.parametrize("name", STRATEGIES)
def test_particles_of_a_rule_that_mixes_coordinates_equal_a_plain_loop(name, normalized_sgd, family):
    assert_equals_plain_loop(name, normalized_sgd, family, MEAN)


def test_particles_equal_a_plain_loop_where_tasks_differ(normalized_sgd, rule):
    for each in (normalized_sgd, rule):
        assert_equals_plain_loop("pes", each, Quadratic(dim=2, start="normal"), MEAN)


# ---------------------------------------------------------------- variance


class Watched(Bowl):
    """A bowl that remembers the minibatches on which losses were evaluated."""

    def __init__(self, noise):
        super().__init__(noise)
        self.seen = []

    def loss(self, params, task, batch):
        self.seen.append(batch["b"])
        return super().loss(params, task, batch)


@pytest.mark.parametrize("split", ["train", "inner_valid"])
@pytest.mark.parametrize(("strategy", "copies"), [(ES, 3), (PES, 2), (NRES, 2)])
def test_both_members_of_a_pair_see_the_same_minibatches(strategy, copies, split, float64):
    rule, family, generator = SGD(SGDConfig(0.05)), Watched(0.5), seeded()
    trajectories = strategy(0.1).start(rule, family, 4, generator)
    strategy(0.1).estimate(rule, family, trajectories, MetaLoss(split=split), torch.ones(3), generator)
    assert len(family.seen) == (4 if split == "train" else 6)
    for batch in family.seen:
        members = batch.unflatten(0, (4, copies))
        assert all(torch.equal(members[:, 0], members[:, index]) for index in range(copies))
    assert len({tuple(batch.flatten().tolist()) for batch in family.seen}) == len(family.seen)


def particle_losses(rule, family, theta, generator):
    """Return the meta-losses of particles on tasks and minibatches of their own."""
    n_particles = next(iter(theta.values())).shape[0]
    trajectories = start_particles(rule, family, n_particles, generator)
    trajectories = trajectories._replace(params=repeat(trajectories.params, 1), state=repeat(trajectories.state, 1))
    theta = {name: tensor[:, None] for name, tensor in theta.items()}
    weights = MEAN.weights(0, HORIZON, HORIZON)
    return unroll_particles(rule, theta, family, trajectories, MEAN, weights, generator)[0][:, 0]


def independent_pairs(rule, family, sigma, pairs, generator):
    """Antithetic pairs, each member on minibatches of its own."""
    epsilon = draw_noise(rule, family, pairs, generator)["log_lr"]
    losses = particle_losses(rule, family, {"log_lr": rule.log_lr + sigma * torch.cat([epsilon, -epsilon])}, generator)
    positive, negative = losses.chunk(2)
    return (epsilon * (positive - negative) / (2 * sigma)).mean()


def single_particles(rule, family, sigma, pairs, generator):
    """As many particles, each with a perturbation of its own, none antithetic."""
    epsilon = draw_noise(rule, family, 2 * pairs, generator)["log_lr"]
    return (
        epsilon * particle_losses(rule, family, {"log_lr": rule.log_lr + sigma * epsilon}, generator) / sigma
    ).mean()


@pytest.mark.parametrize(("without", "factor"), [(independent_pairs, 3), (single_particles, 10)])
@torch.no_grad()
def test_antithetic_pairs_on_common_minibatches_lower_the_standard_deviation(without, factor, float64):
    rule, family, sigma, pairs, generator = SGD(SGDConfig(0.05)), Bowl(noise=0.3), 0.01, 50, seeded()
    _, _, spread = sample(ES(sigma), rule, family, HORIZON, pairs=pairs)
    without_spread = torch.stack([without(rule, family, sigma, pairs, generator) for _ in range(REPEATS)]).std()
    assert without_spread > factor * spread


def test_the_noise_of_an_outer_step_is_less_with_nres_than_with_pes(float64):
    # some 3.4 times; over a whole trajectory PES's windows average out (see results/estimators)
    rule, family, noise = LinearSystem(), InfluenceBalancing(), {}
    for strategy in (PES, NRES):
        generator = seeded()
        estimates = [window_estimates(strategy(0.1), rule, family, 20, 20, generator, 200) for _ in range(20)]
        noise[strategy] = torch.stack(estimates).var(0).mean().sqrt()
    assert noise[PES] > 2 * noise[NRES]


# ---------------------------------------------------------------- contract


@pytest.mark.parametrize("strategy", STRATEGIES.values())
def test_same_seed_gives_the_same_estimate_and_another_seed_another(strategy, float64):
    rule, family = Momentum(), Quadratic(dim=3)
    first, again, other = (
        trajectory_estimate(strategy(0.1), rule, family, WINDOW, 4, seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("strategy", STRATEGIES.values())
@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_sigma_is_positive_and_finite(strategy, sigma):
    with pytest.raises(ValueError, match=f"sigma must be positive and finite, got {sigma}"):
        strategy(sigma)


@pytest.mark.parametrize("strategy", STRATEGIES.values())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_estimates_have_the_form_of_the_weights_and_no_graph(strategy, dtype, generator):
    rule = SGD(SGDConfig(0.1)).to(dtype)
    rule.unused = torch.nn.Parameter(torch.ones(2, 3, dtype=torch.float64))
    family = Quadratic(dim=3)
    trajectories = strategy(0.1).start(rule, family, 4, generator)
    result = strategy(0.1).estimate(rule, family, trajectories, MEAN, torch.ones(2) / 2, generator)
    for name, parameter in rule.named_parameters():
        assert result.grads[name].shape == parameter.shape and result.grads[name].dtype == parameter.dtype
    assert result.losses.shape == (3, 4) and result.trajectories.params["theta"].shape[0] == 4
    assert not any(tensor.requires_grad for tensor in (*result.grads.values(), *result.trajectories.params.values()))


@pytest.mark.parametrize("strategy", STRATEGIES.values())
def test_estimating_changes_neither_the_rule_nor_where_the_trajectories_stood(strategy, generator):
    rule, family = Momentum(), Quadratic(dim=3, start="normal")
    trajectories = strategy(0.1).start(rule, family, 4, generator)
    weights_before, params_before = copy.deepcopy(rule.state_dict()), copy.deepcopy(trajectories.params)
    strategy(0.1).estimate(rule, family, trajectories, MEAN, torch.ones(3), generator)
    assert all(torch.equal(value, weights_before[name]) for name, value in rule.state_dict().items())
    assert all(torch.equal(value, params_before[name]) for name, value in trajectories.params.items())
    assert all(parameter.grad is None for parameter in rule.parameters())


@pytest.mark.parametrize("strategy", STRATEGIES.values())
def test_exploding_particles_give_a_gradient_that_is_not_finite_instead_of_a_crash(strategy, generator):
    rule, family = SGD(SGDConfig(1e6)), Quadratic(start="normal")
    trajectories = strategy(0.1).start(rule, family, 2, generator)
    result = strategy(0.1).estimate(rule, family, trajectories, MEAN, torch.ones(30), generator)
    assert not result.grads["log_lr"].isfinite()


# ---------------------------------------------------------------- in the trainer


TINY = TrainConfig(
    Quadratic(dim=3),
    SGDConfig(lr=0.003),
    horizon=10,
    truncation=4,
    n_tasks=8,
    outer_steps=17,
    outer_lr=0.05,
    sigma=0.05,
    validate_every=6,
    valid_tasks=8,
    checkpoint_every=5,
)


def trainer(path, config):
    fresh = not (path / "config.json").exists()
    run = RunDirectory.create(path, config) if fresh else RunDirectory.open(path)
    return Trainer(run, Progress(run, "off"))


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("rule", [SGDConfig(lr=0.003), LSTMConfig(hidden_size=3, p=None)], ids=["sgd", "lstm"])
def test_training_stopped_within_a_trajectory_resumes_bit_for_bit(name, rule, tmp_path):
    config = dataclasses.replace(TINY, estimator=name, rule=rule)
    whole = trainer(tmp_path / "whole", config)
    whole.train()
    interrupted = trainer(tmp_path / "parts", config)
    report = interrupted.progress.outer_step

    def stop_at_8(outer_step, *facts):  # after the second of a trajectory's three windows
        interrupted.stop_requested = outer_step >= 8
        report(outer_step, *facts)

    interrupted.progress.outer_step = stop_at_8
    interrupted.train()
    assert interrupted.outer_step == 8
    resumed = trainer(tmp_path / "parts", config)
    assert resumed.outer_step == 8
    resumed.train()
    assert resumed.outer_step == whole.outer_step == 17
    for key, value in whole.rule.state_dict().items():
        assert torch.equal(resumed.rule.state_dict()[key], value), key
    (found, counters), (expected, expected_counters) = (each.run.load_state() for each in (resumed, whole))
    assert counters == expected_counters and found.keys() == expected.keys()
    assert not [key for key in expected if not torch.equal(found[key], expected[key])]


@pytest.mark.parametrize(("name", "rule", "outer_lr"), [
    ("pes", SGDConfig(lr=0.001), 0.1),
    ("nres", SGDConfig(lr=0.001), 0.1),
    ("pes", LSTMConfig(hidden_size=3, p=None), 0.03),
])  # fmt: skip
def test_meta_training_without_derivatives_lowers_the_meta_loss(name, rule, outer_lr, tmp_path):
    config = dataclasses.replace(
        TINY, estimator=name, rule=rule, outer_lr=outer_lr, sigma=0.1, n_tasks=64, horizon=20, truncation=5,
        outer_steps=120, validate_every=120, checkpoint_every=120,
    )  # fmt: skip
    training = trainer(tmp_path / "run", config)

    def mean_loss():
        return evaluate(training.rule, config.task, 256, 20, "test", seeded(5)).mean().item()

    before = mean_loss()
    training.train()
    assert mean_loss() < 0.7 * before
