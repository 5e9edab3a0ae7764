"""Weights that are computed from others are cut with them."""

import pytest
import torch
import torch.nn.functional as F
from slim_checks import exactness
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

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


class Masked(nn.Linear):
    """A weight that a buffer masks."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("mask", (torch.rand_like(self.weight) > 0.3).float())

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)


class Quantised(nn.Linear):
    """A weight that is rounded, with a scale for each row."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("step", torch.full((self.out_features, 1), 0.1))

    def forward(self, x):
        return F.linear(x, (self.weight / self.step).round() * self.step, self.bias)


def pruned(*sizes):
    return prune.random_unstructured(nn.Linear(*sizes), "weight", 0.5)


@pytest.mark.parametrize("layer", [Masked, Quantised, pruned])
def test_a_weight_that_a_constant_masks_or_scales_is_cut(layer):
    with torch.no_grad():  # such that what is pruned can be copied
        model = nn.Sequential(layer(8, 16), nn.ReLU(), layer(16, 12), nn.ReLU(), layer(12, 4))
    split = KELS(0.5, example_input=torch.randn(2, 8))
    slim = split.slim(model)
    assert [tuple(slim[i].weight.shape) for i in (0, 2, 4)] == [(8, 8), (6, 8), (4, 6)]
    assert all(tensor.shape == slim[2].weight.shape for name, tensor in slim[2].named_buffers() if name != "step")
    assert split.widths(model).whole == []
    assert exactness(model, split)[1] < 1e-9


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(8, 16), nn.MultiheadAttention(16, 2), nn.Linear(16, 3)

    def forward(self, x):
        x = self.first(x)
        return self.last(self.attention(x, x, x)[0])


def test_attention_whose_projection_is_computed():
    model, split = Attention(), KELS(0.5, example_input=torch.randn(5, 2, 8))
    parametrizations.spectral_norm(model.attention.out_proj)
    slim = split.slim(model)
    assert (slim.attention.embed_dim, slim.attention.head_dim, slim.attention.out_proj.in_features) == (8, 4, 8)
    assert exactness(model.eval(), split)[1] < 1e-9


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.(weight|spectral)_norm` is deprecated")
@pytest.mark.parametrize(
    "compute", [parametrizations.spectral_norm, nn.utils.spectral_norm, nn.utils.weight_norm, prune.l1_unstructured]
)
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_with_a_computed_weight(kind, compute):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.last = kind(8, 16), nn.Linear(16, 3)
            compute(self.layers, "weight_hh_l0", *[0.5] * (compute is prune.l1_unstructured))

        def forward(self, x):
            return self.last(self.layers(x)[0])

    with torch.no_grad():  # such that torch can copy it
        model, split = Recurrent().eval(), KELS(0.5, example_input=torch.randn(5, 2, 8))
        slim = split.slim(model)
        assert slim.layers.hidden_size == slim.layers.weight_hh_l0.shape[1] == 8
        if compute is not nn.utils.weight_norm:  # of a direction without length
            assert exactness(model, split)[1] < 1e-9


def test_the_state_of_the_models_norms_stays():
    """To look at a weight in training mode takes a step of the power method."""
    model = nn.Sequential(*(parametrizations.spectral_norm(nn.Linear(8, 8)) for _ in range(2))).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    slim = KELS(0.5, example_input=torch.randn(2, 8)).slim(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert slim.training
    assert all(module.training for module in slim.modules())
    assert torch.equal(slim[0].parametrizations.weight[0]._u, state["0.parametrizations.weight.0._u"][:4])


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
