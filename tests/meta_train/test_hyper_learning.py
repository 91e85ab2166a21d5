"""Hyperparameters by gradient: hypergradients against differences and dense algebra, and that learning pays."""

import math

import pytest
import torch

from l2o.fields_of_experts import FieldsOfExperts
from meta_train.hyper_flow import FlowConfig, denoise, noisy_crops, optimality, psnr, psnr_by_time, train
from meta_train.hyper_logistic import joined, learn_decays, minimiser, refit, search_single
from meta_train.hyper_polynomial import all_fits, validation_loss
from meta_train.hyper_speed import (
    exact_hypergradient,
    implicit_hypergradient,
    race,
    time_to,
    unrolled_hypergradient,
)
from tasks.logistic import mostly_noise
from tasks.polynomial import noisy_wave


def rows(classes=2, sizes=(80, 60, 60, 500), noise=6):
    return mostly_noise(sizes, 4, noise, torch.Generator().manual_seed(0), classes=classes)


def decays(problem):
    return torch.linspace(-5, -2, problem.features, dtype=torch.float64)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_implicit_hypergradient_equals_central_differences(classes):
    problem = rows(classes)
    found = implicit_hypergradient(problem, decays(problem), 1e-11)
    for j in (0, 3, 9):
        losses = []
        for change in (1e-4, -1e-4):
            moved = decays(problem)
            moved[j] += change
            with torch.no_grad():
                losses.append(float(problem.loss(minimiser(problem, moved, tol=1e-12), problem.valid)))
        assert float(found[j]) == pytest.approx((losses[0] - losses[1]) / 2e-4, rel=1e-6, abs=1e-10)


def test_implicit_unrolled_and_dense_hypergradients_agree_to_1e_8():
    problem = rows()
    exact = exact_hypergradient(problem, decays(problem))
    implicit = implicit_hypergradient(problem, decays(problem), 1e-11)
    unrolled = unrolled_hypergradient(problem, decays(problem), 800, exact.smallest, exact.largest, accelerated=True)
    torch.testing.assert_close(implicit, exact.gradient, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(unrolled, exact.gradient, rtol=1e-8, atol=1e-10)


def test_the_dense_hypergradient_is_for_two_classes():
    with pytest.raises(ValueError, match="that of 2 classes, got 3"):
        exact_hypergradient(rows(3), decays(rows(3)))


def test_a_race_ends_where_unrolling_is_as_accurate_as_the_implicit_gradient():
    problem = rows()
    measured = race(problem, decays(problem), (1e-3, 1e-6), ((5, 10), (10, 1000, 1001)))
    assert [(one.method, one.setting) for one in measured] == [
        ("implicit", 1e-3), ("implicit", 1e-6), ("unrolled", 5), ("unrolled", 10),
        ("unrolled, accelerated", 10), ("unrolled, accelerated", 1000),
    ]  # fmt: skip
    target = measured[1].error
    assert measured[-1].error <= target < min(one.error for one in measured[2:5])
    assert time_to(measured, "unrolled, accelerated", target) == measured[-1].cpu_s
    assert time_to(measured, "unrolled", target) is None


def test_a_decay_for_each_feature_beats_the_best_single_one_on_validation_and_on_test_rows():
    problem = rows(noise=60, sizes=(100, 300, 150, 1000))
    single = search_single(problem)
    learned = learn_decays(problem, single.log_decay.expand(problem.features), lr=0.2, patience=3).best
    for part in (problem.valid, problem.test):
        assert float(problem.loss(learned.weights, part)) < 0.85 * float(problem.loss(single.weights, part))
    signal, noise = learned.log_decay[:4].mean(), learned.log_decay[4:].mean()
    assert float(signal) < float(noise) - 0.5  # features of noise are shrunk more


def test_the_single_decay_is_the_best_of_the_grid_on_validation_and_stop_rows():
    problem = rows()
    best, chosen = search_single(problem), joined(problem.valid, problem.stop)
    with torch.no_grad():
        for factor in (10**-0.25, 10**0.25):  # its neighbours on the grid
            other = minimiser(problem, best.log_decay + math.log(factor))
            assert float(problem.loss(other, chosen)) > float(problem.loss(best.weights, chosen))


def test_learning_stops_when_the_stop_rows_say_so_and_keeps_their_best():
    problem = rows()
    descent = learn_decays(problem, decays(problem), lr=0.3, patience=2, max_steps=40)
    best = descent.stop.index(min(descent.stop))
    assert torch.equal(descent.best.log_decay, descent.fits[best].log_decay)
    assert len(descent.stop) == min(best + 3, 41) and len(descent.fits) == len(descent.valid) == len(descent.stop)
    assert descent.valid[best] < descent.valid[0]


def test_a_refit_is_the_minimum_over_all_rows_but_those_of_the_test():
    problem = rows()
    fit = refit(problem, search_single(problem))
    weights = fit.weights.clone().requires_grad_()
    every = joined(problem.train, problem.valid, problem.stop)
    assert len(every.labels) == 200
    penalised = problem.loss(weights, every) + 0.5 * (problem.decays(fit.log_decay) * weights.square()).sum()
    (gradient,) = torch.autograd.grad(penalised, weights)
    assert float(gradient.norm()) < 1e-6


def test_the_regularisation_of_a_polynomial_is_learned_to_the_best_of_the_grid_and_beyond():
    problem = noisy_wave(torch.Generator().manual_seed(0))
    fits = all_fits(problem, steps=60, lr=0.2)
    test = {name: float(problem.loss(fit.weights, problem.test)) for name, fit in fits.items()}
    assert float(fits["learned, one"].log_decay) == pytest.approx(float(fits["grid"].log_decay), abs=0.25)  # its step
    assert test["learned, one a degree"] < 0.5 * test["grid"] < 0.5 * test["too much"] < test["too little"]


def test_the_hypergradient_of_a_polynomial_is_that_of_the_closed_form():
    problem = noisy_wave(torch.Generator().manual_seed(1))
    log_decay = torch.linspace(-6, 0, 16, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(validation_loss(problem, log_decay), log_decay)
    closed = problem.loss(problem.closed_form(log_decay), problem.valid)
    (expected,) = torch.autograd.grad(closed, log_decay)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


def test_training_a_variational_network_denoises_and_moves_the_stopping_time():
    config = FlowConfig(outer_steps=25, batch=4, size=16, steps=4, start_time=0.02)
    *_, (trained, _) = train(config, torch.Generator().manual_seed(0))
    pairs = noisy_crops("embedded", "train", 4, 24, config.noise, torch.Generator().manual_seed(1))
    with torch.no_grad():
        restored = denoise(trained.regularizer, pairs.noisy, trained.time, trained.steps)
    assert psnr(restored, pairs.clean) > psnr(pairs.noisy, pairs.clean) + 2
    assert trained.time > 0.04


def test_the_stopping_time_alone_is_learned_to_the_best_of_a_grid():
    regularizer = FieldsOfExperts().requires_grad_(False)
    config = FlowConfig(outer_steps=50, batch=4, size=16, steps=4, start_time=0.05)
    *_, (trained, _) = train(config, torch.Generator().manual_seed(0), regularizer)
    pairs = noisy_crops("embedded", "train", 16, 24, config.noise, torch.Generator().manual_seed(1))
    values = psnr_by_time(trained, pairs, [trained.time * factor for factor in (1, 0.25, 0.5, 0.7, 1.4, 2, 4)])
    assert values[0] > max(values) - 0.1
    assert abs(optimality(trained, pairs)) < 0.1
    early = trained._replace(time=0.1 * trained.time)
    assert optimality(early, pairs) > 0.2
