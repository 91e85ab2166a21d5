"""Logistic regression with a decay for every feature, against scikit-learn and autograd."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression as Sklearn

from tasks.logistic import contrasts, mostly_noise, real_rows


def small(classes=2, **options):
    return mostly_noise((60, 30, 20, 10), 4, 6, torch.Generator().manual_seed(0), classes=classes, **options)


def decays(problem):
    return torch.linspace(-4, -1, problem.features, dtype=torch.float64)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_gradient_is_that_of_the_objective(classes):
    problem, generator = small(classes), torch.Generator().manual_seed(1)
    weights = torch.randn(11, classes - 1, generator=generator, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(problem.objective(weights, decays(problem)), weights)
    torch.testing.assert_close(problem.gradient(weights, decays(problem)), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_minimum_of_scikit_learn_has_gradient_zero(classes):
    """With x_j / √d_j for x_j, one decay for all is d_j for feature j; scikit-learn's C is 1 / (n · decay)."""
    problem = small(classes)
    scale = decays(problem).exp().sqrt()
    inputs, labels = problem.train
    model = Sklearn(C=1 / len(inputs), tol=1e-12, max_iter=10_000).fit((inputs[:, :-1] / scale).numpy(), labels.numpy())
    found = torch.from_numpy(model.coef_).T / scale.unsqueeze(1)
    found = torch.cat([found, torch.from_numpy(model.intercept_).unsqueeze(0)])  # logits of all classes, or of one
    weights = found if classes == 2 else found @ contrasts(classes)
    gradient = problem.gradient(weights, decays(problem))
    assert float(gradient.norm()) < 1e-6 * float(problem.gradient(problem.zero_weights(), decays(problem)).norm())
    probabilities = torch.from_numpy(model.predict_proba((inputs[:, :-1] / scale).numpy()))
    torch.testing.assert_close(problem.logits(weights, problem.train).softmax(1), probabilities, rtol=0, atol=1e-6)


@pytest.mark.parametrize("classes", [3, 7])
def test_contrasts_are_an_orthonormal_basis_of_the_vectors_with_sum_zero(classes):
    C = contrasts(classes)
    torch.testing.assert_close(C.T @ C, torch.eye(classes - 1, dtype=torch.float64), rtol=0, atol=1e-14)
    assert float(C.sum(0).abs().max()) < 1e-14


def test_features_are_standardised_by_the_training_rows_alone():
    problem = real_rows("breast_cancer", (150, 100, 100), torch.Generator().manual_seed(0))
    inputs = problem.train.inputs[:, :-1]
    torch.testing.assert_close(inputs.mean(0), torch.zeros(30, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(inputs.std(0), torch.ones(30, dtype=torch.float64))
    assert float(problem.test.inputs[:, :-1].mean(0).abs().max()) > 1e-3
    assert len(problem.test.labels) == 569 - 350 and bool((problem.test.inputs[:, -1] == 1).all())


def test_constant_pixels_of_digits_become_zero_and_no_row_is_in_two_parts():
    problem = real_rows("digits", (200, 100, 100), torch.Generator().manual_seed(0))
    parts = (problem.train, problem.valid, problem.stop, problem.test)
    rows = torch.cat([part.inputs for part in parts])
    assert (problem.classes, problem.features, len(rows)) == (10, 64, 1797)
    assert bool((rows[:, 0] == 0).all())
    assert len(rows.unique(dim=0)) == 1797


def test_neighbouring_features_correlate_as_asked():
    problem = mostly_noise((20_000, 1, 1, 1), 2, 3, torch.Generator().manual_seed(0), correlation=0.8)
    found = torch.corrcoef(problem.train.inputs[:, :-1].T)
    steps = torch.arange(5)
    expected = 0.8 ** (steps.unsqueeze(0) - steps.unsqueeze(1)).abs().double()
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)  # 4 / √20,000


def test_accuracy_counts_rows():
    problem = small()
    weights = problem.zero_weights()
    weights[-1] = 1.0  # class 1 for every row
    assert problem.accuracy(weights, problem.test) == float(problem.test.labels.double().mean())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: contrasts(1), "classes must be at least 2, got 1"),
        (lambda: small().decays(torch.zeros(3)), r"shape \(\) or \(10,\), got \(3,\)"),
        (lambda: mostly_noise((1, 1, 1, 1), 0, 5, torch.Generator()), "informative ≥ 1"),
        (lambda: small(correlation=1.0), r"correlation must be in \[0, 1\), got 1.0"),
        (lambda: real_rows("iris", (1, 1, 1), torch.Generator()), "one of breast_cancer, digits, got 'iris'"),
        (lambda: real_rows("digits", (1000, 700, 97), torch.Generator()), "below the 1797 rows of digits"),
    ],
)
def test_wrong_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
