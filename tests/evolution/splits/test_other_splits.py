"""LaterLayers, LastLayer and Magnitude."""

import pytest
import timm
import torch
from torch import nn

from pml_extensions.evolution import KnowledgeEvolution, LastLayer, LaterLayers, Magnitude
from pml_extensions.evolution.splits.magnitude import largest


def whole(masks):
    """Return the names that are reset; a mask is either all True or all False."""
    assert all(mask.all() == mask.any() for mask in masks.values())
    return {name for name, mask in masks.items() if not mask.any()}


class TestLaterLayers:
    def test_resets_from_the_named_layer_on(self):
        model = timm.create_model("resnet18", num_classes=5)
        masks = LaterLayers("layer4")(model)
        weights = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
        assert list(masks) == weights
        assert whole(masks) == {name for name in weights if name.startswith(("layer4", "fc"))}
        assert whole(LaterLayers("layer4.1.conv2")(model)) == {"layer4.1.conv2.weight", "fc.weight"}
        assert whole(LaterLayers("fc.weight")(model)) == {"fc.weight"}

    def test_a_name_is_matched_by_whole_parts(self):
        model = nn.ModuleDict({"conv10": nn.Linear(2, 2), "conv1": nn.Linear(2, 2)})
        assert whole(LaterLayers("conv1")(model)) == {"conv1.weight"}

    def test_tables_before_and_after_stay(self):
        model = timm.create_model("test_vit")
        assert set(LaterLayers("blocks.1")(model)) == {n for n, p in model.named_parameters() if p.ndim in {2, 4}}

    def test_unknown_layer(self):
        with pytest.raises(ValueError, match=r"first must name a layer .* such as \['layer4', .*, got 'layer5'"):
            LaterLayers("layer5")(timm.create_model("resnet18"))
        with pytest.raises(ValueError, match=r"such as \['0', '1'.*, got 'quite different'"):
            LaterLayers("quite different")(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))

    def test_no_weights_from_there_on(self):
        with pytest.raises(ValueError, match=r"first must name a layer with weights .*, got '1'"):
            LaterLayers("1")(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))


class TestLastLayer:
    @pytest.mark.parametrize(
        ("name", "last"),
        [
            ("resnet18", {"fc.weight"}),
            ("test_vit", {"head.weight"}),
            ("test_convnext", {"head.fc.weight"}),
            ("test_efficientnet", {"classifier.weight"}),
            ("deit_tiny_distilled_patch16_224", {"head.weight", "head_dist.weight"}),
        ],
    )
    def test_is_the_classifier_of_a_timm_model(self, name, last):
        assert whole(LastLayer()(timm.create_model(name))) == last

    def test_of_a_headless_model_is_the_last_layer(self):
        assert whole(LastLayer()(timm.create_model("resnet18", num_classes=0))) == {"layer4.1.conv2.weight"}

    def test_of_a_trunk_with_an_embedder(self):
        model = nn.Sequential(timm.create_model("test_resnet", num_classes=0), nn.Linear(128, 64), nn.LayerNorm(64))
        assert whole(LastLayer()(model)) == {"1.weight"}

    def test_of_a_model_without_weights(self):
        with pytest.raises(ValueError, match="it found no weight to split"):
            KnowledgeEvolution(nn.LayerNorm(3), LastLayer())

    def test_a_layer_with_several_weights_is_reset_whole(self):
        assert whole(LastLayer()(nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 4)))) == {"1.weight_ih_l0", "1.weight_hh_l0"}


class TestMagnitude:
    @pytest.mark.parametrize("rate", [0.1, 0.5, 0.77, 1.0])
    def test_keeps_the_largest_of_each_weight(self, rate, net):
        for name, mask in Magnitude(rate)(net).items():
            weight = net.get_parameter(name).detach().abs().double()
            assert int(mask.sum()) == round(rate * mask.numel())
            if not mask.all():
                assert weight[mask].min() >= weight[~mask].max()

    @pytest.mark.parametrize("count", range(7))
    def test_of_equal_weights_the_first_are_kept(self, count):
        mask = largest(torch.tensor([[1.0, -2.0, 2.0], [0.5, -1.0, 2.0]]), count)
        order = [(0, 1), (0, 2), (1, 2), (0, 0), (1, 1), (1, 0)]
        assert {tuple(place) for place in mask.nonzero().tolist()} == set(order[:count])

    def test_half_precision(self):
        layer = nn.Linear(30, 30).bfloat16()
        mask = Magnitude(0.25)(layer)["weight"]
        assert int(mask.sum()) == 225

    def test_rate_out_of_range(self):
        with pytest.raises(ValueError, match=r"rate must lie in \(0, 1\], got 2"):
            Magnitude(2)
