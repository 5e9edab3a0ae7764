"""The resetting rules."""

import math

import pytest
import timm
import torch
from torch import nn

from pml_extensions.evolution import (
    KaimingNormal,
    KaimingUniform,
    KnowledgeEvolution,
    LayerDefault,
    Owner,
    ShrinkPerturb,
)
from pml_extensions.evolution.draws import generator_for


def all_reset(model):
    return {name: torch.zeros_like(p, dtype=torch.bool) for name, p in model.named_parameters() if p.ndim > 1}


def reset(model, rule, split=all_reset):
    KnowledgeEvolution(model, split, rule=rule).reset()
    return model


def test_kaiming_uniform_is_that_of_torch():
    layer = reset(nn.Conv2d(6, 40, 3, groups=2), KaimingUniform())
    expected = nn.init.kaiming_uniform_(torch.empty(40, 3, 3, 3), a=math.sqrt(5), generator=generator_for(0, 1, 0))
    assert torch.equal(layer.weight, expected)
    assert layer.weight.abs().max() <= 1 / math.sqrt(27)
    wide = reset(nn.Conv2d(6, 40, 3, groups=2), KaimingUniform(a=0))
    torch.testing.assert_close(wide.weight, expected * math.sqrt(6))


def test_kaiming_normal_has_the_fan_in_of_the_weight():
    layer = reset(nn.Linear(200, 100), KaimingNormal())
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 200), rel=0.02)


@pytest.mark.parametrize(
    "layer",
    [nn.Linear(30, 20), nn.Conv2d(4, 8, 3), nn.LSTM(4, 6), nn.MultiheadAttention(8, 2), nn.Bilinear(3, 4, 5)],
    ids=lambda layer: type(layer).__name__,
)
def test_layer_default_draws_as_the_layer_was_made(layer):
    if isinstance(layer, nn.MultiheadAttention):
        layer.out_proj.bias.data.fill_(3.0)  # its reset_parameters would write this one, too
    untouched = {name: p.detach().clone() for name, p in layer.named_parameters() if p.ndim == 1}
    state = torch.get_rng_state()
    reset(layer, LayerDefault())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(layer.get_parameter(name), value) for name, value in untouched.items())
    attribute, weight = next((name, p) for name, p in layer.named_parameters(recurse=False) if p.ndim > 1)
    place = [name for name, _ in layer.named_parameters()].index(attribute)
    torch.manual_seed(generator_for(0, 1, place).initial_seed())
    remake = getattr(layer, "reset_parameters", None) or layer._reset_parameters
    drawn = weight.detach().clone()
    remake()
    assert torch.equal(drawn, weight)


def test_layer_default_of_a_timm_layer_with_its_own_rule():
    layer = timm.layers.CondConv2d(4, 8, 3, num_experts=3)
    layer.weight.data.zero_()
    drawn = LayerDefault()(torch.zeros_like(layer.weight), generator_for(0), Owner(layer, "weight"))
    assert drawn.shape == layer.weight.shape
    assert drawn.std().item() == pytest.approx(1 / math.sqrt(3 * 36), rel=0.1)  # per expert, fan-in 36
    assert not layer.weight.any()


def test_layer_default_where_the_layer_has_none():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.ones(2, 2))

    model = Bare()
    with pytest.raises(
        ValueError, match=r"LayerDefault needs a layer with a reset_parameters method, got Bare, .*'matrix'"
    ):
        reset(model, LayerDefault())
    assert torch.equal(model.matrix, torch.ones(2, 2))

    class Forgetful(Bare):
        def reset_parameters(self):
            pass

    with pytest.raises(ValueError, match="reset_parameters of Forgetful does not draw 'matrix'"):
        reset(Forgetful(), LayerDefault())


def test_shrink_perturb():
    layer = nn.Linear(300, 100)
    before = layer.weight.detach().double()
    reset(layer, ShrinkPerturb(0.4, 0.1), lambda m: {"weight": torch.arange(100)[:, None].expand(100, 300) < 50})
    after = layer.weight.detach().double()
    assert torch.equal(after[:50], before[:50])
    noise = after[50:] - 0.4 * before[50:]
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert abs(noise.mean().item()) < 0.003


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.1, 0.1), r"shrink must lie in \[0, 1\], got 1.1"),
        ((0.5, -1), "std must be"),
        ((0.5, math.inf), "std must be"),
    ],
)
def test_shrink_perturb_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShrinkPerturb(*arguments)


def test_a_rule_may_return_a_tensor_of_its_own():
    initial = torch.randn(4, 4)
    kept = initial.clone()
    layer = reset(nn.Linear(4, 4), lambda values, generator, owner: initial)
    assert torch.equal(layer.weight, kept)
    assert torch.equal(initial, kept)


def test_a_function_of_torch_nn_init_as_a_rule():
    layer = reset(nn.Linear(4, 4), lambda values, generator, _: nn.init.orthogonal_(values, generator=generator))
    torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(4))
