"""Fixed points that do not exist, are not unique, or cannot be run: what is said, and at the edges what is returned."""

import pytest
import torch

from l2o import (
    CG,
    Anderson,
    AndersonSolver,
    FixedPoint,
    NotConvergedError,
    NotConvergedWarning,
    fixed_point,
    root,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("problem", ["too few steps", "no contraction", "not finite"])
def test_a_lower_level_that_did_not_converge_has_no_implicit_gradient(float64, problem):
    b = torch.ones(3, requires_grad=True)
    rate = torch.tensor({"too few steps": 0.99, "no contraction": 1.1, "not finite": float("nan")}[problem])
    step, start = lambda u: rate * u + b, torch.zeros(3)  # noqa: E731
    message = "did not converge, so the implicit gradient is not valid: 1 of 1 items .* Allow more steps"
    with pytest.raises(NotConvergedError, match=message):
        fixed_point(step, start, max_steps=20)
    with pytest.raises(NotConvergedError, match="after 7 steps"):
        fixed_point(step, start, steps=7) if problem != "not finite" else fixed_point(step, start * 0 + 1, steps=7)
    with pytest.warns(NotConvergedWarning, match="not valid"):
        result = fixed_point(step, start, max_steps=20, on_failure="warn")
    assert not result.converged and result.u.requires_grad
    assert not fixed_point(step, start, max_steps=20, on_failure="ignore").converged
    assert not fixed_point(step, start, max_steps=20, gradient=None).converged  # which only says so


def test_a_value_that_is_not_finite_ends_the_loop(float64):
    calls = 0

    def step(u):
        nonlocal calls
        calls += 1
        return u * u + 10

    result = fixed_point(step, torch.ones(2, 1), batch_axes=1, gradient=None, max_steps=500)
    assert calls < 20 and not result.converged.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_an_iterate_that_grows_until_its_norm_overflows_has_not_converged(dtype):
    b = torch.ones(3, dtype=dtype, requires_grad=True)
    with pytest.raises(NotConvergedError, match=r"not valid.*the worst inf"):
        fixed_point(lambda u: 1.5 * u + b, torch.ones(3, dtype=dtype), max_steps=5000)
    result = fixed_point(lambda u: 1.5 * u + b, torch.ones(3, dtype=dtype), max_steps=5000, gradient=None)
    assert not result.converged and result.residual.isinf()


def test_a_fixed_point_that_is_not_unique_has_no_gradient_along_its_set(float64):
    A, b = random(2, 5), random(2, seed=1).requires_grad_()
    pinv = torch.linalg.pinv(A)
    result = fixed_point(lambda u: u - pinv @ (A @ u - b), torch.zeros(5))  # projection onto {u : Au = b}
    torch.testing.assert_close(result.u, pinv @ b, rtol=0, atol=1e-8)
    with pytest.raises(NotConvergedError, match="was not solved: GMRES .* is not unique"):
        torch.autograd.grad(result.u.sum(), b, retain_graph=True)
    # A loss of Au alone does not see the set.
    torch.testing.assert_close(torch.autograd.grad((A @ result.u).sum(), b)[0], torch.ones(2), rtol=0, atol=1e-8)


def test_a_nearly_singular_system_is_refused_and_warned_about(float64):
    rates = 1 - torch.logspace(0, -14, 8)
    b = torch.ones(8, requires_grad=True)

    def result(policy):
        exact = torch.ones(8) / (1 - rates)
        return fixed_point(lambda u: rates * (u - exact) + exact + (b - 1), exact, on_failure=policy)

    with pytest.raises(NotConvergedError, match="linear system .* ill-conditioned"):
        result("raise").u.sum().backward()
    kept = result("warn")
    with pytest.warns(NotConvergedWarning, match="linear system"):
        kept.u.sum().backward()
    assert not kept.report.converged and kept.report.condition.item() > 1e10


def test_nothing_to_differentiate_gives_no_graph(float64):
    result = fixed_point(lambda u: 0.5 * u + 1, torch.zeros(2))
    assert not result.u.requires_grad and result.converged
    b = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        assert not fixed_point(lambda u: 0.5 * u + b, torch.zeros(2)).u.requires_grad
    assert not fixed_point(lambda u: 0.5 * u + b, torch.zeros(2), gradient=None).u.requires_grad


def test_a_start_gets_a_gradient_only_through_recorded_steps(float64):
    start, b = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    u = fixed_point(lambda u: 0.5 * u + b, start, gradient="unrolled", steps=3).u
    torch.testing.assert_close(torch.autograd.grad(u.sum(), start)[0], torch.full((3,), 0.125))
    u = fixed_point(lambda u: 0.5 * u + b, start).u
    assert torch.autograd.grad(u.sum(), start, allow_unused=True) == (None,)


def test_second_derivatives_without_params_are_refused(float64):
    b = torch.ones(3, requires_grad=True)
    u = fixed_point(lambda u: 0.5 * torch.sin(u) + b, torch.zeros(3)).u
    (first,) = torch.autograd.grad(u.sum(), b, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives .* need what the step depends on as params"):
        torch.autograd.grad(first.sum(), b)


def test_zero_steps_and_empty_batches(float64):
    b = torch.ones(2, requires_grad=True)
    assert torch.equal(fixed_point(lambda u: u + b, torch.ones(2), steps=0, gradient=None).u, torch.ones(2))
    with pytest.raises(NotConvergedError, match="after 0 steps"):
        fixed_point(lambda u: 0.5 * u + b, torch.ones(2), steps=0)
    empty = fixed_point(lambda u: 0.5 * u + b, torch.zeros(0, 2), batch_axes=1)
    empty.u.sum().backward()
    assert empty.u.shape == (0, 2) and torch.equal(b.grad, torch.zeros(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"gradient": "adjoint"},
            "gradient must be None or one of implicit, unrolled, truncated, one_step, got 'adjoint'",
        ),
        ({"steps": -1}, "need steps ≥ 0, max_steps ≥ 0 and last ≥ 1, got -1"),
        ({"last": 0}, "last ≥ 1"),
        ({"tol": 0.0}, "tol must be above 0, got 0.0"),
        ({"on_failure": "pass"}, "on_failure must be one of raise, warn, ignore, got 'pass'"),
        ({"gradient": "unrolled", "acceleration": Anderson()}, "acceleration is not recorded"),
        ({"batch_axes": 2}, r"must share their first batch_axes=2 axes, got \[\(3,\)\]"),
    ],
)
def test_what_cannot_be_run_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        fixed_point(lambda u: u, torch.zeros(3), **options)


@pytest.mark.parametrize(
    ("step", "start", "error", "message"),
    [
        (lambda u: u[:2], torch.zeros(3), ValueError, r"must give what it takes, .*\[\(3,\)\]; it gave \[\(2,\)\]"),
        (lambda u: (u, u), torch.zeros(3), ValueError, "must give what it takes"),
        (
            lambda u: u.double(),
            torch.zeros(3),
            ValueError,
            "takes torch.float32 and gives torch.float64; give the start",
        ),
        (
            lambda u: u,
            torch.zeros(3, dtype=torch.int64),
            TypeError,
            "real floating-point tensors only, got torch.int64",
        ),
        (lambda u: u, (torch.zeros(3), "a"), TypeError, "only, got str"),
        (lambda u: u, (), ValueError, "the start holds no tensor"),
        (lambda u: u, (torch.zeros(3), torch.zeros(3).double()), ValueError, "must share dtype and device"),
    ],
)
def test_steps_and_starts_that_do_not_fit_are_refused(step, start, error, message):
    with pytest.raises(error, match=message):
        fixed_point(step, start, steps=1, gradient=None)


@pytest.mark.parametrize("options", [{"memory": 0}, {"mixing": 0.0}, {"growth": 1.0}])
def test_options_of_anderson_are_checked(options):
    with pytest.raises(ValueError, match="need memory ≥ 1, 0 < mixing ≤ 1 and growth > 1"):
        Anderson(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adjoint": "cg"}, r"adjoint must be a solver of linear systems \(GMRES\(\).* got 'cg'"),
        ({"adjoint": CG}, r"adjoint must be .*; make one of it with \(\)"),
        ({"adjoint": Anderson()}, "adjoint must be .* got Anderson"),
        ({"acceleration": True}, "acceleration must be an l2o.Anderson, for instance .* got True"),
        ({"acceleration": AndersonSolver()}, "acceleration must be .* got AndersonSolver"),
    ],
)
def test_options_of_another_type_are_refused_at_the_call(options, message):
    with pytest.raises(TypeError, match=message):
        fixed_point(lambda u: 0.5 * u, torch.zeros(3), **options)
    with pytest.raises(TypeError, match=message):
        FixedPoint(torch.nn.Linear(2, 2), **options)
    if "adjoint" in options:
        with pytest.raises(TypeError, match=message):
            root(lambda u: u, torch.zeros(3), **options)


def test_a_layer_checks_its_gradient_mode_when_it_is_made():
    with pytest.raises(ValueError, match="gradient must be None or one of .* got 'impl'"):
        FixedPoint(torch.nn.Linear(2, 2), gradient="impl")  # pyright: ignore


@pytest.mark.parametrize("options", [{"max_steps": 20}, {"steps": 20}], ids=str)
def test_without_a_gradient_too_what_did_not_converge_is_refused(float64, options):
    class Cell(torch.nn.Module):
        def forward(self, z, x):
            return 1.1 * z + x

    b = torch.ones(1, 3, requires_grad=True)
    calls = (
        lambda: fixed_point(lambda u: 1.1 * u + b, torch.zeros(1, 3), **options),
        lambda: fixed_point(lambda u, b: 1.1 * u + b, torch.zeros(1, 3), b, **options),
        lambda: FixedPoint(Cell(), **options)(b),
    )
    for call in calls:
        with torch.no_grad(), pytest.raises(NotConvergedError, match="lower level did not converge"):
            call()
    with torch.no_grad():
        assert not fixed_point(lambda u: 1.1 * u + b, torch.zeros(1, 3), gradient=None, **options).converged


@pytest.mark.parametrize("mode", [None, "unrolled", "truncated", "one_step"])
def test_inside_vmap_a_loop_without_a_number_of_steps_says_what_to_give(float64, mode):
    b = torch.ones(4, 3)
    with pytest.raises(TypeError, match="inside torch.vmap .* give steps=, or the items as batch axes"):
        torch.vmap(lambda b: fixed_point(lambda u: 0.5 * u + b, torch.zeros(3), gradient=mode).u)(b)
    run = lambda b: fixed_point(lambda u: 0.5 * u + b, torch.zeros(3), gradient=mode, steps=60).u  # noqa: E731
    torch.testing.assert_close(torch.vmap(run)(b), 2 * b)
