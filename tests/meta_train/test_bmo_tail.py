"""The continuation past the layers: skips go where plain steps would come, and the end is the solution."""

import cvxpy
import pytest
import torch

from l2o.constrained import ConstrainedProblem
from l2o.proximal import L1
from l2o.rules.gkm_alm import ALMPoint, LinearizedALM
from meta_train import bmo_tail
from meta_train.bmo_rules import gkm_rule, iterates
from meta_train.bmo_tail import RATIO, Continued, settle
from tasks.robust_sparse_coding import RobustSparseCoding

TASK = RobustSparseCoding(24, 48, 0.03)


def continued(until: int, sizes: tuple[float, float] = (0.06, 0.04)) -> Continued:
    gkm = gkm_rule(TASK, 2).double()
    return Continued(gkm, LinearizedALM(gkm.part(2).spectrum, *sizes, RATIO).double(), 4, until)


def signal(tiny: float) -> torch.Tensor:
    """A code of one large and one tiny entry: what makes drifts."""
    code = torch.zeros(1, TASK.columns, dtype=torch.float64)
    code[0, 3], code[0, 7] = 1.0, tiny
    return code @ TASK.dictionary.double().mT


@torch.no_grad()
def test_skips_come_to_the_solution_that_plain_steps_are_far_from():
    x = signal(1e-5)
    steps = {until: [torch.cat(u, -1) for u in iterates(continued(until), TASK, x, 200)] for until in (4, 100)}
    change = {until: float((u[-1] - u[-2]).norm() / u[-1].norm()) for until, u in steps.items()}
    assert change[100] < 1e-8 < 1e-5 < change[4]
    z, dictionary = cvxpy.Variable(TASK.columns), TASK.dictionary.double().numpy()
    program = cvxpy.Problem(cvxpy.Minimize(cvxpy.norm1(z) + cvxpy.norm1(x[0].numpy() - dictionary @ z)))
    program.solve(solver="CLARABEL")
    value = float(TASK.problem(x).value(steps[100][-1][:, : TASK.columns]))
    assert value == pytest.approx(program.value, rel=1e-7)  # what the solver itself promises


@torch.no_grad()
def test_a_skip_goes_where_plain_steps_come_later():
    problem, rule = TASK.problem(signal(1e-5)), continued(10**6)
    z, state, skipped = problem.zeros(), rule.init_problem(problem, problem.zeros()), False
    for step in range(200):
        before = ALMPoint(z, state.second, state.multiplier)
        z, state = rule.iterate(problem, z, state, step)
        plain = rule.rest(problem, before)
        if skipped := step >= 4 and bool((plain.multiplier - state.multiplier).abs().max() > 1e-3):
            break
    assert skipped
    here, distances = ALMPoint(z, state.second, state.multiplier), []
    for _ in range(3000):
        distances.append(max(float((a - b).abs().max()) for a, b in zip(plain, here, strict=True)))
        plain = rule.rest(problem, plain)
    # the rest of a transient, at most _SAME of v, is what the skip does not wait for
    assert distances.index(min(distances)) > 20 and min(distances) < 0.1 * distances[0]


def test_steps_inside_are_those_before_the_first_threshold_is_crossed():
    generator = torch.Generator().manual_seed(0)
    inputs = 3 * torch.rand(20, 5, generator=generator, dtype=torch.float64) - 1.5
    change = 0.02 * torch.randn(20, 5, generator=generator, dtype=torch.float64)
    found = bmo_tail._steps_inside(inputs, change)

    def piece(p):
        return p.sign() * (p.abs() > 1)

    for row in range(20):
        m = int(found[row, 0])
        if m == 1e4:
            continue
        assert torch.equal(piece(inputs[row] + m * change[row]), piece(inputs[row]))
        assert not torch.equal(piece(inputs[row] + (m + 2) * change[row]), piece(inputs[row]))
        if m > 0:
            assert torch.equal(piece(inputs[row] + (m + 1) * change[row]), piece(inputs[row]))
    assert int((found > 0).sum()) > 5


def test_the_last_layers_are_plain_steps():
    rule, x = continued(6), TASK.sample(3, torch.Generator().manual_seed(0), torch.float64).x
    problem = TASK.problem(x)
    points = [ALMPoint(*u) for u in iterates(rule, TASK, x, 12)]
    for before, after in zip(points[6:-1], points[7:], strict=True):
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


def test_other_functions_are_refused():
    operator, b = TASK.problem(signal(1.0)).operator, signal(1.0)
    for functions in ((L1(2.0), L1()), (L1(), None)):
        problem = ConstrainedProblem(operator, b, *functions)
        with pytest.raises(TypeError, match="needs g = h = L1"):
            continued(8).init_problem(problem, problem.zeros())
