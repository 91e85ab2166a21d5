"""LASSO: the loss against its closed form, the distributions against their moments, the published problems."""

import os
from pathlib import Path

import pytest
import torch

from l2o.proximal import L1, Matrix
from tasks import DataError
from tasks.lasso import Lasso, _shared_operator

REAL = os.environ.get("L2O_DATA")
needs_sparse = pytest.mark.skipif(not REAL or not Path(REAL, "sparse").is_dir(), reason="needs L2O_DATA/sparse")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dictionary", ["sampled", "fixed"])
def test_loss_and_gradient_equal_the_closed_form(float64, dictionary):
    family = Lasso(rows=4, columns=7, strength=0.3, dictionary=dictionary)
    tasks = family.sample_tasks(3, seeded())
    x = torch.randn(3, 7, generator=seeded(1))
    gradients, losses = torch.func.vmap(torch.func.grad_and_value(lambda p, t: family.loss(p, t, {})))({"x": x}, tasks)
    for i in range(3):
        A = tasks["A"][i] if dictionary == "sampled" else family.shared_dictionary(x)
        residual = A @ x[i] - tasks["b"][i]
        torch.testing.assert_close(losses[i], residual.dot(residual) / 2 + 0.3 * x[i].abs().sum())
        torch.testing.assert_close(gradients["x"][i], A.T @ residual + 0.3 * x[i].sign())
    torch.testing.assert_close(family.loss({"x": x}, tasks, {}), losses)


def test_proximal_gradient_on_a_task_reaches_the_optimality_conditions(float64):
    family = Lasso(rows=10, columns=20)
    tasks = family.sample_tasks(5, seeded())
    x = family.init_params(tasks, 5, seeded())["x"]
    A = Matrix(family.shared_dictionary(x))
    step = 1 / A.norm().item() ** 2
    losses = [family.loss({"x": x}, tasks, {})]
    for _ in range(3000):
        x = L1(family.strength).prox(x - step * A.adjoint(A(x) - tasks["b"]), step)
        losses.append(family.loss({"x": x}, tasks, {}))
    assert all((after <= before + 1e-12).all() for before, after in zip(losses, losses[1:], strict=False))
    correlation = A.adjoint(tasks["b"] - A(x))
    assert (correlation.abs() <= family.strength + 1e-8).all()
    torch.testing.assert_close(correlation[x != 0], family.strength * x[x != 0].sign(), atol=1e-8, rtol=0)


def test_codes_are_bernoulli_gaussian():
    x = Lasso(rows=2, columns=500, density=0.2).sample_tasks(400, seeded())["x_star"]
    present = x[x != 0]
    assert abs(present.numel() / x.numel() - 0.2) < 5 * (0.2 * 0.8 / x.numel()) ** 0.5
    assert abs(present.mean()) < 5 * present.numel() ** -0.5
    assert abs(present.var() - 1) < 5 * (2 / present.numel()) ** 0.5


def test_without_noise_the_code_explains_the_measurement_and_the_loss_is_its_l1_norm(float64):
    family = Lasso(rows=20, columns=40)
    tasks = family.sample_tasks(6, seeded())
    torch.testing.assert_close(family.loss({"x": tasks["x_star"]}, tasks, {}), 0.1 * tasks["x_star"].abs().sum(1))


@pytest.mark.parametrize("snr_db", [0.0, 20.0])
def test_noise_has_the_stated_signal_to_noise_ratio(float64, snr_db):
    family = Lasso(rows=250, columns=500, snr_db=snr_db)
    tasks = family.sample_tasks(400, seeded())
    clean = tasks["x_star"] @ family.shared_dictionary(tasks["b"]).T
    ratio = (tasks["b"] - clean).square().sum(1) / clean.square().sum(1) * 10 ** (snr_db / 10)
    assert abs(ratio.mean() - 1) < 5 * (2 / 250 / 400) ** 0.5  # χ² with 250 degrees of freedom, over 250


@pytest.mark.parametrize("dictionary", ["sampled", "fixed"])
def test_columns_have_unit_norm(float64, dictionary):
    family = Lasso(rows=8, columns=12, dictionary=dictionary)
    tasks = family.sample_tasks(2, seeded())
    A = tasks["A"] if dictionary == "sampled" else family.shared_dictionary(tasks["b"])
    torch.testing.assert_close(A.norm(dim=-2), torch.ones_like(A[..., 0, :]))


@pytest.mark.parametrize("dictionary", ["sampled", "fixed"])
def test_condition_number_is_the_one_asked_for(float64, dictionary):
    family = Lasso(rows=8, columns=12, dictionary=dictionary, condition=50.0)
    tasks = family.sample_tasks(2, seeded())
    A = tasks["A"] if dictionary == "sampled" else family.shared_dictionary(tasks["b"])
    sigma = torch.linalg.svdvals(A)
    torch.testing.assert_close(sigma[..., 0] / sigma[..., -1], torch.full(A.shape[:-2], 50.0))
    ratios = sigma[..., :-1] / sigma[..., 1:]
    torch.testing.assert_close(ratios, ratios[..., :1].expand_as(ratios))  # geometric
    torch.testing.assert_close(sigma.square().sum(-1), torch.full(A.shape[:-2], 12.0))


def test_fixed_dictionary_depends_on_its_seed_alone_and_not_on_the_precision():
    like = torch.zeros(1)
    family = Lasso(rows=4, columns=6)
    A = family.shared_dictionary(like)
    assert torch.equal(A, Lasso(rows=4, columns=6, density=0.5).shared_dictionary(like))
    assert not torch.equal(A, Lasso(rows=4, columns=6, dictionary_seed=1).shared_dictionary(like))
    assert torch.equal(A, family.shared_dictionary(like.double()).float())


@pytest.mark.parametrize("where", ["vmap", "grad", "inference"])
def test_dictionary_made_first_inside_a_transform_serves_outside_it(where):
    family = Lasso(rows=4, columns=6, dictionary_seed=7)
    x, task = torch.ones(2, 6), {"b": torch.ones(2, 4)}
    _shared_operator.cache_clear()
    if where == "vmap":
        first = torch.func.vmap(lambda x, task: family.loss({"x": x}, task, {}))(x, task)
    elif where == "grad":
        first = torch.func.grad_and_value(lambda x: family.loss({"x": x}, task, {}).sum())(x)[1]
    else:
        with torch.inference_mode():
            first = family.loss({"x": x}, task, {})
    x.requires_grad_()
    second = family.loss({"x": x}, task, {})
    second.sum().backward()  # an inference tensor could not be saved for it
    torch.testing.assert_close(first.sum(), second.detach().sum())
    assert x.grad is not None and x.grad.norm() > 0


def test_start_is_zero_and_shapes_are_as_stated():
    family = Lasso(rows=3, columns=5, dictionary="sampled")
    tasks = family.sample_tasks(2, seeded())
    assert {name: tuple(t.shape) for name, t in tasks.items()} == {"A": (2, 3, 5), "x_star": (2, 5), "b": (2, 3)}
    assert torch.equal(family.init_params(tasks, 2, seeded())["x"], torch.zeros(2, 5))


@needs_sparse
def test_published_problems_are_those_of_their_sources(float64):
    family = Lasso(dictionary="published")
    tasks = family.published_tasks(seeded())
    A = family.shared_dictionary(tasks["b"])
    assert tasks["x_star"].shape == (1000, 500) and A.shape == (250, 500)
    assert int((tasks["x_star"] != 0).sum()) == 50158
    torch.testing.assert_close(Matrix(A).norm().square(), torch.tensor(5.67944), atol=5e-6, rtol=0)  # as published
    torch.testing.assert_close(A.norm(dim=0), torch.ones(500), atol=1e-6, rtol=0)
    torch.testing.assert_close(tasks["b"], tasks["x_star"] @ A.T)
    assert tasks["x_star"][32, 0] == pytest.approx(-0.49808067)  # the first entry of the file, one code a column


@needs_sparse
def test_published_codes_take_noise_from_the_generator():
    family = Lasso(dictionary="published", snr_db=20.0)
    first, again = (family.published_tasks(seeded(3))["b"] for _ in range(2))
    clean = Lasso(dictionary="published").published_tasks(seeded(3))["b"]
    assert torch.equal(first, again)
    ratio = (first - clean).square().sum() / clean.square().sum()
    assert abs(ratio * 100 - 1) < 0.02  # 250,000 entries


def test_published_dictionary_without_l2o_data_says_what_to_set(monkeypatch):
    monkeypatch.delenv("L2O_DATA", raising=False)
    _shared_operator.cache_clear()
    with pytest.raises(DataError, match="needs L2O_DATA; set it to a folder with sparse/ holding alista_A250x500.npz"):
        Lasso(dictionary="published").sample_tasks(2, seeded())
    with pytest.raises(DataError, match="needs L2O_DATA"):
        Lasso(dictionary="published").published_tasks(seeded())


def test_published_files_that_are_missing_or_damaged_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("L2O_DATA", str(tmp_path))
    _shared_operator.cache_clear()
    (tmp_path / "sparse").mkdir()
    with pytest.raises(DataError, match=f"{tmp_path}/sparse, but alista_A250x500.npz is not there"):
        Lasso(dictionary="published").shared_dictionary(torch.zeros(1))
    for name in ("alista_A250x500.npz", "alista_xtest_n500_p10_coo.npz"):
        (tmp_path / "sparse" / name).write_bytes(b"PK damaged")
    with pytest.raises(DataError, match="alista_A250x500.npz is damaged or not the published file"):
        Lasso(dictionary="published").shared_dictionary(torch.zeros(1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "rows and columns must be at least 1, got 0 and 500"),
        ({"columns": 0}, "rows and columns must be at least 1"),
        ({"strength": 0.0}, "strength must be positive, got 0.0"),
        ({"strength": float("nan")}, "strength must be positive"),
        ({"density": 0.0}, "density must be above 0 and at most 1"),
        ({"density": 1.1}, "density must be above 0 and at most 1"),
        ({"dictionary": "fourier"}, "dictionary must be one of sampled, fixed, published, file, got 'fourier'"),
        ({"condition": 0.5}, "condition must be at least 1"),
        ({"snr_db": float("inf")}, "snr_db must be finite"),
        ({"dictionary": "published", "rows": 25}, "the published matrix is .250, 500."),
        ({"dictionary": "published", "condition": 10.0}, "has its own conditioning"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Lasso(**options)


def test_sampled_dictionaries_are_not_shared():
    with pytest.raises(ValueError, match="each task has its own dictionary"):
        Lasso(dictionary="sampled").shared_dictionary(torch.zeros(1))


def test_published_codes_need_the_published_dictionary():
    with pytest.raises(ValueError, match="belong to dictionary='published', got 'fixed'"):
        Lasso().published_tasks(seeded())
