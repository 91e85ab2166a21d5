"""Gradients through `solve`: on the active set of the LASSO, by central differences, and agreement of all modes."""

import pytest
import torch

import l2o
from l2o import CG, GMRES, AndersonSolver, Dense, Neumann, NotConvergedError, NotConvergedWarning
from l2o.proximal import L1, L21, Box, CircularConvolution, Diagonal, Dictionary, Gradient, Matrix, SquaredL2
from l2o.rules import ADMM, FISTA, ISTA, SGD, CondatVu, FISTAConfig, SGDConfig
from l2o.solve_gradient import fixed_point_map

RULES = {
    "ista": ISTA(),
    "fista": FISTA(),
    "fista-function": FISTA(FISTAConfig(restart="function")),
    "fista-backtracking": FISTA(FISTAConfig(backtracking=True)),
    "admm": ADMM(),
    "condat-vu": CondatVu(),
}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lasso(rows: int = 20, columns: int = 12, operator=Matrix):
    """A problem and its variables (A, λ, b), each of which requires grad."""
    variables = (
        (random(rows, columns) / 4).requires_grad_(),
        torch.tensor(0.2, requires_grad=True),
        random(3, rows, seed=1).requires_grad_(),
    )
    A, strength, b = variables
    return l2o.Problem(operator(A), b, L1(strength)), variables


def on_the_active_set(problem: l2o.Problem, variables, c):
    """⟨c, x⟩ from x_S = (A_SᵀA_S)⁻¹(A_Sᵀb − λ sign), and its gradient."""
    A, strength, b = variables
    x, total = l2o.solve(FISTA(), problem.double(), steps=4000, history=False).x, 0
    for item, data, weight in zip(x, b, c, strict=True):
        S = item != 0
        normal = A[:, S].T @ A[:, S]
        total = total + torch.linalg.solve(normal, A[:, S].T @ data - strength * item[S].sign()) @ weight[S]
    return torch.autograd.grad(total, variables)


@pytest.mark.parametrize("name", RULES)
def test_gradients_of_the_lasso_are_those_on_the_active_set(float64, name):
    problem, variables = lasso()
    c = random(3, 12, seed=2)
    expected = on_the_active_set(problem, variables, c)
    for options in ({"gradient": "implicit"}, {"gradient": "unrolled"}, {"gradient": "truncated", "last": 650}):
        solution = l2o.solve(RULES[name], problem, steps=700, history=False, **options)
        got = torch.autograd.grad((c * solution.x).sum(), variables)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)


def test_wide_matrices_of_admm_are_differentiated_too(float64):
    problem, variables = lasso(8, 20)
    c = random(3, 20, seed=2)
    solution = l2o.solve(ADMM(), problem, steps=1500, history=False, gradient="implicit")
    got = torch.autograd.grad((c * solution.x).sum(), variables)
    torch.testing.assert_close(got, on_the_active_set(problem, variables, c), rtol=0, atol=1e-7)  # ill-conditioned


@pytest.mark.parametrize("name", RULES)
def test_gradients_reach_a_dictionary_too(float64, name):
    problem, variables = lasso(operator=Dictionary)
    x = l2o.solve(RULES[name], problem, steps=700, history=False, gradient="implicit").x
    got = torch.autograd.grad(x.sum(), variables)
    torch.testing.assert_close(got, on_the_active_set(problem, variables, torch.ones(3, 12)), rtol=0, atol=1e-8)


@pytest.mark.parametrize("adjoint", [GMRES(), Neumann(), AndersonSolver(), Dense()], ids=repr)
def test_linear_solvers_agree_and_report(float64, adjoint):
    problem, variables = lasso()
    solution = l2o.solve(ISTA(), problem, steps=700, gradient="implicit", adjoint=adjoint)
    assert solution.report.solver == ""
    got = torch.autograd.grad(solution.x.sum(), variables)
    torch.testing.assert_close(got, on_the_active_set(problem, variables, torch.ones(3, 12)), rtol=0, atol=1e-8)
    assert solution.report.solver == type(adjoint).__name__ and solution.report.converged


def test_one_step_gradient_is_that_of_the_last_step(float64):
    problem, (A, strength, b) = lasso()
    before = l2o.solve(ISTA(), problem, steps=9).x
    expected = ISTA().iterate(problem, before, ISTA().init_problem(problem, before), 9)[0]
    solution = l2o.solve(ISTA(), problem, steps=10, gradient="one_step")
    torch.testing.assert_close(solution.x, expected, rtol=0, atol=1e-15)
    got, expected = (torch.autograd.grad(x.sum(), (A, strength, b)) for x in (solution.x, expected))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("gradient", ["unrolled", "truncated", "one_step", "implicit"])
def test_values_do_not_depend_on_the_mode(float64, gradient):
    problem, _ = lasso()
    plain = l2o.solve(FISTA(), problem, steps=300)
    recorded = l2o.solve(FISTA(), problem, steps=300, gradient=gradient, last=7)
    assert torch.equal(plain.x, recorded.x) and torch.equal(plain.history, recorded.history)
    assert recorded.x.requires_grad and not plain.x.requires_grad and recorded.steps == 300
    with torch.no_grad():
        assert not l2o.solve(FISTA(), problem, steps=300, gradient=gradient).x.requires_grad


def test_a_history_in_the_graph_is_a_loss(float64):
    problem, (_, strength, _) = lasso()
    history = l2o.solve(ISTA(), problem, steps=5, gradient="unrolled").history
    step = torch.tensor(1e-6)
    shifted = [
        l2o.solve(ISTA(), l2o.Problem(problem.operator, problem.b, L1(strength + s)), steps=5).history.sum()
        for s in (step, -step)
    ]
    got = torch.autograd.grad(history.sum(), strength)[0]
    torch.testing.assert_close(got, ((shifted[0] - shifted[1]) / 2e-6).detach(), rtol=1e-6, atol=0)


def test_with_a_tolerance_the_recorded_steps_come_after_it(float64):
    problem, (_, strength, _) = lasso()
    plain = l2o.solve(ISTA(), problem, tol=1e-12)
    truncated = l2o.solve(ISTA(), problem, tol=1e-12, gradient="truncated", last=400)
    assert truncated.steps == plain.steps + 400 and truncated.converged
    implicit = l2o.solve(ISTA(), problem, tol=1e-12, gradient="implicit")
    assert implicit.steps == plain.steps and torch.equal(implicit.x, plain.x)
    got, expected = (torch.autograd.grad(s.x.sum(), strength)[0] for s in (truncated, implicit))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=0)  # of the last 400 steps alone


def test_total_variation_by_condat_vu_is_that_of_central_differences(float64):
    """The dual variable is part of the fixed point; D u = 0 on the flat parts."""
    signal = torch.cat([torch.zeros(6), torch.ones(6), 0.3 * torch.ones(6)])
    data = signal + 0.1 * random(3, 18)

    def problem(strength):
        term = l2o.Composite(L1(strength, ndim=2), Gradient((18,)))
        return l2o.Problem(Diagonal(torch.ones(18)), data, SquaredL2(0.0), term)

    strength = torch.tensor(0.15, requires_grad=True)
    options = {"steps": 4000, "history": False}
    solution = l2o.solve(CondatVu(), problem(strength), gradient="implicit", residual_tol=1e-6, **options)
    c = random(3, 18, seed=5)
    (got,) = torch.autograd.grad((c * solution.x).sum(), strength)
    shifted = [(c * l2o.solve(CondatVu(), problem(0.15 + s), **options).x).sum() for s in (1e-4, -1e-4)]
    torch.testing.assert_close(got, (shifted[0] - shifted[1]) / 2e-4, rtol=1e-4, atol=1e-6)


def test_learned_weights_of_a_gradient_rule_get_gradients_unrolled(float64):
    problem = l2o.Problem(Matrix(random(6, 4) / 3), random(2, 6, seed=1), SquaredL2(0.1))
    rule = SGD(SGDConfig(lr=0.3))
    loss = l2o.solve(rule, problem, steps=20, gradient="unrolled").x.square().sum()
    (got,) = torch.autograd.grad(loss, rule.log_lr)
    values = []
    for shift in (1e-6, -1e-6):
        moved = SGD(SGDConfig(lr=0.3))
        moved.log_lr.data += shift
        values.append(l2o.solve(moved, problem, steps=20).x.square().sum())
    torch.testing.assert_close(got, (values[0] - values[1]) / 2e-6, rtol=1e-6, atol=0)


def test_a_gradient_rule_has_a_fixed_point_too(float64):
    A, b, strength = random(8, 4), random(2, 8, seed=1), torch.tensor(0.5, requires_grad=True)
    problem = l2o.Problem(Matrix(A), b, SquaredL2(strength))
    x = l2o.solve(SGD(SGDConfig(lr=0.05)), problem, steps=800, gradient="implicit", adjoint=CG()).x
    exact = torch.linalg.solve(A.T @ A + strength * torch.eye(4), A.T @ b.T).T
    torch.testing.assert_close(x, exact, rtol=0, atol=1e-8)
    got, expected = (torch.autograd.grad(v.square().sum(), strength)[0] for v in (x, exact))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-8)


def test_a_rule_of_ones_own_works_in_every_mode(float64):
    class Projected(l2o.ModelBasedRule):
        """Projected gradient descent with a step of its own, as a user would write it."""

        def init_problem(self, problem, x):
            return ()

        def iterate(self, problem, x, state, step):
            return (x - 0.05 * problem.smooth_grad(x)).clamp(0, 1), state

    A, b = random(10, 4), random(2, 10, seed=1).requires_grad_()
    problem = l2o.Problem(Matrix(A), b, Box(0.0, 1.0))
    grads = [
        torch.autograd.grad(l2o.solve(Projected(), problem, steps=900, gradient=mode, last=600).x.sum(), b)[0]
        for mode in ("implicit", "unrolled", "truncated")
    ]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=1e-8)
    torch.testing.assert_close(grads[2], grads[1], rtol=0, atol=1e-8)
    assert grads[0].abs().max() > 0.01


def test_cg_says_that_the_system_of_a_proximal_step_is_not_symmetric(float64):
    problem, variables = lasso()
    x = l2o.solve(ISTA(), problem, steps=700, gradient="implicit", adjoint=CG()).x
    with pytest.raises(NotConvergedError, match="A is not symmetric, and CG needs that: use GMRES"):
        torch.autograd.grad(x.sum(), variables)


def test_a_run_that_is_too_short_has_no_implicit_gradient(float64):
    problem, _ = lasso()
    with pytest.raises(NotConvergedError, match="not valid: 3 of 3 items .* after 20 steps"):
        l2o.solve(ISTA(), problem, steps=20, gradient="implicit")
    with pytest.raises(NotConvergedError, match="above tol=1.0e-09"):
        l2o.solve(ISTA(), problem, tol=1e-8, gradient="implicit", residual_tol=1e-9)
    with pytest.warns(NotConvergedWarning, match="not valid"):
        l2o.solve(ISTA(), problem, steps=20, gradient="implicit", on_failure="warn")
    l2o.solve(ISTA(), problem, steps=20, gradient="implicit", residual_tol=0.5)


def test_a_solution_at_zero_is_a_fixed_point_like_any_other(float64):
    problem, variables = lasso()
    large = l2o.Problem(problem.operator, problem.b, L1(10 * variables[1] + 100))
    x = l2o.solve(FISTA(), large, steps=5, gradient="implicit").x
    assert torch.equal(x, torch.zeros_like(x))
    assert all((g == 0).all() for g in torch.autograd.grad(x.sum(), variables))


@pytest.mark.parametrize(
    ("name", "entries"), [("ista", ()), ("fista", ()), ("admm", ("scaled_dual",)), ("condat-vu", ("dual",))]
)
def test_solutions_are_fixed_points_of_the_map(float64, name, entries):
    kernel = torch.tensor([[0.2, 0.6, 0.2]])
    operator = CircularConvolution.from_kernel(kernel, (1, 16)) if name != "admm" else Matrix(random(20, 16))
    shape = (2, 1, 16) if name != "admm" else (2, 20)
    composite = l2o.Composite(L21(0.05, ndim=3, axis=-3), Gradient((1, 16))) if name == "condat-vu" else None
    problem = l2o.Problem(operator, random(*shape), L1(0.02, ndim=2 if name != "admm" else 1), composite)
    rule = RULES[name]
    assert rule.iterated == entries
    x, state = problem.zeros(), rule.init_problem(problem, problem.zeros())
    for step in range(3000):
        x, state = rule.iterate(problem, x, state, step)
    u = (x, *(getattr(state, entry) for entry in entries))
    torch.testing.assert_close(fixed_point_map(rule, problem, entries, 3000)(u), u, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gradient": "reverse"},
            "gradient must be None or one of implicit, unrolled, truncated, one_step, got 'reverse'",
        ),
        ({"gradient": "truncated", "last": 0}, "last must be at least 1, got 0"),
        ({"residual_tol": 0.0}, "residual_tol must be above 0, got 0.0"),
        ({"on_failure": "none"}, "on_failure must be one of raise, warn, ignore"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        l2o.solve(ISTA(), lasso()[0], steps=1, **options)
