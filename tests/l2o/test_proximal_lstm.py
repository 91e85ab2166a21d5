"""The LSTM that steers a proximal gradient step: against ISTA, a loop over coordinates, and its fixed points."""

import math

import pytest
import torch
from torch.nn import LSTMCell

import l2o
from l2o.problem import Problem
from l2o.proximal import L2, Dictionary, NonnegativeL1
from l2o.rules.ista import ISTA
from l2o.rules.proximal_lstm import ProximalLSTM, ProximalLSTMConfig
from tasks.lasso import problem

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def rule(generator):
    rule = ProximalLSTM(ProximalLSTMConfig(hidden_size=5), generator)
    with torch.no_grad():
        rule.output_weight.mul_(20)  # so that p and a differ from coordinate to coordinate
    return rule


@pytest.fixture
def lasso(generator):
    return problem(torch.randn(6, 9, generator=generator), torch.randn(4, 6, generator=generator), 0.3)


def test_without_momentum_and_with_unit_steps_it_is_ista(rule, lasso):
    with torch.no_grad():
        rule.output_weight.zero_()
        rule.output_bias.copy_(torch.tensor([0.0, -800.0]))
    ours, ista = (l2o.solve(each, lasso, steps=25) for each in (rule, ISTA()))
    torch.testing.assert_close(ours.x, ista.x, rtol=1e-13, atol=1e-14)
    assert ours.history[-1].sum() < 0.9 * ours.history[0].sum()


def reference_steps(rule, A, b, strength, steps):
    """Coordinate by coordinate, with torch.nn.LSTMCell: rows of its gates are i, f, g, o."""
    size, n = rule.config.hidden_size, A.shape[1]
    cells = []
    for weight, bias in zip(rule.weights, rule.biases, strict=True):
        cell, order = LSTMCell(weight.shape[1] - size, size), [0, 1, 3, 2]
        rows = torch.cat([weight.chunk(4)[i] for i in order])
        cell.weight_ih.data, cell.weight_hh.data = rows[:, :-size], rows[:, -size:]
        cell.bias_ih.data, cell.bias_hh.data = torch.cat([bias.chunk(4)[i] for i in order]), torch.zeros(4 * size)
        cells.append(cell)
    x = y = torch.zeros(n)
    memory = [[(torch.zeros(size), torch.zeros(size)) for _ in cells] for _ in range(n)]
    lipschitz = torch.linalg.eigvalsh(A.T @ A)[-1]
    for _ in range(steps):
        grad, slope = A.T @ (A @ x - b), A.T @ (A @ y - b)
        moved, momentum = torch.zeros(n), torch.zeros(n)
        for i in range(n):
            top = torch.stack([x[i], grad[i]])
            for layer, cell in enumerate(cells):
                memory[i][layer] = cell(top, memory[i][layer])
                top = memory[i][layer][0]
            share, momentum[i] = 1 / (1 + torch.exp(-(rule.output_weight @ top + rule.output_bias)))
            p = share * (2 + 2 * momentum[i]) / (1 + 2 * momentum[i])
            v = y[i] - p / lipschitz * slope[i]
            moved[i] = math.copysign(max(abs(v) - p / lipschitz * strength, 0.0), v)
        x, y = moved, moved + momentum * (moved - x)
    return x


@torch.no_grad()
def test_it_equals_a_loop_over_coordinates(rule, lasso):
    found = l2o.solve(rule, lasso, steps=4).x
    for item, x in enumerate(found):
        expected = reference_steps(rule, lasso.operator.matrix, lasso.b[item], 0.3, 4)
        torch.testing.assert_close(x, expected, rtol=1e-11, atol=1e-13)


def test_a_solution_is_a_fixed_point_whatever_the_weights(rule, lasso):
    solution = l2o.solve(ISTA(), lasso, tol=1e-14, max_steps=100_000)
    assert solution.converged and solution.x.abs().amax() > 0.1
    # A relative gap of 1e-14 leaves an error of its square root, 1e-7, in x.
    torch.testing.assert_close(l2o.solve(rule, lasso, steps=5, start=solution.x).x, solution.x, rtol=0, atol=1e-6)


def test_constant_extreme_steps_stay_bounded(rule, generator):
    """p and a at the ends of their ranges, on a quadratic (λ ≈ 0) whose eigenvalues fill (0, L]."""
    A = torch.diag(torch.linspace(0.05, 1, 12).sqrt())
    lasso = problem(A, torch.randn(3, 12, generator=generator), 1e-12)
    with torch.no_grad():
        rule.output_weight.zero_()
        for share, momentum in ((6.0, 4.0), (6.0, -6.0), (-2.0, 4.0)):
            rule.output_bias.copy_(torch.tensor([share, momentum]))
            history = l2o.solve(rule, lasso, steps=2000).history
            assert history.isfinite().all() and (history[-1] < 1e-3 * history[0]).all()


def test_a_matrix_for_each_item_equals_one_problem_at_a_time(rule, generator):
    A, b = torch.randn(3, 6, 9, generator=generator), torch.randn(3, 6, generator=generator)
    together = l2o.solve(rule, problem(A, b, torch.tensor([0.1, 0.2, 0.3])), steps=4).x
    for i, strength in enumerate((0.1, 0.2, 0.3)):
        torch.testing.assert_close(together[i], l2o.solve(rule, problem(A[i], b[i], strength), steps=4).x)


def test_nonnegative_problems_stay_nonnegative(rule, lasso):
    solution = l2o.solve(rule, Problem(lasso.operator, lasso.b, NonnegativeL1(0.3)), steps=10)
    assert solution.x.min() == 0 and solution.x.max() > 0.1


def test_a_regularizer_that_mixes_coordinates_is_refused(rule, lasso):
    with pytest.raises(ValueError, match="sum over coordinates .L1., got L2"):
        l2o.solve(rule, Problem(Dictionary(lasso.operator.matrix), lasso.b, L2(0.3)), steps=1)


@pytest.mark.parametrize("option", ["hidden_size", "depth"])
def test_sizes_below_one_are_refused(option):
    with pytest.raises(ValueError, match="hidden_size and depth must be at least 1"):
        ProximalLSTMConfig(**{option: 0})
