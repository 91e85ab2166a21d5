"""Dictionary learning on planted dictionaries, and patches of natural images."""

import os
from pathlib import Path

import pytest
import torch

import l2o
from l2o.proximal import L1, Dictionary
from l2o.rules import FISTA
from tasks import DataError, ImagePatches
from tasks.dictionary_learning import learn_dictionary, sparse_codes
from tasks.patches import _learned, _operator, patches

REAL = os.environ.get("L2O_DATA")
needs_images = pytest.mark.skipif(
    not REAL or not Path(REAL, "deblur", "train400").is_dir(), reason="needs L2O_DATA/deblur/train400"
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A dictionary of 16 atoms in 16 dimensions and signals of two atoms each."""
    D = torch.nn.functional.normalize(torch.randn(16, 16, generator=generator), dim=0)
    codes = torch.zeros(count, 16)
    index = torch.rand(count, 16, generator=generator).topk(2).indices
    return D, codes.scatter(1, index, torch.randn(count, 2, generator=generator)) @ D.mT


def test_learned_atoms_are_the_planted_ones_up_to_sign_and_order(float64):
    D, signals = planted(3000, seeded(0))
    learned = learn_dictionary(signals, 16, 0.1, seeded(1), passes=30)
    likeness = (D.mT @ learned).abs().amax(1)
    assert likeness.min() > 0.995
    assert (D.mT @ learn_dictionary(signals, 16, 0.1, seeded(1), passes=0)).abs().amax(1).min() < 0.9
    torch.testing.assert_close(learned.norm(dim=0), torch.ones(16))


def test_learning_lowers_the_objective_that_it_states(float64):
    _, signals = planted(1500, seeded(0))

    def objective(D: torch.Tensor) -> float:
        problem = l2o.Problem(Dictionary(D), signals, L1(0.1))
        return float(l2o.solve(FISTA(), problem, steps=200, history=False).certificate.primal.mean())

    values = [objective(learn_dictionary(signals, 16, 0.1, seeded(1), passes=passes)) for passes in (0, 1, 10)]
    assert values[0] > 1.05 * values[1] > 1.05 * values[2]


def test_codes_come_near_the_optimum(float64):
    D, signals = planted(20, seeded(0))
    best = l2o.solve(FISTA(), l2o.Problem(Dictionary(D), signals, L1(0.1)), tol=1e-9, history=False)
    problem = l2o.Problem(Dictionary(D), signals, L1(0.1))
    excess = problem.value(sparse_codes(D, signals, 0.1, steps=300)) - best.certificate.primal
    assert (excess < 1e-4).all() and (problem.value(torch.zeros(20, 16)) - best.certificate.primal > 0.005).all()


def test_more_atoms_than_signals_are_refused():
    with pytest.raises(ValueError, match="5 atoms need at least as many signals, got 3"):
        learn_dictionary(torch.ones(3, 4), 5, 0.1, seeded())


@needs_images
def test_patches_have_no_mean_and_unit_norm_and_the_halves_differ():
    tests, learning = patches(8, learning=False), patches(8, learning=True)
    for pool in (tests, learning):
        assert pool.shape[1] == 64 and pool.shape[0] > 50_000
        torch.testing.assert_close(pool.norm(dim=1), torch.ones(len(pool)))
        assert pool.mean(1).abs().max() < 1e-6
    assert not torch.equal(tests[:100], learning[:100])


@needs_images
def test_learned_dictionary_codes_unseen_patches_better_than_a_random_one():
    family = ImagePatches(size=6, atoms=72, strength=0.1)
    tasks = family.sample_tasks(300, seeded(3))
    problem = family.problem(tasks)
    D = problem.operator.matrix
    assert tasks["b"].shape == (300, 36) and D.shape == (36, 72) and D.dtype == torch.float32
    torch.testing.assert_close(D.norm(dim=0), torch.ones(72))
    x = family.init_params(tasks, 300, seeded())["x"]
    torch.testing.assert_close(problem.value(x + 0.1), family.loss({"x": x + 0.1}, tasks, {}))
    learned = l2o.solve(FISTA(), problem, tol=1e-3, history=False)
    other = torch.nn.functional.normalize(torch.randn(36, 72, generator=seeded(4)), dim=0)
    random = l2o.solve(FISTA(), l2o.Problem(Dictionary(other), tasks["b"], L1(0.1)), tol=1e-3, history=False)
    assert learned.converged and learned.certificate.primal.mean() < 0.75 * random.certificate.primal.mean()
    assert family.problem(family.sample_tasks(2, seeded(5))).operator is problem.operator


def test_images_that_are_missing_are_named(tmp_path, monkeypatch):
    for cache in (patches, _learned, _operator):
        cache.cache_clear()
    monkeypatch.setenv("L2O_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"train400_gray180.npz is needed, but it is not in {tmp_path}/deblur/train400"):
        ImagePatches().sample_tasks(2, seeded())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 1}, "size must be from 2 to 32, got 1"),
        ({"atoms": 0}, "atoms must be from 1 to"),
        ({"strength": 0.0}, "strength must be positive"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ImagePatches(**options)
