"""A slim network whose branches are fused for deployment computes what it did."""

import pytest
import timm
import torch
from slim_checks import new_layers_in
from timm.utils import reparameterize_model
from torch import nn

from pml_extensions._slimming.tracing.later_uses import can_be_fused
from pml_extensions.evolution import KELS, load_slim, save_slim

FUSED = (
    "mobileone_s0", "repvgg_a0", "fastvit_t8", "ghostnetv3_050", "repghostnet_050", "lcnetv2_small", "repvit_m1",
    "levit_128s", "efficientvit_m0", "iformer_t", "efficientvim_m1", "shvit_s1", "tiny_vit_5m_224", "nextvit_small",
)  # fmt: skip
QUICK = {"lcnetv2_small"}


def random_statistics(model):
    """Give the norms of a model statistics that it matters to fold in."""
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.2, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)
    return model


def check_fused(slim, images):
    with torch.no_grad():
        expected = slim(images)
        with new_layers_in(images.dtype):
            fused = reparameterize_model(slim)
        found = fused(images)
    assert len(list(fused.modules())) <= len(list(slim.modules()))
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    for layer in fused.modules():  # what they tell is what they hold
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels // layer.groups)
    return fused


@pytest.mark.timm_model("name")
@pytest.mark.parametrize("rate", [0.5, pytest.param(0.3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in FUSED])
def test_fused_slim_equals_slim(name, rate, tmp_path):
    torch.manual_seed(0)
    dense = random_statistics(timm.create_model(name).eval())
    slim = KELS(rate).slim(dense).eval()
    images = torch.randn(2, *dense.pretrained_cfg["input_size"])
    save_slim(slim, tmp_path / "slim")
    check_fused(slim.double(), images.double())
    check_fused(load_slim(tmp_path / "slim").double(), images.double())


class Branches(nn.Module):
    """Two branches and a shortcut that become one convolution, told by integers that the forward does not read."""

    def __init__(self, width, groups):
        super().__init__()
        self.width, self.groups, self.fused = width, groups, None
        self.three = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        self.one = nn.Conv2d(width, width, 1, groups=groups)

    def forward(self, x):
        return (self.three(x) + self.one(x) + x if self.fused is None else self.fused(x)).relu()

    def reparameterize(self):
        each = self.width // self.groups
        shortcut = torch.zeros(self.width, each, 3, 3)
        for i in range(self.width):
            shortcut[i, i % each, 1, 1] = 1
        self.fused = nn.Conv2d(self.width, self.width, 3, padding=1, groups=self.groups)
        self.fused.weight.data = self.three.weight + nn.functional.pad(self.one.weight, [1] * 4) + shortcut
        self.fused.bias = nn.Parameter(self.three.bias + self.one.bias)
        del self.three, self.one


class Fused(nn.Module):
    """A layer and its norm that become one layer of another place, made by a method that returns it."""

    def __init__(self, inside, outside):
        super().__init__()
        self.sizes = {"in": inside, "out": outside}
        self.conv, self.norm = nn.Conv2d(inside, outside, 1, bias=False), nn.BatchNorm2d(outside)

    def forward(self, x):
        return self.norm(self.conv(x))

    @torch.no_grad()
    def fuse(self):
        layer = nn.Conv2d(self.sizes["in"], self.sizes["out"], 1)
        scale = self.norm.weight / (self.norm.running_var + self.norm.eps).sqrt()
        layer.weight.copy_(self.conv.weight * scale[:, None, None, None])
        layer.bias.data.copy_(self.norm.bias - scale * self.norm.running_mean)
        return layer


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_fused_modules_of_the_users_own(groups):
    dense = nn.Sequential(
        nn.Conv2d(3, 16, 3), Branches(16, groups), Fused(16, 24), Branches(24, 24 if groups == 16 else groups),
        nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(1), nn.Linear(24, 2),
    )  # fmt: skip
    slim = KELS(0.5, example_input=torch.zeros(2, 3, 8, 8)).slim(random_statistics(dense.eval()))
    assert slim[0].out_channels == 8
    check_fused(slim, torch.randn(2, 3, 8, 8))


class Around(nn.Module):
    """A module of the user's own around a timm model that fuses itself, so that only the model can be fused."""

    def __init__(self):
        super().__init__()
        self.backbone = timm.create_model("repvit_m1", embed_dim=(8, 12, 16, 24), depth=(1, 1, 1, 1), num_classes=0)
        self.head = nn.Linear(24, 3)

    def forward(self, x):
        return self.head(self.backbone(x))


def test_a_timm_model_inside_a_module_of_the_users_own():
    images = torch.randn(2, 3, 64, 64)
    slim = KELS(0.5, example_input=images).slim(random_statistics(Around().eval()))
    assert slim.head.in_features == slim.backbone.num_features == 12
    check_fused(slim.backbone, images)


class Unfusable(Branches):
    def reparameterize(self):
        raise NotImplementedError("not this one")


def test_a_module_that_cannot_be_fused_is_cut_all_the_same():
    dense = nn.Sequential(nn.Conv2d(3, 16, 3), Unfusable(16, 16), nn.Conv2d(16, 2, 1))
    slim = KELS(0.5, example_input=torch.zeros(2, 3, 8, 8)).slim(dense)
    assert slim[0].out_channels == 8
    assert slim(torch.randn(2, 3, 8, 8)).shape == (2, 2, 6, 6)


@pytest.mark.slow
def test_every_module_of_timm_that_fuses_is_here():
    fusing = set()
    for module in timm.list_modules():
        with torch.device("meta"):
            for name in timm.list_models(module=module):
                try:
                    model = timm.create_model(name)
                except RuntimeError:  # one that looks at values when it is made
                    continue
                if can_be_fused(model):
                    fusing.add(module)
                    break
    here = {timm.models.model_entrypoint(name).__module__.rpartition(".")[2] for name in FUSED}
    assert fusing <= here
