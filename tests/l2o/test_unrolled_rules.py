"""Learned rules of sparse coding: every step against a loop over entries, written from the paper in NumPy."""

import inspect

import numpy as np
import pytest
import torch

import l2o
from l2o import CheckpointError, Problem
from l2o.proximal import L1, Box, Dictionary, Gradient, L2Ball, Matrix
from l2o.rules import (
    ALISTA,
    GLISTA,
    ISTA,
    LAMP,
    LFISTA,
    LISTA,
    LISTACP,
    LISTACPSS,
    MODEL_BASED,
    NAALISTA,
    ALISTAConfig,
    GLISTAConfig,
    HyperLISTA,
    HyperLISTAConfig,
    LAMPConfig,
    LFISTAConfig,
    LISTAConfig,
    LISTACPConfig,
    LISTACPSSConfig,
    NAALISTAConfig,
    StepLISTA,
    StepLISTAConfig,
    TiLISTA,
    TiLISTAConfig,
)
from l2o.rules.support import threshold_but_largest, threshold_but_own_largest
from tasks import Lasso

M, N, LAYERS, STRENGTH = 6, 10, 3, 0.2
SIZES = {"rows": M, "columns": N, "layers": LAYERS}
SUPPORT = {"support_step": 0.1, "support_most": 0.25}
CONFIGS = {
    "alista": ALISTAConfig(layers=LAYERS, **SUPPORT),
    "glista": GLISTAConfig(**SIZES, **SUPPORT),
    "glista-tied": GLISTAConfig(**SIZES, **SUPPORT, tied=True),
    "hyperlista": HyperLISTAConfig(
        layers=LAYERS, threshold_scale=0.05 * N / 500, momentum_scale=0.03 * N / 500, support_scale=2.0 * 500 / N
    ),
    "lamp": LAMPConfig(**SIZES),
    "lamp-tied": LAMPConfig(**SIZES, tied=True),
    "lfista": LFISTAConfig(**SIZES, strength=STRENGTH),
    "lista": LISTAConfig(**SIZES, strength=STRENGTH),
    "lista-tied": LISTAConfig(**SIZES, strength=STRENGTH, tied=True),
    "lista-cp": LISTACPConfig(**SIZES, strength=STRENGTH),
    "lista-cp-tied": LISTACPConfig(**SIZES, strength=STRENGTH, tied=True),
    "lista-cpss": LISTACPSSConfig(**SIZES, **SUPPORT, strength=STRENGTH),
    "lista-cpss-tied": LISTACPSSConfig(**SIZES, **SUPPORT, strength=STRENGTH, tied=True),
    "na-alista": NAALISTAConfig(layers=LAYERS, hidden_size=4, **SUPPORT),
    "steplista": StepLISTAConfig(layers=LAYERS),
    "tilista": TiLISTAConfig(**SIZES, **SUPPORT),
}
OF_ONE_SIZE = [name for name, config in CONFIGS.items() if hasattr(config, "rows")]
OF_ANY_SIZE = [name for name in CONFIGS if name not in OF_ONE_SIZE]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def dictionary(seed: int = 0, rows: int = M, columns: int = N) -> torch.Tensor:
    A = torch.randn(rows, columns, generator=seeded(seed))
    return A / A.norm(dim=0)


def problem_of(A: torch.Tensor, n_items: int = 4, seed: int = 1) -> Problem:
    return Problem(Dictionary(A), torch.randn(n_items, A.shape[-2], generator=seeded(seed)), L1(STRENGTH))


def build(name: str, perturbed: bool = True, A: torch.Tensor | None = None):
    """A rule whose weights have moved from their start, so that all of them matter."""
    config = CONFIGS[name]
    make = next(make for make, config_type in MODEL_BASED.values() if config_type is type(config))
    takes = inspect.signature(make).parameters
    rule = make(config, dictionary() if A is None else A) if "dictionary" in takes else make(config)
    if perturbed:
        with torch.no_grad():
            for parameter in rule.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=seeded(parameter.numel()))
    return rule


def run(rule, problem: Problem, steps: int = LAYERS) -> torch.Tensor:
    x = problem.zeros()
    state = rule.init_problem(problem, x)
    for step in range(steps):
        x, state = rule.iterate(problem, x, state, step)
    return x


# ---------------------------------------------------------------- the formulas, in NumPy


def soft(v, threshold):
    return np.sign(v) * np.maximum(np.abs(v) - threshold, 0)


def select(v, threshold, count):
    """Soft thresholding of all but the `count` largest, by a full sort."""
    largest = set(np.argsort(-np.abs(v))[: int(count)])
    return np.array([u if i in largest and abs(u) > threshold else soft(u, threshold) for i, u in enumerate(v)])


def weight(rule, name, layer=None):
    entry = getattr(rule, name)
    if layer is not None:
        entry = entry[min(layer, len(entry) - 1)]
    return entry.detach().numpy()


def counts(layer):
    return int(min(0.1 * (layer + 1), 0.25) * N + 1e-9)


def analytic(A):
    inverse = np.linalg.inv(A @ A.T)
    return np.stack([inverse @ a / (a @ inverse @ a) for a in A.T], 1)


def symmetric(A):
    """W = MA by solving the constrained least squares for the entries of a symmetric M."""
    pairs = [(i, j) for i in range(M) for j in range(i, M)]
    basis = []
    for i, j in pairs:
        E = np.zeros((M, M))
        E[i, j] = E[j, i] = 1
        basis.append(A.T @ E @ A)
    flat = np.stack([B.ravel() for B in basis], 1)
    diagonal = np.stack([np.diag(B) for B in basis], 1)
    size = len(pairs)
    system = np.block([[flat.T @ flat, diagonal.T], [diagonal, np.zeros((N, N))]])
    solution = np.linalg.lstsq(system, np.concatenate([np.zeros(size), np.ones(N)]), rcond=None)[0]
    G = np.zeros((M, M))
    for (i, j), value in zip(pairs, solution, strict=False):
        G[i, j] = G[j, i] = value
    return G @ A


def alista(rule, A, b, xs, k, memory):
    step_size, threshold = np.exp(weight(rule, "log_step_size", k)), np.exp(weight(rule, "log_threshold", k))
    return select(xs[-1] - step_size * analytic(A).T @ (A @ xs[-1] - b), threshold, counts(k))


def tilista(rule, A, b, xs, k, memory):
    step_size, threshold = np.exp(weight(rule, "log_step_size", k)), np.exp(weight(rule, "log_threshold", k))
    return select(xs[-1] - step_size * weight(rule, "weights").T @ (A @ xs[-1] - b), threshold, counts(k))


def lista(rule, A, b, xs, k, memory):
    v = weight(rule, "from_data", k) @ b + weight(rule, "from_code", k) @ xs[-1]
    return soft(v, np.exp(weight(rule, "log_threshold", k)))


def lista_cp(rule, A, b, xs, k, memory):
    v = xs[-1] - weight(rule, "weights", k).T @ (A @ xs[-1] - b)
    return soft(v, np.exp(weight(rule, "log_threshold", k)))


def lista_cpss(rule, A, b, xs, k, memory):
    step_size = np.exp(weight(rule, "log_step_size", k)) if rule.config.tied else 1.0
    v = xs[-1] - step_size * weight(rule, "weights", k).T @ (A @ xs[-1] - b)
    return select(v, np.exp(weight(rule, "log_threshold", k)), counts(k))


def steplista(rule, A, b, xs, k, memory):
    step_size = np.exp(weight(rule, "log_relaxation", k)) / np.linalg.norm(A, 2) ** 2
    return soft(xs[-1] - step_size * A.T @ (A @ xs[-1] - b), step_size * STRENGTH)


def lamp(rule, A, b, xs, k, memory):
    memory["v"] = b - A @ xs[-1] + np.count_nonzero(xs[-1]) / M * memory.get("v", 0.0)
    r = xs[-1] + np.exp(weight(rule, "log_step_size", k)) * weight(rule, "weights", k).T @ memory["v"]
    return soft(r, np.exp(weight(rule, "log_threshold_scale", k)) * np.linalg.norm(memory["v"]) / M**0.5)


def lfista(rule, A, b, xs, k, memory):
    v = weight(rule, "from_data") @ b + weight(rule, "from_code", k) @ xs[-1]
    v = v + weight(rule, "from_previous", k) @ (xs[-2] if len(xs) > 1 else xs[-1])
    return soft(v, np.exp(weight(rule, "log_threshold", k)))


def glista(rule, A, b, xs, k, memory):
    x, threshold = xs[-1], np.exp(weight(rule, "log_threshold", k))
    y = (1 + weight(rule, "gain", k) * np.maximum(1 - np.exp(weight(rule, "log_gain_width", k)) * np.abs(x), 0)) * x
    step_size = np.exp(weight(rule, "log_step_size", k)) if rule.config.tied else 1.0
    z = select(y - step_size * weight(rule, "weights", k).T @ (A @ y - b), threshold, counts(k))
    o = 1 + weight(rule, "overshoot", k) * threshold / (np.abs(z - x) + 0.1)
    return np.where(z != 0, o * z + (1 - o) * x, 0.0)


def hyperlista(rule, A, b, xs, k, memory):
    x, inverse = xs[-1], np.linalg.pinv(A)
    error = np.abs(inverse @ (A @ x - b)).sum()
    size = len(x) / 500
    threshold = np.exp(weight(rule, "log_threshold_scale")) * error / size
    momentum = np.exp(weight(rule, "log_momentum_scale")) * np.count_nonzero(x) / size
    count = np.exp(weight(rule, "log_support_scale")) * size * np.log(np.abs(inverse @ b).sum() / error)
    v = x - symmetric(A).T @ (A @ x - b) + momentum * (x - (xs[-2] if len(xs) > 1 else x))
    return select(v, threshold, np.clip(count, 0, M // 2))


def na_alista(rule, A, b, xs, k, memory):
    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    w = {name: parameter.detach().numpy() for name, parameter in rule.named_parameters()}
    r = A @ xs[-1] - b
    u = analytic(A).T @ r
    norms = np.array([np.abs(r).sum(), np.abs(u).sum()])
    first = memory.setdefault("first", norms)
    c, h = memory.get("c", w["start_cell"]), memory.get("h", w["start_hidden"])
    gates = w["lstm.weight_ih"] @ np.log(norms / first) + w["lstm.bias_ih"] + w["lstm.weight_hh"] @ h
    i, f, g, o = np.split(gates + w["lstm.bias_hh"], 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    memory["c"], memory["h"] = c, sigmoid(o) * np.tanh(c)
    hidden = np.maximum(w["inner.weight"] @ c + w["inner.bias"], 0)
    step_size, threshold = np.log1p(np.exp(w["outer.weight"] @ hidden + w["outer.bias"]))
    return select(xs[-1] - step_size * u, threshold * norms[1] / N, counts(k))


ORACLES = {name: globals()[name.replace("-tied", "").replace("-", "_")] for name in CONFIGS}


@pytest.mark.parametrize("name", CONFIGS)
def test_steps_equal_the_papers_loop_also_beyond_the_last_layer(float64, name):
    A, rule = dictionary(), build(name)
    problem = problem_of(A)
    x, steps = problem.zeros(), LAYERS + 2
    state, curve = rule.init_problem(problem, x), []
    for step in range(steps):
        x, state = rule.iterate(problem, x, state, step)
        curve.append(x.detach().numpy())
    for item, b in enumerate(problem.b.numpy()):
        xs, memory = [np.zeros(N)], {}
        for step in range(steps):
            xs.append(ORACLES[name](rule, A.numpy(), b, xs, min(step, LAYERS - 1), memory))
            np.testing.assert_allclose(curve[step][item], xs[-1], atol=1e-9)
    assert np.count_nonzero(curve[-1]) not in (0, curve[-1].size)


# ---------------------------------------------------------------- what they start as


@pytest.mark.parametrize("name", ["lista", "lista-tied", "lista-cp", "lista-cp-tied", "steplista", "lfista"])
def test_to_begin_with_layer_0_is_an_ista_step(float64, name):
    problem = problem_of(dictionary())
    torch.testing.assert_close(run(build(name, perturbed=False), problem, 1), run(ISTA(), problem, 1))


@pytest.mark.parametrize("name", ["lista", "lista-tied", "lista-cp", "lista-cp-tied", "steplista"])
def test_to_begin_with_all_layers_are_ista_steps(float64, name):
    problem = problem_of(dictionary())
    torch.testing.assert_close(run(build(name, perturbed=False), problem, 7), run(ISTA(), problem, 7))


def test_without_support_selection_cpss_and_glista_start_as_ista(float64):
    problem, A = problem_of(dictionary()), dictionary()
    expected = run(ISTA(), problem, 5)
    for tied in (False, True):
        config = {**SIZES, "strength": STRENGTH, "tied": tied, "support_step": 0.0}
        torch.testing.assert_close(run(LISTACPSS(LISTACPSSConfig(**config), A), problem, 5), expected)
        torch.testing.assert_close(run(GLISTA(GLISTAConfig(**config), A), problem, 5), expected)


def test_the_analytic_start_of_cpss_glista_and_tilista_is_alista(float64):
    problem, A = problem_of(dictionary()), dictionary()
    expected = run(ALISTA(CONFIGS["alista"]), problem)
    torch.testing.assert_close(run(build("tilista", perturbed=False), problem), expected)
    for tied in (False, True):
        config = {**SIZES, **SUPPORT, "tied": tied, "start": "analytic"}
        torch.testing.assert_close(run(LISTACPSS(LISTACPSSConfig(**config), A), problem), expected)
        torch.testing.assert_close(run(GLISTA(GLISTAConfig(**config), A), problem), expected)


def test_the_analytic_start_of_rules_without_support_selection_is_alista_without_it(float64):
    problem, A = problem_of(dictionary()), dictionary()
    expected = run(ALISTA(ALISTAConfig(layers=LAYERS, support_step=0.0)), problem)
    config = {**SIZES, "start": "analytic"}
    for rule in (
        LISTA(LISTAConfig(**config), A),
        LISTACP(LISTACPConfig(**config), A),
        LFISTA(LFISTAConfig(**config), A),
    ):
        torch.testing.assert_close(run(rule, problem), expected)


def test_lamp_starts_as_amp_and_lfista_as_fista(float64):
    from l2o.rules import AMP, FISTA, AMPConfig, FISTAConfig

    problem = problem_of(dictionary())
    amp = run(AMP(AMPConfig(1.14)), problem, 3)
    torch.testing.assert_close(run(build("lamp", perturbed=False), problem, 3), amp)
    fista = run(FISTA(FISTAConfig(restart="none")), problem, 3)
    torch.testing.assert_close(run(build("lfista", perturbed=False), problem, 3), fista)


def test_na_alista_starts_as_alista_with_thresholds_from_the_residual(float64):
    rule, problem = build("na-alista", perturbed=False), problem_of(dictionary())
    A, b = problem.operator.matrix.numpy(), problem.b[0].numpy()
    u = analytic(A).T @ b
    np.testing.assert_allclose(run(rule, problem, 1)[0].detach(), select(u, 2 * np.abs(u).sum() / N, counts(0)))


# ---------------------------------------------------------------- batches, precisions, matrices


@pytest.mark.parametrize("name", CONFIGS)
def test_a_batch_equals_a_loop_and_an_item_needs_no_batch_axis(float64, name):
    rule, problem = build(name), problem_of(dictionary())
    together = run(rule, problem)
    for i in range(4):
        torch.testing.assert_close(run(rule, problem.with_data(problem.b[i : i + 1]))[0], together[i])
        torch.testing.assert_close(run(rule, problem.with_data(problem.b[i])), together[i])
    for shape in ((2, 2), (2, 0)):  # two batch axes, and an empty one
        b = problem.b[: shape[0] * shape[1]]
        torch.testing.assert_close(
            run(rule, problem.with_data(b.reshape(*shape, M))), together[: len(b)].reshape(*shape, N)
        )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_matrix_for_each_item_equals_a_loop(float64, name):
    rule = build(name)
    matrices = torch.stack([dictionary(seed) for seed in range(3)])
    b = torch.randn(3, M, generator=seeded(1))
    together = run(rule, Problem(Dictionary(matrices), b, L1(STRENGTH)))
    for i in range(3):
        torch.testing.assert_close(run(rule, Problem(Matrix(matrices[i]), b[i], L1(STRENGTH))), together[i])


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_weights_serve_a_float64_problem(name):
    rule, problem = build(name), problem_of(dictionary())
    single, double = run(rule, problem), run(rule, problem.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-4, rtol=1e-4)  # float32


@pytest.mark.parametrize("name", OF_ANY_SIZE)
def test_scalar_models_take_another_matrix(float64, name):
    A = dictionary(5, 8, 12)
    x = run(build(name), Problem(Dictionary(A), torch.randn(3, 8, generator=seeded(2)), L1(STRENGTH)))
    assert x.shape == (3, 12) and x.isfinite().all()


@pytest.mark.parametrize("name", ["alista", "hyperlista"])
@pytest.mark.parametrize("columns", [300, 900])
def test_shipped_scalars_carry_over_to_another_size(name, columns):
    family = Lasso(rows=columns // 2, columns=columns, density=0.08)
    tasks = family.sample_tasks(40, seeded(3))
    x = l2o.solve(l2o.load_rule(name), family.problem(tasks), steps=16, history=False).x
    error = (x - tasks["x_star"]).square().sum() / tasks["x_star"].square().sum()
    assert 10 * error.log10() < -55  # on 250×500 −70 and less; AMP −35


@pytest.mark.parametrize("name", OF_ONE_SIZE)
def test_matrix_models_refuse_another_size(name):
    with pytest.raises(ValueError, match="has weights for a matrix of 6×10, got one of 8×12"):
        run(build(name), problem_of(dictionary(5, 8, 12)))
    with pytest.raises(ValueError, match="the dictionary must be 6×10 as in the rule's config, got \\(8, 12\\)"):
        build(name, A=dictionary(5, 8, 12))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "steplista"])
def test_they_refuse_what_they_are_not_for(name):
    rule, A, b = build(name), dictionary(), torch.zeros(2, M)
    with pytest.raises(ValueError, match="solves for an L1 regularizer, got L2Ball"):
        run(rule, Problem(Dictionary(A), b, L2Ball()))
    composite = l2o.Composite(L1(0.1), Matrix(torch.eye(N)))
    with pytest.raises(ValueError, match="second term"):
        run(rule, Problem(Dictionary(A), b, L1(0.1), composite))
    image = Gradient((3, 3))
    with pytest.raises(ValueError, match="needs a matrix A"):
        run(rule, Problem(image, torch.zeros(image.out_shape), L1(0.1, ndim=2)))


def test_steplista_keeps_any_regularizer_but_no_second_term():
    problem = Problem(Dictionary(dictionary()), torch.ones(2, M), Box(0.0, 0.1))
    x = run(build("steplista"), problem)
    assert ((x >= 0) & (x <= 0.1)).all()
    composite = l2o.Composite(L1(0.1), Matrix(torch.eye(N)))
    with pytest.raises(ValueError, match="second term"):
        run(build("steplista"), Problem(Dictionary(dictionary()), torch.ones(2, M), L1(0.1), composite))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_zero_measurement_gives_a_zero_code_and_finite_gradients(name):
    rule, problem = build(name), problem_of(dictionary()).with_data(torch.zeros(2, M))
    x = run(rule, problem)
    assert not x.any()
    x.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in rule.parameters())


# ---------------------------------------------------------------- support selection


def test_selection_by_topk_equals_a_sort(float64):
    v, threshold = torch.randn(5, 20, generator=seeded()), torch.tensor(0.6)
    for count in (0, 1, 7, 20):
        expected = np.stack([select(row, 0.6, count) for row in v.numpy()])
        np.testing.assert_allclose(threshold_but_largest(v, threshold, count), expected)
    own = torch.tensor([0, 3, 20, 9, 1])
    expected = np.stack([select(row, 0.6, min(int(c), 12)) for row, c in zip(v.numpy(), own, strict=True)])
    np.testing.assert_allclose(threshold_but_own_largest(v, threshold, own, 12), expected)


# ---------------------------------------------------------------- conjugate gradients of HyperLISTA


def test_conjugate_gradients_reach_the_least_squares_solution_on_the_support(float64):
    A = dictionary(3, 30, 60)
    code = torch.zeros(60)
    code[[3, 20, 41]] = torch.tensor([2.0, -3.0, 1.5])
    problem = Problem(Dictionary(A), (A @ code)[None], L1(0.1))
    scales = {"threshold_scale": 0.05, "momentum_scale": 0.01, "support_scale": 1.0}
    rule = HyperLISTA(HyperLISTAConfig(**scales, conjugate_from=6, conjugate_support=0.3))
    x = run(rule, problem, 6 + 10)[0]  # on a support of 9 entries they end after 9 steps
    torch.testing.assert_close(x, code, atol=1e-7, rtol=0)
    assert run(HyperLISTA(HyperLISTAConfig(**scales)), problem, 6).equal(run(rule, problem, 6))


# ---------------------------------------------------------------- saving, loading, refusing


@pytest.mark.parametrize("name", CONFIGS)
def test_a_saved_rule_makes_the_same_steps(name, tmp_path):
    rule, problem = build(name), problem_of(dictionary())
    loaded = l2o.load_rule(l2o.save_rule(rule, tmp_path / "rule"))
    assert type(loaded) is type(rule) and loaded.config == rule.config
    assert torch.equal(run(loaded, problem), run(rule, problem))
    assert torch.equal(l2o.solve(loaded, problem).x, run(rule, problem))  # as many steps as layers


def test_a_model_based_rule_is_no_optimizer_for_a_training_loop(tmp_path):
    directory = l2o.save_rule(build("alista"), tmp_path / "rule")
    with pytest.raises(TypeError, match="ALISTA, which steps on a problem's structure.*l2o.solve"):
        l2o.load(directory, [torch.nn.Parameter(torch.zeros(2))])


def test_weights_of_another_size_than_the_config_are_refused(tmp_path):
    directory = l2o.save_rule(build("lista-cp"), tmp_path / "rule")
    card = (directory / "rule.json").read_text().replace('"columns": 10', '"columns": 11')
    (directory / "rule.json").write_text(card)
    with pytest.raises(CheckpointError, match="does not fit the options"):
        l2o.load_rule(directory)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ALISTAConfig(layers=0), "layers must be at least 1"),
        (lambda: ALISTAConfig(threshold=0.0), "threshold must be positive"),
        (lambda: ALISTAConfig(support_most=1.1), "support_most is a fraction"),
        (lambda: GLISTAConfig(support_step=-0.1), "support_step is a fraction"),
        (lambda: HyperLISTAConfig(momentum_scale=-1.0), "momentum_scale must be positive"),
        (lambda: HyperLISTAConfig(conjugate_from=0), "conjugate_from must be at least 1"),
        (lambda: HyperLISTAConfig(conjugate_support=0.0), "conjugate_support is a fraction"),
        (lambda: LAMPConfig(threshold_scale=0.0), "threshold_scale must be positive"),
        (lambda: LFISTAConfig(rows=0), "rows and columns must be at least 1"),
        (lambda: LISTAConfig(strength=0.0), "strength must be positive"),
        (lambda: LISTACPConfig(columns=0), "rows and columns must be at least 1"),
        (lambda: LISTACPSSConfig(start="zero"), "start must be one of ista, analytic, got 'zero'"),
        (lambda: NAALISTAConfig(hidden_size=0), "must be at least 1"),
        (lambda: StepLISTAConfig(relaxation=0.0), "relaxation must be positive"),
        (lambda: TiLISTAConfig(threshold_decay=0.0), "threshold_decay must be positive"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_parameters_are_as_many_as_the_papers_count():
    count = {name: sum(p.numel() for p in build(name).parameters()) for name in CONFIGS}
    assert count["alista"] == 2 * LAYERS and count["hyperlista"] == 3 and count["steplista"] == LAYERS
    assert count["lista"] == LAYERS * (M * N + N * N + 1) and count["lista-tied"] == M * N + N * N + LAYERS
    assert count["lista-cp"] == LAYERS * (M * N + 1) and count["tilista"] == M * N + 2 * LAYERS
    assert isinstance(build("lamp"), LAMP) and isinstance(build("lfista"), LFISTA)
    assert isinstance(build("lista"), LISTA) and isinstance(build("lista-cp"), LISTACP)
    assert isinstance(build("na-alista"), NAALISTA) and isinstance(build("tilista"), TiLISTA)
    assert isinstance(build("steplista"), StepLISTA) and isinstance(build("glista"), GLISTA)
