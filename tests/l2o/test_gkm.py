"""GKM: every D_num is averaged in its own metric, which is positive definite; its fixed points are solutions."""

import cvxpy
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from l2o.constrained import ConstrainedProblem
from l2o.layer_norms import nonexpansive
from l2o.metric import dense, in_metric
from l2o.nonexpansive import certify_affine, certify_samples
from l2o.problem import Composite, Problem
from l2o.proximal import L1, Matrix, Simplex, SquaredL2
from l2o.rules.gkm import GKM, GKMConfig, NumericalPart
from l2o.rules.gkm_admm import ProximalADMM
from l2o.rules.gkm_alm import LinearizedALM, Spectrum
from l2o.rules.gkm_gradient import PreconditionedProximalGradient, ProximalGradient
from l2o.rules.gkm_network import DualNetwork, NetworkedALM
from l2o.rules.gkm_primal_dual import PrimalDual
from l2o.rules.gkm_proximal_alm import ProximalALM
from l2o.solve import solve

ROWS, COLUMNS = 4, 7


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A, K = draw(ROWS, COLUMNS), draw(5, COLUMNS, seed=1)


def lasso(items: int = 1, composite: bool = False) -> Problem:
    term = Composite(L1(0.3), Matrix(K)) if composite else None
    return Problem(Matrix(A), draw(items, ROWS, seed=2), L1(0.2), term)


def robust(items: int = 1) -> ConstrainedProblem:
    return ConstrainedProblem(Matrix(A), draw(items, ROWS, seed=2), L1(), L1())


def ridge(items: int = 1) -> ConstrainedProblem:
    return ConstrainedProblem(Matrix(A), draw(items, ROWS, seed=2), SquaredL2(0.7))


def perturbed(part: NumericalPart) -> NumericalPart:
    """Weights far from where training starts: what holds must hold for all of them."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter += 0.8 * torch.randn(parameter.shape, generator=generator)
    return part.double()


CASES = {
    "proximal gradient": (lambda: ProximalGradient(1.8), lasso),
    "preconditioned": (lambda: PreconditionedProximalGradient(COLUMNS, 1.5), lasso),
    "linearised ALM": (lambda: LinearizedALM(Spectrum(A)), robust),
    "networked ALM": (lambda: NetworkedALM(LinearizedALM(Spectrum(A)), DualNetwork(ROWS), 0.3), robust),
    "proximal ALM": (ProximalALM, ridge),
    "proximal ADMM": (ProximalADMM, robust),
    "Condat-Vu": (lambda: PrimalDual(2.0, 1.5), lambda items=1: lasso(items, composite=True)),
}


def samples(part: NumericalPart, problem, size: float = 1.0):
    start = part.start(problem, problem.zeros())
    return type(start)(*(size * draw(*tensor.shape, seed=10 + i) for i, tensor in enumerate(start)))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("trained", [False, True])
def test_metric_is_positive_definite_and_symmetric_and_solves(name, trained):
    make, problem = CASES[name]
    part = perturbed(make()) if trained else make().double()
    metric, u = part.metric(problem()), samples(part, problem())
    H = dense(metric, u).detach()
    torch.testing.assert_close(H, H.mT)
    assert float(torch.linalg.eigvalsh(H)[0]) > 0
    for got, expected in zip(metric.solve(metric.apply(u)), u, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("trained", [False, True])
def test_map_is_averaged_in_its_metric_as_claimed(name, trained):
    make, family = CASES[name]
    part = perturbed(make()) if trained else make().double()
    # The same data for all items: T is one map, at 16 pairs of points near and far.
    problem = family().with_data(family().b.expand(16, -1))
    for size in (0.3, 3.0):
        certificate = certify_samples(lambda u: part(problem, u), samples(part, problem, size), part.metric(problem))
        assert certificate.nonexpansive, certificate
        # 1e-5: of a direction that T hardly moves, rounding decides the last digits of α.
        assert certificate.averagedness <= part.averagedness(problem) + 1e-5


def test_affine_methods_are_certified_exactly():
    part, problem = perturbed(ProximalALM()), ridge()
    certificate = certify_affine(lambda u: part(problem, u), samples(part, problem), part.metric(problem))
    assert certificate.exact and certificate.averagedness <= 0.5 + 1e-6
    gradient = ProximalGradient(1.6).double()
    least_squares = Problem(Matrix(A), problem.b, SquaredL2(0.0))
    exact = certify_affine(lambda u: gradient(least_squares, u), samples(gradient, least_squares))
    assert exact.averagedness == pytest.approx(0.8, abs=1e-5)  # sL/2: no prox
    assert exact.averagedness <= gradient.averagedness(least_squares)


def _optimum(name: str) -> np.ndarray:
    x = cvxpy.Variable(COLUMNS)
    b = draw(1, ROWS, seed=2)[0].numpy()
    fit = A.numpy() @ x - b
    constraints = [fit == 0] if name == "proximal ALM" else []
    objective = {
        "proximal gradient": 0.5 * cvxpy.sum_squares(fit) + 0.2 * cvxpy.norm1(x),
        "linearised ALM": cvxpy.norm1(x) + cvxpy.norm1(fit),
        "proximal ALM": cvxpy.sum_squares(x),
        "Condat-Vu": 0.5 * cvxpy.sum_squares(fit) + 0.2 * cvxpy.norm1(x) + 0.3 * cvxpy.norm1(K.numpy() @ x),
    }
    objective["preconditioned"], objective["proximal ADMM"] = (
        objective["proximal gradient"],
        objective["linearised ALM"],
    )
    cvxpy.Problem(cvxpy.Minimize(objective[name]), constraints).solve(solver=cvxpy.CLARABEL)
    return x.value


@pytest.mark.parametrize("name", [name for name in CASES if name != "networked ALM"])
def test_iterates_reach_the_optimum_that_cvxpy_finds(name):
    make, problem = CASES[name]
    rule = GKM(make(), config=GKMConfig(relaxation=0.9, most_relaxation=1.2)).double()
    rule.check(problem())
    u = rule.start(problem())
    with torch.no_grad():
        case = problem()
        for _ in range(1500):
            old, u = u, rule.map(case, u)
            if max(float((new - before).abs().amax()) for new, before in zip(u, old, strict=True)) < 1e-9:
                break
    np.testing.assert_allclose(u[0][0].numpy(), _optimum(name), atol=1e-5)  # CLARABEL's accuracy


def test_gkm_is_a_rule_that_solve_runs():
    rule = GKM(PrimalDual(), config=GKMConfig(1.0, 1.3)).double()
    solution = solve(rule, lasso(2, composite=True), steps=1500)
    np.testing.assert_allclose(solution.x[0].numpy(), _optimum("Condat-Vu"), atol=1e-5)
    assert float(solution.certificate.relative_gap.max()) < 1e-8


@pytest.mark.parametrize("relaxation", [1.0, 1.7])
@pytest.mark.parametrize("penalty", [0.5, 3.0])
def test_admm_is_certified_and_stopped_by_the_multiplier_that_its_coordinates_hold(penalty, relaxation):
    rule = GKM(ProximalADMM(penalty), config=GKMConfig(relaxation)).double()
    for problem in (robust(3), ConstrainedProblem(Matrix(A), draw(3, ROWS), L1())):  # with an h, and e = 0
        solution = solve(rule, problem, tol=1e-6)
        assert solution.converged and 0 < solution.steps < 3000
        assert float(solution.certificate.relative_gap.abs().max()) <= 1e-6
        again = solve(rule, problem, steps=solution.steps)
        torch.testing.assert_close(again.certificate.dual, solution.certificate.dual)
        assert rule.dual_variable(problem, rule.start(problem, solution.x)).shape == problem.b.shape  # pyright: ignore


def test_the_multipliers_of_all_other_methods_are_entries_of_their_points():
    for name in ("linearised ALM", "networked ALM", "proximal ALM", "Condat-Vu"):
        make, problem = CASES[name]
        rule = GKM(make()).double()
        u = samples(rule.part(0), problem())
        assert rule.dual_variable(problem(), u) is getattr(u, "dual" if name == "Condat-Vu" else "multiplier")
    plain = GKM(ProximalGradient()).double()
    assert plain.dual_variable(lasso(), plain.start(lasso())) is None


def test_relaxation_mixes_the_old_point_and_the_new():
    rule, problem = GKM(ProximalGradient(), config=GKMConfig(0.25, 1.0)).double(), lasso(3)
    u = rule.start(problem, draw(3, COLUMNS))
    moved = rule.part(0)(problem, u).x
    torch.testing.assert_close(rule.map(problem, u).x, 0.75 * u.x + 0.25 * moved)


def test_steps_have_weights_of_their_own_and_the_last_stays():
    rule, problem = GKM([ProximalGradient(0.5), ProximalGradient(1.5)]).double(), lasso()
    u, x = rule.start(problem), problem.zeros()
    first, _ = rule.iterate(problem, x, u, 0)
    second, last = (rule.iterate(problem, x, u, step)[0] for step in (1, 9))
    assert rule.layers == 2 and not torch.equal(first, second) and torch.equal(second, last)


def test_gradient_reaches_every_weight():
    for make, problem in CASES.values():
        rule = GKM(make()).double()
        u = rule.start(problem(), draw(1, COLUMNS))
        rule.map(problem(), rule.map(problem(), u))[0].square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in rule.parameters())
        assert any(float(p.grad.abs().sum()) > 0 for p in rule.numerical.parameters())  # pyright: ignore


def test_network_that_is_nonexpansive_in_the_metric_keeps_the_map_averaged():
    torch.manual_seed(0)
    part, problem = LinearizedALM(Spectrum(A)).double(), robust()
    problem = problem.with_data(problem.b.expand(12, -1))
    size = COLUMNS + 2 * ROWS
    network = nonexpansive(nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, size)).double())
    one = problem.with_data(problem.b[:1])
    H = dense(part.metric(one), part.start(one, one.zeros())).detach()
    rule = GKM(part, in_metric(network, (H + H.mT) / 2), GKMConfig(0.5, 1.0)).double()
    points = samples(part, problem)
    certificate = certify_samples(lambda u: rule.map(problem, u), points, part.metric(problem))
    assert certificate.nonexpansive and certificate.averagedness <= 0.5 + 1e-6
    wild = GKM(part, in_metric(lambda v: 3 * v, (H + H.mT) / 2), GKMConfig(0.5, 1.0)).double()
    assert not certify_samples(lambda u: wild.map(problem, u), points, part.metric(problem)).nonexpansive


def test_solve_runs_no_rule_that_is_not_averaged():
    rule = GKM(ProximalGradient(1.99), config=GKMConfig(relaxation=1.9)).double()
    with pytest.raises(ValueError, match=r"step 0 is not averaged: α a₀ = 1.891.*most_relaxation to 1/a₀ = 1.005"):
        solve(rule, lasso(), steps=3)
    later = GKM([ProximalGradient(0.5), ProximalGradient(1.99)], config=GKMConfig(relaxation=1.2)).double()
    with pytest.raises(ValueError, match="step 1 is not averaged"):
        later.init_problem(lasso(), lasso().zeros())


@pytest.mark.parametrize("name", CASES)
def test_no_rule_trained_in_its_range_is_refused(name):
    """α rounds to `most_relaxation` there, and the weights of D_num go far."""
    make, problem = CASES[name]
    most = {"proximal gradient": 1.0, "preconditioned": 1.0, "Condat-Vu": 1.0, "networked ALM": 1.5}.get(name, 2.0)
    rule = GKM(perturbed(make()), config=GKMConfig(0.9, most)).float()
    with torch.no_grad():
        rule.logit_relaxation.fill_(100.0)
    assert float(rule.relaxation(0).detach()) == most
    rule.init_problem(problem(), problem().zeros())


@pytest.mark.parametrize("name", CASES)
def test_another_kind_of_problem_is_refused_by_name(name):
    make, problem = CASES[name]
    needed, wrong = type(problem()).__name__, lasso() if isinstance(problem(), ConstrainedProblem) else robust()
    rule = GKM(make()).double()
    for run in (lambda: solve(rule, wrong, steps=1), lambda: rule.start(wrong), lambda: rule.check(wrong)):
        with pytest.raises(TypeError, match=rf"needs a l2o\.\w+\.{needed}, .*; got a {type(wrong).__name__}"):
            run()


def test_wrong_uses_are_refused():
    with pytest.raises(ValueError, match="relaxation"):
        GKMConfig(2.0, 2.0)
    with pytest.raises(ValueError, match="at least one D_num"):
        GKM([])
    with pytest.raises(ValueError, match="below 1"):
        GKM(ProximalGradient(), lambda u: u)
    with pytest.raises(ValueError, match="step 0 is not averaged"):
        GKM(ProximalGradient(1.9), config=GKMConfig(1.9, 2.0)).check(lasso())
    with pytest.raises(ValueError, match="step must be"):
        ProximalGradient(2.0)
    with pytest.raises(ValueError, match="step must be"):
        PrimalDual(step=0.0)
    with pytest.raises(ValueError, match="penalty"):
        ProximalADMM(penalty=0.0)
    with pytest.raises(ValueError, match="another matrix"):
        LinearizedALM(Spectrum(2 * A)).start(robust(), robust().zeros())
    with pytest.raises(TypeError, match="SquaredL2"):
        ProximalALM().start(robust(), robust().zeros())
    with pytest.raises(TypeError, match="λ‖x‖₁"):
        PreconditionedProximalGradient(COLUMNS).start(Problem(Matrix(A), lasso().b, Simplex()), lasso().zeros())
    with pytest.raises(TypeError, match="needs a term"):
        PrimalDual().start(lasso(), lasso().zeros())
    sampled = Problem(Matrix(draw(2, ROWS, COLUMNS)), draw(2, ROWS), L1())
    with pytest.raises(ValueError, match="shared by all"):
        PreconditionedProximalGradient(COLUMNS).weights(sampled)


def test_constrained_problem_checks_its_shapes_and_bounds_its_optimum():
    problem = robust(3)
    torch.testing.assert_close(problem.value(problem.zeros()), problem.b.abs().sum(-1))
    for multiplier in (draw(3, ROWS), torch.zeros(3, ROWS).double()):
        assert bool((problem.dual_value(multiplier) <= _minimum(problem) + 1e-9).all())
    with pytest.raises(ValueError, match="b must have shape"):
        ConstrainedProblem(Matrix(A), draw(3, ROWS + 1), L1(), L1())
    equations = ridge(3)  # γ/2 ‖z‖² under Az = b is least at z = A⁺b, with λ = −γ (AAᵀ)⁻¹ b
    best = -0.7 * equations.b @ torch.linalg.inv(A @ A.T)
    least = 0.35 * (equations.b @ torch.linalg.pinv(A).mT).square().sum(-1)
    torch.testing.assert_close(equations.dual_value(best), least)
    assert bool((equations.dual_value(draw(3, ROWS)) <= least).all())


def _minimum(problem: ConstrainedProblem) -> Tensor:
    values = []
    for b in problem.b.numpy():
        x = cvxpy.Variable(COLUMNS)
        values.append(cvxpy.Problem(cvxpy.Minimize(cvxpy.norm1(x) + cvxpy.norm1(A.numpy() @ x - b))).solve())
    return torch.tensor(values, dtype=torch.float64)


def test_network_moves_the_multiplier_alone_and_in_the_metric_of_its_penalty():
    part = NetworkedALM(LinearizedALM(Spectrum(A), ratio=0.9), DualNetwork(ROWS), 0.3).double()
    problem = robust(2)
    u = samples(part, problem)
    Q = part.part.spectrum.function(part.part.weights(problem).penalty)
    values, vectors = torch.linalg.eigh(Q)
    root = (vectors * values.sqrt()) @ vectors.mT
    y = torch.linalg.solve(root, u.multiplier.mT).mT
    basis = part.part.spectrum.vectors
    share = 0.5 * part.logit_share.sigmoid()
    moved = (1 - share) * y + share * part.network(y @ basis) @ basis.mT
    expected = part.part(problem, u._replace(multiplier=moved @ root))
    for got, right in zip(part(problem, u), expected, strict=True):
        torch.testing.assert_close(got, right)


def test_wrong_networks_are_refused():
    with pytest.raises(ValueError, match="rows must be at least 1"):
        DualNetwork(0)
    with pytest.raises(ValueError, match="share must be in"):
        NetworkedALM(LinearizedALM(Spectrum(A)), DualNetwork(ROWS), 0.5)
