"""The continuation past the layers: the rule, then the end, which comes to the solution from any start."""

import cvxpy
import pytest
import torch

from l2o.rules import LADMM
from l2o.rules.gkm_alm import ALMPoint
from meta_train.bmo_rules import AggregatedGKM, gkm_rule, iterates
from meta_train.bmo_tail import LAST_DIGITS, PLAIN, continued
from tasks.robust_sparse_coding import RobustSparseCoding

TASK = RobustSparseCoding(24, 48, 0.03)


def signals(items: int = 3):
    return TASK.sample(items, torch.Generator().manual_seed(0), torch.float64).x


@torch.no_grad()
@pytest.mark.parametrize("kind", ["UNH", "BMO", "LADMM"])
def test_the_rule_comes_first_and_the_end_is_the_solution(kind):
    gkm, x = gkm_rule(TASK, 2).double(), signals()
    first = {"UNH": gkm, "BMO": AggregatedGKM(gkm, 2).double(), "LADMM": LADMM()}[kind]
    rule = continued(first, TASK, 4)
    found = list(iterates(rule, TASK, x, 1000))
    for now, expected in zip(found[:4], iterates(first, TASK, x, 4), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(now, expected, strict=True))
    dictionary, values = TASK.dictionary.double().numpy(), TASK.problem(x).value(found[-1][0])
    for signal, value in zip(x.numpy(), values.tolist(), strict=True):
        z = cvxpy.Variable(TASK.columns)
        program = cvxpy.Problem(cvxpy.Minimize(cvxpy.norm1(z) + cvxpy.norm1(signal - dictionary @ z)))
        program.solve(solver="CLARABEL")
        assert value == pytest.approx(program.value, rel=1e-7)  # what the solver itself promises


@torch.no_grad()
def test_a_plain_end_is_steps_of_the_method_of_multipliers():
    rule, x = continued(gkm_rule(TASK, 2), TASK, 4, PLAIN), signals()
    points = [ALMPoint(*u) for u in iterates(rule, TASK, x, 12)]
    for before, after in zip(points[3:-1], points[4:], strict=True):
        for expected, found in zip(rule.end.step(TASK.problem(x), before), after, strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


@torch.no_grad()
def test_the_end_comes_nearer_than_plain_steps_in_as_many():
    gkm, x, ends = gkm_rule(TASK, 2).double(), signals(64), []
    for config in (LAST_DIGITS, PLAIN):
        *_, before, after = (torch.cat(u, -1) for u in iterates(continued(gkm, TASK, 4, config), TASK, x, 150))
        ends.append(float((after - before).norm() / after.norm()))
    assert ends[0] < 0.1 * ends[1]
