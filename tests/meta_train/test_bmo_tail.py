"""The continuation past the layers: plain steps of the best of several rests."""

import cvxpy
import pytest
import torch

from l2o.rules.gkm_alm import ALMPoint, LinearizedALM
from meta_train.bmo_rules import gkm_rule, iterates
from meta_train.bmo_tail import RATIO, Continued, settle
from tasks.robust_sparse_coding import RobustSparseCoding

TASK = RobustSparseCoding(24, 48, 0.03)


def continued(sizes: tuple[float, float] = (0.06, 0.04)) -> Continued:
    gkm = gkm_rule(TASK, 2).double()
    return Continued(gkm, LinearizedALM(gkm.part(2).spectrum, *sizes, RATIO).double(), 4)


@torch.no_grad()
def test_the_learned_rule_comes_first_and_the_end_is_the_solution():
    rule, x = continued(), TASK.sample(3, torch.Generator().manual_seed(0), torch.float64).x
    steps, first = list(iterates(rule, TASK, x, 3000)), list(iterates(rule.rule, TASK, x, 4))
    for found, expected in zip(steps[:4], first, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    dictionary, values = TASK.dictionary.double().numpy(), TASK.problem(x).value(steps[-1][0])
    for signal, value in zip(x.numpy(), values.tolist(), strict=True):
        z = cvxpy.Variable(TASK.columns)
        program = cvxpy.Problem(cvxpy.Minimize(cvxpy.norm1(z) + cvxpy.norm1(signal - dictionary @ z)))
        program.solve(solver="CLARABEL")
        assert value == pytest.approx(program.value, rel=1e-7)  # what the solver itself promises


def test_later_layers_are_plain_steps():
    rule, x = continued(), TASK.sample(3, torch.Generator().manual_seed(0), torch.float64).x
    problem = TASK.problem(x)
    points = [ALMPoint(*u) for u in iterates(rule, TASK, x, 12)]
    for before, after in zip(points[4:-1], points[5:], strict=True):
        for expected, found in zip(rule.rest(problem, before), after, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_settle_takes_the_rest_with_the_least_change():
    x = TASK.sample(16, torch.Generator().manual_seed(1), torch.float64).x
    rule, rests, changes = gkm_rule(TASK, 2).double(), ((1e-4, 1e-4), (0.1, 0.1), (30.0, 0.01)), {}
    for rest in rests:
        alone, _ = settle(rule, TASK, x, 40, (rest,))
        before, after = [torch.cat(u, -1) for u in iterates(alone, TASK, x, 40)][-2:]
        changes[rest] = float(((after - before).norm() / after.norm()).detach())
    assert settle(rule, TASK, x, 40, rests)[1] == min(rests, key=changes.__getitem__)
