"""WELS."""

import copy
import pickle

import pytest
import torch
from torch import nn

from pml_extensions.evolution import WELS


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.5, 0.9])
def test_keeps_each_weight_with_the_probability_rate(rate):
    model = nn.Sequential(nn.Linear(300, 400), nn.Conv2d(50, 60, 3))
    masks = WELS(rate)(model)
    assert list(masks) == ["0.weight", "1.weight"]
    for mask in masks.values():
        expected = rate * mask.numel()
        deviation = (expected * (1 - rate)) ** 0.5
        assert abs(int(mask.sum()) - expected) < 5 * deviation
    rows, columns = masks["0.weight"].double().mean(1), masks["0.weight"].double().mean(0)
    assert rows.std().item() == pytest.approx((rate * (1 - rate) / 300) ** 0.5, rel=0.2)  # independent draws
    assert columns.std().item() == pytest.approx((rate * (1 - rate) / 400) ** 0.5, rel=0.2)


def test_masks_follow_from_seed_and_shapes_alone():
    model = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 40), nn.Linear(40, 40))
    masks = WELS(0.5)(model)
    torch.manual_seed(5)
    again = WELS(0.5)(copy.deepcopy(model).half().to(memory_format=torch.preserve_format))
    assert all(torch.equal(masks[name], again[name]) for name in masks)
    assert not torch.equal(masks["1.weight"], masks["2.weight"])
    assert not torch.equal(masks["1.weight"], WELS(0.5, seed=1)(model)["1.weight"])
    with torch.device("meta"):
        hollow = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 40), nn.Linear(40, 40))
    assert all(torch.equal(masks[name], mask) for name, mask in WELS(0.5)(hollow).items())


def test_the_global_generator_is_not_consumed():
    layer = nn.Linear(3, 3)
    state = torch.get_rng_state()
    WELS(0.5)(layer)
    assert torch.equal(torch.get_rng_state(), state)


def test_rate_one_keeps_all():
    assert WELS(1)(nn.Linear(30, 30))["weight"].all()


@pytest.mark.parametrize("rate", [0, -0.1, 1.01, float("nan")])
def test_rate_out_of_range(rate):
    with pytest.raises(ValueError, match=r"rate must lie in \(0, 1\], got"):
        WELS(rate)


def test_is_a_value():
    assert WELS(0.5) == pickle.loads(pickle.dumps(WELS(0.5))) == copy.deepcopy(WELS(0.5))  # noqa: S301 (made here)
    assert repr(WELS(0.5, example_input=torch.ones(2))) == "WELS(rate=0.5, seed=0)"
