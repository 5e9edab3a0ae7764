"""Which layout an activation has, and what a filter does to it."""

from types import SimpleNamespace

import pytest
import shapes
import torch
from captum.attr import LayerAttribution, LayerGradCam
from shapes import randn, words
from torch import nn

from pml_extensions.attr import L2CAF, LBFGS, ChannelsFirst, ChannelsLast, Tokens, last_feature_layer
from pml_extensions.attr._known_layout import known_layout

FIRST, LAST, BRIEF = ChannelsFirst(), ChannelsLast(), LBFGS(steps=3)


def seeded(make, *args):
    torch.manual_seed(0)
    made = make(*args)
    model, *inputs = made if isinstance(made, tuple) else (made,)
    return model.eval(), tuple(inputs)


NETWORKS = {
    "audio": (shapes.audio, (), {"0": (FIRST, (996,)), "1": (FIRST, (996,))}),
    "ecg": (shapes.ecg, (), {"1": (FIRST, (47,)), "3": (FIRST, (23,)), "5": (FIRST, (19,))}),
    "spectrogram": (shapes.spectrogram, (), {"1": (FIRST, (64, 128)), "2": (FIRST, (32, 128)), "3": (FIRST, (4, 1))}),
    "square": (shapes.square, (), {"0": (FIRST, (32, 32)), "1": (FIRST, (32, 32))}),
    "volume": (shapes.volume, (), {"0": (FIRST, (6, 14, 12)), "1": (FIRST, (6, 14, 12)), "4": (FIRST, (6, 7, 6))}),
    "points": (shapes.PointNet, (randn(2, 3, 2048),), {"features": (FIRST, (2048,)), "act": (FIRST, (2048,))}),
    "neighbours": (shapes.Neighbours, (randn(2, 3, 64),), {"edges": (FIRST, (64, 5)), "features": (FIRST, (64,))}),
    "point attention": (shapes.PointTransformer, (randn(2, 100, 3),), {"norm": (LAST, (100,))}),
    "words": (shapes.Words, (words(2, 16),), {"embed": (LAST, (16,)), "encoder.layers.1.norm2": (LAST, (16,))}),
    "a class token": (
        lambda: shapes.Words(class_token=True),
        (words(2, 16),),
        {"embed": (LAST, (16,)), "encoder.layers.0": (Tokens((16,), prefix=1), (16,))},
    ),
    "17 words": (lambda: shapes.Words(length=17), (words(2, 17),), {"encoder.layers.0": (LAST, (17,))}),
    "recurrent": (shapes.Recurrent, (randn(2, 49, 9),), {"norm": (LAST, (49,))}),
    "gated": (lambda: shapes.Recurrent(nn.GRU), (randn(2, 9, 9),), {"norm": (LAST, (9,))}),
    "spectral": (shapes.Spectral, (words(2, 16),), {"norm": (LAST, (16,))}),
    "two inputs": (
        shapes.TwoInputs,
        (randn(2, 3, 32, 48), randn(2, 2, 100)),
        {"image": (FIRST, (15, 23)), "act": (FIRST, (15, 23)), "sequence": (FIRST, (48,))},
    ),
    "mixer": (
        shapes.Mixer,
        (randn(2, 3, 16, 24),),
        {"norm1": (Tokens((4, 6)), (4, 6)), "channels": (Tokens((4, 6)), (4, 6))},
    ),
    "reshaped": (shapes.Reshaped, (randn(2, 3, 16, 24),), {"norm": (Tokens((4, 6), prefix=2), (4, 6))}),
    "windows": (shapes.Windows, (randn(2, 3, 16, 24),), {"patches": (FIRST, (8, 12)), "together": (LAST, (8, 12))}),
    "frames": (shapes.Frames, (randn(2, 5, 3, 8, 8),), {"features": (LAST, (5,))}),
    "odd pooling": (
        shapes.OddPooling,
        (randn(2, 3, 33, 40),),
        {"features.1": (FIRST, (10, 38)), "features": (FIRST, (12, 155))},
    ),
}  # fmt: skip


@pytest.mark.parametrize("batch", [2, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_layouts_follow_from_what_made_the_activation(name, batch):
    make, given, layers = NETWORKS[name]
    model, inputs = seeded(make)
    inputs = tuple(x[:batch] for x in (given or inputs))
    for layer, (layout, grid) in layers.items():
        explain = L2CAF(model, model.get_submodule(layer))
        maps = explain.attribute(inputs, target=1, solver=BRIEF)
        assert maps.shape == (batch, 1, *grid)
        assert maps.flatten(1).norm(dim=1).sub(1).abs().max() < 1e-5
        told = L2CAF(model, model.get_submodule(layer), layout=layout).attribute(inputs, target=1, solver=BRIEF)
        torch.testing.assert_close(told, maps)
        if layout == FIRST and all(x.is_floating_point() for x in inputs):
            grad_cam = LayerGradCam(model, model.get_submodule(layer)).attribute(inputs, target=1)
            assert grad_cam.shape == maps.shape
        wanted = inputs[0].shape[-len(grid) :]
        assert LayerAttribution.interpolate(maps, tuple(wanted)).shape[2:] == wanted


LAST_LAYERS = {
    "audio": "1",
    "ecg": "5",
    "spectrogram": "3",
    "square": "1",
    "volume": "4",
    "points": "act",
    "neighbours": "features",
    "words": "encoder",
    "a class token": "encoder.layers.0",
    "recurrent": "norm",
    "two inputs": "sequence",
}


@pytest.mark.parametrize("name", LAST_LAYERS)
def test_the_last_layer_that_has_places(name):
    make, given, _ = NETWORKS[name]
    model, inputs = seeded(make)
    assert last_feature_layer(model, given or inputs) is model.get_submodule(LAST_LAYERS[name])


def test_what_comes_before_any_layer_is_known_from_what_follows():
    """Features as the input: the convolution after them says where their channels are."""
    model = nn.Sequential(nn.Identity(), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    assert L2CAF(model, model[0]).attribute(randn(2, 6, 6, 6), 1).shape == (2, 1, 6, 6)
    rows = nn.Sequential(nn.Identity(), nn.Linear(6, 4), nn.Flatten(), nn.Linear(144, 3)).eval()
    assert L2CAF(rows, rows[0]).attribute(randn(2, 6, 6, 6), 1).shape == (2, 1, 6, 6)
    assert L2CAF(rows, rows[1]).attribute(randn(2, 6, 6, 6), 1, attribute_to_layer_input=True).shape == (2, 1, 6, 6)


class Attention(nn.Module):
    """Shows its weights, (B, T, T), and works with the sequence before the examples."""

    def __init__(self):
        super().__init__()
        self.weights, self.sequence_first, self.head = nn.Softmax(-1), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.weights(x @ x.mT) @ x
        return self.head(self.sequence_first(x.transpose(0, 1)).mean(0))


class Scattered(nn.Module):
    """Does something that no rule follows, by indices that mix examples and places."""

    def __init__(self):
        super().__init__()
        self.mixed, self.head = nn.Identity(), nn.Conv1d(4, 3, 1)

    def forward(self, x):
        mixed = x.reshape(-1)[torch.randperm(x.numel(), generator=torch.Generator().manual_seed(0))].reshape(x.shape)
        return self.head(self.mixed(mixed).tanh()).mean(2)


@pytest.mark.parametrize(
    ("model", "layer", "shape", "message"),
    [
        (
            Attention(),
            "weights",
            (4, 4, 4),
            "is laid out in a way that is not known.*ChannelsFirst.*ChannelsLast.*Tokens",
        ),
        (Attention(), "sequence_first", (4, 4, 4), r"not known.*an axis of the input, examples, channels"),
        (Scattered(), "mixed", (2, 4, 9), "is laid out in a way that is not known"),
        (nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(64, 3)), "0", (2, 4, 4, 4), "is laid out in a way that"),
        (nn.Sequential(nn.Conv1d(1, 64, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten()), "1", (2, 1, 9), "has no places"),
        (nn.Sequential(nn.Conv1d(1, 64, 3), nn.AdaptiveMaxPool1d(1), nn.Flatten()), "1", (2, 1, 9), "has no places"),
        (nn.Sequential(nn.Conv1d(1, 64, 3), nn.Flatten(), nn.Linear(448, 8)), "1", (2, 1, 9), "has no places"),
        (nn.Sequential(nn.Linear(9, 12), nn.Unflatten(1, (3, 4)), nn.ReLU(), nn.Flatten()), "2", (2, 9), "no places"),
    ],
)
def test_what_is_not_known_is_refused(model, layer, shape, message):
    with pytest.raises(ValueError, match=message):
        L2CAF(model.eval(), model.get_submodule(layer)).attribute(randn(*shape), 1)


VIT = {"num_prefix_tokens": 1, "patch_embed": SimpleNamespace(grid_size=(14, 14))}


def declared(shape, layer=None, **facts):
    model = nn.Sequential(layer or nn.Identity())
    for name, value in facts.items():
        setattr(model, name, value)
    return known_layout(None, torch.Size(shape), model[0], model)


@pytest.mark.parametrize(
    ("shape", "facts", "layout"),
    [
        ((2, 8, 8, 8), {"output_fmt": "NHWC"}, LAST),
        ((2, 8, 8, 8), {"output_fmt": "NCHW"}, FIRST),
        ((2, 197, 384), VIT, Tokens((14, 14), prefix=1)),
        ((2, 201, 384), VIT | {"num_prefix_tokens": 5}, Tokens((14, 14), prefix=5)),
        ((2, 196, 196), {"num_prefix_tokens": 0, "stem": SimpleNamespace(grid_size=(14, 14))}, Tokens((14, 14))),
        ((2, 32, 16, 128), {"layer": nn.Conv2d(1, 32, 3)}, FIRST),
        ((2, 16, 16), {"layer": nn.BatchNorm1d(16)}, FIRST),
        ((2, 4, 5, 6, 7), {"layer": nn.MaxPool3d(2)}, FIRST),
    ],
)
def test_where_axes_are_lost_the_kind_of_the_layer_and_what_the_network_declares_count(shape, facts, layout):
    assert declared(shape, **facts) == layout


@pytest.mark.parametrize(
    ("shape", "facts"),
    [
        ((2, 512, 7, 7), {}),
        ((2, 196, 384), {}),
        ((2, 196, 384), VIT),
        ((2, 65, 64), VIT),
        ((2, 16, 16), {"layer": nn.ReLU()}),
        ((2, 16, 16), {"layer": nn.LayerNorm(16)}),
    ],
)
def test_numbers_alone_say_nothing(shape, facts):
    with pytest.raises(ValueError, match="is laid out in a way that is not known"):
        declared(shape, **facts)


def test_the_innermost_part_of_a_network_knows_best():
    inner = nn.Sequential(nn.Identity())
    inner.num_prefix_tokens, inner.patch_embed = 2, SimpleNamespace(grid_size=(7, 7))
    model = nn.Sequential(inner)
    model.num_prefix_tokens, model.patch_embed = 0, SimpleNamespace(grid_size=(3, 17))
    assert known_layout(None, torch.Size((1, 51, 9)), inner[0], model) == Tokens((7, 7), prefix=2)


@pytest.mark.parametrize("grid", [(12,), (3, 4), (2, 3, 2)])
def test_every_channel_of_a_place_gets_its_value_and_other_tokens_one(grid):
    f = torch.rand(2, *grid)
    for layout, shape in ((FIRST, (2, 5, *grid)), (LAST, (2, *grid, 5)), (Tokens(grid, 2), (2, 14, 5))):
        assert layout.grid(torch.Size(shape)) == grid
        spread = layout.spread(f, torch.Size(shape)).expand(shape)
        if isinstance(layout, Tokens):
            assert (spread[:, :2] == 1).all()
            spread = spread[:, 2:].reshape(2, *grid, 5)
        channels_first = spread if layout == FIRST else spread.movedim(-1, 1)
        assert torch.equal(channels_first, f.unsqueeze(1).expand(2, 5, *grid))


def test_a_layout_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="3 to 5 dimensions, got shape"):
        FIRST.grid(torch.Size((2, 3)))
    with pytest.raises(ValueError, match="needs an activation of 3 dimensions"):
        Tokens((2, 2)).grid(torch.Size((1, 4, 3, 1)))
    with pytest.raises(ValueError, match=r"describes 5 tokens.*has 7"):
        Tokens((2, 2), 1).grid(torch.Size((1, 7, 3)))
    with pytest.raises(TypeError, match="size must be a tuple"):
        Tokens(14)
    with pytest.raises(ValueError, match="prefix must be at least 0"):
        Tokens((2, 2), -1)
