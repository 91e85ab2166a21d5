"""Laws of all rules that step on a problem's structure.

A rule of the table joins by itself those that use `ALL`; the lists below say who else obeys what.
"""

import inspect

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso as SklearnLasso
from torch.utils._pytree import tree_leaves

import l2o
from l2o.proximal import L1, CircularConvolution, Dictionary, ElasticNet, Matrix, NonnegativeL1
from l2o.rule import ModelBasedRule, Observation
from l2o.rules import MODEL_BASED
from l2o.rules.admm import ADMM, ADMMConfig
from l2o.rules.fista import FISTA, FISTAConfig

ROWS, COLUMNS, LAYERS = 12, 20, 6
STRENGTH = 0.15

# Further settings of the rules of the table.
VARIANTS = {
    "fista-plain": lambda: FISTA(FISTAConfig(restart="none")),
    "fista-function": lambda: FISTA(FISTAConfig(restart="function")),
    "fista-backtracking": lambda: FISTA(FISTAConfig(backtracking=True)),
    "fista-backtracking-function": lambda: FISTA(FISTAConfig(restart="function", backtracking=True, growth=1.5)),
    "admm-plain": lambda: ADMM(ADMMConfig(rho=0.3, relaxation=1.0)),
}
CONVERGING = ["ista", "fista", "admm", "condat-vu", *VARIANTS]
"""Rules that reach the minimiser of F from everywhere, whatever A, and stay there."""
CLASSIC = ["amp", "niht", *CONVERGING]
"""Rules that take every matrix, shared or one per item, and run under vmap: nothing is learned."""
ALL = [*MODEL_BASED, *VARIANTS]
LOCAL = ["support-newton"]
"""Rules that may not move from where they stand unless the solution is near."""


def dictionary(seed: int = 0, batch: tuple[int, ...] = (), rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    A = torch.randn(*batch, rows, columns, generator=torch.Generator().manual_seed(seed))
    return A / A.norm(dim=-2, keepdim=True)


def data(*batch: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*batch, ROWS, generator=torch.Generator().manual_seed(seed))


def build(name: str) -> ModelBasedRule:
    """A rule in the default dtype, for the dictionary of seed 0 where its weights are a matrix."""
    if name in VARIANTS:
        return VARIANTS[name]()
    rule_type, config_type = MODEL_BASED[name]
    sizes = {"rows": ROWS, "columns": COLUMNS, "layers": LAYERS, "strength": STRENGTH}
    sizes["threshold_scale"] = 0.01 * COLUMNS / 500  # HyperLISTA's usual one leaves codes as small as these at 0
    config = config_type(**{key: value for key, value in sizes.items() if key in config_type.__dataclass_fields__})
    options = inspect.signature(rule_type).parameters
    own = {"dictionary": dictionary()} if "dictionary" in options else {}
    if "generator" in options:
        own["generator"] = torch.Generator().manual_seed(5)
    return rule_type(config, **own)


def lasso(b: torch.Tensor, A: torch.Tensor | None = None, kind: type = Dictionary) -> l2o.Problem:
    return l2o.Problem(kind(dictionary() if A is None else A), b, L1(STRENGTH))


def tensors(state) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]


def run(rule: ModelBasedRule, problem: l2o.Problem, steps: int = LAYERS) -> torch.Tensor:
    return l2o.solve(rule, problem, steps=steps, history=False).x


@pytest.mark.parametrize("name", ALL)
def test_batch_equals_loop_over_items(float64, name):
    rule, b = build(name), data(4)
    together = run(rule, lasso(b))
    assert together.norm() > 0.1 or name in LOCAL
    for i in range(4):
        torch.testing.assert_close(together[i], run(rule, lasso(b[i])))


@pytest.mark.parametrize("name", ALL)
def test_several_batch_axes_equal_one(float64, name):
    rule, b = build(name), data(2, 3)
    torch.testing.assert_close(run(rule, lasso(b)).reshape(6, COLUMNS), run(rule, lasso(b.reshape(6, ROWS))))


@pytest.mark.parametrize("name", ALL)
def test_permuting_items_permutes_the_iterates(float64, name):
    rule, b, order = build(name), data(5), torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(run(rule, lasso(b[order])), run(rule, lasso(b))[order])


@pytest.mark.parametrize("name", ALL)
def test_empty_batch_stays_empty(name):
    x = run(build(name), lasso(data(0)))
    assert x.shape == (0, COLUMNS)


@pytest.mark.parametrize("name", ALL)
def test_float32_follows_float64(float64, name):
    rule, b = build(name), data(3)
    wide = run(rule, lasso(b))
    narrow = run(rule.float(), lasso(b.float(), dictionary().float()))
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, atol=1e-4, rtol=1e-4)  # 1000 eps: 20 terms, six steps


@pytest.mark.parametrize("name", ALL)
def test_step_writes_nothing_and_repeats_itself(float64, name):
    rule, problem = build(name), lasso(data(3))
    x = problem.zeros() + 0.1
    with torch.no_grad():
        state = rule.init_problem(problem, x)
        x, state = rule.iterate(problem, x, state, 0)
        inputs = [x, problem.b, problem.operator.matrix, *tensors(state)]
        copies, versions = [tensor.clone() for tensor in inputs], [tensor._version for tensor in inputs]
        first, again = (rule.iterate(problem, x, state, 1) for _ in range(2))
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, copies, strict=True))
    assert [tensor._version for tensor in inputs] == versions
    assert torch.equal(first[0], again[0])
    pairs = zip(tensors(first[1]), tensors(again[1]), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)
    assert not torch.equal(first[0], x) or name in LOCAL


@pytest.mark.parametrize("name", ALL)
def test_observation_with_a_problem_steps_as_iterate_does(float64, name):
    rule, problem = build(name), lasso(data(3))
    x = problem.zeros()
    state = rule.init_problem(problem, x)
    expected, _ = rule.iterate(problem, x, state, 0)
    params, _ = rule(Observation({"x": x}, None, None, torch.tensor(0), problem), state)
    assert torch.equal(params["x"], expected)
    with pytest.raises(ValueError, match=f"{type(rule).__name__} needs the structure of a problem"):
        rule(Observation({"x": x}, None, None, torch.tensor(0)), state)
    with pytest.raises(TypeError, match=f"{type(rule).__name__} needs a problem: use l2o.solve"):
        rule.init_state({"x": x})


@pytest.mark.parametrize("name", CLASSIC)
def test_matrix_per_item_equals_loop(float64, name):
    rule, b, A = build(name), data(4), dictionary(3, (4,))
    together = run(rule, lasso(b, A))
    for i in range(4):
        torch.testing.assert_close(together[i], run(rule, lasso(b[i], A[i])))


@pytest.mark.parametrize("name", CLASSIC)
def test_matrix_steps_as_a_dictionary_does(float64, name):
    rule, b = build(name), data(4)
    torch.testing.assert_close(run(rule, lasso(b, kind=Matrix)), run(rule, lasso(b)))


@pytest.mark.parametrize("name", CLASSIC)
def test_permuting_columns_permutes_the_iterates(float64, name):
    rule, b, order = build(name), data(3), torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(run(rule, lasso(b, dictionary()[:, order])), run(rule, lasso(b))[:, order])


@pytest.mark.parametrize("name", CLASSIC)
def test_vmap_over_items_equals_batch(float64, name):
    rule, b, A = build(name), data(4), dictionary()

    def one(b):
        problem = lasso(b, A)
        x = problem.zeros()
        state = rule.init_problem(problem, x)
        for step in range(LAYERS):
            x, state = rule.iterate(problem, x, state, step)
        return x

    torch.testing.assert_close(torch.func.vmap(one)(b), run(rule, lasso(b)))


@pytest.mark.parametrize("name", CLASSIC)
def test_zero_data_have_the_solution_zero_and_no_nan(float64, name):
    assert torch.equal(run(build(name), lasso(torch.zeros(2, ROWS))), torch.zeros(2, COLUMNS))
    nothing = lasso(data(2), torch.zeros(ROWS, COLUMNS))
    assert torch.equal(run(build(name), nothing), torch.zeros(2, COLUMNS))


@pytest.mark.parametrize("shape", [(12, 20), (8, 30), (30, 10)], ids=["gram", "wide", "tall"])
@pytest.mark.parametrize("name", CONVERGING)
def test_reaches_the_optimum_of_scikit_learn(float64, name, shape):
    rows, columns = shape
    A = dictionary(4, rows=rows, columns=columns)
    b = torch.randn(3, rows, generator=torch.Generator().manual_seed(6))
    strengths = torch.tensor([0.05, 0.1, 0.3])  # one per item
    problem = l2o.Problem(Dictionary(A), b, L1(strengths))
    solution = l2o.solve(build(name), problem, tol=1e-10, max_steps=40_000, history=False)
    assert solution.converged
    for i in range(3):
        oracle = SklearnLasso(alpha=float(strengths[i]) / rows, fit_intercept=False, tol=1e-14, max_iter=100_000)
        best = oracle.fit(A.numpy(), b[i].numpy()).coef_
        value = 0.5 * np.square(A.numpy() @ best - b[i].numpy()).sum() + float(strengths[i]) * np.abs(best).sum()
        # the gap of 1e-10 is relative to F, which is near 1
        assert float(problem.value(solution.x)[i]) == pytest.approx(value, rel=2e-10)


@pytest.mark.parametrize("regularizer", [NonnegativeL1(0.1), ElasticNet(0.1, 0.2)], ids=["nonnegative", "elastic-net"])
@pytest.mark.parametrize("name", CONVERGING)
def test_reaches_the_optimum_of_cvxpy_with_other_regularizers(float64, name, regularizer):
    import cvxpy

    A, b = dictionary(), data(1)
    x = cvxpy.Variable(COLUMNS, nonneg=isinstance(regularizer, NonnegativeL1))
    ridge = getattr(regularizer, "ridge", 0.0)
    objective = cvxpy.sum_squares(A.numpy() @ x - b[0].numpy()) / 2 + 0.1 * cvxpy.norm1(x)
    best = cvxpy.Problem(cvxpy.Minimize(objective + ridge / 2 * cvxpy.sum_squares(x))).solve(cvxpy.CLARABEL)
    problem = l2o.Problem(Dictionary(A), b, regularizer)
    solution = l2o.solve(build(name), problem, tol=1e-9, max_steps=40_000, history=False)
    assert solution.converged
    assert float(solution.certificate.primal) == pytest.approx(best, rel=1e-7)  # Clarabel stops near 1e-8


@pytest.mark.parametrize("name", CONVERGING)
def test_start_at_the_solution_stays_there(float64, name):
    problem = lasso(data(3))
    solution = l2o.solve(build("admm"), problem, steps=3000, history=False).x
    moved = l2o.solve(build(name), problem, steps=5, start=solution, history=False).x
    torch.testing.assert_close(moved, solution, atol=1e-9, rtol=0)
    far = l2o.solve(build(name), problem, steps=5, start=solution + 1, history=False).x
    assert (far - solution).abs().max() > 1e-3


@pytest.mark.parametrize("name", CONVERGING)
def test_images_and_operators_without_a_matrix_are_solved_too(float64, name):
    generator = torch.Generator().manual_seed(3)
    blur = CircularConvolution.from_kernel(torch.rand(3, 3, generator=generator) / 5, (6, 5))
    problem = l2o.Problem(blur, torch.randn(2, 6, 5, generator=generator), L1(0.1, ndim=2))
    solution = l2o.solve(build(name), problem, tol=1e-8, history=False)
    assert solution.converged and solution.x.shape == (2, 6, 5)
    residual = problem.smooth_grad(solution.x)  # optimality: −∇f in λ ∂‖x‖₁
    assert residual.abs().max() <= 0.1 + 1e-4
    torch.testing.assert_close(residual[solution.x != 0], -0.1 * solution.x[solution.x != 0].sign(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["ista", "fista", "admm"])
def test_second_term_that_a_rule_would_leave_out_is_refused(name):
    problem = l2o.Problem(
        Dictionary(dictionary()), data(1), L1(0.1), l2o.Composite(L1(0.1), Matrix(torch.eye(COLUMNS)))
    )
    with pytest.raises(NotImplementedError, match="use a rule that splits it: CondatVu"):
        run(build(name), problem)


@pytest.mark.parametrize("name", ["amp", "niht"])
def test_second_term_is_refused_by_rules_without_a_prox(name):
    problem = l2o.Problem(
        Dictionary(dictionary()), data(1), L1(0.1), l2o.Composite(L1(0.1), Matrix(torch.eye(COLUMNS)))
    )
    with pytest.raises(ValueError, match="alone"):
        run(build(name), problem)
