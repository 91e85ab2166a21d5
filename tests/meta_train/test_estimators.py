"""Meta-gradients: against central differences, against each other and against a case derived by hand."""

import copy
import math

import pytest
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from l2o.rule import CoordinatewiseRule
from l2o.rules import SGD, TENSORFLOW, CoordinatewiseLSTM, SGDConfig
from meta_train.estimators import MetaLoss, Recorded, Truncated
from meta_train.estimators.estimator import Estimator
from meta_train.unroll import Trajectories, apply_rule, init_state, start
from tasks import MLP, Quadratic
from tasks.task import TaskFamily

HORIZON = 6
SAME, OWN = MetaLoss("linear"), MetaLoss("mean", split="inner_valid")
LOG = MetaLoss("linear", split="inner_valid", measure="log")
WEIGHTINGS = ("mean", "linear", "final")


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def grad_vector(rule, result):
    """The meta-gradient in the order of the rule's parameters."""
    return torch.cat([result.grads[name].flatten() for name, _ in rule.named_parameters()])


def differ(left, right):
    """Distance relative to the length of the right one."""
    return ((left - right).norm() / right.norm()).item()


# ---------------------------------------------------------------- the meta-loss by its definition


def minibatches(family, tasks, n_tasks, meta_loss, length):
    """Return the minibatches on which g_0 … g_{K−1} and f(θ_1) … f(θ_K) are taken, as `MetaLoss` describes them."""
    generator, inner, meta = seeded(), [], []
    own = meta_loss.split != meta_loss.inner_split
    for k in range(length):
        inner.append(family.sample_batch(tasks, n_tasks, meta_loss.inner_split, generator))
        if own or k == length - 1:
            meta.append(family.sample_batch(tasks, n_tasks, meta_loss.split, generator))
    return inner, meta if own else inner[1:] + meta


def unrolled_meta_loss(rule, family, trajectories, meta_loss, weights, frozen=None):
    """Return Σ_k w_k f(θ_k), or log f, mean over tasks, and the inner gradients used: the frozen or the true ones."""
    inner, meta = minibatches(family, trajectories.tasks, trajectories.n_tasks, meta_loss, len(weights))
    total, used, now = 0.0, [], trajectories
    gradient_and_loss = torch.func.vmap(torch.func.grad_and_value(family.loss))
    with torch.no_grad():
        for k, weight in enumerate(weights.tolist()):
            grads, losses = gradient_and_loss(now.params, now.tasks, inner[k])
            used.append(grads)
            now = apply_rule(rule, now, losses, frozen[k] if frozen else grads)
            losses = torch.func.vmap(family.loss)(now.params, now.tasks, meta[k])
            total += weight * (losses.log() if meta_loss.measure == "log" else losses).mean().item()
    return total, used


def directions(rule):
    """Each weight where there are few, three random directions where there are many."""
    size = sum(parameter.numel() for parameter in rule.parameters())
    if size <= 3:
        return torch.eye(size)
    return torch.nn.functional.normalize(torch.randn(3, size, generator=seeded(8)), dim=1) * size**0.5


def central_differences(function, rule, step=2e-5):
    """Fourth-order central differences of function(rule) in its weights along `directions`.

    Errors: h⁴ f⁗ / 30 of truncation, 1e-16 f / h ≈ 1e-11 of rounding.
    """
    center = parameters_to_vector(rule.parameters()).detach()

    def at(shift):
        moved = copy.deepcopy(rule)
        vector_to_parameters(center + shift, moved.parameters())
        return function(moved)

    return torch.stack([
        torch.tensor((8 * (at(step * d) - at(-step * d)) - (at(2 * step * d) - at(-2 * step * d))) / (12 * step))
        for d in directions(rule)
    ])  # fmt: skip


def window_start(rule, family, warm_up=0):
    """Three problems, after some steps so that the rule's memory is not empty."""
    trajectories = start(rule, family, 3, seeded(9))
    if warm_up:
        result = Truncated().estimate(rule, family, trajectories, SAME, torch.ones(warm_up), seeded(10))
        trajectories = result.trajectories
    return trajectories


def assert_equals_central_differences(rule, family, order, meta_loss=SAME, warm_up=0):
    trajectories = window_start(rule, family, warm_up)
    weights = meta_loss.weights(warm_up, 4, HORIZON)
    frozen = unrolled_meta_loss(rule, family, trajectories, meta_loss, weights)[1] if order == 1 else None
    expected = central_differences(
        lambda moved: unrolled_meta_loss(moved, family, trajectories, meta_loss, weights, frozen)[0], rule
    )
    result = Truncated(order).estimate(rule, family, trajectories, meta_loss, weights, seeded())
    assert expected.abs().min() > 1e-7  # so that the relative tolerance of 1e-6 is above the rounding
    torch.testing.assert_close(directions(rule) @ grad_vector(rule, result), expected, rtol=1e-6, atol=1e-10)


# ---------------------------------------------------------------- central differences


@pytest.mark.parametrize("meta_loss", [SAME, OWN, LOG], ids=["same minibatches", "own split", "log"])
def test_second_order_equals_central_differences(rule, family, meta_loss):
    assert_equals_central_differences(rule, family, 2, meta_loss)


@pytest.mark.parametrize("meta_loss", [SAME, OWN, LOG], ids=["same minibatches", "own split", "log"])
def test_first_order_equals_central_differences_with_frozen_gradients(rule, family, meta_loss):
    assert_equals_central_differences(rule, family, 1, meta_loss)


@pytest.mark.parametrize("order", [1, 2])
def test_window_in_the_middle_of_a_trajectory_equals_central_differences(rule, order, float64):
    assert_equals_central_differences(rule, Quadratic(dim=5, start="normal"), order, warm_up=2)


@pytest.mark.parametrize("order", [1, 2])
def test_rule_that_mixes_coordinates_equals_central_differences(normalized_sgd, family, order):
    assert not isinstance(normalized_sgd, CoordinatewiseRule)
    assert_equals_central_differences(normalized_sgd, family, order)
    assert_equals_central_differences(normalized_sgd, family, order, OWN, warm_up=2)


def test_second_order_differs_from_first_order(rule, family):
    trajectories, weights = window_start(rule, family), SAME.weights(0, 5, HORIZON)
    first, second = (
        grad_vector(rule, Truncated(order).estimate(rule, family, trajectories, SAME, weights, seeded()))
        for order in (1, 2)
    )
    assert differ(first, second) > 1e-6  # rounding makes 1e-14; the TensorFlow rule's first updates are of size 1e-3


# ---------------------------------------------------------------- derived by hand


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_sgd_on_a_one_dimensional_quadratic_equals_its_closed_form(weighting, float64):
    """f = e², e = Wx − y, so e_k = r^k e_0 with r = 1 − 2ηW².

    True derivative:  d f_k / d log η = 2 k e_0² r^{2k−1} · (r − 1).
    First order: with frozen gradients x_k − x_0 is proportional to η, so d f_k / d log η = f'(x_k) (x_k − x_0)
    = 2 e_k (e_k − e_0) = 2 e_0² r^k (r^k − 1).
    """
    lr, steps = 0.03, 6
    rule, family, meta_loss = SGD(SGDConfig(lr)), Quadratic(dim=1, start="normal"), MetaLoss(weighting)
    trajectories = start(rule, family, 8, seeded())
    width, target = trajectories.tasks["W"][:, 0, 0], trajectories.tasks["y"][:, 0]
    error, ratio = width * trajectories.params["theta"][:, 0] - target, 1 - 2 * lr * width**2
    weights = meta_loss.weights(0, steps, steps)
    k = torch.arange(1, steps + 1)[:, None]
    true = 2 * k * error**2 * ratio ** (2 * k - 1) * (ratio - 1)
    first_order = 2 * error**2 * ratio**k * (ratio**k - 1)
    for estimator, derivatives in ((Truncated(2), true), (Truncated(1), first_order), (Recorded(), first_order)):
        result = estimator.estimate(rule, family, trajectories, meta_loss, weights, seeded())
        expected = (weights[:, None] * derivatives).sum(0).mean()
        torch.testing.assert_close(result.grads["log_lr"], expected, rtol=1e-12, atol=0)
        losses = error**2 * ratio ** (2 * torch.arange(steps + 1)[:, None])
        torch.testing.assert_close(result.losses, losses, rtol=1e-11, atol=1e-14)


# ---------------------------------------------------------------- recorded equals truncated


DTYPES = (torch.float32, torch.float64)


def run_windows(estimator, rule, family, meta_loss, windows, n_tasks=3):
    """Estimate window after window from one generator; return gradients, losses and last iterates."""
    generator, begun, horizon, results = seeded(), 0, sum(windows), []
    trajectories = start(rule, family, n_tasks, generator)
    for length in windows:
        weights = meta_loss.weights(begun, length, horizon)
        results.append(estimator.estimate(rule, family, trajectories, meta_loss, weights, generator))
        trajectories, begun = results[-1].trajectories, begun + length
    return results


def assert_recorded_equals_truncated(rule, family, meta_loss, windows=(4, 4, 2), rtol=1e-12):
    truncated = run_windows(Truncated(1), rule, family, meta_loss, windows)
    recorded = run_windows(Recorded(), rule, family, meta_loss, windows)
    by_autograd = type(family).evaluator is TaskFamily.evaluator  # a family's own evaluation rounds otherwise
    tolerance = {"rtol": 0, "atol": 0} if by_autograd else {"rtol": 1e-12, "atol": 1e-15}
    for number, (left, right) in enumerate(zip(recorded, truncated, strict=True)):
        torch.testing.assert_close(left.losses, right.losses, **tolerance)
        assert left.trajectories.step == right.trajectories.step == sum(windows[: number + 1])
        for name, value in right.trajectories.params.items():
            torch.testing.assert_close(left.trajectories.params[name], value, **tolerance)
        assert left.grads.keys() == right.grads.keys() == dict(rule.named_parameters()).keys()
        if meta_loss.weighting == "final" and number < len(windows) - 1:
            assert grad_vector(rule, left).abs().max() == grad_vector(rule, right).abs().max() == 0
        else:
            assert differ(grad_vector(rule, left), grad_vector(rule, right)) < rtol
            assert grad_vector(rule, right).norm() > 0


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("split", ["train", "inner_valid"])
@pytest.mark.parametrize("measure", ["loss", "log"])
def test_recorded_equals_truncated_over_windows_with_carried_state(
    coordinatewise_rule, family, weighting, split, measure
):
    assert_recorded_equals_truncated(coordinatewise_rule, family, MetaLoss(weighting, split=split, measure=measure))


class Falling(TaskFamily):
    """f(θ) = θ, for which a loss may be a view of the params."""

    vectorized = "axes"

    def init_params(self, tasks, n_tasks, generator):
        return {"height": torch.rand(n_tasks, generator=generator)}

    def loss(self, params, task, batch):
        return params["height"].view(-1)


def test_losses_that_are_views_of_the_params_are_kept(float64):
    assert_recorded_equals_truncated(SGD(SGDConfig(0.1)), Falling(), SAME, (3, 2))
    (result,) = run_windows(Recorded(), SGD(SGDConfig(0.1)), Falling(), SAME, (3,))
    torch.testing.assert_close(result.losses[0] - result.losses, 0.1 * torch.arange(4.0)[:, None].expand(4, 3))


def test_params_of_several_precisions_equal_truncated(float64):
    class Mixed(Falling):
        def init_params(self, tasks, n_tasks, generator):
            return {name: torch.rand(n_tasks, generator=generator).to(d) for name, d in zip("ab", DTYPES, strict=True)}

        def loss(self, params, task, batch):
            return params["a"].double().square() + params["b"].square()

    # autograd sums the slopes of the one in float32
    assert_recorded_equals_truncated(SGD(SGDConfig(0.1)), Mixed(), SAME, (3, 2), rtol=1e-7)


def test_float64_optimizees_keep_their_precision_where_the_default_is_float32():
    """A share of a third of the meta-loss, in float32, is 3e-8 off."""

    class Square(Falling):
        def init_params(self, tasks, n_tasks, generator):
            return {"height": torch.rand(n_tasks, generator=generator, dtype=torch.float64)}

        def loss(self, params, task, batch):
            return params["height"].square()

    assert_recorded_equals_truncated(SGD(SGDConfig(0.1)).double(), Square(), SAME, (3, 2))


@pytest.mark.parametrize("dim", [1, 2, 5, 6, 11])
def test_number_of_coordinates_does_not_matter(coordinatewise_rule, dim):
    """3 tasks: 3 to 33 coordinates, on both sides of the widths of vector registers."""
    assert_recorded_equals_truncated(coordinatewise_rule, Quadratic(dim, start="normal"), SAME, (3, 2))


def test_recorded_equals_truncated_for_minibatches_of_digits_in_several_chunks(coordinatewise_rule):
    # 3 · 1,510 coordinates, which rules replay 2,048 at a time
    family = MLP("digits", hidden=(20,), init_scale=None)
    assert_recorded_equals_truncated(coordinatewise_rule, family, MetaLoss(), (4, 3))


def test_recorded_equals_truncated_for_the_published_configuration(float64, generator):
    rule, family = CoordinatewiseLSTM(TENSORFLOW, generator), MLP("digits", hidden=(20,))
    assert_recorded_equals_truncated(rule, family, MetaLoss(), (20, 20))


def test_recorded_equals_truncated_in_float32(make_coordinatewise_rule):
    # Sums of about 10³ terms in another order: 1e-5 is a hundred roundings of 1.2e-7.
    family = MLP("digits", hidden=(4,), batch_size=16, init_scale=0.3)
    assert_recorded_equals_truncated(make_coordinatewise_rule(), family, MetaLoss(), (5, 5), rtol=1e-5)


def test_window_of_one_step_has_a_gradient(coordinatewise_rule):
    assert_recorded_equals_truncated(coordinatewise_rule, Quadratic(dim=5, start="normal"), MetaLoss(), (1, 1))


# ---------------------------------------------------------------- side effects


@pytest.mark.parametrize("estimator", [Truncated(1), Truncated(2), Recorded()], ids=str)
def test_estimate_changes_neither_the_rule_nor_the_given_trajectories(estimator, rule, family):
    if isinstance(estimator, Recorded) and not isinstance(rule, CoordinatewiseRule):
        pytest.skip("has no recorded gradients")
    trajectories = window_start(rule, family, warm_up=1)
    given = [*trajectories.params.values(), *trajectories.state, *trajectories.tasks.values(), *rule.parameters()]
    copies = [tensor.detach().clone() for tensor in given]
    result = estimator.estimate(rule, family, trajectories, SAME, torch.ones(3), seeded())
    assert all(torch.equal(tensor, before) for tensor, before in zip(given, copies, strict=True))
    assert all(parameter.grad is None for parameter in rule.parameters())
    after = [*result.trajectories.params.values(), *result.trajectories.state, result.losses, *result.grads.values()]
    assert not any(tensor.requires_grad for tensor in after)
    assert (trajectories.step, result.trajectories.step) == (1, 4)


@pytest.mark.parametrize("estimator", [Truncated(1), Truncated(2), Recorded()], ids=str)
def test_same_seed_gives_the_same_bits(estimator, rule, family):
    if isinstance(estimator, Recorded) and not isinstance(rule, CoordinatewiseRule):
        pytest.skip("has no recorded gradients")
    first, second = (
        estimator.estimate(rule, family, window_start(rule, family), SAME, torch.ones(3), seeded()) for _ in range(2)
    )
    assert torch.equal(grad_vector(rule, first), grad_vector(rule, second))


def test_order_does_not_change_the_trajectory(rule, family):
    ends = [run_windows(Truncated(order), rule, family, OWN, (3, 2))[-1].trajectories.params for order in (1, 2)]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-12, atol=1e-13)


def test_gradient_is_the_mean_over_tasks(rule):
    family, weights = Quadratic(dim=4, start="normal"), torch.ones(3) / 3
    together = start(rule, family, 2, seeded())

    def estimate(trajectories):
        return grad_vector(rule, Truncated(2).estimate(rule, family, trajectories, SAME, weights, seeded()))

    def one(i):
        tasks, params = ({name: value[i : i + 1] for name, value in data.items()} for data in together[:2])
        return Trajectories(tasks, params, init_state(rule, family, tasks, params), together.step)

    alone = [one(i) for i in range(2)]
    assert differ(estimate(together), (estimate(alone[0]) + estimate(alone[1])) / 2) < 1e-12


def test_parameter_that_the_update_ignores_gets_a_zero_gradient(float64):
    rule = SGD(SGDConfig(0.1))
    rule.unused = torch.nn.Parameter(torch.ones(2))
    family = Quadratic(dim=3, start="normal")
    for estimator in (Truncated(1), Truncated(2), Recorded()):
        result = estimator.estimate(rule, family, start(rule, family, 2, seeded()), SAME, torch.ones(2), seeded())
        assert torch.equal(result.grads["unused"], torch.zeros(2))
        assert result.grads["log_lr"].abs() > 0


def test_exploding_trajectory_gives_a_gradient_that_is_not_finite_instead_of_a_crash():
    rule, family = SGD(SGDConfig(1e6)), Quadratic(start="normal")
    for estimator in (Truncated(1), Truncated(2), Recorded()):
        result = estimator.estimate(rule, family, start(rule, family, 2, seeded()), SAME, torch.ones(30), seeded())
        assert not result.grads["log_lr"].isfinite()


# ---------------------------------------------------------------- meta-loss and errors


def test_weights_of_the_meta_loss_by_hand(float64):
    assert MetaLoss("mean").weights(4, 4, 10).tolist() == [0.25] * 4
    assert MetaLoss("linear").weights(4, 2, 10).tolist() == pytest.approx([2 * 5 / 20, 2 * 6 / 20])
    assert [MetaLoss("final").weights(s, 2, 6).tolist() for s in (0, 2, 4)] == [[0, 0], [0, 0], [0, 1]]


@pytest.mark.parametrize("weighting, total", [("mean", 3.0), ("linear", 3 * 13 / 12), ("final", 1.0)])
def test_weights_over_the_windows_of_a_horizon_have_the_stated_sum(weighting, total, float64):
    sums = [MetaLoss(weighting).weights(begun, 4, 12).sum().item() for begun in (0, 4, 8)]
    assert math.fsum(sums) == pytest.approx(total)


def test_log_of_a_loss_counts_relative_progress_and_zero_has_no_slope(float64):
    losses = torch.tensor([1e-6, 2.0, 0.0], requires_grad=True)
    log = MetaLoss(measure="log")
    assert log.of(losses)[:2].tolist() == pytest.approx([math.log(1e-6), math.log(2.0)])
    assert log.of(losses).isfinite().all()
    slope = torch.autograd.grad(log.of(losses).sum(), losses)[0]
    assert torch.equal(log.slope(losses.detach()), slope) and slope.tolist() == pytest.approx([1e6, 0.5, 0.0])
    assert MetaLoss().slope(losses) is None and MetaLoss().of(losses) is losses


@pytest.mark.parametrize("split", ["test", "outer_valid"])
@pytest.mark.parametrize("option", ["split", "inner_split"])
def test_meta_loss_refuses_splits_that_judge_rules(option, split):
    with pytest.raises(ValueError, match=f"meta-training uses the splits .* only, got '{split}'"):
        MetaLoss(**{option: split})


def test_meta_loss_refuses_an_unknown_weighting_or_measure():
    with pytest.raises(ValueError, match="weighting is mean, linear or final, got 'sum'"):
        MetaLoss("sum")
    with pytest.raises(ValueError, match="measure is loss or log, got 'sqrt'"):
        MetaLoss(measure="sqrt")


def test_recorded_refuses_a_rule_that_mixes_coordinates(normalized_sgd):
    family = Quadratic(dim=3)
    trajectories = start(normalized_sgd, family, 2, seeded())
    with pytest.raises(TypeError, match="need a CoordinatewiseRule, got NormalizedSGD; use truncated"):
        Recorded().estimate(normalized_sgd, family, trajectories, SAME, torch.ones(2), seeded())


def test_estimator_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Estimator()
