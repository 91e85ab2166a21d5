"""Running a rule: the history, the stopping test, starts, gradient rules, and what is refused."""

import numpy as np
import pytest
import torch

import l2o
from l2o.proximal import L1, Dictionary, Matrix
from l2o.rules import ALISTA, FISTA, ISTA, SGD, Adam, AdamConfig, ALISTAConfig, Safeguarded, SGDConfig
from l2o.solve import make_step, stepper


def lasso(*batch: int, strength: float = 0.1) -> l2o.Problem:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(10, 16, generator=generator)
    return l2o.Problem(Dictionary(A / A.norm(dim=0)), torch.randn(*batch, 10, generator=generator), L1(strength))


def test_history_holds_the_objective_at_the_start_and_after_every_step(float64):
    problem = lasso(3)
    solution = l2o.solve(ISTA(), problem, steps=5)
    assert solution.history.shape == (6, 3) and solution.steps == 5 and solution.converged
    for steps in range(6):
        x = l2o.solve(ISTA(), problem, steps=steps).x
        torch.testing.assert_close(solution.history[steps], problem.value(x))
    torch.testing.assert_close(solution.certificate.primal, solution.history[-1])
    assert l2o.solve(ISTA(), problem, steps=5, history=False).history.shape == (0, 3)


def test_tolerance_is_reached_by_every_item_and_not_much_earlier(float64):
    problem = lasso(4)
    solution = l2o.solve(FISTA(), problem, tol=1e-5)
    assert solution.converged and (solution.certificate.relative_gap <= 1e-5).all()
    assert solution.steps % 10 == 0 or solution.steps in {2**k for k in range(12)}  # where it looks
    earlier = l2o.solve(FISTA(), problem, steps=solution.steps - 10)
    assert (earlier.certificate.relative_gap > 1e-5).any()
    exact = l2o.solve(FISTA(), problem, steps=2000).certificate.primal
    assert ((solution.certificate.primal - exact) / exact <= 1e-5).all()


def test_solution_given_as_start_takes_no_step(float64):
    problem = lasso(4)
    best = l2o.solve(FISTA(), problem, tol=1e-9).x
    again = l2o.solve(FISTA(), problem, tol=1e-8, start=best)
    assert again.steps == 0 and torch.equal(again.x, best) and again.history.shape == (1, 4)


def test_giving_up_is_said():
    problem = lasso(4)
    with pytest.warns(RuntimeWarning, match=r"ISTA gave up after 7 steps: .*, not tol=1e-12. .*; float32 may not come"):
        solution = l2o.solve(ISTA(), problem, tol=1e-12, max_steps=7)
    assert not solution.converged and solution.steps == 7
    with pytest.warns(RuntimeWarning, match=r"or a rule that converges: l2o.rules.FISTA\(\), .*\(rule\)$"):
        l2o.solve(ISTA(), problem.double(), tol=1e-12, max_steps=7)
    assert l2o.solve(FISTA(), problem.double(), tol=1e-12).converged  # the cure


def test_zero_steps_return_the_start():
    problem = lasso(2)
    start = torch.full((2, 16), 0.25)
    assert torch.equal(l2o.solve(ISTA(), problem, steps=0, start=start).x, start)
    assert torch.equal(l2o.solve(ISTA(), problem, steps=0).x, torch.zeros(2, 16))


def test_empty_batch_converges_at_once():
    solution = l2o.solve(FISTA(), lasso(0), tol=1e-6)
    assert solution.x.shape == (0, 16) and solution.converged and solution.steps == 0


def test_solution_has_no_graph_and_keeps_the_precision():
    problem = lasso(2)
    narrow = l2o.solve(FISTA(), problem, steps=3, start=torch.zeros(2, 16, dtype=torch.float64, requires_grad=True))
    assert narrow.x.dtype == torch.float32 and not narrow.x.requires_grad
    assert narrow.certificate.primal.dtype == torch.float64


def test_gradient_rules_are_given_the_subgradient(float64):
    problem = lasso(3)
    x = 0.1 * torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    moved = l2o.solve(SGD(SGDConfig(lr=0.2)), problem, steps=1, start=x).x
    torch.testing.assert_close(moved, x - 0.2 * (problem.smooth_grad(x) + 0.1 * x.sign()))
    values = l2o.solve(Adam(AdamConfig(lr=0.02)), problem, steps=300).history
    assert (values[-1] < 0.6 * values[0]).all()


def test_stepper_is_the_loop_of_solve(float64):
    problem, rule = lasso(3), FISTA()
    x = problem.zeros()
    advance = stepper(rule, problem, x)
    for _ in range(6):
        x = advance(x)
    assert torch.equal(x, l2o.solve(rule, problem, steps=6).x)


def test_number_of_layers_is_the_default_number_of_steps():
    class Layered(ISTA):
        layers = 4

    assert l2o.solve(Layered(), lasso(2)).steps == 4
    assert l2o.solve(Layered(), lasso(2), tol=1e-2).steps != 4
    assert l2o.solve(Layered(), lasso(2), steps=6).steps == 6


def test_make_step_counts_for_the_rule():
    seen = []

    class Counting(ISTA):
        def iterate(self, problem, x, state, step):
            seen.append(step)
            return super().iterate(problem, x, state, step)

    problem = lasso(2)
    l2o.solve(Counting(), problem, steps=3)
    rule = Counting()
    make_step(rule, problem, problem.zeros(), rule.init_problem(problem, problem.zeros()), 7)
    assert seen == [0, 1, 2, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either steps or tol, got steps=None and tol=None"),
        ({"steps": 3, "tol": 1e-3}, "give either steps or tol"),
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"tol": 0.0}, "tol must be above 0"),
        ({"tol": float("nan")}, "tol must be above 0, got nan"),
        ({"tol": 1e-3, "max_steps": -1}, "steps must be at least 0"),
        ({"steps": 1, "start": torch.zeros(16)}, r"the start must have the shape of x, \(2, 16\), got \(16,\)"),
    ],
)
def test_what_cannot_be_run_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        l2o.solve(ISTA(), lasso(2), **options)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        (
            "alista",
            {"steps": 3},
            r"rule must be an UpdateRule, got 'alista'; of a name, l2o.load_rule\(name\) makes one",
        ),
        (torch.nn.Linear(2, 2), {"steps": 3}, "must be an UpdateRule, got a Linear: derive it from l2o.UpdateRule"),
        (ISTA(), {"steps": 1, "gradient": "implicit", "adjoint": "cg"}, "adjoint must be a solver of linear systems"),
        (ISTA(), {"steps": 3.5}, "steps and max_steps must be integers, got 3.5"),
        (ISTA(), {"tol": 0.1, "max_steps": 1e3}, "must be integers, got None and 1000.0"),
        (ISTA(), {"tol": "1e-3"}, "tol must be a number, got '1e-3'"),
    ],
)
def test_what_is_no_rule_or_no_number_of_steps_is_refused(rule, options, message):
    with pytest.raises(TypeError, match=message):
        l2o.solve(rule, lasso(2), **options)


def test_what_is_no_problem_is_refused_with_what_makes_one():
    message = r"problem must be an l2o.Problem, got a tuple; tasks.lasso.problem\(A, b, λ\) makes one"
    with pytest.raises(TypeError, match=message):
        l2o.solve(ISTA(), (torch.eye(3), torch.ones(3), 0.1), steps=3)  # pyright: ignore


def test_a_start_may_come_from_numpy(float64):
    start = np.full((2, 16), 0.5)
    torch.testing.assert_close(l2o.solve(ISTA(), lasso(2), steps=0, start=start).x, torch.from_numpy(start))


class Exploding(ISTA):
    """Doubles the first item, which overflows; the second stays."""

    def iterate(self, problem, x, state, step):
        return x * torch.tensor([1e30, 1.0])[:, None] + 1, state


def test_a_run_that_is_not_finite_has_not_converged_and_warns():
    problem = lasso(2)
    with pytest.warns(RuntimeWarning, match="Exploding after 5 steps: 1 of 2 items are no longer finite. Check the"):
        solution = l2o.solve(Exploding(), problem, steps=5)
    assert not solution.converged and solution.steps == 5 and not torch.isfinite(solution.x).all()
    assert solution.certificate.primal[0].isnan() and solution.certificate.primal[1].isfinite()
    assert l2o.solve(ISTA(), problem, steps=5).converged


def test_a_run_to_a_tolerance_stops_and_warns_where_it_is_not_finite():
    message = r"Exploding after 3 steps: 1 of 2 items are no longer finite. Check the data, or take a smaller"
    with pytest.warns(RuntimeWarning, match=message):
        solution = l2o.solve(Exploding(), lasso(2), tol=1e-6)
    assert solution.steps == 3 and not solution.converged and solution.history.shape == (4, 2)
    with pytest.warns(RuntimeWarning, match="after 0 steps: 2 of 2 items"):
        l2o.solve(ISTA(), lasso(2), tol=1e-6, start=torch.full((2, 16), torch.nan))


def test_a_learned_rule_that_diverges_beyond_its_layers_names_the_cure_and_it_cures():
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(8, 16, generator=generator)
    problem = l2o.Problem(Dictionary(A / A.norm(dim=0)), torch.randn(2, 8, generator=generator), L1(0.1)).double()
    rule = ALISTA(ALISTAConfig(layers=4, step_size=5.0))
    message = r"ALISTA after 1000 steps: 2 of 2 items .* It is made for 4 steps: .*, l2o.rules.Safeguarded\(rule\)"
    with pytest.warns(RuntimeWarning, match=message):
        assert not l2o.solve(rule, problem, steps=1000).converged
    assert l2o.solve(Safeguarded(rule), problem, steps=1000).certificate.relative_gap.max() < 1e-9


def test_a_solution_prints_in_one_line():
    text = repr(l2o.solve(FISTA(), lasso(3), steps=4))
    assert text.startswith("Solution(x=float32 (3, 16), history=float32 (5, 3), ") and "\n" not in text
    assert "steps=4, converged=True" in text and len(text) < 200


def test_inside_vmap_it_says_to_use_batch_axes(float64):
    A, b = torch.eye(3), torch.ones(2, 3)
    for options in ({"steps": 2}, {"tol": 1e-3}):
        with pytest.raises(TypeError, match="solve looks at values.* give the items as batch axes of the problem"):
            torch.vmap(lambda b, o=options: l2o.solve(ISTA(), l2o.Problem(Matrix(A), b, L1(0.1)), **o).x)(b)
