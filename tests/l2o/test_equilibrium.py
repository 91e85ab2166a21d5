"""The implicit layer: as a module among modules, trained, and as the solver of a problem."""

import pytest
import torch
from torch import nn

from l2o import Anderson, Dense, FixedPoint, NotConvergedError, Problem
from l2o.proximal import L1, Matrix
from l2o.rules import ISTA


class Cell(nn.Module):
    """z = tanh(V z + U x), where ‖V‖ = 0.6 at the start and is held below 0.9: a contraction."""

    def __init__(self, inputs: int = 5, size: int = 7, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.V, self.U = nn.Linear(size, size, bias=False), nn.Linear(inputs, size)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5
        self.V.weight.data *= 0.6 / torch.linalg.matrix_norm(self.V.weight.data, 2)

    def forward(self, z, x):
        held = (0.9 / torch.linalg.matrix_norm(self.V.weight, 2)).clamp(max=1)
        return torch.tanh(held * self.V(z) + self.U(x))


def start(x):
    return x.new_zeros(*x.shape[:-1], 7)


def inputs(items: int = 6) -> torch.Tensor:
    return torch.randn(items, 5, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("acceleration", [None, Anderson()])
def test_gradients_of_a_layer_are_those_of_its_unrolled_cell(float64, acceleration):
    cell, x = Cell(), inputs().requires_grad_()
    z = FixedPoint(cell, start, acceleration=acceleration)(x)
    got = torch.autograd.grad(z.square().sum(), (x, *cell.parameters()))
    unrolled = start(x)
    for _ in range(100):
        unrolled = cell(unrolled, x)
    expected = torch.autograd.grad(unrolled.square().sum(), (x, *cell.parameters()))
    torch.testing.assert_close(z, unrolled, rtol=0, atol=1e-9)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)


def test_a_network_with_an_implicit_layer_is_trained():
    generator = torch.Generator().manual_seed(1)
    x = inputs(64)
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    head = nn.Linear(7, 1)
    nn.init.normal_(head.weight, 0, 0.3, generator=generator)
    nn.init.zeros_(head.bias)
    network = nn.Sequential(FixedPoint(Cell(), start, acceleration=Anderson()), head)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        loss = (network(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_weights_and_state_dict_are_those_of_the_cell():
    cell = Cell()
    layer = FixedPoint(cell, start)
    assert [p for p in layer.parameters()] == list(cell.parameters())
    assert {name.removeprefix("cell.") for name in layer.state_dict()} == set(cell.state_dict())
    other = FixedPoint(Cell(seed=1), start)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(inputs()), layer(inputs()))


def test_find_tells_steps_residual_and_the_linear_system(float64):
    result = FixedPoint(Cell(), start).find(inputs())
    assert result.converged.all() and result.steps.shape == (6,) and (result.residual <= 1e-10).all()
    assert result.report.solver == ""
    result.u.sum().backward()
    assert result.report.solver == "GMRES" and result.report.converged and result.report.residual.shape == (6,)


def saved_elements(layer: nn.Module) -> int:
    total = 0

    def count(tensor):
        nonlocal total
        total += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        layer(inputs())
    return total


def test_memory_is_that_of_a_few_cells_whatever_the_number_of_steps():
    few, many = (saved_elements(FixedPoint(Cell(), start, steps=steps)) for steps in (40, 400))
    assert few == many < saved_elements(FixedPoint(Cell(), start, steps=40, gradient="unrolled")) / 10


def test_inputs_of_the_shape_of_the_output_need_no_start():
    layer = FixedPoint(Cell(7, 7))
    assert layer(torch.ones(2, 3, 7)).shape == (2, 3, 7)
    assert nn.Sequential(layer, nn.Linear(7, 2))(torch.ones(4, 7)).shape == (4, 2)


def test_a_cell_without_a_fixed_point_is_refused():
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.ones(()))

        def forward(self, z, x):
            return z + self.one

    with pytest.raises(NotConvergedError, match="not valid"):
        FixedPoint(Counter(), max_steps=30)(torch.ones(2, 3))


def test_a_rule_is_a_layer_from_problems_to_solutions(float64):
    generator = torch.Generator().manual_seed(0)
    A, b = torch.randn(12, 6, generator=generator), torch.randn(3, 12, generator=generator)
    strength = torch.tensor(0.5, requires_grad=True)
    layer = FixedPoint(ISTA(), steps=600, adjoint=Dense())
    assert len(layer.state_dict()) == 0
    x = layer(Problem(Matrix(A), b, L1(strength)))
    (got,) = torch.autograd.grad(x.sum(), strength)
    expected = 0.0
    for item in x.detach():  # of the active set S: −(A_SᵀA_S)⁻¹ sign
        S = item != 0
        expected -= torch.linalg.solve(A[:, S].T @ A[:, S], item[S].sign()).sum()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)


def test_options_of_modules_are_refused_for_rules():
    with pytest.raises(ValueError, match="start and acceleration are for modules"):
        FixedPoint(ISTA(), acceleration=Anderson())


def test_repr_shows_the_options_that_were_given():
    text = repr(FixedPoint(Cell(), start, tol=1e-3))
    assert "tol=0.001" in text and "gradient='implicit'" in text and "(V): Linear" in text
