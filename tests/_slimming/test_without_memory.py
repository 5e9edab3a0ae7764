"""Models on the meta device: what is found and cut is what is found of the same model with weights, without memory."""

import pytest
import timm
import torch
from torch import nn

from pml_extensions.evolution import KELS


def on_meta(make):
    with torch.device("meta"):
        return make()


@pytest.mark.timm_model("name")
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "levit_128s", "swin_tiny_patch4_window7_224"])
def test_slim_has_the_shapes_of_that_with_weights(name):
    slims = [KELS(0.5).slim(make(lambda: timm.create_model(name))) for make in (lambda make: make(), on_meta)]
    ours, meta = ({key: t.shape for key, t in slim.state_dict().items()} for slim in slims)
    assert ours == meta
    assert all(parameter.is_meta for parameter in slims[1].parameters())


def test_a_model_larger_than_any_memory():
    model = on_meta(lambda: nn.Sequential(nn.Linear(10**6, 10**7), nn.ReLU(), nn.Linear(10**7, 10)))
    split = KELS(1e-6, example_input=torch.zeros(2, 10**6))
    assert split.compare(model).dense_parameters > 10**13
    slim = split.slim(model).to_empty(device="cpu")
    assert slim(torch.randn(2, 10**6)).shape == (2, 10)


def test_statistics_need_weights():
    model = on_meta(lambda: nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)))
    with pytest.raises(ValueError, match="is on the meta device; materialise it first"):
        KELS(0.5, example_input=torch.zeros(2, 3)).slim(model, [torch.zeros(2, 3)])
