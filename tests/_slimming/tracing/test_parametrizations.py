"""Weights that are computed from others are cut with them."""

import pytest
import torch
import torch.nn.functional as F
from slim_checks import exactness
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from pml_extensions.evolution import KELS


class Scaled(nn.Module):
    """A weight divided by its largest entry: a number."""

    def forward(self, weight):
        return weight / weight.abs().max()


def network(layer):
    return nn.Sequential(layer(nn.Conv2d(3, 16, 3)), nn.ReLU(), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(1),
                         layer(nn.Linear(16, 2)))  # fmt: skip


def scaled(layer):
    return parametrize.register_parametrization(layer, "weight", Scaled())


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm` is deprecated")
@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm, scaled])
@pytest.mark.parametrize("rate", [0.5, 0.3])
def test_a_weight_divided_by_a_number_is_cut(norm, rate):
    model = network(norm).eval()
    split = KELS(rate, example_input=torch.randn(2, 3, 8, 8))
    slim = split.slim(model)
    slim(torch.randn(2, 3, 8, 8))
    assert slim[0].weight.shape[0] == slim[-1].weight.shape[1] == (8 if rate == 0.5 else 5)
    if norm is parametrizations.spectral_norm:  # a largest entry is another one where entries are zero
        assert exactness(model, split)[1] < 1e-9


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
def test_weight_norm_is_that_of_what_is_kept(norm):
    model = network(norm).eval()
    length, direction = (p.detach() for name, p in model[-1].named_parameters() if name != "bias")
    images = torch.randn(2, 3, 8, 8)
    slim = KELS(0.5, example_input=images).slim(model)
    features = F.conv2d(images, model[0].weight[:8], model[0].bias[:8]).relu().mean((2, 3))
    kept = direction[:, :8]
    expected = F.linear(features, length * kept / kept.norm(dim=1, keepdim=True), model[-1].bias)
    assert torch.allclose(slim(images), expected, atol=1e-6)
