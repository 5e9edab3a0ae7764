"""Which layout an activation has, and what a filter does to it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pml_extensions.attr import ChannelsFirst, ChannelsLast, Tokens
from pml_extensions.attr.layouts import find_layout


def found(shape, image=(224, 224), **facts):
    model = nn.Sequential(nn.Identity())
    for name, value in facts.items():
        setattr(model, name, value)
    return find_layout(torch.Size(shape), image, model, model[0])


VIT = {"num_prefix_tokens": 1, "patch_embed": SimpleNamespace(grid_size=(14, 14))}


@pytest.mark.parametrize(
    ("shape", "image", "facts", "layout"),
    [
        ((2, 512, 7, 7), (224, 224), {}, ChannelsFirst()),
        ((2, 7, 7, 512), (224, 224), {}, ChannelsLast()),
        ((2, 64, 7, 10), (224, 320), {}, ChannelsFirst()),
        ((2, 64, 8, 11), (230, 330), {}, ChannelsFirst()),
        ((2, 8, 8, 8), (224, 224), {"output_fmt": "NHWC"}, ChannelsLast()),
        ((2, 8, 8, 8), (224, 224), {"output_fmt": "NCHW"}, ChannelsFirst()),
        ((2, 512, 7, 7), None, {}, ChannelsFirst()),
        ((2, 197, 384), (224, 224), VIT, Tokens((14, 14), prefix=1)),
        ((2, 201, 384), (224, 224), VIT | {"num_prefix_tokens": 5}, Tokens((14, 14), prefix=5)),
        ((2, 197, 384), (224, 224), {}, Tokens((14, 14), prefix=1)),
        ((2, 196, 384), (224, 224), {}, Tokens((14, 14))),
        ((2, 49, 768), (224, 224), VIT | {"num_prefix_tokens": 0}, Tokens((7, 7))),
        ((2, 281, 192), (224, 320), VIT, Tokens((14, 20), prefix=1)),
        ((2, 65, 64), (32, 32), VIT, Tokens((8, 8), prefix=1)),
        ((2, 196, 256), (224, 224), {"stem": SimpleNamespace(grid_size=(14, 14))}, Tokens((14, 14))),
    ],
)
def test_layouts_are_read_from_shape_image_and_model(shape, image, facts, layout):
    assert found(shape, image, **facts) == layout


@pytest.mark.parametrize(
    ("shape", "image", "facts", "message"),
    [
        ((2, 8, 8, 8), (224, 224), {}, "could be read as any of.*ChannelsFirst.*ChannelsLast.*layout="),
        ((2, 196, 256), (224, 224), {}, "second or its third.*layout=Tokens"),
        ((2, 1000), (224, 224), {}, r"\(2, 1000\) has no places"),
        ((2, 512, 1, 1), (224, 224), {}, "no places"),
        ((2, 12, 197, 64), (224, 224), VIT, "no places"),
        ((2, 199, 384), (224, 224), {}, "no places"),
    ],
)
def test_what_is_ambiguous_or_has_no_places_is_an_error(shape, image, facts, message):
    with pytest.raises(ValueError, match=message):
        found(shape, image, **facts)


def test_the_innermost_part_of_a_network_knows_best():
    inner = nn.Sequential(nn.Identity())
    inner.num_prefix_tokens = 2
    model = nn.Sequential(inner)
    model.num_prefix_tokens = 0
    assert find_layout(torch.Size((1, 51, 9)), (56, 56), model, inner[0]) == Tokens((7, 7), prefix=2)


def test_every_channel_of_a_place_gets_its_value_and_other_tokens_one():
    f = torch.rand(2, 3, 4)
    for layout, shape in (
        (ChannelsFirst(), (2, 5, 3, 4)),
        (ChannelsLast(), (2, 3, 4, 5)),
        (Tokens((3, 4), 2), (2, 14, 5)),
    ):
        assert layout.grid(torch.Size(shape)) == (3, 4)
        spread = layout.spread(f, torch.Size(shape)).expand(shape)
        if isinstance(layout, Tokens):
            assert (spread[:, :2] == 1).all()
            spread = spread[:, 2:].reshape(2, 3, 4, 5)
        channels_first = spread if isinstance(layout, ChannelsFirst) else spread.movedim(-1, 1)
        assert torch.equal(channels_first, f.unsqueeze(1).expand(2, 5, 3, 4))


def test_a_layout_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="4 dimensions, got shape"):
        ChannelsFirst().grid(torch.Size((2, 3)))
    with pytest.raises(ValueError, match=r"describes 5 tokens.*has 7"):
        Tokens((2, 2), 1).grid(torch.Size((1, 7, 3)))
