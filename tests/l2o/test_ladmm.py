"""LADMM and D-LADMM: against the proximal ADMM of GKM, against cvxpy, and their gradients."""

import cvxpy
import numpy as np
import pytest
import torch
from torch import Tensor

from l2o.checkpoint import load_rule, save_rule
from l2o.constrained import ConstrainedProblem
from l2o.proximal import L1, Dictionary
from l2o.rule import ModelBasedRule
from l2o.rules.d_ladmm import DLADMM, DLADMMConfig
from l2o.rules.gkm import GKM
from l2o.rules.gkm_alm import LinearizedALM, Spectrum
from l2o.rules.ladmm import LADMM, LADMMConfig

ROWS, COLUMNS = 6, 10


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A = draw(ROWS, COLUMNS)


def problem(items: int = 2, scale: float = 1.0) -> ConstrainedProblem:
    return ConstrainedProblem(Dictionary(A), scale * draw(items, ROWS, seed=3), L1(), L1())


def run(rule: ModelBasedRule, of: ConstrainedProblem, steps: int) -> Tensor:
    z = of.zeros()
    state = rule.init_problem(of, z)
    for step in range(steps):
        z, state = rule.iterate(of, z, state, step)
    return z


@pytest.mark.parametrize("options", [{}, {"penalty": 0.5, "dual_step": 1.6}, {"step": 1.33}])
def test_ladmm_reaches_the_optimum_that_cvxpy_finds(options):
    z = run(LADMM(LADMMConfig(**options)), problem(), 3000)
    for got, b in zip(problem().value(z), problem().b.numpy(), strict=True):
        x = cvxpy.Variable(COLUMNS)
        best = cvxpy.Problem(cvxpy.Minimize(cvxpy.norm1(x) + cvxpy.norm1(A.numpy() @ x - b))).solve()
        assert float(got) == pytest.approx(float(best), rel=1e-6)


def test_one_step_of_ladmm_is_the_one_written_out():
    rule, of = LADMM(LADMMConfig(penalty=0.7, step=0.9, dual_step=1.2)), problem(1)
    z, state = draw(1, COLUMNS, seed=4), rule.init_problem(of, of.zeros())
    state = state._replace(second=draw(1, ROWS, seed=5), multiplier=draw(1, ROWS, seed=6))
    new, after = rule.iterate(of, z, state, 0)
    b, An = of.b.numpy()[0], A.numpy()
    beta = 0.7 / np.abs(b).mean()
    size = 0.9 / (beta * np.linalg.norm(An, 2) ** 2)
    e, m = state.second.numpy()[0], state.multiplier.numpy()[0]

    def shrink(v, t):
        return np.sign(v) * np.maximum(np.abs(v) - t, 0)

    z1 = shrink(z.numpy()[0] - size * An.T @ (m + beta * (An @ z.numpy()[0] + e - b)), size)
    e1 = shrink(b - An @ z1 - m / beta, 1 / beta)
    np.testing.assert_allclose(new[0].numpy(), z1)
    np.testing.assert_allclose(after.second[0].numpy(), e1)
    np.testing.assert_allclose(after.multiplier[0].numpy(), m + 1.2 * beta * (An @ z1 + e1 - b))


def test_rules_scale_with_the_signal():
    for rule in (LADMM(), DLADMM(DLADMMConfig(ROWS, COLUMNS, 3), A).double()):
        torch.testing.assert_close(run(rule, problem(scale=100.0), 6), 100 * run(rule, problem(), 6))


def test_layers_of_d_ladmm_have_weights_of_their_own_and_the_last_ones_stay():
    rule = DLADMM(DLADMMConfig(ROWS, COLUMNS, 2), A).double()
    with torch.no_grad():
        rule.first_threshold[1] = 100.0
    of = problem()
    z, state = of.zeros(), rule.init_problem(of, of.zeros())
    sizes = []
    for step in range(4):
        z, state = rule.iterate(of, z, state, step)
        sizes.append(float(z.detach().abs().sum()))
    assert sizes[0] > 0 and sizes[1:] == [0.0] * 3


def test_gradient_of_d_ladmm_is_that_of_differences_and_reaches_every_weight():
    rule, of = DLADMM(DLADMMConfig(ROWS, COLUMNS, 2), A).double(), problem()
    of.value(run(rule, of, 3)).sum().backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in rule.parameters())
    weight = rule.matrix[0]
    direction = draw(*weight.shape, seed=8)
    values = []
    for sign in (1e-6, -1e-6):
        with torch.no_grad():
            weight += sign * direction
            values.append(float(of.value(run(rule, of, 3)).sum()))
            weight -= sign * direction
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(float((weight.grad * direction).sum()), rel=1e-6)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="penalty must be positive"):
        LADMMConfig(penalty=0.0)
    with pytest.raises(ValueError, match="layers"):
        DLADMMConfig(layers=0)
    with pytest.raises(ValueError, match="dictionary must be"):
        DLADMM(DLADMMConfig(3, 4, 1), A)
    with pytest.raises(ValueError, match="was made for"):
        DLADMM(DLADMMConfig(3, 4, 1)).init_problem(problem(), problem().zeros())


@pytest.mark.parametrize(
    "rule", [LADMM(LADMMConfig(0.5, 1.33, 1.0)), DLADMM(DLADMMConfig(ROWS, COLUMNS, 2), A.float())]
)
def test_a_checkpoint_gives_the_same_rule_again(rule, tmp_path):
    again = load_rule(save_rule(rule, tmp_path / "rule"))
    of = ConstrainedProblem(Dictionary(A.float()), problem().b.float(), L1(), L1())
    assert type(again) is type(rule) and again.config == rule.config
    weights = rule.state_dict()
    assert again.state_dict().keys() == weights.keys()
    assert all(torch.equal(found, weights[name]) for name, found in again.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(run(again, of, 5), run(rule, of, 5), rtol=1e-4, atol=1e-5)  # strides differ


def test_gkm_has_no_name_and_the_error_says_what_to_do(tmp_path):
    with pytest.raises(TypeError, match="made of parts that you give, as GKM is, has none: save rule.state_dict"):
        save_rule(GKM(LinearizedALM(Spectrum(A))), tmp_path / "gkm")
