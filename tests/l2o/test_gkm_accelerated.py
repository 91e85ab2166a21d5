"""The linearised method of multipliers to the last digit: balance, leaps, safeguard, and the gradient at the end."""

import cvxpy
import pytest
import torch

from l2o import solve
from l2o.anderson import Memory
from l2o.constrained import ConstrainedProblem
from l2o.proximal import L1, Dictionary
from l2o.rules import GKM, AcceleratedALM, AccelerationConfig, GKMConfig, LinearizedALM, Spectrum
from l2o.rules.gkm_accelerated import AcceleratedState, _measure
from l2o.rules.gkm_alm import ALMPoint
from tasks.lasso import problem as lasso
from tasks.robust_sparse_coding import RobustSparseCoding

TASK = RobustSparseCoding(24, 48, 0.03)
SIZES = (0.06, 0.04, 0.998)
BOTH = AccelerationConfig(turns=10)


def signals(items: int = 64, seed: int = 0, dtype=torch.float64):
    return TASK.sample(items, torch.Generator().manual_seed(seed), dtype).x


def rule(config: AccelerationConfig = BOTH, dtype=torch.float64) -> AcceleratedALM:
    return AcceleratedALM(LinearizedALM(Spectrum(TASK.dictionary.to(dtype)), *SIZES).to(dtype), config)


@torch.no_grad()
def run(chosen: AcceleratedALM, x, steps: int) -> list[tuple[ALMPoint, AcceleratedState]]:
    problem = TASK.problem(x)
    z, found = problem.zeros(), []
    state = chosen.init_problem(problem, z)
    for step in range(steps):
        z, state = chosen.iterate(problem, z, state, step)
        found.append((ALMPoint(z, state.second, state.multiplier), state))
    return found


def changes(found) -> torch.Tensor:
    """Relative change of u by every step but the first, shape (steps − 1, items)."""
    u = torch.stack([torch.cat(point, -1) for point, _ in found])
    return (u[1:] - u[:-1]).norm(dim=-1) / u[:-1].norm(dim=-1).clamp(min=1e-300)


def test_every_item_comes_to_the_solution_of_another_solver_where_plain_steps_have_not():
    x, problem = signals(), TASK.problem(signals())
    found, plain = run(rule(), x, 2000)[-2:], run(rule(AccelerationConfig(memory=0)), x, 2000)[-2:]
    assert changes(found).max() < 1e-12 and changes(plain).max() > 1e-7
    values = problem.value(found[-1][0].x)
    for signal, value in zip(x.numpy(), values.tolist(), strict=True):
        z = cvxpy.Variable(TASK.columns)
        objective = cvxpy.norm1(z) + cvxpy.norm1(signal - TASK.dictionary.double().numpy() @ z)
        cvxpy.Problem(cvxpy.Minimize(objective)).solve(solver="CLARABEL")
        assert value == pytest.approx(objective.value, rel=1e-7, abs=1e-7)  # what the solver itself promises


def test_without_leaps_and_balance_it_is_the_plain_step():
    x = signals(4)
    chosen = rule(AccelerationConfig(memory=0))
    problem = TASK.problem(x)
    u = chosen.step.start(problem, problem.zeros())
    for point, _ in run(chosen, x, 20):
        u = chosen.step(problem, u)
        assert all(torch.equal(a, b) for a, b in zip(point, u, strict=True))


@torch.no_grad()
def test_the_residual_is_measured_in_the_metric_of_the_step():
    x, part = signals(5), rule().step
    problem, generator = TASK.problem(x), torch.Generator().manual_seed(1)
    start = part.start(problem, problem.zeros())
    u = ALMPoint(*(torch.randn(entry.shape, generator=generator, dtype=entry.dtype) for entry in start))
    move = part.advance(problem, u, part.weights(problem))
    delta = ALMPoint(*(new - old for new, old in zip(move.point, u, strict=True)))
    norm, squares = _measure(u, move, part.weights(problem))
    torch.testing.assert_close(norm, part.metric(problem).norm(delta), rtol=1e-9, atol=0)
    w = part.weights(problem)
    free = (delta.x.square().sum(-1) / w.first + delta.second.square().sum(-1) / w.second) / w.scale[:, 0]
    of_multiplier = part.metric(problem).norm(delta._replace(x=0 * delta.x, second=0 * delta.second)).square()
    torch.testing.assert_close(squares, torch.stack([free, of_multiplier], 1), rtol=1e-9, atol=0)


def test_sizes_move_by_twos_a_few_times_each_item_by_itself():
    sizes = torch.stack([state.size for _, state in run(rule(AccelerationConfig(turns=3)), signals(), 200)])
    assert torch.equal(sizes.log2(), sizes.log2().round()) and len(sizes[-1].unique()) > 2
    assert ((sizes[1:] != sizes[:-1]).sum(0) <= 3).all() and (sizes != 1).any()
    assert (run(rule(AccelerationConfig()), signals(), 20)[-1][1].size == 1).all()


@torch.no_grad()
@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (30, 30)], ids=str)
def test_with_default_options_and_steps_it_comes_no_less_near_than_plain_steps(shape):
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[0] ** 0.5
    b = torch.randn(8, shape[0], generator=generator, dtype=torch.float64)
    problem, gaps = ConstrainedProblem(Dictionary(A), b, L1(), L1()), []
    for config in (AccelerationConfig(), AccelerationConfig(memory=0)):
        chosen = AcceleratedALM(LinearizedALM(Spectrum(A)).double(), config)
        gaps.append(solve(chosen, problem, steps=1500, history=False).certificate.relative_gap)
    assert gaps[0].max() <= gaps[1].max() and gaps[0].log().mean() < gaps[1].log().mean()


@pytest.mark.parametrize("garbage", [1e-3, 1.0, 1e6, float("nan")])
def test_leaps_that_lead_astray_do_no_harm(monkeypatch, garbage):
    generator = torch.Generator().manual_seed(2)

    def astray(self, residual, mixing=1.0):
        return garbage * torch.randn(residual.shape, generator=generator, dtype=residual.dtype)

    monkeypatch.setattr(Memory, "correction", astray)
    x = signals(16)
    chosen, plain = rule(), rule(AccelerationConfig(memory=0, turns=10))
    problem = TASK.problem(x)
    found = run(chosen, x, 600)
    # a leap that fails costs one step more than the plain one that follows
    expected = run(plain, x, 200)
    residuals = [(chosen.step(problem, ends[-1][0]).x - ends[-1][0].x).norm(dim=-1).max() for ends in (found, expected)]
    assert residuals[0] <= max(10 * residuals[1], 1e-10)


def test_the_residual_of_points_that_stand_never_grows_once_sizes_stay():
    found = run(rule(), signals(), 300)
    norms, turns = torch.stack([s.norm for _, s in found]), torch.stack([s.turns for _, s in found])
    same = turns[1:-1] == turns[:-2]  # a norm is measured before s turns
    assert same.any() and (norms[2:] <= norms[1:-1] * (1 + 1e-9) + 1e-13)[same].all()


def test_items_do_not_see_each_other():
    x = signals(6)
    x[2] = torch.nan
    together, others = run(rule(), x, 80)[-1][0], [0, 1, 3, 4, 5]
    alone = torch.cat([run(rule(), x[i : i + 1], 80)[-1][0].x for i in others])
    torch.testing.assert_close(together.x[others], alone, rtol=1e-8, atol=1e-10)
    assert together.x[2].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_signal_of_zeros_stays_zero_and_precisions_reach_what_they_can(dtype):
    x = signals(8, dtype=dtype)
    x[0] = 0
    found = run(rule(dtype=dtype), x, 200)
    assert (found[-1][0].x[0] == 0).all() and all(entry.isfinite().all() for entry in found[-1][0])
    u = torch.cat(found[-1][0], -1)[1:]
    moved = (u - torch.cat(found[-2][0], -1)[1:]).norm(dim=-1) / u.norm(dim=-1)
    assert u.dtype == dtype and moved.max() < (1e-12 if dtype == torch.float64 else 1e-4)


def test_solve_stops_it_by_its_gap_much_earlier_than_plain_steps():
    problem = TASK.problem(signals())
    fast = solve(rule(), problem, tol=1e-9)
    with pytest.warns(RuntimeWarning, match="GKM gave up"):
        solve(GKM(rule().step, config=GKMConfig(1.0)), problem, tol=1e-9, max_steps=3 * fast.steps)
    assert fast.converged and fast.certificate.relative_gap.max() <= 1e-9


def test_recorded_steps_are_plain_and_so_is_their_gradient():
    x, gradients = signals(3), []
    for chosen in (rule(), GKM(rule().step, config=GKMConfig(1.0)).double()):
        b = x.clone().requires_grad_()
        solution = solve(chosen, TASK.problem(b), steps=12, gradient="unrolled").x
        gradients.append((solution, *torch.autograd.grad(solution.square().sum(), b)))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_it_goes_on_from_the_point_of_another_rule():
    x = signals(8)
    problem, start = TASK.problem(x), run(rule(), x, 40)[-1][0]
    with torch.no_grad():
        _, state = rule().iterate(problem, start.x, rule().begin(start), 0)
        expected = rule().step(problem, start)
    torch.testing.assert_close(state.multiplier, expected.multiplier, rtol=0, atol=0)


@pytest.mark.parametrize(
    "options", [{"memory": -1}, {"turns": -1}, {"imbalance": 1.0}, {"shrink": 1.0}, {"shrink": 0.0}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="expected memory|shrink must lie"):
        AccelerationConfig(**options)


def test_other_problems_are_refused():
    x = signals(2)
    with pytest.raises(TypeError, match="needs a ConstrainedProblem, got a Problem"):
        solve(rule(), lasso(torch.eye(3), torch.ones(3), 0.1), steps=1)
    with pytest.raises(ValueError, match=r"b of shape \(items, rows\)"):
        solve(rule(), TASK.problem(x[0]), steps=1)
    with pytest.raises(ValueError, match="another matrix"):
        solve(rule(), RobustSparseCoding(24, 48, dictionary_seed=1).problem(x), steps=1)
