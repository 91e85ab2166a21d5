"""Safeguarded rules converge whatever the inner rule proposes; the oracle is scikit-learn and the duality gap."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso as CoordinateDescent

from l2o import ModelBasedRule, load_rule, solve
from l2o.problem import Composite, Problem
from l2o.proximal import L1, Dictionary, NonnegativeL1, Simplex
from l2o.rules import (
    FISTA,
    ISTA,
    CoordinatewiseLSTM,
    FirmALISTA,
    LSTMConfig,
    Safeguarded,
    SafeguardedConfig,
    SupportNewtonConfig,
    acceptance_rate,
)
from l2o.solve import init_state, make_step
from tasks.dictionaries import normalize_dictionary
from tasks.lasso import problem


class Adversary(ModelBasedRule):
    """Proposes garbage of a kind."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.generator = kind, torch.Generator().manual_seed(0)

    def init_problem(self, problem, x):
        return (x.new_zeros(1),)

    def iterate(self, problem, x, state, step):
        noise = torch.randn(x.shape, dtype=x.dtype, generator=self.generator)
        scale = 10.0 ** float(torch.randint(-8, 8, (), generator=self.generator))
        kinds = {
            "noise": noise * scale, "perturbed": x + noise * scale, "nan": x * float("nan"), "flipped": -x,
            "frozen": x, "infinite": x + float("inf"), "huge": noise * 1e200,
        }  # fmt: skip
        return kinds[self.kind], state


KINDS = ("noise", "perturbed", "nan", "flipped", "frozen", "infinite", "huge")


def random_problem(seed, rows=20, columns=40, items=5, condition=None, share=0.1):
    generator = torch.Generator().manual_seed(seed)
    A = normalize_dictionary(torch.randn(rows, columns, dtype=torch.float64, generator=generator), condition)
    b = torch.randn(items, rows, dtype=torch.float64, generator=generator)
    return problem(A, b, share * (b @ A).abs().amax(-1))


def sklearn_values(made):
    A, values = made.operator.matrix.numpy(), []
    for b, strength in zip(made.b.numpy(), made.regularizer.strength.tolist(), strict=True):
        rule = CoordinateDescent(strength / len(A), fit_intercept=False, tol=1e-15, max_iter=100_000)
        x = rule.fit(A, b).coef_
        values.append(0.5 * np.square(A @ x - b).sum() + strength * np.abs(x).sum())
    return torch.tensor(values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("polish", [None, SupportNewtonConfig()])
def test_any_inner_rule_comes_to_the_optimum_of_scikit_learn(kind, polish):
    made = random_problem(0)
    solution = solve(Safeguarded(Adversary(kind), SafeguardedConfig(polish=polish)), made, tol=1e-10)
    assert solution.converged
    torch.testing.assert_close(solution.certificate.primal, sklearn_values(made), rtol=1e-8, atol=0)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(2, 30),
    columns=st.integers(2, 50),
    condition=st.sampled_from([None, 5.0, 30.0]),
    share=st.floats(0.05, 1.2),
    kind=st.sampled_from(KINDS),
    newton=st.booleans(),
)
def test_it_converges_on_random_dictionaries_from_any_inner_rule(seed, rows, columns, condition, share, kind, newton):
    made = random_problem(seed, rows, columns, 3, condition, share)
    config = SafeguardedConfig(polish=SupportNewtonConfig() if newton else None)
    assert solve(Safeguarded(Adversary(kind), config), made, tol=1e-8, max_steps=20_000).converged


def test_every_step_falls_by_the_theorem_amount():
    made = random_problem(3)
    config = SafeguardedConfig(polish=None, decrease=0.3)
    rule, x = Safeguarded(Adversary("perturbed"), config), made.zeros()
    state = init_state(rule, made, x)
    L = torch.linalg.svdvals(made.operator.matrix)[0] ** 2
    for step in range(60):
        mapped = made.prox(x - made.smooth_grad(x) / L, 1 / L.expand(5))
        needed = 0.3 * L / 2 * (x - mapped).square().sum(-1)
        new, state = make_step(rule, made, x, state, step)
        # rounding of F, whose size is of order 10
        assert (made.value(new) <= made.value(x) - needed + 1e-13).all()
        x = new


def test_a_frozen_rule_costs_nothing_but_time_against_fista():
    made = random_problem(4)
    config = SafeguardedConfig(polish=None)
    ours = solve(Safeguarded(Adversary("frozen"), config), made, steps=300).certificate.primal
    fista = solve(FISTA(), made, steps=300).certificate.primal
    torch.testing.assert_close(ours, fista, rtol=1e-9, atol=0)


def test_a_gradient_rule_with_a_safeguard_converges():
    lstm = CoordinatewiseLSTM(LSTMConfig(p=10.0), torch.Generator().manual_seed(0)).double()
    made = random_problem(5)
    assert solve(Safeguarded(lstm, SafeguardedConfig(polish=None)), made, tol=1e-9).converged


def test_an_untrained_learned_rule_far_from_its_dictionary_converges():
    made = random_problem(6, condition=100.0)
    assert solve(Safeguarded(FirmALISTA().double()), made, tol=1e-9).converged


def test_acceptance_is_counted_item_by_item():
    made = random_problem(7)
    rates = {}
    for name, inner in (("ista", ISTA()), ("nan", Adversary("nan"))):
        rule = Safeguarded(inner, SafeguardedConfig(polish=None, pause=4))
        x = made.zeros()
        state = init_state(rule, made, x)
        assert acceptance_rate(state).isnan().all()
        for step in range(8):
            x, state = make_step(rule, made, x, state, step)
        rates[name] = acceptance_rate(state)
    assert torch.equal(rates["ista"], torch.ones(5))
    assert torch.equal(rates["nan"], torch.zeros(5))
    # refused at steps 0 and 5: then come pauses of 4 and 8 steps
    assert state.tried.tolist() == [2] * 5


def test_items_do_not_see_one_another():
    made = random_problem(8)
    rule = Safeguarded(FirmALISTA().double())
    together = solve(rule, made, steps=30).x
    for i in range(5):
        alone = solve(rule, problem(made.operator.matrix, made.b[i], float(made.regularizer.strength[i])), steps=30).x
        torch.testing.assert_close(alone, together[i], rtol=0, atol=1e-10)


def test_dictionaries_of_their_own_and_two_batch_axes():
    parts = [random_problem(seed, items=2) for seed in (1, 2, 3)]
    A = torch.stack([part.operator.matrix for part in parts]).unsqueeze(1).expand(3, 2, 20, 40)
    b = torch.stack([part.b for part in parts])
    for polish in (None, SupportNewtonConfig()):
        made = problem(A, b, torch.stack([part.regularizer.strength for part in parts]))
        solution = solve(Safeguarded(None, SafeguardedConfig(polish=polish)), made, tol=1e-10)
        expected = torch.stack([sklearn_values(part) for part in parts])
        torch.testing.assert_close(solution.certificate.primal, expected, rtol=1e-8, atol=0)


def test_other_regularizers_do_without_newton_steps():
    part = random_problem(9)
    made = Problem(part.operator, part.b, NonnegativeL1(0.1))
    with pytest.raises(ValueError, match="L1"):
        solve(Safeguarded(None), made, steps=1)
    rule = Safeguarded(Adversary("noise"), SafeguardedConfig(polish=None))
    assert solve(rule, made, tol=1e-9).converged


def test_zero_data_is_solved_at_once():
    made = problem(torch.eye(3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64), 0.1)
    assert torch.equal(solve(Safeguarded(Adversary("noise")), made, steps=2).x, torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("options", [{"decrease": 0.0}, {"decrease": 1.0}, {"block": 0}, {"pause": 0}, {"scouts": 0}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SafeguardedConfig(**options)


def test_a_first_step_is_all_layers_of_the_inner_rule():
    made = Problem(Dictionary(random_problem(10).operator.matrix), random_problem(10).b, random_problem(10).regularizer)
    inner = FirmALISTA().double()
    ours, layers = solve(Safeguarded(inner), made, steps=1), solve(inner, made, steps=8)
    better = layers.certificate.primal < made.value(made.zeros())
    assert better.any()
    torch.testing.assert_close(ours.x[better], layers.x[better])


def test_scouts_keep_a_large_batch_from_a_useless_rule_but_not_from_a_useful_one():
    made = random_problem(11, items=40)
    for inner, share in ((Adversary("nan"), 0.0), (ISTA(), 1.0)):
        rule = Safeguarded(inner, SafeguardedConfig(scouts=5))
        x = made.zeros() + 1
        _, state = make_step(rule, made, x, init_state(rule, made, x), 0)
        assert state.accepted.double().mean() == share
        assert (state.wait == 0).all() == (share == 1)
    everyone = Safeguarded(Adversary("nan"), SafeguardedConfig(scouts=None))
    _, state = make_step(everyone, made, x, init_state(everyone, made, x), 0)
    assert state.tried.tolist() == [1] * 40


def test_a_gram_matrix_and_two_products_take_the_same_steps():
    wide, square = random_problem(12, columns=41), random_problem(12, columns=40)
    for made, gram in ((wide, False), (square, True)):
        state = init_state(Safeguarded(None, SafeguardedConfig(polish=None)), made, made.zeros())
        assert bool(state.descent.correlation.numel()) == gram
        ours = solve(Safeguarded(None, SafeguardedConfig(polish=None)), made, steps=40).certificate.primal
        fista = solve(FISTA(), made, steps=40).certificate.primal
        assert (ours <= fista * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", ["lasso-firm-alista", "lasso-firm-alista-0.005"])
def test_shipped_rules_solve_a_problem_of_their_own_kind(name):
    made = random_problem(13, rows=50, columns=100)
    assert solve(Safeguarded(load_rule(name)), made, tol=1e-6).converged


def test_problems_that_newton_steps_do_not_fit_name_the_cure_and_it_cures(float64):
    part = random_problem(14)
    made = Problem(part.operator, part.b, Simplex())
    with pytest.raises(
        ValueError, match=r"got Simplex; leave .* out: Safeguarded\(rule, SafeguardedConfig\(polish=None"
    ):
        solve(Safeguarded(ISTA()), made, steps=1)
    solution = solve(Safeguarded(ISTA(), SafeguardedConfig(polish=None)), made, tol=1e-6)
    assert (solution.certificate.relative_gap <= 1e-6).all()
    torch.testing.assert_close(solution.x.sum(-1), torch.ones(len(solution.x)))


def test_a_second_term_is_refused_with_the_rule_that_splits_it():
    part = random_problem(15)
    made = Problem(part.operator, part.b, part.regularizer, Composite(L1(0.1), part.operator))
    for config in (SafeguardedConfig(), SafeguardedConfig(polish=None)):
        with pytest.raises(ValueError, match=r"there is a second term h\(Kx\); use CondatVu"):
            solve(Safeguarded(ISTA(), config), made, steps=1)


def test_a_gradient_mode_is_refused_for_no_step_is_recorded():
    made = problem(torch.eye(3), torch.ones(3), 0.1)
    for mode in ("unrolled", "implicit"):
        with pytest.raises(ValueError, match="Safeguarded records no steps"):
            solve(Safeguarded(None), made, steps=3, gradient=mode)
