"""KELS: its masks against the published rule, the slim network against the dense one without its reset-hypothesis."""

import copy
import importlib.util
import math
import pickle
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from pml_extensions.evolution import KELS, KnowledgeEvolution, find_weights

spec = importlib.util.spec_from_file_location("slim_checks", Path(__file__).with_name("slim_checks.py"))
slim_checks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(slim_checks)


def at(side, channels=3):
    return torch.zeros(2, channels, side, side)


SMALL = {
    "test_resnet": 64, "test_efficientnet": 64, "test_byobnet": 64, "test_mambaout": 64, "test_convnext": 64,
    "test_nfnet": 64, "test_vit": 64, "mobilenetv3_small_050": 64, "edgenext_xx_small": 64, "regnetx_002": 64,
    "repvit_m1": 64,
    "ghostnet_050": 64, "fasternet_t0": 64, "xcit_nano_12_p8_224": 64, "levit_128s": 224,
    "tf_efficientnet_cc_b0_4e": 64,
    "resnetv2_50d_gn": 64, "ecaresnet26t": 64, "deit_tiny_patch16_224": 224, "swin_tiny_patch4_window7_224": 224,
}  # fmt: skip
STRICT = {
    "test_resnet",
    "test_efficientnet",
    "mobilenetv3_small_050",
    "regnetx_002",
    "repvit_m1",
    "fasternet_t0",
    "levit_128s",
    "tf_efficientnet_cc_b0_4e",
}


@pytest.mark.timm_model("name")
@pytest.mark.parametrize("name", SMALL)
def test_slim_is_the_dense_network_without_its_reset_hypothesis(name):
    kind, error = slim_checks.exactness(timm.create_model(name).eval(), KELS(0.5, example_input=at(SMALL[name])))
    assert error < 1e-9
    if name in STRICT:
        assert kind == "masked"


@pytest.mark.parametrize(
    "name", ["edgenext_xx_small", "resnetv2_50d_gn", "tf_efficientnet_cc_b0_4e", "deit_tiny_patch16_224"]
)
def test_hard_cases_where_nothing_divides(name):
    split = KELS(0.3, example_input=at(SMALL[name]))
    model = timm.create_model(name).eval()
    assert split.widths(model).whole == []
    assert slim_checks.exactness(model, split)[1] < 1e-9


@pytest.mark.timm_model("name")
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "fasternet_t0"])
def test_slim_is_exact_in_train_mode(name):
    model = timm.create_model(name, drop_rate=0, drop_path_rate=0)
    assert slim_checks.exactness(model, KELS(0.5, example_input=at(64)), train=True)[1] < 1e-9


def leading(n, rate):
    return range(-(-n * rate[0] // rate[1]))


def published(weight, parts, rate, first, last):
    """The published rule: leading ceil(rate * n) filters and kernels, of each part of a concatenation; float-free."""
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    outputs = range(weight.shape[0]) if last else leading(weight.shape[0], rate)
    inputs, start = [], 0
    for part in [weight.shape[1]] if first else parts:
        inputs.extend(start + i for i in (range(part) if first else leading(part, rate)))
        start += part
    for o in outputs:
        mask[o, inputs] = True
    return mask


def densenet_parts(name, growth=32, start=64, blocks=(6, 12, 24, 16)):
    """The parts that each convolution of DenseNet-121 reads."""
    if name == "classifier":
        return densenet_inputs(3, 16, growth, start, blocks)
    words = name.split(".")[1:]
    if words[0].startswith("transition"):
        block = int(words[0][-1]) - 1
        return densenet_inputs(block, blocks[block], growth, start, blocks)
    if words[-1] == "conv1":
        return densenet_inputs(
            int(words[0][-1]) - 1, int(words[1].removeprefix("denselayer")) - 1, growth, start, blocks
        )
    return None


def densenet_inputs(block, layer, growth, start, blocks):
    width = start
    for count in blocks[:block]:
        width = (width + count * growth) // 2
    return [width, *[growth] * layer]


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
@pytest.mark.parametrize("rate", [(1, 2), (3, 10)])
def test_masks_are_the_published_ones(name, rate):
    model = timm.create_model(name)
    masks = KELS(rate[0] / rate[1], example_input=at(64))(model)
    assert masks.keys() == find_weights(model).weights.keys()
    for key, mask in masks.items():
        layer = key.removesuffix(".weight")
        parts = (densenet_parts(layer) if name == "densenet121" else None) or [mask.shape[1]]
        first, last = layer in {"conv1", "features.conv0"}, layer in {"fc", "classifier"}
        assert torch.equal(mask, published(mask, parts, rate, first, last)), key


class Branches(nn.Module):
    """An inception block: branches behind one another, then a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3)
        self.branches = nn.ModuleList(nn.Conv2d(10, n, 1) for n in (7, 12, 5))
        self.fc = nn.Linear(24, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.fc(torch.cat([branch(x) for branch in self.branches], 1).mean((2, 3)))


def test_masks_of_googlenet_like_branches():
    model, rate = Branches(), (1, 2)
    masks = KELS(0.5, example_input=at(8))(model)
    assert torch.equal(masks["fc.weight"], published(model.fc.weight, [7, 12, 5], rate, first=False, last=True))
    assert torch.equal(masks["stem.weight"], published(model.stem.weight, [3], rate, first=True, last=False))


def test_multiple():
    slim = KELS(0.5, multiple=8, example_input=at(8)).slim(Branches())
    assert slim.stem.out_channels == 8
    assert [branch.out_channels for branch in slim.branches] == [7, 8, 5]


def test_user_model_is_untouched_and_random_state_unread():
    model = timm.create_model("test_vit").train()
    before, attributes = copy.deepcopy(model.state_dict()), pickle.dumps(model.blocks[0].attn)
    state = torch.get_rng_state()
    ke = KnowledgeEvolution(model, KELS(0.5))
    slim = ke.slim()
    assert torch.equal(torch.get_rng_state(), state)
    assert pickle.dumps(model.blocks[0].attn) == attributes
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert model.training
    assert slim.training
    pointers = {p.data_ptr() for p in model.parameters()}
    assert not pointers & {p.data_ptr() for p in slim.parameters()}


def test_headless_model_keeps_its_embedding_and_fused_attention_agrees():
    model = timm.create_model("test_vit", num_classes=0).eval()
    slim = KELS(0.5).slim(model)
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    assert slim(x).shape == model(x).shape
    fused = slim(x)
    for block in slim.blocks:
        block.attn.fused_attn = not block.attn.fused_attn
    torch.testing.assert_close(slim(x), fused)


def test_summary_compares_dense_and_slim():
    summary = KnowledgeEvolution(timm.create_model("test_resnet"), KELS(0.5, example_input=at(64))).summary()
    assert 0.2 < summary.slim.slim_parameters / summary.slim.dense_parameters < 0.4
    assert 0.2 < summary.slim.slim_operations / summary.slim.dense_operations < 0.4
    assert "operations" in str(summary)


class FixedView(nn.Module):
    """A width that a literal in the code holds fast."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 12), nn.Linear(12, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.c(self.b(self.a(x).view(-1, 12)).relu())


def test_a_width_that_cannot_be_narrowed_stays_whole_and_is_listed():
    split = KELS(0.5, example_input=torch.zeros(2, 3))
    model = FixedView()
    slim = split.slim(model)
    assert (slim.a.out_features, slim.b.out_features) == (12, 4)
    (line,) = KnowledgeEvolution(model, split).summary().slim.whole
    assert line.startswith("12 at ")
    assert "test_kels.py" in line


def test_errors_of_the_settings():
    with pytest.raises(TypeError, match="rate must be a number"):
        KELS("half")
    with pytest.raises(ValueError, match="multiple must be at least 1"):
        KELS(0.5, 0)
    with pytest.raises(TypeError, match="example_input must be a tensor or a tuple of tensors, got list"):
        KELS(0.5, example_input=[torch.zeros(2, 3)])
    with pytest.raises(TypeError, match="multiple must be an int"):
        KELS(0.5, 2.0)


def test_ceil_of_every_width():
    slim = KELS(0.3, example_input=at(64)).slim(timm.create_model("test_resnet"))
    dense = timm.create_model("test_resnet")
    for a, b in zip(dense.modules(), slim.modules(), strict=True):
        if isinstance(a, nn.BatchNorm2d):
            assert b.num_features == math.ceil(0.3 * a.num_features) == b.running_mean.numel()
