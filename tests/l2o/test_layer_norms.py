"""Norms of layers against dense matrices and power iteration; the parametrisation holds them while it is trained."""

import pytest
import torch
from torch import Tensor, nn

from l2o.layer_norms import kernel_norm, layer_norm_bound, nonexpansive, operator_norm
from l2o.metric import Euclidean
from l2o.nonexpansive import certify_samples


def conv(seed: int = 0, **options) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(**({"in_channels": 3, "out_channels": 4, "kernel_size": 3, "padding": 1} | options)).double()


def dense_norm(module: nn.Module, shape: tuple[int, ...]) -> float:
    """σ_max of the matrix, column by column."""
    eye = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        columns = (module(eye) - module(torch.zeros_like(eye[:1]))).flatten(1)
    return float(torch.linalg.matrix_norm(columns, 2))


def test_circular_convolution_has_exactly_its_transforms_norm():
    layer = conv(padding_mode="circular")
    assert float(layer_norm_bound(layer, (6, 7)).detach()) == pytest.approx(dense_norm(layer, (3, 6, 7)), rel=1e-10)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"dilation": 2, "padding": 2},
        {"groups": 3, "out_channels": 6},
        {"kernel_size": 5, "padding": 2},
    ],
)
def test_zero_padded_convolution_is_bounded_and_tightly(options):
    layer = conv(**options)
    true, bound = dense_norm(layer, (3, 8, 8)), float(layer_norm_bound(layer, (8, 8)).detach())
    assert true <= bound * (1 + 1e-10)
    assert "stride" in options or bound <= 1.3 * true


def test_reshaped_spectral_norm_guarantees_nothing():
    layer = conv(in_channels=1, out_channels=1)
    with torch.no_grad():
        layer.weight.fill_(1 / 3)  # reshaped to one row: norm 1
    assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) == pytest.approx(1.0)
    assert dense_norm(layer, (1, 16, 16)) > 2.8
    assert float(layer_norm_bound(layer, (16, 16)).detach()) == pytest.approx(3.0)


def test_power_iteration_agrees_with_the_dense_matrix():
    layer = conv(stride=2)
    assert float(operator_norm(layer, (3, 8, 8), 500)) == pytest.approx(dense_norm(layer, (3, 8, 8)), rel=1e-6)


def test_norm_in_one_and_three_dimensions_and_of_linear_layers():
    torch.manual_seed(1)
    for layer, shape in ((nn.Conv1d(2, 3, 3), (2, 9)), (nn.Conv3d(1, 2, 3), (1, 4, 4, 4)), (nn.Linear(5, 7), (5,))):
        layer = layer.double()
        true, bound = dense_norm(layer, shape), float(layer_norm_bound(layer, shape[1:]).detach())
        assert true <= bound * (1 + 1e-12)


def test_gradient_of_the_kernel_norm_is_that_of_differences():
    weight = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda w: kernel_norm(w, (5, 6)), weight.requires_grad_())


def test_parametrised_network_stays_nonexpansive_while_it_is_trained_to_expand():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1)).double()
    nonexpansive(network, (8, 8))
    images = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    gains = []
    for _ in range(60):
        gain = ((network(images) - network(-images)).square().sum() / (2 * images).square().sum()).sqrt()
        gains.append(float(gain.detach()))
        optimizer.zero_grad()
        (-gain).backward()
        optimizer.step()
    assert gains[-1] > 2 * gains[0]  # it did try
    for layer in (network[0], network[2]):
        assert float(operator_norm(layer, (layer.in_channels, 8, 8))) <= 1
    assert certify_samples(lambda u: network(u), images, Euclidean()).nonexpansive


def test_smaller_layers_are_left_as_they_are():
    layer = nn.Linear(3, 3).double()
    with torch.no_grad():
        layer.weight.copy_(0.5 * torch.eye(3))
    nonexpansive(layer)
    torch.testing.assert_close(layer.weight.detach(), 0.5 * torch.eye(3, dtype=torch.float64))


def test_what_has_no_bound_is_refused():
    with pytest.raises(TypeError, match="BatchNorm2d has no known bound"):
        nonexpansive(nn.Sequential(nn.BatchNorm2d(2)))
    with pytest.raises(TypeError, match="LeakyReLU"):
        nonexpansive(nn.LeakyReLU(2.0))
    with pytest.raises(TypeError, match="nn.Linear and nn.Conv1d"):
        layer_norm_bound(nn.Embedding(2, 2))
    with pytest.raises(ValueError, match="bound must be positive"):
        nonexpansive(nn.Linear(2, 2), bound=0)
    with pytest.raises(ValueError, match="size of its images"):
        nonexpansive(conv())
    with pytest.raises(ValueError, match="zeros or circular"):
        nonexpansive(conv(padding_mode="reflect"), (8, 8))
    with pytest.raises(ValueError, match="repeats outputs"):
        layer_norm_bound(conv(padding=3, padding_mode="circular"), (8, 8))
    with pytest.raises(ValueError, match="at least"):
        kernel_norm(torch.ones(1, 1, 3, 3), (2, 8))


def test_parametrisation_is_saved_and_restored():
    first, second = (nonexpansive(conv(seed), (8, 8)) for seed in (0, 1))
    second.load_state_dict(first.state_dict())
    weights: list[Tensor] = [module.weight.detach() for module in (first, second)]  # pyright: ignore
    torch.testing.assert_close(*weights)
