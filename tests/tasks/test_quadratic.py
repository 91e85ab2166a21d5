"""Quadratics: the loss against its closed form, the distributions against their moments."""

import pytest
import torch

from tasks import Quadratic


def test_loss_and_gradient_equal_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(7, 7, generator=generator, dtype=torch.float64)
    y, theta = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    gradient, loss = torch.func.grad_and_value(Quadratic(dim=7).loss)({"theta": theta}, {"W": W, "y": y}, {})
    residual = W @ theta - y
    torch.testing.assert_close(loss, residual.dot(residual))
    torch.testing.assert_close(gradient["theta"], 2 * W.T @ residual)


def test_loss_of_a_hand_computed_case():
    task = {"W": torch.tensor([[1.0, 2.0], [0.0, -1.0]]), "y": torch.tensor([1.0, 1.0])}
    # Wθ = (1 + 6, −3), Wθ − y = (6, −4)
    assert Quadratic(dim=2).loss({"theta": torch.tensor([1.0, 3.0])}, task, {}).item() == 52.0


@pytest.mark.parametrize(
    ("distribution", "mean", "variance", "fourth"),
    [("normal", 0.0, 1.0, 3.0), ("uniform", 0.5, 1 / 12, 1 / 80)],
)
def test_entries_have_the_moments_of_their_distribution(distribution, mean, variance, fourth):
    tasks = Quadratic(dim=10, distribution=distribution).sample_tasks(2000, torch.Generator().manual_seed(1))
    for name, n_entries in (("W", 200_000), ("y", 20_000)):
        entries = tasks[name].double().flatten()
        assert entries.numel() == n_entries
        # five standard errors of the mean and of the variance
        assert abs(entries.mean() - mean) < 5 * (variance / n_entries) ** 0.5
        assert abs(entries.var() - variance) < 5 * ((fourth - variance**2) / n_entries) ** 0.5


def test_entries_of_the_uniform_distribution_lie_between_zero_and_one():
    tasks = Quadratic(distribution="uniform").sample_tasks(1000, torch.Generator().manual_seed(2))
    assert tasks["W"].min() >= 0 and tasks["W"].max() < 1


def test_expected_initial_loss_from_zero_is_the_dimension():
    family, generator = Quadratic(dim=10), torch.Generator().manual_seed(3)
    tasks = family.sample_tasks(20_000, generator)
    params = family.init_params(tasks, 20_000, generator)
    losses = torch.func.vmap(lambda p, t: family.loss(p, t, {}))(params, tasks)
    assert torch.equal(params["theta"], torch.zeros(20_000, 10))
    assert abs(losses.mean() - 10) < 5 * (20 / 20_000) ** 0.5  # χ² with 10 degrees of freedom has variance 20


def test_normal_start_has_unit_variance():
    theta = Quadratic(start="normal").init_params({}, 20_000, torch.Generator().manual_seed(4))["theta"]
    assert abs(theta.var() - 1) < 5 * (2 / 200_000) ** 0.5


def test_vmap_over_tasks_equals_loop():
    family, generator = Quadratic(dim=5, start="normal"), torch.Generator().manual_seed(5)
    tasks = family.sample_tasks(4, generator)
    params = family.init_params(tasks, 4, generator)
    gradients, losses = torch.func.vmap(torch.func.grad_and_value(lambda p, t: family.loss(p, t, {})))(params, tasks)
    for i in range(4):
        task = {name: value[i] for name, value in tasks.items()}
        gradient, loss = torch.func.grad_and_value(family.loss)({"theta": params["theta"][i]}, task, {})
        torch.testing.assert_close(losses[i], loss)
        torch.testing.assert_close(gradients["theta"][i], gradient["theta"])


def test_same_seed_gives_the_same_sample_and_another_seed_another():
    family = Quadratic(start="normal")
    first, again, other = (
        (family.sample_tasks(3, generator), family.init_params({}, 3, generator))
        for generator in (torch.Generator().manual_seed(seed) for seed in (6, 6, 7))
    )
    assert torch.equal(first[0]["W"], again[0]["W"]) and torch.equal(first[1]["theta"], again[1]["theta"])
    assert not torch.equal(first[0]["W"], other[0]["W"]) and not torch.equal(first[1]["theta"], other[1]["theta"])


@pytest.mark.parametrize("dim", [1, 3, 25])
def test_any_dimension_gives_its_shapes(dim):
    tasks = Quadratic(dim=dim).sample_tasks(2, torch.Generator())
    assert tasks["W"].shape == (2, dim, dim) and tasks["y"].shape == (2, dim)


def test_dimension_zero_is_refused():
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        Quadratic(dim=0)


@pytest.mark.parametrize("options", [{"distribution": "cauchy"}, {"start": "one"}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ValueError, match="distribution is normal or uniform and start zero or normal"):
        Quadratic(**options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_own_evaluation_equals_autograd_wherever_the_params_have_moved(dtype):
    family, generator = Quadratic(dim=7, start="normal"), torch.Generator().manual_seed(3)
    tasks = {name: tensor.to(dtype) for name, tensor in family.sample_tasks(5, generator).items()}
    theta = family.init_params(tasks, 5, generator)["theta"].to(dtype)
    evaluate, out = family.evaluator({"theta": theta}, tasks), torch.empty(35, dtype=dtype)
    if evaluate is None:
        pytest.skip("no compiled kernels")
    for _ in range(2):
        point = theta.clone().requires_grad_()
        expected = family.loss({"theta": point}, tasks, {})
        torch.testing.assert_close(evaluate({}, out), expected.detach())
        torch.testing.assert_close(out.view(5, 7), torch.autograd.grad(expected.sum(), point)[0])
        theta -= 0.5


def test_subclass_with_another_loss_goes_back_to_autograd():
    class Doubled(Quadratic):
        def loss(self, params, task, batch):
            return 2 * super().loss(params, task, batch)

    family, generator = Doubled(dim=3), torch.Generator().manual_seed(4)
    tasks = family.sample_tasks(2, generator)
    assert family.evaluator(family.init_params(tasks, 2, generator), tasks) is None
