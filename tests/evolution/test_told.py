"""What a slim model tells of itself is what it returns, wherever a timm model stands; a new classifier fits."""

import pytest
import timm
import torch
from timm_modules import SMALLEST
from told import stale
from torch import nn

from pml_extensions.evolution import KELS
from pml_extensions.models import TwoHead

AWKWARD = {  # those of which the forward pass does not read what they tell, made small
    "hrnet_w18_small": {},
    "twins_svt_small": {"embed_dims": (16, 24, 32, 48), "num_heads": (2, 2, 2, 2), "depths": (1, 1, 1, 1)},
    "pit_ti_224": {},
    "mvitv2_tiny": {},
    "coat_tiny": {},
    "crossvit_tiny_240": {},
    "tnt_s_legacy_patch16_224": {"depth": 2},
    "efficientvim_m1": {},
    "selecsls42": {},
    "tresnet_m": {},
    "levit_128s": {},  # a list of widths
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": (1, 1, 1, 1)},  # channels last
    "test_convnext": {},
    "test_nfnet": {},  # a head that tells of itself
    "visformer_tiny": {"depth": (1, 1, 1)},  # embed_dim is the width of a stage before the last
}  # fmt: skip
QUICK = {"twins_svt_small", "tnt_s_legacy_patch16_224", "test_convnext", "test_nfnet", "visformer_tiny"}
NOT_IN_FEW = [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in AWKWARD]


def made(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).eval()


@pytest.mark.timm_model("name")
@pytest.mark.parametrize("name", NOT_IN_FEW)
def test_what_a_slim_model_tells_is_what_it_returns(name):
    check_telling(made(name, **AWKWARD[name]))


@pytest.mark.slow
@pytest.mark.timm_model("name")
@pytest.mark.parametrize("name", SMALLEST)
def test_what_a_slim_model_of_every_module_tells(name):
    check_telling(made(name))


def check_telling(dense):
    slim = KELS(0.5).slim(dense)
    assert stale(dense, slim) == {}
    if dense.num_classes:  # some are made without a classifier
        assert stale(dense, KELS(0.5).slim(TwoHead(dense, 8)).model) == {}
        TwoHead(slim, 8)
    slim.reset_classifier(6)
    assert TwoHead(slim, 8).num_classes == 6


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_features_only(name):
    dense = made(name, features_only=True, out_indices=(1, 2))
    assert stale(dense, KELS(0.5).slim(dense)) == {}


@pytest.mark.slow
@pytest.mark.timm_model("name")
@pytest.mark.parametrize("name", SMALLEST)
def test_features_only_of_every_module(name):
    try:
        dense = made(name, features_only=True)
    except (RuntimeError, AssertionError, AttributeError, TypeError, KeyError) as error:
        pytest.skip(f"timm makes none: {error}")
    assert stale(dense, KELS(0.5).slim(dense)) == {}


@pytest.mark.parametrize("name", ["test_convnext", pytest.param("edgenext_xx_small", marks=pytest.mark.slow)])
def test_new_classifier_where_nothing_pools(name):
    slim = KELS(0.5).slim(made(name, global_pool="")).eval()
    slim.reset_classifier(6)
    assert slim(torch.randn(2, 3, 64, 64)).shape[:2] == (2, 6)


@pytest.mark.parametrize("name", ["test_nfnet", "test_byobnet", "test_mambaout", "test_coatnet"])
def test_a_head_that_is_reset_by_itself(name):
    slim = KELS(0.3).slim(made(name)).eval()
    slim.head.reset(6)
    assert slim(torch.randn(2, *slim.pretrained_cfg["input_size"])).shape == (2, 6)
    assert slim.head.num_features == slim.head.fc.in_features


class Segmenter(nn.Module):
    """A head of the user's own on the maps of two timm models, one of which tells its maps alone."""

    def __init__(self):
        super().__init__()
        self.first = made("test_resnet", features_only=True, out_indices=(0, 2))
        self.second = made("test_vit", num_classes=0)
        channels = sum(self.first.feature_info.channels()) + self.second.num_features
        self.head = nn.Linear(channels, 5)

    def forward(self, x):
        maps = [m.mean((2, 3)) for m in self.first(x)]
        return self.head(torch.cat([*maps, self.second(x)], 1))


def test_models_inside_a_users_module():
    dense = Segmenter().eval()
    x = torch.randn(2, 3, 160, 160)
    slim = KELS(0.5, example_input=x).slim(dense)
    assert [layer.shape[1] for layer in slim.first(x)] == slim.first.feature_info.channels()
    assert slim.second(x).shape[1] == slim.second.num_features == slim.second.head_hidden_size == 32
    assert sum(slim.first.feature_info.channels()) + slim.second.num_features == slim.head.in_features
    assert stale(dense.first, slim.first, (x,)) == stale(dense.second, slim.second, (x,)) == {}
    slim.second.reset_classifier(3)
    assert slim.second(x).shape == (2, 3)
