"""The input that a model declares: timm's configuration, corrected by what the model was made for."""

import contextlib

import pytest
import timm
import torch
from timm_modules import SMALLEST
from torch import nn

from pml_extensions._declared_input import declared_input, stand_in_inputs
from pml_extensions._slimming import TracingError, shapes_of_output, stand_in
from pml_extensions.attr import last_feature_layer
from pml_extensions.evolution import KELS, WELS, KnowledgeEvolution
from pml_extensions.models import TwoHead


def made(name, **settings):
    """Return a timm model without values, and the shape of the images that it was made for."""
    with torch.device("meta"):
        model = timm.create_model(name, **settings)
    _, h, w = model.pretrained_cfg["input_size"]
    size = settings.get("img_size", (h, w))
    return model, (settings.get("in_chans", 3), *(size if isinstance(size, tuple) else (size, size)))


def runs(model, shape):
    try:
        shapes_of_output(model, (stand_in((2, *shape), torch.float32),))
    except Exception:  # noqa: BLE001 (whatever a model raises for an input that it does not take)
        return False
    return True


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("test_resnet", {}),
        ("test_resnet", {"in_chans": 1}),
        ("test_resnet", {"in_chans": 6}),
        ("test_resnet", {"in_chans": 12, "features_only": True}),
        ("test_vit", {"img_size": 64}),
        ("test_vit", {"img_size": (64, 96), "in_chans": 1}),
        ("test_vit", {"img_size": 64, "in_chans": 6, "features_only": True}),
        ("test_vit", {"img_size": 64, "dynamic_img_size": True}),
        ("test_coatnet", {"img_size": 128}),
        ("levit_128s", {"img_size": 128}),
        ("levit_128s", {"img_size": 256, "in_chans": 6}),
        ("tnt_s_legacy_patch16_224", {"img_size": 128}),
        ("visformer_tiny", {"img_size": 128}),
        ("volo_d1_224", {"img_size": 128}),
        ("efficientformerv2_s0", {"img_size": 448}),
        ("gcvit_xxtiny", {"img_size": 128}),
        ("gmixer_24_224", {"img_size": 128}),
        ("hiera_tiny_224", {"img_size": 128}),
        ("efficientvit_m0", {"img_size": 128}),
        ("coat_tiny", {"img_size": 128}),
        ("pit_ti_224", {"in_chans": 1, "features_only": True}),
        ("tresnet_m", {"in_chans": 6}),
        ("naflexvit_base_patch16_gap", {"in_chans": 6}),
    ],
    ids=str,
)
def test_other_channels_and_sizes(name, settings):
    model, shape = made(name, **settings)
    assert declared_input(model) == shape
    assert runs(model, shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_other_channels_and_sizes_of_every_module(name):
    _, (_, _, width) = made(name)
    half = max(64, width // 64 * 32)
    for settings in (
        {},
        {"in_chans": 1},
        {"in_chans": 6},
        {"img_size": half},
        {"img_size": (half, 2 * half)},
        {"img_size": 2 * width, "in_chans": 6},
        {"features_only": True, "in_chans": 1},
        {"features_only": True, "img_size": half},
    ):
        built = None
        with contextlib.suppress(TypeError, RuntimeError, AttributeError, ValueError):  # what the architecture has not
            built = made(name, **settings)
        if built is not None:
            model, shape = built
            found = declared_input(model)
            assert runs(model, found or (0, 0, 0)) or not runs(model, shape), (settings, found, shape)


class Normalised(nn.Module):
    def __init__(self, trunk, channels=3):
        super().__init__()
        self.register_buffer("mean", torch.full((channels, 1, 1), 0.5))
        self.trunk = trunk

    def forward(self, images):
        return self.trunk(images - self.mean)


class Both(nn.Module):
    """Two models side by side on the same images."""

    def __init__(self, *trunks):
        super().__init__()
        self.trunks = nn.ModuleList(trunks)

    def forward(self, images):
        return torch.cat([trunk(images) for trunk in self.trunks], 1)


@pytest.mark.parametrize("split", [WELS(0.5), KELS(0.5)])
@pytest.mark.parametrize("settings", [{}, {"img_size": (64, 96), "in_chans": 1}], ids=str)
def test_a_timm_model_inside_a_wrapper(split, settings):
    trunk = timm.create_model("test_vit", num_classes=8, **settings)
    model = nn.Sequential(Normalised(trunk, settings.get("in_chans", 3)), nn.Linear(8, 5))
    evolution = KnowledgeEvolution(model, split)
    inner = KnowledgeEvolution(trunk, split)
    assert {f"0.trunk.{name}" for name in inner.masks} == evolution.masks.keys() - {"1.weight"}
    evolution.reset()
    if isinstance(split, KELS):
        slim = evolution.slim()
        assert slim(torch.randn(2, *declared_input(model))).shape == (2, 5)
        assert evolution.summary().slim.slim_parameters == sum(p.numel() for p in slim.parameters())


def test_the_outermost_configuration_that_the_whole_model_runs_with():
    flexible, fixed = timm.create_model("test_resnet"), timm.create_model("deit_tiny_patch16_224", img_size=64)
    assert declared_input(Both(flexible, fixed)) == (3, 64, 64)
    assert declared_input(TwoHead(flexible)) == (3, 160, 160)
    assert declared_input(Both(fixed, timm.create_model("deit_tiny_patch16_224"))) is None


def test_what_declares_nothing():
    for model in (nn.Linear(3, 2), nn.Sequential(nn.Conv2d(3, 4, 3))):
        assert declared_input(model) is None
        with pytest.raises(TracingError, match="example_input is needed"):
            stand_in_inputs(model, None)
        with pytest.raises(ValueError, match="inputs must be given"):
            last_feature_layer(model)
    odd = timm.create_model("test_resnet", pretrained_cfg_overlay={"input_size": None})
    assert declared_input(odd) is None


def test_the_model_is_left_as_it_was():
    model = timm.create_model("levit_128s", img_size=128).train()
    before = [set(vars(module)) for module in model.modules()]
    assert declared_input(model) == (3, 128, 128)
    assert [set(vars(module)) for module in model.modules()] == before
    assert all(module.training for module in model.modules())
    assert not any(
        len(module.attention_bias_cache) for module in model.modules() if hasattr(module, "attention_bias_cache")
    )


@pytest.mark.parametrize("settings", [{"in_chans": 1}, {"in_chans": 6}, {"img_size": 64}], ids=str)
def test_attention_maps_and_two_heads_take_what_the_model_was_made_for(settings):
    model = timm.create_model("test_vit", num_classes=8, **settings).eval()
    assert last_feature_layer(model) in model.modules()
    two = TwoHead(model, 4, pooling="flatten")
    assert two(torch.randn(2, *declared_input(model))).embeddings.shape == (2, 4)
